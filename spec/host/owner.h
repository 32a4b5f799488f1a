/* owner.h: an owner with two workers that are no processes: their rings, words and slots are
   written by hand. Knows local.h. SPDX-License-Identifier: MIT */
#ifndef OWNER_H
#define OWNER_H

#include "local.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 4, RING = 4096, N = 10, SEQ = 7 };

_Noreturn static inline void wrong(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__FILE__, __LINE__, #x))

static struct local *l;
static struct ring pen[2]; /* the workers' ends */

static inline int none(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  (void)item;
  (void)out;
  return 0;
}

static inline void worker(unsigned w) {
  struct peer *p = &l->peer[w];
  *p = (struct peer){.state = P_ALIVE, .proc = {0, -1}, .pid = 100 + (pid_t)w, .slot = NO_SLOT};
  p->slice = team_slice(&l->team, w);
  p->status = -1;
  ring_clear(&p->slice->ring);
  unsigned char *data = (unsigned char *)p->slice + l->team.ring_off;
  ring_attach(&p->ring, &p->slice->ring, data, l->team.ring_size);
  ring_attach(&pen[w], &p->slice->ring, data, l->team.ring_size);
  l->live[l->lives++] = (int)w;
}

/* One slot less than there are, so that what lies behind the last is known. */
static inline void fresh(void) {
  const plua_options o = {sizeof o, .workers = 2, .ring = RING, .slots = SLOTS + 1};
  const plua_tasks tasks = {.size = sizeof tasks, .run = none};
  struct link *link;
  if (l) l->link.ops->close(&l->link);
  CHECK(local_open(&link, &o, &tasks) == 0);
  l = (struct local *)link;
  l->team.view.slots = SLOTS;
  CHECK(l->team.ring_size == RING);
  worker(0);
  worker(1);
}

/* A batch of N items that is out, and what the board says of it. */
static inline void post(unsigned i, enum posted_state state, uint64_t says) {
  posted_enter(l, i, state);
  l->posted[i].seq = SEQ + i;
  l->posted[i].n = N;
  atomic_store(&l->team.view.slot[i].state, says);
}
static inline uint64_t ready(unsigned i) {
  return slot_state(SEQ + i, 0, SLOT_READY);
}
static inline uint64_t taken(unsigned i, unsigned w) {
  return slot_state(SEQ + i, w + 1, SLOT_TAKEN);
}

#endif
