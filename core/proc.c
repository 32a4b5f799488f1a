/* proc.c: one process: fork, pidfd, signal, reap; and what a forked child does first.
   Invariant: only processes started here are waited for, each through its pidfd, so a host that
   takes exit statuses, or ignores SIGCHLD, costs the status and nothing else.
   Knows the operating system. Does not know pools or Lua. SPDX-License-Identifier: MIT */
#include "proc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"
#include "fail.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static uint64_t signal_bit(int n) {
  return UINT64_C(1) << (n - 1);
}

void proc_signals_read(struct proc_signals *s) {
  *s = (struct proc_signals){0};
  for (int n = 1; n <= 64; n++) {
    struct sigaction a;
    if (sigaction(n, NULL, &a) < 0) continue;
    if (a.sa_handler == SIG_DFL && !(a.sa_flags & SA_SIGINFO)) continue;
    s->handled |= signal_bit(n);
    if (a.sa_handler == SIG_IGN && !(a.sa_flags & SA_SIGINFO)) s->ignored |= signal_bit(n);
  }
}

/* /proc/self/task has a link for each thread besides . and .. */
int proc_threads(void) {
  struct stat st;
  if (stat("/proc/self/task", &st) < 0 || st.st_nlink < 3) return 1;
  return (int)st.st_nlink - 2;
}

static int pidfd_open_high(pid_t pid) {
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);
  return fd < 0 ? -errno : fd_above_stdio(fd);
}

/* A child that cannot be watched is not kept: it is ours to wait for, so its pid is not reused. */
static int discard(pid_t pid, int err) {
  kill(pid, SIGKILL);
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
  return err;
}

int proc_adopt(struct proc *p, pid_t pid) {
  int fd = pidfd_open_high(pid);
  bool gone = fd == -ESRCH || fd == -EINVAL; /* ended, and reaped by the host's SIGCHLD policy */
  if (fd < 0 && !gone) return discard(pid, fd);
  *p = (struct proc){pid, gone ? -1 : fd};
  return 0;
}

int proc_fork(struct proc *p) {
  sigset_t all, mask;
  int err = FAIL_ERROR(P_FORK);
  if (err) return err;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, &mask);
  pid_t pid = fork();
  err = pid < 0 ? -errno : 0;
  if (pid == 0) return 0;
  sigprocmask(SIG_SETMASK, &mask, NULL);
  if (!err) err = proc_adopt(p, pid);
  return err < 0 ? err : 1;
}

int proc_fork_sibling(_Atomic int32_t *pid) {
  long r = syscall(SYS_clone, CLONE_PARENT | CLONE_PARENT_SETTID | SIGCHLD, NULL, (int *)pid, NULL,
                   NULL);
  return r < 0 ? -errno : (int)r;
}

/* A sandbox older than the call refuses it; the number of a process that lives does as well. */
int proc_signal(const struct proc *p, int sig) {
  if (p->fd < 0) return -ESRCH;
  long r = syscall(SYS_pidfd_send_signal, p->fd, sig, NULL, 0);
  if (r < 0 && (errno == ENOSYS || errno == EPERM) && !proc_ended(p)) r = kill(p->pid, sig);
  return r < 0 ? -errno : 0;
}

bool proc_ended(const struct proc *p) {
  struct pollfd f = {p->fd, POLLIN, 0};
  return p->fd < 0 || poll(&f, 1, 0) > 0;
}

bool proc_stopped(const struct proc *p) {
  siginfo_t info = {0};
  int how = WSTOPPED | WNOHANG | WNOWAIT; /* the host, or nobody, takes the news away */
  return p->fd >= 0 && waitid((idtype_t)P_PIDFD, (id_t)p->fd, &info, how) == 0 && info.si_pid;
}

bool proc_is_child(pid_t pid) {
  siginfo_t info;
  return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

bool proc_await(const struct proc *p, int64_t until_ns) {
  struct pollfd f = {p->fd, POLLIN, 0};
  for (int n = -1; p->fd >= 0 && n <= 0;) {
    int64_t left = until_ns - now_ns();
    n = poll(&f, 1, left > 0 ? (int)(left / 1000000) + 1 : 0);
    if (n <= 0 && left <= 0) return false;
  }
  return true;
}

void proc_reap(struct proc *p, int *sig, int *status) {
  siginfo_t info = {0};
  int r = -1;
  *sig = 0;
  *status = -1;
  if (p->fd >= 0) {
    do r = waitid((idtype_t)P_PIDFD, (id_t)p->fd, &info, WEXITED);
    while (r < 0 && errno == EINTR);
    close(p->fd);
  }
  if (r == 0 && info.si_code == CLD_EXITED) *status = info.si_status;
  if (r == 0 && info.si_code != CLD_EXITED) {
    *sig = info.si_status;
    *status = 0;
  }
  *p = (struct proc){0, -1};
}

static void nothing(int sig) {
  (void)sig;
}

/* A handler, not SIG_IGN, which programs that an item starts would inherit. An item that goes on
   should not notice: but a SIGINT reaches it where it waits, since all of it is about to end. */
static void shrug(int sig) {
  const struct sigaction a = {.sa_handler = nothing, .sa_flags = sig == SIGINT ? 0 : SA_RESTART};
  sigaction(sig, &a, NULL);
}

static void signals_reset(const struct proc_signals *s) {
  static const int group[] = {SIGHUP, SIGTERM, SIGUSR1, SIGUSR2};
  const uint64_t stays = s->ignored &
                         (signal_bit(SIGHUP) | signal_bit(SIGINT) | signal_bit(SIGQUIT) |
                          signal_bit(SIGTERM) | signal_bit(SIGUSR1) | signal_bit(SIGUSR2));
  const struct sigaction standard = {.sa_handler = SIG_DFL};
  sigset_t none;
  for (int n = 1; n <= 64; n++)
    if (s->handled & ~stays & signal_bit(n)) sigaction(n, &standard, NULL);
  for (size_t i = 0; i < sizeof group / sizeof *group; i++)
    if (s->handled & ~s->ignored & signal_bit(group[i])) shrug(group[i]);
  if (!(stays & signal_bit(SIGINT))) shrug(SIGINT);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
}

void proc_tie(pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0); /* it died before the line above */
}

void proc_child(const struct proc_signals *s) {
  signals_reset(s);
  int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null > 0) {
    dup2(null, 0);
    close(null);
  }
}

static bool listed(int fd, const int *keep, int n) {
  for (int i = 0; i < n; i++)
    if (keep[i] == fd) return true;
  return false;
}

/* Without close_range (Linux before 5.9): the descriptors that /proc lists. */
static void close_listed(const int *keep, int n) {
  DIR *d = opendir("/proc/self/fd");
  if (!d) return;
  for (struct dirent *e; (e = readdir(d));) {
    int fd = atoi(e->d_name);
    if (fd > 2 && !listed(fd, keep, n) && fd != dirfd(d)) close(fd);
  }
  closedir(d);
}

/* The lowest of those to keep that is not below 'fd'; INT_MAX: none. */
static int kept_next(int fd, const int *keep, int n) {
  int low = INT_MAX;
  for (int i = 0; i < n; i++)
    if (keep[i] >= fd && keep[i] < low) low = keep[i];
  return low;
}

void proc_close_others(const int *keep, int n) {
  long err = 0;
  for (int fd = 3, end; fd < INT_MAX; fd = end + (end < INT_MAX)) {
    end = kept_next(fd, keep, n);
    if (fd < end) err |= syscall(SYS_close_range, (unsigned)fd, (unsigned)end - 1, 0u);
  }
  if (err) close_listed(keep, n);
}
