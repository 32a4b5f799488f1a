/* lib.c: the Lua module plua.core: opens the rooms of the binding, and what is about no pool: the
   core count, who we are, time, random draws. The friendly half is in lua/plua.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <math.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base.h"
#include "codec.h"
#include "lib.h"

/* core.cpus() -> number of cores, list of {name, where, text, cpus, decides} */
static int cpus(lua_State *L) {
  enum { SOURCES_MAX = 64 };
  plua_cpu_source *sources = lua_newuserdatauv(L, SOURCES_MAX * sizeof *sources, 0);
  int n = 0;
  int cores = plua_cpus(sources, SOURCES_MAX, &n);
  lua_pushinteger(L, cores);
  lua_createtable(L, n, 0);
  for (int i = 0; i < n; i++) {
    lua_createtable(L, 0, 5);
    lua_pushstring(L, sources[i].name);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, sources[i].where);
    lua_setfield(L, -2, "where");
    lua_pushstring(L, sources[i].text);
    lua_setfield(L, -2, "text");
    lua_pushinteger(L, sources[i].cpus);
    lua_setfield(L, -2, "cpus");
    lua_pushboolean(L, sources[i].decides);
    lua_setfield(L, -2, "decides");
    lua_rawseti(L, -2, i + 1);
  }
  return 2;
}

/* core.worker() -> number, pid, item, attempt inside an item (0: run by the caller itself); number
   and pid inside a worker but outside an item; nothing elsewhere. */
static int worker(lua_State *L) {
  struct runtime *rt = runtime_of(L);
  if (!rt->worker && !rt->running) return 0;
  lua_pushinteger(L, rt->worker);
  lua_pushinteger(L, getpid());
  if (!rt->running) return 2;
  lua_pushinteger(L, (lua_Integer)rt->item + 1);
  lua_pushinteger(L, rt->attempt);
  return 4;
}

/* core.inside() -> whether an item runs, or this is a worker */
static int inside(lua_State *L) {
  struct runtime *rt = runtime_of(L);
  lua_pushboolean(L, rt->running || rt->worker);
  return 1;
}

/* core.call(f, ...) -> as pcall; counts as a user's function meanwhile. */
static int call(lua_State *L) {
  struct runtime *rt = runtime_of(L);
  rt->depth++;
  int status = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  rt->depth--;
  lua_pushboolean(L, status == LUA_OK);
  lua_insert(L, 1);
  return lua_gettop(L);
}

/* core.call_next(list, ...): as core.call(f, ...), of the function in the list behind as many as
   its field 'begun' says, which counts this one: no hook comes between. */
static int call_next(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_getfield(L, 1, "begun");
  lua_Integer next = lua_tointeger(L, -1) + 1;
  lua_pushinteger(L, next);
  lua_setfield(L, 1, "begun");
  lua_rawgeti(L, 1, next);
  lua_replace(L, 1);
  lua_pop(L, 1);
  return call(L);
}

/* core.draw() -> 64 random bits of the caller's generator */
static int draw(lua_State *L) {
  lua_pushinteger(L, (lua_Integer)random_draw(L, runtime_of(L)));
  return 1;
}

/* core.now() -> seconds of a clock that only goes forward */
static int now(lua_State *L) {
  lua_pushnumber(L, (lua_Number)now_ns() / 1e9);
  return 1;
}

/* core.register(metatable, name): tables with that metatable cross. */
static int register_class(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  const char *name = luaL_checkstring(L, 2);
  lua_pushvalue(L, 1);
  codec_register(L, name);
  return 0;
}

/* core.sleep(handles, timeout): until one of the handles may have news, or a signal came. Each has
   been pumped without news. timeout in seconds; nil: no limit. */
static int sleep_any(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_Number seconds = luaL_optnumber(L, 2, HUGE_VAL);
  int timeout_ms = seconds < 1e6 ? (int)(seconds * 1000 + 1) : -1;
  lua_Integer n = (lua_Integer)lua_rawlen(L, 1);
  struct pollfd *fds = lua_newuserdatauv(L, (size_t)n * sizeof *fds + 1, 0);
  for (lua_Integer i = 0; i < n; i++) {
    lua_rawgeti(L, 1, i + 1);
    struct handle *h = handle_check(L, lua_gettop(L));
    int news = h->pool ? plua_dispatch(h->pool) : 1;
    if (news < 0) handle_raise(L, h, news);
    if (news > 0) return 0;
    fds[i] = (struct pollfd){.fd = plua_fd(h->pool), .events = POLLIN};
    lua_pop(L, 1);
  }
  poll(fds, (nfds_t)n, timeout_ms); /* interrupted: the caller looks again, and hooks run there */
  return 0;
}

static void constants(lua_State *L) {
  static const struct {
    const char *name;
    int value;
  } all[] = {
    {"MAP", CALL_MAP},          {"STAR", CALL_STAR},          {"EACH", CALL_EACH},
    {"FILTER", CALL_FILTER},    {"FOLD", CALL_FOLD},          {"APPLY", CALL_APPLY},
    {"LIST", KEEP_LIST},        {"ORDER", KEEP_ORDER},        {"QUEUE", KEEP_QUEUE},
    {"FUTURES", KEEP_FUTURES},  {"RAISE", ON_RAISE},          {"COLLECT", ON_COLLECT},
    {"CALL", ON_CALL},          {"FROM_LIST", FROM_LIST},     {"FROM_RANGE", FROM_RANGE},
    {"FROM_BYTES", FROM_BYTES}, {"FROM_PLACED", FROM_PLACED},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    lua_pushinteger(L, all[i].value);
    lua_setfield(L, -2, all[i].name);
  }
  lua_pushliteral(L, PLUA_VERSION);
  lua_setfield(L, -2, "version");
}

PLUA_API int luaopen_plua_core(lua_State *L) {
  static const luaL_Reg functions[] = {
    {"cpus", cpus},
    {"worker", worker},
    {"inside", inside},
    {"call", call},
    {"draw", draw},
    {"now", now},
    {"register", register_class},
    {"sleep", sleep_any},
    {"call_next", call_next},
    {NULL, NULL},
  };
  luaL_checkversion(L);
  codec_open(L);
  runtime_of(L);
  luaL_newlib(L, functions);
  constants(L);
  lib_handle_open(L);
  lib_job_open(L);
  lib_order_open(L);
  lib_share_open(L);
  lib_error_open(L);
  lib_pump_open(L);
  lib_stop_open(L);
  return 1;
}
