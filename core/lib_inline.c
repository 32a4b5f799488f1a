/* lib_inline.c: workers = 0: the calls of plua.h, answered in the caller's own process.
   Each inline_next runs one item, in the order in which they were submitted; what it replies
   passes the codec as a worker's reply does, so that a script sees the same values.
   Knows runners and bytes; does not know handles. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"
#include "capture.h"
#include "lib.h"
#include "lines.h"

struct payload {
  void *bytes; /* NULL: released, or a position */
  size_t len;
};

struct ijob {
  uint64_t id;
  uint64_t count; /* items given */
  uint64_t next;  /* the first that has not begun */
  void *call;
  size_t call_len;
  unsigned error_retries;
  struct payload *items; /* of positions base .. count - 1; NULL: none has a payload */
  size_t cap;
  uint64_t base;
  uint64_t *cancelled; /* single items that are to be answered with PLUA_ECANCELLED */
  size_t ncancelled, cancelled_cap;
};

struct inliner {
  struct runner *r;
  plua_tasks tasks;
  struct ijob *jobs; /* in order of submission */
  size_t njobs, jobs_cap;
  uint64_t last_id;
  struct scratch in, reply;
  uint64_t in_job;
  plua_item item; /* the one that runs */
  int answer;
  bool entered, running, shut, left;
  struct capture capture; /* grouped output; shown NULL: not opened yet */
  _Atomic uint64_t shown[2];
  char *words; /* what the item that failed last had printed; CAPTURE_TAIL bytes */
  size_t printed;
  bool torn; /* what a hook raised has ended 'item' and the call around it: it has no outcome yet */
  uint64_t submitted, done, retried;
};

/* ---- scratch bytes -------------------------------------------------------------------------- */

static int scratch_resize(plua_out *out, size_t cap) {
  size_t used = (size_t)(out->at - out->begin);
  unsigned char *p = realloc(out->begin, cap);
  if (!p) return -ENOMEM;
  out->begin = p;
  out->at = p + used;
  out->end = p + cap;
  return 0;
}

static int scratch_more(plua_out *out, size_t need) {
  size_t used = (size_t)(out->at - out->begin), cap = (size_t)(out->end - out->begin);
  size_t want = cap ? cap : 256;
  while (want - used < need) {
    if (want > SIZE_MAX / 2) return -ENOMEM;
    want *= 2;
  }
  return scratch_resize(out, want);
}

void scratch_open(struct scratch *s) {
  s->out = (plua_out){NULL, NULL, NULL, scratch_more};
}

void scratch_close(struct scratch *s) {
  free(s->out.begin);
  scratch_open(s);
}

void scratch_trim(struct scratch *s, size_t keep) {
  plua_out *out = &s->out;
  size_t used = (size_t)(out->at - out->begin), cap = (size_t)(out->end - out->begin);
  if (cap > keep) scratch_resize(out, used > keep ? used : keep);
}

/* ---- grouped output ------------------------------------------------------------------------- */

static struct inliner *keeper; /* whose item's output is kept now; NULL: nobody's */
static pid_t keeper_pid;       /* by which process */

/* Outermost items only: what is inside one is part of its block. */
static bool output_begin(struct inliner *p) {
  p->printed = 0;
  if (!p->r->grouped || p->r->rt->depth || p->r->rt->worker) return false;
  if (!p->capture.shown && capture_open(&p->capture, CAPTURE_OUT | CAPTURE_ERR, p->shown) < 0)
    return false;
  fflush(stdout);
  fflush(stderr);
  capture_on(&p->capture);
  keeper = p;
  keeper_pid = getpid();
  return true;
}

static void output_end_inline(struct inliner *p, bool failed) {
  keeper = NULL;
  fflush(stdout);
  fflush(stderr);
  if (failed && !p->words) p->words = malloc(CAPTURE_TAIL);
  if (failed && p->words) p->printed = capture_tail(&p->capture, p->words, CAPTURE_TAIL);
  capture_off(&p->capture);
  lines_lost = 0;
  capture_show(&p->capture);
  if (lines_lost && p->answer == 0) p->answer = PLUA_EOUTPUT;
}

/* An item that ends the process does not come back. A copy that it forked leaves this to it. */
static void show_kept(void) {
  if (keeper_pid == getpid()) output_end_inline(keeper, false);
  keeper = NULL;
}

/* Registered with nobody: what exit() runs anyway, before it flushes stdio. */
__attribute__((destructor)) static void exiting(void) {
  if (keeper) show_kept();
}

/* ---- opening -------------------------------------------------------------------------------- */

int inline_open(struct inliner **out, struct runner *r, const plua_tasks *tasks) {
  struct inliner *p = calloc(1, sizeof *p);
  if (!p) return -ENOMEM;
  p->r = r;
  p->tasks = *tasks;
  scratch_open(&p->in);
  scratch_open(&p->reply);
  *out = p;
  return 0;
}

static void payloads_free(struct ijob *j) {
  if (j->items)
    for (uint64_t i = j->base; i < j->count; i++) free(j->items[i - j->base].bytes);
  free(j->items);
  free(j->cancelled);
  free(j->call);
}

void inline_close(struct inliner *p) {
  if (p == keeper) show_kept(); /* the item has had the state closed, by os.exit */
  for (size_t i = 0; i < p->njobs; i++) payloads_free(&p->jobs[i]);
  free(p->jobs);
  scratch_close(&p->in);
  scratch_close(&p->reply);
  if (p->capture.shown) capture_close(&p->capture);
  free(p->words);
  free(p);
}

/* ---- submitting ----------------------------------------------------------------------------- */

static struct ijob *find(struct inliner *p, uint64_t id) {
  for (size_t i = p->njobs; i-- > 0;)
    if (p->jobs[i].id == id) return &p->jobs[i];
  return NULL;
}

int inline_submit(struct inliner *p, const plua_job *job, uint64_t *id) {
  if (p->shut) return PLUA_ECLOSED;
  void *jobs = p->jobs;
  if (grow(&jobs, &p->jobs_cap, p->njobs + 1, sizeof *p->jobs) < 0) return -ENOMEM;
  p->jobs = jobs;
  void *call = NULL;
  if (job->call_len) {
    call = malloc(job->call_len);
    if (!call) return -ENOMEM;
    memcpy(call, job->call, job->call_len);
  }
  p->jobs[p->njobs++] = (struct ijob){.id = *id = ++p->last_id,
                                      .count = job->count,
                                      .call = call,
                                      .call_len = job->call_len,
                                      .error_retries = job->error_retries};
  p->submitted += job->count;
  return 0;
}

int inline_extend(struct inliner *p, uint64_t id, uint64_t count) {
  struct ijob *j = find(p, id);
  if (!j) return PLUA_EARG;
  j->count += count;
  p->submitted += count;
  return 0;
}

int inline_put(struct inliner *p, uint64_t id, plua_out **out) {
  if (!find(p, id)) return PLUA_EARG;
  p->in_job = id;
  p->in.out.at = p->in.out.begin;
  *out = &p->in.out;
  return 0;
}

/* Moves the payloads that are left to the front, now and then, so that a stream's job stays small.
   That of the item that ran last is among them. */
static void compact(struct ijob *j) {
  uint64_t first = j->next ? j->next - 1 : 0, gone = first - j->base;
  if (gone < 64 || gone < (j->count - j->base) / 2) return;
  memmove(j->items, j->items + gone, (size_t)(j->count - first) * sizeof *j->items);
  j->base = first;
}

int inline_put_end(struct inliner *p) {
  struct ijob *j = find(p, p->in_job);
  if (!j) return PLUA_EARG;
  if (j->items) compact(j);
  void *items = j->items;
  if (grow(&items, &j->cap, (size_t)(j->count - j->base) + 1, sizeof *j->items) < 0) return -ENOMEM;
  j->items = items;
  struct payload *item = &j->items[j->count - j->base];
  item->len = (size_t)(p->in.out.at - p->in.out.begin);
  item->bytes = malloc(item->len ? item->len : 1);
  if (!item->bytes) return -ENOMEM;
  if (item->len) memcpy(item->bytes, p->in.out.begin, item->len);
  j->count++;
  p->submitted++;
  return 0;
}

const void *inline_payload(struct inliner *p, uint64_t id, uint64_t index, size_t *len) {
  struct ijob *j = find(p, id);
  if (!j || !j->items || index < j->base || index >= j->count) return NULL;
  *len = j->items[index - j->base].len;
  return j->items[index - j->base].bytes;
}

int64_t inline_cancel(struct inliner *p, uint64_t id, uint64_t first, uint64_t count) {
  struct ijob *j = find(p, id);
  if (!j) return PLUA_EARG;
  if (first < j->next) first = j->next;
  if (first >= j->count) return 0;
  if (count == 1) {
    void *list = j->cancelled;
    if (grow(&list, &j->cancelled_cap, j->ncancelled + 1, sizeof *j->cancelled) < 0) return -ENOMEM;
    j->cancelled = list;
    j->cancelled[j->ncancelled++] = first;
    return 1;
  }
  uint64_t withdrawn = j->count - first;
  if (j->items)
    for (uint64_t i = first; i < j->count; i++) free(j->items[i - j->base].bytes);
  j->count = first;
  return (int64_t)withdrawn;
}

int inline_forget(struct inliner *p, uint64_t id) {
  struct ijob *j = find(p, id);
  if (!j) return PLUA_EARG;
  payloads_free(j);
  size_t at = (size_t)(j - p->jobs);
  memmove(j, j + 1, (--p->njobs - at) * sizeof *j);
  return 0;
}

int inline_shutdown(struct inliner *p) {
  p->shut = true;
  return 0;
}

/* ---- running -------------------------------------------------------------------------------- */

enum { DO_ENTER, DO_RUN, DO_LEAVE };

/* One of the task table's functions, by p->answer on the way in. */
static int protected_call(lua_State *L) {
  struct inliner *p = lua_touserdata(L, 1);
  lua_settop(L, 0);
  if (p->answer == DO_ENTER) {
    const plua_self self = {.pid = getpid(), .parent = getpid()};
    p->answer = p->tasks.enter(p->r, &self, &p->reply.out);
    return 0;
  }
  runner_load(p->r);
  p->answer = p->answer == DO_RUN ? p->tasks.run(p->r, &p->item, &p->reply.out)
                                  : p->tasks.leave(p->r, &p->reply.out);
  return 0;
}

/* What the function answers; PLUA_EDEPTH when calls of plua are nested too deeply. Raises what is
   not the item's: memory, or what a hook has raised, as for an interrupt. */
static int call(struct inliner *p, int what) {
  lua_State *L = p->r->L;
  if (p->r->rt->depth >= NESTED_MAX) return PLUA_EDEPTH;
  p->reply.out.at = p->reply.out.begin;
  p->answer = what;
  p->running = true;
  bool taken = p->r->rt->stop == PLUA_STOP_TAKEN;
  lua_pushcfunction(L, protected_call);
  lua_pushlightuserdata(L, p);
  bool kept = output_begin(p);
  int status = lua_pcall(L, 1, 0, 0);
  p->running = false;
  if (kept) output_end_inline(p, status != LUA_OK || p->answer != 0);
  if (status == LUA_OK && !taken && p->r->rt->stop == PLUA_STOP_TAKEN) {
    lua_pushliteral(L, "interrupted!"); /* it was raised inside the item, which is not to blame */
    status = LUA_ERRRUN;
  }
  p->torn = status != LUA_OK && what == DO_RUN;
  if (status != LUA_OK) lua_error(L);
  return p->answer;
}

static void fill_reply(struct inliner *p, plua_event *ev, enum plua_what what, int failed) {
  *ev = (plua_event){.what = what,
                     .failed = failed,
                     .data = p->reply.out.begin,
                     .len = (size_t)(p->reply.out.at - p->reply.out.begin),
                     .pid = what == PLUA_RESULT && !failed ? 0 : getpid(),
                     .elapsed_ns = -1};
}

static bool is_cancelled(struct ijob *j, uint64_t index) {
  for (size_t i = 0; i < j->ncancelled; i++)
    if (j->cancelled[i] == index) {
      j->cancelled[i] = j->cancelled[--j->ncancelled];
      return true;
    }
  return false;
}

/* Runs the job's next item, again where retries are left. 0, or an error that is not the item's. */
static int run_next(struct inliner *p, uint64_t id, plua_event *ev) {
  struct ijob *j = find(p, id);
  uint64_t index = j->next++;
  if (j->items && index > j->base) { /* the one before was borrowed until now */
    free(j->items[index - 1 - j->base].bytes);
    j->items[index - 1 - j->base].bytes = NULL;
  }
  p->done++;
  if (is_cancelled(j, index)) {
    *ev = (plua_event){.what = PLUA_LOST, .code = PLUA_ECANCELLED, .job = id, .index = index};
    return 0;
  }
  struct payload data = j->items ? j->items[index - j->base] : (struct payload){NULL, 0};
  unsigned tries = 1 + j->error_retries, attempt = 0;
  int answer = 0;
  int64_t begun = now_ns();
  while (attempt < tries) {
    p->item = (plua_item){id, index, ++attempt, j->call, j->call_len, data.bytes, data.len};
    answer = call(p, DO_RUN);
    if (answer == 0 || answer == -ENOMEM || answer == PLUA_EDEPTH) break;
    j = find(p, id); /* the item may have submitted to us, and moved the list */
    if (attempt < tries) p->retried++;
  }
  fill_reply(p, ev, answer < 0 ? PLUA_LOST : PLUA_RESULT, answer > 0 ? answer : 0);
  ev->code = answer < 0 ? answer : 0;
  ev->job = id;
  ev->index = index;
  ev->attempts = attempt;
  ev->output = p->words;
  ev->output_len = answer ? p->printed : 0;
  ev->elapsed_ns = answer ? now_ns() - begun : -1;
  return 0;
}

/* The last things of a pool that was shut down. */
static void wind_up(struct inliner *p, plua_event *ev) {
  int answer = p->entered && !p->left ? call(p, DO_LEAVE) : 0;
  p->left = true;
  fill_reply(p, ev, answer > 0 ? PLUA_LEFT : PLUA_ENDED, answer > 0);
}

int inline_next(struct inliner *p, plua_event *ev) {
  *ev = (plua_event){.what = PLUA_NOTHING};
  if (p->running) return PLUA_EARG;
  if (p->torn) {
    p->torn = false;
    *ev = (plua_event){
      .what = PLUA_LOST, .code = PLUA_ECANCELLED, .job = p->item.job, .index = p->item.index};
    return 0;
  }
  for (size_t i = 0; i < p->njobs; i++) {
    if (p->jobs[i].next == p->jobs[i].count) continue;
    if (p->entered) return run_next(p, p->jobs[i].id, ev);
    p->entered = true;
    int answer = call(p, DO_ENTER);
    if (answer == 0) return run_next(p, p->jobs[i].id, ev);
    if (answer < 0) return answer;
    fill_reply(p, ev, PLUA_BOOT, answer);
    return 0;
  }
  if (p->shut) wind_up(p, ev);
  return 0;
}

void inline_stats(const struct inliner *p, plua_stats *stats) {
  stats->submitted = p->submitted;
  stats->done = p->done;
  stats->retried = p->retried;
}
