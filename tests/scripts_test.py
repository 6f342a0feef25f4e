#!/usr/bin/env python3
"""Gives the Python scripts files that are missing or broken, and takes libraries from them: each must end with one line that
names the file or the library. Runs shell scripts with stand-ins for what takes long.

    scripts_test.py BIN

BIN is the folder of the built tools. Scripts whose libraries this machine lacks are asked for these only.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


LIBRARIES = ("numpy", "torch", "transformers")


def fault_of(command, named, environment=None):
    """What is wrong with the way in which a script refuses its input, None when nothing is."""
    done = subprocess.run([sys.executable, "-B", *map(str, command)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | (environment or {}))
    if any(done.stderr == f"{command[0]}: needs the Python package {library}, which is not installed\n" for library in LIBRARIES):
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


def library_faults(folder):
    """What scripts do wrong where the libraries that they need are not installed."""
    for library in LIBRARIES:
        (folder / f"{library}.py").write_text(f"raise ModuleNotFoundError('', name='{library}')\n")
    needing = re.compile(rf"^(import|from) ({'|'.join(LIBRARIES)})\b.*__main__", re.MULTILINE | re.DOTALL)
    scripts = sorted(path.relative_to(ROOT) for place in ("bench/peers", "tests/oracle") for path in ROOT.glob(f"{place}/*.py")
                     if needing.search(path.read_text()))
    compare = ["bench/compare.py", "--moebench", sys.executable]
    for command in [*([script] for script in scripts), [*compare, "numpy"], [*compare, "torch"]]:
        yield fault_of(command, "needs the Python package", {"PYTHONPATH": str(folder)})


def make_tool(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def shell_fault(command, code, named, environment=None):
    """What is wrong with the way in which a shell script gives its help, or refuses its use before it does anything."""
    done = subprocess.run(["bash", *map(str, command)], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=os.environ | (environment or {}))
    said, silent = (done.stdout, done.stderr) if code == 0 else (done.stderr, done.stdout)
    if done.returncode != code or str(named) not in said or silent or (code and said.count("\n") != 1):
        return f"{' '.join(map(str, command))}: exit code {done.returncode}, {done.stdout} {done.stderr}"
    return None


def shell_faults(folder):
    missing = folder / "missing"
    for script in ("quickstart", "test", "tidy", "gpu_check"):
        yield shell_fault([f"tools/{script}.sh", "--help"], 0, f"  tools/{script}.sh")
    yield shell_fault(["tools/quickstart.sh", missing], 2, missing)
    short = folder / "short.txt"
    short.write_text("x" * 1289)
    yield shell_fault(["tools/quickstart.sh", short], 2, f"{short}: too short")
    yield shell_fault(["tools/test.sh", missing], 2, "usage: tools/test.sh")
    yield shell_fault(["tools/tidy.sh", "--fix"], 2, "usage: tools/tidy.sh")
    yield shell_fault(["tools/tidy.sh", "tools/moec.cc", missing], 2, missing)
    for flag in ("--bin", "--text", "--gpt2", "--peer"):
        yield shell_fault(["tools/gpu_check.sh", flag, missing], 2, missing)
    make_tool(folder / "dpkg-query", "echo installed")
    unknown = {"PATH": f"{folder}:{os.environ['PATH']}", "MOEC_PRESET": "gpu"}
    yield shell_fault(["tools/test.sh"], 2, "MOEC_PRESET=gpu: no preset; there are cpu ", unknown)


def gpu_check_fault(folder):
    """Without a GPU it must say so before it builds."""
    make_tool(folder / "nvidia-smi", "exit 9")
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "tools/gpu_check.sh"], cwd=ROOT, env=os.environ | path, capture_output=True, text=True)
    if done.returncode != 1 or done.stdout or "there is no NVIDIA GPU" not in done.stderr:
        return f"gpu_check.sh: exit code {done.returncode}, {done.stdout} {done.stderr}"
    return None


def quickstart_fault(folder):
    """A second quickstart must leave the run of the first as it is and say where its own is."""
    (folder / "tools").mkdir()
    (folder / "schema/examples").mkdir(parents=True)
    shutil.copy(ROOT / "tools/quickstart.sh", folder / "tools")
    (folder / "tools/common.sh").write_text((ROOT / "tools/common.sh").read_text() + "\nbuild() { bin=$root; }\n")
    make_tool(folder / "moec", "exit 0")
    make_tool(folder / "moerun", 'while [ "$1" != --out-dir ]; do shift; done; mkdir "$2"')
    for number, work in enumerate(("quickstart", "quickstart-2", "quickstart-3")):
        command = ["bash", "tools/quickstart.sh"]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        run = folder / "build" / work / "run"
        said = "holds a run, which stays" in done.stdout
        if done.returncode or not run.is_dir() or f"generate build/{work}/run" not in done.stdout or said != (number > 0):
            return f"quickstart {number + 1}: exit code {done.returncode}, {done.stdout} {done.stderr}"
        (run / "weights").touch()
    if not all((folder / "build" / work / "run/weights").exists() for work in ("quickstart", "quickstart-2")):
        return "quickstart: a run is gone"
    return None


def test_fault(folder):
    """A test program must have a line when it starts and one when it has ended."""
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools/test.sh", folder / "tools")
    (folder / "tools/common.sh").write_text((ROOT / "tools/common.sh").read_text() + "\nbuild() { bin=$root; }\n")
    make_tool(folder / "test_one", 'echo "[doctest] test cases: 3 | 2 passed | 0 failed | 1 skipped"')
    done = subprocess.run(["bash", "tools/test.sh"], cwd=folder, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or lines[0] != "==> test_one" or not lines[1].startswith("test_one ") or \
            lines[-1] != "2 passed, 0 failed, 4 skipped":
        return f"test.sh: exit code {done.returncode}, {done.stdout} {done.stderr}"
    return None


def main():
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as tree, \
            tempfile.TemporaryDirectory() as tests, tempfile.TemporaryDirectory() as libraries:
        faults = [fault_of(*case) for case in cases(pathlib.Path(sys.argv[1]), pathlib.Path(folder))]
        faults += library_faults(pathlib.Path(libraries))
        faults.append(quickstart_fault(pathlib.Path(tree)))
        faults.append(test_fault(pathlib.Path(tests)))
        faults.append(gpu_check_fault(pathlib.Path(folder)))
        faults += shell_faults(pathlib.Path(folder))
    for fault in filter(None, faults):
        print(fault)
    print(f"scripts: {len(faults)} calls, {len([*filter(None, faults)])} wrong")
    return any(faults)


if __name__ == "__main__":
    sys.exit(main())
