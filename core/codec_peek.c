/* codec_peek.c: looks whether tables are laid out as codec_peek.h has it.
   SPDX-License-Identifier: MIT */
#include "codec_peek.h"

#if LUA_VERSION_NUM == 504 && !defined PLUA_SMALL

/* stack: a table of 5 entries and room for one pair */
static int looks_right(lua_State *L) {
  const struct peek_table *t = codec_peek(L, -1);
  if (t->limit != 5 || t->log_nodes != 0 || !t->array || !t->node) return 0;
  const struct peek_value *v = t->array;
  return v[0].tag == PEEK_FLOAT && v[0].value.number == 0.1 && v[1].tag == PEEK_INTEGER &&
         v[1].value.integer == INT64_C(0x123456789abcdef) && v[2].tag == PEEK_TRUE &&
         v[3].tag == PEEK_FALSE && (v[4].tag == PEEK_NIL || v[4].tag == PEEK_EMPTY);
}

int codec_peek_fits(lua_State *L) {
  if (lua_version(L) != LUA_VERSION_NUM || sizeof(struct peek_value) != 16) return 0;
  lua_createtable(L, 5, 1);
  lua_pushnumber(L, 0.1);
  lua_rawseti(L, -2, 1);
  lua_pushinteger(L, INT64_C(0x123456789abcdef));
  lua_rawseti(L, -2, 2);
  for (int i = 3; i <= 4; i++) {
    lua_pushboolean(L, i == 3);
    lua_rawseti(L, -2, i);
  }
  int fits = looks_right(L);
  lua_pop(L, 1);
  return fits;
}

#else

int codec_peek_fits(lua_State *L) {
  (void)L;
  return 0;
}

#endif
