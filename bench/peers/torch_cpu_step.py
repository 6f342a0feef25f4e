"""Times whole training steps of char-gpt and moe-tiny (schema/examples) in PyTorch on a CPU, in fp32.

A step draws its batch and does forward, backward, clipping (moe-tiny) and a fused AdamW. Prints the median step of
the fastest of several rounds, and the fastest step. Needs torch; torch.compile needs a C++ compiler.

    torch_cpu_step.py [--threads 1 2 --steps 100 --rounds 3 --models char-gpt moe-tiny --modes eager compile]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import reading  # noqa: E402, F401: tells of libraries that are missing

import torch
import torch.nn.functional as F
from torch import nn

import torch_char_gpt

VOCAB, DIM, LAYERS, HEADS, HEAD_DIM = 1000, 64, 2, 4, 16
EXPERTS, TOP_K, HIDDEN, AUX_COEFFICIENT = 4, 2, 256, 0.01
BATCH, SEQ = 8, 128


def weight(*shape):
    return nn.Parameter(torch.randn(shape) * 0.02)


class Attention(nn.Module):
    """Causal attention of four query heads over one key/value head, with interleaved RoPE."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = weight((HEADS + 2) * HEAD_DIM, DIM), weight(DIM, HEADS * HEAD_DIM)
        angle = torch.outer(torch.arange(SEQ), 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rope(self, x):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * self.cos - odd * self.sin, odd * self.cos + even * self.sin), -1).flatten(-2)

    def forward(self, x):
        heads = F.linear(x, self.qkv).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        q, k, v = heads.split((HEADS, 1, 1), dim=1)
        k, v = (t.expand(-1, HEADS, -1, -1) for t in (self.rope(k), v))
        y = F.scaled_dot_product_attention(self.rope(q), k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).flatten(2), self.proj)


class Moe(nn.Module):
    """Dropless mixture of SwiGLU experts over rows sorted by expert; returns its auxiliary loss, too."""

    def __init__(self):
        super().__init__()
        self.gate = weight(EXPERTS, DIM)
        self.gate_up, self.down = weight(EXPERTS, 2 * HIDDEN, DIM), weight(EXPERTS, DIM, HIDDEN)

    def forward(self, x):
        flat = x.flatten(0, 1)
        probs = F.linear(flat, self.gate).softmax(-1)
        weights, experts = probs.topk(TOP_K, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        order = experts.flatten().argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        counts = torch.bincount(experts.flatten(), minlength=EXPERTS)
        rows = flat.index_select(0, order // TOP_K)
        rows = torch.cat([self.expert(e, part) for e, part in enumerate(rows.split(counts.tolist()))])
        y = (rows.index_select(0, inverse).unflatten(0, (-1, TOP_K)) * weights[..., None]).sum(1)
        aux_loss = AUX_COEFFICIENT * EXPERTS * (counts / len(order) * probs.mean(0)).sum()
        return y.view_as(x), aux_loss

    def expert(self, e, rows):
        gate, up = F.linear(rows, self.gate_up[e]).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down[e])


class MoeTiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.logits = weight(VOCAB, DIM), weight(VOCAB, DIM)
        self.norms = nn.ParameterList([torch.ones(DIM) for _ in range(2 * LAYERS + 1)])
        self.attention = nn.ModuleList([Attention() for _ in range(LAYERS)])
        self.moe = nn.ModuleList([Moe() for _ in range(LAYERS)])

    def forward(self, tokens, targets):
        norm = lambda x, i: F.rms_norm(x, (DIM,), self.norms[i], 1e-6)
        x, loss = F.embedding(tokens, self.embedding), 0.0
        for i in range(LAYERS):
            x = x + self.attention[i](norm(x, 2 * i))
            y, aux_loss = self.moe[i](norm(x, 2 * i + 1))
            x, loss = x + y, loss + aux_loss
        return loss + F.cross_entropy(F.linear(norm(x, -1), self.logits).flatten(0, 1), targets.flatten())


def char_gpt_step(compiled):
    model = torch_char_gpt.CharGpt(vocab_size=74)
    data = torch.randint(74, (187036,))
    return make_step(model, compiled, torch_char_gpt.make_optimizer(model), None,
                     lambda: torch_char_gpt.random_batch(data))


def moe_tiny_step(compiled):
    model = MoeTiny()
    data = torch.randint(256, (1115394,))
    groups = [
        dict(params=[p for p in model.parameters() if p.dim() > 1], weight_decay=0.1),
        dict(params=[p for p in model.parameters() if p.dim() == 1], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), fused=True)
    return make_step(model, compiled, optimizer, 1.0, lambda: torch_char_gpt.random_batch(data, BATCH, SEQ))


def make_step(model, compiled, optimizer, clip_norm, batch):
    run = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad()
        run(*batch()).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()

    return step


def time_ms(step, steps):
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begin))
    return times


BUILDERS = {"char-gpt": char_gpt_step, "moe-tiny": moe_tiny_step}


def warm_step(model, mode):
    """A function that does one step; the first ones, which compile and fill the caches, are done."""
    torch.manual_seed(0)
    step = BUILDERS[model](mode == "compile")
    for _ in range(20):
        step()
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument("--modes", nargs="+", choices=("eager", "compile"), default=["eager", "compile"])
    args = parser.parse_args()
    for model in args.models:
        for mode in args.modes:
            for threads in args.threads:
                torch.set_num_threads(threads)
                torch.compiler.reset()
                step = warm_step(model, mode)
                rounds = [time_ms(step, args.steps) for _ in range(args.rounds)]
                medians = [statistics.median(times) for times in rounds]
                print(f"{model:9} {mode:8} {threads} threads: {min(medians):7.3f} ms/step (medians "
                      f"{', '.join(f'{ms:.3f}' for ms in medians)}; fastest step {min(map(min, rounds)):.3f})",
                      flush=True)


if __name__ == "__main__":
    main()
