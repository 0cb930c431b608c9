"""The chat page in headless Chromium.

    browser.py BASE_URL API_KEY [SCREENSHOT_FOLDER]

A person opens the page, types the key and a message, watches the reply grow, and reloads; a broken
connection in the middle of a reply is not noticed.
"""
import sys
import time
from pathlib import Path

from chromium import Browser

BASE, KEY, *REST = sys.argv[1:]
SHOTS = Path(REST[0]) if REST else None


KEY_FIELD = "#key"
KEY_ERROR = "#gate-error"
MESSAGE_FIELD = "#text"
QUESTION = "Please tell me a few sentences about the river Danube."


def replies(browser):
    """The texts of the assistant's messages on the page."""
    return browser.js("[...document.querySelectorAll('.message.assistant .body')].map(e => e.innerText)")


def main():
    browser = Browser(shots=SHOTS)
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
        # The connection breaks in the middle of it, and again.
        for _ in range(2):
            browser.js("state.socket.close()")
            browser.wait(lambda: browser.js("state.ready"), "the page is connected again")
        steady[:] = [0, time.monotonic()]
        browser.wait(settled, "the second reply ends")
        second = replies(browser)[-1].strip()
        assert len(replies(browser)) == 2, replies(browser)
        assert browser.js("document.title") != "owned", "a message runs as HTML"
        assert "<b>Is this bold?</b>" in browser.text(), "a message is shown as it was written"
        browser.call("Page.reload")
        browser.wait(lambda: len(replies(browser)) == 2 and replies(browser)[-1].strip() == second, "the history has the whole second reply")
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
