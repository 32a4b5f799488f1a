/* places.c: offsets of payloads by item, as many as are under way.
   Invariant: an entry is non-zero exactly while its item has a payload in the store. Offsets are
   multiples of 8, so the lowest bit tells whether an item lies right behind the one before it.
   Knows numbers. SPDX-License-Identifier: MIT */
#include "places.h"

#include <errno.h>

#include "base.h"

struct places_chunk {
  unsigned live;
  uint64_t off[PLACES_CHUNK];
};

int places_prepare(struct places *p) {
  size_t c = p->count / PLACES_CHUNK;
  if (c < p->chunks) return 0;
  size_t pointer = sizeof(void *);
  int err = grow((void **)&p->chunk, &p->cap, c + 1, pointer);
  if (err < 0) return err;
  struct places_chunk *new = calloc(1, sizeof *new);
  if (!new) return -ENOMEM;
  p->chunk[p->chunks++] = new;
  return 0;
}

void places_add(struct places *p, uint64_t off, bool follows) {
  struct places_chunk *k = p->chunk[p->count / PLACES_CHUNK];
  if (!k) IMPOSSIBLE("a chunk went before it was full");
  k->off[p->count % PLACES_CHUNK] = off | (follows ? 1 : 0);
  k->live++;
  p->count++;
}

static uint64_t *entry(const struct places *p, uint64_t index) {
  struct places_chunk *k = index < p->count ? p->chunk[index / PLACES_CHUNK] : NULL;
  return k ? &k->off[index % PLACES_CHUNK] : NULL;
}

uint64_t places_at(const struct places *p, uint64_t index) {
  const uint64_t *e = entry(p, index);
  return e ? *e & ~UINT64_C(1) : 0;
}

unsigned places_run(const struct places *p, uint64_t first, unsigned n) {
  for (unsigned i = 1; i < n; i++) {
    const uint64_t *e = entry(p, first + i);
    if (!e || !(*e & 1)) return i;
  }
  return n;
}

/* A chunk stays until it is full, so that places_add finds it. */
uint64_t places_take(struct places *p, uint64_t index) {
  uint64_t *e = entry(p, index);
  if (!e || !*e) return 0;
  uint64_t off = *e & ~UINT64_C(1);
  size_t c = index / PLACES_CHUNK;
  *e = 0;
  if (--p->chunk[c]->live == 0 && (c + 1) * (uint64_t)PLACES_CHUNK <= p->count) {
    free(p->chunk[c]);
    p->chunk[c] = NULL;
  }
  return off;
}

uint64_t places_any(struct places *p) {
  for (; p->chunks; p->chunks--) {
    struct places_chunk *k = p->chunk[p->chunks - 1];
    for (int i = 0; k && k->live && i < PLACES_CHUNK; i++) {
      if (!k->off[i]) continue;
      uint64_t off = k->off[i] & ~UINT64_C(1);
      k->off[i] = 0;
      k->live--;
      return off;
    }
    free(k);
  }
  return 0;
}

void places_free(struct places *p) {
  for (size_t c = 0; c < p->chunks; c++) free(p->chunk[c]);
  free(p->chunk);
  *p = (struct places){0};
}
