/* host_death.c: workers that die, in every way, under hosts that keep their own ideas about
   children. Each case counts outcomes: one an item, and the right one. Knows plua.h only.
   SPDX-License-Identifier: MIT */
#include "host.h"

#include <stdatomic.h>

static volatile _Atomic int *ran; /* shared: how often each item began */

static void count_runs(uint64_t items) {
  ran = host_shared(items * sizeof *ran);
}
static void forget_runs(uint64_t items) {
  host_shared_free((void *)(uintptr_t)ran, items * sizeof *ran);
}

/* ---- a hundred crashes among a thousand items ------------------------------------------------ */

static int crash_each_tenth(void *ctx, const plua_item *item, plua_out *out) {
  static const int sigs[] = {SIGSEGV, SIGKILL, SIGABRT, SIGFPE, SIGBUS, SIGTERM};
  (void)ctx;
  ran[item->index]++;
  if (item->index % 10 == 7) {
    signal(sigs[item->index / 10 % 6], SIG_DFL);
    raise(sigs[item->index / 10 % 6]);
  }
  return host_cube(out, item->index);
}

static void expect_tenth(struct drive *d, const plua_event *e) {
  static const int sigs[] = {SIGSEGV, SIGKILL, SIGABRT, SIGFPE, SIGBUS, SIGTERM};
  bool known = d->mine == NULL; /* else the host takes exit statuses away */
  if (e->what == PLUA_RESULT) {
    CHECK(e->index % 10 != 7);
    host_check_cube(e);
  } else if (e->what == PLUA_LOST) {
    CHECK_IS(e->index % 10, 7);
    CHECK_IS(e->code, PLUA_ECRASH);
    if (known) CHECK_IS(e->signal, sigs[e->index / 10 % 6]);
    CHECK_IS(e->attempts, 2);
    CHECK(e->worker > 0 && e->pid > 0);
  }
}

static void crashes_with(int workers, unsigned flags, void *mine) {
  plua_options o = {.flags = flags};
  plua_tasks t = {.size = sizeof t, .run = crash_each_tenth};
  struct drive d;
  count_runs(1000);
  drive_submit(&d, host_open_with(workers, &o, &t), 1000,
               (plua_job){.crash_retries = 1, .kill_retries = 1});
  d.on = expect_tenth;
  d.mine = mine;
  drive(&d);
  CHECK_IS(d.results, 900);
  CHECK_IS(d.lost, 100);
  /* Only what a death was charged to ran twice. */
  for (int i = 0; i < 1000; i++) CHECK_IS(ran[i], i % 10 == 7 ? 2 : 1);
  plua_stats s = {.size = sizeof s};
  CHECK_IS(plua_stats_get(d.pool, &s), 0);
  CHECK_IS(s.crashed, 200);
  CHECK_IS(s.retried, 100);
  CHECK_IS(s.done, 1000);
  drive_end(&d);
  plua_close(d.pool);
  forget_runs(1000);
}

static void crashes(void) {
  crashes_with(2, 0, NULL);
}
static void crashes_one_worker(void) {
  crashes_with(1, 0, NULL);
}
static void crashes_many_workers(void) {
  crashes_with(9, 0, NULL);
}
static void crashes_spare(void) {
  crashes_with(2, PLUA_SPARE, NULL);
}

static void sigchld_ignored(void) {
  signal(SIGCHLD, SIG_IGN);
  crashes_with(3, 0, &ran);
  crashes_with(3, PLUA_SPARE, &ran);
  signal(SIGCHLD, SIG_DFL);
}

static void take_all(int sig) {
  int saved = errno;
  (void)sig;
  while (waitpid(-1, NULL, WNOHANG) > 0) continue;
  errno = saved;
}

static void sigchld_taken(void) {
  struct sigaction a = {.sa_handler = take_all, .sa_flags = SA_RESTART};
  sigaction(SIGCHLD, &a, NULL);
  crashes_with(3, 0, &ran);
  crashes_with(3, PLUA_SPARE, &ran);
  signal(SIGCHLD, SIG_DFL);
}

/* ---- both workers die at once ---------------------------------------------------------------- */

static volatile int *together;

/* Item 20 and item 60 wait for each other, then the last to come kills both. */
static int die_together(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  ran[item->index]++;
  if (item->index % 40 == 20) {
    int mine = 1 + (int)(item->index / 40) % 2;
    together[mine] = (int)getpid();
    while (!together[1] || !together[2]) continue;
    together[0] = 1;
    for (;;) pause();
  }
  return host_cube(out, item->index);
}

/* Both deaths are there before either is told. What both had published counts; each is charged its
   own item; nothing else runs twice. */
static void both_die(void) {
  struct drive d;
  plua_options o = {.ring = 4096}; /* room for all that nobody takes meanwhile */
  plua_tasks t = {.size = sizeof t, .run = die_together};
  together = host_shared(4096);
  for (int round = 0; round < 20; round++) {
    count_runs(80);
    memset((void *)(uintptr_t)together, 0, 4 * sizeof *together);
    drive_submit(&d, host_open_with(2, &o, &t), 80, (plua_job){.chunksize = 40});
    CHECK(drive_step(&d)); /* PLUA_FORK */
    while (!together[0]) poll(NULL, 0, 1);
    for (int i = 1; i <= 2; i++) {
      siginfo_t info;
      kill(together[i], SIGKILL);
      CHECK_IS(waitid(P_PID, (id_t)together[i], &info, WEXITED | WNOWAIT), 0);
    }
    CHECK_IS(plua_wait(d.pool, -1, 1), 1); /* in bulk: it looks at deaths before results */
    drive(&d);
    CHECK_IS(d.results, 78);
    CHECK_IS(d.lost, 2);
    for (int i = 0; i < 80; i++) CHECK_IS(ran[i], 1);
    drive_end(&d);
    plua_close(d.pool);
    forget_runs(80);
  }
  host_shared_free((void *)(uintptr_t)together, 4096);
}

/* ---- killed from outside --------------------------------------------------------------------- */

static int work_a_little(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  for (volatile int i = 0; i < 3000; i++) continue;
  return host_cube(out, item->index);
}

struct hunt {
  pid_t pid[4];
  unsigned seed, kills;
};

static void hunt(struct drive *d, const plua_event *e) {
  struct hunt *h = d->mine;
  if (e->what != PLUA_RESULT && e->what != PLUA_LOST) return;
  CHECK(e->what == PLUA_RESULT);
  host_check_cube(e);
  h->pid[e->worker - 1] = e->pid;
  if (rand_r(&h->seed) % 300) return;
  h->kills += kill(e->pid, SIGKILL) == 0;
}

/* Whoever answers may be killed at any moment after; with enough retries all results are right. */
static void kills(void) {
  struct hunt h = {.seed = (unsigned)host_now_ns()};
  if (getenv("SEED")) h.seed = (unsigned)atoi(getenv("SEED"));
  fprintf(stderr, "SEED=%u\n", h.seed);
  for (int round = 0; round < 8; round++) {
    struct drive d;
    plua_options o = {.flags = round & 1 ? PLUA_SPARE : 0};
    plua_tasks t = {.size = sizeof t, .run = work_a_little};
    plua_job job = {.crash_retries = 100, .kill_retries = 100, .chunksize = round & 2 ? 0 : 7};
    drive_submit(&d, host_open_with(3, &o, &t), 5000, job);
    d.on = hunt;
    d.mine = &h;
    drive(&d);
    CHECK_IS(d.results, 5000);
    drive_end(&d);
    plua_close(d.pool);
  }
  CHECK(h.kills > 20);
}

/* ---- exits ----------------------------------------------------------------------------------- */

static int exit_some(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  if (item->index == 3) exit(0);
  if (item->index == 5) exit(9);
  if (item->index == 7) _exit(0);
  if (item->index == 9) quick_exit(4);
  return host_cube(out, item->index);
}

static void expect_exits(struct drive *d, const plua_event *e) {
  static const int status[] = {[3] = 0, [5] = 9, [7] = 0, [9] = 4};
  (void)d;
  if (e->what != PLUA_LOST) return;
  CHECK(e->index >= 3 && e->index <= 9 && e->index % 2);
  CHECK_IS(e->code, PLUA_EEXIT);
  CHECK_IS(e->signal, 0);
  CHECK_IS(e->status, status[e->index]);
}

static void in_atexit(void) {
  static const char text[] = "the host's exit handler\n";
  if (write(2, text, sizeof text - 1) < 0) _exit(3);
}

/* The host's exit handler runs once, in the host, though items call exit. */
static void exits(void) {
  struct drive d = {.on = expect_exits};
  atexit(in_atexit);
  host_map(host_open(2, exit_some), 12, &d, (plua_job){0});
  CHECK_IS(d.lost, 4);
  CHECK_IS(d.results, 8);
}

/* ---- an item forks, and both copies return --------------------------------------------------- */

static int fork_inside(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  if (fork() < 0) return 1;
  return host_cube(out, item->index);
}

static void item_forks(void) {
  struct drive d = {0};
  host_map(host_open(2, fork_inside), 40, &d, (plua_job){0});
  CHECK_IS(d.results, 40);
}

/* ---- descriptors closed under a worker ------------------------------------------------------- */

static int close_everything(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  for (int fd = 0; fd < 64; fd++) close(fd);
  return host_cube(out, item->index);
}

static void items_close_fds(void) {
  struct drive d = {0};
  host_map(host_open(2, close_everything), 200, &d, (plua_job){.chunksize = 1});
  CHECK_IS(d.results, 200);
}

/* ---- shared memory scribbled on ---------------------------------------------------------------
 */

/* Fills the first pages of every mapping that the worker shares and may write. */
static void scribble(int byte) {
  char line[512];
  FILE *f = fopen("/proc/self/maps", "r");
  if (!f) abort();
  while (fgets(line, sizeof line, f)) {
    unsigned long from, to;
    char mode[8];
    if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) != 3 || strcmp(mode, "rw-s") != 0) continue;
    if (strstr(line, "memfd:plua"))
      memset((void *)from, byte, to - from < 16384 ? to - from : 16384);
  }
  fclose(f);
}

static int scribbler;          /* what it writes */
static volatile int *culprits; /* shared: processes that did */

static int scribble_some(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  if (item->index % 100 == 50) {
    volatile int *mine = culprits + 4 * (item->index / 100); /* each try of each item has a place */
    while (*mine) mine++;
    *mine = getpid();
    scribble(scribbler);
  }
  return host_cube(out, item->index);
}

/* What such a worker had published and nobody had taken yet is its own to spoil. */
static void expect_scribbled(struct drive *d, const plua_event *e) {
  bool culprit = false;
  (void)d;
  for (int i = 0; i < 64; i++) culprit |= culprits[i] == e->pid;
  if (e->what == PLUA_RESULT && !culprit) host_check_cube(e);
  if (e->what == PLUA_LOST) CHECK(culprit || e->code == PLUA_EPROTO);
}

/* Whatever it costs, every item has one outcome, and those of other workers are right. */
static void scribbled_with(int byte) {
  struct drive d = {.on = expect_scribbled};
  scribbler = byte;
  culprits = host_shared(4096);
  host_map(host_open(2, scribble_some), 400, &d, (plua_job){0});
  CHECK(d.lost <= 20);
  host_shared_free((void *)(uintptr_t)culprits, 4096);
}

static void scribbled_zeros(void) {
  scribbled_with(0);
}
static void scribbled_ones(void) {
  scribbled_with(0xff);
}
static void scribbled_7f(void) {
  scribbled_with(0x7f);
}

/* ---- retries --------------------------------------------------------------------------------- */

/* Item i dies on its first i tries, so retries decide which survive. */
static int die_i_times(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  CHECK_IS(item->attempt, ran[item->index] + 1);
  if (ran[item->index]++ < (int)item->index) abort();
  return host_cube(out, item->index);
}

static void expect_die(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what == PLUA_RESULT) CHECK(e->index <= 2);
  if (e->what == PLUA_RESULT) CHECK_IS(e->attempts, e->index + 1);
  if (e->what == PLUA_LOST) CHECK_IS(e->attempts, 3);
}

static void crash_retries(void) {
  struct drive d = {.on = expect_die};
  count_runs(6);
  host_map(host_open(2, die_i_times), 6, &d, (plua_job){.crash_retries = 2});
  CHECK_IS(d.results, 3);
  CHECK_IS(d.lost, 3);
  for (int i = 0; i < 6; i++) CHECK_IS(ran[i], i < 2 ? i + 1 : 3);
  forget_runs(6);
}

static int err_i_times(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  if (ran[item->index]++ >= (int)item->index / 2) return host_cube(out, item->index);
  if (item->index % 2) return -ENOSPC;
  return plua_write(out, "bad", 3) ? -ENOMEM : 42;
}

static void expect_err(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what != PLUA_RESULT && e->what != PLUA_LOST) return;
  CHECK_IS(e->attempts, e->index / 2 < 3 ? e->index / 2 + 1 : 3);
  if (e->what == PLUA_LOST) CHECK_IS(e->code, -ENOSPC);
  if (e->what == PLUA_RESULT && e->failed) {
    CHECK_IS(e->failed, 42);
    CHECK(e->len == 3 && memcmp(e->data, "bad", 3) == 0);
    CHECK(e->elapsed_ns >= 0);
  }
}

static void error_retries(void) {
  struct drive d = {.on = expect_err};
  count_runs(10);
  host_map(host_open(2, err_i_times), 10, &d, (plua_job){.error_retries = 2});
  CHECK_IS(d.results, 6);
  CHECK_IS(d.errors, 2);
  CHECK_IS(d.lost, 2);
  forget_runs(10);
}

/* The first digit of its index says what becomes of an item, again and again. */
static int end_in_its_way(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  (void)out;
  ran[item->index]++;
  if (item->index < 10) abort();
  if (item->index < 20) return 1;
  if (item->index < 30) return PLUA_TIMED_OUT;
  raise(item->index < 40 ? SIGKILL : SIGTERM);
  return 0;
}

static const int ways[5] = {2, 3, 4, 5, 5}; /* attempts */

static void expect_ways(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what != PLUA_RESULT && e->what != PLUA_LOST) return;
  CHECK_IS(e->attempts, ways[e->index / 10]);
  CHECK_IS(e->what, e->index / 10 % 3 && e->index < 30 ? PLUA_RESULT : PLUA_LOST);
}

/* Each kind of failure has retries of its own. */
static void retries_by_kind(void) {
  struct drive d = {.on = expect_ways};
  count_runs(50);
  host_map(
    host_open(2, end_in_its_way), 50, &d,
    (plua_job){.crash_retries = 1, .error_retries = 2, .timeout_retries = 3, .kill_retries = 4});
  CHECK_IS(d.errors, 20);
  CHECK_IS(d.lost, 30);
  for (int i = 0; i < 50; i++) CHECK_IS(ran[i], ways[i / 10]);
  forget_runs(50);
}

/* A host that was built before kills were told from crashes: its crash_retries are for both. */
static void retries_of_old_hosts(void) {
  struct drive d;
  count_runs(40);
  plua_pool *p = host_open(2, end_in_its_way);
  drive_init(&d, p, 40);
  plua_job job = {.size = offsetof(plua_job, timeout_retries), .count = 40, .crash_retries = 2};
  CHECK_IS(plua_submit(p, &job, &d.job), 0);
  drive(&d);
  drive_end(&d);
  plua_close(p);
  for (int i = 0; i < 40; i++) CHECK_IS(ran[i], i / 10 % 3 ? 1 : 3);
  forget_runs(40);
}

static int slow_then_fail(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx;
  (void)out;
  if (item->index < 10) poll(NULL, 0, 20);
  return item->index == 10 ? 1 : 0;
}

static void expect_quick(struct drive *d, const plua_event *e) {
  (void)d;
  if (e->what == PLUA_RESULT && e->failed) CHECK(e->elapsed_ns < 20000000);
}

/* The time of a failed item is its own, not that of items before it in the batch. */
static void elapsed(void) {
  struct drive d = {.on = expect_quick};
  host_map(host_open(1, slow_then_fail), 11, &d, (plua_job){.chunksize = 11});
  CHECK_IS(d.errors, 1);
}

int main(int argc, char **argv) {
  static const struct host_case cases[] = {
    {"crashes", crashes},
    {"crashes_one_worker", crashes_one_worker},
    {"crashes_many_workers", crashes_many_workers},
    {"crashes_spare", crashes_spare},
    {"sigchld_ignored", sigchld_ignored},
    {"sigchld_taken", sigchld_taken},
    {"both_die", both_die},
    {"kills", kills},
    {"exits", exits},
    {"item_forks", item_forks},
    {"items_close_fds", items_close_fds},
    {"scribbled_zeros", scribbled_zeros},
    {"scribbled_ones", scribbled_ones},
    {"scribbled_7f", scribbled_7f},
    {"crash_retries", crash_retries},
    {"error_retries", error_retries},
    {"retries_by_kind", retries_by_kind},
    {"retries_of_old_hosts", retries_of_old_hosts},
    {"elapsed", elapsed},
    {NULL, NULL},
  };
  return host_main(argc, argv, cases);
}
