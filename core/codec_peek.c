/* codec_peek.c: looks whether Lua's memory is laid out as codec_peek.h has it.
   SPDX-License-Identifier: MIT */
#include "codec_peek.h"

static const lua_Integer sample = INT64_C(0x123456789abcdef);

static int array_fits(const struct peek_table *t) {
  if (t->limit != 5 || t->log_nodes != 0 || !t->array || !t->node) return 0;
  const struct peek_value *v = t->array;
  return codec_peek_items(t) == 5 && v[0].tag == PEEK_FLOAT && v[0].value.number == 0.1 &&
         v[1].tag == PEEK_INTEGER && v[1].value.integer == sample && v[2].tag == PEEK_TRUE &&
         v[3].tag == PEEK_FALSE && (v[4].tag == PEEK_NIL || v[4].tag == PEEK_EMPTY);
}

int codec_peek_table_fits(const struct peek_table *t, const char *key, size_t len) {
  if (!array_fits(t) || t->node->tag != PEEK_TRUE || t->node->key_tag != PEEK_STRING) return 0;
  const struct peek_string *s = t->node->key.pointer;
  return s->bytes == key && s->len == len;
}

#if LUA_VERSION_NUM == 504 && !defined PLUA_SMALL

/* Where the top is, is believed only once it has moved as it should. */
static int thread_fits(lua_State *L) {
  const struct peek_thread *thread = (const void *)L;
  uintptr_t before = (uintptr_t)thread->top;
  lua_pushinteger(L, sample);
  int moved = (uintptr_t)thread->top == before + sizeof *thread->top;
  int there = moved && thread->top[-1].tag == PEEK_INTEGER &&
              thread->top[-1].value.integer == sample;
  lua_pop(L, 1);
  return there;
}

int codec_peek_fits(lua_State *L) {
  size_t len;
  if (lua_version(L) != LUA_VERSION_NUM || sizeof(struct peek_value) != 16) return 0;
  lua_createtable(L, 5, 1);
  lua_pushnumber(L, 0.1);
  lua_rawseti(L, -2, 1);
  lua_pushinteger(L, sample);
  lua_rawseti(L, -2, 2);
  for (int i = 3; i <= 4; i++) {
    lua_pushboolean(L, i == 3);
    lua_rawseti(L, -2, i);
  }
  lua_pushliteral(L, "key");
  const char *key = lua_tolstring(L, -1, &len);
  lua_pushvalue(L, -1);
  lua_pushboolean(L, 1);
  lua_rawset(L, -4); /* stack: table, key */
  const struct peek_table *t = codec_peek(L, -2);
  int fits = codec_peek_table_fits(t, key, len) && thread_fits(L);
  lua_pop(L, 2);
  return fits;
}

#else

int codec_peek_fits(lua_State *L) {
  (void)L;
  return 0;
}

#endif
