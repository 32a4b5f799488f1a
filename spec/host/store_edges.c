/* store_edges.c: a store of a few segments: all of it is used, and no more; what is freed is used
   again, wherever it lies; what has no room is refused and nothing is lost by it; memory goes back
   but for what stays warm. Knows store.h only. SPDX-License-Identifier: MIT */
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

enum { COUNT = 40, WARM = 32, HEAD = 8 };
#define WHOLE ((size_t)SEGMENT - HEAD) /* a payload that fills a segment */

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "store_edges.c:%d: not so: %s\n", line, what);
  exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static struct store *store;
static unsigned char *base;
static int fd;

static uint64_t file_bytes(void) {
  struct stat st;
  CHECK(fstat(fd, &st) == 0);
  return (uint64_t)st.st_blocks * 512;
}

/* Stores one payload of 'len' bytes. 0 and its place, or why it cannot be. */
static int put(size_t len, uint64_t *off) {
  plua_out *out;
  bool follows;
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
  size_t size = (size_t)COUNT * SEGMENT;
  fd = memfd_create("store", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
  base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  CHECK(base != MAP_FAILED);
  CHECK(store_open(&store, base, 0, size, fd) == 0);
  fills_and_empties();
  one_takes_all();
  grows();
  runs();
  freed_twice();
  fills_and_empties();
  puts("ok");
  store_close(store);
  munmap(base, size);
  close(fd);
  return 0;
}
