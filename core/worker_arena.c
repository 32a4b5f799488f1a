/* worker_arena.c: memory of a worker's own, apart from all that it inherited.
   Blocks up to MID_MAX lie in spans of blocks of one size, in one reserved stretch of addresses, so
   that a block's span is found from its address and blocks need no header. Larger ones are
   stretches of pages, mapped as they are wanted. Memory that falls free is given back, save what is
   likely to be wanted again.
   Invariant: a span is in its class's list while it has room, in a pool while it is empty, in
   neither while it is full. Only the first span of a list may be empty. No two of the stretches
   that are kept touch.
   Knows addresses and pages. Does not know Lua, caps or other processes.
   SPDX-License-Identifier: MIT */
#include "worker_arena.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "base.h"

enum {
  UNIT_SHIFT = 16,
  UNIT = 1 << UNIT_SHIFT, /* a span is one of these, or MID_UNITS */
  SMALL_MAX = 8192,       /* blocks up to this size lie in spans of one unit */
  MID_MAX = 131072,
  MID_UNITS = 16,
  CLASSES = 52,
  GROW_MIN = 16, /* units made usable at once */
  GROW_MAX = 1024,
  LAY_MAX = 2048,
  SPARE_MAX = 16 /* stretches of large blocks that are kept though they are free */
};

#define RESERVE ((size_t)1 << 38)
#define RESERVE_MIN ((size_t)1 << 32)
#define KEEP ((size_t)32 << 20) /* free memory that is kept; half of what is used, too */
#define PAGE ((size_t)4096)

struct span {
  void *free;        /* blocks that were given back, linked through their first words */
  char *fresh, *end; /* blocks that were never used */
  struct span *next, *prev;
  uint32_t size;       /* of a block */
  uint32_t used;       /* blocks in use */
  uint32_t touched;    /* bytes from its start that may have memory behind them */
  uint16_t back;       /* a unit inside a larger span: so many units before it is the span's own */
  unsigned char class; /* of its blocks */
  bool listed;         /* in the list of its class */
};

struct large {
  char *at; /* NULL: free entry */
  size_t size;
};

struct arena {
  char *laid, *lay_end; /* what arena_lay has left */
  char *base;           /* of the spans' addresses */
  size_t length;
  struct span *units; /* one for each unit of them */
  size_t next, ready; /* units from 'next' on were never used; below 'ready' they are usable */
  size_t used, idle;  /* bytes of blocks in use; of free spans and blocks with memory behind them */
  size_t mapped;      /* bytes of large blocks, the kept ones too */
  struct span *class[CLASSES]; /* spans with room; the first serves */
  struct span *empty[2];       /* of one unit, of MID_UNITS */
  struct large *table;         /* large blocks by address: open addressing */
  size_t table_cap, larges;
  struct large spare[SPARE_MAX + 1];
  unsigned spares;
};

/* ---- sizes ---------------------------------------------------------------------------------- */

/* Steps of 16 up to 256, then four to each doubling. */
static unsigned class_of(size_t n) {
  if (n <= 256) return (unsigned)((n + 15) / 16 - 1);
  unsigned log = 63 - (unsigned)__builtin_clzll(n - 1);
  return 16 + 4 * (log - 8) + (unsigned)((n - 1) >> (log - 2) & 3);
}

static uint32_t class_size(unsigned class) {
  if (class < 16) return 16 * (class + 1);
  unsigned log = 8 + (class - 16) / 4 % 16;
  return (uint32_t)(5 + (class - 16) % 4) << (log - 2);
}

static size_t page_up(size_t n) {
  return (n + PAGE - 1) & ~(PAGE - 1);
}

/* Bytes of free memory beyond what is kept. */
static size_t too_idle(const struct arena *a) {
  size_t keep = KEEP + a->used / 2;
  return a->idle > keep ? a->idle - keep : 0;
}

/* ---- spans ---------------------------------------------------------------------------------- */

static char *span_start(const struct arena *a, const struct span *s) {
  return a->base + ((size_t)(s - a->units) << UNIT_SHIFT);
}

static struct span *span_of(const struct arena *a, const void *block) {
  size_t at = (size_t)((const char *)block - a->base);
  if (at >= a->length) return NULL;
  struct span *s = a->units + (at >> UNIT_SHIFT);
  return s - s->back;
}

static void list(struct arena *a, struct span *s) {
  struct span *first = a->class[s->class];
  s->listed = true;
  if (!first) {
    s->next = s->prev = NULL;
    a->class[s->class] = s;
    return;
  }
  s->prev = first; /* behind the one that serves */
  s->next = first->next;
  if (s->next) s->next->prev = s;
  first->next = s;
}

static void unlist(struct arena *a, struct span *s) {
  if (s->prev)
    s->prev->next = s->next;
  else
    a->class[s->class] = s->next;
  if (s->next) s->next->prev = s->prev;
  s->listed = false;
}

/* Makes the addresses of 'units' more units usable. */
static bool make_ready(struct arena *a, size_t units) {
  if (a->next + units <= a->ready) return true;
  size_t want = a->ready / 8;
  want = want < GROW_MIN ? GROW_MIN : want > GROW_MAX ? GROW_MAX : want;
  size_t ready = a->next + (units > want ? units : want);
  if (ready > a->length >> UNIT_SHIFT) return false;
  char *from = a->base + (a->ready << UNIT_SHIFT), *head = (char *)a;
  size_t meta = page_up((size_t)((char *)(a->units + ready) - head));
  if (mprotect(head, meta, PROT_READ | PROT_WRITE) < 0) return false;
  if (mprotect(from, (ready - a->ready) << UNIT_SHIFT, PROT_READ | PROT_WRITE) < 0) return false;
  a->ready = ready;
  return true;
}

static struct span *span_new(struct arena *a, unsigned units) {
  struct span **pool = &a->empty[units > 1], *s = *pool;
  if (s) {
    *pool = s->next;
    a->idle -= s->touched;
    return s;
  }
  if (!make_ready(a, units)) return NULL;
  s = a->units + a->next;
  for (unsigned i = 0; i < units; i++) s[i].back = (uint16_t)i;
  a->next += units;
  return s;
}

/* A span with room, first in its class's list. */
static struct span *span_serve(struct arena *a, unsigned class) {
  struct span *s = a->class[class];
  if (s) { /* it has none left */
    unlist(a, s);
    s = a->class[class];
    if (s) return s;
  }
  uint32_t size = class_size(class);
  unsigned units = size <= SMALL_MAX ? 1 : MID_UNITS;
  s = span_new(a, units);
  if (!s) return NULL;
  s->free = NULL;
  s->fresh = span_start(a, s);
  s->end = s->fresh + (size_t)units * UNIT / size * size;
  s->size = size;
  s->used = 0;
  s->class = (unsigned char)class;
  list(a, s);
  return s;
}

/* Nothing in the span is used any more: any class may have it. */
static void span_free(struct arena *a, struct span *s) {
  unsigned units = s->size <= SMALL_MAX ? 1 : MID_UNITS;
  char *start = span_start(a, s);
  uint32_t touched = (uint32_t)(s->fresh - start);
  if (touched > s->touched) s->touched = touched;
  unlist(a, s);
  a->idle += s->touched;
  if (too_idle(a)) {
    madvise(start, (size_t)units * UNIT, MADV_DONTNEED);
    a->idle -= s->touched;
    s->touched = 0;
  }
  s->next = a->empty[units > 1];
  a->empty[units > 1] = s;
}

static void *span_take(struct arena *a, unsigned class) {
  struct span *s = a->class[class];
  for (;;) {
    if (LIKELY(s != NULL)) {
      void *block = s->free;
      if (LIKELY(block != NULL))
        s->free = *(void **)block;
      else if (LIKELY(s->fresh < s->end)) {
        block = s->fresh;
        s->fresh += s->size;
      }
      if (LIKELY(block != NULL)) {
        s->used++;
        a->used += s->size;
        return block;
      }
    }
    s = span_serve(a, class);
    if (!s) return NULL;
  }
}

static void span_give(struct arena *a, struct span *s, void *block) {
  *(void **)block = s->free;
  s->free = block;
  a->used -= s->size;
  s->used--;
  if (UNLIKELY(!s->listed)) list(a, s);
  if (UNLIKELY(!s->used) && a->class[s->class] != s) span_free(a, s);
}

/* ---- large blocks --------------------------------------------------------------------------- */

static size_t home(const void *at, size_t cap) {
  return (size_t)(((uintptr_t)at >> 12) * UINT64_C(0x9E3779B97F4A7C15) >> 32) & (cap - 1);
}

static struct large *large_find(const struct arena *a, const void *at) {
  if (!a->larges) return NULL;
  for (size_t i = home(at, a->table_cap); a->table[i].at; i = (i + 1) & (a->table_cap - 1))
    if (a->table[i].at == at) return &a->table[i];
  return NULL;
}

static void large_put(struct large *table, size_t cap, struct large b) {
  size_t i = home(b.at, cap);
  while (table[i].at) i = (i + 1) & (cap - 1);
  table[i] = b;
}

/* Room in the table for one more. */
static bool large_prepare(struct arena *a) {
  if (2 * (a->larges + 1) <= a->table_cap) return true;
  size_t cap = a->table_cap ? 2 * a->table_cap : PAGE / sizeof(struct large);
  struct large *fresh = mmap(NULL, cap * sizeof *fresh, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) return false;
  for (size_t i = 0; i < a->table_cap; i++)
    if (a->table[i].at) large_put(fresh, cap, a->table[i]);
  if (a->table) munmap(a->table, a->table_cap * sizeof *a->table);
  a->table = fresh;
  a->table_cap = cap;
  return true;
}

static void large_add(struct arena *a, struct large b) {
  large_put(a->table, a->table_cap, b);
  a->larges++;
  a->used += b.size;
}

/* Closes the gap by moving up those behind it. */
static struct large large_remove(struct arena *a, struct large *e) {
  struct large gone = *e;
  size_t mask = a->table_cap - 1, at = (size_t)(e - a->table);
  for (size_t i = (at + 1) & mask; a->table[i].at; i = (i + 1) & mask) {
    if (((i - home(a->table[i].at, a->table_cap)) & mask) < ((i - at) & mask)) continue;
    a->table[at] = a->table[i];
    at = i;
  }
  a->table[at].at = NULL;
  a->larges--;
  a->used -= gone.size;
  return gone;
}

/* Takes the first 'size' bytes of a kept stretch. */
static char *spare_cut(struct arena *a, struct large *from, size_t size) {
  char *at = from->at;
  from->at += size;
  from->size -= size;
  if (!from->size) *from = a->spare[--a->spares];
  a->idle -= size;
  return at;
}

/* The shortest kept stretch that is long enough; NULL: none. */
static struct large *spare_find(struct arena *a, size_t size) {
  struct large *best = NULL;
  for (struct large *s = a->spare; s < a->spare + a->spares; s++)
    if (s->size >= size && (!best || s->size < best->size)) best = s;
  return best;
}

/* The kept stretch that begins there, if it is long enough. */
static struct large *spare_at(struct arena *a, const char *at, size_t size) {
  for (struct large *s = a->spare; s < a->spare + a->spares; s++)
    if (s->at == at) return s->size >= size ? s : NULL;
  return NULL;
}

/* Gives back the last 'size' bytes of a kept stretch, or all. */
static void spare_trim(struct arena *a, struct large *s, size_t size) {
  if (size > s->size) size = s->size;
  s->size -= size;
  munmap(s->at + s->size, size);
  a->idle -= size;
  a->mapped -= size;
  if (!s->size) *s = a->spare[--a->spares];
}

/* Joins a stretch that is free with those kept that it touches. */
static struct large spare_join(struct arena *a, struct large b) {
  for (unsigned i = a->spares; i-- > 0;) {
    struct large s = a->spare[i];
    if (s.at + s.size != b.at && b.at + b.size != s.at) continue;
    if (s.at < b.at) b.at = s.at;
    b.size += s.size;
    a->spare[i] = a->spare[--a->spares];
  }
  return b;
}

/* Keeps a stretch that is free; what is too much is given back. */
static void spare_give(struct arena *a, struct large b) {
  a->idle += b.size;
  b = spare_join(a, b);
  a->spare[a->spares++] = b;
  if (a->spares > SPARE_MAX) spare_trim(a, spare_find(a, 0), SIZE_MAX);
  for (size_t more; a->spares && (more = too_idle(a)) > 0;)
    spare_trim(a, &a->spare[0], page_up(more));
}

static void *large_take(struct arena *a, size_t n) {
  size_t size = page_up(n);
  if (size < n || !large_prepare(a)) return NULL;
  struct large *kept = spare_find(a, size), b = {NULL, size};
  if (kept) {
    b.at = spare_cut(a, kept, size);
  } else {
    b.at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b.at == MAP_FAILED) return NULL;
    a->mapped += size;
  }
  large_add(a, b);
  return b.at;
}

static void large_give(struct arena *a, struct large *e) {
  spare_give(a, large_remove(a, e));
}

/* Where it is, as far as what lies behind it is ours. */
static bool large_stretch(struct arena *a, struct large *e, size_t size) {
  char *end = e->at + e->size;
  if (size > e->size) {
    struct large *next = spare_at(a, end, size - e->size);
    if (!next) return false;
    spare_cut(a, next, size - e->size);
  } else if (size < e->size) {
    spare_give(a, (struct large){e->at + size, e->size - size});
  }
  a->used = a->used - e->size + size;
  e->size = size;
  return true;
}

/* The kernel moves pages, not bytes. */
static void *large_move(struct arena *a, struct large *e, size_t size) {
  char *at = mremap(e->at, e->size, size, MREMAP_MAYMOVE);
  if (at == MAP_FAILED) return NULL;
  a->mapped = a->mapped - e->size + size;
  large_remove(a, e);
  large_add(a, (struct large){at, size});
  return at;
}

/* A block that grows by much may go where memory is kept: to copy it costs less than to fault in
   the rest. NULL: no memory, or, since blocks may lie in two mappings, the kernel does not move it.
 */
static void *large_resize(struct arena *a, struct large *e, size_t n) {
  size_t size = page_up(n);
  if (size < n) return NULL;
  if (large_stretch(a, e, size)) return e->at;
  bool kept = size - e->size >= e->size / 2 && spare_find(a, size);
  return kept ? NULL : large_move(a, e, size);
}

/* ---- blocks --------------------------------------------------------------------------------- */

/* The first page holds the arena, what arena_lay gives and the first spans' own data: whoever needs
   little has this page alone. */
struct arena *arena_open(void) {
  _Static_assert(sizeof(struct arena) + LAY_MAX < PAGE, "they fit a page");
  for (size_t length = RESERVE; length >= RESERVE_MIN; length /= 4) {
    size_t head = (sizeof(struct arena) + 15) & ~(size_t)15, page = PAGE;
    size_t meta = (length >> UNIT_SHIFT) * sizeof(struct span);
    size_t lead = (head + LAY_MAX + meta + UNIT - 1) & ~(size_t)(UNIT - 1);
    char *all = mmap(NULL, lead + length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0);
    if (all == MAP_FAILED) continue;
    if (mprotect(all, page, PROT_READ | PROT_WRITE) < 0) {
      munmap(all, lead + length);
      return NULL;
    }
    struct arena *a = (struct arena *)(void *)all;
    a->laid = all + head;
    a->lay_end = a->laid + LAY_MAX;
    a->units = (struct span *)(void *)a->lay_end;
    a->base = all + lead;
    a->length = length;
    return a;
  }
  return NULL;
}

void *arena_lay(struct arena *a, size_t n) {
  n = (n + 15) & ~(size_t)15;
  if (n > (size_t)(a->lay_end - a->laid)) return NULL;
  a->laid += n;
  return a->laid - n;
}

void *arena_take(struct arena *a, size_t n) {
  if (LIKELY(n <= MID_MAX)) return span_take(a, class_of(n));
  return large_take(a, n);
}

size_t arena_size(const struct arena *a, const void *block) {
  const struct span *s = span_of(a, block);
  if (LIKELY(s != NULL)) return s->size;
  const struct large *e = large_find(a, block);
  return e ? e->size : 0;
}

bool arena_give(struct arena *a, void *block) {
  struct span *s = span_of(a, block);
  if (LIKELY(s != NULL)) {
    span_give(a, s, block);
    return true;
  }
  struct large *e = large_find(a, block);
  if (e) large_give(a, e);
  return e != NULL;
}

void *arena_resize(struct arena *a, void *block, size_t n) {
  size_t size = arena_size(a, block);
  if (n <= size && n > size / 2) return block;
  if (size > MID_MAX && n > MID_MAX) {
    void *moved = large_resize(a, large_find(a, block), n);
    if (moved) return moved;
  }
  void *fresh = arena_take(a, n);
  if (!fresh) return n <= size ? block : NULL;
  memcpy(fresh, block, n < size ? n : size);
  arena_give(a, block);
  return fresh;
}

size_t arena_used(const struct arena *a) {
  return a->used;
}

size_t arena_mapped(const struct arena *a) {
  return a->mapped + (a->next << UNIT_SHIFT);
}
