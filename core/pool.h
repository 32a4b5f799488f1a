/* pool.h: the pool as its two halves share it: pool.c takes requests, pump.c carries events.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_POOL_H
#define PLUA_POOL_H

#include <stdbool.h>

#include "link.h"
#include "places.h"
#include "sched.h"
#include "store.h"

enum { PLUA_FLAGS = PLUA_KEEP_FDS | PLUA_SPARE | PLUA_GROUPED | PLUA_LAST_WORDS };
enum { BOOT_DEATHS_MAX = 3, BOOT_KILLS_MAX = 100 };

enum worker_state {
  W_NONE, /* no process */
  W_BOOTING,
  W_UP,
  W_LOST /* killed, but the kernel has not ended it; its place is another's */
};

struct worker {
  enum worker_state state;
  bool broken;       /* broke the protocol: what it says is ignored until it is dead */
  bool doomed;       /* held, or killed, for the sake of one item */
  bool silent;       /* W doomed: that item's outcome is not told */
  unsigned slot, k;  /* doomed: the item */
  int code;          /* doomed: its outcome */
  int64_t killed_ns; /* when it was killed; 0: it was not */
  pid_t pid;         /* W_UP, W_LOST */
  int in_slot;       /* the batch that it began last; -1: none */
  /* watch.c: since when it runs item 'watched' of that batch (0: not watched); when that was first
     interrupted (0: it was not), and when it is again */
  int64_t since_ns, told_ns, again_ns;
  unsigned watched;
  int64_t rests_ns; /* watch.c: since when it runs nothing that is timed; 0: it does */
  bool leaves;      /* it was told to leave though others stay */
};

/* What the pool keeps of a job beside sched's own record; found by sched_index. */
struct pool_job {
  uint64_t id; /* 0: none */
  uint64_t call_off, call_len;
  int64_t timeout_ns; /* 0: none */
  struct places places;
  bool positions; /* has items without payload: then all are */
  bool forgotten;
};

struct cancelled {
  uint64_t job, index;
};

struct plua_pool {
  struct link *link;
  struct sched *sched;
  struct store *store;
  const volatile char *ours; /* 1 in the owner, 0 in processes that it forks */
  struct worker *worker;
  unsigned target, alive, slots;
  struct pool_job *job;
  size_t job_cap;
  uint64_t put_job; /* whose item plua_put is writing; 0: none */
  /* whose payloads go when the event is released: items [lent_index, + lent) of a job; 0: none */
  uint64_t lent_job, lent_index;
  unsigned lent;
  struct cancelled *cancelled; /* events to tell */
  size_t cancels, cancels_told, cancel_cap;
  bool no_memory;         /* work could not be given out for want of it */
  bool retired;           /* workers were told that nothing more comes */
  bool careful;           /* one item is out at a time, so that who breaks the protocol is known */
  int careful_slot;       /* where it is; -1: none was given out carefully yet */
  uint64_t careful_until; /* items done when that is over */
  struct link_event spoiler; /* the last death of a worker that broke the protocol */
  bool closing, ended_told, fork_told;
  bool parting;    /* a worker that was told to leave though others stay may not have left */
  int64_t look_ns; /* watch.c: when it looks again, where nothing is timed */
  int short_code;  /* to tell: why fewer workers than wanted; 0: nothing */
  bool short_told;
  int64_t fork_after_ns; /* no fork is asked for before */
  int failed;            /* PLUA_EBOOT: all is over */
  unsigned boot_deaths;
  int boot_signal, boot_status;
  bool interruptible;  /* tasks.interrupt was given */
  unsigned timed;      /* jobs with a timeout */
  int64_t shortest_ns; /* the shortest timeout of those since there was none */
  unsigned killed;     /* workers that were killed and are neither dead nor lost */
  uint64_t started, crashed, bytes_in, bytes_out;
  char message[256];
};

/* pump.c */
/* Gives out what waits. */
void pool_post(struct plua_pool *p);
/* Worker w is held in item k of 'slot' and shall not live to end it: 'code' is its outcome, not
   told if 'silent'. */
void pool_doom(struct plua_pool *p, int w, unsigned slot, unsigned k, int code, bool silent);
/* Takes back what was not begun of the batch in a slot, all but 'keep'. False: nothing. */
bool pool_take_back(struct plua_pool *p, unsigned slot, unsigned keep);
/* Takes work back for idle workers and from behind slow items. */
void pool_divide(struct plua_pool *p);
/* Frees the payloads of items [index, end), as far as they have some. */
void pool_free(struct plua_pool *p, struct pool_job *j, uint64_t index, uint64_t end);
/* Frees the payloads of a forgotten job once nothing of it is out. */
void pool_tidy(struct plua_pool *p, uint64_t job);
/* Tells workers that nothing more comes, once that is so. */
void pool_retire(struct plua_pool *p);
/* Has worker w leave when it is idle. */
void pool_part(struct plua_pool *p, unsigned w);
/* Frees what the last event had borrowed. */
void pool_release(struct plua_pool *p);
/* Makes the event of an item that has no reply; l: what is known of its worker. 1. */
int pool_tell_lost(struct plua_pool *p, const struct link_event *l, const struct sched_item *item,
                   int code, int64_t elapsed_ns, plua_event *e);
/* lost.c */
/* Kills worker w, and remembers when. */
void pool_kill(struct plua_pool *p, int w);
/* Gives up on workers that were killed and do not end. 1: *e tells of an item. */
int pool_give_up(struct plua_pool *p, plua_event *e);
/* When pool_give_up has something to do; -1: no need. */
int64_t pool_give_up_tick(const struct plua_pool *p);
/* watch.c */
/* Interrupts, and later dooms, items that run for too long. */
void pool_watch(struct plua_pool *p);
/* When pool_watch should be called again; -1: no need. */
int64_t pool_watch_tick(const struct plua_pool *p);
/* The owner itself stood still for so long (it was stopped): nobody is blamed for that. */
void pool_watch_shift(struct plua_pool *p, int64_t gap_ns);

/* Workers that should be started now. */
unsigned pool_missing(const struct plua_pool *p);
struct pool_job *pool_job(struct plua_pool *p, uint64_t id);
/* Makes the pool's message and answers 'code'. */
int pool_say(struct plua_pool *p, int code, const char *format, ...)
  __attribute__((format(printf, 3, 4)));

#endif
