/* local.c: the owner's half of a backend of forked workers over shared memory.
   Invariant: the private tables (local.h) say which batches are out, which workers live and what
   each has begun; shared memory is a message to workers, never a memory of ours.
   Knows the board and processes. Does not know jobs, retries or Lua.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "fail.h"
#include "local.h"

static struct local *self(struct link *l) {
  return (struct local *)l;
}

/* ---- posting and taking back --------------------------------------------------------------- */

/* Numbers start again after 2^32 batches: then those that a living word still shows are passed
   over, a range at a time, so that none comes twice while anyone remembers it. */
static uint32_t next_seq(struct local *l) {
  uint32_t seq = ++l->seq;
  if (seq % (1 << 20) == 0 || seq == 1) {
    for (unsigned i = 0; i < l->lives; i++) {
      uint32_t shown = word_seq(atomic_load(&l->peer[l->live[i]].slice->word));
      if (shown >> 20 == seq >> 20) {
        l->seq = seq | ((1 << 20) - 1);
        return next_seq(l);
      }
    }
  }
  if (seq == UINT32_MAX || seq == 0) return next_seq(l); /* HOLD, and none */
  return seq;
}

static int local_post(struct link *link, unsigned i, const struct link_batch *b) {
  struct local *l = self(link);
  struct board_view *v = &l->team.view;
  unsigned lane = b->urgent ? LANE_URGENT : LANE_NORMAL;
  if (l->posted[i].state != OUT_NONE) IMPOSSIBLE("slot posted twice");
  if (!board_room(v, lane) || FAIL_ERROR(P_DISPATCH)) return -EAGAIN;
  struct slot *s = &v->slot[i];
  s->job = b->job;
  s->first = b->first;
  s->off = b->off;
  s->call_off = b->call_off;
  s->call_len = b->call_len;
  s->n = (uint16_t)b->n;
  s->attempt = (uint16_t)(b->attempt < UINT16_MAX ? b->attempt : UINT16_MAX);
  posted_enter(l, i, OUT_READY);
  l->posted[i] = (struct posted){OUT_READY, next_seq(l), b->n, lane};
  board_post(v, i, l->posted[i].seq, lane);
  l->fresh++;
  return 0;
}

static void local_flush(struct link *link) {
  struct local *l = self(link);
  l->alone = false;
  l->moved = true;
  FAIL_POINT(P_BELL);
  if (l->fresh) board_call(&l->team.view, l->fresh);
  l->fresh = 0;
}

/* Which worker the board says has taken a slot; -1: none that could be. */
static int taker(const struct local *l, unsigned i) {
  uint64_t state = atomic_load(&l->team.view.slot[i].state);
  unsigned w = (unsigned)(state >> 8 & 0xffffff) - 1;
  bool taken = l->posted[i].state != OUT_NONE && w < l->team.cap &&
               state == slot_state(l->posted[i].seq, w + 1, SLOT_TAKEN);
  return taken ? (int)w : -1;
}

static int local_retract(struct link *link, unsigned i, unsigned keep) {
  struct local *l = self(link);
  struct posted *p = &l->posted[i];
  struct board_view *v = &l->team.view;
  if (p->state == OUT_NONE) return -1;
  FAIL_POINT(P_TAKEBACK);
  if (p->state == OUT_READY && board_withdraw(v, i, p->seq)) {
    posted_enter(l, i, OUT_NONE);
    return 0;
  }
  int w = taker(l, i);
  struct peer *peer = w < 0 ? NULL : &l->peer[w];
  unsigned end;
  if (!peer || peer->state != P_ALIVE || (p->state == OUT_BEGUN && peer->slot != (int)i)) return -1;
  if (keep == 0) keep = 1; /* a batch that was taken stays one, if an empty one */
  int m = word_shrink(&peer->slice->word, p->seq, keep, &end);
  if (m < 0 || end != p->n) return -1;
  p->n = (unsigned)m;
  return m;
}

static void local_release(struct link *link, unsigned i) {
  struct local *l = self(link);
  FAIL_POINT(P_RELEASE);
  if (l->posted[i].state == OUT_NONE) IMPOSSIBLE("slot released twice");
  posted_enter(l, i, OUT_NONE);
}

/* ---- processes ----------------------------------------------------------------------------- */

static int local_start(struct link *link, int number, unsigned n) {
  struct local *l = self(link);
  unsigned first = (unsigned)number;
  if (number < 0 || !n || first + n > l->team.cap) return PLUA_EARG;
  for (unsigned i = 0; i < n; i++)
    if (l->peer[first + i].state != P_NONE) IMPOSSIBLE("worker started twice");
  return start_some(l, first, n);
}

static void local_retire(struct link *link, int w) {
  struct local *l = self(link);
  FAIL_POINT(P_RETIRE);
  if (w < 0)
    atomic_store(&l->team.view.board->closed, l->closed = true);
  else if (l->peer[w].state != P_NONE)
    atomic_store(&l->peer[w].slice->retire, l->peer[w].leaves = true);
  board_wake(&l->team.view, INT32_MAX);
}

static int local_hold(struct link *link, unsigned slot, unsigned low, unsigned high, unsigned *k) {
  struct local *l = self(link);
  int w = taker(l, slot);
  struct peer *p = w < 0 ? NULL : &l->peer[w];
  if (!p || p->state != P_ALIVE || p->broken) return -1;
  FAIL_POINT(P_HOLD);
  uint64_t word = atomic_load(&p->slice->word);
  do {
    if (word == WORD_HOLD || word_seq(word) != l->posted[slot].seq) return -1;
    if (word_next(word) <= low || word_next(word) > high) return -1;
  } while (!atomic_compare_exchange_weak(&p->slice->word, &word, WORD_HOLD));
  p->word = word;
  p->state = P_HELD;
  p->quiet = false;
  *k = word_next(word) - 1;
  return w;
}

static void local_resume(struct link *link, int w) {
  struct peer *p = &self(link)->peer[w];
  if (p->state != P_HELD) return;
  FAIL_POINT(P_RESUME);
  atomic_store(&p->slice->word, p->word);
  p->state = P_ALIVE;
}

static int local_running(struct link *link, unsigned slot, unsigned *k) {
  struct local *l = self(link);
  int w = taker(l, slot);
  if (w < 0 || l->peer[w].state != P_ALIVE) return -1;
  uint64_t word = atomic_load(&l->peer[w].slice->word);
  if (word == WORD_HOLD || word_seq(word) != l->posted[slot].seq || !word_next(word)) return -1;
  *k = word_next(word) - 1;
  return w;
}

static void local_interrupt(struct link *link, int w, unsigned slot, unsigned k) {
  struct local *l = self(link);
  struct peer *p = &l->peer[w];
  FAIL_POINT(P_INTERRUPT);
  atomic_store(&p->slice->interrupt, word_make(l->posted[slot].seq, k + 1, 0));
  if (p->state == P_ALIVE) proc_signal(&p->proc, SIGURG);
}

int local_kill_peer(struct peer *p) {
  FAIL_POINT(P_KILL);
  p->killed = true;
  return p->state == P_ALIVE || p->state == P_HELD ? proc_signal(&p->proc, SIGKILL) : 0;
}

static void local_abandon(struct link *link, int w) {
  struct peer *p = &self(link)->peer[w];
  p->lost = p->broken = true;
}

static void local_kill(struct link *link, int w) {
  local_kill_peer(&self(link)->peer[w]);
}

static void local_distrust(struct link *link, int w) {
  self(link)->peer[w].broken = true;
}

/* Who shall leave is let go on once, to do so in peace. Who is killed is held first, since whoever
   stopped it may let it go on meanwhile. */
static void local_end_stopped(struct link *link, int w, unsigned got) {
  struct local *l = self(link);
  struct peer *p = &l->peer[w];
  if (p->state != P_ALIVE || !proc_stopped(&p->proc)) return;
  uint64_t word = atomic_load(&p->slice->word);
  bool runs = word_next(word) > got || (word_next(word) && word_seq(word) != p->seq);
  if (word == WORD_HOLD || runs) return;
  if ((l->closed || p->leaves) && !p->woken) {
    p->woken = proc_signal(&p->proc, SIGCONT) == 0;
    return;
  }
  if (!atomic_compare_exchange_strong(&p->slice->word, &word, WORD_HOLD)) return;
  p->word = word;
  p->state = P_HELD;
  p->quiet = true; /* there is nothing to decide */
  local_kill_peer(p);
}

/* ---- waiting ------------------------------------------------------------------------------- */

/* Closing a pidfd is not enough: workers forked since hold copies, so epoll would go on telling. */
static void mark_ended(struct local *l, uint32_t w) {
  struct peer *p = &l->peer[w];
  FAIL_POINT(P_REAP);
  epoll_ctl(l->team.epoll_fd, EPOLL_CTL_DEL, p->proc.fd, NULL);
  proc_reap(&p->proc, &p->signal, &p->status);
  p->state = P_ENDED;
}

static int poll_set(struct local *l, struct epoll_event *e, int max, int64_t timeout_ns) {
  struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
  int n = epoll_pwait2(l->team.epoll_fd, e, max, timeout_ns < 0 ? NULL : &t, NULL);
  if (n >= 0 || (errno != ENOSYS && errno != EPERM)) return n;
  /* Linux, or a sandbox, before 5.11. */
  int64_t ms = timeout_ns < 0 ? -1 : (timeout_ns + 999999) / 1000000;
  return epoll_wait(l->team.epoll_fd, e, max, ms > INT32_MAX ? INT32_MAX : (int)ms);
}

int local_look(struct local *l, int64_t timeout_ns) {
  struct epoll_event e[64];
  uint64_t count;
  int failed = FAIL_ERROR(P_SLEEP);
  if (failed) return failed;
  int n = poll_set(l, e, 64, timeout_ns), err = n < 0 ? -errno : n;
  for (int i = 0; i < n; i++) {
    if (e[i].data.u32 < l->team.cap)
      mark_ended(l, e[i].data.u32);
    else if (e[i].data.u32 == UINT32_MAX - 1)
      words_receive(l);
    else if (read(e[i].data.u32 == TIMER ? l->timer_fd : l->team.bell_fd, &count, 8) < 0)
      continue; /* somebody else read it: a ring too many does no harm */
  }
  l->frames = 0;
  return err;
}

/* The worker's side of this handshake is in serve.c: it publishes, claims (a full barrier), reads
   its mark; here the mark is written, then a barrier, then the rings are read again. */
static void arm(struct local *l, enum link_wait how, int low) {
  struct board_view *v = &l->team.view;
  board_advance(v);
  uint64_t tail = v->tail[LANE_NORMAL], ready = tail - v->front[LANE_NORMAL];
  bool ample = low > 0 && ready > (uint64_t)low;
  atomic_store(&v->board->low, ample ? tail - (uint64_t)low : UINT64_MAX);
  for (unsigned i = 0; i < l->lives; i++) {
    struct peer *p = &l->peer[l->live[i]];
    uint64_t ahead = how == LINK_BULK ? p->ring.size / 2 : 1;
    atomic_store_explicit(&p->slice->ring.mark, p->ring.head + ahead, memory_order_relaxed);
  }
  atomic_store(&v->board->asleep, 1);
  atomic_thread_fence(memory_order_seq_cst);
}

static void disarm(struct local *l) {
  atomic_store(&l->team.view.board->asleep, 0);
  for (unsigned i = 0; i < l->lives; i++)
    atomic_store_explicit(&l->peer[l->live[i]].slice->ring.mark, UINT64_MAX, memory_order_relaxed);
}

/* A bell that was missed because somebody scribbled on the board costs a second, not the call. Who
   waits in bulk is told of a few results too, only later. */
static int64_t bounded(int64_t timeout_ns, int64_t limit) {
  return timeout_ns < 0 || timeout_ns > limit ? limit : timeout_ns;
}

static bool rests(const struct peer *p) {
  uint32_t sleep = atomic_load(&p->slice->sleeping);
  return p->state == P_ALIVE && (sleep == DROWSY || sleep == ASLEEP);
}

static unsigned local_idle(struct link *link) {
  struct local *l = self(link);
  unsigned n = 0;
  for (unsigned i = 0; i < l->lives; i++) n += rests(&l->peer[l->live[i]]);
  return n;
}

/* Whether the board says that it has taken a batch which it has not told to begin. */
static bool has_taken(const struct local *l, const struct peer *p) {
  unsigned w;
  for (unsigned i = 0; l->ready && i < l->team.view.slots; i++)
    if (l->posted[i].state == OUT_READY && slot_says(l, i, &w) == SAYS_TAKEN && &l->peer[w] == p)
      return true;
  return false;
}

/* A worker that is held, but not by us, would wait for ever; so would we for one that rests, and
   has not said what became of all that it took. Whether it rests is read after that, and what it
   has said last: it takes, says and rests in this order. */
static bool is_stuck(const struct local *l, const struct peer *p) {
  if (atomic_load(&p->slice->word) == WORD_HOLD) return true;
  if (!rests(p) || !(peer_busy(l, p) || has_taken(l, p))) return false;
  return rests(p) && atomic_load(&p->slice->ring.tail) == p->ring.head;
}

static void kill_stuck(struct local *l) {
  for (unsigned i = 0; i < l->lives; i++) {
    struct peer *p = &l->peer[l->live[i]];
    if (p->state != P_ALIVE || !is_stuck(l, p)) continue;
    p->broken = true;
    local_kill_peer(p);
  }
}

static bool spoilt(struct local *l) {
  unsigned w;
  if (!board_sane(&l->team.view, l->closed)) return true;
  bool idle = local_idle(&l->link) > 0;
  for (unsigned i = 0; i < l->team.view.slots; i++) {
    if (l->posted[i].state != OUT_READY) continue;
    enum slot_says says = slot_says(l, i, &w);
    if (says == SAYS_GARBAGE || (says == SAYS_READY && idle)) return true; /* or no longer listed */
  }
  return false;
}

/* An item that overwrites shared memory reaches the board too; then workers find nothing, or
   garbage that they do not run. What was ready is listed again, what is garbage comes back
   (hear.c). */
void local_heal(struct local *l, bool anyway) {
  struct board_view *v = &l->team.view;
  uint32_t sleepers = 0;
  l->healthy_ns = now_ns();
  FAIL_POINT(P_HEAL);
  kill_stuck(l);
  if (!anyway && !spoilt(l)) return;
  for (unsigned i = 0; i < l->lives; i++)
    sleepers += atomic_load(&l->peer[l->live[i]].slice->sleeping) != AWAKE;
  board_heal(v, l->closed, sleepers);
  for (unsigned i = 0; i < v->slots; i++)
    if (l->posted[i].state == OUT_READY) board_list(v, i, l->posted[i].seq, l->posted[i].lane);
  l->garbage_ns = now_ns();
  board_wake(v, INT32_MAX);
}

static int local_wait(struct link *link, int64_t timeout_ns, enum link_wait how, int low) {
  struct local *l = self(link);
  if (now_ns() - l->healthy_ns > HEALTH_NS) local_heal(l, false);
  if (hear_ready(l, how)) return 1;
  arm(l, how, low);
  int64_t limit = how == LINK_BULK || l->garbage_ns ? BULK_NS : LOOK_NS;
  int n = hear_ready(l, how) ? 1 : local_look(l, bounded(timeout_ns, limit));
  disarm(l);
  if (n == 0 && hear_ready(l, LINK_ANY)) n = 1;
  if (n == 0 && (timeout_ns < 0 || timeout_ns > LOOK_NS)) board_wake(&l->team.view, INT32_MAX);
  return n > 0 ? 1 : n;
}

static int local_arm(struct link *link, int64_t timeout_ns) {
  struct local *l = self(link);
  arm(l, LINK_ANY, 0);
  int n = hear_ready(l, LINK_ANY) ? 1 : local_look(l, 0);
  if (n || l->timer_fd < 0) return n > 0 ? 1 : n;
  timeout_ns = bounded(timeout_ns, LOOK_NS);
  struct itimerspec t = {.it_value = {timeout_ns / 1000000000, timeout_ns % 1000000000}};
  return timerfd_settime(l->timer_fd, 0, &t, NULL) < 0 ? -errno : 0;
}

static int local_fd(struct link *link) {
  struct local *l = self(link);
  if (l->timer_fd >= 0) return l->team.epoll_fd;
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  fd = fd < 0 ? -errno : fd_above_stdio(fd);
  if (fd < 0) return fd;
  int err = local_watch(l, fd, TIMER);
  if (err < 0) {
    close(fd);
    return err;
  }
  l->timer_fd = fd;
  return l->team.epoll_fd;
}

/* ---- opening and closing ------------------------------------------------------------------- */

static int local_next(struct link *link, struct link_event *e, plua_reply *replies, unsigned max) {
  return hear_next(self(link), e, replies, max);
}

static void local_free(struct local *l) {
  array_free(l->peer, l->team.cap, sizeof *l->peer);
  array_free(l->live, l->team.cap, sizeof *l->live);
  array_free(l->posted, l->team.view.slots, sizeof *l->posted);
  free(l);
}

/* Whether some cannot be killed: an owner has given up its privileges since. */
static bool kill_all(struct local *l) {
  bool refused = false;
  for (unsigned i = 0; i < l->lives; i++)
    refused |= local_kill_peer(&l->peer[l->live[i]]) == -EPERM;
  for (unsigned i = 0; i < SPARES; i++)
    refused |= l->spare[i].pid && proc_signal(&l->spare[i], 0) == -EPERM;
  return refused;
}

/* Those that rest leave now, the others as their items end; they would wait for ever in a hold. */
static void part_in_peace(struct local *l) {
  local_retire(&l->link, -1);
  for (unsigned i = 0; i < l->lives; i++) local_resume(&l->link, l->live[i]);
  shutdown(l->team.mail_fd[0], SHUT_RDWR);
}

/* All are killed first and reaped after, so that closing takes as long as the slowest death. */
static void local_close(struct link *link) {
  struct local *l = self(link);
  bool ours = l->team.owner == getpid();
  int64_t until = now_ns() + UNKILLABLE_NS;
  FAIL_POINT(P_CLOSE);
  if (ours && kill_all(l)) part_in_peace(l);
  for (unsigned i = 0; i < l->lives; i++) {
    struct peer *p = &l->peer[l->live[i]];
    if (p->state == P_ENDED) continue;
    if (ours && !p->lost && proc_await(&p->proc, until))
      proc_reap(&p->proc, &p->signal, &p->status);
    else
      close(p->proc.fd);
  }
  start_over(l, ours);
  if (l->timer_fd >= 0) close(l->timer_fd);
  for (unsigned i = 0; i < l->begun; i++) words_drop(&l->peer[i]);
  team_close(&l->team);
  free(l->words);
  local_free(l);
}

static const struct link_ops ops = {
  .post = local_post,
  .flush = local_flush,
  .retract = local_retract,
  .release = local_release,
  .start = local_start,
  .retire = local_retire,
  .hold = local_hold,
  .resume = local_resume,
  .running = local_running,
  .interrupt = local_interrupt,
  .kill = local_kill,
  .distrust = local_distrust,
  .end_stopped = local_end_stopped,
  .abandon = local_abandon,
  .next = local_next,
  .wait = local_wait,
  .arm = local_arm,
  .fd = local_fd,
  .idle = local_idle,
  .close = local_close,
};

static size_t ring_size_for(const plua_options *o) {
  size_t want = o->ring ? o->ring : RING_DEFAULT, size = 256;
  while (size < want && size < ((size_t)1 << 26)) size *= 2;
  /* Many workers share the caches: smaller rings for each. */
  while (!o->ring && size > 16384 && size * (size_t)o->workers > ((size_t)1 << 26)) size /= 2;
  return size;
}

int local_open(struct link **out, const plua_options *o, const plua_tasks *tasks) {
  fail_reset();
  struct local *l = calloc(1, sizeof *l);
  if (!l) return -ENOMEM;
  unsigned cap = o->workers < 128 ? 256 : 2 * (unsigned)o->workers;
  int err = -ENOMEM;
  l->link.ops = &ops;
  l->timer_fd = -1;
  l->team.owner = getpid();
  if (getrandom(&l->team.secret, sizeof l->team.secret, GRND_NONBLOCK) < 0)
    l->team.secret = (uint64_t)now_ns() * (uintptr_t)l;
  l->team.tasks = *tasks;
  l->team.flags = o->flags;
  l->team.max_tasks = o->max_tasks;
  l->team.max_rss = o->max_rss;
  proc_signals_read(&l->team.signals);
  oom_open(&l->oom);
  l->team.cap = cap;
  l->team.view.slots = o->slots;
  l->peer = array_new(cap, sizeof *l->peer);
  l->live = array_new(cap, sizeof *l->live);
  l->posted = array_new(o->slots, sizeof *l->posted);
  if (!l->peer || !l->live || !l->posted) goto fail;
  err = team_open(&l->team, o->slots, ring_size_for(o), cap);
  if (err) goto fail;
  l->link.memory = l->team.base;
  l->link.payload_off = l->team.payload_off;
  l->link.payload_len = l->team.payload_len;
  l->link.memory_fd = l->team.memory_fd;
  l->link.cap = cap;
  *out = &l->link;
  return 0;
fail:
  local_free(l);
  return err;
}
