/* codec_peek.c: looks whether Lua's memory is laid out as codec_peek.h has it.
   SPDX-License-Identifier: MIT */
#include "codec_peek.h"

#include <lauxlib.h>

enum { ITEMS = 8, FILLED = 5 };
static const lua_Integer sample = INT64_C(0x123456789abcdef);

static int array_fits(const struct peek_table *t) {
  if (t->limit != FILLED || t->log_nodes != 0 || !t->array || !t->node) return 0;
  const struct peek_value *v = t->array;
  return codec_peek_items(t) == ITEMS && v[0].tag == PEEK_FLOAT && v[0].value.number == 0.1 &&
         v[1].tag == PEEK_INTEGER && v[1].value.integer == sample && v[2].tag == PEEK_TRUE &&
         v[3].tag == PEEK_FALSE && v[4].tag == PEEK_TRUE &&
         (v[FILLED].tag == PEEK_NIL || v[FILLED].tag == PEEK_EMPTY);
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

/* stack: a table. Fills it, pushes the key and answers where its bytes lie. */
static const char *fill(lua_State *L, size_t *len) {
  lua_pushnumber(L, 0.1);
  lua_rawseti(L, -2, 1);
  lua_pushinteger(L, sample);
  lua_rawseti(L, -2, 2);
  for (int i = 3; i <= FILLED; i++) {
    lua_pushboolean(L, i != 4);
    lua_rawseti(L, -2, i);
  }
  lua_pushliteral(L, "key");
  lua_pushvalue(L, -1);
  lua_pushboolean(L, 1);
  lua_rawset(L, -4); /* stack: table, key */
  return lua_tolstring(L, -1, len);
}

/* Functions made at one place have one code, another one than what made them. */
static int code_fits(lua_State *L, int first) {
  const struct peek_function *f[4];
  for (int i = 0; i < 4; i++) f[i] = lua_topointer(L, first + i);
  return f[1] != f[2] && f[1]->type == LUA_TFUNCTION && f[1]->upvalues == 1 &&
         f[1]->code == f[2]->code && f[1]->code != f[0]->code && f[3]->code != f[0]->code &&
         f[3]->code != f[1]->code && f[3]->upvalues == 2;
}

int codec_peek_code_fits(lua_State *L) {
  static const char make[] = "local a = ... return function() return a end, "
                             "function() return a, x end";
  int top = lua_gettop(L);
  if (!codec_peek_fits(L)) return 0;
  luaL_checkstack(L, 8, NULL);
  if (luaL_loadbufferx(L, make, sizeof make - 1, "=plua", "t") != LUA_OK) return lua_error(L);
  lua_pushvalue(L, -1);
  lua_call(L, 0, 1);
  lua_pushvalue(L, -2);
  lua_call(L, 0, 2); /* stack: maker, function, another of the same, one that is not */
  int fits = code_fits(L, top + 1);
  lua_settop(L, top);
  return fits;
}

int codec_peek_fits(lua_State *L) {
  size_t len;
  if (lua_version(L) != LUA_VERSION_NUM || sizeof(struct peek_value) != 16) return 0;
  lua_createtable(L, ITEMS, 1);
  const struct peek_table *t = codec_peek(L, -1);
  int exact = t->limit == ITEMS && !(t->flags & PEEK_HINT);
  const char *key = fill(L, &len);
  lua_rawlen(L, -2); /* where this finds the end becomes the limit */
  int fits = exact && codec_peek_table_fits(t, key, len) && thread_fits(L);
  lua_pop(L, 2);
  return fits;
}

#else

int codec_peek_fits(lua_State *L) {
  (void)L;
  return 0;
}

int codec_peek_code_fits(lua_State *L) {
  (void)L;
  return 0;
}

#endif
