/* lib_order.c: the order in which items are given out: the heaviest first, equal ones as they came.
   Invariant: an order holds each of its n indexes once. Knows numbers; does not know jobs.
   SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>

#include "lib.h"

struct weighed {
  lua_Number weight;
  uint64_t index;
};

static int heavier_first(const void *a, const void *b) {
  const struct weighed *x = a, *y = b;
  if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

/* core.order(weights, n) -> order, for 'order' of core.open and of jobs. No weight is NaN. */
static int order(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_Integer n = luaL_checkinteger(L, 2);
  luaL_argcheck(L, n >= 0 && (uint64_t)n < SIZE_MAX / sizeof(struct weighed), 2, "out of range");
  uint64_t *indexes = lua_newuserdatauv(L, (size_t)n * sizeof *indexes + 1, 0);
  luaL_setmetatable(L, "plua.order");
  struct weighed *list = lua_newuserdatauv(L, (size_t)n * sizeof *list + 1, 0);
  for (lua_Integer i = 0; i < n; i++) {
    lua_rawgeti(L, 1, i + 1);
    list[i] = (struct weighed){luaL_checknumber(L, -1), (uint64_t)i};
    lua_pop(L, 1);
  }
  qsort(list, (size_t)n, sizeof *list, heavier_first);
  for (lua_Integer i = 0; i < n; i++) indexes[i] = list[i].index;
  lua_pop(L, 1);
  return 1;
}

const uint64_t *order_take(lua_State *L, int at) {
  lua_getfield(L, at, "order");
  return lua_isnil(L, -1) ? NULL : luaL_checkudata(L, -1, "plua.order");
}

void lib_order_open(lua_State *L) {
  luaL_newmetatable(L, "plua.order");
  lua_pop(L, 1);
  lua_pushcfunction(L, order);
  lua_setfield(L, -2, "order");
}
