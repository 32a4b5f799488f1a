/* main.c: the program plua, an embedder like any other.
   Keeps true: what the words of the command line mean is decided in Lua (plua.cli); here and in
   main_*.c is what Lua cannot do by itself: the state, the modules inside the binary, signals, the
   exit status.
   Knows plua.h and Lua. Does not know options, jobs or workers.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "main.h"
#include "plua.h"

/* The Lua half of the library, generated at build time; ends with a NULL name. */
struct plua_module {
  const char *name, *chunk, *source;
  size_t len;
  const char *code; /* the same, compiled by the Lua that plua_modules_lua names */
  size_t code_len;
};
extern const struct plua_module plua_modules[];
extern const char plua_modules_lua[];

/* What main needs to know when Lua is done. */
struct outcome {
  int status; /* for exit */
  int signal; /* not 0: die by this signal instead, so that a shell sees it */
};

/* ---- what plua.cli gets -------------------------------------------------------------------- */

static int is_terminal(lua_State *L) {
  lua_pushboolean(L, isatty(STDIN_FILENO));
  return 1;
}

static void push_host(lua_State *L) {
  static const luaL_Reg host[] = {
    {"call", signals_call},
    {"stopped", signals_stopped},
    {"grace", signals_grace},
    {"isatty", is_terminal},
    {NULL, NULL},
  };
  luaL_newlib(L, host);
  lua_pushliteral(L, PLUA_VERSION);
  lua_setfield(L, -2, "version");
  lua_pushliteral(L, LUA_RELEASE);
  lua_setfield(L, -2, "lua");
  lua_pushliteral(L, LUA_COPYRIGHT);
  lua_setfield(L, -2, "copyright");
}

/* ---- the modules inside the binary --------------------------------------------------------- */

/* A shared Lua may be another one by now: then the text is what counts. */
static int load_chunk(lua_State *L, const struct plua_module *m) {
  if (strcmp(lua_ident, plua_modules_lua) == 0 &&
      luaL_loadbufferx(L, m->code, m->code_len, m->chunk, "b") == LUA_OK)
    return LUA_OK;
  lua_settop(L, 2);
  return luaL_loadbufferx(L, m->source, m->len, m->chunk, "t");
}

/* A loader as 'require' calls them: loader(name, data) -> module. */
static int load_module(lua_State *L) {
  const struct plua_module *m = lua_touserdata(L, lua_upvalueindex(1));
  lua_settop(L, 2);
  if (load_chunk(L, m) != LUA_OK) return lua_error(L);
  lua_rotate(L, 1, 1); /* stack: chunk, name, data */
  lua_call(L, 2, 1);
  return 1;
}

static void push_loader(lua_State *L, const struct plua_module *m) {
  lua_pushlightuserdata(L, (void *)(uintptr_t)m);
  lua_pushcclosure(L, load_module, 1);
}

/* A loader: from now on the program has workers to look after. */
static int load_core(lua_State *L) {
  lua_settop(L, 0);
  luaopen_plua_core(L);
  signals_core(L);
  strays_open(L);
  return 1;
}

static void preload_modules(lua_State *L) {
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  for (const struct plua_module *m = plua_modules; m->name; m++) {
    push_loader(L, m);
    lua_setfield(L, -2, m->name);
  }
  lua_pushcfunction(L, load_core);
  lua_setfield(L, -2, "plua.core");
  lua_pop(L, 1);
}

/* Pushes the module plua.cli; it is needed before there is a 'require'. */
static void push_cli(lua_State *L) {
  const struct plua_module *m = plua_modules;
  while (m->name && strcmp(m->name, "plua.cli") != 0) m++;
  if (!m->name) luaL_error(L, "the module plua.cli is missing in this build");
  push_loader(L, m);
  lua_call(L, 0, 1);
}

/* ---- the run ------------------------------------------------------------------------------- */

/* All but 'package', which reads LUA_PATH as it is opened: -E has to be known by then. */
static void open_libs(lua_State *L) {
  static const luaL_Reg libs[] = {
    {LUA_GNAME, luaopen_base},       {LUA_COLIBNAME, luaopen_coroutine},
    {LUA_TABLIBNAME, luaopen_table}, {LUA_IOLIBNAME, luaopen_io},
    {LUA_OSLIBNAME, luaopen_os},     {LUA_STRLIBNAME, luaopen_string},
    {LUA_MATHLIBNAME, luaopen_math}, {LUA_UTF8LIBNAME, luaopen_utf8},
    {LUA_DBLIBNAME, luaopen_debug},  {NULL, NULL}};
  for (const luaL_Reg *lib = libs; lib->func; lib++) {
    luaL_requiref(L, lib->name, lib->func, 1);
    lua_pop(L, 1);
  }
}

/* Opens 'package', with the modules of the binary before those of the path. */
static void open_package(lua_State *L, int noenv) {
  lua_pushboolean(L, noenv);
  lua_setfield(L, LUA_REGISTRYINDEX, "LUA_NOENV");
  luaL_requiref(L, LUA_LOADLIBNAME, luaopen_package, 1);
  lua_pop(L, 1);
  preload_modules(L);
}

/* Pushes a table of argv; element 0 is the program. */
static void push_argv(lua_State *L, int argc, char **argv) {
  lua_createtable(L, argc, 1);
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i);
  }
}

/* Everything that may raise. */
static int run(lua_State *L) {
  int argc = (int)lua_tointeger(L, 1);
  char **argv = lua_touserdata(L, 2);
  struct outcome *out = lua_touserdata(L, 3);
  luaL_checkversion(L);
  open_libs(L);
  lua_pushboolean(L, 1);
  lua_setfield(L, LUA_REGISTRYINDEX, "plua.program"); /* items may end it: by a broken pipe */
  push_cli(L);
  lua_getfield(L, 4, "parse");
  push_argv(L, argc, argv);
  lua_call(L, 1, 1);
  lua_getfield(L, 5, "noenv"); /* stack: argc, argv, out, cli, plan, noenv */
  open_package(L, lua_toboolean(L, 6));
  lua_gc(L, LUA_GCGEN, 0, 0); /* as lua does */
  lua_getfield(L, 4, "run");
  lua_pushvalue(L, 5);
  push_host(L);
  lua_call(L, 2, 2);
  out->status = (int)lua_tointeger(L, -2);
  out->signal = (int)lua_tointeger(L, -1);
  return 0;
}

/* Results that could not be written are a failure, even if the script did not look; if it did, that
   has been told. */
static int flush_results(int status) {
  int lost = ferror(stdout);
  int err = fflush(stdout) == 0 ? 0 : errno;
  if (!err && (!lost || status)) return 0;
  fprintf(stderr, "plua: cannot write to standard output%s%s\n", err ? ": " : "",
          err ? strerror(err) : "");
  return -1;
}

struct warnings {
  bool on, ours, going; /* ours: this one begins with "plua: "; going: more of it comes */
  bool failed;          /* the script has, which leaves things undone */
};

/* As lua's own, silent until "@on"; but what plua warns of is shown in either case. */
static void warned(void *ud, const char *text, int more) {
  struct warnings *w = ud;
  if (!w->going && !more && text[0] == '@') {
    if (strcmp(text, "@on") == 0) w->on = true;
    if (strcmp(text, "@off") == 0) w->on = false;
    return;
  }
  if (!w->going) w->ours = !w->failed && strncmp(text, "plua: ", 6) == 0;
  if (w->on && !w->ours && !w->going) fputs("Lua warning: ", stderr);
  if (w->on || w->ours) fprintf(stderr, "%s%s", text, more ? "" : "\n");
  w->going = more != 0;
}

int main(int argc, char **argv) {
  static struct warnings warnings;
  struct outcome out = {0, 0};
  signal(SIGPIPE, SIG_DFL); /* 'plua x.lua | head -1' ends quietly, whoever started it */
  lua_State *L = luaL_newstate();
  if (!L) {
    fputs("plua: cannot create state: not enough memory\n", stderr);
    return EXIT_FAILURE;
  }
  lua_setwarnf(L, warned, &warnings);
  lua_pushcfunction(L, run);
  lua_pushinteger(L, argc);
  lua_pushlightuserdata(L, argv);
  lua_pushlightuserdata(L, &out);
  if (lua_pcall(L, 3, 0, 0) != LUA_OK) {
    const char *message = lua_tostring(L, -1);
    fprintf(stderr, "plua: %s\n", message ? message : "error without a message");
    out.status = EXIT_FAILURE;
  }
  warnings.failed = out.status || out.signal;
  lua_close(L);
  if (flush_results(out.status) != 0 && out.status == 0) out.status = EXIT_FAILURE;
  if (out.signal) {
    strays_end(true);
    signal(out.signal, SIG_DFL);
    raise(out.signal);
  }
  if (out.status == EX_TEMPFAIL) strays_end(true);
  return out.status;
}
