#!/usr/bin/env python3
"""Fits the rows of compiler/costs.def to measured kernel times.

    moebench --device=cuda --memory=130 --benchmark_filter=^kernel/ --benchmark_format=json > kernels.json
    bench/fit_costs.py --device h200 --ceilings 4.29e12,789e12,165e12,60e12 kernels.json

Prints one row per kernel: the fixed time and the shares of the ceilings (bytes/s, then FLOP/s in bf16, f32, f64)
with the least squares of the logarithm of predicted over measured time, and on stderr what is off by most.
"""
import argparse
import collections
import json
import math
import re
import sys

SHARES = [0.97 * 0.9**i for i in range(60)]
VECTOR_BYTES = 16
MOST_FIXED = 3e-5  # what a launch and the latency of a short kernel may take


def read_rows(paths):
    """(kernel, type, shapes) -> (seconds, FLOPs, bytes, type); the fastest of several measurements."""
    rows = {}
    for path in paths:
        for row in json.load(open(path))["benchmarks"]:
            parts = row["name"].split("/")
            if parts[0] != "kernel" or "median_us" not in row:
                continue
            seconds = row["median_us"] * 1e-6
            flops, moved = row["GFLOP/s"] * 1e9 * seconds, row["GB/s"] * 1e9 * seconds
            kind = number_type(parts[3])
            key = parts[1], kind if is_aligned(parts[3]) else kind + "_unaligned", parts[3]
            if key not in rows or seconds < rows[key][0]:
                rows[key] = seconds, flops, moved, kind
    return rows


def number_type(shapes):
    for name in ("bf16", "f16", "f64"):
        if re.search(rf"\b{name}\b", shapes):
            return name
    return "f32"


def is_aligned(shapes):
    """Whether rows of the first operand of half precision start at whole vectors, as fast matrix products need."""
    for dims in re.findall(r"b?f16\[([\d,]*)\]", shapes):
        if int(dims.split(",")[-1]) * 2 % VECTOR_BYTES:
            return False
    return True


def fit(samples, ceilings):
    """The fixed seconds and shares (arithmetic, traffic) that come closest to the samples."""
    bandwidth, rates = ceilings
    fastest = min(MOST_FIXED, *(seconds for seconds, *_ in samples))

    def error(fixed, arithmetic, traffic):
        total = 0
        for seconds, flops, moved, kind in samples:
            predicted = fixed + max(flops / (arithmetic * rates[kind]), moved / (traffic * bandwidth))
            total += math.log(predicted / seconds) ** 2
        return total

    def better(best, candidates):
        """Of equally good ones the highest shares: what the samples do not show is taken to be fast."""
        return min([best] + [(error(*c), *c) for c in candidates], key=lambda c: (c[0], -c[2] - c[3]))

    best = (math.inf, fastest, 1, 1)
    best = better(best, [(fastest * k / 8, a, t) for k in range(1, 9) for a in SHARES[::4] for t in SHARES[::4]])
    for _ in range(3):  # refine one after the other
        best = better(best, [(best[1] * k / 16, *best[2:]) for k in range(8, 25)])
        best = better(best, [(best[1], share, best[3]) for share in SHARES])
        best = better(best, [(best[1], best[2], share) for share in SHARES])
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True)
    parser.add_argument("--ceilings", required=True, help="bytes/s, then FLOP/s in bf16, f32 and f64")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    bandwidth, half, single, wide = map(float, arguments.ceilings.split(","))
    ceilings = bandwidth, {"bf16": half, "f16": half, "f32": single, "f64": wide}

    groups = collections.defaultdict(list)
    for (kernel, kind, shapes), row in read_rows(arguments.files).items():
        groups[kernel, kind].append((shapes, row))
    worst = []
    for (kernel, kind), rows in sorted(groups.items()):
        _, fixed, arithmetic, traffic = fit([row for _, row in rows], ceilings)
        print(f"COST({arguments.device}, {kernel}, {kind}, {fixed * 1e6:.2f}, {arithmetic:.3f}, {traffic:.3f})")
        for shapes, (seconds, flops, moved, number) in rows:
            predicted = fixed + max(flops / (arithmetic * ceilings[1][number]), moved / (traffic * bandwidth))
            worst.append((abs(math.log(predicted / seconds)), predicted / seconds, seconds, kernel, shapes))
    for _, ratio, seconds, kernel, shapes in sorted(worst, reverse=True)[:30]:
        print(f"{ratio:6.2f} x {seconds * 1e6:9.1f} us  {kernel}/{shapes}", file=sys.stderr)


if __name__ == "__main__":
    main()
