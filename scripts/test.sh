#!/usr/bin/env bash
# Runs each spec file named by a busted of its own, under a hard time limit, and ends with the line
# "N passed, N failed". A run that crashes, hangs or counts nothing is a failure.
# SPDX-License-Identifier: MIT
set -u
ulimit -c 0

: "${B:=build}" "${LUA:=lua5.4}" "${CC:=gcc}" "${SAN:=}" "${FAIL:=}" "${SPEC_TIME:=300}"
passed=0
failed=0
tally=$B/tally
rm -rf "$B/san"
mkdir -p "$B/san"
export PLUA_BUILD="$B" PLUA_LUA="$LUA" PLUA_SAN="$SAN" PLUA_FAILPOINTS="$FAIL" PLUA_TALLY="$tally" PLUA_MAKE

# The interpreter is not sanitized, so it needs the runtime before all else.
preload=""
case $SAN-$CC in
  address-*clang*) preload=libclang_rt.asan-x86_64.so ;;
  address-*) preload=libasan.so ;;
  thread-*clang*) preload=libclang_rt.tsan-x86_64.so ;;
  thread-*) preload=libtsan.so ;;
esac
[ -z "$preload" ] || PLUA_PRELOAD=$($CC -print-file-name=$preload)
export PLUA_PRELOAD="${PLUA_PRELOAD:-}"

for spec in "$@"; do
  [ -f "$spec" ] && continue
  echo "test.sh: there is no spec file '$spec': name files such as spec/map_spec.lua" >&2
  exit 2
done

# Deaths that a spec asks for must look like deaths; what a sanitizer has to say goes to files,
# since a worker's stderr may be anywhere.
here=$(pwd)
signals=handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:handle_abort=0
# Little is kept of what was freed, since specs look at how memory grows.
common=log_path=$here/$B/san/report:$signals:allocator_may_return_null=1:quarantine_size_mb=2
export ASAN_OPTIONS="$common:use_sigaltstack=0:detect_leaks=0"
export UBSAN_OPTIONS="$common:print_stacktrace=1"
export TSAN_OPTIONS="$common:die_after_fork=0"

# A Lua of one's own does not look where the distribution puts busted.
if ! "$LUA" -e 'require "busted.core"' 2>/dev/null; then
  share=/usr/share/lua/5.4 lib=/usr/lib/$(uname -m)-linux-gnu/lua/5.4
  export LUA_PATH="$share/?.lua;$share/?/init.lua;;" LUA_CPATH="$lib/?.so;;"
fi

start="require('busted.runner')({ standalone = false })"
echo "$start" >"$B/busted.lua"
# GCC's thread sanitizer cannot map its shadow where addresses are randomised widely.
wrap=""
[ "$SAN" != thread ] || wrap="setarch -R"

for spec in "$@"; do
  echo "== $spec"
  rm -f "$tally"
  # For what specs start. The search for leaks is done by a child, and this one kills children.
  leaks=1
  [ "$spec" != spec/recovery_spec.lua ] || leaks=0
  export PLUA_ASAN_OPTIONS="$common:use_sigaltstack=0:detect_leaks=$leaks"
  # shellcheck disable=SC2086  # $wrap is a list of words
  timeout -k 5 "$SPEC_TIME" $wrap env LD_PRELOAD="$PLUA_PRELOAD" \
    "$LUA" "$B/busted.lua" -o spec/report.lua "$spec" </dev/null 2>"$B/stderr"
  status=$?
  cat "$B/stderr" >&2
  # Of the two runtimes of GCC only one writes to the log.
  if [ -n "$SAN" ] && grep -q '\.[ch]:[0-9]*:[0-9]*: runtime error: ' "$B/stderr"; then
    cp "$B/stderr" "$B/san/stderr.$(basename "$spec")"
  fi
  ok=0 bad=0
  if [ -s "$tally" ]; then
    read -r ok bad <"$tally"
    [ "$status" = 0 ] || [ "$bad" -gt 0 ] || bad=1
    [ $((ok + bad)) -gt 0 ] || { echo "$spec: holds no spec" && bad=1; }
  else
    case $status in
      124 | 137) echo "$spec: stopped after $SPEC_TIME seconds (SPEC_TIME=)" ;;
      *) echo "$spec: busted ended with status $status before it had counted" ;;
    esac
    bad=1
  fi
  passed=$((passed + ok)) failed=$((failed + bad))
done

for report in "$B"/san/*; do
  [ -f "$report" ] || continue
  echo "== $report"
  head -n 60 "$report"
  failed=$((failed + 1))
done
rmdir build/tmp 2>/dev/null
if [ $((passed + failed)) = 0 ]; then
  echo "no spec was run: is there a file spec/*_spec.lua?"
  failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
