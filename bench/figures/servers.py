"""Starts the servers that are measured: Millrace, and its peers when they are installed."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

# Where it matters who takes whose time, the server has the first core of this process to itself, the client the second.
CORES = sorted(os.sched_getaffinity(0))[:2]
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]
ON_SERVER_CORE = ["taskset", "-c", str(SERVER_CORE)]
ON_CLIENT_CORE = ["taskset", "-c", str(CLIENT_CORE)]
CHAT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def models():
    return Path(os.environ["MILLRACE_MODELS"])


def metric(server, name):
    """The sum over all series of a metric, or 0."""
    with urllib.request.urlopen(server.metrics + "/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A running process with a base URL. Use it in a `with` block."""

    def __init__(self, command, environment=None, base=None):
        self.scratch = tempfile.TemporaryDirectory(prefix="millrace-figures-")
        self.log = open(Path(self.scratch.name) / "log", "wb")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        self.base, self.metrics, self.key, self.ready_s = base, None, "", None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Ends the process as an operator would."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.scratch.cleanup()

    def fail(self, why):
        self.process.kill()
        log = (Path(self.scratch.name) / "log").read_text(errors="replace")
        raise SystemExit(f"{why}:\n{log[-3000:]}")

    def drain_output(self):
        """Keeps reading the output, so that the process never blocks on a full pipe."""
        threading.Thread(target=lambda: [None for _ in self.process.stdout], daemon=True).start()

    def cpu_s(self):
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status_mib(self, field):
        """A field of the process's memory status: VmRSS now, VmHWM at its highest."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE).group(1)) / 1024

    def resident_mib(self):
        """Resident memory, without the pages of model files that are mapped."""
        resident = weights = 0
        inside = False
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            words = line.split()
            if len(words) >= 5 and "-" in words[0]:
                inside = line.endswith((".gguf", ".safetensors"))
            elif words[0] == "Rss:":
                kib = int(words[1])
                resident += kib
                weights += kib if inside else 0
        return (resident - weights) / 1024


def millrace(environment=None, config="", data=None, binary=None, prefix=()):
    """Millrace with this configuration and a fresh data folder, or the one named; returns when it is ready. `prefix` are words
    before the command, such as those of taskset."""
    fresh = None if data else tempfile.TemporaryDirectory(prefix="millrace-figures-")
    data = data or fresh.name
    (Path(data) / "millrace.toml").write_text(config)
    server = Server(
        [*prefix, binary or os.environ["MILLRACE_BIN"], "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--ready-json",
         "--data", data, "--models", str(models())],
        {"MILLRACE_LIMITS_REQUESTS_PER_MINUTE": "10000000", **(environment or {})})
    server.data = fresh  # Removed together with the server.
    for line in server.process.stdout:
        if line.lstrip().startswith(b"{"):
            server.ready_s = time.perf_counter() - server.started
            ready = json.loads(line)
            address = lambda value: value if isinstance(value, str) else value[0]
            server.base = "http://" + address(ready["http"]).removeprefix("http://")
            server.metrics = "http://" + address(ready["metrics"]).removeprefix("http://")
            server.key = ready.get("api_key") or ""
            server.ready = ready
            server.drain_output()
            return server
    server.fail("millrace did not become ready")


def new_key(server):
    """A key with limits of its own."""
    body = json.dumps({"user": "figures", "label": "figures", "scopes": ["chat"]}).encode()
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(server.base + "/v1/admin/keys", body, headers), timeout=10) as reply:
        return json.load(reply)["key"]


def llama_server_binary():
    return os.environ.get("MILLRACE_LLAMA_SERVER") or shutil.which("llama-server")


def llama_server(slots):
    """llama-server on the same file with its defaults; 512 tokens of context for each slot."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    server = Server([llama_server_binary(), "-m", str(models() / CHAT_MODEL), "--host", "127.0.0.1", "--port", str(port),
                     "-t", str(os.cpu_count()), "-np", str(slots), "-c", str(512 * slots)], base=base)
    server.drain_output()
    wait_healthy(server, base + "/health")
    return server


def nginx():
    """nginx that answers one fixed page from memory with as many workers as cores."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    scratch = tempfile.mkdtemp(prefix="millrace-nginx-")
    config = Path(scratch) / "nginx.conf"
    config.write_text(
        f"worker_processes {os.cpu_count()};\ndaemon off;\npid {scratch}/pid;\nerror_log stderr;\nuser root;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 1000000000; server {{ listen 127.0.0.1:{port} reuseport; "
        "location / { default_type application/json; return 200 '{\"status\":\"ok\"}'; } } }\n")
    server = Server(["nginx", "-c", str(config)], base=base)
    server.drain_output()
    wait_healthy(server, base)
    return server


def wait_healthy(server, url, limit_s=60):
    while time.perf_counter() - server.started < limit_s:
        if server.process.poll() is not None:
            server.fail(f"{server.process.args[0]} ended")
        try:
            with urllib.request.urlopen(url, timeout=1) as reply:
                if reply.status == 200:
                    server.ready_s = time.perf_counter() - server.started
                    return
        except OSError:
            time.sleep(0.01)
    server.fail(f"{server.process.args[0]} is not healthy after {limit_s} s")
