/* store.c: payloads in a sparse shared file, one behind the other, in segments that are used again.
   Invariant: memory is made sure of before it is written, so that running out is an error and never
   a SIGBUS; a segment is used again only when every payload that touches it was freed. The region
   being filled is the used segments first .. last: what is written lies in 'first', and goes on
   into the segments behind it where they are free, else the payload moves to a region of its own.
   Knows bytes. Does not know what they mean, nor workers. SPDX-License-Identifier: MIT */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "base.h"
#include "fail.h"

enum {
  HEAD = 8,
  ROOM_MIN = HEAD + 64, /* that much a payload begins with */
  WARM_MAX = 32,        /* free segments that keep their memory */
  STEP = 1 << 16        /* bytes of memory asked for at once, at the least */
};

struct segment {
  uint32_t live;   /* payloads that touch it */
  uint32_t backed; /* bytes from its start behind which there is memory */
  bool used;
};

struct store {
  plua_out out; /* must be first: 'more' casts back */
  unsigned char *base;
  uint64_t low, count; /* where segment 0 lies; how many fit */
  int fd;
  struct segment *segment;
  size_t known, cap; /* segments that were ever used */
  unsigned warm_free;
  bool open;                  /* a payload is under way */
  bool filling;               /* there is a region, segments first .. last */
  uint64_t first, last;       /* 'first' holds 'at' */
  uint64_t at;                /* next free place */
  uint64_t start;             /* payload under way: place of its length */
  uint64_t chain, next_chain; /* whose payload lies right before 'at'; of the one under way */
  bool follows;
};

static uint64_t place(const struct store *s, uint64_t segment) {
  return s->low + segment * SEGMENT;
}
static uint64_t segment_of(const struct store *s, uint64_t off) {
  return (off - s->low) / SEGMENT;
}
/* The bytes that a payload takes, its length and padding too. */
static uint64_t room_of(uint64_t len) {
  return HEAD + ((len + 7) & ~UINT64_C(7));
}
static uint64_t region_end(const struct store *s) {
  return place(s, s->last + 1);
}

/* ---- segments ------------------------------------------------------------------------------ */

/* The first of n free segments in a row, the known ones first; 'warm': that all have memory, or
   what lies behind the known ones. */
static uint64_t find_run(const struct store *s, uint64_t n, bool warm) {
  uint64_t free = 0;
  for (uint64_t i = 0; i < s->known; i++) {
    const struct segment *g = &s->segment[i];
    free = g->used || (warm && !g->backed) ? 0 : free + 1;
    if (free == n) return i + 1 - n;
  }
  return warm ? s->known : s->known - free;
}

static bool is_free(const struct store *s, uint64_t from, uint64_t n) {
  for (uint64_t i = from; i < from + n && i < s->known; i++)
    if (s->segment[i].used) return false;
  return true;
}

/* Takes n free segments. 0, PLUA_ETOOBIG or -ENOMEM. */
static int take_segments(struct store *s, uint64_t from, uint64_t n) {
  if (from > s->count || n > s->count - from) return PLUA_ETOOBIG;
  int err = grow((void **)&s->segment, &s->cap, from + n, sizeof *s->segment);
  if (err < 0) return err;
  while (s->known < from + n) s->segment[s->known++] = (struct segment){0};
  for (uint64_t i = from; i < from + n; i++) {
    if (s->segment[i].backed) s->warm_free--;
    s->segment[i].used = true;
  }
  return 0;
}

static void release_segment(struct store *s, uint64_t i) {
  struct segment *g = &s->segment[i];
  g->used = false;
  if (g->backed && s->warm_free < WARM_MAX) {
    s->warm_free++;
  } else if (g->backed) {
    fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)place(s, i), SEGMENT);
    g->backed = 0;
  }
  while (s->known && !s->segment[s->known - 1].used && !s->segment[s->known - 1].backed) s->known--;
}

/* Memory is behind [from, to) afterwards, and mapped: cheaper than a fault for each page. */
static int touch(const struct store *s, uint64_t from, uint64_t to) {
  int err;
  err = FAIL_ERROR(P_STORE);
  if (err) return err;
#ifdef MADV_POPULATE_WRITE
  do err = madvise(s->base + from, to - from, MADV_POPULATE_WRITE) < 0 ? errno : 0;
  while (err == EINTR);
  if (err == EFAULT) err = ENOMEM; /* what a fault there would have met */
  if (err != EINVAL) return -err;  /* Linux before 5.14 */
#endif
  do err = posix_fallocate(s->fd, (off_t)from, (off_t)(to - from));
  while (err == EINTR);
  return -err;
}

/* Memory up to 'to', which lies in the region, and some more. */
static int back_region(struct store *s, uint64_t to) {
  to = (to - s->low + STEP - 1) / STEP * STEP + s->low;
  if (to > region_end(s)) to = region_end(s);
  for (uint64_t i = segment_of(s, s->start); place(s, i) < to; i++) {
    struct segment *g = &s->segment[i];
    uint64_t want = to - place(s, i) < SEGMENT ? to - place(s, i) : SEGMENT;
    if (want <= g->backed) continue;
    int err = touch(s, place(s, i) + g->backed, place(s, i) + want);
    if (err) return err;
    g->backed = (uint32_t)want;
  }
  return 0;
}

/* Up to where memory is behind the region, from 'start' on. */
static uint64_t backed_end(const struct store *s) {
  uint64_t i = segment_of(s, s->start);
  while (i < s->last && s->segment[i].backed == SEGMENT) i++;
  return place(s, i) + s->segment[i].backed;
}

/* ---- the region ---------------------------------------------------------------------------- */

/* Segments [from, to) of the region are filled, or not wanted: those that hold nothing go back. */
static void leave(struct store *s, uint64_t from, uint64_t to) {
  for (uint64_t i = to; i > from; i--)
    if (s->segment[i - 1].live == 0) release_segment(s, i - 1);
}

static void leave_region(struct store *s) {
  s->filling = false;
  s->chain = 0;
  leave(s, s->first, s->last + 1);
}

/* Free memory lies elsewhere, where the region would go on without. */
static bool warmer_elsewhere(const struct store *s, uint64_t n) {
  if (s->warm_free < n) return false;
  uint64_t next = s->last + 1;
  return (next >= s->known || !s->segment[next].backed) && find_run(s, n, true) < s->known;
}

/* The region goes on up to segment 'last', if what lies there is free. */
static int extend(struct store *s, uint64_t last) {
  if (last <= s->last) return 0;
  if (last >= s->count || !is_free(s, s->last + 1, last - s->last)) return -EBUSY;
  int err = take_segments(s, s->last + 1, last - s->last);
  if (!err) s->last = last;
  return err;
}

static void lend(struct store *s, size_t used) {
  s->out.begin = s->base + s->start + HEAD;
  s->out.at = s->out.begin + used;
  s->out.end = s->base + backed_end(s);
}

/* Goes on in a new region that has room for 'want' bytes, the first 'used' of which exist. */
static int move_on(struct store *s, size_t used, size_t want) {
  uint64_t n = (HEAD + (uint64_t)want + SEGMENT - 1) / SEGMENT;
  if (used > SEGMENT) n += n / 2; /* no quadratic copying; the rest goes back in store_end */
  uint64_t old = s->start, old_first = s->first, old_last = s->last;
  uint64_t first = find_run(s, n, n <= s->warm_free);
  if (first == s->known) first = find_run(s, n, false);
  bool old_filling = s->filling;
  int err = take_segments(s, first, n);
  if (err) return err;
  s->first = first;
  s->last = first + n - 1;
  s->start = place(s, first);
  s->filling = true;
  err = back_region(s, s->start + HEAD + want);
  if (err) {
    leave_region(s);
    s->first = old_first;
    s->last = old_last;
    s->start = old;
    s->filling = old_filling;
    return err;
  }
  if (used) memcpy(s->base + s->start + HEAD, s->base + old + HEAD, used);
  if (old_filling) leave(s, old_first, old_last + 1);
  s->at = s->start;
  s->follows = false;
  s->chain = 0;
  lend(s, used);
  return 0;
}

/* Room for 'want' bytes of the payload under way, the first 'used' of which exist. */
static int make_room(struct store *s, size_t used, size_t want) {
  if (want > SIZE_MAX / 2) return -ENOMEM;
  uint64_t end = s->start + HEAD + want, last = segment_of(s, end - 1);
  int err = -EBUSY;
  bool moves = used < STEP && s->filling && last > s->last &&
               warmer_elsewhere(s, (HEAD + (uint64_t)want + SEGMENT - 1) / SEGMENT);
  if (s->filling && !moves) err = extend(s, last);
  if (err == -EBUSY) return move_on(s, used, want);
  if (!err) err = back_region(s, end + used / 8); /* it grows in place: ahead saves calls */
  if (!err) lend(s, used);
  return err;
}

/* ---- payloads ------------------------------------------------------------------------------ */

static int more(plua_out *out, size_t need) {
  struct store *s = (struct store *)out;
  size_t used = (size_t)(out->at - out->begin);
  return need > SIZE_MAX - used ? -ENOMEM : make_room(s, used, used + need);
}

int store_begin(struct store *s, uint64_t chain, plua_out **out) {
  if (s->open) return PLUA_EARG;
  s->start = s->at;
  s->follows = s->filling && chain && s->chain == chain;
  s->next_chain = chain;
  int err = 0;
  if (s->filling && backed_end(s) >= s->at + ROOM_MIN)
    lend(s, 0);
  else
    err = make_room(s, 0, ROOM_MIN - HEAD);
  if (err) return err;
  s->open = true;
  *out = &s->out;
  return 0;
}

/* The region begins where the next payload will; what lies behind that segment is not wanted. */
static void settle(struct store *s) {
  uint64_t now = segment_of(s, s->at), old = s->first, last = s->last;
  if (now > last) {
    leave_region(s);
    return;
  }
  s->first = s->last = now;
  leave(s, now + 1, last + 1);
  leave(s, old, now);
}

void store_end(struct store *s, uint64_t *off, bool *follows) {
  uint64_t len = (uint64_t)(s->out.at - s->out.begin);
  memcpy(s->base + s->start, &len, sizeof len);
  *off = s->start;
  *follows = s->follows;
  s->at = s->start + room_of(len);
  for (uint64_t i = segment_of(s, s->start); i <= segment_of(s, s->at - 1); i++)
    s->segment[i].live++;
  s->chain = s->next_chain;
  s->open = false;
  settle(s);
}

void store_drop(struct store *s) {
  if (!s->open) return;
  s->open = false;
  settle(s);
}

/* Copies what is short in most cases: two words are less than a call. */
static void copy(unsigned char *to, const unsigned char *from, size_t n) {
  uint64_t first, last;
  if (UNLIKELY(n < sizeof first || n > 2 * sizeof first)) {
    memcpy(to, from, n);
    return;
  }
  memcpy(&first, from, sizeof first);
  memcpy(&last, from + n - sizeof last, sizeof last);
  memcpy(to, &first, sizeof first);
  memcpy(to + n - sizeof last, &last, sizeof last);
}

unsigned store_run(struct store *s, uint64_t chain, const unsigned char *bytes, const size_t *len,
                   unsigned n, uint64_t *off, bool *follows) {
  if (s->open || !s->filling || s->first != s->last) return 0;
  uint64_t at = s->at, end = place(s, s->first) + s->segment[s->first].backed;
  unsigned i = 0;
  for (; i < n && len[i] < SEGMENT; i++) {
    uint64_t size = len[i], next = at + room_of(size);
    if (next >= end) break; /* the last place is for those who know how to go on */
    memcpy(s->base + at, &size, sizeof size);
    copy(s->base + at + HEAD, bytes, size);
    bytes += size;
    off[i] = at;
    at = next;
  }
  if (!i) return 0;
  *follows = chain && s->chain == chain;
  s->at = at;
  s->chain = chain;
  s->segment[s->first].live += i;
  return i;
}

/* n payloads no longer touch a segment. */
static void let_go(struct store *s, uint64_t i, unsigned n) {
  struct segment *g = &s->segment[i];
  if (i >= s->known || g->live < n) IMPOSSIBLE("payload freed twice");
  g->live -= n;
  if (g->live) return;
  if (!s->filling || i < s->first || i > s->last) {
    release_segment(s, i);
  } else if (!s->open) {
    s->at = place(s, i); /* empty again: filled from its start, in warm cache */
    s->chain = 0;
  }
}

/* Where the next payload may lie. */
static uint64_t behind(const struct store *s, uint64_t off) {
  uint64_t len;
  memcpy(&len, s->base + off, sizeof len);
  return off + room_of(len);
}

void store_free(struct store *s, uint64_t off) {
  uint64_t first = segment_of(s, off);
  for (uint64_t i = segment_of(s, behind(s, off) - 1); i > first; i--) let_go(s, i, 1);
  let_go(s, first, 1);
}

void store_free_run(struct store *s, uint64_t first, uint64_t last, unsigned n) {
  if (LIKELY(segment_of(s, behind(s, last) - 1) == segment_of(s, first))) {
    let_go(s, segment_of(s, first), n);
    return;
  }
  for (uint64_t next; n; n--, first = next) {
    next = behind(s, first); /* read while it is there */
    store_free(s, first);
  }
}

/* ---- opening ------------------------------------------------------------------------------- */

int store_open(struct store **out, unsigned char *base, uint64_t off, uint64_t len, int fd) {
  struct store *s = calloc(1, sizeof *s);
  if (!s) return -ENOMEM;
  s->base = base;
  s->low = off;
  s->count = len / SEGMENT;
  s->fd = fd;
  s->out.more = more;
  *out = s;
  return 0;
}

void store_close(struct store *s) {
  if (!s) return;
  free(s->segment);
  free(s);
}
