/* local.h: the owner's private tables of a local team: local.c keeps them, hear.c reads the rings
   into them. SPDX-License-Identifier: MIT */
#ifndef PLUA_LOCAL_H
#define PLUA_LOCAL_H

#include "link.h"
#include "oom.h"
#include "team.h"

enum {
  NO_SLOT = -1,
  TIMER = 1 << 24,
  FRAMES_PER_LOOK = 4096,
  LOOK_NS = 1000000000,
  BULK_NS = 20000000,
  HEALTH_NS = 500000000,
  GARBAGE_NS = 50000000
};

enum peer_state {
  P_NONE,  /* no process */
  P_ALIVE, /* forked; frames may come */
  P_HELD,  /* its word says HOLD; frames still come */
  P_ENDED  /* the kernel says it has ended; frames left in its ring are still told */
};

struct peer {
  enum peer_state state;
  bool broken; /* frames are ignored */
  bool killed; /* by us */
  bool lost;   /* killed, and does not end */
  bool quiet;  /* P_HELD: LINK_QUIET was told */
  bool leaves; /* was told to, alone */
  bool woken;  /* it was stopped when it should leave, and was let go on */
  struct proc proc;
  pid_t pid; /* stays when proc has been reaped */
  struct ring ring;
  struct slice *slice;
  int slot;      /* the batch that it began last; NO_SLOT: none */
  uint32_t seq;  /* of that batch, also when it is done */
  uint64_t word; /* P_HELD: what its word was */
  int signal, status;
  bool spilled;         /* its spill area was used */
  struct capture *kept; /* what it prints, to be had when it is dead; NULL: none came */
};

enum posted_state { OUT_NONE, OUT_READY, OUT_BEGUN };

struct posted {
  enum posted_state state;
  uint32_t seq;
  unsigned n, lane;
};

struct local {
  struct link link; /* must be first */
  struct team team;
  struct peer *peer;  /* cap of them */
  int *live;          /* numbers of peers that are not P_NONE */
  unsigned lives, at; /* 'at': the peer in live[] that is looked at */
  unsigned begun;     /* peers from here on never were anything but P_NONE */
  struct posted *posted;
  unsigned ready; /* of them are OUT_READY */
  uint32_t seq;
  unsigned fresh;            /* batches posted since the last flush */
  struct proc spare[SPARES]; /* by line; pid 0: none */
  bool cramped;              /* there is room for one only */
  struct oom oom;
  int timer_fd;
  struct peer *lent; /* whose frame the caller has borrowed */
  uint64_t lent_bytes;
  struct ring_frame frame;
  bool lent_spill;
  bool closed;        /* what the board should say */
  bool alone;         /* this process had no other thread, and nobody else's code ran since */
  bool moved;         /* somebody else's code ran since the spare was made */
  int64_t garbage_ns; /* when the board was found spoilt; 0: it is not */
  int64_t healthy_ns; /* when the board was last found sane */
  char *words;        /* the last ones of the worker whose death was told; CAPTURE_TAIL bytes */
  unsigned frames;    /* told since descriptors were looked at */
};

/* The only writer of a slot's state. */
static inline void posted_enter(struct local *l, unsigned i, enum posted_state state) {
  l->ready += (state == OUT_READY) - (l->posted[i].state == OUT_READY);
  l->posted[i].state = state;
}
/* Whether outcomes are still to come of the batch that it began last. */
static inline bool peer_busy(const struct local *l, const struct peer *p) {
  if (p->slot == NO_SLOT) return false;
  const struct posted *o = &l->posted[p->slot];
  return o->state == OUT_BEGUN && o->seq == p->seq;
}
/* hear.c: the next thing that workers said or suffered: 1 and the event, or 0. As link_ops.next. */
int hear_next(struct local *l, struct link_event *e, plua_reply *replies, unsigned max);
/* hear.c: whether hear_next has something; 'how' as in link_ops.wait. */
bool hear_ready(const struct local *l, enum link_wait how);
/* local.c: takes in what the descriptors say, waiting for at most timeout_ns (negative: no limit).
   How many had something, or a negated errno. */
int local_look(struct local *l, int64_t timeout_ns);
/* local.c: writes the board again if it does not say what it should, or 'anyway'. */
void local_heal(struct local *l, bool anyway);
/* hear.c: what the state of a slot says of the batch that is out there; *w is who has taken it. */
enum slot_says { SAYS_READY, SAYS_TAKEN, SAYS_GARBAGE };
enum slot_says slot_says(const struct local *l, unsigned i, unsigned *w);
/* start.c: starts workers from 'first' on, which have no process: how many, of n; or a negative
   code. */
int start_some(struct local *l, unsigned first, unsigned n);
/* start.c: ends the spares; or, where they are not 'ours', forgets them. */
void start_over(struct local *l, bool ours);
/* start.c: has the team's epoll tell of a descriptor, as 'what'. 0 or a negated errno. */
int local_watch(struct local *l, int fd, uint32_t what);
/* words.c: takes in the captured output that workers offer. */
void words_receive(struct local *l);
/* words.c: shows what is left of a dead worker's output, and tells it in e. */
void words_take(struct local *l, struct peer *p, struct link_event *e);
void words_drop(struct peer *p);
/* local.c: sends SIGKILL to a worker of ours. 0, or why not. */
int local_kill_peer(struct peer *p);

#endif
