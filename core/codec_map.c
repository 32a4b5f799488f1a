/* codec_map.c: the addresses met in a message and their offsets.
   A few lie in an open-addressed table. Many go by region: neighbours in memory, which a walk over
   data meets one after the other, have neighbouring entries in their region's leaf, so that a
   million of them cost few cache misses. An entry stands for 64 bytes of memory: it holds the
   offset and which 16 of the 64 it is. What does not fit this (a second address in the same 64
   bytes, one not aligned to 16, an offset of 30 bits) lies in the open-addressed table still.
   Invariant: at least a quarter of the slots of either table is free. Blocks of memory are chained
   by their first word and live as long as the message.
   Knows addresses; never follows one. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "codec_state.h"

enum {
  ENTRY_BITS = 6,
  REGION_BITS = 15,
  LEAF = 1 << (REGION_BITS - ENTRY_BITS), /* entries */
  BLOCK_HEAD = 64,                        /* the chain's word, and alignment */
  ROOM = 1 << 18                          /* bytes of leaves allocated at once */
};
static const size_t entry_max = (size_t)1 << 30;

static size_t place(uintptr_t p, size_t mask) {
  uint64_t h = (uint64_t)p * 0x9E3779B97F4A7C15u;
  return (size_t)(h >> 24) & mask;
}

/* Zeroed memory. Looking up is one cache miss after another: where there is much, large pages save
   the other half of the wait, and thousands of page faults. */
static void *make_block(void **heap, size_t bytes) {
  enum { LARGE = 1 << 21 };
  void *p;
  bytes += BLOCK_HEAD;
  if (bytes < LARGE) {
    p = calloc(1, bytes);
  } else {
    p = aligned_alloc(LARGE, (bytes + LARGE - 1) & ~(size_t)(LARGE - 1));
    if (p) madvise(p, bytes, MADV_HUGEPAGE); /* only advice */
    if (p) memset(p, 0, bytes);
  }
  if (!p) return NULL;
  memcpy(p, heap, sizeof *heap);
  *heap = p;
  return (unsigned char *)p + BLOCK_HEAD;
}

void codec_map_free(void **heap) {
  while (*heap) {
    void *block = *heap;
    memcpy(heap, block, sizeof *heap);
    free(block);
  }
}

void codec_map_clear(struct codec_map *m, void **heap) {
  codec_map_free(heap);
  m->slots = m->small;
  m->mask = CODEC_MAP_SMALL - 1;
  if (m->used || m->regions) memset(m->small, 0, sizeof m->small);
  m->used = m->region_used = 0;
  m->regions = NULL;
  m->last = (struct codec_map_region){0, NULL};
  m->room = m->room_end = NULL;
}

/* ---- open addressing ------------------------------------------------------------------------ */

/* The slot of p, or the free one where it belongs. */
static struct codec_map_slot *slot_of(struct codec_map_slot *slots, size_t mask, const void *p) {
  size_t i = place((uintptr_t)p, mask);
  while (slots[i].p && slots[i].p != p) i = (i + 1) & mask;
  return &slots[i];
}

static int widen(struct codec_map *m, void **heap) {
  size_t cap = (m->mask + 1) * 4;
  struct codec_map_slot *slots = make_block(heap, cap * sizeof *slots);
  if (!slots) return -ENOMEM;
  for (size_t i = 0; i <= m->mask; i++)
    if (m->slots[i].p) *slot_of(slots, cap - 1, m->slots[i].p) = m->slots[i];
  m->slots = slots;
  m->mask = cap - 1;
  return 0;
}

static int meet_slot(struct codec_map *m, void **heap, const void *p, size_t here, size_t *at) {
  struct codec_map_slot *slot = slot_of(m->slots, m->mask, p);
  if (slot->p) {
    *at = slot->at;
    return 1;
  }
  if (m->used >= m->mask - m->mask / 4) {
    int err = widen(m, heap);
    if (err < 0) return err;
    slot = slot_of(m->slots, m->mask, p);
  }
  slot->p = p;
  slot->at = here;
  m->used++;
  return 0;
}

/* Whoever is left behind a slot that becomes free moves up, so that a search still finds it. */
static void take_out(struct codec_map *m, size_t hole) {
  for (size_t i = (hole + 1) & m->mask; m->slots[i].p; i = (i + 1) & m->mask) {
    size_t home = place((uintptr_t)m->slots[i].p, m->mask);
    if (((i - home) & m->mask) < ((i - hole) & m->mask)) continue;
    m->slots[hole] = m->slots[i];
    hole = i;
  }
  m->slots[hole].p = NULL;
  m->used--;
}

/* ---- regions -------------------------------------------------------------------------------- */

static struct codec_map_region *region_of(struct codec_map_region *regions, size_t mask,
                                          uintptr_t number) {
  size_t i = place(number, mask);
  while (regions[i].number && regions[i].number != number) i = (i + 1) & mask;
  return &regions[i];
}

static int widen_regions(struct codec_map *m, void **heap) {
  size_t cap = m->regions ? (m->region_mask + 1) * 4 : 256;
  struct codec_map_region *regions = make_block(heap, cap * sizeof *regions);
  if (!regions) return -ENOMEM;
  for (size_t i = 0; m->regions && i <= m->region_mask; i++)
    if (m->regions[i].number) *region_of(regions, cap - 1, m->regions[i].number) = m->regions[i];
  m->regions = regions;
  m->region_mask = cap - 1;
  return 0;
}

static uint32_t *make_leaf(struct codec_map *m, void **heap) {
  size_t bytes = LEAF * sizeof(uint32_t);
  if (m->room == m->room_end) {
    /* The first few: a message of a hundred tables should not clear a quarter of a megabyte. */
    size_t room = m->region_used < 64 ? 8 * bytes : (size_t)ROOM;
    m->room = make_block(heap, room);
    m->room_end = m->room ? m->room + room : NULL;
    if (!m->room) return NULL;
  }
  uint32_t *leaf = (uint32_t *)(void *)m->room;
  m->room += bytes;
  return leaf;
}

/* Makes 'number' the region met last. 0 or -ENOMEM. */
static int enter_region(struct codec_map *m, void **heap, uintptr_t number) {
  struct codec_map_region *region = region_of(m->regions, m->region_mask, number);
  if (!region->number) {
    if (m->region_used >= m->region_mask - m->region_mask / 4) {
      if (widen_regions(m, heap) < 0) return -ENOMEM;
      region = region_of(m->regions, m->region_mask, number);
    }
    uint32_t *leaf = make_leaf(m, heap);
    if (!leaf) return -ENOMEM;
    *region = (struct codec_map_region){number, leaf};
    m->region_used++;
  }
  m->last = *region;
  return 0;
}

static uintptr_t number_of(uintptr_t n) {
  return (n >> REGION_BITS) + 1;
}
static uint32_t *entry_of(const struct codec_map_region *region, uintptr_t n) {
  return &region->leaf[n >> ENTRY_BITS & (LEAF - 1)];
}
static int fits_entry(size_t at) {
  return at < entry_max - 1;
}
static uint32_t entry_made(uintptr_t n, size_t at) {
  return (uint32_t)(at + 1) << 2 | (uint32_t)(n >> 4 & 3);
}

static int meet_region(struct codec_map *m, void **heap, const void *p, size_t here, size_t *at) {
  uintptr_t n = (uintptr_t)p, number = number_of(n);
  if (n & 15) return meet_slot(m, heap, p, here, at);
  if (m->last.number != number && enter_region(m, heap, number) < 0) return -ENOMEM;
  uint32_t *entry = entry_of(&m->last, n);
  if (*entry && (*entry & 3) == (n >> 4 & 3)) {
    *at = (*entry >> 2) - 1;
    return 1;
  }
  if (*entry || !fits_entry(here)) return meet_slot(m, heap, p, here, at);
  *entry = entry_made(n, here);
  return 0;
}

/* There are many: those met so far go to their regions. */
static int begin_regions(struct codec_map *m, void **heap) {
  struct codec_map_slot few[CODEC_MAP_SMALL];
  size_t at;
  int err = widen_regions(m, heap);
  memcpy(few, m->small, sizeof few);
  memset(m->small, 0, sizeof m->small);
  m->used = 0;
  for (int i = 0; !err && i < CODEC_MAP_SMALL; i++)
    if (few[i].p) err = meet_region(m, heap, few[i].p, few[i].at, &at) < 0 ? -ENOMEM : 0;
  return err;
}

/* ---- both ----------------------------------------------------------------------------------- */

int codec_map_meet(struct codec_map *m, void **heap, const void *p, size_t here, size_t *at) {
  if (m->regions) return meet_region(m, heap, p, here, at);
  if (m->used < CODEC_MAP_SMALL - CODEC_MAP_SMALL / 4) return meet_slot(m, heap, p, here, at);
  int err = begin_regions(m, heap);
  return err < 0 ? err : meet_region(m, heap, p, here, at);
}

static void forget_leaf(uint32_t *leaf, size_t from) {
  for (int i = 0; i < LEAF; i++)
    if (leaf[i] && (leaf[i] >> 2) - 1 >= from) leaf[i] = 0;
}

/* Whether an entry that has become free takes the address in, which lies in a slot for want of it:
   where an entry is free, no slot is looked at. */
static int goes_home(struct codec_map *m, const struct codec_map_slot *slot) {
  uintptr_t n = (uintptr_t)slot->p;
  if (!n || n & 15 || !fits_entry(slot->at)) return 0;
  struct codec_map_region *region = region_of(m->regions, m->region_mask, number_of(n));
  uint32_t *entry = entry_of(region, n);
  if (*entry) return 0;
  *entry = entry_made(n, slot->at);
  return 1;
}

void codec_map_forget(struct codec_map *m, size_t from) {
  for (size_t i = 0; i <= m->mask;) {
    if (m->slots[i].p && m->slots[i].at >= from)
      take_out(m, i); /* another may have moved in: look again */
    else
      i++;
  }
  if (!m->regions) return;
  for (size_t i = 0; i <= m->region_mask; i++)
    if (m->regions[i].number) forget_leaf(m->regions[i].leaf, from);
  for (size_t i = 0; i <= m->mask;) {
    if (goes_home(m, &m->slots[i]))
      take_out(m, i);
    else
      i++;
  }
}
