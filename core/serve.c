/* serve.c: the worker's half of a team: take a batch, claim items, run them, publish replies.
   Invariant: an item is claimed in the word before it runs, and its reply is published by one store
   after it ran; so the owner knows of each item whether it was begun and whether it is done,
   whatever instruction this process dies at. Nothing here outlives _exit.
   Knows the board, its own slice and the task table. Does not know Lua or the pool.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio_ext.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fail.h"
#include "lines.h"
#include "serve_spill.h"
#include "team.h"

enum {
  ROOM_MIN = 64,
  CLOCK_EVERY = 64,
  CLOCK_FINE_NS = 2000,
  IDLE_MS = 1000,
  RSS_EVERY_NS = 5000000,
  WAIT_MS = 100
};

/* When an item began, for its error's sake: exact where items take long, off by at most
   CLOCK_EVERY - 1 items of less than CLOCK_FINE_NS each where they are short. */
struct stopwatch {
  int64_t first, since; /* first: when the batch's first item began */
  unsigned left, step;
};

/* The batch that is run, and the item of it. */
struct work {
  plua_feed feed;
  plua_item item;
  uint64_t first, cursor;
  uint16_t k, count; /* below BATCH_MAX */
  bool begun;        /* there is a batch; its end has not been told */
  struct stopwatch watch;
};

struct server {
  plua_out out; /* must be first: 'more' casts back */
  struct team *team;
  struct slice *slice;
  struct board_view view; /* of our own: to note something in the team's would copy a page */
  struct ring ring;
  struct spill spill;
  bool deaf;          /* the doorbell cannot be rung: leave after publishing */
  int worn;           /* this process shall be replaced */
  uint64_t rss_limit; /* 0: none */
  int64_t rss_ns;     /* when it was last looked at */
  unsigned me;
  uint64_t from[LANES], mine;
  uint64_t left; /* items that it may still run */
  struct work work;
  const volatile char *ours; /* 1; 0 in a process that an item forked */
  struct capture capture;
  bool keeps;                /* the output of the items of this batch is kept until they end */
  volatile uint64_t running; /* seq and item + 1 of what runs now, as a word; 0: nothing */
  plua_self self;
};

/* ---- the owner ----------------------------------------------------------------------------- */

NOINLINE static void doorbell(struct server *s) {
  if (!atomic_exchange(&s->view.board->asleep, 0)) return;
  uint64_t one = 1;
  ssize_t n;
  FAIL_POINT(W_WAKE);
  do n = write(s->team->bell_fd, &one, sizeof one);
  while (n < 0 && errno == EINTR);
  if (n < 0 && errno != EAGAIN) s->deaf = true; /* our pidfd will ring */
}

/* An owner that became another program is the parent still. */
void serve_tied(const struct team *t) {
  struct pollfd mail = {t->mail_fd[1], 0, 0};
  proc_tie(t->owner);
  if (poll(&mail, 1, 0) > 0 && (mail.revents & POLLHUP)) _exit(0);
}

COLD static void wait_owner(struct server *s) {
  FAIL_POINT(W_WAIT);
  doorbell(s);
  ring_wait_room(&s->ring, WAIT_MS);
  serve_tied(s->team);
  if (s->deaf) _exit(STATUS_BOARD);
}

/* What the user wrote may have forked and returned twice: the copy has nothing to say and nothing
   to take. What it writes before it is found out is its own (part). */
static void stay_one(const struct server *s) {
  if (UNLIKELY(!*s->ours)) _exit(0);
}

/* ---- replies ------------------------------------------------------------------------------- */

static int into_spill(struct server *s, size_t used, size_t want) {
  struct spill *p = &s->spill;
  size_t room;
  int err;
  while ((err = spill_grow(p, s->out.begin, used, want, &room)) == SPILL_FULL) wait_owner(s);
  if (!p->under_way) return err;
  s->out.begin = spill_message(p);
  s->out.at = s->out.begin + used;
  if (!err) s->out.end = s->out.begin + room;
  return err;
}

static int more(plua_out *out, size_t need) {
  struct server *s = (struct server *)out;
  size_t used = (size_t)(out->at - out->begin), want = used + need, room;
  stay_one(s);
  if (want < used) return PLUA_ETOOBIG;
  if (s->spill.under_way || want > ring_max(&s->ring) / 2) return into_spill(s, used, want);
  unsigned char *p;
  while (!(p = ring_reserve(&s->ring, want, &room))) wait_owner(s);
  memmove(p, out->begin, used);
  *out = (plua_out){p, p + used, p + room, more};
  return 0;
}

static inline void reply_into(struct server *s, unsigned char *p, size_t room) {
  s->spill.under_way = false;
  s->out.begin = s->out.at = p;
  s->out.end = p + room;
}

NOINLINE static void reply_begin_late(struct server *s) {
  size_t room;
  unsigned char *p;
  while (!(p = ring_reserve(&s->ring, ROOM_MIN, &room))) wait_owner(s);
  reply_into(s, p, room);
}

static inline void reply_begin(struct server *s) {
  size_t room;
  unsigned char *p = ring_reserve_known(&s->ring, ROOM_MIN, &room);
  if (LIKELY(p != NULL))
    reply_into(s, p, room);
  else
    reply_begin_late(s);
}

COLD static void publish_spilled(struct server *s, unsigned kind, uint16_t tag, size_t len) {
  struct frame_spill f = spill_end(&s->spill, len);
  reply_begin(s);
  memcpy(s->out.at, &f, sizeof f);
  ring_publish(&s->ring, kind | FRAME_SPILLED, tag, sizeof f);
}

static inline void reply_publish(struct server *s, unsigned kind, uint16_t tag) {
  size_t len = (size_t)(s->out.at - s->out.begin);
  FAIL_POINT(W_PUBLISH_BEFORE);
  if (LIKELY(!s->spill.under_way))
    ring_publish(&s->ring, kind, tag, (uint32_t)len);
  else
    publish_spilled(s, kind, tag, len);
  FAIL_POINT(W_PUBLISH_AFTER);
}

static char last_words[CAPTURE_TAIL]; /* of the item that has failed */

/* A frame of our own: fixed body of at most ROOM_MIN bytes. */
static void say(struct server *s, enum frame kind, uint16_t tag, const void *body, size_t len) {
  reply_begin(s);
  if (len) memcpy(s->out.at, body, len);
  s->out.at += len;
  reply_publish(s, kind, tag);
}

COLD static void say_tail(struct server *s, int code, int64_t elapsed, uint16_t k, size_t printed) {
  struct frame_tail tail = {elapsed, code, (uint32_t)printed};
  bool room = code > 0 && plua_room(&s->out, printed + sizeof tail) == 0;
  if (room && plua_write(&s->out, last_words, printed) == 0 &&
      plua_write(&s->out, &tail, sizeof tail) == 0) {
    reply_publish(s, FRAME_ERROR, k);
  } else {
    if (code > 0) tail.code = -ENOMEM;
    tail.printed = 0;
    say(s, FRAME_CODE, k, &tail, sizeof tail);
  }
  doorbell(s); /* the owner may want to stop at the first error */
}

/* ---- output that is kept ------------------------------------------------------------------- */

/* Makes the files and sends them to the owner, who has them when this process is dead. Where that
   cannot be, output is live. An owner who is gone (his end is closed before this process is
   killed) is nothing to tell anybody. */
static void keep_output(struct server *s, int which) {
  int err = capture_open(&s->capture, which, s->slice->shown);
  if (!err) err = capture_send(&s->capture, s->team->mail_fd[1], s->me);
  if (!err) return;
  if (err != -EPIPE && err != -ECONNRESET)
    fprintf(stderr, "plua: worker %u: output cannot be kept: %s\n", s->me + 1, plua_strerror(err));
  capture_close(&s->capture);
}

/* Before a batch: from its second try on, an item's last words are of interest. */
static void keep_words(struct server *s, unsigned attempt) {
  bool again = (s->team->flags & PLUA_LAST_WORDS) && attempt > 1;
  if (s->team->flags & PLUA_GROUPED) return;
  if (again == s->keeps) return;
  if (again && !s->capture.shown) keep_output(s, CAPTURE_ERR);
  if (again)
    capture_on(&s->capture);
  else
    capture_off(&s->capture);
  s->keeps = again;
}

/* After an item: shows what it printed; of one that failed, how much of it is in last_words. */
static size_t show_output(struct server *s, int failed) {
  if (__fpending(stdout)) fflush(stdout);
  if (__fpending(stderr)) fflush(stderr);
  size_t n = failed ? capture_tail(&s->capture, last_words, sizeof last_words) : 0;
  capture_show(&s->capture);
  return n;
}

/* What an item printed is part of what it did: it has failed if that is lost. */
COLD static int output_lost(int answer) {
  lines_lost = 0;
  return answer ? answer : PLUA_EOUTPUT;
}

/* ---- running ------------------------------------------------------------------------------- */

/* Items of a batch lie one behind the other: 8 bytes of length, the payload, aligned to 8
   (store.c). Answers where the next one lies. */
static uint64_t payload_at(const struct team *t, uint64_t off, const void **data, size_t *len) {
  uint64_t n;
  memcpy(&n, t->payloads + off, 8);
  *data = t->payloads + off + 8;
  *len = (size_t)n;
  return off + 8 + ((n + 7) & ~UINT64_C(7));
}

/* A batch that is taken as soon as the one before is done begins when that ended. */
static void clock_go_on(struct stopwatch *w, int64_t now) {
  *w = (struct stopwatch){.first = now, .since = now, .left = 1, .step = 1};
}

NOINLINE static void clock_read(struct stopwatch *w) {
  int64_t now = now_ns();
  if (!w->step) w->first = now;
  bool brief = w->step && now - w->since < (int64_t)w->step * CLOCK_FINE_NS;
  w->step = brief ? CLOCK_EVERY : 1;
  w->left = w->step - 1;
  w->since = now;
}

/* Bytes of memory that this process maps and that are there; 0: not to be known. */
static uint64_t resident(void) {
  char text[128];
  unsigned long total, pages;
  int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t n = read_all(fd, text, sizeof text - 1);
  close(fd);
  if (n <= 0) return 0;
  text[n] = '\0';
  return sscanf(text, "%lu %lu", &total, &pages) == 2 ? (uint64_t)pages * 4096 : 0;
}

/* An owner that is large itself makes workers that are: they may grow a little all the same. */
static void rss_begin(struct server *s) {
  uint64_t most = s->team->max_rss, now = most ? resident() : 0;
  s->rss_limit = now > most - most / 10 ? now + most / 10 : most;
}

COLD static void rss_check(struct server *s) {
  int64_t now = now_ns();
  if (now - s->rss_ns < RSS_EVERY_NS) return;
  s->rss_ns = now;
  if (resident() > s->rss_limit) s->worn = 1;
}

static bool spent(const struct server *s) {
  return s->deaf || s->worn;
}

/* Whether nobody has woken the owner yet. Where that takes long, each item asks. */
static bool sleeps(const struct server *s) {
  return atomic_load_explicit(&s->view.board->asleep, memory_order_relaxed);
}

/* Claims the next item of the batch. False: there is none, or this worker must not take it. */
static inline bool item_next(struct server *s) {
  struct work *w = &s->work;
  int k = spent(s) ? -1 : word_claim(&s->slice->word, &s->mine);
  if (k < 0) return false;
  if (UNLIKELY(ring_wanted(&s->ring)) && sleeps(s)) doorbell(s);
  if (w->watch.left-- == 0) clock_read(&w->watch);
  w->count++;
  FAIL_POINT(W_BEGIN);
  w->k = (uint16_t)k;
  w->item.index = w->first + w->k;
  if (w->cursor) w->cursor = payload_at(s->team, w->cursor, &w->item.data, &w->item.len);
  reply_begin(s);
  s->running = s->mine & ~(WORD_NEXT - 1);
  return true;
}

/* The answer of an item that is not simply its reply. */
COLD static void answer_publish(struct server *s, int answer) {
  size_t printed = s->keeps ? show_output(s, answer) : 0;
  if (lines_lost) answer = output_lost(answer);
  if (answer == 0)
    reply_publish(s, FRAME_VALUE, s->work.k);
  else
    say_tail(s, answer, now_ns() - s->work.watch.since, s->work.k, printed);
}

/* Makes the batch in a slot the worker's work. */
static void work_begin(struct server *s, uint32_t i, uint32_t seq) {
  const struct slot *slot = &s->view.slot[i];
  struct work *w = &s->work;
  unsigned n = slot->n;
  w->begun = true;
  w->first = slot->first;
  w->cursor = slot->off;
  w->count = 0;
  w->item = (plua_item){.job = slot->job, .attempt = slot->attempt, .call_len = slot->call_len};
  uint64_t call = slot->call_off;
  if (slot->check != slot_check(slot, seq) || n == 0) _exit(STATUS_BOARD); /* scribbled */
  if (call) w->item.call = s->team->payloads + call;
  word_begin(&s->slice->word, seq, n);
  s->mine = word_make(seq, 0, n);
  FAIL_POINT(W_TAKE);
  const uint32_t begun[2] = {i, seq};
  say(s, FRAME_BEGIN, 0, begun, sizeof begun);
  if (UNLIKELY(s->keeps || slot->attempt > 1)) keep_words(s, slot->attempt);
}

/* The batch has no more items. Where this worker must not run another one, the owner sees from the
   word how far it came. */
static void work_end(struct server *s) {
  struct work *w = &s->work;
  w->begun = false;
  if (spent(s)) return;
  int64_t now = now_ns(), took = w->count ? now - w->watch.first : 0;
  FAIL_POINT(W_END);
  say(s, FRAME_END, w->count, &took, sizeof took);
  clock_go_on(&w->watch, now);
}

static int take_batch(struct server *s, uint32_t *seq) {
  struct board_view *v = &s->view;
  int i = board_take(v, s->from, s->me + 1, seq);
  if (v->ring) {
    v->ring = false;
    doorbell(s);
  }
  if (i >= 0) FAIL_POINT(W_DEQ);
  return i;
}

static bool must_leave(const struct server *s) {
  return spent(s) || atomic_load_explicit(&s->slice->retire, memory_order_relaxed);
}

/* The batch has no more items: takes the next one that has, and claims its first. False: there is
   none now, or this worker must not take it. */
NOINLINE static bool work_next(struct server *s) {
  uint32_t seq;
  int i;
  do {
    if (s->work.begun) work_end(s);
    if (must_leave(s) || (i = take_batch(s, &seq)) < 0) return false;
    work_begin(s, (uint32_t)i, seq);
  } while (!item_next(s));
  return true;
}

/* The item that ran has its answer: publishes it and goes on to the next one. */
static int item_done(plua_feed *feed, int answer) {
  struct server *s = (struct server *)((char *)feed - offsetof(struct server, work.feed));
  s->running = 0;
  stay_one(s);
  if (LIKELY(!(answer | lines_lost | s->keeps)))
    reply_publish(s, FRAME_VALUE, s->work.k);
  else
    answer_publish(s, answer);
  if (UNLIKELY(--s->left == 0)) s->worn = 1;
  if (UNLIKELY(s->rss_limit) && s->work.watch.left == 0) rss_check(s);
  return item_next(s) || work_next(s);
}

/* Runs items until there are no more to take. */
static void run_items(struct server *s) {
  const plua_tasks *t = &s->team->tasks;
  plua_feed *feed = &s->work.feed;
  if (t->run_many)
    t->run_many(t->ctx, feed);
  else
    while (item_done(feed, t->run(t->ctx, feed->item, feed->out))) continue;
}

/* Nothing to take: sleeps. False: this worker shall leave. */
static bool idle(struct server *s, uint32_t bell) {
  struct board *b = s->view.board;
  if (atomic_load(&b->closed) || atomic_load(&s->slice->retire) || s->deaf) return false;
  atomic_store(&s->slice->sleeping,
               DROWSY); /* before the bell: an owner that missed it sees this */
  doorbell(s);
  FAIL_POINT(W_IDLE);
  board_sleep(&s->view, bell, IDLE_MS, &s->slice->sleeping);
  if (atomic_load(&b->bell) == bell) serve_tied(s->team);
  FAIL_POINT(W_WOKEN);
  return true;
}

static void take_all(struct server *s) {
  bool go = true;
  while (go) {
    uint32_t bell = atomic_load(&s->view.board->bell);
    s->work.watch = (struct stopwatch){0};
    if (work_next(s))
      run_items(s);
    else
      go = !must_leave(s) && idle(s, bell) && !must_leave(s);
  }
}

/* The owner may find that it cannot watch this process, and discard it: nothing may have run then.
 */
static void wait_for_go(const struct server *s) {
  uint32_t seen = GO_NOT;
  atomic_compare_exchange_strong(&s->slice->go, &seen, GO_AWAITED);
  while (atomic_load(&s->slice->go) != GO_NOW) futex_wait(&s->slice->go, GO_AWAITED, WAIT_MS);
}

/* ---- birth and end ------------------------------------------------------------------------- */

_Noreturn static void body(struct server *s) {
  const plua_tasks *t = &s->team->tasks;
  FAIL_POINT(W_ENTER);
  reply_begin(s);
  int refused = t->enter ? t->enter(t->ctx, &s->self, &s->out) : 0;
  stay_one(s);
  proc_tie(s->team->owner);
  if (s->keeps) show_output(s, 0);
  if (refused) {
    reply_publish(s, FRAME_BOOT, 0);
    doorbell(s);
    flush_files();
    _exit(STATUS_GUARD);
  }
  FAIL_POINT(W_READY);
  say(s, FRAME_UP, 0, NULL, 0);
  take_all(s);
  FAIL_POINT(W_LEAVE);
  if (t->leave) atomic_store(&s->slice->go, GO_LEAVES);
  reply_begin(s);
  int failed = t->leave ? t->leave(t->ctx, &s->out) : 0;
  stay_one(s);
  if (failed) reply_publish(s, FRAME_LEFT, 0);
  doorbell(s);
  FAIL_POINT(W_BYE);
  flush_files();
  if (s->keeps) show_output(s, 0);
  _exit(0);
}

/* exit() in an item must not run the exit handlers of the program that was forked. */
static void leave_at_once(int status, void *unused) {
  (void)unused;
  flush_files();
  _exit(status);
}

static struct server server; /* this process is a worker and nothing else */

/* The owner names the item that shall end; a signal that comes late finds another one running. */
static void interrupted(int sig) {
  (void)sig;
  struct server *s = &server;
  if (s->running && s->running == atomic_load(&s->slice->interrupt))
    s->team->tasks.interrupt(s->team->tasks.ctx);
}

/* In a process that an item forked: it may go on as its original does, up to the reply. */
static void part(void) {
  struct server *s = &server;
  if (!s->slice) return;
  team_part(s->slice, s->team->stride);
  if (s->spill.touched) team_part(s->spill.base, s->spill.touched);
}

static void listen(const struct team *t) {
  struct sigaction a = {.sa_handler = interrupted}; /* no SA_RESTART: blocked calls return */
  if (t->tasks.interrupt) sigaction(SIGURG, &a, NULL);
}

static char *page_of_ours(void) {
  char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED || madvise(page, 4096, MADV_WIPEONFORK) < 0) _exit(STATUS_GUARD);
  return page;
}

/* When memory runs out the kernel takes a worker, whose item is tried again, not the owner. */
static void offer_to_oom(void) {
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  if (write_all(fd, "500", 3) < 0) { /* the owner was offered more already: stays so */
  }
  close(fd);
}

/* The memory's is closed once the worker's slice is mapped. */
static void close_ours(const struct team *t) {
  if (!(t->flags & PLUA_KEEP_FDS)) {
    proc_close_others((int[]){t->bell_fd, t->memory_fd, t->mail_fd[1]}, 3);
    return;
  }
  close(t->epoll_fd);
  close(t->mail_fd[0]);
}

static char *ours; /* the page that tells this process from those that it forks */

_Noreturn void serve_ready(struct team *t, void (*then)(void *arg), void *arg) {
  const plua_tasks *tasks = &t->tasks;
  proc_tie(t->owner);
  proc_child(&t->signals);
  if (team_enter(t) < 0) _exit(STATUS_BOARD);
  close_ours(t);
  on_exit(leave_at_once, NULL);
  __fpurge(stdin);
  offer_to_oom();
  server.running = 0; /* of a worker that this one is a child of */
  listen(t);
  ours = page_of_ours();
  if (pthread_atfork(NULL, NULL, part)) _exit(STATUS_GUARD);
  if (tasks->ready) tasks->ready(tasks->ctx);
  if (tasks->guard)
    tasks->guard(tasks->ctx, then, arg);
  else
    then(arg);
  flush_files();
  _exit(STATUS_GUARD);
}

static void *mapped(void *area) {
  if (!area) _exit(STATUS_BOARD);
  return area;
}

_Noreturn void serve(struct team *t, unsigned w) {
  struct server *s = &server;
  FAIL_POINT(W_BOOT);
  proc_tie(t->owner);
  struct slice *slice = mapped(team_enter_slice(t, w));
  unsigned char *spill = t->spill_early ? mapped(team_enter_spill(t, w)) : NULL;
  close(t->memory_fd);
  *ours = 1;
  *s = (struct server){.team = t, .slice = slice, .view = t->view, .me = w, .ours = ours};
  s->out.more = more;
  s->work.feed = (plua_feed){&s->work.item, &s->out, item_done};
  s->left = t->max_tasks ? t->max_tasks : UINT64_MAX;
  s->self = (plua_self){(int)w + 1, getpid(), t->owner, &s->worn};
  ring_attach(&s->ring, &slice->ring, (unsigned char *)slice + t->ring_off, t->ring_size);
  s->spill = (struct spill){
    .team = t, .me = w, .released = &slice->spill_done, .base = spill, .size = t->spill_len};
  rss_begin(s);
  wait_for_go(s);
  FAIL_POINT(W_GO);
  if (t->flags & PLUA_GROUPED) {
    keep_output(s, CAPTURE_OUT | CAPTURE_ERR);
    capture_on(&s->capture);
    s->keeps = true;
  }
  body(s);
}
