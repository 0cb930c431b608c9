"""Streaming chats against any OpenAI-compatible server, with one client for all of them."""
import asyncio
import json
import random
import statistics
import time

import aiohttp

SYSTEM = ("You work at the help desk of a company and answer its people. Use plain, short sentences. Say only what follows from "
          "the question or is well known. When a step needs an administrator, say so. Do not make up ticket numbers or names. "
          "Stay below eighty words and end with one thing to do next.")
THINGS = ["printer", "laptop", "calendar", "mailbox", "badge reader", "file share", "phone", "web portal", "backup", "projector"]
FAULTS = ["does not start", "is very slow since Monday", "shows an error after the update", "asks for the password again and again",
          "lost its settings", "stops after ten minutes", "reports a full disk", "sends each message twice"]
ASKS = ["What should I look at first?", "How can I mend this today?", "Who must approve the change?", "What can I do until tomorrow?"]


def question(draw):
    return (f"Case {draw.randrange(10**6):06d}. My {draw.choice(THINGS)} {draw.choice(FAULTS)}. Before that my "
            f"{draw.choice(THINGS)} {draw.choice(FAULTS)}, but that went away. {draw.choice(ASKS)}")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] if ordered else float("nan")


async def one(session, server, text, tokens, more=None):
    """One streamed chat: (error or None, tokens, time to first token, times of all pieces)."""
    body = {"model": "default", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "max_tokens": tokens,
            "ignore_eos": True, "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}], **(more or {})}
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    began, at, counted, finished = time.perf_counter(), [], 0, False
    try:
        async with session.post(server.base + "/v1/chat/completions", json=body, headers=headers) as reply:
            if reply.status != 200:
                return f"{reply.status}: {(await reply.text())[:200]}", 0, None, []
            async for line in reply.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    finished = True
                    break
                event = json.loads(data)
                if event.get("error"):
                    return str(event["error"])[:200], 0, None, []
                counted = (event.get("usage") or {}).get("completion_tokens", counted)
                choices = event.get("choices") or []
                if choices and (choices[0].get("delta") or {}).get("content"):
                    at.append(time.perf_counter())
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        return f"{type(error).__name__}: {error}", 0, None, []
    if not finished or not at:
        return "the stream ended early", 0, None, []
    return None, counted or len(at), at[0] - began, at


async def closed_loop(server, users, requests, tokens, seed=1, more=None):
    """`users` people who each ask again as soon as they are answered, until `requests` are done."""
    draw = random.Random(seed)
    texts = iter([question(draw) for _ in range(requests)])
    results = []
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=900)) as session:
        async def user():
            for text in texts:
                results.append(await one(session, server, text, tokens, more))
        began = time.perf_counter()
        await asyncio.gather(*[user() for _ in range(users)])
        wall = time.perf_counter() - began
    good = [r for r in results if r[0] is None]
    gaps = [b - a for r in good for a, b in zip(r[3], r[3][1:])]
    return {
        "errors": len(results) - len(good), "samples": sorted({r[0] for r in results if r[0]})[:3],
        "tokens_s": sum(r[1] for r in good) / wall,
        "ttft_p50_ms": percentile([r[2] * 1e3 for r in good], 50), "ttft_p99_ms": percentile([r[2] * 1e3 for r in good], 99),
        "gap_p50_ms": percentile([g * 1e3 for g in gaps], 50), "gap_p99_ms": percentile([g * 1e3 for g in gaps], 99),
    }


async def alone(server, repeats, tokens, more=None):
    """One user: median decode rate after the first token, and median time to the first token. `more`: parameters."""
    draw = random.Random(7)
    rates, first = [], []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for number in range(repeats + 1):
            error, count, ttft, at = await one(session, server, question(draw), tokens, more)
            if error:
                raise SystemExit(f"a single chat failed: {error}")
            if number:  # The first one warms caches.
                rates.append((count - 1) / (at[-1] - at[0]))
                first.append(ttft * 1e3)
    return {"tokens_s": statistics.median(rates), "ttft_ms": statistics.median(first)}
