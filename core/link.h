/* link.h: what a backend does for a pool: start workers, post batches to them, bring back what
   they say. The pool knows this page only, so that a second backend is one more file.
   Slots are the pool's numbers for batches that are out; workers are numbers from 0.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_LINK_H
#define PLUA_LINK_H

#include "base.h"
#include "plua.h"

struct link;

/* A batch: n items of a job from 'first' on. Payload places are offsets in the shared memory. */
struct link_batch {
  uint64_t job, first;
  uint64_t off, call_off, call_len;
  unsigned n, attempt;
  int urgent; /* goes before what lies ready already */
};

/* What workers said or suffered, in an order that each worker's own frames keep. */
enum link_what {
  LINK_NOTHING,
  LINK_UP,    /* worker has started and takes work */
  LINK_BOOT,  /* worker cannot start: data */
  LINK_BEGIN, /* worker has begun 'slot' */
  LINK_VALUE, /* outcomes of 'n' items of the batch that the worker is in, 'len' bytes in all: the
                 replies that 'next' was given, the first one in 'data' too */
  LINK_ERROR, /* outcome of one, an error: data, failed, elapsed_ns */
  LINK_CODE,  /* the same, without bytes: code, elapsed_ns */
  LINK_END,   /* the worker needed elapsed_ns for 'n' items of this batch */
  LINK_LEFT,  /* 'leave' reported an error: data */
  LINK_BACK,  /* the batch in 'slot' came back whole: nothing of it is known to have begun. code
                PLUA_EPROTO: a dead worker may have, and has spoilt what would tell; 'worker' is -1
                where it is not known which */
  LINK_QUIET, /* all that a held worker had published was told */
  LINK_FAULT, /* worker broke the protocol; it is being killed */
  LINK_DEAD   /* worker is gone: 'slot' is the batch it was last in (-1: none), 'next' how many of
                 it were begun (-1: not known), signal, status; code PLUA_EPROTO: it had broken the
                 protocol, PLUA_EOOM: the kernel killed it for want of memory */
};

struct link_event {
  enum link_what what;
  int worker;
  pid_t pid;
  int slot;
  uint32_t tag; /* VALUE, ERROR, CODE: offset of the (first) item in its batch */
  int64_t next;
  const void *data; /* borrowed until the next call of 'next' */
  size_t len;
  const char *output; /* ERROR, DEAD: what the item printed, as far as it was kept; borrowed too */
  size_t output_len;
  int failed; /* ERROR: what 'run' answered; DEAD: not 0 where it was leaving */
  int code, signal, status;
  unsigned n;
  int64_t elapsed_ns;
};

enum link_wait { LINK_ANY, LINK_BULK };

struct link_ops {
  /* -EAGAIN: not now. The slot is free. */
  int (*post)(struct link *l, unsigned slot, const struct link_batch *b);
  /* Wakes workers for what was posted since. */
  void (*flush)(struct link *l);
  /* Takes back all of a batch that was not begun, but at least 'keep' items stay: the number that
     stay (0: the whole batch came back and its slot is free), or -1: nothing came back. */
  int (*retract)(struct link *l, unsigned slot, unsigned keep);
  /* Every outcome of the batch has come: its slot is free. */
  void (*release)(struct link *l, unsigned slot);
  /* Starts worker w, and perhaps some of those behind it, n in all at most: how many, or a negative
     code. Does not return in the workers. */
  int (*start)(struct link *l, int w, unsigned n);
  /* Asks worker w to leave when it is idle; w negative: all of them. */
  void (*retire)(struct link *l, int w);
  /* Stops the worker that runs one of the items [low, high) of 'slot' from claiming: its number,
     and *k is the item (then LINK_QUIET or LINK_DEAD comes); or -1: none of them runs. 'resume'
     undoes it. */
  int (*hold)(struct link *l, unsigned slot, unsigned low, unsigned high, unsigned *k);
  void (*resume)(struct link *l, int w);
  /* Which worker has begun an item of 'slot', *k the last one that it began; -1: none. */
  int (*running)(struct link *l, unsigned slot, unsigned *k);
  /* Has item k of 'slot' interrupted in worker w, if it still runs it. */
  void (*interrupt)(struct link *l, int w, unsigned slot, unsigned k);
  void (*kill)(struct link *l, int w);
  /* What worker w has said contradicts what it was given: no more of it is told, until it is dead.
   */
  void (*distrust)(struct link *l, int w);
  /* Worker w was killed and does not end: from now on nothing that it says counts. LINK_DEAD comes
     if it ends after all. */
  void (*abandon)(struct link *l, int w);
  /* Kills worker w if somebody has stopped it while it runs nothing: it has begun at most 'got'
     items of the batch that it began last. One that shall leave is let go on, the first time. */
  void (*end_stopped)(struct link *l, int w, unsigned got);
  /* The next event. replies[] takes 'max' values at most; NULL: one value at a time. */
  int (*next)(struct link *l, struct link_event *e, plua_reply *replies, unsigned max);
  /* 1: something came, 0: time ran out, -EINTR. 'low': ring when few batches are left to take. */
  int (*wait)(struct link *l, int64_t timeout_ns, enum link_wait how, int low);
  /* Like wait, but returns at once with the descriptor armed: 1 something is there, 0 armed. */
  int (*arm)(struct link *l, int64_t timeout_ns);
  int (*fd)(struct link *l);
  /* Workers that sleep for want of work: a hint. */
  unsigned (*idle)(struct link *l);
  void (*close)(struct link *l);
};

struct link {
  const struct link_ops *ops;
  unsigned char *memory; /* payload area as the pool sees it: offset o is memory[o] */
  uint64_t payload_off, payload_len;
  int memory_fd;
  unsigned cap; /* workers are numbered below this */
};

/* local.c: forked workers over shared memory. */
int local_open(struct link **out, const plua_options *o, const plua_tasks *tasks);

#endif
