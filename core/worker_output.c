/* worker_output.c: what items print: Lua's io.stdout, io.stderr and print, and C's stdio.
   Invariant: after an item nothing of what it printed is left in this process.
   Not reached: what goes to descriptors 1 and 2 past stdio is as whole as its writes.
   Knows Lua's files; does not know how lines are kept whole. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdio_ext.h>

#include "base.h"
#include "lines.h"
#include "worker.h"

static FILE *native; /* the stdout of before: C++ writes to it still */

/* Has the Lua file on top of the stack, if it is the stream 'old', use 'fresh'. Pops it. */
static void redirect(lua_State *L, FILE *old, FILE *fresh) {
  luaL_Stream *s = luaL_testudata(L, -1, LUA_FILEHANDLE);
  if (s && s->f == old) s->f = fresh;
  lua_pop(L, 1);
}

static void redirect_all(lua_State *L, const char *name, FILE *old, FILE *fresh) {
  lua_getfield(L, LUA_REGISTRYINDEX, "_IO_output"); /* what io.write writes to */
  redirect(L, old, fresh);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (lua_getfield(L, -1, LUA_IOLIBNAME) == LUA_TTABLE) {
    lua_getfield(L, -1, name);
    redirect(L, old, fresh);
  }
  lua_pop(L, 2);
}

void output_open(lua_State *L) {
  FILE *err = lines_open(2), *out = lines_open(1); /* this one has a buffer: they lie together */
  native = stdout;
  if (out) {
    redirect_all(L, "stdout", stdout, out);
    stdout = out;
  }
  if (err) {
    redirect_all(L, "stderr", stderr, err);
    stderr = err;
  }
}

COLD static void write_pending(void) {
  if (__fpending(stdout)) fflush(stdout);
  if (__fpending(native)) fflush(native);
  if (lines_unfinished) lines_end();
}

void output_item_end(void) {
  if (UNLIKELY(may_hold(stdout) || may_hold(native) || lines_unfinished)) write_pending();
}

void output_end(void) {
  flush_files();
  lines_end();
}
