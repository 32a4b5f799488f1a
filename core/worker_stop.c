/* worker_stop.c: ends an item that runs for too long, from a signal handler.
   The handler sets a hook on every Lua thread that may be running: the item's, and those made since
   the worker began, which its allocator (worker_memory.c) tells of. The hook raises at the next
   instruction, and at each one after that, so that no pcall of the item's keeps it alive;
   runner_call's own is the last. Invariant: at any instruction the handler finds a set of threads
   in which none was freed; once an item is over no thread has the hook. Nothing is armed, and
   nothing paid, before that. Not reached: C code, __gc, threads older than the worker. Knows Lua;
   does not know clocks. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>

#include "worker.h"

enum { CAP_MIN = 64 };
enum { HIT = 1, HOOKED };

/* The worker's: a process has one. The handler reads what the rest writes. */
struct stop {
  lua_State *volatile *volatile set; /* open addressing, linear probing; NULL: free */
  volatile size_t cap;               /* a power of 2 */
  size_t used;
  bool seen; /* the hook ran: the report lies in the registry */
};

static struct stop *stop; /* NULL: no worker, so nothing is ever interrupted */
struct stop_word stop_word;
/* The first set, which most workers do with, is no block of malloc's: to take one would unshare
   some pages. */
static lua_State *volatile first_set[CAP_MIN];
static const char report_key;

/* ---- the set of threads --------------------------------------------------------------------- */

static size_t home(const void *p, size_t cap) {
  return (size_t)(((uintptr_t)p >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 32) & (cap - 1);
}

static void place(lua_State *volatile *set, size_t cap, lua_State *L) {
  size_t at = home(L, cap);
  while (set[at]) at = (at + 1) & (cap - 1);
  set[at] = L;
}

/* The handler may run between any two stores: the larger set is whole before it is shown, and shown
   before its size is. */
static bool enlarge(struct stop *s) {
  size_t cap = 2 * s->cap;
  size_t pointer = sizeof(void *);
  lua_State *volatile *old = s->set, *volatile *fresh = calloc(cap, pointer);
  if (!fresh) return false;
  for (size_t i = 0; i < s->cap; i++)
    if (old[i]) place(fresh, cap, old[i]);
  s->set = fresh;
  s->cap = cap;
  if (old != first_set) free((void *)old);
  return true;
}

/* A thread that finds no room is not interrupted; the worker is killed then. */
static void add(struct stop *s, lua_State *L) {
  if (2 * s->used >= s->cap && !enlarge(s)) return;
  place(s->set, s->cap, L);
  s->used++;
}

/* Closes the gap by moving up those behind it: each is copied before it is wiped. */
static void drop(struct stop *s, const void *L) {
  size_t mask = s->cap - 1, at;
  if (!s->used) return;
  for (at = home(L, s->cap); s->set[at] != L; at = (at + 1) & mask)
    if (!s->set[at]) return; /* some other block of a thread's size, or inherited */
  for (size_t i = (at + 1) & mask; s->set[i]; i = (i + 1) & mask) {
    if (((i - home(s->set[i], s->cap)) & mask) < ((i - at) & mask)) continue;
    s->set[at] = s->set[i];
    at = i;
  }
  s->set[at] = NULL;
  s->used--;
}

static lua_State *thread_in(void *block) {
  return (lua_State *)(void *)((char *)block + LUA_EXTRASPACE);
}

void stop_made(void *block) {
  if (stop) add(stop, thread_in(block));
}

void stop_gone(void *block) {
  if (stop) drop(stop, thread_in(block));
}

void stop_open(void) {
  static struct stop only = {.set = first_set, .cap = CAP_MIN};
  stop_word = (struct stop_word){0};
  stop = &only;
}

/* ---- interrupting --------------------------------------------------------------------------- */

/* What the item was doing when it was told to end: {nil, traceback, where}, as runner_report. */
static void keep_report(lua_State *L) {
  stop->seen = true;
  lua_pushcfunction(L, runner_report);
  lua_pushnil(L);
  lua_call(L, 1, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &report_key);
}

static void raise_stop(lua_State *L, lua_Debug *ar) {
  (void)ar;
  if (stop_word.hit != HIT) {
    lua_sethook(L, NULL, 0, 0);
    return;
  }
  if (!stop->seen) keep_report(L);
  lua_pushliteral(L, "plua: the item has run for too long");
  lua_error(L);
}

static void hook_all(const struct runner *r, lua_Hook hook, int mask) {
  lua_sethook(r->L, hook, mask, mask ? 1 : 0);
  for (size_t i = 0; i < stop->cap; i++) {
    lua_State *L = stop->set[i];
    if (L) lua_sethook(L, hook, mask, mask ? 1 : 0);
  }
}

void stop_now(void *ctx) {
  if (!stop || !stop_word.armed) return;
  stop_word.hit = HIT;
  hook_all(ctx, raise_stop, LUA_MASKCOUNT | LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE);
}

COLD bool stop_answer(const struct runner *r) {
  bool late = stop_word.hit == HIT;
  if (late)
    hook_all(r, NULL, 0);
  else
    lua_sethook(r->L, NULL, 0, 0);
  stop_word.hit = 0;
  return late;
}

/* A signal between the two lines comes again. */
int stop_sethook(lua_State *L) {
  if (stop && stop_word.armed && stop_word.hit != HIT) stop_word.hit = HOOKED;
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, LUA_MULTRET);
  return lua_gettop(L);
}

void stop_report(lua_State *L) {
  if (stop->seen)
    lua_rawgetp(L, LUA_REGISTRYINDEX, &report_key);
  else
    lua_createtable(L, 0, 0);
  stop->seen = false;
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &report_key);
}
