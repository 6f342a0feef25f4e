#!/usr/bin/env bash
# Runs clang-tidy with the checks of .clang-tidy on the sources of the runtime, the planner, the tools and the
# benchmarks, or on those given. Takes some nine seconds a file and core, so that tools/test.sh does without.
#
#   tools/tidy.sh [FILE...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_for "$@"
[[ ${1:-} != -* ]] || refuse "usage: tools/tidy.sh [FILE...]"
need_files "$@"
(($# == 0)) || mapfile -t known < <(realpath -- "$@")

command -v clang-tidy >/dev/null || die "clang-tidy is not installed"
build
cd "$root"
# What a build leaves out has no compile command.
(($# > 0)) || mapfile -t known < <(sed -n 's/^ *"file": "\(.*\)",\{0,1\}$/\1/p' "${bin%/bin}/compile_commands.json" |
  grep -E "^$root/(runtime|planner|tools|bench)/.*\.cc$")
printf '%s\n' "${known[@]}" | xargs -d '\n' -P "$(nproc)" -n 1 clang-tidy -p "${bin%/bin}" --quiet 2>/dev/null &&
  say "clang-tidy finds nothing in ${#known[@]} files"
