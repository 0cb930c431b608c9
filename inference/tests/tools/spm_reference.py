#!/usr/bin/env python3
"""Writes data/spm_reference.json: a small SentencePiece BPE vocabulary and what sentencepiece makes of some texts.

    pip install sentencepiece protobuf
    spm_reference.py

The vocabulary is trained on this repository's README with byte fallback, once with and once without a space put in
front of texts (Llama, Mistral and Phi do that, Gemma does not), without any rewriting of texts, as those models have it.
Types are numbered as GGUF does it.
"""
import io
import json
import pathlib

import sentencepiece

HERE = pathlib.Path(__file__).resolve().parent
TEXTS = [
    "", " ", "  ", "a", " a", "Hello world", "Hello, world!", "  two  spaces  ", "line\nbreak\r\n\ttab", "naïve café",
    "The model memory is written to the queue.", "日本語のテキスト", "emoji 🦀🔥 and 👩‍💻", "Ünïcödé ẞ", "1234567890", "x" * 40,
    "mixed 中文 and English", "</s> <s> <unk> <|user|>", "before<|user|>after", "a\u2581b", "\u00a0nbsp\u3000wide",
    "\0\x01\x7f", "e\u0301 combining", "ends with space ", "aaaaaaaaab", "\U0010ffff", "the the the the the the",
]


def vocabulary(prefix):
    corpus = (HERE.parents[2] / "README.md").read_text().splitlines() + ["naïve café", "日本語 中文 テキスト"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, model_type="bpe", vocab_size=640, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        user_defined_symbols=["<|user|>"], character_coverage=1.0, split_digits=True, allow_whitespace_only_pieces=True,
        minloglevel=2)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def kind(i):
        flags = [(tokenizer.is_unknown, 2), (tokenizer.is_control, 3), (tokenizer.is_unused, 5), (tokenizer.is_byte, 6)]
        found = next((number for flag, number in flags if flag(i)), 1)
        return 4 if tokenizer.id_to_piece(i) == "<|user|>" else found

    ids = range(tokenizer.vocab_size())
    return {
        "add_space_prefix": prefix,
        "tokens": [tokenizer.id_to_piece(i) for i in ids],
        "scores": [tokenizer.get_score(i) for i in ids],
        "types": [kind(i) for i in ids],
        "texts": [{"text": text, "ids": tokenizer.encode(text)} for text in TEXTS],
    }


def line(value):
    return json.dumps(value, ensure_ascii=True)


result = [vocabulary(True), vocabulary(False)]
body = ",\n".join("{" + ",\n".join(f" {line(key)}: {line(value)}" for key, value in v.items()) + "}" for v in result)
(HERE.parent / "data" / "spm_reference.json").write_text("[" + body + "]\n")
