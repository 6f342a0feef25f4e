"""What the oracle's models share: reading a spec, drawing data and weights, training in fp64, the golden file.

A model is a dictionary of fp64 parameters under moec's names and in moec's layouts, and a function

    forward(parameters, tokens[B, S]) -> logits[B, S, V], [auxiliary losses, each with its coefficient]

that is differentiable in them. Where the model is another library's, `forward` rearranges the parameters into that
library's layouts, so that gradients and updates come out in moec's.
"""

import json
import math
from pathlib import Path

from shared import reading

import numpy as np
import torch

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
STEPS = 20


def f32(value):
    """An attribute that the spec stores as a FlatBuffers `float`, widened again."""
    return float(np.float32(value))


class Spec:
    """A model spec: the attributes of its nodes by name, and its recipe. Of schema/model.fbs' defaults, those of a recipe
    that a spec of this project leaves out."""

    def __init__(self, name, folder=HERE / "specs"):
        path = folder / f"{name}.json"
        with reading(path):
            model = json.loads(path.read_text())
            self.name = model["name"]
            self.recipe = {"grad_accum": 1, "weight_decay_scope": "Matrices", "seed": 1337} | model["recipe"]
            self.recipe["adamw"] = {"eps": 1e-8} | self.recipe["adamw"]
            self.layers = model["blocks"][1]["repeat"]
            self.nodes = {node["name"]: node["op"] for block in model["blocks"] for node in block["nodes"]}

    def __getitem__(self, node):
        return self.nodes[node]


class Parameters(dict):
    """fp64 leaves whose initial values are exactly representable in f32."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, name, *shape, mean=0.0, std=0.2):
        values = (mean + std * torch.randn(shape, generator=self.generator, dtype=torch.float64)).float()
        self[name] = values.double().requires_grad_()

    def norm(self, name, dim, bias=False):
        self.normal(f"{name}.weight", dim, mean=1.0, std=0.1)
        if bias:
            self.normal(f"{name}.bias", dim, std=0.1)

    def linear(self, name, *shape, bias=False):
        self.normal(f"{name}.weight", *shape)
        if bias:
            self.normal(f"{name}.bias", *shape[:-1], std=0.1)


def draw_stream(vocab_size, length, seed):
    """Tokens i32[length] that a model can learn: each follows from the last one by one of three rules."""
    rng = np.random.default_rng(seed)
    stream = np.zeros(length, dtype=np.int32)
    for i, noise in enumerate(rng.integers(0, 3, length - 1)):
        stream[i + 1] = (5 * stream[i] + 7 * noise + 1) % vocab_size
    return torch.from_numpy(stream)


def draw_batches(recipe, vocab_size, seed):
    """The stream, and its consecutive sequences as tokens and targets i32[steps, accum, B, S]."""
    shape = (STEPS, recipe["grad_accum"], recipe["batch_size"], recipe["seq_len"])
    stream = draw_stream(vocab_size, math.prod(shape) + 1, seed)
    return stream, stream[:-1].reshape(shape).clone(), stream[1:].reshape(shape).clone()


def learning_rate(recipe, step):
    """Linear warm-up from lr/warmup_steps, then a cosine to min_ratio*lr at total_steps; `step` counts from 0."""
    lr, schedule = recipe["lr"], recipe["schedule"]
    warmup, total, floor = schedule["warmup_steps"], schedule["total_steps"], schedule["min_ratio"]
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / (total - warmup)
    return lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def adamw(parameters, recipe):
    attrs = recipe["adamw"]
    decays = lambda p: recipe["weight_decay_scope"] == "All" or p.dim() >= 2
    return torch.optim.AdamW(
        [
            dict(params=[p for p in parameters.values() if decays(p)], weight_decay=attrs["weight_decay"]),
            dict(params=[p for p in parameters.values() if not decays(p)], weight_decay=0.0),
        ],
        betas=(attrs["beta1"], attrs["beta2"]),
        eps=attrs["eps"],
    )


def backward(parameters, forward, tokens, targets):
    """Accumulates the gradient of one optimizer step's loss, the mean over its micro-batches.

    tokens, targets [accum, B, S] -> logits[accum, B, S, V], mean cross-entropy, mean sum of auxiliary losses.
    """
    accum = len(tokens)
    all_logits, loss, aux_loss = [], 0.0, 0.0
    for x, y in zip(tokens.long(), targets.long()):
        logits, aux = forward(parameters, x)
        cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()) / accum
        auxiliary = sum(aux, torch.zeros((), dtype=torch.float64)) / accum
        assert logits.dtype == cross_entropy.dtype == auxiliary.dtype == torch.float64
        (cross_entropy + auxiliary).backward()
        all_logits.append(logits.detach())
        loss += cross_entropy.item()
        aux_loss += auxiliary.item()
    return torch.stack(all_logits), loss, aux_loss


def make_golden(name, vocab_size, parameters, forward, seed):
    """Trains the model on the recipe of its spec and writes tests/golden/<name>.safetensors (see README.md)."""
    from safetensors.torch import save  # needed by nothing else

    recipe = Spec(name).recipe
    stream, tokens, targets = draw_batches(recipe, vocab_size, seed)
    golden = {"stream": stream, "tokens": tokens, "targets": targets}
    golden |= {f"param.{key}": p.detach().float() for key, p in parameters.items()}
    optimizer = adamw(parameters, recipe)
    rows = []
    for step in range(STEPS):
        optimizer.zero_grad()
        logits, loss, aux_loss = backward(parameters, forward, tokens[step], targets[step])
        if step == 0:
            golden["logits"] = logits
            golden |= {f"grad.{key}": p.grad.clone() for key, p in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), f32(recipe["clip_norm"])).item()
        lr = learning_rate(recipe, step)
        rows.append((loss, aux_loss, norm, lr))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    columns = torch.tensor(rows, dtype=torch.float64).T
    golden |= {key: columns[i].contiguous() for i, key in enumerate(("losses", "aux_losses", "grad_norms", "lrs"))}
    golden |= {"loss": columns[0, :1].clone(), "aux_loss": columns[1, :1].clone()}
    golden |= {f"final_norm.{key}": p.detach().norm().reshape(1) for key, p in parameters.items()}
    GOLDEN.mkdir(exist_ok=True)
    path = GOLDEN / f"{name}.safetensors"
    path.write_bytes(save(golden))
    losses, aux_losses, norms, _ = columns.tolist()
    print(f"{name}: {path.stat().st_size:,} bytes, loss {losses[0]:.4f} to {losses[-1]:.4f}, "
          f"auxiliary {aux_losses[0]:.4f}, gradient norms {min(norms):.3f} to {max(norms):.3f}")


def check_routing(probs, top_k, margin=1e-5):
    """Refuses a model whose routing rounding could change: the k-th and the next probability must differ."""
    top = probs.detach().topk(top_k + 1, -1).values
    assert (top[..., top_k - 1] - top[..., top_k]).min() > margin, "routing too close to a tie: choose another seed"
