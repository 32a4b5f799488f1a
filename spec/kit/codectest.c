/* codectest.c: the codec as a Lua module, for specs.
     encode(...) -> string                 or nil, message, code
     decode(string) -> true, values...     or nil, message, code
     decode_plain(string)                  the same, refusing functions
     decode_quiet(string)                  the same, refusing what only a hook can make
     used(string) -> bytes that the first message in it took
     ahead(string, at) -> list of the strings that the reader looks for once it has read one that
                       ends before byte 'at'; those of them that this state has
     register(name, metatable)
     limit(bytes)                          encode has room for no more; nil: no limit
     userdata(n, metatable) -> a full userdata that holds n;  number(userdata) -> n
     lightuserdata() -> one
   Every message is moved whenever it grows, and lies at the end of its block when it is read, so
   that sanitizers see one byte too many. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "codec_ahead.h"
#include "codec_peek.h"
#include "plua.h"

struct box {
  plua_out out; /* first: 'more' gets a pointer to it */
  size_t limit;
};

static size_t limit = SIZE_MAX;

static int more(plua_out *out, size_t need) {
  struct box *box = (struct box *)out;
  size_t have = (size_t)(out->at - out->begin), cap = have * 2 + need;
  if (have + need > box->limit) return PLUA_ETOOBIG;
  unsigned char *p = malloc(cap);
  if (!p) return -ENOMEM;
  if (have) memcpy(p, out->begin, have);
  free(out->begin);
  out->begin = p;
  out->at = p + have;
  out->end = p + cap;
  return 0;
}

static int box_gc(lua_State *L) {
  struct box *box = lua_touserdata(L, 1);
  free(box->out.begin);
  box->out.begin = NULL;
  return 0;
}

static struct box *push_box(lua_State *L) {
  struct box *box = lua_newuserdatauv(L, sizeof *box, 0);
  memset(box, 0, sizeof *box);
  box->out.more = more;
  box->limit = limit;
  if (luaL_newmetatable(L, "codectest.box")) {
    lua_pushcfunction(L, box_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  return box;
}

static int refused(lua_State *L, int code) {
  lua_pushnil(L);
  lua_insert(L, -2);
  lua_pushinteger(L, code);
  return 3;
}

static int encode(lua_State *L) {
  int n = lua_gettop(L);
  struct box *box = push_box(L);
  lua_insert(L, 1);
  int err = codec_write(L, n, &box->out);
  if (lua_gettop(L) != n + 1 + (err < 0)) return luaL_error(L, "codec_write left a stray value");
  if (err < 0) return refused(L, err);
  lua_pushlstring(L, (char *)box->out.begin, (size_t)(box->out.at - box->out.begin));
  return 1;
}

typedef int reader(lua_State *L, const void *bytes, size_t len, size_t *used);

/* Pushes a block that holds the string at 1, and no byte more. */
static const unsigned char *push_exactly(lua_State *L, size_t *len) {
  const char *s = luaL_checklstring(L, 1, len);
  struct box *box = push_box(L);
  if (*len) {
    box->out.begin = malloc(*len);
    if (!box->out.begin) luaL_error(L, "not enough memory");
    memcpy(box->out.begin, s, *len);
  }
  return box->out.begin;
}

static int decode_by(lua_State *L, reader *read, int want_used) {
  size_t len, used = 0;
  const unsigned char *bytes = push_exactly(L, &len);
  int top = lua_gettop(L);
  int n = read(L, bytes, len, &used);
  if (lua_gettop(L) != top + (n < 0 ? 1 : n)) return luaL_error(L, "codec_read left a stray value");
  if (n < 0) return refused(L, n);
  if (want_used) {
    lua_pushinteger(L, (lua_Integer)used);
    return 1;
  }
  lua_pushboolean(L, 1);
  lua_insert(L, top + 1);
  return n + 1;
}

static int decode(lua_State *L) {
  return decode_by(L, codec_read, 0);
}
static int decode_plain(lua_State *L) {
  return decode_by(L, codec_read_plain, 0);
}
static int read_quiet(lua_State *L, const void *bytes, size_t len, size_t *used) {
  (void)used;
  return codec_read_quiet(L, bytes, len);
}
static int decode_quiet(lua_State *L) {
  return decode_by(L, read_quiet, 0);
}
static int used_by(lua_State *L) {
  return decode_by(L, codec_read, 1);
}

static int ahead(lua_State *L) {
  size_t len;
  const unsigned char *bytes = push_exactly(L, &len);
  struct codec_ahead a = {.strings = codec_ahead_find(L)};
  lua_newtable(L);
  if (!a.strings) return 1;
  codec_ahead_look(&a, bytes + luaL_checkinteger(L, 2) - 1, bytes + len);
  for (unsigned i = a.due; i != a.found; i++) {
    uint32_t hash = a.hash[i % AHEAD];
    const struct peek_string *s = a.strings->lists[hash & (uint32_t)(a.strings->size - 1)];
    while (s && s->hash != hash) s = s->rest;
    if (!s) continue;
    lua_pushlstring(L, s->bytes, s->len);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
  }
  return 1;
}

static int register_name(lua_State *L) {
  const char *name = luaL_checkstring(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  codec_register(L, name);
  return 0;
}

static int set_limit(lua_State *L) {
  limit = lua_isnoneornil(L, 1) ? SIZE_MAX : (size_t)luaL_checkinteger(L, 1);
  return 0;
}

static int new_userdata(lua_State *L) {
  lua_Integer *n = lua_newuserdatauv(L, sizeof *n, 0);
  *n = luaL_checkinteger(L, 1);
  if (lua_istable(L, 2)) {
    lua_pushvalue(L, 2);
    lua_setmetatable(L, -2);
  }
  return 1;
}

static int number_of(lua_State *L) {
  lua_Integer *n = lua_touserdata(L, 1);
  luaL_argcheck(L, n, 1, "userdata expected");
  lua_pushinteger(L, *n);
  return 1;
}

static int light(lua_State *L) {
  static char here;
  lua_pushlightuserdata(L, &here);
  return 1;
}

/* A C closure that no module has as a field. */
static int closure(lua_State *L) {
  lua_pushinteger(L, 1);
  lua_pushcclosure(L, light, 1);
  return 1;
}

__attribute__((visibility("default"))) int luaopen_codectest(lua_State *L);

int luaopen_codectest(lua_State *L) {
  static const luaL_Reg functions[] = {{"encode", encode},
                                       {"decode", decode},
                                       {"decode_plain", decode_plain},
                                       {"decode_quiet", decode_quiet},
                                       {"used", used_by},
                                       {"ahead", ahead},
                                       {"limit", set_limit},
                                       {"register", register_name},
                                       {"userdata", new_userdata},
                                       {"number", number_of},
                                       {"lightuserdata", light},
                                       {"closure", closure},
                                       {NULL, NULL}};
  luaL_checkversion(L);
  codec_open(L);
  luaL_newlib(L, functions);
#ifdef PLUA_SMALL
  lua_pushboolean(L, 0);
#else
  lua_pushboolean(L, 1);
#endif
  lua_setfield(L, -2, "LOOKS"); /* into Lua's memory */
  lua_pushinteger(L, PLUA_ECODEC);
  lua_setfield(L, -2, "ECODEC");
  lua_pushinteger(L, PLUA_EFORMAT);
  lua_setfield(L, -2, "EFORMAT");
  lua_pushinteger(L, PLUA_EDEPTH);
  lua_setfield(L, -2, "EDEPTH");
  lua_pushinteger(L, PLUA_ETOOBIG);
  lua_setfield(L, -2, "ETOOBIG");
  return 1;
}
