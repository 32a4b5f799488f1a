/* pool.c: the public calls on pools and jobs.
   Invariant: every call checks that this process owns the pool before it touches anything; what
   fails leaves the pool as it was and says why.
   Knows sched, the store and a backend through link.h. Does not know processes or Lua.
   SPDX-License-Identifier: MIT */
#include "pool.h"
#include "fail.h"

#include <errno.h>
#include <limits.h>
#include <sys/mman.h>

#define FORK_PAUSE_NS 100000000 /* after a fork failed for want of resources */

#define OWNED(p) \
  if (!*(p)->ours) return PLUA_EOWNER

/* ---- opening and closing ------------------------------------------------------------------- */

static int owner_page(plua_pool *p) {
  char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return -errno;
  p->ours = page;
  if (madvise(page, 4096, MADV_WIPEONFORK) < 0) return -errno;
  *page = 1;
  return 0;
}

static int parts_open(plua_pool *p, const plua_options *o, const plua_tasks *tasks) {
  int err = owner_page(p);
  if (!err) err = local_open(&p->link, o, tasks);
  if (err) return err;
  p->worker = array_new(p->link->cap, sizeof *p->worker);
  if (!p->worker) return -ENOMEM;
  err = sched_open(&p->sched, o->slots, p->link->cap);
  if (err) return err;
  sched_team(p->sched, p->target);
  return store_open(&p->store, p->link->memory, p->link->payload_off, p->link->payload_len,
                    p->link->memory_fd);
}

static void parts_close(plua_pool *p) {
  if (p->link) array_free(p->worker, p->link->cap, sizeof *p->worker);
  if (p->link) p->link->ops->close(p->link);
  store_close(p->store);
  sched_close(p->sched);
  for (size_t i = 0; i < p->job_cap; i++) places_free(&p->job[i].places);
  free(p->job);
  free(p->cancelled);
  if (p->ours) munmap((void *)(uintptr_t)p->ours, 4096);
  free(p);
}

/* So many that a busy owner need not post often, and two for each worker. */
static unsigned default_slots(unsigned workers) {
  return SLOTS_DEFAULT > 16 && 2 * workers > SLOTS_DEFAULT ? 2 * workers : SLOTS_DEFAULT;
}

/* There is no pool yet that could have a message: so each fault has a code. */
static int fault_of(const plua_options *o, const plua_tasks *t) {
  if (o->workers < 1 || o->workers > WORKERS_MAX) return PLUA_EWORKERS;
  if (o->flags & ~(unsigned)PLUA_FLAGS) return PLUA_EFLAGS;
  if (o->slots > SLOTS_MAX) return PLUA_ESLOTS;
  return t->run ? 0 : PLUA_ERUN;
}

int plua_open(plua_pool **out, const plua_options *options, const plua_tasks *tasks) {
  plua_options o = {0};
  plua_tasks t = {0};
  if (!out || !options || !tasks || !options->size || !tasks->size) return PLUA_EARG;
  memcpy(&o, options, options->size < sizeof o ? options->size : sizeof o);
  memcpy(&t, tasks, tasks->size < sizeof t ? tasks->size : sizeof t);
  int wrong = fault_of(&o, &t);
  if (wrong) return wrong;
  if (!o.slots) o.slots = default_slots((unsigned)o.workers);
  plua_pool *p = calloc(1, sizeof *p);
  if (!p) return -ENOMEM;
  p->target = (unsigned)o.workers;
  p->slots = o.slots;
  p->interruptible = t.interrupt != NULL;
  int err = parts_open(p, &o, &t);
  if (err)
    parts_close(p);
  else
    *out = p;
  return err;
}

void plua_close(plua_pool *p) {
  if (p) parts_close(p);
}

const char *plua_message(const plua_pool *p) {
  return p->message;
}

/* ---- workers ------------------------------------------------------------------------------- */

static int fork_failed(plua_pool *p, int err, int started) {
  if (!p->alive || !err_is_short(err))
    return pool_say(p, err, "cannot start worker %u of %u: %s", p->alive + 1, p->target,
                    plua_strerror(err));
  pool_say(p, err, "only %u of %u workers could be started: %s", p->alive, p->target,
           plua_strerror(err));
  p->fork_after_ns = now_ns() + FORK_PAUSE_NS;
  if (!p->short_told) p->short_code = err;
  p->short_told = true;
  return started;
}

/* How many workers in a row are to be started, from *w on; 0: none. */
static unsigned vacant(const plua_pool *p, unsigned *w) {
  unsigned n = 0, most = p->alive < p->target ? p->target - p->alive : 0;
  while (*w < p->link->cap && p->worker[*w].state != W_NONE) ++*w;
  while (n < most && *w + n < p->link->cap && p->worker[*w + n].state == W_NONE) n++;
  return n;
}

int plua_fork(plua_pool *p) {
  OWNED(p);
  if (p->failed) return p->failed;
  int started = 0;
  unsigned w = 0, n = 0;
  p->fork_told = false;
  p->fork_after_ns = 0;
  pool_post(p);
  while (n || (n = vacant(p, &w)) > 0) { /* of a row some are started, and then the rest */
    int got = p->link->ops->start(p->link, (int)w, n);
    if (got < 0) return fork_failed(p, got, started);
    p->alive += (unsigned)got;
    p->started += (unsigned)got;
    started += got;
    n -= (unsigned)got;
    for (unsigned end = w + (unsigned)got; w < end; w++)
      p->worker[w] = (struct worker){.state = W_BOOTING, .in_slot = -1};
  }
  return started;
}

int plua_resize(plua_pool *p, int workers) {
  OWNED(p);
  if (workers < 1 || (unsigned)workers > p->link->cap)
    return pool_say(p, PLUA_EARG, "a pool of %u can be resized to 1 .. %u workers, not %d",
                    p->target, p->link->cap, workers);
  for (unsigned w = (unsigned)workers; w < p->link->cap; w++)
    if (p->worker[w].state != W_NONE) pool_part(p, w);
  p->target = (unsigned)workers;
  sched_team(p->sched, p->target);
  return 0;
}

int plua_shutdown(plua_pool *p) {
  OWNED(p);
  p->closing = true;
  pool_retire(p);
  return 0;
}

/* ---- jobs ---------------------------------------------------------------------------------- */

static int call_store(plua_pool *p, const plua_job *job, struct pool_job *j) {
  plua_out *out;
  bool follows;
  if (!job->call_len && !job->call) return 0;
  int err = store_begin(p->store, 0, &out);
  if (err) return err;
  err = plua_write(out, job->call, job->call_len);
  if (err) {
    store_drop(p->store);
    return err;
  }
  store_end(p->store, &j->call_off, &follows);
  j->call_off += 8;
  j->call_len = job->call_len;
  p->bytes_in += job->call_len;
  return 0;
}

/* The table of jobs grows with sched's numbers; new entries are empty. */
static int job_room(plua_pool *p, uint64_t id) {
  size_t old = p->job_cap;
  int err = grow((void **)&p->job, &p->job_cap, (size_t)sched_index(id) + 1, sizeof *p->job);
  if (!err && p->job_cap > old) memset(p->job + old, 0, (p->job_cap - old) * sizeof *p->job);
  return err;
}

static void time_job(plua_pool *p, int64_t timeout_ns) {
  if (!p->timed++ || timeout_ns < p->shortest_ns) p->shortest_ns = timeout_ns;
}

/* Counts of items, which are sums over all jobs, must not wrap. */
static bool too_many(const plua_pool *p, uint64_t count) {
  uint64_t pending = sched_pending(p->sched), most = UINT64_MAX / 2;
  return pending > most || count > most - pending;
}

static int say_many(plua_pool *p, const char *call, uint64_t count) {
  return pool_say(p, PLUA_EARG, "%s: %llu items are more than can be counted, with what is there",
                  call, (unsigned long long)count);
}

int plua_submit(plua_pool *p, const plua_job *job, uint64_t *id) {
  OWNED(p);
  plua_job o = {0};
  if (!job || !job->size || !id)
    return pool_say(p, PLUA_EARG, "plua_submit: no job, no size or no place for its number");
  memcpy(&o, job, job->size < sizeof o ? job->size : sizeof o);
  if (job->size <= offsetof(plua_job, kill_retries)) o.kill_retries = o.crash_retries;
  if (job->size <= offsetof(plua_job, oom_retries)) o.oom_retries = o.crash_retries;
  if (o.timeout_ns < 0) return pool_say(p, PLUA_EARG, "plua_submit: a timeout is not negative");
  if (o.timeout_ns > FAR_NS) o.timeout_ns = FAR_NS;
  if (p->closing) return pool_say(p, PLUA_ECLOSED, "plua_submit: the pool was shut down");
  if (p->failed) return p->failed;
  if (p->put_job) return pool_say(p, PLUA_EARG, "an item is being put: end or drop it first");
  if (too_many(p, o.count)) return say_many(p, "plua_submit", o.count);
  uint64_t new;
  const unsigned retries[SCHED_CHARGES] = {[SCHED_CRASH] = o.crash_retries,
                                           [SCHED_ERROR] = o.error_retries,
                                           [SCHED_TIMEOUT] = o.timeout_retries,
                                           [SCHED_KILL] = o.kill_retries,
                                           [SCHED_OOM] = o.oom_retries};
  int err = sched_job(p->sched, o.chunksize, retries, &new);
  if (err) return err;
  struct pool_job j = {.id = new, .positions = o.count > 0, .timeout_ns = o.timeout_ns};
  err = job_room(p, new);
  if (!err) err = call_store(p, &o, &j);
  if (!err) {
    p->job[sched_index(new)] = j;
    if (j.timeout_ns) time_job(p, j.timeout_ns);
    err = sched_add(p->sched, new, o.count);
  }
  if (err) {
    sched_forget(p->sched, new);
    if (pool_job(p, new)) p->job[sched_index(new)].forgotten = true;
    pool_tidy(p, new);
    return err;
  }
  *id = new;
  if (o.count) pool_post(p);
  return 0;
}

static struct pool_job *open_job(plua_pool *p, uint64_t id) {
  struct pool_job *j = pool_job(p, id);
  return j && !j->forgotten ? j : NULL;
}

static int no_job(plua_pool *p, uint64_t id) {
  return pool_say(p, PLUA_EARG, "there is no job %llu, or it was forgotten",
                  (unsigned long long)id);
}

int plua_extend(plua_pool *p, uint64_t id, uint64_t count) {
  OWNED(p);
  struct pool_job *j = open_job(p, id);
  if (!j) return no_job(p, id);
  if (j->places.count) return pool_say(p, PLUA_EARG, "plua_extend: the job's items have payloads");
  int err = too_many(p, count) ? PLUA_EARG : sched_add(p->sched, id, count);
  if (err == PLUA_EARG) return say_many(p, "plua_extend", count);
  if (err) return err;
  j->positions |= count > 0;
  pool_post(p);
  return 0;
}

int plua_put(plua_pool *p, uint64_t id, plua_out **out) {
  OWNED(p);
  const struct pool_job *j = open_job(p, id);
  if (!j) return no_job(p, id);
  if (j->positions) return pool_say(p, PLUA_EARG, "plua_put: the job's items have no payloads");
  if (p->put_job) return pool_say(p, PLUA_EARG, "plua_put: an item is being put already");
  int err = FAIL_ERROR(P_PUT);
  if (!err) err = store_begin(p->store, id, out);
  if (!err) p->put_job = id;
  return err;
}

/* All that can fail is done before the payload is kept, so an item is added whole or not at all. */
static int put_item(plua_pool *p) {
  struct pool_job *j = open_job(p, p->put_job);
  if (!j) return pool_say(p, PLUA_EARG, "no item is being put");
  uint64_t len;
  bool follows;
  unsigned room;
  int err = places_prepare(&j->places);
  if (!err) err = sched_prepare(p->sched);
  if (err) {
    plua_put_drop(p);
    return err;
  }
  p->put_job = 0;
  uint64_t *off = places_next(&j->places, &room);
  store_end(p->store, off, &follows);
  memcpy(&len, p->link->memory + *off, sizeof len);
  places_added(&j->places, 1, follows);
  if (sched_add(p->sched, j->id, 1) < 0) IMPOSSIBLE("no room though it was prepared");
  p->bytes_in += len;
  return 0;
}

int plua_put_end(plua_pool *p) {
  OWNED(p);
  int err = put_item(p);
  if (!err) pool_post(p);
  return err;
}

int plua_put_next(plua_pool *p) {
  OWNED(p);
  uint64_t id = p->put_job;
  int err = put_item(p);
  if (!err && !sched_slack(p->sched, id)) pool_post(p);
  return err;
}

/* Adds the first of n items in the ordinary way. */
static int put_first(plua_pool *p, uint64_t id, const void *bytes, size_t len) {
  plua_out *out;
  int err = store_begin(p->store, id, &out);
  if (err) return err;
  p->put_job = id;
  err = plua_write(out, bytes, len);
  if (!err) err = put_item(p);
  if (err) plua_put_drop(p);
  return err ? err : 1;
}

/* Adds those that have room right behind the payload before, at once. */
static int put_run(plua_pool *p, struct pool_job *j, const void *bytes, const size_t *len,
                   unsigned n) {
  unsigned room;
  bool follows = false;
  int err = FAIL_ERROR(P_PUT);
  if (!err) err = places_prepare(&j->places);
  if (!err) err = sched_prepare(p->sched);
  if (err) return err;
  uint64_t *off = places_next(&j->places, &room);
  n = store_run(p->store, j->id, bytes, len, n < room ? n : room, off, &follows);
  places_added(&j->places, n, follows);
  for (unsigned i = 0; i < n; i++) p->bytes_in += len[i];
  if (sched_add(p->sched, j->id, n) < 0) IMPOSSIBLE("no room though it was prepared");
  return (int)n;
}

int plua_put_run(plua_pool *p, uint64_t id, const void *bytes, const size_t *len, int n) {
  OWNED(p);
  struct pool_job *j = open_job(p, id);
  if (!j) return no_job(p, id);
  if (j->positions) return pool_say(p, PLUA_EARG, "plua_put_run: the job's items have no payloads");
  if (p->put_job) return pool_say(p, PLUA_EARG, "plua_put_run: an item is being put already");
  if (n < 1 || !bytes || !len) return pool_say(p, PLUA_EARG, "plua_put_run: no items");
  int added = put_run(p, j, bytes, len, (unsigned)n);
  if (!added) added = put_first(p, id, bytes, *len);
  if (added > 0 && !sched_slack(p->sched, id)) pool_post(p);
  return added;
}

int plua_slack(plua_pool *p, uint64_t id) {
  OWNED(p);
  uint64_t n = sched_slack(p->sched, id);
  return n < INT_MAX ? (int)n : INT_MAX;
}

int plua_flush(plua_pool *p) {
  OWNED(p);
  pool_post(p);
  return 0;
}

void plua_put_drop(plua_pool *p) {
  if (!*p->ours || !p->put_job) return;
  p->put_job = 0;
  store_drop(p->store);
}

const void *plua_payload(plua_pool *p, uint64_t id, uint64_t index, size_t *len) {
  struct pool_job *j = *p->ours ? pool_job(p, id) : NULL;
  uint64_t off = j ? places_at(&j->places, index) : 0, n;
  if (!off) return NULL;
  memcpy(&n, p->link->memory + off, sizeof n);
  *len = (size_t)n;
  return p->link->memory + off + 8;
}

/* ---- cancelling ---------------------------------------------------------------------------- */

/* Takes a job's batches back as far as they reach into [first, end). */
static void recall(plua_pool *p, uint64_t id, uint64_t first, uint64_t end) {
  struct sched_batch b;
  int who;
  unsigned got;
  for (unsigned slot = 0; sched_slot_next(p->sched, id, &slot); slot++) {
    if (!sched_out(p->sched, slot, &b, &who, &got) || b.first + b.n <= first || b.first >= end)
      continue;
    pool_take_back(p, slot, first > b.first ? (unsigned)(first - b.first) : 0);
  }
}

/* Dooms workers that run an item of [first, end): they are held now, killed when all that they
   published is told. What has failed, or dies by itself, is not begun again. */
static void doom(plua_pool *p, uint64_t id, uint64_t first, uint64_t end, bool silent) {
  struct sched_batch b;
  int who;
  unsigned got, k;
  for (unsigned slot = 0; sched_slot_next(p->sched, id, &slot); slot++) {
    if (!sched_out(p->sched, slot, &b, &who, &got) || b.first + b.n <= first || b.first >= end)
      continue;
    unsigned low = first > b.first ? (unsigned)(first - b.first) : 0;
    unsigned high = end - b.first < b.n ? (unsigned)(end - b.first) : b.n;
    sched_last_try(p->sched, slot, low, high);
    int w = p->link->ops->hold(p->link, slot, low > got ? low : got, high, &k);
    if (w >= 0) pool_doom(p, w, slot, k, PLUA_ECANCELLED, silent);
  }
}

static int note_cancelled(plua_pool *p, uint64_t id, uint64_t index) {
  int err = grow((void **)&p->cancelled, &p->cancel_cap, p->cancels + 1, sizeof *p->cancelled);
  if (!err) p->cancelled[p->cancels++] = (struct cancelled){id, index};
  return err;
}

/* The batch of a job that is out and ends behind 'at', the nearest one: [*from, *to). */
static bool next_out(plua_pool *p, uint64_t id, uint64_t at, uint64_t *from, uint64_t *to) {
  struct sched_batch b;
  int who;
  unsigned got;
  bool found = false;
  for (unsigned slot = 0; sched_slot_next(p->sched, id, &slot); slot++) {
    if (!sched_out(p->sched, slot, &b, &who, &got) || b.first + b.n <= at) continue;
    if (found && b.first >= *from) continue;
    *from = b.first;
    *to = b.first + b.n;
    found = true;
  }
  return found;
}

/* Frees the payloads of withdrawn items: all of [first, end) but those that are out. */
static void free_withdrawn(plua_pool *p, struct pool_job *j, uint64_t first, uint64_t end) {
  uint64_t from = 0, to = 0;
  if (end > j->places.count) end = j->places.count;
  while (first < end) {
    if (!next_out(p, j->id, first, &from, &to)) from = to = end;
    pool_free(p, j, first, from < end ? from : end);
    first = to;
  }
}

int64_t plua_cancel(plua_pool *p, uint64_t id, uint64_t first, uint64_t count, int how) {
  OWNED(p);
  struct pool_job *j = open_job(p, id);
  if (!j) return no_job(p, id);
  if (!count) return pool_say(p, PLUA_EARG, "plua_cancel: a range of no items");
  uint64_t end = count > UINT64_MAX - first ? UINT64_MAX : first + count;
  if (count == 1 &&
      grow((void **)&p->cancelled, &p->cancel_cap, p->cancels + 1, sizeof *p->cancelled) < 0)
    return -ENOMEM;
  recall(p, id, first, end);
  int64_t n = sched_withdraw(p->sched, id, first, end);
  if (n == 1 && count == 1) note_cancelled(p, id, first);
  if (n > 0 && count > 1) free_withdrawn(p, j, first, end);
  if (how & PLUA_KILL) doom(p, id, first, end, count != 1);
  pool_post(p);
  return n;
}

/* Cancelled items of a job that is forgotten are not told any more. */
static void forget_cancelled(plua_pool *p, uint64_t id) {
  size_t kept = p->cancels_told;
  for (size_t i = kept; i < p->cancels; i++)
    if (p->cancelled[i].job != id) p->cancelled[kept++] = p->cancelled[i];
  p->cancels = kept;
}

int plua_forget(plua_pool *p, uint64_t id) {
  OWNED(p);
  struct pool_job *j = open_job(p, id);
  if (!j) return no_job(p, id);
  recall(p, id, 0, UINT64_MAX);
  int err = sched_forget(p->sched, id);
  if (err) return err;
  if (p->put_job == id) plua_put_drop(p);
  forget_cancelled(p, id);
  j->forgotten = true;
  if (p->lent_job == id) p->lent_job = 0; /* its payload goes with the job */
  pool_tidy(p, id);
  pool_post(p);
  return 0;
}

int plua_stats_get(plua_pool *p, plua_stats *stats) {
  OWNED(p);
  struct sched_counts c = sched_counts(p->sched);
  plua_stats s = {.workers = (int)p->target,
                  .alive = (int)p->alive,
                  .submitted = c.submitted,
                  .done = c.done,
                  .retried = c.retried,
                  .started = p->started,
                  .crashed = p->crashed,
                  .batches = c.batches,
                  .taken_back = c.divided,
                  .bytes_in = p->bytes_in,
                  .bytes_out = p->bytes_out};
  if (!stats || !stats->size)
    return pool_say(p, PLUA_EARG, "plua_stats_get: no place for them, or no size");
  s.size = stats->size < sizeof s ? stats->size : sizeof s;
  memcpy(stats, &s, s.size);
  return 0;
}
