/* sched_edges.c: the scheduler where one more or less decides: what is refused, which items share a
   batch, how long a batch is, when it is divided, when giving out is worth it. Knows sched.h only.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plua.h"
#include "sched.h"

static struct sched *s;
static uint64_t id;

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "sched_edges.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static void fresh(unsigned slots, unsigned workers, unsigned chunk, unsigned retries) {
  unsigned r[SCHED_CHARGES];
  for (int i = 0; i < SCHED_CHARGES; i++) r[i] = retries;
  sched_close(s);
  s = NULL;
  CHECK(sched_open(&s, slots, workers) == 0);
  CHECK(sched_job(s, chunk, r, &id) == 0);
}

/* Gives out the next batch: how many items it has; 0: none. */
static unsigned post(unsigned *slot, struct sched_batch *b) {
  int r = sched_post(s, slot, b);
  CHECK(r >= 0);
  return r ? b->n : 0;
}

/* Worker w runs all of the next batch, in 'ns'. How many items it had. */
static unsigned run(unsigned w, int64_t ns) {
  unsigned slot, n;
  struct sched_batch b;
  struct sched_item item;
  bool freed;
  if (!(n = post(&slot, &b))) return 0;
  CHECK(sched_begin(s, w, slot));
  CHECK(sched_values(s, w, slot, 0, n, &item, &freed) == SCHED_DELIVER && freed);
  CHECK(sched_end(s, w, n, ns));
  return n;
}

static void adds(void) {
  unsigned slot;
  struct sched_batch b;
  fresh(4, 2, 4, 0);
  CHECK(sched_add(s, id, UINT64_MAX / 2 + 1) == PLUA_EARG);
  CHECK(sched_add(s, id, UINT64_MAX / 2) == 0);
  CHECK(sched_add(s, id, 1) == PLUA_EARG);
  CHECK(sched_pending(s) == UINT64_MAX / 2);
  fresh(4, 2, 4, 0);
  CHECK(sched_add(s, id + 1, 1) == PLUA_EARG);
  CHECK(sched_add(s, id, 1) == 0 && post(&slot, &b) == 1);
  CHECK(sched_forget(s, id) == 0 && sched_held(s, id)); /* an item of it is out */
  CHECK(sched_add(s, id, 1) == PLUA_EARG && sched_forget(s, id) == PLUA_EARG);
}

/* Items that were added one after the other are one run; one that was withdrawn parts it. */
static void spans(void) {
  unsigned slot;
  struct sched_batch b;
  fresh(4, 2, 4, 0);
  CHECK(sched_add(s, id, 2) == 0 && sched_add(s, id, 2) == 0);
  CHECK(sched_withdraw(s, id, 2, 2) == 0); /* nothing: parts nothing */
  CHECK(post(&slot, &b) == 4 && b.first == 0);
  fresh(4, 2, 4, 0);
  CHECK(sched_add(s, id, 4) == 0 && sched_withdraw(s, id, 1, 2) == 1);
  CHECK(post(&slot, &b) == 1 && b.first == 0);
  CHECK(post(&slot, &b) == 2 && b.first == 2);
  fresh(4, 2, 4, 0);
  CHECK(sched_add(s, id, 4) == 0 && sched_withdraw(s, id, 3, 9) == 1);
  CHECK(sched_withdraw(s, id, 0, 1) == 1 && post(&slot, &b) == 2 && b.first == 1);
}

/* Neighbours that were charged with different things stay apart. */
static void pasts(void) {
  unsigned slot;
  struct sched_batch b;
  struct sched_item item;
  bool freed;
  fresh(4, 2, 2, 1);
  CHECK(sched_add(s, id, 2) == 0 && post(&slot, &b) == 2 && sched_begin(s, 0, slot));
  CHECK(sched_outcome(s, 0, slot, 0, SCHED_ERROR, &item, &freed) == SCHED_AGAIN && !freed);
  CHECK(sched_death(s, 0, (int)slot, 2, SCHED_CRASH, &item, &freed) == SCHED_AGAIN && freed);
  CHECK(post(&slot, &b) == 1 && b.first == 0 && b.attempt == 2 && b.urgent);
  CHECK(sched_begin(s, 0, slot));
  CHECK(sched_outcome(s, 0, slot, 0, SCHED_CRASH, &item, &freed) == SCHED_AGAIN);
  CHECK(post(&slot, &b) == 1 && b.first == 1 && b.attempt == 2 && sched_begin(s, 0, slot));
  CHECK(sched_outcome(s, 0, slot, 0, SCHED_CRASH, &item, &freed) == SCHED_DELIVER && freed);
  CHECK(post(&slot, &b) == 1 && b.first == 0 && b.attempt == 3);
}

/* A job of n items that take a microsecond each, after the first, on which that was measured. */
static void measured(uint64_t n, unsigned team) {
  fresh(64, 4, 0, 0);
  sched_team(s, team);
  CHECK(sched_add(s, id, n + 1) == 0 && run(0, 1000) == 1);
}

/* Half a millisecond of work; a fair share of what is left, if that is not too little. */
static void sizes(void) {
  measured(1000, 1);
  CHECK(run(0, -1) == 500);
  measured(100000, 1);
  CHECK(sched_end(s, 0, 0, 5)); /* of no items: tells nothing */
  CHECK(run(0, -1) == 500);
  measured(800, 4);
  CHECK(run(0, -1) == 100);
  measured(80, 4); /* a share would be 10: too little for the trouble */
  CHECK(run(0, -1) == 20);
  measured(5, 4);
  CHECK(run(0, -1) == 5);
  fresh(64, 4, 0, 0);
  CHECK(sched_add(s, id, 9) == 0);
  CHECK(run(0, -1) == 1 && run(0, -1) == 1); /* not measured: one by one */
  CHECK(run(0, INT64_C(1000000000)) == 1);   /* a second each: never two at a time */
  CHECK(run(0, INT64_C(1000000000)) == 1);
  fresh(64, 4, 0, 0);
  CHECK(sched_add(s, id, 10000000) == 0);
  CHECK(run(0, 0) == 1 && run(0, 65535) == 65535); /* the longest there is */
}

/* How long giving out may wait: not at all while workers may run out, else for a whole batch. */
static void slack(void) {
  unsigned slot;
  struct sched_batch b;
  fresh(8, 2, 3, 0);
  sched_team(s, 2);
  CHECK(sched_slack(s, id) == 0 && sched_slack(s, id + 1) == 0);
  CHECK(sched_add(s, id, 5) == 0 && post(&slot, &b) == 3);
  CHECK(sched_slack(s, id) == 0); /* one batch for two workers */
  CHECK(post(&slot, &b) == 2 && sched_slack(s, id) == 3 && sched_slack(s, id + 1) == 0);
  CHECK(sched_add(s, id, 2) == 0 && sched_slack(s, id) == 1);
  CHECK(sched_add(s, id, 1) == 0 && sched_slack(s, id) == 0);
  fresh(8, 2, 0, 0);
  CHECK(sched_add(s, id, 2) == 0 && post(&slot, &b) == 1);
  CHECK(sched_slack(s, id) == 0); /* not measured */
  measured(100, 1);
  CHECK(post(&slot, &b) == 50 && sched_slack(s, id) == 450);
  CHECK(sched_add(s, id, 449) == 0 && sched_slack(s, id) == 1);
  CHECK(sched_add(s, id, 1) == 0 && sched_slack(s, id) == 0);
  CHECK(sched_add(s, id, 9) == 0 && sched_slack(s, id) == 0);
}

/* Only batches that go ahead of an item that waits to be alone try its patience. */
static void patience(void) {
  unsigned slot;
  struct sched_batch b;
  struct sched_item item;
  bool freed;
  fresh(4, 2, 1, 1);
  sched_patience(s, 2);
  CHECK(sched_add(s, id, 12) == 0);
  for (int i = 0; i < 5; i++) CHECK(run(0, -1) == 1);
  CHECK(post(&slot, &b) == 1 && b.first == 5 && sched_begin(s, 0, slot));
  CHECK(sched_outcome(s, 0, slot, 0, SCHED_OOM, &item, &freed) == SCHED_AGAIN && freed);
  CHECK(post(&slot, &b) == 1 && b.first == 6);
  CHECK(sched_begin(s, 0, slot) && sched_values(s, 0, slot, 0, 1, &item, &freed) == SCHED_DELIVER);
  CHECK(run(0, -1) == 1);
  CHECK(post(&slot, &b) == 1 && b.first == 5 && b.attempt == 2);
}

/* ---- what cannot be: it aborts ----------------------------------------------------------------
 */

static void aborts(int line, void (*act)(void)) {
  int status = 0;
  pid_t pid = fork();
  if (pid == 0) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    if (!freopen("/dev/null", "w", stderr)) _exit(2);
    act();
    _exit(0);
  }
  if (pid < 0 || waitpid(pid, &status, 0) != pid) wrong(line, "a child");
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) wrong(line, "it aborts");
}

static unsigned out3(void) {
  unsigned slot;
  struct sched_batch b;
  fresh(4, 2, 3, 0);
  CHECK(sched_add(s, id, 3) == 0 && post(&slot, &b) == 3);
  return slot;
}
static void unpost_none(void) {
  sched_unpost(s, out3(), 3);
}
static void unpost_begun(void) {
  unsigned slot = out3();
  if (sched_begin(s, 0, slot)) sched_unpost(s, slot, 0);
}
static void back_free(void) {
  unsigned slot = out3();
  if (sched_back(s, slot, 0)) sched_back(s, slot, 0);
}
static void back_more(void) {
  sched_back(s, out3(), 4);
}
static void blame_begun(void) {
  struct sched_item item;
  unsigned slot = out3();
  if (sched_begin(s, 0, slot)) sched_blame(s, slot, &item);
}
static void back_done(void) {
  struct sched_item item;
  bool freed;
  unsigned slot = out3();
  if (sched_begin(s, 0, slot) && sched_values(s, 0, slot, 0, 2, &item, &freed) == SCHED_DELIVER)
    sched_back(s, slot, 1);
}

static void backs(void) {
  aborts(__LINE__, unpost_none);
  aborts(__LINE__, unpost_begun);
  aborts(__LINE__, back_free);
  aborts(__LINE__, back_more);
  aborts(__LINE__, back_done);
  aborts(__LINE__, blame_begun);
  CHECK(sched_back(s, out3(), 0) && sched_counts(s).divided == 0);
  CHECK(!sched_back(s, out3(), 3) && sched_counts(s).divided == 0);
  CHECK(!sched_back(s, out3(), 1) && sched_counts(s).divided == 1);
  unsigned slot = out3();
  struct sched_batch b;
  sched_unpost(s, slot, 2);
  CHECK(post(&slot, &b) == 1 && b.first == 2 && sched_counts(s).batches == 2);
}

static void blame(void) {
  struct sched_item item;
  struct sched_batch b;
  unsigned slot = out3();
  CHECK(sched_blame(s, slot, &item) == SCHED_DELIVER && item.job == id && item.index == 0);
  CHECK(post(&slot, &b) == 2 && b.first == 1 && b.urgent && b.attempt == 1);
}

static void dry(void) {
  unsigned slot;
  struct sched_batch b;
  fresh(1, 1, 1, 0);
  CHECK(sched_dry(s) && sched_add(s, id, 2) == 0 && !sched_dry(s));
  CHECK(post(&slot, &b) == 1 && !sched_dry(s)); /* it waits for a slot */
  fresh(1, 1, 2, 0);
  CHECK(sched_add(s, id, 2) == 0 && post(&slot, &b) == 2 && sched_dry(s));
}

/* A quarter of the slots is free, or there is one batch for each worker. */
static void due(void) {
  unsigned slot;
  struct sched_batch b;
  for (unsigned team = 1; team <= 48; team += 47) {
    fresh(64, 2, 1, 0);
    sched_team(s, team);
    CHECK(!sched_due(s) && sched_add(s, id, 100) == 0 && sched_due(s));
    while (sched_due(s)) CHECK(post(&slot, &b) == 1);
    CHECK(sched_unbegun(s) == 48);
  }
}

/* Begins a batch of n items by worker 0; it stands still from 'now' on. */
static unsigned begun(unsigned chunk, unsigned n) {
  unsigned slot;
  struct sched_batch b;
  fresh(4, 2, chunk, 0);
  CHECK(sched_add(s, id, n) == 0 && post(&slot, &b) == n && sched_begin(s, 0, slot));
  return slot;
}

static void divides(void) {
  unsigned keep = 0, slot = begun(5, 5);
  const int64_t second = INT64_C(1000000000);
  CHECK(sched_divisible(s));
  CHECK(sched_divide(s, second, true, &keep) == -1);
  CHECK(sched_divide(s, 100 * second, false, &keep) == -1); /* its size is fixed */
  CHECK(sched_divide(s, 100 * second, true, &keep) == (int)slot && keep == 1);
  CHECK(!sched_back(s, slot, keep) && sched_counts(s).divided == 1);
  CHECK(!sched_divisible(s)); /* one item is left */
  CHECK(sched_divide(s, 200 * second, true, &keep) == -1);
  begun(1, 1);
  CHECK(!sched_divisible(s));
  slot = begun(2, 2);
  struct sched_item item;
  bool freed;
  CHECK(sched_divisible(s));
  CHECK(sched_values(s, 0, slot, 0, 1, &item, &freed) == SCHED_DELIVER && !freed);
  CHECK(!sched_divisible(s));
  slot = begun(3, 3);
  CHECK(!sched_back(s, slot, 3) && sched_counts(s).divided == 0); /* nothing came back */
}

/* A batch of n that is begun, of items that take a microsecond. */
static unsigned begun_measured(unsigned n) {
  unsigned slot;
  struct sched_batch b;
  measured(2 * n, 1);
  CHECK(post(&slot, &b) == n && sched_begin(s, 1, slot));
  return slot;
}

/* Half of what is left, if that is worth the trouble, and all once the batch stands still. */
static void halves(void) {
  unsigned keep = 0, slot = begun_measured(21);
  const int64_t t = 1000000000, stuck = 1000000;
  CHECK(sched_divide(s, t, false, &keep) == -1); /* nobody is idle */
  CHECK(sched_divide(s, t + 1, true, &keep) == (int)slot && keep == 11);
  begun_measured(20);
  CHECK(sched_divide(s, t, true, &keep) == -1); /* too little is left */
  slot = begun_measured(20);
  CHECK(sched_divide(s, t, true, &keep) == -1);
  CHECK(sched_divide(s, t + stuck - 1, true, &keep) == -1);
  CHECK(sched_divide(s, t + stuck + 63, false, &keep) == (int)slot && keep == 1);
  slot = begun_measured(20);
  CHECK(sched_divide(s, t, true, &keep) == -1);
  CHECK(sched_divide(s, t + stuck, true, &keep) == (int)slot && keep == 1);
}

/* A look that found nothing holds for a while, for as many batches as there are. */
static void vain(void) {
  unsigned keep, slot = begun_measured(20);
  const int64_t t = 1000000000;
  CHECK(sched_divide(s, t, true, &keep) == -1);
  CHECK(sched_end(s, 0, 1, 100000)); /* items take longer than that by now */
  CHECK(sched_divide(s, t + 63, true, &keep) == -1);
  CHECK(sched_divide(s, t + 64, true, &keep) == (int)slot && keep == 10);
  slot = begun_measured(20);
  CHECK(sched_divide(s, t, false, &keep) == -1 && sched_end(s, 0, 1, 100000));
  CHECK(sched_divide(s, t + 1, true, &keep) == (int)slot);
}

static void faults(void) {
  struct sched_item item;
  bool freed;
  unsigned slot = begun(3, 3);
  CHECK(!sched_begin(s, 1, slot) && !sched_begin(s, 2, slot) && !sched_end(s, 2, 1, 1));
  CHECK(!sched_end(s, 0, 1, 1)); /* not all outcomes came */
  CHECK(sched_values(s, 1, slot, 0, 1, &item, &freed) == SCHED_FAULT);
  CHECK(sched_values(s, 0, slot, 1, 1, &item, &freed) == SCHED_FAULT);
  CHECK(sched_values(s, 0, slot, 0, 4, &item, &freed) == SCHED_FAULT);
  CHECK(sched_values(s, 0, slot, 0, 3, &item, &freed) == SCHED_DELIVER && freed);
  CHECK(sched_values(s, 0, slot, 3, 1, &item, &freed) == SCHED_FAULT);
  CHECK(sched_forget(s, id) == 0 && !sched_held(s, id) && sched_end(s, 0, 3, 1));
}

/* Which items of six that all fail are tried again, when some must not be. "0" .. "5". */
static void last_tries(unsigned a, unsigned a_end, unsigned b, unsigned b_end, unsigned heard,
                       const char *again) {
  struct sched_item item;
  bool freed;
  char got[8] = "", *to = got;
  unsigned slot;
  struct sched_batch batch;
  fresh(4, 1, 6, 1);
  CHECK(sched_add(s, id, 6) == 0 && post(&slot, &batch) == 6 && sched_begin(s, 0, slot));
  sched_last_try(s, slot, a, a_end);
  for (unsigned k = 0; k < 6; k++) {
    if (k == heard) sched_last_try(s, slot, b, b_end);
    enum sched_verdict v = sched_outcome(s, 0, slot, k, SCHED_ERROR, &item, &freed);
    CHECK(v == SCHED_AGAIN || v == SCHED_DELIVER);
    if (v == SCHED_AGAIN) *to++ = (char)('0' + k);
  }
  CHECK(strcmp(got, again) == 0);
}

static void last(void) {
  last_tries(1, 3, 1, 3, 0, "0345");
  last_tries(0, 6, 0, 6, 0, "");
  last_tries(1, 2, 3, 4, 0, "02345"); /* apart: the second does not count */
  last_tries(3, 4, 1, 2, 0, "01245");
  last_tries(1, 2, 2, 4, 0, "045"); /* together */
  last_tries(3, 5, 2, 3, 0, "015");
  last_tries(1, 5, 2, 3, 0, "05");
  last_tries(0, 2, 3, 4, 1, "2345");
  last_tries(0, 2, 3, 4, 2, "245"); /* all of the first were heard of */
  last_tries(0, 1, 3, 4, 1, "1245");
}

/* Only some of what it needs fits into memory. */
static void memory(void) {
  struct rlimit limit = {64 << 20, 64 << 20};
  struct sched *none = NULL;
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
  CHECK(sched_open(&none, 1 << 20, 1) == -ENOMEM && !none);
  CHECK(sched_open(&none, 1, 1 << 25) == -ENOMEM && !none);
}

/* Argument "memory": tries that too, where nothing else (a sanitizer) needs much. */
int main(int argc, char **argv) {
  adds();
  spans();
  pasts();
  sizes();
  slack();
  patience();
  backs();
  blame();
  dry();
  due();
  divides();
  halves();
  vain();
  faults();
  last();
  sched_close(s);
  if (argc > 1 && strcmp(argv[1], "memory") == 0) memory();
  puts("ok: edges");
  return 0;
}
