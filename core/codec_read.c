/* codec_read.c: bytes to values. Total: any bytes give values or a refusal; no byte past the end is
   read, nothing is allocated that the bytes left cannot fill, no byte is fetched twice (they may
   lie in memory that another process writes), and the C stack does not grow with the message.
   Tables are filled raw. SPDX-License-Identifier: MIT */
#include "codec_read.h"

#include "codec_peek.h"

int codec_malformed(struct codec_reader *r, const char *what) {
  lua_pushfstring(r->L, "malformed message: %s, at byte %I", what, (LUAI_UACINT)(r->p - r->begin));
  return PLUA_EFORMAT;
}

static int cut_short(struct codec_reader *r) {
  return codec_malformed(r, "it is cut short");
}

/* An unsigned number of 1, 2, 4 or 8 bytes. */
static int take_unsigned(struct codec_reader *r, size_t width, uint64_t *n) {
  uint16_t u16;
  uint32_t u32;
  if (!codec_left(r, width)) return cut_short(r);
  if (width == 1) {
    *n = *r->p;
  } else if (width == 2) {
    memcpy(&u16, r->p, width);
    *n = u16;
  } else if (width == 4) {
    memcpy(&u32, r->p, width);
    *n = u32;
  } else {
    memcpy(n, r->p, 8);
  }
  r->p += width;
  return 0;
}

struct read_frame *codec_read_frame(struct codec_reader *r, enum read_kind kind) {
  size_t need = (size_t)r->depth + 1;
  if (need > CODEC_DEPTH || !lua_checkstack(r->L, 12) ||
      (need > r->room->cap &&
       grow(&r->room->frames, &r->room->cap, need, sizeof(struct read_frame)) < 0)) {
    lua_pushfstring(r->L, "nested more than %d deep", r->depth);
    return NULL;
  }
  struct read_frame *f = (struct read_frame *)r->room->frames + r->depth++;
  memset(f, 0, sizeof *f);
  f->kind = kind;
  f->at = lua_gettop(r->L);
  return f;
}

/* ---- references ----------------------------------------------------------------------------- */

void codec_remember(struct codec_reader *r, lua_Integer key) {
  if (lua_isnil(r->L, r->met)) {
    lua_createtable(r->L, 8, 0);
    lua_replace(r->L, r->met);
  }
  lua_pushvalue(r->L, -1);
  lua_rawseti(r->L, r->met, key);
}

static int take_met(struct codec_reader *r, lua_Integer key) {
  if (!lua_isnil(r->L, r->met)) {
    if (lua_rawgeti(r->L, r->met, key) != LUA_TNIL) return 0;
    lua_pop(r->L, 1);
  }
  return codec_malformed(r, "a reference to nothing");
}

static int take_ref(struct codec_reader *r, size_t width) {
  uint64_t at = 0;
  int err = take_unsigned(r, width, &at);
  if (err < 0) return err;
  if (at >= (uint64_t)(r->p - r->begin)) return codec_malformed(r, "a reference forwards");
  return take_met(r, codec_key_at(r, at));
}

static int take_sref(struct codec_reader *r) {
  if (!codec_left(r, 1)) return cut_short(r);
  unsigned number = *r->p++;
  if (number >= r->strings) return codec_malformed(r, "a reference to no string");
  return take_met(r, (lua_Integer)number + 1);
}

/* ---- strings -------------------------------------------------------------------------------- */

static int push_bytes(struct codec_reader *r, uint64_t len) {
  if (!codec_left(r, len)) return cut_short(r);
  codec_push_text(r->L, r->p, len);
  r->p += len;
  return 0;
}

static int take_short(struct codec_reader *r, size_t len) {
  if (UNLIKELY(!codec_left(r, len))) return cut_short(r);
  if (len <= CODEC_SHORT_LEN) codec_ahead_step(&r->ahead, r->p + len, r->end);
  lua_pushlstring(r->L, (const char *)r->p, len);
  r->p += len;
  return 0;
}

/* A string whose length takes 'width' bytes. */
static int take_bytes(struct codec_reader *r, size_t width) {
  uint64_t len = 0;
  int err = take_unsigned(r, width, &len);
  if (err < 0) return err;
  return push_bytes(r, len);
}

static int take_sdef(struct codec_reader *r) {
  int err = take_bytes(r, 1);
  if (err < 0) return err;
  if (r->strings == W_STRINGS) return codec_malformed(r, "too many strings to refer to");
  codec_remember(r, (lua_Integer)++r->strings);
  return 0;
}

static int take_long(struct codec_reader *r, lua_Integer shared) {
  int err = take_bytes(r, 8);
  if (err == 0 && shared) codec_remember(r, shared);
  return err;
}

/* Whether a string can begin with this tag. */
static int begins_string(unsigned tag) {
  switch (tag) {
  case W_STR8:
  case W_STR32:
  case W_STR64:
  case W_SDEF:
  case W_SREF:
  case W_LONG:
  case W_LONG | W_SHARED:
  case W_REF32: /* to a W_LONG */
  case W_REF64:
    return 1;
  }
  return tag >= W_SHORT && tag < W_SMALL;
}

int codec_take_string(struct codec_reader *r) {
  /* A second fetch of the tag could differ, so the type is looked at again. */
  if (codec_left(r, 1) && begins_string(*r->p)) {
    int err = codec_take(r);
    if (err < 0) return err;
    if (err == 0 && lua_type(r->L, -1) == LUA_TSTRING) return 0;
  }
  return codec_malformed(r, "no string where one belongs");
}

/* ---- tables --------------------------------------------------------------------------------- */

static int hint(uint64_t n) {
  return n > 1 << 26 ? 1 << 26 : (int)n;
}

/* Makes room for what a table's counts promise, if the message can hold it. */
static int owe(struct codec_reader *r, const unsigned char *counts, uint32_t *items,
               uint32_t *pairs) {
  memcpy(items, counts, sizeof *items);
  memcpy(pairs, counts + sizeof *items, sizeof *pairs);
  uint64_t need = (uint64_t)*items + 2 * (uint64_t)*pairs;
  size_t left = (size_t)(r->end - counts) - 8;
  if (need > left || r->owed > left - need)
    return codec_malformed(r, "a table larger than the message");
  r->owed += need;
  return 0;
}

/* Opens the frame of the table at the top. */
static int begin_table(struct codec_reader *r, lua_Integer i, uint32_t items, uint32_t pairs) {
  if (!items && !pairs) return 0;
  struct read_frame *f = codec_read_frame(r, items ? R_ITEMS : R_KEY);
  if (!f) return PLUA_EDEPTH;
  f->i = i;
  f->items = items;
  f->pairs = pairs;
  return READ_OPENED;
}

/* The new table at the top gets the metatable below it. */
static void dress(struct codec_reader *r) {
  lua_insert(r->L, -2);
  lua_setmetatable(r->L, -2);
}

/* dressed: the table's metatable is at the top of the stack. */
static int take_table(struct codec_reader *r, lua_Integer shared, int dressed) {
  uint32_t items, pairs;
  if (!codec_left(r, 8)) return cut_short(r);
  int err = owe(r, r->p, &items, &pairs);
  if (err < 0) return err;
  r->p += 8;
  lua_createtable(r->L, hint(items), hint(pairs));
  if (dressed) dress(r);
  if (shared) codec_remember(r, shared);
  return begin_table(r, 1, items, pairs);
}

/* The same, of the fresh table at the top, whose array part is seen. */
static int fill_seen_run(lua_State *L, const unsigned char *p, uint32_t n, int integers) {
  const struct peek_table *t = codec_peek(L, -1);
  if (t->limit < n) return 0;
  for (uint32_t i = 0; i < n; i++) {
    memcpy(&t->array[i].value, p + 8 * (size_t)i, 8);
    t->array[i].tag = integers ? PEEK_INTEGER : PEEK_FLOAT;
  }
  return 1;
}

static void fill_run(lua_State *L, const unsigned char *p, uint32_t n, int integers) {
  for (uint32_t i = 0; i < n; i++) {
    lua_Integer v;
    lua_Number x;
    if (integers) {
      memcpy(&v, p + 8 * (size_t)i, sizeof v);
      lua_pushinteger(L, v);
    } else {
      memcpy(&x, p + 8 * (size_t)i, sizeof x);
      lua_pushnumber(L, x);
    }
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

/* Numbers of one kind in a row, then the rest of the table. */
static int take_run(struct codec_reader *r, int integers, lua_Integer shared, int dressed) {
  uint32_t n, items, pairs;
  if (!codec_left(r, 4)) return cut_short(r);
  memcpy(&n, r->p, sizeof n);
  const unsigned char *run = r->p + 4;
  r->p = run;
  if (!codec_left(r, 8 * (uint64_t)n + 8)) return cut_short(r);
  int err = owe(r, run + 8 * (size_t)n, &items, &pairs);
  if (err < 0) return err;
  r->p = run + 8 * (size_t)n + 8;
  lua_createtable(r->L, hint((uint64_t)n + items), hint(pairs));
  if (!r->room->peek || !fill_seen_run(r->L, run, n, integers)) fill_run(r->L, run, n, integers);
  if (dressed) dress(r);
  if (shared) codec_remember(r, shared);
  return begin_table(r, (lua_Integer)n + 1, items, pairs);
}

/* ---- objects -------------------------------------------------------------------------------- */

/* Takes a name and pushes the metatable registered under it. */
static int take_meta(struct codec_reader *r) {
  lua_State *L = r->L;
  int err = codec_take_string(r);
  if (err < 0) return err;
  codec_push(L, KEY_METAS);
  lua_pushvalue(L, -2);
  if (lua_istable(L, -2) && lua_rawget(L, -2) == LUA_TTABLE) {
    lua_insert(L, -3);
    lua_pop(L, 2);
    return 0;
  }
  lua_pushfstring(L,
                  "no metatable is registered here under the name '%s': plua.register it before "
                  "workers are made",
                  lua_tostring(L, -3));
  return PLUA_ECODEC;
}

static int take_object(struct codec_reader *r, lua_Integer shared) {
  int err = take_meta(r);
  if (err < 0) return err;
  if (!codec_left(r, 1)) return cut_short(r);
  unsigned tag = *r->p++;
  switch (tag) {
  case W_TABLE:
    return take_table(r, shared, 1);
  case W_INTS:
    return take_run(r, 1, shared, 1);
  case W_FLOATS:
    return take_run(r, 0, shared, 1);
  }
  return codec_malformed(r, "an object that is no table");
}

static int take_saved(struct codec_reader *r, lua_Integer shared) {
  lua_State *L = r->L;
  int err = take_meta(r);
  if (err < 0) return err;
  if (r->plain & READ_QUIET) {
    lua_pushliteral(L, "an object that only its __plua_load can make");
    return PLUA_ECODEC;
  }
  lua_pushliteral(L, "__plua_load");
  if (lua_rawget(L, -2) == LUA_TNIL) {
    lua_pushliteral(L, "an object with __plua_save whose metatable has no __plua_load here");
    return PLUA_ECODEC;
  }
  lua_remove(L, -2);
  struct read_frame *f = codec_read_frame(r, R_LOAD);
  if (!f) return PLUA_EDEPTH;
  f->shared = shared;
  return READ_OPENED;
}

/* Hooks may leave any amount of garbage: from the first one on, it is collected again. */
void codec_resume_gc(struct codec_reader *r) {
  if (r->paused) lua_gc(r->L, LUA_GCRESTART);
  r->paused = 0;
}

/* stack: __plua_load, value. The object takes their place. */
static int load_saved(struct codec_reader *r, struct read_frame *f) {
  lua_State *L = r->L;
  lua_Integer shared = f->shared;
  codec_resume_gc(r);
  int status = lua_pcall(L, 1, 1, 0);
  if (status != LUA_OK) {
    codec_blameless(L, status);
    lua_pushfstring(L, "__plua_load failed: %s",
                    lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "no message");
    return PLUA_ECODEC;
  }
  if (lua_isnil(L, -1)) {
    lua_pushliteral(L, "__plua_load gave nil where an object belongs");
    return PLUA_ECODEC;
  }
  if (shared) codec_remember(r, shared);
  r->depth--;
  return 0;
}

/* ---- values --------------------------------------------------------------------------------- */

int codec_take_number(struct codec_reader *r, unsigned tag) {
  uint64_t n = 0;
  double x;
  size_t width = tag == W_FLOAT ? 8 : (size_t)1 << (tag - W_I8);
  int err = take_unsigned(r, width, &n);
  if (err < 0) return err;
  if (tag == W_FLOAT) {
    memcpy(&x, &n, sizeof x);
    lua_pushnumber(r->L, x);
  } else {
    unsigned shift = 64 - 8 * (unsigned)width; /* fetches the sign */
    lua_pushinteger(r->L, (lua_Integer)(n << shift) >> shift);
  }
  return 0;
}

static int take_tag(struct codec_reader *r, unsigned tag, lua_Integer shared) {
  switch ((enum wire)(shared ? tag & ~(unsigned)W_SHARED : tag)) {
  case W_NIL:
    lua_pushnil(r->L);
    return 0;
  case W_NULL:
    lua_pushlightuserdata(r->L, NULL);
    return 0;
  case W_FALSE:
  case W_TRUE:
    lua_pushboolean(r->L, tag == W_TRUE);
    return 0;
  case W_I8:
  case W_I16:
  case W_I32:
  case W_I64:
  case W_FLOAT:
    return codec_take_number(r, tag);
  case W_STR8:
    return take_bytes(r, 1);
  case W_STR32:
    return take_bytes(r, 4);
  case W_STR64:
    return take_bytes(r, 8);
  case W_SDEF:
    return take_sdef(r);
  case W_SREF:
    return take_sref(r);
  case W_REF32:
    return take_ref(r, 4);
  case W_REF64:
    return take_ref(r, 8);
  case W_MODULE:
    return codec_take_module(r);
  case W_FIELD:
    return codec_take_field(r);
  case W_ENV:
    return codec_take_env(r);
  case W_STUB:
    return codec_take_stub(r);
  case W_TABLE:
    return take_table(r, shared, 0);
  case W_INTS:
    return take_run(r, 1, shared, 0);
  case W_FLOATS:
    return take_run(r, 0, shared, 0);
  case W_OBJECT:
    return take_object(r, shared);
  case W_SAVED:
    return take_saved(r, shared);
  case W_LONG:
    return take_long(r, shared);
  case W_CODE:
    return codec_take_code(r, shared);
  case W_VALUES:
  case W_END:
  case W_CELL:
  case W_CELLREF:
  case W_SHORT:
  case W_SMALL:
    break;
  }
  r->p--;
  return codec_malformed(r, "no such tag here");
}

int codec_take(struct codec_reader *r) {
  if (UNLIKELY(r->p == r->end)) return cut_short(r);
  unsigned tag = *r->p++;
  if (tag >= W_SMALL) {
    lua_pushinteger(r->L, (lua_Integer)(tag - W_SMALL));
    return 0;
  }
  if (tag >= W_SHORT) return take_short(r, tag - W_SHORT);
  int marked = tag >= W_TABLE && tag & W_SHARED;
  return take_tag(r, tag, marked ? codec_key_at(r, (size_t)(r->p - r->begin) - 1) : 0);
}

/* A value is complete at the top: what has the innermost frame waited for? */
static int settle(struct codec_reader *r) {
  lua_State *L = r->L;
  struct read_frame *f = (struct read_frame *)r->room->frames + r->depth - 1;
  switch (f->kind) {
  case R_ITEMS:
    lua_rawseti(L, f->at, f->i++);
    return 0;
  case R_KEY:
    if (lua_isnil(L, -1)) return codec_malformed(r, "a key that is nil");
    if (lua_type(L, -1) == LUA_TNUMBER && !lua_rawequal(L, -1, -1))
      return codec_malformed(r, "a key that is no number");
    f->kind = R_VALUE;
    return 0;
  case R_VALUE:
    lua_rawset(L, f->at);
    f->kind = R_KEY;
    return 0;
  case R_CELL:
    lua_setupvalue(L, f->at, (int)f->i);
    return 0;
  case R_LOAD:
    return load_saved(r, f);
  }
  IMPOSSIBLE("a frame of no kind");
}

static int fill_items(struct codec_reader *r, struct read_frame *f) {
  while (f->items) {
    f->items--;
    r->owed--;
    int err = codec_take(r);
    if (err) return err;
    lua_rawseti(r->L, f->at, f->i++);
  }
  f->kind = R_KEY;
  return 0;
}

/* The key of most records: a string met before. 0: it is something else. */
static int take_known_key(struct codec_reader *r) {
  if (!codec_left(r, 2) || r->p[0] != W_SREF) return 0;
  unsigned number = r->p[1];
  if (number >= r->strings) return 0;
  r->p += 2;
  lua_rawgeti(r->L, r->met, (lua_Integer)number + 1);
  return 1;
}

static int fill_pairs(struct codec_reader *r, struct read_frame *f) {
  int err;
  for (;;) {
    if (f->kind == R_KEY) {
      if (!f->pairs) break;
      f->pairs--;
      r->owed--;
      if (take_known_key(r))
        f->kind = R_VALUE;
      else if ((err = codec_take(r)) != 0 || (err = settle(r)) < 0)
        return err;
    }
    r->owed--;
    if ((err = codec_take(r)) != 0) return err;
    lua_rawset(r->L, f->at);
    f->kind = R_KEY;
  }
  r->depth--;
  return 0;
}

/* Goes on with the innermost frame until it opens another (READ_OPENED) or is complete (0). */
static int step(struct codec_reader *r) {
  struct read_frame *f = (struct read_frame *)r->room->frames + r->depth - 1;
  int err;
  switch (f->kind) {
  case R_ITEMS:
    if ((err = fill_items(r, f)) != 0) return err;
    return fill_pairs(r, f);
  case R_KEY:
  case R_VALUE:
    return fill_pairs(r, f);
  case R_CELL:
    return codec_take_cells(r);
  case R_LOAD:
    if ((err = codec_take(r)) != 0) return err;
    return load_saved(r, f);
  }
  IMPOSSIBLE("a frame of no kind");
}

int codec_take_whole(struct codec_reader *r) {
  int floor = r->depth;
  int err = codec_take(r);
  while (err >= 0 && r->depth > floor) {
    err = step(r);
    /* A frame that is complete leaves its value to the frame below it, which may be one that is
       complete with it (R_LOAD). */
    while (err == 0 && r->depth > floor) {
      int depth = r->depth;
      err = settle(r);
      if (r->depth == depth) break;
    }
  }
  return err < 0 ? err : 0;
}
