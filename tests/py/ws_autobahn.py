"""The cases of the Autobahn test suite, by their numbers, as data: frames to /v1/chat/ws, and what must come back. The address
is no echo, so a valid text is one that the server answers with its own frame about what it could not read.

Usage: ws_autobahn.py HOST:PORT KEY
"""

import asyncio
import base64
import json
import os
import socket
import struct
import sys

from websockets.asyncio.client import connect

HOST, PORT = sys.argv[1].rsplit(":", 1)
KEY = sys.argv[2]
TEXT, BINARY, CLOSE, PING, PONG, MORE = 0x81, 0x82, 0x88, 0x89, 0x8A, 0x80
MESSAGE_MAX = 1 << 20


def frame(first, payload=b"", mask=b"\x11\x22\x33\x44", length=None):
    length = len(payload) if length is None else length
    if length < 126:
        head = struct.pack("!BB", first, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, 0xFE, length)
    else:
        head = struct.pack("!BBQ", first, 0xFF, length)
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


class Socket:
    def __init__(self):
        self.stream = socket.create_connection((HOST, int(PORT)), timeout=30)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nonce = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(f"GET /v1/chat/ws HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.input = b""
        while b"\r\n\r\n" not in self.input:
            self.input += self.stream.recv(4096)
        head, self.input = self.input.split(b"\r\n\r\n", 1)
        assert b" 101 " in head and b"sec-websocket-extensions" not in head.lower(), head
        self.stream.sendall(frame(TEXT, json.dumps({"type": "auth", "key": KEY}).encode()))
        assert json.loads(self.frame()[1])["type"] == "ready"

    def take(self, count):
        while len(self.input) < count:
            more = self.stream.recv(65536)
            if not more:
                raise EOFError
            self.input += more
        taken, self.input = self.input[:count], self.input[count:]
        return taken

    def frame(self):
        first, second = self.take(2)
        length = second & 0x7F
        if length == 126:
            length, = struct.unpack("!H", self.take(2))
        elif length == 127:
            length, = struct.unpack("!Q", self.take(8))
        return first, self.take(length)

    def outcome(self):
        """`("pong", payload)`, `("read", None)` for a text that was read, `("close", code)` or `("end", None)`."""
        try:
            first, payload = self.frame()
        except (EOFError, ConnectionError):
            return "end", None
        if first == PONG:
            return "pong", payload
        if first == CLOSE:
            return "close", struct.unpack("!H", payload[:2])[0] if payload else None
        assert first == TEXT, (first, payload)
        value = json.loads(payload)
        assert value["type"] == "error" and value["error"]["code"] == "invalid_frame", value
        return "read", None


def bad(code):
    return [("close", code)]


READ, BROKEN, NOT_UTF8, TOO_BIG = [("read", None)], bad(1002), bad(1007), bad(1009)
KAPPA = "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!!\u03ba\u1f79\u03c3\u03bc\u03b5".encode()
INVALID_TEXTS = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", b"\xf4\x90\x80\x80", b"\x80", b"\xbf", b"\x80\xbf", b"\x80\xbf\x80\xbf\x80\xbf",
    bytes(range(0x80, 0xC0)), b"\xc0 \xc1 ", b"\xe0 \xe1 ", b"\xf0 \xf1 ", b"\xf8 ", b"\xfc ", b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80",
    b"\xfc\x80\x80\x80\x80", b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf", b"\xfe", b"\xff", b"\xfe\xfe\xff\xff",
    b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf",
    b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf", b"\xed\xb0\x80", b"\xed\xbe\x80", b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80", b"\xed\xaf\xbf\xed\xbf\xbf",
]
VALID_TEXTS = [
    b"", KAPPA, b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80", b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf", b"\xed\x9f\xbf",
    b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xef\xbf\xbe", b"\xf0\x9f\xbf\xbe", "\U0001f980".encode() * 20,
]


def close(code, reason=b""):
    return frame(CLOSE, struct.pack("!H", code) + reason)


def cases():
    """Number, frames, what comes back; a third entry sends byte by byte."""
    for number, length in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1):
        yield f"1.1.{number}", [frame(TEXT, b"*" * length)], READ
    yield "1.1.8", [frame(TEXT, b"*" * 997)], READ, 97
    yield "1.2.1", [frame(BINARY)], bad(1003)
    yield "2.1", [frame(PING)], [("pong", b"")]
    yield "2.2", [frame(PING, b"Hello, world!")], [("pong", b"Hello, world!")]
    yield "2.3", [frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")], [("pong", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")]
    yield "2.4", [frame(PING, b"\xfe" * 125)], [("pong", b"\xfe" * 125)]
    yield "2.5", [frame(PING, b"\xfe" * 126)], BROKEN
    yield "2.6", [frame(PING, b"\xfe" * 125)], [("pong", b"\xfe" * 125)], 1
    yield "2.7", [frame(PONG), frame(PING, b"x")], [("pong", b"x")]
    yield "2.8", [frame(PONG, b"unsolicited"), frame(PING, b"x")], [("pong", b"x")]
    yield "2.10", [frame(PING, b"payload-%d" % n) for n in range(10)], [("pong", b"payload-%d" % n) for n in range(10)]
    yield "2.11", [frame(PING, b"payload-%d" % n) for n in range(10)], [("pong", b"payload-%d" % n) for n in range(10)], 1
    for number, bits in enumerate(range(1, 8), 1):
        yield f"3.{number}", [frame(TEXT, b"x"), frame(TEXT | bits << 4, b"Hello")], READ + BROKEN
        yield f"3.{number} ping", [frame(PING | bits << 4)], BROKEN
    for number, opcode in enumerate((3, 4, 5, 6, 7), 1):
        yield f"4.1.{number}", [frame(0x80 | opcode, b"x" * (number > 1))], BROKEN
        yield f"4.2.{number}", [frame(TEXT, b"x"), frame(0x80 | opcode + 8, b"x" * (number > 1))], READ + BROKEN
    yield "5.1", [frame(0x09, b"frag"), frame(MORE, b"ment")], BROKEN
    yield "5.2", [frame(0x0A, b"frag"), frame(MORE, b"ment")], BROKEN
    yield "5.3", [frame(0x01, b"frag"), frame(MORE, b"ment")], READ
    yield "5.5", [frame(0x01, b"frag"), frame(MORE, b"ment")], READ, 1
    yield "5.6", [frame(0x01, b"frag"), frame(PING, b"ping"), frame(MORE, b"ment")], [("pong", b"ping")] + READ
    yield "5.8", [frame(0x01, b"frag"), frame(PING, b"ping"), frame(MORE, b"ment")], [("pong", b"ping")] + READ, 1
    yield "5.9", [frame(MORE, b"continuation"), frame(TEXT, b"x")], BROKEN
    yield "5.12", [frame(0x00, b"continuation"), frame(TEXT, b"x")], BROKEN
    yield "5.15", [frame(0x01, b"a"), frame(MORE, b"b"), frame(0x00, b"c"), frame(TEXT, b"d")], READ + BROKEN
    yield "5.18", [frame(0x01, b"a"), frame(TEXT, b"b")], BROKEN
    fragments = [frame(0x01, b"1"), frame(0x00, b"2"), frame(PING, b"p1"), frame(0x00, b"3"), frame(0x00, b"4"), frame(PING, b"p2"), frame(MORE, b"5")]
    yield "5.19", fragments, [("pong", b"p1"), ("pong", b"p2")] + READ
    yield "5.20", fragments, [("pong", b"p1"), ("pong", b"p2")] + READ, 1
    yield "6.1.1", [frame(TEXT)], READ
    yield "6.1.2", [frame(0x01), frame(0x00), frame(MORE)], READ
    yield "6.1.3", [frame(0x01), frame(0x00, b"middle"), frame(MORE)], READ
    yield "6.2.2", [frame(0x01, KAPPA[:20]), frame(MORE, KAPPA[20:])], READ
    yield "6.2.3", [frame(0x01, KAPPA[:1]), *(frame(0x00, KAPPA[at:at + 1]) for at in range(1, len(KAPPA) - 1)), frame(MORE, KAPPA[-1:])], READ
    yield "6.4.1", [frame(0x01, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4"), frame(0x00, b"\x90")], NOT_UTF8
    yield "6.4.3", [frame(0x01, b"\xf4\x90" + b"x" * 50)[:12]], NOT_UTF8
    for number, text in enumerate(VALID_TEXTS, 1):
        yield f"6 valid {number}", [frame(TEXT, text)], READ
        yield f"6 valid {number} in bytes", [frame(TEXT, text)], READ, 1
    for number, text in enumerate(INVALID_TEXTS, 1):
        yield f"6 invalid {number}", [frame(TEXT, text)], NOT_UTF8
        yield f"6 invalid {number} in fragments", [frame(0x01, text[:1]), frame(MORE, text[1:])], NOT_UTF8
    yield "7.1.2", [close(1000), close(1000)], [("close", 1000)]
    yield "7.1.3", [close(1000), frame(PING, b"late")], [("close", 1000)]
    yield "7.1.4", [close(1000), frame(TEXT, b"late")], [("close", 1000)]
    yield "7.1.5", [frame(0x01, b"a"), close(1000), frame(MORE, b"b")], [("close", 1000)]
    yield "7.3.1", [frame(CLOSE)], [("close", None)]
    yield "7.3.2", [frame(CLOSE, b"a")], BROKEN
    yield "7.3.3", [close(1000)], [("close", 1000)]
    yield "7.3.4", [close(1000, b"Hello World!")], [("close", 1000)]
    yield "7.3.5", [close(1000, b"*" * 123)], [("close", 1000)]
    yield "7.3.6", [close(1000, b"*" * 124)], BROKEN
    yield "7.5.1", [close(1000, b"\xce\xba\xed\xa0\x80")], NOT_UTF8
    for number, code in enumerate((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1):
        yield f"7.7.{number}", [close(code)], [("close", code)]
    for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        yield f"7.9.{number}", [close(code)], BROKEN
    yield "7.13.1", [close(5000)], BROKEN
    yield "7.13.2", [close(65_535)], BROKEN
    yield "9.1.3", [frame(TEXT, b"*" * MESSAGE_MAX)], READ
    yield "9 above the limit", [frame(TEXT, b"*" * 100, length=MESSAGE_MAX + 1)], TOO_BIG
    yield "9 fragments above the limit", [frame(0x01, b"*" * (MESSAGE_MAX // 2)), frame(0x00, b"*" * (MESSAGE_MAX // 2)), frame(MORE, b"*")], TOO_BIG
    for number, fragment in enumerate((64, 256, 1024, 4096, 65_536), 1):
        parts = [b"*" * fragment] * (65_536 // fragment)
        yield f"9.3.{number}", [frame(0x01 if at == 0 else 0x00, part) for at, part in enumerate(parts)] + [frame(MORE)], READ
    yield "9.5.1", [frame(TEXT, b"*" * 10_000)], READ, 64
    yield "10.1.1", [frame(TEXT, b"*" * 65_536)], READ, 1_300
    yield "unmasked", [b"\x81\x05Hello"], BROKEN
    yield "long form of a short length", [b"\x81\xfe\x00\x05\x00\x00\x00\x00Hello"], BROKEN


def run():
    count, failed = 0, []
    for name, frames, expected, *piece in cases():
        one = Socket()
        data = b"".join(frames)
        try:
            for at in range(0, len(data), step := piece[0] if piece else len(data)):
                one.stream.sendall(data[at:at + step])
        except OSError:
            pass  # The server has seen enough.
        found = [one.outcome() for _ in expected]
        after = one.outcome() if expected[-1][0] == "close" else ("end", None)
        one.stream.close()
        count += 1
        if found != expected or after != ("end", None):
            failed.append(name)
            print(f"FAIL {name}: {found}, then {after}, not {expected}")
    return count, failed


async def compressed():
    """Groups 12 and 13: the same over permessage-deflate, as `websockets` speaks it."""
    count = 0
    async with connect(f"ws://{HOST}:{PORT}/v1/chat/ws", max_size=None) as one:
        agreed = one.response.headers["sec-websocket-extensions"]
        assert agreed == "permessage-deflate; server_no_context_takeover; client_no_context_takeover", agreed
        await one.send(json.dumps({"type": "auth", "key": KEY}))
        assert json.loads(await one.recv())["type"] == "ready"
        for length in (16, 64, 256, 1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 900_000):
            for text in ("*" * length, "".join(chr(0x20 + (n * 7919) % 90) for n in range(length)), base64.b64encode(os.urandom(length)).decode()[:length]):
                for pieces in (text, [text[:length // 3], text[length // 3:]]):
                    await one.send(pieces)
                    value = json.loads(await one.recv())
                    assert value["error"]["code"] == "invalid_frame", value
                    count += 1
    async with connect(f"ws://{HOST}:{PORT}/v1/chat/ws", compression=None) as one:
        assert "sec-websocket-extensions" not in one.response.headers
    # A short message that would inflate to 100 MB.
    async with connect(f"ws://{HOST}:{PORT}/v1/chat/ws") as one:
        await one.send(json.dumps({"type": "auth", "key": KEY}))
        await one.recv()
        await one.send("0" * 100_000_000)
        await one.wait_closed()
        assert one.close_code == 1009, one.close_code
    return count + 2


count, failed = run()
count += asyncio.run(compressed())
print(f"{count} cases, {len(failed)} failed")
sys.exit(1 if failed else 0)
