/* plua.h: the C interface of plua, a parallel executor over forked worker processes.
   This page is the reference. SPDX-License-Identifier: MIT

   A pool owns worker processes, forked from the caller. The caller submits jobs, each a number of
   items; a worker runs the task table's 'run' once an item and writes a reply; the caller pulls
   outcomes with plua_next. Payloads and replies are bytes: the library never looks into them.

   Calls return 0 or a positive count, or a negative code: one of PLUA_E..., or a negated errno.
   plua_strerror names either; plua_message tells what happened to one pool in a sentence.

   Workers end with their owner. One that becomes another program (exec) stays their parent: they
   leave when they have done what lay ready, a second later, and it may find that they have ended.

   A pool maps terabytes of addresses, with memory behind what is in use. A host that locks its
   memory does so before it opens one, by MCL_FUTURE: mlockall(MCL_CURRENT) would fill all of them.

   A host that gives up privileges does so before plua_fork: workers that have more than their owner
   cannot be killed, and end when their items have.

   A pool belongs to the process and the thread that opened it; two pools are independent. In any
   other process (a child that the host forked) every call on it answers PLUA_EOWNER and touches
   nothing. The library installs no signal handler, starts no thread, calls no exit handler, waits
   for no process but its own and writes to no descriptor of the host, unless PLUA_GROUPED or
   PLUA_LAST_WORDS ask for it. */
#ifndef PLUA_H
#define PLUA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PLUA_VERSION "0.1.0"
#define PLUA_API __attribute__((visibility("default")))

#define PLUA_ERRORS(X)                                                                      \
  X(PLUA_EARG, -4001, "invalid argument")                                                   \
  X(PLUA_EOWNER, -4002, "the pool belongs to another process")                              \
  X(PLUA_ECLOSED, -4003, "the pool takes no more work")                                     \
  X(PLUA_ECRASH, -4004, "worker died while running the item")                               \
  X(PLUA_EEXIT, -4005, "worker exited while running the item")                              \
  X(PLUA_ECANCELLED, -4006, "cancelled")                                                    \
  X(PLUA_EBOOT, -4007, "workers die before they run anything")                              \
  X(PLUA_ETOOBIG, -4008, "larger than the shared memory that could be mapped (ulimit -v?)") \
  X(PLUA_EPROTO, -4009, "worker broke the protocol (its shared memory was overwritten)")    \
  X(PLUA_ETHREADS, -4010, "cannot fork a process that has threads")                         \
  X(PLUA_ECODEC, -4011, "value cannot cross processes")                                     \
  X(PLUA_EFORMAT, -4012, "malformed message")                                               \
  X(PLUA_EDEPTH, -4013, "nested too deeply")                                                \
  X(PLUA_ETIMEOUT, -4014, "took longer than its timeout")                                   \
  X(PLUA_EOOM, -4015, "the kernel ended its worker, since memory ran out")                  \
  X(PLUA_ELOST, -4016,                                                                      \
    "its worker was killed, but does not end (is it frozen, or stuck in a device?): "       \
    "what became of the item is not known")                                                 \
  X(PLUA_EOUTPUT, -4017,                                                                    \
    "what it printed could not be written to standard output (is the disk full?)")          \
  X(PLUA_EWORKERS, -4018, "options.workers is not 1 to 65,000")                             \
  X(PLUA_EFLAGS, -4019, "options.flags has a bit that this version does not know")          \
  X(PLUA_ESLOTS, -4020, "options.slots is more than 1,048,576")                             \
  X(PLUA_ERUN, -4021, "tasks.run is NULL")

enum plua_error {
#define PLUA_X(name, code, text) name = (code),
  PLUA_ERRORS(PLUA_X)
#undef PLUA_X
};

/* The text for a negative code of this library or a negated errno. Static; never NULL. */
PLUA_API const char *plua_strerror(int code);

/* ---- bytes on their way out: written once, straight into shared memory -------------------- */

/* A writer's room is [at, end). The bytes since 'begin' are this message so far; 'more' makes room
   for 'need' more and may move the whole message (begin, at and end change). No address is aligned.
 */
typedef struct plua_out plua_out;
struct plua_out {
  unsigned char *begin, *at, *end;
  int (*more)(plua_out *out, size_t need); /* 0, or a negative code and nothing has changed */
};

/* Makes sure that n bytes can be stored at out->at. 0 or a negative code. */
static inline int plua_room(plua_out *out, size_t n) {
  return (size_t)(out->end - out->at) >= n ? 0 : out->more(out, n);
}

/* Appends n bytes. 0 or a negative code. */
static inline int plua_write(plua_out *out, const void *bytes, size_t n) {
  int err = plua_room(out, n);
  if (err < 0) return err;
  if (n) memcpy(out->at, bytes, n);
  out->at += n;
  return 0;
}

/* ---- what workers do ----------------------------------------------------------------------- */

typedef struct plua_pool plua_pool;

/* Who a worker is. */
typedef struct plua_self {
  int worker;   /* 1 .. workers; a replacement keeps the number of the one it replaces */
  pid_t pid;    /* its process */
  pid_t parent; /* the pool's owner */
  int
    *spent; /* its process's; set non-zero, it is replaced once its item is done, as by max_tasks */
} plua_self;

/* One item, as 'run' sees it. The bytes are read-only and valid until 'run' returns. */
typedef struct plua_item {
  uint64_t job;     /* what plua_submit answered */
  uint64_t index;   /* position in the job, from 0 */
  unsigned attempt; /* 1 for the first try */
  const void *call; /* the payload of the job; NULL if it has none */
  size_t call_len;
  const void *data; /* the payload of the item; NULL for positions without one */
  size_t len;
} plua_item;

/* Items one after the other, as 'run_many' sees them: 'item' is the one to run now, 'out' takes its
   reply. 'done' is told what 'run' would have answered and makes 'item' the next one: 1, or 0 when
   there is none now. */
typedef struct plua_feed plua_feed;
struct plua_feed {
  const plua_item *item;
  plua_out *out;
  int (*done)(plua_feed *feed, int answer);
};

/* What 'run' answers for an item that ended since 'interrupt' told it to: such an end is charged to
   timeout_retries, other positive answers to error_retries. */
enum { PLUA_TIMED_OUT = 4014 };

/* The functions of a pool. All are called in workers only ('ready' and 'guard' in the spare), never
   in the owner. */
typedef struct plua_tasks {
  size_t size; /* sizeof(plua_tasks) */
  void *ctx;   /* handed to each */
  /* Optional. Called once, around all that follows: it must call body(arg) and may protect it (a
     lua_pcall, a try). When it returns before body has, the worker's process ends with status 70.
     Where there is a spare (PLUA_SPARE) it is called in that, and workers are born inside it. */
  void (*guard)(void *ctx, void (*body)(void *arg), void *arg);
  /* Optional. Called first. Non-zero: the worker cannot start, and what it wrote says why; the
     pool then fails (PLUA_BOOT) instead of trying again. */
  int (*enter)(void *ctx, const plua_self *self, plua_out *out);
  /* Runs one item. 0: what it wrote is the result. Positive: what it wrote is an error;
     PLUA_TIMED_OUT: one of its own kind.
     Negative: nothing that it wrote counts, the item's outcome is this code. A process that it
     forks and that comes back from it says nothing: it ends there, with status 0. */
  int (*run)(void *ctx, const plua_item *item, plua_out *out);
  /* Optional. Called last when a worker leaves in peace. Non-zero: what it wrote is an error to
     report (PLUA_LEFT). */
  int (*leave)(void *ctx, plua_out *out);
  /* Optional. Called in a signal handler while an item runs that has reached its timeout, again
     every 50 ms while it goes on: makes 'run' end soon, with a positive answer. */
  void (*interrupt)(void *ctx);
  /* Optional, called in place of 'run', which is there all the same: runs feed->item and those that
     follow, of any job, until feed->done answers 0. So what is set up around an item (a lua_pcall,
     a try) can be set up around many. */
  void (*run_many)(void *ctx, plua_feed *feed);
  /* Optional. Called once, before 'guard', in a process that becomes a worker or, where there is a
     spare (PLUA_SPARE), of which workers are copies: does what all of them have in common. Of two
     spares each does. One that cannot must end its process, by _exit. */
  void (*ready)(void *ctx);
} plua_tasks;

/* ---- pools --------------------------------------------------------------------------------- */

enum {
  PLUA_KEEP_FDS = 1, /* workers keep the owner's descriptors; else all but 0, 1, 2 are closed */
  PLUA_SPARE = 2,    /* fork one idle spare at the start and make workers from it, so that
                        replacements see the state of now though the owner moves on meanwhile; many
                        workers are started sooner, since what they have in common is done once;
                        from 16 on two spares share the work */
  PLUA_GROUPED = 4, /* what an item writes to descriptors 1 and 2 comes out as one block when it has
                       ended, before its outcome is told; that of one whose worker died is written
                       by the owner, in plua_next. It lies in an unlinked file below TMPDIR
                       meanwhile, or in memory where there can be none; one descriptor a worker */
  PLUA_LAST_WORDS = 8 /* the same, only for stderr, and only for items that are tried again */
};

typedef struct plua_options {
  size_t size;        /* sizeof(plua_options) */
  int workers;        /* how many, 1 to 65,000 */
  unsigned flags;     /* PLUA_KEEP_FDS | PLUA_SPARE | ... */
  uint64_t max_tasks; /* a worker is replaced after so many items; 0: never */
  size_t ring;        /* bytes of a worker's result ring; 0: chosen */
  unsigned slots;     /* batches that can lie ready or run at once; 0: chosen */
  uint64_t max_rss;   /* a worker whose resident memory, what it shares with the owner included, is
                         above so many bytes is replaced between two items; one that starts that
                         large, when it has grown by a tenth of it. 0: never */
} plua_options;

/* Opens a pool; forks nothing yet: the first plua_next answers PLUA_FORK. 'tasks' is copied. On
   failure *out is untouched. Errors: PLUA_EARG (a pointer is NULL, or a size 0), PLUA_EWORKERS,
   PLUA_EFLAGS, PLUA_ESLOTS, PLUA_ERUN, -ENOMEM, -EMFILE, ... */
PLUA_API int plua_open(plua_pool **out, const plua_options *options, const plua_tasks *tasks);

/* Before plua_close, for a host that is told to stop: forgets every job, interrupts what runs
   (tasks.interrupt) and lets workers leave in peace (tasks.leave), for at most 'grace_ns'. What
   happens on the way is not told. 1: every worker is gone, 0: time ran out. */
PLUA_API int plua_end(plua_pool *pool, int64_t grace_ns);

/* Kills what still runs, waits for it, frees the pool. Never blocks for longer than the kernel
   needs to end a killed process, and 5 s at most: one that is stuck in the kernel for longer is
   left to it. NULL is fine. In another process: frees only this copy. */
PLUA_API void plua_close(plua_pool *pool);

/* Forks the workers that are missing. Call fflush(NULL) first: workers flush stdio when they leave,
   so what lies in your buffers would be written twice. Answers how many were started; fewer than
   missing is not an error as long as one lives (PLUA_SHORT in the event that follows says why).
   Does not return in the child. PLUA_ETHREADS when the process has other threads, and no spare
   (PLUA_SPARE) that was made before them; those that live go on, and it may be called again. */
PLUA_API int plua_fork(plua_pool *pool);

/* From now on 'workers' processes: at least 1, at most 256 or twice what the pool was opened with,
   whichever is more. Extra ones leave when idle; missing ones ask for a fork. */
PLUA_API int plua_resize(plua_pool *pool, int workers);

/* Takes no more jobs. Workers run what was submitted, then leave in peace (tasks.leave); when the
   last one is gone plua_next answers PLUA_ENDED. Jobs that are there still take items, also then:
   workers are forked for them, and PLUA_ENDED comes again. One that somebody has stopped (SIGSTOP)
   while it runs no item is let go on after half a second, and killed if it is stopped again; so are
   those that plua_resize sends away. */
PLUA_API int plua_shutdown(plua_pool *pool);

/* What happened to the pool, in a sentence, after a call on it failed. Never NULL; the pool's. */
PLUA_API const char *plua_message(const plua_pool *pool);

/* ---- jobs ---------------------------------------------------------------------------------- */

typedef struct plua_job {
  size_t size;      /* sizeof(plua_job) */
  uint64_t count;   /* items that need no payload: positions 0 .. count-1 */
  const void *call; /* payload of the job, given to each run; copied. May be NULL */
  size_t call_len;
  unsigned chunksize; /* items a worker takes at once; 0: chosen from measured rates */
  /* How often an item is run again; each kind of failure has a number of its own. All 0: no item is
     begun twice. An item that failed once is given out by itself. */
  unsigned crash_retries;   /* after it took its worker along */
  unsigned error_retries;   /* after an error (run answered non-zero) */
  int64_t timeout_ns;       /* how long an item may run, from its start; 0: as long as it likes.
                               Then it is interrupted (tasks.interrupt) and, if it still runs
                               after 500 ms and a tenth of its timeout, or cannot be interrupted,
                               its worker is killed: PLUA_LOST with PLUA_ETIMEOUT. Measured while
                               the owner is in plua_next, plua_wait or plua_dispatch: never too
                               early, and late if the owner is busy elsewhere */
  unsigned timeout_retries; /* after it ran for too long, whether it was interrupted or killed */
  unsigned kill_retries;    /* after somebody else killed its worker by SIGKILL or SIGTERM; of a
                               host that does not know this field: crash_retries */
  unsigned oom_retries;     /* after the kernel's OOM killer did; it is then run while no other
                               item runs. Of a host that does not know this field: crash_retries */
} plua_job;

/* Adds a job. It runs behind those before it. Answers its number (positive, never used twice) in
 *id. A job with count 0 gets its items by plua_put or plua_extend. */
PLUA_API int plua_submit(plua_pool *pool, const plua_job *job, uint64_t *id);

/* Adds 'count' positions without payload at the job's end. */
PLUA_API int plua_extend(plua_pool *pool, uint64_t id, uint64_t count);

/* Adds one item with a payload: plua_put lends a writer, plua_put_end adds what was written as the
   job's next item, plua_put_drop forgets it. One item at a time for each pool. The bytes stay in
   shared memory until the item's outcome is known. A job has items with payload or without. */
PLUA_API int plua_put(plua_pool *pool, uint64_t id, plua_out **out);
PLUA_API int plua_put_end(plua_pool *pool);
/* plua_put_end for one of many: workers that have enough to do may get it later, with others in one
   batch: when enough are there, or at the next plua_flush, plua_next, plua_wait or plua_dispatch.
 */
PLUA_API int plua_put_next(plua_pool *pool);
/* The same for n small items, n at least 1, whose payloads lie one behind the other in 'bytes',
   len[i] bytes each. Answers how many were added, from the first on, at least 1; negative: none. */
PLUA_API int plua_put_run(plua_pool *pool, uint64_t id, const void *bytes, const size_t *len,
                          int n);
/* How many more items of a job may lie with the host until it puts them, all together: what makes a
   batch; 0 where workers may soon be without work. */
PLUA_API int plua_slack(plua_pool *pool, uint64_t id);
PLUA_API int plua_flush(plua_pool *pool);
PLUA_API void plua_put_drop(plua_pool *pool);

/* The payload of an item whose outcome has not been released yet; NULL when there is none. */
PLUA_API const void *plua_payload(plua_pool *pool, uint64_t id, uint64_t index, size_t *len);

enum {
  PLUA_WITHDRAW = 0, /* only what no worker has begun */
  PLUA_KILL = 1      /* and what runs: its worker is killed and replaced. What it has failed with
                        meanwhile is its outcome, it is not tried again */
};

/* Cancels items [first, first + count) of a job (count UINT64_MAX: to the end). Each that has no
   outcome and can be cancelled gets the outcome PLUA_ECANCELLED, by an event PLUA_LOST of its own
   if 'count' is 1, silently otherwise: the caller knows what it cancelled. Answers how many had not
   begun. Items that are left running get their outcome as usual. */
PLUA_API int64_t plua_cancel(plua_pool *pool, uint64_t id, uint64_t first, uint64_t count, int how);

/* Forgets a job: its items that have no outcome yet are withdrawn, one that is being put is
   dropped, outcomes still to come are too, its payload is freed when nothing uses it any more.
   Every job ends with this call. */
PLUA_API int plua_forget(plua_pool *pool, uint64_t id);

/* ---- outcomes ------------------------------------------------------------------------------ */

enum plua_what {
  PLUA_NOTHING, /* nothing to tell now: plua_wait, or do something else */
  PLUA_RESULT,  /* an item's reply: data, len; failed says whether 'run' called it an error */
  PLUA_LOST,    /* an item's outcome that is no reply: code PLUA_ECRASH, PLUA_EEXIT, PLUA_EPROTO,
                   PLUA_ETIMEOUT, PLUA_EOOM, PLUA_ELOST (its worker was killed 5 s ago, and the
                   kernel has not ended it: another one takes its place), PLUA_ECANCELLED, or what
                   'run' answered */
  PLUA_FORK,    /* workers are missing and there is work: call plua_fork (told once, until then) */
  PLUA_SHORT,   /* fewer workers could be forked than wanted: code says why. Told once */
  PLUA_BOOT,    /* workers cannot start; the pool has failed. data: what 'enter' wrote (failed = 1),
                   or len 0 and signal/status of the third death in a row (hundredth, where it is
                   SIGKILL or SIGTERM: somebody else's doing) */
  PLUA_LEFT,    /* 'leave' reported an error: data, len (failed = 1); or its worker died in it:
                   signal, status */
  PLUA_ENDED    /* after plua_shutdown: every worker is gone, and nothing is pending */
};

typedef struct plua_event {
  enum plua_what what;
  int failed;          /* RESULT: 'run' answered a positive number, this */
  int code;            /* LOST, SHORT: why */
  uint64_t job, index; /* RESULT, LOST: which item; job 0 otherwise */
  const void *data;    /* borrowed until the next plua_next or plua_close; not aligned */
  size_t len;
  int worker;         /* its number, 0 if none took part */
  pid_t pid;          /* its process */
  unsigned attempts;  /* RESULT, LOST: how often the item was begun */
  int signal, status; /* LOST, BOOT: what ended the worker; signal 0: it exited with 'status';
                         status -1: the host took the exit status away */
  int64_t elapsed_ns; /* RESULT with failed, LOST: how long the item ran; -1: not known */
  const char
    *output; /* the same, where it was kept: the last 64 KiB of what the item printed, first
                stdout's, then stderr's where that is another place; borrowed as data is */
  size_t output_len;
} plua_event;

/* The next outcome or request, never blocking; PLUA_NOTHING when there is none now. Posts work to
   idle workers on the way. Releases what the event before had borrowed. */
PLUA_API int plua_next(plua_pool *pool, plua_event *event);

typedef struct plua_reply {
  const void *data; /* borrowed, as an event's */
  size_t len;
} plua_reply;

/* plua_next for those who expect many small results: successful ones that lie ready one behind the
   other are told by one event. Answers how many, n, at most 'max', which is at least 1: the event
   is that of item 'index', and replies[i] is the result of item index + i, i < n. Everything else
   is told as plua_next does: then it answers 0. Negative: an error. */
PLUA_API int plua_next_run(plua_pool *pool, plua_event *event, plua_reply *replies, int max);

/* Sleeps until plua_next may have something to tell, or 'timeout_ns' has passed (negative: no
   limit). 'bulk' non-zero: the caller wants all results, no matter when, so wake it rarely.
   1: something came, 0: time ran out, -EINTR: a signal handler ran. */
PLUA_API int plua_wait(plua_pool *pool, int64_t timeout_ns, int bulk);

/* A descriptor that is readable when plua_next may have something to tell; the pool's, for the
   host's own poll loop. Arm it with plua_dispatch before each poll. */
PLUA_API int plua_fd(plua_pool *pool);

/* Takes in what has arrived and posts what waits; never blocks. 1: plua_next has something, 0: the
   descriptor is armed and will tell. */
PLUA_API int plua_dispatch(plua_pool *pool);

typedef struct plua_stats {
  size_t size;                  /* sizeof(plua_stats), set by the caller */
  int workers;                  /* wanted */
  int alive;                    /* living processes */
  uint64_t submitted;           /* items given to the pool so far */
  uint64_t done;                /* items that have an outcome */
  uint64_t retried;             /* items run again */
  uint64_t started;             /* processes forked */
  uint64_t crashed;             /* processes that died while running an item */
  uint64_t batches;             /* batches posted */
  uint64_t taken_back;          /* batches divided after they were taken */
  uint64_t bytes_in, bytes_out; /* payload bytes sent, reply bytes received */
} plua_stats;

/* Fills *stats, as far as stats->size reaches. */
PLUA_API int plua_stats_get(plua_pool *pool, plua_stats *stats);

/* ---- how many cores ------------------------------------------------------------------------ */

/* One source of the core count, as it was found. */
typedef struct plua_cpu_source {
  const char *name; /* "affinity", "cgroup", "SLURM_CPUS_PER_TASK", ... */
  char where[256];  /* the file or the variable it was read from; "" if absent */
  char text[128];   /* what it says, raw; "" if absent */
  int cpus;         /* the number it stands for; 0: no limit or absent; -1: not understood */
  int decides;      /* 1: the answer is this source's */
} plua_cpu_source;

/* Fills at most 'max' sources and answers the number of cores that this process may use, at least
   1; *n is the number of sources filled. Either may be NULL. The rule: PLUA_WORKERS if it is
   set; else the smallest of the online CPUs, the affinity mask, the cgroup quota (v1 and v2, every
   level from leaf to root, rounded up), the batch scheduler's variables and OMP_THREAD_LIMIT.
   PLUA_PROC_ROOT and PLUA_SYS_ROOT replace /proc and /sys. */
PLUA_API int plua_cpus(plua_cpu_source *sources, int max, int *n);

/* ---- Lua ----------------------------------------------------------------------------------- */

struct lua_State;

/* Opens the module plua.core: a lua_CFunction, for luaL_requiref or package.preload. With that and
   a package.path to the modules in Lua (share/lua/5.4 of the installed tree), require "plua" works
   in any number of the host's own states. */
PLUA_API int luaopen_plua_core(struct lua_State *L);

/* What a program that owns its process asks of all calls of the module. */
enum plua_stop {
  PLUA_STOP_NONE,
  PLUA_STOP_DRAIN, /* begin nothing new; a call ends when what runs has ended, and raises an error
                      of kind "cancelled" unless that was all. Stays until the program writes else
                    */
  PLUA_STOP_NOW,   /* the call that runs raises "interrupted!", and sets STOP_TAKEN first */
  PLUA_STOP_TAKEN  /* that has been raised; teams that are closed from now on are told (plua_end) */
};

/* The word by which that is asked: write one of the above, from a signal handler too; a signal that
   interrupts system calls makes it be seen at once. Valid as long as L's state; may raise a Lua
   error (memory) at its first call. Workers have a word of their own. */
PLUA_API volatile int *plua_stop_word(struct lua_State *L);

#ifdef __cplusplus
}
#endif
#endif
