/* lines.c: whole lines to descriptors that several processes write to.
   The kernel does not divide a write of up to PIPE_BUF bytes, so short lines need no lock. A longer
   one is written in a turn that its writer holds alone:
     it takes the lock, a record lock on the descriptor itself, which dies with its process
     it says that the turn is taken
     it waits for those that were about to write a short line: each says so in a cell of its own
     it writes, in as many parts as it takes
     it says that the turn is over, and unlocks
   Who is about to write a short line and sees that a turn is taken waits for the lock. Who gets the
   lock and finds the turn taken knows that its holder died in the middle of a line, and ends that.
   Invariant: nobody waits for a process that does not move while there is room to write; what is
   shared is a hint, so who overwrites it can tear lines, no more.
   Knows descriptors. Does not know Lua or teams. SPDX-License-Identifier: MIT */
#include "lines.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

enum {
  CELLS = 1000,             /* processes that write short lines without the lock */
  LINE_MAX_HELD = 16 << 20, /* of an unfinished line; a longer one comes in parts */
  PATIENCE_NS = 1000000000, /* for a holder that does not move though there is room to write */
  NAP_NS = 20000,
  NAP_MAX_NS = 1000000
};

/* stdout and stderr are two places, or one: where it is one, both use the first. */
struct place {
  _Atomic uint32_t taken; /* a turn is under way, or its holder died */
  _Atomic uint32_t turns; /* how many have ended */
  _Atomic uint32_t stuck; /* so many and one: somebody gave up waiting for the one that follows */
};

/* Shared by all processes that were forked since lines_share. */
struct hall {
  struct place place[2];
  _Atomic uint64_t cell[CELLS]; /* pid:32 | place + 1 while a short line is being written */
};

struct lines {
  int fd, place;
  bool direct;   /* to a file of our own: no turns */
  size_t atomic; /* bytes that a write puts out undivided */
  char *tail;    /* the unfinished line */
  size_t len, cap;
};

static struct hall *hall;
static struct lines line[2];
static _Atomic uint64_t *cell; /* ours; NULL: none was free */
static bool cell_sought;
bool lines_unfinished;
int lines_lost;

void lines_share(void) {
  if (hall) return;
  void *p = mmap(NULL, sizeof *hall, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p != MAP_FAILED) hall = p;
}

/* ---- turns ---------------------------------------------------------------------------------- */

/* A byte that nobody else locks, for who locks parts of a file that it also prints to. */
static int lock_call(int fd, short type) {
  struct flock f = {
    .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)(INT64_MAX - 1), .l_len = 1};
  return fcntl(fd, F_SETLK, &f) < 0 ? -errno : 0;
}

/* For how long it has been possible to write though nobody does. */
struct patience {
  int64_t since;
  uint32_t turns;
  long nap;
};

/* False: patience is at its end. */
static bool wait_a_little(struct patience *w, int fd, const struct place *p) {
  struct pollfd f = {fd, POLLOUT, 0};
  uint32_t turns = p ? atomic_load(&p->turns) : 0;
  int64_t now = now_ns();
  if (!w->since || turns != w->turns || poll(&f, 1, 0) == 0) w->since = now;
  w->turns = turns;
  if (now - w->since > PATIENCE_NS) return false;
  struct timespec t = {0, w->nap = w->nap ? w->nap * 2 : NAP_NS};
  if (w->nap > NAP_MAX_NS) w->nap = t.tv_nsec = NAP_MAX_NS;
  nanosleep(&t, NULL);
  return true;
}

/* False: there is no lock to be had, or its holder stands still, as who was stopped. */
static bool lock(int fd, struct place *p) {
  struct patience w = {0};
  for (;;) {
    int err = lock_call(fd, F_WRLCK);
    if (err == 0) return true;
    if (err != -EAGAIN && err != -EACCES && err != -EINTR) return false;
    if (p && atomic_load(&p->stuck) == atomic_load(&p->turns) + 1) return false;
    if (wait_a_little(&w, fd, p)) continue;
    if (p) atomic_store(&p->stuck, w.turns + 1);
    return false;
  }
}

/* The cell of this process: one that is free, or whose process is gone. */
static void seek_cell(void) {
  pid_t me = getpid();
  cell_sought = true;
  for (unsigned i = 0; hall && !cell && i < CELLS; i++) {
    _Atomic uint64_t *c = &hall->cell[((unsigned)me + i) % CELLS];
    uint64_t was = atomic_load(c);
    if (was && getpgid((pid_t)(was >> 32)) >= 0) continue;
    if (atomic_compare_exchange_strong(c, &was, (uint64_t)me << 32)) cell = c;
  }
}

static void wait_for_short_lines(int fd, int place, const struct place *p) {
  for (unsigned i = 0; i < CELLS; i++) {
    struct patience w = {0};
    uint64_t was = atomic_load(&hall->cell[i]);
    if ((uint32_t)was != (uint32_t)place + 1) continue;
    while (atomic_load(&hall->cell[i]) == was && getpgid((pid_t)(was >> 32)) >= 0)
      if (!wait_a_little(&w, fd, p)) break;
  }
}

/* ---- writing -------------------------------------------------------------------------------- */

/* All of it, also where somebody has made the descriptor non-blocking. */
static int put(int fd, const char *p, size_t n) {
  while (n) {
    ssize_t r = write(fd, p, n);
    if (r < 0 && errno == EAGAIN) {
      struct pollfd f = {fd, POLLOUT, 0};
      poll(&f, 1, -1);
    } else if (r < 0 && errno != EINTR) {
      return -errno;
    } else if (r > 0) {
      p += r;
      n -= (size_t)r;
    }
  }
  return 0;
}

/* Begins a turn. False: it is not alone. */
static bool turn_begin(int fd, int place) {
  struct place *p = hall ? &hall->place[place] : NULL;
  bool alone = lock(fd, p);
  if (!alone || !p) return alone;
  if (atomic_exchange(&p->taken, 1)) put(fd, "\n", 1);
  wait_for_short_lines(fd, place, p);
  return true;
}

static void turn_end(int fd, int place, bool alone) {
  if (!alone) return;
  if (hall) {
    atomic_store(&hall->place[place].taken, 0);
    atomic_fetch_add(&hall->place[place].turns, 1);
  }
  lock_call(fd, F_UNLCK);
}

static int put_in_turn(int fd, int place, const char *p, size_t n) {
  bool alone = turn_begin(fd, place);
  int err = put(fd, p, n);
  turn_end(fd, place, alone);
  return err;
}

/* A piece that one write puts out undivided. */
static int put_short(const struct lines *s, const char *p, size_t n) {
  if (UNLIKELY(!cell_sought)) seek_cell();
  if (UNLIKELY(!cell)) return put_in_turn(s->fd, s->place, p, n);
  uint64_t idle = atomic_load_explicit(cell, memory_order_relaxed) >> 32 << 32;
  atomic_store(cell, idle | (unsigned)(s->place + 1)); /* before 'taken' is read */
  bool free = !atomic_load(&hall->place[s->place].taken);
  int err = free ? put(s->fd, p, n) : 0;
  atomic_store_explicit(cell, idle, memory_order_release);
  return free ? err : put_in_turn(s->fd, s->place, p, n);
}

/* Whole lines, in pieces that are written undivided; a line that is too long is a piece. */
static int put_lines(const struct lines *s, const char *p, size_t n) {
  int err = 0;
  if (s->direct) {
    err = put(s->fd, p, n);
    n = 0;
  }
  while (n && !err) {
    size_t piece = n;
    const char *end = n > s->atomic ? memrchr(p, '\n', s->atomic) : NULL;
    if (!end && n > s->atomic) end = memchr(p + s->atomic, '\n', n - s->atomic);
    if (end) piece = (size_t)(end + 1 - p);
    err = piece <= s->atomic ? put_short(s, p, piece) : put_in_turn(s->fd, s->place, p, piece);
    p += piece;
    n -= piece;
  }
  if (UNLIKELY(err) && s->fd == 1 && err != -EBADF) lines_lost = err;
  return err;
}

/* ---- streams -------------------------------------------------------------------------------- */

static int keep(struct lines *s, const char *p, size_t n) {
  void *tail = s->tail;
  int err = grow(&tail, &s->cap, s->len + n, 1);
  if (err) return err;
  s->tail = tail;
  memcpy(s->tail + s->len, p, n);
  s->len += n;
  lines_unfinished = true;
  return 0;
}

static int put_tail(struct lines *s) {
  size_t n = s->len;
  s->len = 0;
  int err = n ? put_lines(s, s->tail, n) : 0;
  if (s->cap > LINE_MAX_HELD / 16) {
    free(s->tail);
    s->tail = NULL;
    s->cap = 0;
  }
  return err;
}

/* The first 'whole' bytes end a line; what was kept goes before them. */
static int put_whole(struct lines *s, const char *p, size_t whole) {
  if (!s->len) return put_lines(s, p, whole);
  if (keep(s, p, whole) == 0) return put_tail(s);
  int err = put_tail(s); /* no memory: better torn than lost */
  return err ? err : put_lines(s, p, whole);
}

static ssize_t stream_write(void *cookie, const char *p, size_t n) {
  struct lines *s = cookie;
  const char *last = memrchr(p, '\n', n);
  size_t whole = last ? (size_t)(last + 1 - p) : 0, rest = n - whole;
  int err = whole ? put_whole(s, p, whole) : 0;
  if (!err && rest && (s->len + rest > LINE_MAX_HELD || keep(s, p + whole, rest) < 0))
    err = put_whole(s, p + whole, rest);
  if (!err) return (ssize_t)n;
  errno = -err;
  return 0; /* what fopencookie calls a failure */
}

int lines_place(int out, int err) {
  struct stat a, b;
  if (fstat(out, &a) < 0 || fstat(err, &b) < 0) return 1;
  return a.st_dev != b.st_dev || a.st_ino != b.st_ino;
}

/* How a stream was set up, as far as that can be seen; else as stdio would. */
static int mode_of(const struct lines *s) {
  if (s->fd == 2 || __fbufsize(stdout) == 1) return _IONBF;
  return s->direct || __flbf(stdout) || isatty(s->fd) ? _IOLBF : _IOFBF;
}

FILE *lines_open(int fd) {
  struct lines *s = &line[fd - 1];
  struct stat st;
  FILE *f = fopencookie(s, "w", (cookie_io_functions_t){.write = stream_write});
  if (!f) return NULL;
  bool socket = fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode);
  s->fd = fd;
  s->place = fd == 2 ? lines_place(1, 2) : 0;
  s->atomic = socket ? 0 : PIPE_BUF;
  s->len = 0;
  if (fd == 1) lines_lost = 0;
  cell = NULL; /* a process that was forked needs one of its own */
  cell_sought = false;
  setvbuf(f, NULL, mode_of(s), 0);
  f->_fileno = fd; /* for fileno; glibc writes by our function all the same */
  return f;
}

void lines_direct(int fd, bool direct) {
  line[fd - 1].direct = direct;
}

void lines_end(void) {
  lines_unfinished = false;
  put_tail(&line[0]);
  put_tail(&line[1]);
}

/* ---- blocks --------------------------------------------------------------------------------- */

int lines_copy(int fd, int place, int file, _Atomic uint64_t *shown, uint64_t end) {
  char copy[PIPE_BUF];
  int err = 0;
  bool alone = turn_begin(fd, place);
  for (uint64_t at; !err && (at = atomic_load(shown)) < end;) {
    size_t want = end - at < PIPE_BUF ? (size_t)(end - at) : PIPE_BUF;
    ssize_t n = pread(file, copy, want, (off_t)at);
    if (n <= 0) break;
    err = put(fd, copy, (size_t)n);
    atomic_store(shown, at + (uint64_t)n);
  }
  turn_end(fd, place, alone);
  return err;
}
