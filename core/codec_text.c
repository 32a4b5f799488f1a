/* codec_text.c: makes strings of bytes, and room for lists.
   What is large is often the first to use its memory. The kernel is asked for all of that at once,
   which costs half of a fault for each page.
   Invariant: what allocates for the state is put back, whatever happens.
   Knows Lua's allocator and pages. Does not know messages. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <sys/mman.h>

#include "base.h"
#include "codec_read.h"

enum { LARGE = 1 << 16, PAGE = 4096 };

/* What a state allocates from. */
struct source {
  lua_Alloc alloc;
  void *ud;
};

struct text {
  const char *bytes;
  size_t len;
};

struct room {
  int items, fields;
};

/* Has memory behind the whole pages of a block, unless there is some in its middle. */
static void populate(const char *block, size_t size) {
#ifdef MADV_POPULATE_WRITE
  uintptr_t from = ((uintptr_t)block + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
  uintptr_t to = ((uintptr_t)block + size) & ~(uintptr_t)(PAGE - 1);
  uintptr_t middle = (from + (to - from) / 2) & ~(uintptr_t)(PAGE - 1);
  unsigned char there;
  if (mincore((void *)middle, PAGE, &there) < 0 || there & 1) return;
  madvise((void *)from, to - from, MADV_POPULATE_WRITE); /* where it fails, they are faulted in */
#else
  (void)block;
  (void)size;
#endif
}

static void *allocate(void *ud, void *block, size_t osize, size_t nsize) {
  const struct source *s = ud;
  void *fresh = s->alloc(s->ud, block, osize, nsize);
  if (!block && fresh && nsize >= LARGE) populate(fresh, nsize);
  return fresh;
}

static int make_text(lua_State *L) {
  const struct text *t = lua_touserdata(L, 1);
  lua_pushlstring(L, t->bytes, t->len);
  return 1;
}

static int make_list(lua_State *L) {
  const struct room *r = lua_touserdata(L, 1);
  lua_createtable(L, r->items, r->fields);
  return 1;
}

/* Pushes what 'make' makes of 'what', which is large. */
static void push_large(lua_State *L, lua_CFunction make, void *what) {
  struct source s;
  luaL_checkstack(L, 2, NULL);
  lua_pushcfunction(L, make);
  lua_pushlightuserdata(L, what);
  s.alloc = lua_getallocf(L, &s.ud);
  lua_setallocf(L, allocate, &s);
  int status = lua_pcall(L, 1, 1, 0);
  lua_setallocf(L, s.alloc, s.ud);
  if (status != LUA_OK) lua_error(L);
}

void codec_push_text(lua_State *L, const void *bytes, size_t len) {
  struct text t = {bytes, len};
  if (LIKELY(len < LARGE))
    lua_pushlstring(L, bytes, len);
  else
    push_large(L, make_text, &t);
}

void codec_push_list(lua_State *L, int items, int fields) {
  struct room r = {items, fields};
  if (items < LARGE / 16) /* bytes of a value */
    lua_createtable(L, items, fields);
  else
    push_large(L, make_list, &r);
}
