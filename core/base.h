/* base.h: what every room may use: the clock, I/O that outlives signals, error texts, limits.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_BASE_H
#define PLUA_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "plua.h"

/* Limits. A test build (make test SMALL=1) shrinks them so that every edge is met. */
#ifdef PLUA_SMALL
enum { RING_DEFAULT = 256, SLOTS_DEFAULT = 2, SEGMENT = 4096, SPARE_MANY = 4 };
#else
enum { RING_DEFAULT = 1 << 20, SLOTS_DEFAULT = 1024, SEGMENT = 1 << 20, SPARE_MANY = 16 };
#endif
/* How long an item that was interrupted may still run before its worker is killed. */
#ifdef PLUA_FAILPOINTS
#define GRACE_NS 20000000
#else
#define GRACE_NS 500000000
#endif
#define UNKILLABLE_NS 5000000000 /* a killed process that has not ended by then may never do */
#define FAR_NS (INT64_MAX / 4)   /* no clock gets there; sums of a few such times are times still */
enum { WORKERS_MAX = 65000, BATCH_MAX = 65535, SLOTS_MAX = 1 << 20 };

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
/* Of a function that is rarely called: kept out of its callers, which stay short. */
#define COLD __attribute__((noinline, cold))
/* Of one that is not rare, but whose frame and registers its callers shall not pay for. */
#define NOINLINE __attribute__((noinline))

/* A state that the code proves impossible: says where and aborts, in release builds too. */
_Noreturn void impossible(const char *file, int line, const char *what);
#define IMPOSSIBLE(what) impossible(__FILE__, __LINE__, what)

/* Monotonic time in nanoseconds. Stands still while the machine sleeps. */
int64_t now_ns(void);
/* The same to some milliseconds, at a fifth of the cost. */
int64_t now_roughly_ns(void);

/* Whether the negated errno says that processes, memory or descriptors are short for now. */
bool err_is_short(int err);
/* Whole reads and writes: EINTR and short counts are gone on with. 0 or a negated errno;
   read_all answers the bytes read, fewer than len only at the end of the file. */
int write_all(int fd, const void *bytes, size_t len);
ssize_t read_all(int fd, void *bytes, size_t len);

/* A copy of 'fd' that is at least 3, close-on-exec, 'fd' closed; so that a host that runs with
   closed standard streams never finds ours in their place. Negative passes; else fd or -errno. */
int fd_above_stdio(int fd);

/* Whether a file may hold what is not written yet: what this looks at is of glibc's binary
   interface, and it makes no call. */
static inline bool may_hold(const FILE *f) {
  return f->_mode > 0 || f->_IO_write_ptr != f->_IO_write_base;
}

/* As fflush(NULL), but where no file holds anything nothing is written to: fflush takes and gives
   back the lock of each, and a process that was forked pays for a copy of each page. */
void flush_files(void);

/* Sleeps while the word is 'seen', for at most so long; may wake for no reason. */
void futex_wait(_Atomic uint32_t *word, uint32_t seen, int ms);
/* Wakes all who sleep on the word. */
void futex_wake(_Atomic uint32_t *word);

/* Has malloc put freed blocks in order now: each process forked from here would do it at its first
   call of malloc, and copy the pages that they lie in. */
void heap_sort(void);

/* A zeroed array. A large one has pages of its own, which are there once they are touched: others
   would be copied with each process that is forked. NULL: no memory. */
void *array_new(size_t n, size_t element);
void array_free(void *array, size_t n, size_t element);

/* Room for at least 'need' elements in a growing array. 0 or -ENOMEM, the array then as it was. */
int grow(void **array, size_t *cap, size_t need, size_t element);

#endif
