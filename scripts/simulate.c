/* simulate.c: the real pool, pump and sched over workers that exist in virtual time only, so that
   a team of 10,000 and 1e8 items fit into a minute of one core.
     simulate WORKERS ITEMS pareto|lognormal|constant MEAN_NS PARENT_NS SEED
   prints "name value" lines: the makespan, that of greedy list scheduling (item by item, in input
   order, to whichever worker is free first), the parent's own time an item, its memory.
   Invariant: a worker's progress is a function of what it was given and of the clock; workers take
   batches in the order of time. PARENT_NS is what the parent needs for a result beside what pool,
   pump and sched need (rings, Lua): by it the clock moves while results are taken in.
   Knows link.h: it is a backend. Does not know rings, processes or Lua; a ring that is full, and
   deaths, do not occur here. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <malloc.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "base.h"
#include "link.h"

#define WAKE_NS 10000     /* from a post until a worker that slept runs */
#define BULK_NS 20000000  /* a parent that waits for everything looks that often */
#define RECORD 24         /* bytes of a small result in a ring; half a ring calls the parent */
#define STRETCH_NS 300000 /* longer than the pool works in one go, less than a time slice */
#define NEVER INT64_MAX

enum { NONE = -1, RUN = 256 }; /* RUN: results taken in at once */

enum slot_state { FREE, READY, TAKEN, RAN };

struct slot {
  enum slot_state state;
  uint64_t first;
  unsigned n, told;   /* items; outcomes told to the pool */
  int64_t start, at;  /* when it was begun; when the last told item ended */
  int next, prev;     /* READY: in its lane */
  int taker;          /* TAKEN, RAN */
  int after;          /* TAKEN, RAN: what its worker took next */
  bool urgent, begun; /* begun: the pool was told */
};

struct lane {
  int head, tail;
};

struct worker {
  int first, last; /* slots that it took and that are not told whole */
  int place;       /* in the heap of those that run; NONE: idle */
  unsigned end_n;  /* an END to tell: items */
  int64_t end_ns;
  unsigned untold; /* results of batches that ended */
  bool up;         /* that it has started is to be told */
};

static struct {
  struct link link;
  struct slot *slot;
  struct worker *worker;
  struct lane lane[2];
  int64_t *ends, *tells; /* of each worker: its batch ends; the next thing to tell happened */
  int *heap, *idle;
  unsigned running, idles, ready, workers, at, ring;
  int64_t now, parent_ns;
  uint64_t wakes, untold, runs;
} sim;

/* ---- costs --------------------------------------------------------------------------------- */

static enum { PARETO, LOGNORMAL, CONSTANT } law;
static double mean_ns;
static uint64_t seed;

static uint64_t mixed(uint64_t x) {
  x = (x + seed) * UINT64_C(0x9e3779b97f4a7c15);
  x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
  return x ^ x >> 31;
}

static double unit(uint64_t bits) {
  return ((double)(bits >> 11) + 0.5) / 9007199254740992.0;
}

/* Pareto with exponent 1.5 (its variance is infinite); lognormal with sigma 1.5. */
static int64_t cost(uint64_t i) {
  double u = unit(mixed(2 * i)), c = mean_ns;
  if (law == PARETO) c = mean_ns / 3 / cbrt(u * u);
  if (law == LOGNORMAL) {
    double normal = sqrt(-2 * log(u)) * cos(6.283185307179586 * unit(mixed(2 * i + 1)));
    c = mean_ns * exp(1.5 * normal - 1.125);
  }
  return c < 1 ? 1 : (int64_t)c;
}

static int64_t costs(uint64_t first, unsigned from, unsigned to) {
  int64_t sum = 0;
  for (unsigned k = from; k < to; k++) sum += cost(first + k);
  return sum;
}

/* ---- workers, by the end of what they run ---------------------------------------------------- */

static void settle(unsigned i, int w) {
  sim.heap[i] = w;
  sim.worker[w].place = (int)i;
}

static void rise(unsigned i) {
  int w = sim.heap[i];
  for (; i > 0 && sim.ends[sim.heap[(i - 1) / 2]] > sim.ends[w]; i = (i - 1) / 2)
    settle(i, sim.heap[(i - 1) / 2]);
  settle(i, w);
}

static void sink(unsigned i) {
  int w = sim.heap[i];
  for (unsigned c; (c = 2 * i + 1) < sim.running; i = c) {
    if (c + 1 < sim.running && sim.ends[sim.heap[c + 1]] < sim.ends[sim.heap[c]]) c++;
    if (sim.ends[sim.heap[c]] >= sim.ends[w]) break;
    settle(i, sim.heap[c]);
  }
  settle(i, w);
}

static void lane_remove(int i) {
  struct slot *s = &sim.slot[i];
  struct lane *l = &sim.lane[s->urgent ? 0 : 1];
  *(s->prev == NONE ? &l->head : &sim.slot[s->prev].next) = s->next;
  *(s->next == NONE ? &l->tail : &sim.slot[s->next].prev) = s->prev;
  sim.ready--;
}

static void lane_add(int i) {
  struct slot *s = &sim.slot[i];
  struct lane *l = &sim.lane[s->urgent ? 0 : 1];
  s->next = NONE;
  s->prev = l->tail;
  *(l->tail == NONE ? &l->head : &sim.slot[l->tail].next) = i;
  l->tail = i;
  sim.ready++;
}

/* Gives worker w the next batch at 't'. False: there is none. */
static bool take(int w, int64_t t) {
  int i = sim.lane[0].head != NONE ? sim.lane[0].head : sim.lane[1].head;
  if (i == NONE) return false;
  lane_remove(i);
  struct slot *s = &sim.slot[i];
  struct worker *me = &sim.worker[w];
  s->state = TAKEN;
  s->taker = w;
  s->start = s->at = t;
  s->after = NONE;
  *(me->first == NONE ? &me->first : &sim.slot[me->last].after) = i;
  if (me->first == i && !me->end_n && !me->up) sim.tells[w] = t;
  me->last = i;
  sim.ends[w] = t + costs(s->first, 0, s->n);
  return true;
}

static void run_idle(void) {
  while (sim.idles && sim.ready) {
    int w = sim.idle[--sim.idles];
    take(w, sim.now + WAKE_NS);
    sim.heap[sim.running++] = w;
    rise(sim.running - 1);
  }
}

/* The next worker, whose batch ends, goes on with another, or sleeps. False: it sleeps. */
static bool step(void) {
  int w = sim.heap[0];
  struct slot *s = &sim.slot[sim.worker[w].last];
  s->state = RAN;
  sim.untold += s->n - s->told;
  sim.worker[w].untold += s->n - s->told;
  if (take(w, sim.ends[w])) {
    sink(0);
    return true;
  }
  sim.worker[w].place = NONE;
  sim.ends[w] = NEVER;
  sim.idle[sim.idles++] = w;
  if (--sim.running) {
    sim.heap[0] = sim.heap[sim.running];
    sink(0);
  }
  return false;
}

/* Lets workers run up to now. */
static void advance(void) {
  while (sim.running && sim.ends[sim.heap[0]] <= sim.now) step();
}

/* ---- the parent's own time ------------------------------------------------------------------- */

static struct {
  uint64_t left, ticks, stretches; /* when the pool's code was entered; spent there; how often */
  uint64_t longest;                /* what counts */
} own;

static uint64_t ticks(void) {
#ifdef __x86_64__
  return __builtin_ia32_rdtsc();
#else
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
#endif
}

/* A stretch that another process interrupted says nothing. */
static void leave_pool(void) {
  uint64_t n = ticks() - own.left;
  if (n > own.longest) return;
  own.ticks += n;
  own.stretches++;
}

static void enter_pool(void) {
  own.left = ticks();
}

/* What a stretch without anything in it costs: the least of many means. */
static double empty_stretch(void) {
  double least = 1e9;
  for (int round = 0; round < 100; round++) {
    own.ticks = 0;
    for (int i = 0; i < 10000; i++) {
      enter_pool();
      leave_pool();
    }
    if ((double)own.ticks / 10000 < least) least = (double)own.ticks / 10000;
  }
  own.ticks = own.stretches = 0;
  return least;
}

static double tick_ns(void) {
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  uint64_t from = ticks();
  do clock_gettime(CLOCK_MONOTONIC, &b);
  while ((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec < 50000000);
  double ns = (double)((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec);
  return ns / (double)(ticks() - from);
}

/* ---- the backend ----------------------------------------------------------------------------- */

static int sim_post(struct link *l, unsigned i, const struct link_batch *b) {
  (void)l;
  leave_pool();
  advance();
  sim.slot[i] = (struct slot){
    .state = READY, .first = b->first, .n = b->n, .urgent = b->urgent != 0, .after = NONE};
  lane_add((int)i);
  run_idle();
  enter_pool();
  return 0;
}

static void sim_flush(struct link *l) {
  (void)l;
}

/* How many items of a batch were begun by now. */
static unsigned claimed(const struct slot *s) {
  unsigned k = s->told;
  for (int64_t t = s->at; k < s->n && t <= sim.now; k++) t += cost(s->first + k);
  return k;
}

static int retract(unsigned i, unsigned keep) {
  struct slot *s = &sim.slot[i];
  advance();
  if (s->state == READY) {
    lane_remove((int)i);
    s->state = FREE;
    return 0;
  }
  if (s->state != TAKEN) return -1;
  unsigned stay = claimed(s);
  if (stay < keep) stay = keep;
  if (stay >= s->n || !stay) return -1;
  s->n = stay;
  sim.ends[s->taker] = s->at + costs(s->first, s->told, stay);
  rise((unsigned)sim.worker[s->taker].place);
  return (int)stay;
}

static int sim_retract(struct link *l, unsigned i, unsigned keep) {
  (void)l;
  leave_pool();
  int r = retract(i, keep);
  enter_pool();
  return r;
}

static void sim_release(struct link *l, unsigned i) {
  (void)l;
  (void)i;
}

static int sim_start(struct link *l, int w, unsigned n) {
  (void)l;
  (void)n;
  sim.worker[w] = (struct worker){.first = NONE, .last = NONE, .place = NONE, .up = true};
  sim.tells[w] = sim.now;
  sim.ends[w] = NEVER;
  sim.idle[sim.idles++] = w;
  sim.workers++;
  run_idle();
  return 1;
}

/* What worker w has to tell next, and when it happened. */
static void look_ahead(int w) {
  const struct worker *me = &sim.worker[w];
  const struct slot *s = me->first == NONE ? NULL : &sim.slot[me->first];
  if (me->up || me->end_n) return;
  sim.tells[w] = !s ? NEVER : !s->begun ? s->start : s->at + cost(s->first + s->told);
}

/* All that has ended by now, 'max' outcomes at most. */
static void tell_values(int w, struct link_event *e, plua_reply *replies, unsigned max) {
  struct worker *me = &sim.worker[w];
  struct slot *s = &sim.slot[me->first];
  int64_t end = sim.tells[w];
  e->what = LINK_VALUE;
  e->slot = me->first;
  e->tag = s->told;
  e->data = "";
  do {
    if (replies) replies[e->n] = (plua_reply){"", 0};
    e->n++;
    s->at = end;
    if (++s->told == s->n) break;
    end += cost(s->first + s->told);
  } while (end <= sim.now && e->n < max);
  if (s->state == RAN) sim.untold -= e->n, me->untold -= e->n;
  sim.now += sim.parent_ns * e->n;
  if (s->told < s->n) return;
  me->end_n = s->n;
  me->end_ns = s->at - s->start;
  if (s->state != RAN) IMPOSSIBLE("a batch was told whole before it ended");
  me->first = s->after;
  s->state = FREE;
}

static void tell(int w, struct link_event *e, plua_reply *replies, unsigned max) {
  struct worker *me = &sim.worker[w];
  *e = (struct link_event){.worker = w, .pid = w + 1, .slot = NONE, .elapsed_ns = -1};
  if (me->up) {
    me->up = false;
    e->what = LINK_UP;
  } else if (me->end_n) {
    e->what = LINK_END;
    e->n = me->end_n;
    e->elapsed_ns = me->end_ns;
    me->end_n = 0;
  } else if (!sim.slot[me->first].begun) {
    sim.slot[me->first].begun = true;
    e->what = LINK_BEGIN;
    e->slot = me->first;
  } else
    tell_values(w, e, replies, max);
  look_ahead(w);
}

static int next(struct link_event *e, plua_reply *replies, unsigned max) {
  for (unsigned tried = 0; tried <= sim.workers; tried++) {
    if (sim.at >= sim.workers) {
      sim.at = 0;
      advance();
    }
    if (sim.tells[sim.at] <= sim.now) {
      advance();
      tell((int)sim.at, e, replies, max);
      return 1;
    }
    sim.at++;
  }
  return 0;
}

static int sim_next(struct link *l, struct link_event *e, plua_reply *replies, unsigned max) {
  (void)l;
  leave_pool();
  int r = next(e, replies, max);
  enter_pool();
  return r;
}

/* Sleeps until a worker finds nothing, few batches lie ready, or a worker has much to tell. */
static int sleep_until(int64_t until, int low) {
  while (sim.running && sim.ends[sim.heap[0]] <= until) {
    if (sim.ends[sim.heap[0]] > sim.now) sim.now = sim.ends[sim.heap[0]];
    const struct worker *w = &sim.worker[sim.heap[0]];
    bool ample = (int)sim.ready > low, slept = !step();
    if (slept || (ample && (int)sim.ready <= low) || w->untold > sim.ring) return 1;
  }
  if (until == NEVER) IMPOSSIBLE("nothing is left that could end");
  sim.now = until;
  return 0;
}

static int sim_wait(struct link *l, int64_t timeout_ns, enum link_wait how, int low) {
  (void)l;
  (void)how;
  leave_pool();
  sim.wakes++;
  if (timeout_ns < 0 || timeout_ns > BULK_NS) timeout_ns = BULK_NS;
  int r = sim.idles && sim.untold ? 1 : sleep_until(sim.now + timeout_ns, low);
  enter_pool();
  return r;
}

static unsigned sim_idle(struct link *l) {
  (void)l;
  return sim.idles;
}

static int sim_hold(struct link *l, unsigned slot, unsigned low, unsigned high, unsigned *k) {
  (void)l, (void)slot, (void)low, (void)high, (void)k;
  return -1;
}

static int sim_running(struct link *l, unsigned slot, unsigned *k) {
  (void)l, (void)slot, (void)k;
  return -1;
}

static void sim_worker(struct link *l, int w) {
  (void)l;
  (void)w;
}

static void sim_end_stopped(struct link *l, int w, unsigned got) {
  (void)l, (void)w, (void)got;
}

static void sim_interrupt(struct link *l, int w, unsigned slot, unsigned k) {
  (void)l, (void)w, (void)slot, (void)k;
}

static void sim_close(struct link *l) {
  (void)l;
}

static const struct link_ops ops = {
  .post = sim_post,
  .flush = sim_flush,
  .retract = sim_retract,
  .release = sim_release,
  .start = sim_start,
  .retire = sim_worker,
  .hold = sim_hold,
  .resume = sim_worker,
  .running = sim_running,
  .interrupt = sim_interrupt,
  .kill = sim_worker,
  .distrust = sim_worker,
  .end_stopped = sim_end_stopped,
  .next = sim_next,
  .wait = sim_wait,
  .idle = sim_idle,
  .close = sim_close,
};

/* Results that call the parent: half of a ring, which local.c makes smaller where there are many.
 */
static unsigned ring_half(size_t workers) {
  size_t size = RING_DEFAULT;
  while (size > 16384 && size * workers > (size_t)1 << 26) size /= 2;
  return (unsigned)(size / 2 / RECORD);
}

/* The linker puts these in the place of the real ones. */
int __wrap_local_open(struct link **out, const plua_options *o, const plua_tasks *tasks);
int64_t __wrap_now_ns(void);

int __wrap_local_open(struct link **out, const plua_options *o, const plua_tasks *tasks) {
  (void)tasks;
  size_t n = (size_t)o->workers;
  sim.slot = calloc(o->slots, sizeof *sim.slot);
  sim.worker = calloc(n, sizeof *sim.worker);
  sim.ends = calloc(n, sizeof *sim.ends);
  sim.tells = calloc(n, sizeof *sim.tells);
  sim.heap = calloc(n, sizeof *sim.heap);
  sim.idle = calloc(n, sizeof *sim.idle);
  if (!sim.slot || !sim.worker || !sim.ends || !sim.tells || !sim.heap || !sim.idle) return -ENOMEM;
  sim.lane[0] = sim.lane[1] = (struct lane){NONE, NONE};
  sim.link = (struct link){.ops = &ops, .memory_fd = -1, .cap = (unsigned)n};
  sim.ring = ring_half(n);
  sim.now = 1;
  *out = &sim.link;
  return 0;
}

int64_t __wrap_now_ns(void) {
  return sim.now;
}

/* ---- the run --------------------------------------------------------------------------------- */

static void check(int code, const char *what) {
  if (code >= 0) return;
  fprintf(stderr, "simulate: %s: %s\n", what, plua_strerror(code));
  exit(1);
}

static int no_run(void *ctx, const plua_item *item, plua_out *out) {
  (void)ctx, (void)item, (void)out;
  return 0;
}

static size_t in_use(void) {
  struct mallinfo2 m = mallinfo2();
  return m.uordblks + m.hblkhd;
}

/* The backend's own tables are allocated by plua_open too: they are not the pool's. */
static size_t tables(unsigned workers, unsigned slots) {
  return slots * sizeof(struct slot) +
         workers * (sizeof(struct worker) + 2 * sizeof(int64_t) + 2 * sizeof(int));
}

static void pump(plua_pool *p, uint64_t items, size_t *most) {
  plua_event e;
  plua_reply replies[RUN];
  for (uint64_t done = 0; done < items;) {
    enter_pool();
    int n = plua_next_run(p, &e, replies, RUN);
    leave_pool();
    check(n, "next");
    switch (e.what) {
    case PLUA_RESULT:
      done += (unsigned)n;
      sim.runs++;
      break;
    case PLUA_FORK:
      check(plua_fork(p), "fork");
      break;
    case PLUA_NOTHING:
      if (sim.wakes % 64 == 0 && in_use() > *most) *most = in_use();
      enter_pool();
      check(plua_wait(p, -1, 1), "wait");
      leave_pool();
      break;
    case PLUA_LOST:
    case PLUA_SHORT:
    case PLUA_BOOT:
    case PLUA_LEFT:
    case PLUA_ENDED:
      IMPOSSIBLE("an event that no simulated worker causes");
    }
  }
}

static int64_t greedy(unsigned workers, uint64_t items) {
  int64_t most = 0;
  sim.running = workers;
  for (unsigned w = 0; w < workers; w++) {
    settle(w, (int)w);
    sim.ends[w] = 0;
  }
  for (uint64_t i = 0; i < items; i++) {
    int64_t end = sim.ends[sim.heap[0]] += cost(i);
    if (end > most) most = end;
    sink(0);
  }
  return most;
}

int main(int argc, char **argv) {
  unsigned workers = argc > 1 ? (unsigned)atoi(argv[1]) : 0;
  uint64_t items = argc > 2 ? (uint64_t)atof(argv[2]) : 0;
  if (argc < 7 || !workers || !items) {
    fprintf(stderr, "usage: simulate WORKERS ITEMS pareto|lognormal|constant MEAN_NS PARENT_NS "
                    "SEED\n");
    return 2;
  }
  law = argv[3][0] == 'p' ? PARETO : argv[3][0] == 'l' ? LOGNORMAL : CONSTANT;
  mean_ns = atof(argv[4]);
  sim.parent_ns = atoll(argv[5]);
  seed = strtoull(argv[6], NULL, 10);

  own.longest = UINT64_MAX;
  double empty = empty_stretch(), ns = tick_ns();
  own.longest = (uint64_t)(STRETCH_NS / ns);
  size_t before = in_use(), most = 0;
  plua_tasks tasks = {.size = sizeof tasks, .run = no_run};
  unsigned slots = workers > 512 ? 2 * workers : 1024; /* as pool.c chooses */
  plua_options options = {.size = sizeof options, .workers = (int)workers, .slots = slots};
  plua_job job = {.size = sizeof job, .count = items};
  plua_pool *p;
  uint64_t id;
  check(plua_open(&p, &options, &tasks), "open");
  check(plua_submit(p, &job, &id), "submit");
  pump(p, items, &most);
  plua_stats stats = {.size = sizeof stats};
  check(plua_stats_get(p, &stats), "stats");
  if (in_use() > most) most = in_use();
  int64_t makespan = sim.now;
  double spent = ((double)own.ticks - empty * (double)own.stretches) * ns;
  plua_close(p);

  printf("makespan_ns %lld\n", (long long)makespan);
  printf("greedy_ns %lld\n", (long long)greedy(workers, items));
  printf("parent_ns_per_item %.1f\n", spent / (double)items);
  printf("batches %llu\n", (unsigned long long)stats.batches);
  printf("divided %llu\n", (unsigned long long)stats.taken_back);
  printf("runs %llu\n", (unsigned long long)sim.runs);
  printf("wakes %llu\n", (unsigned long long)sim.wakes);
  printf("memory_bytes %lld\n", (long long)(most - before - tables(workers, slots)));
  return 0;
}
