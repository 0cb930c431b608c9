#!/usr/bin/env python3
"""Measures what Millrace promises. One JSON line for each figure: figure, value, unit, goal, peer, ratio.

    run.py [--only PREFIX] [--repeat N]

`peer` is the same quantity of the peer program in the same run on the same machine (llama-server, nginx), or null
when it is not installed (MILLRACE_LLAMA_SERVER names a binary that is not on PATH). `ratio` says how many times
better than the peer Millrace is, whichever direction is better.
"""
import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import time

import channels
import chats
import dataplane
import engine
import hooks
import seal
import servers
import storage

LOWER, HIGHER = -1, 1
OPTIONS = argparse.Namespace(only="", repeat=3)


def wanted(*figures):
    """Whether any of these figures is asked for: measuring costs time."""
    return any(figure.startswith(OPTIONS.only) or OPTIONS.only.startswith(figure) for figure in figures)


def show(figure, value, unit, goal=None, peer=None, better=HIGHER):
    if not figure.startswith(OPTIONS.only):
        return
    ratio = None
    if peer and value:
        ratio = value / peer if better == HIGHER else peer / value
    rounded = lambda number: None if number is None else float(f"{number:.4g}")
    print(json.dumps({"figure": figure, "value": rounded(value), "unit": unit, "goal": goal, "peer": rounded(peer), "ratio": rounded(ratio)}), flush=True)


def note(text):
    print(text, file=sys.stderr, flush=True)


def start():
    """From the start of the process to ready, and what an idle process holds."""
    if not wanted("skeleton.ready_s", "skeleton.idle_rss_mib"):
        return
    ready, resident = [], []
    for _ in range(OPTIONS.repeat + 1):
        with servers.millrace() as server:
            ready.append(server.ready_s)
            time.sleep(1)
            resident.append(server.resident_mib() - weights_mib(server))
    show("skeleton.ready_s", statistics.median(ready[1:]), "s", 1.0, better=LOWER)
    show("skeleton.idle_rss_mib", statistics.median(resident), "MiB", 64, better=LOWER)


def weights_mib(server):
    """Weights in memory that belongs to no file, as the server reports them; mapped files are left out already."""
    names = ("millrace_model_weights_bytes", "millrace_encoder_weights_bytes")
    return sum(servers.metric(server, name) for name in names) / (1 << 20)


def decode():
    """One user alone."""
    names = ("skeleton.decode.b1_tok_s", "skeleton.ttft.b1_ms")
    if not wanted(*names):
        return
    with servers.millrace() as server:
        ours = asyncio.run(chats.alone(server, OPTIONS.repeat, 128))
    peer = None
    if servers.llama_server_binary():
        with servers.llama_server(1) as server:
            peer = asyncio.run(chats.alone(server, OPTIONS.repeat, 128))
    show(names[0], ours["tokens_s"], "tok/s", peer and round(peer["tokens_s"], 1), peer and peer["tokens_s"])
    show(names[1], ours["ttft_ms"], "ms", None, peer and peer["ttft_ms"], LOWER)


# Long enough for any measured reply: it ends by its token limit, as the one without a schema does.
TICKETS = {"type": "array", "minItems": 40, "items": {"type": "object", "additionalProperties": False, "properties": {
    "title": {"type": "string", "maxLength": 60}, "priority": {"enum": ["low", "normal", "high"]},
    "minutes": {"type": "integer", "minimum": 0, "maximum": 480}, "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
}, "required": ["title", "priority", "minutes", "tags"]}}


def structured():
    """What a JSON schema costs: decoding with one beside decoding without, in the same server."""
    if not wanted("engine.structured"):
        return
    schema = {"ignore_eos": False, "response_format": {"type": "json_schema", "json_schema": {"name": "tickets", "schema": TICKETS}}}
    with servers.millrace() as server:
        free = asyncio.run(chats.alone(server, OPTIONS.repeat, 128))
        bound = asyncio.run(chats.alone(server, OPTIONS.repeat, 128, schema))
        many_free = asyncio.run(chats.closed_loop(server, 8, 16, 64))
        many_bound = asyncio.run(chats.closed_loop(server, 8, 16, 64, more=schema))
        per = lambda what, of: servers.metric(server, what) / max(servers.metric(server, of), 1)
        mask_us = per("millrace_mask_seconds_total", "millrace_masks_total") * 1e6
        wait_us = per("millrace_mask_wait_seconds_total", "millrace_masks_total") * 1e6
        ready_ms = per("millrace_constraint_seconds_total", "millrace_constraints_total") * 1e3
    show("engine.structured.decode.b1_tok_s", bound["tokens_s"], "tok/s", round(free["tokens_s"], 1), free["tokens_s"])
    show("engine.structured.chat8.out_tok_s", many_bound["tokens_s"], "tok/s", round(many_free["tokens_s"], 1), many_free["tokens_s"])
    show("engine.structured.chat8.errors", many_bound["errors"], "errors", 0, many_free["errors"], LOWER)
    show("engine.structured.mask_us", mask_us, "us", None, better=LOWER)
    show("engine.structured.mask_wait_us", wait_us, "us", None, better=LOWER)
    show("engine.structured.ready_ms", ready_ms, "ms", None, better=LOWER)


def many():
    """8, 32 and 64 people at once, who ask again as soon as they are answered; 64 of them ask once."""
    for users, requests in ((8, 48), (32, 96), (64, 64)):
        group = f"skeleton.chat{users}"
        if not wanted(group):
            continue
        with servers.millrace() as server:
            ours = asyncio.run(chats.closed_loop(server, users, requests, 64))
        peer = {}
        if servers.llama_server_binary():
            with servers.llama_server(users) as server:
                peer = asyncio.run(chats.closed_loop(server, users, requests, 64))
        for error in ours["samples"]:
            note(f"{group}: {error}")
        show(f"{group}.errors", ours["errors"], "errors", 0, peer.get("errors"), LOWER)
        show(f"{group}.out_tok_s", ours["tokens_s"], "tok/s", None, peer.get("tokens_s"))
        for name in ("ttft_p50_ms", "ttft_p99_ms", "gap_p50_ms", "gap_p99_ms"):
            show(f"{group}.{name}", ours[name], "ms", None, peer.get(name), LOWER)


def load_requests(url, connections, seconds):
    """wrk: requests made, and requests a second."""
    output = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url], capture_output=True, text=True, check=True).stdout
    if errors := re.search(r"Non-2xx.*|Socket errors.*", output):
        note(f"wrk on {url}: {errors.group()}")
    return int(re.search(r"(\d+) requests in", output).group(1)), float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1))


def http():
    """What one small HTTP request costs, beside nginx with a page from memory."""
    names = ("skeleton.http.cpu_us", "skeleton.http.requests_s")
    if not wanted(*names):
        return
    if not shutil.which("wrk"):
        note("skeleton.http: wrk is not installed")
        return

    def cost(server, path, cpu):
        load_requests(server.base + path, 64, 1)
        before = cpu()
        count, rate = load_requests(server.base + path, 64, 5)
        return (cpu() - before) / count * 1e6, rate

    with servers.millrace() as server:
        ours = cost(server, "/healthz", server.cpu_s)
    peer = (None, None)
    if shutil.which("nginx"):
        with servers.nginx() as server:
            peer = cost(server, "/", lambda: dataplane.children_cpu_s(server.process.pid))
    show(names[0], ours[0], "us", None, peer[0], LOWER)
    show(names[1], ours[1], "1/s", None, peer[1])


def acknowledgements():
    """Signed events at 50 a second, acknowledged after the durable commit, while the model answers them."""
    if not wanted("storage.hook_ack"):
        return
    result = hooks.measure()
    show("storage.hook_ack.p50_ms", result["p50_ms"], "ms", None, better=LOWER)
    show("storage.hook_ack.p99_ms", result["p99_ms"], "ms", 10, better=LOWER)
    show("storage.hook_ack.refused", result["refused"], "events", 0, better=LOWER)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--repeat", type=int, default=3)
    parser.parse_args(namespace=OPTIONS)
    for group in (start, decode, structured, many, http, acknowledgements):
        group()
    dataplane.measure(show, wanted, OPTIONS.repeat)
    channels.measure(show, wanted, note)
    engine.kernels(show, wanted, OPTIONS.repeat)
    engine.crowds(show, wanted)
    engine.first_token(show, wanted, OPTIONS.repeat)
    storage.measure(show, wanted)
    seal.figures(show, wanted, LOWER)


if __name__ == "__main__":
    main()
