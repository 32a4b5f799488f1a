/* places.c: offsets of payloads by item, as many as are under way.
   Invariant: an entry is an offset exactly while its item has a payload in the store. Offsets are
   multiples of 8, so the lowest bit tells what does not lie right behind the item before.
   Knows numbers. SPDX-License-Identifier: MIT */
#include "places.h"

#include <errno.h>

#include "base.h"

enum { APART = 1, GONE = APART };

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
  struct places_chunk *new = malloc(sizeof *new);
  if (!new) return -ENOMEM;
  new->live = 0;
  p->chunk[p->chunks++] = new;
  return 0;
}

uint64_t *places_next(struct places *p, unsigned *n) {
  struct places_chunk *k = p->chunk[p->count / PLACES_CHUNK];
  if (!k) IMPOSSIBLE("a chunk went before it was full");
  unsigned at = p->count % PLACES_CHUNK;
  *n = PLACES_CHUNK - at;
  return k->off + at;
}

void places_added(struct places *p, unsigned n, bool follows) {
  struct places_chunk *k = p->chunk[p->count / PLACES_CHUNK];
  if (n && !follows) k->off[p->count % PLACES_CHUNK] |= APART;
  k->live += n;
  p->count += n;
}

static struct places_chunk *chunk_of(const struct places *p, uint64_t index) {
  return index < p->count ? p->chunk[index / PLACES_CHUNK] : NULL;
}

uint64_t places_at(const struct places *p, uint64_t index) {
  const struct places_chunk *k = chunk_of(p, index);
  return k ? k->off[index % PLACES_CHUNK] & ~(uint64_t)APART : 0;
}

/* How many of the n items from entry 'at' of a chunk on lie behind the one before. */
static unsigned behind(const struct places_chunk *k, unsigned at, uint64_t n) {
  unsigned end = n < PLACES_CHUNK - at ? at + (unsigned)n : PLACES_CHUNK, i = at;
  while (i < end && !(k->off[i] & APART)) i++;
  return i - at;
}

unsigned places_run(const struct places *p, uint64_t first, unsigned n) {
  uint64_t at = first + 1, end = first + n < p->count ? first + n : p->count;
  while (at < end) {
    const struct places_chunk *k = chunk_of(p, at);
    unsigned i = at % PLACES_CHUNK, more = k ? behind(k, i, end - at) : 0;
    at += more;
    if (i + more < PLACES_CHUNK) break;
  }
  return (unsigned)(at - first);
}

/* A chunk stays until it is full, so that places_next finds it. */
unsigned places_take(struct places *p, uint64_t index, uint64_t end, uint64_t *first,
                     uint64_t *last) {
  struct places_chunk *k = chunk_of(p, index);
  unsigned at = index % PLACES_CHUNK;
  *first = *last = k ? k->off[at] & ~(uint64_t)APART : 0;
  if (!*first) return 1;
  if (end > p->count) end = p->count;
  unsigned n = 1 + behind(k, at + 1, end - index - 1);
  if (n > 1) *last = k->off[at + n - 1];
  for (unsigned i = 0; i < n; i++) k->off[at + i] = GONE;
  k->live -= n;
  uint64_t c = index / PLACES_CHUNK;
  if (k->live == 0 && (c + 1) * PLACES_CHUNK <= p->count) {
    free(k);
    p->chunk[c] = NULL;
  }
  return n;
}

uint64_t places_skip(const struct places *p, uint64_t index) {
  while (index < p->count) {
    const struct places_chunk *k = chunk_of(p, index);
    if (k && k->live) break;
    index += PLACES_CHUNK - index % PLACES_CHUNK;
  }
  return index;
}

void places_free(struct places *p) {
  for (size_t c = 0; c < p->chunks; c++) free(p->chunk[c]);
  free(p->chunk);
  *p = (struct places){0};
}
