/* capture.c: keeps what a process and its children write to descriptors 1 and 2 in files.
   Invariant: what was shown is counted after each write, outside this process, so that nothing is
   shown twice or lost if it dies, save the one write (PIPE_BUF bytes) that it dies in.
   Knows descriptors and turns. Does not know items or teams. SPDX-License-Identifier: MIT */
#include "capture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio_ext.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base.h"
#include "lines.h"

static int fresh_file(void) {
  const char *dir = getenv("TMPDIR");
  int fd = open(dir && *dir ? dir : "/tmp", O_TMPFILE | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) {
    fd = memfd_create("plua-output", MFD_CLOEXEC);
    if (fd >= 0) fcntl(fd, F_SETFL, O_APPEND);
  }
  return fd < 0 ? -errno : fd_above_stdio(fd);
}

static void close_fd(int *fd) {
  if (*fd > 2) close(*fd);
  *fd = -1;
}

void capture_close(struct capture *c) {
  for (int i = 0; i < 2; i++) {
    close_fd(&c->file[i]);
    close_fd(&c->real[i]);
  }
}

int capture_open(struct capture *c, int which, _Atomic uint64_t *shown) {
  *c = (struct capture){.file = {-1, -1}, .real = {-1, -1}, .shown = shown};
  c->place[1] = lines_place(1, 2);
  c->one = which == (CAPTURE_OUT | CAPTURE_ERR) && !c->place[1];
  for (int i = 0; i < 2; i++) {
    if (!(which & 1 << i) || fcntl(i + 1, F_GETFD) < 0) continue;
    c->real[i] = fcntl(i + 1, F_DUPFD_CLOEXEC, 3);
    int err = c->real[i] < 0 ? -errno : 0;
    if (!err && !(i && c->one)) err = c->file[i] = fresh_file();
    if (err < 0) {
      capture_close(c);
      return err;
    }
    atomic_store(&shown[i], 0);
  }
  return 0;
}

static int file_of(const struct capture *c, int i) {
  return c->file[c->one ? 0 : i];
}

void capture_on(struct capture *c) {
  c->on = true;
  for (int i = 0; i < 2; i++) {
    if (c->real[i] < 0 || file_of(c, i) < 0) continue;
    dup2(file_of(c, i), i + 1);
    lines_direct(i + 1, true);
  }
}

void capture_off(struct capture *c) {
  c->on = false;
  for (int i = 0; i < 2; i++) {
    if (c->real[i] < 0 || file_of(c, i) < 0) continue;
    dup2(c->real[i], i + 1);
    lines_direct(i + 1, false);
  }
}

static uint64_t size_of(const struct capture *c, int i) {
  struct stat st;
  return c->file[i] < 0 || fstat(c->file[i], &st) < 0 ? 0 : (uint64_t)st.st_size;
}

size_t capture_tail(const struct capture *c, char *bytes, size_t max) {
  uint64_t size[2] = {size_of(c, 0), size_of(c, 1)};
  size_t used = 0;
  for (int i = 0; i < 2; i++) {
    uint64_t room = size[1 - i] < max / 2 ? max - size[1 - i] : max / 2;
    uint64_t from = size[i] > room ? size[i] - room : 0;
    if (atomic_load(&c->shown[i]) > from) from = atomic_load(&c->shown[i]);
    if (from >= size[i]) continue;
    if (used && used < max && bytes[used - 1] != '\n') bytes[used++] = '\n';
    if (size[i] - from > max - used) from = size[i] - (max - used);
    ssize_t n = pread(c->file[i], bytes + used, (size_t)(size[i] - from), (off_t)from);
    if (n > 0) used += (size_t)n;
  }
  return used;
}

void capture_show(struct capture *c) {
  for (int i = 0; i < 2; i++) {
    uint64_t size = size_of(c, i);
    if (!size) continue;
    int err = lines_copy(c->real[i], c->place[i], c->file[i], &c->shown[i], size);
    if (err && err != -EBADF && i == 0) lines_lost = err;
    if (ftruncate(c->file[i], 0) == 0) atomic_store(&c->shown[i], 0);
  }
}

/* ---- from process to process ---------------------------------------------------------------- */

struct letter {
  pid_t pid;
  unsigned worker;
  int has[2], place[2];
};

union control {
  struct cmsghdr align;
  char bytes[CMSG_SPACE(2 * sizeof(int))];
};

int capture_send(const struct capture *c, int socket, unsigned worker) {
  struct letter letter = {.pid = getpid(), .worker = worker};
  union control control = {0};
  int fds[2], n = 0;
  for (int i = 0; i < 2; i++) {
    letter.place[i] = c->place[i];
    letter.has[i] = c->file[i] >= 0;
    if (letter.has[i]) fds[n++] = c->file[i];
  }
  if (!n) return 0;
  struct iovec part = {&letter, sizeof letter};
  struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes};
  m.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
  struct cmsghdr *h = CMSG_FIRSTHDR(&m);
  h->cmsg_level = SOL_SOCKET;
  h->cmsg_type = SCM_RIGHTS;
  h->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
  memcpy(CMSG_DATA(h), fds, (size_t)n * sizeof(int));
  ssize_t r;
  do r = sendmsg(socket, &m, MSG_NOSIGNAL);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : 0;
}

/* The descriptors that came with a message: how many, at most 2. */
static int take_fds(struct msghdr *m, int fds[2]) {
  struct cmsghdr *h = CMSG_FIRSTHDR(m);
  if (!h || h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) return 0;
  size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
  memcpy(fds, CMSG_DATA(h), n * sizeof(int));
  return (int)n;
}

int capture_receive(struct capture *c, int socket, unsigned *worker, pid_t *pid) {
  struct letter letter = {0};
  union control control;
  int fds[2] = {-1, -1}, n = 0, used = 0;
  struct iovec part = {&letter, sizeof letter};
  struct msghdr m = {.msg_iov = &part,
                     .msg_iovlen = 1,
                     .msg_control = control.bytes,
                     .msg_controllen = sizeof control.bytes};
  ssize_t r;
  do r = recvmsg(socket, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (r < 0 && errno == EINTR);
  if (r <= 0) return r < 0 ? -errno : -EAGAIN;
  n = take_fds(&m, fds);
  *c = (struct capture){.file = {-1, -1}, .real = {1, 2}};
  for (int i = 0; i < 2; i++) {
    if (letter.has[i] && used < n) c->file[i] = fd_above_stdio(fds[used++]);
    c->place[i] = letter.place[i] != 0;
  }
  *worker = letter.worker;
  *pid = r == sizeof letter ? letter.pid : 0;
  return 0;
}
