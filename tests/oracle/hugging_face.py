"""Runs transformers' models in fp64 on moec's parameters."""

import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode


class DoubleForFloat(TorchFunctionMode):
    """Makes every request for float32 one for float64.

    transformers computes norms, router softmaxes and rotations in float32 whatever the model's type is.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        double = lambda value: torch.float64 if value is torch.float32 else value
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(double, args), **{key: double(value) for key, value in (kwargs or {}).items()})


def build(model_class, config):
    """An fp64 model; its own weights are never used."""
    torch.set_default_dtype(torch.float64)
    with DoubleForFloat():
        return model_class(config).train()


def run(model, state, tokens, **options):
    """Calls the model with the tensors of `state`, which must name every parameter it has."""
    missing = {name for name, _ in model.named_parameters()} ^ state.keys()
    assert not missing, f"parameters do not correspond: {sorted(missing)}"
    with DoubleForFloat():
        return functional_call(model, state, (tokens,), options)


def attention_state(p, block, layer, heads, kv_heads, head_dim):
    """transformers' names for the attention and norms of a block; the packed qkv split into its three parts."""
    rows = [n * head_dim for n in (heads, kv_heads, kv_heads)]
    state = {
        f"{layer}.input_layernorm.weight": p[f"{block}.attn_norm.weight"],
        f"{layer}.post_attention_layernorm.weight": p[f"{block}.ffn_norm.weight"],
        f"{layer}.self_attn.o_proj.weight": p[f"{block}.proj.weight"],
    }
    for kind in ("weight", "bias"):
        if f"{block}.qkv.{kind}" in p:
            parts = p[f"{block}.qkv.{kind}"].split(rows)
            state |= {f"{layer}.self_attn.{part}_proj.{kind}": value for part, value in zip("qkv", parts)}
    return state


def deinterleave(gate_up):
    """[..., 2F, I] with gate rows 2j and up rows 2j+1 -> gate[..., F, I], up[..., F, I]."""
    return gate_up.unflatten(-2, (-1, 2)).unbind(-2)
