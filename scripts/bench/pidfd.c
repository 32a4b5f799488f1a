/* pidfd.c: what valgrind 3.19 lacks to run a program that watches its children by pidfd; preloaded.
   A pidfd is the reading end of a pipe whose other end only that child holds, so it tells the death
   as the kernel's does. Enough to count instructions with; no stand-in for the real thing.
   Knows the calls that core/proc.c makes. SPDX-License-Identifier: MIT */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX = 256, HIGH = 500, PIDFD = 3 };

static struct child {
  pid_t pid;
  int fd; /* reading end */
} child[MAX];
static int children;
static pid_t owner[1024]; /* of a descriptor that stands for a pidfd */
static int mine = -1;     /* in a child: the end that tells its death by closing */

static void *next(const char *name) {
  return dlsym(RTLD_NEXT, name);
}

pid_t fork(void) {
  pid_t (*real)(void) = (pid_t(*)(void))next("fork");
  int ends[2];
  if (children == MAX || pipe2(ends, O_CLOEXEC) < 0) {
    errno = EAGAIN;
    return -1;
  }
  pid_t pid = real();
  if (pid == 0) {
    if (mine >= 0) close(mine);
    mine = fcntl(ends[1], F_DUPFD_CLOEXEC, HIGH);
    close(ends[0]);
    close(ends[1]);
    return 0;
  }
  close(ends[1]);
  if (pid > 0)
    child[children++] = (struct child){pid, ends[0]};
  else
    close(ends[0]);
  return pid;
}

static long open_pidfd(pid_t pid) {
  for (int i = children; i-- > 0;) {
    if (child[i].pid != pid) continue;
    int fd = fcntl(child[i].fd, F_DUPFD_CLOEXEC, 3);
    if (fd >= 0 && fd < 1024) owner[fd] = pid;
    return fd;
  }
  errno = ESRCH;
  return -1;
}

static long close_but_mine(unsigned from, unsigned to) {
  for (unsigned fd = from; fd <= to && fd < 1024; fd++)
    if ((int)fd != mine) close((int)fd);
  return 0;
}

long syscall(long number, ...) {
  static long (*real)(long, ...);
  long a[6];
  va_list args;
  va_start(args, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(args, long);
  va_end(args);
  if (number == SYS_pidfd_open) return open_pidfd((pid_t)a[0]);
  if (number == SYS_pidfd_send_signal && a[0] >= 0 && a[0] < 1024)
    return kill(owner[a[0]], (int)a[1]);
  if (number == SYS_clone) { /* a spare's: its child would have no such pipe; plua forks instead */
    errno = ENOSYS;
    return -1;
  }
  if (number == SYS_close_range) return close_but_mine((unsigned)a[0], (unsigned)a[1]);
  if (!real) real = (long (*)(long, ...))next("syscall");
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int waitid(idtype_t type, id_t id, siginfo_t *info, int options) {
  int (*real)(idtype_t, id_t, siginfo_t *,
              int) = (int (*)(idtype_t, id_t, siginfo_t *, int))next("waitid");
  if ((int)type == PIDFD && id < 1024) return real(P_PID, (id_t)owner[id], info, options);
  return real(type, id, info, options);
}
