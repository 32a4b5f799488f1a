/* lib_error.c: what became of an item or a worker, as an error object of the script's.
   Knows events, jobs and the codec; the object itself is made by a function of plua's own modules
   from a table of fields. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "base.h"
#include "codec.h"
#include "lib.h"

static const char maker_key, ours_key;

void push_error(lua_State *L) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, &maker_key);
  lua_insert(L, -2);
  lua_call(L, 1, 1);
}

void raise_encode(lua_State *L) {
  lua_createtable(L, 0, 2);
  lua_insert(L, -2);
  lua_setfield(L, -2, "message");
  lua_pushliteral(L, "encode");
  lua_setfield(L, -2, "kind");
  push_error(L);
  lua_error(L);
  IMPOSSIBLE("lua_error returned");
}

static void set_integer(lua_State *L, const char *name, lua_Integer value) {
  lua_pushinteger(L, value);
  lua_setfield(L, -2, name);
}

static void set_string(lua_State *L, const char *name, const char *value) {
  lua_pushstring(L, value);
  lua_setfield(L, -2, name);
}

static const char *kind_of(const plua_event *ev) {
  if (ev->what == PLUA_BOOT) return "init";
  if (ev->what == PLUA_LEFT && !ev->failed) return ev->signal ? "crash" : "exit";
  if (ev->what == PLUA_LEFT) return "error";
  if (ev->what == PLUA_RESULT && ev->failed == FAILED_TIMEOUT) return "timeout";
  if (ev->what == PLUA_RESULT && ev->failed == FAILED_MEMORY) return "memory";
  if (ev->what == PLUA_RESULT) return ev->failed == FAILED_ENCODE ? "encode" : "error";
  switch (ev->code) {
  case PLUA_ECRASH:
    return "crash";
  case PLUA_EEXIT:
    return "exit";
  case PLUA_EPROTO:
    return "crash";
  case PLUA_ECANCELLED:
    return "cancelled";
  case PLUA_ETIMEOUT:
    return "timeout";
  case PLUA_EOOM:
    return "memory";
  case PLUA_EOUTPUT:
    return "error";
  case PLUA_ETOOBIG:
  case PLUA_ECODEC:
  case PLUA_EDEPTH:
  case PLUA_EFORMAT:
    return "encode";
  default:
    return "lost";
  }
}

enum { MESSAGE, VALUE, TRACEBACK, WHERE, INDEX, FIELDS };

/* Whether the value on top can be that field: its worker may have overwritten what it wrote. */
static bool is_field(lua_State *L, int field, lua_Integer first, lua_Integer last) {
  if (lua_isnil(L, -1)) return false;
  if (field == INDEX)
    return lua_isinteger(L, -1) && lua_tointeger(L, -1) >= first && lua_tointeger(L, -1) <= last;
  return field == VALUE || lua_type(L, -1) == LUA_TSTRING;
}

/* What the worker wrote of its error, into the table on top: see runner_error. The index is that
   of one of the items first .. last. */
static void set_reply(lua_State *L, const plua_event *ev, lua_Integer first, lua_Integer last) {
  static const char *const names[] = {"message", "value", "traceback", "where", "index"};
  int fields = lua_gettop(L);
  if (codec_read(L, ev->data, ev->len, NULL) == FIELDS)
    for (int i = FIELDS - 1; i >= 0; i--) {
      if (is_field(L, i, first, last))
        lua_setfield(L, fields, names[i]);
      else
        lua_pop(L, 1);
    }
  lua_settop(L, fields);
}

static void set_process(lua_State *L, const plua_event *ev) {
  if (ev->worker) set_integer(L, "worker", ev->worker);
  if (ev->pid) set_integer(L, "pid", ev->pid);
  if (ev->attempts) set_integer(L, "attempts", ev->attempts);
  if (ev->elapsed_ns >= 0) {
    lua_pushnumber(L, (lua_Number)ev->elapsed_ns / 1e9);
    lua_setfield(L, -2, "elapsed");
  }
  if (ev->what == PLUA_RESULT || (ev->what == PLUA_LEFT && ev->failed)) return;
  if (ev->code == PLUA_ECANCELLED) return;
  if (ev->signal) {
    const char *name = sigabbrev_np(ev->signal);
    if (name)
      lua_pushfstring(L, "SIG%s", name);
    else
      lua_pushfstring(L, "signal %d", ev->signal);
    lua_setfield(L, -2, "signal");
  } else if (ev->status >= 0 && !ev->failed) {
    set_integer(L, "status", ev->status);
  }
}

/* The item itself: of the data that the job knows, or from its payload, whose hooks may be what
   killed the worker. stack: ..., job, fields */
static void set_item(lua_State *L, struct job *job, const plua_event *ev, int at) {
  size_t len;
  if (lua_getiuservalue(L, at, J_DATA) != LUA_TNIL) {
    lua_setfield(L, -2, "data");
    return;
  }
  lua_pop(L, 1);
  if (job->mode == CALL_FOLD || job->mode == CALL_APPLY) return;
  const void *bytes = seam_payload(job->h, ev->job, ev->index, &len);
  int top = lua_gettop(L);
  if (bytes && codec_read_quiet(L, bytes, len) == 1) lua_setfield(L, top, "item");
  lua_settop(L, top);
}

void push_failure(lua_State *L, struct job *job, const plua_event *ev, int at) {
  uint64_t lo = ev->index, hi = lo + 1;
  lua_createtable(L, 0, 12);
  set_string(L, "kind", kind_of(ev));
  if (job) {
    if (job->mode == CALL_FOLD) block_bounds(ev->index, job->total, &lo, &hi);
    if (job->mode == CALL_APPLY) hi += job->total, lo += job->total;
    set_integer(L, "index", (lua_Integer)lo + 1);
    if (hi > lo + 1) set_integer(L, "last", (lua_Integer)hi);
    set_item(L, job, ev, at);
    if (job->timeout > 0) lua_pushnumber(L, job->timeout), lua_setfield(L, -2, "timeout");
  }
  set_process(L, ev);
  if (ev->output_len) {
    lua_pushlstring(L, ev->output, ev->output_len);
    lua_setfield(L, -2, "output");
  }
  if (ev->what == PLUA_LEFT) set_string(L, "reason", "finish");
  if (ev->what == PLUA_LOST)
    set_string(L, "reason", plua_strerror(ev->code));
  else if (ev->len)
    set_reply(L, ev, (lua_Integer)lo + 1, (lua_Integer)hi);
  push_error(L);
}

/* core.maker(fn): fn makes the error object of a table of fields. Where its source lies, all of
   ours does. */
static int set_maker(lua_State *L) {
  lua_Debug ar;
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_pushvalue(L, 1);
  lua_getinfo(L, ">S", &ar);
  const char *name = strrchr(ar.source, '/');
  lua_pushlstring(L, ar.source, name ? (size_t)(name + 1 - ar.source) : strlen(ar.source));
  runtime_of(L)->ours = lua_tostring(L, 2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &ours_key);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &maker_key);
  return 0;
}

/* core.error(fields) -> the error object. */
static int make_error(lua_State *L) {
  lua_settop(L, 1);
  push_error(L);
  return 1;
}

void lib_error_open(lua_State *L) {
  lua_pushcfunction(L, set_maker);
  lua_setfield(L, -2, "maker");
  lua_pushcfunction(L, make_error);
  lua_setfield(L, -2, "error");
}
