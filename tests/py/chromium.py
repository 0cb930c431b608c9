"""Headless Chromium, driven over the DevTools protocol, for the scripts beside this one."""
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

WAIT_S = 90


class Browser:
    """One Chromium with one page."""

    def __init__(self, *flags, shots=None):
        self.shots = shots
        self.profile = tempfile.mkdtemp(prefix="millrace-chromium-")
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program, "no Chromium: run `make setup-test`"
        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", *(flags or ["--disable-quic"]), "--no-first-run", "--disable-background-networking",
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
        if self.shots:
            self.shots.mkdir(parents=True, exist_ok=True)
            (self.shots / f"{name}.png").write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def complaints(self):
        """Errors that the page or the browser reported."""
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"].get("text"))
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"].get("text"))
        return found
