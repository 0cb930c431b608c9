"""Sealing and forgetting: what a record costs, how fast SM4-GCM is, how soon a forgotten user is unreadable."""
import json
import os
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def rows():
    """What the example prints. It is built fully optimised, as the server is."""
    # Beside the build, because a temporary folder may lie in memory, where a sync costs nothing.
    disk = os.environ.get("MILLRACE_FIGURES_DIR") or pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    with tempfile.TemporaryDirectory(prefix="millrace-seal-", dir=disk) as folder:
        command = ["cargo", "run", "--release", "--quiet", "-p", "millrace-storage", "--example", "seal", "--", f"{folder}/store"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def figures(show, wanted, lower):
    names = ("storage.seal.aes_core_pct", "storage.seal.sm4_core_pct", "storage.seal.sm4_gcm_mb_s", "storage.shred.p50_ms", "storage.shred.p99_ms")
    if not wanted(*names):
        return
    found = rows()
    records = {row["suite"]: row for row in found if row["test"] == "record"}
    speeds = {row["bytes"]: row["mb_s"] for row in found if row["test"] == "sm4_gcm"}
    shred = next(row for row in found if row["test"] == "shred")
    show("storage.seal.aes_core_pct", records["intl"]["core_pct"], "%", 9, better=lower)
    show("storage.seal.sm4_core_pct", records["gm"]["core_pct"], "%", None, better=lower)
    show("storage.seal.sm4_gcm_mb_s", speeds[16384], "MB/s", 400)
    show("storage.shred.p50_ms", shred["p50_ms"], "ms", None, better=lower)
    show("storage.shred.p99_ms", shred["p99_ms"], "ms", 10, better=lower)
