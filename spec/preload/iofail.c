/* iofail.c: to be preloaded: makes one function of the operating system fail.
   IOFAIL=fn:errno:nth          the nth call of fn fails with that errno (a number)
   IOFAIL=fn:errno:nth:sticky   and all after it
   IOFAIL=fn:0:nth:short        the nth read or write moves one byte only
   iofail_arm(what)             does what IOFAIL=what does, from the call on; NULL: nothing fails.
                                It answers how many calls there were since it was called last.
   IOFAIL_PID=self              only in the process that was started, not in those that it forks
   Counts calls through the linker only: what libc does inside is not seen.
   SPDX-License-Identifier: MIT */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

static char function[32], how[16];
static int error;
static long nth, calls;
static pid_t only;

long iofail_arm(const char *what);

__attribute__((visibility("default"))) long iofail_arm(const char *what) {
  long were = calls;
  calls = 0;
  function[0] = how[0] = 0;
  if (what && sscanf(what, "%31[^:]:%d:%ld:%15s", function, &error, &nth, how) < 3) {
    dprintf(2, "iofail: IOFAIL=%s: not fn:errno:nth[:sticky|:short]\n", what);
    _exit(2);
  }
  return were;
}

__attribute__((constructor)) static void arm(void) {
  const char *pid = getenv("IOFAIL_PID");
  iofail_arm(getenv("IOFAIL"));
  if (pid && strcmp(pid, "self") == 0) only = getpid();
}

/* Whether this call is the one that is meant. */
static bool meant(const char *name) {
  if (strcmp(name, function) != 0 || (only && getpid() != only)) return false;
  calls++;
  return strcmp(how, "sticky") == 0 ? calls >= nth : calls == nth;
}

static bool is_short(void) {
  return strcmp(how, "short") == 0;
}

static int failed(void) {
  errno = error;
  return -1;
}

#define REAL(name)               \
  static __typeof__(name) *real; \
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t n) {
  REAL(write);
  if (!meant("write")) return real(fd, bytes, n);
  return is_short() ? real(fd, bytes, n ? 1 : 0) : failed();
}

ssize_t read(int fd, void *bytes, size_t n) {
  REAL(read);
  if (!meant("read")) return real(fd, bytes, n);
  return is_short() ? real(fd, bytes, n ? 1 : 0) : failed();
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags) {
  REAL(sendmsg);
  return meant("sendmsg") ? failed() : real(fd, m, flags);
}

int ftruncate(int fd, off_t size) {
  REAL(ftruncate);
  return meant("ftruncate") ? failed() : real(fd, size);
}

int posix_fallocate(int fd, off_t at, off_t n) {
  REAL(posix_fallocate);
  return meant("posix_fallocate") ? error : real(fd, at, n);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off) {
  REAL(mmap);
  if (!meant("mmap")) return real(at, n, prot, flags, fd, off);
  errno = error;
  return MAP_FAILED;
}

void *mremap(void *at, size_t old, size_t n, int flags, ...) {
  REAL(mremap);
  __builtin_va_list list;
  __builtin_va_start(list, flags);
  void *to = flags & MREMAP_FIXED ? __builtin_va_arg(list, void *) : NULL;
  __builtin_va_end(list);
  if (!meant("mremap")) return real(at, old, n, flags, to);
  errno = error;
  return MAP_FAILED;
}

int madvise(void *at, size_t n, int advice) {
  REAL(madvise);
  return meant("madvise") ? failed() : real(at, n, advice);
}

int memfd_create(const char *name, unsigned flags) {
  REAL(memfd_create);
  return meant("memfd_create") ? failed() : real(name, flags);
}

pid_t fork(void) {
  REAL(fork);
  return meant("fork") ? failed() : real();
}

int eventfd(unsigned count, int flags) {
  REAL(eventfd);
  return meant("eventfd") ? failed() : real(count, flags);
}

int epoll_create1(int flags) {
  REAL(epoll_create1);
  return meant("epoll_create1") ? failed() : real(flags);
}

int epoll_ctl(int epfd, int op, int fd, struct epoll_event *e) {
  REAL(epoll_ctl);
  return meant("epoll_ctl") ? failed() : real(epfd, op, fd, e);
}

int epoll_pwait2(int epfd, struct epoll_event *e, int max, const struct timespec *t,
                 const sigset_t *mask) {
  REAL(epoll_pwait2);
  return meant("epoll_pwait2") ? failed() : real(epfd, e, max, t, mask);
}

int timerfd_create(int clock, int flags) {
  REAL(timerfd_create);
  return meant("timerfd_create") ? failed() : real(clock, flags);
}

/* pidfd_open and the like go through here. */
long syscall(long number, ...) {
  long (*real)(long, ...);
  __builtin_va_list list;
  long a[6];
  *(void **)&real = dlsym(RTLD_NEXT, "syscall");
  __builtin_va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = __builtin_va_arg(list, long);
  __builtin_va_end(list);
  char name[32];
  snprintf(name, sizeof name, "syscall%ld", number);
  return meant(name) ? failed() : real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
