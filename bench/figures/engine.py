"""The engine: its kernels without a server, and a server under many chats. The peer is llama.cpp on the same file."""
import asyncio
import json
import os
import subprocess
import tempfile
from pathlib import Path

import aiohttp

import chats
import servers

SIZES = (1, 8, 32, 64)
GOALS = {1: 150, 8: 700, 32: 950, 64: 1000}
PROMPT, PROMPT_GOAL = 512, 1400
CONTEXT, STEPS = 128, 16


def ours(repeat):
    """Tokens a second by (test, size) from `millrace bench engine`."""
    with tempfile.TemporaryDirectory(prefix="millrace-figures-") as data:
        output = run([os.environ["MILLRACE_BIN"], "bench", "engine", "--json", "--prefill", str(PROMPT), "--decode", listed(SIZES),
                      "--context", str(CONTEXT), "--steps", str(STEPS), "--repeats", str(repeat),
                      "--data", data, "--models", str(servers.models())])
    lines = [json.loads(line) for line in output.splitlines()]
    rates = {(line["test"], line["size"]): line["median_tokens_s"] for line in lines if "size" in line}
    memory = next(line for line in lines if line["test"] == "memory")
    return rates, memory


def peers():
    """The same of llama.cpp, as far as its programs lie beside its server."""
    server = servers.llama_server_binary()
    rates = {}
    if not server:
        return rates
    common = ["-m", str(servers.models() / servers.CHAT_MODEL), "-t", str(os.cpu_count())]
    batched, alone = Path(server).with_name("llama-batched-bench"), Path(server).with_name("llama-bench")
    if batched.exists():
        context = max(SIZES) * (CONTEXT + STEPS)
        output = run([str(batched), *common, "-c", str(context), "-npp", str(CONTEXT), "-ntg", str(STEPS),
                      "-npl", listed(SIZES), "--output-format", "jsonl"])
        for line in filter(lambda line: line.startswith("{"), output.splitlines()):
            row = json.loads(line)
            rates["decode", row["pl"]] = row["speed_tg"]
    if alone.exists():
        output = run([str(alone), *common, "-p", str(PROMPT), "-n", "0", "-o", "jsonl"])
        rates["prefill", PROMPT] = json.loads(output.splitlines()[0])["avg_ts"]
    return rates


def kernels(show, wanted, repeat):
    names = [f"engine.decode.b{size}" for size in SIZES] + [f"engine.prefill.{PROMPT}"]
    if not wanted(*names, "engine.decode.floor"):
        return
    mine, memory = ours(repeat)
    theirs = peers()
    for size in SIZES:
        show(f"engine.decode.b{size}", mine["decode", size], "tok/s", GOALS[size], theirs.get(("decode", size)))
    show(f"engine.prefill.{PROMPT}", mine["prefill", PROMPT], "tok/s", PROMPT_GOAL, theirs.get(("prefill", PROMPT)))
    # Its weights cannot arrive faster than memory gives them.
    show("engine.decode.floor", memory["decode_alone_at_most"], "tok/s")


def crowds(show, wanted):
    """64 and 200 people who each ask once: a shared system prompt, 64 tokens out."""
    sizes = {64: ("tok_s", "ttft_p99_ms", "itl_p99_ms"), 200: ("tok_s", "ttft_p99_ms")}
    goals = {(64, "tok_s"): 600, (64, "ttft_p99_ms"): 3000, (64, "itl_p99_ms"): 200, (200, "tok_s"): 600, (200, "ttft_p99_ms"): 15000}
    keys = {"tok_s": "tokens_s", "ttft_p99_ms": "ttft_p99_ms", "itl_p99_ms": "gap_p99_ms"}
    names = [f"engine.server.c{users}.{part}" for users, parts in sizes.items() for part in parts]
    if not wanted(*names, "engine.rss"):
        return

    def measure(server):
        before = server.status_mib("VmRSS")
        results = {}
        for users in sizes:
            if wanted(*[name for name in names if f".c{users}." in name], "engine.rss"):
                results[users] = asyncio.run(chats.closed_loop(server, users, users, 64))
        return results, before, server.status_mib("VmHWM")

    with servers.millrace() as server:
        mine, start, peak = measure(server)
    theirs, their_start, their_peak = {}, None, None
    if servers.llama_server_binary():
        with servers.llama_server(64) as server:
            theirs, their_start, their_peak = measure(server)
    for users, result in mine.items():
        other = theirs.get(users, {})
        for part in sizes[users]:
            key, better = keys[part], 1 if part == "tok_s" else -1
            unit = "tok/s" if part == "tok_s" else "ms"
            show(f"engine.server.c{users}.{part}", result[key], unit, goals[users, part], other.get(key), better)
        show(f"engine.server.c{users}.errors", result["errors"], "errors", 0, other.get("errors"), -1)
    show("engine.rss.start_mib", start, "MiB", 300, their_start, -1)
    show("engine.rss.peak_mib", peak, "MiB", 500, their_peak, -1)


def first_token(show, wanted, repeat):
    """From the start of the process to the first token of a reply; not the first start on this data folder."""
    if not wanted("engine.start.first_token_s"):
        return

    def once(server):
        with server:
            error, _, _, at = asyncio.run(chat(server))
            if error:
                raise SystemExit(f"the first chat failed: {error}")
            return at[0] - server.started

    with tempfile.TemporaryDirectory(prefix="millrace-figures-") as data:
        key = ""
        times = []
        for _ in range(repeat + 1):
            server = servers.millrace(data=data)
            server.key = key = server.key or key  # Given once, on the first start.
            times.append(once(server))
    peer = None
    if servers.llama_server_binary():
        peer = min(once(servers.llama_server(64)) for _ in range(2))
    show("engine.start.first_token_s", sorted(times[1:])[repeat // 2], "s", 0.15, peer, -1)


async def chat(server):
    async with aiohttp.ClientSession() as session:
        return await chats.one(session, server, "Hello", 1)


def listed(numbers):
    return ",".join(map(str, numbers))


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout
