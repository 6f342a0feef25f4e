"""Qwen2 as transformers computes it: GQA with biased QKV, rotate-half RoPE, dense SwiGLU, tied LM head."""

import shared  # noqa: F401: tells of libraries that are missing

from transformers import Qwen2Config, Qwen2ForCausalLM

import hugging_face
from oracle import Parameters, Spec, f32, make_golden

SPEC = Spec("qwen2-tiny")
VOCAB, DIM = SPEC["tokens_embedding"]["vocab_size"], SPEC["tokens_embedding"]["dim"]
HIDDEN = SPEC["gate_up"]["out_features"] // 2
HEADS, KV_HEADS, HEAD_DIM = (SPEC["attention"][key] for key in ("heads", "kv_heads", "head_dim"))

MODEL = hugging_face.build(
    Qwen2ForCausalLM,
    Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=SPEC.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        tie_word_embeddings=True,
        rms_norm_eps=f32(SPEC["final_norm"]["eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": SPEC["rope"]["base"]},
    ),
)


def draw_parameters():
    p = Parameters(seed=9)
    p.normal("embedding.tokens_embedding.weight", VOCAB, DIM)
    for i in range(SPEC.layers):
        p.norm(f"block.{i}.attn_norm", DIM)
        p.linear(f"block.{i}.qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, DIM, bias=True)
        p.linear(f"block.{i}.proj", DIM, HEADS * HEAD_DIM)
        p.norm(f"block.{i}.ffn_norm", DIM)
        p.linear(f"block.{i}.gate_up", 2 * HIDDEN, DIM)
        p.linear(f"block.{i}.down", DIM, HIDDEN)
    p.norm("head.final_norm", DIM)
    return p


def transformers_state(p):
    state = {
        "model.embed_tokens.weight": p["embedding.tokens_embedding.weight"],
        "model.norm.weight": p["head.final_norm.weight"],
    }
    for i in range(SPEC.layers):
        block, layer = f"block.{i}", f"model.layers.{i}"
        state |= hugging_face.attention_state(p, block, layer, HEADS, KV_HEADS, HEAD_DIM)
        gate, up = hugging_face.deinterleave(p[f"{block}.gate_up.weight"])
        state[f"{layer}.mlp.gate_proj.weight"] = gate
        state[f"{layer}.mlp.up_proj.weight"] = up
        state[f"{layer}.mlp.down_proj.weight"] = p[f"{block}.down.weight"]
    return state


def forward(p, tokens):
    return hugging_face.run(MODEL, transformers_state(p), tokens).logits, []


if __name__ == "__main__":
    make_golden(SPEC.name, VOCAB, draw_parameters(), forward, seed=2)
