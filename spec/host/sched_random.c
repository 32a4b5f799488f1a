/* sched_random.c: a scheduler with many workers, thousands of items and every mishap, at random but
   repeatable: SEED is printed. Each item must get one outcome, be charged only for its own deaths
   and errors, and never be given out once it was withdrawn, forgotten or done; one that memory ran
   out for runs alone, and soon. Knows sched.h only.
   SPDX-License-Identifier: MIT */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plua.h"
#include "sched.h"

enum { JOBS = 6, ITEMS = 4000, SLOTS = 64, WORKERS = 50, PATIENCE = 40 };

enum place { WAITS = 1, OUT, DONE, GONE };

struct item {
  unsigned char place, charged[SCHED_CHARGES];
};

struct job {
  uint64_t id, count;
  unsigned chunk, retries[SCHED_CHARGES];
  bool forgotten;
  struct item item[ITEMS];
};

struct slot {
  struct job *job; /* NULL: free */
  uint64_t first;
  unsigned n, got;
  int worker; /* -1: not begun */
};

static struct sched *sched;
static struct job job[JOBS];
static struct slot slot[SLOTS];
static int at[WORKERS]; /* the slot that each worker is in; -1: none */
static unsigned slots, workers, seed;
static int alone;            /* the slot of an item that runs alone; -1: none */
static uint64_t waits_alone; /* items that shall */
static unsigned passed;      /* batches given out since one waits for that */
static uint64_t pending, outcomes, alones, events;

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "sched_random.c:%d: not so: %s (event %llu)\n", line, what,
          (unsigned long long)events);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static unsigned upto(unsigned n) {
  return (unsigned)rand_r(&seed) % n;
}
static bool once_in(unsigned n) {
  return upto(n) == 0;
}

static unsigned attempt_of(const struct item *it) {
  unsigned n = 1;
  for (int i = 0; i < SCHED_CHARGES; i++) n += it->charged[i];
  return n;
}

static void put(struct item *it, enum place place) {
  if (it->charged[SCHED_OOM]) waits_alone += (place == WAITS) - (it->place == WAITS);
  it->place = (unsigned char)place;
}

static void end_item(struct item *it, enum place place) {
  CHECK(it->place == WAITS || it->place == OUT);
  put(it, place);
  pending--;
  outcomes += place == DONE;
}

static void wait_again(struct job *j, struct item *it) {
  CHECK(it->place == OUT);
  if (j->forgotten)
    end_item(it, GONE);
  else
    put(it, WAITS);
}

/* ---- events ---------------------------------------------------------------------------------- */

static void add(struct job *j) {
  uint64_t n = once_in(3) ? 1 : upto(400);
  if (j->forgotten || j->count + n > ITEMS) return;
  CHECK(sched_add(sched, j->id, n) == 0);
  for (; n; n--, pending++) j->item[j->count++].place = WAITS;
}

static void free_slot(struct slot *t) {
  if (t - slot == alone) alone = -1;
  *t = (struct slot){.worker = -1};
}

static void post(void) {
  unsigned s, keep;
  struct sched_batch b;
  int r = sched_post(sched, &s, &b);
  if (r == 0) return;
  CHECK(r == 1 && s < slots && !slot[s].job && b.n > 0);
  struct job *j = job;
  while (j < job + JOBS && (j->id != b.job || j->forgotten)) j++;
  CHECK(j < job + JOBS && b.first + b.n <= j->count);
  CHECK(!j->chunk || b.n <= j->chunk);
  CHECK(alone < 0);
  if (j->item[b.first].charged[SCHED_OOM]) {
    for (unsigned i = 0; i < slots; i++) CHECK(!slot[i].job);
    alone = (int)s;
    alones++;
  }
  passed = alone >= 0 || !waits_alone ? 0 : passed + 1;
  CHECK(passed <= PATIENCE);
  for (unsigned k = 0; k < b.n; k++) {
    struct item *it = &j->item[b.first + k];
    CHECK(it->place == WAITS && b.attempt == attempt_of(it));
    put(it, OUT);
  }
  CHECK(b.attempt == 1 || b.n == 1);
  slot[s] = (struct slot){.job = j, .first = b.first, .n = b.n, .worker = -1};
  if (!once_in(20)) return;
  keep = upto(b.n);
  sched_unpost(sched, s, keep);
  for (unsigned k = keep; k < b.n; k++) wait_again(j, &j->item[b.first + k]);
  slot[s].n = keep;
  if (!keep) free_slot(&slot[s]);
}

static void begin(unsigned w, unsigned s) {
  if (at[w] >= 0 || !slot[s].job || slot[s].worker >= 0) return;
  CHECK(sched_begin(sched, w, s));
  slot[s].worker = (int)w;
  at[w] = (int)s;
}

static void charge(struct job *j, struct item *it, enum sched_charge how, enum sched_verdict v) {
  if (j->forgotten) {
    CHECK(v == SCHED_DROP);
    end_item(it, GONE);
  } else if (how == SCHED_FINAL || it->charged[how] >= j->retries[how]) {
    CHECK(v == SCHED_DELIVER);
    end_item(it, DONE);
  } else {
    CHECK(v == SCHED_AGAIN);
    it->charged[how]++;
    put(it, WAITS);
  }
}

static void outcome(unsigned w) {
  struct slot *t = &slot[at[w]];
  struct sched_item si;
  bool freed;
  enum sched_charge how = !once_in(15) ? SCHED_FINE : once_in(3) ? SCHED_TIMEOUT : SCHED_ERROR;
  struct job *j = t->job;
  struct item *it = &j->item[t->first + t->got];
  enum sched_verdict v = sched_outcome(sched, w, (unsigned)at[w], t->got, how, &si, &freed);
  CHECK(si.job == j->id && si.index == t->first + t->got);
  CHECK(si.attempt == attempt_of(it) && it->place == OUT);
  CHECK(freed == (++t->got == t->n));
  if (how != SCHED_FINE)
    charge(j, it, how, v);
  else
    CHECK(v == (j->forgotten ? SCHED_DROP : SCHED_DELIVER));
  if (how == SCHED_FINE) end_item(it, j->forgotten ? GONE : DONE);
  if (!freed) return;
  free_slot(t);
  at[w] = -1;
  CHECK(sched_end(sched, w, 1 + upto(100), upto(1000000)));
}

/* Several results at once, as many calls for one would tell. */
static void results(unsigned w) {
  struct slot *t = &slot[at[w]];
  struct sched_item si;
  bool freed;
  struct job *j = t->job;
  unsigned n = 1 + upto(t->n - t->got);
  if (t->got + n > t->n) {
    CHECK(sched_values(sched, w, (unsigned)at[w], t->got, n, &si, &freed) == SCHED_FAULT);
    return;
  }
  enum sched_verdict v = sched_values(sched, w, (unsigned)at[w], t->got, n, &si, &freed);
  CHECK(v == (j->forgotten ? SCHED_DROP : SCHED_DELIVER));
  CHECK(si.job == j->id && si.index == t->first + t->got);
  for (; n; n--, t->got++) {
    struct item *it = &j->item[t->first + t->got];
    CHECK(si.attempt == attempt_of(it) && it->place == OUT);
    end_item(it, j->forgotten ? GONE : DONE);
  }
  CHECK(freed == (t->got == t->n));
  if (!freed) return;
  free_slot(t);
  at[w] = -1;
}

static void death(unsigned w) {
  struct sched_item si;
  bool freed;
  enum sched_charge how = (enum sched_charge)upto(SCHED_CHARGES + 1);
  unsigned begun = upto(4);
  if (at[w] < 0) {
    CHECK(sched_death(sched, w, -1, -1, how, &si, &freed) == SCHED_DROP && !freed && !si.job);
    return;
  }
  struct slot t = slot[at[w]];
  int64_t next = begun == 3 ? -1 : (int64_t)(t.got + begun);
  enum sched_verdict v = sched_death(sched, w, at[w], next, how, &si, &freed);
  CHECK(freed);
  free_slot(&slot[at[w]]);
  at[w] = -1;
  unsigned rest = t.got;
  if (begun == 0) {
    CHECK(v == SCHED_DROP && !si.job);
  } else {
    CHECK(si.job == t.job->id && si.index == t.first + t.got);
    charge(t.job, &t.job->item[t.first + rest++], how, v);
  }
  for (; rest < t.n; rest++) wait_again(t.job, &t.job->item[t.first + rest]);
}

static void take_back(unsigned s, unsigned keep) {
  struct slot *t = &slot[s], was = *t;
  if (!t->job || keep < t->got || keep > t->n) return;
  if (t->worker >= 0 && keep == 0) return;
  CHECK(sched_prepare(sched) == 0);
  bool freed = sched_back(sched, s, keep);
  CHECK(freed == (keep == t->got));
  t->n = keep;
  if (freed && t->worker >= 0) at[t->worker] = -1;
  if (freed) free_slot(t);
  for (unsigned k = keep; k < was.n; k++) wait_again(was.job, &was.job->item[was.first + k]);
}

static void divide(void) {
  unsigned keep;
  int s = sched_divide(sched, (int64_t)events * 100000 + 1, once_in(2), &keep);
  if (s < 0) return;
  CHECK(slot[s].worker >= 0 && keep > slot[s].got && keep < slot[s].n);
  take_back((unsigned)s, keep);
}

static void withdraw(struct job *j) {
  if (j->forgotten || !j->count) return;
  uint64_t first = upto((unsigned)j->count), end = first + (once_in(2) ? 1 : upto(300));
  int64_t n = 0;
  for (uint64_t i = first; i < end && i < j->count; i++) {
    if (j->item[i].place != WAITS) continue;
    end_item(&j->item[i], GONE);
    n++;
  }
  CHECK(sched_withdraw(sched, j->id, first, end) == n);
}

static void start_job(struct job *j) {
  memset(j, 0, sizeof *j);
  j->chunk = once_in(2) ? 0 : 1 + upto(90);
  for (int i = 0; i < SCHED_CHARGES; i++) j->retries[i] = upto(4);
  CHECK(sched_job(sched, j->chunk, j->retries, &j->id) == 0);
  for (int i = 0; i < JOBS; i++) CHECK(&job[i] == j || job[i].id != j->id);
}

static void forget(struct job *j) {
  if (!j->forgotten) {
    CHECK(sched_forget(sched, j->id) == 0);
    j->forgotten = true;
    for (uint64_t i = 0; i < j->count; i++)
      if (j->item[i].place == WAITS) end_item(&j->item[i], GONE);
  }
  if (!sched_held(sched, j->id)) start_job(j);
}

static void one_event(void) {
  unsigned w = upto(workers), s = upto(slots);
  struct job *j = &job[upto(JOBS)];
  switch (upto(16)) {
  case 0:
    add(j);
    break;
  case 1:
  case 2:
  case 3:
    post();
    break;
  case 4:
  case 5:
  case 6:
    begin(w, s);
    break;
  case 7:
    if (once_in(4)) death(w);
    break;
  case 8:
    if (once_in(4)) take_back(s, upto(slot[s].n + 1));
    break;
  case 9:
    divide();
    break;
  case 10:
    if (once_in(30)) withdraw(j);
    break;
  case 11:
    if (once_in(400)) forget(j);
    break;
  default:
    if (at[w] >= 0) once_in(2) ? results(w) : outcome(w);
  }
}

/* ---- a run ----------------------------------------------------------------------------------- */

static void finish(void) {
  while (pending) {
    CHECK(sched_pending(sched) == pending);
    for (unsigned s = 0; s < slots; s++) post();
    for (unsigned w = 0; w < workers; w++)
      for (unsigned s = 0; s < slots; s++) begin(w, s);
    for (unsigned w = 0; w < workers; w++)
      while (at[w] >= 0) outcome(w);
  }
  CHECK(sched_pending(sched) == 0 && !sched_waiting(sched) && sched_unbegun(sched) == 0);
  struct sched_counts c = sched_counts(sched);
  CHECK(c.submitted == c.done);
  for (unsigned s = 0; s < slots; s++) CHECK(!slot[s].job);
  for (int i = 0; i < JOBS; i++)
    for (uint64_t k = 0; k < job[i].count; k++)
      CHECK(job[i].item[k].place == DONE || job[i].item[k].place == GONE);
}

static void run(unsigned number) {
  slots = 1 + upto(number % 4 ? SLOTS : 4);
  workers = 1 + upto(number % 3 ? WORKERS : 3);
  pending = waits_alone = 0;
  memset(job, 0, sizeof job);
  CHECK(sched_open(&sched, slots, workers) == 0);
  sched_team(sched, workers);
  sched_patience(sched, PATIENCE);
  alone = -1;
  passed = 0;
  for (int i = 0; i < JOBS; i++) start_job(&job[i]);
  for (unsigned i = 0; i < SLOTS; i++) slot[i] = (struct slot){.worker = -1};
  for (unsigned i = 0; i < WORKERS; i++) at[i] = -1;
  for (unsigned i = 0; i < 60000; i++, events++) {
    one_event();
    if (i % 64 == 0) CHECK(sched_pending(sched) == pending);
  }
  finish();
  sched_close(sched);
}

/* Argument: how many runs. */
int main(int argc, char **argv) {
  unsigned runs = argc > 1 ? (unsigned)atoi(argv[1]) : 60;
  seed = getenv("SEED") ? (unsigned)strtoul(getenv("SEED"), NULL, 10) : (unsigned)time(NULL);
  fprintf(stderr, "SEED=%u\n", seed);
  for (unsigned i = 0; i < runs; i++) run(i);
  printf("ok: %llu events, %llu outcomes, %llu ran alone\n", (unsigned long long)events,
         (unsigned long long)outcomes, (unsigned long long)alones);
  return 0;
}
