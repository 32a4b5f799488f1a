/* worker_random.c: the generator behind math.random, set anew for each item.
   Lua 5.4 keeps its 32 bytes (xoshiro256**) as an upvalue of math.random: writing them reaches
   copies of math.random that scripts keep in locals, and costs a tenth of math.randomseed.
   Where the layout is another one, math.randomseed does it. Knows nothing of items but an index.
   SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "base.h"
#include "worker.h"

enum { WORDS = 4 };
static const char state_key, seed_key, draw_key;

static uint64_t rotl(uint64_t x, int n) {
  return (x << n) | (x >> (64 - n));
}

static uint64_t xoshiro(uint64_t *s) {
  uint64_t s0 = s[0], s1 = s[1], s2 = s[2] ^ s0, s3 = s[3] ^ s1;
  uint64_t result = rotl(s1 * 5, 7) * 9;
  s[0] = s0 ^ s3;
  s[1] = s1 ^ s2;
  s[2] = s2 ^ (s1 << 17);
  s[3] = rotl(s3, 45);
  return result;
}

/* wyrand (Wang Yi, wyhash): what is drawn at each multiple of STEP is as good as random. */
#define STEP UINT64_C(0xa0761d6478bd642f)
__extension__ typedef unsigned __int128 wide;
static uint64_t mix(uint64_t x) {
  wide product = (wide)x * (x ^ UINT64_C(0xe7037ed1a0b428db));
  return (uint64_t)(product >> 64) ^ (uint64_t)product;
}

/* Whether the 32 bytes are the state: from {1,2,3,4} math.random(0) must draw what we draw, and
   leave what we leave. stack: ..., math.random */
static bool proved(lua_State *L, uint64_t *state) {
  uint64_t saved[WORDS], mine[WORDS] = {1, 2, 3, 4};
  memcpy(saved, state, sizeof saved);
  memcpy(state, mine, sizeof mine);
  lua_pushvalue(L, -1);
  lua_pushinteger(L, 0);
  bool same = lua_pcall(L, 1, 1, 0) == LUA_OK && (uint64_t)lua_tointeger(L, -1) == xoshiro(mine) &&
              memcmp(state, mine, sizeof mine) == 0;
  lua_pop(L, 1);
  memcpy(state, saved, sizeof saved);
  return same;
}

void random_open(lua_State *L, struct runtime *rt) {
  rt->random = NULL;
  rt->seed = 0;
  rt->mixed = mix(STEP);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
  if (lua_getfield(L, -1, "math") != LUA_TTABLE) {
    lua_pop(L, 2);
    return;
  }
  lua_getfield(L, -1, "randomseed");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &seed_key);
  lua_getfield(L, -1, "random"); /* stack: loaded, math, random */
  if (lua_iscfunction(L, -1) && lua_getupvalue(L, -1, 1)) {
    uint64_t *state = lua_touserdata(L, -1);
    bool fits = state && lua_type(L, -1) == LUA_TUSERDATA &&
                lua_rawlen(L, -1) == WORDS * sizeof *state;
    lua_rawsetp(L, LUA_REGISTRYINDEX, &state_key);
    if (fits && proved(L, state)) rt->random = state;
  }
  lua_rawsetp(L, LUA_REGISTRYINDEX, &draw_key);
  lua_pop(L, 2);
}

COLD static void seed_by_call(lua_State *L, uint64_t x) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &seed_key) == LUA_TFUNCTION) {
    lua_pushinteger(L, (lua_Integer)mix(x + STEP));
    lua_pushinteger(L, (lua_Integer)mix(x + 2 * STEP));
    lua_pcall(L, 2, 0, 0);
  } else {
    lua_pop(L, 1);
  }
}

void random_item(lua_State *L, struct runtime *rt, uint64_t seed, uint64_t index) {
  if (UNLIKELY(seed != rt->seed)) {
    rt->seed = seed;
    rt->mixed = mix(seed + STEP);
  }
  uint64_t x = rt->mixed + WORDS * index * STEP, *state = rt->random;
  if (UNLIKELY(!state)) {
    seed_by_call(L, x);
    return;
  }
  state[0] = mix(x + STEP);
  state[1] = mix(x + 2 * STEP);
  state[2] = mix(x + 3 * STEP);
  state[3] = mix(x + 4 * STEP);
}

uint64_t random_draw(lua_State *L, const struct runtime *rt) {
  if (rt->random) return xoshiro(rt->random);
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &draw_key) != LUA_TFUNCTION) {
    lua_pop(L, 1);
    return 0;
  }
  lua_pushinteger(L, 0);
  uint64_t drawn = lua_pcall(L, 1, 1, 0) == LUA_OK ? (uint64_t)lua_tointeger(L, -1) : 0;
  lua_pop(L, 1);
  return drawn;
}
