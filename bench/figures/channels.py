"""Channels: what verifying costs, signed events at full speed, acknowledgements beside a busy engine, idle memory."""
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import servers

ROOT = Path(__file__).resolve().parents[2]
SECRET = "8f742231b10e8888abcd99e1a2b3c4d5"
SINK = "http://127.0.0.1:9"  # Nobody listens there: replies wait in the outbox and are not measured.
CONFIG = f"""
[[channel]]
kind = "slack"
name = "load"
secrets = ["env:LOAD_SECRET"]
bot_token = "env:LOAD_SECRET"
api_base = "{SINK}"
"""


# Threads that compute replies, and the one that tries to deliver them.
ENGINE = ("engine", "compute", "embed", "mask", "constrain", "compile", "control", "metrics")


def verify(show, wanted):
    """From the raw request to the authenticated plaintext, for each channel."""
    if not wanted("channels.verify"):
        return
    vectors = ROOT / "tests/data/channel_vectors.json"
    command = [os.environ["MILLRACE_BIN"], "channel", "verify", "--time", "--json", "--vectors", str(vectors)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in map(json.loads, lines):
        show(f"channels.verify.{line['channel']}_us", line["verify_us"], "us", None, better=-1)


def thread_seconds(pid):
    """User and system time of each thread so far, by name."""
    times = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "stat").read_text()
        except OSError:
            continue
        name, fields = text[text.index("(") + 1:text.rindex(")")], text.rsplit(")", 1)[1].split()
        times[name] = times.get(name, 0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times


def load(server, *arguments, prefix=()):
    """One run of the load generator; its report. `prefix` are words before the command."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [*prefix, str(Path(os.environ["MILLRACE_BIN"]).parent / "millrace-load"), "--target", server.base, "--workload", "slack",
                   "--account", "load", "--json", report.name, *arguments]
        done = subprocess.run(command, env={**os.environ, "MILLRACE_LOAD_SECRET": SECRET}, capture_output=True, text=True)
        text = Path(report.name).read_text()
        if not text:
            raise SystemExit(f"the load generator failed: {done.stderr[-2000:]}")
        return json.loads(text)


def environment(**more):
    return {"LOAD_SECRET": SECRET, "MILLRACE_AGENT_REPLY_TOKENS_MAX": "1", "LOG_LEVEL": "error", "MAX_WORKERS": "1", **more}


def take_notice(name, report, note):
    """What the load generator saw besides acknowledgements."""
    if report["ok"] != report["requests"]:
        note(f"{name}: of {report['requests']} events only {report['ok']} were acknowledged: {report['errors']}")


def durable(show, wanted, note):
    """Signed Slack events of people who have written before, as fast as the server takes them. What counts is the processor
    time of the threads that verify, commit and acknowledge, those of the database included; the engine, which answers
    the messages meanwhile on what is left, is not among them."""
    if not wanted("channels.slack.durable_per_s"):
        return
    with servers.millrace(environment(), CONFIG) as server:
        # The first message of a person makes the keys that seal what they say.
        fresh = load(server, "--closed", "256", "--conversations", "4000", "--requests", "4000", "--duration", "20s")
        before, began = thread_seconds(server.process.pid), time.perf_counter()
        report = load(server, "--closed", "256", "--conversations", "4000", "--requests", "200000", "--duration", "10s")
        took, after = time.perf_counter() - began, thread_seconds(server.process.pid)
    take_notice("channels.slack", report, note)
    note(f"channels.slack: first messages of {fresh['ok']} people in {fresh['elapsed_s']:.2f} s")
    spent = {name: after[name] - before.get(name, 0) for name in after if after[name] - before.get(name, 0) > 0.005}
    ours = sum(seconds for name, seconds in spent.items() if not name.startswith(ENGINE))
    note(f"channels.slack: {report['ok']} of {report['requests']} acknowledged in {took:.2f} s; seconds by thread: {spent}")
    show("channels.slack.durable_per_s", report["ok"] / ours if ours else None, "1/s per core", 40_000)


def busy(show, wanted, note, rounds=5):
    """Acknowledgements at 70 % of the rate that the busy server sustains, while the engine has more than it can do. The server
    has one core, engine and database included, and the generator the other. Each round asks anew what the server sustains:
    the speed of a shared machine changes from one second to the next."""
    if not wanted("channels.ack.busy_p99_ms"):
        return
    limits = environment(MILLRACE_AGENT_REPLY_TOKENS_MAX="64", MILLRACE_ENGINE_THREADS="1")
    tails = []
    for _ in range(rounds):
        # A server of its own: what it has promised and not answered yet is bounded, and the engine answers little of it.
        with servers.millrace(limits, CONFIG, prefix=servers.ON_SERVER_CORE) as server:
            # Platforms send through pools of connections; waiting for one counts.
            pool = ("--conversations", "4000", "--connections-max", "256")
            run = lambda *arguments: load(server, *arguments, *pool, prefix=servers.ON_CLIENT_CORE)
            # The engine is full from here on: every message wants 64 tokens, and far more wait than it can answer.
            run("--closed", "64", "--requests", "4000", "--duration", "10s")
            full = run("--closed", "64", "--duration", "2s", "--warmup", "1s")
            rate = 0.7 * full["ok"] / max(full["elapsed_s"], 1e-9)
            # The first second, in which the generator opens its connections, is not counted.
            report = run("--rate", f"{rate:.1f}", "--duration", "3s", "--warmup", "1s")
        take_notice("channels.ack.busy", report, note)
        tails.append(report["latency_ms"]["p99"])
        note(f"channels.ack.busy: sustained {rate / 0.7:.0f}/s, offered {rate:.0f}/s: p99 {tails[-1]:.1f} ms; "
             f"sent late by the generator itself: p99 {report['dispatch_lag_ms']['p99']:.1f} ms")
    show("channels.ack.busy_p99_ms", statistics.median(tails), "ms", 10, better=-1)


def idle(show, wanted):
    """What a hot conversation holds while it waits, counted by the allocator."""
    if not wanted("channels.idle_conversation_bytes"):
        return
    command = ["cargo", "run", "--quiet", "--release", "-p", "millrace-agent", "--example", "idle"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the example idle failed: {done.stderr[-2000:]}")
    show("channels.idle_conversation_bytes", float(done.stdout), "bytes", 2_048, better=-1)


def measure(show, wanted, note):
    verify(show, wanted)
    idle(show, wanted)
    durable(show, wanted, note)
    busy(show, wanted, note)
