"""What the data plane costs: small requests over HTTP/1.1, HTTP/3 and millrace/1, idle WebSockets, acknowledgements beside
a saturated engine. The server has the first core of this process to itself, the client the second."""
import asyncio
import base64
import json
import os
import re
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import hooks
import overload
import servers
from servers import ON_CLIENT_CORE, ON_SERVER_CORE

LOWER, HIGHER = -1, 1
# Answers as long as ours, so that both servers write the same.
PAGE = json.dumps({"status": "ok", "text": "a small answer of the size of a list of models" + "." * 90})


def one_core(environment=None, config="", binary=None):
    """Millrace with one reactor, all of it on the server's core."""
    return servers.millrace({"MAX_WORKERS": "1", "MILLRACE_ENGINE_THREADS": "1", **(environment or {})}, config, binary=binary, prefix=ON_SERVER_CORE)


def nginx():
    """nginx with one worker on the server's core and a page from memory."""
    port, scratch = servers.free_port(), tempfile.mkdtemp(prefix="millrace-nginx-")
    config = Path(scratch) / "nginx.conf"
    config.write_text(
        f"worker_processes 1;\ndaemon off;\npid {scratch}/pid;\nerror_log stderr;\nuser root;\nevents {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000000; server {{ listen 127.0.0.1:{port}; "
        f"location / {{ default_type application/json; return 200 '{PAGE}'; }} }} }}\n")
    server = servers.Server([*ON_SERVER_CORE, "nginx", "-c", str(config)], base=f"http://127.0.0.1:{port}")
    server.drain_output()
    servers.wait_healthy(server, server.base)
    return server


def axum():
    """axum on one thread on the server's core, built at its first use; nothing where it cannot be built."""
    folder = Path(os.environ["MILLRACE_BIN"]).parent.parent / "axum-peer"
    manifest = Path(__file__).resolve().parents[1] / "peers/axum/Cargo.toml"
    build = ["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path", str(manifest), "--target-dir", str(folder)]
    if subprocess.run(build, env={**os.environ, "CARGO_TARGET_DIR": str(folder)}).returncode != 0:
        return None
    address = f"127.0.0.1:{servers.free_port()}"
    server = servers.Server([*ON_SERVER_CORE, str(folder / "release/axum-peer"), address, PAGE], base=f"http://{address}")
    server.drain_output()
    servers.wait_healthy(server, server.base)
    return server


def wrk(url, key, connections, seconds):
    """Requests made, and the 99th percentile in microseconds."""
    command = [*ON_CLIENT_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Authorization: Bearer {key}", url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if errors := re.search(r"Non-2xx.*|Socket errors.*", output):
        raise SystemExit(f"wrk on {url}: {errors.group()}")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", output).groups()
    return int(re.search(r"(\d+) requests in", output).group(1)), float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def children_cpu_s(parent):
    """The time of all children of a process: nginx works in its worker."""
    children = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=True).stdout.split()
    total = 0
    for child in children:
        fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def h1(show, wanted, repeat):
    """A list of models over kept-alive HTTP/1.1, through router, key, limits and metrics; rounds take turns with nginx and
    axum, which answer with a page from memory."""
    whats = ("cpu_us", "p99_us", "vs_nginx", "vs_axum", "p99_us_axum")
    names = [f"dataplane.h1.c{connections}.{what}" for connections in (64, 1000) for what in whats]
    if not wanted(*names) or not shutil.which("wrk"):
        return
    peers = {"ours": one_core()}
    try:
        if shutil.which("nginx"):
            peers["nginx"] = nginx()
        if server := axum():
            peers["axum"] = server
        for connections, goal, axum_goal in ((64, 7, 1.25), (1000, 8, 1.6)):
            rounds = {name: [] for name in peers}
            for _ in range(2 * repeat + 1):
                for name, server in peers.items():
                    cpu = (lambda: children_cpu_s(server.process.pid)) if name == "nginx" else server.cpu_s
                    url = server.base + ("/v1/models" if name == "ours" else "/")
                    wrk(url, server.key, connections, 1)
                    before = cpu()
                    count, p99 = wrk(url, server.key, connections, 3)
                    rounds[name].append(((cpu() - before) / count * 1e6, p99))
            cpu_us, p99_us = ({name: statistics.median(run[at] for run in runs) for name, runs in rounds.items()} for at in (0, 1))
            show(f"dataplane.h1.c{connections}.cpu_us", cpu_us["ours"], "us", goal, cpu_us.get("nginx"), LOWER)
            show(f"dataplane.h1.c{connections}.p99_us", p99_us["ours"], "us", None, p99_us.get("nginx"), LOWER)
            for name, lead in (("nginx", 1.15), ("axum", axum_goal)):
                if name in peers:
                    # Time of a core for each request, theirs over ours in the same round: a shared machine's speed
                    # drifts by half within minutes.
                    leads = [theirs[0] / ours[0] for theirs, ours in zip(rounds[name], rounds["ours"])]
                    show(f"dataplane.h1.c{connections}.vs_{name}", statistics.median(leads), "x", lead)
            if "axum" in peers:
                show(f"dataplane.h1.c{connections}.p99_us_axum", p99_us["axum"], "us", None, better=LOWER)
    finally:
        for server in peers.values():
            server.__exit__()


def allocations(show, wanted):
    """Allocations of the whole process for each request, after warm-up, with an allocator that counts."""
    name = "dataplane.h1.allocs_per_request"
    binary = Path(os.environ["MILLRACE_BIN"]).with_name("millrace-counted")
    if not wanted(name) or not binary.exists() or not shutil.which("wrk"):
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = f"{scratch}/count"

        def count():
            with socket.socket(socket.AF_UNIX) as reader:
                reader.connect(place)
                return int(reader.makefile().readline())

        with one_core({"MILLRACE_COUNT_SOCKET": place}, binary=str(binary)) as server:
            # The connections of both runs are the same number; only the requests on them differ.
            wrk(server.base + "/v1/models", server.key, 16, 2)
            few_before = count()
            few, _ = wrk(server.base + "/v1/models", server.key, 16, 1)
            many_before = count()
            many, _ = wrk(server.base + "/v1/models", server.key, 16, 6)
            more = (count() - many_before) - (many_before - few_before)
    show(name, max(more, 0) / (many - few), "allocations", 0, better=LOWER)


TLS = "[tls]\nlisten = \"127.0.0.1:0\"\nself_signed = true\n"


def quic_load(target, trust, key, protocol, *more):
    binary = Path(os.environ["MILLRACE_BIN"]).with_name("millrace-quic-load")
    command = [*ON_CLIENT_CORE, str(binary), "--target", target, "--trust", str(trust), "--protocol", protocol, "--duration", "4s", *more]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "MILLRACE_API_KEY": key}).stdout)


def certificate(server):
    return Path(server.data.name) / "tls" / "certificate.pem"


def caddy(cert, key):
    """caddy with one thread of Go code on the server's core; HTTP/3 is on by default."""
    port, scratch = servers.free_port(), tempfile.mkdtemp(prefix="millrace-caddy-")
    config = Path(scratch) / "Caddyfile"
    config.write_text(f"{{\n admin off\n auto_https disable_redirects\n}}\nhttps://localhost:{port} {{\n bind 127.0.0.1\n tls {cert} {key}\n"
                      " header Content-Type application/json\n respond `{\"status\":\"ok\"}`\n}\n")
    server = servers.Server([*ON_SERVER_CORE, "caddy", "run", "--config", str(config), "--adapter", "caddyfile"], {"GOMAXPROCS": "1", "HOME": scratch})
    server.drain_output()
    server.target = f"127.0.0.1:{port}"
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    server.fail("caddy does not listen")


def quic(show, wanted, repeat):
    """HTTP/3 on 8 connections with 8 streams each, beside caddy; and an echo over millrace/1 beside the same as JSON over HTTP/3."""
    h3, ratio = "dataplane.h3.per_s", "dataplane.native.vs_h3_json"
    if not wanted(h3, ratio, "dataplane.native.per_s", "dataplane.h3.echo_per_s"):
        return
    median = lambda runs: statistics.median(run["per_s"] for run in runs)
    with one_core(config=TLS) as server:
        target, trust = server.ready["https"], certificate(server)
        rounds = {"small": [], "json": [], "native": [], "deep": []}
        peer = []
        beside = caddy(trust, trust.with_name("key.pem")) if shutil.which("caddy") and wanted(h3) else None
        try:
            for _ in range(repeat):
                if wanted(h3):
                    rounds["small"].append(quic_load(target, trust, server.key, "h3", "--path", "/healthz"))
                    if beside:
                        peer.append(quic_load(beside.target, trust, "", "h3", "--path", "/"))
                if wanted(ratio):
                    # One key may ask 10 million times a minute, which is less than what is measured here.
                    key = servers.new_key(server)
                    rounds["json"].append(quic_load(target, trust, key, "h3"))
                    rounds["native"].append(quic_load(target, trust, key, "native"))
                    rounds["deep"].append(quic_load(target, trust, key, "native", "--depth", "16"))
        finally:
            if beside:
                beside.__exit__()
    if rounds["small"]:
        show(h3, median(rounds["small"]), "1/s", 125_000, median(peer) if peer else None)
    if rounds["json"]:
        json_s, native_s, deep_s = (median(rounds[name]) for name in ("json", "native", "deep"))
        show("dataplane.h3.echo_per_s", json_s, "1/s")
        show("dataplane.native.per_s", native_s, "1/s", None, json_s)
        show("dataplane.native.pipelined_per_s", deep_s, "1/s", None, json_s)
        show(ratio, deep_s / json_s, "times", 3)
        show("dataplane.native.vs_h3_json_unpipelined", native_s / json_s, "times")


def open_socket(port, key):
    """A WebSocket that has shown its key and been welcomed."""
    stream = socket.create_connection(("127.0.0.1", port))
    nonce = base64.b64encode(os.urandom(16)).decode()
    stream.sendall(f"GET /v1/chat/ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                   f"Sec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += stream.recv(4096)
    assert b" 101 " in head, head
    text = json.dumps({"type": "auth", "key": key}).encode()
    stream.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
    answer = stream.recv(4096)
    assert b"ready" in answer, answer
    return stream


def sockets(show, wanted, count=10_000):
    """Idle WebSockets: what each costs in memory, and what all of them cost in CPU."""
    names = ("dataplane.ws.idle_bytes", "dataplane.ws.idle_cpu_percent", "dataplane.ws.held")
    if not wanted(*names):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count), hard))
    with servers.millrace({"MILLRACE_LIMITS_CONNECTIONS_MAX": str(2 * count)}) as server:
        port = int(server.base.rsplit(":", 1)[1])
        for stream in [open_socket(port, server.key) for _ in range(100)]:
            stream.close()
        time.sleep(1)
        before = server.resident_mib()
        held = [open_socket(port, server.key) for _ in range(count)]
        time.sleep(3)
        after, cpu = server.resident_mib(), server.cpu_s()
        time.sleep(20)
        busy = server.cpu_s() - cpu
        # Each of them still answers: a ping for each, and its pong.
        alive = 0
        for stream in held:
            stream.sendall(struct.pack(">BB", 0x89, 0x80) + bytes(4))
            stream.settimeout(5)
            while (frame := stream.recv(2)) and frame != b"\x8a\x00":
                stream.recv(frame[1] & 0x7F) if frame[1] & 0x7F else None
            alive += frame == b"\x8a\x00"
        for stream in held:
            stream.close()
    show(names[0], (after - before) * (1 << 20) / count, "bytes", 8192, better=LOWER)
    show(names[1], busy / 20 * 100, "% of a core", 3, better=LOWER)
    show(names[2], alive, "sockets", count)


def acknowledgements(show, wanted):
    """Durable acknowledgements of signed events while chats keep the engine saturated."""
    name = "dataplane.ack.busy_p99_ms"
    if not wanted(name):
        return
    result = hooks.measure(chats_at_once=16)
    show("dataplane.ack.busy_p50_ms", result["p50_ms"], "ms", None, better=LOWER)
    show(name, result["p99_ms"], "ms", 10, better=LOWER)
    show("dataplane.ack.busy_refused", result["refused"], "events", 0, better=LOWER)


def measure(show, wanted, repeat):
    h1(show, wanted, repeat)
    allocations(show, wanted)
    quic(show, wanted, repeat)
    sockets(show, wanted)
    acknowledgements(show, wanted)
    overload.overload(show, wanted)
