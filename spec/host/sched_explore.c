/* sched_explore.c: every interleaving of what can happen to a small scheduler, against a model that
   is too simple to be wrong.
   Breadth first over the states of the model; a state is reached again by playing its events from
   the start, since the scheduler itself cannot be copied. In every state all that the scheduler
   says must be what the model says, what is not allowed must be refused, and the quickest way to
   the end must reach it: every item with one outcome, every slot free. Knows sched.h only.
   SPDX-License-Identifier: MIT */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plua.h"
#include "sched.h"

enum { ITEMS = 4, SLOTS = 2, WORKERS = 2, JOBS = 2, PATH_MAX_EVENTS = 128 };

/* ---- the model ------------------------------------------------------------------------------- */

enum { AGAIN, NEW, ALONE, LANES }; /* AGAIN: was out before; ALONE: memory ran out for it */
enum place { ABSENT, WAITS, OUT, DONE, GONE }; /* GONE: withdrawn, or nobody wants it */

struct item {
  unsigned char place, charged[SCHED_CHARGES];
};

struct slot {
  unsigned char out, begun, first, n, got, worker;
};

struct model {
  struct item item[ITEMS];                      /* those of job 0, then those of job 1 */
  unsigned char lane[LANES][ITEMS], len[LANES]; /* who waits, in order */
  struct slot slot[SLOTS];
  unsigned char added[JOBS], forgotten[JOBS], timed[WORKERS], done, retried, passed;
};

static struct config {
  unsigned items, jobs, slots, workers, chunk, retries[SCHED_CHARGES], patience;
} conf;

enum kind { ADD, POST, UNPOST, BEGIN, OK, RESULTS, FAIL, END, DEATH, BACK, WITHDRAW, FORGET };

struct event {
  unsigned char kind, a, b, c;
};

/* A scheduler, the model of it, and how both came here. */
struct run {
  struct sched *sched;
  uint64_t id[JOBS];
  struct model m;
};

static struct event path[PATH_MAX_EVENTS];
static unsigned path_len;

static void tell_config(void) {
  fprintf(stderr, "items %u jobs %u slots %u workers %u chunk %u patience %u retries", conf.items,
          conf.jobs, conf.slots, conf.workers, conf.chunk, conf.patience);
  for (int i = 0; i < SCHED_CHARGES; i++) fprintf(stderr, " %u", conf.retries[i]);
}

static void tell_path(void) {
  static const char *const name[] = {"add",  "post", "unpost", "begin", "ok",       "results",
                                     "fail", "end",  "death",  "back",  "withdraw", "forget"};
  tell_config();
  fprintf(stderr, ":");
  for (unsigned i = 0; i < path_len; i++)
    fprintf(stderr, " %s(%u %u %u)", name[path[i].kind], path[i].a, path[i].b, path[i].c);
  fprintf(stderr, "\n");
}

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "sched_explore.c:%d: not so: %s\n", line, what);
  tell_path();
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static void aborted(int sig) {
  (void)sig;
  tell_path();
  _exit(1);
}

static unsigned per_job(void) {
  return conf.items / conf.jobs;
}
static unsigned job_of(unsigned i) {
  return i / per_job();
}
static unsigned attempt_of(const struct item *i) {
  unsigned n = 1;
  for (int k = 0; k < SCHED_CHARGES; k++) n += i->charged[k];
  return n;
}

static void wait_in(struct model *m, unsigned lane, unsigned i) {
  if (m->forgotten[job_of(i)]) {
    m->item[i].place = GONE;
    m->done++;
    return;
  }
  m->item[i].place = WAITS;
  m->lane[lane][m->len[lane]++] = (unsigned char)i;
}

static void wait_first(struct model *m, unsigned lane, unsigned i) {
  memmove(m->lane[lane] + 1, m->lane[lane], m->len[lane]++);
  m->lane[lane][0] = (unsigned char)i;
  m->item[i].place = WAITS;
}

static void leave_lane(struct model *m, unsigned i) {
  for (unsigned lane = 0; lane < LANES; lane++)
    for (unsigned k = 0; k < m->len[lane]; k++)
      if (m->lane[lane][k] == i) {
        memmove(m->lane[lane] + k, m->lane[lane] + k + 1, m->len[lane] - k - 1u);
        m->len[lane]--;
        return;
      }
}

static unsigned count_place(const struct model *m, enum place place) {
  unsigned n = 0;
  for (unsigned i = 0; i < conf.items; i++) n += m->item[i].place == place;
  return n;
}

static struct slot *slot_of(struct model *m, unsigned w) {
  for (unsigned s = 0; s < conf.slots; s++)
    if (m->slot[s].out && m->slot[s].begun && m->slot[s].worker == w) return &m->slot[s];
  return NULL;
}

static unsigned slots_out(const struct model *m) {
  unsigned n = 0;
  for (unsigned s = 0; s < conf.slots; s++) n += m->slot[s].out;
  return n;
}

/* Items that were out wait ahead of others; those that memory ran out for, for their turn. */
static unsigned lane_of(const struct model *m, unsigned i) {
  return m->item[i].charged[SCHED_OOM] ? ALONE : AGAIN;
}

/* Which lane is next; LANES: nothing may go out. */
static unsigned turn(const struct model *m) {
  unsigned out = slots_out(m);
  for (unsigned s = 0; s < conf.slots; s++)
    if (m->slot[s].out && m->item[m->slot[s].first].charged[SCHED_OOM]) return LANES;
  if (out == conf.slots) return LANES;
  if (!m->len[ALONE] || m->passed < conf.patience) {
    if (m->len[AGAIN]) return AGAIN;
    if (m->len[NEW]) return NEW;
  }
  return m->len[ALONE] && !out ? ALONE : LANES;
}

/* ---- events, on both ------------------------------------------------------------------------- */

static void do_add(struct run *r, unsigned job, unsigned n) {
  CHECK(sched_add(r->sched, r->id[job], n) == 0);
  for (; n; n--) wait_in(&r->m, NEW, job * per_job() + r->m.added[job]++);
}

/* What waits longest goes first, what was out before even sooner; neighbours of one history only.
 */
static unsigned do_post(struct run *r) {
  struct model *m = &r->m;
  struct sched_batch b;
  unsigned s, lane = turn(m), first = m->lane[lane][0];
  CHECK(sched_post(r->sched, &s, &b) == 1);
  CHECK(s < conf.slots && !m->slot[s].out);
  CHECK(b.job == r->id[job_of(first)] && b.first == first % per_job());
  CHECK(b.n >= 1 && b.n <= m->len[lane] && b.urgent == (lane != NEW));
  CHECK(lane == NEW || attempt_of(&m->item[first]) == 1 || b.n == 1);
  CHECK(!conf.chunk || b.n <= conf.chunk);
  for (unsigned k = 0; k < b.n; k++) {
    CHECK(m->lane[lane][0] == first + k && job_of(first + k) == job_of(first));
    CHECK(b.attempt == attempt_of(&m->item[first + k]));
    leave_lane(m, first + k);
    m->item[first + k].place = OUT;
  }
  m->slot[s] = (struct slot){.out = 1, .first = (unsigned char)first, .n = (unsigned char)b.n};
  m->passed = lane == ALONE || !m->len[ALONE] ? 0 : (unsigned char)(m->passed + 1);
  return s;
}

static void do_unpost(struct run *r, unsigned keep) {
  unsigned lane = turn(&r->m), s = do_post(r);
  struct slot *t = &r->m.slot[s];
  if (keep >= t->n) return;
  sched_unpost(r->sched, s, keep);
  for (unsigned k = t->n; k-- > keep;) wait_first(&r->m, lane, t->first + k);
  t->n = (unsigned char)keep;
  if (!keep) *t = (struct slot){0};
}

static void do_begin(struct run *r, unsigned w, unsigned s) {
  CHECK(sched_begin(r->sched, w, s));
  r->m.slot[s].begun = 1;
  r->m.slot[s].worker = (unsigned char)w;
}

/* The oldest open item of a batch was charged. */
static enum sched_verdict charge(struct model *m, unsigned i, enum sched_charge how) {
  struct item *it = &m->item[i];
  bool left = how != SCHED_FINAL && it->charged[how] < conf.retries[how];
  if (!m->forgotten[job_of(i)] && left) {
    it->charged[how]++;
    m->retried++;
    wait_in(m, lane_of(m, i), i);
    return SCHED_AGAIN;
  }
  it->place = m->forgotten[job_of(i)] ? GONE : DONE;
  m->done++;
  return it->place == DONE ? SCHED_DELIVER : SCHED_DROP;
}

static void check_item(const struct run *r, const struct sched_item *it, unsigned i,
                       unsigned tries) {
  CHECK(it->job == r->id[job_of(i)] && it->index == i % per_job());
  CHECK(it->attempt == tries);
}

static void do_outcome(struct run *r, unsigned w, enum sched_charge how) {
  struct slot *t = slot_of(&r->m, w);
  struct sched_item it;
  bool freed;
  unsigned s = (unsigned)(t - r->m.slot), i = t->first + t->got;
  unsigned tries = attempt_of(&r->m.item[i]);
  CHECK(i < ITEMS && r->m.item[i].place == OUT);
  enum sched_verdict v = sched_outcome(r->sched, w, s, t->got, how, &it, &freed);
  t->got++;
  CHECK(freed == (t->got == t->n));
  if (freed) *t = (struct slot){0};
  check_item(r, &it, i, tries);
  if (how != SCHED_FINE) {
    CHECK(v == charge(&r->m, i, how));
    return;
  }
  r->m.item[i].place = r->m.forgotten[job_of(i)] ? GONE : DONE;
  r->m.done++;
  CHECK(v == (r->m.item[i].place == DONE ? SCHED_DELIVER : SCHED_DROP));
}

/* n results told at once are what n calls tell one by one. */
static void do_results(struct run *r, unsigned w, unsigned n) {
  struct slot *t = slot_of(&r->m, w);
  struct sched_item it;
  bool freed;
  unsigned s = (unsigned)(t - r->m.slot), i = t->first + t->got;
  unsigned tries = attempt_of(&r->m.item[i]);
  bool gone = r->m.forgotten[job_of(i)];
  enum sched_verdict v = sched_values(r->sched, w, s, t->got, n, &it, &freed);
  CHECK(v == (gone ? SCHED_DROP : SCHED_DELIVER));
  check_item(r, &it, i, tries);
  t->got = (unsigned char)(t->got + n);
  CHECK(freed == (t->got == t->n));
  if (freed) *t = (struct slot){0};
  for (unsigned k = 0; k < n; k++) r->m.item[i + k].place = gone ? GONE : DONE;
  r->m.done += n;
}

/* 'begun': 0 begun is got, 1 begun is got + 1, 2 not known, 3 impossible. */
static void do_death(struct run *r, unsigned w, unsigned begun, enum sched_charge how) {
  struct slot *t = slot_of(&r->m, w), was = *t;
  struct sched_item it;
  bool freed;
  int64_t next = begun == 2 ? -1 : (int64_t)(was.got + begun);
  unsigned i = was.first + was.got, tries = attempt_of(&r->m.item[i]), rest = i;
  enum sched_verdict v = sched_death(r->sched, w, (int)(t - r->m.slot), next, how, &it, &freed);
  CHECK(freed);
  *t = (struct slot){0};
  if (begun == 0) {
    CHECK(v == SCHED_DROP && it.job == 0);
  } else {
    check_item(r, &it, i, tries);
    CHECK(v == charge(&r->m, i, how));
    rest++;
  }
  for (unsigned k = rest; k < was.first + was.n; k++) wait_in(&r->m, lane_of(&r->m, k), k);
}

static void do_back(struct run *r, unsigned s, unsigned keep) {
  struct slot *t = &r->m.slot[s], was = *t;
  CHECK(sched_prepare(r->sched) == 0);
  bool freed = sched_back(r->sched, s, keep);
  CHECK(freed == (keep == was.got));
  t->n = (unsigned char)keep;
  if (freed) *t = (struct slot){0};
  for (unsigned k = was.first + keep; k < was.first + was.n; k++)
    wait_in(&r->m, lane_of(&r->m, k), k);
}

static unsigned drop_waiting(struct model *m, unsigned job, unsigned first, unsigned end) {
  unsigned n = 0;
  for (unsigned i = job * per_job(); i < (job + 1) * per_job(); i++) {
    if (m->item[i].place != WAITS || i % per_job() < first || i % per_job() >= end) continue;
    leave_lane(m, i);
    m->item[i].place = GONE;
    m->done++;
    n++;
  }
  return n;
}

static void play(struct run *r, struct event e) {
  switch ((enum kind)e.kind) {
  case ADD:
    do_add(r, e.a, e.b);
    return;
  case POST:
    do_post(r);
    return;
  case UNPOST:
    do_unpost(r, e.a);
    return;
  case BEGIN:
    do_begin(r, e.a, e.b);
    return;
  case OK:
    do_outcome(r, e.a, SCHED_FINE);
    return;
  case RESULTS:
    do_results(r, e.a, e.b);
    return;
  case FAIL:
    do_outcome(r, e.a, (enum sched_charge)e.b);
    return;
  case END:
    CHECK(sched_end(r->sched, e.a, 1, 1000));
    r->m.timed[e.a] = 1;
    return;
  case DEATH:
    do_death(r, e.a, e.b, (enum sched_charge)e.c);
    return;
  case BACK:
    do_back(r, e.a, e.b);
    return;
  case WITHDRAW:
    CHECK(sched_withdraw(r->sched, r->id[e.a], e.b, e.c) == drop_waiting(&r->m, e.a, e.b, e.c));
    return;
  case FORGET:
    CHECK(sched_forget(r->sched, r->id[e.a]) == 0);
    r->m.forgotten[e.a] = 1;
    drop_waiting(&r->m, e.a, 0, ITEMS);
    return;
  }
}

/* Every event that may happen in a state. */
static unsigned possible(struct model *m, struct event *e) {
  unsigned n = 0;
  for (unsigned char j = 0; j < conf.jobs; j++) {
    unsigned char left = (unsigned char)(per_job() - m->added[j]);
    if (m->forgotten[j]) continue;
    if (left) e[n++] = (struct event){ADD, j, left, 0};
    if (left > 1) e[n++] = (struct event){ADD, j, 1, 0};
    if (m->added[j]) e[n++] = (struct event){FORGET, j, 0, 0};
    for (unsigned char k = 0; k < m->added[j]; k++)
      if (m->item[j * per_job() + k].place == WAITS)
        e[n++] = (struct event){WITHDRAW, j, k, (unsigned char)(k + 1)};
  }
  if (turn(m) != LANES) {
    e[n++] = (struct event){POST, 0, 0, 0};
    e[n++] = (struct event){UNPOST, 0, 0, 0};
    if (conf.chunk != 1) e[n++] = (struct event){UNPOST, 1, 0, 0};
  }
  for (unsigned char s = 0; s < conf.slots; s++) {
    const struct slot *t = &m->slot[s];
    for (unsigned char w = 0; t->out && !t->begun && w < conf.workers; w++)
      if (!slot_of(m, w)) e[n++] = (struct event){BEGIN, w, s, 0};
    for (unsigned char keep = t->got + t->begun * !t->got; keep < t->n; keep++)
      e[n++] = (struct event){BACK, s, keep, 0};
  }
  for (unsigned char w = 0; w < conf.workers; w++) {
    if (!slot_of(m, w)) {
      if (!conf.chunk && !m->timed[w]) e[n++] = (struct event){END, w, 0, 0};
      continue;
    }
    e[n++] = (struct event){OK, w, 0, 0};
    for (unsigned char k = 2; k <= slot_of(m, w)->n - slot_of(m, w)->got; k++)
      e[n++] = (struct event){RESULTS, w, k, 0};
    e[n++] = (struct event){FAIL, w, SCHED_ERROR, 0};
    if (conf.retries[SCHED_TIMEOUT]) e[n++] = (struct event){FAIL, w, SCHED_TIMEOUT, 0};
    for (unsigned char begun = 0; begun < 4; begun++)
      e[n++] = (struct event){DEATH, w, begun, SCHED_CRASH};
    e[n++] = (struct event){DEATH, w, 1, SCHED_FINAL};
    for (unsigned char how = SCHED_TIMEOUT; how < SCHED_CHARGES; how++)
      if (conf.retries[how]) e[n++] = (struct event){DEATH, w, 1, how};
  }
  return n;
}

/* ---- what must hold in each state ------------------------------------------------------------ */

static void check_counts(const struct run *r) {
  const struct model *m = &r->m;
  struct sched_counts c = sched_counts(r->sched);
  unsigned added = 0, unbegun = 0, begun = 0;
  for (unsigned j = 0; j < conf.jobs; j++) added += m->added[j];
  for (unsigned s = 0; s < conf.slots; s++) {
    unbegun += m->slot[s].out && !m->slot[s].begun;
    begun += m->slot[s].begun && m->slot[s].n - m->slot[s].got > 1;
  }
  CHECK(c.submitted == added && c.done == m->done && c.retried == m->retried);
  CHECK(sched_pending(r->sched) == added - m->done);
  CHECK(m->done == count_place(m, DONE) + count_place(m, GONE));
  CHECK(sched_waiting(r->sched) == (count_place(m, WAITS) > 0));
  CHECK(slots_out(m) == conf.slots || sched_dry(r->sched) == (turn(m) == LANES));
  CHECK(m->passed <= conf.patience);
  CHECK(sched_due(r->sched) == (sched_waiting(r->sched) && slots_out(m) < conf.slots));
  CHECK(sched_unbegun(r->sched) == unbegun);
  CHECK(sched_divisible(r->sched) == (begun > 0));
}

static void check_slots(const struct run *r) {
  for (unsigned s = 0; s < conf.slots; s++) {
    const struct slot *t = &r->m.slot[s];
    struct sched_batch b;
    int who;
    unsigned got;
    CHECK(sched_out(r->sched, s, &b, &who, &got) == t->out);
    if (!t->out) continue;
    CHECK(b.job == r->id[job_of(t->first)] && b.first == t->first % per_job() && b.n == t->n);
    CHECK(who == (t->begun ? t->worker : -1) && got == t->got);
  }
  for (unsigned j = 0; j < conf.jobs; j++) {
    unsigned from = 0, out = 0;
    for (unsigned s = 0; s < conf.slots; s++)
      out += r->m.slot[s].out && job_of(r->m.slot[s].first) == j;
    for (; sched_slot_next(r->sched, r->id[j], &from); from++) out--;
    CHECK(out == 0 || !sched_held(r->sched, r->id[j]));
    CHECK(sched_known(r->sched, r->id[j]) == !r->m.forgotten[j]);
  }
}

/* What a broken worker might say changes nothing; nor does a post that is out of turn. */
static void check_refusals(struct run *r) {
  struct sched_item it;
  struct sched_batch b;
  bool freed;
  unsigned slot;
  if (turn(&r->m) == LANES) CHECK(sched_post(r->sched, &slot, &b) == 0);
  for (unsigned w = 0; w <= conf.workers; w++)
    for (unsigned s = 0; s < conf.slots; s++) {
      const struct slot *t = &r->m.slot[s];
      bool mine = t->out && t->begun && t->worker == w && w < conf.workers;
      for (unsigned k = 0; k <= ITEMS; k++)
        for (unsigned n = 1; n <= ITEMS; n++)
          if (!mine || k != t->got || n > (unsigned)(t->n - t->got))
            CHECK(sched_values(r->sched, w, s, k, n, &it, &freed) == SCHED_FAULT && !freed);
      for (unsigned k = 0; k <= ITEMS; k++)
        if (!mine || k != t->got)
          CHECK(sched_outcome(r->sched, w, s, k, k & 1, &it, &freed) == SCHED_FAULT && !freed);
      if (w == conf.workers || !t->out || t->begun || slot_of(&r->m, w))
        CHECK(!sched_begin(r->sched, w, s));
      if (mine) continue;
      CHECK(sched_death(r->sched, w, (int)s, 1, SCHED_OOM, &it, &freed) == SCHED_DROP);
      CHECK(!freed && it.job == 0);
      CHECK(sched_death(r->sched, w, -1, -1, SCHED_CRASH, &it, &freed) == SCHED_DROP && !freed);
    }
}

/* Dividing proposes only what is begun and leaves at least the item that runs. */
static void check_divide(struct run *r) {
  for (unsigned how = 0; how < 4; how++) {
    unsigned keep = 0;
    int s = sched_divide(r->sched, how / 2 ? 5000000 : 1000, how % 2, &keep);
    if (s < 0) continue;
    const struct slot *t = &r->m.slot[s];
    CHECK(t->out && t->begun && keep > t->got && keep < t->n);
  }
}

/* The quickest way: everything goes right from here. */
static void finish(struct run *r) {
  for (unsigned j = 0; j < conf.jobs; j++)
    if (!r->m.forgotten[j] && r->m.added[j] < per_job()) do_add(r, j, per_job() - r->m.added[j]);
  for (unsigned steps = 0; sched_pending(r->sched); steps++) {
    CHECK(steps < 100);
    while (turn(&r->m) != LANES) do_post(r);
    for (unsigned s = 0; s < conf.slots; s++)
      if (r->m.slot[s].out && !r->m.slot[s].begun && !slot_of(&r->m, 0)) do_begin(r, 0, s);
    for (unsigned w = 0; w < conf.workers; w++)
      while (slot_of(&r->m, w)) do_outcome(r, w, SCHED_FINE);
  }
  check_counts(r);
  CHECK(slots_out(&r->m) == 0);
  CHECK(count_place(&r->m, WAITS) + count_place(&r->m, OUT) == 0);
  for (unsigned j = 0; j < conf.jobs; j++) {
    if (!r->m.forgotten[j]) CHECK(sched_forget(r->sched, r->id[j]) == 0);
    CHECK(!sched_held(r->sched, r->id[j]));
    CHECK(sched_add(r->sched, r->id[j], 1) == PLUA_EARG);
    CHECK(sched_forget(r->sched, r->id[j]) == PLUA_EARG);
  }
}

/* Every slot can be used again. */
static void check_slots_free(struct sched *s) {
  uint64_t id;
  struct sched_batch b;
  unsigned slot, used = 0;
  static const unsigned none[SCHED_CHARGES];
  CHECK(sched_job(s, 1, none, &id) == 0 && sched_add(s, id, conf.slots + 1) == 0);
  for (unsigned i = 0; i < conf.slots; i++, used |= 1u << slot)
    CHECK(sched_post(s, &slot, &b) == 1);
  CHECK(used == (1u << conf.slots) - 1);
  CHECK(sched_post(s, &slot, &b) == 0);
}

/* ---- the search ------------------------------------------------------------------------------ */

struct node {
  uint32_t parent;
  struct event event;
};

static struct node *node;
static uint64_t (*seen)[2];
static uint32_t nodes, node_cap, seen_cap;
static uint64_t states, steps;

static uint64_t hash(const struct model *m, uint64_t h) {
  const unsigned char *p = (const unsigned char *)m;
  for (size_t i = 0; i < sizeof *m; i++) h = (h ^ p[i]) * UINT64_C(0x100000001b3);
  return h ^ h >> 29;
}

static void swap_workers(struct model *m) {
  unsigned char timed = m->timed[0];
  m->timed[0] = m->timed[1];
  m->timed[1] = timed;
  for (unsigned s = 0; s < SLOTS; s++)
    if (m->slot[s].begun) m->slot[s].worker ^= 1;
}

/* Makes states equal that differ only by the names of slots and workers, or by what lies past a
   lane's end. */
static void normalise(struct model *m) {
  for (unsigned lane = 0; lane < LANES; lane++)
    memset(m->lane[lane] + m->len[lane], 0, (size_t)ITEMS - m->len[lane]);
  struct slot *s = m->slot, was = s[0];
  if (!s[0].out ? s[1].out : s[1].out && s[1].first < s[0].first) {
    s[0] = s[1];
    s[1] = was;
  }
  const struct slot *t = s[0].begun ? &s[0] : &s[1];
  if (t->begun ? t->worker == 1 : m->timed[1] && !m->timed[0]) swap_workers(m);
}

/* Whether the state is new; then it is remembered. 128 bits of hash stand for it. */
static bool is_new(struct model m) {
  normalise(&m);
  uint64_t a = hash(&m, UINT64_C(0xcbf29ce484222325)), b = hash(&m, UINT64_C(0x9E3779B97F4A7C15));
  b |= 1;
  for (uint64_t i = a;; i++) {
    uint64_t *at = seen[i & (seen_cap - 1)];
    if (at[0] == a && at[1] == b) return false;
    if (at[1]) continue;
    at[0] = a;
    at[1] = b;
    return true;
  }
}

static void open_run(struct run *r) {
  memset(r, 0, sizeof *r);
  CHECK(sched_open(&r->sched, conf.slots, conf.workers) == 0);
  sched_team(r->sched, conf.workers);
  sched_patience(r->sched, conf.patience);
  for (unsigned j = 0; j < conf.jobs; j++)
    CHECK(sched_job(r->sched, conf.chunk, conf.retries, &r->id[j]) == 0);
}

static void path_to(uint32_t n) {
  path_len = 0;
  for (uint32_t i = n; i; i = node[i].parent) path_len++;
  CHECK(path_len < PATH_MAX_EVENTS - 1);
  for (uint32_t i = n, k = path_len; i; i = node[i].parent) path[--k] = node[i].event;
}

static void replay(struct run *r) {
  open_run(r);
  for (unsigned i = 0; i < path_len; i++) play(r, path[i]);
  steps += path_len;
}

static void try_event(uint32_t from, struct event e) {
  struct run r;
  path_to(from);
  path[path_len] = e;
  path_len++;
  replay(&r);
  check_counts(&r);
  if (is_new(r.m)) {
    CHECK(nodes < node_cap);
    node[nodes++] = (struct node){from, e};
  }
  sched_close(r.sched);
}

static void visit(uint32_t n) {
  struct run r;
  struct event e[64];
  path_to(n);
  replay(&r);
  check_counts(&r);
  check_slots(&r);
  check_refusals(&r);
  check_counts(&r);
  check_slots(&r);
  check_divide(&r);
  unsigned k = possible(&r.m, e);
  CHECK(k <= 64);
  finish(&r);
  check_slots_free(r.sched);
  sched_close(r.sched);
  for (unsigned i = 0; i < k; i++) try_event(n, e[i]);
}

static void explore(struct config c) {
  conf = c;
  nodes = 1;
  memset(seen, 0, sizeof *seen * seen_cap);
  for (uint32_t n = 0; n < nodes; n++) visit(n);
  states += nodes;
  if (!getenv("VERBOSE")) return;
  tell_config();
  fprintf(stderr, ": %u states\n", nodes);
}

/* Items times tries is what makes the number of states grow. */
static bool affordable(const struct config *c, unsigned bound) {
  unsigned tries = c->items;
  for (int i = 0; i < SCHED_CHARGES; i++) tries *= 1 + c->retries[i];
  if (c->jobs == 2 || c->workers * c->slots == 4) tries += tries / 2;
  return tries <= bound;
}

/* All sizes of scheduler, with these retries. */
static void explore_sizes(struct config c, unsigned bound) {
  for (c.chunk = 0; c.chunk <= 2; c.chunk++)
    for (c.items = 1; c.items <= ITEMS; c.items++)
      for (c.jobs = 1; c.jobs <= 2; c.jobs++)
        for (c.slots = 1; c.slots <= SLOTS; c.slots++)
          for (c.workers = 1; c.workers <= WORKERS; c.workers++)
            if (c.items % c.jobs == 0 && affordable(&c, bound)) explore(c);
}

/* Crashes and errors; then those that each other kind of retries comes in beside. */
static void explore_all(unsigned bound) {
  struct config c = {.patience = ITEMS};
  for (unsigned crashes = 0; crashes <= 2; crashes++)
    for (unsigned errors = 0; errors <= 2; errors++) {
      c.retries[SCHED_CRASH] = crashes;
      c.retries[SCHED_ERROR] = errors;
      explore_sizes(c, bound);
    }
  for (int kind = SCHED_TIMEOUT; kind < SCHED_CHARGES; kind++)
    for (unsigned n = 1; n <= 2; n++)
      for (unsigned crashes = 0; crashes <= 1; crashes++) {
        c = (struct config){.patience = ITEMS, .retries[SCHED_CRASH] = crashes};
        c.retries[kind] = n;
        explore_sizes(c, kind == SCHED_OOM ? bound * 3 / 4 : bound / 2);
        if (kind != SCHED_OOM) continue;
        for (c.patience = 0; c.patience < 2; c.patience++) explore_sizes(c, bound * 3 / 4);
      }
}

/* Argument: how much is affordable; 12 covers all that takes a few seconds. */
int main(int argc, char **argv) {
  unsigned bound = argc > 1 ? (unsigned)atoi(argv[1]) : 12;
  node_cap = seen_cap = 1 << 22;
  node = calloc(node_cap, sizeof *node);
  seen = calloc(seen_cap, sizeof *seen);
  signal(SIGABRT, aborted);
  CHECK(node && seen);
  explore_all(bound);
  free(node);
  free(seen);
  printf("ok: %llu states, %llu steps\n", (unsigned long long)states, (unsigned long long)steps);
  return 0;
}
