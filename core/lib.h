/* lib.h: what the files of the Lua binding share: handles (a team of workers, or the caller's own
   process in its place) and jobs (what was asked of one, and what came back).
   SPDX-License-Identifier: MIT */
#ifndef PLUA_LIB_H
#define PLUA_LIB_H

#include "plua.h"
#include "worker.h"

struct lua_State;
struct luaL_Reg;
struct inliner;

/* ---- lib_inline.c: the calls of plua.h, for workers = 0 ------------------------------------- */

/* Runs items in the caller's own process, in plua_next, on the Lua thread r->L, which the caller
   sets before. The functions mirror those of plua.h; inline_next alone may raise. */
int inline_open(struct inliner **out, struct runner *r, const plua_tasks *tasks);
void inline_close(struct inliner *p);
int inline_submit(struct inliner *p, const plua_job *job, uint64_t *id);
int inline_extend(struct inliner *p, uint64_t id, uint64_t count);
int inline_put(struct inliner *p, uint64_t id, plua_out **out);
int inline_put_end(struct inliner *p);
const void *inline_payload(struct inliner *p, uint64_t id, uint64_t index, size_t *len);
int64_t inline_cancel(struct inliner *p, uint64_t id, uint64_t first, uint64_t count);
int inline_forget(struct inliner *p, uint64_t id);
int inline_shutdown(struct inliner *p);
int inline_next(struct inliner *p, plua_event *ev);
void inline_stats(const struct inliner *p, plua_stats *stats);

/* Bytes in private memory: a plua_out that grows. */
struct scratch {
  plua_out out;
};
void scratch_open(struct scratch *s);
void scratch_close(struct scratch *s);
/* Gives back what it has beyond 'keep' bytes, or beyond what is in it if that is more. */
void scratch_trim(struct scratch *s, size_t keep);

/* ---- handles -------------------------------------------------------------------------------- */

/* What the pool has told and what is not with its job yet: an error on the way (memory) leaves it
   here, for the next call. Results: ev is that of the first. */
struct run {
  plua_event ev;
  bool due;  /* ev is no result, and waits */
  bool told; /* the job's books have the results */
  int n, at; /* those from 'at' on */
  plua_reply reply[256];
};

struct handle {
  plua_pool *pool;         /* NULL: closed, or inline */
  struct inliner *inliner; /* NULL: closed, or a team */
  struct runner runner;    /* the ctx of the task table; workers have a copy of their own */
  struct runtime *rt;
  unsigned epoch; /* rt->epoch when it was made: another one is another process */
  pid_t owner;
  bool once;                    /* a one-shot team: functions and data are inherited */
  bool sharing;                 /* its workers, or those to come, share the heap */
  bool busy;                    /* a call on it is under way: finalisers must stay out */
  bool failed;                  /* workers cannot start; uservalue H_FAILURE tells why */
  bool closing;                 /* shut down */
  bool ended;                   /* ... and every worker is gone */
  bool draining;                /* its jobs were looked at, see lib_stop.c */
  bool cut;                     /* and items were withdrawn */
  struct job *apply;            /* the job that takes the calls of apply; NULL: none */
  uint64_t applied;             /* submissions of apply so far: their index for random numbers */
  int64_t looked_ns;            /* when deaths were last looked for */
  struct scratch scratch, ends; /* a call, or items, and where each of them ends */
  struct scratch last;          /* the function that apply was called with last, as a call */
  struct run run;
};

enum { H_JOBS = 1, H_FAILURE, H_LEFT, H_VALUES = H_LEFT };

struct handle *handle_check(struct lua_State *L, int at); /* alive and ours, or an error */
/* Raises what happened when a call on the handle answered 'err'. */
_Noreturn void handle_raise(struct lua_State *L, struct handle *h, int err);
/* Calls fn on the handle at 1 with the stack as it is, busy meanwhile. Answers its results. */
int handle_enter(struct lua_State *L, int (*fn)(struct lua_State *L));
void handle_close(struct handle *h);
/* Flushes files, readies the heap, forks what is missing. */
void handle_fork(struct lua_State *L, struct handle *h);

/* lib_share.c: before each fork; and when the call it was for is over, or the pool's workers live.
 */
void share_begin(struct lua_State *L, struct handle *h);
void share_end(struct lua_State *L, struct handle *h);

int seam_submit(struct handle *h, const plua_job *job, uint64_t *id);
int seam_extend(struct handle *h, uint64_t id, uint64_t count);
int seam_put(struct handle *h, uint64_t id, plua_out **out);
int seam_put_end(struct handle *h);
int seam_put_next(struct handle *h); /* one of many: seam_flush when the last is there */
int seam_put_run(struct handle *h, uint64_t id, const void *bytes, const size_t *len, int n);
int seam_slack(struct handle *h, uint64_t id);
int seam_flush(struct handle *h);
void seam_put_drop(struct handle *h);
const void *seam_payload(struct handle *h, uint64_t id, uint64_t index, size_t *len);
int64_t seam_cancel(struct handle *h, uint64_t id, uint64_t first, uint64_t count, int how);
int seam_forget(struct handle *h, uint64_t id);
int seam_next_run(struct handle *h, struct run *run);
int seam_wait(struct handle *h, int64_t timeout_ns, int bulk);

/* ---- jobs ----------------------------------------------------------------------------------- */

enum keep {
  KEEP_LIST,   /* results[index + 1] */
  KEEP_ORDER,  /* a stream: taken one by one in input order, see lib_stream.c */
  KEEP_QUEUE,  /* another one, in order of completion */
  KEEP_FUTURES /* each index has a future */
};

enum policy {
  ON_RAISE,   /* the first error withdraws what has not begun */
  ON_COLLECT, /* errors take the result's place */
  ON_CALL     /* so they do, and wait in J_FAILED for the script's function */
};

struct job {
  struct handle *h;  /* NULL: forgotten */
  struct feed *feed; /* that pulls items for it now, see lib_feed.c; NULL: none */
  uint64_t id;
  enum call_mode mode;
  enum keep keep;
  enum policy policy;
  bool open;         /* more items may come */
  bool stopping;     /* an error has withdrawn the rest */
  bool settled;      /* every item has its outcome; forgotten by the core */
  bool sized;        /* the table of results has its size */
  bool dropped;      /* ORDER, QUEUE: nobody takes what has come */
  bool carries;      /* APPLY: each item brings its function along */
  unsigned epoch;    /* of its handle */
  bool front;        /* ORDER, QUEUE: the outcome to be taken next may have arrived */
  uint64_t count;    /* items given, without those withdrawn */
  uint64_t done;     /* items that have an outcome */
  uint64_t taken;    /* ORDER, QUEUE: outcomes handed to the script, */
  uint64_t lent;     /* how many more it may have without more ado, */
  uint64_t room;     /* places in its results, a power of two */
  uint64_t lowest;   /* RAISE: the lowest index that failed; else UINT64_MAX */
  uint64_t failures; /* ORDER, QUEUE: those that were not taken yet */
  uint64_t total;    /* FOLD: items in all blocks; APPLY: the pool's single calls before it */
  const void *code;  /* APPLY: of J_F, if that is all there is of it; else NULL */
  double timeout;    /* seconds; 0: none */
  size_t bytes;      /* payload bytes of items without an outcome, where they are counted */
  /* LIST, open: more is to be put when 'bytes' and the items under way are fewer, */
  size_t low;
  uint64_t many;
  uint64_t few; /* or so few items are under way */
  /* ORDER, QUEUE: reply bytes of outcomes that were not taken yet, and how many those were when so
     many were taken; reply bytes of all */
  size_t held;
  uint64_t here, weighed;
  size_t replied;

  const uint64_t *order; /* the item's index at each position; NULL: the position's own number */
};

/* J_FAILED: indexes that failed, as keys of streams, as a list for ON_CALL. */
enum { J_RESULTS = 1, J_HANDLE, J_DATA, J_ERROR, J_FAILED, J_FUTURE, J_F, J_ORDER };
enum { J_VALUES = J_ORDER };

/* Places in a future of a single call (future.lua); its values lie behind F_N. */
enum { F_JOB = 2, F_INDEX, F_N };

struct job *job_check(struct lua_State *L, int at);
/* Pushes the field 'order' of the spec at 'at': what core.order made, or nil and NULL. */
const uint64_t *order_take(struct lua_State *L, int at);
/* Which item of its list, from 0, the job has at a position. */
static inline uint64_t job_index(const struct job *job, uint64_t position) {
  return job->order ? job->order[position] : position;
}
/* Whether pump's caller has something to take. */
bool job_ready(const struct job *job);
/* handle:job(spec) -> job: see lib_job.c. job_make is for who has entered the handle. */
int job_new(struct lua_State *L);
int job_make(struct lua_State *L);
/* What the script has printed comes out before what the items print that it submits. */
void job_print_first(void);
/* Encodes what a pool's workers need to know of the job into h->scratch, or raises the refusal.
   stack: handle, spec, ... */
void job_encode_call(struct lua_State *L, struct handle *h, const struct job *job);
/* Pushes the table that results go to. Once the first outcomes are there it is made anew, of the
   right size if that is known and sane: a team was forked by then, which does not have to copy it.
 */
enum { RESULTS_FEW = 4096 };
void job_results_open(struct lua_State *L, struct job *job, int at);
/* The job is over, at once: nothing of it comes any more. 'at': the job's index. */
void job_end(struct lua_State *L, struct job *job, int at);
/* If nothing is outstanding: the job is over, and the core forgets it. 'at': the job's index. */
void job_settle(struct lua_State *L, struct job *job, int at);
/* A future is done: remembers it if it has callbacks or has failed. 'at': its index, or nil there.
 */
void future_done(struct lua_State *L, int at, bool failed);

/* ---- lib_put.c, lib_feed.c ------------------------------------------------------------------- */

enum { PUT_RUN = 64, PUT_SMALL = 64 }; /* items that are put together; bytes of a string in them */

/* Lends a writer for the job's next item; where there is none, the job, at the index, is over. */
plua_out *put_open(struct lua_State *L, struct handle *h, struct job *job, int at);
/* The item that was put is the job's; 'err': what seam_put_end or its like answered. */
void put_ended(struct lua_State *L, struct handle *h, struct job *job, int at, int err);
/* Workers get what was put until now. The job is at 2. */
void put_flush(struct lua_State *L, struct handle *h, struct job *job);
/* Raises why codec_write refused the item 'index'; its reason is on top. */
_Noreturn void put_refuse(struct lua_State *L, struct handle *h, int err, uint64_t index);
/* handle:feed(job, iterator, items, bytes): see lib_feed.c. */
int lib_feed(struct lua_State *L);

/* ---- lib_stream.c --------------------------------------------------------------------------- */

/* Keeps an item's outcome, on top of the stack, for whoever takes it. 'at', 'results': the indexes
   of the job and of its results, which may be made anew. */
void stream_keep(struct lua_State *L, struct job *job, uint64_t index, int at, int results);
/* Replies of n items have come, 'len' bytes in all. */
void stream_hold(struct job *job, size_t len, uint64_t n);
/* Reply bytes of what was not taken yet. */
size_t stream_held(struct job *job);

/* ---- lib_stop.c: the process is asked to stop ------------------------------------------------ */

/* Remembers a job, at the index, as one that stopping must wait for. */
void stop_watch(struct lua_State *L, int at);
/* Withdraws what has not begun of every job of the handle at 1. Answers whether anything of them
   still runs. */
bool stop_cut_all(struct lua_State *L);
/* Raises what such a call ends by. */
_Noreturn void stop_raise(struct lua_State *L);
/* Raises what is asked for by STOP_NOW. */
_Noreturn void stop_interrupt(struct lua_State *L, struct runtime *rt);
void lib_stop_open(struct lua_State *L);

/* ---- outcomes ------------------------------------------------------------------------------- */

/* handle:pump([job], timeout, bulk): see lib_pump.c. */
int lib_pump(struct lua_State *L);

/* ---- lib_error.c ----------------------------------------------------------------------------- */

/* Pushes the error object of the fields in the table on top, which it replaces. */
void push_error(struct lua_State *L);
/* Pushes that of an event. 'at': the index of the item's job; 'job' NULL: it is no item's. */
void push_failure(struct lua_State *L, struct job *job, const plua_event *ev, int at);
/* Raises an error object of kind "encode". The message is on top of the stack. */
_Noreturn void raise_encode(struct lua_State *L);

extern const struct luaL_Reg lib_job_methods[];    /* of handles: what makes jobs */
extern const struct luaL_Reg lib_stream_methods[]; /* of jobs */
/* Each adds its functions to the table on top of the stack, which is the module. */
void lib_handle_open(struct lua_State *L);
void lib_job_open(struct lua_State *L);
void lib_order_open(struct lua_State *L);
void lib_share_open(struct lua_State *L);
void lib_error_open(struct lua_State *L);
void lib_pump_open(struct lua_State *L);

#endif
