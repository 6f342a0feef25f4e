#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test that this machine can run. A line tells when a test program
# starts, another what came of it; the last counts test cases: `N passed, N failed, N skipped`. A test program that crashes
# counts as one more failure.
#
#   tools/test.sh
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_for "$@"
(($# == 0)) || refuse "usage: tools/test.sh"
build

# The number before `word` in doctest's "test cases: 12 | 11 passed | 1 failed | 3 skipped".
count() { sed -nE "s/.*\[doctest\] test cases:.* ([0-9]+) $1.*/\1/p" <<<"$2" | tail -n 1; }

passed=0 failed=0 skipped=0
programs=("$bin"/test_*)
[[ -x ${programs[0]} ]] || die "no test programs in $bin"
for program in "${programs[@]}"; do
  name=$(basename "$program")
  say "$name"
  status=0
  start=$SECONDS
  output=$(timeout 1800 "$program" --no-colors=true 2>&1) || status=$?
  ok=$(count passed "$output") bad=$(count failed "$output") left=$(count skipped "$output")
  if [[ -z $ok ]] || { ((status != 0)) && ((bad == 0)); }; then bad=$((${bad:-0} + 1)); fi
  printf '%-16s %4d passed %4d failed %4d skipped %6d s\n' "$name" "${ok:-0}" "$bad" "${left:-0}" "$((SECONDS - start))"
  if ((bad > 0)); then printf '%s\n%s: exit status %d\n' "$output" "$name" "$status"; fi
  passed=$((passed + ${ok:-0})) failed=$((failed + bad)) skipped=$((skipped + ${left:-0}))
done

# run_python NAME SCRIPT ARGUMENT...: 77 says that something for the test is not installed, 127 that Python is not.
run_python() {
  local name=$1 status=0 output
  shift
  say "$name"
  output=$("$@" 2>&1) || status=$?
  printf '%-16s %s\n' "$name" "$output"
  case $status in
    0) passed=$((passed + 1)) ;;
    77 | 127) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
}
for example in moe-tiny moe-6.9b; do
  run_python "report $example" "$root/tests/report/page_test.py" "$bin/moec" "$root/schema/examples/$example.json"
done
run_python scripts "$root/tests/scripts_test.py" "$bin"
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0 && passed > 0))
