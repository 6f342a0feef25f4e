#!/usr/bin/env python3
"""Gives the scripts files that are missing or broken: each must end with one line that names the file.

    scripts_test.py BIN

BIN is the folder of the built tools. Scripts whose libraries this machine lacks are passed over.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def fault_of(command, named):
    """What is wrong with the way in which a script refuses its input, None when nothing is."""
    done = subprocess.run([sys.executable, "-B", *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        return None
    last = done.stderr.strip().split("\n")[-1]
    usage = done.stderr.startswith("usage: ")
    if done.returncode not in (1, 2) or str(named) not in last or (not usage and last != done.stderr.strip()):
        return f"{' '.join(map(str, command))}: exit code {done.returncode}, {done.stderr.strip()}"
    return None


def cases(tools, folder):
    """Commands, and what their message must name."""
    missing, broken, other = folder / "missing", folder / "broken", folder / "other.json"
    broken.write_text("{")
    other.write_text(json.dumps({"benchmarks": [{}], "blocks": []}))
    figures = folder / "fit-char-gpt.json"
    figures.write_text("{}")
    shard, moec, example = folder / "shard.bin", tools / "moec", ROOT / "schema/examples/moe-tiny.json"
    for file in (missing, broken, other):
        yield ["bench/fit_costs.py", file], file
        yield ["tests/report/page_test.py", moec, file], file
        yield ["tests/oracle/gpt2_tokens.py", file, broken, shard], file
        yield ["tests/oracle/loss_parity.py", file.with_suffix(".json"), broken, "--moerun", missing], file.with_suffix("")
    yield ["bench/check_predictions.py", "--bin", tools, "--measured", folder, "--only", "char-gpt"], figures
    yield ["bench/check_predictions.py", "--bin", missing], missing
    yield ["bench/compare.py", "numpy", "--moebench", missing], missing
    yield ["bench/peers/torch_char_gpt.py", missing], missing
    yield ["tests/oracle/kernel_errors.py", missing], missing
    yield ["tests/report/page_test.py", missing, example], missing


def main():
    with tempfile.TemporaryDirectory() as folder:
        faults = [fault_of(*case) for case in cases(pathlib.Path(sys.argv[1]), pathlib.Path(folder))]
    for fault in filter(None, faults):
        print(fault)
    print(f"scripts: {len(faults)} calls, {len([*filter(None, faults)])} wrong")
    return any(faults)


if __name__ == "__main__":
    sys.exit(main())
