"""The chat page in headless Chromium, driven over the DevTools protocol.

    browser.py BASE_URL API_KEY [SCREENSHOT_FOLDER]

A person opens the page, types the key and a message, watches the reply grow, and reloads.
"""
import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

BASE, KEY, *REST = sys.argv[1:]
SHOTS = Path(REST[0]) if REST else None
WAIT_S = 90


class Browser:
    """One Chromium with one page."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="millrace-chromium-")
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "no Chromium: run `make setup-test`"
        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1100,800",
             "--remote-debugging-port=0", f"--user-data-dir={self.profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = Path(self.profile) / "DevToolsActivePort"
        self.wait(lambda: port_file.exists() and len(port_file.read_text().split()) == 2, "Chromium opens its DevTools port")
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
            page = next(target for target in json.load(reply) if target["type"] == "page")
        self.open_things = contextlib.ExitStack()
        self.socket = self.open_things.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None))
        self.number = 0
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self.open_things.close()
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(WAIT_S))
            if message.get("id") == self.number:
                assert "error" not in message, (method, message)
                return message["result"]
            self.events.append(message)

    def js(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (expression, result)
        return result["result"].get("value")

    def wait(self, condition, what, limit_s=WAIT_S):
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.03)
        raise AssertionError(f"not within {limit_s} s: {what}; page: {self.text() if hasattr(self, 'socket') else ''}")

    def text(self):
        """What a person can read on the page."""
        return self.js("document.body ? document.body.innerText : ''")

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait(lambda: self.js("document.readyState") == "complete", "the page loads")

    def click(self, selector):
        box = self.js(f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView(); "
                      "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector, text):
        self.click(selector)
        self.call("Input.insertText", text=text)

    def press_enter(self):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)

    def visible(self, selector):
        return self.js(f"(() => {{ const e = document.querySelector({selector!r}); return !!e && e.getClientRects().length > 0 && !e.disabled; }})()")

    def picture(self, name):
        if SHOTS:
            SHOTS.mkdir(parents=True, exist_ok=True)
            (SHOTS / f"{name}.png").write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def complaints(self):
        """Errors that the page or the browser reported."""
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"].get("text"))
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"].get("text"))
        return found


KEY_FIELD = "#key"
KEY_ERROR = "#gate-error"
MESSAGE_FIELD = "#text"
QUESTION = "Please tell me a few sentences about the river Danube."


def replies(browser):
    """The texts of the assistant's messages on the page."""
    return browser.js("[...document.querySelectorAll('.message.assistant .body')].map(e => e.innerText)")


def main():
    browser = Browser()
    try:
        browser.open(BASE + "/")
        foreign = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"
                   and not event["params"]["request"]["url"].startswith((BASE, "about:", "data:"))]
        assert not foreign, f"the page loads things from elsewhere: {foreign}"

        browser.wait(lambda: browser.visible(KEY_FIELD), "a field for the key")
        browser.picture("1-key")
        browser.type(KEY_FIELD, "mr-" + "A" * 43)
        browser.press_enter()
        browser.wait(lambda: browser.visible(KEY_ERROR) and browser.visible(KEY_FIELD), "a wrong key is named")
        browser.picture("2-wrong-key")
        browser.js(f"document.querySelector({KEY_FIELD!r}).value = ''")
        browser.type(KEY_FIELD, KEY)
        browser.press_enter()
        browser.wait(lambda: browser.visible(MESSAGE_FIELD), "a field for the message")

        browser.type(MESSAGE_FIELD, QUESTION)
        browser.press_enter()
        browser.wait(lambda: QUESTION in browser.text(), "the message is on the page")
        lengths = set()

        def grown():
            texts = replies(browser)
            lengths.add(len(texts[-1]) if texts else 0)
            return len(lengths) >= 4

        browser.wait(grown, "the reply grows piece by piece")
        browser.picture("3-streaming")
        steady = [0, time.monotonic()]

        def settled():
            texts = replies(browser)
            size = len(texts[-1]) if texts else 0
            if size != steady[0]:
                steady[:] = [size, time.monotonic()]
            return size > 0 and time.monotonic() - steady[1] > 2

        browser.wait(settled, "the reply ends")
        before = replies(browser)[-1].strip()
        browser.picture("4-reply")

        browser.call("Page.reload")
        browser.wait(lambda: QUESTION in browser.text(), "the question is there after a reload")
        browser.wait(lambda: replies(browser) and replies(browser)[-1].strip() == before, "the same reply is there after a reload")
        assert not browser.visible(KEY_FIELD), "the key is asked for again after a reload"
        browser.picture("5-reloaded")

        browser.type(MESSAGE_FIELD, "Thank you. <b>Is this bold?</b> <img src=x onerror=\"document.title='owned'\">")
        browser.press_enter()
        browser.wait(lambda: len(replies(browser)) == 2 and replies(browser)[1].strip(), "a second reply")
        assert browser.js("document.title") != "owned", "a message runs as HTML"
        assert "<b>Is this bold?</b>" in browser.text(), "a message is shown as it was written"
        bad = [text for text in browser.complaints() if text and "favicon" not in text]
        assert not bad, f"errors in the console: {bad}"
        print(f"browser: the reply grew over {len(lengths)} sizes; {len(before)} characters survived the reload")
    except Exception:
        browser.picture("failed")
        print("console:", browser.complaints())
        raise
    finally:
        browser.close()


main()
