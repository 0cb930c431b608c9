"""Requests that two HTTP/1.1 implementations may read differently, byte by byte, with `h11` as the other reader: what it refuses
must be refused, what is ambiguous must be refused and its connection closed, and no case may bring a second answer that was
smuggled in.

Usage: http1_corpus.py HOST:PORT KEY
"""

import socket
import sys

import h11

HOST, PORT = sys.argv[1].rsplit(":", 1)
KEY = sys.argv[2].encode()
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
ACCEPT, REFUSE = "accept", "refuse"


def get(*lines, target=b"/healthz", version=b"HTTP/1.1", host=b"Host: x\r\n"):
    return b"GET " + target + b" " + version + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*lines, body=b"", version=b"HTTP/1.1"):
    return b"POST /v1/echo " + version + b"\r\nHost: x\r\nAuthorization: Bearer " + KEY + b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
# Name, bytes, verdict. `accept` means: read as one whole request (a body of `{}` is no echo, so 400) on a connection that goes
# on; others are 4xx or 5xx and its end.
CASES = [
    ("plain", get(), ACCEPT),
    ("empty line before", b"\r\n" + get(), ACCEPT),
    ("absolute form", get(target=b"http://x/healthz"), ACCEPT),
    ("blank around a value", get(b"X-A: \t b \t"), ACCEPT),
    ("empty value", get(b"X-A:"), ACCEPT),
    ("HTTP/1.0 without Host", get(version=b"HTTP/1.0", host=b""), ACCEPT),
    ("length", post(b"Content-Length: 2", body=b"{}"), ACCEPT),
    ("same length twice", post(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"), ACCEPT),
    ("chunked", post(CHUNKED, body=b"2\r\n{}\r\n0\r\n\r\n"), ACCEPT),
    ("chunk extension", post(CHUNKED, body=b"2;a=b\r\n{}\r\n0\r\n\r\n"), ACCEPT),
    ("trailers", post(CHUNKED, body=b"2\r\n{}\r\n0\r\nX-T: 1\r\n\r\n"), ACCEPT),
    ("upper case chunk size", post(CHUNKED, body=b"A\r\n0123456789\r\n0\r\n\r\n"), ACCEPT),
    ("no Host", get(host=b""), REFUSE),
    ("two Hosts", get(b"Host: y"), REFUSE),
    ("Host with a space", get(host=b"Host: a b\r\n"), REFUSE),
    ("Host with a slash", get(host=b"Host: a/b\r\n"), REFUSE),
    ("line feed only", get().replace(b"\r\n", b"\n"), REFUSE),
    ("one bare line feed", get(b"X-A: 1\nX-B: 2"), REFUSE),
    ("bare carriage return", get(b"X-A: 1\rX-B: 2"), REFUSE),
    ("NUL in a value", get(b"X-A: a\0b"), REFUSE),
    ("NUL in a name", get(b"X\0A: b"), REFUSE),
    ("space before the colon", get(b"X-A : b"), REFUSE),
    ("space before Content-Length's colon", post(b"Content-Length : 2", body=b"{}"), REFUSE),
    ("folded line", get(b"X-A: b", b" c"), REFUSE),
    ("first line folded", get(b" X-A: b"), REFUSE),
    ("no colon", get(b"X-A"), REFUSE),
    ("empty name", get(b": b"), REFUSE),
    ("name with a parenthesis", get(b"X(A): b"), REFUSE),
    ("name beyond ASCII", get(b"X-\xc3\xa4: b"), REFUSE),
    ("space in the target", get(target=b"/health z"), REFUSE),
    ("control byte in the target", get(target=b"/health\x01z"), REFUSE),
    ("empty target", get(target=b""), REFUSE),
    ("no version", b"GET /healthz\r\nHost: x\r\n\r\n", REFUSE),
    ("version 2.0", get(version=b"HTTP/2.0"), REFUSE),
    ("version 1.10", get(version=b"HTTP/1.10"), REFUSE),
    ("lower case version", get(version=b"http/1.1"), REFUSE),
    ("method with a brace", get().replace(b"GET", b"G{T"), REFUSE),
    ("length and chunked", post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED), REFUSE),
    ("chunked and length", post(CHUNKED, b"Content-Length: 6", body=b"0\r\n\r\n" + SMUGGLED), REFUSE),
    ("two lengths", post(b"Content-Length: 2", b"Content-Length: 40", body=b"{}" + SMUGGLED), REFUSE),
    ("list of lengths", post(b"Content-Length: 2, 40", body=b"{}" + SMUGGLED), REFUSE),
    ("length with a plus", post(b"Content-Length: +2", body=b"{}"), REFUSE),
    ("length with a minus", post(b"Content-Length: -2", body=b"{}"), REFUSE),
    ("length in hexadecimal", post(b"Content-Length: 0x2", body=b"{}"), REFUSE),
    ("length with a space inside", post(b"Content-Length: 1 2", body=b"{}"), REFUSE),
    ("length of nothing", post(b"Content-Length: ", body=b"{}"), REFUSE),
    ("length of 2^64", post(b"Content-Length: 18446744073709551616", body=b"{}"), REFUSE),
    ("length with an underscore", post(b"Content-Length: 1_0", body=b"{}"), REFUSE),
    ("unknown coding", post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), REFUSE),
    ("coding after chunked", post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), REFUSE),
    ("chunked twice", post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), REFUSE),
    ("chunked and another line", post(CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), REFUSE),
    ("gzip, chunked", post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), REFUSE),
    ("coding with a control byte", post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), REFUSE),
    ("quoted coding", post(b"Transfer-Encoding: \"chunked\"", body=b"0\r\n\r\n"), REFUSE),
    ("chunked in HTTP/1.0", post(CHUNKED, body=b"0\r\n\r\n", version=b"HTTP/1.0"), REFUSE),
    ("chunk size with a plus", post(CHUNKED, body=b"+2\r\n{}\r\n0\r\n\r\n"), REFUSE),
    ("chunk size with 0x", post(CHUNKED, body=b"0x2\r\n{}\r\n0\r\n\r\n"), REFUSE),
    ("chunk size of nothing", post(CHUNKED, body=b"\r\n{}\r\n0\r\n\r\n"), REFUSE),
    ("chunk size of 2^64", post(CHUNKED, body=b"10000000000000000\r\n{}\r\n0\r\n\r\n"), REFUSE),
    ("chunk size with a space before", post(CHUNKED, body=b" 2\r\n{}\r\n0\r\n\r\n"), REFUSE),
    ("chunk line ended by a line feed", post(CHUNKED, body=b"2\n{}\r\n0\r\n\r\n"), REFUSE),
    ("chunk data ended by a line feed", post(CHUNKED, body=b"2\r\n{}\n0\r\n\r\n"), REFUSE),
    ("chunk longer than its size", post(CHUNKED, body=b"2\r\n{}x\r\n0\r\n\r\n"), REFUSE),
    ("bare carriage return in an extension", post(CHUNKED, body=b"2;a\rb\r\n{}\r\n0\r\n\r\n"), REFUSE),
    ("endless extension", post(CHUNKED, body=b"2;" + b"a" * 5_000 + b"\r\n{}\r\n0\r\n\r\n"), REFUSE),
    ("endless trailers", post(CHUNKED, body=b"0\r\n" + b"X-T: 1\r\n" * 2_000 + b"\r\n"), REFUSE),
    ("unknown expectation", post(b"Expect: 200-ok", b"Content-Length: 2", body=b"{}"), REFUSE),
]
# Where h11 is more lenient than the rules of this server, and may be.
LENIENT = {"line feed only", "one bare line feed", "Host with a space", "Host with a slash", "version 1.10", "chunked twice", "chunked and another line",
           "chunked in HTTP/1.0", "unknown expectation", "endless extension", "endless trailers", "length and chunked", "chunked and length", "version 2.0",
           "folded line", "first line folded", "chunk line ended by a line feed", "control byte in the target", "bare carriage return in an extension", "quoted coding"}

# Where h11 is stricter, against the advice of RFC 9112 section 2.2.
STRICTER = {"empty line before"}


def statuses(data):
    """All statuses that come back until the server closes or is silent, and whether it closed."""
    with socket.create_connection((HOST, int(PORT)), timeout=10) as stream:
        try:
            stream.sendall(data)
        except OSError:
            pass
        stream.settimeout(1.0)
        answer, closed = b"", False
        try:
            while more := stream.recv(65536):
                answer += more
            closed = True
        except TimeoutError:
            pass
        except OSError:
            closed = True
    found = [int(part[1:4]) for part in answer.split(b"HTTP/1.1")[1:] if part[1:4].isdigit()]
    return found, closed


def other_reader(data):
    """Whether h11 reads one whole request."""
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                return ACCEPT
            if event in (h11.NEED_DATA, h11.PAUSED):
                return "waits"
    except h11.RemoteProtocolError:
        return REFUSE


failed = []
for name, data, verdict in CASES:
    found, closed = statuses(data)
    other = other_reader(data)
    if verdict == ACCEPT:
        goes_on = not closed or b"HTTP/1.0" in data
        fine = len(found) == 1 and found[0] in (200, 400) and goes_on and (other == ACCEPT or name in STRICTER)
    else:
        fine = len(found) <= 1 and all(400 <= status < 600 for status in found) and closed and (other != ACCEPT or name in LENIENT)
    print(f"{'ok  ' if fine else 'FAIL'} {name}: {found} {'closed' if closed else 'open'}, h11 says {other}" , flush=True)
    if not fine:
        failed.append(name)
print(f"{len(CASES)} cases, {len(failed)} failed")
sys.exit(1 if failed else 0)
