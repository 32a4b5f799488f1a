/* start.c: how workers are started: the first, and any by a copy of the owner that waits (spare.c).
   Invariant: a worker runs nothing before the owner watches it; one that cannot be watched is
   ended. Knows the private tables and processes. Does not know batches.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "fail.h"
#include "local.h"

int local_watch(struct local *l, int fd, uint32_t what) {
  struct epoll_event e = {.events = EPOLLIN, .data.u32 = what};
  return epoll_ctl(l->team.epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

static void slice_make(struct local *l, unsigned w) {
  struct peer *p = &l->peer[w];
  struct slice *s = p->slice = team_slice(&l->team, w);
  atomic_store(&s->word, 0);
  atomic_store(&s->retire, 0);
  atomic_store(&s->go, GO_NOT);
  atomic_store(&s->sleeping, 0);
  atomic_store(&s->spill_done, 0);
  ring_clear(&s->ring);
  ring_attach(&p->ring, &s->ring, (unsigned char *)s + l->team.ring_off, l->team.ring_size);
}

static void spare_drop(struct local *l, unsigned line) {
  int sig, status;
  struct proc *spare = &l->spare[line];
  if (!spare->pid) return;
  proc_signal(spare, SIGKILL);
  if (proc_await(spare, now_ns() + UNKILLABLE_NS))
    proc_reap(spare, &sig, &status);
  else
    close(spare->fd);
  *spare = (struct proc){0, -1};
}

/* What a spare has open its workers may keep: another one's descriptor is none of theirs. */
static int spare_make(struct local *l, unsigned line) {
  int r = proc_fork(&l->spare[line]);
  if (r) return r < 0 ? r : 0;
  for (unsigned i = 0; i < line; i++) close(l->spare[i].fd);
  spare_serve(&l->team, line);
}

/* The first worker's start makes them too, so that they have seen the same state. Two make many
   workers sooner than one, which is busy for as long as a process takes to copy. */
static int spares_make(struct local *l, unsigned n) {
  int r = spare_make(l, 0);
  l->moved = false;
  if (!r && n >= SPARE_MANY) l->cramped = spare_make(l, 1) < 0; /* one is enough where it must be */
  return r;
}

/* Lines that have a spare; how many. */
static unsigned spare_lines(const struct local *l, unsigned line[SPARES]) {
  unsigned n = 0;
  for (unsigned i = 0; i < SPARES; i++)
    if (l->spare[i].pid) line[n++] = i;
  return n;
}

static void let_go(struct slice *s) {
  FAIL_POINT(P_GO);
  if (atomic_exchange(&s->go, GO_NOW) == GO_AWAITED) futex_wake(&s->go);
}

static void discard(struct proc *p) {
  int sig, status;
  proc_signal(p, SIGKILL);
  proc_reap(p, &sig, &status);
}

/* Watches the process that was made for worker w, and lets it begin; else it is ended. */
static int peer_begin(struct local *l, unsigned w) {
  struct peer *p = &l->peer[w];
  int err = FAIL_ERROR(P_WATCH);
  if (!err && p->proc.fd >= 0) err = local_watch(l, p->proc.fd, w);
  if (err) {
    discard(&p->proc);
    return err;
  }
  p->state = p->proc.fd >= 0 ? P_ALIVE : P_ENDED;
  p->pid = p->proc.pid;
  p->slot = NO_SLOT;
  p->seq = 0;
  p->leaves = p->woken = p->broken = p->quiet = p->spilled = p->killed = p->lost = false;
  p->signal = 0;
  p->status = -1;
  l->live[l->lives++] = (int)w;
  if (w >= l->begun) l->begun = w + 1;
  let_go(p->slice);
  return 0;
}

/* A want of resources passes, and what the spare has seen is not to be had again; but as long as it
   is, and no worker lives, one is worth more than a spare. */
static bool is_useless(const struct local *l, pid_t answer) {
  if (answer != -EAGAIN && answer != -ENOMEM) return answer <= 0;
  return !l->moved && !l->lives;
}

/* Ends a spare of no use: it may have made the i-th process of a request after all. */
static pid_t made_last(struct local *l, unsigned line, struct spare_run run, unsigned i) {
  spare_drop(l, line);
  return spare_made(&l->team, &l->spare[line], line, run, i);
}

/* The i-th process of a request: its pid, as spare_made. A spare of no use is gone. */
static pid_t made(struct local *l, unsigned line, struct spare_run run, unsigned i) {
  pid_t pid = spare_made(&l->team, &l->spare[line], line, run, i);
  return is_useless(l, pid) ? made_last(l, line, run, i) : pid;
}

/* The one that is there makes the other, which could not be made at first, or died. */
static void spare_copy(struct local *l) {
  unsigned line[SPARES];
  if (spare_lines(l, line) != 1) return;
  struct spare_run copy = {.first = !line[0]};
  spare_ask(&l->team, line[0], copy);
  pid_t pid = spare_made(&l->team, &l->spare[line[0]], line[0], copy, 0);
  if (!pid) pid = made_last(l, line[0], copy, 0);
  l->cramped = pid < 0;
  if (pid > 0) proc_adopt(&l->spare[copy.first], pid);
}

/* Takes in the process that was made for worker w; or ends it, if one before it is missing. */
static int take_in(struct local *l, unsigned w, pid_t pid, bool gap) {
  struct proc *p = &l->peer[w].proc;
  int err = proc_adopt(p, pid);
  if (err) return err;
  if (!gap) return peer_begin(l, w);
  discard(p);
  return 0;
}

/* How many workers the spares have made in turn, the first ones; or a negative code. 0: a spare was
   of no use, and is gone. */
static int start_by_spare(struct local *l, unsigned first, unsigned n) {
  unsigned line[SPARES], lines = spare_lines(l, line);
  struct spare_run run[SPARES];
  bool over[SPARES] = {false}, gap = false;
  int started = 0, err = 0;
  for (unsigned i = 0; i < n; i++) slice_make(l, first + i);
  for (unsigned s = 0; s < lines; s++) {
    run[s] = (struct spare_run){first + s, (n + lines - 1 - s) / lines, lines};
    if (run[s].n) spare_ask(&l->team, line[s], run[s]);
  }
  for (unsigned i = 0; i < n; i++) {
    unsigned s = i % lines;
    pid_t pid = over[s] ? 0 : made(l, line[s], run[s], i / lines);
    int failed = l->spare[line[s]].pid ? pid : 0;
    if (pid > 0) failed = take_in(l, first + i, pid, gap);
    over[s] = pid <= 0;
    gap |= pid <= 0 || failed;
    if (!err) err = failed;
    started += !gap;
  }
  return started ? started : err;
}

struct birth {
  struct team *team;
  unsigned worker;
};

static void be_born(void *arg) {
  const struct birth *b = arg;
  serve(b->team, b->worker);
}

static int start_by_fork(struct local *l, unsigned w) {
  slice_make(l, w);
  int r = proc_fork(&l->peer[w].proc);
  if (r == 0) serve_ready(&l->team, be_born, &(struct birth){&l->team, w});
  if (r > 0) r = peer_begin(l, w);
  return r < 0 ? r : 1;
}

/* Many workers have two spares: one that has died is made again by the other. */
static void spares_look(struct local *l, unsigned n) {
  for (unsigned i = 0; i < SPARES; i++)
    if (l->spare[i].pid && proc_ended(&l->spare[i])) spare_drop(l, i);
  if (!l->cramped && l->lives + n >= SPARE_MANY) spare_copy(l);
}

/* Where processes are short, memory or descriptors, a worker is worth more than a second spare. */
static int start_by_spares(struct local *l, unsigned first, unsigned n) {
  unsigned line[SPARES], lines;
  int r = 0;
  spares_look(l, n);
  while (!r && (lines = spare_lines(l, line)) > 0) {
    r = start_by_spare(l, first, n < lines * SPARE_RUN ? n : lines * SPARE_RUN);
    if (lines == 1 || !err_is_short(r)) continue;
    l->cramped = true;
    spare_drop(l, line[1]);
    r = 0;
  }
  return r;
}

int start_some(struct local *l, unsigned first, unsigned n) {
  int r = start_by_spares(l, first, n);
  if (!r && !l->alone && proc_threads() > 1) r = PLUA_ETHREADS; /* a spare has none */
  if (r) return r;
  if (!l->alone) heap_sort();
  l->alone = true;
  if ((l->team.flags & PLUA_SPARE) && !l->lives) r = spares_make(l, n);
  if (!r) r = start_by_spares(l, first, n);
  return r ? r : start_by_fork(l, first);
}

void start_over(struct local *l, bool ours) {
  for (unsigned i = 0; i < SPARES; i++)
    if (ours)
      spare_drop(l, i);
    else if (l->spare[i].pid)
      close(l->spare[i].fd);
}
