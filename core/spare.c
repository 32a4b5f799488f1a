/* spare.c: copies of the owner that wait, so that a worker made later sees the state of then.
   Invariant: a spare runs nothing of the user's but tasks.ready; what it makes are children of the
   owner (clone with CLONE_PARENT), which the owner watches and reaps as its own. On each line one
   request is under way at a time; the owner watches the first of it while the next ones are made.
   Knows the team's mapping. Does not know Lua or the pool. SPDX-License-Identifier: MIT */
#include <errno.h>

#include "fail.h"
#include "team.h"

enum { TRIES = 500, STOPPED_TRIES = 50 }; /* of 10 ms each */
enum { REST_MS = 1000 };                  /* then a spare sees whether the owner is there still */

/* Requests and answers are believed only if they were made by this team's processes. */
static uint64_t check(const struct team *t, uint32_t ask, unsigned a, unsigned b) {
  uint64_t h = (t->secret ^ ask) * UINT64_C(0x9E3779B97F4A7C15);
  h = (h ^ h >> 29 ^ ((uint64_t)a << 32 | b)) * UINT64_C(0x9E3779B97F4A7C15);
  return h ^ h >> 29;
}

static uint64_t check_run(const struct team *t, uint32_t ask, struct spare_run run) {
  return check(t, ask, run.first, run.n << 8 | run.step);
}

/* ---- a spare ------------------------------------------------------------------------------- */

/* One spare, and what came of its last request. */
struct spare {
  struct team *team;
  struct spare_line *line;
  uint32_t ask;
  unsigned n;
  int32_t pid[SPARE_RUN];
};

/* The answer: again too, since an item may have overwritten it before the owner saw it. */
static void answer(const struct spare *s, unsigned i) {
  struct spare_line *l = s->line;
  uint32_t says = (uint32_t)check(s->team, s->ask, i, (unsigned)s->pid[i]);
  if (atomic_load(&l->pid[i]) == s->pid[i] && atomic_load(&l->said[i]) == says) return;
  atomic_store(&l->pid[i], s->pid[i]);
  atomic_store(&l->said[i], says);
  futex_wake(&l->said[i]);
}

/* Makes a process. In that it answers 0. */
static int make_one(struct spare *s) {
  int pid = FAIL_ERROR(S_FORK);
  if (!pid) pid = proc_fork_sibling(&s->line->pid[s->n]);
  if (pid == 0) return 0;
  FAIL_POINT(S_ANSWER);
  s->pid[s->n] = pid;
  answer(s, s->n++);
  return pid;
}

static void make(struct spare *s, struct spare_run run) {
  bool fine = true;
  for (s->n = 0; fine && s->n < run.n;) {
    unsigned w = run.first + s->n * run.step;
    int pid = make_one(s);
    if (pid == 0) serve(s->team, w);
    fine = pid > 0;
  }
}

/* The copy begins where this one is: what still stands on its line is not for it. */
static void copy(struct spare *s, unsigned line) {
  s->n = 0;
  if (make_one(s)) return;
  FAIL_POINT(S_COPY);
  proc_tie(s->team->owner);
  *s = (struct spare){.team = s->team, .line = &s->team->view.board->spare[line], .ask = s->ask};
}

static bool is_sane(const struct team *t, struct spare_run run) {
  if (!run.step) return !run.n && run.first < SPARES;
  return run.n && run.n <= SPARE_RUN && run.first + (run.n - 1) * run.step < t->cap;
}

/* Inside the tasks' guard, which the workers are born into. */
static void answer_all(void *arg) {
  struct spare *s = arg;
  for (;;) {
    struct spare_line *l = s->line;
    uint32_t ask = atomic_load(&l->ask);
    if ((int32_t)(ask - s->ask) <= 0) {
      for (unsigned i = 0; i < s->n; i++) answer(s, i);
      futex_wait(&l->ask, ask, REST_MS);
      if (atomic_load(&l->ask) == ask) serve_tied(s->team);
      continue;
    }
    struct spare_run run = {atomic_load(&l->first), atomic_load(&l->count), atomic_load(&l->step)};
    if (atomic_load(&l->check) != check_run(s->team, ask, run) || !is_sane(s->team, run)) {
      futex_wait(&l->ask, ask, 10);
      continue;
    }
    s->ask = ask;
    if (run.step)
      make(s, run);
    else
      copy(s, run.first);
  }
}

_Noreturn void spare_serve(struct team *t, unsigned line) {
  struct spare s = {.team = t, .line = &t->view.board->spare[line], .ask = t->asks};
  FAIL_POINT(S_BOOT);
  serve_ready(t, answer_all, &s);
}

/* ---- the owner ----------------------------------------------------------------------------- */

static void request(struct team *t, struct spare_line *l, uint32_t ask, struct spare_run run) {
  atomic_store(&l->first, run.first);
  atomic_store(&l->count, run.n);
  atomic_store(&l->step, run.step);
  atomic_store(&l->check, check_run(t, ask, run));
  atomic_store(&l->ask, ask);
  futex_wake(&l->ask);
}

void spare_ask(struct team *t, unsigned line, struct spare_run run) {
  struct spare_line *l = &t->view.board->spare[line];
  for (unsigned i = 0; i < SPARE_RUN; i++) atomic_store(&l->pid[i], 0);
  t->asked[line] = ++t->asks;
  FAIL_POINT(P_SPARE);
  request(t, l, t->asks, run);
}

pid_t spare_made(struct team *t, const struct proc *spare, unsigned line, struct spare_run run,
                 unsigned i) {
  struct spare_line *l = &t->view.board->spare[line];
  for (int tries = 0; tries < TRIES; tries++) {
    uint32_t said = atomic_load(&l->said[i]);
    pid_t pid = atomic_load(&l->pid[i]);
    if (pid && said == (uint32_t)check(t, t->asked[line], i, (unsigned)pid)) return pid;
    if (tries && proc_ended(spare)) break; /* it died: see what it had done */
    if (tries >= STOPPED_TRIES && proc_stopped(spare)) break;
    if (tries) request(t, l, t->asked[line], run);
    futex_wait(&l->said[i], said, 10);
  }
  pid_t pid = atomic_load(&l->pid[i]); /* nobody vouches for it */
  return pid > 0 && proc_is_child(pid) ? pid : 0;
}
