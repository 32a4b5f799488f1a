/* board_threads.c: the board between an owner and many workers, all threads of one process, so that
   a thread sanitizer sees both sides. The owner posts, withdraws, shrinks, holds and resumes at
   random; the workers take and claim. Each item must be claimed once or come back once. Knows
   board.h only. SPDX-License-Identifier: MIT */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "board.h"
#include "plua.h"

enum { SLOTS = 16, WORKERS = 6, BATCH = 60 };

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "board_threads.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

struct crew {
  unsigned me;
  _Atomic uint64_t word;
  _Atomic uint32_t sleeping;
  struct board_view view;
};

/* What the owner remembers of a slot; workers write 'ended' only. */
struct posted {
  uint32_t seq;
  uint64_t first;
  unsigned n, lane;
  _Atomic uint32_t ended; /* seq of the batch that its worker has ended */
};

static struct board_view view;
static struct crew crew[WORKERS];
static struct posted posted[SLOTS];
static _Atomic unsigned char *claimed; /* of each item */
static unsigned char *back;            /* of each item, owner only */
static uint64_t items, total, withdrawn, shrunk, held;
static _Atomic uint64_t claims;
static unsigned seed;

static unsigned upto(unsigned n) {
  return (unsigned)rand_r(&seed) % n;
}

/* ---- a worker -------------------------------------------------------------------------------- */

static void run_batch(struct crew *c, unsigned i, uint32_t seq, uint64_t *mine) {
  const struct slot *s = &c->view.slot[i];
  uint64_t first = s->first;
  unsigned n = s->n;
  int k, before = -1;
  CHECK(s->check == slot_check(s, seq));
  word_begin(&c->word, seq, n);
  *mine = word_make(seq, 0, n);
  while ((k = word_claim(&c->word, mine)) >= 0) {
    CHECK(k == before + 1 && (unsigned)k < n);
    before = k;
    if (k % 8 == 3) sched_yield(); /* others get between two claims */
    CHECK(atomic_fetch_add(&claimed[first + (unsigned)k], 1) == 0);
    atomic_fetch_add_explicit(&claims, 1, memory_order_relaxed);
  }
  CHECK(word_seq(*mine) == seq && word_next(*mine) == (unsigned)(before + 1));
}

static void *work(void *arg) {
  struct crew *c = arg;
  uint64_t from[LANES] = {0, 0}, mine = 0;
  for (;;) {
    uint32_t bell = atomic_load(&c->view.board->bell), seq;
    int i = board_take(&c->view, from, c->me, &seq);
    c->view.ring = false;
    if (i >= 0) {
      run_batch(c, (unsigned)i, seq, &mine);
      atomic_store(&posted[i].ended, seq);
      continue;
    }
    if (atomic_load(&c->view.board->closed)) return NULL;
    board_sleep(&c->view, bell, 100, &c->sleeping);
  }
}

/* ---- the owner ------------------------------------------------------------------------------- */

static bool is_free(unsigned i) {
  return posted[i].seq == 0;
}

static void post(unsigned i, uint32_t seq) {
  struct posted *p = &posted[i];
  unsigned n = 1 + upto(BATCH);
  if (!is_free(i) || items + n > total) return;
  unsigned lane = upto(8) ? LANE_NORMAL : LANE_URGENT;
  if (!board_room(&view, lane)) return;
  struct slot *s = &view.slot[i];
  p->seq = seq;
  p->first = s->first = items;
  s->n = (uint16_t)n;
  p->n = n;
  p->lane = lane;
  s->job = seq;
  items += n;
  board_post(&view, i, seq, lane);
  if (upto(3) == 0) board_wake(&view, 1 + (int)upto(WORKERS));
}

static void came_back(const struct posted *p, unsigned from, unsigned to) {
  for (unsigned k = from; k < to; k++) {
    CHECK(back[p->first + k] == 0);
    back[p->first + k] = 1;
  }
}

static void withdraw(unsigned i) {
  struct posted *p = &posted[i];
  if (is_free(i) || !board_withdraw(&view, i, p->seq)) return;
  came_back(p, 0, p->n);
  p->seq = 0;
  withdrawn++;
}

static struct crew *taker(unsigned i) {
  uint64_t s = atomic_load(&view.slot[i].state);
  if ((s & 0xff) != SLOT_TAKEN || s >> 32 != posted[i].seq) return NULL;
  return &crew[(s >> 8 & 0xffffff) - 1];
}

static void shrink(unsigned i) {
  struct posted *p = &posted[i];
  struct crew *c = is_free(i) ? NULL : taker(i);
  unsigned end;
  int m = c ? word_shrink(&c->word, p->seq, upto(BATCH), &end) : -1;
  if (m < 0) return;
  CHECK(end == p->n && (unsigned)m < end);
  came_back(p, (unsigned)m, end);
  p->n = (unsigned)m;
  shrunk++;
}

/* A worker that is held claims nothing. */
static void hold(unsigned i) {
  struct crew *c = is_free(i) ? NULL : taker(i);
  if (!c) return;
  uint64_t w = atomic_load(&c->word);
  if (word_seq(w) != posted[i].seq) return;
  if (!atomic_compare_exchange_strong(&c->word, &w, WORD_HOLD)) return;
  unsigned next = word_next(w), end;
  CHECK(word_shrink(&c->word, posted[i].seq, 0, &end) == -1);
  for (unsigned k = 0; k < 20; k++) {
    sched_yield();
    if (next < word_end(w)) CHECK(atomic_load(&claimed[posted[i].first + next]) == 0);
  }
  CHECK(atomic_load(&c->word) == WORD_HOLD);
  atomic_store(&c->word, w);
  held++;
}

static void retire_ended(void) {
  for (unsigned i = 0; i < SLOTS; i++)
    if (!is_free(i) && atomic_load(&posted[i].ended) == posted[i].seq) posted[i].seq = 0;
}

static void own(void) {
  for (uint32_t seq = 1; items + BATCH < total;) {
    unsigned i = upto(SLOTS);
    retire_ended();
    if (is_free(i)) {
      post(i, seq++);
      continue;
    }
    switch (upto(6)) {
    case 0:
      withdraw(i);
      break;
    case 1:
      shrink(i);
      break;
    case 2:
      hold(i);
      break;
    case 3:
      board_advance(&view);
      break;
    default:
      board_wake(&view, WORKERS);
      sched_yield();
    }
  }
}

static void all_claimed(void) {
  uint64_t come_back = 0;
  for (uint64_t i = 0; i < items; i++) {
    CHECK(claimed[i] + back[i] == 1);
    come_back += back[i];
  }
  CHECK(claims + come_back == items);
  printf("ok: %llu items, %llu claimed, %llu batches withdrawn, %llu shrunk, %llu holds\n",
         (unsigned long long)items, (unsigned long long)claims, (unsigned long long)withdrawn,
         (unsigned long long)shrunk, (unsigned long long)held);
  CHECK(withdrawn > 0 && shrunk > 0 && held > 0);
}

/* ---- order ----------------------------------------------------------------------------------- */

/* One worker takes what lies ready in the order of each lane, the urgent lane first. */
static void order(void) {
  struct board_view v;
  void *memory = aligned_alloc(64, (board_size(64) + 63) & ~(size_t)63);
  CHECK(memory != NULL);
  memset(memory, 0, board_size(64));
  board_make(&v, memory, 64);
  for (unsigned round = 0; round < 200; round++) {
    uint64_t from[LANES] = {0, 0};
    unsigned expect[64], n = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
      for (unsigned i = lane; i < 64; i += LANES) {
        board_post(&v, i, round * 64 + i + 1, lane);
        if (upto(3) == 0)
          CHECK(board_withdraw(&v, i, round * 64 + i + 1));
        else
          expect[n++] = i;
      }
    for (unsigned k = 0; k < n; k++) {
      uint32_t seq;
      CHECK(board_take(&v, from, 1, &seq) == (int)expect[k] && seq == round * 64 + expect[k] + 1);
      CHECK(!board_withdraw(&v, expect[k], seq));
    }
    uint32_t seq;
    CHECK(board_take(&v, from, 1, &seq) == -1);
    CHECK(board_room(&v, 0) && board_room(&v, 1));
  }
  free(memory);
  puts("ok: order");
}

/* ---- waking ---------------------------------------------------------------------------------- */

enum { SLEEPERS = 40 };

static struct board_view room;
static _Atomic unsigned met;

/* Sleeps until it finds a batch, which ends when every sleeper has one. */
static void *meet(void *arg) {
  struct board_view v = room;
  uint64_t from[LANES] = {0, 0};
  _Atomic uint32_t sleeping = AWAKE;
  uint32_t bell, seq;
  while (bell = atomic_load(&v.board->bell),
         board_take(&v, from, (uint32_t)((size_t)arg + 1), &seq) < 0)
    board_sleep(&v, bell, 60000, &sleeping);
  atomic_fetch_add(&met, 1);
  while (atomic_load(&met) < SLEEPERS) sched_yield();
  return NULL;
}

/* The owner wakes some of those that it calls, they the others. */
static void call(void) {
  pthread_t thread[SLEEPERS];
  void *memory = aligned_alloc(64, (board_size(64) + 63) & ~(size_t)63);
  CHECK(memory != NULL);
  memset(memory, 0, board_size(64));
  board_make(&room, memory, 64);
  for (size_t i = 0; i < SLEEPERS; i++)
    CHECK(pthread_create(&thread[i], NULL, meet, (void *)i) == 0);
  while (atomic_load(&room.board->sleepers) < SLEEPERS) sched_yield();
  time_t start = time(NULL);
  for (unsigned i = 0; i < SLEEPERS; i++) board_post(&room, i, i + 1, LANE_NORMAL);
  board_call(&room, SLEEPERS);
  for (unsigned i = 0; i < SLEEPERS; i++) pthread_join(thread[i], NULL);
  CHECK(time(NULL) - start < 30); /* nobody slept until it had slept enough */
  CHECK(atomic_load(&room.board->unwoken) == 0);
  free(memory);
  puts("ok: call");
}

/* Argument: how many items. */
int main(int argc, char **argv) {
  pthread_t thread[WORKERS];
  total = argc > 1 ? strtoull(argv[1], NULL, 10) : 2000000;
  seed = getenv("SEED") ? (unsigned)strtoul(getenv("SEED"), NULL, 10) : (unsigned)time(NULL);
  fprintf(stderr, "SEED=%u\n", seed);
  void *memory = aligned_alloc(64, (board_size(SLOTS) + 63) & ~(size_t)63);
  claimed = calloc(total, 1);
  back = calloc(total, 1);
  CHECK(memory && claimed && back);
  memset(memory, 0, board_size(SLOTS));
  board_make(&view, memory, SLOTS);
  for (unsigned w = 0; w < WORKERS; w++) {
    crew[w].me = w + 1;
    crew[w].view = view;
    CHECK(pthread_create(&thread[w], NULL, work, &crew[w]) == 0);
  }
  own();
  atomic_store(&view.board->closed, 1);
  board_wake(&view, WORKERS);
  for (unsigned w = 0; w < WORKERS; w++) pthread_join(thread[w], NULL);
  all_claimed();
  free(memory);
  free((void *)(uintptr_t)claimed);
  free(back);
  order();
  call();
  return 0;
}
