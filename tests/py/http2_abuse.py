"""HTTP/2 spoken wrongly on purpose, frame by frame, with the frames of PyPI `hyperframe` and `hpack`.

Usage: http2_abuse.py HOST:PORT KEY
"""

import socket
import struct
import sys
import time

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

HOST, PORT = sys.argv[1].rsplit(":", 1)
KEY = sys.argv[2]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENHANCE_YOUR_CALM, PROTOCOL_ERROR = 11, 1


class Peer:
    def __init__(self):
        self.socket = socket.create_connection((HOST, int(PORT)))
        self.socket.settimeout(20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.coder, self.decoder, self.input = hpack.Encoder(), hpack.Decoder(), b""
        self.send(PREFACE + SettingsFrame(0).serialize())

    def send(self, data):
        """True while the server takes bytes."""
        try:
            self.socket.sendall(data)
            return True
        except OSError:
            return False

    def headers(self, stream, fields, end_stream=True, end_headers=True):
        frame = HeadersFrame(stream, self.coder.encode(fields))
        if end_stream:
            frame.flags.add("END_STREAM")
        if end_headers:
            frame.flags.add("END_HEADERS")
        return frame.serialize()

    def frame(self):
        """The next frame; None when the server has closed."""
        try:
            while len(self.input) < 9:
                more = self.socket.recv(65536)
                if not more:
                    return None
                self.input += more
            frame, length = Frame.parse_frame_header(memoryview(self.input[:9]))
            while len(self.input) < 9 + length:
                more = self.socket.recv(65536)
                if not more:
                    return None
                self.input += more
        except (ConnectionError, socket.timeout):
            return None
        frame.parse_body(memoryview(self.input[9 : 9 + length]))
        self.input = self.input[9 + length :]
        return frame

    def status(self, stream):
        """The status of a stream's answer, 'reset' or 'goaway' or 'closed'."""
        while True:
            frame = self.frame()
            if frame is None:
                return "closed"
            if isinstance(frame, GoAwayFrame):
                return "goaway"
            if frame.stream_id == stream and isinstance(frame, RstStreamFrame):
                return "reset"
            if isinstance(frame, HeadersFrame):
                fields = dict(self.decoder.decode(frame.data))
                if frame.stream_id == stream:
                    return int(fields[":status"])

    def goaway(self):
        """The error code of the server's farewell; None = it only closed."""
        while True:
            frame = self.frame()
            if frame is None:
                return None
            if isinstance(frame, GoAwayFrame):
                return frame.error_code


def get(path="/healthz", **changes):
    fields = {":method": "GET", ":scheme": "http", ":authority": "x", ":path": path}
    fields.update(changes)
    return [(name, value) for name, value in fields.items() if value is not None]


def flood(name, make, count=20_000):
    """Sends frames until the server ends the connection; it must do so, and quickly."""
    peer = Peer()
    peer.send(peer.headers(1, get()))
    began = time.monotonic()
    for number in range(0, count, 100):
        if not peer.send(b"".join(make(peer, number + index) for index in range(100))):
            break
    code = peer.goaway()
    assert code == ENHANCE_YOUR_CALM or code is None, f"{name}: GOAWAY {code}"
    took = time.monotonic() - began
    assert took < 15, f"{name}: cut only after {took:.1f} s"
    print(f"{name}: cut with {code} after {took:.2f} s")


def reset(peer, number):
    stream = 3 + 2 * number
    return peer.headers(stream, get()) + RstStreamFrame(stream, 8).serialize()


flood("rapid reset", reset)
flood("PING", lambda peer, number: PingFrame(0, b"12345678").serialize())
flood("SETTINGS", lambda peer, number: SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize())
flood("WINDOW_UPDATE", lambda peer, number: WindowUpdateFrame(0, window_increment=1).serialize(), count=60_000)
flood("PRIORITY", lambda peer, number: struct.pack(">I", 5)[1:] + bytes([2, 0]) + struct.pack(">IIB", 3, 0, 9))


def continuation_flood():
    peer = Peer()
    peer.send(peer.headers(1, get(), end_headers=False))
    piece = ContinuationFrame(1, peer.coder.encode([("x-filler", "a" * 1000)])).serialize()
    for _ in range(20_000):
        if not peer.send(piece):
            break
    assert peer.goaway() in (None, ENHANCE_YOUR_CALM, PROTOCOL_ERROR, 9, 6)
    print("CONTINUATION: cut")


continuation_flood()

# One wrong request each: the stream or the connection ends; none is answered with 200.
for name, fields in [
    ("no method", get(**{":method": None})),
    ("no path", get(**{":path": None})),
    ("empty path", get(path="")),
    ("no authority and no host", get(**{":authority": None})),
    ("upper case in a name", get() + [("X-Upper", "y")]),
    ("connection field", get() + [("connection", "keep-alive")]),
    ("transfer-encoding", get() + [("transfer-encoding", "chunked")]),
    ("TE other than trailers", get() + [("te", "gzip")]),
    ("unknown pseudo-header", get() + [(":unknown", "y")]),
    ("pseudo-header after a field", [("a", "b")] + get()),
    ("length without a body", get() + [("content-length", "5")]),
    ("length with a sign", get() + [("content-length", "+0")]),
    ("another host", get() + [("host", "other")]),
    ("space in the path", get(path="/health z")),
    ("a path that is a URL", get(path="http://evil/")),
]:
    peer = Peer()
    peer.send(peer.headers(1, fields))
    answer = peer.status(1)
    assert answer in (400, "reset", "goaway", "closed"), f"{name}: {answer}"
    print(f"{name}: {answer}")

for name, data in [
    ("DATA on stream 0", b"\0\0\1\0\0\0\0\0\0x"),
    ("HEADERS on an even stream", HeadersFrame(2, hpack.Encoder().encode(get()), flags=["END_HEADERS", "END_STREAM"]).serialize()),
    ("SETTINGS of 5 bytes", b"\0\0\5\4\0\0\0\0\0" + b"12345"),
    ("PING of 7 bytes", b"\0\0\7\6\0\0\0\0\0" + b"1234567"),
    ("window update of 0", b"\0\0\4\x08\0\0\0\0\0\0\0\0\0"),
    ("frame of 16 MiB", b"\xff\xff\xff\0\0\0\0\0\1"),
    ("header block that is no HPACK", b"\0\0\4\1\5\0\0\0\1\xff\xff\xff\xff"),
    ("CONTINUATION without HEADERS", b"\0\0\1\x09\4\0\0\0\1a"),
]:
    peer = Peer()
    peer.send(data)
    code = peer.goaway()
    assert code is None or code > 0, f"{name}: {code}"
    print(f"{name}: {code}")

# A body that is longer or shorter than announced.
for announced, sent in [(3, b"12345"), (9, b"12345")]:
    peer = Peer()
    fields = get("/v1/chat/completions", **{":method": "POST", "content-length": str(announced), "authorization": f"Bearer {KEY}"})
    body = DataFrame(1, sent)
    body.flags.add("END_STREAM")
    peer.send(peer.headers(1, fields, end_stream=False) + body.serialize())
    answer = peer.status(1)
    assert answer in (400, "reset", "goaway", "closed"), f"announced {announced}: {answer}"

# A stream that was reset leaves the others of its connection alone.
peer = Peer()
peer.send(peer.headers(1, get("/v1/models")) + RstStreamFrame(1, 8).serialize() + peer.headers(3, get()))
assert peer.status(3) == 200
print("all done")
