/* codec_ahead.c: finds Lua's table of strings, and strings in the bytes of a message.
   Knows how Lua 5.4 lays out what the threads of a state share, and uses that only where values lie
   as codec_peek.h has them and a string has been found by it in this state; elsewhere, and in the
   test build with tiny limits, nothing is looked for. Reads; writes nothing but its own notes.
   Believes no byte of the message: they are fetched again when they are due, and may be others
   then. SPDX-License-Identifier: MIT */
#include "codec_ahead.h"

#include <stddef.h>

#include "codec_peek.h"
#include "codec_wire.h"

/* What the threads of a state share. */
struct ahead_state {
  lua_Alloc alloc;
  void *ud;
  size_t counts[4];
  struct ahead_strings strings;
  struct peek_value registry, nil;
  uint32_t seed;
};

static uint32_t hash_of(const void *bytes, size_t len, uint32_t seed) {
  const unsigned char *p = bytes;
  uint32_t h = seed ^ (uint32_t)len;
  while (len) h ^= (h << 5) + (h >> 2) + p[--len];
  return h;
}

static struct peek_string **list_of(const struct ahead_strings *t, uint32_t hash) {
  return &t->lists[hash & (uint32_t)(t->size - 1)];
}

/* ---- where the strings are ------------------------------------------------------------------ */

int codec_ahead_keeps(const struct ahead_strings *t, uint32_t hash, const char *s, size_t len) {
  if (!t->lists || t->size < 1 || t->size & (t->size - 1)) return 0;
  const struct peek_string *e = *list_of(t, hash);
  while (e && e->bytes != s) e = e->rest;
  return e && e->len == len && e->hash == hash;
}

#if LUA_VERSION_NUM == 504 && !defined PLUA_SMALL

/* It lies in one block with the main thread, behind it. */
static struct ahead_state *find_state(lua_State *L) {
  enum { BLOCK = 2048 };
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  const struct peek_thread *main = (const void *)lua_tothread(L, -1);
  lua_pop(L, 1);
  if (!main) return NULL;
  uintptr_t gap = (uintptr_t)main->state - (uintptr_t)main;
  if (gap < sizeof *main || gap > BLOCK || gap % sizeof(void *)) return NULL;
  void *ud;
  lua_Alloc alloc = lua_getallocf(L, &ud);
  struct ahead_state *state = main->state;
  return state->alloc == alloc && state->ud == ud ? state : NULL;
}

struct ahead_strings *codec_ahead_find(lua_State *L) {
  size_t len;
  struct ahead_state *g = codec_peek_fits(L) ? find_state(L) : NULL;
  if (!g) return NULL;
  lua_pushliteral(L, "a string to look for");
  const char *s = lua_tolstring(L, -1, &len);
  int kept = codec_ahead_keeps(&g->strings, hash_of(s, len, g->seed), s, len);
  lua_pop(L, 1);
  return kept ? &g->strings : NULL;
}

#else

struct ahead_strings *codec_ahead_find(lua_State *L) {
  (void)L;
  return NULL;
}

#endif

static uint32_t seed_of(const struct ahead_strings *t) {
  const char *state = (const char *)t - offsetof(struct ahead_state, strings);
  return ((const struct ahead_state *)(const void *)state)->seed;
}

/* ---- where the message has some ------------------------------------------------------------- */

/* Bytes from a tag to the next one; 0: the reader goes first. */
static size_t stride(const unsigned char *p, size_t left) {
  uint32_t n;
  uint64_t length;
  unsigned tag = *p;
  if (tag >= W_SMALL) return 1;
  if (tag >= W_SHORT) return 1 + (size_t)(tag - W_SHORT);
  if (left < 9) return 0;
  switch (tag) {
  case W_NIL:
  case W_FALSE:
  case W_TRUE:
  case W_OBJECT:
  case W_OBJECT | W_SHARED:
    return 1;
  case W_I8:
  case W_SREF:
    return 2;
  case W_I16:
    return 3;
  case W_I32:
  case W_REF32:
    return 5;
  case W_I64:
  case W_FLOAT:
  case W_TABLE:
  case W_TABLE | W_SHARED:
    return 9;
  case W_SDEF:
    return 2 + (size_t)p[1];
  case W_INTS:
  case W_FLOATS:
    memcpy(&n, p + 1, sizeof n);
    return 5 + 8 * (size_t)n + 8;
  case W_LONG:
  case W_LONG | W_SHARED:
    memcpy(&length, p + 1, sizeof length);
    return length < left ? 9 + (size_t)length : 0;
  }
  return 0;
}

static int is_short(unsigned tag) {
  return tag >= W_SHORT && tag <= W_SHORT + CODEC_SHORT_LEN;
}

/* Fetches the head of the list that the next string belongs to. 0: there is none in sight. */
static int look_on(struct codec_ahead *a, const unsigned char *end) {
  while (a->p < end && !is_short(*a->p)) {
    size_t left = (size_t)(end - a->p), n = stride(a->p, left);
    if (!n || n > left) return 0;
    a->p += n;
  }
  if (a->p == end) return 0;
  size_t len = (size_t)(*a->p - W_SHORT) % W_SHORT;
  if (len >= (size_t)(end - a->p)) return 0;
  uint32_t hash = hash_of(a->p + 1, len, seed_of(a->strings));
  __builtin_prefetch(list_of(a->strings, hash));
  a->hash[a->found++ % AHEAD] = hash;
  a->p += 1 + len;
  return 1;
}

static void fetch(const struct peek_string *e) {
  enum { MOST = 40 }; /* into the string; it seldom ends later */
  if (!e) return;
  __builtin_prefetch(e);
  __builtin_prefetch((const char *)e + MOST);
}

/* The list of the string that is due as the n-th from now; NULL: it is empty, or not known. */
static const struct peek_string *list_in(const struct codec_ahead *a, unsigned n) {
  if (a->found - a->due < n) return NULL;
  return *list_of(a->strings, a->hash[(a->due + n - 1) % AHEAD]);
}

void codec_ahead_look(struct codec_ahead *a, const unsigned char *next, const unsigned char *end) {
  if (a->p < next || a->found == a->due) { /* the reader has gone past */
    a->p = next;
    a->due = a->found = 0;
  } else {
    a->due++;
  }
  while (a->found - a->due < AHEAD && look_on(a, end)) {}
  fetch(list_in(a, AHEAD / 2));
  const struct peek_string *e = list_in(a, AHEAD / 4);
  if (e) fetch(e->rest);
}
