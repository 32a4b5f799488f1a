/* codec_map.c: the addresses met in a message and their offsets, by open addressing.
   Invariant: at least a quarter of the slots is free. Knows addresses; never follows one.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "codec_state.h"

static size_t place(const void *p, size_t mask) {
  uint64_t h = (uint64_t)(uintptr_t)p * 0x9E3779B97F4A7C15u;
  return (size_t)(h >> 24) & mask;
}

/* Zeroed slots. Looking up is one cache miss after another: where there are many, large pages save
   the other half of the wait, and thousands of page faults. */
static struct codec_map_slot *make_slots(size_t cap) {
  enum { LARGE = 1 << 21 };
  size_t bytes = cap * sizeof(struct codec_map_slot);
  if (bytes < LARGE) return calloc(cap, sizeof(struct codec_map_slot));
  void *p = aligned_alloc(LARGE, bytes);
  if (!p) return NULL;
  madvise(p, bytes, MADV_HUGEPAGE); /* only advice */
  return memset(p, 0, bytes);
}

void codec_map_clear(struct codec_map *m, void **heap) {
  free(*heap);
  *heap = NULL;
  m->slots = m->small;
  m->mask = CODEC_MAP_SMALL - 1;
  if (m->used) memset(m->small, 0, sizeof m->small);
  m->used = 0;
}

/* The slot of p, or the free one where it belongs. */
static struct codec_map_slot *slot_of(struct codec_map_slot *slots, size_t mask, const void *p) {
  size_t i = place(p, mask);
  while (slots[i].p && slots[i].p != p) i = (i + 1) & mask;
  return &slots[i];
}

static int widen(struct codec_map *m, void **heap) {
  size_t cap = (m->mask + 1) * (m->mask < 4096 ? 4 : 2);
  struct codec_map_slot *slots = make_slots(cap);
  if (!slots) return -ENOMEM;
  for (size_t i = 0; i <= m->mask; i++)
    if (m->slots[i].p) *slot_of(slots, cap - 1, m->slots[i].p) = m->slots[i];
  free(*heap);
  *heap = m->slots = slots;
  m->mask = cap - 1;
  return 0;
}

int codec_map_meet(struct codec_map *m, void **heap, const void *p, size_t here, size_t *at) {
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
    size_t home = place(m->slots[i].p, m->mask);
    if (((i - home) & m->mask) < ((i - hole) & m->mask)) continue;
    m->slots[hole] = m->slots[i];
    hole = i;
  }
  m->slots[hole].p = NULL;
  m->used--;
}

void codec_map_forget(struct codec_map *m, size_t from) {
  for (size_t i = 0; i <= m->mask;) {
    if (m->slots[i].p && m->slots[i].at >= from)
      take_out(m, i); /* another may have moved in: look again */
    else
      i++;
  }
}
