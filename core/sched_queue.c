/* sched_queue.c: queues of items that wait, as spans.
   Invariant: a span holds at least one item; nodes come from those set aside, so that nothing but
   setting them aside can fail. Knows positions. Does not know workers or batches.
   SPDX-License-Identifier: MIT */
#include "sched_queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"

/* ---- nodes --------------------------------------------------------------------------------- */

int spans_set_aside(struct spans *s, unsigned n) {
  while (s->spares < n) {
    struct span *p = malloc(sizeof *p);
    if (!p) return -ENOMEM;
    p->next = s->spare;
    s->spare = p;
    s->spares++;
  }
  return 0;
}

static struct span *node(struct spans *s) {
  struct span *p = s->spare;
  if (!p) IMPOSSIBLE("no queue node was set aside");
  s->spare = p->next;
  s->spares--;
  return p;
}

static void drop(struct span *p, struct spans *s) {
  p->prev->next = p->next;
  p->next->prev = p->prev;
  p->next = s->spare;
  s->spare = p;
  s->spares++;
}

static void free_list(struct span *p, const struct span *end) {
  while (p != end) {
    struct span *next = p->next;
    free(p);
    p = next;
  }
}

void spans_free(struct spans *s) {
  free_list(s->spare, NULL);
}

/* ---- queues -------------------------------------------------------------------------------- */

void queue_make(struct queue *q) {
  q->head.next = q->head.prev = &q->head;
}

void queue_free(struct queue *q) {
  free_list(q->head.next, &q->head);
}

static void link_behind(struct span *before, struct spans *s, const struct span *what) {
  struct span *p = node(s);
  *p = *what;
  p->prev = before;
  p->next = before->next;
  before->next->prev = p;
  before->next = p;
}

/* Nothing was charged at the first attempt. */
static bool same_past(const struct past *a, const struct past *b) {
  return a->attempt == b->attempt && (a->attempt == 1 || memcmp(a, b, sizeof *a) == 0);
}

void queue_append(struct queue *q, struct spans *s, const struct span *what) {
  struct span *last = q->head.prev;
  if (last != &q->head && last->job == what->job && last->first + last->n == what->first &&
      same_past(&last->past, &what->past))
    last->n += what->n;
  else
    link_behind(last, s, what);
}

void queue_push(struct queue *q, struct spans *s, const struct span *what) {
  link_behind(&q->head, s, what);
}

void span_take(struct span *p, struct spans *s, uint64_t n) {
  p->first += n;
  p->n -= n;
  if (p->n == 0) drop(p, s);
}

uint64_t span_cut(struct span *p, struct spans *s, uint64_t first, uint64_t end) {
  uint64_t last = p->first + p->n;
  if (first < p->first) first = p->first;
  if (end > last) end = last;
  if (first >= end) return 0;
  if (end < last && first > p->first) {
    struct span rest = *p;
    rest.first = end;
    rest.n = last - end;
    link_behind(p, s, &rest);
    p->n = first - p->first;
  } else if (first > p->first) {
    p->n = first - p->first;
  } else {
    p->first = end;
    p->n = last - end;
  }
  if (p->n == 0) drop(p, s);
  return end - first;
}
