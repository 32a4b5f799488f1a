/* worker_process.c: a Lua state becomes a worker, and leaves.
   Invariant: no error passes below the guard, and a worker's process never reaches exit() or
   lua_close(), so what it inherited is finalised by its owner only.
   Knows Lua and the process it is in; does not know pools. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "codec_peek.h"
#include "worker.h"

enum { FRAMES = 4 }; /* of the guard, a call and a little more */

static const char thread_key; /* of the thread that runs items */

void runner_slots(struct runner *r) {
  lua_State *L = r->L;
  luaL_checkstack(L, LUA_MINSTACK + SLOTS, NULL);
  lua_pushcfunction(L, runner_handler);
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->keep);
  int keep = lua_gettop(L);
  for (int slot = SLOT_F; slot <= SLOTS; slot++) lua_rawgeti(L, keep, slot);
  lua_remove(L, keep);
}

void runner_load(struct runner *r) {
  runner_slots(r);
}

/* ---- the guard ------------------------------------------------------------------------------ */

struct guarded {
  struct runner *r;
  void (*body)(void *arg);
  void *arg;
};

static int guard_inner(lua_State *L) {
  struct guarded *g = lua_touserdata(L, 1);
  lua_settop(L, 0);
  g->body(g->arg);
  return 0;
}

/* On the thread that forked. The one that runs items has a pcall of its own too, since an error on
   a thread without one would unwind the frames inherited from the parent. */
static int guard_outer(lua_State *L) {
  struct guarded *g = lua_touserdata(L, 1);
  lua_pushcfunction(g->r->L, guard_inner);
  lua_pushlightuserdata(g->r->L, g);
  if (lua_pcall(g->r->L, 1, 0, 0) != LUA_OK)
    fprintf(stderr, "plua: worker: %s\n", luaL_tolstring(g->r->L, -1, NULL));
  return 0;
}

void runner_guard(void *ctx, void (*body)(void *arg), void *arg) {
  struct guarded g = {ctx, body, arg};
  lua_State *L = g.r->host;
  if (!lua_checkstack(L, 4)) return;
  lua_pushcfunction(L, guard_outer);
  lua_pushlightuserdata(L, &g);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK)
    fprintf(stderr, "plua: worker: %s\n", luaL_tolstring(L, -1, NULL));
}

/* ---- a process of our own ------------------------------------------------------------------- */

/* Ends the process with what its files still hold written, and with nothing else of exit(). */
static _Noreturn void leave_now(int status) {
  output_end();
  _exit(status);
}

static void at_exit(int status, void *unused) {
  (void)unused;
  leave_now(status);
}

/* os.exit in a worker: ends this process, not the script. A worker that leaves anyhow, with a
   status that says failure, has failed to leave in peace. */
static int os_exit(lua_State *L) {
  int status = lua_isboolean(L, 1) ? !lua_toboolean(L, 1)
                                   : (int)luaL_optinteger(L, 1, EXIT_SUCCESS);
  if (status && runtime_of(L)->leaving)
    return luaL_error(L, "'finish' called os.exit with status %d", status);
  leave_now(status);
}

/* Numeric libraries start a thread a core in each process unless they are told otherwise. The
   strings live as long as this process, which is a worker and nothing else. */
static void limit_threads(int cores) {
  static char limits[][28] = {
    "OMP_NUM_THREADS=",        "OPENBLAS_NUM_THREADS=", "MKL_NUM_THREADS=",   "BLIS_NUM_THREADS=",
    "VECLIB_MAXIMUM_THREADS=", "NUMEXPR_NUM_THREADS=",  "NUMBA_NUM_THREADS=",
  };
  char digits[4] = "";
  int n = cores < 1 ? 1 : cores > 999 ? 999 : cores, at = n > 99 ? 3 : n > 9 ? 2 : 1;
  for (; at > 0; n /= 10) digits[--at] = (char)('0' + n % 10);
  for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
    char *equals = strchr(limits[i], '=');
    *equals = '\0';
    bool set = getenv(limits[i]) != NULL;
    *equals = '=';
    memcpy(equals + 1, digits, sizeof digits);
    if (!set) putenv(limits[i]);
  }
}

/* So that what items start can be told from what the caller starts. */
static void bear_mark(const struct runtime *rt) {
  if (*rt->mark) setenv("PLUA_ITEM_OF", rt->mark, 1);
  if (*rt->name) prctl(PR_SET_NAME, rt->name);
}

/* Lua keeps the frames of n calls, one inside another, for those to come. */
static int frames(lua_State *L) {
  lua_Integer n = lua_tointeger(L, 1);
  if (n <= 1) return 0;
  lua_pushcfunction(L, frames);
  lua_pushinteger(L, n - 1);
  lua_call(L, 1, 0);
  return 0;
}

static int ready_inner(lua_State *L) {
  struct runner *r = lua_touserdata(L, 1);
  struct runtime *rt = r->rt;
  r->L = lua_newthread(L);
  lua_pushcfunction(r->L, frames);
  lua_pushinteger(r->L, FRAMES);
  lua_call(r->L, 1, 0);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &thread_key);
  lua_settop(L, 0);
  rt->epoch++;
  rt->depth = 0; /* nothing of the parent's runs here */
  rt->running = false;
  rt->stop = PLUA_STOP_NONE; /* the parent's affair: here the item that runs may finish */
  r->peeks = codec_peek_fits(L);
  bear_mark(rt);
  limit_threads(r->cores);
  if (!r->grouped) output_open(L);
  on_exit(at_exit, NULL); /* a C library that calls exit() */
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (lua_getfield(L, -1, "os") == LUA_TTABLE) {
    lua_pushcfunction(L, os_exit);
    lua_setfield(L, -2, "exit");
  }
  if (lua_getfield(L, -2, "debug") == LUA_TTABLE && lua_getfield(L, -1, "sethook") != LUA_TNIL) {
    lua_pushcclosure(L, stop_sethook, 1);
    lua_setfield(L, -2, "sethook");
  }
  return 0;
}

void runner_ready(void *ctx) {
  struct runner *r = ctx;
  lua_State *L = r->host;
  stop_open();
  memory_open(r);
  lua_sethook(L, NULL, 0, 0); /* the parent's: an interrupt that it has not seen yet, a debugger */
  if (!lua_checkstack(L, 4)) _exit(EXIT_FAILURE);
  lua_pushcfunction(L, ready_inner);
  lua_pushlightuserdata(L, r);
  if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
    fprintf(stderr, "plua: worker: %s\n", luaL_tolstring(L, -1, NULL));
    _exit(EXIT_FAILURE);
  }
  memory_ready(r);
}

/* Calls the function in 'slot', if there is one. 0, or what 'enter' and 'leave' answer. */
static int call_slot(struct runner *r, int slot, plua_out *out) {
  lua_State *L = r->L;
  struct mark m;
  const plua_item none = {0};
  if (lua_isnil(L, slot)) return 0;
  size_t start = (size_t)(out->at - out->begin);
  lua_pushvalue(L, slot);
  item_begins(r, &none, 0, &m);
  r->rt->running = false;
  memory_arm(r);
  int status = lua_pcall(L, 0, 0, SLOT_HANDLER);
  memory_disarm(r);
  item_ends(r, &m);
  int answer = status == LUA_OK ? 0 : runner_failed(r, status, out, start, 0);
  lua_settop(L, SLOTS);
  return answer;
}

int runner_enter(void *ctx, const plua_self *self, plua_out *out) {
  struct runner *r = ctx;
  if (r->process) r->rt->worker = self->worker;
  if (r->process) r->spent = self->spent;
  if (r->process && r->grouped) output_open(r->L); /* now that it is kept */
  runner_load(r);
  return call_slot(r, SLOT_INIT, out);
}

int runner_leave(void *ctx, plua_out *out) {
  struct runner *r = ctx;
  r->rt->leaving = r->process;
  int answer = call_slot(r, SLOT_FINISH, out);
  if (r->process) output_end();
  return answer;
}
