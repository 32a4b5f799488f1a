/* worker_items.c: the two task tables: how an item's function and arguments are found.
   One-shot teams inherit both; pools decode the function once a job and each item's payload.
   Knows Lua and the codec; does not know pools or rings. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <string.h>

#include "base.h"
#include "codec.h"
#include "codec_peek.h"
#include "fail.h"
#include "worker.h"

/* Why codec_read refused: the reason that it pushed, if it did. */
static const char *unread(lua_State *L, const char *otherwise) {
  return lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : otherwise;
}

/* ---- arguments ------------------------------------------------------------------------------ */

/* Pushes item 'index' of the range {first, step} at 'data'. */
static void push_number(lua_State *L, int data, uint64_t index) {
  lua_rawgeti(L, data, 1);
  lua_rawgeti(L, data, 2);
  if (lua_isinteger(L, -1) && lua_isinteger(L, -2)) {
    lua_Unsigned step = (lua_Unsigned)lua_tointeger(L, -1);
    lua_Unsigned first = (lua_Unsigned)lua_tointeger(L, -2);
    lua_pop(L, 2);
    lua_pushinteger(L, (lua_Integer)(first + index * step));
    return;
  }
  lua_Number value = lua_tonumber(L, -2) + (lua_Number)index * lua_tonumber(L, -1);
  lua_pop(L, 2);
  lua_pushnumber(L, value);
}

/* Pushes the values of the list of arguments at 'at': its n, or its length, of them. Answers how
   many; -1: nothing is pushed, and *why tells it. */
static int push_arguments(lua_State *L, int at, const char **why) {
  int whole = 1;
  *why = "item is no list of arguments";
  if (lua_type(L, at) != LUA_TTABLE) return -1;
  lua_pushliteral(L, "n");
  bool named = lua_rawget(L, at) == LUA_TNUMBER;
  lua_Integer n = named ? lua_tointegerx(L, -1, &whole) : (lua_Integer)lua_rawlen(L, at);
  lua_pop(L, 1);
  if (n < 0 || !whole) *why = "item has a field n which is no number of arguments";
  if (n < 0 || !whole) return -1;
  *why = "item has more arguments than a call takes";
  if (n > 1000000 || !lua_checkstack(L, (int)n + 8)) return -1;
  for (lua_Integer i = 1; i <= n; i++) lua_rawgeti(L, at, i);
  return (int)n;
}

/* ---- blocks --------------------------------------------------------------------------------- */

void block_bounds(uint64_t b, uint64_t n, uint64_t *lo, uint64_t *hi) {
  uint64_t level = b / 512 < 54 ? b / 512 : 54;
  uint64_t size = (uint64_t)1 << level;
  uint64_t first = 512 * (size - 1) + (b - 512 * level) * size;
  *lo = first < n ? first : n;
  *hi = n - *lo < size ? n : *lo + size;
}

struct fold {
  struct runner *r;
  uint64_t lo, hi, at; /* 'at': the item that runs, for the blame */
  const unsigned char *bytes;
  size_t len;
};

/* Pushes item f->at. stack: fold, f, reduce, data, ... */
static void push_item(lua_State *L, struct fold *f) {
  size_t used;
  switch (f->r->call.source) {
  case FROM_LIST:
    lua_rawgeti(L, 4, (lua_Integer)f->at + 1);
    return;
  case FROM_RANGE:
    push_number(L, 4, f->at);
    return;
  case FROM_BYTES:
  case FROM_PLACED:
    if (codec_read(L, f->bytes, f->len, &used) != 1)
      luaL_error(L, "%s", unread(L, "item cannot be read"));
    f->bytes += used;
    f->len -= used;
    return;
  }
}

/* stack: fold, f, reduce, data; answers the folded result */
static int fold_block(lua_State *L) {
  struct fold *f = lua_touserdata(L, 1);
  for (f->at = f->lo; f->at < f->hi; f->at++) {
    bool first = f->at == f->lo;
    if (!first) { /* stack: ..., acc */
      lua_pushvalue(L, 3);
      lua_insert(L, -2);
    }
    lua_pushvalue(L, 2);
    push_item(L, f);
    if (!f->r->call.plain) lua_pushinteger(L, (lua_Integer)f->at + 1);
    f->r->rt->item = f->at;
    random_item(L, f->r->rt, f->r->call.seed, f->at);
    lua_call(L, f->r->call.plain ? 1 : 2, 1);
    if (!first) lua_call(L, 2, 1); /* stack: ..., reduce, acc, result */
  }
  return 1;
}

/* Where the items of block b are: of inherited data by its number, of a payload in its first words.
 */
static void fold_open(struct fold *f, const plua_item *item, uint64_t b) {
  if (f->r->call.source != FROM_BYTES) {
    block_bounds(b, f->r->call.count, &f->lo, &f->hi);
    return;
  }
  uint64_t head[2] = {0, 0};
  if (item->len >= sizeof head) memcpy(head, item->data, sizeof head);
  f->lo = head[0];
  f->hi = head[0] + head[1];
  f->bytes = (const unsigned char *)item->data + sizeof head;
  f->len = item->len - sizeof head;
}

NOINLINE static int runner_fold(struct runner *r, const plua_item *item, uint64_t b,
                                plua_out *out) {
  lua_State *L = r->L;
  size_t start = (size_t)(out->at - out->begin);
  struct fold f = {.r = r};
  struct mark m;
  fold_open(&f, item, b);
  lua_pushcfunction(L, fold_block);
  lua_pushlightuserdata(L, &f);
  lua_pushvalue(L, SLOT_F);
  lua_pushvalue(L, SLOT_REDUCE);
  lua_pushvalue(L, SLOT_DATA);
  item_begins(r, item, f.lo, &m);
  stop_arm(r);
  memory_arm(r);
  int status = lua_pcall(L, 4, 1, SLOT_HANDLER);
  memory_disarm(r);
  bool late = stop_disarm(r);
  item_ends(r, &m);
  int answer = runner_answer(r, status, late, out, start, f.at + 1);
  lua_settop(L, SLOTS);
  memory_settle(r);
  return answer;
}

/* ---- limited memory ------------------------------------------------------------------------- */

struct limited {
  struct runner *r;
  const plua_item *item;
  plua_out *out;
  run_item *run;
  int answer;
};

static int limited_run(lua_State *L) {
  struct limited *p = lua_touserdata(L, 1);
  lua_settop(L, 0);
  runner_load(p->r);
  p->answer = p->run(p->r, p->item, p->out);
  return 0;
}

/* Where memory is limited it may run out in our own code too: reading the item, writing the reply.
 */
static int run_limited(struct runner *r, const plua_item *item, plua_out *out, run_item *run) {
  lua_State *L = r->L;
  struct limited p = {.r = r, .item = item, .out = out, .run = run};
  size_t start = (size_t)(out->at - out->begin);
  lua_pushcfunction(L, limited_run);
  lua_pushlightuserdata(L, &p);
  int status = lua_pcall(L, 1, 0, 0);
  if (status == LUA_OK) return p.answer;
  stop_disarm(r);
  memory_disarm(r);
  p.answer = runner_failed(r, status, out, start, 0);
  lua_settop(L, SLOTS);
  return p.answer;
}

/* ---- one-shot teams ------------------------------------------------------------------------ */

/* Pushes the item; false: it cannot be read. stack: slots, f */
static inline bool push_one(struct runner *r, const plua_item *item, uint64_t index) {
  switch (r->call.source) {
  case FROM_LIST:
    lua_rawgeti(r->L, SLOT_DATA, (lua_Integer)index + 1);
    return true;
  case FROM_RANGE:
    push_number(r->L, SLOT_DATA, index);
    return true;
  case FROM_BYTES:
  case FROM_PLACED:
    break;
  }
  FAIL_POINT(W_DECODE);
  return codec_read(r->L, item->data, item->len, NULL) == 1;
}

/* Pushes f and the item of an inherited list, where both are seen, without a call of Lua's. False:
   nothing is pushed. stack: slots */
static inline bool push_seen(struct runner *r, uint64_t index) {
  if (!r->peeks || r->call.source != FROM_LIST) return false;
  struct peek_value *slot = codec_peek_top(r->L) - SLOTS; /* before the first */
  const struct peek_table *data = slot[SLOT_DATA].value.pointer;
  if (index >= data->limit) return false;
  slot[SLOTS + 1] = slot[SLOT_F];
  slot[SLOTS + 2] = data->array[index];
  if (UNLIKELY(codec_peek_empty(slot[SLOTS + 2].tag))) slot[SLOTS + 2].tag = PEEK_NIL;
  codec_peek_move(r->L, 2);
  return true;
}

/* An item that is the list of f's arguments. */
NOINLINE static int run_star(struct runner *r, const plua_item *item, uint64_t index,
                             plua_out *out) {
  const char *why;
  int nargs = push_arguments(r->L, SLOTS + 2, &why);
  if (nargs < 0) return runner_refuse(r, out, FAILED_ERROR, why);
  lua_remove(r->L, SLOTS + 2);
  return runner_call(r, item, index, nargs, out);
}

/* Runs item 'index' by the call that the slots and r->call describe. */
static inline int run_one(struct runner *r, const plua_item *item, uint64_t index, plua_out *out) {
  lua_State *L = r->L;
  if (UNLIKELY(r->call.mode == CALL_FOLD)) return runner_fold(r, item, index, out);
  if (!push_seen(r, index)) {
    lua_pushvalue(L, SLOT_F);
    if (UNLIKELY(!push_one(r, item, index)))
      return runner_refuse(r, out, FAILED_ENCODE, unread(L, "item cannot be read"));
  }
  if (UNLIKELY(r->call.mode == CALL_STAR)) return run_star(r, item, index, out);
  if (LIKELY(!r->call.plain)) lua_pushinteger(L, (lua_Integer)index + 1);
  return runner_call(r, item, index, r->call.plain ? 1 : 2, out);
}

/* The item that stands at this place in the order of the call. */
static int once_item(struct runner *r, const plua_item *item, plua_out *out) {
  const uint64_t *order = r->call.order;
  return run_one(r, item, LIKELY(!order) ? item->index : order[item->index], out);
}

static int once_run(void *ctx, const plua_item *item, plua_out *out) {
  struct runner *r = ctx;
  return UNLIKELY(r->memory) ? run_limited(r, item, out, once_item) : once_item(r, item, out);
}

/* Items whose memory is limited are protected one by one. */
static void once_many(void *ctx, plua_feed *feed) {
  struct runner *r = ctx;
  if (LIKELY(!r->memory))
    runner_many(r, feed, once_item);
  else
    while (feed->done(feed, run_limited(r, feed->item, feed->out, once_item))) continue;
}

plua_tasks once_tasks(struct runner *r) {
  return (plua_tasks){sizeof(plua_tasks), r,        runner_guard, runner_enter, once_run,
                      runner_leave,       stop_now, once_many,    runner_ready};
}

/* ---- pools ---------------------------------------------------------------------------------- */

enum { JOBS_KNOWN = 32 }; /* jobs whose decoded functions a worker keeps */

/* Puts the call on top of the stack, a list as job_decode made it, into the slots, and into the
   table that they are filled from again. */
static void job_enter(struct runner *r, uint64_t job) {
  lua_State *L = r->L;
  int list = lua_gettop(L);
  static const int slots[] = {SLOT_F, SLOT_REDUCE, SLOT_DATA};
  lua_rawgeti(L, LUA_REGISTRYINDEX, r->keep);
  for (int i = 0; i < 3; i++) {
    lua_rawgeti(L, list, i + 1);
    lua_pushvalue(L, -1);
    lua_rawseti(L, list + 1, slots[i]);
    lua_replace(L, slots[i]);
  }
  lua_rawgeti(L, list, 4);
  memcpy(&r->call, lua_touserdata(L, -1), sizeof r->call);
  lua_settop(L, list - 1);
  r->job = job;
}

/* Pushes the list {f, reduce, data, call} of the job's payload. False: it cannot be read, and its
   reason is pushed. */
static bool job_decode(struct runner *r, const plua_item *item) {
  lua_State *L = r->L;
  int top = lua_gettop(L);
  FAIL_POINT(W_DECODE);
  if (codec_read(L, item->call, item->call_len, NULL) != CALL_WORDS) return false;
  struct call call = {
    .mode = (enum call_mode)lua_tointeger(L, top + 1),
    .source = (enum call_source)lua_tointeger(L, top + 2),
    .seed = (uint64_t)lua_tointeger(L, top + 3),
    .count = (uint64_t)lua_tointeger(L, top + 4),
    .plain = lua_iscfunction(L, top + 5),
  };
  lua_createtable(L, 4, 0);
  lua_insert(L, top + 5); /* stack: ..., list, f, reduce, data */
  memcpy(lua_newuserdatauv(L, sizeof call, 0), &call, sizeof call);
  for (int i = 4; i >= 1; i--) lua_rawseti(L, top + 5, i);
  lua_replace(L, top + 1);
  lua_settop(L, top + 1);
  return true;
}

/* Makes the slots those of the item's job. False: its reason is on top. */
static bool job_switch(struct runner *r, const plua_item *item) {
  lua_State *L = r->L;
  if (lua_rawgeti(L, SLOT_JOBS, (lua_Integer)item->job) == LUA_TTABLE) {
    job_enter(r, item->job);
    return true;
  }
  lua_pop(L, 1);
  if (!job_decode(r, item)) return false;
  if (++r->known > JOBS_KNOWN) { /* numbers are never used twice: forgetting is always safe */
    lua_createtable(L, 0, 0);
    lua_rawgeti(L, LUA_REGISTRYINDEX, r->keep);
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, SLOT_JOBS);
    lua_pop(L, 1);
    lua_replace(L, SLOT_JOBS);
    r->known = 1;
  }
  lua_pushvalue(L, -1);
  lua_rawseti(L, SLOT_JOBS, (lua_Integer)item->job);
  job_enter(r, item->job);
  return true;
}

/* Pushes the function of a call at the head of the item's payload; *used: its length. False: it
   cannot be read, and its reason is pushed. */
static bool push_brought(struct runner *r, const plua_item *item, size_t *used) {
  lua_State *L = r->L;
  if (codec_read(L, item->data, item->len, used) != CALL_WORDS) return false;
  lua_pushvalue(L, SLOTS + CALL_F);
  lua_replace(L, SLOTS + 1);
  lua_settop(L, SLOTS + 1);
  return true;
}

/* An item of CALL_APPLY: the number of its submission, then the arguments. */
static int run_apply(struct runner *r, const plua_item *item, plua_out *out) {
  lua_State *L = r->L;
  size_t used = 0;
  FAIL_POINT(W_DECODE);
  if (r->call.source != FROM_BYTES)
    lua_pushvalue(L, SLOT_F);
  else if (!push_brought(r, item, &used))
    return runner_refuse(r, out, FAILED_ENCODE, unread(L, "the function cannot be read"));
  int n = codec_read(L, (const char *)item->data + used, item->len - used, NULL);
  if (UNLIKELY(n < 1))
    return runner_refuse(r, out, FAILED_ENCODE, unread(L, "arguments cannot be read"));
  uint64_t index = (uint64_t)lua_tointeger(L, SLOTS + 2);
  lua_remove(L, SLOTS + 2);
  return runner_call(r, item, index, n - 1, out);
}

/* An item whose payload begins with its index. */
static int run_placed(struct runner *r, const plua_item *item, plua_out *out) {
  plua_item placed = *item;
  if (item->len < sizeof placed.index)
    return runner_refuse(r, out, FAILED_ENCODE, "item cannot be read");
  memcpy(&placed.index, item->data, sizeof placed.index);
  placed.data = (const unsigned char *)item->data + sizeof placed.index;
  placed.len -= sizeof placed.index;
  return run_one(r, &placed, placed.index, out);
}

static int pool_item(struct runner *r, const plua_item *item, plua_out *out) {
  if (UNLIKELY(r->job != item->job) && !job_switch(r, item))
    return runner_refuse(r, out, FAILED_ENCODE, unread(r->L, "the function cannot be read"));
  if (r->call.mode == CALL_APPLY) return run_apply(r, item, out);
  if (UNLIKELY(r->call.source == FROM_PLACED)) return run_placed(r, item, out);
  return run_one(r, item, item->index, out);
}

static int pool_run(void *ctx, const plua_item *item, plua_out *out) {
  struct runner *r = ctx;
  return UNLIKELY(r->memory) ? run_limited(r, item, out, pool_item) : pool_item(r, item, out);
}

static void pool_many(void *ctx, plua_feed *feed) {
  struct runner *r = ctx;
  if (LIKELY(!r->memory))
    runner_many(r, feed, pool_item);
  else
    while (feed->done(feed, run_limited(r, feed->item, feed->out, pool_item))) continue;
}

plua_tasks pool_tasks(struct runner *r) {
  return (plua_tasks){sizeof(plua_tasks), r,        runner_guard, runner_enter, pool_run,
                      runner_leave,       stop_now, pool_many,    runner_ready};
}
