/* places.h: where the payloads of a job's items lie. SPDX-License-Identifier: MIT */
#ifndef PLUA_PLACES_H
#define PLUA_PLACES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PLACES_CHUNK = 512 };

/* Offsets by index, in chunks that go when all their items are done. A zeroed one is empty. */
struct places {
  struct places_chunk **chunk;
  size_t chunks, cap;
  uint64_t count; /* items added so far */
};

/* Makes room for one more item. 0 or -ENOMEM. */
int places_prepare(struct places *p);
/* Adds the next item, for which there is room. 'follows': it lies right behind the one before. */
void places_add(struct places *p, uint64_t off, bool follows);
/* Where item 'index' lies; 0: it is done, or never was. */
uint64_t places_at(const struct places *p, uint64_t index);
/* How many of the n items from 'first' on lie one behind the other: at least 1. */
unsigned places_run(const struct places *p, uint64_t first, unsigned n);
/* The item is done: its place, or 0 if it was before. */
uint64_t places_take(struct places *p, uint64_t index);
/* Any item that is not done: its place, or 0 when there is none; for emptying. */
uint64_t places_any(struct places *p);
void places_free(struct places *p);

#endif
