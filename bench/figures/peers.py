#!/usr/bin/env python3
"""Vector libraries on the rows of the search figures: one JSON line each, of the least effort that reaches a recall of 0.95,
with speed and recall of every effort up to RECALL beside it.

    peers.py FOLDER [RECALL]

One thread, by its processor time, so that other work on the machine does not count; all questions are handed over in one
call, so that Python takes no part. Graphs of 16 links and a build effort of
128 as ours; built with all threads and kept in FOLDER for the next run. A library that is not installed, or not among those of MILLRACE_PEERS, is left out.
"""
import json
import os
import pathlib
import sys
import time

import numpy

LINKS, BUILD_EFFORT, NEAREST, RECALL_MIN = 16, 128, 10, 0.95
EFFORTS = (16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048)
ROUNDS = 3


def recall(found, truth):
    return sum(len(set(row) & set(true)) for row, true in zip(found.tolist(), truth.tolist())) / truth.size


def curve(peer, search, questions, truth, build_s, wanted):
    """`search(effort)` gives the rows found. Speed and recall by effort, up to the first that suffices for both the goal and
    `wanted`; of each the best of some rounds counts."""
    points = []
    for effort in EFFORTS:
        right = recall(search(effort), truth)
        took = []
        for _ in range(ROUNDS):
            started = time.process_time()
            search(effort)
            took.append(time.process_time() - started)
        points.append({"effort": effort, "recall": round(right, 4), "qps": round(len(questions) / min(took), 1)})
        if right >= max(RECALL_MIN, wanted):
            break
    least = next((point for point in points if point["recall"] >= RECALL_MIN), points[-1])
    print(json.dumps({"peer": peer, **least, "build_s": build_s, "curve": points}), flush=True)


def timed(build):
    started = time.perf_counter()
    build()
    return round(time.perf_counter() - started, 1)


def with_hnswlib(folder, base, questions, truth, wanted):
    import hnswlib

    index, path, build_s = hnswlib.Index(space="ip", dim=base.shape[1]), folder / f"hnswlib-{len(base)}.bin", None
    if path.exists():
        index.load_index(str(path), max_elements=len(base))
    else:
        index.init_index(max_elements=len(base), M=LINKS, ef_construction=BUILD_EFFORT)
        build_s = timed(lambda: index.add_items(base, num_threads=os.cpu_count()))
        index.save_index(str(path))

    def search(effort):
        index.set_ef(effort)
        return index.knn_query(questions, k=NEAREST, num_threads=1)[0]

    curve("hnswlib", search, questions, truth, build_s, wanted)


def with_usearch(folder, base, questions, truth, wanted):
    from usearch.index import Index

    index, path, build_s = Index(ndim=base.shape[1], metric="ip", dtype="f32", connectivity=LINKS, expansion_add=BUILD_EFFORT), folder / f"usearch-{len(base)}.bin", None
    if path.exists():
        index.load(str(path))
    else:
        build_s = timed(lambda: index.add(numpy.arange(len(base)), base, threads=os.cpu_count()))
        index.save(str(path))

    def search(effort):
        index.expansion_search = effort
        return index.search(questions, NEAREST, threads=1).keys

    curve("usearch", search, questions, truth, build_s, wanted)


def with_faiss(folder, base, questions, truth, wanted):
    import faiss

    path, build_s = folder / f"faiss-{len(base)}.bin", None
    if path.exists():
        index = faiss.read_index(str(path))
    else:
        index = faiss.index_factory(base.shape[1], f"HNSW{LINKS},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_EFFORT
        index.train(base[:100_000])
        build_s = timed(lambda: index.add(base))
        faiss.write_index(index, str(path))
    faiss.omp_set_num_threads(1)

    def search(effort):
        index.hnsw.efSearch = effort
        return index.search(questions, NEAREST)[1]

    curve("faiss", search, questions, truth, build_s, wanted)


def main():
    folder = pathlib.Path(sys.argv[1])
    dim = json.loads((folder / "about.json").read_text())["dim"]
    base = numpy.fromfile(folder / "base.f32", dtype="<f4").reshape(-1, dim)
    questions = numpy.fromfile(folder / "questions.f32", dtype="<f4").reshape(-1, dim)
    truth = numpy.fromfile(folder / "truth.u32", dtype="<u4").reshape(-1, NEAREST)
    wanted = float(sys.argv[2]) if len(sys.argv) > 2 else RECALL_MIN
    chosen = os.environ.get("MILLRACE_PEERS", "hnswlib,usearch,faiss").split(",")
    for peer in (with_hnswlib, with_usearch, with_faiss):
        if peer.__name__.removeprefix("with_") not in chosen:
            continue
        try:
            peer(folder, base, questions, truth, wanted)
        except ImportError as missing:
            print(f"peers: {missing}", file=sys.stderr)


if __name__ == "__main__":
    main()
