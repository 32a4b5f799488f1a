/* stepkill.c: a worker that is killed after any instruction. A child is stepped through publishing
   a frame, and through taking a batch and claiming its items; it is killed after k instructions,
   for every k; then what it shared must be whole. Knows ring.h, board.h and ptrace.
   SPDX-License-Identifier: MIT */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "board.h"
#include "plua.h"
#include "ring.h"

enum { RING = 256, SLOTS = 4, ME = 2, ITEMS = 3, STEPS_MAX = 100000 };

static long at_step, stride = 1;

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "stepkill.c:%d: not so: %s (after %ld instructions)\n", line, what, at_step);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

/* All that child and parent share. */
static struct shared {
  _Atomic int done; /* the child has come to the end */
  struct ring_shared ring;
  unsigned char data[RING];
  _Alignas(64) _Atomic uint64_t word;
  _Alignas(64) unsigned char board[8192];
} * shared;

/* Runs 'act' in a child for 'steps' instructions and kills it there. True: it had come to the end.
 */
static bool kill_after(long steps, void (*act)(void)) {
  int status;
  at_step = steps;
  atomic_store(&shared->done, 0);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0) _exit(9);
    kill(getpid(), SIGSTOP);
    act();
    atomic_store(&shared->done, 1);
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
  for (long i = 0; i < steps && !atomic_load(&shared->done); i++) {
    CHECK(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
  }
  bool done = atomic_load(&shared->done);
  kill(pid, SIGKILL);
  CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
  return done;
}

/* ---- publishing a frame ---------------------------------------------------------------------- */

static struct ring writer;
static size_t body_len;

static unsigned char body[RING];

static void publish(void) {
  size_t room;
  unsigned char *p = ring_reserve(&writer, body_len, &room);
  if (!p) _exit(8);
  memcpy(p, body, body_len);
  ring_publish(&writer, 5, 0xef01, (uint32_t)body_len);
}

/* The ring has moved on to 'position' and holds one frame already; old bytes lie everywhere. */
static void ring_prepare(unsigned position, struct ring *reader) {
  size_t room;
  struct ring_frame f;
  memset(&shared->ring, 0, sizeof shared->ring);
  memset(shared->data, 0xee, RING);
  ring_clear(&shared->ring);
  ring_attach(&writer, &shared->ring, shared->data, RING);
  ring_attach(reader, &shared->ring, shared->data, RING);
  for (unsigned i = 0; i < position; i += 8) {
    CHECK(ring_reserve(&writer, 0, &room) != NULL);
    ring_publish(&writer, 1, 0, 0);
    CHECK(ring_peek(reader, &f) == 1);
    ring_take(reader, &f);
  }
  ring_give(reader);
  unsigned char *p = ring_reserve(&writer, 3, &room);
  CHECK(p != NULL);
  memcpy(p, "one", 3);
  ring_publish(&writer, 2, 7, 3);
}

/* The frame before is whole; of the new one there is all or nothing. */
static bool ring_look(struct ring *reader) {
  struct ring_frame f;
  CHECK(ring_peek(reader, &f) == 1 && f.kind == 2 && f.tag == 7 && f.len == 3);
  CHECK(memcmp(f.body, "one", 3) == 0);
  ring_take(reader, &f);
  int r = ring_peek(reader, &f);
  CHECK(r == 0 || r == 1);
  if (r == 0) return false;
  CHECK(f.kind == 5 && f.tag == 0xef01 && f.len == body_len);
  CHECK(memcmp(f.body, body, body_len) == 0);
  ring_take(reader, &f);
  CHECK(ring_peek(reader, &f) == 0);
  return true;
}

static void ring_case(unsigned position, size_t len, unsigned *points, unsigned *whole) {
  bool done = false;
  unsigned seen = 0;
  body_len = len;
  for (size_t i = 0; i < len; i++) body[i] = (unsigned char)(i * 37 + len + 1);
  struct ring reader;
  ring_prepare(position, &reader);
  publish(); /* once here: the dynamic linker's work is not to be stepped through */
  for (long k = 0; !done; k += stride, ++*points) {
    CHECK(k < STEPS_MAX);
    ring_prepare(position, &reader);
    done = kill_after(k, publish);
    bool there = ring_look(&reader);
    CHECK(there || !done);
    CHECK(there >= (seen > 0)); /* once it is there it stays */
    seen += there;
  }
  CHECK(seen > 0 && (seen < *points || stride > 1));
  *whole += seen;
}

static void ring_all(void) {
  static const struct {
    unsigned position;
    size_t len;
  } c[] = {{0, 0}, {104, 40}, {200, 11}, {200, 24}, {200, 25}, {232, 0}, {232, 88}}; /* some wrap */
  unsigned points = 0, whole = 0;
  for (size_t i = 0; i < sizeof c / sizeof *c; i++)
    ring_case(c[i].position, c[i].len, &points, &whole);
  printf("ok: publish: %u points, %u whole, %u none, 0 torn\n", points, whole, points - whole);
}

/* ---- taking a batch and claiming its items --------------------------------------------------- */

static struct board_view view;

static void take(void) {
  uint64_t from[LANES] = {0, 0}, mine;
  uint32_t seq;
  int i = board_take(&view, from, ME, &seq);
  if (i != 1) _exit(8);
  word_begin(&shared->word, seq, ITEMS);
  mine = word_make(seq, 0, ITEMS);
  for (int k = 0; k < ITEMS; k++)
    if (word_claim(&shared->word, &mine) != k) _exit(8);
  if (word_claim(&shared->word, &mine) != -1) _exit(8);
}

static void board_prepare(void) {
  memset(shared->board, 0, sizeof shared->board);
  CHECK(board_size(SLOTS) <= sizeof shared->board);
  board_make(&view, shared->board, SLOTS);
  atomic_store(&shared->word, word_make(70, 5, 5));
  board_post(&view, 0, 71, LANE_NORMAL);
  CHECK(board_withdraw(&view, 0, 71)); /* a stale entry in front */
  board_post(&view, 1, 72, LANE_NORMAL);
}

enum found { READY, TAKEN_ONLY, BEGUN, CLAIMED, FOUNDS };

/* Whose the batch is, and how far it got. What the owner does then must work. */
static enum found board_look(void) {
  uint64_t state = atomic_load(&view.slot[1].state), from[LANES] = {0, 0};
  uint64_t w = atomic_load(&shared->word);
  uint32_t seq;
  unsigned end;
  if (state == slot_state(72, 0, SLOT_READY)) {
    CHECK(w == word_make(70, 5, 5));
    CHECK(board_take(&view, from, 3, &seq) == 1 && seq == 72);
    return READY;
  }
  CHECK(state == slot_state(72, ME, SLOT_TAKEN));
  CHECK(!board_withdraw(&view, 1, 72));
  CHECK(board_take(&view, from, 3, &seq) == -1);
  if (w == word_make(70, 5, 5)) {
    CHECK(word_shrink(&shared->word, 72, 0, &end) == -1);
    return TAKEN_ONLY;
  }
  CHECK(word_seq(w) == 72 && word_end(w) == ITEMS && word_next(w) <= ITEMS);
  int m = word_shrink(&shared->word, 72, 0, &end);
  CHECK(word_next(w) == ITEMS ? m == -1 : m == (int)word_next(w) && end == ITEMS);
  return word_next(w) ? CLAIMED : BEGUN;
}

static void board_all(void) {
  bool done = false;
  unsigned count[FOUNDS] = {0}, points = 0;
  enum found last = READY;
  board_prepare();
  take();
  for (long k = 0; !done; k += stride, points++) {
    CHECK(k < STEPS_MAX);
    board_prepare();
    done = kill_after(k, take);
    enum found f = board_look();
    CHECK(f >= last);
    last = f;
    count[f]++;
    board_post(&view, 2, 73, LANE_URGENT); /* the lanes still work */
    uint64_t from[LANES] = {0, 0};
    uint32_t seq;
    CHECK(board_take(&view, from, 4, &seq) == 2 && seq == 73);
  }
  for (int f = 0; f < FOUNDS && stride == 1; f++) CHECK(count[f] > 0);
  printf("ok: take and claim: %u points, %u ready, %u taken, %u begun, %u claimed\n", points,
         count[READY], count[TAKEN_ONLY], count[BEGUN], count[CLAIMED]);
}

/* Argument: every which instruction; for builds that a sanitizer makes long. */
int main(int argc, char **argv) {
  stride = argc > 1 ? atol(argv[1]) : 1;
  CHECK(stride > 0);
  kill(getpid(), 0);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  ring_all();
  board_all();
  munmap(shared, sizeof *shared);
  return 0;
}
