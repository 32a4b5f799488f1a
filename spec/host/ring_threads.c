/* ring_threads.c: a ring between two threads, with frames of random sizes in rings of every size;
   and a ring whose shared half says anything at all. A thread sanitizer sees both ends. Knows
   ring.h only. SPDX-License-Identifier: MIT */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "plua.h"
#include "ring.h"

static unsigned seed0;

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "ring_threads.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

struct pipe {
  struct ring_shared *shared;
  unsigned char *data;
  uint64_t size, frames, seed;
};

static uint64_t next_random(uint64_t *s) {
  *s = *s * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return *s >> 33;
}

/* Both ends draw the same lengths, kinds and bytes. */
static size_t length(const struct pipe *p, uint64_t *s, size_t max) {
  uint64_t r = next_random(s) % 8, size = next_random(s);
  (void)p;
  return r == 0 ? max : r == 1 ? 0 : r < 6 ? size % 40 % (max + 1) : size % (max + 1);
}

/* Runs of nine of a kind; in every third the tags do not count up. */
static unsigned kind_of(uint64_t i) {
  return (unsigned)(i / 9 % RING_KINDS);
}
static uint16_t tag_of(uint64_t i) {
  return (uint32_t)(i / 9 % 3 ? i : i * 7);
}

static void *writer(void *arg) {
  struct pipe *p = arg;
  struct ring r;
  uint64_t s = p->seed;
  ring_attach(&r, p->shared, p->data, p->size);
  for (uint64_t i = 0; i < p->frames; i++) {
    size_t n = length(p, &s, ring_max(&r)), room = 0;
    unsigned char *at;
    while (!(at = ring_reserve(&r, n, &room))) ring_wait_room(&r, 100);
    CHECK(room >= n);
    CHECK(at >= p->data && at + room <= p->data + p->size);
    memset(at, (int)(i & 0xff), n);
    if (next_random(&s) % 5 == 0) { /* more room than at first: what was written is moved */
      size_t more = n + next_random(&s) % (ring_max(&r) - n + 1);
      while (!(at = ring_reserve(&r, more, &room))) ring_wait_room(&r, 100);
      memset(at, (int)(i & 0xff), more);
    }
    ring_publish(&r, kind_of(i), tag_of(i), (uint32_t)n);
  }
  return NULL;
}

static void check_frame(const struct pipe *p, const struct ring_frame *f, uint64_t i, size_t n) {
  CHECK(f->len == n && f->kind == kind_of(i) && f->tag == tag_of(i));
  CHECK(f->body >= p->data && f->body + n <= p->data + p->size);
  for (size_t k = 0; k < n; k++) CHECK(f->body[k] == (i & 0xff));
}

/* Takes a run that begins with f, the i-th frame. How many frames it was. */
static unsigned take_run(const struct pipe *p, struct ring *r, const struct ring_frame *f,
                         uint64_t i, uint64_t *s, bool whole) {
  struct plua_reply list[12];
  uint64_t bytes, taken = 0;
  size_t all, told = 0;
  unsigned max = whole ? 12 : 1 + (unsigned)(i % 3), n = ring_run(r, f, list, max, &bytes, &all);
  CHECK(n >= 1 && n <= max && (tag_of(i + 1) == tag_of(i) + 1 || n == 1));
  for (unsigned k = 0; k < n; k++) {
    size_t len = length(p, s, ring_max(r));
    struct ring_frame one = {f->kind, (uint16_t)(f->tag + k), (uint32_t)list[k].len, list[k].data};
    check_frame(p, &one, i + k, len);
    if (next_random(s) % 5 == 0) next_random(s);
    taken += ring_span(one.len);
    told += one.len;
  }
  CHECK(bytes == taken && all == told);
  ring_skip(r, bytes);
  return n;
}

static void reader(struct pipe *p) {
  struct ring r;
  uint64_t s = p->seed;
  unsigned longest = 0;
  ring_attach(&r, p->shared, p->data, p->size);
  for (uint64_t i = 0; i < p->frames;) {
    struct ring_frame f;
    int got = ring_peek(&r, &f);
    CHECK(got >= 0);
    if (!got) {
      ring_give(&r);
      continue;
    }
    if (i % 5 < 3) {
      unsigned n = take_run(p, &r, &f, i, &s, i % 5 < 2);
      longest = n > longest ? n : longest;
      i += n;
      continue;
    }
    size_t n = length(p, &s, ring_max(&r));
    check_frame(p, &f, i++, n);
    if (next_random(&s) % 5 == 0) next_random(&s);
    ring_take(&r, &f);
  }
  ring_give(&r);
  struct ring_frame f;
  CHECK(ring_peek(&r, &f) == 0);
  CHECK(longest > 1 || p->frames < 10000); /* a few may be read as fast as they come */
}

/* Bytes around the data tell who wrote outside. */
static struct pipe pipe_make(uint64_t size, uint64_t frames) {
  struct pipe p = {.size = size, .frames = frames, .seed = seed0 + size};
  p.shared = aligned_alloc(64, sizeof *p.shared);
  p.data = malloc(size);
  CHECK(p.shared && p.data);
  ring_clear(p.shared);
  return p;
}

static void pipe_free(struct pipe *p) {
  free(p->shared);
  free(p->data);
}

static uint64_t run(uint64_t size, uint64_t frames) {
  struct pipe p = pipe_make(size, frames);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, writer, &p) == 0);
  reader(&p);
  pthread_join(thread, NULL);
  pipe_free(&p);
  return frames;
}

/* ---- garbage --------------------------------------------------------------------------------- */

static void scribble(struct pipe *p, uint64_t *s) {
  int how = (int)(next_random(s) % 4);
  for (uint64_t i = 0; i < p->size; i += 4) {
    uint32_t word = (uint32_t)(next_random(s) << 8 ^ next_random(s));
    if (how == 1) word &= 0xf00000ff; /* lengths that may fit */
    if (how == 2) word |= 0x0fffffff; /* nothing but skips */
    if (how == 3) word = i % 8 ? 0 : (uint32_t)next_random(s) % 64;
    memcpy(p->data + i, &word, 4);
  }
  uint64_t tails[] = {next_random(s) % (2 * p->size), next_random(s) % p->size & ~UINT64_C(7),
                      UINT64_MAX - next_random(s) % 64, p->size, next_random(s) << 31};
  atomic_store(&p->shared->tail, tails[next_random(s) % 5]);
}

/* Whatever the shared half says, frames lie inside the ring, and reading ends. */
static void garbage(uint64_t rounds) {
  uint64_t s = seed0, frames = 0, faults = 0;
  for (uint64_t i = 0; i < rounds; i++) {
    struct pipe p = pipe_make(UINT64_C(256) << next_random(&s) % 6, 0);
    struct ring r;
    struct ring_frame f;
    ring_attach(&r, p.shared, p.data, p.size);
    scribble(&p, &s);
    int got;
    uint64_t told = 0;
    while ((got = ring_peek(&r, &f)) == 1) {
      CHECK(f.body >= p.data + RING_HEAD && f.len <= p.size);
      CHECK(f.body + f.len <= p.data + p.size && f.kind < RING_KINDS);
      struct plua_reply list[8];
      uint64_t bytes;
      size_t all;
      unsigned n = ring_run(&r, &f, list, 8, &bytes, &all);
      CHECK(n >= 1 && n <= 8 && bytes >= n * RING_HEAD);
      for (unsigned k = 0; k < n; k++) {
        const unsigned char *body = list[k].data;
        CHECK(body >= p.data + RING_HEAD && body + list[k].len <= p.data + p.size);
      }
      ring_skip(&r, bytes);
      told += n;
      CHECK(told <= p.size / RING_HEAD);
    }
    frames += told;
    faults += got == PLUA_EPROTO;
    pipe_free(&p);
  }
  CHECK(frames > 0 && faults > 0);
  printf("ok: garbage: %llu rings, %llu frames, %llu faults\n", (unsigned long long)rounds,
         (unsigned long long)frames, (unsigned long long)faults);
}

/* Argument: frames for each size of ring. */
int main(int argc, char **argv) {
  uint64_t frames = argc > 1 ? strtoull(argv[1], NULL, 10) : 100000, total = 0;
  seed0 = getenv("SEED") ? (unsigned)strtoul(getenv("SEED"), NULL, 10) : (unsigned)time(NULL);
  fprintf(stderr, "SEED=%u\n", seed0);
  for (uint64_t size = 256; size <= 1 << 18; size *= 2)
    total += run(size, frames * 256 / (size / 4 + 192));
  garbage(20000);
  printf("ok: %llu frames\n", (unsigned long long)total);
  return 0;
}
