/* codec_encode.c: a message from its values: the way in for one plain value, the fast pass, the
   slow one. Whatever fails, the caller's stack ends as codec.h says.
   SPDX-License-Identifier: MIT */
#include "codec_plain.h"
#include "codec_write.h"

static int put_values(struct codec_writer *w, int first) {
  int err = 0;
  if (w->n != 1) err = wire_put_u32(w->out, W_VALUES, (uint32_t)w->n);
  for (w->value = 1; err == 0 && w->value <= w->n; w->value++) {
    lua_pushvalue(w->L, first + w->value - 1);
    err = codec_put_whole(w);
    if (err < 0) break; /* 'value' is the one that failed */
  }
  return err;
}

/* Takes working memory (pushed) and begins anew at the message's base. */
static void begin(struct codec_writer *w) {
  w->room = codec_room_take(w->L, KEY_WRITER, sizeof *w->room);
  codec_map_clear(&w->room->map, &w->room->room.heap);
  if (++w->room->message == 0) {
    memset(w->room->strings, 0, sizeof w->room->strings);
    w->room->message = 1;
  }
  if (w->out->begin) w->out->at = w->out->begin + w->base;
  w->depth = w->saving = w->nenvs = 0;
  w->strings = 0;
}

static int fast_pass(struct codec_writer *w, int first) {
  begin(w);
  int err = put_values(w, first);
  codec_room_give(&w->room->room);
  return err;
}

/* stack: the writer, the values. Answers the refusal, if there is one. */
static int slow_body(lua_State *L) {
  struct codec_writer *w = lua_touserdata(L, 1);
  w->L = L;
  begin(w);
  codec_names_refresh(L, w->room->room.peek);
  lua_createtable(L, 0, 8); /* most functions bring no more along */
  w->keep = lua_gettop(L);
  lua_createtable(L, 2, 0);
  w->envs = lua_gettop(L);
  int err = put_values(w, 2);
  if (err == 0 && w->nenvs) err = codec_put_globals(w);
  codec_room_give(&w->room->room);
  lua_pushinteger(L, err);
  lua_insert(L, -2);
  return 2; /* the code, and the message if there is one */
}

/* Pushes the message where it fails. An error that no hook raised can come from a table that was
   changed while it was written, by a hook or a finalizer, or from memory. */
static int slow_pass(struct codec_writer *w, int first) {
  lua_State *L = w->L;
  w->slow = 1;
  w->give_up = 0;
  lua_pushcfunction(L, slow_body);
  lua_pushlightuserdata(L, w);
  for (int i = 0; i < w->n; i++) lua_pushvalue(L, first + i);
  int status = lua_pcall(L, w->n + 1, 2, 0);
  w->L = L;
  if (status != LUA_OK) {
    codec_blameless(L, status);
    return PLUA_ECODEC;
  }
  int err = (int)lua_tointeger(L, -2);
  return err;
}

COLD static int refused(lua_State *L, int err, const char *why) {
  luaL_checkstack(L, 1, NULL);
  lua_pushstring(L, why);
  return err;
}

static int write_nested(lua_State *L, int n, plua_out *out) {
  int top = lua_gettop(L), first = top - n + 1;
  struct codec_writer w;
  memset(&w, 0, sizeof w);
  w.L = L;
  w.out = out;
  w.n = n;
  w.base = (size_t)(out->at - out->begin);
  if (!lua_checkstack(L, n + 24)) return refused(L, PLUA_ECODEC, "too many values for one message");
  int err = fast_pass(&w, first);
  if (w.give_up) {
    lua_settop(L, top);
    err = slow_pass(&w, first);
  }
  if (err == 0) {
    lua_settop(L, top);
    return 0;
  }
  if ((err != PLUA_ECODEC && err != PLUA_EDEPTH) || lua_type(L, -1) != LUA_TSTRING)
    lua_pushstring(L, err == PLUA_ECODEC ? "an error that is no string" : plua_strerror(err));
  lua_insert(L, top + 1);
  lua_settop(L, top + 1);
  return err;
}

int codec_write(struct lua_State *L, int n, struct plua_out *out) {
  int err = LIKELY(n == 1) ? codec_plain_write(L, out) : 1;
  if (LIKELY(err == 0)) return 0;
  return err < 0 ? refused(L, err, plua_strerror(err)) : write_nested(L, n, out);
}
