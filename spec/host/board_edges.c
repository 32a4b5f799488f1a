/* board_edges.c: the board where one entry, lane or position more or less decides, and where
   somebody has written over it. One process, one thread. Knows board.h only.
   SPDX-License-Identifier: MIT */
#include "board.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 2, QUEUE = 4, ME = 7 };

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "board_edges.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static struct board_view v;
static uint64_t from[LANES];
static uint32_t seq;
static void *memory;

/* An empty board; behind it is room for one slot more, which is none. */
static void fresh(void) {
  size_t size = board_size(SLOTS) + sizeof(struct slot);
  free(memory);
  memory = aligned_alloc(64, size);
  CHECK(memory != NULL && size % 64 == 0);
  memset(memory, 0, size);
  board_make(&v, memory, SLOTS);
  CHECK(v.queue == QUEUE && (char *)(v.slot + SLOTS + 1) == (char *)memory + size);
  from[0] = from[1] = seq = 0;
}

static void post(uint32_t slot, unsigned lane) {
  CHECK(board_room(&v, lane));
  board_post(&v, slot, ++seq, lane);
}

/* Entries that nobody will take, and that nobody has looked at. */
static void post_stale(unsigned n) {
  for (unsigned i = 0; i < n; i++) {
    board_post(&v, 1, ++seq, LANE_NORMAL);
    CHECK(board_withdraw(&v, 1, seq) && !board_withdraw(&v, 1, seq));
  }
}

static int take(void) {
  uint32_t got;
  int i = board_take(&v, from, ME, &got);
  if (i >= 0) CHECK(atomic_load(&v.slot[i].state) == slot_state(got, ME, SLOT_TAKEN));
  return i;
}

static void has_room(void) {
  fresh();
  post_stale(QUEUE);
  v.woken = true; /* what lies behind the last lane is none */
  CHECK(v.front[LANE_NORMAL] == 0);
  CHECK(board_room(&v, LANE_NORMAL) && v.front[LANE_NORMAL] == QUEUE);
  CHECK(v.woken && v.front[LANE_URGENT] == 0 && v.tail[LANE_URGENT] == 0);
  fresh();
  post(0, LANE_NORMAL);
  post_stale(QUEUE - 1);
  CHECK(!board_room(&v, LANE_NORMAL) && board_room(&v, LANE_URGENT));
  CHECK(take() == 0 && take() == -1);
  CHECK(board_room(&v, LANE_NORMAL) && v.front[LANE_NORMAL] == QUEUE);
  CHECK(atomic_load(&v.board->lane[LANE_NORMAL].front) == QUEUE);
}

static void takes_in_order(void) {
  fresh();
  post(0, LANE_NORMAL);
  post(1, LANE_URGENT);
  CHECK(take() == 1 && take() == 0 && take() == -1);
  fresh();
  post(0, LANE_NORMAL);
  from[LANE_NORMAL] = 1; /* has looked so far */
  CHECK(take() == -1 && from[LANE_NORMAL] == 1);
  post(1, LANE_NORMAL);
  CHECK(take() == 1 && from[LANE_NORMAL] == 2);
}

/* Entries that were overwritten since are not looked at: their places hold later ones. */
static void looks_at_the_last(void) {
  fresh();
  post_stale(6);
  board_post(&v, 0, ++seq, LANE_NORMAL);
  post_stale(1);
  board_post(&v, 1, ++seq, LANE_NORMAL);
  CHECK(take() == 0 && take() == 1 && take() == -1);
  fresh();
  post(0, LANE_NORMAL);
  from[LANE_NORMAL] = 5; /* somebody wrote over the tail meanwhile */
  CHECK(take() == 0);
}

static void rings_when_low(void) {
  fresh();
  atomic_store(&v.board->low, 1);
  post(0, LANE_NORMAL);
  CHECK(take() == 0 && !v.ring);
  post(0, LANE_URGENT);
  post(1, LANE_URGENT);
  CHECK(take() == 0 && take() == 1 && !v.ring);
  post(0, LANE_NORMAL);
  CHECK(take() == 0 && v.ring && atomic_load(&v.board->low) == UINT64_MAX);
}

/* Each word of the board that the owner can tell, written over; it mends them, and no others. */
static void heals(void) {
  struct board *b;
  for (unsigned thing = 0; thing < 6; thing++) {
    fresh();
    b = v.board;
    post(0, LANE_NORMAL);
    post(1, LANE_URGENT);
    CHECK(board_sane(&v, false) && !board_sane(&v, true));
    if (thing == 0) atomic_store(&b->closed, 1);
    if (thing == 1) atomic_store(&b->lane[0].tail, 9);
    if (thing == 2) atomic_store(&b->lane[1].tail, 9);
    if (thing == 3) atomic_store(&b->lane[0].front, 1);
    if (thing == 4) atomic_store(&b->lane[1].front, 1);
    CHECK(board_sane(&v, false) == (thing == 5));
    atomic_store(&b->spare[0].ask, 5);
    atomic_store(&b->unwoken, 3);
    atomic_store(&b->low, 0);
    board_heal(&v, false, 4);
    CHECK(board_sane(&v, false) && atomic_load(&b->spare[0].ask) == 5);
    CHECK(atomic_load(&b->low) == UINT64_MAX);
    CHECK(atomic_load(&b->sleepers) == 4 && atomic_load(&b->unwoken) == 0);
    CHECK(v.tail[0] == 1 && v.tail[1] == 1 && take() == -1);
    board_list(&v, 0, 1, LANE_NORMAL);
    CHECK(take() == 0);
  }
}

static void distrusts(void) {
  fresh();
  post(0, LANE_NORMAL);
  atomic_store(&v.slot[SLOTS].state, slot_state(1, 0, SLOT_READY));
  atomic_store(&v.order[LANE_NORMAL][0], UINT64_C(1) << 32 | SLOTS);
  CHECK(take() == -1);
  board_advance(&v);
  CHECK(v.front[LANE_NORMAL] == 1);
  fresh();
  post(0, LANE_NORMAL);
  atomic_store(&v.board->lane[LANE_NORMAL].front, 2); /* behind the tail */
  CHECK(take() == 0);
}

/* So many sleepers are woken by the owner, the others by those. */
static void calls(void) {
  static const struct {
    uint32_t sleepers, before, n, unwoken;
  } cases[] = {{0, 0, 20, 0}, {20, 0, 8, 0}, {20, 3, 8, 3}, {20, 0, 9, 1},
               {20, 3, 9, 4}, {5, 0, 12, 4}, {5, 0, 13, 5}, {5, 2, 12, 5}};
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    fresh();
    atomic_store(&v.board->sleepers, cases[i].sleepers);
    atomic_store(&v.board->unwoken, cases[i].before);
    board_call(&v, cases[i].n);
    CHECK(atomic_load(&v.board->bell) == 1);
    CHECK(atomic_load(&v.board->unwoken) == cases[i].unwoken);
  }
  fresh();
  _Atomic uint32_t sleeping = AWAKE;
  board_wake(&v, 1);
  board_sleep(&v, 0, 1000, &sleeping); /* it has rung since */
  CHECK(v.woken && sleeping == AWAKE && atomic_load(&v.board->sleepers) == 0);
  atomic_store(&v.board->unwoken, 2);
  post(0, LANE_NORMAL);
  post(1, LANE_NORMAL);
  CHECK(take() == 0 && !v.woken && atomic_load(&v.board->unwoken) == 1);
  CHECK(take() == 1 && atomic_load(&v.board->unwoken) == 1); /* once each sleep */
}

static void claims(void) {
  _Atomic uint64_t word;
  uint64_t mine;
  unsigned end = 0;
  atomic_init(&word, 0);
  word_begin(&word, 3, 4);
  mine = word_make(3, 0, 4);
  CHECK(word_claim(&word, &mine) == 0 && word_claim(&word, &mine) == 1);
  CHECK(word_shrink(&word, 4, 0, &end) == -1); /* another batch */
  CHECK(word_shrink(&word, 3, 4, &end) == -1 && word_shrink(&word, 3, 5, &end) == -1);
  CHECK(word_shrink(&word, 3, 3, &end) == 3 && end == 4);
  CHECK(word_claim(&word, &mine) == 2 && mine == word_make(3, 3, 3));
  CHECK(word_shrink(&word, 3, 0, &end) == -1); /* all has begun */
  CHECK(word_claim(&word, &mine) == -1 && mine == word_make(3, 3, 3));
  word_begin(&word, 4, 4);
  mine = word_make(4, 0, 4);
  CHECK(word_claim(&word, &mine) == 0);
  CHECK(word_shrink(&word, 4, 0, &end) == 1 && end == 4);
  CHECK(word_claim(&word, &mine) == -1);
  atomic_store(&word, WORD_HOLD);
  CHECK(word_shrink(&word, UINT32_MAX, 0, &end) == -1);
}

static void checks(void) {
  struct slot s, other;
  memset(&s, 0, sizeof s);
  uint64_t sum = slot_check(&s, 1);
  CHECK(sum == slot_check(&s, 1) && sum != slot_check(&s, 2));
  for (unsigned thing = 0; thing < 7; thing++) {
    other = s;
    if (thing == 0) other.job++;
    if (thing == 1) other.first++;
    if (thing == 2) other.off++;
    if (thing == 3) other.call_off++;
    if (thing == 4) other.call_len++;
    if (thing == 5) other.n++;
    if (thing == 6) other.attempt++;
    CHECK(slot_check(&other, 1) != sum);
  }
}

int main(void) {
  has_room();
  takes_in_order();
  looks_at_the_last();
  rings_when_low();
  heals();
  distrusts();
  calls();
  claims();
  checks();
  free(memory);
  puts("ok");
  return 0;
}
