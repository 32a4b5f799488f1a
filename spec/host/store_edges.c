/* store_edges.c: a store of a few segments: all of it is used, and no more; what is freed is used
   again, wherever it lies, that which has memory first; what has no room is refused and nothing is
   lost by it; memory goes back but for what stays warm. Knows store.h only.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "store.h"

enum { COUNT = 40, WARM = 32, HEAD = 8, STEP = 1 << 16, HALF = SEGMENT / 2 };
#define WHOLE ((size_t)SEGMENT - HEAD) /* a payload that fills a segment */

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "store_edges.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static struct store *store;
static unsigned char *base;
static int fd;

static void open_new(void) {
  size_t size = (size_t)COUNT * SEGMENT;
  fd = memfd_create("store", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
  base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  CHECK(base != MAP_FAILED);
  CHECK(store_open(&store, base, 0, size, fd) == 0);
}

static void close_it(void) {
  store_close(store);
  munmap(base, (size_t)COUNT * SEGMENT);
  close(fd);
}

static uint64_t file_bytes(void) {
  struct stat st;
  CHECK(fstat(fd, &st) == 0);
  return (uint64_t)st.st_blocks * 512;
}

/* Stores one payload of 'len' bytes. 0 and its place, or why it cannot be. */
static int put(size_t len, uint64_t *off) {
  plua_out *out;
  bool follows;
  errno = EIO; /* says nothing of what succeeds */
  int err = store_begin(store, 1, &out);
  if (err) return err;
  err = plua_room(out, len);
  if (err) {
    store_drop(store);
    return err;
  }
  memset(out->at, (int)(len & 0xff), len);
  out->at += len;
  store_end(store, off, &follows);
  CHECK(*off + HEAD + len <= (uint64_t)COUNT * SEGMENT);
  return 0;
}

static void fill(uint64_t off[COUNT]) {
  uint64_t more;
  for (int i = 0; i < COUNT; i++) CHECK(put(WHOLE, &off[i]) == 0);
  CHECK(put(WHOLE, &more) == PLUA_ETOOBIG && put(1, &more) == PLUA_ETOOBIG);
  for (int i = 0; i < COUNT; i++)
    for (int k = 0; k < i; k++) CHECK(off[i] != off[k]);
}

static void fills_and_empties(void) {
  uint64_t off[COUNT];
  fill(off);
  CHECK(file_bytes() == (uint64_t)COUNT * SEGMENT);
  for (int i = COUNT; i-- > 0;) store_free(store, off[i]); /* the last to go is the first */
  CHECK(file_bytes() == (uint64_t)WARM * SEGMENT);
  fill(off);
  for (int i = 0; i < COUNT; i += 2) store_free(store, off[i]);
  for (int i = 0; i < COUNT; i += 2) CHECK(put(WHOLE, &off[i]) == 0);
  for (int i = 0; i < COUNT; i++) store_free(store, off[i]);
  CHECK(file_bytes() == (uint64_t)WARM * SEGMENT);
}

static void one_takes_all(void) {
  uint64_t off, other;
  size_t all = (size_t)COUNT * SEGMENT - HEAD;
  CHECK(put(all + 1, &off) == PLUA_ETOOBIG);
  CHECK(put(all, &off) == 0 && off == 0);
  CHECK(put(1, &other) == PLUA_ETOOBIG);
  store_free(store, off);
  CHECK(put(WHOLE + 1, &off) == 0 &&
        put(1, &other) == 0); /* two segments, the next in the second */
  CHECK(other == off + HEAD + SEGMENT);
  store_free(store, off);
  store_free(store, other);
  CHECK(file_bytes() <= (uint64_t)WARM * SEGMENT);
}

/* What grows while it is written moves where it cannot go on, whole. */
static void grows(void) {
  uint64_t first, wall, off;
  plua_out *out;
  bool follows;
  CHECK(put(WHOLE, &first) == 0 && put(WHOLE, &wall) == 0);
  store_free(store, first);
  CHECK(store_begin(store, 1, &out) == 0);
  for (size_t i = 0; i < 3 * (size_t)SEGMENT; i++) {
    CHECK(plua_room(out, 1) == 0);
    *out->at++ = (unsigned char)(i % 251);
  }
  CHECK(plua_room(out, SIZE_MAX) == -ENOMEM && plua_room(out, SIZE_MAX / 2) == -ENOMEM);
  CHECK(plua_room(out, (size_t)COUNT * SEGMENT) == PLUA_ETOOBIG);
  store_end(store, &off, &follows);
  for (size_t i = 0; i < 3 * (size_t)SEGMENT; i++) CHECK(base[off + HEAD + i] == i % 251);
  CHECK(base[wall + HEAD] == (WHOLE & 0xff) && base[wall + SEGMENT - 1] == (WHOLE & 0xff));
  store_free(store, off);
  store_free(store, wall);
}

static void runs(void) {
  uint64_t one, off[4];
  bool follows;
  static unsigned char bytes[SEGMENT + 64];
  const size_t len[] = {0, 7, 8, SEGMENT};
  CHECK(put(1, &one) == 0);
  unsigned n = store_run(store, 1, bytes, len, 4, off, &follows);
  CHECK(n == 3 && follows && off[0] == one + HEAD + 8);
  CHECK(off[1] == off[0] + HEAD && off[2] == off[1] + HEAD + 8);
  CHECK(store_run(store, 2, bytes, len, 1, &off[3], &follows) == 1 && !follows);
  store_free_run(store, one, off[3], 5);
}

/* A segment in a row of whole ones. */
static uint64_t at(uint64_t segment) {
  return segment * SEGMENT;
}
static void put_whole(uint64_t from, uint64_t to) {
  for (uint64_t i = from, off; i < to; i++) CHECK(put(WHOLE, &off) == 0 && off == at(i));
}
static void free_whole(uint64_t from, uint64_t to) {
  for (uint64_t i = from; i < to; i++) store_free(store, at(i));
}
enum { SMALL = 10, BEHIND = HEAD + 16 }; /* a payload, and where the next one lies */

/* What does not fit a segment goes on in the next one, where that is free and has memory. */
static void goes_on(void) {
  uint64_t off;
  open_new();
  put_whole(0, 3);
  free_whole(0, 2);
  CHECK(put(SMALL, &off) == 0 && off == 0);
  CHECK(put(WHOLE, &off) == 0 && off == BEHIND);
  close_it();
}

/* Where memory is free elsewhere, no more is asked for; but for that nothing moves that fits. */
static void seeks_warm(void) {
  uint64_t off;
  open_new();
  put_whole(0, 1);
  CHECK(put(SMALL, &off) == 0 && off == at(1));
  free_whole(0, 1);
  CHECK(put(HALF, &off) == 0 && off == at(1) + BEHIND);
  CHECK(put(WHOLE, &off) == 0 && off == 0);
  close_it();
  open_new();
  put_whole(0, 4);
  CHECK(put(SMALL, &off) == 0 && off == at(4));
  free_whole(0, 1); /* two that are no neighbours */
  free_whole(2, 3);
  CHECK(put(2 * (size_t)SEGMENT - 100, &off) == 0 && off == at(4) + BEHIND);
  close_it();
}

/* What was freed last has lost its memory. */
static void leaves_cold(void) {
  uint64_t off;
  open_new();
  put_whole(0, COUNT);
  free_whole(0, 1);
  free_whole(2, 1 + WARM);
  free_whole(1, 2);
  CHECK(put(SMALL, &off) == 0 && off == 0);
  CHECK(put(WHOLE, &off) == 0 && off == at(2));
  close_it();
  open_new();
  put_whole(0, COUNT);
  free_whole(2, 2 + WARM);
  free_whole(0, 1);
  put_whole(2, 2 + WARM); /* the last one, too */
  CHECK(put(WHOLE, &off) == 0 && off == 0);
  close_it();
}

/* What has begun at the end of the area ends where there is room. */
static void turns_back(void) {
  uint64_t off;
  plua_out *out;
  bool follows;
  open_new();
  put_whole(0, COUNT - 1);
  CHECK(put(SMALL, &off) == 0 && off == at(COUNT - 1));
  free_whole(0, 1);
  CHECK(store_begin(store, 1, &out) == 0);
  CHECK(plua_room(out, SIZE_MAX / 2) == PLUA_ETOOBIG &&
        plua_room(out, SIZE_MAX / 2 + 1) == -ENOMEM);
  CHECK(plua_room(out, HALF) == 0);
  memset(out->at, 'x', HALF);
  out->at += HALF;
  CHECK(plua_room(out, WHOLE - HALF) == 0);
  store_end(store, &off, &follows);
  CHECK(off == 0 && base[HEAD] == 'x' && base[HEAD + HALF - 1] == 'x');
  close_it();
}

/* A run leaves the last byte that has memory to others. */
static void ends_before(void) {
  uint64_t off;
  bool follows;
  static unsigned char bytes[STEP];
  const size_t segment = SEGMENT, backed = segment < STEP ? segment : STEP;
  const size_t all = backed - BEHIND - HEAD, less = all - 8;
  open_new();
  CHECK(put(SMALL, &off) == 0 && off == 0);
  CHECK(store_run(store, 1, bytes, &all, 1, &off, &follows) == 0);
  CHECK(store_run(store, 1, bytes, &less, 1, &off, &follows) == 1 && off == BEHIND);
  close_it();
}

/* Ends the process that does it. */
static void freed_twice(void) {
  uint64_t one, two;
  int status;
  CHECK(put(1, &one) == 0 && put(1, &two) == 0);
  store_free(store, one);
  store_free(store, two);
  pid_t pid = fork();
  if (pid == 0) {
    CHECK(freopen("/dev/null", "w", stderr) != NULL);
    store_free(store, two);
    _exit(0);
  }
  CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

int main(void) {
  open_new();
  fills_and_empties();
  one_takes_all();
  grows();
  runs();
  freed_twice();
  fills_and_empties();
  close_it();
  goes_on();
  seeks_warm();
  leaves_cold();
  turns_back();
  ends_before();
  puts("ok");
  return 0;
}
