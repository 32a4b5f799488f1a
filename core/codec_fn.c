/* codec_fn.c: functions: by name where a module has them, else dump, upvalues and the globals that
   they read. Closures that share an upvalue still share it; all functions of a message whose
   globals are one table get one table of private globals on the other side.
   Works in the slow pass only. SPDX-License-Identifier: MIT */
#include "codec_peek.h"
#include "codec_write.h"

/* ---- dumps ---------------------------------------------------------------------------------- */

struct dump {
  int begun;
  luaL_Buffer b;
};

static int dump_more(lua_State *L, const void *p, size_t n, void *ud) {
  struct dump *d = ud;
  if (!d->begun) luaL_buffinit(L, &d->b);
  d->begun = 1;
  luaL_addlstring(&d->b, p, n);
  return 0;
}

/* Pushes the table of functions by where their code lies, or false. */
static void push_codes(lua_State *L) {
  if (codec_push(L, KEY_CODES) != LUA_TNIL) return;
  lua_pop(L, 1);
  if (codec_peek_code_fits(L)) {
    codec_open_weak(L, KEY_CODES, "v");
  } else {
    lua_pushboolean(L, 0);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &codec_keys[KEY_CODES]);
  }
  codec_push(L, KEY_CODES);
}

/* stack: Lua function, codes */
static const void *code_of(lua_State *L) {
  const struct peek_function *f = lua_topointer(L, -2);
  return lua_istable(L, -1) ? f->code : NULL;
}

const void *codec_code(lua_State *L) {
  luaL_checkstack(L, 12, NULL);
  if (lua_iscfunction(L, -1)) return NULL;
  if (codec_name_find(L)) {
    lua_pop(L, 1);
    return NULL;
  }
  push_codes(L);
  const void *code = code_of(L);
  lua_pop(L, 1);
  return code;
}

/* stack: function, codes, dumps. Pushes the dump of the function, or of the one that is known to
   have its code: while that one lives, nothing else lies there. */
static int push_known(lua_State *L, const void *code) {
  if (code)
    lua_rawgetp(L, -2, code);
  else
    lua_pushvalue(L, -3);
  if (lua_rawget(L, -2) == LUA_TSTRING) return 1;
  lua_pop(L, 1);
  return 0;
}

/* The same, where none is known. */
static void push_new(lua_State *L, const void *code) {
  struct dump d = {0, {0}};
  lua_pushvalue(L, -3);
  lua_dump(L, dump_more, &d, 0);
  luaL_pushresult(&d.b); /* stack: function, codes, dumps, function, dump */
  lua_pushvalue(L, -2);
  lua_pushvalue(L, -2);
  lua_rawset(L, -5);
  lua_insert(L, -2);
  if (code)
    lua_rawsetp(L, -4, code);
  else
    lua_pop(L, 1);
}

/* stack: function. Pushes its dump, kept for as long as the function lives, or the first one that
   was found to have its code. */
static void push_dump(lua_State *L) {
  push_codes(L);
  const void *code = code_of(L);
  codec_push(L, KEY_DUMPS);
  if (!push_known(L, code)) push_new(L, code);
  lua_replace(L, -3);
  lua_pop(L, 1);
}

/* ---- globals -------------------------------------------------------------------------------- */

/* Whether the value at the top, of an upvalue called 'name', is a table of globals: the state's
   own, a private one that came with a message, or an _ENV that falls back on other tables, such as
   test frameworks give to each file. An _ENV without metatable is a table like any other: what it
   lacks is meant to be lacking. */
static int is_env(lua_State *L, const char *name) {
  if (!lua_istable(L, -1)) return 0;
  lua_pushglobaltable(L);
  int yes = lua_rawequal(L, -1, -2);
  lua_pop(L, 1);
  if (yes || !lua_getmetatable(L, -1)) return yes;
  codec_push(L, KEY_ENV);
  yes = lua_rawequal(L, -1, -2);
  lua_pop(L, 1);
  if (!yes && strcmp(name, "_ENV") == 0) { /* a class that is registered stays one */
    codec_push(L, KEY_METAS);
    lua_pushvalue(L, -2);
    yes = lua_rawget(L, -2) == LUA_TNIL;
    lua_pop(L, 2);
  }
  lua_pop(L, 1);
  return yes;
}

/* The number of the env at the top, from 0. */
static int env_number(struct codec_writer *w) {
  lua_State *L = w->L;
  for (int i = 0; i < w->nenvs; i++) {
    lua_rawgeti(L, w->envs, 2 * (lua_Integer)i + 1);
    int same = lua_rawequal(L, -1, -2);
    lua_pop(L, 1);
    if (same) return i;
  }
  lua_pushvalue(L, -1);
  lua_rawseti(L, w->envs, 2 * (lua_Integer)w->nenvs + 1);
  lua_newtable(L);
  lua_pushinteger(L, 0);
  lua_rawseti(L, -2, 0);
  lua_rawseti(L, w->envs, 2 * (lua_Integer)w->nenvs + 2);
  return w->nenvs++;
}

/* stack: ..., names. A name that is new goes to the end of the list. */
static void want(void *arg, const char *name, size_t len) {
  lua_State *L = arg;
  lua_pushlstring(L, name, len);
  lua_pushvalue(L, -1);
  if (lua_rawget(L, -3) != LUA_TNIL) {
    lua_pop(L, 2);
    return;
  }
  lua_pop(L, 1);
  lua_pushvalue(L, -1);
  lua_rawseti(L, -3, (lua_Integer)lua_rawlen(L, -3) + 1);
  lua_pushboolean(L, 1);
  lua_rawset(L, -3);
}

/* stack: function, dump. Notes the globals that the function reads in each env among its
   upvalues. */
static int want_globals(struct codec_writer *w, int n) {
  lua_State *L = w->L;
  int fn = lua_gettop(L) - 1;
  unsigned char number[256] = {0}; /* env's number + 1, or more: only equal ones matter */
  int first = w->nenvs + 1, last = 0;
  for (int i = 1; i <= n; i++) {
    const char *name = lua_getupvalue(L, fn, i);
    int env = is_env(L, name) ? env_number(w) + 1 : 0;
    lua_pop(L, 1);
    if (env > 255) return codec_refuse(w, "functions with more than 255 tables of globals");
    number[i - 1] = (unsigned char)env;
    if (env && env < first) first = env;
    if (env > last) last = env;
  }
  size_t len;
  const unsigned char *dump = (const unsigned char *)lua_tolstring(L, -1, &len);
  for (int env = first; env <= last; env++) {
    unsigned char mine[256];
    for (int i = 0; i < 256; i++) mine[i] = number[i] == env;
    lua_rawgeti(L, w->envs, 2 * (lua_Integer)env);
    int err = codec_code_scan(dump, len, mine, want, L);
    lua_pop(L, 1);
    if (err < 0)
      return codec_refuse(w, "function whose globals cannot be found: "
                             "its bytecode is not of Lua 5.4");
  }
  return 0;
}

/* Drops what was written since 'from', and all memory of it. */
static void take_back(struct codec_writer *w, size_t from, uint32_t strings) {
  w->out->at = codec_at(w, from);
  codec_map_forget(&w->room->map, from);
  struct write_string *all = &w->room->strings[0][0][0];
  for (int k = 0; k < 2 * STRING_SETS * STRING_WAYS; k++) {
    struct write_string *e = &all[k];
    if (e->number > strings) e->message = 0;
  }
  w->strings = strings;
  w->depth = w->saving = 0;
}

/* stack: name, value. Writes the value, or in its place why it cannot cross. */
static int put_value_or_stub(struct codec_writer *w) {
  lua_State *L = w->L;
  int name = lua_gettop(L) - 1;
  size_t from = codec_here(w);
  uint32_t strings = w->strings;
  int err = codec_put_whole(w);
  if (err != PLUA_ECODEC && err != PLUA_EDEPTH) return err;
  take_back(w, from, strings);
  lua_pushfstring(L, "global '%s' cannot cross processes: %s", lua_tostring(L, name),
                  lua_tostring(L, -1));
  size_t len;
  const char *why = lua_tolstring(L, -1, &len);
  err = wire_put_tag(w->out, W_STUB);
  if (err == 0) err = wire_put_string(w->out, why, len);
  lua_settop(L, name);
  return err;
}

/* stack: env, name. Pushes what the env has under the name, or a table that it falls back on, or
   the state's globals. Raw: an __index that is a function is not asked. */
static void push_global(lua_State *L) {
  enum { FALLBACKS = 16 };
  int name = lua_gettop(L);
  lua_pushvalue(L, -2);
  for (int i = 0; i < FALLBACKS && lua_istable(L, -1); i++) {
    lua_pushvalue(L, name);
    if (lua_rawget(L, -2) != LUA_TNIL) break;
    lua_pop(L, 1);
    if (!lua_getmetatable(L, -1)) break;
    lua_pushliteral(L, "__index");
    lua_rawget(L, -2);
    lua_replace(L, name + 1);
    lua_settop(L, name + 1);
  }
  if (lua_gettop(L) == name + 1) {
    lua_pushglobaltable(L);
    lua_pushvalue(L, name);
    lua_rawget(L, -2);
  }
  lua_replace(L, name + 1);
  lua_settop(L, name + 1);
}

/* stack: env, name. Writes the global if it has a value; pops both. */
static int put_global(struct codec_writer *w, int env) {
  lua_State *L = w->L;
  int base = lua_gettop(L) - 2;
  push_global(L);
  int err = 0;
  if (!lua_isnil(L, -1)) {
    size_t len;
    const char *name = lua_tolstring(L, -2, &len);
    err = wire_put_u32(w->out, W_ENV, (uint32_t)env);
    if (err == 0) err = wire_put_string(w->out, name, len);
    if (err == 0) err = put_value_or_stub(w);
  }
  if (err == 0) lua_settop(L, base);
  return err;
}

/* Functions among the globals want more globals: goes on until none is new. */
static int put_wanted(struct codec_writer *w, int env, int *more) {
  lua_State *L = w->L;
  for (;;) {
    lua_rawgeti(L, w->envs, 2 * (lua_Integer)env + 2);
    lua_rawgeti(L, -1, 0);
    lua_Integer next = lua_tointeger(L, -1) + 1;
    lua_pop(L, 1);
    if (lua_rawgeti(L, -1, next) == LUA_TNIL) break;
    lua_pushinteger(L, next);
    lua_rawseti(L, -3, 0);
    lua_rawgeti(L, w->envs, 2 * (lua_Integer)env + 1);
    lua_replace(L, -3);
    int err = put_global(w, env);
    if (err < 0) return err;
    *more = 1;
  }
  lua_pop(L, 2);
  return 0;
}

int codec_put_globals(struct codec_writer *w) {
  int more;
  w->value = 0; /* paths begin at the global */
  do {
    more = 0;
    for (int env = 0; env < w->nenvs; env++) {
      int err = put_wanted(w, env, &more);
      if (err < 0) return err;
    }
  } while (more);
  return wire_put_tag(w->out, W_END);
}

/* ---- functions ------------------------------------------------------------------------------ */

int codec_put_named(struct codec_writer *w) {
  lua_State *L = w->L;
  if (!codec_name_find(L)) return 0;
  size_t len;
  const char *name = lua_tolstring(L, -1, &len);
  size_t module = strlen(name);
  int err = wire_put_tag(w->out, module < len ? W_FIELD : W_MODULE);
  if (err == 0) err = wire_put_string(w->out, name, module);
  if (err == 0 && module < len) err = wire_put_string(w->out, name + module + 1, len - module - 1);
  lua_pop(L, 1);
  return err < 0 ? err : 1;
}

/* stack: function, dump */
static int put_code(struct codec_writer *w, int n) {
  size_t len;
  const char *dump = lua_tolstring(w->L, -1, &len);
  unsigned char upvalues = (unsigned char)n;
  int err = wire_put_u64(w->out, W_CODE, len);
  if (err == 0) err = plua_write(w->out, dump, len);
  if (err == 0) err = plua_write(w->out, &upvalues, 1);
  return err;
}

int codec_put_function(struct codec_writer *w) {
  lua_State *L = w->L;
  lua_Debug ar;
  luaL_checkstack(L, 12, NULL);
  int err = codec_put_named(w);
  if (err) return err < 0 ? err : 0;
  if (lua_iscfunction(L, -1)) return codec_refuse(w, "C function without a name in a module");
  err = codec_put_again(w, lua_topointer(L, -1));
  if (err) return err < 0 ? err : 0;
  lua_pushvalue(L, -1);
  lua_getinfo(L, ">u", &ar);
  push_dump(L);
  err = want_globals(w, ar.nups);
  if (err == 0) err = put_code(w, ar.nups);
  if (err < 0) return err;
  lua_pop(L, 1);
  struct write_frame *f = codec_frame(w, F_CELLS);
  if (!f) return codec_refuse_depth(w);
  f->i = 0;
  f->n = ar.nups;
  return CODEC_OPENED;
}

/* Writes the value of upvalue f->i, its cell being new. */
static int put_cell(struct codec_writer *w, struct write_frame *f) {
  lua_State *L = w->L;
  int err = wire_put_tag(w->out, W_CELL);
  if (err < 0) return err;
  const char *name = lua_getupvalue(L, f->at, f->i);
  if (is_env(L, name))
    err = wire_put_u32(w->out, W_ENV, (uint32_t)env_number(w));
  else
    err = codec_put(w);
  if (err == 0) lua_pop(L, 1);
  return err;
}

int codec_step_cells(struct codec_writer *w, struct write_frame *f) {
  while (f->i < f->n) {
    f->i++;
    size_t at = 0;
    const void *id = lua_upvalueid(w->L, f->at, f->i);
    int err = codec_map_meet(&w->room->map, &w->room->room.heap, id, codec_here(w), &at);
    if (err < 0) return err;
    if (err) {
      *codec_at(w, at) |= W_SHARED;
      err = wire_put_u64(w->out, W_CELLREF, at);
    } else {
      err = put_cell(w, f);
    }
    if (err) return err;
    f = codec_top(w); /* what was written may have moved all frames */
  }
  codec_unframe(w);
  return 0;
}
