"""Replies outlive their connections: the `websockets` library and httpx2 behind a proxy that breaks connections at random
bytes come back for the rest, and what they have in the end is what an unbroken client gets.

    resume.py HOST:PORT API_KEY OTHER_KEY [NAME ...]
"""
import asyncio
import json
import random
import socket as sockets
import struct
import sys

import httpx2 as httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

HOST, KEY, OTHER, *ONLY = sys.argv[1:]
WAIT = 120
# Of one streamed reply: enough for its connection to break several times.
TOKENS = 30
RNG = random.Random(20261130)
SEVERED = (ConnectionClosed, InvalidHandshake, InvalidMessage, OSError, EOFError, httpx.TransportError)


class Breaker:
    """A proxy whose connections carry some bytes of the server and then break: with a reset, or silently half-closed."""

    def __init__(self, low, high):
        self.low, self.high, self.broken, self.tasks = low, high, 0, set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.address = "127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def accept(self, *line):
        task = asyncio.create_task(self.carry(*line))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def carry(self, client_reader, client_writer):
        host, port = HOST.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        upwards = asyncio.create_task(self.pump(client_reader, writer))
        left = RNG.randint(self.low, self.high)
        try:
            while left > 0 and (part := await reader.read(min(left, 4096))):
                left -= len(part)
                client_writer.write(part)
                await client_writer.drain()
        except OSError:
            pass
        upwards.cancel()
        if left <= 0:
            self.broken += 1
            if RNG.random() < 0.5:
                for stream in (client_writer, writer):
                    line = stream.get_extra_info("socket")
                    line.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
        client_writer.close()
        writer.close()

    async def pump(self, reader, writer):
        try:
            while part := await reader.read(4096):
                writer.write(part)
                await writer.drain()
        except OSError:
            pass


async def receive(socket):
    return json.loads(await asyncio.wait_for(socket.recv(), WAIT))


async def enter(address, key=KEY):
    socket = await connect(f"ws://{address}/v1/chat/ws", origin=f"http://{address}", open_timeout=WAIT, compression=None)
    try:
        await socket.send(json.dumps({"type": "auth", "key": key}))
        ready = await receive(socket)
        assert ready["type"] == "ready", ready
        return socket
    except BaseException:
        socket.transport.abort()
        raise


async def turn(breaker, session, text, number):
    """One turn through a breaking proxy: the text, and how often it was resumed."""
    pieces, offset, said, resumed = [], 0, False, 0
    while True:
        try:
            socket = await enter(breaker.address)
            if said:
                await socket.send(json.dumps({"type": "resume", "session": session, "id": number, "offset": offset}))
            else:
                await socket.send(json.dumps({"type": "send", "session": session, "text": text, "id": number}))
                said = True
            while True:
                frame = await receive(socket)
                if frame["type"] == "error" and frame["error"]["code"] == "reply_not_found":
                    # The message had not arrived when its connection broke.
                    assert offset == 0, frame
                    said = False
                    break
                assert frame["type"] in ("delta", "notice", "done") and frame["id"] == number, frame
                assert frame["offset"] > offset, (frame, offset)
                offset = frame["offset"]
                if frame["type"] == "delta":
                    pieces.append(frame["text"])
                if frame["type"] == "done":
                    await socket.close()
                    return "".join(pieces), resumed, frame
            socket.transport.abort()
        except SEVERED:
            resumed += said


async def sockets_resume_without_a_gap_or_a_repetition():
    resumed = 0
    async with Breaker(120, 1500) as breaker:
        for number in range(12):
            session = f"resume-{number}"
            text, times, done = await turn(breaker, session, f"Tell me a long story about the number {number}.", 40 + number)
            resumed += times
            socket = await enter(HOST)
            await socket.send(json.dumps({"type": "history", "session": session}))
            messages = (await receive(socket))["messages"]
            await socket.close()
            assert [message["role"] for message in messages] == ["user", "assistant"], messages
            assert messages[1]["text"].strip() == text.strip() and done["seq"] == messages[1]["seq"], (messages[1], text)
    assert resumed > 12 and breaker.broken > 12, (resumed, breaker.broken)
    print(f"     {resumed} times")


def body(number, **more):
    return {"model": "default", "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}], "max_tokens": TOKENS,
            "ignore_eos": True, "temperature": 0.9, "seed": number, "stream": True, "stream_options": {"resume": True, "include_usage": True}, **more}


def headers(key=KEY, last=None):
    return {"authorization": f"Bearer {key}", **({"last-event-id": last} if last else {})}


class Events:
    """What an event source keeps of a stream: data and the last id."""

    def __init__(self):
        self.data, self.last, self.numbers, self.over = [], None, [], False

    async def take(self, response):
        data, identity = None, None
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data = line[6:]
            elif line.startswith("id: "):
                identity = line[4:]
            elif line == "" and data is not None:
                if data == "[DONE]":
                    self.over = True
                else:
                    assert identity, data
                    self.data.append(json.loads(data))
                    self.last = identity
                    self.numbers.append(int(identity.rsplit(":", 1)[1]))
                data, identity = None, None


async def stream(client, url, request, by_get, place="/v1/chat/completions"):
    """A stream that is begun through `url` and resumed through it until it is whole: its events, and how often."""
    events, resumed = Events(), 0
    while not events.over:
        try:
            if events.last is None:
                call = client.stream("POST", f"{url}{place}", json=request, headers=headers())
            elif by_get:
                name = events.last.rsplit(":", 1)[0]
                call = client.stream("GET", f"{url}{place}/{name}", headers={**headers(last=events.last), "accept": "text/event-stream"})
            else:
                call = client.stream("POST", f"{url}{place}", json=request, headers=headers(last=events.last))
            async with call as response:
                assert response.status_code == 200, (response.status_code, await response.aread())
                await events.take(response)
        except SEVERED:
            resumed += events.last is not None
    assert events.numbers == list(range(1, len(events.numbers) + 1)), events.numbers
    return events, resumed


def text_of(events):
    return "".join(choice["delta"].get("content") or "" for event in events.data for choice in event["choices"])


async def streams_resume_by_last_event_id():
    resumed = 0
    limits = httpx.Limits(max_keepalive_connections=0)
    async with Breaker(900, 4500) as breaker, httpx.AsyncClient(timeout=WAIT, limits=limits) as client:
        for number in range(10):
            whole, _ = await stream(client, f"http://{HOST}", body(number), False)
            broken, times = await stream(client, f"http://{breaker.address}", body(number), number % 2 == 0)
            resumed += times
            assert text_of(broken) == text_of(whole), (text_of(broken), text_of(whole))
            assert broken.data[-1]["usage"] == whole.data[-1]["usage"] or broken.data[-1]["usage"]["completion_tokens"] == TOKENS, broken.data[-1]
            assert len({event["id"] for event in broken.data}) == 1, "one completion"
        # The older endpoint, and several answers.
        older = {name: value for name, value in body(78).items() if name != "messages"} | {"prompt": "Once upon a time"}
        whole, _ = await stream(client, f"http://{HOST}", older, False, "/v1/completions")
        broken, _ = await stream(client, f"http://{breaker.address}", older, True, "/v1/completions")
        texts = ["".join(choice["text"] for event in events.data for choice in event["choices"]) for events in (whole, broken)]
        assert texts[0] and texts[0] == texts[1], texts
        two, times = await stream(client, f"http://{breaker.address}", body(77, n=2), True)
        ends = [choice["index"] for event in two.data for choice in event["choices"] if choice["finish_reason"]]
        assert sorted(ends) == [0, 1], ends
    assert resumed > 10, resumed
    print(f"     {resumed} times")


async def begun(client, number, events_wanted=3, **more):
    """The id of an event of a stream whose connection was then closed."""
    async with client.stream("POST", f"http://{HOST}/v1/chat/completions", json=body(number, **more), headers=headers()) as response:
        ids = []
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                ids.append(line[4:])
            if len(ids) == events_wanted:
                return ids[-1]


async def only_the_key_that_began_a_stream_may_read_on():
    async with httpx.AsyncClient(timeout=WAIT) as client:
        last = await begun(client, 5, max_tokens=30)
        name = last.rsplit(":", 1)[0]
        for key, identity, status, code in (
                (OTHER, last, 404, "reply_not_found"), (KEY, name + "0:3", 404, "reply_not_found"), (KEY, f"{name}:99999", 400, "unknown_event"),
                (KEY, "nonsense", 400, "invalid_last_event_id"), (KEY, name + ":-1", 400, "invalid_last_event_id"), (KEY, ":" * 200, 400, "invalid_last_event_id")):
            for method, address, payload in (("POST", "/v1/chat/completions", body(5)), ("GET", f"/v1/chat/completions/{name}", None)):
                reply = await client.request(method, f"http://{HOST}{address}", json=payload, headers=headers(key, identity))
                expected = (400, "invalid_last_event_id") if method == "GET" and identity == name + "0:3" else (status, code)
                assert (reply.status_code, reply.json()["error"]["code"]) == expected, (method, identity, reply.text)
        foreign = await client.get(f"http://{HOST}/v1/chat/completions/{name}", headers=headers(OTHER))
        assert foreign.status_code == 404, foreign.text
        seen = await client.head(f"http://{HOST}/v1/chat/completions/{name}", headers=headers())
        assert seen.status_code == 200, seen
        rest = await client.get(f"http://{HOST}/v1/chat/completions/{name}?starting_after=1", headers=headers())
        assert rest.status_code == 200 and "data: [DONE]" in rest.text and f"id: {name}:2\n" in rest.text and f"id: {name}:1\n" not in rest.text, rest.text
        again = await client.get(f"http://{HOST}/v1/chat/completions/{name}", headers=headers())
        assert f"id: {name}:1\n" in again.text and "data: [DONE]" in again.text, "what is over may be read again"
    # The same on sockets.
    socket, stranger = await enter(HOST), await enter(HOST, OTHER)
    await socket.send(json.dumps({"type": "send", "session": "mine", "text": "Say something.", "id": 9}))
    first = await receive(socket)
    await stranger.send(json.dumps({"type": "resume", "session": "mine", "id": 9, "offset": 0}))
    refused = await receive(stranger)
    assert refused["type"] == "error" and refused["error"]["code"] == "reply_not_found", refused
    second = await enter(HOST)
    await second.send(json.dumps({"type": "resume", "session": "mine", "id": 9, "offset": 10**6}))
    refused = await receive(second)
    assert refused["error"]["code"] == "unknown_event" and refused["id"] == 9, refused
    # A second socket of the same key takes over.
    await second.send(json.dumps({"type": "resume", "session": "mine", "id": 9, "offset": first["offset"]}))
    while (frame := await receive(second))["type"] != "done":
        assert frame["type"] == "delta" and frame["id"] == 9, frame
    for line in (socket, stranger, second):
        await line.close()


async def main():
    helpers = ("receive", "enter", "turn", "stream", "begun", "main")
    checks = [f for name, f in list(globals().items()) if asyncio.iscoroutinefunction(f) and name not in helpers and f.__module__ == "__main__"]
    chosen = [f for f in checks if not ONLY or f.__name__ in ONLY]
    assert chosen, f"no check is called {ONLY}"
    for check in chosen:
        await check()
        print("ok  ", check.__name__)


asyncio.run(main())
