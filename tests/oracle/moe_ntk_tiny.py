"""Mixture-of-experts transformer in plain PyTorch: MQA, interleaved NTK RoPE, auxiliary loss and z-loss."""

import torch

import moe
from oracle import Parameters, Spec, check_routing, make_golden

SPEC = Spec("moe-ntk-tiny")
VOCAB, DIM = SPEC["tokens_embedding"]["vocab_size"], SPEC["tokens_embedding"]["dim"]
EXPERTS, HIDDEN = SPEC["gate"]["out_features"], SPEC["gate_up"]["out_features"] // 2
HEADS, KV_HEADS, HEAD_DIM = (SPEC["attention"][key] for key in ("heads", "kv_heads", "head_dim"))


def draw_parameters():
    p = Parameters(seed=11)
    p.normal("embedding.tokens_embedding.weight", VOCAB, DIM, std=1.0)
    for i in range(SPEC.layers):
        p.norm(f"block.{i}.attn_norm", DIM)
        p.linear(f"block.{i}.qkv", (HEADS + 2 * KV_HEADS) * HEAD_DIM, DIM)
        p.linear(f"block.{i}.proj", DIM, HEADS * HEAD_DIM)
        p.norm(f"block.{i}.ffn_norm", DIM)
        p.linear(f"block.{i}.gate", EXPERTS, DIM)
        p.linear(f"block.{i}.gate_up", EXPERTS, 2 * HIDDEN, DIM)
        p.linear(f"block.{i}.down", EXPERTS, DIM, HIDDEN)
    p.norm("head.final_norm", DIM)
    p.linear("head.logits", VOCAB, DIM)
    return p


def forward(p, tokens):
    return moe.forward(SPEC, p, tokens, check_routing)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    make_golden(SPEC.name, VOCAB, draw_parameters(), forward, seed=3)
