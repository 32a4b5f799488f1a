/* host_jobs.c: what goes in and comes out: positions, payloads and replies of every size, jobs that
   are extended, cancelled and forgotten. Knows plua.h only. SPDX-License-Identifier: MIT */
#include "host.h"

static volatile int *flag; /* shared with workers */

static int cube(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  return host_cube(out, item->index);
}

static void expect_cube(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what == PLUA_RESULT) host_check_cube(e);
}

static void cubes(void) {
  for (int workers = 1; workers <= 5; workers += 2)
    for (unsigned chunk = 0; chunk < 3; chunk++) {
      struct drive d = {.on = expect_cube};
      host_map(host_open(workers, cube), 20000, &d, (plua_job){.chunksize = chunk});
      CHECK_IS(d.results, 20000);
    }
}

static void two_pools(void) {
  plua_pool *p[2] = {host_open(2, cube), host_open(1, cube)};
  struct drive d[2];
  for (int i = 0; i < 2; i++) {
    drive_submit(&d[i], p[i], 3000, (plua_job){0});
    d[i].on = expect_cube;
  }
  while (d[0].outcomes < 3000 || d[1].outcomes < 3000)
    for (int i = 0; i < 2; i++)
      if (!drive_step(&d[i]) && d[i].outcomes < 3000) CHECK(plua_wait(p[i], 1000000, 0) >= 0);
  for (int i = 0; i < 2; i++) {
    drive_end(&d[i]);
    plua_close(p[i]);
  }
}

/* Waits for outcomes of several jobs, which come by job number. */
static void many_jobs(void) {
  plua_pool *p = host_open(2, cube);
  struct drive d[30];
  for (uint64_t i = 0; i < 30; i++) {
    drive_submit(&d[i], p, i, (plua_job){0});
    for (uint64_t k = 0; k < i; k++) CHECK(d[k].job != d[i].job);
  }
  for (uint64_t left = 30 * 29 / 2; left;) {
    plua_event e;
    CHECK_IS(plua_next(p, &e), 0);
    if (e.what == PLUA_FORK) CHECK_IS(plua_fork(p), 2);
    if (e.what == PLUA_NOTHING) CHECK_IS(plua_wait(p, -1, 0), 1);
    if (e.what != PLUA_RESULT) continue;
    left--;
    for (int i = 0; i < 30; i++)
      if (d[i].job == e.job) drive_count(&d[i], &e);
  }
  for (uint64_t i = 0; i < 30; i++) {
    CHECK_IS(d[i].results, i);
    drive_end(&d[i]);
    CHECK_IS(plua_forget(p, d[i].job), PLUA_EARG);
  }
  plua_close(p);
}

static void extend(void) {
  struct drive d;
  drive_submit(&d, host_open(2, cube), 0, (plua_job){0});
  free(d.seen);
  drive_init(&d, d.pool, 1000);
  d.on = expect_cube;
  CHECK_IS(plua_submit(d.pool, &(plua_job){.size = sizeof(plua_job)}, &d.job), 0);
  for (int i = 0; i < 10; i++) {
    CHECK_IS(plua_extend(d.pool, d.job, 100), 0);
    drive_step(&d);
  }
  drive(&d);
  drive_end(&d);
  plua_close(d.pool);
}

/* Cubes, among which some are errors and some take their worker along. */
static int cube_or_worse(void *ctx, const plua_item *item, plua_out *out) {
  if (item->index % 1009 == 7) kill(getpid(), SIGKILL);
  int err = cube(ctx, item, out);
  return err ? err : item->index % 97 == 5;
}

/* Takes results in runs of at most 'max'; each comes once, whatever stands between them. */
static int take_runs(struct drive *d, int max) {
  plua_event e;
  plua_reply reply[300];
  int n = plua_next_run(d->pool, &e, reply, max);
  CHECK(n >= 0 && n <= max && (n == 0 || (e.what == PLUA_RESULT && !e.failed)));
  for (int i = 0; i < n; i++) {
    plua_event one = e;
    one.index += (unsigned)i;
    one.data = reply[i].data;
    one.len = reply[i].len;
    expect_cube(d, &one);
    drive_count(d, &one);
  }
  if (n) return n;
  if (e.what == PLUA_RESULT || e.what == PLUA_LOST) drive_count(d, &e);
  if (e.what == PLUA_FORK) CHECK(plua_fork(d->pool) >= 0);
  if (e.what == PLUA_NOTHING) CHECK(plua_wait(d->pool, -1, 0) != 0);
  return 0;
}

static void runs(void) {
  static const int most[] = {1, 2, 7, 300};
  int longest = 0;
  for (int i = 0; i < 4; i++) {
    struct drive d;
    plua_pool *p = host_open(2, cube_or_worse);
    drive_submit(&d, p, 20000, (plua_job){.chunksize = i % 2 ? 1000 : 0});
    while (d.outcomes < d.n) {
      int n = take_runs(&d, most[i]);
      if (n > longest) longest = n;
    }
    CHECK_IS(d.lost, 20);
    CHECK_IS(d.errors, 207);
    drive_end(&d);
    CHECK_IS(plua_next_run(p, &(plua_event){0}, NULL, 1), PLUA_EARG);
    plua_close(p);
  }
#ifndef PLUA_SMALL /* whose rings hold no more than a few */
  CHECK(longest > 50);
#endif
}

/* 'run' is not called where there is 'run_many'. */
static int no_item(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx, (void)item, (void)out;
  _exit(3);
}

static void expect_cube_or_worse(struct drive *d, const plua_event *e) {
  if (e->what == PLUA_RESULT && !e->failed) expect_cube(d, e);
}

/* Many items in one call. */
static void cubes_fed(void *ctx, plua_feed *feed) {
  while (feed->done(feed, cube_or_worse(ctx, feed->item, feed->out))) continue;
}

static void run_many(void) {
  for (unsigned chunk = 0; chunk < 1000; chunk += 333) {
    plua_tasks tasks = {.size = sizeof tasks, .run = no_item, .run_many = cubes_fed};
    plua_options options = {.size = sizeof options, .workers = 2, .max_tasks = chunk ? 0 : 5000};
    struct drive d;
    plua_pool *p;
    CHECK_IS(plua_open(&p, &options, &tasks), 0);
    drive_submit(&d, p, 20000, (plua_job){.chunksize = chunk});
    d.on = expect_cube_or_worse;
    drive(&d);
    CHECK_IS(d.lost, 20);
    CHECK_IS(d.errors, 207);
    drive_end(&d);
    plua_close(p);
  }
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static unsigned char byte_at(uint64_t seed, size_t i) {
  return (unsigned char)(seed * 31 + i * 7 + (i >> 12));
}

static void fill(unsigned char *p, size_t n, uint64_t seed) {
  for (size_t i = 0; i < n; i++) p[i] = byte_at(seed, i);
}

static void check_fill(const unsigned char *p, size_t n, uint64_t seed) {
  for (size_t i = 0; i < n; i++)
    if (p[i] != byte_at(seed, i)) host_same(__FILE__, __LINE__, "a byte", (int64_t)i, -1);
}

static const size_t *sizes;

/* Odd items write in small steps, even ones make room for all at once. */
static int reply_of_size(void *ctx, const plua_item *item, plua_out *out) {
  size_t n = sizes[item->index], step = item->index % 2 ? 1000 : n ? n : 1;
  (void)ctx;
  for (size_t i = 0; i < n; i += step) {
    size_t part = n - i < step ? n - i : step;
    int err = plua_room(out, part);
    if (err) return err;
    for (size_t k = 0; k < part; k++) out->at[k] = byte_at(item->index, i + k);
    out->at += part;
  }
  return item->index % 3 == 2; /* every third is an error */
}

static void expect_size(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what == PLUA_LOST) fprintf(stderr, "item %d: %s\n", (int)e->index, plua_strerror(e->code));
  CHECK(e->what != PLUA_LOST);
  if (e->what != PLUA_RESULT) return;
  CHECK_IS(e->failed, e->index % 3 == 2);
  CHECK_IS(e->len, sizes[e->index]);
  check_fill(e->data, e->len, e->index);
}

static void replies(const size_t *list, uint64_t n, size_t ring, int workers) {
  struct drive d = {.on = expect_size};
  plua_options o = {.ring = ring};
  plua_tasks t = {.size = sizeof t, .run = reply_of_size};
  sizes = list;
  host_map(host_open_with(workers, &o, &t), n, &d, (plua_job){0});
}

/* Around every bound of a ring: its half, its quarter, its whole. */
static void result_sizes(void) {
  static size_t list[400];
  for (size_t ring = 256; ring <= 65536; ring *= 4) {
    size_t n = 0;
    for (size_t part = ring * 2; part >= ring / 8; part /= 2)
      for (int near = -24; near <= 8; near += 1) list[n++] = part + (size_t)near;
    for (size_t small = 0; small < 40; small++) list[n++] = small;
    for (size_t i = n; i-- > 1;) { /* mixed, the same way each time */
      size_t k = (i * 7919 + 13) % (i + 1), was = list[i];
      list[i] = list[k];
      list[k] = was;
    }
    replies(list, n, ring, 2);
  }
}

static void result_10mb(void) {
  static const size_t list[] = {10 << 20, 1, 10 << 20, 10 << 20, 0, 3 << 20, 33 << 20, 40 << 20, 7};
  replies(list, sizeof list / sizeof *list, 0, 2);
  replies(list, sizeof list / sizeof *list, 256, 1);
}

static void result_100mb(void) {
  static const size_t list[] = {100 << 20, 100 << 20, 1};
  replies(list, 3, 0, 1);
}

/* Where the address space is limited, workers' areas are small: results that fit must still pass,
   one that never can is an outcome, not the end. */
static void result_small_area(void) {
  static size_t list[40];
  struct rlimit was, small = {(rlim_t)3 << 30, (rlim_t)3 << 30};
  getrlimit(RLIMIT_AS, &was);
  small.rlim_max = was.rlim_max;
  for (size_t i = 0; i < 40; i++) list[i] = 700000;
  CHECK_IS(setrlimit(RLIMIT_AS, &small), 0);
  replies(list, 40, 0, 1);
  setrlimit(RLIMIT_AS, &was);
}

/* ---- payloads -------------------------------------------------------------------------------- */

static int echo(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  if (item->call_len != 5 || memcmp(item->call, "call!", 5) != 0) return 1;
  if (!item->data) return 2;
  check_fill(item->data, item->len, item->index);
  return plua_write(out, item->data, item->len);
}

static void expect_echo(struct drive *d, const plua_event *e) {
  size_t n = 0;
  if (e->what != PLUA_RESULT) return;
  CHECK_IS(e->failed, 0);
  CHECK_IS(e->len, sizes[e->index]);
  check_fill(e->data, e->len, e->index);
  CHECK(plua_payload(d->pool, e->job, e->index, &n) != NULL);
  CHECK_IS(n, e->len);
}

static void put_sizes(struct drive *d) {
  unsigned char *bytes = malloc((size_t)101 << 20);
  CHECK(bytes != NULL);
  for (uint64_t i = 0; i < d->n; i++) {
    fill(bytes, sizes[i], i);
    drive_put(d, bytes, sizes[i]);
    drive_step(d);
  }
  free(bytes);
}

static void payloads(const size_t *list, uint64_t n, unsigned chunk) {
  struct drive d;
  plua_pool *p = host_open(2, echo);
  plua_job job = {.size = sizeof job, .call = "call!", .call_len = 5, .chunksize = chunk};
  sizes = list;
  drive_init(&d, p, n);
  d.on = expect_echo;
  CHECK_IS(plua_submit(p, &job, &d.job), 0);
  put_sizes(&d);
  drive(&d);
  CHECK_IS(d.results, n);
  drive_end(&d);
  CHECK(host_pool_bytes() < 200 << 20);
  plua_close(p);
}

static void payload_sizes(void) {
  static const size_t list[] = {0,
                                1,
                                7,
                                8,
                                9,
                                10 << 20,
                                63,
                                64,
                                65,
                                4096,
                                (1 << 20) - 8,
                                1 << 20,
                                (1 << 20) + 1,
                                2 << 20,
                                0,
                                100 << 20,
                                3,
                                (1 << 20) - 7,
                                5};
  static size_t small[3000];
  for (size_t i = 0; i < 3000; i++) small[i] = i * 7919 % 900;
  payloads(list, sizeof list / sizeof *list, 0);
  payloads(small, 3000, 0);
  payloads(small, 3000, 1);
  payloads(small, 3000, 64);
}

/* Payload memory is given back as outcomes are released, not at the end of the job. */
static void payload_memory(void) {
  static size_t list[600];
  struct drive d;
  plua_pool *p = host_open(2, echo);
  plua_job job = {.size = sizeof job, .call = "call!", .call_len = 5};
  for (size_t i = 0; i < 600; i++) list[i] = 1 << 20;
  sizes = list;
  drive_init(&d, p, 600);
  d.on = expect_echo;
  CHECK_IS(plua_submit(p, &job, &d.job), 0);
  unsigned char *bytes = malloc(1 << 20);
  CHECK(bytes != NULL);
  for (uint64_t i = 0; i < 600; i++) {
    fill(bytes, 1 << 20, i);
    drive_put(&d, bytes, 1 << 20);
    while (i > d.outcomes + 8)
      if (!drive_step(&d)) CHECK(plua_wait(p, -1, 0) != 0);
  }
  drive(&d);
  CHECK(host_pool_bytes() < 150 << 20);
  free(bytes);
  drive_end(&d);
  plua_close(p);
}

/* A job has positions or payloads: an item never gets its neighbour's. */
static void put_on_positions(void) {
  struct drive d;
  plua_out *out;
  drive_submit(&d, host_open(1, cube), 3, (plua_job){0});
  CHECK_IS(plua_put(d.pool, d.job, &out), PLUA_EARG);
  drive_end(&d);
  drive_submit(&d, d.pool, 0, (plua_job){0});
  CHECK_IS(plua_extend(d.pool, d.job, 1), 0);
  CHECK_IS(plua_put(d.pool, d.job, &out), PLUA_EARG);
  drive_end(&d);
  drive_submit(&d, d.pool, 0, (plua_job){0});
  drive_put(&d, "x", 1);
  CHECK_IS(plua_extend(d.pool, d.job, 1), PLUA_EARG);
  drive_end(&d);
  plua_close(d.pool);
}

static void put_drop(void) {
  static const size_t list[] = {10, 20, 30};
  struct drive d;
  plua_out *out;
  uint64_t other;
  plua_pool *p = host_open(1, echo);
  plua_job job = {.size = sizeof job, .call = "call!", .call_len = 5, .chunksize = 3};
  unsigned char bytes[32];
  sizes = list;
  drive_init(&d, p, 3);
  d.on = expect_echo;
  CHECK_IS(plua_submit(p, &job, &d.job), 0);
  CHECK_IS(plua_put_end(p), PLUA_EARG);
  for (uint64_t i = 0; i < 3; i++) {
    CHECK_IS(plua_put(p, d.job, &out), 0);
    CHECK_IS(plua_write(out, "forgotten", 9), 0);
    CHECK_IS(plua_put(p, d.job, &out), PLUA_EARG);
    CHECK_IS(plua_submit(p, &job, &other), PLUA_EARG);
    plua_put_drop(p);
    fill(bytes, list[i], i);
    drive_put(&d, bytes, list[i]);
  }
  drive(&d);
  drive_end(&d);
  plua_close(p);
}

/* Runs of payloads of all sizes, with single ones between them. */
static void put_runs(void) {
  enum { N = 6000 };
  static size_t list[N];
  struct drive d;
  plua_pool *p = host_open(2, echo);
  plua_job job = {.size = sizeof job, .call = "call!", .call_len = 5};
  unsigned char *bytes = malloc((size_t)8 << 20);
  int slacks = 0;
  CHECK(bytes != NULL);
  for (size_t i = 0; i < N; i++) list[i] = i % 1500 == 1499 ? (3 << 20) + i : i * 7919 % 90;
  sizes = list;
  drive_init(&d, p, N);
  d.on = expect_echo;
  CHECK_IS(plua_submit(p, &job, &d.job), 0);
  CHECK_IS(plua_put_run(p, d.job, bytes, list, 0), PLUA_EARG);
  CHECK_IS(plua_put_run(p, d.job + 1, bytes, list, 1), PLUA_EARG);
  CHECK_IS(plua_slack(p, d.job), 0); /* nobody has anything to do */
  for (uint64_t i = 0; i < N;) {
    unsigned char *at = bytes;
    int want = (int)(i % 71) + 1, added;
    if ((uint64_t)want > N - i) want = (int)(N - i);
    for (int k = 0; k < want; at += list[i + (unsigned)k++])
      fill(at, list[i + (unsigned)k], i + (unsigned)k);
    added = plua_put_run(p, d.job, bytes, list + i, want);
    CHECK(added >= 1 && added <= want);
    int slack = plua_slack(p, d.job);
    CHECK(slack >= 0);
    slacks += slack > 0;
    i += (unsigned)added;
    if (i % 3 || i == N) continue;
    fill(bytes, list[i], i);
    drive_put(&d, bytes, list[i++]);
    drive_step(&d);
  }
  free(bytes);
  drive(&d);
  CHECK_IS(d.results, N);
#ifndef PLUA_SMALL /* where two batches are out at most, somebody may always run dry */
  CHECK(slacks > 0);
#endif
  drive_end(&d);
  CHECK(host_pool_bytes() < 64 << 20);
  plua_close(p);
}

/* ---- forgetting ------------------------------------------------------------------------------ */

static int echo_slowly(void *ctx, const plua_item *item, plua_out *out) {
  flag[0]++;
  if (item->index == 0) poll(NULL, 0, 5);
  return cube(ctx, item, out);
}

/* Forgotten in the middle: no event of it comes any more, its memory goes, another job runs. */
static void forget(void) {
  flag = host_shared(4096);
  plua_pool *p = host_open(2, echo_slowly);
  unsigned char *bytes = calloc(1, 100000);
  CHECK(bytes != NULL);
  for (int round = 0; round < 100; round++) {
    struct drive d, next;
    drive_submit(&d, p, 0, (plua_job){.call = bytes, .call_len = 1000, .chunksize = 4});
    free(d.seen);
    uint64_t job = d.job;
    drive_init(&d, p, 400);
    d.job = job;
    int before = *flag;
    for (int i = 0; i < 400; i++) drive_put(&d, bytes, 10000);
    drive_until(&d, flag, before + 1 + round % 50);
    drive_end(&d);
    drive_submit(&next, p, 20, (plua_job){0});
    drive(&next);
    drive_end(&next);
  }
  plua_stats s = {.size = sizeof s};
  plua_event e;
  do { /* an item of the last job may still run */
    CHECK_IS(plua_next(p, &e), 0);
    CHECK(plua_wait(p, 10000000, 0) >= 0);
    CHECK_IS(plua_stats_get(p, &s), 0);
  } while (s.submitted != s.done);
  CHECK(host_pool_bytes() < 64 << 20);
  free(bytes);
  plua_close(p);
  host_shared_free((void *)(uintptr_t)flag, 4096);
}

/* Its cancelled items are not told of either, and no item of it is being put any more. */
static void forget_told(void) {
  plua_pool *p = host_open(1, cube);
  plua_out *out;
  plua_event e;
  uint64_t first, second;
  const plua_job job = {.size = sizeof job};
  CHECK_IS(plua_submit(p, &job, &first), 0);
  CHECK_IS(plua_submit(p, &job, &second), 0);
  for (int i = 0; i < 4; i++) {
    CHECK_IS(plua_put(p, i % 2 ? first : second, &out), 0);
    CHECK_IS(plua_write(out, "item", 4), 0);
    CHECK_IS(plua_put_end(p), 0);
  }
  CHECK_IS(plua_cancel(p, first, 0, 1, PLUA_WITHDRAW), 1);
  CHECK_IS(plua_cancel(p, second, 1, 1, PLUA_WITHDRAW), 1);
  CHECK_IS(plua_cancel(p, first, 1, 1, PLUA_WITHDRAW), 1);
  CHECK_IS(plua_put(p, first, &out), 0);
  CHECK_IS(plua_forget(p, second), 0); /* another job's: what is being put goes on */
  CHECK_IS(plua_put_end(p), 0);
  CHECK_IS(plua_put(p, first, &out), 0);
  CHECK_IS(plua_forget(p, first), 0);
  CHECK_IS(plua_put_end(p), PLUA_EARG);
  CHECK_IS(plua_submit(p, &job, &first), 0);
  CHECK_IS(plua_put(p, first, &out), 0);
  CHECK_IS(plua_put_end(p), 0);
  do {
    CHECK_IS(plua_next(p, &e), 0);
    if (e.what == PLUA_NOTHING) CHECK(plua_wait(p, -1, 0) >= 0);
    if (e.what == PLUA_FORK) CHECK_IS(plua_fork(p), 1);
    if (e.what == PLUA_LOST || e.what == PLUA_RESULT) CHECK_IS(e.job, first);
  } while (e.what != PLUA_RESULT);
  plua_close(p);
}

int main(int argc, char **argv) {
  static const struct host_case cases[] = {
    {"cubes", cubes},
    {"two_pools", two_pools},
    {"many_jobs", many_jobs},
    {"extend", extend},
    {"runs", runs},
    {"run_many", run_many},
    {"result_sizes", result_sizes},
    {"result_10mb", result_10mb},
    {"result_100mb", result_100mb},
    {"result_small_area", result_small_area},
    {"payload_sizes", payload_sizes},
    {"payload_memory", payload_memory},
    {"put_on_positions", put_on_positions},
    {"put_drop", put_drop},
    {"put_runs", put_runs},
    {"forget", forget},
    {"forget_told", forget_told},
    {NULL, NULL},
  };
  return host_main(argc, argv, cases);
}
