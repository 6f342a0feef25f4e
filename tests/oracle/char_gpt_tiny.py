"""Character-level GPT in plain PyTorch: LayerNorm, learned positions, erf GELU, biases everywhere but in QKV."""

import shared  # noqa: F401: tells of libraries that are missing

import torch
import torch.nn.functional as F

from oracle import Parameters, Spec, f32, make_golden

SPEC = Spec("char-gpt-tiny")
VOCAB, DIM = SPEC["tokens_embedding"]["vocab_size"], SPEC["tokens_embedding"]["dim"]
HEADS, HEAD_DIM = SPEC["attention"]["heads"], SPEC["attention"]["head_dim"]


def draw_parameters():
    p = Parameters(seed=5)
    p.normal("embedding.tokens_embedding.weight", VOCAB, DIM, std=1.0)
    p.normal("embedding.positions_embedding.weight", SPEC["positions_embedding"]["context"], DIM, std=0.5)
    for i in range(SPEC.layers):
        p.norm(f"block.{i}.attn_norm", DIM, bias=True)
        p.linear(f"block.{i}.qkv", 3 * HEADS * HEAD_DIM, DIM)
        p.linear(f"block.{i}.proj", DIM, HEADS * HEAD_DIM, bias=True)
        p.norm(f"block.{i}.ffn_norm", DIM, bias=True)
        p.linear(f"block.{i}.up", SPEC["up"]["out_features"], DIM, bias=True)
        p.linear(f"block.{i}.down", DIM, SPEC["up"]["out_features"], bias=True)
    p.norm("head.final_norm", DIM, bias=True)
    p.linear("head.logits", VOCAB, DIM, bias=True)
    return p


def forward(p, tokens):
    def layer_norm(x, name):
        eps = f32(SPEC[name.split(".")[-1]]["eps"])
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    positions = p["embedding.positions_embedding.weight"][: tokens.shape[-1]]
    x = F.embedding(tokens, p["embedding.tokens_embedding.weight"]) + positions
    for i in range(SPEC.layers):
        h = linear(layer_norm(x, f"block.{i}.attn_norm"), f"block.{i}.qkv")
        q, k, v = h.unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(h, f"block.{i}.proj")
        h = F.gelu(linear(layer_norm(x, f"block.{i}.ffn_norm"), f"block.{i}.up"))
        x = x + linear(h, f"block.{i}.down")
    return linear(layer_norm(x, "head.final_norm"), "head.logits"), []


if __name__ == "__main__":
    make_golden(SPEC.name, VOCAB, draw_parameters(), forward, seed=4)
