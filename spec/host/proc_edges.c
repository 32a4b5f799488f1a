/* proc_edges.c: one process at a time, where one signal, descriptor or answer more decides.
     proc_edges            all of it
     proc_edges unwatched  where no process can be watched (IOFAIL=syscall434:24:1:sticky)
   Knows proc.h. SPDX-License-Identifier: MIT */
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base.h"

_Noreturn static void wrong(int line, const char *what) {
  fprintf(stderr, "proc_edges.c:%d: not so: %s\n", line, what);
  _exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static const int64_t LONG = INT64_C(20000000000);

/* Runs f in a process of its own: its status, or its signal + 1000. */
static int ends(void (*f)(void)) {
  struct proc p;
  int sig, status;
  pid_t me = getpid();
  int r = proc_fork(&p);
  if (r == 0) {
    CHECK(getpid() != me);
    proc_tie(me);
    f();
    _exit(0);
  }
  CHECK(r == 1 && p.fd > 2 && proc_is_child(p.pid));
  CHECK(proc_await(&p, now_ns() + LONG) && proc_ended(&p) && proc_is_child(p.pid));
  errno = EINTR; /* of something long ago */
  proc_reap(&p, &sig, &status);
  CHECK(p.pid == 0 && p.fd == -1 && !proc_is_child(p.pid));
  return sig ? 1000 + sig : status;
}

static void by_three(void) {
  _exit(3);
}
static void by_kill(void) {
  raise(SIGKILL);
}
static void wait_for_ever(void) {
  for (;;) pause();
}

static void ends_are_told(void) {
  struct proc none = {0, -1};
  int sig, status;
  CHECK(ends(by_three) == 3 && ends(by_kill) == 1000 + SIGKILL);
  CHECK(proc_ended(&none) && !proc_stopped(&none) && proc_await(&none, 0));
  CHECK(proc_signal(&none, SIGKILL) == -ESRCH);
  proc_reap(&none, &sig, &status);
  CHECK(sig == 0 && status == -1);
}

static void fork_a_sibling(void) {
  _Atomic int32_t pid = 0;
  errno = EAGAIN; /* of something long ago */
  int r = proc_fork_sibling(&pid);
  if (r == 0) _exit(5);
  CHECK(r > 0 && pid == r);
}

/* A process that is made by ours, and is ours. */
static void siblings_are_children(void) {
  int status;
  CHECK(ends(fork_a_sibling) == 0 && waitpid(-1, &status, 0) > 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

/* Somebody else has taken the status, before it was watched or behind that. */
static void taken_are_ended(void) {
  struct proc p;
  int sig, status;
  pid_t pid = fork();
  if (pid == 0) _exit(3);
  CHECK(waitpid(pid, NULL, 0) == pid && proc_adopt(&p, pid) == 0 && p.fd == -1 && p.pid == pid);
  pid = fork();
  if (pid == 0) _exit(3);
  CHECK(proc_adopt(&p, pid) == 0 && p.fd > 2 && proc_await(&p, now_ns() + LONG));
  CHECK(proc_await(&p, 0)); /* has ended, though time is up */
  CHECK(waitpid(pid, NULL, 0) == pid);
  proc_reap(&p, &sig, &status);
  CHECK(sig == 0 && status == -1);
}

static void *look_at_threads(void *unused) {
  CHECK(proc_threads() == 2);
  return unused;
}

static void threads_are_counted(void) {
  pthread_t thread;
  CHECK(proc_threads() == 1);
  CHECK(pthread_create(&thread, NULL, look_at_threads, NULL) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
}

static void living_are_waited_for(void) {
  struct proc p;
  int sig, status;
  pid_t me = getpid();
  int r = proc_fork(&p);
  if (r == 0) {
    proc_tie(me);
    wait_for_ever();
  }
  int64_t begin = now_ns();
  CHECK(r == 1 && !proc_ended(&p) && !proc_stopped(&p) && !proc_await(&p, begin - 1));
  CHECK(!proc_await(&p, begin + 30000000) && now_ns() >= begin + 30000000);
  CHECK(proc_signal(&p, SIGSTOP) == 0);
  for (int64_t until = now_ns() + LONG; !proc_stopped(&p);) CHECK(now_ns() < until);
  CHECK(proc_stopped(&p)); /* the news stays */
  CHECK(proc_signal(&p, SIGKILL) == 0 && proc_await(&p, now_ns() + LONG));
  CHECK(!proc_stopped(&p));
  proc_reap(&p, &sig, &status);
  CHECK(sig == SIGKILL && status == 0);
}

/* ---- signals --------------------------------------------------------------------------------- */

static struct proc_signals signals;

static void caught(int sig) {
  (void)sig;
}
static void caught_with_more(int sig, siginfo_t *info, void *more) {
  (void)sig;
  (void)info;
  (void)more;
}

static struct sigaction action(int sig) {
  struct sigaction a;
  CHECK(sigaction(sig, NULL, &a) == 0);
  return a;
}

static bool shrugs(int sig) {
  void (*f)(int) = action(sig).sa_handler;
  return f != SIG_DFL && f != SIG_IGN && f != caught;
}

static void look_at_signals(void) {
  sigset_t mask;
  proc_child(&signals);
  CHECK(action(64).sa_handler == SIG_DFL && action(SIGALRM).sa_handler == SIG_DFL);
  CHECK(action(SIGCHLD).sa_handler == SIG_DFL && action(SIGPIPE).sa_handler == SIG_DFL);
  CHECK(action(SIGUSR1).sa_handler == SIG_IGN && action(SIGQUIT).sa_handler == SIG_IGN);
  CHECK(shrugs(SIGUSR2) && shrugs(SIGINT) && action(SIGUSR2).sa_flags & SA_RESTART);
  CHECK(!(action(SIGINT).sa_flags & SA_RESTART) && action(SIGHUP).sa_handler == SIG_DFL);
  sigprocmask(SIG_BLOCK, NULL, &mask);
  for (int n = 1; n <= 64; n++) CHECK(sigismember(&mask, n) <= 0);
}

static void signals_are_reset(void) {
  const struct sigaction more = {.sa_sigaction = caught_with_more, .sa_flags = SA_SIGINFO};
  proc_signals_read(&signals);
  uint64_t before = signals.handled, bit = 1;
  CHECK(!(before & (bit << 63 | bit << (SIGALRM - 1) | bit << (SIGUSR2 - 1))));
  struct sigaction quiet = {.sa_handler = caught};
  CHECK(sigaction(64, &quiet, NULL) == 0 && sigaction(SIGUSR2, &quiet, NULL) == 0);
  CHECK(sigaction(SIGALRM, &more, NULL) == 0);
  quiet.sa_handler = SIG_IGN;
  CHECK(sigaction(SIGUSR1, &quiet, NULL) == 0 && sigaction(SIGPIPE, &quiet, NULL) == 0);
  CHECK(sigaction(SIGQUIT, &quiet, NULL) == 0);
  proc_signals_read(&signals);
  CHECK(signals.handled >> 63 == 1 && signals.handled >> (SIGALRM - 1) & 1);
  CHECK(signals.ignored >> (SIGUSR1 - 1) & 1 && !(signals.ignored >> (SIGALRM - 1) & 1));
  CHECK(!(signals.ignored >> 63));
  CHECK(ends(look_at_signals) == 0);
  signal(64, SIG_DFL);
  signal(SIGUSR1, SIG_DFL);
  signal(SIGQUIT, SIG_DFL);
}

/* ---- descriptors ----------------------------------------------------------------------------- */

/* After all but those, and the standard ones, were closed. */
static void close_but(const int *keep, int n) {
  for (int fd = 3; fd < 20; fd++) CHECK(fcntl(fd, F_GETFD) >= 0 || dup2(2, fd) == fd);
  proc_close_others(keep, n);
  for (int fd = 0; fd < 30; fd++) {
    bool kept = fd < 3;
    for (int i = 0; i < n; i++) kept |= keep[i] == fd;
    CHECK((fcntl(fd, F_GETFD) >= 0) == kept);
  }
}

static void close_some(void) {
  close_but((int[]){9, 5, 9, 1}, 4);
}
static void close_ends(void) {
  close_but((int[]){3, 4, 19}, 3);
}
static void close_all(void) {
  close_but((int[]){7}, 0);
}
static void close_but_one(void) {
  close_but((int[]){12, 13}, 1);
}

static void descriptors_are_closed(void) {
  CHECK(ends(close_some) == 0 && ends(close_ends) == 0 && ends(close_all) == 0);
  CHECK(ends(close_but_one) == 0);
}

static void look_at_stdin(void) {
  char c;
  proc_child(&signals);
  CHECK(read(0, &c, 1) == 0); /* /dev/null, open though it was closed before */
}
static void without_stdin(void) {
  close(0);
  look_at_stdin();
  CHECK(fcntl(0, F_GETFD) >= 0);
}

/* A child that cannot be watched is ended, also where the host has its status thrown away. */
static void unwatched(void) {
  struct proc p = {7, 7};
  for (int ignored = 0; ignored < 2; ignored++) {
    signal(SIGCHLD, ignored ? SIG_IGN : SIG_DFL);
    int r = proc_fork(&p);
    if (r == 0) wait_for_ever();
    CHECK(r == -EMFILE && p.pid == 7 && p.fd == 7);
    CHECK(waitpid(-1, NULL, 0) < 0 && errno == ECHILD);
  }
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "unwatched") == 0) {
    unwatched();
  } else {
    ends_are_told();
    siblings_are_children();
    taken_are_ended();
    living_are_waited_for();
    signals_are_reset();
    descriptors_are_closed();
    threads_are_counted();
    CHECK(ends(look_at_stdin) == 0 && ends(without_stdin) == 0);
  }
  puts("ok");
  return 0;
}
