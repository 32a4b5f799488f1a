/* probe.c: what the machine itself needs, beside plua, for scripts/bench.lua. Prints seconds.
   N round trips between two processes: wake N, where a futex wakes one, an eventfd and epoll the
   other, as bare as that can be; pipe N, over two pipes.
   N times fork, exit and wait: fork N.
   memcpy of so many blocks of 1 MiB, each from and to a place of its own: copy MIB.
   The median of N runs of a command, from fork to its end: exec N COMMAND...
   Knows the operating system. Does not know plua. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
  fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static pid_t child(void) {
  pid_t pid = fork();
  if (pid < 0) fail("fork");
  if (pid == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
  return pid;
}

/* ---- round trips --------------------------------------------------------------------------- */

static void answer_wakes(_Atomic uint32_t *word, int bell) {
  uint64_t one = 1;
  for (uint32_t seen = 0;; seen++) {
    while (atomic_load(word) == seen) syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
    if (write(bell, &one, sizeof one) < 0) _exit(1);
  }
}

static double wake(int n) {
  _Atomic uint32_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                                0);
  int bell = eventfd(0, EFD_CLOEXEC), set = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event e = {.events = EPOLLIN};
  if (word == MAP_FAILED || bell < 0 || set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, bell, &e) < 0)
    fail("wake");
  pid_t pid = child();
  if (pid == 0) answer_wakes(word, bell);
  double start = 0;
  for (int i = -100; i < n; i++) {
    uint64_t count;
    if (i == 0) start = now();
    atomic_fetch_add(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    if (epoll_wait(set, &e, 1, -1) < 0 || read(bell, &count, sizeof count) < 0) fail("wake");
  }
  double took = now() - start;
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  return took;
}

static double pipes(int n) {
  int there[2], back[2];
  char byte = 0;
  if (pipe(there) < 0 || pipe(back) < 0) fail("pipe");
  pid_t pid = child();
  if (pid == 0)
    while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1) continue;
  double start = 0;
  for (int i = -100; i < n; i++) {
    if (i == 0) start = now();
    if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) fail("pipe");
  }
  double took = now() - start;
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  return took;
}

/* ---- processes ----------------------------------------------------------------------------- */

static double forks(int n) {
  double start = now();
  for (int i = 0; i < n; i++) {
    pid_t pid = child();
    if (pid == 0) _exit(0);
    if (waitpid(pid, NULL, 0) < 0) fail("wait");
  }
  return now() - start;
}

static double run(char **command) {
  double start = now();
  pid_t pid = child();
  if (pid == 0) {
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 1);
    execvp(command[0], command);
    _exit(127);
  }
  int status;
  if (waitpid(pid, &status, 0) < 0) fail("wait");
  if (status) {
    fprintf(stderr, "probe: %s did not end with status 0\n", command[0]);
    exit(1);
  }
  return now() - start;
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double runs(int n, char **command) {
  double *took = calloc((size_t)n, sizeof *took);
  if (!took) fail("memory");
  run(command);
  for (int i = 0; i < n; i++) took[i] = run(command);
  qsort(took, (size_t)n, sizeof *took, by_size);
  double middle = took[n / 2];
  free(took);
  return middle;
}

/* ---- memory -------------------------------------------------------------------------------- */

static double copy(int mib) {
  size_t block = 1 << 20, all = block * (size_t)mib;
  char *from = malloc(all), *to = malloc(all);
  if (!from || !to) fail("memory");
  memset(from, 1, all);
  memset(to, 2, all);
  double start = now();
  for (int i = 0; i < mib; i++) memcpy(to + block * (size_t)i, from + block * (size_t)i, block);
  double took = now() - start;
  if (to[all - 1] != 1) fail("copy");
  free(from);
  free(to);
  return took;
}

int main(int argc, char **argv) {
  int n = argc > 2 ? atoi(argv[2]) : 0;
  double took = -1;
  if (n > 0 && !strcmp(argv[1], "wake")) took = wake(n);
  if (n > 0 && !strcmp(argv[1], "pipe")) took = pipes(n);
  if (n > 0 && !strcmp(argv[1], "fork")) took = forks(n);
  if (n > 0 && !strcmp(argv[1], "copy")) took = copy(n);
  if (n > 0 && argc > 3 && !strcmp(argv[1], "exec")) took = runs(n, argv + 3);
  if (took < 0) {
    fprintf(stderr, "usage: probe wake|pipe|fork N, copy MIB, exec N COMMAND...\n");
    return 2;
  }
  printf("seconds %.9f\n", took);
  return 0;
}
