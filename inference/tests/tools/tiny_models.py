#!/usr/bin/env python3
"""Writes tiny random models of every supported architecture, and what transformers makes of them.

    pip install torch transformers gguf
    tiny_models.py FOLDER [--seed N]

For each model: NAME.gguf, laid out as llama.cpp's converter does it, and NAME.logits, the logits of transformers in
32-bit floats with eager attention: one row (vocabulary, little endian) for each token of each prompt of models.json.
Weights are random with a spread that makes every part matter, rounded to half floats, which is how matrices are stored.
Keys and values are rounded to half floats too, because the engine keeps them so: what is left must be tiny.
"""
import argparse
import json
import math
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers as tf

VOCAB, WIDTH, FF = 72, 32, 32
SIZES = dict(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=FF, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=96, bos_token_id=None, eos_token_id=None,
             pad_token_id=None, attn_implementation="eager")
# Not a multiple of the 16 tokens of a block, and shorter than the longer prompt.
WINDOW = 21
ORIGINAL_CONTEXT = 24


def theta(base, **scaling):
    return {"rope_type": "default", "rope_theta": base, **scaling}


LLAMA3 = theta(500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=ORIGINAL_CONTEXT)
YARN = theta(10000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=ORIGINAL_CONTEXT)
LONGROPE = theta(10000.0, rope_type="longrope", short_factor=[1.0, 1.1, 1.3, 1.7], long_factor=[1.2, 1.9, 3.0, 4.0],
                 original_max_position_embeddings=ORIGINAL_CONTEXT, partial_rotary_factor=0.5)
GEMMA3_ROPE = {"full_attention": theta(1000000.0, rope_type="linear", factor=8.0), "sliding_attention": theta(10000.0)}
EXPERTS = dict(num_experts_per_tok=2, num_attention_heads=2, num_key_value_heads=1)

# name: (GGUF architecture, configuration, model, what differs from SIZES)
MODELS = {
    "llama": ("llama", tf.LlamaConfig, tf.LlamaForCausalLM, dict(rope_parameters=LLAMA3, tie_word_embeddings=False)),
    "llama-bias": ("llama", tf.LlamaConfig, tf.LlamaForCausalLM, dict(
        rope_parameters=theta(10000.0, rope_type="linear", factor=4.0), attention_bias=True, tie_word_embeddings=True)),
    "mistral": ("llama", tf.MistralConfig, tf.MistralForCausalLM, dict(
        rope_parameters=theta(10000.0), sliding_window=WINDOW)),
    "mixtral": ("llama", tf.MixtralConfig, tf.MixtralForCausalLM, dict(
        rope_parameters=theta(1000000.0), num_local_experts=4, sliding_window=None, **EXPERTS)),
    "qwen2": ("qwen2", tf.Qwen2Config, tf.Qwen2ForCausalLM, dict(rope_parameters=theta(1000000.0))),
    "qwen2-yarn": ("qwen2", tf.Qwen2Config, tf.Qwen2ForCausalLM, dict(rope_parameters=YARN)),
    "qwen3": ("qwen3", tf.Qwen3Config, tf.Qwen3ForCausalLM, dict(
        rope_parameters=theta(1000000.0), head_dim=32, num_attention_heads=2, num_key_value_heads=1)),
    "qwen3moe": ("qwen3moe", tf.Qwen3MoeConfig, tf.Qwen3MoeForCausalLM, dict(
        rope_parameters=theta(1000000.0), num_experts=5, moe_intermediate_size=32, intermediate_size=96,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], **EXPERTS)),
    "phi3": ("phi3", tf.Phi3Config, tf.Phi3ForCausalLM, dict(
        rope_parameters=LONGROPE, original_max_position_embeddings=ORIGINAL_CONTEXT, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=40)),
    "gemma2": ("gemma2", tf.Gemma2Config, tf.Gemma2ForCausalLM, dict(
        rope_parameters=theta(10000.0), sliding_window=WINDOW, query_pre_attn_scalar=16, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0)),
    "gemma3": ("gemma3", tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, dict(
        rope_parameters=GEMMA3_ROPE, sliding_window=WINDOW, query_pre_attn_scalar=16, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=1)),
}

# transformers' name of a part, below model.layers.N, and GGUF's, below blk.N
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp",
}
GEMMA_PARTS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def randomise(model, gemma):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_((0.0 if gemma else 1.0) + 0.2 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.5 * torch.randn_like(weight))
            else:
                spread = 1.0 if "embed" in name else 1.5 / math.sqrt(weight.shape[-1])
                weight.copy_((spread * torch.randn_like(weight)).half().float())


def store_keys_and_values_as_halves(model):
    module = sys.modules[type(model).__module__]
    attend = module.eager_attention_forward

    def rounded(layer, query, key, value, *rest, **named):
        return attend(layer, query, key.half().float(), value.half().float(), *rest, **named)

    module.eager_attention_forward = rounded


def permuted(weight, heads):
    """Llama's pairs lie side by side in GGUF, half a head apart in transformers."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(rope, dim):
    factors = []
    for frequency in rope["rope_theta"] ** (-np.arange(0, dim, 2) / dim):
        length, context = 2 * math.pi / frequency, rope["original_max_position_embeddings"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(1.0, max(0.0, (context / length - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors)


def tensors(arch, config, model):
    gemma = arch.startswith("gemma")
    for name, weight in model.state_dict().items():
        data = weight.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if gemma and "norm" in name:
            data = data + 1
        base, _, kind = name.rpartition(".")
        if base in TOP:
            yield f"{TOP[base]}.{kind}", data
            continue
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        if part.startswith("mlp.experts."):
            if part.endswith("gate_up_proj"):
                half = data.shape[1] // 2
                yield f"blk.{layer}.ffn_gate_exps.weight", data[:, :half]
                yield f"blk.{layer}.ffn_up_exps.weight", data[:, half:]
            else:
                yield f"blk.{layer}.ffn_down_exps.weight", data
            continue
        part, _, kind = part.rpartition(".")
        if arch == "llama" and part.endswith((".q_proj", ".k_proj")):
            q = part.endswith("q_proj")
            data = permuted(data, config.num_attention_heads if q else config.num_key_value_heads)
        names = PARTS | GEMMA_PARTS if gemma else PARTS
        yield f"blk.{layer}.{names[part]}.{kind}", data
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", llama3_factors(config.rope_parameters, config.head_dim)
    if arch == "phi3":
        for which in ("long", "short"):
            yield f"rope_factors_{which}.weight", np.array(config.rope_parameters[f"{which}_factor"])


def write(path, arch, config, model):
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    w.add_rope_freq_base(rope["rope_theta"])
    if arch in ("llama", "phi3"):
        w.add_rope_dimension_count(int(config.head_dim * rope.get("partial_rotary_factor", 1.0)))
    if arch != "phi3":
        w.add_key_length(config.head_dim)
        w.add_value_length(config.head_dim)
    if rope["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] in ("yarn", "longrope"):
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / ORIGINAL_CONTEXT
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(ORIGINAL_CONTEXT)))
    if arch in ("llama", "phi3", "gemma2", "gemma3") and getattr(config, "sliding_window", None):
        w.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        w.add_attn_logit_softcapping(config.attn_logit_softcapping)
        w.add_final_logit_softcapping(config.final_logit_softcapping)
    if experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        w.add_expert_count(experts)
        w.add_expert_used_count(config.num_experts_per_tok)
    if width := getattr(config, "moe_intermediate_size", None):
        w.add_expert_feed_forward_length(width)
    for name, data in tensors(arch, config, model):
        plain = data.ndim == 1 or "ffn_gate_inp" in name
        w.add_tensor(name, np.ascontiguousarray(data.astype(np.float32 if plain else np.float16)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for name, (arch, make_config, make_model, differences) in MODELS.items():
        torch.manual_seed(arguments.seed)
        config = make_config(**SIZES | differences)
        model = make_model(config).eval()
        randomise(model, arch.startswith("gemma"))
        store_keys_and_values_as_halves(model)
        write(arguments.folder / f"{name}.gguf", arch, config, model)
        # One prompt within the original context, and one beyond windows and that context.
        prompts = [torch.randint(VOCAB, (length,)).tolist() for length in (ORIGINAL_CONTEXT - 3, 50)]
        with torch.no_grad():
            rows = [model(torch.tensor([prompt])).logits[0].numpy() for prompt in prompts]
        np.concatenate(rows).astype("<f4").tofile(arguments.folder / f"{name}.logits")
        spread = float(np.concatenate(rows).std())
        contexts = [ORIGINAL_CONTEXT, config.max_position_embeddings]
        index[name] = [{"tokens": prompt, "context": context} for prompt, context in zip(prompts, contexts)]
        print(f"{name}: logits spread {spread:.2f}, {(arguments.folder / f'{name}.gguf').stat().st_size} bytes")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(prompts)}" for name, prompts in index.items())
    (arguments.folder / "models.json").write_text("{\n" + lines + "\n}\n")


main()
