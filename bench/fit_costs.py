#!/usr/bin/env python3
"""Fits the rows of GPUs in compiler/costs.def to kernel times.

    bench/check_predictions.py --out DIR
    bench/fit_costs.py DIR/fit-*.json

The files are of `moebench --step SPEC --step-json FILE`, or of kernel rows (`--benchmark_filter=^kernel/
--benchmark_format=json`). The former are better: they are of kernels in a step, with caches and clocks as they are
there, and of any GPU that runs the same kernels: files say how fast theirs copies memory. Every kernel in the files gets a row for each kind of numbers: the fixed time, the shares of the ceilings and
the block of output with the least squares of the logarithm of predicted over measured time. Other rows stay; those
of kernels that are no longer in the catalog go. Prints what is off by most.
"""
import argparse
import collections
import json
import math
import pathlib
import re
import sys

from reading import reading

ROOT = pathlib.Path(__file__).resolve().parent.parent
COSTS = ROOT / "compiler/costs.def"

SHARES = [0.97 * 0.9**i for i in range(60)]
BLOCKS = [0] + [2**i for i in range(5, 16)]
BLOCK_PENALTY = 0.01  # what a block must save of the error per sample
SPLIT_PENALTY = 0.006  # and what rows of their own for small and large problems must
FEWEST_SAMPLES = 3  # of such a row
LEAST_WEIGHT = 0.02
VECTOR_BYTES = 16
MOST_FIXED = 3e-5  # what a launch and the latency of a short kernel may take
# Calls of these share a launch in a step, but not in a recording of one: their rows are written by hand.
SHARED_LAUNCHES = {"norm_bwd_sum"}

Sample = collections.namedtuple("Sample", "shapes seconds flops bytes outputs weight bandwidth")


def read_samples(paths, device):
    """(kernel, kind of numbers) -> samples, which weigh what they take of their step.

    Some kernels of a step run side by side, and recording costs time: they are scaled so that they add up to the step.
    """
    samples = collections.defaultdict(list)
    for path in paths:
        with reading(path):
            file = json.loads(pathlib.Path(path).read_text())
            if not file.get("device", "cuda").startswith("cuda"):
                sys.exit(f"{path}: measured on {file['device']}, not on a GPU")
            bandwidth = file.get("copied_bytes_per_second", device.bytes)
            rows = [r for r in file["benchmarks"] if r["name"].startswith("kernel/") and "median_us" in r]
            step = 1e-6 * sum(row.get("calls", 0) * row["median_us"] for row in rows)
            for row in rows:
                _, kernel, _, shapes, *_ = row["name"].split("/")
                measured = row["median_us"] * 1e-6
                seconds = measured * file["seconds"] / step if "seconds" in file else measured
                weight = max(LEAST_WEIGHT, row["calls"] * measured / step) if step else 1
                samples[kernel, numbers(shapes)].append(
                    Sample(
                        shapes=shapes,
                        seconds=seconds,
                        flops=row["GFLOP/s"] * 1e9 * measured,
                        bytes=row["GB/s"] * 1e9 * measured,
                        outputs=outputs(shapes),
                        weight=weight,
                        bandwidth=bandwidth,
                    )
                )
    return samples


def numbers(shapes):
    for name in ("bf16", "f16", "f64"):
        if re.search(rf"\b{name}\b", shapes):
            return name if is_aligned(shapes) else name + "_unaligned"
    return "f32"


def is_aligned(shapes):
    """Whether rows of the first operand of half precision start at whole vectors, as fast matrix products need."""
    for dims in re.findall(r"b?f16\[([\d,]*)\]", shapes):
        if int(dims.split(",")[-1]) * 2 % VECTOR_BYTES:
            return False
    return True


def outputs(shapes):
    """Elements of the first output."""
    first = re.split(r"[+*]", shapes)[0].split("->")[-1]
    return math.prod(int(dim) for dim in re.search(r"\[([\d,]*)\]", first).group(1).split(",") if dim)


class Device:
    """A DEVICE row."""

    def __init__(self, name, text):
        row = re.search(rf"DEVICE\({re.escape(name)}, (.*)\)", text)
        if not row:
            sys.exit(f"{COSTS}: no DEVICE {name}")
        values = row.group(1).split(",")
        self.kernels = values[0]
        self.bytes, half, single, wide, self.processors = map(float, values[1:])
        self.rates = {"bf16": half, "f16": half, "f32": single, "f64": wide}

    def seconds(self, kind, row, sample):
        """As CostModel::seconds."""
        fixed, arithmetic, traffic, block = row
        rate = self.rates[kind.removesuffix("_unaligned")]
        work = max(sample.flops / (arithmetic * rate), sample.bytes / (traffic * sample.bandwidth))
        if block and sample.outputs:
            rounds = sample.outputs / (block * self.processors)
            work *= math.ceil(rounds) / rounds
        return fixed + work


def most_arithmetic(device, kernel, kind, samples):
    """The largest share of the arithmetic ceiling that a row may have: attention of longer sequences than those of the
    samples, which does ever more with what it reads, is not taken to be faster than the best of them."""
    if not kernel.startswith("attention"):
        return SHARES[0]
    rate = device.rates[kind.removesuffix("_unaligned")]
    return max(SHARES[-1], *(sample.flops / sample.seconds / rate for sample in samples))


def fit(device, kind, samples, most):
    """The fixed seconds, shares (arithmetic of at most `most`, traffic) and block that come closest to the samples."""
    fastest = min(MOST_FIXED, *(sample.seconds for sample in samples))
    weights = sum(sample.weight for sample in samples)

    def error(row):
        total = sum(
            sample.weight * math.log(device.seconds(kind, row, sample) / sample.seconds) ** 2 for sample in samples
        )
        return total / weights + (BLOCK_PENALTY if row[3] else 0)

    def best(rows):
        """Of equally good ones the highest shares: what the samples do not show is taken to be fast."""
        return min(rows, key=lambda row: (error(row), -row[1] - row[2]))

    found = []
    shares = [most, *(share for share in SHARES if share < most)]
    for block in BLOCKS if len(samples) > 2 else [0]:
        row = best((fastest * k / 8, a, t, block) for k in range(1, 9) for a in shares[::4] for t in SHARES[::4])
        for _ in range(4):  # refine one after the other
            row = best([row] + [(row[0] * k / 16, *row[1:]) for k in range(8, 25)])
            row = best([row] + [(row[0], share, *row[2:]) for share in shares])
            row = best([row] + [(*row[:2], share, block) for share in SHARES])
        found.append(row)
    return weights * error(best(found)), best(found)


def fit_rows(device, kind, samples, most):
    """(error, [(up to how many FLOPs, 0 for any, row)]): one for all samples, or several, of problems of one size each."""
    samples = sorted(samples, key=lambda sample: sample.flops)
    error, row = fit(device, kind, samples, most)
    penalty = SPLIT_PENALTY * sum(sample.weight for sample in samples)
    best, border = error - penalty, 0
    for i in range(FEWEST_SAMPLES, len(samples) - FEWEST_SAMPLES + 1) if best > 0 else []:
        low, high = samples[i - 1].flops, samples[i].flops
        if low == high or low == 0:
            continue
        parts = fit(device, kind, samples[:i], most)[0] + fit(device, kind, samples[i:], most)[0]
        if parts < best:
            best, border = parts, i
    if border == 0:
        return error, [(0, row)]
    (below, small), (above, others) = (
        fit_rows(device, kind, part, most) for part in (samples[:border], samples[border:])
    )
    up_to = math.sqrt(samples[border - 1].flops * samples[border].flops)
    return below + above + penalty, [*small[:-1], (up_to, small[-1][1]), *others]


def row_text(kernels, kernel, kind, most, row):
    fixed, arithmetic, traffic, block = row
    return f"COST({kernels}, {kernel}, {kind}, {most:.2g}, {fixed * 1e6:.2f}, {arithmetic:.3f}, {traffic:.3f}, {block})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="h200", help="DEVICE of costs.def with the ceilings (default: h200)")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    text = COSTS.read_text()
    device = Device(arguments.device, text)
    known = set(re.findall(r"^KERNEL\((\w+)", (ROOT / "kernels/catalog.def").read_text(), re.M))

    pattern = re.compile(rf"^COST\({device.kernels}, (?!all,)(\w+), (\w+),.*\n", re.M)
    rows = collections.defaultdict(list)
    for match in pattern.finditer(text):
        if match.group(1) in known:
            rows[match.groups()].append(match.group(0))
    off = []
    read = read_samples(arguments.files, device)
    if not read:
        sys.exit("no kernels in these files")
    if strange := {kernel for kernel, _ in read} - known:
        sys.exit(f"no kernels of the catalog: {', '.join(sorted(strange))}")
    for (kernel, kind), samples in sorted(read.items()):
        if kernel in SHARED_LAUNCHES:
            continue
        fitted = fit_rows(device, kind, samples, most_arithmetic(device, kernel, kind, samples))[1]
        rows[kernel, kind] = [row_text(device.kernels, kernel, kind, most, row) + "\n" for most, row in fitted]
        for sample in samples:
            row = next(row for most, row in fitted if most == 0 or sample.flops <= most)
            ratio = device.seconds(kind, row, sample) / sample.seconds
            off.append((ratio, sample.weight, sample.seconds, f"{kernel}/{sample.shapes}"))
    start = pattern.search(text).start()
    text = pattern.sub("", text)
    lines = [line for _, group in sorted(rows.items()) for line in group]
    COSTS.write_text(text[:start] + "".join(lines) + text[start:])
    off.sort(key=lambda entry: -entry[1] * abs(math.log(entry[0])))
    for ratio, weight, seconds, name in off[:30]:
        print(f"{ratio:6.2f} x {seconds * 1e6:9.1f} us, {weight:4.0%} of a step  {name}")


if __name__ == "__main__":
    main()
