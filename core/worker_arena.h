/* worker_arena.h: the memory that a worker's Lua blocks come from. SPDX-License-Identifier: MIT */
#ifndef PLUA_WORKER_ARENA_H
#define PLUA_WORKER_ARENA_H

#include <stdbool.h>
#include <stddef.h>

struct arena;

/* Reserves address space; none of it counts as memory yet. NULL: there is not enough of that. An
   arena lives as long as its process; a fork's copy is abandoned, not freed. */
struct arena *arena_open(void);
/* n bytes, aligned to 16, that are none of the arena's blocks: they stay, and lie close together.
   NULL: there is room for few of them only. */
void *arena_lay(struct arena *a, size_t n);
/* A block of at least n bytes (n > 0), aligned to 16. NULL: no memory. */
void *arena_take(struct arena *a, size_t n);
/* How large a block is; 0: it is none of this arena's. */
size_t arena_size(const struct arena *a, const void *block);
/* Takes the block back. False, and nothing was done: it is none of this arena's. */
bool arena_give(struct arena *a, void *block);
/* Makes a block of this arena's n bytes long, moving it if need be. NULL: no memory, the block is
   as it was; never where n is not more than its size. */
void *arena_resize(struct arena *a, void *block, size_t n);
/* Bytes in blocks that are in use, as large as they are; and what is mapped for all of them. */
size_t arena_used(const struct arena *a);
size_t arena_mapped(const struct arena *a);

#endif
