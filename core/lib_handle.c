/* lib_handle.c: handles: a team of workers, or the caller's own process in its place.
   Invariant: a handle is made closed and opened last, so that an error on the way loses nothing;
   in a process that did not make it, it does nothing. Knows plua.h and runners; does not know what
   jobs are for. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base.h"
#include "codec.h"
#include "lib.h"
#include "lines.h"

/* ---- the seam: a pool, or the inliner -------------------------------------------------------- */

int seam_submit(struct handle *h, const plua_job *job, uint64_t *id) {
  return h->inliner ? inline_submit(h->inliner, job, id) : plua_submit(h->pool, job, id);
}

int seam_extend(struct handle *h, uint64_t id, uint64_t count) {
  return h->inliner ? inline_extend(h->inliner, id, count) : plua_extend(h->pool, id, count);
}

int seam_put(struct handle *h, uint64_t id, plua_out **out) {
  return h->inliner ? inline_put(h->inliner, id, out) : plua_put(h->pool, id, out);
}

int seam_put_end(struct handle *h) {
  return h->inliner ? inline_put_end(h->inliner) : plua_put_end(h->pool);
}

int seam_put_next(struct handle *h) {
  return h->inliner ? inline_put_end(h->inliner) : plua_put_next(h->pool);
}

int seam_put_run(struct handle *h, uint64_t id, const void *bytes, const size_t *len, int n) {
  plua_out *out;
  if (h->pool) return plua_put_run(h->pool, id, bytes, len, n);
  int err = inline_put(h->inliner, id, &out);
  if (!err) err = plua_write(out, bytes, *len);
  if (!err) err = inline_put_end(h->inliner);
  return err ? err : 1;
}

int seam_slack(struct handle *h, uint64_t id) {
  return h->pool ? plua_slack(h->pool, id) : 0;
}

int seam_flush(struct handle *h) {
  return h->pool ? plua_flush(h->pool) : 0;
}

void seam_put_drop(struct handle *h) {
  if (h->pool) plua_put_drop(h->pool);
}

const void *seam_payload(struct handle *h, uint64_t id, uint64_t index, size_t *len) {
  return h->inliner ? inline_payload(h->inliner, id, index, len)
                    : plua_payload(h->pool, id, index, len);
}

int64_t seam_cancel(struct handle *h, uint64_t id, uint64_t first, uint64_t count, int how) {
  return h->inliner ? inline_cancel(h->inliner, id, first, count)
                    : plua_cancel(h->pool, id, first, count, how);
}

int seam_forget(struct handle *h, uint64_t id) {
  if (h->inliner) return inline_forget(h->inliner, id);
  return h->pool ? plua_forget(h->pool, id) : 0;
}

static int inline_next_run(struct inliner *inliner, struct run *run) {
  int err = inline_next(inliner, &run->ev);
  run->reply[0] = (plua_reply){run->ev.data, run->ev.len};
  return err < 0 ? err : run->ev.what == PLUA_RESULT && !run->ev.failed;
}

/* Fills the run, which is empty, if the next event is a result; else run->ev tells it. */
int seam_next_run(struct handle *h, struct run *run) {
  enum { MAX = sizeof run->reply / sizeof *run->reply };
  run->at = run->n = 0;
  run->due = run->told = false;
  int n = h->inliner ? inline_next_run(h->inliner, run)
                     : plua_next_run(h->pool, &run->ev, run->reply, MAX);
  if (n < 0) return n;
  run->n = n;
  run->due = !n && run->ev.what != PLUA_NOTHING;
  return 0;
}

int seam_wait(struct handle *h, int64_t timeout_ns, int bulk) {
  return h->inliner ? 0 : plua_wait(h->pool, timeout_ns, bulk);
}

static const char explainer_key;

/* ---- errors --------------------------------------------------------------------------------- */

/* Raises a message that begins with the line of the script that called plua. */
static _Noreturn void raise(lua_State *L, const char *message) {
  lua_pushfstring(L, "plua: %s", message);
  push_where(L);
  if (!lua_isnil(L, -1)) {
    lua_pushliteral(L, ": ");
    lua_pushvalue(L, -3);
    lua_concat(L, 3);
  } else {
    lua_pop(L, 1);
  }
  lua_error(L);
  IMPOSSIBLE("lua_error returned");
}

static const char *text_of(const struct handle *h, int err) {
  if (err == PLUA_ETHREADS)
    return "this process has other threads, which a fork would lose; call plua before they are "
           "started, or use workers = 0";
  if (err == PLUA_EDEPTH && h->inliner) return "calls of plua inside items are nested too deeply";
  if (err == PLUA_ECLOSED) return "the pool is closed: it takes no more work";
  const char *text = h->pool ? plua_message(h->pool) : "";
  return *text ? text : plua_strerror(err);
}

/* core.explainer(fn): fn(text) answers what the system refused with the limit and a remedy. */
static int set_explainer(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &explainer_key);
  return 0;
}

void handle_raise(lua_State *L, struct handle *h, int err) {
  const char *text = text_of(h, err);
  if (h->failed && lua_touserdata(L, 1) == h && lua_getiuservalue(L, 1, H_FAILURE) != LUA_TNIL)
    lua_error(L); /* why, in full */
  if (err > -1000 && lua_rawgetp(L, LUA_REGISTRYINDEX, &explainer_key) == LUA_TFUNCTION) {
    lua_pushstring(L, text);
    lua_call(L, 1, 1);
    text = lua_tostring(L, -1);
  }
  raise(L, text);
}

static struct handle *handle_any(lua_State *L, int at) {
  struct handle *h = luaL_checkudata(L, at, "plua.handle");
  if (h->epoch == h->rt->epoch) return h;
  lua_pushfstring(L,
                  "this pool belongs to the process that made it (pid %d); inside a worker use "
                  "plua.map and its sisters, which run in the worker itself",
                  (int)h->owner);
  raise(L, lua_tostring(L, -1));
}

struct handle *handle_check(lua_State *L, int at) {
  struct handle *h = handle_any(L, at);
  if (!h->pool && !h->inliner) raise(L, "the pool is terminated");
  if (h->busy) raise(L, "the pool is in use by the call that this one interrupts");
  return h;
}

int handle_enter(lua_State *L, int (*fn)(lua_State *L)) {
  struct handle *h = handle_check(L, 1);
  int nargs = lua_gettop(L);
  lua_pushcfunction(L, fn);
  lua_insert(L, 1);
  h->busy = true;
  int status = lua_pcall(L, nargs, LUA_MULTRET, 0);
  h->busy = false;
  if (status == LUA_OK) return lua_gettop(L);
  seam_put_drop(h); /* memory may have run out in the middle of an item */
  return lua_error(L);
}

/* ---- opening -------------------------------------------------------------------------------- */

static lua_Integer field(lua_State *L, const char *name, lua_Integer otherwise) {
  lua_getfield(L, 2, name);
  lua_Integer value = lua_isnil(L, -1) ? otherwise : lua_tointeger(L, -1);
  lua_pop(L, 1);
  return value;
}

/* The slots, from the fields of the table at 2, into the table that runners are loaded from. */
static void keep_slots(lua_State *L, struct runner *r) {
  static const char *const names[] = {"f", "reduce", "data", "init", "finish"};
  lua_createtable(L, SLOTS, 0);
  for (int i = 0; i < 5; i++) {
    lua_getfield(L, 2, names[i]);
    lua_rawseti(L, -2, SLOT_F + i);
  }
  lua_createtable(L, 0, 0);
  lua_rawseti(L, -2, SLOT_JOBS);
  r->call.order = order_take(L, 2);
  lua_setfield(L, -2, "order"); /* lives as long as the slots */
  lua_getfield(L, 2, "f");
  r->call.plain = lua_iscfunction(L, -1);
  lua_pop(L, 1);
  r->keep = luaL_ref(L, LUA_REGISTRYINDEX);
}

static void read_call(lua_State *L, struct runner *r) {
  r->call.mode = (enum call_mode)field(L, "mode", CALL_MAP);
  r->call.source = (enum call_source)field(L, "source", FROM_BYTES);
  r->call.seed = (uint64_t)field(L, "seed", 0);
  r->call.count = (uint64_t)field(L, "count", 0);
  r->cores = (int)field(L, "cores", 1);
  lua_getfield(L, 2, "grouped");
  r->grouped = lua_toboolean(L, -1);
  lua_pop(L, 1);
}

static int open_team(lua_State *L, struct handle *h, const plua_tasks *tasks, int workers) {
  plua_options options = {.size = sizeof options,
                          .workers = workers,
                          .max_tasks = (uint64_t)field(L, "max_tasks", 0),
                          .max_rss = (uint64_t)field(L, "max_rss", 0)};
  lua_getfield(L, 2, "spare");
  options.flags = (h->once ? PLUA_KEEP_FDS : 0) | (lua_toboolean(L, -1) ? PLUA_SPARE : 0) |
                  (h->runner.grouped ? PLUA_GROUPED : PLUA_LAST_WORDS);
  lua_pop(L, 1);
  h->runner.process = true;
  h->runner.memory = (size_t)field(L, "memory", 0);
  lines_share();
  lua_getfield(L, 2, "timed");
  h->runner.timed = !h->once || lua_toboolean(L, -1);
  lua_pop(L, 1);
  return plua_open(&h->pool, &options, tasks);
}

/* core.open(spec) -> handle. spec: once, workers, max_tasks, max_rss, memory, spare, grouped,
   cores, init, finish; with once also f, reduce, data, mode, source, seed, count, order, timed. */
static int open_handle(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  lua_pushnil(L);
  lua_insert(L, 1); /* stack: nil, spec */
  struct handle *h = lua_newuserdatauv(L, sizeof *h, H_VALUES);
  memset(h, 0, sizeof *h);
  h->runner.keep = LUA_NOREF;
  scratch_open(&h->scratch);
  scratch_open(&h->ends);
  scratch_open(&h->last);
  h->rt = h->runner.rt = runtime_of(L);
  h->epoch = h->rt->epoch;
  h->owner = getpid();
  luaL_setmetatable(L, "plua.handle");
  lua_createtable(L, 0, 4);
  lua_setiuservalue(L, 3, H_JOBS);
  lua_getfield(L, 2, "once");
  h->once = lua_toboolean(L, -1);
  lua_pop(L, 1);
  keep_slots(L, &h->runner);
  read_call(L, &h->runner);
  int workers = (int)field(L, "workers", 0);
  plua_tasks tasks = h->once ? once_tasks(&h->runner) : pool_tasks(&h->runner);
  int err = workers ? open_team(L, h, &tasks, workers)
                    : inline_open(&h->inliner, &h->runner, &tasks);
  if (err >= 0) return 1;
  lua_pushfstring(L, "plua: %s", text_of(h, err)); /* what called us knows the place and more */
  return lua_error(L);
}

void handle_fork(lua_State *L, struct handle *h) {
  share_begin(L, h);  /* what is garbage now is finalised here, and not in each worker too */
  h->run.due = false; /* it is told again where it fails */
  fflush(NULL);       /* or each worker would write what the files hold once more */
  h->runner.host = L;
  int err = plua_fork(h->pool);
  if (!h->once) share_end(L, h); /* a pool's caller goes on with other things */
  if (err < 0) handle_raise(L, h, err);
}

#define SOFT_NS 300000000

/* ---- closing -------------------------------------------------------------------------------- */

void handle_close(struct handle *h) {
  if (h->pool) plua_close(h->pool);
  if (h->inliner) inline_close(h->inliner);
  h->pool = NULL;
  h->inliner = NULL;
  h->apply = NULL;
  h->run.at = h->run.n = 0;
  h->run.due = false;
  scratch_close(&h->scratch);
  scratch_close(&h->ends);
  scratch_close(&h->last);
}

/* handle:close(): ends what runs, now; gently where the process is told to end, for its items may
   hold files that are to be written. Nothing where it is closed, or another process's. */
static int close_handle(lua_State *L) {
  struct handle *h = luaL_checkudata(L, 1, "plua.handle");
  if (h->busy) return 0;
  if (h->epoch != h->rt->epoch) {
    h->pool = NULL; /* the owner's to end; its memory here dies with this process */
    return 0;
  }
  if (h->pool && h->rt->stop >= PLUA_STOP_NOW && !h->ended) plua_end(h->pool, SOFT_NS);
  handle_close(h);
  luaL_unref(L, LUA_REGISTRYINDEX, h->runner.keep);
  h->runner.keep = LUA_NOREF;
  share_end(L, h);
  return 0;
}

/* handle:shutdown(): no more work; workers leave when they have done what was submitted. */
static int shutdown_handle(lua_State *L) {
  struct handle *h = handle_check(L, 1);
  int err = h->inliner ? inline_shutdown(h->inliner) : plua_shutdown(h->pool);
  h->closing = true;
  if (err < 0 && err != PLUA_ECLOSED) handle_raise(L, h, err);
  return 0;
}

/* ---- what it is ----------------------------------------------------------------------------- */

/* handle:start(): forks the workers now. */
static int start_inner(lua_State *L) {
  struct handle *h = lua_touserdata(L, 1);
  if (h->pool) handle_fork(L, h);
  return 0;
}

static int start_handle(lua_State *L) {
  return handle_enter(L, start_inner);
}

static int resize_handle(lua_State *L) {
  struct handle *h = handle_check(L, 1);
  int workers = (int)luaL_checkinteger(L, 2);
  int err = h->pool ? plua_resize(h->pool, workers) : 0;
  if (err < 0) handle_raise(L, h, err);
  return 0;
}

static void set(lua_State *L, const char *name, uint64_t value) {
  lua_pushinteger(L, (lua_Integer)value);
  lua_setfield(L, -2, name);
}

static int stats_handle(lua_State *L) {
  struct handle *h = handle_check(L, 1);
  plua_stats s = {.size = sizeof s};
  int err = 0;
  if (h->inliner)
    inline_stats(h->inliner, &s);
  else
    err = plua_stats_get(h->pool, &s);
  if (err < 0) handle_raise(L, h, err);
  lua_createtable(L, 0, 12);
  set(L, "workers", (uint64_t)s.workers);
  set(L, "alive", (uint64_t)s.alive);
  set(L, "submitted", s.submitted);
  set(L, "done", s.done);
  set(L, "retried", s.retried);
  set(L, "started", s.started);
  set(L, "crashed", s.crashed);
  set(L, "batches", s.batches);
  set(L, "taken_back", s.taken_back);
  set(L, "bytes_in", s.bytes_in);
  set(L, "bytes_out", s.bytes_out);
  return 1;
}

/* Whether this is a worker, or a process that the script has forked, and the pool its parent's. */
static bool is_foreign(const struct handle *h) {
  plua_stats none = {.size = sizeof none.size};
  return h->epoch != h->rt->epoch || (h->pool && plua_stats_get(h->pool, &none) == PLUA_EOWNER);
}

/* Items of the job on top of the stack whose outcomes have not been taken in: futures that wait, of
   which those that were cancelled are no more. */
static lua_Integer outstanding(lua_State *L) {
  const struct job *job = job_check(L, -1);
  if (job->keep != KEEP_FUTURES) return (lua_Integer)(job->count - job->done);
  lua_Integer n = 0;
  lua_getiuservalue(L, -1, J_RESULTS);
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) n++;
  lua_pop(L, 1);
  return n;
}

/* As handle:close(), of one that nobody holds any more. What is dropped with a pool is told. */
static int collect_handle(lua_State *L) {
  const struct handle *h = luaL_checkudata(L, 1, "plua.handle");
  bool open = h->pool || h->inliner;
  bool silent = !open || h->once || h->rt->stop || is_foreign(h);
  lua_Integer n = 0;
  lua_getiuservalue(L, 1, H_JOBS);
  for (lua_pushnil(L); !silent && lua_next(L, -2); lua_pop(L, 1)) n += outstanding(L);
  lua_settop(L, 1);
  if (n > 0) {
    lua_pushfstring(L,
                    "plua: a pool is dropped before %I of its items %s known to be done: join it, "
                    "or make it a <close> variable",
                    (LUAI_UACINT)n, n == 1 ? "is" : "are");
    lua_warning(L, lua_tostring(L, -1), 0);
  }
  return close_handle(L);
}

/* handle:alive() -> whether calls on it make sense: open, and in the process that made it; whether
   it is shut down and every worker has gone; whether it is another process's. */
static int alive_handle(lua_State *L) {
  struct handle *h = luaL_checkudata(L, 1, "plua.handle");
  bool foreign = is_foreign(h);
  lua_pushboolean(L, !foreign && (h->pool || h->inliner));
  lua_pushboolean(L, h->ended);
  lua_pushboolean(L, foreign);
  return 3;
}

/* handle:failure() -> why its workers cannot start; nil: they can. */
static int failure_handle(lua_State *L) {
  luaL_checkudata(L, 1, "plua.handle");
  lua_getiuservalue(L, 1, H_FAILURE);
  return 1;
}

/* handle:jobs() -> the jobs that have outcomes to come, by number */
static int jobs_handle(lua_State *L) {
  luaL_checkudata(L, 1, "plua.handle");
  lua_getiuservalue(L, 1, H_JOBS);
  return 1;
}

void lib_handle_open(lua_State *L) {
  static const luaL_Reg methods[] = {
    {"close", close_handle}, {"shutdown", shutdown_handle},
    {"start", start_handle}, {"resize", resize_handle},
    {"stats", stats_handle}, {"alive", alive_handle},
    {"pump", lib_pump},      {"failure", failure_handle},
    {"jobs", jobs_handle},   {NULL, NULL},
  };
  luaL_newmetatable(L, "plua.handle");
  luaL_newlib(L, methods);
  luaL_setfuncs(L, lib_job_methods, 0);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, collect_handle);
  lua_setfield(L, -2, "__gc");
  lua_pushcfunction(L, close_handle);
  lua_setfield(L, -2, "__close");
  lua_pushboolean(L, 0);
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 1);
  lua_pushcfunction(L, open_handle);
  lua_setfield(L, -2, "open");
  lua_pushcfunction(L, set_explainer);
  lua_setfield(L, -2, "explainer");
}
