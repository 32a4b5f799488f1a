/* serve_spill.h: a worker's messages that are too large for its ring lie in its spill area, one
   behind the other, and from its start again whenever the owner has released them all. A frame on
   the ring says where each one is. SPDX-License-Identifier: MIT */
#ifndef PLUA_SERVE_SPILL_H
#define PLUA_SERVE_SPILL_H

#include "team.h"

struct spill {
  const struct team *team;
  unsigned me;
  const _Atomic uint32_t *released; /* owner: how many messages it has released */
  unsigned char *base;              /* NULL until the first use: most workers need none */
  size_t size, at;                  /* the next message, or the one under way, begins at 'at' */
  size_t touched;                   /* memory exists below this */
  uint32_t sent, done;              /* messages published, and released as last seen */
  bool under_way;                   /* the message that is being written lies here */
};

enum { SPILL_FULL = 1 };

/* Takes in a message of 'used' bytes at 'begin', or lets the one under way, which has 'used', grow;
   it may move. 0, and it may grow to *room bytes, 'want' at least; SPILL_FULL: ask again when the
   owner has released some; PLUA_ETOOBIG, -ENOMEM or what a failpoint says: it is where it was, or
   has moved. */
int spill_grow(struct spill *p, const unsigned char *begin, size_t used, size_t want, size_t *room);
static inline unsigned char *spill_message(const struct spill *p) {
  return p->base + p->at;
}
/* The message under way has 'len' bytes and is whole: the body of the frame that publishes it. */
struct frame_spill spill_end(struct spill *p, size_t len);

#endif
