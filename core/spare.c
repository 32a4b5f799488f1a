/* spare.c: a copy of the owner that waits, so that a worker made later sees the state of then.
   Invariant: the spare runs nothing of the user's; what it makes are children of the owner (clone
   with CLONE_PARENT), which the owner watches and reaps as its own. One request is under way at a
   time.
   Knows the team's mapping. Does not know Lua or the pool. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fail.h"
#include "team.h"

enum { TRIES = 500, STOPPED_TRIES = 50 }; /* of 10 ms each */

static void futex_wait(_Atomic uint32_t *word, uint32_t seen, int ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* A request is believed only if it was made by this team's owner. */
static uint64_t check(const struct team *t, uint32_t ask, uint32_t w) {
  uint64_t h = (t->secret ^ ((uint64_t)ask << 32 | w)) * UINT64_C(0x9E3779B97F4A7C15);
  return h ^ h >> 29;
}

/* The answer: again too, since an item may have overwritten it before the owner saw it. */
static void answer(struct board *b, uint32_t done, int pid) {
  atomic_store(&b->spare_pid, pid);
  atomic_store(&b->spare_done, done);
  futex_wake(&b->spare_done);
}

_Noreturn void spare_serve(struct team *t) {
  struct board *b = t->view.board;
  FAIL_POINT(S_BOOT);
  proc_child(t->owner, &t->signals);
  if (!(t->flags & PLUA_KEEP_FDS))
    proc_close_others((int[]){t->bell_fd, t->memory_fd, t->mail_fd[1]}, 3);
  int pid = 0;
  /* What an earlier spare was asked for still stands on the board: it is not for this one. */
  for (uint32_t done = t->asks;;) {
    uint32_t ask = atomic_load(&b->spare_ask);
    if (ask == done) {
      if (pid && atomic_load(&b->spare_done) != done) answer(b, done, pid);
      futex_wait(&b->spare_ask, ask, 60000);
      continue;
    }
    /* Read before the fork: the owner may ask for the next one before this one runs. */
    unsigned w = (unsigned)atomic_load(&b->spare_worker);
    if (w >= t->cap || atomic_load(&b->spare_check) != check(t, ask, w)) {
      futex_wait(&b->spare_ask, ask, 10);
      continue;
    }
    pid = FAIL_ERROR(S_FORK);
    if (!pid) pid = proc_fork_sibling(&b->spare_pid);
    if (pid == 0) serve(t, w);
    FAIL_POINT(S_ANSWER);
    done = ask;
    answer(b, done, pid);
  }
}

static void request(struct team *t, uint32_t ask, unsigned w) {
  struct board *b = t->view.board;
  atomic_store(&b->spare_worker, (int32_t)w);
  atomic_store(&b->spare_check, check(t, ask, w));
  atomic_store(&b->spare_ask, ask);
  futex_wake(&b->spare_ask);
}

pid_t spare_fork(struct team *t, const struct proc *spare, unsigned w) {
  struct board *b = t->view.board;
  uint32_t ask = ++t->asks, done;
  atomic_store(&b->spare_pid, 0);
  FAIL_POINT(P_SPARE);
  for (int tries = 0; tries < TRIES; tries++) {
    request(t, ask, w);
    done = atomic_load(&b->spare_done);
    if (done == ask || proc_ended(spare)) break; /* it died: see what it had done */
    if (tries >= STOPPED_TRIES && proc_stopped(spare)) break;
    futex_wait(&b->spare_done, done, 10);
  }
  pid_t pid = atomic_load(&b->spare_pid);
  return pid ? pid : -ESRCH;
}
