"""Mixture-of-experts transformer in plain PyTorch, for specs whose blocks are those of schema/examples/moe-tiny.json.

Every expert computes every token, and attention writes its scores out: slow, and simple to check. Parameters and what an
op returns have one type; arithmetic beside bf16 is in f32, as are the router's logits and probabilities.
"""

import torch
import torch.nn.functional as F

from oracle import Parameters, f32


def draw_parameters(spec, seed):
    """fp64 parameters for a spec whose LM head is not tied."""
    vocab, dim = spec["tokens_embedding"]["vocab_size"], spec["tokens_embedding"]["dim"]
    experts, hidden = spec["gate"]["out_features"], spec["gate_up"]["out_features"] // 2
    heads, kv_heads, head_dim = (spec["attention"][key] for key in ("heads", "kv_heads", "head_dim"))
    p = Parameters(seed)
    p.normal("embedding.tokens_embedding.weight", vocab, dim, std=1.0)
    for i in range(spec.layers):
        p.norm(f"block.{i}.attn_norm", dim)
        p.linear(f"block.{i}.qkv", (heads + 2 * kv_heads) * head_dim, dim)
        p.linear(f"block.{i}.proj", dim, heads * head_dim)
        p.norm(f"block.{i}.ffn_norm", dim)
        p.linear(f"block.{i}.gate", experts, dim)
        p.linear(f"block.{i}.gate_up", experts, 2 * hidden, dim)
        p.linear(f"block.{i}.down", experts, dim, hidden)
    p.norm("head.final_norm", dim)
    p.linear("head.logits", vocab, dim)
    return p


def wide(x):
    """x in the type that arithmetic is in."""
    return x.float() if x.dtype == torch.bfloat16 else x


def rms_norm(x, weight, eps):
    y = wide(x) * torch.rsqrt(wide(x).square().mean(-1, keepdim=True) + f32(eps)) * wide(weight)
    return y.to(x.dtype)


def rope(x, attrs):
    """Rotates the pairs (2i, 2i+1) of x[B, heads, S, d] as complex numbers."""
    assert attrs.get("style", "Interleaved") == "Interleaved"
    d = x.shape[-1]
    base = attrs.get("base", 10000) * attrs.get("ntk_alpha", 1) ** (d / (d - 2))
    frequency = base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequency)
    pairs = torch.view_as_complex(wide(x).unflatten(-1, (-1, 2)).contiguous())
    turn = torch.polar(torch.ones_like(angle), angle).to(pairs)
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def attention(qkv, spec):
    """Causal attention with its scores written out; query head h reads key/value head h * K / H."""
    heads, kv_heads, head_dim = (spec["attention"][key] for key in ("heads", "kv_heads", "head_dim"))
    parts = qkv.unflatten(-1, (-1, head_dim)).transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
    q, k, v = rope(parts[0], spec["rope"]), rope(parts[1], spec["rope"]), parts[2]
    k, v = (wide(t).repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
    scores = wide(q) @ k.transpose(-1, -2) / head_dim**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2).to(qkv.dtype)


def expert(x, gate_up_weight, down_weight):
    """SwiGLU of x[T, D] with gate and up interleaved, projected down."""
    gate, up = wide(F.linear(x, gate_up_weight)).unflatten(-1, (-1, 2)).unbind(-1)
    return F.linear((F.silu(gate) * up).to(x.dtype), down_weight)


def mixture(x, gate_weight, gate_up_weight, down_weight, spec, check_routing):
    """x[T, D] -> the mixture of its top-k experts [T, D], auxiliary losses."""
    experts, top_k = len(gate_weight), spec["router"]["top_k"]
    logits = F.linear(wide(x), wide(gate_weight))
    probs = logits.softmax(-1)
    check_routing(probs, top_k)
    weights, chosen = probs.topk(top_k, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    y = torch.zeros_like(wide(x))
    for e in range(experts):
        share = (weights * (chosen == e)).sum(-1, keepdim=True)
        y = y + share * expert(x, gate_up_weight[e], down_weight[e])
    fraction = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    losses = [f32(spec["aux_loss"]["coefficient"]) * experts * (fraction * probs.mean(0)).sum()]
    if "z_loss" in spec.nodes:
        losses.append(f32(spec["z_loss"]["coefficient"]) * logits.logsumexp(-1).square().mean())
    return y.to(x.dtype), losses


def forward(spec, p, tokens, check_routing=lambda probs, top_k: None):
    """Parameters p and tokens[B, S] -> logits[B, S, V], auxiliary losses; `check_routing` sees all probabilities."""
    x, losses = F.embedding(tokens, p["embedding.tokens_embedding.weight"]), []
    for i in range(spec.layers):
        weight = lambda node: p[f"block.{i}.{node}.weight"]
        h = rms_norm(x, weight("attn_norm"), spec["attn_norm"]["eps"])
        x = x + F.linear(attention(F.linear(h, weight("qkv")), spec), weight("proj"))
        h = rms_norm(x, weight("ffn_norm"), spec["ffn_norm"]["eps"])
        y, aux = mixture(h.flatten(0, 1), weight("gate"), weight("gate_up"), weight("down"), spec, check_routing)
        x, losses = x + y.view_as(x), losses + aux
    x = rms_norm(x, p["head.final_norm.weight"], spec["final_norm"]["eps"])
    return F.linear(x, p[spec["logits"].get("tied_to", "head.logits.weight")]), losses
