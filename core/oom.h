/* oom.h: whether the kernel ended a process for want of memory.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_OOM_H
#define PLUA_OOM_H

#include <stdbool.h>
#include <stdint.h>

struct oom {
  char path[256];   /* the file that counts; "": none is readable */
  uint64_t seen;    /* what it said last */
  uint64_t left;    /* kills of that which no death has been told to be */
  int64_t moved_ns; /* when it moved last */
};

/* Finds this process's counter, which processes forked from it share, and reads it. */
void oom_open(struct oom *o);
/* A process was killed by SIGKILL, not by us: whether the counter says that memory ran out. Each
   kill that was counted is told of once. */
bool oom_took(struct oom *o);

#endif
