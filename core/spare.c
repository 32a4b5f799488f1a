/* spare.c: a copy of the owner that waits, so that a worker made later sees the state of then.
   Invariant: the spare runs nothing of the user's but tasks.ready; what it makes are children of
   the owner (clone with CLONE_PARENT), which the owner watches and reaps as its own. One request is
   under way at a time; the owner watches the first of it while the next ones are made.
   Knows the team's mapping. Does not know Lua or the pool. SPDX-License-Identifier: MIT */
#include <errno.h>

#include "fail.h"
#include "team.h"

enum { TRIES = 500, STOPPED_TRIES = 50 }; /* of 10 ms each */

/* Requests and answers are believed only if they were made by this team's processes. */
static uint64_t check(const struct team *t, uint32_t ask, unsigned a, unsigned b) {
  uint64_t h = (t->secret ^ ask) * UINT64_C(0x9E3779B97F4A7C15);
  h = (h ^ h >> 29 ^ ((uint64_t)a << 32 | b)) * UINT64_C(0x9E3779B97F4A7C15);
  return h ^ h >> 29;
}

/* ---- the spare ----------------------------------------------------------------------------- */

/* What came of the last request. */
struct made {
  uint32_t ask;
  unsigned n;
  int32_t pid[SPARE_RUN];
};

/* The answer: again too, since an item may have overwritten it before the owner saw it. */
static void answer(struct team *t, const struct made *m, unsigned i) {
  struct board *b = t->view.board;
  uint32_t says = (uint32_t)check(t, m->ask, i, (unsigned)m->pid[i]);
  if (atomic_load(&b->spare_pid[i]) == m->pid[i] && atomic_load(&b->spare_said[i]) == says) return;
  atomic_store(&b->spare_pid[i], m->pid[i]);
  atomic_store(&b->spare_said[i], says);
  futex_wake(&b->spare_said[i]);
}

static void make(struct team *t, struct made *m, struct spare_run run) {
  bool fine = true;
  for (m->n = 0; fine && m->n < run.n; m->n++) {
    int pid = FAIL_ERROR(S_FORK);
    if (!pid) pid = proc_fork_sibling(&t->view.board->spare_pid[m->n]);
    if (pid == 0) serve(t, run.first + m->n);
    FAIL_POINT(S_ANSWER);
    m->pid[m->n] = pid;
    answer(t, m, m->n);
    fine = pid > 0;
  }
}

/* Inside the tasks' guard, which the workers are born into. */
static void answer_all(void *arg) {
  struct team *t = arg;
  struct board *b = t->view.board;
  /* What an earlier spare was asked for still stands on the board: it is not for this one. */
  for (struct made made = {.ask = t->asks};;) {
    uint32_t ask = atomic_load(&b->spare_ask);
    if (ask == made.ask) {
      for (unsigned i = 0; i < made.n; i++) answer(t, &made, i);
      futex_wait(&b->spare_ask, ask, 60000);
      continue;
    }
    struct spare_run run = {atomic_load(&b->spare_first), atomic_load(&b->spare_count)};
    bool true_one = atomic_load(&b->spare_check) == check(t, ask, run.first, run.n);
    if (!true_one || run.n > SPARE_RUN || run.first + run.n > t->cap) {
      futex_wait(&b->spare_ask, ask, 10);
      continue;
    }
    made.ask = ask;
    make(t, &made, run);
  }
}

_Noreturn void spare_serve(struct team *t) {
  FAIL_POINT(S_BOOT);
  serve_ready(t, answer_all, t);
}

/* ---- the owner ----------------------------------------------------------------------------- */

static void request(struct team *t, struct spare_run run) {
  struct board *b = t->view.board;
  atomic_store(&b->spare_first, run.first);
  atomic_store(&b->spare_count, run.n);
  atomic_store(&b->spare_check, check(t, t->asks, run.first, run.n));
  atomic_store(&b->spare_ask, t->asks);
  futex_wake(&b->spare_ask);
}

void spare_ask(struct team *t, struct spare_run run) {
  for (unsigned i = 0; i < run.n; i++) atomic_store(&t->view.board->spare_pid[i], 0);
  t->asks++;
  FAIL_POINT(P_SPARE);
  request(t, run);
}

pid_t spare_made(struct team *t, const struct proc *spare, struct spare_run run, unsigned i) {
  struct board *b = t->view.board;
  for (int tries = 0; tries < TRIES; tries++) {
    uint32_t said = atomic_load(&b->spare_said[i]);
    pid_t pid = atomic_load(&b->spare_pid[i]);
    if (pid && said == (uint32_t)check(t, t->asks, i, (unsigned)pid)) return pid;
    if (tries && proc_ended(spare)) break; /* it died: see what it had done */
    if (tries >= STOPPED_TRIES && proc_stopped(spare)) break;
    if (tries) request(t, run);
    futex_wait(&b->spare_said[i], said, 10);
  }
  pid_t pid = atomic_load(&b->spare_pid[i]); /* nobody vouches for it */
  return pid > 0 && proc_is_child(pid) ? pid : 0;
}
