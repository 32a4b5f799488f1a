/* cputest.c: plua_cpus for specs, with the environment and the machine's size in their hands.
   Knows plua.h and Lua. Is never installed. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <lauxlib.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "plua.h"

enum { ROWS = 64 };

int luaopen_cputest(lua_State *L);

static size_t pretended; /* CPUs of the machine that sched_getaffinity describes; 0: the real one */

/* Takes the place of the C library's for the objects linked into this module. Like the kernel's,
   it refuses a mask with less room than the machine has CPUs. */
__attribute__((visibility("hidden"))) int sched_getaffinity(pid_t pid, size_t size,
                                                            cpu_set_t *mask) {
  if (!pretended) return syscall(SYS_sched_getaffinity, pid, size, mask) < 0 ? -1 : 0;
  if (size * 8 < pretended) {
    errno = EINVAL;
    return -1;
  }
  memset(mask, 0, size);
  for (size_t cpu = 0; cpu < pretended; cpu++) CPU_SET_S(cpu, size, mask);
  return 0;
}

/* machine(n): from now on sched_getaffinity tells of n CPUs; 0: of the real ones */
static int machine(lua_State *L) {
  pretended = (size_t)luaL_checkinteger(L, 1);
  return 0;
}

/* setenv(name, value or nil) -> the value before */
static int set_variable(lua_State *L) {
  const char *name = luaL_checkstring(L, 1), *value = luaL_optstring(L, 2, NULL);
  lua_pushstring(L, getenv(name));
  int err = value ? setenv(name, value, 1) : unsetenv(name);
  return err ? luaL_error(L, "setenv %s: %s", name, strerror(errno)) : 1;
}

static void push_source(lua_State *L, const plua_cpu_source *s) {
  lua_createtable(L, 0, 5);
  lua_pushstring(L, s->name);
  lua_setfield(L, -2, "name");
  lua_pushstring(L, s->where);
  lua_setfield(L, -2, "where");
  lua_pushstring(L, s->text);
  lua_setfield(L, -2, "text");
  lua_pushinteger(L, s->cpus);
  lua_setfield(L, -2, "cpus");
  lua_pushboolean(L, s->decides);
  lua_setfield(L, -2, "decides");
}

/* cpus([max]) -> the answer, the list of sources; with max 0 no list is asked for */
static int cpus(lua_State *L) {
  plua_cpu_source rows[ROWS + 1] = {{0}}; /* no row is written behind the last */
  int max = (int)luaL_optinteger(L, 1, ROWS), n = -1;
  luaL_argcheck(L, max >= 0 && max <= ROWS, 1, "too many rows");
  lua_pushinteger(L, plua_cpus(max ? rows : NULL, max, max ? &n : NULL));
  if (rows[max].name || rows[max].decides) return luaL_error(L, "a row too many");
  lua_newtable(L);
  for (int i = 0; i < n; i++) {
    push_source(L, &rows[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 2;
}

__attribute__((visibility("default"))) int luaopen_cputest(lua_State *L) {
  static const luaL_Reg functions[] = {
    {"machine", machine}, {"setenv", set_variable}, {"cpus", cpus}, {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
