/* base.c: clock, EINTR-proof I/O, error texts, growing arrays.
   Knows the operating system. Does not know pools, rings or Lua. SPDX-License-Identifier: MIT */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/single_threaded.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void impossible(const char *file, int line, const char *what) {
  fprintf(stderr, "plua: %s:%d: impossible: %s\n", file, line, what);
  abort();
}

static int64_t read_clock(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t now_roughly_ns(void) {
  return read_clock(CLOCK_MONOTONIC_COARSE);
}

int64_t now_ns(void) {
  return read_clock(CLOCK_MONOTONIC);
}

bool err_is_short(int err) {
  return err == -EAGAIN || err == -ENOMEM || err == -EMFILE || err == -ENFILE;
}

int write_all(int fd, const void *bytes, size_t len) {
  const char *p = bytes;
  while (len) {
    ssize_t n = write(fd, p, len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    p += n;
    len -= (size_t)n;
  }
  return 0;
}

ssize_t read_all(int fd, void *bytes, size_t len) {
  size_t got = 0;
  while (got < len) {
    ssize_t n = read(fd, (char *)bytes + got, len - got);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    if (n == 0) break;
    got += (size_t)n;
  }
  return (ssize_t)got;
}

int fd_above_stdio(int fd) {
  if (fd < 0 || fd > 2) return fd;
  int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  int err = copy < 0 ? -errno : copy;
  close(fd);
  return err;
}

/* Exported by glibc for ever; other C libraries have none. */
extern FILE *_IO_list_all __attribute__((weak));

static bool files_hold(void) {
  if (!&_IO_list_all || !__libc_single_threaded) return true;
  const FILE *f = _IO_list_all;
  while (f && !may_hold(f)) f = f->_chain;
  return f != NULL;
}

void flush_files(void) {
  if (files_hold()) fflush(NULL);
}

/* Out of line: a constant time would lie among read-only data, where each worker would fault. */
NOINLINE void futex_wait(_Atomic uint32_t *word, uint32_t seen, int ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0);
}

void futex_wake(_Atomic uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* What malloc does before it serves a large block. One that it would map is too large. */
void heap_sort(void) {
  enum { LARGE = 20000 };
  void *volatile block = malloc(LARGE);
  free(block);
}

enum { ARRAY_LARGE = 1 << 14 };

void *array_new(size_t n, size_t element) {
  if (n < ARRAY_LARGE / element) return calloc(n, element);
  if (n > SIZE_MAX / element) return NULL;
  void *p = mmap(NULL, n * element, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

void array_free(void *array, size_t n, size_t element) {
  if (n < ARRAY_LARGE / element)
    free(array);
  else if (array)
    munmap(array, n * element);
}

int grow(void **array, size_t *cap, size_t need, size_t element) {
  if (need <= *cap) return 0;
  size_t want = *cap ? *cap : 16;
  while (want < need) {
    if (want > SIZE_MAX / 2 / element) return -ENOMEM;
    want *= 2;
  }
  void *p = realloc(*array, want * element);
  if (!p) return -ENOMEM;
  *array = p;
  *cap = want;
  return 0;
}

const char *plua_strerror(int code) {
  switch (code) {
#define X(name, number, text) \
  case number:                \
    return text;
    PLUA_ERRORS(X)
#undef X
  }
  /* strerrordesc_np is static text, safe in any thread; unlike strerror it never allocates. */
  const char *text = code < 0 && code > -4000 ? strerrordesc_np(-code) : NULL;
  return text ? text : "unknown error";
}
