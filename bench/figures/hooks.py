"""Signed webhook events at a fixed rate: from the intended moment of sending to the durable acknowledgement."""
import asyncio
import base64
import hashlib
import hmac
import json
import time

import aiohttp
from aiohttp import web

import chats
import servers
from chats import percentile

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def signed(number, now):
    body = json.dumps({"type": "message", "conversation": f"case-{number}", "user": f"user-{number}", "text": "What is the state of my order?"})
    tag = hmac.new(KEY, f"evt_{number}.{now}.{body}".encode(), hashlib.sha256).digest()
    return body, {"content-type": "application/json", "webhook-id": f"evt_{number}", "webhook-timestamp": str(now),
                  "webhook-signature": "v1," + base64.b64encode(tag).decode()}


async def run(per_second, seconds, chats_at_once):
    async def received(request):
        await request.read()
        return web.Response(status=204)

    sink = web.Application()
    sink.router.add_post("/replies", received)
    runner = web.AppRunner(sink, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    config = ("[[channel]]\nkind = \"standard_webhooks\"\nname = \"load\"\nsecrets = [\"env:LOAD_SECRET\"]\n"
              f"reply_url = \"http://127.0.0.1:{port}/replies\"\n")
    environment = {"LOAD_SECRET": SECRET, "MILLRACE_AGENT_REPLY_TOKENS_MAX": "1"}
    server = await asyncio.to_thread(servers.millrace, environment, config)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
            latencies, statuses, tasks = [], {}, []

            async def one(number, intended):
                body, headers = signed(number, int(time.time()))
                async with session.post(server.base + "/hooks/standard_webhooks/load", data=body, headers=headers) as reply:
                    await reply.read()
                    statuses[reply.status] = statuses.get(reply.status, 0) + 1
                    if reply.status == 200:
                        latencies.append(time.perf_counter() - intended)

            crowd = asyncio.create_task(chats.closed_loop(server, chats_at_once, 20_000, 64)) if chats_at_once else None
            if crowd:
                await asyncio.sleep(3)
            for number in range(20):
                await one(number, time.perf_counter())
            latencies.clear()
            statuses.clear()
            began = time.perf_counter()
            for number in range(per_second * seconds):
                intended = began + number / per_second
                if (pause := intended - time.perf_counter()) > 0:
                    await asyncio.sleep(pause)
                tasks.append(asyncio.create_task(one(20 + number, intended)))
            await asyncio.gather(*tasks)
            if crowd:
                crowd.cancel()
                await asyncio.gather(crowd, return_exceptions=True)
        milliseconds = [latency * 1e3 for latency in latencies]
        return {"p50_ms": percentile(milliseconds, 50), "p99_ms": percentile(milliseconds, 99), "statuses": statuses,
                "refused": sum(count for status, count in statuses.items() if status != 200)}
    finally:
        await asyncio.to_thread(server.__exit__)
        await runner.cleanup()


def measure(per_second=50, seconds=6, chats_at_once=0):
    """With `chats_at_once` that many people keep the engine busy beside the events."""
    return asyncio.run(run(per_second, seconds, chats_at_once))
