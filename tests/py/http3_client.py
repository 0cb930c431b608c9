"""HTTP/3 as aioquic speaks it: requests, streams, many at once, and a client whose address changes.

Usage: http3_client.py HOST:PORT CERTIFICATE KEY
"""

import asyncio
import json
import sys

from aioquic.asyncio.client import connect

from http3 import Client, configuration

HOST, PORT = sys.argv[1].rsplit(":", 1)
CERTIFICATE, KEY = sys.argv[2:4]
BEARER = [(b"authorization", b"Bearer " + KEY.encode())]


async def main():
    async with connect(HOST, int(PORT), configuration=configuration(CERTIFICATE), create_protocol=Client) as client:
        status, headers, body = await client.ask("GET", "/healthz")
        assert status == 200 and json.loads(body) == {"status": "ok"}, (status, body)
        assert int(headers[b"content-length"]) == len(body) and headers[b"x-request-id"], headers
        status, headers, _ = await client.ask("GET", "/v1/models")
        assert status == 401 and b"Bearer" in headers[b"www-authenticate"], headers
        status, _, body = await client.ask("GET", "/v1/models", headers=BEARER)
        assert status == 200 and json.loads(body)["data"], body
        status, _, _ = await client.ask("GET", "/nothing/here")
        assert status == 404
        status, _, _ = await client.ask("PUT", "/v1/models", headers=BEARER)
        assert status == 405
        status, _, _ = await client.ask("GET", "/healthz", headers=[(b"x-long", b"a" * 40_000)])
        assert status == 431, status
        print("requests: ok")

        echo = json.dumps({"id": 7, "text": "\u00e4" * 20_000}, ensure_ascii=False).encode()
        status, _, body = await client.ask("POST", "/v1/echo", headers=BEARER, body=echo)
        assert status == 200 and json.loads(body) == json.loads(echo), status
        status, _, body = await client.ask("POST", "/v1/echo", headers=BEARER, body=b"x" * 70_000)
        assert status == 413, (status, body)
        status, _, body = await client.ask("POST", "/v1/echo", headers=BEARER, body=b"{")
        assert status == 400 and json.loads(body)["error"]["next_step"], body
        print("bodies: ok")

        streams = [client.begin("GET", "/healthz") for _ in range(100)]
        answers = [await client.answer(stream) for stream in streams]
        assert all(status == 200 for status, _, _ in answers)
        print("100 at once: ok")

        body = {"model": "default", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "stream": True}
        headers = BEARER + [(b"content-type", b"application/json")]
        status, headers, body = await client.ask("POST", "/v1/chat/completions", headers=headers, body=json.dumps(body).encode())
        events = [line for line in body.decode().split("\n\n") if line.startswith("data: ")]
        assert status == 200 and headers[b"content-type"].startswith(b"text/event-stream"), headers
        assert events[-1] == "data: [DONE]" and len(events) > 2, body
        print("stream: ok")

        # A client that leaves its network: another port, another connection id, the same connection.
        before = client._transport.get_extra_info("sockname")
        for _ in range(3):
            old = client._transport
            await asyncio.get_running_loop().create_datagram_endpoint(lambda: client, local_addr=("::" if ":" in before[0] else "127.0.0.1", 0))
            assert client._transport is not old and client._transport.get_extra_info("sockname")[1] != before[1]
            client.change_connection_id()
            for _ in range(5):
                status, _, _ = await client.ask("GET", "/healthz")
                assert status == 200
        print("migration: ok")

    # Each connection lands on some shard and stays there.
    async def one():
        async with connect(HOST, int(PORT), configuration=configuration(CERTIFICATE), create_protocol=Client) as client:
            answers = [await client.ask("GET", "/readyz") for _ in range(3)]
            assert all(status == 200 for status, _, _ in answers)

    await asyncio.gather(*(one() for _ in range(40)))
    print("40 connections: ok")

    wrong = configuration(CERTIFICATE)
    wrong.alpn_protocols = ["nothing"]
    try:
        async with connect(HOST, int(PORT), configuration=wrong):
            raise SystemExit("a protocol that is not spoken was accepted")
    except ConnectionError:
        print("another protocol: refused")


asyncio.run(main())
print("done")
