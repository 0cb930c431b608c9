"""A client of `millrace/1`, written from proto/NATIVE.md alone, over aioquic.

Usage: native_client.py HOST:PORT CERTIFICATE KEY
"""

import asyncio
import struct
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived

HOST, PORT = sys.argv[1].rsplit(":", 1)
CERTIFICATE, KEY = sys.argv[2:4]
PATIENCE_S = 60
NUMBERS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i64": "<q", "f32": "<f", "bool": "<?"}
TURN = ("role:string", "text:string")
KINDS = {
    "Hello": (0x01, ("version:u16", "token:string", "agent:string")),
    "Echo": (0x02, ("id:u64", "text:string")),
    "Chat": (0x03, ("model:string", "session:option<string>", "user:option<string>", "messages:list<Turn>", "max_tokens:option<u32>",
                    "temperature:option<f32>", "top_p:option<f32>", "seed:option<i64>", "stop:list<string>")),
    "Embed": (0x04, ("model:string", "texts:list<string>", "dimensions:option<u32>")),
    "Welcome": (0x81, ("version:u16", "model:string", "embedding_model:string")),
    "Echoed": (0x82, ("id:u64", "text:string")),
    "Started": (0x83, ("prompt_tokens:u32", "cached_tokens:u32")),
    "Delta": (0x84, ("text:string",)),
    "Notice": (0x85, ("text:string",)),
    "Done": (0x86, ("ending:u8", "prompt_tokens:u32", "cached_tokens:u32", "completion_tokens:u32", "message_seq:option<u64>")),
    "Vectors": (0x87, ("model:string", "dimensions:u32", "values:list<f32>", "tokens:u32")),
    "Fault": (0x8F, ("status:u16", "code:string", "message:string", "next_step:string", "retryable:bool", "retry_after_s:option<u32>")),
}
NAMES = {number: name for name, (number, _) in KINDS.items()}


def size(kind):
    if kind in NUMBERS:
        return struct.calcsize(NUMBERS[kind])
    if kind == "Turn":
        return 16
    return 1 + size(kind[7:-1]) if kind.startswith("option<") else 8


def lay(out, kind, value):
    """Puts what `value` points to into `out`, and gives a function that makes its own bytes at a place."""
    if kind in NUMBERS:
        made = struct.pack(NUMBERS[kind], value)
        return lambda at: made
    if kind == "string":
        text = value.encode()
        if len(text) <= 8:
            return lambda at: text.ljust(8, b"\xff")
        start = len(out)
        out += text
        return lambda at: struct.pack("<Ii", (len(text) & 0x3F) | 0x80 | (len(text) & ~0x3F) << 2, start - at)
    if kind == "Turn":
        parts = [lay(out, "string", value[0]), lay(out, "string", value[1])]
        return lambda at: parts[0](at) + parts[1](at + 8)
    inner = kind[kind.index("<") + 1:-1]
    if kind.startswith("option<"):
        if value is None:
            return lambda at: bytes(1 + size(inner))
        made_inner = lay(out, inner, value)
        return lambda at: b"\x01" + made_inner(at + 1)
    elements = [lay(out, inner, element) for element in value]
    start = len(out)
    for element in elements:
        out += element(len(out))
    return lambda at: struct.pack("<iI", start - at, len(elements))


def frame(name, *values):
    number, fields = KINDS[name]
    out = bytearray()
    kinds = [field.split(":")[1] for field in fields]
    parts = [lay(out, kind, value) for kind, value in zip(kinds, values, strict=True)]
    for part in parts:
        out += part(len(out))
    return struct.pack("<IBBH", len(out), number, 0, 0) + bytes(out)


def take(payload, at, kind):
    if kind in NUMBERS:
        return struct.unpack_from(NUMBERS[kind], payload, at)[0]
    if kind == "string":
        word, offset = struct.unpack_from("<Ii", payload, at)
        if word & 0xC0 != 0x80:
            return payload[at:at + 8].rstrip(b"\xff").decode()
        length = (word & 0x3F) | (word & ~0xFF) >> 2
        return payload[at + offset:at + offset + length].decode()
    inner = kind[kind.index("<") + 1:-1]
    if kind.startswith("option<"):
        return take(payload, at + 1, inner) if payload[at] else None
    offset, count = struct.unpack_from("<iI", payload, at)
    return [take(payload, at + offset + n * size(inner), inner) for n in range(count)]


def parse(number, payload):
    name = NAMES[number]
    kinds = [field.split(":") for field in KINDS[name][1]]
    at = len(payload) - sum(size(kind) for _, kind in kinds)
    values = {}
    for field, kind in kinds:
        values[field] = take(payload, at, kind)
        at += size(kind)
    return name, values


class Client(QuicConnectionProtocol):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.inputs, self.ended, self.news = {}, None, asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self.inputs.setdefault(event.stream_id, bytearray()).extend(event.data)
        elif isinstance(event, ConnectionTerminated):
            self.ended = event
        else:
            return
        self.news.set()

    def open(self):
        return self._quic.get_next_available_stream_id()

    def say(self, stream, *frames, end=False):
        self._quic.send_stream_data(stream, b"".join(frames), end_stream=end)
        self.transmit()

    async def hear(self, stream):
        async def wait():
            while True:
                self.news.clear()
                data = self.inputs.get(stream, b"")
                if len(data) >= 8:
                    length, number, flags, reserved = struct.unpack_from("<IBBH", data)
                    assert flags == 0 and reserved == 0
                    if len(data) >= 8 + length:
                        payload = bytes(data[8:8 + length])
                        del data[:8 + length]
                        return parse(number, payload)
                if self.ended:
                    return "Closed", {"code": self.ended.error_code, "reason": self.ended.reason_phrase}
                await self.news.wait()
        return await asyncio.wait_for(wait(), PATIENCE_S)


def dial():
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["millrace/1"], server_name="localhost")
    configuration.load_verify_locations(CERTIFICATE)
    return connect(HOST, int(PORT), configuration=configuration, create_protocol=Client)


async def refused(*frames):
    """What a connection that begins with these bytes hears until it is closed."""
    async with dial() as client:
        stream = client.open()
        client.say(stream, *frames)
        heard = []
        while not heard or heard[-1][0] != "Closed":
            heard.append(await client.hear(stream))
        return heard


async def main():
    text = "a text that is not kept inline"
    published = bytes.fromhex("2e00000002000000") + text.encode() + bytes.fromhex("08070605040302019e000000daffffff")
    assert frame("Echo", 0x0102030405060708, text) == published
    async with dial() as client:
        first = client.open()
        client.say(first, frame("Hello", 1, KEY, "a Python client"))
        name, welcome = await client.hear(first)
        assert name == "Welcome" and welcome["version"] == 1 and welcome["model"], (name, welcome)

        # Many on one stream, answered in order.
        texts = ["", "short", "exactly8", "a little longer than eight", "\u00e4\U0001f980" * 5_000]
        client.say(first, *(frame("Echo", number, text) for number, text in enumerate(texts)))
        for number, text in enumerate(texts):
            assert await client.hear(first) == ("Echoed", {"id": number, "text": text}), number
        # And on many streams at once.
        streams = []
        for _ in range(60):
            streams.append(client.open())
            client.say(streams[-1], frame("Echo", streams[-1], f"stream {streams[-1]}"), end=True)
        for stream in streams:
            assert await client.hear(stream) == ("Echoed", {"id": stream, "text": f"stream {stream}"})
        print("echo: ok")

        chat = client.open()
        client.say(chat, frame("Chat", "", None, None, [("user", "Say hello to everybody here.")], 12, 0.0, None, 7, []))
        heard = [await client.hear(chat)]
        # An echo on another stream does not wait for the answer.
        other = client.open()
        client.say(other, frame("Echo", 1, "meanwhile"))
        assert (await client.hear(other))[0] == "Echoed"
        while heard[-1][0] not in ("Done", "Fault", "Closed"):
            heard.append(await client.hear(chat))
        assert heard[0][0] == "Started" and heard[-1][0] == "Done", heard
        answer = "".join(values["text"] for name, values in heard if name == "Delta")
        done = heard[-1][1]
        assert answer and done["completion_tokens"] > 0 and done["prompt_tokens"] > 0 and done["ending"] in (0, 1), heard
        print("chat: ok")

        client.say(chat, frame("Chat", "", "native-session", None, [("user", "My dog is called Bartholomew.")], 4, 0.0, None, None, []))
        while (heard := await client.hear(chat))[0] not in ("Done", "Fault"):
            pass
        assert heard[0] == "Done" and heard[1]["message_seq"] is not None, heard
        client.say(chat, frame("Chat", "no-such-model", None, None, [("user", "x")], None, None, None, None, []))
        name, fault = await client.hear(chat)
        assert name == "Fault" and fault["status"] == 404 and fault["code"] == "model_not_found" and fault["next_step"], fault
        client.say(chat, frame("Chat", "", None, None, [("robot", "x")], None, None, None, None, []))
        name, fault = await client.hear(chat)
        assert name == "Fault" and fault["status"] == 400, fault
        print("session and faults: ok")

        client.say(other, frame("Embed", "", ["a text", "another one, longer than the first"], None))
        name, vectors = await client.hear(other)
        if welcome["embedding_model"]:
            assert name == "Vectors" and len(vectors["values"]) == 2 * vectors["dimensions"], (name, vectors)
            length = sum(value * value for value in vectors["values"][:vectors["dimensions"]])
            assert abs(length - 1) < 1e-3, length
        else:
            assert name == "Fault" and vectors["status"] == 404, vectors
        print("embeddings: ok")

    heard = await refused(frame("Hello", 1, "mr-" + "x" * 43, ""))
    assert heard[0][0] == "Fault" and heard[0][1]["status"] == 401 and heard[-1][1]["code"] == 2, heard
    heard = await refused(frame("Hello", 9, KEY, ""))
    assert heard[0][0] == "Fault" and heard[0][1]["code"] == "unknown_version", heard
    for bad, code in [
        (frame("Echo", 1, "before hello"), 2),
        (struct.pack("<IBBH", 0, 0x7F, 0, 0), 1),
        (struct.pack("<IBBH", 0, 0x81, 0, 0), 1),
        (struct.pack("<IBBH", 0, 0x01, 1, 0), 1),
        (struct.pack("<IBBH", 1 << 31, 0x01, 0, 0), 1),
        (struct.pack("<IBBH", 4, 0x01, 0, 0) + b"\xff" * 4, 1),
    ]:
        heard = await refused(bad)
        assert heard[-1][0] == "Closed" and heard[-1][1]["code"] == code, (bad, heard)
    async with dial() as client:
        stream = client.open()
        client.say(stream, frame("Hello", 1, KEY, ""))
        await client.hear(stream)
        client.say(stream, struct.pack("<IBBH", 30, 0x02, 0, 0) + bytes(22) + struct.pack("<Ii", 0x9E, -1_000))
        name, closed = await client.hear(stream)
        assert name == "Closed" and closed["code"] == 1, closed
    print("refusals: ok")


asyncio.run(main())
print("done")
