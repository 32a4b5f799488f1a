/* codec_path.c: where in a value something cannot cross, as a person would write it:
   .conn.socket, [3].cb, .upvalue 'log'. Long paths keep their ends.
   Reads the writer's frames; changes nothing. SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>

#include "codec_write.h"

static int is_name(const char *s, size_t len) {
  if (!len || isdigit((unsigned char)*s)) return 0;
  for (size_t i = 0; i < len; i++)
    if (!isalnum((unsigned char)s[i]) && s[i] != '_') return 0;
  return 1;
}

static void add_string_key(luaL_Buffer *b, const char *s, size_t len) {
  enum { SHOWN = 40 };
  if (len <= SHOWN && is_name(s, len)) {
    luaL_addchar(b, '.');
    luaL_addlstring(b, s, len);
    return;
  }
  luaL_addstring(b, "[\"");
  for (size_t i = 0; i < len && i < SHOWN; i++)
    luaL_addchar(b, iscntrl((unsigned char)s[i]) ? '?' : s[i]);
  luaL_addstring(b, len > SHOWN ? "...\"]" : "\"]");
}

static void add_key(lua_State *L, luaL_Buffer *b, int key) {
  char text[64];
  size_t len;
  const char *s;
  switch (lua_type(L, key)) {
  case LUA_TSTRING:
    s = lua_tolstring(L, key, &len);
    add_string_key(b, s, len);
    return;
  case LUA_TNUMBER:
    if (lua_isinteger(L, key))
      snprintf(text, sizeof text, "[%lld]", (long long)lua_tointeger(L, key));
    else
      snprintf(text, sizeof text, "[%.14g]", (double)lua_tonumber(L, key));
    break;
  case LUA_TBOOLEAN:
    snprintf(text, sizeof text, "[%s]", lua_toboolean(L, key) ? "true" : "false");
    break;
  default:
    snprintf(text, sizeof text, "[%s]", luaL_typename(L, key));
  }
  luaL_addstring(b, text);
}

/* The upvalue's value lies above the function, so that its name is all that is asked for here. */
static void add_upvalue(lua_State *L, luaL_Buffer *b, const struct write_frame *f) {
  char text[96];
  const char *name = lua_getupvalue(L, f->at, f->i);
  if (name) lua_pop(L, 1);
  if (name && *name && *name != '(')
    snprintf(text, sizeof text, ".upvalue '%s'", name);
  else
    snprintf(text, sizeof text, ".upvalue %d", f->i);
  luaL_addstring(b, text);
}

static void add_frame(lua_State *L, luaL_Buffer *b, const struct write_frame *f) {
  switch (f->kind) {
  case F_TABLE:
    if (f->state == T_VALUE) add_key(L, b, f->at + 1);
    if (f->state == T_KEY) luaL_addstring(b, " (a key)");
    return;
  case F_SAVED:
    luaL_addstring(b, ".__plua_save()");
    return;
  case F_CELLS:
    add_upvalue(L, b, f);
    return;
  }
}

static void push_path(struct codec_writer *w) {
  enum { FIRST = 12, LAST = 2 };
  const struct write_frame *f = w->room->room.frames;
  luaL_Buffer b;
  luaL_buffinit(w->L, &b);
  for (int i = 0; i < w->depth; i++) {
    if (i == FIRST && w->depth > FIRST + LAST) {
      luaL_addstring(&b, "...");
      i = w->depth - LAST;
    }
    add_frame(w->L, &b, &f[i]);
  }
  luaL_pushresult(&b);
}

static int refuse(struct codec_writer *w, int code, const char *what) {
  lua_State *L = w->L;
  luaL_checkstack(L, 16, NULL);
  push_path(w);
  const char *path = lua_tostring(L, -1);
  const char *gap = *path ? ": " : "";
  if (w->n == 1 || w->value == 0)
    lua_pushfstring(L, "%s%s%s", path, gap, what);
  else
    lua_pushfstring(L, "value %d%s: %s", w->value, path, what);
  return code;
}

int codec_refuse(struct codec_writer *w, const char *fmt, ...) {
  char what[512];
  va_list args;
  va_start(args, fmt);
  vsnprintf(what, sizeof what, fmt, args);
  va_end(args);
  return refuse(w, PLUA_ECODEC, what);
}

int codec_refuse_depth(struct codec_writer *w) {
  char what[64];
  snprintf(what, sizeof what, "nested more than %d deep", w->depth);
  return refuse(w, PLUA_EDEPTH, what);
}
