"""Mixture-of-experts transformer in plain PyTorch: MQA, interleaved NTK RoPE, auxiliary loss and z-loss."""

import torch
import torch.nn.functional as F

from oracle import Parameters, Spec, check_routing, f32, make_golden

SPEC = Spec("moe-ntk-tiny")
VOCAB, DIM = SPEC["tokens_embedding"]["vocab_size"], SPEC["tokens_embedding"]["dim"]
EXPERTS, TOP_K, HIDDEN = SPEC["gate"]["out_features"], SPEC["router"]["top_k"], SPEC["gate_up"]["out_features"] // 2
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


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + f32(eps)) * weight


def rope(x):
    """Rotates the pairs (2i, 2i+1) of x[B, heads, S, d] as complex numbers."""
    d, attrs = x.shape[-1], SPEC["rope"]
    base = attrs["base"] * attrs["ntk_alpha"] ** (d / (d - 2))
    frequency = base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequency)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def attention(x, qkv_weight):
    """Causal attention of x[B, S, D] with its scores written out; every query head reads the one key/value head."""
    heads = F.linear(x, qkv_weight).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
    q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    scores = rope(q) @ rope(k).transpose(-1, -2) / HEAD_DIM**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)


def moe(x, gate_weight, gate_up_weight, down_weight):
    """x[T, D] -> the mixture of its top-k experts [T, D], auxiliary loss, z-loss."""
    logits = F.linear(x, gate_weight)
    probs = logits.softmax(-1)
    check_routing(probs, TOP_K)
    weights, experts = probs.topk(TOP_K, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        gate, up = F.linear(x, gate_up_weight[e]).unflatten(-1, (-1, 2)).unbind(-1)
        share = (weights * (experts == e)).sum(-1, keepdim=True)
        y = y + share * F.linear(F.silu(gate) * up, down_weight[e])
    fraction = torch.bincount(experts.flatten(), minlength=EXPERTS) / experts.numel()
    aux_loss = f32(SPEC["aux_loss"]["coefficient"]) * EXPERTS * (fraction * probs.mean(0)).sum()
    z_loss = f32(SPEC["z_loss"]["coefficient"]) * logits.logsumexp(-1).square().mean()
    return y, aux_loss, z_loss


def forward(p, tokens):
    x, losses = F.embedding(tokens, p["embedding.tokens_embedding.weight"]), []
    for i in range(SPEC.layers):
        weight = lambda node: p[f"block.{i}.{node}.weight"]
        h = rms_norm(x, weight("attn_norm"), SPEC["attn_norm"]["eps"])
        x = x + F.linear(attention(h, weight("qkv")), weight("proj"))
        h = rms_norm(x, weight("ffn_norm"), SPEC["ffn_norm"]["eps"])
        y, *aux = moe(h.flatten(0, 1), weight("gate"), weight("gate_up"), weight("down"))
        x, losses = x + y.view_as(x), losses + aux
    x = rms_norm(x, p["head.final_norm.weight"], SPEC["final_norm"]["eps"])
    return F.linear(x, p["head.logits.weight"]), losses


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    make_golden(SPEC.name, VOCAB, draw_parameters(), forward, seed=3)
