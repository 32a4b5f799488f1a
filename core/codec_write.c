/* codec_write.c: values to bytes: plain values, strings, tables; the frames of what is nested.
   Invariant: between two steps, Lua's stack holds the frames' values and what each works on, and
   the bytes since the message's base are right but for the counts of open tables.
   Only raw access: no metamethod runs here. What is seen in Lua's memory is in codec_seen.c.
   SPDX-License-Identifier: MIT */
#include "codec_write.h"

#include <errno.h>
#include <stdbool.h>

/* ---- strings -------------------------------------------------------------------------------- */

static struct write_string *string_set(struct codec_writer *w, const char *s, int key) {
  uint64_t h = (uint64_t)(uintptr_t)s * 0x9E3779B97F4A7C15u;
  return w->room->strings[key][h >> STRING_SHIFT];
}

/* Gives the string its number. What is remembered by address must not be collected. */
static int define(struct codec_writer *w, struct write_string *e, size_t len) {
  if (w->slow) {
    lua_pushlstring(w->L, e->s, len);
    lua_pushboolean(w->L, 1);
    lua_rawset(w->L, w->keep);
  }
  e->number = ++w->strings;
  int err = plua_room(w->out, len + 2);
  if (err < 0) return err;
  *w->out->at++ = W_SDEF;
  *w->out->at++ = (unsigned char)len;
  return plua_write(w->out, e->s, len);
}

static bool is_mine(const struct codec_writer *w, const struct write_string *e) {
  return e->message == w->room->message;
}

/* The one met last stands first; those that have a number stay. */
static void note_string(const struct codec_writer *w, struct write_string *set, const char *s) {
  const struct write_string fresh = {s, w->room->message, 0};
  bool first_stays = is_mine(w, &set[0]) && set[0].number;
  bool second_stays = is_mine(w, &set[1]) && set[1].number;
  if (!first_stays && !second_stays) set[1] = set[0];
  if (!first_stays)
    set[0] = fresh;
  else if (!second_stays)
    set[1] = fresh;
}

static int put_short(struct codec_writer *w, const char *s, size_t len, int key) {
  struct write_string *e = string_set(w, s, key), *set = e;
  if (e->s != s) e++;
  if (LIKELY(e->s == s && is_mine(w, e))) {
    unsigned char number = (unsigned char)(e->number - 1);
    if (e->number) return wire_put(w->out, W_SREF, &number, 1);
    if (w->strings < W_STRINGS) return define(w, e, len);
  } else {
    note_string(w, set, s);
  }
  return wire_put_string(w->out, s, len);
}

static int put_long(struct codec_writer *w, const char *s, size_t len) {
  int again = w->slow ? 0 : codec_put_again(w, s);
  if (again) return again < 0 ? again : 0;
  int err = wire_put_u64(w->out, W_LONG, len);
  return err < 0 ? err : plua_write(w->out, s, len);
}

int codec_put_string(struct codec_writer *w, const char *s, size_t len, int key) {
  if (len <= CODEC_SHORT_LEN) return put_short(w, s, len, key);
  return len < 64 ? wire_put_string(w->out, s, len) : put_long(w, s, len);
}

/* ---- references ----------------------------------------------------------------------------- */

static int put_ref(struct codec_writer *w, size_t at) {
  *codec_at(w, at) |= W_SHARED;
  if (at > UINT32_MAX) return wire_put_u64(w->out, W_REF64, at);
  return wire_put_u32(w->out, W_REF32, (uint32_t)at);
}

/* An object that is made anew from its saved value cannot be inside that value. */
static int is_saving(struct codec_writer *w, size_t at) {
  const struct write_frame *f = w->room->room.frames;
  for (int i = 0; i < w->depth; i++)
    if (f[i].kind == F_SAVED && f[i].head == at) return 1;
  return 0;
}

int codec_put_again(struct codec_writer *w, const void *p) {
  size_t at = 0;
  int met = codec_map_meet(&w->room->map, &w->room->room.heap, p, codec_here(w), &at);
  if (met < 0) return met;
  if (met) {
    if (w->saving && is_saving(w, at))
      return codec_refuse(w, "what __plua_save gave holds the object itself");
    int err = put_ref(w, at);
    return err < 0 ? err : 1;
  }
  if (w->slow && lua_type(w->L, -1) != LUA_TSTRING) {
    lua_pushvalue(w->L, -1);
    lua_pushboolean(w->L, 1);
    lua_rawset(w->L, w->keep);
  }
  return 0;
}

/* ---- frames --------------------------------------------------------------------------------- */

struct write_frame *codec_frame(struct codec_writer *w, enum write_kind kind) {
  struct codec_room *room = &w->room->room;
  size_t need = (size_t)w->depth + 1;
  if (need > CODEC_DEPTH || !lua_checkstack(w->L, 12)) return NULL;
  if (need > room->cap && grow(&room->frames, &room->cap, need, sizeof(struct write_frame)) < 0)
    return NULL;
  struct write_frame *f = (struct write_frame *)room->frames + w->depth++;
  f->kind = kind;
  f->at = lua_gettop(w->L);
  return f;
}

struct write_frame *codec_top(const struct codec_writer *w) {
  return (struct write_frame *)w->room->room.frames + w->depth - 1;
}

void codec_unframe(struct codec_writer *w) {
  struct write_frame *f = codec_top(w);
  w->depth--;
  if (f->kind == F_SAVED) w->saving--;
  lua_settop(w->L, f->at - 1);
}

/* ---- tables --------------------------------------------------------------------------------- */

/* stack: table, 1, a number. Puts the numbers of one kind that lie at 1, 2, ... raw, behind each
   other. Answers how many, with the pair behind them on the stack; *more: is there one. */
static int put_run(struct codec_writer *w, int at, uint32_t *n, int *more) {
  lua_State *L = w->L;
  int integers = lua_isinteger(L, -1);
  size_t head = codec_here(w);
  int err = wire_put_u32(w->out, integers ? W_INTS : W_FLOATS, 0);
  if (err < 0) return err;
  uint32_t i = 0;
  do {
    if (lua_type(L, -1) != LUA_TNUMBER || lua_isinteger(L, -1) != integers) break;
    if (!lua_isinteger(L, -2) || lua_tointeger(L, -2) != (lua_Integer)i + 1) break;
    if ((err = plua_room(w->out, 8)) < 0) return err;
    if (integers) {
      lua_Integer v = lua_tointeger(L, -1);
      memcpy(w->out->at, &v, sizeof v);
    } else {
      lua_Number v = lua_tonumber(L, -1);
      memcpy(w->out->at, &v, sizeof v);
    }
    w->out->at += 8;
    i++;
    lua_pop(L, 1);
    *more = lua_next(L, at);
  } while (*more);
  memcpy(codec_at(w, head) + 1, &i, sizeof i);
  *n = i;
  return 0;
}

int codec_open_table(struct codec_writer *w) {
  lua_State *L = w->L;
  if (w->room->room.peek && !w->slow) return codec_open_seen(w);
  struct write_frame *f = codec_frame(w, F_TABLE);
  if (!f) return codec_refuse_depth(w);
  uint32_t n = 0;
  int err = 0, run = 0;
  lua_pushnil(L);
  f->state = T_NEXT; /* what a refusal reads */
  int more = lua_next(L, f->at);
  if (more && lua_type(L, -1) == LUA_TNUMBER && lua_isinteger(L, -2) && lua_tointeger(L, -2) == 1) {
    err = put_run(w, f->at, &n, &more);
    run = 1;
  }
  if (err == 0 && !run) err = wire_put_tag(w->out, W_TABLE);
  f->head = codec_here(w);
  if (err == 0) err = codec_put_counts(w);
  if (err < 0) return err;
  f->state = T_PAIR;
  f->expect = (lua_Integer)n + 1;
  f->items = f->pairs = 0;
  f->seen = NULL;
  if (more) return CODEC_OPENED;
  w->depth--;
  return 0; /* the table stays on the stack, as for every value that opened nothing */
}

static int put_table(struct codec_writer *w) {
  if (lua_getmetatable(w->L, -1)) return codec_put_object(w);
  int done = w->slow ? codec_put_named(w) : 0;
  if (done == 0) done = codec_put_again(w, lua_topointer(w->L, -1));
  if (done) return done < 0 ? done : 0;
  return codec_open_table(w);
}

/* stack: table, key, value. Writes the key; 1: it is a table and its frame is open, over a copy. */
static int put_key(struct codec_writer *w) {
  lua_State *L = w->L;
  if (lua_type(L, -2) == LUA_TSTRING) {
    size_t len;
    const char *s = lua_tolstring(L, -2, &len);
    return codec_put_string(w, s, len, 1);
  }
  lua_pushvalue(L, -2);
  int err = codec_put(w);
  if (err == 0) lua_pop(L, 1);
  return err;
}

/* stack: key, value. The key, if it is an integer, else 0, which is never due. */
static lua_Integer key_number(lua_State *L) {
  return lua_isinteger(L, -2) ? lua_tointeger(L, -2) : 0;
}

static int step_table(struct codec_writer *w, struct write_frame *f) {
  lua_State *L = w->L;
  for (;; f = codec_top(w)) { /* a value that was written may have moved all frames */
    int err;
    if (f->state == T_NEXT) {
      if ((err = f->seen ? codec_next_seen(w, f) : lua_next(L, f->at)) < 0) return err;
      if (!err) break;
      f->state = T_PAIR;
    }
    if (f->state == T_PAIR && !codec_is_item(f, key_number(L))) {
      f->state = T_KEY;
      if ((err = put_key(w)) != 0) return err;
      f = codec_top(w);
    }
    if (f->state == T_VALUE) { /* the value was a nest and is written; so is its slot popped */
      f->state = T_NEXT;
      continue;
    }
    f->state = T_VALUE;
    if ((err = codec_put(w)) != 0) return err;
    lua_pop(L, 1);
    codec_top(w)->state = T_NEXT;
  }
  codec_patch_counts(w, f);
  codec_unframe(w);
  return 0;
}

/* ---- values --------------------------------------------------------------------------------- */

/* The table that holds it may be a module, which goes by name: the slow pass knows. */
static int put_nothing(struct codec_writer *w, const char *kind) {
  return w->slow ? codec_refuse(w, "%s", kind) : codec_give_up(w);
}

int codec_put(struct codec_writer *w) {
  lua_State *L = w->L;
  size_t len;
  const char *s;
  switch (lua_type(L, -1)) {
  case LUA_TNIL:
    return wire_put_tag(w->out, W_NIL);
  case LUA_TBOOLEAN:
    return wire_put_tag(w->out, lua_toboolean(L, -1) ? W_TRUE : W_FALSE);
  case LUA_TNUMBER:
    if (lua_isinteger(L, -1)) return wire_put_integer(w->out, lua_tointeger(L, -1));
    return wire_put_float(w->out, lua_tonumber(L, -1));
  case LUA_TSTRING:
    s = lua_tolstring(L, -1, &len);
    return codec_put_string(w, s, len, 0);
  case LUA_TTABLE:
    return put_table(w);
  case LUA_TFUNCTION:
    return w->slow ? codec_put_function(w) : codec_give_up(w);
  case LUA_TUSERDATA:
    if (lua_getmetatable(L, -1)) return codec_put_object(w);
    return put_nothing(w, "userdata");
  case LUA_TLIGHTUSERDATA:
    if (!lua_touserdata(L, -1)) return wire_put_tag(w->out, W_NULL);
    return put_nothing(w, "light userdata");
  case LUA_TTHREAD:
    return put_nothing(w, "coroutine");
  }
  IMPOSSIBLE("a type that Lua does not have");
}

int codec_put_whole(struct codec_writer *w) {
  int floor = w->depth;
  int err = codec_put(w);
  if (err == 0) lua_pop(w->L, 1);
  while (err >= 0 && w->depth > floor) {
    struct write_frame *f = codec_top(w);
    switch (f->kind) {
    case F_TABLE:
      err = step_table(w, f);
      break;
    case F_SAVED:
      err = codec_step_saved(w, f);
      break;
    case F_CELLS:
      err = codec_step_cells(w, f);
      break;
    }
  }
  return err < 0 ? err : 0;
}
