/* team.c: makes and frees the shared mapping of a team, in the owner.
   Invariant: the mapping is one sparse file, sized once; only the board lies at the same place in
   all workers.
   Knows memory and descriptors. Does not know processes or batches. SPDX-License-Identifier: MIT */
#include "team.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fail.h"

#define PAGE ((size_t)4096)

static size_t page_up(size_t n) {
  return (n + PAGE - 1) & ~(PAGE - 1);
}

static void lay_out(struct team *t, size_t payload, size_t spill) {
  t->slices_off = page_up(board_size(t->view.slots));
  t->ring_off = (sizeof(struct slice) + 63) & ~(size_t)63;
  t->stride = page_up(t->ring_off + t->ring_size);
  t->payload_off = t->slices_off + t->cap * t->stride;
  t->payload_len = payload;
  t->spills_off = t->payload_off + payload;
  t->spill_len = spill;
  t->total = t->spills_off + t->cap * spill;
}

/* In a process that locks all it maps (mlockall) memory would be there for all of it at once. */
static void *map_unlocked(size_t len, int fd) {
  void *area = mmap(NULL, len, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (area == MAP_FAILED) return area;
  munlock(area, len);
  if (mprotect(area, len, PROT_READ | PROT_WRITE) == 0) return area;
  munmap(area, len);
  return MAP_FAILED;
}

/* Who is forked gets the board only. It has a mapping of its own, which lies with what was mapped
   before: each process needs fewer page tables so. */
static bool map_all(struct team *t) {
  const int prot = PROT_READ | PROT_WRITE;
  t->board = mmap(NULL, t->slices_off, prot, MAP_SHARED, t->memory_fd, 0);
  if (t->board == MAP_FAILED) return false;
  t->base = map_unlocked(t->total, t->memory_fd);
  if (t->base == MAP_FAILED) {
    munmap(t->board, t->slices_off);
    return false;
  }
  madvise(t->base, t->total, MADV_DONTDUMP); /* a core dump would walk all of it */
  madvise(t->base, t->total, MADV_DONTFORK);
  return true;
}

/* Address space is free where it is not limited; where it is (ulimit -v, valgrind), areas shrink.
 */
static int map(struct team *t) {
  struct rlimit file = {RLIM_INFINITY, RLIM_INFINITY};
  getrlimit(RLIMIT_FSIZE, &file); /* beyond it ftruncate would kill the host by SIGXFSZ */
  size_t payload = (size_t)1 << 40, spill = (size_t)16 << 30;
  for (; spill >= ((size_t)1 << 20); payload /= 4, spill /= 4) {
    lay_out(t, payload, spill);
    if (t->total > file.rlim_cur || ftruncate(t->memory_fd, (off_t)t->total) < 0) continue;
    if (map_all(t)) return 0;
  }
  return t->total > file.rlim_cur ? -EFBIG : -ENOMEM;
}

/* Maps an area of the file where there is room: what was forked may have put something where the
   owner has the area. */
static unsigned char *map_area(const struct team *t, size_t off, size_t len, int prot) {
  void *area = mmap(NULL, len, prot, MAP_SHARED | MAP_NORESERVE, t->memory_fd, (off_t)off);
  return area == MAP_FAILED ? NULL : area;
}

/* Of one process only: what it forks has nothing there. */
static unsigned char *keep_own(unsigned char *area, size_t len) {
  if (!area) return NULL;
  madvise(area, len, MADV_DONTDUMP);
  madvise(area, len, MADV_DONTFORK);
  return area;
}

/* Maps an area that lies behind the payloads without the descriptor: where its old size is given as
   0, mremap maps a shared area once more, and as much of what follows in the file. */
static unsigned char *map_behind(const struct team *t, size_t off, size_t len) {
  size_t last = t->payload_off + t->payload_len - PAGE, lead = off - last;
  unsigned char *area = mremap(t->payloads + last, 0, lead + len, MREMAP_MAYMOVE);
  if (area == MAP_FAILED) return NULL;
  munmap(area, lead);
  area += lead;
  if (mprotect(area, len, PROT_READ | PROT_WRITE) < 0) return NULL;
  return area;
}

int team_enter(struct team *t) {
  unsigned char *area = map_area(t, t->payload_off, t->payload_len, PROT_READ);
  if (!area) return -ENOMEM;
  madvise(area, t->payload_len, MADV_DONTDUMP);
  t->payloads = area - t->payload_off;
  area = map_behind(t, t->spills_off, PAGE);
  t->spill_early = !area; /* valgrind has no such mremap */
  if (area) munmap(area, PAGE);
  return 0;
}

struct slice *team_enter_slice(const struct team *t, unsigned w) {
  unsigned char *own = map_area(t, t->slices_off + (size_t)w * t->stride, t->stride,
                                PROT_READ | PROT_WRITE);
  return (struct slice *)(void *)keep_own(own, t->stride);
}

unsigned char *team_enter_spill(const struct team *t, unsigned w) {
  size_t off = team_spill(t, w), len = t->spill_len;
  unsigned char *own = t->spill_early ? map_area(t, off, len, PROT_READ | PROT_WRITE)
                                      : map_behind(t, off, len);
  return keep_own(own, len);
}

static int open_fd(int fd, int *out) {
  int high = fd < 0 ? -errno : fd_above_stdio(fd);
  if (high < 0) return high;
  *out = high;
  return 0;
}

static int watch_bell(struct team *t) {
  struct epoll_event e = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
  return epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->bell_fd, &e) < 0 ? -errno : 0;
}

/* Messages are bounded by bytes, not by number, so that many workers can send one. */
static int open_mail(struct team *t) {
  struct epoll_event e = {.events = EPOLLIN, .data.u32 = UINT32_MAX - 1};
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) return -errno;
  int err = open_fd(pair[0], &t->mail_fd[0]), other = open_fd(pair[1], &t->mail_fd[1]);
  if (err || other) return err ? err : other;
  return epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->mail_fd[0], &e) < 0 ? -errno : 0;
}

int team_open(struct team *t, unsigned slots, size_t ring, unsigned cap) {
  t->memory_fd = t->bell_fd = t->epoll_fd = t->mail_fd[0] = t->mail_fd[1] = -1;
  t->base = NULL;
  t->view.slots = slots;
  t->ring_size = ring;
  t->cap = cap;
  int err = open_fd(memfd_create("plua", MFD_CLOEXEC), &t->memory_fd);
  if (!err) err = open_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), &t->bell_fd);
  if (!err) err = open_fd(epoll_create1(EPOLL_CLOEXEC), &t->epoll_fd);
  if (!err) err = watch_bell(t);
  if (!err) err = FAIL_ERROR(P_OPEN);
  if (!err) err = open_mail(t);
  if (!err) err = map(t);
  if (err)
    team_close(t);
  else
    board_make(&t->view, t->board, slots);
  return err;
}

void team_part(void *area, size_t len) {
  /* Where it fails nothing is there, and who writes ends by SIGSEGV. */
  (void)mmap(area, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/* A process that the owner forked has the board only: the other addresses are not ours. */
void team_close(struct team *t) {
  if (t->base && t->base != MAP_FAILED) {
    munmap(t->board, t->slices_off);
    if (t->owner == getpid()) munmap(t->base, t->total);
  }
  if (t->memory_fd >= 0) close(t->memory_fd);
  if (t->bell_fd >= 0) close(t->bell_fd);
  if (t->epoll_fd >= 0) close(t->epoll_fd);
  for (int i = 0; i < 2; i++)
    if (t->mail_fd[i] >= 0) close(t->mail_fd[i]);
  t->base = NULL;
  t->memory_fd = t->bell_fd = t->epoll_fd = t->mail_fd[0] = t->mail_fd[1] = -1;
}
