#!/usr/bin/env python3
"""Holds the predicted time and memory of optimizer steps against those of a GPU.

    bench/check_predictions.py --bin build/cuda/bin [--cost-model h100] [--out DIR | --measured DIR] [--only WORD]

Runs `moebench --step` on every example in the precision of its recipe and, where that is another, in bf16; and on
other batch sizes. Prints a row for each and fails where one is off by more than 15% in time or 1% in memory; what
does not fit into the GPU is passed over. With --out the figures are kept as DIR/fit-*.json and DIR/check-*.json:
bench/fit_costs.py makes the cost model from the former, so that the latter, of which it sees nothing, tell what the
model is worth. With --measured such figures are held against the predictions of `moec` as it is now; that needs no GPU.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from reading import output_of, reading

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIME_BAR, MEMORY_BAR = 0.15, 0.01
UNIT = 2 << 20  # of which the GPU's driver gives whole ones to an allocation

HALF = ["--dtype", "bf16"]
# The model, flags, and whether its kernels' times make the cost model.
CASES = [
    ("char-gpt", [], True),
    ("char-gpt", HALF, True),
    ("char-gpt", ["--batch-size", "128"], True),
    ("char-gpt", ["--batch-size", "128", *HALF], True),
    ("moe-tiny", [], True),
    ("moe-tiny", HALF, True),
    ("moe-tiny", ["--batch-size", "64"], True),
    ("moe-tiny", ["--batch-size", "64", *HALF], True),
    ("char-moe", [], True),
    ("char-moe", HALF, True),
    ("char-moe", ["--batch-size", "32", *HALF], True),
    ("char-moe", ["--batch-size", "64", *HALF], True),
    ("gpt2-124m", ["--grad-accum", "2"], True),
    ("gpt2-124m", ["--batch-size", "4", "--grad-accum", "2"], True),
    ("qwen2.5-0.5b", ["--grad-accum", "2"], True),
    ("qwen2.5-0.5b", ["--batch-size", "4", "--seq-len", "1024", "--grad-accum", "2"], True),
    ("qwen2.5-0.5b", ["--seq-len", "512", "--grad-accum", "2"], True),
    ("moe-100m", [], True),
    ("moe-100m", ["--batch-size", "3"], True),
    ("moe-6.9b", [], True),
    ("moe-6.9b", ["--batch-size", "1", "--seq-len", "16384", "--grad-dtype", "same", "--moment-dtype", "bf16"], True),
    ("moe-100m", ["--batch-size", "2"], False),
    ("moe-100m", ["--batch-size", "6"], False),
    ("char-gpt", ["--batch-size", "48"], False),
    ("char-gpt", ["--batch-size", "48", *HALF], False),
    ("moe-tiny", ["--batch-size", "24"], False),
    ("moe-tiny", ["--batch-size", "24", *HALF], False),
    ("char-moe", ["--batch-size", "24", *HALF], False),
    ("gpt2-124m", [], False),
    ("gpt2-124m", ["--batch-size", "12", "--grad-accum", "4"], False),
    ("qwen2.5-0.5b", [], False),
    ("qwen2.5-0.5b", ["--batch-size", "2", "--seq-len", "2048", "--grad-accum", "2"], False),
    ("qwen2.5-0.5b", ["--batch-size", "4", "--seq-len", "512", "--grad-accum", "2"], False),
    ("moe-6.9b", ["--batch-size", "4", "--grad-dtype", "same", "--moment-dtype", "bf16"], False),
    ("moe-6.9b", ["--batch-size", "1", "--seq-len", "32768", "--memory-budget", "137GiB"], False),
]


FIGURES = ("batch_size", "seq_len", "grad_accum", "dtype", "seconds", "predicted_seconds", "arenas", "memory")


class Missing(Exception):
    """A step without figures, and why."""


def read_figures(path):
    with reading(path):
        step = json.loads(path.read_text())
        return {name: step[name] for name in FIGURES}


def run(moebench, model, flags, path):
    """The figures of a step, of which the text stands beside them."""
    spec = ROOT / "schema/examples" / f"{model}.json"
    command = [moebench, "--device=cuda", "--step", spec, "--step-json", path, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if "no cuda memory" in done.stdout:
        raise Missing("does not fit")
    if done.returncode:
        sys.exit(f"{model} {' '.join(flags)}: {done.stdout.strip()}")
    path.with_suffix(".txt").write_text(done.stdout)
    return read_figures(path)


def recall(moec, model, flags, path):
    """The figures of a step that was measured before, with the time that is predicted now."""
    if not path.exists():
        raise Missing("was not measured")
    with tempfile.NamedTemporaryFile() as plan:
        spec = ROOT / "schema/examples" / f"{model}.json"
        text = output_of([moec, spec, "-o", plan.name, *flags])
    value, unit = re.search(r"predicted time +([\d.]+) (\w+)", text).groups()
    return read_figures(path) | {"predicted_seconds": float(value) * {"us": 1e-6, "ms": 1e-3, "s": 1}[unit]}


def time_text(seconds):
    return f"{1e6 * seconds:.0f} us" if seconds < 1e-3 else f"{1e3 * seconds:.4g} ms"


def mebibytes(count):
    return f"{count / (1 << 20):,.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/cuda/bin")
    parser.add_argument("--cost-model", default="h200", help="the GPU, a DEVICE of compiler/costs.def")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--out", type=pathlib.Path)
    files.add_argument("--measured", type=pathlib.Path)
    parser.add_argument("--only", default="", help="only steps whose row holds this")
    arguments = parser.parse_args()
    tool = "moec" if arguments.measured else "moebench"
    if not (arguments.bin / tool).exists():
        parser.error(f"{arguments.bin / tool}: not there; see --bin")
    if arguments.measured and not arguments.measured.is_dir():
        parser.error(f"--measured {arguments.measured}: no such folder")
    folder = arguments.measured or arguments.out or pathlib.Path(tempfile.mkdtemp(prefix="predictions-"))
    folder.mkdir(parents=True, exist_ok=True)
    figures = recall if arguments.measured else run

    print(
        f"{'':28} {'predicted':>10} {'measured':>10} {'ratio':>6}   {'planned':>8} {'arenas':>8} {'ratio':>6}"
        f" {'context':>8} {'cuBLAS':>7} {'code,..':>8}  MiB"
    )
    worst = {"fit": 0.0, "check": 0.0}
    failures = steps = 0
    for model, flags, fitted in CASES:
        kind = "fit" if fitted else "check"
        name = "-".join([model, *(flag.lstrip("-") for flag in flags)])
        if arguments.only not in name:
            continue
        try:
            flags = [*flags, "--cost-model", arguments.cost_model]
            step = figures(arguments.bin / tool, model, flags, folder / f"{kind}-{name}.json")
        except Missing as why:
            print(f"{name}: {why}")
            continue
        steps += 1
        time_ratio = step["predicted_seconds"] / step["seconds"]
        planned = sum(-(-size // UNIT) * UNIT for size in step["arenas"].values())
        arenas, *others = (step["memory"][what] for what in ("arenas", "context", "cuBLAS", "code, graphs, staging"))
        memory_ratio = planned / arenas
        failed = abs(time_ratio - 1) > TIME_BAR or abs(memory_ratio - 1) > MEMORY_BAR
        failures += failed
        worst[kind] = max(worst[kind], abs(time_ratio - 1))
        label = f"{model} {step['dtype'].lower()} {step['batch_size']}x{step['seq_len']}x{step['grad_accum']}"
        print(
            f"{label:28.28} {time_text(step['predicted_seconds']):>10} {time_text(step['seconds']):>10}"
            f" {time_ratio:6.2f}   {mebibytes(planned):>8} {mebibytes(arenas):>8} {memory_ratio:6.3f}"
            f" {mebibytes(others[0]):>8} {mebibytes(others[1]):>7} {mebibytes(others[2]):>8}"
            f"{'' if fitted else '  not fitted to'}{'  FAILED' if failed else ''}",
            flush=True,
        )
    if steps == 0:
        sys.exit("no step was checked")
    print(
        f"note: {failures} of {steps} beyond the bars; time off by at most {worst['fit']:.0%} where the model was fitted, "
        f"{worst['check']:.0%} elsewhere"
    )
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
