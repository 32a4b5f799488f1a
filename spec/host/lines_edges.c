/* lines_edges.c: whole lines, where one byte, answer of the kernel or nanosecond more decides. The
   clock, the lock, the writes and the naps of the streams are in here, so nothing waits.
   Knows lines.h. SPDX-License-Identifier: MIT */
#include "lines.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REAL_OUT = 8, REAL_ERR = 9 }; /* 1 and 2 lead nowhere */

_Noreturn static void wrong(int line, const char *what) {
  char text[300];
  int n = snprintf(text, sizeof text, "lines_edges.c:%d: not so: %s\n", line, what);
  (void)!write(REAL_ERR, text, (size_t)n);
  _exit(1);
}
#define CHECK(x) ((x) ? (void)0 : wrong(__LINE__, #x))

static const int64_t SECOND = 1000000000;

/* ---- a kernel of our own --------------------------------------------------------------------- */

static struct {
  int64_t now;
  int locked, lock_error; /* so often the lock is refused, for this reason */
  int locks, unlocks;     /* got, given back */
  int full;               /* so often there is no room to write */
  int write_error, write_errors;
  int naps, polls;
  bool outside; /* process groups are those of another container */
  pid_t pid;    /* ours, if not 0 */
  struct timespec longest;
  void (*each_nap)(void), (*each_write)(void);
  size_t most;          /* bytes that one write takes */
  char text[100000];    /* written to 1 and 2, so much of it as has room */
  size_t len, write[8]; /* sizes of the first writes */
  int writes;
} k;

int clock_gettime(clockid_t clock, struct timespec *t) {
  (void)clock;
  k.now += 1000;
  *t = (struct timespec){k.now / SECOND, k.now % SECOND};
  return 0;
}

int fcntl(int fd, int what, ...) {
  va_list args;
  va_start(args, what);
  void *p = va_arg(args, void *);
  va_end(args);
  if (what != F_SETLK || fd > 2) return (int)syscall(SYS_fcntl, fd, what, p);
  if (((struct flock *)p)->l_type == F_UNLCK) {
    k.unlocks++;
    return 0;
  }
  if (k.locked && k.locked--) {
    errno = k.lock_error;
    return -1;
  }
  k.locks++;
  return 0;
}

ssize_t write(int fd, const void *bytes, size_t n) {
  if (fd != 1 && fd != 2) return syscall(SYS_write, fd, bytes, n);
  if (k.write_errors && k.write_errors--) {
    errno = k.write_error;
    return -1;
  }
  if (k.most && n > k.most) n = k.most;
  if (k.len + n <= sizeof k.text) memcpy(k.text + k.len, bytes, n);
  k.len += n;
  if (k.writes < 8) k.write[k.writes] = n;
  k.writes++;
  if (k.each_write) k.each_write();
  return (ssize_t)n;
}

int poll(struct pollfd *f, nfds_t n, int ms) {
  (void)f, (void)n;
  k.polls++;
  if (ms < 0) return 1;
  return k.full && k.full-- ? 0 : 1;
}

int nanosleep(const struct timespec *t, struct timespec *left) {
  (void)left;
  k.naps++;
  CHECK(t->tv_sec == 0 && t->tv_nsec > 0 && k.naps < 1000000);
  if (t->tv_nsec > k.longest.tv_nsec) k.longest = *t;
  k.now += t->tv_nsec;
  if (k.each_nap) k.each_nap();
  return 0;
}

pid_t getpid(void) {
  return k.pid ? k.pid : (pid_t)syscall(SYS_getpid);
}

pid_t getpgid(pid_t pid) {
  pid_t group = (pid_t)syscall(SYS_getpgid, pid);
  return group > 0 && k.outside ? 0 : group;
}

/* ---- helpers --------------------------------------------------------------------------------- */

static void afresh(void) {
  memset(&k, 0, sizeof k);
  k.now = 5 * SECOND;
  k.lock_error = EAGAIN;
}

static bool wrote(const char *text) {
  return k.len == strlen(text) && memcmp(k.text, text, k.len) == 0;
}

/* A line of n bytes, its end among them. */
static const char *line_of(size_t n) {
  static char text[200001];
  memset(text, 'x', n - 1);
  text[n - 1] = '\n';
  text[n] = 0;
  return text;
}

static void put(FILE *f, const char *text) {
  CHECK(fputs(text, f) >= 0 && fflush(f) == 0);
}

/* What a short program of its own answers; 0: all was as it should be. */
static void apart(void (*f)(void)) {
  int status;
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    afresh();
    f();
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

/* Descriptor fd is a pipe, of which nobody reads. */
static void to_pipe(int fd) {
  int p[2];
  CHECK(pipe(p) == 0 && dup2(p[1], fd) == fd);
}

static void to_socket(int fd) {
  int p[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0 && dup2(p[1], fd) == fd);
}

/* ---- turns ----------------------------------------------------------------------------------- */

/* A line that one write puts out undivided costs that write; a longer one is a turn. */
static void turns(void) {
  FILE *f = lines_open(1);
  put(f, line_of(PIPE_BUF));
  CHECK(k.locks == 0 && k.writes == 1 && k.len == PIPE_BUF);
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.locks == 1 && k.unlocks == 1 && k.writes == 2 && k.write[1] == PIPE_BUF + 1);
}

/* What is flushed at once goes out in pieces that end with a line. */
static void pieces(void) {
  FILE *f = lines_open(1);
  char text[3 * PIPE_BUF] = "";
  setvbuf(f, NULL, _IOFBF, sizeof text * 2);
  strcat(text, line_of(PIPE_BUF - 10));
  strcat(text, line_of(10));
  strcat(text, line_of(PIPE_BUF - 1));
  strcat(text, line_of(2));
  put(f, text);
  CHECK(wrote(text) && k.writes == 3 && k.locks == 0);
  CHECK(k.write[0] == PIPE_BUF && k.write[1] == PIPE_BUF - 1 && k.write[2] == 2);
  afresh();
  strcpy(text, line_of(PIPE_BUF + 5));
  strcat(text, line_of(7));
  put(f, text);
  CHECK(wrote(text) && k.writes == 2 && k.write[0] == PIPE_BUF + 5 && k.locks == 1);
}

/* A socket may divide any write. */
static void sockets(void) {
  to_socket(1);
  FILE *f = lines_open(1);
  put(f, "a\nb\n");
  CHECK(k.locks == 2 && k.unlocks == 2 && wrote("a\nb\n"));
}

static void direct(void) {
  FILE *f = lines_open(1);
  lines_direct(1, true);
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.locks == 0 && k.writes == 1);
  lines_direct(1, false);
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.locks == 1);
}

/* The kernel takes what it likes, says that it was interrupted, or that it is full. */
static void parts(void) {
  FILE *f = lines_open(1);
  k.most = 1000;
  k.write_error = EINTR;
  k.write_errors = 2;
  put(f, line_of(5000));
  CHECK(wrote(line_of(5000)) && k.polls == 0);
  afresh();
  k.write_error = EAGAIN;
  k.write_errors = 3;
  put(f, "short\n");
  CHECK(wrote("short\n") && k.polls == 3);
}

static void losses(void) {
  FILE *f = lines_open(1), *e = lines_open(2);
  k.write_error = ENOSPC;
  k.write_errors = 1;
  CHECK(fputs("a\n", f) >= 0 && fflush(f) == EOF && lines_lost == -ENOSPC);
  lines_lost = 0;
  k.write_error = EBADF;
  k.write_errors = 1;
  CHECK(fflush(f) == 0 || lines_lost == 0);
  clearerr(f);
  k.write_error = ENOSPC;
  k.write_errors = 1;
  CHECK(fputs("a\n", e) == EOF && lines_lost == 0); /* what is lost of stderr is not told */
  lines_lost = -EIO;
  lines_open(2);
  CHECK(lines_lost == -EIO);
  lines_open(1);
  CHECK(lines_lost == 0);
}

/* ---- patience -------------------------------------------------------------------------------- */

/* Who holds the lock and does not move is waited for as long as it could write, not longer. */
static void stuck(void) {
  FILE *f = lines_open(1);
  k.locked = INT_MAX;
  put(f, line_of(PIPE_BUF + 1)); /* torn is better than never */
  CHECK(k.locks == 0 && k.unlocks == 0 && k.writes == 1);
  CHECK(k.now > 6 * SECOND && k.now < 6 * SECOND + SECOND / 10);
  CHECK(k.naps >= 1000 && k.naps < 1100 && k.longest.tv_nsec == 1000000);
  int64_t then = k.now;
  put(f, line_of(PIPE_BUF + 1)); /* nobody waits for it again */
  CHECK(k.now - then < SECOND / 1000 && k.writes == 2);
  k.locked = 0;
  put(f, line_of(PIPE_BUF + 1)); /* it has moved on */
  CHECK(k.locks == 1 && k.unlocks == 1);
  k.locked = INT_MAX;
  then = k.now;
  put(f, line_of(PIPE_BUF + 1)); /* and is waited for as before */
  CHECK(k.now - then > SECOND);
}

/* Who cannot write since nobody reads is waited for. */
static void full(void) {
  FILE *f = lines_open(1);
  k.full = 5000; /* naps of a millisecond */
  k.locked = 5500;
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.locks == 1 && k.unlocks == 1 && k.now > 10 * SECOND);
}

/* Who waits while others take their turns is patient with each of them. */
static void take_turn(void) {
  put(lines_open(1), line_of(PIPE_BUF + 1));
}
static void other_turn(void) {
  if (k.naps % 500 == 0) apart(take_turn);
}
static void others(void) {
  FILE *f = lines_open(1);
  k.locked = 3300;
  k.each_nap = other_turn;
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.locks == 1 && k.unlocks == 1 && k.now > 8 * SECOND);
}

/* Where there are no locks, lines go out at once. */
static void no_locks(void) {
  FILE *f = lines_open(1);
  k.locked = INT_MAX;
  k.lock_error = ENOLCK;
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.naps == 0 && k.unlocks == 0 && k.writes == 1);
  k.lock_error = EACCES; /* as some file systems say that it is taken */
  k.locked = 3;
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.naps == 3 && k.locks == 1);
  k.lock_error = EINTR;
  k.locked = 3;
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.naps == 6 && k.locks == 2);
}

/* ---- others ---------------------------------------------------------------------------------- */

static void die(void) {
  _exit(0);
}
static void die_in_turn(void) {
  k.most = 100;
  k.each_write = die;
  put(lines_open(1), line_of(PIPE_BUF + 1));
}
static void die_in_block(void) {
  _Atomic uint64_t shown = 0;
  FILE *f = tmpfile();
  CHECK(f && fputs("block", f) >= 0 && fflush(f) == 0);
  k.each_write = die;
  lines_copy(1, 0, fileno(f), &shown, 5);
  _exit(1);
}

/* The line of one that died in its middle is ended by whoever writes next, once. */
static void torn_lines_end(void) {
  apart(die_in_turn);
  FILE *f = lines_open(1);
  put(f, "short\n");
  CHECK(wrote("\nshort\n") && k.locks == 1 && k.unlocks == 1);
  put(f, "short\n");
  CHECK(wrote("\nshort\nshort\n") && k.locks == 1);
  apart(die_in_turn);
  afresh();
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.text[0] == '\n' && k.len == PIPE_BUF + 2 && k.locks == 1);
}

/* Standard error is a place of its own, unless it leads where standard output leads. */
static void places(void) {
  FILE *f = lines_open(1), *e = lines_open(2);
  apart(die_in_block);
  put(e, "err\n");
  CHECK(wrote("err\n") && k.locks == 0);
  put(f, "out\n");
  CHECK(wrote("err\n\nout\n") && k.locks == 1);
  CHECK(dup2(1, 2) == 2);
  e = lines_open(2);
  apart(die_in_block);
  afresh();
  put(e, "err\n");
  CHECK(wrote("\nerr\n") && k.locks == 1);
  CHECK(lines_place(1, 2) == 0 && lines_place(1, REAL_ERR + 1) == 1);
  CHECK(lines_place(REAL_ERR + 1, 1) == 1);
  to_pipe(2);
  CHECK(lines_place(1, 2) == 1);
}

static int ready[2], at_fd;

static void stay(void) {
  CHECK(syscall(SYS_write, ready[1], "", 1) == 1);
  for (;;) pause();
}
/* A process that stays where it writes a short line to at_fd, or has written one. */
static pid_t writer(bool within) {
  char c;
  CHECK(pipe(ready) == 0);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    FILE *f = lines_open(at_fd);
    afresh();
    if (within) k.each_write = stay;
    put(f, "short\n");
    stay();
  }
  CHECK(read(ready[0], &c, 1) == 1);
  return pid;
}

static pid_t other;

static void end_other(void) {
  if (!other) return;
  CHECK(kill(other, SIGKILL) == 0 && waitpid(other, NULL, 0) == other);
  other = 0;
}
static void end_it_soon(void) {
  if (k.naps == 5) end_other();
}

/* A turn begins when the short lines that are being written there are out. */
static void short_lines(void) {
  FILE *f = lines_open(1);
  at_fd = 1;
  other = writer(true);
  k.each_nap = end_it_soon;
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.naps == 5 && k.locks == 1 && k.writes == 1); /* it died, and never will be */
  other = writer(true);
  afresh();
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.now > 6 * SECOND && k.now < 7 * SECOND && k.writes == 1); /* it stands still */
  end_other();
  other = writer(false);
  afresh();
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.naps == 0);
  end_other();
  at_fd = 2; /* another place */
  other = writer(true);
  afresh();
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.naps == 0);
  end_other();
}

static void print_beside(void) {
  k.outside = true;
  k.pid = other + 1000;
  put(lines_open(1), "short\n");
}
/* A process is there though its group is not to be seen: none takes its place. */
static void containers(void) {
  at_fd = 1;
  other = writer(true);
  apart(print_beside);
  k.outside = true;
  put(lines_open(1), line_of(PIPE_BUF + 1));
  CHECK(k.now > 6 * SECOND);
  end_other();
}

static void print_short(void) {
  put(lines_open(1), "short\n");
  CHECK(k.locks == 0 && k.writes == 1);
}
/* Whoever comes after many that are gone writes without the lock as they did. */
static void generations(void) {
  for (int i = 0; i < 1100; i++) apart(print_short);
}

/* ---- streams --------------------------------------------------------------------------------- */

static int buffers_of(FILE *f) {
  CHECK(fputs("a\n", f) >= 0 && fputs("b\n", f) >= 0);
  int n = k.writes;
  CHECK(fflush(f) == 0 && wrote("a\nb\n"));
  afresh();
  return n;
}

/* Streams have buffers as before: standard error none, a terminal that of a line. */
static void buffers(void) {
  CHECK(buffers_of(lines_open(1)) == 0);
  CHECK(buffers_of(lines_open(2)) == 2);
  lines_direct(1, true);
  CHECK(buffers_of(lines_open(1)) == 2);
  lines_direct(1, false);
  int tty = posix_openpt(O_RDWR | O_NOCTTY);
  CHECK(tty >= 0 && grantpt(tty) == 0 && unlockpt(tty) == 0);
  int end = open(ptsname(tty), O_RDWR | O_NOCTTY);
  CHECK(end >= 0 && dup2(end, 1) == 1 && buffers_of(lines_open(1)) == 2);
}
static void line_buffered(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  FILE *f = lines_open(1);
  CHECK(fputs("a", f) >= 0 && fputs("b\n", f) >= 0 && k.writes == 1);
}
static void unbuffered(void) {
  setvbuf(stdout, NULL, _IONBF, 0);
  FILE *f = lines_open(1);
  CHECK(buffers_of(f) == 2);
}

/* What is not a line yet waits for its end. */
static void unfinished(void) {
  FILE *f = lines_open(1), *e = lines_open(2);
  put(e, "none\n");
  CHECK(!lines_unfinished && k.writes == 1);
  put(f, "one\ntw");
  put(e, "er");
  CHECK(wrote("none\none\n") && lines_unfinished);
  put(f, "o\nthree");
  CHECK(wrote("none\none\ntwo\n") && lines_unfinished);
  lines_end();
  CHECK(wrote("none\none\ntwo\nthreeer") && !lines_unfinished && k.writes == 5);
  lines_end();
  CHECK(k.writes == 5);
}

/* A line without an end comes in parts once it is longer than is kept. */
static void endless(void) {
  enum { HELD = 16 << 20 };
  FILE *f = lines_open(1);
  char *text = malloc(HELD);
  CHECK(text);
  memset(text, 'x', HELD);
  CHECK(fwrite(text, 1, HELD, f) == HELD && fflush(f) == 0 && k.writes == 0);
  put(f, "y");
  CHECK(k.len == HELD + 1);
  put(f, "z\n");
  CHECK(k.len == HELD + 3);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static void blocks(void) {
  _Atomic uint64_t shown = 0;
  FILE *file = tmpfile();
  CHECK(file && fputs(line_of(3 * PIPE_BUF + 9), file) >= 0 && fflush(file) == 0);
  CHECK(lines_copy(1, 0, fileno(file), &shown, 2 * PIPE_BUF + 1) == 0);
  CHECK(shown == 2 * PIPE_BUF + 1 && k.len == shown && k.locks == 1 && k.unlocks == 1);
  CHECK(lines_copy(1, 0, fileno(file), &shown, UINT64_MAX) == 0); /* it is shorter than that */
  CHECK(shown == 3 * PIPE_BUF + 9 && wrote(line_of(3 * PIPE_BUF + 9)));
  shown = 0;
  k.write_error = ENOSPC;
  k.write_errors = 1;
  CHECK(lines_copy(1, 0, fileno(file), &shown, 2 * PIPE_BUF) == -ENOSPC && k.locks == k.unlocks);
  CHECK(k.len == 3 * PIPE_BUF + 9);
}

/* Without what processes share, each line is a turn. */
static void alone(void) {
  FILE *f = lines_open(1);
  put(f, "short\n");
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.locks == 2 && k.unlocks == 2 && k.writes == 2);
  k.locked = INT_MAX;
  put(f, line_of(PIPE_BUF + 1));
  CHECK(k.now > 6 * SECOND && k.writes == 3);
}

static void (*tried)(void);

static void together(void) {
  lines_share();
  tried();
}

int main(void) {
  CHECK(dup2(1, REAL_OUT) == REAL_OUT && dup2(2, REAL_ERR) == REAL_ERR);
  to_pipe(1);
  to_pipe(2);
  apart(alone);
  void (*each[])(void) = {
    turns,   pieces,     sockets,       direct,     parts,       losses,         stuck,
    full,    others,     no_locks,      places,     short_lines, containers,     blocks,
    buffers, unbuffered, line_buffered, unfinished, endless,     torn_lines_end, generations};
  for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
    tried = each[i];
    apart(together);
  }
  CHECK(write(REAL_OUT, "ok\n", 3) == 3);
  return 0;
}
