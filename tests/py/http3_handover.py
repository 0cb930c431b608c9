"""A new image of the program takes over while clients come over HTTP/3: none is refused, and who is connected is told to leave.

    http3_handover.py HOST:PORT CERTIFICATE PID ROUNDS
"""
import asyncio
import os
import signal
import sys
import time

from aioquic.asyncio.client import connect

from http3 import Client, configuration

HOST, PORT = sys.argv[1].rsplit(":", 1)
CERTIFICATE, PID, ROUNDS = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
PATIENCE = 90


def dial():
    return connect(HOST, int(PORT), configuration=configuration(CERTIFICATE), create_protocol=Client)


async def served():
    """Seconds until a new client has its answer. A refused handshake is an error."""
    began = time.monotonic()
    while True:
        async with asyncio.timeout(PATIENCE), dial() as client:
            stream = client.begin("GET", "/healthz")
            try:
                status, _, _ = await client.answer(stream)
            except AssertionError:
                # Told to leave before the request was looked at: the client comes back. The handshake was not refused.
                continue
            assert status == 200, status
            return time.monotonic() - began


async def main():
    longest, count = 0.0, 0
    for _ in range(ROUNDS):
        async with dial() as old:
            status, _, _ = await old.ask("GET", "/healthz")
            assert status == 200
            os.kill(PID, signal.SIGUSR2)
            # A reactor that has not noticed yet may still serve; the change itself takes longer than an answer.
            slowest = 0.0
            while old.ended is None or slowest < 0.1:
                slowest, count = max(slowest, await served()), count + 1
            assert old.ended.error_code in (0, 0x100), old.ended
        longest = max(longest, slowest)
        for _ in range(10):
            longest, count = max(longest, await served()), count + 1
    assert count > 10 * ROUNDS, count
    print(f"{count} new connections, the longest wait was {longest:.2f} s")


asyncio.run(main())
