/* lib_stop.c: what the owner of the process asks of all calls: to begin nothing more, or to end.
   Invariant: a job that was cut has no items but those that had begun, and says so by its error if
   any was withdrawn; nothing is asked of workers. Knows handles and jobs; does not know signals.
   SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>

#include "base.h"
#include "lib.h"

static const char jobs_key;

PLUA_API volatile int *plua_stop_word(lua_State *L) {
  return &runtime_of(L)->stop;
}

/* ---- errors --------------------------------------------------------------------------------- */

static void push_stopped(lua_State *L) {
  lua_createtable(L, 0, 2);
  lua_pushliteral(L, "cancelled");
  lua_setfield(L, -2, "kind");
  lua_pushliteral(L, "stopped before all was done: the program was told to end");
  lua_setfield(L, -2, "message");
  push_error(L);
}

void stop_raise(lua_State *L) {
  push_stopped(L);
  lua_error(L);
  IMPOSSIBLE("lua_error returned");
}

void stop_interrupt(lua_State *L, struct runtime *rt) {
  rt->stop = PLUA_STOP_TAKEN;
  lua_pushliteral(L, "interrupted!");
  lua_error(L);
  IMPOSSIBLE("lua_error returned");
}

/* ---- jobs ----------------------------------------------------------------------------------- */

void stop_watch(lua_State *L, int at) {
  lua_pushvalue(L, at);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &jobs_key);
  lua_insert(L, -2);
  lua_pushboolean(L, 1);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

/* Again too, since an item that is to be tried again has not begun. 'at': the job's index. */
static void cut(lua_State *L, struct job *job, int at) {
  if (job->settled) return;
  bool input = job->open && job->keep != KEEP_FUTURES;
  int64_t withdrawn = seam_cancel(job->h, job->id, 0, UINT64_MAX, PLUA_WITHDRAW);
  if (withdrawn < 0) handle_raise(L, job->h, (int)withdrawn);
  job->count -= (uint64_t)withdrawn;
  job->open = false;
  job->h->cut |= withdrawn || input;
  if ((withdrawn || input) && lua_getiuservalue(L, at, J_ERROR) == LUA_TNIL) {
    push_stopped(L);
    lua_setiuservalue(L, at, J_ERROR);
    lua_pop(L, 1);
  }
  job_settle(L, job, at);
}

bool stop_cut_all(lua_State *L) {
  int top = lua_gettop(L);
  bool runs = false;
  lua_createtable(L, 4, 0); /* settled jobs leave the table of jobs */
  lua_getiuservalue(L, 1, H_JOBS);
  for (lua_pushnil(L); lua_next(L, -2);)
    lua_rawseti(L, top + 1, (lua_Integer)lua_rawlen(L, top + 1) + 1);
  for (lua_Integer i = 1; lua_rawgeti(L, top + 1, i) != LUA_TNIL; i++) {
    struct job *job = job_check(L, -1);
    cut(L, job, lua_gettop(L));
    runs |= !job->settled;
    lua_settop(L, top + 2);
  }
  lua_settop(L, top);
  return runs;
}

/* job:stop(): gives out no more of it, and takes no more items. */
static int job_stop(lua_State *L) {
  struct job *job = job_check(L, 1);
  lua_settop(L, 1);
  cut(L, job, 1);
  return 0;
}

/* ---- the module ----------------------------------------------------------------------------- */

/* Whether the script, if it is left alone, will take more of it. */
static bool awaited(const struct job *job) {
  if (job->keep == KEEP_ORDER || job->keep == KEEP_QUEUE)
    return !job->dropped && (!job->settled || job->taken < job->done);
  return !job->settled && job->done < job->count;
}

/* core.busy() -> whether any call has items under way, or results that were not taken */
static int busy(lua_State *L) {
  bool found = false;
  unsigned epoch = runtime_of(L)->epoch;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &jobs_key);
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
    const struct job *job = lua_touserdata(L, -2);
    found |= job->h && job->epoch == epoch && awaited(job);
  }
  lua_pushboolean(L, found);
  return 1;
}

/* core.stopping() -> whether nothing new may begin; whether anything was asked for */
static int stopping(lua_State *L) {
  int stop = runtime_of(L)->stop;
  lua_pushboolean(L, stop == PLUA_STOP_DRAIN);
  lua_pushboolean(L, stop != PLUA_STOP_NONE);
  return 2;
}

/* core.mark(text, name): workers made from now on have the environment variable PLUA_ITEM_OF with
   that text, which what their items start inherits, and the name, which what they fork inherits. */
static int mark(lua_State *L) {
  struct runtime *rt = runtime_of(L);
  snprintf(rt->mark, sizeof rt->mark, "%s", luaL_checkstring(L, 1));
  snprintf(rt->name, sizeof rt->name, "%s", luaL_checkstring(L, 2));
  return 0;
}

void lib_stop_open(lua_State *L) {
  static const luaL_Reg functions[] = {
    {"busy", busy}, {"stopping", stopping}, {"mark", mark}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
  lua_createtable(L, 0, 0);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "k");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &jobs_key);
  luaL_getmetatable(L, "plua.job");
  lua_getfield(L, -1, "__index");
  lua_pushcfunction(L, job_stop);
  lua_setfield(L, -2, "stop");
  lua_pop(L, 2);
}
