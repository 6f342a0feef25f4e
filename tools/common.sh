# Sourced by the scripts beside it: messages, help; installs what the build needs, configures and builds. Sets
# `root`, the repository, and after `build` also `bin`, the folder of the executables.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

packages=(
  build-essential ccache cmake ninja-build
  doctest-dev flatbuffers-compiler libbenchmark-dev libcli11-dev libflatbuffers-dev libfmt-dev libopenblas-dev
  libxxhash-dev nlohmann-json3-dev
)

say() { printf '==> %s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "${@:2}" >&2; exit "$1"; }
die() { fail 1 "$*"; }
refuse() { fail 2 "$*"; }  # wrong use or input

# help_for ARGUMENT...: where --help is among them, prints the script's head comment and ends.
help_for() {
  local argument
  for argument; do
    [[ $argument != -h && $argument != --help ]] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" && exit; }
  done
}

# need_files FILE...: refuses what cannot be read.
need_files() {
  local file
  for file; do
    [[ -f $file && -r $file ]] || refuse "$file: cannot be read"
  done
}

# Installs the packages that are missing; on systems without apt it leaves the search for them to CMake.
install_packages() {
  command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || return 0
  local package missing=()
  for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "needs these packages, and root or sudo to install them: ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${as_root[@]}" apt-get -qq update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    "${missing[@]}" >/dev/null
}

# The preset of this machine: cuda where there are an NVIDIA GPU and a CUDA compiler, else cpu.
choose_preset() {
  local nvcc
  nvcc=$(command -v nvcc || compgen -G '/usr/local/cuda/bin/nvcc' || true)
  if [[ -n $nvcc && -e /dev/nvidiactl ]]; then
    export CUDACXX=$nvcc
    echo cuda
  else
    echo cpu
  fi
}

# build [TARGET...]: configures and builds, MOEC_PRESET or the preset of this machine.
build() {
  install_packages
  local preset known
  preset=${MOEC_PRESET:-$(choose_preset)}
  known=$(cd "$root" && cmake --list-presets | sed -n 's/^ *"\([^"]*\)".*/\1/p')
  grep -qxF -- "$preset" <<<"$known" || refuse "MOEC_PRESET=$preset: no preset; there are" $known
  bin=$root/build/$preset/bin
  say "building in build/$preset (about ten minutes on two cores the first time)"
  local log
  log=$(cd "$root" && cmake --preset "$preset" 2>&1) || die "cmake --preset $preset failed:"$'\n'"$log"
  local quiet=()
  [[ -t 1 ]] || quiet=(--quiet)
  ninja -C "$root/build/$preset" "${quiet[@]}" -j "$(nproc)" "$@"
}
