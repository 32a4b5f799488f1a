/* codectest.c: the codec as a Lua module, for specs.
     encode(...) -> string                 or nil, message, code
     decode(string) -> true, values...     or nil, message, code
     decode_plain(string)                  the same, refusing functions
     decode_quiet(string)                  the same, refusing what only a hook can make
     used(string) -> bytes that the first message in it took
     plain(string) -> the same where it is one plain value, and that value; else 0
     seen(string) -> whether it is a value that needs no memory, and that value
     taken(value) -> string                what is written of a number where it lies; else nil
     run(limit) -> how many of sixteen integers are told of an array with that limit
     ahead(string, at) -> list of the strings that the reader looks for once it has read one that
                       ends before byte 'at'; those of them that this state has
     fits(thing) -> whether memory is taken for Lua's that is as Lua's but for one thing
     keeps(thing)                          the same of its table of strings
     look(yes)                             whether this state's memory is looked into from now on
     map() -> an empty map of addresses
     meet(map, address, offset) -> where it was met, if it was;  forget(map, from)
     register(name, metatable)
     limit(bytes)                          encode has room for no more; nil: no limit
     userdata(n, metatable) -> a full userdata that holds n;  number(userdata) -> n
     lightuserdata() -> one
     globals(dump) -> the names that it looks up in its first upvalue; nil: it cannot be read
   Every message is moved whenever it grows. When it is read, it lies at the end of a page, and
   nothing behind it: one byte too many ends the process. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codec.h"
#include "codec_ahead.h"
#include "codec_peek.h"
#include "codec_plain.h"
#include "codec_state.h"
#include "codec_write.h"
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

/* Pages that end with the bytes of a message, the next one out of reach. */
struct pages {
  unsigned char *from;
  size_t size;
};

static int pages_gc(lua_State *L) {
  struct pages *p = lua_touserdata(L, 1);
  if (p->from) munmap(p->from, p->size);
  p->from = NULL;
  return 0;
}

/* Pushes pages that end with the string at 1. */
static const unsigned char *push_exactly(lua_State *L, size_t *len) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const char *s = luaL_checklstring(L, 1, len);
  struct pages *p = lua_newuserdatauv(L, sizeof *p, 0);
  size_t whole = (*len + page - 1) / page * page;
  *p = (struct pages){NULL, whole + page};
  if (luaL_newmetatable(L, "codectest.pages")) {
    lua_pushcfunction(L, pages_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  void *from = mmap(NULL, p->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (from == MAP_FAILED || mprotect((char *)from + whole, page, PROT_NONE) < 0)
    luaL_error(L, "not enough memory");
  p->from = from;
  return memcpy(p->from + whole - *len, s, *len);
}

static int decode_by(lua_State *L, reader *read, int want_used) {
  size_t len, used = 0;
  const unsigned char *bytes = push_exactly(L, &len);
  int top = lua_gettop(L);
  int n = read(L, bytes, len, &used);
  if (lua_gettop(L) != top + (n < 0 ? 1 : n)) return luaL_error(L, "codec_read left a stray value");
  struct pages *p = lua_touserdata(L, top);
  munmap(p->from, p->size); /* now: they are many, and the collector sees little of them */
  p->from = NULL;
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

static int plain(lua_State *L) {
  size_t len;
  const unsigned char *bytes = push_exactly(L, &len);
  size_t took = codec_plain_read(L, bytes, len);
  lua_pushinteger(L, (lua_Integer)took);
  if (!took) return 1;
  lua_insert(L, -2);
  return 2;
}

static int seen(lua_State *L) {
  size_t len;
  struct peek_value v = {.tag = 0xff};
  const unsigned char *bytes = push_exactly(L, &len);
  bool yes = codec_plain_seen(&v, bytes, len);
  lua_pushboolean(L, yes);
  if (!yes) return 1;
  switch (v.tag) {
  case PEEK_NIL:
    lua_pushnil(L);
    return 2;
  case PEEK_FALSE:
  case PEEK_TRUE:
    lua_pushboolean(L, v.tag == PEEK_TRUE);
    return 2;
  case PEEK_INTEGER:
    lua_pushinteger(L, v.value.integer);
    return 2;
  case PEEK_FLOAT:
    lua_pushnumber(L, v.value.number);
    return 2;
  }
  return luaL_error(L, "a tag that no value has");
}

static int taken(lua_State *L) {
  struct box *box = push_box(L);
  lua_pushvalue(L, 1);
  int top = lua_gettop(L), yes = codec_plain_take(L, &box->out);
  if (lua_gettop(L) != top - yes) return luaL_error(L, "codec_plain_take moved the top wrongly");
  if (!yes) return 0;
  lua_pushlstring(L, (char *)box->out.begin, (size_t)(box->out.at - box->out.begin));
  return 1;
}

static int run(lua_State *L) {
  enum { N = 16 };
  struct peek_value array[N];
  for (int i = 0; i < N; i++) array[i] = (struct peek_value){{.integer = i}, PEEK_INTEGER};
  struct peek_table t = {.limit = (unsigned)luaL_checkinteger(L, 1), .array = array};
  unsigned char tag;
  lua_pushinteger(L, codec_peek_run(&t, &tag));
  return 1;
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

enum { LEN = 3 };
/* As Lua has it: memory to look through, not a string of the state. */
static struct peek_string *push_kept(lua_State *L, uint32_t hash) {
  struct peek_string *s = lua_newuserdatauv(L, sizeof *s + LEN, 0);
  memset(s, 0, sizeof *s + LEN);
  s->len = LEN;
  s->hash = hash;
  return s;
}

static int fits(lua_State *L) {
  static const char *const things[] = {
    "nothing", "limit", "nodes", "array", "node",  "flags",  "float", "number", "int",   "integer",
    "nil",     "empty", "value", "key",   "bytes", "length", "true",  "false",  "fifth", NULL};
  struct peek_string *s = push_kept(L, 0);
  struct peek_value array[] = {
    {{.number = 0.1}, PEEK_FLOAT}, {{.integer = INT64_C(0x123456789abcdef)}, PEEK_INTEGER},
    {{.integer = 0}, PEEK_TRUE},   {{.integer = 0}, PEEK_FALSE},
    {{.integer = 0}, PEEK_TRUE},   {{.integer = 0}, PEEK_EMPTY}};
  struct peek_node node = {.tag = PEEK_TRUE, .key_tag = PEEK_STRING, .key.pointer = s};
  struct peek_table t = {.limit = 5, .flags = PEEK_HINT, .array = array, .node = &node};
  const char *bytes = s->bytes;
  int thing = luaL_checkoption(L, 1, NULL, things);
  t.limit += thing == 1;
  t.log_nodes += thing == 2;
  if (thing == 3) t.array = NULL;
  if (thing == 4) t.node = NULL;
  if (thing == 5) t.flags = 0;
  array[0].tag = thing == 6 ? PEEK_INTEGER : PEEK_FLOAT;
  array[0].value.number += thing == 7;
  array[1].tag = thing == 8 ? PEEK_FLOAT : PEEK_INTEGER;
  array[1].value.integer += thing == 9;
  array[2].tag = thing == 16 ? PEEK_FALSE : PEEK_TRUE;
  array[3].tag = thing == 17 ? PEEK_TRUE : PEEK_FALSE;
  array[4].tag = thing == 18 ? PEEK_FALSE : PEEK_TRUE;
  array[5].tag = thing == 10 ? PEEK_NIL : thing == 11 ? PEEK_TRUE : PEEK_EMPTY;
  node.tag = thing == 12 ? PEEK_FALSE : PEEK_TRUE;
  node.key_tag = thing == 13 ? PEEK_INTEGER : PEEK_STRING;
  bytes += thing == 14;
  lua_pushboolean(L, codec_peek_table_fits(&t, bytes, LEN + (thing == 15)));
  return 1;
}

static int keeps(lua_State *L) {
  static const char *const things[] = {"nothing", "lists",  "none", "three",  "elsewhere",
                                       "bytes",   "length", "hash", "single", NULL};
  enum { HASH = 6 };
  struct peek_string *s = push_kept(L, HASH), *first = push_kept(L, 0);
  struct peek_string *lists[] = {NULL, NULL, first, NULL};
  struct ahead_strings t = {.lists = lists, .size = 4};
  const char *bytes = s->bytes;
  int thing = luaL_checkoption(L, 1, NULL, things);
  first->rest = s;
  if (thing == 1) t.lists = NULL;
  if (thing == 2) t.size = 0;
  if (thing == 3) t.size = 3;
  if (thing == 4) lists[2] = NULL;
  if (thing == 8) t = (struct ahead_strings){.lists = &lists[2], .size = 1};
  bytes += thing == 5;
  s->hash += thing == 7;
  lua_pushboolean(L, codec_ahead_keeps(&t, HASH, bytes, LEN + (thing == 6)));
  return 1;
}

static void set_look(lua_State *L, enum codec_key key, size_t size, int yes) {
  struct codec_room *room = codec_room_take(L, key, size);
  room->peek = yes && codec_peek_fits(L);
  room->strings = yes ? codec_ahead_find(L) : NULL;
  codec_room_give(room);
  lua_pop(L, 1);
}

static int look(lua_State *L) {
  int yes = lua_toboolean(L, 1);
  set_look(L, KEY_READER, sizeof(struct codec_room), yes);
  set_look(L, KEY_WRITER, sizeof(struct write_room), yes);
  return 0;
}

struct test_map {
  struct codec_map map;
  void *heap;
};

static int map_gc(lua_State *L) {
  struct test_map *m = lua_touserdata(L, 1);
  codec_map_free(&m->heap);
  return 0;
}

static int new_map(lua_State *L) {
  struct test_map *m = lua_newuserdatauv(L, sizeof *m, 0);
  memset(m, 0, sizeof *m);
  codec_map_clear(&m->map, &m->heap);
  if (luaL_newmetatable(L, "codectest.map")) {
    lua_pushcfunction(L, map_gc);
    lua_setfield(L, -2, "__gc");
  }
  lua_setmetatable(L, -2);
  return 1;
}

static int meet(lua_State *L) {
  struct test_map *m = luaL_checkudata(L, 1, "codectest.map");
  const void *p = (const void *)(uintptr_t)luaL_checkinteger(L, 2);
  size_t at = 0;
  int met = codec_map_meet(&m->map, &m->heap, p, (size_t)luaL_checkinteger(L, 3), &at);
  if (met < 0) return luaL_error(L, "not enough memory");
  if (met) lua_pushinteger(L, (lua_Integer)at);
  return met;
}

static int forget(lua_State *L) {
  struct test_map *m = luaL_checkudata(L, 1, "codectest.map");
  codec_map_forget(&m->map, (size_t)luaL_checkinteger(L, 2));
  return 0;
}

static void found(void *arg, const char *name, size_t len) {
  lua_State *L = arg;
  lua_pushlstring(L, name, len);
  lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
}

static int globals(lua_State *L) {
  static const unsigned char env[256] = {1};
  size_t len;
  const unsigned char *dump = push_exactly(L, &len);
  lua_newtable(L);
  return codec_code_scan(dump, len, env, found, L) < 0 ? 0 : 1;
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
                                       {"plain", plain},
                                       {"seen", seen},
                                       {"taken", taken},
                                       {"run", run},
                                       {"ahead", ahead},
                                       {"fits", fits},
                                       {"keeps", keeps},
                                       {"look", look},
                                       {"map", new_map},
                                       {"meet", meet},
                                       {"forget", forget},
                                       {"limit", set_limit},
                                       {"register", register_name},
                                       {"userdata", new_userdata},
                                       {"number", number_of},
                                       {"lightuserdata", light},
                                       {"closure", closure},
                                       {"globals", globals},
                                       {NULL, NULL}};
  luaL_checkversion(L);
  codec_open(L);
  luaL_newlib(L, functions);
#ifdef PLUA_SMALL
  lua_pushboolean(L, 0);
#else
  lua_pushboolean(L, LUA_VERSION_RELEASE[0] != '0'); /* 5.4.0 has tables of another kind */
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
