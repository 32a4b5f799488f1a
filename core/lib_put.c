/* lib_put.c: how items get to a job: lists, and single calls; lib_feed.c has iterators.
   Invariant: what cannot cross is refused before anything of it is submitted. Knows handles, jobs
   and the codec; does not read outcomes. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <string.h>

#include "base.h"
#include "codec.h"
#include "codec_peek.h"
#include "codec_wire.h"
#include "lib.h"

/* ---- items ---------------------------------------------------------------------------------- */

/* Raises what codec_write refused of the value that 'what' names; its reason is on top. */
static _Noreturn void refuse(lua_State *L, struct handle *h, int err, const char *what) {
  const char *why = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : plua_strerror(err);
  lua_pushfstring(L, "%s: %s", what, why);
  if (err != PLUA_ECODEC && err != PLUA_EDEPTH) handle_raise(L, h, err);
  raise_encode(L);
}

_Noreturn void put_refuse(lua_State *L, struct handle *h, int err, uint64_t index) {
  char what[32];
  snprintf(what, sizeof what, "item %llu", (unsigned long long)index + 1);
  refuse(L, h, err, what);
}

/* An item could not be put: its job is over, save one of calls, which have nothing to do with each
   other. */
static _Noreturn void put_failed(lua_State *L, struct handle *h, struct job *job, int at, int err) {
  if (job->keep != KEEP_FUTURES) job_end(L, job, at);
  handle_raise(L, h, err);
}

plua_out *put_open(lua_State *L, struct handle *h, struct job *job, int at) {
  plua_out *out;
  int err = seam_put(h, job->id, &out);
  if (LIKELY(err >= 0)) return out;
  put_failed(L, h, job, at, err);
}

void put_ended(lua_State *L, struct handle *h, struct job *job, int at, int err) {
  if (UNLIKELY(err < 0)) put_failed(L, h, job, at, err);
  job->count++;
}

void put_flush(lua_State *L, struct handle *h, struct job *job) {
  int err = seam_flush(h);
  if (UNLIKELY(err < 0)) put_failed(L, h, job, 2, err);
}

/* Pushes the item that the job has at a position, of the list at 3; answers its index. */
static uint64_t push_next(lua_State *L, const struct job *job, uint64_t position) {
  uint64_t index = job_index(job, position);
  lua_rawgeti(L, 3, (lua_Integer)index + 1);
  return index;
}

/* The list at 3, if so long a one may be looked into without a call for each item; else NULL. */
static const struct peek_table *look(lua_State *L, uint64_t n) {
  return n >= 256 && codec_peek_fits(L) ? codec_peek(L, 3) : NULL;
}

static bool is_number(const struct peek_value *v) {
  return v->tag == PEEK_FLOAT || v->tag == PEEK_INTEGER;
}

/* The list's item, from 0, if it is a number and seen; else NULL. */
static const struct peek_value *seen_number(const struct peek_table *t, uint64_t index) {
  const struct peek_value *v = t && index < t->limit ? &t->array[index] : NULL;
  return v && is_number(v) ? v : NULL;
}

static void write_number(plua_out *out, const struct peek_value *v) {
  if (v->tag == PEEK_INTEGER)
    wire_put_integer(out, v->value.integer);
  else
    wire_put_float(out, v->value.number);
}

/* How many of the list's items [from, to), from 0, are numbers and seen, up to the first that is
   none. */
static uint64_t count_numbers(const struct peek_table *t, uint64_t from, uint64_t to) {
  uint64_t i = from, end = t && t->limit < to ? t->limit : to;
  if (!t) return 0;
  while (i < end && is_number(&t->array[i])) i++;
  return i > from ? i - from : 0;
}

/* Whether every item of [from, to) of the list at 3 crosses in any case. */
static bool all_plain(lua_State *L, const struct job *job, uint64_t from, uint64_t to) {
  const struct peek_table *t = look(L, to - from);
  if (!job->order) from += count_numbers(t, from, to);
  for (uint64_t i = from; i < to; i++) {
    if (seen_number(t, job_index(job, i))) continue;
    int type = lua_rawgeti(L, 3, (lua_Integer)job_index(job, i) + 1);
    lua_pop(L, 1);
    if (type != LUA_TNIL && type != LUA_TBOOLEAN && type != LUA_TNUMBER && type != LUA_TSTRING)
      return false;
  }
  return true;
}

/* Encodes items [from, to) of the list at 3 into h->scratch, and where each ends into h->ends: a
   refusal comes before anything is submitted. */
static void stage(lua_State *L, struct handle *h, struct job *job, uint64_t from, uint64_t to) {
  plua_out *out = &h->scratch.out, *ends = &h->ends.out;
  out->at = out->begin;
  ends->at = ends->begin;
  for (uint64_t i = from; i < to; i++) {
    uint64_t index = push_next(L, job, i);
    int err = codec_write(L, 1, out);
    uint64_t end = (uint64_t)(out->at - out->begin);
    if (LIKELY(err >= 0)) err = plua_write(ends, &end, sizeof end);
    if (UNLIKELY(err < 0)) {
      job_end(L, job, 2);
      put_refuse(L, h, err, index);
    }
    lua_pop(L, 1);
  }
}

static uint64_t staged_end(const struct handle *h, uint64_t i) {
  return i ? ((const uint64_t *)(const void *)h->ends.out.begin)[i - 1] : 0;
}

/* Puts staged items [lo, hi) as one payload, behind 'head'. */
static void put_staged(lua_State *L, struct handle *h, struct job *job, const void *head,
                       size_t head_len, uint64_t lo, uint64_t hi) {
  uint64_t from = staged_end(h, lo), to = staged_end(h, hi);
  plua_out *out = put_open(L, h, job, 2);
  int err = plua_write(out, head, head_len);
  if (err >= 0) err = plua_write(out, h->scratch.out.begin + from, (size_t)(to - from));
  if (UNLIKELY(err < 0)) {
    seam_put_drop(h);
    job_end(L, job, 2);
    handle_raise(L, h, err);
  }
  put_ended(L, h, job, 2, seam_put_next(h));
}

enum { KEEP = 1 << 20 };

static void stage_over(struct handle *h) {
  if (h->scratch.out.end - h->scratch.out.begin > KEEP) scratch_close(&h->scratch);
  if (h->ends.out.end - h->ends.out.begin > KEEP) scratch_close(&h->ends);
}

/* Puts the blocks of a fold: a payload is where it begins, how many items, the items. */
static void put_blocks(lua_State *L, struct handle *h, struct job *job, uint64_t n) {
  stage(L, h, job, 0, n);
  for (uint64_t b = 0, lo, hi;; b++) {
    block_bounds(b, n, &lo, &hi);
    if (lo >= n) break;
    uint64_t head[2] = {lo, hi - lo};
    put_staged(L, h, job, head, sizeof head, lo, hi);
  }
  stage_over(h);
}

/* Puts the job's next item, of the list at 3, which crosses in any case. */
static void put_one(lua_State *L, struct handle *h, struct job *job) {
  plua_out *out = put_open(L, h, job, 2);
  uint64_t index = push_next(L, job, job->count);
  int err = job->order ? plua_write(out, &index, sizeof index) : 0;
  if (LIKELY(err >= 0)) err = codec_write(L, 1, out);
  if (UNLIKELY(err < 0)) {
    seam_put_drop(h);
    job_end(L, job, 2);
    put_refuse(L, h, err, index);
  }
  lua_pop(L, 1);
  if (job->low) job->bytes += (size_t)(out->at - out->begin) + 8;
  put_ended(L, h, job, 2, seam_put_next(h));
}

/* Encodes the item 'index' of the list at 3, which crosses in any case. False: it is large. */
static bool write_small(lua_State *L, const struct job *job, const struct peek_table *t,
                        uint64_t index, plua_out *out) {
  const struct peek_value *v = seen_number(t, index);
  if (job->order) plua_write(out, &index, sizeof index);
  if (LIKELY(v != NULL)) {
    write_number(out, v);
    return true;
  }
  int type = lua_rawgeti(L, 3, (lua_Integer)index + 1);
  bool small = type != LUA_TSTRING || lua_rawlen(L, -1) <= PUT_SMALL;
  if (small) codec_write(L, 1, out);
  lua_pop(L, 1);
  return small;
}

/* Encodes numbers of the list from 'index' on, n at most: how many there are, and their lengths. */
static unsigned write_numbers(const struct peek_table *t, uint64_t index, uint64_t n, plua_out *out,
                              size_t *len) {
  uint64_t there = count_numbers(t, index, index + n);
  for (uint64_t i = 0; i < there; i++) {
    const unsigned char *begin = out->at;
    write_number(out, &t->array[index + i]);
    len[i] = (size_t)(out->at - begin);
  }
  return (unsigned)there;
}

/* Puts some of the job's next items, up to 'to', of the list at 3, which all cross in any case:
   small ones go together. */
static void put_next(lua_State *L, struct handle *h, struct job *job, const struct peek_table *t,
                     uint64_t to) {
  unsigned char bytes[PUT_RUN * (8 + PUT_SMALL + 9)]; /* room for all: writing cannot fail */
  size_t len[PUT_RUN];
  plua_out out = {.begin = bytes, .at = bytes, .end = bytes + sizeof bytes};
  uint64_t most = to - job->count < PUT_RUN ? to - job->count : PUT_RUN;
  unsigned n = job->order ? 0 : write_numbers(t, job->count, most, &out, len);
  for (; n < most; n++) {
    const unsigned char *begin = out.at;
    if (!write_small(L, job, t, job_index(job, job->count + n), &out)) break;
    len[n] = (size_t)(out.at - begin);
  }
  if (n < 2) { /* the next is large, or the last */
    put_one(L, h, job);
    return;
  }
  int added = seam_put_run(h, job->id, bytes, len, (int)n);
  if (UNLIKELY(added < 0)) {
    job_end(L, job, 2);
    handle_raise(L, h, added);
  }
  job->count += (unsigned)added;
  if (!job->low) return;
  job->bytes += (size_t)(out.at - out.begin) + 8 * (size_t)added;
  for (unsigned i = (unsigned)added; i < n; i++) job->bytes -= len[i];
}

/* Puts items [from, to) of the list at 3, the first of which is the job's next. stack: handle, job,
 * list, ... */
static void put_list(lua_State *L, struct handle *h, struct job *job, uint64_t from, uint64_t to) {
  if (all_plain(L, job, from, to)) {
    const struct peek_table *t = look(L, to - from);
    while (job->count < to) put_next(L, h, job, t, to);
    return;
  }
  stage(L, h, job, from, to);
  for (uint64_t i = 0; i < to - from; i++) {
    uint64_t index = job_index(job, from + i);
    put_staged(L, h, job, &index, job->order ? sizeof index : 0, i, i + 1);
  }
  stage_over(h);
}

/* Puts items of the list at 3 until enough is under way: what lies in shared memory is used again
   while it is warm, and is no second copy of a long list. False: some of the n are left. */
static bool put_enough(lua_State *L, struct handle *h, struct job *job, uint64_t n) {
  enum { ROOM = 16 << 20, EACH = 1 << 13 }; /* half of that many last for some milliseconds */
  const struct peek_table *t = look(L, n - job->count);
  job->low = ROOM / 2;
  job->many = EACH * job->few;
  for (uint64_t out = job->count - job->done; job->count < n; out = job->count - job->done) {
    if (out >= job->few && (job->bytes >= ROOM || out >= 2 * job->many)) break;
    put_next(L, h, job, t, n);
  }
  return job->count == n;
}

/* handle:put(job, list, n, few): encodes the list's n items, and closes the job; all at once, or,
   where 'few' is given and they are plain, until enough is under way, at least so few items. True:
   some are left, so call again when pump comes back. */
static int put_inner(lua_State *L) {
  struct handle *h = lua_touserdata(L, 1);
  struct job *job = job_check(L, 2);
  uint64_t n = (uint64_t)luaL_checkinteger(L, 4);
  bool all = true;
  if (!job->open) return 0; /* an error has withdrawn the rest */
  job->few = (uint64_t)luaL_optinteger(L, 5, 0);
  if (job->mode == CALL_FOLD)
    put_blocks(L, h, job, n);
  else if (job->low || (job->few && all_plain(L, job, 0, n)))
    all = put_enough(L, h, job, n);
  else
    put_list(L, h, job, 0, n);
  put_flush(L, h, job);
  job->open = !all;
  job_settle(L, job, 2);
  lua_pushboolean(L, !all);
  return 1;
}

/* handle:put_some(job, list, first, last): encodes those items of the list. */
static int put_some_inner(lua_State *L) {
  struct handle *h = lua_touserdata(L, 1);
  uint64_t first = (uint64_t)luaL_checkinteger(L, 4), last = (uint64_t)luaL_checkinteger(L, 5);
  struct job *job = job_check(L, 2);
  put_list(L, h, job, first - 1, last);
  put_flush(L, h, job);
  return 0;
}

static int put_some(lua_State *L) {
  return handle_enter(L, put_some_inner);
}

static int put_items(lua_State *L) {
  return handle_enter(L, put_inner);
}

/* handle:extend(job, n): n more positions. */
static int extend(lua_State *L) {
  struct handle *h = handle_check(L, 1);
  struct job *job = job_check(L, 2);
  uint64_t n = (uint64_t)luaL_checkinteger(L, 3);
  int err = seam_extend(h, job->id, n);
  if (err < 0) handle_raise(L, h, err);
  job->count += n;
  return 0;
}

/* ---- apply ---------------------------------------------------------------------------------- */

/* Encodes the call of spec.f, and remembers it. Whether that of the time before was the same. */
static bool encode_again(lua_State *L, struct handle *h) {
  const struct job call = {.mode = CALL_APPLY};
  job_encode_call(L, h, &call);
  const plua_out *now = &h->scratch.out, *before = &h->last.out;
  size_t len = (size_t)(now->at - now->begin);
  bool same = len == (size_t)(before->at - before->begin) &&
              memcmp(now->begin, before->begin, len) == 0;
  struct scratch other = h->last;
  h->last = h->scratch;
  h->scratch = other;
  h->scratch.out.at = h->scratch.out.begin;
  size_t keep = len < KEEP / 4 ? KEEP : 4 * len; /* large ones come seldom, or again and again */
  scratch_trim(&h->last, keep);
  scratch_trim(&h->scratch, keep);
  return same;
}

/* Whether the job at 'at' is for that very function, or one made at the same place, which has
   nothing that could have changed. */
static bool same_function(lua_State *L, const struct job *job, int at) {
  lua_getiuservalue(L, at, J_F);
  lua_getfield(L, 2, "f");
  bool same = lua_rawequal(L, -1, -2) || (job->code && codec_code(L) == job->code);
  lua_pop(L, 2);
  return same;
}

/* Remembers the function at the top, if all that it is is its code. stack: ..., job, f */
static void keep_function(lua_State *L, struct job *job) {
  if (lua_getupvalue(L, -1, 1)) {
    lua_pop(L, 2);
    return;
  }
  job->code = codec_code(L);
  lua_setiuservalue(L, -2, J_F);
}

/* Another job takes the calls from now on. */
static void apply_over(lua_State *L, struct handle *h) {
  struct job *old = h->apply;
  h->apply = NULL;
  old->open = false;
  job_settle(L, old, lua_gettop(L));
  lua_pop(L, 1);
}

/* Pushes a new job for calls of spec.f, or one whose items bring their functions along. */
static struct job *apply_begin(lua_State *L, struct handle *h, bool carries) {
  lua_pushcfunction(L, job_make);
  lua_pushvalue(L, 1);
  lua_pushvalue(L, 2);
  lua_pushboolean(L, carries);
  lua_call(L, 3, 1);
  h->apply = job_check(L, -1);
  h->apply->total = h->applied;
  if (carries) return h->apply;
  lua_getfield(L, 2, "f");
  keep_function(L, h->apply);
  return h->apply;
}

/* Pushes the job that calls of spec.f go to. A function that comes again, by identity or by its
   bytes, is sent once, as the job's; where each call has another one, such as one written out in a
   loop, a job for each would cost more than the calls. stack: handle, spec, future, f, args... */
static struct job *apply_job(lua_State *L, struct handle *h) {
  bool carries = false;
  lua_getiuservalue(L, 1, H_JOBS);
  if (h->apply) {
    lua_rawgeti(L, -1, (lua_Integer)h->apply->id);
    if (same_function(L, h->apply, lua_gettop(L))) return h->apply;
  }
  bool again = encode_again(L, h);
  if (h->apply) {
    if (again != h->apply->carries) return h->apply;
    carries = !again;
    apply_over(L, h);
  }
  return apply_begin(L, h, carries);
}

/* The codec counts the number before the arguments too: "value 3.x: ..." is argument 2. */
static _Noreturn void refuse_argument(lua_State *L, struct handle *h, int err) {
  int n = 0, used = 0;
  const char *why = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
  if (sscanf(why, "value %d%n", &n, &used) < 1 || n < 2) refuse(L, h, err, "argument");
  lua_pushfstring(L, "argument %d%s", n - 1, why + used);
  raise_encode(L);
}

/* The call that the item brings along: its function. */
static void put_function(lua_State *L, struct handle *h, plua_out *out) {
  const plua_out *call = &h->last.out;
  int err = plua_write(out, call->begin, (size_t)(call->at - call->begin));
  if (LIKELY(err >= 0)) return;
  seam_put_drop(h);
  handle_raise(L, h, err);
}

/* Whether it is time to look for workers that have died, which nobody does while the script only
   submits. More seldom while calls are under way: taking their results in one by one costs more
   than taking them in together. */
static bool look_due(struct handle *h, const struct job *job) {
  enum { IDLE_NS = 1000000, BUSY_NS = 100000000 };
  int64_t now = now_ns(), since = now - h->looked_ns;
  if (h->inliner || since < (job->count - job->done > 1 ? BUSY_NS : IDLE_NS)) return false;
  h->looked_ns = now;
  return true;
}

/* handle:apply(spec, future, f, ...): submits f(...), of which the future is told job and index.
   Answers whether the pool wants to be looked after. The spec gets its f here: from now on no
   finalizer's and no hook's call of the pool comes in between. */
static int apply_inner(lua_State *L) {
  struct handle *h = lua_touserdata(L, 1);
  int nargs = lua_gettop(L) - 4;
  lua_pushvalue(L, 4);
  lua_setfield(L, 2, "f");
  struct job *job = apply_job(L, h);
  int at = lua_gettop(L);
  plua_out *out = put_open(L, h, job, at);
  luaL_checkstack(L, nargs + 4, "too many arguments");
  lua_pushinteger(L, (lua_Integer)h->applied);
  for (int i = 0; i < nargs; i++) lua_pushvalue(L, 5 + i);
  if (job->carries) put_function(L, h, out);
  int err = codec_write(L, nargs + 1, out);
  if (UNLIKELY(err < 0)) {
    seam_put_drop(h);
    refuse_argument(L, h, err);
  }
  uint64_t index = job->count;
  job_print_first();
  put_ended(L, h, job, at, seam_put_end(h));
  h->applied++;
  lua_getiuservalue(L, at, J_RESULTS);
  lua_pushvalue(L, 3);
  lua_rawseti(L, -2, (lua_Integer)index + 1);
  lua_pushvalue(L, at);
  lua_rawseti(L, 3, F_JOB);
  lua_pushinteger(L, (lua_Integer)index);
  lua_rawseti(L, 3, F_INDEX);
  lua_pushboolean(L, look_due(h, job));
  return 1;
}

static int apply(lua_State *L) {
  return handle_enter(L, apply_inner);
}

const luaL_Reg lib_job_methods[] = {
  {"job", job_new},       {"put", put_items}, {"extend", extend}, {"feed", lib_feed},
  {"put_some", put_some}, {"apply", apply},   {NULL, NULL},
};
