/* lib_pump.c: takes outcomes in and hands them to their jobs.
   Invariant: an outcome counts once, in its job's 'done'; the bytes that an event lends are read
   before the next event is asked for. Knows handles, jobs and the codec.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "base.h"
#include "codec.h"
#include "codec_peek.h"
#include "codec_plain.h"
#include "lib.h"

static const char warner_key;

enum { NAP_NS = 500000000, MANY = 16 };

/* ---- outcomes ------------------------------------------------------------------------------- */

struct pump {
  struct handle *h;
  struct job *want; /* NULL: anything */
  struct job *job;  /* whose userdata and results are at AT_JOB and AT_RESULTS; NULL: nobody's */
  bool moved;       /* an outcome has come since the pump began */
  int fits;         /* whether tables may be looked into: 1, -1; 0: not asked yet */
  bool looked;      /* deaths, which come by themselves only to who waits, have been looked for */
};

enum { AT_WANT = 2, AT_TIMEOUT, AT_BULK, AT_JOB, AT_RESULTS };

/* Makes the event's job the current one. False: nobody waits for it any more. */
static bool job_of(lua_State *L, struct pump *p, uint64_t id) {
  bool same = p->job && p->job->id == id && !p->job->settled;
  if (LIKELY(same && (p->job->sized || p->job->done < RESULTS_FEW))) return true;
  lua_settop(L, AT_RESULTS);
  p->job = NULL;
  lua_getiuservalue(L, 1, H_JOBS);
  lua_rawgeti(L, -1, (lua_Integer)id);
  lua_replace(L, AT_JOB);
  lua_pop(L, 1);
  if (lua_isnil(L, AT_JOB)) return false;
  p->job = job_check(L, AT_JOB);
  job_results_open(L, p->job, AT_JOB);
  lua_replace(L, AT_RESULTS);
  return true;
}

/* Stores n values of a result, on top of the stack, where the future 'index' wants them. */
static void keep_future(lua_State *L, uint64_t index, int n, bool failed) {
  int first = lua_gettop(L) - n + 1;
  if (lua_rawgeti(L, AT_RESULTS, (lua_Integer)index + 1) == LUA_TTABLE) {
    lua_insert(L, first); /* stack: ..., future, values */
    for (int i = n; i >= 1; i--) lua_rawseti(L, first, F_N + i);
    lua_pushinteger(L, n);
    lua_rawseti(L, first, F_N);
    lua_pushnil(L);
    lua_rawseti(L, AT_RESULTS, (lua_Integer)index + 1);
    future_done(L, first, failed);
  }
  lua_settop(L, first - 1);
}

/* Stores the one outcome on top of the stack. */
static void keep_one(lua_State *L, struct job *job, uint64_t index) {
  switch (job->keep) {
  case KEEP_LIST:
    lua_rawseti(L, AT_RESULTS, (lua_Integer)index + 1);
    return;
  case KEEP_ORDER:
  case KEEP_QUEUE:
    stream_keep(L, job, index, AT_JOB, AT_RESULTS);
    return;
  case KEEP_FUTURES: /* keep_future's */
    break;
  }
  IMPOSSIBLE("a future among results");
}

/* Under "raise": keeps the error of the lowest index; the first withdraws what has not begun. */
static void fail_raise(lua_State *L, struct job *job, uint64_t index) {
  if (index < job->lowest) {
    job->lowest = index;
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, AT_JOB, J_ERROR);
  }
  lua_pop(L, 1);
  if (job->stopping) return;
  job->stopping = true;
  job->open = false;
  int64_t withdrawn = seam_cancel(job->h, job->id, 0, UINT64_MAX, PLUA_WITHDRAW);
  if (withdrawn < 0) handle_raise(L, job->h, (int)withdrawn);
  job->count -= (uint64_t)withdrawn;
}

/* Notes that an item has failed, where that is asked for. */
static void note_failed(lua_State *L, const struct job *job, uint64_t index) {
  lua_Integer at = (lua_Integer)index + 1;
  bool list = job->keep == KEEP_LIST;
  if (lua_getiuservalue(L, AT_JOB, J_FAILED) == LUA_TTABLE) {
    if (list)
      lua_pushinteger(L, at);
    else
      lua_pushboolean(L, 1);
    lua_rawseti(L, -2, list ? (lua_Integer)lua_rawlen(L, -2) + 1 : at);
  }
  lua_pop(L, 1);
}

/* Gives the error object on top of the stack to the item. Each step may raise (memory), and is then
   done again: so a loop's item is noted before its error can be taken, a list's once. */
static void fail(lua_State *L, struct job *job, uint64_t index) {
  bool list = job->keep == KEEP_LIST;
  if (job->keep == KEEP_FUTURES) {
    if (lua_rawgeti(L, AT_RESULTS, (lua_Integer)index + 1) == LUA_TTABLE) {
      lua_pushvalue(L, -2);
      lua_setfield(L, -2, "err");
      keep_future(L, index, 0, true);
    }
    lua_settop(L, AT_RESULTS);
    return;
  }
  if (list && job->policy == ON_RAISE) {
    fail_raise(L, job, index);
    return;
  }
  if (list) keep_one(L, job, index);
  note_failed(L, job, index);
  if (!list) keep_one(L, job, index);
  job->failures++;
}

/* The books of a stream, and of a list that is put bit by bit: what lies with workers, on average
   an item, and what lies here. */
static void count_bytes(struct job *job, size_t len, uint64_t n) {
  uint64_t out = job->count - job->done;
  if (job->bytes) job->bytes -= out > n ? job->bytes / out * n : job->bytes;
  stream_hold(job, len, n);
}

static void count_run(struct job *job, struct run *run) {
  size_t len = 0;
  if (run->told) return;
  run->told = true;
  for (int i = run->at; i < run->n; i++) len += run->reply[i].len;
  count_bytes(job, len, (uint64_t)(run->n - run->at));
}

/* A result: its values to where they belong. */
static void take_result(lua_State *L, struct job *job, const plua_event *ev) {
  int n = ev->len ? codec_read(L, ev->data, ev->len, NULL) : 0;
  if (UNLIKELY(n < 0)) {
    plua_event bad = *ev;
    const char *why = lua_gettop(L) > AT_RESULTS ? lua_tostring(L, -1) : NULL;
    bad.what = PLUA_LOST;
    bad.code = n;
    bad.status = -1;
    lua_pushstring(L, why ? why : plua_strerror(n));
    push_failure(L, job, &bad, AT_JOB);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, "message");
    lua_replace(L, AT_RESULTS + 1);
    lua_settop(L, AT_RESULTS + 1);
    fail(L, job, ev->index);
    return;
  }
  if (job->keep == KEEP_FUTURES) {
    keep_future(L, ev->index, n, false);
    return;
  }
  if (n == 0) lua_pushnil(L);
  keep_one(L, job, ev->index);
}

static bool has_books(const struct job *job) {
  return job->keep == KEEP_ORDER || job->keep == KEEP_QUEUE || job->low;
}

/* The job's outcomes have moved on: is that all? */
static void moved(lua_State *L, struct pump *p) {
  struct job *job = p->job;
  p->moved = true;
  if (LIKELY(job->done < job->count)) return;
  job_settle(L, job, AT_JOB);
  if (job->settled) p->job = NULL;
}

/* An item printed to a pipe that nobody reads any more. The program ends as if it had printed, if
   it said so (main.c); a host is left alone. */
static void broken_pipe(lua_State *L) {
  struct pollfd f[2] = {{STDOUT_FILENO, POLLOUT, 0}, {STDERR_FILENO, POLLOUT, 0}};
  lua_getfield(L, LUA_REGISTRYINDEX, "plua.program");
  bool program = lua_toboolean(L, -1);
  lua_pop(L, 1);
  if (program && poll(f, 2, 0) > 0 && ((f[0].revents | f[1].revents) & POLLERR)) raise(SIGPIPE);
}

/* An item's error, or its loss. */
static void failure(lua_State *L, struct pump *p, const plua_event *ev) {
  if (!job_of(L, p, ev->job)) return;
  struct job *job = p->job;
  plua_event placed = *ev; /* the item's own index, and not its position */
  placed.index = job_index(job, ev->index);
  if (ev->signal == SIGPIPE) broken_pipe(L);
  push_failure(L, job, &placed, AT_JOB);
  fail(L, job, placed.index);
  if (has_books(job)) count_bytes(job, ev->len, 1);
  job->done++;
  moved(L, p);
}

/* A plain result: most are. False: it is something else, and still to be taken. */
static bool take_plain(lua_State *L, struct job *job, const plua_reply *r, uint64_t index) {
  if (job->keep == KEEP_FUTURES || codec_plain_read(L, r->data, r->len) == 0) return false;
  keep_one(L, job, index);
  return true;
}

/* The list that results go to, if it may be looked into and they are many; else NULL. */
static struct peek_table *look(lua_State *L, struct pump *p, const struct run *run) {
  if (p->job->keep != KEEP_LIST || p->job->mode == CALL_EACH || run->n < MANY) return NULL;
  if (!p->fits) p->fits = codec_peek_fits(L) ? 1 : -1;
  return p->fits > 0 ? codec_peek(L, AT_RESULTS) : NULL;
}

/* Numbers and the like go to their places without a call for each. */
static void take_seen(struct job *job, struct peek_table *t, struct run *run) {
  int at = run->at;
  for (struct peek_value v; at < run->n; at++) {
    const plua_reply *r = &run->reply[at];
    uint64_t index = job_index(job, run->ev.index + (unsigned)at);
    if (index >= t->limit || !codec_plain_seen(&v, r->data, r->len)) break;
    t->array[index].value = v.value;
    t->array[index].tag = v.tag;
  }
  job->done += (unsigned)(at - run->at);
  run->at = at;
}

/* Hands the results of a run to their job. Each counts when it is there: an error (memory) leaves
   the rest, this one too, for the next call. */
static void take_run(lua_State *L, struct pump *p, struct run *run) {
  if (!job_of(L, p, run->ev.job)) {
    run->at = run->n;
    return;
  }
  struct job *job = p->job;
  if (has_books(job)) count_run(job, run);
  bool nothing_kept = job->mode == CALL_EACH && job->keep == KEEP_LIST;
  struct peek_table *seen = look(L, p, run);
  for (;; run->at++, job->done++) {
    if (seen) take_seen(job, seen, run);
    if (run->at >= run->n) break;
    const plua_reply *r = &run->reply[run->at];
    uint64_t index = job_index(job, run->ev.index + (unsigned)run->at);
    if (nothing_kept || LIKELY(take_plain(L, job, r, index))) continue;
    plua_event ev = run->ev;
    ev.index = index;
    ev.data = r->data;
    ev.len = r->len;
    take_result(L, job, &ev);
  }
  moved(L, p);
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void raise_failure(lua_State *L) {
  lua_getiuservalue(L, 1, H_FAILURE);
  lua_error(L);
}

static void boot_failed(lua_State *L, struct pump *p, const plua_event *ev) {
  push_failure(L, NULL, ev, 0);
  lua_setiuservalue(L, 1, H_FAILURE);
  p->h->failed = true;
  raise_failure(L);
}

static bool has_finish(lua_State *L, const struct handle *h) {
  lua_rawgeti(L, LUA_REGISTRYINDEX, h->runner.keep);
  bool has = lua_rawgeti(L, -1, SLOT_FINISH) != LUA_TNIL;
  lua_pop(L, 2);
  return has;
}

/* Workers whose 'finish' failed, or that died in it, tell so; the first one's error is kept. */
static void left(lua_State *L, const struct handle *h, const plua_event *ev) {
  if (!ev->failed && !has_finish(L, h)) return;
  if (lua_getiuservalue(L, 1, H_LEFT) == LUA_TNIL) {
    push_failure(L, NULL, ev, 0);
    lua_setiuservalue(L, 1, H_LEFT);
  }
  lua_pop(L, 1);
}

static int nothing(lua_State *L) {
  (void)L;
  return 0;
}

/* The lua program's signal handler sets a hook, which any call fires. The signal may come before we
   sleep, and then nothing wakes us: so hooks run before each sleep, and no sleep is long. */
static void let_hooks_run(lua_State *L) {
  lua_pushcfunction(L, nothing);
  lua_call(L, 0, 0);
}

/* The job is to be given more of its list, which the caller does. */
static bool runs_low(const struct job *job) {
  uint64_t out = job->count - job->done;
  return job->low && job->open && ((job->bytes < job->low && out < job->many) || out < job->few);
}

/* Whether the caller has what it waits for. 'idle': nothing more has arrived. */
static bool satisfied(const struct pump *p, bool idle) {
  if (!p->want) return p->moved && (idle || p->h->inliner);
  if (p->want->settled || runs_low(p->want)) return true;
  if (!idle && !p->h->inliner) return false; /* take in all that is there */
  if (job_ready(p->want)) return true;
  return p->want->policy == ON_CALL && p->want->keep == KEEP_LIST && p->moved;
}

/* The team goes on with fewer workers than it should have: who likes to know is told. */
static void warn_short(lua_State *L, const struct handle *h) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &warner_key) == LUA_TFUNCTION) {
    lua_pushstring(L, plua_message(h->pool));
    lua_call(L, 1, 0);
  } else {
    lua_pop(L, 1);
  }
}

static void handle_event(lua_State *L, struct pump *p, const plua_event *ev) {
  switch (ev->what) {
  case PLUA_RESULT:
  case PLUA_LOST:
    failure(L, p, ev);
    return;
  case PLUA_FORK:
    handle_fork(L, p->h);
    return;
  case PLUA_BOOT:
    boot_failed(L, p, ev);
    return;
  case PLUA_LEFT:
    left(L, p->h, ev);
    return;
  case PLUA_ENDED:
    p->h->ended = true;
    return;
  case PLUA_SHORT:
    warn_short(L, p->h);
    return;
  case PLUA_NOTHING:
    return;
  }
}

/* False: time is up. */
static bool sleep_until(lua_State *L, struct pump *p, int64_t deadline) {
  int64_t nap = NAP_NS;
  let_hooks_run(L);
  if (deadline >= 0) {
    int64_t left_ns = deadline - now_ns();
    if (left_ns <= 0 && p->looked) return false;
    if (left_ns < nap) nap = left_ns > 0 ? left_ns : 0;
  }
  p->looked = true;
  bool many = p->want && p->want->low && p->want->count - p->want->done >= p->want->many;
  int err = seam_wait(p->h, nap, many || lua_toboolean(L, AT_BULK));
  if (err < 0 && err != -EINTR) handle_raise(L, p->h, err);
  p->h->looked_ns = now_ns();
  return err != 0 || !p->h->inliner; /* inline, nothing can come by itself */
}

/* The process is asked to stop. 'idle': nothing has arrived. */
static void heed_stop(lua_State *L, struct pump *p, bool idle) {
  if (p->h->rt->stop == PLUA_STOP_NOW) stop_interrupt(L, p->h->rt);
  if (p->h->rt->stop != PLUA_STOP_DRAIN || (p->h->draining && !idle)) return;
  p->h->draining = true;
  if (!stop_cut_all(L) && idle && !p->want && !p->h->closing) stop_raise(L);
}

/* When to give up; -1: never, which is what a time that no clock reaches means too. */
static int64_t deadline_of(lua_State *L) {
  if (lua_isnil(L, AT_TIMEOUT)) return -1;
  lua_Number seconds = luaL_checknumber(L, AT_TIMEOUT);
  return seconds < 1e9 ? now_ns() + (int64_t)(seconds * 1e9) : -1;
}

/* stack: handle, job | nil, timeout | nil, bulk */
static int pump_inner(lua_State *L) {
  struct pump p = {.h = lua_touserdata(L, 1)};
  struct run *run = &p.h->run;
  lua_settop(L, AT_RESULTS);
  if (!lua_isnil(L, AT_WANT)) p.want = job_check(L, AT_WANT);
  int64_t deadline = deadline_of(L);
  if (p.h->failed) raise_failure(L);
  p.h->runner.L = L;
  while (!p.h->ended && !satisfied(&p, false)) { /* the end is told once only */
    if (UNLIKELY(p.h->rt->stop)) heed_stop(L, &p, false);
    int err = run->at < run->n || run->due ? 0 : seam_next_run(p.h, run);
    if (err < 0) handle_raise(L, p.h, err);
    if (run->at < run->n) {
      take_run(L, &p, run);
      continue;
    }
    if (run->due) {
      handle_event(L, &p, &run->ev);
      run->due = false;
      if (p.h->ended) break;
      continue;
    }
    if (satisfied(&p, true)) break;
    if (UNLIKELY(p.h->rt->stop)) heed_stop(L, &p, true);
    if (p.want && p.want->settled) break;
    if (!sleep_until(L, &p, deadline)) {
      lua_pushliteral(L, "timeout");
      return 1;
    }
  }
  if (p.h->ended && p.h->cut) stop_raise(L);
  lua_pushstring(L, p.h->ended ? "ended" : "ready");
  return 1;
}

/* handle:pump(job, timeout, bulk) -> "ready" | "timeout" | "ended". Takes outcomes in until the job
   is settled or, a stream's, has one to take, or has a failure that waits for the script's
   function, or is to be given more of its list; without a job until anything has come. timeout in
   seconds, nil: no limit. bulk: results are wanted all together, so do not hurry. Raises what keeps
   workers from starting. */
int lib_pump(lua_State *L) {
  lua_settop(L, AT_BULK);
  return handle_enter(L, pump_inner);
}

/* handle:left() -> the error of the first 'finish' that failed; nil where none did. */
static int first_left(lua_State *L) {
  luaL_checkudata(L, 1, "plua.handle");
  lua_getiuservalue(L, 1, H_LEFT);
  return 1;
}

/* core.warner(fn): fn is called with what went wrong without ending anything. */
static int set_warner(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &warner_key);
  return 0;
}

void lib_pump_open(lua_State *L) {
  lua_pushcfunction(L, set_warner);
  lua_setfield(L, -2, "warner");
  luaL_getmetatable(L, "plua.handle");
  lua_getfield(L, -1, "__index");
  lua_pushcfunction(L, first_left);
  lua_setfield(L, -2, "left");
  lua_pop(L, 2);
}
