/* worker.h: what runs items: a Lua function, its arguments, one reply.
   Knows Lua, the codec and the task table; does not know pools, rings or options.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_WORKER_H
#define PLUA_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base.h"

struct lua_State;
struct lua_Debug;

/* ---- the running side of one Lua state ----------------------------------------------------- */

enum { NESTED_MAX = 40 }; /* calls of plua; each takes some of Lua's 200 levels of C */

struct runtime {
  volatile int stop;       /* enum plua_stop: what the process is asked for */
  char mark[48], name[16]; /* of workers: see core.mark; "": none */
  uint64_t *random;        /* the generator behind math.random; NULL: not laid out as we know it */
  uint64_t seed, mixed;    /* of the item before; what random_item makes of the seed alone */
  int depth;               /* user's functions that plua is calling now, one inside another */
  unsigned epoch;   /* grows when this process becomes a worker: handles made before are inert */
  int worker;       /* our number; 0: not a worker process */
  const char *ours; /* what the sources of plua's own modules begin with: "@/usr/share/.../plua/" */
  bool leaving;     /* 'finish' runs */
  bool running;     /* an item runs; the two that follow tell which */
  uint64_t item;    /* from 0 */
  unsigned attempt;
  /* lib_share.c: of the caller's collector */
  size_t heap;      /* bytes after the last whole collection for workers' sake; 0: none was */
  bool collected;   /* whole, by the script, since then */
  unsigned sharing; /* handles whose workers share the heap */
  bool restore;     /* its mode is not the script's own */
  bool posted;      /* a sentinel waits for the next collection */
};

/* The one of L's state, made at the first call. Lives as long as the state. May raise (memory). */
struct runtime *runtime_of(struct lua_State *L);

/* ---- random numbers: one stream an item ----------------------------------------------------- */

/* Finds the generator's bytes and proves the layout by one known output. May raise (memory). */
void random_open(struct lua_State *L, struct runtime *rt);
/* Sets the generator from (seed, index): what an item draws depends on nothing else. */
void random_item(struct lua_State *L, struct runtime *rt, uint64_t seed, uint64_t index);
/* One draw of 64 bits from the generator as it stands. */
uint64_t random_draw(struct lua_State *L, const struct runtime *rt);

/* ---- runners -------------------------------------------------------------------------------- */

enum call_mode {
  CALL_MAP,    /* one result */
  CALL_STAR,   /* one result; the item is a list of arguments */
  CALL_EACH,   /* no result: an empty reply */
  CALL_FILTER, /* whether the result is true */
  CALL_FOLD,   /* a block of items, their results folded by 'reduce' */
  CALL_APPLY   /* all results; the item is the seed's index, then the arguments; FROM_BYTES: behind
                  the call that has its function */
};

enum call_source {
  FROM_LIST,  /* data[index + 1] of the inherited table, raw */
  FROM_RANGE, /* first + index * step */
  FROM_BYTES, /* the item's payload */
  FROM_PLACED /* the same, behind the item's index, a u64: items come in another order */
};

/* What 'run' answers for a reply that is an error. */
enum { FAILED_ERROR = 1, FAILED_ENCODE = 2, FAILED_MEMORY = 4, FAILED_TIMEOUT = PLUA_TIMED_OUT };

/* What a job asks of its items, beside the functions. */
struct call {
  enum call_mode mode;
  enum call_source source;
  bool plain; /* f is a C function: it gets the item, not the index */
  uint64_t seed;
  uint64_t count;        /* items in all: where the last block ends */
  const uint64_t *order; /* one-shot: the item at each position; NULL: the one of that number */
};

/* Runs items on a Lua thread of its own. The thread's lowest slots hold what each item needs; a
   table in the registry holds the same, so that slots can be filled again. */
struct runner {
  struct lua_State *host; /* the thread that forks: set before each fork */
  struct lua_State *L;    /* the items' thread: set in the process that runs them */
  struct runtime *rt;
  int keep;          /* registry reference of the table of slots */
  bool process;      /* a process of its own, so what belongs to a process may change */
  bool timed;        /* its items may have a timeout */
  bool grouped;      /* their output comes out in blocks */
  bool generational; /* the host's collector was made ready for workers */
  size_t memory;     /* bytes that a worker may use beyond what it inherits; 0: no limit */
  int *spent;        /* set, this worker is replaced after its item */
  int cores;         /* for OMP_NUM_THREADS and its like: cores for each worker */
  struct call call;  /* pools: that of 'job' */
  uint64_t job;      /* pools: whose functions the slots hold; 0: none yet */
  unsigned known;    /* pools: jobs in the table of jobs */
  bool peeks;        /* values may be looked at where they lie: codec_peek.h */
  bool bare;         /* a lua_pcall stands around many items: runner_many's */
  size_t start;      /* bare: where the reply of the item that runs begins */
};

enum slot { SLOT_HANDLER = 1, SLOT_F, SLOT_REDUCE, SLOT_DATA, SLOT_INIT, SLOT_FINISH, SLOT_JOBS };
enum { SLOTS = SLOT_JOBS };

/* The payload of a pool's job: mode, source, seed, count, f, reduce, data. */
enum { CALL_F = 5, CALL_WORDS = 7 };

/* The task tables, with a runner as ctx: positions of inherited data, or payloads of a pool. */
plua_tasks once_tasks(struct runner *r);
plua_tasks pool_tasks(struct runner *r);

/* Pushes what the slots hold. May raise (memory). */
void runner_slots(struct runner *r);
/* Fills the slots at the bottom of r->L, which is empty. May raise (memory). */
void runner_load(struct runner *r);

/* Calls the function on top of the slots with the nargs arguments above it, writes the reply and
   clears the stack down to the slots. Answers what 'run' answers. */
int runner_call(struct runner *r, const plua_item *item, uint64_t index, int nargs, plua_out *out);

/* Runs one item; answers what plua_tasks.run answers. */
typedef int run_item(struct runner *r, const plua_item *item, plua_out *out);
/* Runs items by 'run', all inside one lua_pcall until one raises an error. */
void runner_many(struct runner *r, plua_feed *feed, run_item *run);

/* Writes an error that no function raised; clears the stack down to the slots. */
int runner_refuse(struct runner *r, plua_out *out, int failed, const char *message);

/* Pushes file:line of the innermost Lua function that runs and is not plua's, or nil. */
void push_where(struct lua_State *L);

/* Pushes the traceback from a level on, as luaL_traceback has it (worker_trace.c). */
void trace_push(struct lua_State *L, int level);

/* Whether a function is one of plua's own modules; ar was filled with "S". */
bool is_ours(const struct runtime *rt, const struct lua_Debug *ar);

/* Makes the report of an error: worker.c. */
int runner_report(struct lua_State *L);
/* The message handler of all calls. */
int runner_handler(struct lua_State *L);

/* What a runner inside its caller's own process puts back after each item. */
struct mark {
  int depth;
  bool running;
  uint64_t item;
  unsigned attempt;
  uint64_t random[4];
};

/* The parts of runner_call, for those who call by themselves: before and after the user's code;
   the reply from what its pcall answered and left above the slots, or 'late', as stop_disarm tells;
   from the error on top, which pcall answered 'status' for. 'start' is what 'out' held before;
   'index' (from 1; 0: the item's own) is the item to blame. */
void item_begins(struct runner *r, const plua_item *item, uint64_t index, struct mark *m);
void item_ends(struct runner *r, const struct mark *m);
int runner_answer(struct runner *r, int status, bool late, plua_out *out, size_t start,
                  uint64_t index);
int runner_failed(struct runner *r, int status, plua_out *out, size_t start, uint64_t index);

/* ---- worker_stop.c: items that run for too long --------------------------------------------- */

/* In a worker's process, once, before its first item. */
void stop_open(void);
/* The block of a new thread, not yet made; that of one that is about to go. */
void stop_made(void *block);
void stop_gone(void *block);
/* What the signal handler and the rest tell each other, in the same thread. */
struct stop_word {
  volatile int armed; /* the item's own code runs */
  volatile int hit;   /* it was told to end, or has set a hook of its own */
};
extern struct stop_word stop_word;
/* Around an item's own code: whether it was told to end meanwhile. It has no hooks left then. */
static inline void stop_arm(const struct runner *r) {
  if (LIKELY(r->process)) stop_word.armed = 1;
}
bool stop_answer(const struct runner *r);
static inline bool stop_disarm(const struct runner *r) {
  if (UNLIKELY(!r->process)) return false;
  stop_word.armed = 0; /* first: a signal from now on does nothing */
  return UNLIKELY(stop_word.hit) ? stop_answer(r) : false;
}
/* Tells the item that runs to end: for a signal handler, ctx is the runner. */
void stop_now(void *ctx);
/* debug.sethook of a worker, a closure over Lua's own: what an item sets ends with the item. */
int stop_sethook(struct lua_State *L);
/* Pushes what runner_report made of the place where it was told to end; empty if none was seen. */
void stop_report(struct lua_State *L);

/* ---- worker_memory.c: what a worker allocates ------------------------------------------------ */

/* In a worker's process, once, before anything is allocated in it. */
void memory_open(struct runner *r);
/* After what all copies of this process have in common was made. */
void memory_ready(const struct runner *r);
/* Around an item's own code: there the worker's limit holds. */
void memory_arm(const struct runner *r);
void memory_disarm(const struct runner *r);
/* Between two items: a worker that holds more than three quarters of its limit though it has
   collected is replaced; more than half, where an item has failed for want of memory. */
void memory_settle(const struct runner *r);
/* Whether what pcall answered, with the error on top, says that memory ran out. */
bool memory_failed(struct lua_State *L, int status);
/* Pushes what was refused, as a sentence, and the line that asked, or nil. */
void memory_report(struct lua_State *L);

/* ---- worker_output.c: what items print ------------------------------------------------------ */

/* In a worker's process, once: from now on lines are written whole. */
void output_open(struct lua_State *L);
/* After an item, and before this process ends: writes what is left, unfinished lines too. */
void output_item_end(void);
void output_end(void);

/* The items of block b of n items: 512 blocks of 1, 512 of 2, 512 of 4, ... */
void block_bounds(uint64_t b, uint64_t n, uint64_t *lo, uint64_t *hi);

/* The parts that both task tables share. */
void runner_ready(void *ctx);
void runner_guard(void *ctx, void (*body)(void *arg), void *arg);
int runner_enter(void *ctx, const plua_self *self, plua_out *out);
int runner_leave(void *ctx, plua_out *out);

#endif
