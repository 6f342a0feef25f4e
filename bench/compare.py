"""Compares moebench with its peers: runs both in turns on the same machine and prints their times and ratios.

    compare.py numpy    table rows, one thread, beside NumPy
    compare.py torch    optimizer steps beside PyTorch, eager and compiled

A cell is "median (fastest)": the median over the rounds of each round's median run, and the fastest run of all. A
ratio is the peer's median over ours: above 1 moec is faster. Needs numpy or torch.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from reading import output_of

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))


class Samples:
    """Microseconds: the median of each round, and the fastest run."""

    def __init__(self):
        self.medians, self.fastest = [], float("inf")

    def add(self, median, fastest):
        self.medians.append(median)
        self.fastest = min(self.fastest, fastest)

    def median(self):
        return statistics.median(self.medians)

    def __str__(self):
        return f"{self.median():.1f} ({self.fastest:.1f})"


def run_moebench(args, samples, row_filter, threads):
    """Adds one run of the rows that match to `samples`, by the row's name."""
    command = [args.moebench, f"--benchmark_filter={row_filter}", f"--threads={threads}", "--benchmark_format=json",
               f"--benchmark_min_time={args.seconds}"]
    for row in json.loads(output_of(command))["benchmarks"]:
        samples[row["name"].removesuffix("/manual_time")].add(row["median_us"], row["min_us"])


def print_table(rows):
    """`rows` of (name, ours, peer's name, peer's samples)."""
    print(f"{'us':32} {'moec':>24} {'peer':>24}  ratio")
    for name, ours, peer_name, peer in rows:
        ratio = peer.median() / ours.median()
        print(f"{name:32} {str(ours):>24} {str(peer):>24}  {ratio:5.2f}  {peer_name}")


def compare_numpy(args):
    import numpy_rows

    names = {"matmul": "table/matmul/512x512", "softmax": "table/softmax/512x32000",
             "SiLU": "table/silu/65536", "RMSNorm": "table/rmsnorm/512x768"}
    ours, theirs = defaultdict(Samples), defaultdict(Samples)
    for _ in range(args.rounds):
        run_moebench(args, ours, "^table/", 1)
        for name, kernel, operands in numpy_rows.rows():
            times = numpy_rows.time_us(kernel, operands, args.seconds)
            theirs[names[name.split()[0]]].add(statistics.median(times), min(times))
    print_table([(name, ours[name], "NumPy", theirs[name]) for name in names.values()])


def compare_torch(args):
    import torch
    import torch_cpu_step

    table = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        torch.compiler.reset()
        steps = {(model, mode): torch_cpu_step.warm_step(model, mode) for model in args.models for mode in args.modes}
        ours, theirs = defaultdict(Samples), defaultdict(Samples)
        for _ in range(args.rounds):
            for model in args.models:
                run_moebench(args, ours, f"^step/{model}/", threads)
                for mode in args.modes:
                    times = torch_cpu_step.time_ms(steps[model, mode], args.steps)
                    theirs[model, mode].add(1e3 * statistics.median(times), 1e3 * min(times))
        table += [(f"step/{model}, {threads} threads", ours[f"step/{model}"], f"PyTorch {mode}", theirs[model, mode])
                  for model, mode in steps]
    print_table(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("numpy", "torch"))
    parser.add_argument("--moebench", default=HERE.parent / "build/cpu/bin/moebench", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a moebench or NumPy row in a round")
    parser.add_argument("--steps", type=int, default=30, help="PyTorch steps in a round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", choices=("char-gpt", "moe-tiny"), default=["char-gpt", "moe-tiny"])
    parser.add_argument("--modes", nargs="+", choices=("eager", "compile"), default=["eager", "compile"])
    args = parser.parse_args()
    if not args.moebench.exists():
        parser.error(f"{args.moebench}: not there; see --moebench")
    {"numpy": compare_numpy, "torch": compare_torch}[args.peer](args)


if __name__ == "__main__":
    main()
