#!/bin/sh
# One repetition of one case by GNU parallel, a process an item: parallel.sh CASE N. Prints
# "name value" lines. The items are the interpreter's, as they are for plua.
# SPDX-License-Identifier: MIT
set -eu
case=$1 n=$2
spin="local x = 0.5 for _ = 1, {} * 150000 do x = x * 1.0000001 + 1e-9 end"
now() { date +%s.%N; }

costs() {
  for i in $(seq 41); do
    case $case-$i in
      skew_first-1 | skew_middle-21 | skew_last-41) echo 400 ;;
      *) echo 10 ;;
    esac
  done
}

# The best of two workers that take items one by one, as a part of the sum of 800.
best() {
  case $case in
    skew_first) echo 0.5 ;;
    skew_middle) echo 0.625 ;;
    skew_last) echo 0.75 ;;
  esac
}

case $case in
  start)
    seq 6 | parallel -j 2 -k "lua5.4 -e 'print({}^3)'"
    ;;
  chunk1)
    start=$(now)
    seq "$n" | parallel -j 2 -k "lua5.4 -e 'print({}^3)'" >/dev/null
    echo "seconds $(echo "$(now) - $start" | bc)"
    ;;
  skew_*)
    start=$(now)
    costs | sed 's/.*/local x = 0.5 for _ = 1, & * 150000 do x = x * 1.0000001 + 1e-9 end/' |
      lua5.4 -
    echo "serial $(echo "$(now) - $start" | bc)"
    start=$(now)
    costs | parallel -j 2 -k "lua5.4 -e '$spin'"
    echo "seconds $(echo "$(now) - $start" | bc)"
    echo "best $(best)"
    ;;
esac
