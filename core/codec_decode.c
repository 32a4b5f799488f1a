/* codec_decode.c: the values of a message: the way in for one plain value, the whole message, the
   collector's pause for large ones. Whatever fails, the caller's stack ends as codec.h says.
   SPDX-License-Identifier: MIT */
#include <limits.h>

#include "codec_plain.h"
#include "codec_read.h"

/* stack: room, met, envs. Pushes the values; answers how many. */
static int take_values(struct codec_reader *r) {
  uint32_t n = 1;
  if (codec_left(r, 5) && *r->p == W_VALUES) {
    memcpy(&n, r->p + 1, sizeof n);
    r->p += 5;
  }
  if (n && r->p == r->end) return codec_malformed(r, "it is cut short");
  if (!codec_left(r, n) || n > INT_MAX - 16 || !lua_checkstack(r->L, (int)n + 16))
    return codec_malformed(r, "more values than it can hold");
  for (uint32_t i = 0; i < n; i++) {
    r->owed = n - i - 1;
    int err = codec_take_whole(r);
    if (err < 0) return err;
  }
  r->owed = 0;
  int err = r->nenvs ? codec_take_globals(r) : 0;
  return err < 0 ? err : (int)n;
}

/* Pushes the values of the message and answers how many, or pushes the reason. */
static int read_nested(struct codec_reader *r) {
  lua_State *L = r->L;
  int top = lua_gettop(L);
  luaL_checkstack(L, 16, NULL);
  r->room = codec_room_take(L, KEY_READER, sizeof *r->room);
  r->ahead.strings = r->room->strings;
  lua_pushnil(L);
  r->met = top + 2;
  lua_pushnil(L);
  r->envs = top + 3;
  int n = take_values(r);
  codec_room_give(r->room);
  if (n < 0) {
    lua_insert(L, top + 1);
    lua_settop(L, top + 1);
    return n;
  }
  if (n == 1)
    lua_replace(L, top + 1);
  else
    lua_rotate(L, top + 1, -3);
  lua_settop(L, top + n);
  return n;
}

static int paused_body(lua_State *L) {
  struct codec_reader *r = lua_touserdata(L, 1);
  r->L = L;
  lua_settop(L, 0);
  r->n = read_nested(r);
  return lua_gettop(L);
}

/* A message that makes the heap grow by half or more: all that it makes lives, and a collector that
   runs meanwhile doubles the time for nothing. It begins a cycle right afterwards, as it would have
   anyway; protected, so that an error does not leave it off. */
static int read_paused(struct codec_reader *r) {
  lua_State *L = r->L;
  luaL_checkstack(L, 4, NULL);
  lua_gc(L, LUA_GCSTOP);
  r->paused = 1;
  lua_pushcfunction(L, paused_body);
  lua_pushlightuserdata(L, r);
  int status = lua_pcall(L, 1, LUA_MULTRET, 0);
  r->L = L;
  codec_resume_gc(r);
  if (status != LUA_OK) return lua_error(L);
  return r->n;
}

static int is_large(lua_State *L, size_t len) {
  enum { LARGE = 1 << 20 };
  return len >= LARGE && len / 128 >= (size_t)lua_gc(L, LUA_GCCOUNT) && lua_gc(L, LUA_GCISRUNNING);
}

static int read_message(lua_State *L, const void *bytes, size_t len, size_t *used, int plain) {
  size_t took = codec_plain_read(L, bytes, len);
  int n = 1;
  if (UNLIKELY(!took)) {
    struct codec_reader r;
    memset(&r, 0, sizeof r);
    r.L = L;
    r.begin = r.p = r.ahead.p = bytes;
    r.end = r.begin + len;
    r.plain = plain;
    n = is_large(L, len) ? read_paused(&r) : read_nested(&r);
    took = (size_t)(r.p - r.begin);
  }
  if (used && n >= 0) *used = took;
  return n;
}

int codec_read(struct lua_State *L, const void *bytes, size_t len, size_t *used) {
  return read_message(L, bytes, len, used, 0);
}

int codec_read_plain(struct lua_State *L, const void *bytes, size_t len, size_t *used) {
  return read_message(L, bytes, len, used, READ_DATA);
}

int codec_read_quiet(struct lua_State *L, const void *bytes, size_t len) {
  return read_message(L, bytes, len, NULL, READ_QUIET);
}
