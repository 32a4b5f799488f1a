/* mfail.c: to be preloaded: makes memory run out.
   MFAIL_AT=k           the k-th malloc, calloc or realloc after the start fails
   MFAIL_STICKY=1       and all after it
   MFAIL_COUNT=1        at the end, how many there were, on stderr
   mfail_arm(k, n)      counts anew, from the call on: the k-th and the next n - 1 fail, or all
   after it where n is 0; k = 0: none fails. It answers how many there were since it was called
   last. Lua asks twice before it gives up. mfail_stop()         none fails or is counted from then
   on Only in the process that was started, not in those that it forks. Knows glibc's names.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

long mfail_arm(long at, long n);
void mfail_stop(void);
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

static long calls, fail_at, in_a_row;
static bool armed;
static pid_t owner;

__attribute__((constructor)) static void arm(void) {
  const char *at = getenv("MFAIL_AT");
  fail_at = at ? atol(at) : 0;
  in_a_row = getenv("MFAIL_STICKY") ? 0 : 1;
  owner = getpid();
  armed = true;
}

__attribute__((visibility("default"))) long mfail_arm(long at, long n) {
  long were = calls;
  calls = 0;
  fail_at = at;
  in_a_row = n;
  return were;
}

__attribute__((visibility("default"))) void mfail_stop(void) {
  armed = false;
}

__attribute__((destructor)) static void tell(void) {
  if (getenv("MFAIL_COUNT") && getpid() == owner) dprintf(2, "mfail: %ld\n", calls);
}

static bool fails(void) {
  if (!armed || getpid() != owner) return false;
  calls++;
  bool now = fail_at > 0 && calls >= fail_at && (!in_a_row || calls < fail_at + in_a_row);
  if (now) errno = ENOMEM;
  return now;
}

void *malloc(size_t n) {
  return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size) {
  return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n) {
  return fails() ? NULL : __libc_realloc(p, n);
}
