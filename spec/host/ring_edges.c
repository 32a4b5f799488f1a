/* ring_edges.c: a ring where one byte more or less decides: what fits to the last byte, what can
   never fit, when room is given back, when the reader is woken, a skip with nothing behind it, and
   where a run ends. Knows ring.h only. SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "plua.h"
#include "ring.h"

enum { RING = 256 };
#define LEN_MAX ((UINT32_C(1) << 28) - 2) /* what a header can tell; one more means a skip */

static struct ring_shared shared;
static _Alignas(8) unsigned char data[RING];
static struct ring w, r;

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "ring_edges.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static void push(uint16_t tag, size_t len) {
  size_t room;
  unsigned char *p = ring_reserve(&w, len, &room);
  CHECK(p != NULL && room >= len);
  memset(p, 'x', len);
  ring_publish(&w, 1, tag, (uint32_t)len);
}

static void pull(uint32_t tag, size_t len) {
  struct ring_frame f;
  CHECK(ring_peek(&r, &f) == 1 && f.kind == 1 && f.tag == tag && f.len == len);
  ring_take(&r, &f);
}

/* An empty ring whose ends stand at 'at', a multiple of 8. */
static void fresh(unsigned at) {
  memset(data, 0xee, sizeof data);
  ring_clear(&shared);
  ring_attach(&w, &shared, data, RING);
  ring_attach(&r, &shared, data, RING);
  for (unsigned i = 0; i < at; i += 8) {
    push(0, 0);
    pull(0, 0);
  }
  ring_give(&r);
}

static void fits(void) {
  size_t room;
  fresh(0);
  CHECK(ring_reserve(&w, RING - RING_HEAD + 1, &room) == NULL);
  unsigned char *p = ring_reserve(&w, RING - RING_HEAD, &room); /* all of it */
  CHECK(p == data + RING_HEAD && room == RING - RING_HEAD);
  push(1, RING - RING_HEAD);
  CHECK(ring_reserve(&w, 0, &room) == NULL);
  pull(1, RING - RING_HEAD);
  fresh(200); /* the rest of 56 bytes to the last one, then what lies before */
  p = ring_reserve(&w, 50, &room);
  CHECK(p == data + 200 + RING_HEAD && room == 50);
  CHECK(ring_reserve_known(&w, 50, &room) == p && room == 50);
  CHECK(ring_reserve_known(&w, 51, &room) == NULL);
  p = ring_reserve(&w, 51, &room);
  CHECK(p == data + RING_HEAD && room == 200 - RING_HEAD);
  p = ring_reserve(&w, 194, &room);
  CHECK(p == data + RING_HEAD && room == 194);
  CHECK(ring_reserve(&w, 195, &room) == NULL);
  push(2, 194);
  CHECK(ring_reserve(&w, 0, &room) == NULL &&
        ring_reserve_known(&w, 0, &room) == NULL); /* full, the skipped rest counted */
  pull(2, 194);
  push(3, 0);
  pull(3, 0);
}

/* What a full ring holds stays as it is. */
static void keeps(void) {
  size_t room;
  fresh(128);
  push(1, 122); /* to the end of the ring */
  push(2, 42);
  CHECK(ring_reserve(&w, 75, &room) == NULL);
  CHECK(ring_reserve(&w, 74, &room) == data + 48 + RING_HEAD && room == 74);
  pull(1, 122);
  pull(2, 42);
}

static void longest(void) {
  size_t room, size = (size_t)1 << 29; /* never touched but for a page or two */
  unsigned char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED);
  ring_clear(&shared);
  ring_attach(&w, &shared, p, size);
  ring_attach(&r, &shared, p, size);
  CHECK(ring_reserve(&w, LEN_MAX + 1, &room) == NULL);
  CHECK(ring_reserve(&w, SIZE_MAX, &room) == NULL);
  CHECK(ring_reserve(&w, LEN_MAX, &room) == p + RING_HEAD);
  ring_publish(&w, 1, 9, LEN_MAX);
  pull(9, LEN_MAX);
  munmap(p, size);
}

/* In steps of an eighth: the writer is told neither of each frame nor too late. */
static void gives(void) {
  fresh(0);
  for (uint16_t i = 0; i < 8; i++) push(i, 0);
  for (unsigned i = 0; i < 8; i++) {
    CHECK(atomic_load(&shared.head) == i * 8 / 32 * 32);
    pull(i, 0);
  }
  CHECK(atomic_load(&shared.head) == 64);
}

/* The reader is woken once all is there that it waits for, not sooner. */
static void wakes(void) {
  fresh(0);
  push(1, 0);
  CHECK(!ring_wanted(&w)); /* nobody waits */
  atomic_store(&shared.mark, 16);
  CHECK(!ring_wanted(&w));
  push(2, 0);
  CHECK(ring_wanted(&w));
  push(3, 0);
  CHECK(ring_wanted(&w));
}

/* Writes a header as a writer does that nobody should trust. */
static void forge(unsigned at, uint32_t word, uint16_t tag) {
  memcpy(data + at, &word, 4);
  memcpy(data + at + 4, &tag, 2);
}

static void distrusts(void) {
  struct ring_frame f;
  const uint32_t skip = (UINT32_C(1) << 28) - 1;
  fresh(200);
  forge(200, skip, 0); /* behind it: nothing */
  atomic_store(&shared.tail, RING);
  CHECK(ring_peek(&r, &f) == 0);
  fresh(200);
  forge(200, skip, 0); /* past the tail */
  atomic_store(&shared.tail, RING - 8);
  CHECK(ring_peek(&r, &f) == PLUA_EPROTO);
  static const uint64_t tails[] = {4, RING + 8, UINT64_MAX - 7};
  for (unsigned i = 0; i < sizeof tails / sizeof *tails; i++) {
    fresh(0);
    atomic_store(&shared.tail, tails[i]);
    CHECK(ring_peek(&r, &f) == PLUA_EPROTO);
  }
  fresh(200);
  forge(200, 50, 0); /* to the last byte, then one more */
  atomic_store(&shared.tail, RING);
  CHECK(ring_peek(&r, &f) == 1 && f.len == 50);
  fresh(200);
  forge(200, 51, 0);
  atomic_store(&shared.tail, RING + 64);
  CHECK(ring_peek(&r, &f) == PLUA_EPROTO);
  fresh(0);
  forge(0, 27, 0); /* inside the ring, past the tail */
  atomic_store(&shared.tail, 32);
  CHECK(ring_peek(&r, &f) == PLUA_EPROTO);
}

/* The length of the run at the front, and what it takes. */
static unsigned run(unsigned max, uint64_t *bytes) {
  struct ring_frame f;
  struct plua_reply list[32];
  CHECK(ring_peek(&r, &f) == 1);
  size_t all, told = 0;
  unsigned n = ring_run(&r, &f, list, max, bytes, &all);
  for (unsigned i = 0; i < n; i++) {
    CHECK((const unsigned char *)list[i].data >= data + RING_HEAD);
    told += list[i].len;
  }
  CHECK(all == told);
  return n;
}

static void runs(void) {
  uint64_t bytes;
  fresh(0);
  for (uint16_t i = 0; i < 10; i++) push(i, 0);
  CHECK(run(32, &bytes) == 8 && bytes == 64); /* a quarter of the ring, to the last byte */
  CHECK(run(3, &bytes) == 3 && bytes == 24);
  CHECK(run(1, &bytes) == 1 && bytes == 8);
  fresh(0);
  push(0, 42);
  push(1, 10); /* 48 + 16 bytes: just a quarter */
  push(2, 0);
  CHECK(run(32, &bytes) == 2 && bytes == 64);
  fresh(0);
  push(0, 42);
  push(1, 11);
  CHECK(run(32, &bytes) == 1 && bytes == 48);
  fresh(0);
  push(0, 242); /* longer than any run */
  CHECK(run(32, &bytes) == 1 && bytes == 248);
  fresh(232); /* ends where the ring does */
  for (uint16_t i = 0; i < 5; i++) push(i, 0);
  CHECK(run(32, &bytes) == 3 && bytes == 24);
  fresh(0);
  push(0, 0); /* ends where the frames do; the next bytes look like one */
  push(1, 0);
  forge(16, UINT32_C(1) << 28, 2);
  CHECK(run(32, &bytes) == 2 && bytes == 16);
  fresh(0);
  push(0, 0); /* a tag that does not count up */
  push(2, 0);
  CHECK(run(32, &bytes) == 1 && bytes == 8);
  fresh(0);
  push(UINT16_MAX, 0); /* nor does one that begins again */
  push(0, 0);
  CHECK(run(32, &bytes) == 1 && bytes == 8);
  fresh(0);
  push(0, 1); /* lengths change on the way, and back */
  push(1, 1);
  push(2, 9);
  push(3, 0);
  push(4, 3); /* of another length and not the next */
  push(6, 4);
  CHECK(run(32, &bytes) == 5 && bytes == 56);
  fresh(0);
  push(0, 0); /* another kind */
  forge(8, UINT32_C(2) << 28, 1);
  atomic_store(&shared.tail, 16);
  CHECK(run(32, &bytes) == 1 && bytes == 8);
  forge(8, UINT32_C(2) << 28 | 1, 1); /* and of another length */
  CHECK(run(32, &bytes) == 1 && bytes == 8);
}

int main(void) {
  fits();
  keeps();
  longest();
  gives();
  wakes();
  distrusts();
  runs();
  puts("ok: edges");
  return 0;
}
