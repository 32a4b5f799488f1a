/* lib_feed.c: items of an iterator of the script's, pulled and put as a loop takes outcomes.
   Invariant: items reach the job in the order in which they were pulled, also where the iterator
   feeds the same job from inside; each is put or refused, whatever ends the input.
   Knows handles, jobs and the codec; does not read outcomes. SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>

#include "base.h"
#include "codec.h"
#include "lib.h"

enum { SLOW_NS = 2000000 }; /* results that have arrived do not wait longer for an iterator */

/* Items that were pulled and are not the job's yet: small ones go together. */
struct feed {
  struct handle *h;
  struct job *job;
  bool pulling;       /* the script's iterator runs */
  int n, most;        /* so many; how many may wait for each other */
  struct feed *outer; /* the job's, whose iterator took from the loop that it feeds */
  plua_out out;
  size_t len[PUT_RUN];
  unsigned char bytes[PUT_RUN * (PUT_SMALL + 9)]; /* room for all: writing cannot fail */
};

/* Puts them. stack: handle, job, ... */
static void feed_put(lua_State *L, struct feed *f) {
  const unsigned char *bytes = f->bytes;
  struct job *job = f->job;
  int n = f->n;
  f->n = 0;
  f->out.at = f->bytes;
  for (int i = 0; i < n;) {
    int added = seam_put_run(f->h, job->id, bytes, f->len + i, n - i);
    if (UNLIKELY(added < 0)) {
      job_end(L, job, 2);
      handle_raise(L, f->h, added);
    }
    job->count += (unsigned)added;
    for (; added; added--, i++) {
      bytes += f->len[i];
      job->bytes += f->len[i];
    }
  }
  int slack = seam_slack(f->h, job->id);
  f->most = slack < 1 ? 1 : slack < PUT_RUN ? slack : PUT_RUN;
}

/* Calls the script's iterator at 3. Pushes one value, nil at the end; false: pushes an error. */
static bool pull(lua_State *L, struct feed *f) {
  int top = lua_gettop(L);
  lua_pushvalue(L, 3);
  f->h->rt->depth++;
  f->pulling = true;
  lua_call(L, 0, LUA_MULTRET);
  f->pulling = false;
  f->h->rt->depth--;
  int n = lua_gettop(L) - top;
  if (n == 0 || lua_isnil(L, top + 1)) {
    lua_settop(L, top);
    lua_pushnil(L);
    return true;
  }
  if (f->job->mode == CALL_STAR) {
    lua_createtable(L, n, 1);
    lua_insert(L, top + 1);
    for (int i = n; i >= 1; i--) lua_rawseti(L, top + 1, i);
    lua_pushinteger(L, n);
    lua_setfield(L, top + 1, "n");
    return true;
  }
  if (n == 1) return true;
  lua_settop(L, top);
  lua_pushfstring(
    L,
    "plua: the iterator gave %d values for item %I where one is wanted; starmap and its "
    "like take several",
    n, (LUAI_UACINT)f->job->count + f->n + 1);
  return false;
}

static int raise_refusal(lua_State *L) {
  put_refuse(L, lua_touserdata(L, 1), (int)lua_tointeger(L, 2), (uint64_t)lua_tointeger(L, 3));
}

/* The input has ended; on top is the error that ended it, if not 'fine'. */
static int feed_ended(lua_State *L, struct feed *f, bool fine) {
  f->job->open = false;
  job_settle(L, f->job, 2);
  lua_pushboolean(L, 0);
  if (fine) return 1;
  lua_insert(L, -2);
  return 2;
}

/* An item that cannot cross ends the input as an iterator's error does. The reason is on top. */
static int feed_refused(lua_State *L, struct feed *f, int err) {
  lua_pushcfunction(L, raise_refusal);
  lua_insert(L, -2);
  lua_pushlightuserdata(L, f->h);
  lua_insert(L, -2);
  lua_pushinteger(L, err);
  lua_insert(L, -2);
  lua_pushinteger(L, (lua_Integer)f->job->count);
  lua_insert(L, -2); /* stack: ..., raise_refusal, h, err, index, reason */
  lua_pcall(L, 4, 1, 0);
  return feed_ended(L, f, false);
}

/* Whether the item on top needs little room in any case. */
static bool is_small(lua_State *L) {
  int type = lua_type(L, -1);
  return type == LUA_TNUMBER || type == LUA_TBOOLEAN ||
         (type == LUA_TSTRING && lua_rawlen(L, -1) <= PUT_SMALL);
}

static void feed_small(lua_State *L, struct feed *f) {
  const unsigned char *begin = f->out.at;
  codec_write(L, 1, &f->out);
  f->len[f->n++] = (size_t)(f->out.at - begin);
  if (f->n >= f->most) feed_put(L, f);
}

/* Puts the item on top, behind those before. Negative: it is refused, the reason is on top. */
static int feed_large(lua_State *L, struct feed *f) {
  feed_put(L, f);
  plua_out *out = put_open(L, f->h, f->job, 2);
  f->h->busy = true;
  int err = codec_write(L, 1, out);
  f->h->busy = false;
  if (UNLIKELY(err < 0)) {
    seam_put_drop(f->h);
    return err;
  }
  f->job->bytes += (size_t)(out->at - out->begin);
  put_ended(L, f->h, f->job, 2, seam_put_next(f->h));
  return 0;
}

/* stack: handle, job, iterator, items, bytes, feed */
static int feed_inner(lua_State *L) {
  struct feed *f = lua_touserdata(L, 6);
  const struct job *job = f->job;
  uint64_t items = (uint64_t)luaL_checkinteger(L, 4);
  size_t bytes = (size_t)luaL_checkinteger(L, 5);
  int64_t until = now_roughly_ns() + SLOW_NS;
  bool slow = false;
  while (!slow && job->count + (unsigned)f->n - job->taken < items &&
         job->bytes + stream_held(f->job) < bytes) {
    int err = 0;
    lua_settop(L, 6);
    bool fine = pull(L, f);
    if (UNLIKELY(!f->h->pool)) handle_check(L, 1); /* the iterator may have ended it */
    if (!fine || lua_isnil(L, -1)) {
      feed_put(L, f);
      return feed_ended(L, f, fine);
    }
    if (LIKELY(is_small(L)))
      feed_small(L, f);
    else
      err = feed_large(L, f);
    if (UNLIKELY(err < 0)) return feed_refused(L, f, err);
    slow = now_roughly_ns() >= until;
  }
  feed_put(L, f);
  lua_pushboolean(L, 1);
  lua_pushboolean(L, slow);
  return 2;
}

/* handle:feed(job, iterator, items, bytes): pulls and encodes until so many items have not been
   taken, or so many bytes are under way, or some milliseconds have passed. Answers true, and
   whether it was for the time; false at the iterator's end, and what it raised, if it did. The
   iterator may call plua, this handle too: so the handle is busy only while an item is written, by
   hooks of the script's as well. */
int lib_feed(lua_State *L) {
  struct handle *h = handle_check(L, 1);
  struct feed f = {.h = h, .job = job_check(L, 2), .most = 1};
  int depth = h->rt->depth;
  f.outer = f.job->feed;
  if (f.outer) feed_put(L, f.outer); /* those items come first */
  f.job->feed = &f;
  f.out = (plua_out){.begin = f.bytes, .at = f.bytes, .end = f.bytes + sizeof f.bytes};
  lua_settop(L, 5);
  luaL_checkstack(L, 16, NULL);
  lua_pushcfunction(L, feed_inner);
  for (int i = 1; i <= 5; i++) lua_pushvalue(L, i);
  lua_pushlightuserdata(L, &f);
  int status = lua_pcall(L, 6, LUA_MULTRET, 0);
  f.job->feed = f.outer;
  if (status != LUA_OK) {
    h->rt->depth = depth;
    h->busy = false;
    seam_put_drop(h); /* memory may have run out in the middle of an item */
    if ((h->pool || h->inliner) && !f.job->settled) feed_put(L, &f);
    if (!f.pulling || codec_interrupted(L)) return lua_error(L);
    feed_ended(L, &f, false);
  }
  if (!f.job->settled) put_flush(L, h, f.job);
  return lua_gettop(L) - 5;
}
