#!/usr/bin/env python3
"""Writes data/llama_exact.json, and with --perplexity the sums in data/perplexity.json: what the weights of the model
say when nothing is rounded.

    pip install numpy gguf
    exact_reference.py MODEL.gguf [--perplexity]

An engine that rounds activations to 8 bits cannot be judged by another that rounds them too: their difference is the
sum of two errors. This is the network itself, written plainly from the architecture's definition in 64-bit floats over
weights that the `gguf` package unpacks. It walks the prompts and greedy replies of data/llama_reference.json and
records, for each step of a reply, the best token, its lead over the second best, and the log-probability of the token
that the reference took; and for the first step those of the reference's five candidates.
"""
import json
import pathlib
import sys

import gguf
import numpy as np

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"


class Network:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        field = lambda name: reader.fields[f"llama.{name}"].contents()
        self.layers, self.heads, self.kv_heads = (field(n) for n in ("block_count", "attention.head_count", "attention.head_count_kv"))
        self.epsilon, self.theta = field("attention.layer_norm_rms_epsilon"), field("rope.freq_base")
        self.weights = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * self.weights[name]

    def rotate(self, x):
        """Pairs of neighbours turn by position x theta^(-2i/d): the order in which GGUF stores llama's rows."""
        length, _, width = x.shape
        angle = np.arange(length)[:, None] * self.theta ** (-np.arange(0, width, 2) / width)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def logits(self, tokens):
        """Of every position; tokens are walked all at once."""
        w, length = self.weights, len(tokens)
        x = w["token_embd.weight"][tokens]
        causal = np.triu(np.full((length, length), -np.inf), 1)
        for layer in range(self.layers):
            at = lambda name: w[f"blk.{layer}.{name}.weight"]
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            q = self.rotate((h @ at("attn_q").T).reshape(length, self.heads, -1))
            k = self.rotate((h @ at("attn_k").T).reshape(length, self.kv_heads, -1))
            v = (h @ at("attn_v").T).reshape(length, self.kv_heads, -1)
            k, v = (np.repeat(t, self.heads // self.kv_heads, 1) for t in (k, v))
            score = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1]) + causal
            score = np.exp(score - score.max(-1, keepdims=True))
            mixed = np.einsum("hqk,khd->qhd", score / score.sum(-1, keepdims=True), v)
            x = x + mixed.reshape(length, -1) @ at("attn_output").T
            h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            gate = h @ at("ffn_gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ at("ffn_up").T)) @ at("ffn_down").T
        head = w.get("output.weight", w["token_embd.weight"])
        return self.norm(x, "output_norm.weight") @ head.T


def main():
    network = Network(sys.argv[1])
    reference = json.loads((DATA / "llama_reference.json").read_text())
    cases = []
    for case in reference["cases"]:
        prompt, reply = case["prompt_ids"], case["output_ids"]
        logits = network.logits(prompt + reply[:-1])[len(prompt) - 1 :]
        top = logits.max(-1, keepdims=True)
        logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        second, first = np.sort(logits, -1)[:, -2:].T
        cases.append({
            "best": [int(t) for t in logits.argmax(-1)],
            "lead": [round(float(x), 5) for x in first - second],
            "logprob": [round(float(row[t]), 5) for row, t in zip(logprobs, reply)],
            "first_logprobs": [round(float(logprobs[0, t["id"]]), 5) for t in case["first_token_top5"]],
        })
        print(len(cases), "of", len(reference["cases"]), file=sys.stderr)
    text = ",\n".join(json.dumps(case) for case in cases)
    (DATA / "llama_exact.json").write_text(f'{{"cases": [\n{text}\n]}}\n')


def perplexity():
    """Sum of the negative log-probabilities in the second half of each chunk of data/perplexity.json."""
    network = Network(sys.argv[1])
    record = json.loads((DATA / "perplexity.json").read_text())
    size, ids = record["chunk"], record["ids"]
    sums = []
    for start in range(0, len(ids), size):
        chunk = ids[start : start + size]
        logits = network.logits(chunk)[size // 2 : -1]
        top = logits.max(-1, keepdims=True)
        logprobs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        sums.append(round(-sum(float(row[t]) for row, t in zip(logprobs, chunk[size // 2 + 1 :])), 5))
        print(sums[-1], file=sys.stderr)
    record["exact_nll"], record["ids"] = sums, None
    text = json.dumps(record, indent=1).replace('"ids": null', f'"ids": {json.dumps(ids)}')
    (DATA / "perplexity.json").write_text(text + "\n")


perplexity() if "--perplexity" in sys.argv else main()
