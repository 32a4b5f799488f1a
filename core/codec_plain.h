/* codec_plain.h: a message that is one plain value, read without any preparation: what most items
   and results are. Knows Lua values and bytes. SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_PLAIN_H
#define PLUA_CODEC_PLAIN_H

#include <lua.h>
#include <stdint.h>
#include <string.h>

#include "codec_wire.h"

/* Pushes the number behind a tag W_I8 to W_FLOAT; answers its bytes, 0 if it is cut short. */
static inline size_t codec_plain_number(lua_State *L, unsigned tag, const unsigned char *p,
                                        size_t len) {
  size_t width = tag == W_FLOAT ? 8 : (size_t)1 << (tag - W_I8);
  uint64_t n = 0;
  if (len < width) return 0;
  if (width == 8)
    memcpy(&n, p, 8);
  else
    memcpy(&n, p, width);
  if (tag == W_FLOAT) {
    double x;
    memcpy(&x, &n, sizeof x);
    lua_pushnumber(L, x);
  } else {
    unsigned shift = 64 - 8 * (unsigned)width; /* fetches the sign */
    lua_pushinteger(L, (lua_Integer)(n << shift) >> shift);
  }
  return width;
}

/* Pushes the value that a message of 'len' bytes begins with; answers the bytes it took, 0 if it is
   not a plain one. The bytes may change meanwhile: each is fetched once. */
static inline size_t codec_plain_read(lua_State *L, const unsigned char *p, size_t len) {
  if (!len) return 0;
  unsigned tag = *p;
  if (tag >= W_SMALL) {
    lua_pushinteger(L, (lua_Integer)(tag - W_SMALL));
    return 1;
  }
  if (tag >= W_I8 && tag <= W_FLOAT) {
    size_t n = codec_plain_number(L, tag, p + 1, len - 1);
    return n ? n + 1 : 0;
  }
  if (tag >= W_SHORT) {
    size_t n = tag - W_SHORT;
    if (len - 1 < n) return 0;
    lua_pushlstring(L, (const char *)p + 1, n);
    return 1 + n;
  }
  if (tag > W_TRUE || !tag) return 0;
  if (tag == W_NIL)
    lua_pushnil(L);
  else
    lua_pushboolean(L, tag == W_TRUE);
  return 1;
}

#endif
