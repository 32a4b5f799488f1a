#!/bin/sh
# Installs the packages that a task needs and that are missing: deps.sh build|run|test|lint|fuzz|bench...
# Where all is there it says nothing, needs no network and no rights. SPDX-License-Identifier: MIT
set -eu

build="make pkg-config libc6-dev lua5.4 liblua5.4-dev"
case ${CC:-gcc} in
  *clang*) build="$build clang" ;;
  *) build="$build gcc" ;;
esac

# What the fuzzer's runtime lies in, where clang does not bring it along.
fuzzer() {
  runtime=$(clang -print-runtime-dir 2>/dev/null) || runtime=""
  [ -e "$runtime/libclang_rt.fuzzer-$(uname -m).a" ] || echo libclang-rt-dev
}

# The peers that plua is measured beside, and what counts instructions.
peers="python3 python3-joblib perl libmce-perl ocaml ocaml-findlib libparmap-ocaml-dev parallel"

packages() {
  for need in "$@"; do
    case $need in
      build) echo "$build" ;;
      run) echo "$build lua-cjson" ;;
      test) echo "$build lua-cjson lua-busted valgrind" ;;
      coverage) echo "$build gcovr" ;;
      lint) echo "$build lua-check clang-format clang-tidy cppcheck shellcheck" ;;
      fuzz) echo "$build clang $(fuzzer)" ;;
      bench) echo "$build lua-cjson $peers linux-perf" ;;
      *)
        echo "deps.sh: unknown need '$need': build, run, test, lint, coverage, fuzz or bench" >&2
        return 2
        ;;
    esac
  done
}

# Those of the packages named that dpkg does not know as installed.
missing() {
  dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
    awk -v want="$*" '
      $1 == "installed" { there[$2] = 1 }
      END {
        n = split(want, name, " ")
        for (i = 1; i <= n; i++)
          if (!(name[i] in there) && !seen[name[i]]++) printf "%s ", name[i]
      }'
}

wanted=$(packages "${@:-build}")
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  for tool in make pkg-config lua5.4 "${CC:-cc}"; do
    command -v "${tool%% *}" >/dev/null && continue
    echo "plua: '$tool' is missing, and only Debian and Ubuntu are installed to by this script." >&2
    echo "Install what these Debian packages hold: $(echo "$wanted" | tr '\n' ' ')" >&2
    exit 1
  done
  exit 0
fi

# shellcheck disable=SC2086  # a list of words
lacking=$(missing $wanted)
[ -n "$lacking" ] || exit 0

root=""
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "plua: these packages are missing: $lacking" >&2
    echo "As root: apt-get install $lacking" >&2
    exit 1
  fi
  root="sudo"
fi
echo "plua: installs $lacking" >&2
quiet="-qq -o Dpkg::Use-Pty=0"
# shellcheck disable=SC2086  # lists of words
{
  $root apt-get $quiet update &&
    $root env DEBIAN_FRONTEND=noninteractive apt-get $quiet install -y --no-install-recommends \
      $lacking >/dev/null
} || {
  echo "plua: apt-get could not install $lacking: see its messages above" >&2
  exit 1
}
