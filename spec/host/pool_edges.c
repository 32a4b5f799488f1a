/* pool_edges.c: the pool over a backend that says what it is told to say: whom it kills, whom it
   asks to leave, what it tells of a death, and what it frees when.
   Knows plua.h and link.h. SPDX-License-Identifier: MIT */
#include <signal.h>
#include <string.h>

#include "host.h"
#include "link.h"

enum { WORKERS = 3, SLOTS = 4, MEMORY = 64 << 20 };

/* ---- the backend ---------------------------------------------------------------------------- */

static struct {
  struct link link;
  struct link_event event[256];
  unsigned events, told;
  struct link_batch out[SLOTS];
  bool is_out[SLOTS];
  int posts, retired[WORKERS], all_retired, killed[WORKERS], resumed[WORKERS], distrusted[WORKERS];
  int held; /* the worker that is held when asked for; -1: none */
  unsigned held_item, idle;
  int refused; /* so many posts */
} f;

static int fake_post(struct link *l, unsigned slot, const struct link_batch *b) {
  (void)l;
  if (f.refused && f.refused--) return -EAGAIN;
  CHECK(slot < SLOTS && !f.is_out[slot]);
  f.out[slot] = *b;
  f.is_out[slot] = true;
  f.posts++;
  return 0;
}
static void fake_flush(struct link *l) {
  (void)l;
}
static int fake_retract(struct link *l, unsigned slot, unsigned keep) {
  (void)l, (void)slot, (void)keep;
  return -1;
}
static void fake_release(struct link *l, unsigned slot) {
  (void)l;
  CHECK(f.is_out[slot]);
  f.is_out[slot] = false;
}
static int fake_start(struct link *l, int w, unsigned n) {
  (void)l, (void)w;
  return (int)n;
}
static void fake_retire(struct link *l, int w) {
  (void)l;
  if (w < 0)
    f.all_retired++;
  else
    f.retired[w]++;
}
static int fake_hold(struct link *l, unsigned slot, unsigned low, unsigned high, unsigned *k) {
  (void)l, (void)slot;
  if (f.held < 0 || f.held_item < low || f.held_item >= high) return -1;
  *k = f.held_item;
  return f.held;
}
static void fake_resume(struct link *l, int w) {
  (void)l;
  f.resumed[w]++;
}
static int fake_running(struct link *l, unsigned slot, unsigned *k) {
  (void)l, (void)slot, (void)k;
  return -1;
}
static void fake_interrupt(struct link *l, int w, unsigned slot, unsigned k) {
  (void)l, (void)w, (void)slot, (void)k;
}
static void fake_kill(struct link *l, int w) {
  (void)l;
  f.killed[w]++;
}
static void fake_distrust(struct link *l, int w) {
  (void)l;
  f.distrusted[w]++;
}
static void fake_abandon(struct link *l, int w) {
  (void)l, (void)w;
}
static void fake_end_stopped(struct link *l, int w, unsigned got) {
  (void)l, (void)w, (void)got;
}
static int fake_next(struct link *l, struct link_event *e, plua_reply *replies, unsigned max) {
  (void)l, (void)replies, (void)max;
  if (f.told == f.events) return 0;
  *e = f.event[f.told++];
  return 1;
}
static int fake_wait(struct link *l, int64_t timeout_ns, enum link_wait how, int low) {
  (void)l, (void)timeout_ns, (void)how, (void)low;
  return f.told < f.events;
}
static int fake_arm(struct link *l, int64_t timeout_ns) {
  return fake_wait(l, timeout_ns, LINK_ANY, 0);
}
static int fake_fd(struct link *l) {
  (void)l;
  return -1;
}
static unsigned fake_idle(struct link *l) {
  (void)l;
  return f.idle;
}
static void fake_close(struct link *l) {
  munmap(l->memory, MEMORY);
  close(l->memory_fd);
}

static const struct link_ops ops = {fake_post,    fake_flush,       fake_retract, fake_release,
                                    fake_start,   fake_retire,      fake_hold,    fake_resume,
                                    fake_running, fake_interrupt,   fake_kill,    fake_distrust,
                                    fake_abandon, fake_end_stopped, fake_next,    fake_wait,
                                    fake_arm,     fake_fd,          fake_idle,    fake_close};

/* Stands where the backend of forked workers would. */
int local_open(struct link **out, const plua_options *o, const plua_tasks *tasks) {
  (void)o, (void)tasks;
  memset(&f, 0, sizeof f);
  f.held = -1;
  int fd = memfd_create("pool_edges", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, MEMORY) == 0);
  unsigned char *p = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(p != MAP_FAILED);
  f.link = (struct link){&ops, p, 2 << 20, MEMORY - (2 << 20), fd, WORKERS};
  *out = &f.link;
  return 0;
}

/* ---- helpers -------------------------------------------------------------------------------- */

static plua_pool *p;
static plua_event e;
static uint64_t job;

static int no_task(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx, (void)item, (void)out;
  return 0;
}

static void fresh(void) {
  const plua_options o = {.size = sizeof o, .workers = WORKERS, .slots = SLOTS};
  const plua_tasks t = {.size = sizeof t, .run = no_task};
  plua_close(p);
  CHECK_IS(plua_open(&p, &o, &t), 0);
}

static void say(struct link_event l) {
  CHECK(f.events < 256);
  l.pid = 1000 + l.worker;
  f.event[f.events++] = l;
}

/* What the next event is. */
static enum plua_what next(void) {
  CHECK_IS(plua_next(p, &e), 0);
  return e.what;
}

static void start(void) {
  CHECK_IS(next(), PLUA_FORK);
  CHECK_IS(plua_fork(p), WORKERS);
  for (int w = 0; w < WORKERS; w++) say((struct link_event){.what = LINK_UP, .worker = w});
}

static void submit(uint64_t count, unsigned chunk, unsigned retries) {
  const plua_job j = {.size = sizeof j,
                      .count = count,
                      .chunksize = chunk,
                      .crash_retries = retries,
                      .kill_retries = retries,
                      .oom_retries = retries};
  CHECK_IS(plua_submit(p, &j, &job), 0);
}

static void begins(int w, int slot) {
  say((struct link_event){.what = LINK_BEGIN, .worker = w, .slot = slot});
}
static void value(int w, int slot, unsigned k) {
  say((struct link_event){.what = LINK_VALUE, .worker = w, .slot = slot, .tag = k, .n = 1});
}
static struct link_event dead(int w, int slot, int64_t begun, int sig) {
  return (struct link_event){
    .what = LINK_DEAD, .worker = w, .slot = slot, .next = begun, .signal = sig};
}

/* ---- what is so ----------------------------------------------------------------------------- */

/* One that is held for an item is killed if it runs it, and goes on if that is done. */
static void holds(void) {
  for (int done = 0; done < 2; done++) {
    fresh();
    submit(2, 2, 0);
    start();
    begins(0, 0);
    CHECK_IS(next(), PLUA_NOTHING);
    f.held = 0;
    CHECK_IS(plua_cancel(p, job, 0, 1, PLUA_KILL), 0);
    if (done) value(0, 0, 0);
    say((struct link_event){.what = LINK_QUIET, .worker = 0});
    CHECK_IS(next(), done ? PLUA_RESULT : PLUA_NOTHING);
    if (done) CHECK_IS(next(), PLUA_NOTHING);
    CHECK_IS(f.killed[0], !done);
    CHECK_IS(f.resumed[0], done);
    if (done) value(0, 0, 1);
    if (!done) say(dead(0, 0, 1, SIGKILL));
    CHECK_IS(next(), done ? PLUA_RESULT : PLUA_LOST);
    CHECK_IS(e.code, done ? 0 : PLUA_ECANCELLED);
    CHECK_IS(e.index, done);
  }
}

/* Nor is one that has begun another batch since, or whose batch another has. */
static void holds_only_its_own(void) {
  fresh();
  submit(2, 1, 0);
  start();
  begins(0, 0);
  CHECK_IS(next(), PLUA_NOTHING);
  f.held = 0;
  CHECK_IS(plua_cancel(p, job, 0, 1, PLUA_KILL), 0);
  value(0, 0, 0);
  CHECK_IS(next(), PLUA_RESULT);
  submit(1, 1, 0); /* its slot is taken anew */
  CHECK(f.is_out[0]);
  begins(1, 0);
  say((struct link_event){.what = LINK_QUIET, .worker = 0});
  CHECK_IS(next(), PLUA_NOTHING);
  CHECK(!f.killed[0] && !f.killed[1] && f.resumed[0] == 1);
}

/* What a forgotten job has sent stays where it is as long as a worker may read it. */
static void payloads_stay(void) {
  plua_out *out;
  uint64_t first;
  fresh();
  submit(0, 1, 0);
  start();
  first = job;
  CHECK(plua_put(p, job, &out) == 0 && plua_write(out, "first", 5) == 0 && plua_put_end(p) == 0);
  begins(0, 0);
  CHECK_IS(next(), PLUA_NOTHING);
  uint64_t off = f.out[0].off;
  CHECK_IS(plua_forget(p, first), 0);
  submit(0, 1, 0);
  for (int i = 0; i < 3; i++)
    CHECK(plua_put(p, job, &out) == 0 && plua_write(out, "other", 5) == 0 && plua_put_end(p) == 0);
  CHECK(memcmp(f.link.memory + off + 8, "first", 5) == 0);
  for (unsigned i = 1; i < SLOTS; i++) CHECK(f.is_out[i] && f.out[i].off != off);
  value(0, 0, 0);
  CHECK_IS(next(), PLUA_NOTHING); /* nobody wants it */
  CHECK(plua_put(p, job, &out) == 0 && plua_write(out, "again", 5) == 0 && plua_put_end(p) == 0);
  CHECK(f.is_out[0]);
}

/* Three that crash while they start say that none will; as many that somebody kills are luck. */
static void boots(void) {
  static const int signals[] = {SIGSEGV, SIGKILL, SIGTERM};
  for (int i = 0; i < 3; i++) {
    fresh();
    submit(1, 1, 0);
    CHECK_IS(next(), PLUA_FORK);
    CHECK_IS(plua_fork(p), WORKERS);
    for (int w = 0; w < WORKERS; w++) say(dead(w, -1, -1, signals[i]));
    CHECK_IS(next(), i ? PLUA_FORK : PLUA_BOOT);
  }
  fresh(); /* one that has started ends the row */
  submit(1, 1, 0);
  CHECK_IS(next(), PLUA_FORK);
  CHECK_IS(plua_fork(p), WORKERS);
  say(dead(0, -1, -1, SIGSEGV));
  say(dead(1, -1, -1, SIGSEGV));
  say((struct link_event){.what = LINK_UP, .worker = 2});
  say(dead(2, -1, -1, SIGSEGV));
  CHECK_IS(next(), PLUA_FORK);
}

/* An item that memory ran out for finds workers that hold nothing; other deaths cost nobody. */
static void renews(void) {
  for (int oom = 0; oom < 2; oom++) {
    fresh();
    submit(1, 1, 1);
    start();
    begins(0, 0);
    struct link_event l = dead(0, 0, 1, SIGKILL);
    if (oom) l.code = PLUA_EOOM;
    say(l);
    CHECK_IS(next(), PLUA_FORK);
    CHECK_IS(f.retired[0], 0);
    CHECK_IS(f.retired[1], oom);
    CHECK_IS(f.retired[2], oom);
    CHECK_IS(f.posts, 2);
  }
  fresh(); /* it is not tried again: nobody leaves */
  submit(1, 1, 0);
  start();
  begins(0, 0);
  struct link_event l = dead(0, 0, 1, SIGKILL);
  l.code = PLUA_EOOM;
  say(l);
  CHECK_IS(next(), PLUA_LOST);
  CHECK(e.code == PLUA_EOOM && !f.retired[1] && !f.retired[2]);
}

/* A death while leaving is told, unless it is as it should be or our own doing. */
static void leaves(void) {
  const struct {
    int failed, signal, status;
    enum plua_what what;
  } each[] = {{0, SIGSEGV, 0, PLUA_NOTHING},
              {1, SIGSEGV, 0, PLUA_LEFT},
              {1, 0, 3, PLUA_LEFT},
              {1, 0, 0, PLUA_NOTHING},
              {1, 0, -1, PLUA_NOTHING}};
  for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
    fresh();
    start();
    CHECK_IS(next(), PLUA_NOTHING);
    struct link_event l = dead(0, -1, -1, each[i].signal);
    l.failed = each[i].failed;
    l.status = each[i].status;
    say(l);
    CHECK_IS(next(), each[i].what);
  }
  fresh(); /* it broke the protocol, and we ended it */
  start();
  say((struct link_event){.what = LINK_FAULT, .worker = 0});
  CHECK_IS(next(), PLUA_NOTHING);
  CHECK(f.killed[0] == 1 && f.distrusted[0] == 1);
  struct link_event l = dead(0, -1, -1, SIGKILL);
  l.failed = 1;
  say(l);
  CHECK_IS(next(), PLUA_NOTHING);
}

/* Workers are asked to leave once, when nothing waits any more. */
static void closes(void) {
  fresh();
  submit(SLOTS + 1, 1, 0);
  start();
  CHECK_IS(next(), PLUA_NOTHING);
  CHECK(plua_shutdown(p) == 0 && f.all_retired == 0);
  begins(0, 0);
  value(0, 0, 0);
  CHECK_IS(next(), PLUA_RESULT);
  CHECK_IS(next(), PLUA_NOTHING);
  CHECK_IS(f.all_retired, 1);
  CHECK_IS(next(), PLUA_NOTHING);
  CHECK_IS(f.all_retired, 1);
  fresh();
  start();
  CHECK_IS(next(), PLUA_NOTHING);
  CHECK_IS(f.all_retired, 0);
}

/* A backend that takes nothing now is asked again, and nothing is lost. */
static void refused(void) {
  fresh();
  submit(0, 1, 0);
  start();
  f.refused = 1;
  CHECK_IS(plua_extend(p, job, 1), 0);
  CHECK_IS(f.posts, 0);
  CHECK_IS(next(), PLUA_NOTHING);
  CHECK_IS(f.posts, 1);
}

/* A batch that came back since its worker spoilt all trace is given out item by item, until one
   that was out alone shows itself. */
static void careful(void) {
  fresh();
  submit(4, 4, 0);
  start();
  say((struct link_event){.what = LINK_FAULT, .worker = 0}); /* it had told of no batch */
  CHECK_IS(next(), PLUA_NOTHING);
  say(dead(0, -1, -1, SIGKILL));
  say((struct link_event){.what = LINK_BACK, .worker = -1, .slot = 0, .code = PLUA_EPROTO});
  f.is_out[0] = false;
  CHECK_IS(next(), PLUA_FORK);
  CHECK(plua_fork(p) == 1);
  unsigned out = 0, slot = 0;
  for (unsigned i = 0; i < SLOTS; i++)
    if (f.is_out[i]) out++, slot = i;
  CHECK(out == 1 && f.out[slot].n == 1 && f.out[slot].first == 0);
  /* It comes back, but nobody has died since: it is nobody's. */
  say((struct link_event){.what = LINK_BACK, .worker = -1, .slot = (int)slot, .code = PLUA_EPROTO});
  f.is_out[slot] = false;
  CHECK_IS(next(), PLUA_NOTHING);
  for (unsigned i = 0; i < SLOTS; i++)
    if (f.is_out[i]) slot = i;
  say((struct link_event){.what = LINK_FAULT, .worker = 1});
  CHECK_IS(next(), PLUA_NOTHING);
  say(dead(1, -1, -1, SIGKILL));
  say((struct link_event){.what = LINK_BACK, .worker = -1, .slot = (int)slot, .code = PLUA_EPROTO});
  f.is_out[slot] = false;
  CHECK_IS(next(), PLUA_LOST);
  CHECK(e.code == PLUA_EPROTO && e.index == f.out[slot].first && e.pid == 1001);
}

int main(void) {
  int before = host_fds();
  void (*const each[])(void) = {
    holds, holds_only_its_own, payloads_stay, boots, renews, leaves, closes, refused, careful};
  for (size_t i = 0; i < sizeof each / sizeof *each; i++) each[i]();
  plua_close(p);
  CHECK_IS(host_fds(), before);
  puts("ok");
  return 0;
}
