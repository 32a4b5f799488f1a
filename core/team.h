/* team.h: how one team's shared mapping is laid out; the owner's half is local.c, the workers'
   half serve.c. SPDX-License-Identifier: MIT */
#ifndef PLUA_TEAM_H
#define PLUA_TEAM_H

#include "base.h"
#include "board.h"
#include "capture.h"
#include "proc.h"
#include "ring.h"

/* board | slice 0 | slice 1 | ... | payload area | spill area 0 | spill area 1 | ...
   slice = struct slice | ring data
   Memory is used when it is touched; what most workers touch lies close together. */
struct slice {
  _Atomic uint64_t word; /* board.h */
  char pad0[56];
  _Atomic uint32_t retire;     /* owner: leave when idle */
  _Atomic uint32_t go;         /* owner: this process is watched and may begin; a futex */
  _Atomic uint32_t sleeping;   /* worker: AWAKE, DROWSY, ASLEEP, WAKING (board.h) */
  _Atomic uint32_t spill_done; /* owner: spilled messages that it has released */
  _Atomic uint64_t
    interrupt;               /* owner: seq and item + 1 (as a word) that shall end, before SIGURG */
  _Atomic uint64_t shown[2]; /* worker: how much of its captured output is out (capture.h) */
  char pad1[16];
  struct ring_shared ring;
};

enum { GO_NOT, GO_AWAITED, GO_NOW, GO_LEAVES };

struct team {
  unsigned char *base;     /* owner: the mapping */
  void *board;             /* of its own */
  unsigned char *payloads; /* worker: what offsets of payloads count from */
  size_t total;
  size_t payload_off, payload_len;
  size_t slices_off, stride;
  size_t ring_off, ring_size; /* in a slice */
  size_t spills_off, spill_len;
  bool spill_early; /* worker: its spill area has to be mapped while the descriptor is open */
  unsigned cap;     /* slices */
  struct board_view view;
  int memory_fd, bell_fd, epoll_fd;
  int mail_fd[2]; /* the owner's end, the workers' end: captured output of who may die; and its end
                     closes with the owner, though that becomes another program */
  pid_t owner;
  struct proc_signals signals;
  plua_tasks tasks;
  unsigned flags;
  uint64_t max_tasks, max_rss;
  uint32_t asks;          /* requests to spares so far */
  uint32_t asked[SPARES]; /* the last one on each line */
  uint64_t secret;        /* known to the team's processes, not to who scribbles on the board */
};

/* Frames on a ring. The tag of VALUE, ERROR and CODE is the item's offset in its batch; a body of
   a spilled frame is {offset in the mapping, length}. */
enum frame {
  FRAME_BEGIN, /* body: uint32_t slot, seq */
  FRAME_VALUE,
  FRAME_ERROR, /* the message, what the item printed, then struct frame_tail */
  FRAME_CODE,  /* struct frame_tail */
  FRAME_END,   /* tag: items, body: int64_t ns */
  FRAME_UP,
  FRAME_BOOT,
  FRAME_LEFT,
  FRAME_SPILLED = 8 /* added to VALUE, ERROR, BOOT, LEFT */
};

struct frame_tail {
  int64_t elapsed_ns;
  int32_t code;
  uint32_t printed; /* bytes of what it printed, before this */
};

struct frame_spill {
  uint64_t off, len;
};

enum { STATUS_GUARD = 70, STATUS_BOARD = 71 }; /* exit statuses of workers that gave up */

static inline struct slice *team_slice(const struct team *t, unsigned w) {
  return (struct slice *)(t->base + t->slices_off + (size_t)w * t->stride);
}
static inline size_t team_spill(const struct team *t, unsigned w) {
  return t->spills_off + (size_t)w * t->spill_len;
}

/* Makes the mapping and the descriptors. 0 or a negated errno, and then nothing is left open. */
int team_open(struct team *t, unsigned slots, size_t ring, unsigned cap);
void team_close(struct team *t);

/* In a process forked by the owner, which has the board only: maps the payload area, to be read;
   the slice of worker w, or its spill area, and answers where. 0 or a negated errno; NULL. All but
   team_enter_spill need the descriptor; that too where spill_early says so. */
int team_enter(struct team *t);
struct slice *team_enter_slice(const struct team *t, unsigned w);
unsigned char *team_enter_spill(const struct team *t, unsigned w);
/* In a process that a worker forked: memory of its own in place of so much of a slice or a spill
   area, so that nobody else reads what it writes there. */
void team_part(void *area, size_t len);

/* spare.c: idle copies of the owner, from which workers are made, each asked on a line of its own.
   This is the one of a line that has not been asked yet. */
_Noreturn void spare_serve(struct team *t, unsigned line);
/* Workers first, first + step, ..., n of them, at most SPARE_RUN. Of step 0: a copy of the spare
   itself, which is asked on the line 'first'. */
struct spare_run {
  unsigned first, n, step;
};
/* Owner: has the spare on a line make those, in that order. */
void spare_ask(struct team *t, unsigned line, struct spare_run run);
/* Owner: waits for the i-th of those: its pid; a negated errno: it could not be made, and none is
   behind it; 0: the spare is dead or stopped, or might as well be. */
pid_t spare_made(struct team *t, const struct proc *spare, unsigned line, struct spare_run run,
                 unsigned i);

/* serve.c: does what all workers have in common, in a process that the owner has forked and that
   becomes a worker, or makes them; then calls 'then' inside the tasks' guard. */
_Noreturn void serve_ready(struct team *t, void (*then)(void *arg), void *arg);
/* In such a process: leaves by _exit where the owner is there no more. */
void serve_tied(const struct team *t);
/* The life of worker w, called by 'then' or in a copy of its process: ends in _exit. */
_Noreturn void serve(struct team *t, unsigned w);

#endif
