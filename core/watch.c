/* watch.c: items that run for too long: interrupted first, killed after a grace; and workers that
   were stopped while they run nothing, where a call would wait for them: ended.
   Invariant: an item is given its whole timeout, counted from when it was first seen running; only
   that item is hit, since the interrupt names it and a kill holds its worker first.
   Knows the monotonic clock and the pool. Does not know signals or Lua.
   SPDX-License-Identifier: MIT */
#include "pool.h"

#define AGAIN_NS 50000000
#define TICK_MIN_NS 1000000
#define TICK_MAX_NS 50000000

#define LEAVE_TICK_NS (GRACE_NS / 2)

/* Also while workers leave. */
static bool watches(const struct plua_pool *p) {
  return p->timed || p->retired || p->parting;
}

int64_t pool_watch_tick(const struct plua_pool *p) {
  if (!watches(p)) return -1;
  if (!p->timed) return LEAVE_TICK_NS;
  int64_t tick = p->shortest_ns / 16;
  return tick < TICK_MIN_NS ? TICK_MIN_NS : tick > TICK_MAX_NS ? TICK_MAX_NS : tick;
}

/* Which item worker w runs now, and how long it may. False: none that is timed. */
static bool timed_item(struct plua_pool *p, int number, unsigned *k, int64_t *timeout_ns) {
  const struct worker *w = &p->worker[number];
  struct sched_batch b;
  int who;
  unsigned got;
  if (w->state != W_UP || w->in_slot < 0 || w->doomed) return false;
  unsigned slot = (unsigned)w->in_slot;
  if (!sched_out(p->sched, slot, &b, &who, &got) || who != number) return false;
  const struct pool_job *j = pool_job(p, b.job);
  *timeout_ns = j ? j->timeout_ns : 0;
  return *timeout_ns && p->link->ops->running(p->link, slot, k) == number && *k >= got;
}

/* The grace is counted from the first interrupt, which may come late: the owner was busy elsewhere,
   or did not get to run. */
static void end_item(struct plua_pool *p, int number, unsigned k, int64_t grace_ns, int64_t now) {
  struct worker *w = &p->worker[number];
  unsigned slot = (unsigned)w->in_slot, held;
  if (!w->told_ns) w->told_ns = now;
  if (now - w->told_ns >= grace_ns) {
    if (p->link->ops->hold(p->link, slot, k, k + 1, &held) == number)
      pool_doom(p, number, slot, k, PLUA_ETIMEOUT, false);
  } else if (now >= w->again_ns) {
    w->again_ns = now + AGAIN_NS;
    p->link->ops->interrupt(p->link, number, slot, k);
  }
}

/* Between items a worker needs microseconds, but for 'init' and 'finish', which may take long; one
   that is stopped there holds back what it has taken, or never leaves. Where nothing is timed, that
   is for whoever has stopped it to know, save of those that shall leave. */
static void end_stopped(struct plua_pool *p, int number, int64_t now) {
  struct worker *w = &p->worker[number];
  struct sched_batch b;
  int who;
  unsigned got;
  bool parts = p->retired || w->leaves;
  if (w->state == W_NONE || w->doomed || !(p->timed || parts)) return;
  if (!w->rests_ns) w->rests_ns = now;
  if (now - w->rests_ns < GRACE_NS + (parts ? 0 : p->shortest_ns)) return;
  w->rests_ns = now; /* asks the kernel now and then only */
  bool out = w->in_slot >= 0 && sched_out(p->sched, (unsigned)w->in_slot, &b, &who, &got);
  p->link->ops->end_stopped(p->link, number, out && who == number ? got : UINT32_MAX);
}

void pool_watch(struct plua_pool *p) {
  if (!watches(p)) return;
  int64_t now = now_ns(), timeout_ns;
  unsigned k;
  if (!p->timed && now < p->look_ns) return;
  p->look_ns = now + LEAVE_TICK_NS;
  p->parting = false;
  for (unsigned i = 0; i < p->link->cap; i++) {
    struct worker *w = &p->worker[i];
    p->parting |= w->leaves;
    if (w->doomed) continue; /* how long it ran is told with its death */
    if (!timed_item(p, (int)i, &k, &timeout_ns)) {
      w->since_ns = 0;
      end_stopped(p, (int)i, now);
    } else if (!w->since_ns || w->watched != k) {
      w->since_ns = now;
      w->watched = k;
      w->rests_ns = 0;
      w->told_ns = w->again_ns = 0;
    } else if (now - w->since_ns >= timeout_ns) {
      int64_t grace = p->interruptible ? GRACE_NS + timeout_ns / 10 : 0;
      end_item(p, (int)i, k, grace, now);
    }
  }
}

void pool_watch_shift(struct plua_pool *p, int64_t gap_ns) {
  for (unsigned i = 0; watches(p) && i < p->link->cap; i++) {
    if (p->worker[i].since_ns) p->worker[i].since_ns += gap_ns;
    if (p->worker[i].told_ns) p->worker[i].told_ns += gap_ns;
    if (p->worker[i].rests_ns) p->worker[i].rests_ns += gap_ns;
  }
}
