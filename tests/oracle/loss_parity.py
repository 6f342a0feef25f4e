"""Trains a mixture-of-experts model with moerun and in PyTorch and compares the losses.

Both start from the weights that moerun draws, see the same batches, and follow the spec's recipe: AdamW on f32 weights,
whose values PyTorch, too, rounds to bf16 before a step in bf16. Prints both losses and fails when at any step shown they
are more than 1% apart.

    loss_parity.py SPEC SHARD.bin --moerun build/cuda/bin/moerun [--device cuda --dtypes f32 bf16 --steps 200 --every 20]

`--again` shows, too, how far PyTorch is from itself when its first weights differ in the last bits: training amplifies
rounding, the more the larger the learning rate. SPEC has the blocks of schema/examples/moe-tiny.json; SHARD.bin holds tokens as llm.c stores them (gpt2_tokens.py).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from shared import output_of, reading

import numpy as np
import torch
import torch.nn.functional as F

import moe
from batches import epoch_starts
from oracle import Spec, adamw, f32, learning_rate
from tensor_file import read_tensors

BAR = 0.01
EARLY = (1, 2, 5, 10)  # steps that are shown, too: what is wrong from the start shows before rounding has grown
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def read_shard(path):
    """The 16-bit tokens behind the header of 256 words."""
    with reading(path):
        return torch.from_numpy(np.fromfile(path, dtype="<u2", offset=1024).astype(np.int64))


def moerun(args, dtype, out_dir, *flags):
    """Trains without held-out data; returns the log's rows."""
    command = [args.moerun, "train", args.spec, "--data", args.shard, "--out-dir", out_dir, "--device", args.device]
    command += ["--dtype", dtype, "--val-fraction", "0", "--log-every", "1", "--peak-tflops", "1"]
    output_of([*map(str, command), *flags])
    return [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]


def moerun_losses(args, dtype):
    """moerun's initial parameters, and the loss of every step."""
    with tempfile.TemporaryDirectory() as folder:
        # A step with a learning rate of 0 leaves the weights as they were drawn.
        start, run = Path(folder) / "start", Path(folder) / "run"
        moerun(args, dtype, start, "--lr", "0", "--max-steps", "1")
        rows = moerun(args, dtype, run, "--max-steps", str(args.steps))
        return read_tensors(next(start.glob("model-*.safetensors"))), [row["loss"] for row in rows]


def batch_of(tokens, micro_batch, recipe):
    """Tokens and targets [B, S] of a micro-batch."""
    starts = epoch_starts(micro_batch, recipe["batch_size"], recipe["seq_len"], len(tokens), recipe["seed"])
    index = (torch.tensor(starts)[:, None] + torch.arange(recipe["seq_len"])).to(tokens.device)
    return tokens[index], tokens[index + 1]


def torch_losses(spec, parameters, tokens, dtype, steps):
    """The mean cross-entropy of every step, before its update."""
    recipe = spec.recipe
    accum = recipe["grad_accum"]
    optimizer = adamw(parameters, recipe)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for micro_batch in range(step * accum, (step + 1) * accum):
            x, y = batch_of(tokens, micro_batch, recipe)
            logits, aux = moe.forward(spec, {name: p.to(dtype) for name, p in parameters.items()}, x)
            loss = F.cross_entropy(moe.wide(logits).flatten(0, 1), y.flatten())
            ((loss + sum(aux)) / accum).backward()
            total += loss.item() / accum
        torch.nn.utils.clip_grad_norm_(parameters.values(), f32(recipe["clip_norm"]))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.step()
        losses.append(total)
    return losses


def relative(a, b):
    return (a - b) / b if a == a else float("inf")


def compare(dtype, ours, theirs, again, every):
    """Prints a table; returns the largest relative difference of ours in it."""
    steps = sorted({*EARLY, *range(every, len(theirs) + 1, every)} & {*range(1, len(theirs) + 1)})
    print(f"{dtype:>5} {'moerun':>10} {'PyTorch':>10} {'difference':>11}" + (f" {'of PyTorch':>11}" if again else ""))
    for step in steps:
        a, b = ours[step - 1], theirs[step - 1]
        noise = f" {relative(again[step - 1], b):+11.5%}" if again else ""
        print(f"{step:5} {a:10.5f} {b:10.5f} {relative(a, b):+11.5%}{noise}", flush=True)
    return max(abs(relative(ours[step - 1], theirs[step - 1])) for step in steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("shard", type=Path)
    parser.add_argument("--moerun", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    spec = Spec(args.spec.stem, args.spec.parent)
    tokens = read_shard(args.shard).to(args.device)
    print(f"{spec.name}: {args.steps} steps on {args.device}, {len(tokens):,} tokens of data", flush=True)
    worst = {}
    for dtype in args.dtypes:
        start, ours = moerun_losses(args, dtype)

        def losses_from(factor):
            parameters = {name: (factor * value).to(args.device).requires_grad_() for name, value in start.items()}
            return torch_losses(spec, parameters, tokens, DTYPES[dtype], args.steps)

        theirs = losses_from(1)
        again = losses_from(1 + 2**-20) if args.again else []
        worst[dtype] = compare(dtype, ours, theirs, again, args.every)
    figures = ", ".join(f"{dtype} {difference:.3%}" for dtype, difference in worst.items())
    print(f"note: losses at most {figures} from PyTorch's")
    sys.exit(max(worst.values()) > BAR)


if __name__ == "__main__":
    main()
