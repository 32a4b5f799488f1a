/* codec_object.c: tables and userdata that have a metatable: registered, saved by a hook, or
   refused. Runs __plua_save, protected, and no other code of the user's.
   SPDX-License-Identifier: MIT */
#include "codec_write.h"

/* stack: value, metatable. Pushes the registered name; 1, or 0 and nothing pushed. */
static int push_name(lua_State *L) {
  codec_push(L, KEY_METAS);
  lua_pushvalue(L, -2);
  lua_rawget(L, -2);
  lua_remove(L, -2);
  if (lua_type(L, -1) == LUA_TSTRING) return 1;
  lua_pop(L, 1);
  return 0;
}

/* stack: value, metatable. Pushes __plua_save; 1, or 0 and nothing pushed. Allocates nothing. */
static int push_save(lua_State *L) {
  codec_push(L, KEY_METAS);
  lua_rawgeti(L, -1, 1);
  lua_remove(L, -2);
  lua_rawget(L, -2);
  if (!lua_isnil(L, -1)) return 1;
  lua_pop(L, 1);
  return 0;
}

/* stack: table, metatable. Whether the fast pass can name it; keeps the name for the next one. */
static int remember(struct codec_writer *w) {
  lua_State *L = w->L;
  const void *meta = lua_topointer(L, -1);
  if (meta == w->meta) return 1;
  if (push_save(L)) {
    lua_pop(L, 1);
    return 0;
  }
  if (!push_name(L)) return 0;
  w->meta = meta;
  w->meta_name = lua_tolstring(L, -1, &w->meta_len);
  lua_pop(L, 1); /* the codec's table still holds it, and nothing is collected here */
  return 1;
}

static int put_fast(struct codec_writer *w) {
  if (lua_type(w->L, -2) != LUA_TTABLE || !remember(w)) return codec_give_up(w);
  lua_pop(w->L, 1);
  int err = codec_put_again(w, lua_topointer(w->L, -1));
  if (err) return err < 0 ? err : 0;
  err = wire_put_tag(w->out, W_OBJECT);
  if (err == 0) err = codec_put_string(w, w->meta_name, w->meta_len, 1);
  return err < 0 ? err : codec_open_table(w);
}

/* stack: value, metatable. The reason why a value without registered metatable cannot cross. */
static int refuse(struct codec_writer *w) {
  lua_State *L = w->L;
  int top = lua_gettop(L);
  const char *kind = luaL_typename(L, -2);
  codec_push(L, KEY_STUB);
  if (lua_rawequal(L, -1, -2) && lua_istable(L, -3) &&
      lua_rawgetp(L, -3, &codec_keys[KEY_STUB]) == LUA_TSTRING)
    return codec_refuse(w, "%s", lua_tostring(L, -1));
  lua_settop(L, top);
  int hook = push_save(L);
  lua_pop(L, hook);
  lua_pushliteral(L, "__name");
  lua_rawget(L, -2);
  const char *name = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
  const char *open = name ? " (" : "", *close = name ? ")" : "";
  if (!name) name = "";
  if (hook)
    return codec_refuse(w,
                        "%s%s%s%s has __plua_save, but its metatable is not registered "
                        "(plua.register)",
                        kind, open, name, close);
  if (*kind == 'u') return codec_refuse(w, "%s%s%s%s", kind, open, name, close);
  return codec_refuse(w, "%s%s%s%s with a metatable that is not registered (plua.register)", kind,
                      open, name, close);
}

/* stack: value, metatable, name, hook. Runs the hook; the stack is then value, saved. */
static int save(struct codec_writer *w) {
  lua_State *L = w->L;
  lua_pushvalue(L, -4);
  int status = lua_pcall(L, 1, 1, 0);
  if (status != LUA_OK) {
    codec_blameless(L, status);
    const char *why = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "no message";
    return codec_refuse(w, "__plua_save failed: %s", why);
  }
  lua_replace(L, -3); /* over the metatable */
  lua_pop(L, 1);
  return 0;
}

/* stack: value, metatable, name, hook */
static int put_saved(struct codec_writer *w, size_t tag) {
  lua_State *L = w->L;
  int value = lua_gettop(L) - 3;
  size_t len;
  const char *name = lua_tolstring(L, -2, &len);
  int err = wire_put_tag(w->out, W_SAVED);
  if (err == 0) err = codec_put_string(w, name, len, 1);
  if (err == 0) err = save(w);
  if (err < 0) return err;
  struct write_frame *f = codec_frame(w, F_SAVED);
  if (!f) return codec_refuse_depth(w);
  f->at = value;
  f->done = 0;
  f->head = tag;
  w->saving++;
  return CODEC_OPENED;
}

int codec_step_saved(struct codec_writer *w, struct write_frame *f) {
  if (!f->done) {
    f->done = 1;
    int err = codec_put(w);
    if (err) return err;
  }
  codec_unframe(w);
  return 0;
}

/* stack: value, metatable, name. A table that is registered and has no hook. */
static int put_registered(struct codec_writer *w) {
  lua_State *L = w->L;
  size_t len;
  const char *name = lua_tolstring(L, -1, &len);
  int err = wire_put_tag(w->out, W_OBJECT);
  if (err == 0) err = codec_put_string(w, name, len, 1);
  lua_pop(L, 2);
  return err < 0 ? err : codec_open_table(w);
}

int codec_put_object(struct codec_writer *w) {
  if (!w->slow) return put_fast(w);
  lua_State *L = w->L;
  int table = lua_type(L, -2) == LUA_TTABLE;
  size_t tag = codec_here(w);
  lua_insert(L, -2); /* stack: metatable, value */
  int err = table ? codec_put_named(w) : 0;
  if (err == 0) err = codec_put_again(w, lua_topointer(L, -1));
  if (err) {
    if (err > 0) lua_remove(L, -2);
    return err < 0 ? err : 0;
  }
  lua_insert(L, -2); /* stack: value, metatable */
  if (!push_name(L)) return refuse(w);
  lua_pushvalue(L, -2); /* stack: value, metatable, name, metatable */
  if (!push_save(L)) {
    lua_pop(L, 1);
    if (table) return put_registered(w);
    lua_pop(L, 1);
    return refuse(w);
  }
  lua_remove(L, -2);
  return put_saved(w, tag);
}
