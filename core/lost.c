/* lost.c: workers that were killed and do not end, since the kernel holds them: frozen, or waiting
   for a device that does not answer.
   Invariant: such a worker runs nothing of the user's any more, as the signal is delivered before
   anything else; its item has the outcome PLUA_ELOST, once, and is not run again, for it may still
   have effects. Its number is not used again before it has ended.
   Knows the monotonic clock and the pool. Does not know processes. SPDX-License-Identifier: MIT */
#include "pool.h"

void pool_kill(struct plua_pool *p, int number) {
  struct worker *w = &p->worker[number];
  p->link->ops->kill(p->link, number);
  if (w->killed_ns || w->state == W_LOST) return;
  w->killed_ns = now_ns();
  p->killed++;
}

/* Nanoseconds until the pool gives up on a worker; 0: now. */
static int64_t patience(const struct worker *w) {
  int64_t left = w->killed_ns + UNKILLABLE_NS - now_ns();
  return left > 0 ? left : 0;
}

static bool is_dying(const struct worker *w) {
  return w->killed_ns && w->state != W_NONE && w->state != W_LOST;
}

int64_t pool_give_up_tick(const struct plua_pool *p) {
  int64_t least = -1;
  for (unsigned i = 0; p->killed && i < p->link->cap; i++) {
    const struct worker *w = &p->worker[i];
    if (!is_dying(w)) continue;
    int64_t left = patience(w);
    if (least < 0 || left < least) least = left;
  }
  return least;
}

/* The rest of its batch goes to others, the item that it ran gets its outcome. */
static int give_up(struct plua_pool *p, unsigned number, plua_event *e) {
  struct worker *w = &p->worker[number], was = *w;
  struct sched_item item;
  bool freed;
  p->link->ops->abandon(p->link, (int)number);
  enum sched_verdict v = sched_death(p->sched, number, was.in_slot, -1, SCHED_FINAL, &item, &freed);
  w->state = W_LOST;
  p->killed--;
  p->alive--;
  p->crashed += item.job != 0;
  if (freed) p->link->ops->release(p->link, (unsigned)was.in_slot);
  if (item.job) pool_tidy(p, item.job);
  if (sched_waiting(p->sched)) pool_post(p);
  if (v != SCHED_DELIVER) return 0;
  struct link_event l = {.worker = (int)number, .pid = was.pid, .status = -1};
  bool cancelled = was.doomed && was.code == PLUA_ECANCELLED;
  int64_t elapsed = was.since_ns ? now_ns() - was.since_ns : -1;
  pool_tell_lost(p, &l, &item, cancelled ? was.code : PLUA_ELOST, elapsed, e);
  if (!was.doomed || !was.silent) return 1;
  pool_release(p);
  return 0;
}

int pool_give_up(struct plua_pool *p, plua_event *e) {
  for (unsigned i = 0; p->killed && i < p->link->cap; i++)
    if (is_dying(&p->worker[i]) && patience(&p->worker[i]) == 0 && give_up(p, i, e)) return 1;
  return 0;
}
