"""Writes minilm_reference.json: sentence vectors by an implementation that shares nothing with ours.

    python -m venv venv && venv/bin/pip install "transformers==4.46.3" "jax[cpu]<0.5" "flax<0.11" "numpy<2.2"
    venv/bin/python minilm_reference.py MODEL_FOLDER > ../data/minilm_reference.json

Tokenizer: Hugging Face tokenizers. Network: Flax BERT in float32. Pooling as sentence-transformers defines it: mean over
all tokens of at most 256, then length one.
"""
import json
import sys

import numpy as np
from transformers import AutoTokenizer, FlaxBertModel

TEXTS = [
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "A man is eating food.",
    "Someone is having a meal.",
    "My favourite colour is teal and I live in Lisbon.",
    "SELECT name FROM users WHERE id = 42; -- O'Brien's café",
    "今天天气很好，我们去公园散步吧。",
    "日本語のテキストと English mixed 123",
    "I love this! 😍🚀 Can't wait… 👩‍👩‍👧‍👦",
    "naïve façade Ångström ÜBER straße",
    "",
    " ".join(f"Sentence number {i} talks about rivers, mills and the weather of day {i * 7 % 31}." for i in range(60)),
    "x" * 150 + " antidisestablishmentarianism",
]


def main(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = FlaxBertModel.from_pretrained(folder, from_pt=True, dtype="float32")
    cases = []
    for text in TEXTS:
        batch = tokenizer(text, truncation=True, max_length=256, return_tensors="np")
        hidden = np.asarray(model(**batch).last_hidden_state)[0].astype(np.float64)
        vector = hidden.mean(axis=0)
        vector /= np.linalg.norm(vector)
        cases.append({
            "text": text,
            "ids": batch["input_ids"][0].tolist(),
            "vector": [round(float(x), 7) for x in vector],
        })
    json.dump({"model": "all-MiniLM-L6-v2", "tool": "transformers 4.46.3, Flax, float32", "cases": cases}, sys.stdout,
              ensure_ascii=False)


main(sys.argv[1])
