#!/usr/bin/env bash
# Checks the CUDA device on a machine with a GPU: tests, lockstep with the CPU, memory and race checkers (each of which
# must also find its planted fault), training, timings. Ends with a table; fails when any row does.
#
#   tools/gpu_check.sh [--bin DIR] [--log DIR] [--text FILE] [--gpt2 FILE] [--peer SCRIPT] [--only WORD]
#
#   --bin DIR      built tools and tests (default: builds them)
#   --log DIR      where the output of every check goes (default: a new directory in /tmp)
#   --text FILE    trains char-gpt on it, on CPU and GPU, for 1,000 steps
#   --gpt2 FILE    GPT-2's vocabulary (GGUF): trains moe-100m on the text's tokens, here and in PyTorch, for 200 steps
#   --peer SCRIPT  Python program to time beside it
#   --only WORD    only the checks whose name holds WORD
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/common.sh"

help_for "$@"
bin='' logs='' text='' gpt2='' peer='' only=''
while (($# > 0)); do
  case $1 in
    --bin | --log | --text | --gpt2 | --peer | --only) (($# > 1)) || refuse "$1 needs a value" ;;
    *) refuse "unknown argument: $1" ;;
  esac
  case $1 in
    --bin) bin=$2 ;;
    --log) logs=$2 ;;
    --text) text=$2 ;;
    --gpt2) gpt2=$2 ;;
    --peer) peer=$2 ;;
    --only) only=$2 ;;
  esac
  shift 2
done
need_files ${text:+"$text"} ${gpt2:+"$gpt2"} ${peer:+"$peer"}
[[ -z $bin || -x $bin/test_cuda ]] || refuse "--bin $bin: holds no test_cuda"
nvidia-smi -L >/dev/null 2>&1 || die "there is no NVIDIA GPU here, by nvidia-smi"
sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda/bin/compute-sanitizer') ||
  die "compute-sanitizer is not installed"
if [[ -z $bin ]]; then
  MOEC_PRESET=cuda
  build
fi
logs=${logs:-$(mktemp -d /tmp/gpu-check-XXXXXX)}
mkdir -p "$logs"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# check NAME COMMAND...: a row of the table; the last line that starts with "note: " is shown beside it. The command
# has a directory of its own, $work.
check() {
  local name=$1 start=$SECONDS result=ok
  local log=$logs/${name// /-}.log work=$scratch/${name// /-}
  shift
  [[ $name == *"$only"* ]] || return 0
  mkdir -p "$work"
  if ! "$@" >"$log" 2>&1; then
    result=FAILED
    tail -n 25 "$log"
  fi
  printf '%-40s %-7s %4d s  %s\n' "$name" "$result" "$((SECONDS - start))" "$(sed -n 's/^note: //p' "$log" | tail -n 1)" |
    tee -a "$scratch/rows"
}

# The same, beside others: for what is not timed.
check_beside() {
  local most=8
  while (($(jobs -pr | wc -l) >= most)); do wait -n; done
  check "$@" &
}

tests() {
  "$bin/test_cuda" --no-colors=true "$@" | tee "$work/tests" || return 1
  sed -n 's/.*test cases: *\(.*\)/note: \1/p' "$work/tests"
  # A run without a GPU passes no test.
  grep -qE 'test cases: .* [1-9][0-9]* passed' "$work/tests"
}

lockstep() {
  "$bin/moec" "$@" -o "$work/lockstep.plan" && "$bin/moec" diff "$work/lockstep.plan" --all | tee "$work/diff" || return 1
  sed -n 's/^\(.* agree .*\)/note: \1/p' "$work/diff"
}

# The log of a failed racecheck holds reports, and all are of kernels of cuBLAS, whose clusters it misjudges.
races_of_cublas_alone() {
  local races
  races=$(grep -E 'Race reported|=+ +and (Read|Write) access' "$1")
  [[ -n $races ]] && ! grep -qv ' at nvjet_' <<<"$races" && ! grep -q 'Status: FAILURE' "$1"
}

# sanitize TOOL CASES
sanitize() {
  "$sanitizer" --tool "$1" --print-limit 100000 --error-exitcode 9 "$bin/test_cuda" -tc="$2" | tee "$work/$1"
  local status=${PIPESTATUS[0]}
  sed -n 's/.*ERROR SUMMARY: \(.*\)/note: \1/p; s/.*RACECHECK SUMMARY: \(.*\)/note: \1/p' "$work/$1"
  if [[ $1 == racecheck && $status == 9 ]] && races_of_cublas_alone "$work/$1"; then
    echo "note: $(grep -c 'Race reported' "$work/$1") reports of cuBLAS' own kernels, and no others"
    return 0
  fi
  # A filter that finds no case checks nothing.
  grep -qE 'test cases: .* [1-9][0-9]* passed' "$work/$1" && return "$status"
}

# The checker must fail on the fault that is planted for it, and on no other reason.
planted() {
  "$sanitizer" --tool "$1" --error-exitcode 9 "$bin/planted_faults" "$1"
  local status=$?
  ((status == 9)) && echo "note: found"
}

# Losses of the same 1,000 steps on both devices, within 1%; those of the GPU under half a second, start-up aside.
training() {
  "$bin/moec" "$root/schema/examples/char-gpt.json" -o "$work/char-gpt.plan" || return 1
  local device
  for device in cpu cuda; do
    "$bin/moerun" train "$work/char-gpt.plan" --data "$text" --encoding chars --device $device --max-steps 1000 \
      --log-every 250 --peak-tflops 1 --out-dir "$work/run-$device" | tee "$work/$device.out" || return 1
  done
  python3 - "$work" <<'PYTHON'
import json, re, sys
text = {device: open(f"{sys.argv[1]}/{device}.out").read() for device in ("cpu", "cuda")}
loss = {device: float(re.search(r"validation loss ([\d.]+)\s*\|? ?(?:saved.*)?$", out.strip()).group(1)) for device, out in text.items()}
time = {device: re.search(r"^done .* after ([^|]+) \|", out, re.M).group(1) for device, out in text.items()}
rows = [json.loads(line) for line in open(f"{sys.argv[1]}/run-cuda/log.jsonl")]
steps = sum(250 * row["ms"] for row in rows if "ms" in row) / 1000
print(f"note: validation loss {loss['cuda']:.4f}, steps {steps:.2f} s (< 0.5) of {time['cuda']}, on the CPU {loss['cpu']:.4f} in {time['cpu']}")
sys.exit(abs(loss["cuda"] - loss["cpu"]) > 0.01 * loss["cpu"] or steps >= 0.5)
PYTHON
}

# The step of a small model whose data passes through the window, replayed: what the GPU and the host lose between steps.
replays() {
  seq 1 40000 >"$work/numbers.txt"
  "$bin/moerun" train "$root/schema/examples/char-gpt.json" --window-tokens 16385 --data "$work/numbers.txt" \
    --encoding chars --device cuda --max-steps 500 --peak-tflops 1 --out-dir "$work/run-replays" \
    --trace "$work/trace.json" | grep '^trace' | tee "$work/replays" || return 1
  python3 - "$work/replays" <<'PYTHON'
import re, sys
line = re.search(r"idle between replays ([\d.]+) us \| host waits a step ([\d.]+) \| host CPU time a step ([\d.]+) us", open(sys.argv[1]).read())
if not line: sys.exit("the trace tells nothing of replays: is CUPTI installed?")
idle, waits, host = map(float, line.groups())
print(f"note: GPU idle {idle} us (< 10), host waits {waits} (0), host CPU {host} us (< 20) a step")
sys.exit(idle >= 10 or waits > 0 or host >= 20)
PYTHON
}

# Where the time of a step goes: a table per model, of which the sum is the step.
step_tables() {
  local model
  for model in char-gpt moe-tiny; do
    "$bin/moebench" --device=cuda --step "$root/schema/examples/$model.json" | tee -a "$work/steps" || return 1
  done
  grep -c '^step ' "$work/steps" | sed 's/.*/note: & models/'
}

# Predicted time and memory of every example's step beside those of the device.
predictions() {
  local gpu=h200
  [[ $(nvidia-smi --query-gpu=name --format=csv,noheader --id=0) != *H100* ]] || gpu=h100
  python3 "$root/bench/check_predictions.py" --bin "$bin" --cost-model $gpu --out "$logs/predictions"
}

# What a step costs when experts get unlike loads. The host must not wait for the GPU to know them.
routing() {
  "$bin/moebench" --device=cuda --step "$root/schema/examples/moe-100m.json" --routing balanced skewed degenerate |
    tee "$work/routing" || return 1
  awk '$1 == "step" { print "note: skewed " $4 " times balanced, degenerate " $6 }
       /^waits of the host/ { waits = $(NF - 2) + $(NF - 1) + $NF } END { exit waits > 0 }' "$work/routing"
}

timings() {
  "$bin/test_cuda" --no-skip -m -tc="step times" | tee "$work/times" || return 1
  sed -n 's/^\(char-gpt F32 whole.*\)/note: \1/p' "$work/times"
}

# Errors of single kernels against fp64, next to those of PyTorch.
errors() {
  mkdir -p "$work/values"
  MOEC_VALUES=$work/values "$bin/test_cuda" --no-skip -tc="kernel values" || return 1
  python3 "$root/tests/oracle/kernel_errors.py" "$work/values"
}

# Losses of the same 200 steps in PyTorch, in f32 and bf16, within 1%.
loss_parity() {
  python3 "$root/tests/oracle/gpt2_tokens.py" "$gpt2" "$text" "$work/tokens.bin" &&
    python3 "$root/tests/oracle/loss_parity.py" "$root/schema/examples/moe-100m.json" "$work/tokens.bin" --moerun "$bin/moerun"
}

peer() {
  python3 "$peer" | tee "$work/peer" || return 1
  tail -n 1 "$work/peer" | sed 's/^/note: /'
}

steps="the optimizer step*,gradients of a layer in full precision*"
kernels="$steps,a norm and the linear*,every op's samples run on memory*,Hopper's*"
variants="every variant runs on memory that nobody has written"
memory="*memory that was planned*,too little memory*"

check "tests of memory" tests -tc="$memory"
for part in "ops in f32" "ops in bf16" "attention of wide heads" "experts of wide rows"; do
  check_beside "racecheck $part" sanitize racecheck "$variants: $part"
done
check_beside "racecheck ops" sanitize racecheck "$kernels"
for tool in memcheck synccheck; do
  check_beside "$tool" sanitize $tool "$kernels,$variants*"
done
# It does not see what TMA stores, as cuBLAS does and our own kernels for Hopper.
check_beside "initcheck" sanitize initcheck "$steps,every op's samples run by plain stores*"
check_beside "tests of variants" tests -sf="*variants_test*"
check_beside "tests" tests -sfe="*variants_test*" -tce="$memory"
for tool in memcheck racecheck initcheck synccheck; do
  check_beside "planted fault $tool" planted $tool
done
sed 's/"repeat": 12/"repeat": 2/' "$root/schema/examples/gpt2-124m.json" >"$scratch/gpt2-2-layers.json"
for dtype in f32 bf16 f16; do
  check_beside "lockstep moe-tiny $dtype" lockstep "$root/schema/examples/moe-tiny.json" --dtype $dtype
  check_beside "lockstep char-gpt $dtype" lockstep "$root/schema/examples/char-gpt.json" --dtype $dtype
  # More rows than the head holds logits of at a time.
  check_beside "lockstep moe-tiny in chunks $dtype" lockstep "$root/schema/examples/moe-tiny.json" --dtype $dtype \
    --batch-size 65
  check_beside "lockstep gpt2-2-layers $dtype" lockstep "$scratch/gpt2-2-layers.json" --dtype $dtype --batch-size 1 \
    --seq-len 256
done
if python3 -c 'import torch, numpy' 2>/dev/null; then
  check_beside "errors beside PyTorch" errors
  if [[ -n $text && -n $gpt2 ]]; then
    check_beside "losses beside PyTorch" loss_parity
  else
    echo "losses beside PyTorch: not compared, which needs --text and --gpt2"
  fi
else
  echo "errors and losses beside PyTorch: not checked, python3 has no PyTorch"
fi
wait

# Alone: what is timed.
[[ -z $text ]] || check "training char-gpt" training
check "replays" replays
check "step tables" step_tables
check "predictions" predictions
check "routing" routing
check "timings" timings
[[ -z $peer ]] || check "peer" peer

[[ -s $scratch/rows ]] || refuse "no check's name holds '$only'"
echo
cat "$scratch"/{timings/times,step-tables/steps,routing/routing} 2>/dev/null
sort "$scratch/rows"
echo "logs in $logs"
! grep -q ' FAILED ' "$scratch/rows"
