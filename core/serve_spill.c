/* serve_spill.c: room for messages that are too large for the ring.
   Invariant: below 'touched' memory exists, so that writing there cannot raise SIGBUS; what lies
   below 'at' and is not released is not moved.
   Knows the team's layout. Does not know what messages say. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "fail.h"
#include "serve_spill.h"

enum { LIVE_MAX = 64 };
#define SPILL_SOFT \
  (UINT64_C(32) << 20) /* spilled bytes that may wait before we wait for the owner */

/* A failure is an error here, not a SIGBUS later. */
static int touch(struct spill *p, size_t end) {
  if (end <= p->touched) return 0;
  size_t upto = (end + 0xffff) & ~(size_t)0xffff;
  if (upto > p->size) upto = p->size;
  int err = FAIL_ERROR(W_SPILL);
  if (err) return err;
  if (!p->base) p->base = team_enter_spill(p->team, p->me);
  if (!p->base) return -ENOMEM;
#ifdef MADV_POPULATE_WRITE
  int r;
  do r = madvise(p->base + p->touched, upto - p->touched, MADV_POPULATE_WRITE);
  while (r < 0 && errno == EINTR);
  if (r < 0 && errno != EINVAL) return -ENOMEM; /* EINVAL: Linux before 5.14, touched on use */
#endif
  p->touched = upto;
  return 0;
}

/* Forgets released messages; large areas that are no longer needed are given back. */
static void tidy(struct spill *p) {
  p->done = atomic_load_explicit(p->released, memory_order_acquire);
  if (p->done != p->sent) return;
  p->at = 0;
  if (p->under_way || p->touched <= 2 * SPILL_SOFT) return;
  madvise(p->base + SPILL_SOFT, p->touched - SPILL_SOFT, MADV_REMOVE);
  p->touched = SPILL_SOFT;
}

/* A message that is under way moves to the start when all before it is released. */
static bool has_room(struct spill *p, size_t used, size_t want) {
  size_t soft = p->under_way ? p->size : SPILL_SOFT, at = p->at;
  tidy(p);
  if (p->under_way && p->at < at) memmove(p->base + p->at, p->base + at, used);
  return !p->at || (p->at < soft && p->sent - p->done < LIVE_MAX && want <= p->size - p->at);
}

int spill_grow(struct spill *p, const unsigned char *begin, size_t used, size_t want,
               size_t *room) {
  if (want > p->size) return PLUA_ETOOBIG;
  if (!has_room(p, used, want)) return SPILL_FULL;
  size_t roomy = want + used / 8; /* it grows in place: a little ahead saves calls */
  if (roomy > p->size - p->at) roomy = p->size - p->at;
  int err = touch(p, p->at + roomy);
  if (err) return err;
  if (!p->under_way) memcpy(p->base + p->at, begin, used);
  p->under_way = true;
  *room = roomy;
  return 0;
}

struct frame_spill spill_end(struct spill *p, size_t len) {
  struct frame_spill f = {team_spill(p->team, p->me) + p->at, len};
  p->at += (len + 63) & ~(size_t)63;
  p->sent++;
  p->under_way = false;
  return f;
}
