/* store.c: payloads in a sparse shared file, in segments that are used again.
   Invariant: memory is made sure of by posix_fallocate before it is written, so that running out is
   an error and never a SIGBUS; a segment is used again only when every payload in it was freed. A
   payload larger than a segment gets a run of segments for itself.
   Knows bytes. Does not know what they mean, nor workers. SPDX-License-Identifier: MIT */
#include "store.h"

#include <errno.h>
#include <fcntl.h>

#include "base.h"
#include "fail.h"

enum { HEAD = 8, WARM_MAX = 32 }; /* WARM_MAX: free segments that keep their memory */

struct segment {
  uint32_t live;   /* payloads that begin here */
  uint32_t run;    /* first of a run in use: its length; 0: free, or not the first */
  bool used, warm; /* warm: memory is behind it */
};

struct store {
  plua_out out; /* must be first: 'more' casts back */
  unsigned char *base;
  uint64_t low, count; /* where segment 0 lies; how many fit */
  int fd;
  struct segment *segment;
  size_t known, cap; /* segments that were ever used */
  unsigned warm_free;
  bool open;      /* a payload is under way */
  uint64_t first; /* segment being filled; valid if filling */
  bool filling;
  uint64_t at, end;           /* next free place and the end of the segment or run being filled */
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

/* ---- segments ------------------------------------------------------------------------------ */

/* The first of n free segments in a row, the known ones first. */
static uint64_t find_run(const struct store *s, uint64_t n) {
  uint64_t free = 0;
  for (uint64_t i = 0; i < s->known; i++) {
    free = s->segment[i].used ? 0 : free + 1;
    if (free == n) return i + 1 - n;
  }
  return s->known - free;
}

static int back_with_memory(struct store *s, uint64_t i) {
  struct segment *g = &s->segment[i];
  int err = 0;
  if (g->warm) {
    s->warm_free--;
    return 0;
  }
  err = FAIL_ERROR(P_STORE);
  if (err) return err;
  do err = posix_fallocate(s->fd, (off_t)place(s, i), SEGMENT);
  while (err == EINTR);
  g->warm = !err;
  return -err;
}

static void release_segment(struct store *s, uint64_t i) {
  struct segment *g = &s->segment[i];
  g->used = false;
  g->run = 0;
  if (!g->warm) return;
  if (s->warm_free < WARM_MAX) {
    s->warm_free++;
    return;
  }
  fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)place(s, i), SEGMENT);
  g->warm = false;
}

static void release_run(struct store *s, uint64_t first) {
  for (uint64_t i = first, n = s->segment[first].run; i < first + n; i++) release_segment(s, i);
  while (s->known && !s->segment[s->known - 1].used && !s->segment[s->known - 1].warm) s->known--;
}

static int take_run(struct store *s, uint64_t n, uint64_t *first) {
  uint64_t i = find_run(s, n);
  if (i + n > s->count) return PLUA_ETOOBIG;
  int err = grow((void **)&s->segment, &s->cap, i + n, sizeof *s->segment);
  if (err < 0) return err;
  while (s->known < i + n) s->segment[s->known++] = (struct segment){0};
  for (uint64_t k = i; k < i + n && !err; k++) {
    err = back_with_memory(s, k);
    if (err) /* the ones before are ours and warm: given back as such */
      for (uint64_t u = i; u < k; u++) release_segment(s, u);
    else
      s->segment[k].used = true;
  }
  if (err) return err;
  s->segment[i].run = (uint32_t)n;
  s->segment[i].live = 0;
  *first = i;
  return 0;
}

/* Stops filling; what was never used goes back at once. */
static void leave_segment(struct store *s) {
  if (s->filling && s->segment[s->first].live == 0) release_run(s, s->first);
  s->filling = false;
  s->chain = 0;
}

/* ---- payloads ------------------------------------------------------------------------------ */

static void lend(struct store *s, size_t used) {
  s->out.begin = s->base + s->start + HEAD;
  s->out.at = s->out.begin + used;
  s->out.end = s->base + s->end;
}

/* Goes on in a new run that has room for 'want' bytes, the first 'used' of which exist. */
static int move_on(struct store *s, size_t used, size_t want) {
  uint64_t first, n;
  if (want > SIZE_MAX / 2) return -ENOMEM;
  n = (HEAD + (uint64_t)want + SEGMENT - 1) / SEGMENT;
  if (used > SEGMENT) n += n / 2; /* no quadratic copying; the rest goes back in store_end */
  int err = take_run(s, n, &first);
  if (err) return err;
  uint64_t old = s->start;
  uint64_t at = place(s, first);
  if (used) memcpy(s->base + at + HEAD, s->base + old + HEAD, used);
  leave_segment(s);
  s->filling = true;
  s->first = first;
  s->start = s->at = at;
  s->end = at + n * SEGMENT;
  s->follows = false;
  lend(s, used);
  return 0;
}

static int more(plua_out *out, size_t need) {
  struct store *s = (struct store *)out;
  size_t used = (size_t)(out->at - out->begin);
  return need > SIZE_MAX - used ? -ENOMEM : move_on(s, used, used + need);
}

int store_begin(struct store *s, uint64_t chain, plua_out **out) {
  if (s->open) return PLUA_EARG;
  s->start = s->at;
  s->follows = s->filling && chain && s->chain == chain;
  s->next_chain = chain;
  int err = 0;
  if (!s->filling || s->end - s->at < HEAD + 64)
    err = move_on(s, 0, 64);
  else
    lend(s, 0);
  if (err) return err;
  s->open = true;
  *out = &s->out;
  return 0;
}

/* A large payload keeps the segments that it needs and nobody else lives in them. */
static void trim(struct store *s) {
  uint64_t need = (s->at - place(s, s->first) + SEGMENT - 1) / SEGMENT;
  for (uint64_t i = s->first + need; i < s->first + s->segment[s->first].run; i++)
    release_segment(s, i);
  if (s->segment[s->first].run == 1) return;
  s->segment[s->first].run = (uint32_t)need;
  s->filling = false;
}

void store_end(struct store *s, uint64_t *off, bool *follows) {
  uint64_t len = (uint64_t)(s->out.at - s->out.begin);
  memcpy(s->base + s->start, &len, sizeof len);
  *off = s->start;
  *follows = s->follows;
  s->segment[s->first].live++;
  s->at = s->start + HEAD + ((len + 7) & ~UINT64_C(7));
  if (s->at > s->end) s->at = s->end;
  s->chain = s->next_chain;
  s->open = false;
  trim(s);
}

void store_drop(struct store *s) {
  if (!s->open) return;
  s->open = false;
  if (s->segment[s->first].run > 1) leave_segment(s);
}

void store_free(struct store *s, uint64_t off) {
  uint64_t i = segment_of(s, off);
  struct segment *g = &s->segment[i];
  if (!g->used || !g->live) IMPOSSIBLE("payload freed twice");
  if (--g->live) return;
  if (s->filling && i == s->first) {
    if (s->open) return;
    s->at = place(s, i); /* empty again: filled from its start, in warm cache */
    s->chain = 0;
    return;
  }
  release_run(s, i);
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
