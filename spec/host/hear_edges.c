/* hear_edges.c: what the owner believes of what workers say, where one byte, slot or worker more
   decides. One process, one thread. Knows local.h. SPDX-License-Identifier: MIT */
#include "owner.h"

#include <signal.h>

static struct link_event e;

static void say(unsigned w, unsigned kind, unsigned tag, const void *body, size_t len) {
  size_t room;
  unsigned char *p = ring_reserve(&pen[w], len, &room);
  CHECK(p != NULL);
  if (len) memcpy(p, body, len);
  ring_publish(&pen[w], kind, (uint16_t)tag, (uint32_t)len);
}

static plua_reply reply[N + 1];

static bool hears_up_to(enum link_what what, unsigned max) {
  memset(&e, 0xff, sizeof e);
  return hear_next(l, &e, max ? reply : NULL, max) == 1 && e.what == what;
}
static bool hears(enum link_what what) {
  return hears_up_to(what, 0);
}
static bool hears_nothing(void) {
  return hear_next(l, &e, NULL, 0) == 0;
}
/* Worker 0 has broken the protocol, and nothing else that it says counts. */
static bool hears_fault(void) {
  say(0, FRAME_UP, 0, NULL, 0);
  return hears(LINK_FAULT) && e.worker == 0 && l->peer[0].broken && l->peer[0].killed &&
         hears_nothing();
}

/* ---- beginning ------------------------------------------------------------------------------- */

static void says_of_slots(void) {
  unsigned w;
  fresh();
  post(0, OUT_READY, ready(0));
  CHECK(slot_says(l, 0, &w) == SAYS_READY);
  post(0, OUT_READY, taken(0, 1));
  CHECK(slot_says(l, 0, &w) == SAYS_TAKEN && w == 1);
  post(0, OUT_READY, taken(0, l->team.cap - 1));
  CHECK(slot_says(l, 0, &w) == SAYS_TAKEN && w == l->team.cap - 1);
  post(0, OUT_READY, taken(0, l->team.cap));
  CHECK(slot_says(l, 0, &w) == SAYS_GARBAGE);
  post(0, OUT_READY, taken(1, 1)); /* another number */
  CHECK(slot_says(l, 0, &w) == SAYS_GARBAGE);
}

static void begin(unsigned slot, unsigned seq) {
  const uint32_t begun[2] = {slot, seq};
  say(0, FRAME_BEGIN, 0, begun, sizeof begun);
}

static void begins(void) {
  fresh();
  post(SLOTS - 1, OUT_READY, taken(SLOTS - 1, 0));
  begin(SLOTS - 1, SEQ + SLOTS - 1);
  CHECK(hears(LINK_BEGIN) && e.slot == SLOTS - 1 && e.worker == 0 && e.pid == 100);
  CHECK(l->posted[SLOTS - 1].state == OUT_BEGUN && !l->ready);
  /* Nothing more, before it has ended. */
  post(0, OUT_READY, taken(0, 0));
  begin(0, SEQ);
  CHECK(hears_fault());

  fresh(); /* what it does know the number of, where the board was overwritten */
  post(1, OUT_READY, 12345);
  begin(1, SEQ + 1);
  CHECK(hears(LINK_BEGIN) && e.slot == 1);
  posted_enter(l, 1, OUT_NONE); /* all of it has come */
  post(0, OUT_READY, taken(0, 0));
  begin(0, SEQ);
  CHECK(hears(LINK_BEGIN) && e.slot == 0);
}

static void begins_no_other(void) {
  fresh(); /* one that there is not */
  post(SLOTS, OUT_READY, taken(SLOTS, 0));
  begin(SLOTS, SEQ + SLOTS);
  CHECK(hears_fault());
  fresh(); /* one that it has not taken */
  post(0, OUT_READY, ready(0));
  begin(0, SEQ);
  CHECK(hears_fault());
  fresh(); /* one that another has taken */
  post(0, OUT_READY, taken(0, 1));
  begin(0, SEQ);
  CHECK(hears_fault());
  fresh(); /* under another number */
  post(0, OUT_READY, taken(0, 0));
  begin(0, SEQ + 1);
  CHECK(hears_fault());
  fresh(); /* one that is not out */
  post(0, OUT_NONE, taken(0, 0));
  begin(0, SEQ);
  CHECK(hears_fault());
  fresh(); /* in too few bytes */
  post(0, OUT_READY, taken(0, 0));
  say(0, FRAME_BEGIN, 0, (uint32_t[2]){0, SEQ}, 7);
  CHECK(hears_fault());
}

/* ---- outcomes -------------------------------------------------------------------------------- */

/* Worker 0 has begun slot 0. */
static void begun(void) {
  fresh();
  post(0, OUT_BEGUN, taken(0, 0));
  l->peer[0].slot = 0;
  l->peer[0].seq = SEQ;
}

static void outcomes(void) {
  const struct frame_tail error = {5, 1, 0}, code = {6, -1, 0};
  const int64_t ns = 99;
  begun();
  say(0, FRAME_VALUE, 3, "abc", 3);
  CHECK(hears(LINK_VALUE) && e.n == 1 && e.tag == 3 && e.len == 3 && e.slot == 0);
  CHECK(memcmp(e.data, "abc", 3) == 0 && e.elapsed_ns == -1 && !e.output && !e.code);
  say(0, FRAME_ERROR, 4, &error, sizeof error);
  CHECK(hears(LINK_ERROR) && e.failed == 1 && e.len == 0 && e.elapsed_ns == 5 && e.tag == 4);
  say(0, FRAME_CODE, 5, &code, sizeof code);
  CHECK(hears(LINK_CODE) && e.code == -1 && e.len == 0 && e.elapsed_ns == 6 && e.tag == 5);
  say(0, FRAME_END, 6, &ns, sizeof ns);
  CHECK(hears(LINK_END) && e.n == 6 && e.elapsed_ns == 99);
  say(0, FRAME_UP, 0, NULL, 0);
  say(0, FRAME_BOOT, 0, "no", 2);
  say(0, FRAME_LEFT, 0, "gone", 4);
  CHECK(hears(LINK_UP) && hears(LINK_BOOT) && e.len == 2 && hears(LINK_LEFT) && e.len == 4);
  CHECK(hears_nothing() && l->peer[0].slice->ring.head == pen[0].tail);
}

/* A message of five bytes, and what was printed: as many as the tail says. */
static bool told_printed(unsigned printed) {
  unsigned char body[5 + sizeof(struct frame_tail)] = "mmpp";
  const struct frame_tail t = {1, 1, printed};
  memcpy(body + 5, &t, sizeof t);
  begun();
  say(0, FRAME_ERROR, 0, body, sizeof body);
  if (!hears(LINK_ERROR)) return false;
  CHECK(e.len == 5 - printed && e.output_len == printed);
  CHECK(e.output == (const char *)e.data + e.len);
  return true;
}

static void outcomes_of_no_batch(void) {
  const struct frame_tail error = {5, 1, 0}, code = {6, -1, 0};
  const int64_t ns = 99;
  fresh();
  say(0, FRAME_VALUE, 0, "abc", 3);
  CHECK(hears_fault());
  fresh();
  say(0, FRAME_ERROR, 0, &error, sizeof error);
  CHECK(hears_fault());
  fresh();
  say(0, FRAME_CODE, 0, &code, sizeof code);
  CHECK(hears_fault());
  fresh();
  say(0, FRAME_END, 0, &ns, sizeof ns);
  CHECK(hears_fault());
  fresh();
  say(0, FRAME_LEFT + 1, 0, NULL, 0);
  CHECK(hears_fault());
}

static void outcomes_that_are_none(void) {
  const struct frame_tail zero = {5, 0, 0}, minus = {5, -1, 0}, plus = {5, 1, 0};
  const int64_t ns = 99;
  begun();
  say(0, FRAME_ERROR, 0, &zero, sizeof zero);
  CHECK(hears_fault());
  begun();
  say(0, FRAME_ERROR, 0, &minus, sizeof minus);
  CHECK(hears_fault());
  begun();
  say(0, FRAME_CODE, 0, &zero, sizeof zero);
  CHECK(hears_fault());
  begun();
  say(0, FRAME_CODE, 0, &plus, sizeof plus);
  CHECK(hears_fault());
  begun();
  say(0, FRAME_ERROR, 0, &plus, sizeof plus - 1);
  CHECK(hears_fault());
  begun();
  say(0, FRAME_END, 0, &ns, sizeof ns - 1);
  CHECK(hears_fault());
  begun(); /* a frame that the writer has not finished */
  atomic_store(&l->peer[0].slice->ring.tail, 12);
  CHECK(hears(LINK_FAULT) && hears_nothing());
  CHECK(told_printed(0) && told_printed(5) && !told_printed(6));
}

/* ---- spilled --------------------------------------------------------------------------------- */

static bool spilled(uint64_t off, uint64_t len, size_t told) {
  const struct frame_spill f = {off, len};
  begun();
  say(0, FRAME_VALUE | FRAME_SPILLED, 2, &f, told);
  if (!hears(LINK_VALUE)) return false;
  CHECK(e.data == l->team.base + off && e.len == len && l->peer[0].spilled);
  CHECK(l->peer[0].slice->spill_done == 0);
  CHECK(hears_nothing() && l->peer[0].slice->spill_done == 1);
  CHECK(hears_nothing() && l->peer[0].slice->spill_done == 1); /* once */
  return true;
}

static void spills(void) {
  begun();
  uint64_t low = team_spill(&l->team, 0), all = l->team.spill_len;
  CHECK(spilled(low, all, 16) && spilled(low, 0, 16) && spilled(low + all, 0, 16));
  CHECK(!spilled(low, all + 1, 16) && !spilled(low - 1, 1, 16) && !spilled(low + 1, all, 16));
  CHECK(!spilled(low + all + 1, 0, 16) && !spilled(low - 1, all + 2, 16));
  CHECK(!spilled(low, 8, 15));
  /* A fault after one gives nothing back. */
  begun();
  say(0, FRAME_VALUE | FRAME_SPILLED, 0, &(struct frame_spill){low, 8}, 16);
  say(0, FRAME_LEFT + 1, 0, NULL, 0);
  CHECK(hears(LINK_VALUE) && hears(LINK_FAULT) && l->peer[0].slice->spill_done == 1);
  CHECK(hears_nothing() && l->peer[0].slice->spill_done == 1);
}

/* ---- runs ------------------------------------------------------------------------------------ */

static void values(unsigned from, unsigned n) {
  begun();
  for (unsigned i = from; i < from + n; i++) say(0, FRAME_VALUE, i, "ab", 2);
}

static void runs(void) {
  unsigned before;
  values(0, N + 1); /* one more than the batch has */
  before = l->frames;
  CHECK(hears_up_to(LINK_VALUE, N + 1) && e.n == N && e.len == 2 * N && e.tag == 0);
  CHECK(l->frames == before + N);
  memset(reply, 0, sizeof reply);
  CHECK(hears_up_to(LINK_VALUE, N + 1) && e.n == 1 && e.tag == N && !reply[0].data);
  CHECK(hears_nothing());
  values(4, 6);
  CHECK(hears_up_to(LINK_VALUE, 4) && e.n == 4 && reply[3].len == 2);
  CHECK(hears_up_to(LINK_VALUE, 4) && e.n == 2 && e.tag == 8);
  values(0, 2);
  CHECK(hears_up_to(LINK_VALUE, 0) && e.n == 1);
  values(N - 2, 2);
  CHECK(hears_up_to(LINK_VALUE, 2) && e.n == 2);
}

/* ---- deaths ---------------------------------------------------------------------------------- */

static void died(unsigned w, int sig, int status) {
  struct peer *p = &l->peer[w];
  p->state = P_ENDED;
  p->signal = sig;
  p->status = status;
  CHECK(hear_ready(l, LINK_BULK));
}

static void deaths(void) {
  begun();
  atomic_store(&l->peer[0].slice->word, word_make(SEQ, 4, N));
  say(0, FRAME_VALUE, 0, "ab", 2);
  died(0, SIGSEGV, 0);
  CHECK(hears(LINK_VALUE)); /* frames first */
  CHECK(hears(LINK_DEAD) && e.worker == 0 && e.pid == 100 && e.slot == 0 && e.next == 4);
  CHECK(e.signal == SIGSEGV && e.status == 0 && e.code == 0 && e.failed == 0);
  CHECK(l->peer[0].state == P_NONE && l->lives == 1 && l->live[0] == 1 && hears_nothing());

  begun(); /* the word was held */
  atomic_store(&l->peer[0].slice->word, WORD_HOLD);
  l->peer[0].word = word_make(SEQ, 5, N);
  atomic_store(&l->peer[0].slice->go, GO_LEAVES);
  died(0, 0, 0);
  CHECK(hears(LINK_DEAD) && e.next == 5 && e.failed == 1);

  begun(); /* it shows another batch */
  atomic_store(&l->peer[0].slice->word, word_make(SEQ + 1, 5, N));
  l->peer[0].broken = true;
  died(0, 0, 3);
  CHECK(hears(LINK_DEAD) && e.next == -1 && e.status == 3 && e.code == PLUA_EPROTO);

  fresh(); /* it was in none */
  atomic_store(&l->peer[1].slice->word, word_make(SEQ, 5, N));
  died(1, 0, 0);
  CHECK(hears(LINK_DEAD) && e.worker == 1 && e.slot == NO_SLOT && e.next == -1);
  CHECK(l->lives == 1 && l->live[0] == 0);
}

static int code_of(int sig, bool killed) {
  fresh();
  l->oom = (struct oom){.left = 1, .moved_ns = now_ns()};
  l->peer[0].killed = killed;
  died(0, sig, 0);
  CHECK(hears(LINK_DEAD));
  return e.code;
}

/* Whether the board is looked at after a death. */
static bool heals(int sig, int status, bool broken, bool waits) {
  fresh();
  if (waits) post(0, OUT_READY, ready(0));
  l->peer[0].broken = broken;
  l->healthy_ns = 1;
  died(0, sig, status);
  CHECK(hears(LINK_DEAD));
  CHECK((l->garbage_ns != 0) == broken);
  return l->healthy_ns != 1;
}

static void deaths_leave(void) {
  CHECK(code_of(SIGKILL, false) == PLUA_EOOM && code_of(SIGKILL, true) == 0);
  CHECK(code_of(SIGSEGV, false) == 0 && code_of(0, false) == 0);
  CHECK(!heals(0, 0, false, false) && heals(SIGTERM, 0, false, false));
  CHECK(heals(0, 1, false, false) && heals(0, 0, true, false) && heals(0, 0, false, true));
  for (uint32_t how = AWAKE; how <= WAKING; how++) {
    fresh();
    atomic_store(&l->team.view.board->sleepers, 2);
    atomic_store(&l->peer[0].slice->sleeping, how);
    died(0, 0, 0);
    CHECK(hears(LINK_DEAD) && l->team.view.board->sleepers == (how == ASLEEP ? 1 : 2));
  }
  for (int how = 0; how < 3; how++) { /* its spill area's memory goes back */
    fresh();
    unsigned char *area = l->team.base + team_spill(&l->team, 0);
    *area = 1;
    l->peer[0].spilled = how == 1;
    died(0, how == 2 ? SIGKILL : 0, 0);
    CHECK(hears(LINK_DEAD) && *area == (how == 0));
  }
}

/* ---- batches that come back ------------------------------------------------------------------ */

static void orphans(void) {
  fresh(); /* of all slots, what the dead one had taken, and what one had that is long gone */
  post(0, OUT_READY, taken(0, 1));
  post(1, OUT_BEGUN, taken(1, 0));
  post(2, OUT_READY, taken(2, 5));
  post(3, OUT_READY, taken(3, 0));
  post(SLOTS, OUT_BEGUN, taken(SLOTS, 0));
  died(0, SIGBUS, 0);
  CHECK(hears(LINK_BACK) && e.slot == 2 && e.worker == 5 && e.pid == 100 && e.signal == SIGBUS);
  CHECK(l->posted[2].state == OUT_NONE && l->ready == 2);
  CHECK(hears(LINK_BACK) && e.slot == 3 && e.worker == 0 && e.status == 0 && e.code == 0);
  CHECK(hears(LINK_DEAD) && l->posted[0].state == OUT_READY && l->ready == 1);

  fresh(); /* not behind the last, and not what is ready still */
  post(0, OUT_READY, ready(0));
  post(SLOTS, OUT_READY, taken(SLOTS, 0));
  l->peer[0].broken = true;
  died(0, 0, 0);
  CHECK(hears(LINK_DEAD));
  fresh(); /* who was broken may have begun it */
  post(0, OUT_READY, taken(0, 0));
  l->peer[0].broken = true;
  died(0, 0, 0);
  CHECK(hears(LINK_BACK) && e.code == PLUA_EPROTO && e.worker == 0);
}

/* Killed, and does not end: what it had taken comes back, no more. */
static void lost(void) {
  fresh();
  post(0, OUT_READY, taken(0, 0));
  post(1, OUT_READY, taken(1, 0));
  l->link.ops->abandon(&l->link, 0);
  CHECK(hears(LINK_BACK) && hears(LINK_BACK) && hears_nothing());
  fresh();
  post(0, OUT_READY, taken(0, 0));
  l->link.ops->distrust(&l->link, 0);
  CHECK(hears_nothing());
}

static void garbage(void) {
  const int64_t past = now_ns() - GARBAGE_NS;
  fresh();
  post(0, OUT_READY, 12345);
  post(1, OUT_NONE, 12345);
  post(2, OUT_READY, ready(2));
  post(3, OUT_READY, 12345);
  post(SLOTS, OUT_READY, 12345);
  CHECK(hears_nothing() && !hear_ready(l, LINK_ANY)); /* nobody has found it */
  l->garbage_ns = now_ns() + INT64_C(1000000000000);
  CHECK(hears_nothing() && !hear_ready(l, LINK_ANY)); /* not before its time */
  l->garbage_ns = past;
  l->peer[1].broken = true;
  CHECK(hears_nothing() && hear_ready(l, LINK_ANY)); /* nor while who spoilt it lives */
  l->peer[1].broken = false;
  CHECK(hears(LINK_BACK) && e.slot == 0 && e.worker == -1 && e.code == PLUA_EPROTO);
  CHECK(hears(LINK_BACK) && e.slot == 3 && l->garbage_ns == past);
  CHECK(hears_nothing() && l->garbage_ns == 0 && l->ready == 2);
  l->peer[l->live[l->lives] = 7].broken = true; /* is none of those that live */
  l->garbage_ns = past;
  CHECK(hears_nothing() && l->garbage_ns == 0);
}

/* ---- turns ----------------------------------------------------------------------------------- */

static void held(void) {
  begun();
  l->peer[0].state = P_HELD;
  CHECK(hear_ready(l, LINK_BULK) && hears(LINK_QUIET) && e.worker == 0 && e.slot == 0);
  CHECK(e.pid == 100 && !hear_ready(l, LINK_ANY) && hears_nothing()); /* once */
}

static void turns(void) {
  fresh();
  say(0, FRAME_UP, 0, NULL, 0);
  say(1, FRAME_UP, 0, NULL, 0);
  l->at = 1;
  CHECK(hears(LINK_UP) && e.worker == 1 && hears(LINK_UP) && e.worker == 0);
  CHECK(hears_nothing());
  /* Who does not live says nothing. */
  say(1, FRAME_UP, 0, NULL, 0);
  l->lives = l->at = 1;
  CHECK(hears_nothing() && !hear_ready(l, LINK_ANY));
  l->lives = l->at = 0;
  say(0, FRAME_UP, 0, NULL, 0);
  CHECK(hears_nothing() && !hear_ready(l, LINK_ANY));
  l->lives = 2;
  CHECK(hears(LINK_UP) && hears(LINK_UP));
  /* Descriptors are looked at now and then. */
  l->frames = FRAMES_PER_LOOK - 1;
  CHECK(hears_nothing() && l->frames == FRAMES_PER_LOOK && hears_nothing() && l->frames == 0);
}

/* In bulk a few frames are not worth waking for, unless their worker has come to rest. */
static void readiness(void) {
  static const unsigned char half[RING / 2 - RING_HEAD];
  fresh();
  say(0, FRAME_UP, 0, NULL, 0);
  CHECK(hear_ready(l, LINK_ANY) && !hear_ready(l, LINK_BULK));
  for (uint32_t how = AWAKE; how <= WAKING; how++) {
    atomic_store(&l->peer[0].slice->sleeping, how);
    CHECK(hear_ready(l, LINK_BULK) == (how == DROWSY || how == ASLEEP));
  }
  l->peer[0].broken = true;
  CHECK(!hear_ready(l, LINK_ANY));
  fresh();
  say(0, FRAME_BOOT, 0, half, sizeof half - 8);
  CHECK(!hear_ready(l, LINK_BULK));
  fresh();
  say(0, FRAME_BOOT, 0, half, sizeof half);
  CHECK(hear_ready(l, LINK_BULK));
}

int main(void) {
  says_of_slots();
  begins();
  begins_no_other();
  outcomes();
  outcomes_of_no_batch();
  outcomes_that_are_none();
  spills();
  runs();
  deaths();
  deaths_leave();
  orphans();
  lost();
  garbage();
  held();
  turns();
  readiness();
  l->link.ops->close(&l->link);
  puts("ok");
  return 0;
}
