/* codec.c: what the codec keeps in a Lua state: registered metatables, working memory, the
   metatables of private globals and of stubs.

   For users, the metafields by which classes and userdata cross (both sides register them):
     plua.register(name, metatable)   tables with this metatable cross as tables and get it back
     __plua_save(object) -> value     what crosses in the object's place: one value, of any kind
                                      that can cross itself; it may hold tables, not the object
     __plua_load(value) -> object     makes the object anew on the other side; nil is an error
   An error in a hook becomes the refusal of the value, an interrupt there is raised. No other
   metamethod runs: tables are read and filled raw, whatever __index, __pairs or __metatable say.

   Knows the registry. Does not know the bytes of a message. SPDX-License-Identifier: MIT */
#include "codec.h"

#include <string.h>

#include "codec_ahead.h"
#include "codec_peek.h"
#include "codec_state.h"

const char codec_keys[KEY_COUNT];

int codec_interrupted(struct lua_State *L) {
  static const char end[] = "interrupted!";
  size_t len = 0, tail = sizeof end - 1;
  const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, &len) : NULL;
  return len >= tail && memcmp(text + len - tail, end, tail) == 0;
}

void codec_blameless(lua_State *L, int status) {
  if (status == LUA_ERRMEM || codec_interrupted(L)) lua_error(L);
}

static int room_gc(lua_State *L) {
  struct codec_room *room = lua_touserdata(L, 1);
  free(room->frames);
  codec_map_free(&room->heap);
  room->frames = NULL;
  room->cap = 0;
  return 0;
}

void *codec_room_take(lua_State *L, enum codec_key key, size_t size) {
  codec_push(L, key);
  struct codec_room *room = lua_touserdata(L, -1);
  if (UNLIKELY(!room || room->busy)) {
    lua_pop(L, 1);
    codec_open(L);
    room = lua_newuserdatauv(L, size, 0);
    memset(room, 0, size);
    codec_push(L, KEY_ROOM);
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[key]);
    room->peek = codec_peek_fits(L);
    room->strings = codec_ahead_find(L);
  }
  room->busy = 1;
  return room;
}

void codec_room_give(struct codec_room *room) {
  enum { KEEP = 256 };
  if (room->cap > KEEP) {
    free(room->frames);
    room->frames = NULL;
    room->cap = 0;
  }
  codec_map_free(&room->heap);
  room->busy = 0;
}

/* Whatever is done with a stub tells why its global is missing here. */
static int stub_raise(lua_State *L) {
  int n = lua_gettop(L);
  codec_push(L, KEY_STUB);
  for (int i = 1; i <= n; i++) {
    if (!lua_getmetatable(L, i)) continue;
    if (lua_rawequal(L, -1, n + 1) && lua_istable(L, i) &&
        lua_rawgetp(L, i, &codec_keys[KEY_STUB]) == LUA_TSTRING) {
      luaL_where(L, 1);
      lua_insert(L, -2);
      lua_concat(L, 2);
      return lua_error(L);
    }
    lua_settop(L, n + 1);
  }
  return luaL_error(L, "this global could not cross processes");
}

static void open_stub(lua_State *L) {
  static const char *const events[] = {"__index",  "__newindex", "__call",     "__len",   "__pairs",
                                       "__concat", "__unm",      "__add",      "__sub",   "__mul",
                                       "__div",    "__mod",      "__pow",      "__idiv",  "__band",
                                       "__bor",    "__bxor",     "__shl",      "__shr",   "__bnot",
                                       "__lt",     "__le",       "__tostring", "__close", NULL};
  lua_createtable(L, 0, 32);
  for (const char *const *event = events; *event; event++) {
    lua_pushcfunction(L, stub_raise);
    lua_setfield(L, -2, *event);
  }
  lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[KEY_STUB]);
}

void codec_open_weak(lua_State *L, enum codec_key key, const char *mode) {
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushstring(L, mode);
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[key]);
}

static void open_env(lua_State *L) {
  lua_createtable(L, 0, 1);
  lua_pushglobaltable(L);
  lua_setfield(L, -2, "__index");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[KEY_ENV]);
}

void codec_open(struct lua_State *L) {
  luaL_checkstack(L, 8, "codec");
  /* The last entry made is the sign that all are there. */
  int done = codec_push(L, KEY_METAS) == LUA_TTABLE;
  lua_pop(L, 1);
  if (done) return;
  codec_open_weak(L, KEY_NAMES, "k");
  codec_open_weak(L, KEY_DUMPS, "k");
  open_env(L);
  open_stub(L);
  lua_createtable(L, 0, 1);
  lua_pushcfunction(L, room_gc);
  lua_setfield(L, -2, "__gc");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[KEY_ROOM]);
  lua_newtable(L);
  lua_pushliteral(L, "__plua_save"); /* at hand where nothing may be allocated */
  lua_rawseti(L, -2, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[KEY_METAS]);
}

void codec_register(struct lua_State *L, const char *name) {
  luaL_checktype(L, -1, LUA_TTABLE);
  codec_open(L);
  codec_push(L, KEY_METAS); /* stack: metatable, metas */
  lua_pushstring(L, name);
  if (lua_rawget(L, -2) == LUA_TTABLE) { /* what had the name must not become what has it now */
    lua_pushnil(L);
    lua_rawset(L, -3);
  } else {
    lua_pop(L, 1);
  }
  lua_pushvalue(L, -2);
  lua_pushstring(L, name);
  lua_rawset(L, -3);
  lua_pushstring(L, name);
  lua_pushvalue(L, -3);
  lua_rawset(L, -3);
  lua_pop(L, 2);
}
