/* hear.c: what a team's workers say, as events: frames first, then deaths.
   Invariant: what shared memory says is believed only where the private tables confirm it: a frame
   counts if its worker has begun that slot and the slot was posted. A worker that breaks this is
   killed and its frames from then on are ignored. A death is told once the kernel has confirmed it
   and all whole frames have been told.
   Knows rings, slots and words. Does not know jobs, retries or Lua. SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <signal.h>

#include "fail.h"
#include "local.h"

static void give_back(struct local *l) {
  struct peer *p = l->lent;
  if (!p) return;
  l->lent = NULL;
  ring_skip(&p->ring, l->lent_bytes);
  if (!l->lent_spill) return;
  l->lent_spill = false;
  atomic_fetch_add_explicit(&p->slice->spill_done, 1, memory_order_release);
  ring_give(&p->ring);
}

enum slot_says slot_says(const struct local *l, unsigned i, unsigned *w) {
  uint64_t s = atomic_load(&l->team.view.slot[i].state);
  uint32_t seq = l->posted[i].seq;
  *w = (unsigned)(s >> 8 & 0xffffff) - 1;
  if (s == slot_state(seq, 0, SLOT_READY)) return SAYS_READY;
  return s == slot_state(seq, *w + 1, SLOT_TAKEN) && *w < l->team.cap ? SAYS_TAKEN : SAYS_GARBAGE;
}

/* A worker may begin what the board says that it took; where the board was overwritten, what it
   knows the number of. */
static bool frame_begin(struct local *l, struct peer *p, const struct ring_frame *f,
                        struct link_event *e) {
  uint32_t begun[2];
  unsigned w;
  if (f->len != sizeof begun) return false;
  memcpy(begun, f->body, sizeof begun);
  uint32_t slot = begun[0], seq = begun[1];
  if (slot >= l->team.view.slots || peer_busy(l, p)) return false;
  struct posted *o = &l->posted[slot];
  if (o->state != OUT_READY || o->seq != seq) return false;
  enum slot_says says = slot_says(l, slot, &w);
  if (says == SAYS_READY || (says == SAYS_TAKEN && w != (unsigned)(p - l->peer))) return false;
  posted_enter(l, slot, OUT_BEGUN);
  p->seq = seq;
  e->slot = p->slot = (int)slot;
  e->what = LINK_BEGIN;
  return true;
}

/* A spilled body must lie in its worker's own area. */
static bool frame_unspill(struct local *l, struct peer *p, struct link_event *e) {
  struct frame_spill f;
  if (e->len != sizeof f) return false;
  memcpy(&f, e->data, sizeof f);
  uint64_t at = f.off - team_spill(&l->team, (unsigned)(p - l->peer)); /* huge: before it */
  if (at > l->team.spill_len || f.len > l->team.spill_len - at) return false;
  e->data = l->team.base + f.off;
  e->len = f.len;
  p->spilled = l->lent_spill = true;
  return true;
}

static bool frame_tail(struct link_event *e, int *code) {
  struct frame_tail t;
  if (e->len < sizeof t) return false;
  e->len -= sizeof t;
  memcpy(&t, (const unsigned char *)e->data + e->len, sizeof t);
  if (t.printed > e->len) return false;
  e->len -= e->output_len = t.printed;
  e->output = (const char *)e->data + e->len;
  e->elapsed_ns = t.elapsed_ns;
  *code = t.code;
  return true;
}

static bool frame_end(const struct ring_frame *f, struct link_event *e) {
  if (f->len != sizeof e->elapsed_ns) return false;
  memcpy(&e->elapsed_ns, f->body, sizeof e->elapsed_ns);
  e->n = f->tag;
  e->what = LINK_END;
  return true;
}

/* Makes an event of a frame. False: it is not one that this worker may send now. */
static bool understand(struct local *l, struct peer *p, struct link_event *e) {
  const struct ring_frame *f = &l->frame;
  unsigned kind = f->kind & ~(unsigned)FRAME_SPILLED;
  e->data = f->body;
  e->len = f->len;
  e->tag = f->tag;
  if (f->kind != kind && !frame_unspill(l, p, e)) return false;
  e->slot = p->slot;
  switch ((enum frame)kind) {
  case FRAME_VALUE:
    e->what = LINK_VALUE;
    e->n = 1;
    return p->slot != NO_SLOT;
  case FRAME_ERROR:
    e->what = LINK_ERROR;
    return p->slot != NO_SLOT && frame_tail(e, &e->failed) && e->failed > 0;
  case FRAME_CODE:
    e->what = LINK_CODE;
    return p->slot != NO_SLOT && frame_tail(e, &e->code) && e->code < 0;
  case FRAME_BEGIN:
    return frame_begin(l, p, f, e);
  case FRAME_END:
    return p->slot != NO_SLOT && frame_end(f, e);
  case FRAME_UP:
    e->what = LINK_UP;
    return true;
  case FRAME_BOOT:
    e->what = LINK_BOOT;
    return true;
  case FRAME_LEFT:
    e->what = LINK_LEFT;
    return true;
  case FRAME_SPILLED:
    break;
  }
  return false;
}

/* Where the bodies of a run are told. */
struct replies {
  plua_reply *list;
  unsigned max; /* 0: values are told one by one */
};

static int fault(struct local *l, struct peer *p, struct link_event *e) {
  p->broken = true;
  l->lent_spill = false;
  local_kill_peer(p);
  e->what = LINK_FAULT;
  return 1;
}

/* Values come in runs, never beyond the batch that they are of. */
static void take_run(struct local *l, struct peer *p, struct link_event *e, struct replies to) {
  const struct posted *o = &l->posted[p->slot];
  if (o->n - e->tag < to.max) to.max = o->n - e->tag;
  e->n = ring_run(&p->ring, &l->frame, to.list, to.max, &l->lent_bytes, &e->len);
  l->frames += e->n - 1;
}

/* The next frame of one worker as an event. */
static int tell_frame(struct local *l, struct peer *p, struct link_event *e, struct replies to) {
  if (p->broken) return 0;
  int r = ring_peek(&p->ring, &l->frame);
  if (r == 0) return 0;
  FAIL_POINT(P_DRAIN);
  e->worker = (int)(p - l->peer);
  e->pid = p->pid;
  if (r < 0) return fault(l, p, e);
  l->lent_spill = false;
  if (!understand(l, p, e)) return fault(l, p, e);
  l->lent = p;
  l->lent_bytes = ring_span(l->frame.len);
  if (l->frame.kind != FRAME_VALUE || !to.max || e->tag >= l->posted[p->slot].n) return 1;
  take_run(l, p, e, to);
  return 1;
}

/* ---- deaths -------------------------------------------------------------------------------- */

static int tell_back(struct local *l, unsigned i, struct link_event *e) {
  posted_enter(l, i, OUT_NONE);
  e->what = LINK_BACK;
  e->slot = (int)i;
  return 1;
}

/* Slots that the dead worker had taken and not begun. What others that ended had begun is still in
   their rings. */
static int tell_orphan(struct local *l, const struct peer *dead, struct link_event *e) {
  unsigned w;
  for (unsigned i = 0; l->ready && i < l->team.view.slots; i++) {
    if (l->posted[i].state != OUT_READY || slot_says(l, i, &w) != SAYS_TAKEN) continue;
    if (&l->peer[w] != dead && l->peer[w].state != P_NONE) continue;
    e->worker = (int)w;
    e->pid = dead->pid;
    e->signal = dead->signal;
    e->status = dead->status;
    e->code = dead->broken ? PLUA_EPROTO : 0;
    return tell_back(l, i, e);
  }
  return 0;
}

/* Slots whose state is garbage come back too, but not before who has taken one of them has had time
   to say so, and who spoilt them is dead. */
static int tell_garbage(struct local *l, struct link_event *e) {
  unsigned w;
  if (now_ns() - l->garbage_ns < GARBAGE_NS) return 0;
  for (unsigned i = 0; i < l->lives; i++)
    if (l->peer[l->live[i]].broken) return 0;
  for (unsigned i = 0; i < l->team.view.slots; i++) {
    if (l->posted[i].state != OUT_READY || slot_says(l, i, &w) != SAYS_GARBAGE) continue;
    e->worker = -1;
    e->code = PLUA_EPROTO;
    return tell_back(l, i, e);
  }
  l->garbage_ns = 0;
  return 0;
}

static void forget_peer(struct local *l, struct peer *p) {
  struct slice *s = p->slice;
  if (atomic_load(&s->sleeping) == ASLEEP) atomic_fetch_sub(&l->team.view.board->sleepers, 1);
  if (p->spilled || p->signal)
    fallocate(l->team.memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              (off_t)team_spill(&l->team, (unsigned)(p - l->peer)), (off_t)l->team.spill_len);
  p->state = P_NONE;
  if (&l->peer[l->live[l->at]] != p) IMPOSSIBLE("a death was told out of turn");
  l->live[l->at] = l->live[--l->lives];
}

static int tell_death(struct local *l, struct peer *p, struct link_event *e) {
  FAIL_POINT(P_DEATH);
  if (tell_orphan(l, p, e)) return 1;
  uint64_t word = atomic_load(&p->slice->word);
  if (word == WORD_HOLD) word = p->word;
  e->what = LINK_DEAD;
  e->failed = atomic_load(&p->slice->go) == GO_LEAVES;
  e->pid = p->pid;
  e->worker = (int)(p - l->peer);
  e->slot = p->slot;
  e->next = p->slot != NO_SLOT && word_seq(word) == l->posted[p->slot].seq
              ? (int64_t)word_next(word)
              : -1;
  e->signal = p->signal;
  e->status = p->status;
  e->code = p->broken ? PLUA_EPROTO : 0;
  if (p->signal == SIGKILL && !p->killed && oom_took(&l->oom)) e->code = PLUA_EOOM;
  words_take(l, p, e);
  forget_peer(l, p);
  /* It may have spoilt the board, or been the one that was woken for what lies ready. */
  if (l->ready || p->broken || p->signal || p->status) local_heal(l, p->broken);
  return 1;
}

/* What one worker has to tell now. */
static int tell_peer(struct local *l, struct peer *p, struct link_event *e, struct replies to) {
  if (tell_frame(l, p, e, to)) return 1;
  if (!p->broken)
    ring_give(&p->ring);
  else if (p->lost && tell_orphan(l, p, e))
    return 1;
  if (p->state == P_ENDED) return tell_death(l, p, e);
  if (p->state != P_HELD || p->quiet) return 0;
  p->quiet = true;
  e->what = LINK_QUIET;
  e->pid = p->pid;
  e->worker = (int)(p - l->peer);
  e->slot = p->slot;
  return 1;
}

int hear_next(struct local *l, struct link_event *e, plua_reply *replies, unsigned max) {
  const struct replies to = {replies, max};
  give_back(l);
  e->slot = NO_SLOT;
  e->data = NULL;
  e->len = 0;
  e->output = NULL;
  e->output_len = 0;
  e->elapsed_ns = -1;
  e->signal = e->status = e->code = e->failed = 0;
  if (UNLIKELY(++l->frames > FRAMES_PER_LOOK)) local_look(l, 0);
  if (UNLIKELY(l->garbage_ns) && tell_garbage(l, e)) return 1;
  for (unsigned tried = 0; tried < l->lives; tried++) {
    if (l->at >= l->lives) l->at = 0;
    if (tell_peer(l, &l->peer[l->live[l->at]], e, to)) return 1;
    l->at++;
  }
  return 0;
}

bool hear_ready(const struct local *l, enum link_wait how) {
  if (l->garbage_ns && now_ns() - l->garbage_ns >= GARBAGE_NS) return true;
  for (unsigned i = 0; i < l->lives; i++) {
    const struct peer *p = &l->peer[l->live[i]];
    if (p->state == P_ENDED || (p->state == P_HELD && !p->quiet)) return true;
    if (p->broken) continue;
    uint64_t tail = atomic_load_explicit(&p->slice->ring.tail, memory_order_acquire);
    if (tail == p->ring.head) continue;
    uint32_t sleep = atomic_load(&p->slice->sleeping);
    bool rests = sleep == DROWSY || sleep == ASLEEP;
    if (how == LINK_ANY || rests || tail - p->ring.head >= p->ring.size / 2) return true;
  }
  return false;
}
