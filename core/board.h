/* board.h: the shared board on which the owner posts batches and workers take them.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_BOARD_H
#define PLUA_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base.h"

/* ---- a slot: one batch. The owner fills it, then releases 'state'. -------------------------- */

/* state = seq:32 | who:24 | tag:8. Claim and owner are one word. */
enum slot_tag { SLOT_FREE = 0, SLOT_READY = 1, SLOT_TAKEN = 2 };

struct slot {
  _Atomic uint64_t state;
  uint64_t job, first;
  uint64_t off;                /* payload of the first item, 0: none */
  uint64_t call_off, call_len; /* payload of the job */
  uint16_t n, attempt;
  uint32_t pad;
  uint64_t check; /* over the fields above and seq: a scribbled slot is not run */
};

static inline uint64_t slot_state(uint32_t seq, uint32_t who, enum slot_tag tag) {
  return (uint64_t)seq << 32 | (uint64_t)who << 8 | tag;
}

/* ---- a worker's word: which item of which batch. Both sides change it, by compare-and-swap. -- */

/* seq:32 | next:16 | end:16, offsets inside the batch. */
#define WORD_HOLD UINT64_MAX          /* the owner stopped the worker from claiming */
#define WORD_NEXT (UINT64_C(1) << 16) /* one more item */
static inline uint64_t word_make(uint32_t seq, unsigned next, unsigned end) {
  return (uint64_t)seq << 32 | (uint64_t)next << 16 | end;
}
static inline uint32_t word_seq(uint64_t w) {
  return (uint32_t)(w >> 32);
}
static inline unsigned word_next(uint64_t w) {
  return (uint16_t)(w >> 16);
}
static inline unsigned word_end(uint64_t w) {
  return (uint16_t)w;
}

/* ---- the board ------------------------------------------------------------------------------ */

enum { LANES = 2, LANE_URGENT = 0, LANE_NORMAL = 1 };

struct lane {
  _Atomic uint64_t front; /* owner: nothing before it is ready any more */
  _Atomic uint64_t tail;  /* owner: entries posted so far */
};

enum { SPARES = 2, SPARE_RUN = 64 }; /* workers that a spare makes at one request */

/* What the owner asks of one spare, and what that says. The checks are over the rest and a number
   that only the team knows. */
struct spare_line {
  _Atomic uint32_t ask; /* owner: the request's number, a futex; then what it stands for */
  _Atomic uint32_t first, count, step;
  _Atomic uint64_t check;
  char pad[40];
  /* Kernel: the process of each, before it runs. Spare: the check, a futex. */
  _Atomic int32_t pid[SPARE_RUN];
  _Atomic uint32_t said[SPARE_RUN];
};

struct board {
  _Atomic uint32_t bell;     /* futex of idle workers; changes when the owner posts */
  _Atomic uint32_t sleepers; /* workers about to sleep on it: a hint, corrected at deaths */
  _Atomic uint32_t closed;   /* 1: whoever finds nothing to take leaves */
  _Atomic uint32_t asleep;   /* owner sleeps and wants the doorbell; the first ringer clears it */
  struct lane lane[LANES];
  _Atomic uint64_t low;     /* who takes this position of the normal lane, or one behind, rings;
                               the first one sets it to UINT64_MAX */
  _Atomic uint32_t unwoken; /* sleepers that were called: each is woken by one who was before */
  char pad[4];
  struct spare_line spare[SPARES];
  /* then: uint64_t order[LANES][queue] (seq:32 | slot:32), struct slot slot[slots] */
};

/* Addresses inside a board, from counts that the caller knows privately. */
struct board_view {
  struct board *board;
  _Atomic uint64_t *order[LANES];
  struct slot *slot;
  uint32_t slots, queue;
  uint64_t front[LANES], tail[LANES]; /* owner: what the board should say */
  bool ring;  /* worker: board_take met 'low': ring the doorbell, then clear this */
  bool woken; /* worker: has taken nothing since it slept */
};

size_t board_size(uint32_t slots);
/* Lays an empty board over zeroed memory of board_size(slots) bytes. */
void board_make(struct board_view *v, void *memory, uint32_t slots);

/* Owner: whether a lane takes one more entry; it does unless no worker took anything for long. */
bool board_room(struct board_view *v, unsigned lane);
/* Owner: makes slot i ready under 'seq' in a lane. The slot's other fields are filled already. */
void board_post(struct board_view *v, uint32_t i, uint32_t seq, unsigned lane);
/* Owner: whether the board still says what the owner wrote there. */
bool board_sane(const struct board_view *v, bool closed);
/* Owner: writes it again, with empty lanes; ready slots must be listed again by board_list. */
void board_heal(struct board_view *v, bool closed, uint32_t sleepers);
void board_list(struct board_view *v, uint32_t i, uint32_t seq, unsigned lane);
/* Owner: wakes up to n sleeping workers, if any sleep. */
void board_wake(struct board_view *v, int n);
/* Owner: the same for n batches: a few are woken now, and each that finds something to take wakes
   one more. So where batches are brief the others need not wake at all. */
void board_call(struct board_view *v, uint32_t n);
/* Owner: takes a batch back that no worker has taken. False: one has. */
bool board_withdraw(struct board_view *v, uint32_t i, uint32_t seq);
/* Owner: moves the fronts past entries that are not ready any more. */
void board_advance(struct board_view *v);

/* Worker: takes the first ready batch in dispatch order, the urgent lane first. from[] is the
   worker's own memory of how far nothing is ready. Its index, or -1; *seq is its number. */
int board_take(struct board_view *v, uint64_t from[LANES], uint32_t me, uint32_t *seq);
/* What a worker says of its sleep in a word of its own, so that its death leaves no doubt: the
   count of sleepers may be too high, which costs a system call, but never too low. */
enum { AWAKE, DROWSY, ASLEEP, WAKING }; /* ASLEEP: surely counted */
/* Worker: sleeps until the owner posts or 'timeout_ms' pass; 'bell' was read before looking. */
void board_sleep(struct board_view *v, uint32_t bell, int timeout_ms, _Atomic uint32_t *sleeping);
/* Whether the slot's fields are those that were posted under seq. */
uint64_t slot_check(const struct slot *s, uint32_t seq);

/* Worker: the word begins a batch of n. Waits while the owner holds it. */
void word_begin(_Atomic uint64_t *word, uint32_t seq, unsigned n);
/* Worker: claims the next item: its offset, or -1 when the batch has none left. *mine is the
   worker's memory of its word. Waits while the owner holds it. A full barrier when it claims. */
int word_claim_late(_Atomic uint64_t *word, uint64_t *mine, uint64_t now);
static inline int word_claim(_Atomic uint64_t *word, uint64_t *mine) {
  uint64_t w = *mine;
  bool left = word_next(w) < word_end(w);
  if (UNLIKELY(!left || !atomic_compare_exchange_strong(word, &w, w + WORD_NEXT)))
    return word_claim_late(word, mine, w);
  *mine = w + WORD_NEXT;
  return (int)word_next(w);
}
/* Owner: takes back all beyond 'keep' items (never what was begun): the new end, or -1 when the
   word shows another batch or nothing was left to take. *end is the old end. */
int word_shrink(_Atomic uint64_t *word, uint32_t seq, unsigned keep, unsigned *end);

#endif
