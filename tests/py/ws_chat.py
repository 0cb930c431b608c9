"""The `websockets` library on /v1/chat/ws.

    ws_chat.py HOST:PORT API_KEY [NAME ...]
"""
import asyncio
import json
import sys
import urllib.request

import websockets
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

HOST, KEY, *ONLY = sys.argv[1:]
URL = f"ws://{HOST}/v1/chat/ws"
WAIT = 120


def dial(**options):
    return connect(URL, **{"origin": f"http://{HOST}", "open_timeout": WAIT, "max_size": 2**20, **options})


async def receive(socket):
    return json.loads(await asyncio.wait_for(socket.recv(), WAIT))


async def say(socket, **message):
    await socket.send(json.dumps(message))


async def enter(socket, key=KEY):
    await say(socket, type="auth", key=key)
    ready = await receive(socket)
    assert ready["type"] == "ready" and ready["model"], ready


async def turn(socket, session, text, number):
    """Sends one message and collects its reply."""
    await say(socket, type="send", session=session, text=text, id=number)
    pieces = []
    while True:
        message = await receive(socket)
        if message["type"] == "delta" and message["id"] == number:
            pieces.append(message["text"])
        elif message["type"] == "done" and message["id"] == number:
            return "".join(pieces), message
        else:
            assert message["type"] in ("notice", "delta", "done"), message


async def a_message_is_answered_in_pieces():
    async with dial() as socket:
        await enter(socket)
        text, done = await turn(socket, "ws-one", "Tell me something about rivers.", 1)
        assert text.strip() and done["finish_reason"] in ("stop", "length"), done
        assert done["usage"]["completion_tokens"] > 0, done


async def history_is_there_on_a_new_connection():
    async with dial() as socket:
        await enter(socket)
        text, _ = await turn(socket, "ws-history", "Say something short.", 1)
    async with dial() as socket:
        await enter(socket)
        await say(socket, type="history", session="ws-history")
        history = await receive(socket)
        assert history["type"] == "history" and history["session"] == "ws-history", history
        roles = [(m["role"], m["text"]) for m in history["messages"]]
        assert roles == [("user", "Say something short."), ("assistant", text)], (roles, text)
        assert [m["seq"] for m in history["messages"]] == sorted(m["seq"] for m in history["messages"])
        await say(socket, type="history", session="never-used")
        empty = await receive(socket)
        assert empty["type"] == "history" and empty["messages"] == [], empty


async def stop_ends_a_reply_early():
    async with dial() as socket:
        await enter(socket)
        await say(socket, type="send", session="ws-stop", text="Count from one to one thousand, slowly, in words.", id=5)
        while (await receive(socket))["type"] != "delta":
            pass
        await say(socket, type="stop", id=5)
        while True:
            message = await receive(socket)
            if message["type"] in ("done", "error"):
                break
        assert message["type"] == "done" and message["id"] == 5, message
        text, done = await turn(socket, "ws-stop", "Say hello.", 6)
        assert text.strip(), "the session goes on after a stop"


async def two_sessions_stream_on_one_connection():
    async with dial() as socket:
        await enter(socket)
        await say(socket, type="send", session="ws-a", text="Describe a mountain.", id=1)
        await say(socket, type="send", session="ws-b", text="Describe a lake.", id=2)
        pieces, done = {1: "", 2: ""}, set()
        while done != {1, 2}:
            message = await receive(socket)
            if message["type"] == "delta":
                pieces[message["id"]] += message["text"]
            elif message["type"] == "done":
                done.add(message["id"])
            else:
                assert message["type"] == "notice", message
        assert pieces[1].strip() and pieces[2].strip(), pieces


async def a_wrong_key_is_refused():
    async with dial() as socket:
        await say(socket, type="auth", key="mr-" + "A" * 43)
        error = await receive(socket)
        assert error["type"] == "error" and error["error"]["code"] == "invalid_api_key", error
        try:
            await asyncio.wait_for(socket.recv(), WAIT)
            raise AssertionError("the connection stays open")
        except ConnectionClosed as closed:
            assert closed.rcvd and closed.rcvd.code in (1008, 3000), closed


async def a_revoked_key_ends_its_sockets():
    def administer(method, path, body=None):
        request = urllib.request.Request(f"http://{HOST}/v1/admin/keys{path}", body and json.dumps(body).encode(),
                                         {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=WAIT) as reply:
            return reply.read()

    made = json.loads(await asyncio.to_thread(administer, "POST", "", {"user": "leaver", "label": "leaver", "scopes": ["chat"]}))
    frames = (
        {"type": "send", "session": "s", "text": "hello", "id": 1},
        {"type": "resume", "session": "s", "id": 1, "offset": 0},
        {"type": "history", "session": "s"},
    )
    sockets = [await dial() for _ in frames]
    for socket in sockets:
        await enter(socket, made["key"])
    await asyncio.to_thread(administer, "DELETE", f"?id={made['id']}")
    for socket, frame in zip(sockets, frames):
        await say(socket, **frame)
        error = await receive(socket)
        assert error["type"] == "error" and error["error"]["code"] == "invalid_api_key", (frame, error)
        try:
            await asyncio.wait_for(socket.recv(), WAIT)
            raise AssertionError(f"the connection stays open after {frame}")
        except ConnectionClosed as closed:
            assert closed.rcvd and closed.rcvd.code == 1008, (frame, closed)


async def nothing_works_before_the_key():
    async with dial() as socket:
        await say(socket, type="send", session="s", text="hello", id=1)
        error = await receive(socket)
        assert error["type"] == "error", error


async def another_origin_is_refused():
    try:
        async with dial(origin="http://evil.example"):
            raise AssertionError("a foreign origin got in")
    except InvalidStatus as refused:
        assert refused.response.status_code == 403, refused


async def nonsense_gets_an_error_not_silence():
    async with dial() as socket:
        await enter(socket)
        for text in ('{"type":"no-such-type"}', "not json", "[]", '{"type":"send","id":1}', "{}"):
            await socket.send(text)
            try:
                error = await receive(socket)
            except ConnectionClosed as closed:
                raise AssertionError(f"{text!r} closed the connection: {closed}") from closed
            assert error["type"] == "error" and error["error"]["message"], (text, error)
        text, _ = await turn(socket, "ws-after-nonsense", "Say hi.", 9)
        assert text.strip()


async def fragments_and_pings_are_handled():
    async with dial() as socket:
        await enter(socket)
        await asyncio.wait_for(await socket.ping(b"x" * 125), WAIT)
        message = json.dumps({"type": "send", "session": "ws-fragments", "text": "Hello, how are you?", "id": 1})

        async def pieces():
            for at in range(0, len(message), 7):
                yield message[at:at + 7]

        await socket.send(pieces())
        while (await receive(socket))["type"] != "done":
            pass


async def a_message_that_is_too_large_closes_with_1009():
    async with dial() as socket:
        await enter(socket)
        try:
            await say(socket, type="send", session="s", text="x" * (8 << 20), id=1)
            while True:
                message = await receive(socket)
                assert message["type"] == "error", message
        except ConnectionClosed as closed:
            assert closed.rcvd and closed.rcvd.code == 1009, closed


async def broken_utf8_closes_with_1007():
    async with dial() as socket:
        await enter(socket)
        await socket.send(b"\xff\xfe", text=True)
        try:
            await asyncio.wait_for(socket.recv(), WAIT)
            raise AssertionError("broken UTF-8 was accepted")
        except ConnectionClosed as closed:
            assert closed.rcvd and closed.rcvd.code == 1007, closed


async def closing_is_answered():
    socket = await dial()
    await enter(socket)
    await asyncio.wait_for(socket.close(), WAIT)
    assert socket.close_code == 1000, socket.close_code


async def main():
    helpers = ("receive", "say", "enter", "turn", "main")
    checks = [f for name, f in list(globals().items()) if asyncio.iscoroutinefunction(f) and name not in helpers and f.__module__ == "__main__"]
    chosen = [f for f in checks if not ONLY or f.__name__ in ONLY]
    assert chosen, f"no check is called {ONLY}"
    failed = 0
    for check in chosen:
        try:
            await check()
            print("ok  ", check.__name__)
        except Exception as error:
            failed += 1
            print("FAIL", check.__name__, type(error).__name__, str(error)[:2000])
    print(f"{len(chosen) - failed} passed, {failed} failed (websockets {websockets.__version__})")
    sys.exit(1 if failed else 0)


asyncio.run(main())
