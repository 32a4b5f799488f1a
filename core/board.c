/* board.c: posting, taking, claiming and taking back, by compare-and-swap on shared words.
   Invariant: a slot goes READY -> TAKEN (by one worker) or READY -> FREE (by the owner), never
   both; an item is claimed by the worker or taken back by the owner, never both. No lock exists:
   whatever dies, the others go on. Positions in a lane never wrap; an entry whose slot shows
   another seq, or is not ready, is stale and stays so, since no seq is used twice while anyone
   remembers it. Knows shared memory. Does not know what a batch means, nor processes.
   SPDX-License-Identifier: MIT */
#include "board.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

enum { CALLED_NOW = 8 }; /* sleepers that the owner wakes itself */

static uint32_t queue_for(uint32_t slots) {
  uint32_t q = 4;
  while (q < 2 * slots) q *= 2;
  return q;
}

size_t board_size(uint32_t slots) {
  return sizeof(struct board) + sizeof(uint64_t) * LANES * queue_for(slots) +
         sizeof(struct slot) * slots;
}

void board_make(struct board_view *v, void *memory, uint32_t slots) {
  _Static_assert(sizeof(struct slot) == 64, "one slot, one cache line");
  _Static_assert(sizeof(struct board) % 64 == 0, "the header keeps slots aligned");
  *v = (struct board_view){.board = memory, .slots = slots, .queue = queue_for(slots)};
  v->order[0] = (_Atomic uint64_t *)(v->board + 1);
  v->order[1] = v->order[0] + v->queue;
  v->slot = (struct slot *)(v->order[1] + v->queue);
  atomic_store(&v->board->low, UINT64_MAX);
}

uint64_t slot_check(const struct slot *s, uint32_t seq) {
  uint64_t h = seq;
  const uint64_t part[] = {s->job,      s->first,    s->off,
                           s->call_off, s->call_len, (uint64_t)s->n << 16 | s->attempt};
  for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
    h = (h ^ part[i]) * UINT64_C(0x9E3779B97F4A7C15); /* 2^64 / golden ratio: Knuth's hash */
    h ^= h >> 32;
  }
  return h;
}

bool board_room(struct board_view *v, unsigned lane) {
  if (v->tail[lane] - v->front[lane] < v->queue) return true;
  board_advance(v);
  return v->tail[lane] - v->front[lane] < v->queue;
}

void board_list(struct board_view *v, uint32_t i, uint32_t seq, unsigned lane) {
  uint64_t tail = v->tail[lane]++;
  atomic_store_explicit(&v->order[lane][tail & (v->queue - 1)], (uint64_t)seq << 32 | i,
                        memory_order_relaxed);
  atomic_store_explicit(&v->board->lane[lane].tail, tail + 1, memory_order_release);
}

void board_post(struct board_view *v, uint32_t i, uint32_t seq, unsigned lane) {
  struct slot *s = &v->slot[i];
  s->check = slot_check(s, seq);
  atomic_store_explicit(&s->state, slot_state(seq, 0, SLOT_READY), memory_order_release);
  board_list(v, i, seq, lane);
}

bool board_sane(const struct board_view *v, bool closed) {
  const struct board *b = v->board;
  bool same = atomic_load(&b->closed) == closed;
  for (unsigned lane = 0; lane < LANES; lane++)
    same = same && atomic_load(&b->lane[lane].tail) == v->tail[lane] &&
           atomic_load(&b->lane[lane].front) == v->front[lane];
  return same;
}

void board_heal(struct board_view *v, bool closed, uint32_t sleepers) {
  struct board *b = v->board;
  for (unsigned lane = 0; lane < LANES; lane++) {
    v->front[lane] = v->tail[lane];
    atomic_store(&b->lane[lane].front, v->front[lane]);
    atomic_store(&b->lane[lane].tail, v->tail[lane]);
  }
  atomic_store(&b->closed, closed);
  atomic_store(&b->sleepers, sleepers);
  atomic_store(&b->unwoken, 0);
  atomic_store(&b->low, UINT64_MAX);
}

static void wake(struct board *b, int n) {
  syscall(SYS_futex, &b->bell, FUTEX_WAKE, n, NULL, NULL, 0);
}

void board_wake(struct board_view *v, int n) {
  atomic_fetch_add(&v->board->bell, 1);
  if (atomic_load(&v->board->sleepers) > 0) wake(v->board, n);
}

void board_call(struct board_view *v, uint32_t n) {
  struct board *b = v->board;
  uint32_t now = n < CALLED_NOW ? n : CALLED_NOW, later = n - now;
  atomic_fetch_add(&b->bell, 1);
  uint32_t sleepers = atomic_load(&b->sleepers);
  if (sleepers == 0) return;
  if (later) later += atomic_load(&b->unwoken);
  if (later) atomic_store(&b->unwoken, later < sleepers ? later : sleepers);
  wake(b, (int)now);
}

/* Worker: it slept and has found something to take, and there may be more. */
static void pass_on(struct board_view *v) {
  struct board *b = v->board;
  v->woken = false;
  uint32_t left = atomic_load_explicit(&b->unwoken, memory_order_relaxed);
  while (left) {
    if (!atomic_compare_exchange_weak(&b->unwoken, &left, left - 1)) continue;
    wake(b, 1);
    return;
  }
}

bool board_withdraw(struct board_view *v, uint32_t i, uint32_t seq) {
  uint64_t ready = slot_state(seq, 0, SLOT_READY);
  return atomic_compare_exchange_strong(&v->slot[i].state, &ready, slot_state(seq, 0, SLOT_FREE));
}

static bool entry_ready(const struct board_view *v, uint64_t entry, uint32_t *slot, uint32_t *seq) {
  *slot = (uint32_t)entry;
  *seq = (uint32_t)(entry >> 32);
  return *slot < v->slots && atomic_load_explicit(&v->slot[*slot].state, memory_order_acquire) ==
                               slot_state(*seq, 0, SLOT_READY);
}

void board_advance(struct board_view *v) {
  for (unsigned lane = 0; lane < LANES; lane++) {
    uint64_t front = v->front[lane];
    uint32_t slot, seq;
    while (front < v->tail[lane] &&
           !entry_ready(v, atomic_load(&v->order[lane][front & (v->queue - 1)]), &slot, &seq))
      front++;
    if (front == v->front[lane]) continue;
    v->front[lane] = front;
    atomic_store_explicit(&v->board->lane[lane].front, front, memory_order_release);
  }
}

/* Tells the owner that its stock runs low. */
static void note_low(struct board_view *v, unsigned lane, uint64_t position) {
  uint64_t low = atomic_load_explicit(&v->board->low, memory_order_relaxed);
  if (lane != LANE_NORMAL || position < low) return;
  if (atomic_compare_exchange_strong(&v->board->low, &low, UINT64_MAX)) v->ring = true;
}

static int lane_take(struct board_view *v, unsigned lane, uint64_t *from, uint32_t me,
                     uint32_t *seq) {
  struct lane *l = &v->board->lane[lane];
  uint64_t tail = atomic_load_explicit(&l->tail, memory_order_acquire);
  uint64_t front = atomic_load_explicit(&l->front, memory_order_relaxed);
  if (*from < front && front <= tail) *from = front;
  if (tail - *from > v->queue) /* only after somebody scribbled on the board */
    *from = tail > v->queue ? tail - v->queue : 0;
  for (uint64_t p = *from; p < tail; p++) {
    uint64_t entry = atomic_load_explicit(&v->order[lane][p & (v->queue - 1)],
                                          memory_order_relaxed);
    uint32_t i;
    bool ready = entry_ready(v, entry, &i, seq);
    uint64_t state = slot_state(*seq, 0, SLOT_READY);
    bool mine = ready && atomic_compare_exchange_strong(&v->slot[i].state, &state,
                                                        slot_state(*seq, me, SLOT_TAKEN));
    *from = p + 1;
    if (!mine) continue;
    note_low(v, lane, p);
    if (UNLIKELY(v->woken)) pass_on(v);
    return (int)i;
  }
  return -1;
}

int board_take(struct board_view *v, uint64_t from[LANES], uint32_t me, uint32_t *seq) {
  for (unsigned lane = 0; lane < LANES; lane++) {
    int i = lane_take(v, lane, &from[lane], me, seq);
    if (i >= 0) return i;
  }
  return -1;
}

void board_sleep(struct board_view *v, uint32_t bell, int timeout_ms, _Atomic uint32_t *sleeping) {
  atomic_fetch_add(&v->board->sleepers, 1);
  atomic_store(sleeping, ASLEEP);
  if (atomic_load(&v->board->bell) == bell) futex_wait(&v->board->bell, bell, timeout_ms);
  atomic_store(sleeping, WAKING);
  atomic_fetch_sub(&v->board->sleepers, 1);
  atomic_store(sleeping, AWAKE);
  v->woken = true;
}

/* A hold lasts for microseconds, or until the owner kills this process. */
COLD static void hold_wait(void) {
  struct timespec t = {0, 50000};
  nanosleep(&t, NULL);
}

void word_begin(_Atomic uint64_t *word, uint32_t seq, unsigned n) {
  uint64_t old = atomic_load(word);
  do {
    while (old == WORD_HOLD) {
      hold_wait();
      old = atomic_load(word);
    }
  } while (!atomic_compare_exchange_weak(word, &old, word_make(seq, 0, n)));
}

COLD int word_claim_late(_Atomic uint64_t *word, uint64_t *mine, uint64_t now) {
  uint64_t w = now;
  for (;;) {
    while (w == WORD_HOLD) {
      hold_wait();
      w = atomic_load(word);
    }
    if (word_next(w) >= word_end(w)) {
      /* Nobody but the owner changes it now, and only to hold; a barrier as a claim would be. */
      atomic_thread_fence(memory_order_seq_cst);
      w = atomic_load(word);
      if (w == WORD_HOLD) continue;
      *mine = w;
      return -1;
    }
    if (atomic_compare_exchange_strong(word, &w, w + WORD_NEXT)) {
      *mine = w + WORD_NEXT;
      return (int)word_next(w);
    }
  }
}

int word_shrink(_Atomic uint64_t *word, uint32_t seq, unsigned keep, unsigned *end) {
  uint64_t w = atomic_load(word);
  for (;;) {
    if (w == WORD_HOLD || word_seq(w) != seq) return -1;
    unsigned next = word_next(w), m = keep > next ? keep : next;
    *end = word_end(w);
    if (m >= *end) return -1;
    if (atomic_compare_exchange_strong(word, &w, word_make(seq, next, m))) return (int)m;
  }
}
