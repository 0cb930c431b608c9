"""What the data plane promises beside the engine: overload that costs nothing but what is beyond capacity."""
import asyncio
import json
import time
from urllib.parse import urlparse

import servers
from chats import percentile

# An accepted chat ends within this, or it does not count as served.
SLO_S = 3.0
# Refuses what it cannot begin in time; the queue alone would let everybody wait.
CONFIG = "[engine]\nfirst_token_max = \"1500ms\"\nqueue_max = 64\n"


class Door:
    """Kept-alive connections to one server, each used by one request at a time."""

    def __init__(self, server):
        place = urlparse(server.base)
        self.host, self.port, self.key, self.free = place.hostname, place.port, server.key, []

    async def ask(self, number):
        """(status, seconds) of one short chat; status 0 when the connection failed."""
        body = json.dumps({"model": "default", "max_tokens": 4, "temperature": 0, "ignore_eos": True,
                           "messages": [{"role": "user", "content": f"Case {number:07d}: the printer is slow. What now?"}]}).encode()
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\nauthorization: Bearer {self.key}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n").encode()
        began = time.perf_counter()
        line = None
        try:
            line = self.free.pop() if self.free else await asyncio.open_connection(self.host, self.port)
            reader, writer = line
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            fields = dict(field.split(b": ", 1) for field in answer.split(b"\r\n")[1:] if b": " in field)
            await reader.readexactly(int(fields[b"content-length"]))
            if fields.get(b"connection") == b"close":
                writer.close()
            else:
                self.free.append(line)
            return int(answer[9:12]), time.perf_counter() - began
        except (OSError, asyncio.IncompleteReadError, KeyError):
            if line:
                line[1].close()
            return 0, time.perf_counter() - began


async def closed_loop(door, senders, seconds, first):
    """Answers a second when as many ask as the engine takes at once."""
    end, served, number = time.perf_counter() + seconds, 0, first

    async def sender():
        nonlocal served, number
        while time.perf_counter() < end:
            number += 1
            status, took = await door.ask(number)
            served += status == 200 and took <= SLO_S

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
    calm, _ = await open_loop(door, peak * 0.5, 10, number + 1)
    bad = [at for at, status, took in calm if status != 200 or took > SLO_S]
    return {"peak": peak, "goodput": during / seconds, "accepted_p99_s": percentile([took for _, took in good], 99),
            "rejects": len(rejects), "reject_p99_ms": percentile(rejects, 99), "broken": other, "normal_after_s": max(bad, default=0.0)}


def overload(show, wanted):
    """Ten times as many chats as the engine can answer, at fixed times, then half as many as it can."""
    if not wanted("dataplane.overload"):
        return
    with servers.millrace(config=CONFIG) as server:
        result = asyncio.run(measure(server))
    show("dataplane.overload.peak_per_s", result["peak"], "1/s")
    show("dataplane.overload.goodput_ratio", result["goodput"] / max(result["peak"], 1e-9), "", 0.9)
    show("dataplane.overload.accepted_p99_s", result["accepted_p99_s"], "s", SLO_S, better=-1)
    show("dataplane.overload.reject_p99_ms", result["reject_p99_ms"], "ms", 10, better=-1)
    show("dataplane.overload.broken", result["broken"], "requests", 0, better=-1)
    show("dataplane.overload.normal_after_s", result["normal_after_s"], "s", 10, better=-1)
