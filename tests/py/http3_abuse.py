"""HTTP/3, QPACK and QUIC spoken wrongly on purpose, with aioquic: RFC sections as data. After each case the server
must say the right code, and go on serving others.

Usage: http3_abuse.py HOST:PORT CERTIFICATE
"""

import asyncio
import sys

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import encode_uint_var as varint
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamReset
from aioquic.quic.packet import QuicPacketType
from aioquic import tls

HOST, PORT = sys.argv[1].rsplit(":", 1)
CERTIFICATE = sys.argv[2]
PATIENCE_S = 20


def framed(kind, payload):
    return varint(kind) + varint(len(payload)) + payload


def indexed(*entries):
    return b"\0\0" + b"".join(bytes([0xC0 | entry]) if entry < 63 else bytes([0xFF, entry - 63]) for entry in entries)


def literal(name, value):
    assert len(name) < 7 and len(value) < 127
    return bytes([0x20 | len(name)]) + name + bytes([len(value)]) + value


# Entries of the static table: GET, https, the path "/", and an authority with its value.
METHOD, SCHEME, PATH = 17, 23, 1
AUTHORITY = b"\x50\x01a"
HEAD = framed(1, indexed(METHOD, SCHEME, PATH) + AUTHORITY)
SETTINGS = framed(4, b"")
CONTROL, ENCODER, DECODER = b"\x00", b"\x02", b"\x03"
REQUEST, UNI = 0, 2

UNEXPECTED, FRAME, ID, SETTING, MISSING, INCOMPLETE, MESSAGE = 0x105, 0x106, 0x108, 0x109, 0x10A, 0x10D, 0x10E
CREATION, CLOSED, DECOMPRESSION, ENCODER_ERROR, DECODER_ERROR = 0x103, 0x104, 0x200, 0x201, 0x202

# Name, streams (kind, bytes, end), code.
HTTP3 = [
    ("9114 4.1 DATA before HEADERS", [(REQUEST, framed(0, b"x"), False)], UNEXPECTED),
    ("9114 4.1 request without a head", [(REQUEST, b"", True)], INCOMPLETE),
    ("9114 4.2 upper case", [(REQUEST, framed(1, indexed(METHOD, SCHEME, PATH) + AUTHORITY + literal(b"X-A", b"1")), True)], MESSAGE),
    ("9114 4.3 prohibited pseudo-header", [(REQUEST, framed(1, indexed(METHOD, SCHEME, PATH, 25) + AUTHORITY), True)], MESSAGE),
    ("9114 4.3 pseudo-header after a field", [(REQUEST, framed(1, indexed(METHOD, SCHEME, 29, PATH) + AUTHORITY), True)], MESSAGE),
    ("9114 4.3.1 duplicated pseudo-header", [(REQUEST, framed(1, indexed(METHOD, METHOD, SCHEME, PATH) + AUTHORITY), True)], MESSAGE),
    ("9114 4.3.1 mandatory pseudo-header absent", [(REQUEST, framed(1, indexed(METHOD, SCHEME) + AUTHORITY), True)], MESSAGE),
    ("9114 4.1.2 body longer than announced", [(REQUEST, framed(1, indexed(20, SCHEME, PATH, 4) + AUTHORITY) + framed(0, b"x"), True)], MESSAGE),
    ("9114 6.2.1 first frame is not SETTINGS", [(UNI, CONTROL + framed(7, b"\0"), False)], MISSING),
    ("9114 6.2.1 second control stream", [(UNI, CONTROL + SETTINGS, False), (UNI, CONTROL, False)], CREATION),
    ("9114 6.2.1 control stream closed", [(UNI, CONTROL + SETTINGS, True)], CLOSED),
    ("9114 6.2.2 push stream of a client", [(UNI, b"\x01", False)], CREATION),
    ("9114 7.1 cut frame", [(REQUEST, HEAD[:5], True)], FRAME),
    ("9114 7.2.1 DATA on the control stream", [(UNI, CONTROL + SETTINGS + framed(0, b"x"), False)], UNEXPECTED),
    ("9114 7.2.2 HEADERS on the control stream", [(UNI, CONTROL + SETTINGS + HEAD, False)], UNEXPECTED),
    ("9114 7.2.3 CANCEL_PUSH on a request stream", [(REQUEST, HEAD + framed(3, b"\0"), False)], UNEXPECTED),
    ("9114 7.2.4 second SETTINGS", [(UNI, CONTROL + SETTINGS + SETTINGS, False)], UNEXPECTED),
    ("9114 7.2.4 SETTINGS on a request stream", [(REQUEST, HEAD + SETTINGS, False)], UNEXPECTED),
    ("9114 7.2.4.1 setting of HTTP/2", [(UNI, CONTROL + framed(4, b"\x02\x00"), False)], SETTING),
    ("9114 7.2.6 GOAWAY goes up", [(UNI, CONTROL + SETTINGS + framed(7, b"\x01") + framed(7, b"\x02"), False)], ID),
    ("9114 7.2.7 MAX_PUSH_ID goes down", [(UNI, CONTROL + SETTINGS + framed(13, b"\x02") + framed(13, b"\x01"), False)], ID),
    ("9114 7.2.8 frame of HTTP/2", [(REQUEST, framed(9, b""), False)], UNEXPECTED),
    ("9204 3.1 static entry that does not exist", [(REQUEST, framed(1, indexed(METHOD, 99)), True)], DECOMPRESSION),
    ("9204 3.2.3 capacity above the limit", [(UNI, ENCODER + b"\x3f\x21", False)], ENCODER_ERROR),
    ("9204 4.2 encoder stream closed", [(UNI, ENCODER, True)], CLOSED),
    ("9204 4.4.3 insert count increment of 0", [(UNI, DECODER + b"\x00", False)], DECODER_ERROR),
    ("9204 4.5.1 dynamic entries needed", [(REQUEST, framed(1, b"\x02\x00\x80"), True)], DECOMPRESSION),
]

TRANSPORT_PARAMETER, FLOW, STREAM_LIMIT, STREAM_STATE, ENCODING, VIOLATION, ID_LIMIT = 8, 3, 4, 5, 7, 10, 9

# Name, what is done to the parameters, code. RFC 9000 sections 7.3, 7.4 and 18.2.
PARAMETERS = [
    ("9000 7.3 initial_source_connection_id missing", lambda p: p.pop(0x0F), TRANSPORT_PARAMETER),
    ("9000 18.2 original_destination_connection_id of a client", lambda p: p.update({0x00: b"12345678"}), TRANSPORT_PARAMETER),
    ("9000 18.2 stateless_reset_token of a client", lambda p: p.update({0x02: b"1" * 16}), TRANSPORT_PARAMETER),
    ("9000 18.2 preferred_address of a client", lambda p: p.update({0x0D: b"\0" * 24 + b"\x01a" + b"1" * 16}), TRANSPORT_PARAMETER),
    ("9000 18.2 retry_source_connection_id of a client", lambda p: p.update({0x10: b"12345678"}), TRANSPORT_PARAMETER),
    ("9000 18.2 max_udp_payload_size below 1200", lambda p: p.update({0x03: varint(1199)}), TRANSPORT_PARAMETER),
    ("9000 18.2 ack_delay_exponent above 20", lambda p: p.update({0x0A: varint(21)}), TRANSPORT_PARAMETER),
    ("9000 18.2 max_ack_delay of 2^14", lambda p: p.update({0x0B: varint(1 << 14)}), TRANSPORT_PARAMETER),
]

# Name, type and content of a frame in a 1-RTT packet, codes.
FRAMES = [
    ("9000 12.4 unknown frame", 0x21, b"", (ENCODING,)),
    ("9000 19.4 RESET_STREAM of a stream that only the server sends on", 0x04, varint(3) + varint(0) + varint(0), (STREAM_STATE,)),
    ("9000 19.5 STOP_SENDING of a stream that does not exist", 0x05, varint(1) + varint(0), (STREAM_STATE,)),
    ("9000 19.7 NEW_TOKEN of a client", 0x07, varint(1) + b"x", (VIOLATION,)),
    ("9000 19.8 STREAM on a stream of the server that does not exist", 0x0A, varint(101) + varint(1) + b"x", (STREAM_STATE,)),
    ("9000 4.6 STREAM beyond the limit", 0x0A, varint(4 * 100_000) + varint(1) + b"x", (STREAM_LIMIT,)),
    ("9000 4.1 STREAM beyond flow control", 0x0E, varint(0) + varint(1 << 40) + varint(1) + b"x", (FLOW,)),
    ("9000 19.10 MAX_STREAM_DATA of a stream that does not exist", 0x11, varint(101) + varint(1), (STREAM_STATE,)),
    ("9000 19.10 MAX_STREAM_DATA of a stream that only the client sends on", 0x11, varint(2) + varint(1), (STREAM_STATE,)),
    ("9000 19.11 MAX_STREAMS beyond 2^60", 0x12, varint((1 << 60) + 1), (ENCODING,)),
    ("9000 19.14 STREAMS_BLOCKED beyond 2^60", 0x16, varint((1 << 60) + 1), (ENCODING, STREAM_LIMIT)),
    ("9000 19.15 NEW_CONNECTION_ID retires what is to come", 0x18, varint(1) + varint(2) + b"\x08" + b"12345678" + b"1" * 16, (ENCODING,)),
    ("9000 19.15 NEW_CONNECTION_ID without an id", 0x18, varint(1) + varint(0) + b"\x00" + b"1" * 16, (ENCODING,)),
    ("9000 19.20 HANDSHAKE_DONE of a client", 0x1E, b"", (VIOLATION,)),
    ("9001 6 TLS KeyUpdate", 0x06, varint(0) + varint(5) + b"\x18\x00\x00\x01\x00", (0x10A,)),
]

MISSING_EXTENSION, NO_PROTOCOL = 0x100 + 109, 0x100 + 120


class Peer(QuicConnectionProtocol):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.told, self.ready = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()

    def quic_event_received(self, event):
        if isinstance(event, HandshakeCompleted):
            self.ready.done() or self.ready.set_result(None)
        if isinstance(event, (ConnectionTerminated, StreamReset)):
            self.ready.done() or self.ready.set_result(None)
            self.told.done() or self.told.set_result(event.error_code)


def configuration(protocols=tuple(H3_ALPN)):
    made = QuicConfiguration(is_client=True, alpn_protocols=list(protocols), server_name="localhost")
    made.load_verify_locations(CERTIFICATE)
    return made


async def outcome(act, setting=None):
    """The code that the server closes with after `act`."""
    told = None
    try:
        async with connect(HOST, int(PORT), configuration=setting or configuration(), create_protocol=Peer, wait_connected=False) as peer:
            peer.transmit()
            await asyncio.wait_for(peer.ready, PATIENCE_S)
            if not peer.told.done():
                act(peer)
                peer.transmit()
            told = await asyncio.wait_for(peer.told, PATIENCE_S)
    except ConnectionError:
        pass
    except asyncio.TimeoutError:
        return "nothing"
    return told


def send(streams):
    def act(peer):
        for kind, data, end in streams:
            stream = peer._quic.get_next_available_stream_id(is_unidirectional=kind == UNI)
            peer._quic.send_stream_data(stream, data, end_stream=end)
    return act


def inject(kind, content):
    """Puts a frame into the next packet."""
    def act(peer):
        quic = peer._quic
        write = quic._write_application

        def instead(builder, network_path, now):
            if quic._cryptos[tls.Epoch.ONE_RTT].send.is_valid() and not quic.__dict__.get("injected"):
                quic.injected = True
                builder.start_packet(QuicPacketType.ONE_RTT, quic._cryptos[tls.Epoch.ONE_RTT])
                builder.start_frame(kind, capacity=len(content) + 8).push_bytes(content)
            write(builder, network_path, now)

        quic._write_application = instead
        quic.send_ping(1)
    return act


def parameters(change):
    """Makes connections whose transport parameters went through `change`."""
    original = QuicConnection._serialize_transport_parameters

    def instead(self):
        data, known = original(self), {}
        at = 0

        def number():
            nonlocal at
            length = 1 << (data[at] >> 6)
            value = int.from_bytes(data[at:at + length], "big") & ((1 << (8 * length - 2)) - 1)
            at += length
            return value

        while at < len(data):
            key, length = number(), number()
            known[key] = data[at:at + length]
            at += length
        change(known)
        return b"".join(varint(key) + varint(len(value)) + value for key, value in known.items())

    return original, instead


async def alive():
    async with connect(HOST, int(PORT), configuration=configuration(), create_protocol=Peer) as peer:
        H3Connection(peer._quic)
        peer.transmit()
        await peer.ping()


async def main():
    failed = []

    def judge(name, told, codes):
        fine = told in codes
        print(f"{'ok  ' if fine else 'FAIL'} {name}: {told if isinstance(told, (str, type(None))) else hex(told)}", flush=True)
        if not fine:
            failed.append(name)

    for name, streams, code in HTTP3:
        judge(name, await outcome(send(streams)), (code,))
    await alive()
    for name, kind, content, codes in FRAMES:
        judge(name, await outcome(inject(kind, content)), codes)
    await alive()
    for name, change, code in PARAMETERS:
        original, instead = parameters(change)
        QuicConnection._serialize_transport_parameters = instead
        try:
            judge(name, await outcome(lambda peer: None), (code,))
        finally:
            QuicConnection._serialize_transport_parameters = original
    judge("9001 8.1 no protocol in common", await outcome(lambda peer: None, configuration(["nothing"])), (NO_PROTOCOL,))
    await alive()
    print(f"{len(HTTP3) + len(FRAMES) + len(PARAMETERS) + 1} cases, {len(failed)} failed")
    sys.exit(1 if failed else 0)


asyncio.run(main())
