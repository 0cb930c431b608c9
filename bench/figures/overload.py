"""What the data plane promises beside the engine: overload that costs nothing but what is beyond capacity."""
import asyncio
import json
import os
import time
from urllib.parse import urlparse

import servers
from chats import percentile

LOOP = asyncio.get_running_loop
# An accepted chat ends within this, or it does not count as served.
SLO_S = 3.0
# Refuses what it cannot begin in time; the queue alone would let everybody wait.
CONFIG = "[engine]\nfirst_token_max = \"1500ms\"\nqueue_max = 64\n"


class Line(asyncio.Protocol):
    """One kept-alive connection, used by one request at a time. Bare, as what the client costs is taken from the server here."""

    def connection_made(self, transport):
        self.transport, self.input, self.waiter, self.open = transport, b"", None, True

    def data_received(self, data):
        self.input += data
        head = self.input.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self.input.index(b"content-length: ", 0, head) + 16
        if len(self.input) >= head + 4 + int(self.input[at:self.input.index(b"\r", at)]):
            self.open &= b"connection: close" not in self.input[:head]
            status, self.input = int(self.input[9:12]), b""
            self.waiter.set_result(status)

    def connection_lost(self, _):
        self.open = False
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(0)


class Door:
    """Connections to one server."""

    def __init__(self, server):
        place = urlparse(server.base)
        self.host, self.port, self.free = place.hostname, place.port, []
        body = json.dumps({"model": "default", "max_tokens": 4, "temperature": 0, "ignore_eos": True,
                           "messages": [{"role": "user", "content": "Case 0000000: the printer is slow. What now?"}]}).encode()
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\nauthorization: Bearer {server.key}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n").encode()
        self.before, self.after = (head + body).split(b"0000000")

    async def ask(self, number):
        """(status, seconds) of one short chat; status 0 when the connection failed."""
        began = time.perf_counter()
        try:
            while self.free and not self.free[-1].open:
                self.free.pop()
            line = self.free.pop() if self.free else (await LOOP().create_connection(Line, self.host, self.port))[1]
        except OSError:
            return 0, time.perf_counter() - began
        line.waiter = LOOP().create_future()
        line.transport.write(b"%b%07d%b" % (self.before, number, self.after))
        status = await line.waiter
        if line.open:
            self.free.append(line)
        else:
            line.transport.close()
        return status, time.perf_counter() - began


async def closed_loop(door, senders, seconds, first):
    """Answers a second when as many ask as the engine takes at once."""
    end, served, number = time.perf_counter() + seconds, 0, first

    async def sender():
        nonlocal served, number
        while time.perf_counter() < end:
            number += 1
            status, took = await door.ask(number)
            # As in the flood, what is answered after the end is no merit of the time before it.
            served += status == 200 and took <= SLO_S and time.perf_counter() <= end

    await asyncio.gather(*(sender() for _ in range(senders)))
    return served / seconds, number


async def open_loop(door, rate, seconds, first):
    """Asks at fixed times, whatever comes back: (intended second, status, seconds) of each."""
    began, answers, tasks = time.perf_counter(), [], []

    async def one(number, at):
        status, took = await door.ask(number)
        answers.append((at, status, took))

    for count in range(int(rate * seconds)):
        at = count / rate
        if (pause := began + at - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(one(first + count, at)))
    await asyncio.gather(*tasks)
    return answers, first + len(tasks)


async def measure(server, times=10, seconds=12):
    door = Door(server)
    await closed_loop(door, 8, 2, 0)
    peak, number = await closed_loop(door, 24, 8, 10_000)
    answers, number = await open_loop(door, peak * times, seconds, number + 1)
    good = [(at, took) for at, status, took in answers if status == 200 and took <= SLO_S]
    # What is still queued when the flood ends is served after it and is no merit of it.
    during = sum(at + took <= seconds for at, took in good)
    rejects = [took * 1e3 for _, status, took in answers if status in (429, 503)]
    other = sum(status not in (200, 429, 503) for _, status, _ in answers)
    calm, number = await open_loop(door, peak * 0.5, 10, number + 1)
    bad = [at for at, status, took in calm if status != 200 or took > SLO_S]
    # The speed of a shared machine drifts: the flood is held against the peak before it and the one after it.
    again, _ = await closed_loop(door, 24, 8, number + 1)
    return {"peak": (peak + again) / 2, "goodput": during / seconds, "accepted_p99_s": percentile([took for _, took in good], 99),
            "rejects": len(rejects), "reject_p99_ms": percentile(rejects, 99), "broken": other, "normal_after_s": max(bad, default=0.0)}


def overload(show, wanted):
    """Ten times as many chats as the engine can answer, at fixed times, then half as many as it can. The server has one core,
    engine included, and the client the other."""
    if not wanted("dataplane.overload"):
        return
    cores = os.sched_getaffinity(0)
    with servers.millrace(config=CONFIG, prefix=servers.ON_SERVER_CORE) as server:
        os.sched_setaffinity(0, {servers.CLIENT_CORE})
        try:
            result = asyncio.run(measure(server))
        finally:
            os.sched_setaffinity(0, cores)
    show("dataplane.overload.peak_per_s", result["peak"], "1/s")
    show("dataplane.overload.goodput_ratio", result["goodput"] / max(result["peak"], 1e-9), "", 0.9)
    show("dataplane.overload.accepted_p99_s", result["accepted_p99_s"], "s", SLO_S, better=-1)
    show("dataplane.overload.reject_p99_ms", result["reject_p99_ms"], "ms", 10, better=-1)
    show("dataplane.overload.broken", result["broken"], "requests", 0, better=-1)
    show("dataplane.overload.normal_after_s", result["normal_after_s"], "s", 10, better=-1)
