/* host_pool.c: the life of pools: opening, forking, resizing, shutting down, failing at boot, and
   what a host finds unchanged afterwards. Knows plua.h only. SPDX-License-Identifier: MIT */
#include "host.h"

#include <pthread.h>
#include <stdatomic.h>

static int cube(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  return host_cube(out, item->index);
}

static void map_some(plua_pool *p, uint64_t n) {
  struct drive d;
  drive_submit(&d, p, n, (plua_job){0});
  drive(&d);
  CHECK_IS(d.results, n);
  drive_end(&d);
}

static bool has_text(const plua_pool *p, const char *part) {
  return strstr(plua_message(p), part) != NULL;
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void bad_arguments(void) {
  plua_pool *none = NULL, *p;
  plua_tasks t = {.size = sizeof t, .run = cube}, no_run = {.size = sizeof no_run};
  plua_options o = {.size = sizeof o, .workers = 2}, many = {.size = sizeof many, .workers = 65001};
  plua_options zero = {.size = sizeof zero};
  plua_options flagged = {.size = sizeof o, .workers = 2, .flags = PLUA_LAST_WORDS << 1};
  plua_options slotted = {.size = sizeof o, .workers = 2, .slots = (1 << 20) + 1};
  CHECK_IS(plua_open(NULL, &o, &t), PLUA_EARG);
  CHECK_IS(plua_open(&none, NULL, &t), PLUA_EARG);
  CHECK_IS(plua_open(&none, &o, NULL), PLUA_EARG);
  CHECK_IS(plua_open(&none, &o, &no_run), PLUA_ERUN);
  CHECK_IS(plua_open(&none, &zero, &t), PLUA_EWORKERS);
  CHECK_IS(plua_open(&none, &many, &t), PLUA_EWORKERS);
  CHECK_IS(plua_open(&none, &flagged, &t), PLUA_EFLAGS);
  CHECK_IS(plua_open(&none, &slotted, &t), PLUA_ESLOTS);
  CHECK_IS(plua_open(&none, &o, &(plua_tasks){.run = cube}), PLUA_EARG);
  CHECK(none == NULL);
  CHECK_IS(plua_open(&p, &o, &t), 0);
  uint64_t id = 77;
  plua_out *out;
  plua_stats s = {0};
  plua_event e;
  CHECK_IS(plua_submit(p, NULL, &id), PLUA_EARG);
  CHECK_IS(plua_submit(p, &(plua_job){.size = sizeof(plua_job)}, NULL), PLUA_EARG);
  CHECK_IS(plua_extend(p, 77, 1), PLUA_EARG);
  CHECK_IS(plua_put(p, 77, &out), PLUA_EARG);
  CHECK_IS(plua_put_end(p), PLUA_EARG);
  CHECK_IS(plua_cancel(p, 77, 0, 1, 0), PLUA_EARG);
  CHECK_IS(plua_forget(p, 77), PLUA_EARG);
  CHECK_IS(plua_stats_get(p, &s), PLUA_EARG);
  CHECK(has_text(p, "plua_stats_get"));
  CHECK_IS(plua_next_run(p, &e, NULL, 1), PLUA_EARG);
  CHECK(has_text(p, "plua_next_run"));
  CHECK_IS(plua_resize(p, 0), PLUA_EARG);
  CHECK(has_text(p, "not 0"));
  CHECK(plua_payload(p, 77, 0, NULL) == NULL);
  plua_put_drop(p);
  plua_close(p);
  plua_close(NULL);
}

/* Many are fine, as long as they can be counted; and those that are gone count no more. */
static void too_many_items(void) {
  plua_pool *p = host_open(1, cube);
  plua_job job = {.size = sizeof job, .count = INT64_MAX};
  plua_stats s = {.size = sizeof s};
  uint64_t a, b;
  for (int i = 0; i < 4; i++) {
    CHECK_IS(plua_submit(p, &job, &a), 0);
    CHECK_IS(plua_submit(p, &job, &b), PLUA_EARG);
    CHECK(has_text(p, "plua_submit: 9223372036854775807 items"));
    CHECK_IS(plua_extend(p, a, 1), PLUA_EARG);
    CHECK(has_text(p, "plua_extend: 1 items"));
    CHECK_IS(plua_forget(p, a), 0);
    CHECK(plua_stats_get(p, &s) == 0 && s.done == s.submitted);
  }
  job.count = UINT64_MAX;
  CHECK_IS(plua_submit(p, &job, &b), PLUA_EARG);
  CHECK(has_text(p, "18446744073709551615 items"));
  job.count = 5;
  CHECK_IS(plua_submit(p, &job, &a), 0);
  CHECK_IS(plua_cancel(p, a, 0, 5, PLUA_WITHDRAW), 5);
  CHECK_IS(plua_extend(p, a, INT64_MAX - 1), PLUA_EARG); /* its positions have an end too */
  CHECK(has_text(p, "plua_extend: 9223372036854775806 items"));
  CHECK_IS(plua_extend(p, a, INT64_MAX - 5), 0);
  plua_close(p);
}

static void strerrors(void) {
  CHECK(strcmp(plua_strerror(PLUA_ECRASH), "worker died while running the item") == 0);
  CHECK(strcmp(plua_strerror(-ENOMEM), strerror(ENOMEM)) == 0);
  for (int code = -5000; code <= 5000; code++) CHECK(plua_strerror(code) && *plua_strerror(code));
}

/* ---- another process ------------------------------------------------------------------------- */

static void in_child(plua_pool *p, uint64_t job) {
  plua_event e;
  plua_stats s = {.size = sizeof s};
  plua_out *out;
  uint64_t id;
  size_t n;
  CHECK_IS(plua_next(p, &e), PLUA_EOWNER);
  CHECK_IS(plua_wait(p, -1, 0), PLUA_EOWNER);
  CHECK_IS(plua_fd(p), PLUA_EOWNER);
  CHECK_IS(plua_dispatch(p), PLUA_EOWNER);
  CHECK_IS(plua_fork(p), PLUA_EOWNER);
  CHECK_IS(plua_resize(p, 3), PLUA_EOWNER);
  CHECK_IS(plua_shutdown(p), PLUA_EOWNER);
  CHECK_IS(plua_submit(p, &(plua_job){.size = sizeof(plua_job), .count = 1}, &id), PLUA_EOWNER);
  CHECK_IS(plua_extend(p, job, 1), PLUA_EOWNER);
  CHECK_IS(plua_put(p, job, &out), PLUA_EOWNER);
  CHECK_IS(plua_put_end(p), PLUA_EOWNER);
  CHECK_IS(plua_cancel(p, job, 0, 1, PLUA_KILL), PLUA_EOWNER);
  CHECK_IS(plua_forget(p, job), PLUA_EOWNER);
  CHECK_IS(plua_stats_get(p, &s), PLUA_EOWNER);
  CHECK(plua_payload(p, job, 0, &n) == NULL);
  plua_put_drop(p);
}

/* What the owner has mapped and a child has not is room for the child's own. */
static void close_in_child(plua_pool *p) {
  enum { BLOCKS = 8, SIZE = 1 << 20 };
  unsigned char *block[BLOCKS];
  for (int i = 0; i < BLOCKS; i++) {
    block[i] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(block[i] != MAP_FAILED);
    memset(block[i], i, SIZE);
  }
  plua_close(p);
  for (int i = 0; i < BLOCKS; i++) CHECK(block[i][0] == i && block[i][SIZE - 1] == i);
  p = host_open(2, cube);
  map_some(p, 100);
  plua_close(p);
}

/* A child that the host forks can neither use nor harm the pool. */
static void inert_in_child(void) {
  struct drive d;
  drive_submit(&d, host_open(2, cube), 5000, (plua_job){.chunksize = 5});
  for (int round = 0; round < 3; round++) {
    pid_t pid = fork();
    int status;
    if (pid == 0) {
      in_child(d.pool, d.job);
      close_in_child(d.pool);
      _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    while (d.outcomes < 1000u * (unsigned)round)
      if (!drive_step(&d)) plua_wait(d.pool, -1, 0);
  }
  drive(&d);
  CHECK_IS(d.results, 5000);
  drive_end(&d);
  plua_close(d.pool);
}

/* ---- many pools ------------------------------------------------------------------------------ */

/* A sanitizer keeps what was freed for a while. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { GROWN_MAX = 300000 };
#else
enum { GROWN_MAX = 512 };
#endif

static long resident_kb(void) {
  long pages = 0, data = 0;
  FILE *f = fopen("/proc/self/statm", "r");
  CHECK(f && fscanf(f, "%*s %ld %*s %*s %*s %ld", &pages, &data) == 2);
  fclose(f);
  return pages * 4;
}

static void many_pools(void) {
  long at_50 = 0;
  for (int i = 0; i < 500; i++) {
    plua_pool *p = host_open(2, cube);
    if (i % 5) map_some(p, 50);
    plua_close(p);
    if (i == 50) at_50 = resident_kb();
    if (i % 100 == 0) host_no_children();
  }
  long grown = resident_kb() - at_50;
  fprintf(stderr, "grown by %ld kB\n", grown);
  CHECK(grown < GROWN_MAX);
}

/* Closed while everything runs: nothing survives it. */
static int forever(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  (void)item;
  (void)out;
  while (pause()) continue;
  return 0;
}

static void close_in_full_run(void) {
  for (int i = 0; i < 20; i++) {
    struct drive d;
    drive_submit(&d, host_open(3, i % 2 ? forever : cube), 100000, (plua_job){.chunksize = 1});
    for (int k = 0; k < i; k++)
      if (!drive_step(&d)) plua_wait(d.pool, 100000, 0);
    free(d.seen);
    plua_close(d.pool);
    host_no_children();
  }
}

/* ---- boot ------------------------------------------------------------------------------------ */

static int refuse(void *ctx, const plua_self *self, plua_out *out) {
  CHECK(self->worker == 1 && self->parent == getppid() && self->pid == getpid());
  return plua_write(out, ctx, strlen(ctx)) ? 1 : 7;
}

static int die_at_boot(void *ctx, const plua_self *self, plua_out *out) {
  (void)ctx;
  (void)self;
  (void)out;
  raise(SIGSEGV);
  return 0;
}

static void boot_event(unsigned flags, const plua_tasks *t, plua_event *last, char *text) {
  plua_options o = {.flags = flags};
  plua_pool *p = host_open_with(1, &o, t);
  uint64_t id;
  CHECK_IS(plua_submit(p, &(plua_job){.size = sizeof(plua_job), .count = 5}, &id), 0);
  for (last->what = PLUA_NOTHING; last->what != PLUA_BOOT;) {
    CHECK_IS(plua_next(p, last), 0);
    if (last->what == PLUA_FORK) CHECK_IS(plua_fork(p), 1);
    if (last->what == PLUA_NOTHING) CHECK_IS(plua_wait(p, -1, 0), 1);
    CHECK(last->what != PLUA_LOST && last->what != PLUA_RESULT);
  }
  memcpy(text, last->data ? last->data : "", last->len);
  text[last->len] = 0;
  CHECK_IS(plua_submit(p, &(plua_job){.size = sizeof(plua_job), .count = 5}, &id), PLUA_EBOOT);
  CHECK(*plua_message(p));
  CHECK_IS(plua_fork(p), PLUA_EBOOT);
  plua_stats s = {.size = sizeof s};
  CHECK_IS(plua_stats_get(p, &s), 0);
  CHECK_IS(s.started, last->failed ? 1 : 3);
  plua_close(p);
}

static void boot_fails(void) {
  plua_tasks t = {.size = sizeof t, .run = cube, .enter = refuse, .ctx = "no licence found"};
  plua_event e;
  char text[100];
  boot_event(0, &t, &e, text);
  CHECK_IS(e.failed, 1);
  CHECK(strcmp(text, "no licence found") == 0);
  CHECK_IS(e.worker, 1);
}

static void boot_dies(void) {
  plua_tasks t = {.size = sizeof t, .run = cube, .enter = die_at_boot};
  plua_event e;
  char text[100];
  boot_event(0, &t, &e, text);
  CHECK_IS(e.failed, 0);
  CHECK_IS(e.len, 0);
  CHECK(e.data == NULL);
  CHECK_IS(e.signal, SIGSEGV);
}

static void no_body(void *ctx, void (*body)(void *), void *arg) {
  (void)ctx;
  (void)body;
  (void)arg;
}

static void guard_returns(void) {
  plua_tasks t = {.size = sizeof t, .run = cube, .guard = no_body};
  plua_event e;
  char text[100];
  for (unsigned flags = 0; flags <= PLUA_SPARE; flags += PLUA_SPARE) {
    boot_event(flags, &t, &e, text);
    CHECK_IS(e.signal, 0);
    CHECK_IS(e.status, 70);
  }
}

/* ---- what workers have in common ------------------------------------------------------------- */

static _Atomic int *readied; /* shared: calls of 'ready' */
static pid_t common; /* the process that was made ready: this one, or what it is a copy of */

static void make_ready(void *ctx) {
  (void)ctx;
  common = getpid();
  ++*readied;
}

static void ready_first(void *ctx, void (*body)(void *), void *arg) {
  (void)ctx;
  if (common) body(arg);
}

/* Whether this process is a copy of the one that was made ready. */
static int is_copy(void *ctx, const plua_item *item, plua_out *out) {
  char copy = common != getpid();
  (void)ctx;
  (void)item;
  return plua_write(out, &copy, 1);
}

static void count_copies(struct drive *d, const plua_event *e) {
  if (e->what == PLUA_RESULT) *(int *)d->mine += *(const char *)e->data;
}

static void ready_with(unsigned flags, int workers, int times, int copies_expected) {
  plua_options o = {.flags = flags};
  plua_tasks t = {.size = sizeof t, .run = is_copy, .guard = ready_first, .ready = make_ready};
  struct drive d;
  int copies = 0;
  readied = host_shared(sizeof *readied);
  drive_submit(&d, host_open_with(workers, &o, &t), 100, (plua_job){.chunksize = 1});
  d.on = count_copies;
  d.mine = &copies;
  drive(&d);
  CHECK_IS(copies, copies_expected);
  plua_stats s = {.size = sizeof s};
  CHECK_IS(plua_stats_get(d.pool, &s), 0);
  CHECK_IS(s.started, workers);
  plua_shutdown(d.pool);
  while (!d.ended) /* else one that has not begun yet would be killed */
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) >= 0);
  CHECK_IS(*readied, times);
  drive_end(&d);
  plua_close(d.pool);
  host_shared_free((void *)readied, sizeof *readied);
}

/* How many processes this one could watch. */
static int count_pidfds(void *ctx, const plua_item *item, plua_out *out) {
  char path[64], name[64];
  uint64_t n = 0;
  for (int fd = 0; fd < 256; fd++) {
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(path, name, sizeof name - 1);
    n += len > 0 && memmem(name, (size_t)len, "pidfd", 5);
  }
  (void)ctx, (void)item;
  return plua_write(out, &n, sizeof n);
}

static void is_none(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what == PLUA_RESULT) CHECK_IS(host_number(e), 0);
}

/* Each worker runs an item. */
static void spare_descriptors(void) {
  plua_options o = {.flags = PLUA_SPARE | PLUA_KEEP_FDS, .max_tasks = 1};
  plua_tasks t = {.size = sizeof t, .run = count_pidfds};
  struct drive d = {.on = is_none};
  host_map(host_open_with(20, &o, &t), 60, &d, (plua_job){.chunksize = 1});
  CHECK_IS(d.results, 60);
}

static void ready_once(void) {
  ready_with(0, 3, 3, 0);
  ready_with(PLUA_SPARE, 3, 1, 100);
  ready_with(PLUA_SPARE, 200, 2, 100); /* two spares, and more than they make at once */
}

/* ---- shutdown -------------------------------------------------------------------------------- */

static int complain(void *ctx, plua_out *out) {
  (void)ctx;
  return plua_write(out, "left a mess", 11) ? -1 : 1;
}

static void count_left(struct drive *d, const plua_event *e) {
  if (e->what != PLUA_LEFT) return;
  CHECK(e->len == 11 && memcmp(e->data, "left a mess", 11) == 0);
  CHECK(e->worker > 0 && e->pid > 0);
  ++*(int *)d->mine;
}

static void shutdown_with(plua_options o, int workers, uint64_t items) {
  plua_tasks t = {.size = sizeof t, .run = cube, .leave = complain};
  struct drive d;
  int left = 0;
  drive_submit(&d, host_open_with(workers, &o, &t), items, (plua_job){0});
  d.on = count_left;
  d.mine = &left;
  if (items % 2) CHECK(drive_step(&d)); /* PLUA_FORK, before or after */
  CHECK_IS(plua_shutdown(d.pool), 0);
  uint64_t id;
  CHECK_IS(plua_submit(d.pool, &(plua_job){.size = sizeof(plua_job), .count = 1}, &id),
           PLUA_ECLOSED);
  while (!d.ended)
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) != 0);
  CHECK_IS(d.results, items);
  plua_stats s = {.size = sizeof s};
  CHECK_IS(plua_stats_get(d.pool, &s), 0);
  CHECK_IS(s.alive, 0);
  CHECK_IS(left, s.started);
  /* Work that is taken back from behind a slow item may find that the others have left. */
  if (!o.max_tasks && items) CHECK(s.started >= (uint64_t)workers);
  drive_end(&d);
  plua_close(d.pool);
}

static void shutdown_pool(void) {
  for (int workers = 1; workers < 4; workers++)
    for (uint64_t items = 0; items < 2000; items = items * 5 + 1)
      shutdown_with((plua_options){0}, workers, items);
  shutdown_with((plua_options){.max_tasks = 10}, 2, 301);
  shutdown_with((plua_options){.flags = PLUA_SPARE}, 2, 301);
}

static void until_ended(struct drive *d) {
  for (d->ended = false; !d->ended;)
    if (!drive_step(d)) CHECK(plua_wait(d->pool, 10000000000, 0) > 0);
}

/* A job that is there takes items still: each end is told. */
static void shutdown_twice(void) {
  struct drive d;
  drive_init(&d, host_open(2, cube), 25);
  CHECK_IS(plua_submit(d.pool, &(plua_job){.size = sizeof(plua_job)}, &d.job), 0);
  CHECK_IS(plua_shutdown(d.pool), 0);
  until_ended(&d);
  for (int i = 0; i < 3; i++) {
    CHECK_IS(plua_extend(d.pool, d.job, 8), 0);
    until_ended(&d);
    CHECK_IS(d.results, 8 * (i + 1));
  }
  CHECK_IS(plua_extend(d.pool, d.job, 1), 0);
  CHECK_IS(plua_cancel(d.pool, d.job, 24, 1, PLUA_WITHDRAW), 1);
  until_ended(&d);
  CHECK_IS(plua_extend(d.pool, d.job, 0), 0);
  CHECK(!drive_step(&d));
  drive_end(&d);
  plua_close(d.pool);
}

/* Nobody tells the pool that its workers, which rest, are stopped. */
static void shutdown_stopped(void) {
  plua_options o = {0};
  plua_tasks t = {.size = sizeof t, .run = cube, .leave = complain};
  struct drive d;
  int left = 0;
  drive_submit(&d, host_open_with(1, &o, &t), 1, (plua_job){0});
  pid_t pid = 0;
  while (d.outcomes < d.n) {
    plua_event e;
    CHECK_IS(plua_next(d.pool, &e), 0);
    if (e.what == PLUA_FORK) CHECK_IS(plua_fork(d.pool), 1);
    if (e.what == PLUA_RESULT) drive_count(&d, &e), pid = e.pid;
    if (e.what == PLUA_NOTHING) CHECK(plua_wait(d.pool, -1, 0) != 0);
  }
  CHECK_IS(kill(pid, SIGSTOP), 0);
  d.on = count_left;
  d.mine = &left;
  CHECK_IS(plua_shutdown(d.pool), 0);
  while (!d.ended)
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) != 0);
  CHECK_IS(left, 1);
  drive_end(&d);
  plua_close(d.pool);
}

static void max_tasks(void) {
  plua_options o = {.max_tasks = 7};
  plua_tasks t = {.size = sizeof t, .run = cube};
  plua_pool *p = host_open_with(2, &o, &t);
  map_some(p, 700);
  plua_stats s = {.size = sizeof s};
  CHECK_IS(plua_stats_get(p, &s), 0);
  CHECK(s.started >= 100 && s.started <= 102);
  CHECK_IS(s.crashed, 0);
  plua_close(p);
}

/* ---- resizing -------------------------------------------------------------------------------- */

static volatile _Atomic int *begun; /* shared: items begun; how many must be in hand at once */

/* Waits until as many workers as there should be are here. */
static int meet(void *ctx, const plua_item *item, plua_out *out) {
  for (begun[0]++; begun[0] < begun[1];) poll(NULL, 0, 1);
  return cube(ctx, item, out);
}

static void resize(void) {
  static const int size[] = {2, 6, 1, 3, 3, 8, 2, 1, 4};
  begun = host_shared(4096);
  plua_options o = {.slots = 64}; /* so that all can be out at once */
  plua_tasks t = {.size = sizeof t, .run = meet};
  plua_pool *p = host_open_with(size[0], &o, &t);
  for (int i = 0; i < 9; i++) {
    struct drive d;
    begun[0] = 0;
    begun[1] = size[i];
    CHECK_IS(plua_resize(p, size[i]), 0);
    drive_submit(&d, p, 40, (plua_job){.chunksize = 1});
    drive(&d);
    drive_end(&d);
    plua_stats s = {.size = sizeof s};
    CHECK_IS(plua_stats_get(p, &s), 0);
    CHECK_IS(s.workers, size[i]);
  }
  CHECK_IS(plua_resize(p, 1000000), PLUA_EARG);
  CHECK(has_text(p, "1000000"));
  plua_close(p);
  host_shared_free((void *)(uintptr_t)begun, 4096);
}

static int nap(void *ctx, const plua_item *item, plua_out *out) {
  poll(NULL, 0, 1);
  return cube(ctx, item, out);
}

/* In the middle of a job, again and again. */
static void resize_in_run(void) {
  struct drive d;
  drive_submit(&d, host_open(1, nap), 600, (plua_job){0});
  for (unsigned i = 0; d.outcomes < d.n; i++) {
    if (i % 13 == 0) CHECK_IS(plua_resize(d.pool, 1 + (int)(i * 7 % 5)), 0);
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) != 0);
  }
  CHECK_IS(d.results, 600);
  drive_end(&d);
  plua_close(d.pool);
}

/* ---- scarce and strange surroundings --------------------------------------------------------- */

/* With 20 descriptors there is no room for 100 workers: fewer do the work, told once. */
static void few_descriptors(void) {
  struct rlimit was, few = {20, 20};
  struct drive d;
  getrlimit(RLIMIT_NOFILE, &was);
  few.rlim_max = was.rlim_max;
  CHECK_IS(setrlimit(RLIMIT_NOFILE, &few), 0);
  drive_submit(&d, host_open(100, nap), 500, (plua_job){.chunksize = 1});
  drive(&d);
  CHECK_IS(d.results, 500);
  CHECK_IS(d.shorts, 1);
  CHECK(has_text(d.pool, strerror(EMFILE)));
  drive_end(&d);
  plua_close(d.pool);
  CHECK_IS(setrlimit(RLIMIT_NOFILE, &was), 0);
}

static void no_descriptors(void) {
  struct rlimit was, few;
  plua_tasks t = {.size = sizeof t, .run = cube};
  plua_options o = {.size = sizeof o, .workers = 2};
  getrlimit(RLIMIT_NOFILE, &was);
  for (rlim_t n = 3; n < 11; n++) {
    plua_pool *p = NULL;
    few = (struct rlimit){n, was.rlim_max};
    CHECK_IS(setrlimit(RLIMIT_NOFILE, &few), 0);
    int err = plua_open(&p, &o, &t);
    if (!err) CHECK_IS(plua_fork(p) < 0 ? -EMFILE : 0, n < 9 ? -EMFILE : 0);
    if (!err) plua_close(p);
    if (err) CHECK_IS(err, -EMFILE);
    CHECK_IS(setrlimit(RLIMIT_NOFILE, &was), 0);
  }
}

/* With so few descriptors, as many as are open and 'more': whether there is a worker. */
static bool some_start(int workers, int more) {
  struct rlimit was, few;
  plua_tasks t = {.size = sizeof t, .run = cube};
  plua_options o = {.size = sizeof o, .workers = workers, .flags = PLUA_SPARE};
  plua_pool *p = NULL;
  getrlimit(RLIMIT_NOFILE, &was);
  few = (struct rlimit){(rlim_t)(3 + more), was.rlim_max};
  CHECK_IS(setrlimit(RLIMIT_NOFILE, &few), 0);
  bool some = plua_open(&p, &o, &t) == 0 && plua_fork(p) > 0;
  plua_close(p);
  CHECK_IS(setrlimit(RLIMIT_NOFILE, &was), 0);
  return some;
}

/* A worker is worth more than a second spare, which pools of many have. */
static void few_descriptors_spares(void) {
  for (int more = 0; more < 16; more++) CHECK_IS(some_start(100, more), some_start(2, more));
  CHECK(some_start(2, 15));
}

/* A limit on the size of files is not meant for a pool's memory, and must not kill the host. */
static void file_size_limit(void) {
  struct rlimit was, little = {100000, 100000};
  getrlimit(RLIMIT_FSIZE, &was);
  little.rlim_max = was.rlim_max;
  CHECK_IS(setrlimit(RLIMIT_FSIZE, &little), 0);
  plua_pool *p = NULL;
  plua_tasks t = {.size = sizeof t, .run = cube};
  plua_options o = {.size = sizeof o, .workers = 2};
  int err = plua_open(&p, &o, &t);
  if (!err) map_some(p, 100);
  plua_close(p);
  CHECK_IS(setrlimit(RLIMIT_FSIZE, &was), 0);
  CHECK_IS(err == -EFBIG ? 0 : err, 0);
}

/* The limit on files bounds what a fault would cost. A host that may not lock maps as any other. */
static void locked_memory(void) {
  struct rlimit was, bound = {3000000000u, 0};
  getrlimit(RLIMIT_FSIZE, &was);
  bound.rlim_max = was.rlim_max;
  CHECK_IS(setrlimit(RLIMIT_FSIZE, &bound), 0);
  bool locked = mlockall(MCL_CURRENT | MCL_FUTURE) == 0;
  long before = resident_kb();
  plua_pool *p = NULL;
  plua_tasks t = {.size = sizeof t, .run = cube};
  plua_options o = {.size = sizeof o, .workers = 2};
  int err = plua_open(&p, &o, &t);
  CHECK(err == 0 || (locked && err == -ENOMEM)); /* RLIMIT_MEMLOCK */
  CHECK(resident_kb() - before < 65536);
  if (!err) map_some(p, 1000);
  CHECK(resident_kb() - before < 65536);
  plua_close(p);
  munlockall();
  CHECK_IS(setrlimit(RLIMIT_FSIZE, &was), 0);
}

static void become_nobody(bool spare) {
  plua_options o = {.flags = spare ? PLUA_SPARE : 0};
  plua_tasks t = {.size = sizeof t, .run = cube};
  plua_pool *p = host_open_with(3, &o, &t);
  map_some(p, 100);
  if (getuid() == 0) CHECK_IS(setuid(65534), 0);
  map_some(p, 100);
  plua_close(p);
  host_no_children();
}

/* The first worker may be killed, those made after it may not. */
static void become_nobody_late(void) {
  bool root = getuid() == 0;
  plua_options o = {0};
  plua_tasks t = {.size = sizeof t, .run = cube};
  plua_pool *p = host_open_with(1, &o, &t);
  if (root) CHECK_IS(setresuid(65534, 65534, 0), 0);
  map_some(p, 100);
  if (root) CHECK_IS(setresuid(0, 0, 0), 0);
  CHECK_IS(plua_resize(p, 3), 0);
  CHECK_IS(plua_fork(p), 2);
  map_some(p, 100);
  if (root) CHECK_IS(setuid(65534), 0);
  plua_close(p);
  host_no_children();
}

/* A worker that is held, to be ended, goes on and leaves. */
static void become_nobody_held(void) {
  struct drive d;
  drive_submit(&d, host_open(1, nap), 40, (plua_job){.chunksize = 40});
  while (d.outcomes < 3)
    if (!drive_step(&d)) CHECK(plua_wait(d.pool, -1, 0) != 0);
  if (getuid() == 0) CHECK_IS(setuid(65534), 0);
  CHECK(plua_cancel(d.pool, d.job, 0, 40, PLUA_KILL) >= 0);
  plua_close(d.pool);
  host_no_children();
}

static void privileges_dropped(void) {
  for (int how = 0; how < 4; how++) {
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
      if (how == 3)
        become_nobody_held();
      else if (how == 2)
        become_nobody_late();
      else
        become_nobody(how);
      _exit(0);
    }
    CHECK_IS(waitpid(pid, &status, 0), pid);
    CHECK_IS(status, 0);
  }
}

static void *wait_for_it(void *go) {
  while (!*(volatile int *)go) poll(NULL, 0, 1);
  return NULL;
}

static void threads(void) {
  static volatile int go;
  pthread_t thread;
  plua_pool *p = host_open(2, cube);
  CHECK_IS(pthread_create(&thread, NULL, wait_for_it, (void *)(uintptr_t)&go), 0);
  CHECK_IS(plua_fork(p), PLUA_ETHREADS);
  CHECK(has_text(p, "threads"));
  go = 1;
  pthread_join(thread, NULL);
  while (plua_fork(p) == PLUA_ETHREADS) poll(NULL, 0, 1); /* the kernel forgets it a little later */
  map_some(p, 100);
  plua_close(p);
}

/* Standard streams that are closed stay closed: no descriptor of a pool takes their place. */
static void closed_stdio(void) {
  for (int fd = 0; fd < 3; fd++) CHECK_IS(fcntl(fd, F_DUPFD, 100) >= 0 ? close(fd) : -1, 0);
  plua_pool *p = host_open(2, cube);
  CHECK(plua_fd(p) > 2);
  map_some(p, 1000);
  bool closed = fcntl(0, F_GETFD) < 0 && fcntl(1, F_GETFD) < 0 && fcntl(2, F_GETFD) < 0;
  plua_close(p);
  for (int fd = 0; fd < 3; fd++) CHECK_IS(dup2(100 + fd, fd) == fd ? close(100 + fd) : -1, 0);
  CHECK(closed);
}

/* Signals, their handlers and the mask are as before. */
static void signals_untouched(void) {
  struct sigaction before[65], after;
  sigset_t mask[2];
  for (int n = 1; n < 65; n++) sigaction(n, NULL, &before[n]);
  sigprocmask(SIG_SETMASK, NULL, &mask[0]);
  plua_pool *p = host_open(2, cube);
  map_some(p, 1000);
  for (int n = 1; n < 65; n++)
    if (sigaction(n, NULL, &after) == 0) CHECK(after.sa_handler == before[n].sa_handler);
  sigprocmask(SIG_SETMASK, NULL, &mask[1]);
  CHECK(memcmp(&mask[0], &mask[1], sizeof mask[0]) == 0);
  plua_close(p);
}

int main(int argc, char **argv) {
  static const struct host_case cases[] = {
    {"bad_arguments", bad_arguments},
    {"too_many_items", too_many_items},
    {"strerrors", strerrors},
    {"inert_in_child", inert_in_child},
    {"many_pools", many_pools},
    {"close_in_full_run", close_in_full_run},
    {"boot_fails", boot_fails},
    {"boot_dies", boot_dies},
    {"guard_returns", guard_returns},
    {"ready_once", ready_once},
    {"spare_descriptors", spare_descriptors},
    {"shutdown", shutdown_pool},
    {"shutdown_twice", shutdown_twice},
    {"shutdown_stopped", shutdown_stopped},
    {"max_tasks", max_tasks},
    {"resize", resize},
    {"resize_in_run", resize_in_run},
    {"few_descriptors", few_descriptors},
    {"few_descriptors_spares", few_descriptors_spares},
    {"no_descriptors", no_descriptors},
    {"file_size_limit", file_size_limit},
    {"locked_memory", locked_memory},
    {"privileges_dropped", privileges_dropped},
    {"threads", threads},
    {"closed_stdio", closed_stdio},
    {"signals_untouched", signals_untouched},
    {NULL, NULL},
  };
  return host_main(argc, argv, cases);
}
