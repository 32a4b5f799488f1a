/* codec_name.c: modules and their functions by name, both ways.
   A table in package.loaded goes by its name if it holds what cannot be copied (a function, a
   userdata, a thread) or has a metatable; a module of plain data goes as the table it is. C
   functions go by module and field; Lua functions too, unless the module is one of Lua's own
   libraries, where such a function is the script's addition.
   Invariant: the map of names holds only values that were found under that name; since fields
   change, each is looked up again before it is used. SPDX-License-Identifier: MIT */
#include <string.h>

#include "codec_peek.h"
#include "codec_state.h"

static const char *const own[] = {"string", "table", "math",      "io",     "os",
                                  "utf8",   "debug", "coroutine", "package"};
enum { OWN = sizeof own / sizeof *own };

static int is_own(const char *name) {
  for (int i = 0; i < OWN; i++)
    if (strcmp(name, own[i]) == 0) return 1;
  return strcmp(name, LUA_GNAME) == 0;
}

/* Whether the table at the top is more than data. */
static int is_code(lua_State *L) {
  if (lua_getmetatable(L, -1)) {
    lua_pop(L, 1);
    return 1;
  }
  lua_pushnil(L);
  while (lua_next(L, -2)) {
    int type = lua_type(L, -1);
    lua_pop(L, 1);
    if (type == LUA_TFUNCTION || type == LUA_TUSERDATA || type == LUA_TTHREAD) {
      lua_pop(L, 1);
      return 1;
    }
  }
  return 0;
}

/* stack: names, value, name. The first name that a value gets, it keeps; pops the name. */
static void note(lua_State *L) {
  lua_pushvalue(L, -2);
  if (lua_rawget(L, -4) != LUA_TNIL) {
    lua_pop(L, 2);
    return;
  }
  lua_pop(L, 1);
  lua_pushvalue(L, -2);
  lua_insert(L, -2);
  lua_rawset(L, -4);
}

/* stack: names, module. Notes the functions that are its fields. */
static void note_fields(lua_State *L, const char *name) {
  int lua_too = !is_own(name);
  lua_pushnil(L);
  while (lua_next(L, -2)) { /* stack: names, module, field, value */
    if (lua_type(L, -2) == LUA_TSTRING &&
        (lua_iscfunction(L, -1) || (lua_too && lua_isfunction(L, -1)))) {
      lua_pushvalue(L, -4);
      lua_insert(L, -2); /* stack: names, module, field, names, value */
      lua_pushstring(L, name);
      lua_pushlstring(L, "", 1);
      lua_pushvalue(L, -5);
      lua_concat(L, 3);
      note(L);
      lua_remove(L, -2);
    }
    lua_pop(L, 1);
  }
}

/* stack: names, module */
static void note_module(lua_State *L, const char *name) {
  if (strlen(name) == 0) return;
  int table = lua_istable(L, -1);
  if ((table && is_code(L)) || lua_isfunction(L, -1)) {
    lua_pushstring(L, name);
    note(L);
  }
  if (table) note_fields(L, name);
}

/* Lua's own libraries first, the globals last: of two names the more telling one stays. */
static void rebuild(lua_State *L) {
  codec_push(L, KEY_NAMES);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  int loaded = lua_gettop(L);
  for (int i = 0; i < OWN; i++) {
    lua_pushvalue(L, loaded - 1);
    if (lua_getfield(L, loaded, own[i]) == LUA_TTABLE) note_module(L, own[i]);
    lua_settop(L, loaded);
  }
  lua_pushnil(L);
  while (lua_next(L, loaded)) { /* stack: names, loaded, name, module */
    if (lua_type(L, -2) == LUA_TSTRING && !is_own(lua_tostring(L, -2))) {
      lua_pushvalue(L, loaded - 1);
      lua_insert(L, -2);
      note_module(L, lua_tostring(L, -3));
    }
    lua_settop(L, loaded + 1);
  }
  lua_pushvalue(L, loaded - 1);
  if (lua_getfield(L, loaded, LUA_GNAME) == LUA_TTABLE) note_module(L, LUA_GNAME);
  lua_settop(L, loaded - 2);
}

/* ---- modules that are new -------------------------------------------------------------------- */

/* What package.loaded held when all of it was on the map but what is data; its user value keeps
   that alive, so that no address is another's meanwhile. */
struct loaded {
  size_t n;
  struct seen_node {
    struct peek_node node;
    int data; /* to be looked at each time: it may become code */
  } at[];
};

static int kind_of(unsigned tag) {
  return tag & 0x0f;
}

static int is_module(const struct peek_node *n) {
  int kind = kind_of(n->tag);
  return kind_of(n->key_tag) == LUA_TSTRING && (kind == LUA_TTABLE || kind == LUA_TFUNCTION);
}

static size_t nodes_of(const struct peek_table *t) {
  return (size_t)1 << t->log_nodes;
}

/* As is_code, of a table that is looked into. */
static int is_code_seen(const struct peek_table *t) {
  enum { CODE = 1 << LUA_TFUNCTION | 1 << LUA_TUSERDATA | 1 << LUA_TTHREAD };
  unsigned found = 0;
  for (size_t i = codec_peek_items(t); i--;) found |= 1U << kind_of(t->array[i].tag);
  for (size_t i = nodes_of(t); i--;) found |= 1U << kind_of(t->node[i].tag);
  return t->meta || (found & CODE);
}

static int is_same(const struct loaded *seen, const struct peek_table *t) {
  if (!seen || seen->n != nodes_of(t)) return 0;
  for (size_t i = 0; i < seen->n; i++) {
    const struct peek_node *was = &seen->at[i].node, *is = &t->node[i];
    if (was->tag != is->tag || was->key_tag != is->key_tag) return 0;
    if (!is_module(is)) continue;
    if (was->value.pointer != is->value.pointer || was->key.pointer != is->key.pointer) return 0;
    if (seen->at[i].data && is_code_seen(is->value.pointer)) return 0;
  }
  return 1;
}

/* stack: ..., name, module. Whether the map has what ought to be there. */
static int is_known(lua_State *L, int names) {
  if (lua_type(L, -2) != LUA_TSTRING || (!lua_istable(L, -1) && !lua_isfunction(L, -1))) return 1;
  if (strlen(lua_tostring(L, -2)) == 0) return 1; /* no name, which no search would find */
  lua_pushvalue(L, -1);
  int known = lua_rawget(L, names) != LUA_TNIL;
  lua_pop(L, 1);
  return known;
}

/* stack: ..., list, userdata. Whether the map has all functions in it: a finalizer may have changed
   modules while room was made. From here on nothing is allocated, so that none does. A table that
   is not on the map is data until it is looked at. */
static int fill_loaded(lua_State *L, int names, struct loaded *seen, const struct peek_table *t) {
  int fine = 1;
  for (size_t i = 0; i < seen->n; i++) {
    seen->at[i] = (struct seen_node){t->node[i], 0};
    if (!is_module(&t->node[i])) continue;
    codec_peek_push(L, t->node[i].key, t->node[i].key_tag);
    codec_peek_push(L, t->node[i].value, t->node[i].tag);
    seen->at[i].data = !is_known(L, names);
    fine &= !seen->at[i].data || lua_istable(L, -1);
    lua_rawseti(L, -4, 2 * (lua_Integer)i + 2);
    lua_rawseti(L, -3, 2 * (lua_Integer)i + 1);
  }
  return fine;
}

static void remember_loaded(lua_State *L, int names, const struct peek_table *t) {
  size_t n = nodes_of(t);
  if (n > 1 << 16) return;
  lua_createtable(L, 2 * (int)n, 0);
  struct loaded *seen = lua_newuserdatauv(L, sizeof *seen + n * sizeof *seen->at, 1);
  seen->n = n;
  if (nodes_of(t) != n || !fill_loaded(L, names, seen, t)) seen->n = 0;
  lua_insert(L, -2);
  lua_setiuservalue(L, -2, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[KEY_LOADED]);
}

static void forget_loaded(lua_State *L) {
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[KEY_LOADED]);
}

void codec_names_refresh(lua_State *L, int peek) {
  luaL_checkstack(L, 16, NULL);
  int loaded = lua_gettop(L) + 1, names = loaded + 1, fresh = 0;
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  codec_push(L, KEY_LOADED);
  int same = peek && is_same(lua_touserdata(L, -1), codec_peek(L, loaded));
  lua_settop(L, loaded);
  if (!same) {
    codec_push(L, KEY_NAMES);
    lua_pushnil(L);
    while (!fresh && lua_next(L, loaded)) {
      fresh = !is_known(L, names) && (lua_isfunction(L, -1) || is_code(L));
      lua_pop(L, 1);
    }
    lua_settop(L, names);
    if (fresh)
      rebuild(L);
    else if (peek)
      remember_loaded(L, names, codec_peek(L, loaded));
  }
  lua_settop(L, loaded - 1);
}

/* ---- by value, and by name --------------------------------------------------------------------
 */

/* stack: value, its name. Whether the name still leads to the value. */
static int holds(lua_State *L) {
  int top = lua_gettop(L);
  size_t len;
  const char *name = lua_tolstring(L, -1, &len);
  size_t module = strlen(name);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_pushlstring(L, name, module);
  lua_rawget(L, -2);
  if (module < len && lua_istable(L, -1)) {
    lua_pushlstring(L, name + module + 1, len - module - 1);
    lua_rawget(L, -2);
  }
  int same = lua_rawequal(L, -1, top - 1);
  lua_settop(L, top);
  return same;
}

/* stack: value. Pushes the name on the map if it still holds. */
static int look(lua_State *L) {
  codec_push(L, KEY_NAMES);
  lua_pushvalue(L, -2);
  if (lua_rawget(L, -2) == LUA_TSTRING) {
    lua_remove(L, -2);
    if (holds(L)) return 1;
    forget_loaded(L);
    codec_push(L, KEY_NAMES); /* no more: forget it */
    lua_pushvalue(L, -3);
    lua_pushnil(L);
    lua_rawset(L, -3);
  }
  lua_pop(L, 2);
  return 0;
}

int codec_name_find(lua_State *L) {
  luaL_checkstack(L, 12, NULL);
  if (look(L)) return 1;
  if (!lua_iscfunction(L, -1)) return 0;
  rebuild(L);
  return look(L);
}

/* stack: nothing. Calls require(name). */
static int load_module(lua_State *L, const char *name) {
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, LUA_GNAME);
  lua_pushliteral(L, "require");
  if (lua_istable(L, -2)) lua_rawget(L, -2);
  lua_pushstring(L, name);
  int status = lua_pcall(L, 1, 1, 0);
  if (status != LUA_OK) {
    codec_blameless(L, status);
    const char *why = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "no message";
    lua_pushfstring(L, "module '%s' cannot be loaded here: %s", name, why);
    lua_remove(L, -2);
  }
  lua_insert(L, -3);
  lua_settop(L, -3);
  return status == LUA_OK ? 0 : PLUA_ECODEC;
}

int codec_name_module(lua_State *L, const char *name, int plain) {
  luaL_checkstack(L, 8, NULL);
  lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  lua_getfield(L, -1, name);
  lua_remove(L, -2);
  if (lua_toboolean(L, -1)) return 0;
  lua_pop(L, 1);
  if (!plain) return load_module(L, name);
  lua_pushfstring(L, "module '%s' is not loaded here", name);
  return PLUA_ECODEC;
}
