/* lib_stream.c: outcomes that a loop takes one by one: in input order, or as they come.
   Invariant: outcome i (ORDER: of item i; QUEUE: the i-th to come) lies in place i mod room of the
   job's results until it is taken, nil as a mark; all other places hold nil. So what a stream needs
   depends on what lies here at once, and not on how long it is.
   Knows jobs. Does not know events, nor items. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>

#include "base.h"
#include "lib.h"

static const char nil_mark;

/* ---- places --------------------------------------------------------------------------------- */

/* QUEUE: an outcome and its index. */
static int width(const struct job *job) {
  return job->keep == KEEP_QUEUE ? 2 : 1;
}

static lua_Integer place(const struct job *job, uint64_t room, uint64_t i) {
  return (lua_Integer)(i & (room - 1)) * width(job) + 1;
}

/* Makes twice the room in the results, at their index. */
static void widen(lua_State *L, struct job *job, int at, int results) {
  uint64_t room = 2 * job->room;
  lua_createtable(L, (int)room * width(job), 0);
  for (uint64_t i = job->taken; i < job->taken + job->room; i++)
    for (int k = 0; k < width(job); k++) {
      lua_rawgeti(L, results, place(job, job->room, i) + k);
      lua_rawseti(L, -2, place(job, room, i) + k);
    }
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, at, J_RESULTS);
  lua_replace(L, results);
  job->room = room;
}

void stream_keep(lua_State *L, struct job *job, uint64_t index, int at, int results) {
  uint64_t i = job->keep == KEEP_QUEUE ? job->done : index;
  while (UNLIKELY(i - job->taken >= job->room)) widen(L, job, at, results);
  lua_Integer to = place(job, job->room, i);
  if (job->keep == KEEP_QUEUE) { /* before the outcome, which can be taken once it is there */
    lua_pushinteger(L, (lua_Integer)index + 1);
    lua_rawseti(L, results, to + 1);
  }
  if (lua_isnil(L, -1)) lua_pop(L, 1), lua_pushlightuserdata(L, (void *)&nil_mark);
  lua_rawseti(L, results, to);
  job->front |= i == job->taken;
}

/* ---- taking --------------------------------------------------------------------------------- */

/* Pushes index and outcome of the next one; false: nothing, it has not arrived. */
static bool take(lua_State *L, struct job *job, int at) {
  lua_getiuservalue(L, at, J_RESULTS);
  int results = lua_gettop(L);
  lua_Integer from = place(job, job->room, job->taken);
  if (lua_rawgeti(L, results, from) == LUA_TNIL) {
    job->front = false;
    lua_settop(L, results - 1);
    return false;
  }
  lua_pushnil(L);
  lua_rawseti(L, results, from);
  job->taken++;
  if (job->keep == KEEP_QUEUE)
    lua_rawgeti(L, results, from + 1);
  else
    lua_pushinteger(L, (lua_Integer)job->taken);
  lua_replace(L, results); /* stack: ..., index, outcome */
  if (lua_islightuserdata(L, -1)) lua_pop(L, 1), lua_pushnil(L);
  return true;
}

/* job:take() -> index, outcome, failed: the next one; nothing where it has not arrived. */
static int job_take(lua_State *L) {
  struct job *job = job_check(L, 1);
  lua_settop(L, 1);
  if (!take(L, job, 1)) return 0;
  if (!job->failures) return 2;
  lua_getiuservalue(L, 1, J_FAILED);
  lua_rawgeti(L, 4, lua_tointeger(L, 2));
  if (lua_toboolean(L, 5)) {
    job->failures--;
    lua_pushnil(L);
    lua_rawseti(L, 4, lua_tointeger(L, 2));
  }
  lua_replace(L, 4);
  return 3;
}

/* What a generic for calls: outcomes that the script may have without more ado, else what the
   function answers. upvalues: job, function */
static int next_outcome(lua_State *L) {
  struct job *job = lua_touserdata(L, lua_upvalueindex(1));
  if (LIKELY(job->lent && !job->failures) && take(L, job, lua_upvalueindex(1))) {
    job->lent--;
    return 2;
  }
  lua_settop(L, 0);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_call(L, 0, 2);
  return 2;
}

/* job:loop(f) -> an iterator over what was lent by job:lend, and what f() answers when that is used
   up, has not arrived or holds an error. */
static int job_loop(lua_State *L) {
  job_check(L, 1);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  lua_pushcclosure(L, next_outcome, 2);
  return 1;
}

/* job:lend(n): so many more outcomes can be taken before anything else need be looked at. */
static int job_lend(lua_State *L) {
  struct job *job = job_check(L, 1);
  lua_Integer n = luaL_checkinteger(L, 2);
  job->lent = n > 0 ? (uint64_t)n : 0;
  return 0;
}

/* ---- bytes ---------------------------------------------------------------------------------- */

/* What was taken held an average share: lengths of single replies are not kept. */
size_t stream_held(struct job *job) {
  uint64_t gone = job->taken - job->weighed;
  job->weighed = job->taken;
  if (gone > job->here) gone = job->here;
  if (gone) job->held -= gone < job->here ? job->held / job->here * gone : job->held;
  job->here -= gone;
  return job->held;
}

void stream_hold(struct job *job, size_t len, uint64_t n) {
  stream_held(job);
  job->held += len;
  job->here += n;
  job->replied += len;
}

const luaL_Reg lib_stream_methods[] = {
  {"take", job_take},
  {"loop", job_loop},
  {"lend", job_lend},
  {NULL, NULL},
};
