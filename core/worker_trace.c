/* worker_trace.c: the calls that led to an error, told as luaL_traceback tells them.
   That one seeks each function among all that the loaded modules hold, each time: here the name
   that was found once, or that there is none, is remembered for as long as the function lives.
   Needs few places on the stack: there may be hardly any where it has overflowed.
   Knows Lua. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "worker.h"

enum { FIRST = 10, LAST = 11 }; /* levels that are told of a stack that is deep */

static const char names_key;

/* ---- names ---------------------------------------------------------------------------------- */

/* stack: ..., table. Pushes the key under which it, or a table in it, holds what lies at 'f'. */
static bool find(lua_State *L, int f, int levels) {
  if (!levels || !lua_istable(L, -1)) return false;
  for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING) continue;
    if (lua_rawequal(L, f, -1)) {
      lua_pop(L, 1);
      return true;
    }
    if (find(L, f, levels - 1)) { /* stack: ..., table, key, table, key */
      lua_pushliteral(L, ".");
      lua_replace(L, -3);
      lua_concat(L, 3);
      return true;
    }
  }
  return false;
}

/* Pushes the name by which a script can reach the function on top, or false. */
static void seek_name(lua_State *L) {
  int f = lua_gettop(L);
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (find(L, f, 2)) {
    const char *name = lua_tostring(L, -1);
    lua_pushstring(L, strncmp(name, "_G.", 3) == 0 ? name + 3 : name);
  } else {
    lua_pushboolean(L, 0);
  }
  lua_replace(L, f + 1);
  lua_settop(L, f + 1);
}

static void push_names(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &names_key) == LUA_TTABLE) return;
  lua_pop(L, 1);
  lua_newtable(L);
  lua_createtable(L, 0, 1);
  lua_pushliteral(L, "k");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_pushvalue(L, -1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &names_key);
}

/* Replaces the function on top by its name, or false. */
static void to_name(lua_State *L) {
  push_names(L);
  lua_insert(L, -2); /* stack: ..., names, function */
  lua_pushvalue(L, -1);
  if (lua_rawget(L, -3) == LUA_TNIL) {
    lua_pop(L, 1);
    seek_name(L);
    lua_pushvalue(L, -2);
    lua_pushvalue(L, -2);
    lua_rawset(L, -5);
  }
  lua_replace(L, -3);
  lua_pop(L, 1);
}

/* ---- levels --------------------------------------------------------------------------------- */

static int last_level(lua_State *L) {
  lua_Debug ar;
  int there = 0, beyond = 1;
  while (lua_getstack(L, beyond, &ar)) {
    there = beyond;
    beyond *= 2;
  }
  while (beyond - there > 1) {
    int middle = there + (beyond - there) / 2;
    if (lua_getstack(L, middle, &ar))
      there = middle;
    else
      beyond = middle;
  }
  return there;
}

/* Pushes what the function of a level is called. */
static void push_function(lua_State *L, lua_Debug *ar) {
  lua_getinfo(L, "f", ar);
  to_name(L);
  if (lua_toboolean(L, -1))
    lua_pushfstring(L, "function '%s'", lua_tostring(L, -1));
  else if (*ar->namewhat)
    lua_pushfstring(L, "%s '%s'", ar->namewhat, ar->name);
  else if (*ar->what == 'm')
    lua_pushliteral(L, "main chunk");
  else if (*ar->what != 'C')
    lua_pushfstring(L, "function <%s:%d>", ar->short_src, ar->linedefined);
  else
    lua_pushliteral(L, "?");
  lua_remove(L, -2);
}

static void push_level(lua_State *L, lua_Debug *ar) {
  lua_getinfo(L, "Slnt", ar);
  if (ar->currentline > 0)
    lua_pushfstring(L, "\n\t%s:%d: in ", ar->short_src, ar->currentline);
  else
    lua_pushfstring(L, "\n\t%s: in ", ar->short_src);
  push_function(L, ar);
  lua_pushstring(L, ar->istailcall ? "\n\t(...tail calls...)" : "");
  lua_concat(L, 3);
}

void trace_push(lua_State *L, int level) {
  lua_Debug ar;
  int last = last_level(L), more = last - level > FIRST + LAST ? FIRST : -1;
  lua_pushliteral(L, "stack traceback:");
  while (lua_getstack(L, level++, &ar)) {
    if (more-- == 0) {
      int skipped = last - level - LAST + 1;
      lua_pushfstring(L, "\n\t...\t(skipping %d levels)", skipped);
      level += skipped;
    } else {
      push_level(L, &ar);
    }
    lua_concat(L, 2);
  }
}
