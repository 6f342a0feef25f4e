"""Four kernels of a transformer in NumPy, in f32 on one thread: the rows that moebench's kernels are compared with.

Prints the median and the fastest of many runs. Needs numpy.
"""

import os

# Read when the BLAS library is loaded.
for library in ("OMP", "OPENBLAS", "MKL", "BLIS"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import reading  # noqa: E402, F401: tells of libraries that are missing

import numpy as np


def matmul(a, b):
    return a @ b


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(x, weight):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(1e-6)) * weight


def time_us(kernel, operands, seconds=2.0):
    """Microseconds of each run, for about `seconds`, after warming up."""
    for _ in range(3):
        kernel(*operands)
    times, end = [], time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        kernel(*operands)
        times.append(1e6 * (time.perf_counter() - begin))
    return times


def rows():
    """(name, kernel, operands)."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    return [
        ("matmul 512x512x512", matmul, (normal(512, 512), normal(512, 512))),
        ("softmax 512x32000", softmax, (normal(512, 32000),)),
        ("SiLU 65536", silu, (normal(65536),)),
        ("RMSNorm 512x768", rms_norm, (normal(512, 768), normal(768))),
    ]


def main():
    for name, kernel, operands in rows():
        times = time_us(kernel, operands)
        print(f"{name:20} median {statistics.median(times):10.1f} us   fastest {min(times):10.1f} us   "
              f"({len(times)} runs)")


if __name__ == "__main__":
    main()
