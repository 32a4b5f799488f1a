/* pool_end.c: a pool is ended gently: what runs is interrupted, workers leave by themselves.
   Invariant: it takes no longer than it was told to, and leaves a pool that plua_close can free.
   Knows the clock and the pool. Does not know signals or Lua. SPDX-License-Identifier: MIT */
#include <errno.h>

#include "pool.h"

#define AGAIN_NS 50000000

static void forget_all(struct plua_pool *p) {
  for (size_t i = 0; i < p->job_cap; i++)
    if (p->job[i].id && !p->job[i].forgotten) plua_forget(p, p->job[i].id);
}

static void interrupt_all(struct plua_pool *p) {
  unsigned k;
  for (unsigned i = 0; i < p->link->cap; i++) {
    const struct worker *w = &p->worker[i];
    if (w->state != W_UP || w->in_slot < 0 || w->doomed) continue;
    if (p->link->ops->running(p->link, (unsigned)w->in_slot, &k) == (int)i)
      p->link->ops->interrupt(p->link, (int)i, (unsigned)w->in_slot, k);
  }
}

/* Takes in what there is. */
static int drop_events(struct plua_pool *p) {
  plua_event e;
  int err;
  do err = plua_next(p, &e);
  while (!err && !p->failed && e.what != PLUA_NOTHING && e.what != PLUA_ENDED &&
         e.what != PLUA_FORK);
  return err;
}

int plua_end(plua_pool *p, int64_t grace_ns) {
  if (!*p->ours) return PLUA_EOWNER;
  int64_t ends = now_ns() + (grace_ns < FAR_NS ? grace_ns : FAR_NS), left;
  plua_put_drop(p);
  forget_all(p);
  plua_shutdown(p);
  while (drop_events(p) == 0 && p->alive && !p->failed && (left = ends - now_ns()) > 0) {
    interrupt_all(p);
    int err = plua_wait(p, left < AGAIN_NS ? left : AGAIN_NS, 0);
    if (err < 0 && err != -EINTR) return err;
  }
  return p->alive == 0;
}
