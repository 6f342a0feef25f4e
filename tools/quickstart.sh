#!/usr/bin/env bash
# Installs what is missing, builds, compiles the tiny mixture-of-experts model, trains it on TEXT (by default this
# repository's own sources) for a minute or so, and prints the loss, the validation loss and a sample. All of it lies in
# build/quickstart; where that holds a run, in build/quickstart-2 and so on.
#
#   tools/quickstart.sh [TEXT]
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_for "$@"
(($# <= 1)) && [[ ${1:-} != -* ]] || refuse "usage: tools/quickstart.sh [TEXT]"
need_files "$@"
text=${1:+$(realpath -- "$1")}
least=1290  # bytes, of which the last tenth, held out, has a sequence of 128 and its targets
[[ -z $text ]] || (($(stat -Lc %s -- "$text") >= least)) || refuse "$1: too short: the training needs $least bytes"

build moec moerun

steps=1000
cd "$root"
work=build/quickstart
for ((i = 2; ; ++i)); do
  [[ -e $work/run ]] || break
  work=build/quickstart-$i
done
((i == 2)) || say "build/quickstart holds a run, which stays; this one is in $work"
mkdir -p "$work"
prompt="The "
if [[ -z $text ]]; then
  text=$work/sources.txt
  prompt="#include <"
  say "collecting the repository's sources in $text"
  find . -mindepth 1 \( -name build -o -name '.?*' \) -prune -o -type f \
    \( -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.fbs' -o -name '*.md' -o -name '*.py' \) -print0 |
    LC_ALL=C sort -z | xargs -0 cat >"$text"
fi

say "compiling schema/examples/moe-tiny.json"
"$bin/moec" schema/examples/moe-tiny.json --total-steps "$steps" -o "$work/moe-tiny.plan"

say "training for $steps steps"
"$bin/moerun" train "$work/moe-tiny.plan" --data "$text" --max-steps "$steps" --out-dir "$work/run" \
  --log-every "$((steps / 10))" --sample-prompt "$prompt"

cat <<END

To go on, from the repository:
  ${bin#"$root"/}/moerun generate $work/run --prompt "$prompt" --temp 0.8
  ${bin#"$root"/}/moerun train $work/moe-tiny.plan --data ${text@Q} --max-steps $((2 * steps)) --out-dir $work/run --resume
  ${bin#"$root"/}/moec explain $work/moe-tiny.plan
END
