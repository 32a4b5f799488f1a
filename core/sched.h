/* sched.h: decides which items are given to workers and what becomes of each: a pure state machine.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_SCHED_H
#define PLUA_SCHED_H

#include <stdbool.h>
#include <stdint.h>

struct sched;

/* A run of items of one job that is, or will be, in a slot. */
struct sched_batch {
  uint64_t job, first;
  unsigned n;
  unsigned attempt; /* 1 for the first */
  bool urgent;      /* it was out before: it goes ahead of the rest */
};

struct sched_item {
  uint64_t job, index;
  unsigned attempt;
};

/* What becomes of an item after an event. */
enum sched_verdict {
  SCHED_DELIVER, /* this is its outcome */
  SCHED_AGAIN,   /* it will be run again */
  SCHED_DROP,    /* nobody wants it: cancelled, forgotten, or there was none */
  SCHED_FAULT    /* the event contradicts what was given out */
};

/* What an item is charged with. Each has retries of its own. */
enum sched_charge {
  SCHED_CRASH,   /* it took its worker along */
  SCHED_ERROR,   /* it ended by an error */
  SCHED_TIMEOUT, /* it ran for too long */
  SCHED_KILL,    /* somebody else killed its worker */
  SCHED_OOM,     /* memory ran out and the kernel took its worker: it is tried again alone */
  SCHED_CHARGES,
  SCHED_FINAL = SCHED_CHARGES, /* not tried again, whatever its retries say */
  SCHED_FINE                   /* it ended well */
};

struct sched_counts {
  uint64_t submitted, done, retried, batches, divided;
};

/* 'slots' batches can be out at once, to at most 'workers' workers. 0 or -ENOMEM. */
int sched_open(struct sched **out, unsigned slots, unsigned workers);
void sched_close(struct sched *s);

/* ---- jobs ---------------------------------------------------------------------------------- */

/* chunk 0: sized from measured times. 0 or -ENOMEM. */
int sched_job(struct sched *s, unsigned chunk, const unsigned retries[SCHED_CHARGES], uint64_t *id);
/* Items are added at the job's end. 0, PLUA_EARG (no such job) or -ENOMEM. */
int sched_add(struct sched *s, uint64_t id, uint64_t count);
/* Forgets a job: what waits is dropped, outcomes to come are SCHED_DROP. The number stays taken
   until nothing of it is out. */
int sched_forget(struct sched *s, uint64_t id);
/* Withdraws waiting items in [first, end): how many; they have no outcome any more. What is out
   must be taken back first. Negative: PLUA_EARG, -ENOMEM. */
int64_t sched_withdraw(struct sched *s, uint64_t id, uint64_t first, uint64_t end);
bool sched_known(const struct sched *s, uint64_t id);
/* Whether its number is still taken: false after sched_forget once nothing of it is out. */
bool sched_held(const struct sched *s, uint64_t id);
/* A small number that no other living job has: an index for the caller's own table. */
uint32_t sched_index(uint64_t id);

/* ---- batches ------------------------------------------------------------------------------- */

/* The next batch to give out: 1 and *slot, *b; 0 when nothing waits or no slot is free; -ENOMEM.
   The slot counts as out from then on; sched_unpost takes that back as far as it could not be
   posted: all but 'keep' items wait again where they waited. An item that memory ran out for is
   given out when nothing else is out, and nothing else while it is: once the others are done, or
   sched_patience batches were given out since it waits. */
int sched_post(struct sched *s, unsigned *slot, struct sched_batch *b);
void sched_unpost(struct sched *s, unsigned slot, unsigned keep);
void sched_patience(struct sched *s, unsigned batches);
/* How many items more of this job giving out may wait for: what its waiting items lack to a whole
   batch; none where some worker may soon be without work. */
uint64_t sched_slack(const struct sched *s, uint64_t id);
/* What is out in a slot; false if nothing is. 'worker' is -1 until one has begun it; 'got' is how
   many outcomes have come. */
bool sched_out(const struct sched *s, unsigned slot, struct sched_batch *b, int *worker,
               unsigned *got);
/* The first slot from *slot on that holds a batch of this job. False: none. */
bool sched_slot_next(const struct sched *s, uint64_t id, unsigned *slot);
/* Sets memory aside for one more take-back. 0 or -ENOMEM: then take nothing back now. */
int sched_prepare(struct sched *s);
/* All but the first 'keep' items of the batch came back (they wait again). True: nothing of it is
   out any more, the slot is free. */
bool sched_back(struct sched *s, unsigned slot, unsigned keep);
/* Items [from, end) of the batch that is out in 'slot' are not tried again if they fail. Of two
   ranges that are apart, only the first counts as long as an outcome of it is to come. */
void sched_last_try(struct sched *s, unsigned slot, unsigned from, unsigned end);

/* ---- what workers do ----------------------------------------------------------------------- */

/* Worker w began the batch in 'slot'. False: a fault, as when its last one is not done. */
bool sched_begin(struct sched *s, unsigned w, unsigned slot);
/* Worker w published the outcome of item k of the batch in slot: SCHED_FINE, SCHED_ERROR or
   SCHED_TIMEOUT. *freed: the slot is free now. */
enum sched_verdict sched_outcome(struct sched *s, unsigned w, unsigned slot, unsigned k,
                                 enum sched_charge how, struct sched_item *item, bool *freed);
/* The same for items [k, k + n) that went well, n at least 1: *item is the first. The verdict,
   which holds for all, is SCHED_DELIVER, SCHED_DROP or SCHED_FAULT. */
enum sched_verdict sched_values(struct sched *s, unsigned w, unsigned slot, unsigned k, unsigned n,
                                struct sched_item *item, bool *freed);
/* Worker w ended the batch that it began last, having spent 'ns' on 'n' items. False: a fault, not
   all its outcomes have come. */
bool sched_end(struct sched *s, unsigned w, unsigned n, int64_t ns);
/* Worker w died in 'slot' (-1: in none), having begun 'next' items of it (-1: not known). At most
   one item is charged, with 'how': *item, if the verdict is not SCHED_DROP with job 0. *freed: the
   slot is free now. */
enum sched_verdict sched_death(struct sched *s, unsigned w, int slot, int64_t next,
                               enum sched_charge how, struct sched_item *item, bool *freed);

/* The first item of the batch in 'slot', which no worker is known to have begun, took a worker
   along all the same: it is charged, the rest waits again, the slot is free. */
enum sched_verdict sched_blame(struct sched *s, unsigned slot, struct sched_item *item);

/* ---- state --------------------------------------------------------------------------------- */

/* Which batch to divide for an idle worker: its slot, and in *keep how many items should stay, or
   -1. 'now_ns' tells batches that stand still from those that move. */
int sched_divide(struct sched *s, int64_t now_ns, bool idle, unsigned *keep);
/* Whether a batch that was begun could be divided, now or later. */
bool sched_divisible(struct sched *s);
bool sched_waiting(const struct sched *s);     /* items wait for a slot */
bool sched_dry(const struct sched *s);         /* none that could go out now does */
uint64_t sched_pending(const struct sched *s); /* items without an outcome */
uint64_t sched_given(const struct sched *s);   /* those of them that are out */
unsigned sched_unbegun(const struct sched *s); /* batches out that no worker has begun */
/* Whether items wait and so many slots are free that filling them is worth a wake-up: several while
   workers run out of batches, many while they have enough. When nothing else is to be done, filling
   any is. */
bool sched_due(const struct sched *s);
struct sched_counts sched_counts(const struct sched *s);
/* The number of workers that share the work: batches are cut so that each gets some. */
void sched_team(struct sched *s, unsigned workers);

#endif
