/* codec_plain.h: a message that is one plain value, read and written without any preparation: what
   most items and results are. Knows Lua values and bytes. SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_PLAIN_H
#define PLUA_CODEC_PLAIN_H

#include <lua.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base.h"
#include "codec_peek.h"
#include "codec_wire.h"

/* Tells the number behind a tag W_I8 to W_FLOAT; answers its bytes, 0 if it is cut short. */
static inline size_t codec_plain_number(struct peek_value *v, unsigned tag, const unsigned char *p,
                                        size_t len) {
  size_t width = tag == W_FLOAT ? 8 : (size_t)1 << (tag - W_I8);
  uint64_t n = 0;
  if (len < width) return 0;
  v->tag = tag == W_FLOAT ? PEEK_FLOAT : PEEK_INTEGER;
  if (width == 8) {
    memcpy(&v->value, p, 8);
  } else {
    unsigned shift = 64 - 8 * (unsigned)width; /* fetches the sign */
    memcpy(&n, p, width);
    v->value.integer = (lua_Integer)(n << shift) >> shift;
  }
  return width;
}

/* Tells the value that a message of 'len' bytes begins with, if it needs no memory of its own:
   false, it does. */
static inline bool codec_plain_seen(struct peek_value *v, const unsigned char *p, size_t len) {
  if (!len) return false;
  unsigned tag = *p;
  if (tag >= W_I8 && tag <= W_FLOAT) return codec_plain_number(v, tag, p + 1, len - 1) > 0;
  if (tag >= W_SMALL) {
    v->value.integer = (lua_Integer)(tag - W_SMALL);
    v->tag = PEEK_INTEGER;
  } else if (tag && tag <= W_TRUE) {
    v->value.integer = 0;
    v->tag = tag == W_NIL ? PEEK_NIL : tag == W_TRUE ? PEEK_TRUE : PEEK_FALSE;
  } else {
    return false;
  }
  return true;
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
    struct peek_value v;
    size_t n = codec_plain_number(&v, tag, p + 1, len - 1);
    if (!n) return 0;
    if (tag == W_FLOAT)
      lua_pushnumber(L, v.value.number);
    else
      lua_pushinteger(L, v.value.integer);
    return n + 1;
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

/* Writes the value on top, if it is one that takes no working memory. 1: it is not, and nothing is
   written; negative: what out->more answered. */
static inline int codec_plain_write(lua_State *L, plua_out *out) {
  size_t len;
  const char *s;
  switch (lua_type(L, -1)) {
  case LUA_TNIL:
    return wire_put_tag(out, W_NIL);
  case LUA_TBOOLEAN:
    return wire_put_tag(out, lua_toboolean(L, -1) ? W_TRUE : W_FALSE);
  case LUA_TNUMBER:
    if (lua_isinteger(L, -1)) return wire_put_integer(out, lua_tointeger(L, -1));
    return wire_put_float(out, lua_tonumber(L, -1));
  case LUA_TSTRING:
    s = lua_tolstring(L, -1, &len);
    return wire_put_string(out, s, len);
  }
  return 1;
}

/* Where codec_peek_fits has found it so: writes a number and takes it off the stack, without a call
   of Lua's. False: nothing is done. */
static inline bool codec_plain_take(lua_State *L, plua_out *out) {
  const struct peek_value *v = codec_peek_top(L);
  if (v->tag != PEEK_FLOAT && v->tag != PEEK_INTEGER) return false;
  int err = LIKELY(v->tag == PEEK_FLOAT) ? wire_put_float(out, v->value.number)
                                         : wire_put_integer(out, v->value.integer);
  if (LIKELY(err == 0)) codec_peek_move(L, -1);
  return err == 0;
}

#endif
