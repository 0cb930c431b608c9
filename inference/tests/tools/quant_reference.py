#!/usr/bin/env python3
"""Writes data/quant_reference.json: one run of blocks of each storage format, and what they stand for.

    pip install numpy gguf
    quant_reference.py

Quants are random bits, scales are random half floats of a usual size; the `gguf` package decodes them. Bytes and
values (32-bit floats, little endian) are written as hexadecimal text.
"""
import json
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
ELEMENTS = 256
# Where the half floats of a block lie.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}


def main():
    random = np.random.default_rng(20260101)
    formats = {}
    for kind, halves in HALVES.items():
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ELEMENTS // elements, size), dtype=np.uint8)
        for at in halves:
            scale = random.uniform(-0.02, 0.02, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
        values = gguf.dequantize(blocks.reshape(1, -1), kind).astype("<f4")
        formats[kind.name] = {"bytes": blocks.tobytes().hex(), "values": values.tobytes().hex()}
    for kind, dtype in ((T.F16, np.float16), (T.BF16, None)):
        bits = random.normal(0, 1, ELEMENTS).astype(np.float32)
        stored = bits.astype(np.float16).view(np.uint8) if dtype else (bits.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        values = gguf.dequantize(stored.reshape(1, -1), kind).astype("<f4")
        formats[kind.name] = {"bytes": stored.tobytes().hex(), "values": values.tobytes().hex()}
    text = ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in formats.items())
    (DATA / "quant_reference.json").write_text("{\n" + text + "\n}\n")


main()
