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
/* Where the places of the items to come go, which lie one behind the other: room for *n of them, at
   least 1 where that was prepared. */
uint64_t *places_next(struct places *p, unsigned *n);
/* Adds n items whose places were written there. 'follows': so does the first of them lie right
   behind the item before. */
void places_added(struct places *p, unsigned n, bool follows);
/* Where item 'index' lies; 0: it is done, or never was. */
uint64_t places_at(const struct places *p, uint64_t index);
/* How many of the n items from 'first' on lie one behind the other: at least 1. */
unsigned places_run(const struct places *p, uint64_t first, unsigned n);
/* Items of ['index', end) are done, from the first on, as many as lie one behind the other here:
   how many, at least 1. *first and *last are the places of the first and the last of them, or 0
   where the item, the only one then, was done before. */
unsigned places_take(struct places *p, uint64_t index, uint64_t end, uint64_t *first,
                     uint64_t *last);
/* The first item from 'index' on that is not known to be done, or whatever comes behind the last.
 */
uint64_t places_skip(const struct places *p, uint64_t index);
void places_free(struct places *p);

#endif
