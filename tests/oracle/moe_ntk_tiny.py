"""Mixture-of-experts transformer in plain PyTorch: MQA, interleaved NTK RoPE, auxiliary loss and z-loss."""

import shared  # noqa: F401: tells of libraries that are missing

import torch

import moe
from oracle import Spec, check_routing, make_golden

SPEC = Spec("moe-ntk-tiny")
VOCAB = SPEC["tokens_embedding"]["vocab_size"]


def forward(p, tokens):
    return moe.forward(SPEC, p, tokens, check_routing)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    make_golden(SPEC.name, VOCAB, moe.draw_parameters(SPEC, seed=11), forward, seed=3)
