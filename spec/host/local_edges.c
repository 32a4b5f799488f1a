/* local_edges.c: the owner's tables where one item, slot or number more decides: numbers of
   batches, taking back, holding, and what is done where the board is not as it should be.
     local_edges               all of it
     local_edges interrupted   where the first wait is (IOFAIL=epoll_pwait2:4:1)
   Knows local.h. SPDX-License-Identifier: MIT */
#include "owner.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static const int64_t LONG = INT64_C(20000000000);

static const struct link_ops *ops;
static struct link *k; /* the same as l */

static void afresh(void) {
  fresh();
  k = &l->link;
  ops = k->ops;
}

static void set_word(unsigned w, uint64_t word) {
  atomic_store(&l->peer[w].slice->word, word);
}
static uint64_t word_of(unsigned w) {
  return atomic_load(&l->peer[w].slice->word);
}

/* Whether it ends by SIGABRT. */
static bool aborts(void (*f)(void)) {
  int status;
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    close(2);
    l->lives = 0; /* their slices are not here */
    f();
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

/* A process for worker w that waits for ever. */
static void embody(unsigned w) {
  struct proc *p = &l->peer[w].proc;
  int r = proc_fork(p);
  CHECK(r >= 0);
  if (r == 0) proc_tie(l->team.owner);
  if (r == 0)
    for (;;) pause();
  CHECK(p->fd >= 0);
}
/* The signal that it ended by within a generous time; it had to end. */
static int ended_by(unsigned w) {
  int sig, status;
  CHECK(proc_await(&l->peer[w].proc, now_ns() + LONG));
  proc_reap(&l->peer[w].proc, &sig, &status);
  return sig;
}

/* ---- posting --------------------------------------------------------------------------------- */

static const struct link_batch batch = {.job = 3, .first = 20, .n = N, .attempt = 1};

/* The number that the next batch has after 'before', while worker 0 shows 'shown'. */
static uint32_t number_after(uint32_t before, uint32_t shown) {
  afresh();
  set_word(0, word_make(shown, 1, 1));
  set_word(1, word_make(9 << 20, 1, 1));
  l->seq = before;
  CHECK(ops->post(k, 0, &batch) == 0 && l->ready == 1);
  uint32_t seq = l->posted[0].seq;
  CHECK(slot_state(seq, 0, SLOT_READY) == atomic_load(&l->team.view.slot[0].state));
  return seq;
}

static void numbers(void) {
  const uint32_t range = 1 << 20, far = 7 * range;
  CHECK(number_after(0, far) == 1 && number_after(0, 2) == range);
  CHECK(number_after(4, 2) == 5 && number_after(range, range + 7) == range + 1);
  CHECK(number_after(5 * range - 1, far) == 5 * range);
  CHECK(number_after(5 * range - 1, 6 * range - 1) == 6 * range);
  CHECK(number_after(5 * range - 1, 4 * range) == 5 * range);
  CHECK(number_after(8 * range - 1, 8 * range) == 10 * range); /* 9 is shown too */
  CHECK(number_after(UINT32_MAX - 2, far) == UINT32_MAX - 1);
  CHECK(number_after(UINT32_MAX - 1, far) == 1 && number_after(UINT32_MAX - 1, 2) == range);
  l->lives = 0; /* nobody to look at */
  posted_enter(l, 0, OUT_NONE);
  l->seq = 9 * range - 1;
  CHECK(ops->post(k, 0, &batch) == 0 && l->posted[0].seq == 9 * range);
}

static void post_twice(void) {
  ops->post(k, 0, &batch);
  ops->post(k, 0, &batch);
}
static void release_twice(void) {
  ops->post(k, 0, &batch);
  ops->release(k, 0);
  ops->release(k, 0);
}
static void start_twice(void) {
  l->peer[0].state = P_NONE;
  ops->start(k, 0, 2);
}

static void posts(void) {
  const struct link_batch many = {.n = N, .attempt = UINT16_MAX, .urgent = 1};
  const struct link_batch more = {.n = N, .attempt = UINT16_MAX + 1};
  afresh();
  CHECK(ops->post(k, 1, &many) == 0 && l->posted[1].lane == LANE_URGENT);
  CHECK(ops->post(k, 2, &more) == 0 && l->posted[2].lane == LANE_NORMAL && l->fresh == 2);
  CHECK(l->team.view.slot[1].attempt == UINT16_MAX && l->team.view.slot[2].attempt == UINT16_MAX);
  uint32_t bell = l->team.view.board->bell;
  ops->flush(k);
  CHECK(l->team.view.board->bell == bell + 1 && l->fresh == 0 && l->moved);
  ops->flush(k);
  CHECK(l->team.view.board->bell == bell + 1); /* there was nothing new */
  ops->release(k, 1);
  CHECK(l->posted[1].state == OUT_NONE && l->ready == 1);
  afresh();
  CHECK(ops->post(k, 0, &batch) == 0); /* nobody takes it, and what follows is behind it */
  for (unsigned i = 1; i < l->team.view.queue; i++) {
    CHECK(ops->post(k, 1, &batch) == 0);
    posted_enter(l, 1, OUT_NONE);
  }
  CHECK(ops->post(k, 1, &batch) == -EAGAIN && l->posted[1].state == OUT_NONE);
}

static void starts(void) {
  afresh();
  CHECK(aborts(post_twice) && aborts(release_twice) && aborts(start_twice));
  CHECK(ops->start(k, -1, 1) == PLUA_EARG && ops->start(k, 0, 0) == PLUA_EARG);
  CHECK(ops->start(k, (int)l->team.cap, 1) == PLUA_EARG);
  CHECK(ops->start(k, (int)l->team.cap - 1, 2) == PLUA_EARG);
  l->lives = 0; /* worker 0 is none; the one behind it lives, and is not asked for */
  l->peer[0].state = P_NONE;
  for (unsigned n = 0; n < 2; n++) {
    unsigned w = n ? l->team.cap - 1 : 0; /* or the last that there can be */
    CHECK(ops->start(k, (int)w, 1) == 1 && l->lives == n + 1 && l->peer[w].state == P_ALIVE);
    ops->kill(k, (int)w);
    CHECK(ended_by(w) == SIGKILL);
  }
}

/* ---- taking back ----------------------------------------------------------------------------- */

/* Worker 0 has taken slot 0, and has begun 'next' items of it. */
static void takes(enum posted_state state, unsigned next) {
  afresh();
  post(0, state, taken(0, 0));
  l->peer[0].slot = state == OUT_BEGUN ? 0 : NO_SLOT;
  l->peer[0].seq = SEQ;
  set_word(0, word_make(SEQ, next, N));
}

static void takes_back(void) {
  afresh();
  CHECK(ops->retract(k, 0, 0) == -1); /* is not out */
  CHECK(ops->post(k, 0, &batch) == 0);
  CHECK(ops->retract(k, 0, 3) == 0 && l->posted[0].state == OUT_NONE); /* nobody had it */
  takes(OUT_READY, 0);
  CHECK(ops->retract(k, 0, 0) == 1 && l->posted[0].n == 1 && word_end(word_of(0)) == 1);
  takes(OUT_BEGUN, 2);
  CHECK(ops->retract(k, 0, 0) == 2 && l->posted[0].n == 2);
  CHECK(ops->retract(k, 0, 0) == -1); /* nothing more */
  takes(OUT_BEGUN, 2);
  CHECK(ops->retract(k, 0, 4) == 4 && l->posted[0].n == 4);
}

static void takes_back_nothing(void) {
  takes(OUT_BEGUN, 2);
  l->peer[0].slot = 1; /* it is in another */
  CHECK(ops->retract(k, 0, 0) == -1);
  takes(OUT_BEGUN, 2);
  l->peer[0].state = P_HELD;
  CHECK(ops->retract(k, 0, 0) == -1);
  takes(OUT_BEGUN, 2);
  set_word(0, word_make(SEQ, 2, N - 1)); /* does not say what was posted */
  CHECK(ops->retract(k, 0, 0) == -1 && l->posted[0].n == N);
  takes(OUT_BEGUN, 2);
  atomic_store(&l->team.view.slot[0].state, taken(0, l->team.cap)); /* there is no such worker */
  CHECK(ops->retract(k, 0, 0) == -1);
  atomic_store(&l->team.view.slot[0].state, ready(0));
  CHECK(ops->retract(k, 0, 0) == -1);
  atomic_store(&l->team.view.slot[0].state, taken(1, 0)); /* another number */
  CHECK(ops->retract(k, 0, 0) == -1 && l->posted[0].state == OUT_BEGUN);
  unsigned cap = l->team.cap, item;
  post(0, OUT_READY, taken(0, 1));
  set_word(1, word_make(SEQ, 2, N));
  CHECK(ops->running(k, 0, &item) == 1);
  l->team.cap = 1; /* then there is no other worker */
  CHECK(ops->running(k, 0, &item) == -1 && ops->retract(k, 0, 0) == -1);
  l->team.cap = cap;
}

/* ---- holding --------------------------------------------------------------------------------- */

static int holds(unsigned next, unsigned low, unsigned high) {
  unsigned item = 99;
  takes(OUT_BEGUN, next);
  l->peer[0].quiet = true;
  int w = ops->hold(k, 0, low, high, &item);
  if (w < 0) {
    CHECK(l->peer[0].state == P_ALIVE && word_of(0) == word_make(SEQ, next, N) && item == 99);
    return -1;
  }
  CHECK(w == 0 && l->peer[0].state == P_HELD && word_of(0) == WORD_HOLD && !l->peer[0].quiet);
  CHECK(item == next - 1);
  ops->resume(k, 0);
  CHECK(l->peer[0].state == P_ALIVE && word_of(0) == word_make(SEQ, next, N));
  set_word(0, 1);
  ops->resume(k, 0); /* is not held */
  CHECK(word_of(0) == 1);
  return (int)item;
}

static void holding(void) {
  unsigned item;
  CHECK(holds(4, 3, 4) == 3 && holds(4, 0, N) == 3);
  CHECK(holds(4, 4, 5) == -1 && holds(4, 2, 3) == -1 && holds(0, 0, N) == -1);
  takes(OUT_BEGUN, 4);
  l->peer[0].broken = true;
  CHECK(ops->hold(k, 0, 0, N, &item) == -1);
  takes(OUT_BEGUN, 4);
  l->peer[0].state = P_ENDED;
  CHECK(ops->hold(k, 0, 0, N, &item) == -1 && ops->running(k, 0, &item) == -1);
  takes(OUT_BEGUN, 4);
  set_word(0, WORD_HOLD);
  CHECK(ops->hold(k, 0, 0, UINT16_MAX, &item) == -1 && ops->running(k, 0, &item) == -1);
  set_word(0, word_make(SEQ + 1, 4, N));
  CHECK(ops->hold(k, 0, 0, N, &item) == -1 && ops->running(k, 0, &item) == -1);
  atomic_store(&l->team.view.slot[0].state, ready(0));
  CHECK(ops->hold(k, 0, 0, N, &item) == -1 && ops->running(k, 0, &item) == -1);
}

static void running(void) {
  unsigned item;
  takes(OUT_BEGUN, 1);
  CHECK(ops->running(k, 0, &item) == 0 && item == 0);
  takes(OUT_READY, N);
  CHECK(ops->running(k, 0, &item) == 0 && item == N - 1);
  takes(OUT_READY, 0);
  CHECK(ops->running(k, 0, &item) == -1);
  posted_enter(l, 0, OUT_NONE);
  set_word(0, word_make(SEQ, 1, N));
  CHECK(ops->running(k, 0, &item) == -1);
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void retires(void) {
  afresh();
  uint32_t bell = l->team.view.board->bell;
  ops->retire(k, 1);
  CHECK(l->peer[1].slice->retire && !l->peer[0].slice->retire && !l->closed);
  CHECK(l->team.view.board->bell == bell + 1);
  ops->retire(k, 0);
  CHECK(l->peer[0].slice->retire && !l->team.view.board->closed);
  ops->retire(k, -1);
  CHECK(l->closed && l->team.view.board->closed == 1);
  ops->retire(k, 2); /* has never been: there is no slice to write to */
}

static void kills(void) {
  for (int held = 0; held < 2; held++) {
    afresh();
    embody(0);
    if (held) l->peer[0].state = P_HELD;
    ops->kill(k, 0);
    CHECK(l->peer[0].killed && ended_by(0) == SIGKILL);
  }
}

/* Whether SIGURG has been sent to worker 0, which takes no signals. */
static bool is_interrupted(void) {
  char path[64], line[128];
  unsigned long long set = 0;
  snprintf(path, sizeof path, "/proc/%d/status", (int)l->peer[0].proc.pid);
  FILE *f = fopen(path, "r");
  CHECK(f != NULL);
  while (fgets(line, sizeof line, f)) sscanf(line, "ShdPnd: %llx", &set);
  fclose(f);
  return set >> (SIGURG - 1) & 1;
}

static void interrupts(void) {
  takes(OUT_BEGUN, 3);
  embody(0);
  l->peer[0].state = P_HELD; /* runs nothing */
  ops->interrupt(k, 0, 0, 2);
  CHECK(l->peer[0].slice->interrupt == word_make(SEQ, 3, 0) && !is_interrupted());
  l->peer[0].state = P_ALIVE;
  ops->interrupt(k, 0, 0, 2);
  CHECK(is_interrupted());
  ops->kill(k, 0);
  CHECK(ended_by(0) == SIGKILL);
}

/* Worker 0 is stopped, having begun 'next' items of a batch of which 'got' outcomes came. Whether
   it is ended for that. */
static bool ends_stopped(uint64_t word, unsigned got, bool stopped) {
  siginfo_t info;
  takes(OUT_BEGUN, 0);
  set_word(0, word);
  embody(0);
  pid_t pid = l->peer[0].proc.pid;
  if (stopped) {
    kill(pid, SIGSTOP);
    CHECK(waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOWAIT) == 0);
  }
  ops->end_stopped(k, 0, got);
  bool ends = l->peer[0].state == P_HELD;
  CHECK(ends == l->peer[0].killed && (!ends || l->peer[0].quiet));
  CHECK(word_of(0) == (ends ? WORD_HOLD : word));
  if (!ends) kill(pid, SIGKILL);
  CHECK(ended_by(0) == SIGKILL);
  return ends;
}

/* Who shall leave goes on, once. */
static void leaves_stopped(int who) {
  siginfo_t info;
  takes(OUT_BEGUN, 0);
  set_word(0, word_make(SEQ, 4, N));
  embody(0);
  pid_t pid = l->peer[0].proc.pid;
  ops->retire(k, who);
  for (int round = 0; round < 2; round++) {
    kill(pid, SIGSTOP);
    CHECK(waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOWAIT) == 0);
    ops->end_stopped(k, 0, 4);
    CHECK(l->peer[0].killed == (round == 1));
    if (round == 0) CHECK(waitid(P_PID, (id_t)pid, &info, WCONTINUED) == 0);
  }
  CHECK(ended_by(0) == SIGKILL);
}

static void stopped(void) {
  CHECK(ends_stopped(word_make(SEQ, 4, N), 4, true));
  CHECK(!ends_stopped(word_make(SEQ, 4, N), 4, false)); /* is not stopped */
  CHECK(!ends_stopped(word_make(SEQ, 4, N), 3, true));  /* runs an item */
  CHECK(!ends_stopped(word_make(SEQ + 1, 1, N), 4, true));
  CHECK(ends_stopped(word_make(SEQ + 1, 0, N), 4, true)); /* has not begun the first */
  CHECK(!ends_stopped(WORD_HOLD, UINT16_MAX, true));
  leaves_stopped(0);
  leaves_stopped(-1);
  takes(OUT_BEGUN, 0);
  l->peer[0].state = P_ENDED;
  ops->end_stopped(k, 0, 0);
  CHECK(l->peer[0].state == P_ENDED);
}

/* ---- the state of the board ------------------------------------------------------------------ */

static bool heals(void) {
  int64_t before = now_ns();
  l->garbage_ns = 0;
  local_heal(l, false);
  CHECK(l->healthy_ns >= before);
  return l->garbage_ns != 0;
}

static void rests(unsigned w, uint32_t how) {
  atomic_store(&l->peer[w].slice->sleeping, how);
}

static void heals_what_is_spoilt(void) {
  afresh();
  CHECK(!heals());
  l->team.view.board->closed = 1;
  CHECK(heals() && !l->team.view.board->closed && !heals());
  CHECK(ops->post(k, 0, &batch) == 0 && !heals());
  rests(0, DROWSY); /* though something is ready: it is no longer listed, for all we know */
  CHECK(heals() && l->team.view.board->sleepers == 1);
  rests(1, ASLEEP);
  rests(0, WAKING);
  CHECK(heals() && l->team.view.board->sleepers == 2);
  rests(0, AWAKE);
  rests(1, AWAKE);
  CHECK(!heals() && ops->retract(k, 0, 0) == 0);
  rests(0, ASLEEP);
  CHECK(!heals());
  rests(0, AWAKE);
  post(3, OUT_READY, 12345);
  CHECK(heals());
  post(3, OUT_BEGUN, 12345); /* of that its worker tells */
  CHECK(!heals());
  post(SLOTS, OUT_READY, 12345);
  CHECK(!heals());
  l->ready = 0;
}

/* What was ready is listed again, and nothing else. */
static void lists_again(void) {
  uint32_t seq;
  uint64_t from[LANES] = {0, 0};
  afresh();
  CHECK(ops->post(k, 3, &batch) == 0 && ops->post(k, 1, &batch) == 0);
  post(2, OUT_BEGUN, ready(2));
  post(SLOTS, OUT_READY, ready(SLOTS));
  atomic_store(&l->team.view.board->lane[LANE_NORMAL].tail, 77);
  local_heal(l, false);
  CHECK(l->team.view.tail[LANE_NORMAL] == l->team.view.front[LANE_NORMAL] + 2);
  CHECK(l->team.view.tail[LANE_URGENT] == l->team.view.front[LANE_URGENT]);
  struct board_view v = l->team.view;
  CHECK(board_take(&v, from, 1, &seq) == 1 && board_take(&v, from, 1, &seq) == 3);
  CHECK(board_take(&v, from, 1, &seq) == -1);
  local_heal(l, true);
  CHECK(l->garbage_ns != 0);
}

/* Whether worker 0 counts as stuck. */
static bool is_killed(uint32_t sleeping, uint64_t word, bool busy, bool frames) {
  takes(OUT_BEGUN, 1);
  if (!busy) l->peer[0].slot = NO_SLOT;
  set_word(0, word);
  rests(0, sleeping);
  if (frames) atomic_store(&l->peer[0].slice->ring.tail, 8);
  local_heal(l, false);
  CHECK(l->peer[0].broken == l->peer[0].killed && !l->peer[1].killed);
  return l->peer[0].killed;
}

static void stuck(void) {
  const uint64_t word = word_make(SEQ, N, N);
  CHECK(is_killed(AWAKE, WORD_HOLD, false, true) && !is_killed(AWAKE, word, true, false));
  CHECK(is_killed(DROWSY, word, true, false) && is_killed(ASLEEP, word, true, false));
  CHECK(!is_killed(WAKING, word, true, false) && !is_killed(ASLEEP, word, false, false));
  CHECK(!is_killed(ASLEEP, word, true, true));
  takes(OUT_BEGUN, 1);
  l->peer[0].state = P_HELD; /* by us */
  set_word(0, WORD_HOLD);
  l->lives = 1;
  l->live[1] = 1; /* does not live */
  set_word(1, WORD_HOLD);
  local_heal(l, false);
  CHECK(!l->peer[0].killed && !l->peer[1].killed);
}

static void idles(void) {
  afresh();
  CHECK(ops->idle(k) == 0);
  rests(0, DROWSY);
  rests(1, WAKING);
  CHECK(ops->idle(k) == 1);
  rests(1, ASLEEP);
  CHECK(ops->idle(k) == 2);
  l->peer[1].state = P_HELD;
  CHECK(ops->idle(k) == 1);
  l->lives = 0;
  CHECK(ops->idle(k) == 0);
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* In a child that a signal stops, since what is looked at is written before the sleep and undone
   behind it: what 'low' and the marks are while the owner sleeps. */
static void arms(void) {
  afresh();
  l->live[l->lives] = 2; /* does not live: has no slice */
  struct board *b = l->team.view.board;
  for (unsigned i = 0; i < 3; i++) CHECK(ops->post(k, i, &batch) == 0);
  CHECK(ops->arm(k, 0) == 0 && b->asleep == 1 && b->low == UINT64_MAX);
  CHECK(l->peer[0].slice->ring.mark == 1 && l->peer[1].slice->ring.mark == 1);
  l->peer[1].state = P_ENDED;
  CHECK(ops->arm(k, 0) == 1 && ops->wait(k, -1, LINK_ANY, 0) == 1);
  l->peer[1].state = P_ALIVE;
  CHECK(ops->wait(k, 0, LINK_ANY, 2) == 0 && b->low == 1 && b->asleep == 0);
  CHECK(l->peer[0].slice->ring.mark == UINT64_MAX);
  CHECK(ops->wait(k, 0, LINK_ANY, 3) == 0 && b->low == UINT64_MAX);
  CHECK(ops->wait(k, 0, LINK_ANY, 0) == 0 && b->low == UINT64_MAX);
  CHECK(ops->wait(k, 0, LINK_ANY, -5) == 0 && b->low == UINT64_MAX);
}

/* A machine that stalls makes a wait longer, but hardly five in a row. */
static int64_t waits(int64_t timeout_ns, enum link_wait how, int64_t garbage_ns) {
  int64_t took = LOOK_NS;
  for (int i = 0; i < 5 && took >= LOOK_NS; i++) {
    int64_t begin = now_ns();
    afresh();
    l->garbage_ns = garbage_ns;
    l->healthy_ns = begin + LONG; /* no looking after it meanwhile */
    int r = ops->wait(k, timeout_ns, how, 0);
    CHECK(r == 0 || r == -EINTR); /* who was stopped is interrupted */
    if (r == 0) took = now_ns() - begin;
  }
  return took;
}

static void waiting(void) {
  CHECK(waits(0, LINK_ANY, 0) < LOOK_NS && waits(BULK_NS, LINK_ANY, 0) >= BULK_NS);
  int64_t ns = waits(-1, LINK_BULK, 0); /* no longer than that */
  CHECK(ns >= BULK_NS && ns < LOOK_NS);
  ns = waits(10 * (int64_t)LOOK_NS, LINK_BULK, 0);
  CHECK(ns >= BULK_NS && ns < LOOK_NS);
  afresh(); /* a few results in bulk are told, only later */
  atomic_store(&l->peer[0].slice->ring.tail, 8);
  CHECK(ops->wait(k, -1, LINK_BULK, 0) == 1);
  CHECK(waits(-1, LINK_ANY, now_ns()) < LOOK_NS); /* while the board is spoilt, it looks soon */
  afresh();
  ns = l->healthy_ns = now_ns() + LONG; /* not now */
  CHECK(ops->wait(k, 0, LINK_ANY, 0) >= 0 && l->healthy_ns == ns);
  ns = now_ns();
  l->healthy_ns = ns - 2 * (int64_t)HEALTH_NS;
  CHECK(ops->wait(k, 0, LINK_ANY, 0) >= 0 && l->healthy_ns > ns);
}

/* The bell rings for nobody where time was short; else whoever sleeps looks again. */
static void wakes(void) {
  afresh();
  uint32_t bell = l->team.view.board->bell;
  l->healthy_ns = now_ns() + LONG; /* what is well is not looked after */
  CHECK(ops->wait(k, 0, LINK_BULK, 0) == 0 && l->team.view.board->bell == bell);
  CHECK(ops->wait(k, BULK_NS, LINK_BULK, 0) == 0 && l->team.view.board->bell == bell);
  CHECK(ops->wait(k, LOOK_NS, LINK_BULK, 0) == 0 && l->team.view.board->bell == bell);
  CHECK(ops->wait(k, LOOK_NS + 1, LINK_BULK, 0) == 0 && l->team.view.board->bell == bell + 1);
  CHECK(ops->wait(k, -1, LINK_BULK, 0) == 0 && l->team.view.board->bell == bell + 2);
}

static void descriptors(void) {
  uint64_t one = 1;
  afresh();
  int in = dup(0);
  close(0); /* its place is not taken */
  int fd = ops->fd(k);
  CHECK(in > 0 && dup2(in, 0) == 0 && close(in) == 0);
  CHECK(fd > 2 && fd == l->team.epoll_fd && l->timer_fd > 2 && ops->fd(k) == fd);
  CHECK(ops->arm(k, 1) == 0 && local_look(l, LOOK_NS) == 1); /* the timer */
  CHECK(write(l->team.bell_fd, &one, 8) == 8 && local_look(l, -1) == 1);
  CHECK(local_look(l, 0) == 0);
  embody(1);
  CHECK(local_watch(l, l->peer[1].proc.fd, 1) == 0);
  kill(l->peer[1].proc.pid, SIGKILL);
  CHECK(local_look(l, -1) == 1 && l->peer[1].state == P_ENDED && l->peer[1].signal == SIGKILL);
  CHECK(l->peer[0].state == P_ALIVE);
}

/* ---- closing --------------------------------------------------------------------------------- */

static void closes(void) {
  afresh();
  embody(0);
  embody(1);
  struct proc other = l->peer[1].proc;
  pid_t pid = l->peer[0].proc.pid;
  l->lives = 1; /* the other is none of ours */
  ops->close(k);
  l = NULL;
  CHECK(waitpid(pid, NULL, WNOHANG) < 0 && errno == ECHILD); /* killed, and waited for */
  CHECK(waitpid(other.pid, NULL, WNOHANG) == 0);
  CHECK(proc_signal(&other, SIGKILL) == 0 && waitpid(other.pid, NULL, 0) == other.pid);
  close(other.fd);

  afresh(); /* who does not end is not waited for */
  embody(0);
  pid = l->peer[0].proc.pid;
  ops->abandon(k, 0);
  ops->close(k);
  l = NULL;
  CHECK(waitpid(pid, NULL, 0) == pid);
}

/* ---- opening --------------------------------------------------------------------------------- */

static size_t ring_of(size_t ring, int workers) {
  const plua_options o = {sizeof o, .workers = workers, .ring = ring, .slots = SLOTS};
  const plua_tasks tasks = {.size = sizeof tasks, .run = none};
  struct link *link;
  CHECK(local_open(&link, &o, &tasks) == 0);
  size_t size = ((struct local *)link)->team.ring_size;
  CHECK(link->cap == (workers < 128 ? 256 : 2 * (unsigned)workers));
  link->ops->close(link);
  return size;
}

static void opens(void) {
  CHECK(ring_of(1, 1) == 256 && ring_of(256, 127) == 256 && ring_of(257, 128) == 512);
  CHECK(ring_of(SIZE_MAX, 1) == (size_t)1 << 26);
  CHECK(ring_of(1 << 20, 129) == 1 << 20);
  size_t chosen = ring_of(0, 1);
  if (chosen != 1 << 20) return; /* of a small build */
  CHECK(ring_of(0, 64) == chosen && ring_of(0, 65) == chosen / 2);
  CHECK(ring_of(0, 4096) == 16384 && ring_of(0, 5000) == 16384);
}

/* A wait that was interrupted says so, and is not begun again. */
static void interrupted(void) {
  afresh();
  CHECK(local_look(l, BULK_NS) == -EINTR && local_look(l, 0) == 0);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "interrupted") == 0) {
    interrupted();
    puts("ok");
    return 0;
  }
  numbers();
  posts();
  starts();
  takes_back();
  takes_back_nothing();
  holding();
  running();
  retires();
  kills();
  interrupts();
  stopped();
  heals_what_is_spoilt();
  lists_again();
  stuck();
  idles();
  arms();
  waiting();
  wakes();
  descriptors();
  closes();
  opens();
  puts("ok");
  return 0;
}
