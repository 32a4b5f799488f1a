/* codec_load.c: functions from a message: dumps, upvalues, private globals, names.
   Lua has no verifier for bytecode: a crafted dump can do anything to this process. Messages with
   functions come from our own processes only; codec_read_plain takes none.
   SPDX-License-Identifier: MIT */
#include "codec_read.h"

struct piece {
  const char *p;
  size_t n;
};

static const char *next_piece(lua_State *L, void *ud, size_t *n) {
  struct piece *piece = ud;
  (void)L;
  *n = piece->n;
  piece->n = 0;
  return *n ? piece->p : NULL;
}

/* Pushes the function of a dump of n bytes. */
static int load_dump(struct codec_reader *r, uint64_t n) {
  struct piece piece = {(const char *)r->p, n};
  if (!codec_left(r, n) || !codec_left(r, n + 1)) return codec_malformed(r, "it is cut short");
  int status = lua_load(r->L, next_piece, &piece, "=plua", "b");
  if (status == LUA_ERRMEM) return lua_error(r->L);
  if (status != LUA_OK) {
    lua_pushfstring(r->L, "malformed message: a function, %s", lua_tostring(r->L, -1));
    return PLUA_EFORMAT;
  }
  r->p += n;
  return 0;
}

int codec_take_code(struct codec_reader *r, lua_Integer shared) {
  lua_State *L = r->L;
  lua_Debug ar;
  uint64_t n;
  if (r->plain & READ_DATA) {
    lua_pushliteral(L, "a function, where only data is taken");
    return PLUA_ECODEC;
  }
  if (!codec_left(r, sizeof n)) return codec_malformed(r, "it is cut short");
  memcpy(&n, r->p, sizeof n);
  r->p += sizeof n;
  int err = load_dump(r, n);
  if (err < 0) return err;
  lua_pushvalue(L, -1);
  lua_getinfo(L, ">u", &ar);
  if (*r->p++ != ar.nups) return codec_malformed(r, "a function with other upvalues");
  if (shared) codec_remember(r, shared);
  struct read_frame *f = codec_read_frame(r, R_CELL);
  if (!f) return PLUA_EDEPTH;
  f->items = ar.nups;
  return READ_OPENED;
}

/* Joins upvalue i of the function with the cell that an earlier function has. */
static int join(struct codec_reader *r, const struct read_frame *f) {
  lua_State *L = r->L;
  uint64_t at;
  if (!codec_left(r, sizeof at)) return codec_malformed(r, "it is cut short");
  memcpy(&at, r->p, sizeof at);
  r->p += sizeof at;
  if (at >= (uint64_t)(r->p - r->begin) || lua_isnil(L, r->met))
    return codec_malformed(r, "a shared upvalue of nothing");
  lua_rawgeti(L, r->met, -codec_key_at(r, at)); /* its number; under the key itself, whose it is */
  lua_rawgeti(L, r->met, codec_key_at(r, at));
  if (!lua_isinteger(L, -2) || !lua_isfunction(L, -1))
    return codec_malformed(r, "a shared upvalue of nothing");
  lua_upvaluejoin(L, f->at, (int)f->i, -1, (int)lua_tointeger(L, -2));
  lua_pop(L, 2);
  return 0;
}

/* The cell can be referred to by what lies inside its own value. */
static void remember_cell(struct codec_reader *r, const struct read_frame *f) {
  lua_Integer key = codec_key_at(r, (size_t)(r->p - r->begin) - 1);
  lua_pushvalue(r->L, f->at);
  codec_remember(r, key);
  lua_pushinteger(r->L, f->i);
  codec_remember(r, -key);
  lua_pop(r->L, 2);
}

int codec_take_cells(struct codec_reader *r) {
  struct read_frame *f = (struct read_frame *)r->room->frames + r->depth - 1;
  while (f->i < (lua_Integer)f->items) {
    f->i++;
    if (!codec_left(r, 1)) return codec_malformed(r, "it is cut short");
    unsigned tag = *r->p++;
    int err = 0;
    if (tag == W_CELLREF) {
      if ((err = join(r, f)) < 0) return err;
      continue;
    }
    if ((tag & ~(unsigned)W_SHARED) != W_CELL) return codec_malformed(r, "no upvalue");
    if (tag & W_SHARED) remember_cell(r, f);
    if ((err = codec_take(r)) != 0) return err;
    lua_setupvalue(r->L, f->at, (int)f->i);
  }
  r->depth--;
  return 0;
}

/* ---- names ---------------------------------------------------------------------------------- */

int codec_take_module(struct codec_reader *r) {
  lua_State *L = r->L;
  int err = codec_take_string(r);
  if (err < 0) return err;
  err = codec_name_module(L, lua_tostring(L, -1), r->plain);
  lua_remove(L, -2);
  return err;
}

int codec_take_field(struct codec_reader *r) {
  lua_State *L = r->L;
  int err = codec_take_string(r);
  if (err == 0) err = codec_take_string(r);
  if (err < 0) return err;
  const char *module = lua_tostring(L, -2), *field = lua_tostring(L, -1);
  if ((err = codec_name_module(L, module, r->plain)) < 0) return err;
  lua_pushvalue(L, -2);
  if (!lua_istable(L, -2) || lua_rawget(L, -2) == LUA_TNIL) {
    lua_pushfstring(L, "module '%s' has no '%s' here", module, field);
    return PLUA_ECODEC;
  }
  lua_replace(L, -4); /* over the module's name */
  lua_pop(L, 2);
  return 0;
}

/* ---- globals -------------------------------------------------------------------------------- */

static int take_number(struct codec_reader *r, uint32_t *n) {
  if (!codec_left(r, sizeof *n)) return codec_malformed(r, "it is cut short");
  memcpy(n, r->p, sizeof *n);
  r->p += sizeof *n;
  return 0;
}

/* Pushes the private globals of that number, which come into being when first named. */
int codec_take_env(struct codec_reader *r) {
  lua_State *L = r->L;
  uint32_t n = 0;
  int err = take_number(r, &n);
  if (err < 0) return err;
  if (n > r->nenvs) return codec_malformed(r, "globals out of order");
  if (lua_isnil(L, r->envs)) {
    lua_newtable(L);
    lua_replace(L, r->envs);
  }
  if (n == r->nenvs) {
    lua_newtable(L);
    codec_push(L, KEY_ENV);
    lua_setmetatable(L, -2);
    lua_rawseti(L, r->envs, (lua_Integer)++r->nenvs);
  }
  lua_rawgeti(L, r->envs, (lua_Integer)n + 1);
  return 0;
}

int codec_take_stub(struct codec_reader *r) {
  lua_State *L = r->L;
  int err = codec_take_string(r);
  if (err < 0) return err;
  lua_createtable(L, 0, 1);
  lua_insert(L, -2);
  lua_rawsetp(L, -2, &codec_keys[KEY_STUB]);
  codec_push(L, KEY_STUB);
  lua_setmetatable(L, -2);
  return 0;
}

/* The globals that functions of the message read: whose, name, value; up to the end mark. */
int codec_take_globals(struct codec_reader *r) {
  lua_State *L = r->L;
  for (;;) {
    if (!codec_left(r, 1)) return codec_malformed(r, "it is cut short");
    unsigned tag = *r->p++;
    if (tag == W_END) return 0;
    if (tag != W_ENV) return codec_malformed(r, "no global");
    int err = codec_take_env(r);
    if (err == 0) err = codec_take_string(r);
    if (err == 0) err = codec_take_whole(r);
    if (err < 0) return err;
    lua_rawset(L, -3);
    lua_pop(L, 1);
  }
}
