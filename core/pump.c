/* pump.c: carries events from the backend to sched, and what sched decides back.
   Invariant: an item's payload lives until its outcome has been told and released; a kill for the
   sake of one item is carried out only when everything that its worker published has been told and
   the item is not among it.
   Knows sched's verdicts and the backend's events. Does not know processes, shared memory or Lua.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>

#include "fail.h"
#include "pool.h"

#define STOPPED_NS 200000000
#define TICK_IDLE_NS 200000  /* somebody is idle and work might be divided */
#define TICK_BUSY_NS 2000000 /* something might be stuck behind a slow item */

int pool_say(struct plua_pool *p, int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(p->message, sizeof p->message, format, args);
  va_end(args);
  return code;
}

struct pool_job *pool_job(struct plua_pool *p, uint64_t id) {
  uint32_t i = sched_index(id);
  return i < p->job_cap && p->job[i].id == id && id ? &p->job[i] : NULL;
}

/* ---- payloads ------------------------------------------------------------------------------ */

void pool_free(struct plua_pool *p, struct pool_job *j, uint64_t index, uint64_t end) {
  uint64_t first, last;
  while ((index = places_skip(&j->places, index)) < end) {
    unsigned n = places_take(&j->places, index, end, &first, &last);
    if (first) store_free_run(p->store, first, last, n);
    index += n;
  }
}

void pool_tidy(struct plua_pool *p, uint64_t id) {
  struct pool_job *j = pool_job(p, id);
  if (!j || !j->forgotten || sched_held(p->sched, id)) return;
  pool_free(p, j, 0, j->places.count);
  places_free(&j->places);
  if (j->call_off) store_free(p->store, j->call_off - 8);
  if (j->timeout_ns) p->timed--;
  *j = (struct pool_job){0};
}

void pool_release(struct plua_pool *p) {
  if (!p->lent_job) return;
  struct pool_job *j = pool_job(p, p->lent_job);
  if (j && j->places.count) pool_free(p, j, p->lent_index, p->lent_index + p->lent);
  p->lent_job = 0;
}

static void items_done(struct plua_pool *p, uint64_t job, uint64_t index, unsigned n) {
  FAIL_POINT(P_DELIVER);
  p->lent_job = job;
  p->lent_index = index;
  p->lent = n;
}

static void item_done(struct plua_pool *p, uint64_t job, uint64_t index) {
  items_done(p, job, index, 1);
}

/* ---- giving out ---------------------------------------------------------------------------- */

/* A worker that overwrote its ring left no trace of what it ran. The item is among those that were
   out: they are given out one at a time until it shows itself. */
static void be_careful(struct plua_pool *p) {
  if (p->careful) return;
  p->careful = true;
  p->careful_slot = -1;
  p->careful_until = sched_counts(p->sched).done + sched_given(p->sched);
}

static bool hold_back(struct plua_pool *p) {
  if ((int64_t)(sched_counts(p->sched).done - p->careful_until) >= 0) p->careful = false;
  return p->careful && sched_given(p->sched) > 0;
}

void pool_post(struct plua_pool *p) {
  unsigned slot;
  struct sched_batch b;
  int r = 0;
  if (UNLIKELY(p->ended_told) && sched_pending(p->sched)) p->ended_told = false;
  while (!(UNLIKELY(p->careful) && hold_back(p)) && (r = sched_post(p->sched, &slot, &b)) > 0) {
    if (UNLIKELY(p->careful)) {
      p->careful_slot = (int)slot;
      p->spoiler.pid = 0; /* who dies from now on may be to blame for this item */
      if (b.n > 1) sched_unpost(p->sched, slot, b.n = 1);
    }
    const struct pool_job *j = pool_job(p, b.job);
    struct link_batch out = {.job = b.job,
                             .first = b.first,
                             .n = b.n,
                             .attempt = b.attempt,
                             .call_off = j->call_off,
                             .call_len = j->call_len,
                             .urgent = b.urgent};
    if (j->places.count) {
      out.off = places_at(&j->places, b.first);
      out.n = places_run(&j->places, b.first, b.n);
      if (out.n < b.n) sched_unpost(p->sched, slot, out.n);
    }
    if (p->link->ops->post(p->link, slot, &out) == 0) continue;
    sched_unpost(p->sched, slot, 0);
    break;
  }
  p->no_memory = r < 0;
  p->link->ops->flush(p->link);
}

/* Nothing is out, and nothing can be given out: no event would ever come. */
static int starved(struct plua_pool *p) {
  pool_post(p); /* the want may have been brief */
  if (!p->no_memory || sched_given(p->sched)) return 0;
  return pool_say(p, -ENOMEM, "cannot give out work: %s", plua_strerror(-ENOMEM));
}

bool pool_take_back(struct plua_pool *p, unsigned slot, unsigned keep) {
  struct sched_batch b;
  int who;
  unsigned got;
  if (!sched_out(p->sched, slot, &b, &who, &got) || sched_prepare(p->sched) < 0) return false;
  int m = p->link->ops->retract(p->link, slot, keep > got ? keep : got);
  if (m < 0) return false;
  bool freed = sched_back(p->sched, slot, (unsigned)m);
  if (freed && m > 0) p->link->ops->release(p->link, slot);
  return true;
}

void pool_doom(struct plua_pool *p, int number, unsigned slot, unsigned k, int code, bool silent) {
  struct worker *w = &p->worker[number];
  w->doomed = true;
  w->silent = silent;
  w->slot = slot;
  w->k = k;
  w->code = code;
}

void pool_divide(struct plua_pool *p) {
  unsigned idle = p->link->ops->idle(p->link), keep;
  unsigned ready = sched_unbegun(p->sched);
  for (unsigned n = 0; n <= idle; n++) {
    bool starved = idle > ready && sched_dry(p->sched);
    int slot = sched_divide(p->sched, now_ns(), starved, &keep);
    if (slot < 0) break;
    if (pool_take_back(p, (unsigned)slot, keep)) pool_post(p);
    ready = sched_unbegun(p->sched);
  }
}

/* When to look again whether work should be divided; -1: no need. */
static int64_t tick(const struct plua_pool *p) {
  if (!sched_divisible(p->sched)) return -1;
  return p->link->ops->idle(p->link) ? TICK_IDLE_NS : TICK_BUSY_NS;
}

/* ---- events -------------------------------------------------------------------------------- */

static void suspect(struct plua_pool *p, int w) {
  if (!p->worker[w].broken && p->worker[w].in_slot < 0) be_careful(p);
  p->worker[w].broken = true;
  p->link->ops->distrust(p->link, w);
  pool_kill(p, w);
}

/* An event about a worker, not about an item. */
static plua_event of_worker(enum plua_what what, const struct link_event *l) {
  return (plua_event){.what = what,
                      .data = l->data,
                      .len = l->len,
                      .worker = l->worker + 1,
                      .pid = l->pid,
                      .signal = l->signal,
                      .status = l->status,
                      .elapsed_ns = -1};
}

static int fail_boot(struct plua_pool *p, const struct link_event *l, plua_event *e) {
  p->failed = PLUA_EBOOT;
  p->boot_signal = l->signal;
  p->boot_status = l->status;
  pool_say(p, PLUA_EBOOT, "%s", plua_strerror(PLUA_EBOOT));
  *e = of_worker(PLUA_BOOT, l);
  e->failed = l->what == LINK_BOOT;
  e->code = PLUA_EBOOT;
  return 1;
}

static void batch_freed(struct plua_pool *p, unsigned slot, uint64_t job) {
  p->link->ops->release(p->link, slot);
  if (UNLIKELY(!sched_known(p->sched, job))) pool_tidy(p, job);
  if (sched_due(p->sched)) pool_post(p);
}

/* Results of l->n items in a row. */
static int values(struct plua_pool *p, const struct link_event *l, plua_event *e) {
  struct sched_item item;
  bool freed;
  enum sched_verdict v = sched_values(p->sched, (unsigned)l->worker, (unsigned)l->slot, l->tag,
                                      l->n, &item, &freed);
  if (UNLIKELY(v == SCHED_FAULT)) {
    suspect(p, l->worker);
    return 0;
  }
  p->bytes_out += l->len;
  if (v == SCHED_DELIVER) {
    *e = (plua_event){.what = PLUA_RESULT,
                      .job = item.job,
                      .index = item.index,
                      .data = l->data,
                      .len = l->len,
                      .worker = l->worker + 1,
                      .pid = l->pid,
                      .attempts = item.attempt,
                      .elapsed_ns = -1};
    items_done(p, item.job, item.index, l->n);
  }
  if (freed) batch_freed(p, (unsigned)l->slot, item.job);
  return v == SCHED_DELIVER;
}

static enum sched_charge charge_of(const struct link_event *l) {
  return l->failed == PLUA_TIMED_OUT || l->code == PLUA_ETIMEOUT ? SCHED_TIMEOUT : SCHED_ERROR;
}

/* An item's error. */
static int outcome(struct plua_pool *p, const struct link_event *l, plua_event *e) {
  struct sched_item item;
  bool freed;
  enum sched_verdict v = sched_outcome(p->sched, (unsigned)l->worker, (unsigned)l->slot, l->tag,
                                       charge_of(l), &item, &freed);
  if (UNLIKELY(v == SCHED_FAULT)) {
    suspect(p, l->worker);
    return 0;
  }
  p->bytes_out += l->len;
  if (v == SCHED_DELIVER) {
    *e = (plua_event){.what = l->what == LINK_CODE ? PLUA_LOST : PLUA_RESULT,
                      .failed = l->failed,
                      .code = l->code,
                      .job = item.job,
                      .index = item.index,
                      .data = l->data,
                      .len = l->len,
                      .worker = l->worker + 1,
                      .pid = l->pid,
                      .attempts = item.attempt,
                      .elapsed_ns = l->elapsed_ns,
                      .output = l->output,
                      .output_len = l->output_len};
    if (l->what == LINK_CODE) e->len = 0;
    item_done(p, item.job, item.index);
  }
  if (freed) batch_freed(p, (unsigned)l->slot, item.job);
  return v == SCHED_DELIVER;
}

/* Everything that a held worker had published has been told: is its item among it? */
static void decide(struct plua_pool *p, int number) {
  struct worker *w = &p->worker[number];
  struct sched_batch b;
  int who = -1;
  unsigned got = 0;
  bool out = sched_out(p->sched, w->slot, &b, &who, &got);
  if (out && who == number && got <= w->k) {
    pool_kill(p, number);
    return;
  }
  w->doomed = false;
  p->link->ops->resume(p->link, number);
}

static int death_code(const struct worker *w, const struct link_event *l) {
  if (w->doomed) return w->code;
  if (w->broken) return PLUA_EPROTO;
  if (l->code == PLUA_EOOM) return PLUA_EOOM;
  return l->signal || l->status < 0 ? PLUA_ECRASH : PLUA_EEXIT;
}

/* What the item that it ran is charged with. */
static enum sched_charge death_charge(const struct worker *w, const struct link_event *l) {
  if (w->doomed) return w->code == PLUA_ETIMEOUT ? SCHED_TIMEOUT : SCHED_FINAL;
  if (w->broken) return SCHED_CRASH;
  if (l->code == PLUA_EOOM) return SCHED_OOM;
  if (l->signal == SIGPIPE) return SCHED_FINAL; /* who reads no more will not read again */
  return l->signal == SIGKILL || l->signal == SIGTERM ? SCHED_KILL : SCHED_CRASH;
}

int pool_tell_lost(struct plua_pool *p, const struct link_event *l, const struct sched_item *item,
                   int code, int64_t elapsed_ns, plua_event *e) {
  *e = (plua_event){.what = PLUA_LOST,
                    .code = code,
                    .job = item->job,
                    .index = item->index,
                    .worker = l->worker + 1,
                    .pid = l->pid,
                    .attempts = item->attempt,
                    .signal = l->signal,
                    .status = l->status,
                    .elapsed_ns = elapsed_ns,
                    .output = l->output,
                    .output_len = l->output_len};
  item_done(p, item->job, item->index);
  return 1;
}

/* Three in a row that end before they have started say that none ever will; kills from outside are
   luck, until they are many. */
static bool boot_failed(struct plua_pool *p, const struct worker *was, int signal) {
  if (was->state != W_BOOTING || was->broken) return false;
  int limit = signal == SIGKILL || signal == SIGTERM ? BOOT_KILLS_MAX : BOOT_DEATHS_MAX;
  return ++p->boot_deaths >= (unsigned)limit;
}

void pool_part(struct plua_pool *p, unsigned w) {
  p->link->ops->retire(p->link, (int)w);
  p->worker[w].leaves = p->parting = true;
}

/* An item shall run alone, since memory ran out: idle workers must not hold on to what they needed
   for items before. Each leaves when it is idle, and a fresh one takes its place. */
static void renew(struct plua_pool *p) {
  for (unsigned w = 0; w < p->link->cap; w++)
    if (p->worker[w].state == W_UP) pool_part(p, w);
}

/* It died in 'leave', or right behind: unless we killed it, somebody should know. */
static int cut_short(const struct worker *was, const struct link_event *l, plua_event *e) {
  if (!l->failed || was->doomed || was->killed_ns || (!l->signal && l->status <= 0)) return 0;
  *e = of_worker(PLUA_LEFT, l);
  return 1;
}

static int death(struct plua_pool *p, const struct link_event *l, plua_event *e) {
  struct worker *w = &p->worker[l->worker], was = *w;
  was.broken |= l->code == PLUA_EPROTO;
  struct sched_item item;
  struct sched_batch b = {0};
  int who;
  unsigned got;
  bool freed, out = l->slot >= 0 && sched_out(p->sched, (unsigned)l->slot, &b, &who, &got);
  enum sched_charge how = death_charge(&was, l);
  enum sched_verdict v = sched_death(p->sched, (unsigned)l->worker, l->slot, l->next, how, &item,
                                     &freed);
  int64_t elapsed = was.since_ns ? now_ns() - was.since_ns : -1;
  *w = (struct worker){.state = W_NONE, .in_slot = -1};
  if (was.state == W_LOST) return 0;
  if (was.killed_ns) p->killed--;
  if (was.broken) p->spoiler = *l, p->spoiler.output_len = 0;
  p->alive--;
  p->crashed += item.job != 0;
  if (freed) p->link->ops->release(p->link, (unsigned)l->slot);
  if (freed && out) pool_tidy(p, b.job);
  if (v == SCHED_AGAIN && how == SCHED_OOM) renew(p);
  if (sched_waiting(p->sched)) pool_post(p);
  if (boot_failed(p, &was, l->signal)) return fail_boot(p, l, e);
  if (v != SCHED_DELIVER) return cut_short(&was, l, e);
  if (!was.doomed || !was.silent)
    return pool_tell_lost(p, l, &item, death_code(&was, l), elapsed, e);
  item_done(p, item.job, item.index);
  pool_release(p);
  return 0;
}

/* Nothing of a batch was begun, unless its worker spoilt the trace: if it was the only one out, its
   one item is to blame. */
static int came_back(struct plua_pool *p, const struct link_event *l, plua_event *e) {
  const struct link_event *dead = l->worker < 0 ? &p->spoiler : l;
  struct sched_batch b;
  int who;
  unsigned got, slot = (unsigned)l->slot;
  if (!sched_out(p->sched, slot, &b, &who, &got)) IMPOSSIBLE("an empty slot came back");
  if (l->code != PLUA_EPROTO || !p->careful || p->careful_slot != l->slot || !dead->pid) {
    sched_back(p->sched, slot, 0);
    pool_tidy(p, b.job);
    return 0;
  }
  struct sched_item item;
  p->careful = false;
  enum sched_verdict v = sched_blame(p->sched, slot, &item);
  pool_tidy(p, b.job);
  return v == SCHED_DELIVER ? pool_tell_lost(p, dead, &item, PLUA_EPROTO, -1, e) : 0;
}

static int left(const struct link_event *l, plua_event *e) {
  *e = of_worker(PLUA_LEFT, l);
  e->failed = 1;
  return 1;
}

/* 1: *e tells it. */
static int handle(struct plua_pool *p, const struct link_event *l, plua_event *e) {
  if (l->what == LINK_BACK) return came_back(p, l, e);
  struct worker *w = &p->worker[l->worker];
  if (w->broken && l->what != LINK_DEAD) return 0;
  switch (l->what) {
  case LINK_BACK:
  case LINK_NOTHING:
    return 0;
  case LINK_UP:
    w->state = W_UP;
    w->pid = l->pid;
    p->boot_deaths = 0;
    return 0;
  case LINK_BOOT:
    return fail_boot(p, l, e);
  case LINK_BEGIN:
    if (!sched_begin(p->sched, (unsigned)l->worker, (unsigned)l->slot)) suspect(p, l->worker);
    w->in_slot = l->slot;
    w->since_ns = 0;
    return 0;
  case LINK_VALUE:
    return values(p, l, e);
  case LINK_ERROR:
  case LINK_CODE:
    return outcome(p, l, e);
  case LINK_END:
    if (!sched_end(p->sched, (unsigned)l->worker, l->n, l->elapsed_ns)) suspect(p, l->worker);
    return 0;
  case LINK_LEFT:
    return left(l, e);
  case LINK_QUIET:
    decide(p, l->worker);
    return 0;
  case LINK_FAULT:
    suspect(p, l->worker);
    return 0;
  case LINK_DEAD:
    return death(p, l, e);
  }
  IMPOSSIBLE("event of no kind");
}

unsigned pool_missing(const struct plua_pool *p) {
  unsigned n = 0;
  for (unsigned w = 0; p->alive + n < p->target && w < p->link->cap; w++)
    n += p->worker[w].state == W_NONE;
  return n;
}

/* Work waits that living workers do not cover, or none was ever started. */
static bool wants_fork(const struct plua_pool *p) {
  if (p->fork_told || !pool_missing(p) || now_ns() < p->fork_after_ns) return false;
  return sched_waiting(p->sched) || sched_unbegun(p->sched) || (!p->started && !p->closing);
}

static bool ended(const struct plua_pool *p) {
  return p->closing && !p->alive && !sched_pending(p->sched);
}

/* What the pool itself has to tell, once the backend has nothing. */
static int tell(struct plua_pool *p, plua_event *e) {
  *e = (plua_event){.what = PLUA_NOTHING, .elapsed_ns = -1};
  if (p->cancels_told < p->cancels) {
    const struct cancelled *c = &p->cancelled[p->cancels_told++];
    e->what = PLUA_LOST;
    e->code = PLUA_ECANCELLED;
    e->job = c->job;
    e->index = c->index;
    item_done(p, c->job, c->index);
    if (p->cancels_told == p->cancels) p->cancels = p->cancels_told = 0;
  } else if (p->short_code) {
    e->what = PLUA_SHORT;
    e->code = p->short_code;
    p->short_code = 0;
  } else if (ended(p)) {
    if (!p->ended_told) e->what = PLUA_ENDED;
    p->ended_told = true;
  } else if (wants_fork(p)) {
    e->what = PLUA_FORK;
    p->fork_told = true;
  }
  return e->what != PLUA_NOTHING;
}

void pool_retire(struct plua_pool *p) {
  if (!p->closing || p->retired || sched_waiting(p->sched)) return;
  p->retired = true;
  p->link->ops->retire(p->link, -1);
}

static int told_failure(struct plua_pool *p, plua_event *e) {
  *e = (plua_event){.what = PLUA_BOOT,
                    .code = p->failed,
                    .signal = p->boot_signal,
                    .status = p->boot_status,
                    .elapsed_ns = -1};
  return 0;
}

/* How many results *e tells; 0: it tells something else. */
static int next(plua_pool *p, plua_event *e, plua_reply *replies, unsigned max) {
  struct link_event l;
  if (UNLIKELY(!*p->ours)) return PLUA_EOWNER;
  pool_release(p);
  if (UNLIKELY(p->failed)) return told_failure(p, e);
  while (p->link->ops->next(p->link, &l, replies, max))
    if (handle(p, &l, e)) return e->what == PLUA_RESULT && !e->failed ? (int)l.n : 0;
  pool_watch(p);
  if (UNLIKELY(p->killed) && pool_give_up(p, e)) return 0;
  if (sched_waiting(p->sched)) pool_post(p);
  pool_retire(p);
  if (!tell(p, e) && UNLIKELY(p->no_memory)) return starved(p);
  return 0;
}

int plua_next(plua_pool *p, plua_event *e) {
  int n = next(p, e, NULL, 0);
  return n < 0 ? n : 0;
}

int plua_next_run(plua_pool *p, plua_event *e, plua_reply *replies, int max) {
  if (UNLIKELY(!*p->ours)) return PLUA_EOWNER;
  if (!replies || max < 1) return pool_say(p, PLUA_EARG, "plua_next_run: no room for replies");
  int n = next(p, e, replies, (unsigned)max);
  if (n == 1) replies[0] = (plua_reply){e->data, e->len};
  if (n > 1) e->len = replies[0].len;
  return n;
}

/* ---- waiting ------------------------------------------------------------------------------- */

static bool told_something(const struct plua_pool *p) {
  if (p->failed || p->cancels_told < p->cancels || p->short_code) return true;
  if (UNLIKELY(p->killed) && pool_give_up_tick(p) == 0) return true;
  return ended(p) ? !p->ended_told : wants_fork(p);
}

static int64_t sooner(int64_t a, int64_t b) {
  return a < 0 ? b : b < 0 || a < b ? a : b;
}

/* When there is something to look after; -1: no need. */
static int64_t care_ns(const plua_pool *p) {
  int64_t care = sooner(tick(p), pool_watch_tick(p));
  return p->killed ? sooner(care, pool_give_up_tick(p)) : care;
}

/* How long to sleep: until the caller's time is up, or there is something to look after. */
static int64_t nap_ns(const plua_pool *p, int64_t until) {
  int64_t left = -1;
  if (until >= 0) left = until > now_ns() ? until - now_ns() : 0;
  left = sooner(left, care_ns(p));
  if (!p->fork_after_ns || !pool_missing(p)) return left;
  int64_t fork = p->fork_after_ns - now_ns();
  return sooner(left, fork > 0 ? fork + 1000 : 0);
}

/* A nap that lasted far longer than asked: this process was stopped, or the machine. */
static int nap(plua_pool *p, int64_t ns, int bulk) {
  int low = sched_waiting(p->sched) ? (int)p->slots / 4 : 0;
  int64_t start = now_ns();
  int r = p->link->ops->wait(p->link, ns, bulk ? LINK_BULK : LINK_ANY, low);
  int64_t over = ns < 0 ? 0 : now_ns() - start - ns;
  if (over > STOPPED_NS) pool_watch_shift(p, over);
  return r;
}

int plua_wait(plua_pool *p, int64_t timeout_ns, int bulk) {
  if (!*p->ours) return PLUA_EOWNER;
  int64_t until = timeout_ns < 0 || timeout_ns > FAR_NS ? -1 : now_ns() + timeout_ns;
  if (sched_waiting(p->sched)) pool_post(p);
  for (;;) {
    if (told_something(p)) return 1;
    pool_divide(p);
    pool_watch(p);
    int r = nap(p, nap_ns(p, until), bulk);
    if (r) return r;
    if (until >= 0 && now_ns() >= until) return 0;
  }
}

int plua_fd(plua_pool *p) {
  return *p->ours ? p->link->ops->fd(p->link) : PLUA_EOWNER;
}

int plua_dispatch(plua_pool *p) {
  if (!*p->ours) return PLUA_EOWNER;
  if (sched_waiting(p->sched)) pool_post(p);
  pool_divide(p);
  pool_watch(p);
  return told_something(p) ? 1 : p->link->ops->arm(p->link, care_ns(p));
}
