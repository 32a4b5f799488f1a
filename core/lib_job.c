/* lib_job.c: jobs: what a script asks of a handle, and what it is told of that.
   Invariant: a job that is in its handle's table of jobs has outcomes to come; one that is settled
   is known to nobody but its holder. Knows handles and the codec; does not read outcomes.
   SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <string.h>

#include "base.h"
#include "codec.h"
#include "lib.h"

static const char completed_key;

struct job *job_check(lua_State *L, int at) {
  return luaL_checkudata(L, at, "plua.job");
}

static lua_Integer field(lua_State *L, int at, const char *name) {
  lua_getfield(L, at, name);
  lua_Integer value = lua_tointeger(L, -1);
  lua_pop(L, 1);
  return value;
}

/* Seconds that can be told in nanoseconds, and more than none; else there is no limit. */
static double timeout_of(lua_State *L) {
  lua_getfield(L, 2, "timeout");
  lua_Number seconds = lua_tonumber(L, -1);
  lua_pop(L, 1);
  if (!(seconds > 0) || seconds > 1e9) return 0;
  return seconds < 1e-9 ? 1e-9 : seconds;
}

/* ---- life ----------------------------------------------------------------------------------- */

bool job_ready(const struct job *job) {
  return job->settled || job->front;
}

void future_done(lua_State *L, int at, bool failed) {
  if (lua_type(L, at) != LUA_TTABLE) return;
  lua_pushvalue(L, at);
  lua_pushliteral(L, "callbacks");
  if (lua_rawget(L, -2) != LUA_TNIL || failed) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, &completed_key);
    lua_pushvalue(L, -3);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    lua_pop(L, 1);
  }
  lua_pop(L, 2);
}

void job_end(lua_State *L, struct job *job, int at) {
  job->settled = true;
  job->open = false;
  if (job->h->apply == job) job->h->apply = NULL;
  seam_forget(job->h, job->id);
  lua_getiuservalue(L, at, J_HANDLE);
  lua_getiuservalue(L, -1, H_JOBS);
  lua_pushnil(L);
  lua_rawseti(L, -2, (lua_Integer)job->id);
  lua_pop(L, 2);
  bool failed = lua_getiuservalue(L, at, J_ERROR) != LUA_TNIL;
  lua_getiuservalue(L, at, J_FUTURE);
  future_done(L, lua_gettop(L), failed);
  lua_pop(L, 2);
}

void job_settle(lua_State *L, struct job *job, int at) {
  if (!job->settled && !job->open && job->done >= job->count) job_end(L, job, at);
}

/* ---- making one ----------------------------------------------------------------------------- */

/* The function of an item that brings its own is not the job's. A refusal names the function, not
   its place in the message. */
void job_encode_call(lua_State *L, struct handle *h, const struct job *job) {
  plua_out *out = &h->scratch.out;
  int top = lua_gettop(L);
  out->at = out->begin;
  lua_pushinteger(L, job->mode);
  lua_pushinteger(L, job->carries ? FROM_BYTES : field(L, 2, "source"));
  lua_pushinteger(L, field(L, 2, "seed"));
  lua_pushinteger(L, (lua_Integer)job->total);
  if (job->carries)
    lua_pushnil(L);
  else
    lua_getfield(L, 2, "f");
  lua_getfield(L, 2, "reduce");
  lua_getfield(L, 2, "range");
  int err = codec_write(L, CALL_WORDS, out);
  if (err < 0) {
    const char *why = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : plua_strerror(err);
    if (strncmp(why, "value 5", 7) == 0)
      lua_pushfstring(L, "function%s", why + 7);
    else if (strncmp(why, "value 6", 7) == 0)
      lua_pushfstring(L, "reduce function%s", why + 7);
    else
      lua_pushfstring(L, "function: %s", why);
    raise_encode(L);
  }
  lua_settop(L, top);
}

/* A job for single calls of one function, which h->last has. */
static bool is_of_one(const struct job *job) {
  return job->mode == CALL_APPLY && !job->carries;
}

static void job_submit(lua_State *L, struct handle *h, struct job *job) {
  plua_job spec = {.size = sizeof spec,
                   .chunksize = (unsigned)field(L, 2, "chunksize"),
                   .crash_retries = (unsigned)field(L, 2, "crash_retries"),
                   .error_retries = (unsigned)field(L, 2, "error_retries"),
                   .timeout_retries = (unsigned)field(L, 2, "timeout_retries"),
                   .kill_retries = (unsigned)field(L, 2, "kill_retries"),
                   .oom_retries = (unsigned)field(L, 2, "oom_retries"),
                   .timeout_ns = (int64_t)(job->timeout * 1e9),
                   .count = (uint64_t)field(L, 2, "count")};
  const plua_out *call = is_of_one(job) ? &h->last.out : &h->scratch.out;
  if (!h->once) {
    spec.call = call->begin;
    spec.call_len = (size_t)(call->at - call->begin);
  }
  int err = seam_submit(h, &spec, &job->id);
  if (err < 0) handle_raise(L, h, err);
  job->count = spec.count;
  job->h = h;
}

/* How many outcomes a list gets; 0: it is not known, or hardly any are kept. */
static uint64_t outcomes_of(const struct job *job) {
  if (job->keep != KEEP_LIST || job->mode == CALL_EACH) return 0;
  return job->mode == CALL_FOLD ? job->count : job->total;
}

/* Pushes the list of so many outcomes. The heap was collected when its workers were made: room for
   outcomes is no reason to do it again, so the collector is told of as many kB that are free. */
static void push_results(lua_State *L, const struct job *job, uint64_t size) {
  int items = size < (1 << 26) ? (int)size : 0, kb = items / (1024 / 16);
  if (kb && job->h->sharing && lua_gc(L, LUA_GCISRUNNING) > 0) lua_gc(L, LUA_GCSTEP, -kb);
  codec_push_list(L, items, 1);
}

/* Room for all outcomes takes long to make where they are many, and workers would wait meanwhile:
   it is made when the first outcomes have told how much work to give out. */
void job_results_open(lua_State *L, struct job *job, int at) {
  uint64_t size = outcomes_of(job);
  lua_getiuservalue(L, at, J_RESULTS);
  if (job->sized || (size > RESULTS_FEW && job->done < RESULTS_FEW)) return;
  job->sized = true;
  if (!size) return;
  push_results(L, job, size); /* stack: ..., few, all */
  for (lua_pushnil(L); lua_next(L, -3);) {
    lua_pushvalue(L, -2);
    lua_insert(L, -2);
    lua_rawset(L, -4);
  }
  lua_remove(L, -2);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, at, J_RESULTS);
}

void job_print_first(void) {
  if (__fpending(stdout)) fflush(stdout);
}

/* handle:job(spec[, carries]) -> job. spec: mode, keep, policy, count (positions), total, open,
   data, chunksize, crash_retries and the like of plua_job, timeout, order; for pools also source,
   seed, f, reduce, range. */
int job_make(lua_State *L) {
  struct handle *h = lua_touserdata(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  bool carries = lua_toboolean(L, 3);
  lua_settop(L, 2);
  if (h->rt->stop == PLUA_STOP_DRAIN) stop_raise(L);
  struct job *job = lua_newuserdatauv(L, sizeof *job, J_VALUES);
  *job = (struct job){.mode = (enum call_mode)field(L, 2, "mode"),
                      .keep = (enum keep)field(L, 2, "keep"),
                      .policy = (enum policy)field(L, 2, "policy"),
                      .total = (uint64_t)field(L, 2, "total"),
                      .timeout = timeout_of(L),
                      .lowest = UINT64_MAX,
                      .room = 1,
                      .epoch = h->epoch,
                      .carries = carries,
                      .settled = true};
  luaL_setmetatable(L, "plua.job");
  lua_createtable(L, 0, 0);
  lua_setiuservalue(L, 3, J_RESULTS);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, 3, J_HANDLE);
  lua_getfield(L, 2, "data");
  lua_setiuservalue(L, 3, J_DATA);
  job->order = order_take(L, 2);
  lua_setiuservalue(L, 3, J_ORDER);
  stop_watch(L, 3);
  if (job->keep != KEEP_LIST || job->policy == ON_CALL) {
    lua_createtable(L, 0, 0);
    lua_setiuservalue(L, 3, J_FAILED);
  }
  if (!h->once && !is_of_one(job)) job_encode_call(L, h, job);
  job_print_first();
  lua_getiuservalue(L, 1, H_JOBS);
  job_submit(L, h,
             job); /* from here on outcomes may come: nothing below may fail before its entry */
  lua_pushvalue(L, 3);
  lua_rawseti(L, -2, (lua_Integer)job->id);
  lua_pop(L, 1);
  lua_getfield(L, 2, "open");
  job->open = lua_toboolean(L, -1);
  lua_pop(L, 1);
  job->settled = false;
  return 1;
}

int job_new(lua_State *L) {
  return handle_enter(L, job_make);
}

/* ---- what a job tells ----------------------------------------------------------------------- */

static int job_results(lua_State *L) {
  job_check(L, 1);
  lua_getiuservalue(L, 1, J_RESULTS);
  return 1;
}

/* job:state() -> settled, error under "raise", items given, outcomes, taken, bytes of a stream's
   average reply */
static int job_state(lua_State *L) {
  struct job *job = job_check(L, 1);
  lua_pushboolean(L, job->settled);
  lua_getiuservalue(L, 1, J_ERROR);
  lua_pushinteger(L, (lua_Integer)job->count);
  lua_pushinteger(L, (lua_Integer)job->done);
  lua_pushinteger(L, (lua_Integer)job->taken);
  lua_pushinteger(L, job->done ? (lua_Integer)(job->replied / job->done) : 0);
  return 6;
}

/* job:failed() -> the indexes that wait for the script's function, which are its to keep. */
static int job_failed(lua_State *L) {
  job_check(L, 1);
  lua_getiuservalue(L, 1, J_FAILED);
  lua_createtable(L, 0, 0);
  lua_setiuservalue(L, 1, J_FAILED);
  return 1;
}

/* job:close_input(): no more items come. */
static int job_close_input(lua_State *L) {
  struct job *job = job_check(L, 1);
  if (job->settled) return 0;
  job->open = false;
  job_settle(L, job, 1);
  return 0;
}

/* job:forget(): withdraws what has not begun and drops outcomes to come. */
static int job_drop(lua_State *L) {
  struct job *job = job_check(L, 1);
  job->dropped = true;
  if (job->settled || job->h->epoch != job->h->rt->epoch) return 0;
  if (job->h->pool || job->h->inliner) job_end(L, job, 1);
  job->settled = true;
  return 0;
}

/* job:cancel([index]): withdraws the item, or all; kills the workers of those that run. */
static int job_cancel(lua_State *L) {
  struct job *job = job_check(L, 1);
  if (job->settled) return 0;
  lua_getiuservalue(L, 1, J_HANDLE);
  struct handle *h = handle_check(L, lua_gettop(L));
  bool all = lua_isnoneornil(L, 2);
  uint64_t first = all ? 0 : (uint64_t)luaL_checkinteger(L, 2);
  int64_t err = seam_cancel(h, job->id, first, all ? UINT64_MAX : 1, PLUA_KILL);
  if (err < 0) handle_raise(L, h, (int)err);
  if (all) job_end(L, job, 1);
  return 0;
}

/* job:own(future): whose callbacks run when the job is over. */
static int job_own(lua_State *L) {
  job_check(L, 1);
  lua_settop(L, 2);
  lua_setiuservalue(L, 1, J_FUTURE);
  return 0;
}

/* job:owner() -> its future or nil, what it keeps */
static int job_owner(lua_State *L) {
  struct job *job = job_check(L, 1);
  lua_getiuservalue(L, 1, J_FUTURE);
  lua_pushinteger(L, job->keep);
  return 2;
}

/* core.completed([due]) -> whether there are futures with callbacks, or that failed, that were done
   and not yet given out; false where a function of the script's called us: callbacks wait until it
   has returned. They become due.list: no hook comes between. */
static int completed(lua_State *L) {
  lua_settop(L, 1);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &completed_key);
  bool some = runtime_of(L)->depth == 0 && lua_rawlen(L, 2) > 0;
  if (some && lua_istable(L, 1)) {
    lua_createtable(L, 0, 0);
    lua_insert(L, 2);
    lua_setfield(L, 1, "list");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &completed_key);
  }
  lua_pushboolean(L, some);
  return 1;
}

/* core.complete(future): as if its outcome had arrived. */
static int complete(lua_State *L) {
  future_done(L, 1, false);
  return 0;
}

void lib_job_open(lua_State *L) {
  static const luaL_Reg methods[] = {
    {"results", job_results},
    {"state", job_state},
    {"failed", job_failed},
    {"close_input", job_close_input},
    {"forget", job_drop},
    {"cancel", job_cancel},
    {"own", job_own},
    {"owner", job_owner},
    {NULL, NULL},
  };
  luaL_newmetatable(L, "plua.job");
  luaL_newlib(L, methods);
  luaL_setfuncs(L, lib_stream_methods, 0);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  lua_createtable(L, 0, 0);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &completed_key);
  lua_pushcfunction(L, completed);
  lua_setfield(L, -2, "completed");
  lua_pushcfunction(L, complete);
  lua_setfield(L, -2, "complete");
}
