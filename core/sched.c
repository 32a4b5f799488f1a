/* sched.c: which items go out, in which batches, and what becomes of each.
   Invariant: every item of a job that is not forgotten is in exactly one place: waiting in a span,
   out in a batch, or done; so it gets one outcome, whatever dies. An item is charged only by the
   death of the worker that had begun it. Queue nodes are set aside before a batch goes out, so that
   taking it back can never fail.
   Knows positions and numbers of workers. Does not know clocks, descriptors, memory or Lua.
   SPDX-License-Identifier: MIT */
#include "sched.h"

#include <errno.h>
#include <string.h>

#include "base.h"
#include "sched_queue.h"

#define TARGET_NS                                                                                 \
  500000                 /* work in a batch: far above what giving it out costs, far below a wait \
                          */
#define FLOOR_NS 20000   /* near the end batches shrink, but not below this much work */
#define STUCK_NS 1000000 /* a batch that stands still for so long has met a slow item */
#define PAUSE_NS 64      /* a look at a batch costs some 5 ns: vain ones are a tenth of the time */

enum { PATIENCE = 1000 };

/* AGAIN: was out before; goes ahead of the rest. ALONE: memory ran out for it. */
enum lane { LANE_AGAIN, LANE_NEW, LANE_ALONE, LANES };

enum batch_state { B_FREE, B_OUT, B_BEGUN };

struct batch {
  enum batch_state state;
  uint64_t job, first;
  unsigned n, got; /* got: outcomes received, so item first + got is the oldest open one */
  unsigned last_from, last_end; /* items that are not tried again */
  struct past past;
  enum lane lane;
  unsigned worker; /* B_BEGUN */
  int64_t seen_ns; /* when 'seen' was first met */
  unsigned seen;
  struct batch *next, *prev; /* in sched's ring of divisible ones; NULL: not in it */
};

enum job_state { J_FREE, J_OPEN, J_FORGOTTEN };

struct job {
  enum job_state state;
  uint64_t id, count;
  uint64_t queued, out; /* items in spans; batches out */
  unsigned chunk, retries[SCHED_CHARGES];
  double item_ns; /* measured; 0: not yet */
  uint32_t next_free;
};

/* What a worker began last. */
struct last {
  uint64_t job;
  unsigned slot;
};

struct sched {
  struct queue queue[LANES];
  struct spans spans;
  struct batch *batch;
  unsigned *free_slot, free_slots, slots, unbegun, begun;
  unsigned patience, passed; /* batches that may go, and went, ahead of who waits to be alone */
  bool alone;                /* the one batch that is out must stay the only one */
  struct job *job;
  size_t jobs, job_cap;
  uint32_t free_job; /* index + 1; 0: none */
  uint64_t serial;
  struct last *last; /* of each worker */
  unsigned workers, team;
  uint64_t queued, pending;
  /* Batches that were begun with more than one item and may have two left, those that were looked
     at last at the end; so that looking does not cost more the more workers there are. */
  struct batch divisible;
  int64_t vain_ns; /* until then a look is in vain: all were looked at, */
  bool vain_idle;  /* for idle workers too */
  struct sched_counts counts;
};

enum { JOB_BITS = 24 };

/* ---- what waits ----------------------------------------------------------------------------- */

/* Each batch that is out may come back as two spans: the item that is tried again, and the rest. */
int sched_prepare(struct sched *s) {
  return spans_set_aside(&s->spans, 2 * (s->slots - s->free_slots) + 4);
}

static struct job *job_of(const struct sched *s, uint64_t id) {
  uint64_t i = id & ((1 << JOB_BITS) - 1);
  struct job *j = i < s->jobs ? &s->job[i] : NULL;
  return j && j->state != J_FREE && j->id == id ? j : NULL;
}

static bool is_empty(const struct sched *s, enum lane lane) {
  return queue_is_empty(&s->queue[lane]);
}

static void enqueue(struct sched *s, enum lane lane, const struct span *what) {
  struct job *j = job_of(s, what->job);
  if (!j) IMPOSSIBLE("span of no job");
  j->queued += what->n;
  s->queued += what->n;
  queue_append(&s->queue[lane], &s->spans, what);
}

static void job_release(struct sched *s, struct job *j) {
  if (j->state != J_FORGOTTEN || j->queued || j->out) return;
  j->state = J_FREE;
  j->next_free = s->free_job;
  s->free_job = (uint32_t)(j - s->job) + 1;
}

/* ---- the ring of divisible batches --------------------------------------------------------- */

static void ring_in(struct sched *s, struct batch *b) {
  b->next = &s->divisible;
  b->prev = s->divisible.prev;
  b->prev->next = s->divisible.prev = b;
}

static void ring_out(struct batch *b) {
  if (!b->next) return;
  b->prev->next = b->next;
  b->next->prev = b->prev;
  b->next = b->prev = NULL;
}

/* The batch in the ring that was not looked at for longest; NULL: none. What has but one item left
   stays so, and leaves the ring. */
static struct batch *ring_first(struct sched *s) {
  struct batch *b;
  while ((b = s->divisible.next) != &s->divisible) {
    if (b->n - b->got > 1) return b;
    ring_out(b);
  }
  return NULL;
}

/* ---- opening ------------------------------------------------------------------------------- */

int sched_open(struct sched **out, unsigned slots, unsigned workers) {
  struct sched *s = calloc(1, sizeof *s);
  if (!s) return -ENOMEM;
  for (int i = 0; i < LANES; i++) queue_make(&s->queue[i]);
  s->divisible.next = s->divisible.prev = &s->divisible;
  s->batch = array_new(slots, sizeof *s->batch);
  s->free_slot = array_new(slots, sizeof *s->free_slot);
  s->last = array_new(workers, sizeof *s->last);
  s->slots = slots;
  s->workers = workers;
  s->team = 1;
  s->patience = PATIENCE;
  if (!s->batch || !s->free_slot || !s->last) {
    sched_close(s);
    return -ENOMEM;
  }
  for (unsigned i = slots; i-- > 0;) s->free_slot[s->free_slots++] = i;
  *out = s;
  return 0;
}

void sched_close(struct sched *s) {
  if (!s) return;
  for (int i = 0; i < LANES; i++) queue_free(&s->queue[i]);
  spans_free(&s->spans);
  array_free(s->batch, s->slots, sizeof *s->batch);
  array_free(s->free_slot, s->slots, sizeof *s->free_slot);
  array_free(s->last, s->workers, sizeof *s->last);
  free(s->job);
  free(s);
}

void sched_team(struct sched *s, unsigned workers) {
  s->team = workers ? workers : 1;
}

void sched_patience(struct sched *s, unsigned batches) {
  s->patience = batches;
}

/* ---- jobs ---------------------------------------------------------------------------------- */

static struct job *job_make(struct sched *s) {
  if (s->free_job) {
    struct job *j = &s->job[s->free_job - 1];
    s->free_job = j->next_free;
    return j;
  }
  if (s->jobs >> JOB_BITS) return NULL;
  if (grow((void **)&s->job, &s->job_cap, s->jobs + 1, sizeof *s->job) < 0) return NULL;
  return &s->job[s->jobs++];
}

int sched_job(struct sched *s, unsigned chunk, const unsigned retries[SCHED_CHARGES],
              uint64_t *id) {
  struct job *j = job_make(s);
  if (!j) return -ENOMEM;
  *j = (struct job){.state = J_OPEN,
                    .id = ++s->serial << JOB_BITS | (uint64_t)(j - s->job),
                    .chunk = chunk < BATCH_MAX ? chunk : BATCH_MAX};
  memcpy(j->retries, retries, sizeof j->retries);
  *id = j->id;
  return 0;
}

int sched_add(struct sched *s, uint64_t id, uint64_t count) {
  struct job *j = job_of(s, id);
  if (!j || j->state != J_OPEN || count > UINT64_MAX / 2 - j->count) return PLUA_EARG;
  if (!count) return 0;
  if (sched_prepare(s) < 0) return -ENOMEM;
  enqueue(s, LANE_NEW,
          &(struct span){.job = id, .first = j->count, .n = count, .past = {.attempt = 1}});
  j->count += count;
  s->pending += count;
  s->counts.submitted += count;
  return 0;
}

bool sched_known(const struct sched *s, uint64_t id) {
  const struct job *j = job_of(s, id);
  return j && j->state == J_OPEN;
}

bool sched_held(const struct sched *s, uint64_t id) {
  return job_of(s, id) != NULL;
}

uint32_t sched_index(uint64_t id) {
  return id & ((1 << JOB_BITS) - 1);
}

int64_t sched_withdraw(struct sched *s, uint64_t id, uint64_t first, uint64_t end) {
  struct job *j = job_of(s, id);
  uint64_t got = 0;
  if (!j) return PLUA_EARG;
  if (sched_prepare(s) < 0) return -ENOMEM;
  uint64_t most = first < end ? end - first : 0;
  if (most > j->queued) most = j->queued; /* no more can be found */
  for (int i = 0; i < LANES; i++) {
    struct span *end_of = &s->queue[i].head;
    for (struct span *p = end_of->next, *next; p != end_of && got < most; p = next) {
      next = p->next;
      if (p->job == id) got += span_cut(p, &s->spans, first, end);
    }
  }
  j->queued -= got;
  s->queued -= got;
  s->pending -= got;
  s->counts.done += got;
  job_release(s, j);
  return (int64_t)got;
}

int sched_forget(struct sched *s, uint64_t id) {
  struct job *j = job_of(s, id);
  if (!j || j->state != J_OPEN) return PLUA_EARG;
  if (j->queued) {
    int64_t r = sched_withdraw(s, id, 0, UINT64_MAX);
    if (r < 0) return (int)r;
  }
  j->state = J_FORGOTTEN;
  job_release(s, j);
  return 0;
}

/* ---- batches ------------------------------------------------------------------------------- */

/* How many items make TARGET_NS of work, a fair share of what is left at most. */
static uint64_t size_for(const struct sched *s, const struct job *j) {
  if (j->chunk) return j->chunk;
  if (j->item_ns <= 0) return 1;
  double n = TARGET_NS / j->item_ns, floor_n = FLOOR_NS / j->item_ns;
  double share = (double)j->queued / (2.0 * s->team);
  if (n > share) n = share > floor_n ? share : floor_n;
  return n < 1 ? 1 : n > BATCH_MAX ? BATCH_MAX : (uint64_t)n;
}

uint64_t sched_slack(const struct sched *s, uint64_t id) {
  const struct job *j = job_of(s, id);
  if (!j || s->unbegun < s->team || (!j->chunk && j->item_ns <= 0)) return 0;
  uint64_t batch = j->chunk ? j->chunk : (uint64_t)(TARGET_NS / j->item_ns);
  return batch > j->queued ? batch - j->queued : 0;
}

/* Whose turn it is; LANES: nobody's, or all must end first. */
static enum lane turn(const struct sched *s) {
  if (s->alone || !s->free_slots) return LANES;
  if (LIKELY(is_empty(s, LANE_ALONE)) || s->passed < s->patience) {
    if (!is_empty(s, LANE_AGAIN)) return LANE_AGAIN;
    if (!is_empty(s, LANE_NEW)) return LANE_NEW;
  }
  return is_empty(s, LANE_ALONE) || s->free_slots < s->slots ? LANES : LANE_ALONE;
}

int sched_post(struct sched *s, unsigned *slot, struct sched_batch *out) {
  enum lane lane = turn(s);
  if (lane == LANES) return 0;
  if (sched_prepare(s) < 0) return -ENOMEM;
  struct span *p = s->queue[lane].head.next;
  struct job *j = job_of(s, p->job);
  uint64_t n = p->past.attempt > 1 ? 1 : size_for(s, j);
  if (n > p->n) n = p->n;
  *slot = s->free_slot[--s->free_slots];
  struct batch *b = &s->batch[*slot];
  *b = (struct batch){.state = B_OUT,
                      .job = p->job,
                      .first = p->first,
                      .n = (unsigned)n,
                      .lane = lane,
                      .past = p->past};
  *out = (struct sched_batch){b->job, b->first, b->n, b->past.attempt, lane != LANE_NEW};
  span_take(p, &s->spans, n);
  j->queued -= n;
  j->out++;
  s->queued -= n;
  s->unbegun++;
  s->counts.batches++;
  s->alone = lane == LANE_ALONE;
  s->passed = s->alone || is_empty(s, LANE_ALONE) ? 0 : s->passed + 1;
  return 1;
}

static void slot_free(struct sched *s, struct batch *b) {
  struct job *j = job_of(s, b->job);
  if (b->state == B_OUT)
    s->unbegun--;
  else
    s->begun--;
  ring_out(b);
  b->state = B_FREE;
  s->free_slot[s->free_slots++] = (unsigned)(b - s->batch);
  s->alone = false; /* it was the only one, if so */
  j->out--;
  job_release(s, j);
}

/* Items [from, n) of a batch wait again, ahead of the others; those of a forgotten job end. */
static void requeue(struct sched *s, const struct batch *b, unsigned from, unsigned n,
                    const struct past *past) {
  if (from >= n) return;
  const struct job *j = job_of(s, b->job);
  if (j->state == J_FORGOTTEN) {
    s->pending -= n - from;
    s->counts.done += n - from;
    return;
  }
  enqueue(s, past->charged[SCHED_OOM] ? LANE_ALONE : LANE_AGAIN,
          &(struct span){.job = b->job, .first = b->first + from, .n = n - from, .past = *past});
}

void sched_unpost(struct sched *s, unsigned slot, unsigned keep) {
  struct batch *b = &s->batch[slot];
  if (b->state != B_OUT || keep >= b->n) IMPOSSIBLE("what was posted cannot be unposted");
  const struct span back = {
    .job = b->job, .first = b->first + keep, .n = b->n - keep, .past = b->past};
  queue_push(&s->queue[b->lane], &s->spans, &back);
  job_of(s, b->job)->queued += back.n;
  s->queued += back.n;
  b->n = keep;
  if (keep) return;
  s->counts.batches--;
  slot_free(s, b);
}

bool sched_back(struct sched *s, unsigned slot, unsigned keep) {
  struct batch *b = &s->batch[slot];
  if (b->state == B_FREE || keep > b->n || keep < b->got) IMPOSSIBLE("more came back than was out");
  requeue(s, b, keep, b->n, &b->past);
  if (keep < b->n && keep > 0) s->counts.divided++;
  b->n = keep;
  if (b->got < b->n) return false;
  slot_free(s, b);
  return true;
}

void sched_last_try(struct sched *s, unsigned slot, unsigned from, unsigned end) {
  struct batch *b = &s->batch[slot];
  if (b->last_end > b->got) {
    if (from > b->last_end || end < b->last_from) return;
    if (from > b->last_from) from = b->last_from;
    if (end < b->last_end) end = b->last_end;
  }
  b->last_from = from;
  b->last_end = end;
}

bool sched_out(const struct sched *s, unsigned slot, struct sched_batch *out, int *worker,
               unsigned *got) {
  const struct batch *b = &s->batch[slot];
  if (b->state == B_FREE) return false;
  *out = (struct sched_batch){b->job, b->first, b->n, b->past.attempt, false};
  *worker = b->state == B_BEGUN ? (int)b->worker : -1;
  *got = b->got;
  return true;
}

bool sched_slot_next(const struct sched *s, uint64_t id, unsigned *slot) {
  const struct job *j = job_of(s, id);
  for (; j && j->out && *slot < s->slots; ++*slot)
    if (s->batch[*slot].state != B_FREE && s->batch[*slot].job == id) return true;
  return false;
}

/* ---- what workers do ----------------------------------------------------------------------- */

/* Whether every outcome of what worker w began last has come. */
static bool at_rest(const struct sched *s, unsigned w) {
  const struct batch *b = &s->batch[s->last[w].slot];
  return !s->last[w].job || b->state != B_BEGUN || b->worker != w;
}

bool sched_begin(struct sched *s, unsigned w, unsigned slot) {
  struct batch *b = &s->batch[slot];
  if (b->state != B_OUT || w >= s->workers || !at_rest(s, w)) return false;
  b->state = B_BEGUN;
  b->worker = w;
  s->last[w] = (struct last){b->job, slot};
  if (b->n > 1) ring_in(s, b);
  s->unbegun--;
  s->begun++;
  return true;
}

static void done(struct sched *s) {
  s->pending--;
  s->counts.done++;
}

/* An item was charged: again, or is that its outcome? */
static enum sched_verdict charge(struct sched *s, const struct batch *b, unsigned k,
                                 enum sched_charge how) {
  const struct job *j = job_of(s, b->job);
  if (j->state == J_FORGOTTEN) {
    done(s);
    return SCHED_DROP;
  }
  bool last = how >= SCHED_FINAL || (k >= b->last_from && k < b->last_end);
  if (last || b->past.charged[how] >= j->retries[how] || sched_prepare(s) < 0) {
    done(s);
    return SCHED_DELIVER;
  }
  struct past past = b->past;
  past.charged[how]++;
  past.attempt++;
  requeue(s, b, k, k + 1, &past);
  s->counts.retried++;
  return SCHED_AGAIN;
}

/* Whether w may tell outcomes of items [k, k + n) of the batch now. */
static bool expected(const struct batch *b, unsigned w, unsigned k, unsigned n) {
  return b->state == B_BEGUN && b->worker == w && k == b->got && k < b->n && n <= b->n - k;
}

enum sched_verdict sched_values(struct sched *s, unsigned w, unsigned slot, unsigned k, unsigned n,
                                struct sched_item *item, bool *freed) {
  struct batch *b = &s->batch[slot];
  *freed = false;
  if (!expected(b, w, k, n)) return SCHED_FAULT;
  *item = (struct sched_item){b->job, b->first + k, b->past.attempt};
  bool wanted = job_of(s, b->job)->state != J_FORGOTTEN;
  b->got += n;
  s->pending -= n;
  s->counts.done += n;
  *freed = b->got == b->n;
  if (*freed) slot_free(s, b);
  return wanted ? SCHED_DELIVER : SCHED_DROP;
}

enum sched_verdict sched_outcome(struct sched *s, unsigned w, unsigned slot, unsigned k,
                                 enum sched_charge how, struct sched_item *item, bool *freed) {
  struct batch *b = &s->batch[slot];
  *freed = false;
  if (how == SCHED_FINE) return sched_values(s, w, slot, k, 1, item, freed);
  if (!expected(b, w, k, 1)) return SCHED_FAULT;
  *item = (struct sched_item){b->job, b->first + k, b->past.attempt};
  b->got++;
  enum sched_verdict v = charge(s, b, k, how);
  if (b->got == b->n) {
    *freed = true;
    slot_free(s, b);
  }
  return v;
}

bool sched_end(struct sched *s, unsigned w, unsigned n, int64_t ns) {
  if (w >= s->workers || !at_rest(s, w)) return false;
  struct job *j = job_of(s, s->last[w].job);
  if (!j || n == 0 || ns < 0) return true;
  double each = (double)ns / n;
  if (each < 1) each = 1;
  j->item_ns = j->item_ns > 0 ? (3 * j->item_ns + each) / 4 : each;
  return true;
}

/* c items were begun, p have outcomes: c == p charges nobody, c == p + 1 charges item p; anything
   else contradicts the protocol and charges item p, since something was being done to it. */
enum sched_verdict sched_death(struct sched *s, unsigned w, int slot, int64_t next,
                               enum sched_charge how, struct sched_item *item, bool *freed) {
  struct batch *b = slot >= 0 ? &s->batch[slot] : NULL;
  *item = (struct sched_item){0, 0, 0};
  *freed = false;
  if (!b || b->state != B_BEGUN || b->worker != w) return SCHED_DROP;
  unsigned p = b->got;
  enum sched_verdict v = SCHED_DROP;
  *freed = true;
  if (next != (int64_t)p) {
    *item = (struct sched_item){b->job, b->first + p, b->past.attempt};
    v = charge(s, b, p, how);
    p++;
  }
  requeue(s, b, p, b->n, &b->past);
  slot_free(s, b);
  return v;
}

enum sched_verdict sched_blame(struct sched *s, unsigned slot, struct sched_item *item) {
  struct batch *b = &s->batch[slot];
  if (b->state != B_OUT) IMPOSSIBLE("blame for a batch that somebody began");
  *item = (struct sched_item){b->job, b->first, b->past.attempt};
  enum sched_verdict v = charge(s, b, 0, SCHED_CRASH);
  requeue(s, b, 1, b->n, &b->past);
  slot_free(s, b);
  return v;
}

/* ---- dividing ------------------------------------------------------------------------------ */

bool sched_waiting(const struct sched *s) {
  return s->queued > 0;
}
bool sched_dry(const struct sched *s) {
  return s->queued == 0 || (s->free_slots && turn(s) == LANES);
}
uint64_t sched_pending(const struct sched *s) {
  return s->pending;
}
uint64_t sched_given(const struct sched *s) {
  return s->pending - s->queued;
}
unsigned sched_unbegun(const struct sched *s) {
  return s->unbegun;
}
bool sched_due(const struct sched *s) {
  unsigned enough = s->slots / (s->unbegun < s->team ? 32 : 4);
  return s->queued > 0 && s->free_slots > enough;
}
struct sched_counts sched_counts(const struct sched *s) {
  return s->counts;
}

bool sched_divisible(struct sched *s) {
  return ring_first(s) != NULL;
}

/* Notes whether a batch moves. True: it has stood still for STUCK_NS. */
static bool stuck(struct batch *b, int64_t now) {
  if (b->seen_ns && b->seen == b->got) return now - b->seen_ns >= STUCK_NS;
  b->seen = b->got;
  b->seen_ns = now;
  return false;
}

/* Half of what is left goes to idle workers if it is worth the trouble; all of it when the batch
   stands still, then even without idle workers (unless the caller fixed the size): others come to
   it sooner. */
static bool divide(const struct sched *s, struct batch *b, int64_t now, bool idle, unsigned *keep) {
  const struct job *j = job_of(s, b->job);
  unsigned left = b->n - b->got - 1;
  *keep = b->got + 1;
  if (stuck(b, now) && (idle || !j->chunk)) return true;
  *keep += left / 2;
  return idle && j->item_ns * left >= FLOOR_NS;
}

int sched_divide(struct sched *s, int64_t now, bool idle, unsigned *keep) {
  if (sched_prepare(s) < 0 || (now < s->vain_ns && idle <= s->vain_idle)) return -1;
  struct batch *b;
  unsigned seen = 0;
  for (; seen < s->begun && (b = ring_first(s)); seen++) {
    ring_out(b);
    ring_in(s, b);
    if (divide(s, b, now, idle, keep)) return (int)(b - s->batch);
  }
  s->vain_ns = now + (int64_t)seen * PAUSE_NS;
  s->vain_idle = idle;
  return -1;
}
