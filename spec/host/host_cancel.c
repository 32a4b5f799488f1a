/* host_cancel.c: taking work back: items that wait, items that run, at any moment; and the host's
   own poll loop. Knows plua.h only. SPDX-License-Identifier: MIT */
#include "host.h"

#include <stdatomic.h>
#include <sys/time.h>

static volatile _Atomic int *ran; /* shared: how often each item began */
static volatile int *flag;        /* shared: [0] counts items that run forever */

static void shared_make(void) {
  ran = host_shared(1 << 16);
  flag = host_shared(4096);
}

static void shared_drop(void) {
  host_shared_free((void *)(uintptr_t)ran, 1 << 16);
  host_shared_free((void *)(uintptr_t)flag, 4096);
}

/* Item 0 runs until the host lets it go; the others are quick. */
static int first_waits(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  ran[item->index]++;
  if (item->index == 0)
    for (flag[0]++; !flag[1];) poll(NULL, 0, 1);
  return host_cube(out, item->index);
}

static void pump(struct drive *d) {
  while (drive_step(d)) continue;
}

static void cancel_waiting(void) {
  struct drive d;
  shared_make();
  drive_submit(&d, host_open(1, first_waits), 100, (plua_job){.chunksize = 10});
  drive_until(&d, flag, 1);
  CHECK_IS(plua_cancel(d.pool, d.job, 0, 1, PLUA_WITHDRAW), 0); /* it runs: left alone */
  CHECK_IS(plua_cancel(d.pool, d.job, 5, 1, PLUA_WITHDRAW), 1); /* in the batch that runs */
  CHECK_IS(plua_cancel(d.pool, d.job, 5, 1, PLUA_WITHDRAW), 0);
  CHECK_IS(plua_cancel(d.pool, d.job, 25, 1, PLUA_WITHDRAW), 1); /* in a batch that lies ready */
  CHECK_IS(plua_cancel(d.pool, d.job, 99, 1, PLUA_WITHDRAW), 1);
  CHECK_IS(plua_cancel(d.pool, d.job, 100, 1, PLUA_WITHDRAW), 0);
  CHECK_IS(plua_cancel(d.pool, d.job, 40, 15, PLUA_WITHDRAW), 15);
  CHECK_IS(plua_cancel(d.pool, d.job, 40, 15, PLUA_WITHDRAW), 0);
  flag[1] = 1;
  d.n = 100;
  while (d.outcomes < 85)
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) != 0);
  pump(&d);
  CHECK_IS(d.lost, 3);
  CHECK(d.seen[5] && d.seen[25] && d.seen[99] && !d.seen[40] && !d.seen[54]);
  for (int i = 0; i < 100; i++)
    CHECK_IS(ran[i], i != 5 && i != 25 && i != 99 && (i < 40 || i > 54));
  plua_stats s = {.size = sizeof s};
  CHECK_IS(plua_stats_get(d.pool, &s), 0);
  CHECK_IS(s.done, 100);
  drive_end(&d);
  plua_close(d.pool);
  shared_drop();
}

/* ---- killing --------------------------------------------------------------------------------- */

/* Items that are multiples of ten run forever. */
static int tenth_hangs(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  ran[item->index]++;
  if (item->index % 10 == 0)
    for (flag[0]++;;) pause();
  return host_cube(out, item->index);
}

static void expect_cancelled(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what == PLUA_RESULT) host_check_cube(e);
  if (e->what == PLUA_RESULT) CHECK(e->index % 10 != 0);
  if (e->what == PLUA_LOST) CHECK_IS(e->code, PLUA_ECANCELLED);
  if (e->what == PLUA_LOST) CHECK_IS(e->index % 10, 0);
  if (e->what == PLUA_LOST) CHECK_IS(e->attempts, 1);
}

/* Each that hangs is cancelled once it runs: one outcome, its neighbours unharmed and run once. */
static void kill_running(int workers, unsigned chunk, unsigned flags) {
  struct drive d;
  plua_options o = {.flags = flags};
  plua_tasks t = {.size = sizeof t, .run = tenth_hangs};
  shared_make();
  drive_submit(&d, host_open_with(workers, &o, &t), 100,
               (plua_job){.chunksize = chunk, .crash_retries = 3});
  d.on = expect_cancelled;
  for (int i = 0; i < 10; i++) {
    drive_until(&d, flag, i + 1);
    pump(&d);
    for (uint64_t k = 0; k < 100; k += 10)
      if (ran[k] && !d.seen[k]) CHECK_IS(plua_cancel(d.pool, d.job, k, 1, PLUA_KILL), 0);
  }
  drive(&d);
  CHECK_IS(d.lost, 10);
  CHECK_IS(d.results, 90);
  for (int i = 0; i < 100; i++) CHECK_IS(ran[i], 1);
  drive_end(&d);
  plua_close(d.pool);
  shared_drop();
}

static void kill_one_worker(void) {
  kill_running(1, 0, 0);
}
static void kill_chunks(void) {
  kill_running(2, 15, 0);
}
static void kill_spare(void) {
  kill_running(3, 0, PLUA_SPARE);
}

/* It runs, though nothing that its worker said was pulled yet. */
static void kill_unheard(void) {
  struct drive d;
  shared_make();
  drive_submit(&d, host_open(1, tenth_hangs), 1, (plua_job){0});
  d.on = expect_cancelled;
  CHECK(drive_step(&d)); /* PLUA_FORK */
  while (!flag[0]) poll(NULL, 0, 1);
  CHECK_IS(plua_cancel(d.pool, d.job, 0, 1, PLUA_KILL), 0);
  int64_t limit = host_now_ns() + INT64_C(5000000000);
  while (d.outcomes < 1 && host_now_ns() < limit)
    if (!drive_step(&d)) plua_wait(d.pool, 50000000, 0);
  CHECK_IS(d.lost, 1);
  drive_end(&d);
  plua_close(d.pool);
  shared_drop();
}

/* Fails when the host lets it, by itself or with its worker. */
static int fails(void *ctx, const plua_item *item, plua_out *out) {
  (void)out;
  ran[item->index]++;
  for (flag[0]++; !flag[1];) poll(NULL, 0, 1);
  if (ctx) raise(SIGSEGV);
  return 1;
}

/* What has begun and is cancelled is not begun again, though it has failed meanwhile. */
static void kill_failed(void) {
  for (int dies = 0; dies < 2; dies++) {
    struct drive d;
    plua_options o = {0};
    plua_tasks t = {.size = sizeof t, .run = fails, .ctx = dies ? &d : NULL};
    shared_make();
    drive_submit(&d, host_open_with(1, &o, &t), 1,
                 (plua_job){.crash_retries = 3, .error_retries = 3});
    drive_until(&d, flag, 1);
    pump(&d);
    flag[1] = 1;
    CHECK(plua_wait(d.pool, -1, 0) == 1); /* it has failed, which was not told yet */
    CHECK_IS(plua_cancel(d.pool, d.job, 0, 1, PLUA_KILL), 0);
    drive(&d);
    CHECK_IS(d.errors, !dies);
    CHECK_IS(d.lost, dies);
    CHECK_IS(ran[0], 1);
    drive_end(&d);
    plua_close(d.pool);
    shared_drop();
  }
}

/* A range is cancelled without an event for each. */
static void kill_range(void) {
  struct drive d;
  plua_event e;
  shared_make();
  drive_submit(&d, host_open(2, tenth_hangs), 1000, (plua_job){.chunksize = 50});
  d.on = expect_cancelled;
  drive_until(&d, flag, 2);
  pump(&d);
  CHECK(plua_cancel(d.pool, d.job, 0, UINT64_MAX, PLUA_KILL) > 900);
  plua_stats s = {.size = sizeof s};
  do {
    CHECK_IS(plua_next(d.pool, &e), 0);
    CHECK(e.what != PLUA_LOST);
    if (e.what == PLUA_NOTHING) plua_wait(d.pool, 10000000, 0);
    CHECK_IS(plua_stats_get(d.pool, &s), 0);
  } while (s.done < 1000);
  drive_end(&d);
  drive_submit(&d, d.pool, 9, (plua_job){0}); /* the pool works on: 1 .. 8 do not hang */
  CHECK_IS(plua_cancel(d.pool, d.job, 0, 1, PLUA_KILL) >= 0, 1);
  drive(&d);
  CHECK_IS(d.results, 8);
  drive_end(&d);
  plua_close(d.pool);
  shared_drop();
}

/* Cancelled at random moments, most of them too late: a published result wins, one outcome each. */
static int quick(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  for (volatile int i = 0; i < 300; i++) continue;
  return host_cube(out, item->index);
}

static void kill_at_random(void) {
  unsigned seed = getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)host_now_ns();
  struct drive d;
  fprintf(stderr, "SEED=%u\n", seed);
  drive_submit(&d, host_open(3, quick), 20000, (plua_job){0});
  CHECK_IS(plua_cancel(d.pool, d.job, 19999, 1, PLUA_WITHDRAW), 1); /* no worker yet: surely */
  while (d.outcomes < d.n) {
    uint64_t near = d.outcomes + (uint64_t)(rand_r(&seed) % (rand_r(&seed) % 2 ? 40 : 9000));
    if (rand_r(&seed) % 20 == 0 && near < d.n)
      CHECK(plua_cancel(d.pool, d.job, near, 1, (int)rand_r(&seed) % 2) >= 0);
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) != 0);
  }
  CHECK_IS(d.lost + d.results, 20000);
  CHECK(d.lost > 0);
  drive_end(&d);
  plua_close(d.pool);
}

/* A range's payloads stay until the job is forgotten; one that is cancelled by itself goes at once
   its event is released. */
static int never(void *ctx, const plua_item *item, plua_out *out) {
  (void)item;
  (void)out;
  return ctx != NULL;
}

static void cancelled_payloads(void) {
  struct drive d;
  char *bytes = calloc(1, 1000000);
  CHECK(bytes != NULL);
  drive_submit(&d, host_open(1, never), 0, (plua_job){0});
  uint64_t job = d.job;
  free(d.seen);
  drive_init(&d, d.pool, 100);
  d.job = job;
  for (int i = 0; i < 100; i++) drive_put(&d, bytes, 1000000);
  for (uint64_t i = 0; i < 60; i++) CHECK_IS(plua_cancel(d.pool, d.job, i, 1, PLUA_WITHDRAW), 1);
  while (d.outcomes < 60)
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) != 0);
  pump(&d);
  CHECK(host_pool_bytes() < 80 << 20);
  CHECK(plua_cancel(d.pool, d.job, 0, 100, PLUA_WITHDRAW) >= 0);
  free(bytes);
  drive_end(&d);
  for (plua_event e; host_pool_bytes() >= 40 << 20;) { /* what was running still comes, and goes */
    CHECK_IS(plua_next(d.pool, &e), 0);
    CHECK(e.what == PLUA_NOTHING && plua_wait(d.pool, INT64_C(5000000000), 0) == 1);
  }
  plua_close(d.pool);
}

/* ---- the host's own loop --------------------------------------------------------------------- */

static int slow_now_and_then(void *ctx, const plua_item *item, plua_out *out) {
  if (item->index % 2000 == 0) poll(NULL, 0, 2);
  return quick(ctx, item, out);
}

static void poll_loop(void) {
  int naps = 0;
  for (int round = 0; round < 10; round++) {
    struct drive d;
    drive_submit(&d, host_open(2, slow_now_and_then), 20000,
                 (plua_job){.chunksize = round % 2 ? 3 : 0});
    struct pollfd f = {.fd = plua_fd(d.pool), .events = POLLIN};
    CHECK(f.fd > 2);
    CHECK_IS(plua_fd(d.pool), f.fd);
    while (d.outcomes < d.n) {
      pump(&d);
      int r = plua_dispatch(d.pool);
      CHECK(r >= 0);
      if (r || d.outcomes == d.n) continue;
      naps++;
      CHECK_IS(poll(&f, 1, 5000), 1);
    }
    CHECK_IS(d.results, 20000);
    drive_end(&d);
    plua_close(d.pool);
  }
  CHECK(naps > 0);
}

/* Deaths ring too, and workers are replaced from within the loop. */
static int fifth_dies(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  if (item->index % 5 == 0) raise(SIGKILL);
  return host_cube(out, item->index);
}

static void poll_deaths(void) {
  struct drive d;
  drive_submit(&d, host_open(2, fifth_dies), 100, (plua_job){0});
  struct pollfd f = {.fd = plua_fd(d.pool), .events = POLLIN};
  while (d.outcomes < d.n) {
    pump(&d);
    int r = plua_dispatch(d.pool);
    if (r || d.outcomes == d.n) continue;
    CHECK_IS(poll(&f, 1, 5000), 1);
  }
  CHECK_IS(d.lost, 20);
  drive_end(&d);
  plua_close(d.pool);
}

static void nothing(int sig) {
  (void)sig;
}

/* A signal ends a wait, as it ends poll; results stay right in a storm of them. */
static void signal_storm(void) {
  struct sigaction a = {.sa_handler = nothing};
  struct itimerval every = {{0, 500}, {0, 500}}, off = {{0, 0}, {0, 0}};
  struct drive d;
  int interrupted = 0;
  sigaction(SIGALRM, &a, NULL);
  setitimer(ITIMER_REAL, &every, NULL);
  plua_pool *p = host_open(2, quick);
  for (int round = 0; round < 5 || interrupted < 2; round++) {
    drive_submit(&d, p, 20000, (plua_job){.chunksize = 100});
    while (d.outcomes < d.n) {
      if (drive_step(&d)) continue;
      int r = plua_wait(d.pool, -1, 0);
      CHECK(r == 1 || r == -EINTR);
      interrupted += r == -EINTR;
    }
    CHECK_IS(d.results, 20000);
    drive_end(&d);
  }
  setitimer(ITIMER_REAL, &off, NULL);
  plua_close(p);
}

static void wait_times_out(void) {
  struct drive d;
  shared_make();
  drive_submit(&d, host_open(1, first_waits), 1, (plua_job){0});
  drive_until(&d, flag, 1);
  pump(&d);
  for (int bulk = 0; bulk < 2; bulk++) {
    int64_t since = host_now_ns();
    CHECK_IS(plua_wait(d.pool, 30000000, bulk), 0);
    int64_t took = host_now_ns() - since;
    CHECK(took >= 30000000 && took < 300000000);
  }
  CHECK_IS(plua_wait(d.pool, 0, 0), 0);
  flag[1] = 1;
  drive(&d);
  drive_end(&d);
  plua_close(d.pool);
  shared_drop();
}

static void keep_pid(struct drive *d, const plua_event *e) {
  if (e->what == PLUA_RESULT) *(pid_t *)d->mine = e->pid;
}

/* A time that never comes is no limit, neither to a wait nor to an item; so a worker that is
   stopped for a while is given that while. */
static void far_times(void) {
  const plua_job job = {.timeout_ns = INT64_MAX};
  struct drive d;
  plua_event e;
  pid_t pid;
  drive_submit(&d, host_open(1, quick), 1, job);
  d.on = keep_pid;
  d.mine = &pid;
  while (d.outcomes < 1)
    if (!drive_step(&d)) CHECK_IS(plua_wait(d.pool, INT64_MAX, 0), 1);
  CHECK_IS(kill(pid, SIGSTOP), 0);
  int64_t until = host_now_ns() + 200000000;
  while (host_now_ns() < until) {
    CHECK_IS(plua_next(d.pool, &e), 0);
    CHECK(plua_wait(d.pool, 10000000, 0) >= 0);
  }
  CHECK_IS(kill(pid, SIGCONT), 0);
  plua_stats s = {.size = sizeof s};
  CHECK_IS(plua_stats_get(d.pool, &s), 0);
  CHECK_IS(s.alive, 1);
  CHECK_IS(plua_end(d.pool, INT64_MAX), 1);
  free(d.seen);
  plua_close(d.pool);
}

int main(int argc, char **argv) {
  static const struct host_case cases[] = {
    {"cancel_waiting", cancel_waiting},
    {"kill_one_worker", kill_one_worker},
    {"kill_chunks", kill_chunks},
    {"kill_spare", kill_spare},
    {"kill_unheard", kill_unheard},
    {"kill_failed", kill_failed},
    {"kill_range", kill_range},
    {"kill_at_random", kill_at_random},
    {"cancelled_payloads", cancelled_payloads},
    {"poll_loop", poll_loop},
    {"poll_deaths", poll_deaths},
    {"signal_storm", signal_storm},
    {"wait_times_out", wait_times_out},
    {"far_times", far_times},
    {NULL, NULL},
  };
  return host_main(argc, argv, cases);
}
