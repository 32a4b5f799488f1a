/* decode.c: libFuzzer target: any bytes through the reader that takes only data.
   The first byte chooses: a message is read alone, or read, written and read again, which must
   give the same values. The bytes lie in a block of just their size, so that the sanitizer sees
   one read too many; the heap is capped, so that an allocation the input does not justify is a
   finding. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"
#include "codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static lua_State *L;
static size_t live, most;

/* A message of n bytes may cost some 100 n. */
static void *capped(void *ud, void *p, size_t old, size_t size) {
  (void)ud;
  if (!p) old = 0;
  live += size - old;
  if (live > most) most = live;
  if (size) return realloc(p, size);
  free(p);
  return NULL;
}

static int more(plua_out *out, size_t need) {
  size_t have = (size_t)(out->at - out->begin), cap = have * 2 + need;
  unsigned char *p = realloc(out->begin, cap);
  if (!p) return -ENOMEM;
  out->begin = p;
  out->at = p + have;
  out->end = p + cap;
  return 0;
}

/* A hook that answers what it got. */
static int identity(lua_State *S) {
  lua_settop(S, 1);
  return 1;
}

/* Strings are looked for ahead only where a state has many. */
static void crowd(void) {
  lua_newtable(L);
  for (int i = 1; i <= 20000; i++) {
    lua_pushfstring(L, "string %d", i);
    lua_rawseti(L, -2, i);
  }
  luaL_ref(L, LUA_REGISTRYINDEX);
}

static void start(void) {
  L = lua_newstate(capped, NULL);
  if (!L) abort();
  luaL_openlibs(L);
  codec_open(L);
  crowd();
  lua_newtable(L);
  codec_register(L, "P");
  lua_newtable(L);
  lua_pushcfunction(L, identity);
  lua_setfield(L, -2, "__plua_load");
  codec_register(L, "S");
}

/* The values at the top again as bytes; values that were read can be written, unless they hold
   what only names can carry. */
static void again(int n) {
  plua_out out = {NULL, NULL, NULL, more};
  int top = lua_gettop(L);
  if (codec_write(L, n, &out) < 0) {
    free(out.begin);
    return;
  }
  size_t used = 0, len = (size_t)(out.at - out.begin);
  int m = codec_read_plain(L, out.begin, len, &used);
  if (m != n || used != len) abort();
  for (int i = 0; i < n; i++)
    if (lua_type(L, top - i) != lua_type(L, lua_gettop(L) - i)) abort();
  free(out.begin);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
  if (!L) start();
  if (!len) return 0;
  uint8_t *bytes = malloc(len - 1 ? len - 1 : 1);
  if (!bytes) return 0;
  memcpy(bytes, data + 1, len - 1);
  lua_settop(L, 0);
  most = live;
  size_t before = live, used = 0;
  int n = codec_read_plain(L, bytes, len - 1, &used);
  if (n < 0 ? lua_gettop(L) != 1 || !lua_isstring(L, 1) : lua_gettop(L) != n) abort();
  if (n >= 0 && used > len - 1) abort();
  if (most > before && most - before > 65536 + 400 * len) abort();
  if (n >= 0 && data[0] & 1) again(n);
  lua_settop(L, 0);
  free(bytes);
  return 0;
}
