/* places_edges.c: places of items where a chunk of them ends: runs go on behind it, and it goes
   once all of its items are done, not before it is full. Knows places.h only.
   SPDX-License-Identifier: MIT */
#include "places.h"

#include <stdio.h>
#include <stdlib.h>

enum { LEN = 16, CHUNK = PLACES_CHUNK };

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "places_edges.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static struct places p;

static uint64_t place(uint64_t index) {
  return (index + 1) * LEN;
}

/* Adds n items, all in one chunk. */
static void add(unsigned n, bool follows) {
  unsigned room;
  CHECK(places_prepare(&p) == 0);
  uint64_t *off = places_next(&p, &room);
  CHECK(room == CHUNK - p.count % CHUNK && n <= room);
  for (unsigned i = 0; i < n; i++) off[i] = place(p.count + i);
  places_added(&p, n, follows);
}

/* Takes items of [from, end): n of them go. */
static void take(uint64_t from, uint64_t end, unsigned n) {
  uint64_t first, last;
  CHECK(places_take(&p, from, end, &first, &last) == n);
  CHECK(first == place(from) && last == place(from + n - 1));
  for (uint64_t i = from; i < from + n; i++) CHECK(places_at(&p, i) == 0);
  CHECK(places_take(&p, from, end, &first, &last) == 1 && first == 0 && last == 0);
}

static void runs(void) {
  add(0, false); /* none: nothing changes */
  add(4, false);
  add(CHUNK - 4, true);
  add(3, true);
  add(5, false);
  for (uint64_t i = 0; i < p.count; i++) CHECK(places_at(&p, i) == place(i));
  CHECK(places_at(&p, p.count) == 0);
  CHECK(places_run(&p, 0, 1) == 1 && places_run(&p, 0, 9) == 9);
  CHECK(places_run(&p, 0, CHUNK) == CHUNK && places_run(&p, 0, CHUNK + 1) == CHUNK + 1);
  CHECK(places_run(&p, 2, 2 * CHUNK) == CHUNK + 1); /* what follows is apart */
  CHECK(places_run(&p, CHUNK + 3, 9) == 5);         /* as many as there are */
}

static void goes(void) {
  CHECK(places_skip(&p, 0) == 0);
  take(1, 4, 3);
  take(0, 9, 1); /* the next is done */
  take(4, 2 * CHUNK, CHUNK - 4);
  CHECK(p.chunk[0] == NULL && places_skip(&p, 0) == CHUNK);
  take(CHUNK, 2 * CHUNK, 3);
  take(CHUNK + 3, 2 * CHUNK, 5); /* all, and there is room for more */
  CHECK(p.chunk[1] != NULL && places_skip(&p, CHUNK) >= p.count);
  add(CHUNK - 8, true);
  take(CHUNK + 8, 2 * CHUNK, CHUNK - 8);
  CHECK(p.chunk[1] == NULL && p.count == 2 * CHUNK);
}

int main(void) {
  runs();
  goes();
  places_free(&p);
  CHECK(p.count == 0 && p.chunk == NULL);
  puts("ok");
  return 0;
}
