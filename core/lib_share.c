/* lib_share.c: makes a Lua heap ready to be shared with forked workers, and puts back what it was.
   A collector that marks all it finds writes to every page, and a page that is written is shared no
   more. So the caller's state collects by generations meanwhile: what is there at the fork is old,
   and young collections, the workers' too, pass it by.
   Invariant: what was garbage at the fork was finalised before. A whole collection finds all of it;
   where the heap has grown by less than half since the last one, a young one finds what has died
   young. What has died old may be finalised in a worker too then, if that collects whole. Where the
   script itself has collected since, the heap may have shrunk and grown again, so it must be hardly
   larger than it was.
   Knows Lua's collector; does not know pools. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "base.h"
#include "codec_ahead.h"
#include "lib.h"

/* A heap whose collections are worth saving. */
#define LARGE ((size_t)4 << 20)
/* Room for strings that a worker finds: one for so many bytes of the heap, and no more than that. A
   worker makes about as many between two young collections. */
#define ROOM_BYTES 128
#define ROOM_MAX 320000
/* How many are made to fill a table of which we do not know how full it is: more would cost more
   than the collection. */
#define BLIND_MAX (1 << 15)
/* How many are made where one will do: some may be there already. */
#define SURE 16

static size_t heap_size(lua_State *L) {
  return ((size_t)lua_gc(L, LUA_GCCOUNT) << 10) + (size_t)lua_gc(L, LUA_GCCOUNTB);
}

/* ---- the string table ----------------------------------------------------------------------- */

/* Sees the table of strings grow: no other block that is there already does meanwhile. */
struct watch {
  lua_Alloc alloc;
  void *ud;
  bool grown;
};

static void *watch(void *ud, void *block, size_t osize, size_t nsize) {
  struct watch *w = ud;
  if (block && nsize > osize) w->grown = true;
  return w->alloc(w->ud, block, osize, nsize);
}

/* Makes short strings, n of them, until the table has grown. */
static int make_strings(lua_State *L) {
  const struct watch *w = lua_touserdata(L, 1);
  lua_Integer n = lua_tointeger(L, 2);
  char text[16] = "........ plua: ";
  for (lua_Integer i = 0; i < n && !w->grown; i++) {
    memcpy(text, &i, sizeof i); /* in front: the hash spreads these best */
    lua_pushlstring(L, text, sizeof text);
    lua_pop(L, 1);
  }
  return 0;
}

static void grow_table(lua_State *L, lua_Integer most) {
  struct watch w = {.grown = false};
  lua_pushcfunction(L, make_strings);
  lua_pushlightuserdata(L, &w);
  lua_pushinteger(L, most);
  w.alloc = lua_getallocf(L, &w.ud);
  lua_setallocf(L, watch, &w);
  if (lua_pcall(L, 2, 0, 0) != LUA_OK) lua_pop(L, 1); /* no memory: workers are dearer then */
  lua_setallocf(L, w.alloc, w.ud);
}

/* A table of strings that grows links each string anew, and so unshares them all: one that might
   grow in a worker grows here, a little before it would have in the caller. Lua makes it smaller
   again where less than a quarter is used. 'L' is a thread of its own: on the caller's an interrupt
   that has come meanwhile would be raised here, where nobody heeds it. */
static void make_room(lua_State *L, size_t heap) {
  lua_Integer room = (lua_Integer)(heap / ROOM_BYTES);
  if (room > ROOM_MAX) room = ROOM_MAX;
  struct ahead_strings *t = codec_ahead_find(L);
  int left = t ? t->size - t->used : 0;
  if (t && (left >= room || left > t->used)) return;
  if (!t && room > BLIND_MAX) room = BLIND_MAX;
  lua_sethook(L, NULL, 0, 0); /* threads are made with the caller's */
  bool running = lua_gc(L, LUA_GCISRUNNING) > 0;
  lua_gc(L, LUA_GCSTOP);
  if (t) t->used += left; /* full: one string more, and it grows */
  grow_table(L, t ? SURE : room);
  if (t) t->used -= left;
  if (running) lua_gc(L, LUA_GCRESTART);
}

/* glibc's malloc joins small free blocks when it is asked for a large one, and so writes all over
   memory where a script has left many: here, once, and not in each worker that calls it from C. */
static void join_free_blocks(void) {
  void *volatile block = malloc(4096);
  free(block);
}

/* ---- before a fork -------------------------------------------------------------------------- */

static const char sentinel_key, canary_key;

/* Pushes an object that dies old: only a whole collection finds it, and that is not ours. */
static bool *push_canary(lua_State *L) {
  bool *armed = lua_newuserdatauv(L, sizeof *armed, 0);
  *armed = false;
  lua_rawgetp(L, LUA_REGISTRYINDEX, &canary_key);
  lua_setmetatable(L, -2);
  return armed;
}

static int canary_gc(lua_State *L) {
  const bool *armed = lua_touserdata(L, 1);
  if (*armed) runtime_of(L)->collected = true;
  return 0;
}

/* Whether a whole collection can wait: it costs, and not that much has come since the last one. Lua
   itself waits until the heap is twice what it was. All that is not young is old, whoever
   collected: else 'enter' would have. */
static bool can_wait(lua_State *L, const struct runtime *rt) {
  size_t heap = heap_size(L), more = rt->heap / (rt->collected ? 16 : 2);
  return heap >= LARGE && heap <= rt->heap + more;
}

/* Has the heap collected by generations. True: that took a whole collection, as it does from the
   other mode and, by Lua's own rules, after a time in which little was found. */
static bool enter(lua_State *L, struct runtime *rt) {
  lua_newuserdatauv(L, 256, 0); /* it vanishes if all garbage does */
  lua_pop(L, 1);
  size_t before = heap_size(L);
  if (lua_gc(L, LUA_GCGEN, 0, 0) == LUA_GCINC) rt->restore = true;
  return heap_size(L) < before;
}

void share_begin(lua_State *L, struct handle *h) {
  struct runtime *rt = h->rt;
  luaL_checkstack(L, 6, NULL);
  if (lua_gc(L, LUA_GCISRUNNING) < 0) return; /* inside a finaliser: the collector rests */
  bool *canary = push_canary(L);
  bool whole = enter(L, rt);
  for (int i = 0; i < (whole ? 1 : 3); i++) /* what lives through three is old */
    lua_gc(L, LUA_GCSTEP, 0);
  if (whole || !can_wait(L, rt)) {
    if (!whole) lua_gc(L, LUA_GCCOLLECT);
    size_t heap = heap_size(L);
    if (heap >= LARGE) {
      make_room(lua_newthread(L), heap);
      lua_pop(L, 1);
      lua_gc(L, LUA_GCSTEP, 0);
      heap = heap_size(L);
    }
    rt->heap = heap;
    *canary = true;
  }
  if (rt->collected) *canary = true;
  rt->collected = false;
  lua_pop(L, 1);
  if (rt->heap >= LARGE) join_free_blocks();
  h->runner.generational = true;
  if (!h->sharing) rt->sharing++;
  h->sharing = true;
}

/* ---- afterwards ----------------------------------------------------------------------------- */

static void restore(lua_State *L, struct runtime *rt) {
  if (!rt->sharing && !rt->worker && lua_gc(L, LUA_GCINC, 0, 0, 0) >= 0) rt->restore = false;
}

static void restore_hook(lua_State *L, lua_Debug *ar) {
  (void)ar;
  lua_sethook(L, NULL, 0, 0);
  struct runtime *rt = runtime_of(L);
  if (rt->restore) restore(L, rt);
}

static void post_sentinel(lua_State *L, struct runtime *rt) {
  if (rt->posted) return;
  lua_newuserdatauv(L, 1, 0);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &sentinel_key);
  lua_setmetatable(L, -2);
  lua_pop(L, 1);
  rt->posted = true;
}

/* The first collection after the call: the heap is not what it was. A finaliser cannot change the
   mode; the next instruction can. */
static int sentinel_gc(lua_State *L) {
  struct runtime *rt = runtime_of(L);
  rt->posted = false;
  if (!rt->restore || rt->worker) return 0;
  post_sentinel(L, rt);
  if (!rt->sharing && !lua_gethook(L)) lua_sethook(L, restore_hook, LUA_MASKCOUNT, 1);
  return 0;
}

void share_end(lua_State *L, struct handle *h) {
  struct runtime *rt = h->rt;
  if (!h->sharing) return;
  h->sharing = false;
  if (--rt->sharing || !rt->restore) return;
  if (rt->heap < LARGE) restore(L, rt);
  if (rt->restore) post_sentinel(L, rt);
}

void lib_share_open(lua_State *L) {
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, sentinel_gc);
  lua_setfield(L, -2, "__gc");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &sentinel_key);
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, canary_gc);
  lua_setfield(L, -2, "__gc");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &canary_key);
}
