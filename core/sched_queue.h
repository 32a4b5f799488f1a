/* sched_queue.h: items that wait: runs of one job with the same past, in queues.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_SCHED_QUEUE_H
#define PLUA_SCHED_QUEUE_H

#include "sched.h"

/* What items were charged with so far. */
struct past {
  unsigned charged[SCHED_CHARGES];
  unsigned attempt; /* 1 and all of these */
};

/* Items that wait: a run of one job with the same past. */
struct span {
  struct span *next, *prev;
  uint64_t job, first, n;
  struct past past;
};

struct queue {
  struct span head; /* a ring of spans */
};

/* Nodes that no queue holds. */
struct spans {
  struct span *spare; /* linked by 'next' */
  unsigned spares;
};

/* Has at least n nodes aside, so that what follows cannot fail. 0 or -ENOMEM. */
int spans_set_aside(struct spans *s, unsigned n);
void spans_free(struct spans *s);

void queue_make(struct queue *q);
void queue_free(struct queue *q);
static inline bool queue_is_empty(const struct queue *q) {
  return q->head.next == &q->head;
}

/* Appends a span; one that goes on where the last ended becomes part of it. Takes a node at most,
   as does what follows. */
void queue_append(struct queue *q, struct spans *s, const struct span *what);
/* Puts a span in front. */
void queue_push(struct queue *q, struct spans *s, const struct span *what);
/* Takes the first n items of a span that holds so many. */
void span_take(struct span *p, struct spans *s, uint64_t n);
/* Cuts [first, end) out of a span; the part behind it becomes a span of its own. Answers how many
   items that were. */
uint64_t span_cut(struct span *p, struct spans *s, uint64_t first, uint64_t end);

#endif
