/* arena_random.c: blocks of every size taken, resized and given back in random order: contents
   stay, blocks never overlap, and what is mapped stays in proportion to what is used, down to the
   little that is kept at the end. SEED is printed. Knows worker_arena.h only.
   SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base.h"
#include "worker_arena.h"

enum { BLOCKS = 400, EVENTS = 4000 };
#define MIB ((size_t)1 << 20)
#define LIVE_MAX (200 * MIB)
#define KEPT_MAX (34 * MIB) /* of free memory */

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "arena_random.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

struct block {
  unsigned char *at; /* NULL: none */
  size_t len;
  unsigned salt;
};

static struct arena *arena;
static struct block block[BLOCKS];
static unsigned seed;
static size_t live;

static unsigned upto(unsigned n) {
  return (unsigned)rand_r(&seed) % n;
}

static size_t some_size(void) {
  switch (upto(8)) {
  case 0:
    return 1 + upto(300);
  case 1:
    return 1 + upto(140000);
  case 2:
    return 1 + upto(16 << 20);
  case 3:
    return ((size_t)128 << 10) << upto(6); /* as tables grow */
  default:
    return 1 + upto(1 << 20);
  }
}

static unsigned char byte_at(const struct block *b, size_t i) {
  return (unsigned char)(b->salt * 31 + i * 7 + (i >> 9));
}

/* A few bytes of each page and the ends stand for all. */
static size_t next_probe(size_t i, size_t len) {
  return i + 1 < 16 || i + 16 >= len ? i + 1 : i + 1021 < len - 16 ? i + 1021 : len - 16;
}

static void fill(const struct block *b) {
  for (size_t i = 0; i < b->len; i = next_probe(i, b->len)) b->at[i] = byte_at(b, i);
}

static void check(const struct block *b, const unsigned char *at, size_t len) {
  CHECK((uintptr_t)at % 16 == 0);
  for (size_t i = 0; i < len; i = next_probe(i, b->len)) CHECK(at[i] == byte_at(b, i));
}

static void take(struct block *b) {
  *b = (struct block){.len = some_size(), .salt = (unsigned)rand_r(&seed)};
  b->at = arena_take(arena, b->len);
  CHECK(b->at && arena_size(arena, b->at) >= b->len);
  live += b->len;
  fill(b);
}

static void give(struct block *b) {
  check(b, b->at, b->len);
  CHECK(arena_give(arena, b->at));
  live -= b->len;
  b->at = NULL;
}

/* Doubled as a table is, halved, or any other size. */
static void resize(struct block *b) {
  size_t n = upto(3) ? 2 * b->len : upto(2) ? b->len / 2 + 1 : some_size();
  if (n > 64 * MIB) return;
  unsigned char *at = arena_resize(arena, b->at, n);
  CHECK(at && arena_size(arena, at) >= n);
  check(b, at, n < b->len ? n : b->len);
  live += n - b->len;
  b->at = at;
  b->len = n;
  fill(b);
}

static void round_of(void) {
  for (unsigned e = 0; e < EVENTS; e++) {
    struct block *b = &block[upto(BLOCKS)];
    if (!b->at && live < LIVE_MAX)
      take(b);
    else if (b->at && live < LIVE_MAX && upto(2))
      resize(b);
    else if (b->at)
      give(b);
    CHECK(arena_used(arena) <= arena_mapped(arena));
  }
  for (unsigned i = 0; i < BLOCKS; i++)
    if (block[i].at) give(&block[i]);
  CHECK(live == 0 && arena_used(arena) == 0);
}

int main(int argc, char **argv) {
  seed = argc > 2 ? (unsigned)atoi(argv[2]) : (unsigned)time(NULL);
  printf("SEED %u\n", seed);
  fflush(stdout);
  unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 4;
  arena = arena_open();
  CHECK(arena != NULL);
  unsigned char other;
  CHECK(arena_size(arena, &other) == 0 && !arena_give(arena, &other));
  for (unsigned i = 0; i < rounds; i++) round_of();
  size_t before = arena_mapped(arena);
  void *large = arena_take(arena, 100 * MIB);
  CHECK(large && arena_mapped(arena) >= 100 * MIB && arena_give(arena, large));
  CHECK(arena_mapped(arena) <= before + KEPT_MAX);
  printf("ok: %u rounds\n", rounds);
  return 0;
}
