/* worker.c: calls the user's function for one item and writes the reply.
   Invariant: between two items the runner's thread holds its slots and nothing else, and no error
   of the user's leaves lua_pcall. Knows Lua and the codec; does not know pools or rings.
   SPDX-License-Identifier: MIT */
#include "worker.h"

#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "base.h"
#include "codec.h"
#include "codec_plain.h"
#include "fail.h"

static const char runtime_key;
static const char report_key[NESTED_MAX + 1]; /* by depth: __close may call plua, which fails too */

struct runtime *runtime_of(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &runtime_key) != LUA_TUSERDATA) {
    struct runtime *fresh = lua_newuserdatauv(L, sizeof *fresh, 0);
    memset(fresh, 0, sizeof *fresh);
    random_open(L, fresh);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &runtime_key);
    lua_pop(L, 1);
    return fresh;
  }
  struct runtime *rt = lua_touserdata(L, -1);
  lua_pop(L, 1);
  return rt;
}

/* ---- errors --------------------------------------------------------------------------------- */

bool is_ours(const struct runtime *rt, const lua_Debug *ar) {
  return rt->ours && strncmp(ar->source, rt->ours, strlen(rt->ours)) == 0;
}

void push_where(lua_State *L) {
  const struct runtime *rt = runtime_of(L);
  lua_Debug ar;
  for (int level = 1; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline <= 0 || is_ours(rt, &ar)) continue;
    lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
    return;
  }
  lua_pushnil(L);
}

/* Pushes the stack's traceback without our own frames, which are the last and nameless; below them
   there are others where items run in their caller's own process. */
static void push_traceback(lua_State *L) {
  static const char ours[] = "\n\t[C]: in ?";
  const size_t tail = sizeof ours - 1;
  size_t len;
  trace_push(L, 1);
  const char *text = lua_tolstring(L, -1, &len);
  const char *end = runtime_of(L)->depth ? strstr(text, ours) : NULL;
  if (end) len = (size_t)(end - text);
  while (len > tail && memcmp(text + len - tail, ours, tail) == 0) len -= tail;
  lua_pushlstring(L, text, len);
  lua_remove(L, -2);
}

/* How many calls below a hook the error was raised that we, its message handler, are called for.
   0: by a hook in C. -1: there is none so near. */
static int hook_near(lua_State *L) {
  lua_Debug ar;
  for (int level = 0; level < 8 && lua_getstack(L, level, &ar); level++)
    if (lua_getinfo(L, "n", &ar) && strcmp(ar.namewhat, "hook") == 0) return level;
  return -1;
}

/* stack: value; answers what is lost once the stack unwinds: {value, traceback, where, how near a
   hook is}. */
int runner_report(lua_State *L) {
  lua_settop(L, 1);
  lua_createtable(L, 4, 0);
  lua_pushvalue(L, 1);
  lua_rawseti(L, 2, 1);
  push_traceback(L);
  lua_rawseti(L, 2, 2);
  push_where(L);
  lua_rawseti(L, 2, 3);
  lua_pushinteger(L, hook_near(L));
  lua_rawseti(L, 2, 4);
  return 1;
}

/* The value stays what it is, since __close sees it on its way; one that this raises again has been
   reported. */
int runner_handler(lua_State *L) {
  const char *key = &report_key[runtime_of(L)->depth];
  lua_settop(L, 1);
  bool kept = lua_rawgetp(L, LUA_REGISTRYINDEX, key) == LUA_TTABLE;
  if (kept) lua_rawgeti(L, 2, 1);
  if (kept && lua_rawequal(L, 1, 3)) {
    lua_settop(L, 1);
    return 1;
  }
  runner_report(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, key);
  return 1;
}

/* Pushes the report of the error that pcall answered 'status' for; nil where memory ran out or the
   handler failed. The item is over: its depth was one more where it was no worker's. */
static void take_report(const struct runner *r, int status) {
  lua_State *L = r->L;
  const char *key = &report_key[r->rt->depth + !r->process];
  if (status == LUA_ERRRUN)
    lua_rawgetp(L, LUA_REGISTRYINDEX, key);
  else
    lua_pushnil(L);
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, key);
}

static void push_part(lua_State *L, int report, int part) {
  if (lua_type(L, report) == LUA_TTABLE)
    lua_rawgeti(L, report, part);
  else
    lua_pushnil(L);
}

static int to_text(lua_State *L) {
  luaL_tolstring(L, 1, NULL);
  return 1;
}

/* Pushes what a person reads of the error value at 'at'. Its __tostring runs protected. */
static void push_message(lua_State *L, int at) {
  int type = lua_type(L, at);
  if (type == LUA_TTABLE || type == LUA_TUSERDATA) {
    if (luaL_getmetafield(L, at, "__tostring") == LUA_TNIL) {
      lua_pushfstring(L, "(error object is a %s value)", lua_typename(L, type));
      return;
    }
    lua_pop(L, 1);
  }
  lua_pushcfunction(L, to_text);
  lua_pushvalue(L, at);
  if (lua_pcall(L, 1, 1, 0) == LUA_OK) return;
  lua_pop(L, 1);
  lua_pushliteral(L, "(error object whose __tostring fails)");
}

/* Replaces what was written since 'start' by the n values on top. */
static int write_again(lua_State *L, int n, plua_out *out, size_t start) {
  int top = lua_gettop(L);
  out->at = out->begin + start;
  int err = codec_write(L, n, out);
  if (err < 0) out->at = out->begin + start;
  if (err < 0) lua_settop(L, top);
  return err;
}

/* In the caller's own process what a hook in C raises (an interrupt, a debugger) is the caller's.
   In a worker the hook is one that the item would leave behind. stack: ..., value, report */
static void part_from_hook(const struct runner *r) {
  lua_State *L = r->L;
  push_part(L, -1, 4);
  lua_Integer near = lua_isnil(L, -1) ? -1 : lua_tointeger(L, -1);
  lua_pop(L, 1);
  if (near >= 0 && r->process) lua_sethook(L, NULL, 0, 0);
  if (near != 0 || r->process) return;
  lua_pop(L, 1);
  lua_error(L);
}

/* Writes the error below its report, which is on top: message, traceback, where, value, index (nil
   when the parent knows it). */
static int runner_error(struct runner *r, plua_out *out, size_t start, uint64_t index) {
  lua_State *L = r->L;
  int report = lua_gettop(L), first = report + 1;
  part_from_hook(r);
  lua_pushvalue(L, report - 1);
  push_part(L, report, 2);
  push_part(L, report, 3);
  push_message(L, first);
  lua_insert(L, first); /* stack: ..., message, value, traceback, where */
  if (lua_rawequal(L, first, first + 1)) {
    lua_pushnil(L);
    lua_replace(L, first + 1);
  }
  if (index)
    lua_pushinteger(L, (lua_Integer)index);
  else
    lua_pushnil(L);
  int err = write_again(L, 5, out, start);
  if (err == PLUA_ECODEC || err == PLUA_EDEPTH) { /* the value cannot cross: its text does */
    lua_pushnil(L);
    lua_replace(L, first + 1);
    err = write_again(L, 5, out, start);
  }
  return err < 0 ? err : FAILED_ERROR;
}

/* The reply of an item that was told to end, whatever it did then. */
COLD static int runner_timeout(struct runner *r, plua_out *out, size_t start, uint64_t index) {
  lua_State *L = r->L;
  int top = lua_gettop(L);
  luaL_checkstack(L, 12, NULL);
  take_report(r, LUA_OK); /* of how it ended; told is where it was */
  lua_pop(L, 1);
  stop_report(L); /* stack: ..., report */
  lua_pushnil(L); /* the message is the parent's, which knows the timeout */
  lua_pushnil(L);
  lua_rawgeti(L, top + 1, 2);
  lua_rawgeti(L, top + 1, 3);
  if (index)
    lua_pushinteger(L, (lua_Integer)index);
  else
    lua_pushnil(L);
  int err = write_again(L, 5, out, start);
  return err < 0 ? err : FAILED_TIMEOUT;
}

/* The reply of an item that memory ran out for. stack: ..., error, report */
static int runner_memory(struct runner *r, plua_out *out, size_t start, uint64_t index) {
  lua_State *L = r->L;
  int report = lua_gettop(L);
  memory_report(L); /* stack: ..., report, message, where */
  lua_pushnil(L);
  push_part(L, report, 2);
  lua_rotate(L, report + 2, -1); /* stack: ..., report, message, value, traceback, where */
  if (index)
    lua_pushinteger(L, (lua_Integer)index);
  else
    lua_pushnil(L);
  int err = write_again(L, 5, out, start);
  return err < 0 ? err : FAILED_MEMORY;
}

COLD int runner_failed(struct runner *r, int status, plua_out *out, size_t start, uint64_t index) {
  lua_State *L = r->L;
  luaL_checkstack(L, 12, NULL);
  bool memory = memory_failed(L, status);
  take_report(r, status);
  return memory ? runner_memory(r, out, start, index) : runner_error(r, out, start, index);
}

COLD int runner_refuse(struct runner *r, plua_out *out, int failed, const char *message) {
  lua_State *L = r->L;
  lua_pushstring(L, message);
  for (int i = 0; i < 4; i++) lua_pushnil(L);
  int err = write_again(L, 5, out, (size_t)(out->at - out->begin));
  lua_settop(L, SLOTS);
  return err < 0 ? err : failed;
}

/* ---- items ---------------------------------------------------------------------------------- */

/* Values that cannot cross cost the item. */
COLD static int reply_refused(struct runner *r, int err, plua_out *out, size_t start) {
  lua_State *L = r->L;
  out->at = out->begin + start;
  if (err != PLUA_ECODEC && err != PLUA_EDEPTH) return err;
  const char *why = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : plua_strerror(err);
  lua_pushfstring(L, "result%s%s", *why == '.' || *why == '[' ? "" : ": ", why);
  return runner_refuse(r, out, FAILED_ENCODE, lua_tostring(L, -1));
}

/* Writes the n values on top as the reply. */
static int reply_values(struct runner *r, int n, plua_out *out, size_t start) {
  int err = codec_write(r->L, n, out);
  return LIKELY(err >= 0) ? 0 : reply_refused(r, err, out, start);
}

NOINLINE static int reply_other(struct runner *r, plua_out *out, size_t start) {
  lua_State *L = r->L;
  if (r->call.mode == CALL_EACH) return 0;
  if (r->call.mode == CALL_APPLY) return reply_values(r, lua_gettop(L) - SLOTS, out, start);
  lua_pushboolean(L, lua_toboolean(L, -1)); /* CALL_FILTER */
  return reply_values(r, 1, out, start);
}

static int runner_reply(struct runner *r, plua_out *out, size_t start) {
  switch (r->call.mode) {
  case CALL_MAP:
  case CALL_STAR:
  case CALL_FOLD:
    if (codec_plain_write(r->L, out) == 0) return 0;
    out->at = out->begin + start;
    return reply_values(r, 1, out, start);
  case CALL_EACH:
  case CALL_FILTER:
  case CALL_APPLY:
    break;
  }
  return reply_other(r, out, start);
}

static int answer_of(struct runner *r, int status, bool late, plua_out *out, size_t start,
                     uint64_t index) {
  if (late) return runner_timeout(r, out, start, index);
  return LIKELY(status == LUA_OK) ? runner_reply(r, out, start)
                                  : runner_failed(r, status, out, start, index);
}

int runner_answer(struct runner *r, int status, bool late, plua_out *out, size_t start,
                  uint64_t index) {
  FAIL_POINT(W_ENCODE);
  return answer_of(r, status, late, out, start, index);
}

static void note_item(struct runtime *rt, const plua_item *item, uint64_t index) {
  rt->running = true;
  rt->item = index;
  rt->attempt = item->attempt;
}

void item_begins(struct runner *r, const plua_item *item, uint64_t index, struct mark *m) {
  struct runtime *rt = r->rt;
  if (!r->process) {
    m->depth = rt->depth;
    m->running = rt->running;
    m->item = rt->item;
    m->attempt = rt->attempt;
    if (rt->random)
      memcpy(m->random, rt->random, sizeof m->random);
    else
      m->random[0] = random_draw(r->L, rt);
  }
  if (!r->process) rt->depth++;
  note_item(rt, item, index);
}

/* In a worker's process. */
static void item_over(struct runtime *rt) {
  rt->running = false;
  output_item_end();
}

void item_ends(struct runner *r, const struct mark *m) {
  struct runtime *rt = r->rt;
  if (r->process) {
    item_over(rt);
    return;
  }
  rt->depth = m->depth;
  rt->running = m->running;
  rt->item = m->item;
  rt->attempt = m->attempt;
  if (rt->random)
    memcpy(rt->random, m->random, sizeof m->random);
  else
    random_item(r->L, rt, m->random[0], 0);
}

struct many {
  struct runner *r;
  plua_feed *feed;
  run_item *run;
};

/* stack: slots, many */
static int many_inner(lua_State *L) {
  const struct many *m = lua_touserdata(L, SLOTS + 1);
  struct runner *r = m->r;
  plua_feed *feed = m->feed;
  run_item *run = m->run;
  lua_settop(L, SLOTS);
  do r->start = (size_t)(feed->out->at - feed->out->begin);
  while (feed->done(feed, run(r, feed->item, feed->out)));
  return 0;
}

/* An error ends the inner loop: it is the reply of the item that ran, and the loop begins anew. The
   slots are filled again each time, since the inner ones are what items change. */
void runner_many(struct runner *r, plua_feed *feed, run_item *run) {
  lua_State *L = r->L;
  struct many m = {r, feed, run};
  const struct mark none = {0};
  int answer;
  do {
    lua_pushcfunction(L, many_inner);
    runner_slots(r);
    lua_pushlightuserdata(L, &m);
    r->bare = true;
    int status = lua_pcall(L, SLOTS + 1, 0, SLOT_HANDLER);
    r->bare = false;
    if (status == LUA_OK) return;
    memory_disarm(r);
    bool late = stop_disarm(r);
    item_ends(r, &none);
    answer = runner_answer(r, status, late, feed->out, r->start, 0);
    lua_settop(L, SLOTS);
    memory_settle(r);
  } while (feed->done(feed, answer));
}

/* The usual reply, a number. False: nothing is done. */
static inline bool reply_number(struct runner *r, plua_out *out) {
  bool one = r->call.mode == CALL_MAP || r->call.mode == CALL_STAR;
  return LIKELY(r->peeks && one) && codec_plain_take(r->L, out);
}

/* Inside runner_many's pcall, which errors are left to: in a worker's process, whose memory has no
   limit. */
static int call_bare(struct runner *r, const plua_item *item, uint64_t index, int nargs,
                     plua_out *out) {
  lua_State *L = r->L;
  note_item(r->rt, item, index);
  random_item(L, r->rt, r->call.seed, index);
  stop_arm(r);
  memory_arm(r); /* of no limit: it forgets what an item before was refused */
  lua_call(L, nargs, r->call.mode == CALL_APPLY ? LUA_MULTRET : 1);
  bool late = stop_disarm(r);
  item_over(r->rt);
  FAIL_POINT(W_ENCODE);
  if (LIKELY(!late) && LIKELY(reply_number(r, out))) return 0;
  int answer = answer_of(r, LUA_OK, late, out, r->start, 0);
  lua_settop(L, SLOTS);
  return answer;
}

NOINLINE static int call_guarded(struct runner *r, const plua_item *item, uint64_t index, int nargs,
                                 plua_out *out) {
  lua_State *L = r->L;
  size_t start = (size_t)(out->at - out->begin);
  struct mark m;
  item_begins(r, item, index, &m);
  random_item(L, r->rt, r->call.seed, index);
  stop_arm(r);
  memory_arm(r);
  int nresults = r->call.mode == CALL_APPLY ? LUA_MULTRET : 1;
  int status = lua_pcall(L, nargs, nresults, SLOT_HANDLER);
  memory_disarm(r);
  bool late = stop_disarm(r);
  item_ends(r, &m);
  int answer = runner_answer(r, status, late, out, start, 0);
  lua_settop(L, SLOTS);
  memory_settle(r);
  return answer;
}

int runner_call(struct runner *r, const plua_item *item, uint64_t index, int nargs, plua_out *out) {
  return LIKELY(r->bare) ? call_bare(r, item, index, nargs, out)
                         : call_guarded(r, item, index, nargs, out);
}
