/* store_random.c: payloads of every size put, dropped and freed in random order, and found again by
   item: contents stay until they are freed, those that are said to follow do follow, memory goes
   back and all of it is free at the end. SEED is printed. Knows store.h and places.h only.
   SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "places.h"
#include "store.h"

enum { CHAINS = 5, ITEMS = 3000, LIVE_MAX = 48 };
#define AREA ((uint64_t)4 << 30)
#define OFFSET ((uint64_t)8192) /* the area does not begin where the file does */

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "store_random.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

struct item {
  uint64_t off; /* 0: not there */
  size_t len;
  uint32_t salt;
};

struct chain {
  struct places places;
  uint64_t id, count; /* a new id whenever it was emptied, as a new job has */
  struct item item[ITEMS];
};

static struct store *store;
static unsigned char *base;
static int fd;
static struct chain chain[CHAINS];
static unsigned seed, puts_done, runs_put, drops, follows_seen, longest;
static uint64_t live, peak, ids;

static unsigned upto(unsigned n) {
  return (unsigned)rand_r(&seed) % n;
}

static uint64_t file_bytes(void) {
  struct stat st;
  CHECK(fstat(fd, &st) == 0);
  return (uint64_t)st.st_blocks * 512;
}

/* Small ones mostly, some around a segment's end, a few of several segments. */
static size_t some_size(void) {
  switch (upto(12)) {
  case 0:
    return 0;
  case 1:
    return SEGMENT - 24 + upto(48);
  case 2:
    return upto(4) ? upto(SEGMENT) : 2 * (size_t)SEGMENT - 20 + upto(40);
  case 3:
    return upto(6) ? upto(SEGMENT / 4) : upto(5 * SEGMENT);
  default:
    return upto(700);
  }
}

/* A few bytes of each page and the ends stand for all. */
static size_t next_probe(size_t i, size_t len) {
  return i + 1 < 16 || i + 16 >= len ? i + 1 : i + 509 < len - 16 ? i + 509 : len - 16;
}

static unsigned char byte_at(const struct item *it, size_t i) {
  return (unsigned char)(it->salt * 31 + i * 7 + (i >> 9));
}

static void check(const struct item *it) {
  uint64_t len;
  memcpy(&len, base + it->off, 8);
  CHECK(len == it->len && it->off % 8 == 0 && it->off >= OFFSET);
  CHECK(it->off + 8 + len <= OFFSET + AREA);
  for (size_t i = 0; i < it->len; i = next_probe(i, it->len))
    CHECK(base[it->off + 8 + i] == byte_at(it, i));
}

static void fill(plua_out *out, const struct item *it, size_t from, size_t to) {
  CHECK((size_t)(out->at - out->begin) == from);
  CHECK(plua_room(out, to - from) == 0);
  for (size_t i = from; i < to; i++) out->at[i - from] = byte_at(it, i);
  out->at += to - from;
}

static void write_item(plua_out *out, const struct item *it) {
  size_t step = upto(3) ? it->len : 1 + upto(5000) + it->len / 7;
  for (size_t i = 0; i < it->len; i += step)
    fill(out, it, i, it->len - i < step ? it->len : i + step);
}

static uint64_t behind(const struct item *it) {
  return it->off + 8 + ((it->len + 7) & ~(size_t)7);
}

static void put(struct chain *c) {
  plua_out *out, *second;
  if (c->count == ITEMS) return;
  struct item it = {.len = some_size(), .salt = (uint32_t)rand_r(&seed)};
  if (!c->count) c->id = ++ids;
  CHECK(places_prepare(&c->places) == 0);
  CHECK(store_begin(store, c->id, &out) == 0);
  CHECK(store_begin(store, c->id, &second) == PLUA_EARG);
  write_item(out, &it);
  if (upto(10) == 0) {
    store_drop(store);
    drops++;
    return;
  }
  bool follows;
  unsigned room;
  uint64_t *off = places_next(&c->places, &room);
  CHECK(room == PLACES_CHUNK - c->count % PLACES_CHUNK);
  store_end(store, off, &follows);
  it.off = *off;
  const struct item *before = c->count ? &c->item[c->count - 1] : NULL;
  if (follows) {
    CHECK(before != NULL);
    if (before->off) CHECK(behind(before) == it.off);
    follows_seen++;
  }
  places_added(&c->places, 1, follows);
  c->item[c->count++] = it;
  live += it.len + 8;
  puts_done++;
}

/* Several small ones at once, as many as have room. */
static void put_run(struct chain *c) {
  enum { MOST = 40 };
  unsigned char bytes[MOST * 30], *at = bytes;
  struct item it[MOST];
  size_t len[MOST];
  unsigned n = 1 + upto(MOST), room;
  if (c->count + n > ITEMS) return;
  if (!c->count) c->id = ++ids;
  for (unsigned i = 0; i < n; i++) {
    it[i] = (struct item){.len = len[i] = upto(30), .salt = (uint32_t)rand_r(&seed)};
    for (size_t k = 0; k < it[i].len; k++) *at++ = byte_at(&it[i], k);
  }
  CHECK(places_prepare(&c->places) == 0);
  uint64_t *off = places_next(&c->places, &room);
  bool follows = false;
  unsigned added = store_run(store, c->id, bytes, len, n < room ? n : room, off, &follows);
  CHECK(added <= n && added <= room);
  for (unsigned i = 0; i < added; i++) {
    it[i].off = off[i];
    check(&it[i]);
    live += it[i].len + 8;
    c->item[c->count + i] = it[i];
  }
  places_added(&c->places, added, follows);
  c->count += added;
  puts_done += added;
  runs_put += added > 1;
}

/* Items that places_run calls neighbours must be walked to as a worker does. */
static void check_run(const struct chain *c, uint64_t first, unsigned n) {
  unsigned run = places_run(&c->places, first, n);
  CHECK(run >= 1 && run <= n);
  for (unsigned i = 1; i < run; i++) {
    CHECK(c->item[first + i].off && c->item[first + i - 1].off);
    CHECK(behind(&c->item[first + i - 1]) == c->item[first + i].off);
  }
}

/* Frees items of [i, end), as many as lie one behind the other: how many. */
static unsigned let_go(struct chain *c, uint64_t i, uint64_t end) {
  uint64_t first, last;
  unsigned n = places_take(&c->places, i, end, &first, &last);
  CHECK(n >= 1 && i + n <= c->count && first == c->item[i].off && last == c->item[i + n - 1].off);
  CHECK(i + n <= end && (first || n == 1));
  for (uint64_t k = i + 1; k < i + n; k++) CHECK(behind(&c->item[k - 1]) == c->item[k].off);
  for (uint64_t k = i; k < i + n; k++) {
    CHECK(places_at(&c->places, k) == 0);
    if (!first) continue;
    check(&c->item[k]);
    live -= c->item[k].len + 8;
    c->item[k].off = 0;
  }
  if (n > 1 || (first && upto(2)))
    store_free_run(store, first, last, n);
  else if (first)
    store_free(store, first);
  longest = n > longest ? n : longest;
  return n;
}

static void take(struct chain *c) {
  if (!c->count) return;
  uint64_t i = upto((unsigned)c->count);
  struct item *it = &c->item[i];
  CHECK(places_at(&c->places, i) == it->off);
  CHECK(places_at(&c->places, c->count) == 0);
  if (it->off) check(it);
  uint64_t n = c->count - i;
  if (it->off) {
    unsigned whole = 0; /* as many as are all there: what is posted was never done before */
    while (whole < n && whole < 40 && c->item[i + whole].off) whole++;
    check_run(c, i, whole);
  }
  let_go(c, i, upto(3) ? i + 1 : i + 1 + upto(40));
}

static void empty(struct chain *c) {
  for (uint64_t i = 0; (i = places_skip(&c->places, i)) < c->count;)
    i += let_go(c, i, c->count + upto(3));
  for (uint64_t i = 0; i < c->count; i++) CHECK(c->item[i].off == 0);
  CHECK(places_skip(&c->places, 0) >= c->count);
  places_free(&c->places);
  c->count = 0;
}

/* What is alive, what a segment wastes at its end, and the few that stay warm. */
static void check_memory(void) {
  uint64_t bytes = file_bytes();
  if (bytes > peak) peak = bytes;
  CHECK(bytes <= 40 * (uint64_t)SEGMENT + live * 3 + (uint64_t)LIVE_MAX * 3 * SEGMENT);
}

static void round_of(unsigned events) {
  for (unsigned e = 0; e < events; e++) {
    struct chain *c = &chain[upto(CHAINS)];
    if (live < (uint64_t)LIVE_MAX * SEGMENT / 2 && upto(3))
      upto(2) ? put(c) : put_run(c);
    else
      take(c);
    if (upto(2000) == 0) empty(c);
    if (e % 64 == 0) check_memory();
  }
  for (int i = 0; i < CHAINS; i++) empty(&chain[i]);
  CHECK(live == 0);
  CHECK(file_bytes() <= 36 * (uint64_t)SEGMENT);
}

/* Argument: how many events. */
int main(int argc, char **argv) {
  unsigned events = argc > 1 ? (unsigned)atoi(argv[1]) : 40000;
  seed = getenv("SEED") ? (unsigned)strtoul(getenv("SEED"), NULL, 10) : (unsigned)time(NULL);
  fprintf(stderr, "SEED=%u\n", seed);
  fd = memfd_create("store", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)(OFFSET + AREA)) == 0);
  base = mmap(NULL, OFFSET + AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  CHECK(base != MAP_FAILED);
  CHECK(store_open(&store, base, OFFSET, AREA, fd) == 0);
  for (int i = 0; i < 4; i++) round_of(events / 4);
  CHECK(runs_put > 0 && longest > 1);
  printf(
    "ok: %u payloads, %u runs, %u dropped, %u behind the one before, %u freed at once, at most "
    "%llu kB\n",
    puts_done, runs_put, drops, follows_seen, longest, (unsigned long long)peak >> 10);
  store_close(store);
  munmap(base, OFFSET + AREA);
  close(fd);
  return 0;
}
