/* host.h: what the C hosts share: checks that say where, a count of each item's outcomes, and the
   loop that pulls them. Knows plua.h only, as any host does. SPDX-License-Identifier: MIT */
#ifndef HOST_H
#define HOST_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "plua.h"

#define CHECK(x) ((x) ? (void)0 : host_fail(__FILE__, __LINE__, #x))
#define CHECK_IS(a, b) host_same(__FILE__, __LINE__, #a, (int64_t)(a), (int64_t)(b))

/* One thing that a host does; its name is the program's argument. */
struct host_case {
  const char *name;
  void (*run)(void);
};

_Noreturn static inline void host_fail(const char *file, int line, const char *what) {
  fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
  exit(1);
}

static inline void host_same(const char *file, int line, const char *what, int64_t a, int64_t b) {
  if (a == b) return;
  fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, what, (long long)a, (long long)b);
  exit(1);
}

/* ---- what must not be left behind ----------------------------------------------------------- */

static inline int host_fds(void) {
  DIR *d = opendir("/proc/self/fd");
  int n = 0;
  CHECK(d != NULL);
  while (readdir(d)) n++;
  closedir(d);
  return n;
}

static inline void host_no_children(void) {
  CHECK(waitpid(-1, NULL, WNOHANG) < 0);
  CHECK(errno == ECHILD);
}

/* Bytes behind the pool's memory file, found among the open descriptors. */
static inline int64_t host_pool_bytes(void) {
  char path[64], name[128];
  int64_t bytes = 0;
  for (int fd = 3; fd < 256; fd++) {
    struct stat st;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, name, sizeof name - 1);
    if (n < 0) continue;
    name[n] = 0;
    if (strstr(name, "memfd:plua") && fstat(fd, &st) == 0) bytes += (int64_t)st.st_blocks * 512;
  }
  return bytes;
}

static inline int64_t host_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Memory that processes forked later share; never freed. */
static inline void *host_shared(size_t n) {
  void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

static inline void host_shared_free(void *p, size_t n) {
  munmap(p, n);
}

/* ---- driving a pool ------------------------------------------------------------------------- */

/* One job and what came of it. */
struct drive {
  plua_pool *pool;
  uint64_t job, n;     /* items that must have an outcome */
  unsigned char *seen; /* outcomes of each */
  uint64_t outcomes, results, errors, lost, shorts;
  int boot; /* PLUA_BOOT was told */
  bool ended;
  void (*on)(struct drive *d, const plua_event *e); /* optional: each event */
  void *mine;                                       /* on's */
};

static inline plua_pool *host_open_with(int workers, plua_options *o, const plua_tasks *t) {
  plua_pool *p = NULL;
  o->size = sizeof *o;
  o->workers = workers;
  int err = plua_open(&p, o, t);
  if (err) fprintf(stderr, "plua_open: %s\n", plua_strerror(err));
  CHECK_IS(err, 0);
  CHECK(p != NULL);
  return p;
}

static inline plua_pool *host_open(int workers, int (*run)(void *, const plua_item *, plua_out *)) {
  plua_options o = {0};
  plua_tasks t = {.size = sizeof t, .run = run};
  return host_open_with(workers, &o, &t);
}

static inline void drive_init(struct drive *d, plua_pool *p, uint64_t n) {
  *d = (struct drive){.pool = p, .n = n};
  d->seen = calloc(n ? n : 1, 1);
  CHECK(d->seen != NULL);
}

static inline void drive_submit(struct drive *d, plua_pool *p, uint64_t n, plua_job job) {
  drive_init(d, p, n);
  job.size = sizeof job;
  job.count = n;
  CHECK_IS(plua_submit(p, &job, &d->job), 0);
  CHECK(d->job > 0);
}

static inline void drive_put(struct drive *d, const void *bytes, size_t n) {
  plua_out *out;
  CHECK_IS(plua_put(d->pool, d->job, &out), 0);
  CHECK_IS(plua_write(out, bytes, n), 0);
  CHECK_IS(plua_put_end(d->pool), 0);
}

static inline void drive_count(struct drive *d, const plua_event *e) {
  CHECK(e->index < d->n);
  CHECK_IS(d->seen[e->index], 0);
  d->seen[e->index] = 1;
  d->outcomes++;
  if (e->what == PLUA_LOST)
    d->lost++;
  else if (e->failed)
    d->errors++;
  else
    d->results++;
}

/* Takes one event. False: there was none. Events of other jobs go to 'on' only. */
static inline bool drive_step(struct drive *d) {
  plua_event e;
  CHECK_IS(plua_next(d->pool, &e), 0);
  switch (e.what) {
  case PLUA_NOTHING:
    return false;
  case PLUA_RESULT:
  case PLUA_LOST:
    if (e.job == d->job) drive_count(d, &e);
    break;
  case PLUA_FORK:
    CHECK(plua_fork(d->pool) >= 0);
    break;
  case PLUA_SHORT:
    d->shorts++;
    break;
  case PLUA_BOOT:
    d->boot = 1;
    break;
  case PLUA_LEFT:
    break;
  case PLUA_ENDED:
    d->ended = true;
    break;
  }
  if (d->on) d->on(d, &e);
  return true;
}

/* Until every item has its outcome. */
static inline void drive(struct drive *d) {
  while (d->outcomes < d->n && !d->boot)
    if (!drive_step(d)) CHECK(plua_wait(d->pool, -1, 0) != 0);
}

/* Until 'flag', in memory shared with workers, is at least 'value'. */
static inline void drive_until(struct drive *d, const volatile int *flag, int value) {
  while (*flag < value)
    if (!drive_step(d)) CHECK(plua_wait(d->pool, 1000000, 0) >= 0);
}

static inline void drive_end(struct drive *d) {
  CHECK_IS(plua_forget(d->pool, d->job), 0);
  free(d->seen);
  d->seen = NULL;
}

/* Submits n positions to a pool, waits for all, closes the pool. */
static inline void host_map(plua_pool *p, uint64_t n, struct drive *d, plua_job job) {
  void (*on)(struct drive *, const plua_event *) = d->on;
  drive_submit(d, p, n, job);
  d->on = on;
  drive(d);
  drive_end(d);
  plua_close(p);
}

/* ---- what items answer ----------------------------------------------------------------------- */

static inline int host_cube(plua_out *out, uint64_t i) {
  uint64_t v = i * i * i;
  return plua_write(out, &v, sizeof v);
}

/* The one number that a result is. */
static inline uint64_t host_number(const plua_event *e) {
  uint64_t v;
  CHECK_IS(e->len, sizeof v);
  memcpy(&v, e->data, sizeof v);
  return v;
}

static inline void host_check_cube(const plua_event *e) {
  CHECK_IS(host_number(e), e->index * e->index * e->index);
}

/* ---- the program ---------------------------------------------------------------------------- */

static inline int host_main(int argc, char **argv, const struct host_case *cases) {
  for (const struct host_case *c = cases; argc == 2 && c->name; c++) {
    if (strcmp(c->name, argv[1]) != 0) continue;
    for (int fd = 3; fd < 64; fd++) close(fd); /* what whoever started us left open */
    int fds = host_fds();
    c->run();
    CHECK_IS(host_fds(), fds);
    host_no_children();
    if (fcntl(1, F_GETFD) >= 0) puts("ok");
    return 0;
  }
  fprintf(stderr, "usage: %s CASE\n", argv[0]);
  for (; cases->name; cases++) fprintf(stderr, "  %s\n", cases->name);
  return 2;
}

#endif
