/* ring.h: frames through shared memory, one writer, one reader. SPDX-License-Identifier: MIT */
#ifndef PLUA_RING_H
#define PLUA_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base.h"
#include "fail.h"

/* A header is len:28 kind:4, then the tag: a number and its tag make 16 bytes with it. */
enum { RING_HEAD = 6, RING_KINDS = 16, RING_LEN_BITS = 28 };

/* The shared half. Positions count bytes since the ring was made and never wrap. */
struct ring_shared {
  _Atomic uint64_t tail; /* writer: all before it is whole */
  char pad0[56];
  _Atomic uint64_t head; /* reader: all before it may be overwritten */
  _Atomic uint32_t room; /* reader: futex, changes when a waiting writer should look again */
  char pad1[52];
  _Atomic uint64_t mark;    /* reader: the tail at which it wants to be woken; UINT64_MAX: never */
  _Atomic uint32_t waiting; /* writer: 1 while it waits for room */
  char pad2[52];
};

/* One end, private to a process. */
struct ring {
  struct ring_shared *shared;
  unsigned char *data;
  uint64_t size; /* a power of two, at least 64 */
  uint64_t head; /* reader: next frame; writer: the last head it saw */
  uint64_t tail; /* writer: where the next frame is published; reader: the last tail it saw */
  uint64_t at;   /* writer: where the frame being written begins (tail, or past a skipped rest) */
  unsigned char *here; /* writer: the same in 'data' */
  unsigned char *end;  /* writer: up to where it may write from there on */
  uint64_t given;      /* reader: the head that the writer knows */
};

struct plua_reply;

struct ring_frame {
  unsigned kind; /* 0 .. RING_KINDS - 1, the writer's */
  uint16_t tag;  /* the writer's */
  uint32_t len;
  const unsigned char *body; /* in the ring, valid until ring_take */
};

/* Makes the shared half empty. Neither end may be in use. */
void ring_clear(struct ring_shared *shared);
/* Begins at an end of a ring; 'data' holds 'size' bytes. */
void ring_attach(struct ring *r, struct ring_shared *shared, unsigned char *data, uint64_t size);

/* Writer: contiguous room for a body of at least n bytes, *room says how much there is; NULL when
   there is none now, or never (n > ring_max). Writes nothing that the reader can see. */
unsigned char *ring_reserve(struct ring *r, size_t n, size_t *room);
/* The same where the writer knows of the room; else NULL. */
static inline unsigned char *ring_reserve_known(struct ring *r, size_t n, size_t *room) {
  size_t open = (size_t)(r->end - r->here);
  if (UNLIKELY(open < n + RING_HEAD)) return NULL;
  *room = open - RING_HEAD;
  return r->here + RING_HEAD;
}

/* The bytes that a frame takes. */
static inline uint64_t ring_span(uint32_t len) {
  return (RING_HEAD + (uint64_t)len + 7) & ~UINT64_C(7);
}
static inline void ring_header(unsigned char *p, uint32_t word, uint16_t tag) {
  memcpy(p, &word, 4);
  memcpy(p + 4, &tag, 2);
}
/* Writer: publishes the frame whose body was written where ring_reserve said, by one store. */
static inline void ring_publish(struct ring *r, unsigned kind, uint16_t tag, uint32_t len) {
  uint64_t span = ring_span(len);
  ring_header(r->here, len | (uint32_t)kind << RING_LEN_BITS, tag);
  FAIL_POINT(W_PUBLISH_MID);
  r->here += span;
  r->at += span;
  r->tail = r->at;
  atomic_store_explicit(&r->shared->tail, r->at, memory_order_release);
}
/* Writer: sleeps until the reader gave room back or about 'timeout_ms' have passed. */
void ring_wait_room(struct ring *r, int timeout_ms);
/* Writer: whether the reader asked to be woken by now. */
static inline bool ring_wanted(const struct ring *r) {
  return atomic_load_explicit(&r->shared->mark, memory_order_relaxed) <= r->tail;
}
/* The largest body that always fits once the ring is empty. */
static inline size_t ring_max(const struct ring *r) {
  return r->size / 2 - RING_HEAD;
}

/* Reader: 1 and the next frame, 0 when there is none, PLUA_EPROTO when the bytes make no sense:
   then the ring is of no more use, do not ask again. */
int ring_peek(struct ring *r, struct ring_frame *f);
/* Reader: how many frames from 'f' on, which ring_peek has told, lie one behind the other with its
   kind and tags that count up: at least 1, at most 'max', and no more than the writer can spare.
   list[] tells their bodies, *len how long they are in all, *bytes what ring_skip takes. */
unsigned ring_run(const struct ring *r, const struct ring_frame *f, struct plua_reply *list,
                  unsigned max, uint64_t *bytes, size_t *len);
/* Reader: done with that frame. Room is given back in large steps and when the ring runs empty. */
void ring_take(struct ring *r, const struct ring_frame *f);
/* Reader: the same for so many bytes of frames. */
void ring_skip(struct ring *r, uint64_t bytes);
/* Reader: gives back all room now and wakes a writer that waits for it. */
void ring_give(struct ring *r);

#endif
