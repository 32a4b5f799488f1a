/* ring.c: one-writer, one-reader ring of frames in shared memory.
   Invariant: head <= tail <= head + size; only the writer moves tail, only the reader head. A frame
   is 6 bytes of header and a body, aligned to 8, never wrapped: a rest too short is skipped.
   The writer's one release-store of tail makes a frame visible, so that a writer killed at any
   instruction leaves whole frames or none. The reader trusts nothing that it reads.
   Knows bytes. Does not know Lua, tasks or processes. SPDX-License-Identifier: MIT */
#include "ring.h"

#include "base.h"
#include "fail.h"

#define LEN_MASK ((UINT32_C(1) << RING_LEN_BITS) - 1)
#define SKIP LEN_MASK   /* no frame here: go on at the start of the ring */
enum { RUN_SHARE = 4 }; /* a run takes this part of the ring at most */

void ring_clear(struct ring_shared *s) {
  atomic_store(&s->tail, 0);
  atomic_store(&s->head, 0);
  atomic_store(&s->mark, UINT64_MAX);
  atomic_store(&s->room, 0);
  atomic_store(&s->waiting, 0);
}

void ring_attach(struct ring *r, struct ring_shared *shared, unsigned char *data, uint64_t size) {
  *r = (struct ring){.shared = shared, .data = data, .size = size};
  r->head = r->given = atomic_load(&shared->head);
  r->tail = r->at = atomic_load(&shared->tail);
  r->here = r->end = data + (r->tail & (size - 1));
}

static unsigned char *stretch(struct ring *r, uint64_t at, uint64_t free, size_t *room) {
  r->at = at;
  r->here = r->data + (at & (r->size - 1));
  r->end = r->here + free;
  *room = free - RING_HEAD;
  return r->here + RING_HEAD;
}

/* Tries with the head that the writer knows. */
static unsigned char *reserve(struct ring *r, uint64_t need, size_t *room) {
  uint64_t at = r->tail & (r->size - 1), free = r->size - (r->tail - r->head);
  uint64_t rest = r->size - at; /* at least 8, both are multiples of 8 */
  uint64_t whole = rest < free ? rest : free;
  if (whole >= need) return stretch(r, r->tail, whole, room);
  if (free < rest || free - rest < need) return NULL;
  ring_header(r->data + at, SKIP, 0);
  return stretch(r, r->tail + rest, free - rest, room);
}

unsigned char *ring_reserve(struct ring *r, size_t n, size_t *room) {
  if (n > LEN_MASK - 1) return NULL;
  uint64_t need = ring_span((uint32_t)n);
  unsigned char *p = reserve(r, need, room);
  if (LIKELY(p != NULL)) return p;
  uint64_t head = atomic_load_explicit(&r->shared->head, memory_order_acquire);
  if (head == r->head) return NULL;
  r->head = head;
  return reserve(r, need, room);
}

void ring_wait_room(struct ring *r, int timeout_ms) {
  uint32_t seen = atomic_load(&r->shared->room);
  atomic_store(&r->shared->waiting, 1);
  if (atomic_load(&r->shared->head) == r->head) futex_wait(&r->shared->room, seen, timeout_ms);
  atomic_store(&r->shared->waiting, 0);
}

int ring_peek(struct ring *r, struct ring_frame *f) {
  for (;;) {
    if (r->head == r->tail) {
      r->tail = atomic_load_explicit(&r->shared->tail, memory_order_acquire);
      if (r->head == r->tail) return 0;
      if (r->tail - r->head > r->size || r->tail % 8) return PLUA_EPROTO;
    }
    uint64_t at = r->head & (r->size - 1), rest = r->size - at;
    uint32_t word;
    memcpy(&word, r->data + at, 4);
    memcpy(&f->tag, r->data + at + 4, 2);
    if ((word & LEN_MASK) == SKIP) {
      if (rest > r->tail - r->head) return PLUA_EPROTO;
      r->head += rest;
      continue;
    }
    f->len = word & LEN_MASK;
    f->kind = word >> RING_LEN_BITS;
    f->body = r->data + at + RING_HEAD;
    uint64_t n = ring_span(f->len);
    return n > rest || n > r->tail - r->head ? PLUA_EPROTO : 1;
  }
}

/* A header as one number, read once, since its bytes may change. */
static uint64_t header_at(const unsigned char *p) {
  uint64_t head;
  memcpy(&head, p, sizeof head);
  return head & ((UINT64_C(1) << 8 * RING_HEAD) - 1);
}

/* Most headers of a run differ from the one before by the tag alone. What does not fit ends the
   run, and is ring_peek's to judge. */
unsigned ring_run(const struct ring *r, const struct ring_frame *f, struct plua_reply *list,
                  unsigned max, uint64_t *bytes, size_t *len) {
  const uint64_t next_tag = UINT64_C(1) << 32;
  uint64_t at = r->head & (r->size - 1), room = r->size - at, limit = r->size / RUN_SHARE;
  if (room > r->tail - r->head) room = r->tail - r->head;
  if (room > limit) room = limit;
  const unsigned char *p = r->data + at, *end = p + room;
  struct plua_reply *to = list, *full = list + max;
  uint64_t head = f->len | (uint64_t)f->kind << RING_LEN_BITS | f->tag * next_tag;
  uint64_t each = f->len, span = ring_span(f->len), all = each;
  *to++ = (struct plua_reply){f->body, f->len};
  for (p += span; p < end && to < full; p += span) { /* p and end are multiples of 8 */
    uint64_t now = header_at(p);
    head += next_tag;
    if (now != head) {
      if ((now ^ head) & ~(uint64_t)LEN_MASK) break;
      head = now;
      each = now & LEN_MASK;
      span = ring_span((uint32_t)each);
    }
    if (span > (size_t)(end - p)) break;
    *to++ = (struct plua_reply){p + RING_HEAD, each};
    all += each;
  }
  *bytes = (uint64_t)(p - (r->data + at));
  *len = all;
  return (unsigned)(to - list);
}

void ring_take(struct ring *r, const struct ring_frame *f) {
  ring_skip(r, ring_span(f->len));
}

void ring_skip(struct ring *r, uint64_t bytes) {
  r->head += bytes;
  if (r->head - r->given >= r->size / 8) ring_give(r);
}

/* The writer says 'waiting', then reads head; the reader writes head, then reads 'waiting': with a
   full barrier between, at least one of them sees the other. */
void ring_give(struct ring *r) {
  if (r->given == r->head) return;
  r->given = r->head;
  atomic_store_explicit(&r->shared->head, r->head, memory_order_release);
  atomic_thread_fence(memory_order_seq_cst);
  if (!atomic_load_explicit(&r->shared->waiting, memory_order_relaxed)) return;
  atomic_fetch_add(&r->shared->room, 1);
  futex_wake(&r->shared->room);
}
