/* host_inject.c: a host to be run while something fails at a chosen moment: it opens a pool, sends
   50 items with payloads, takes the results, closes. It tries what failed a few times more, as a
   careful host does. It ends with 0 and "right", or with 3 and the error that ended it; and in
   either case nothing may be left over. It allocates nothing itself. Knows plua.h only.
   SPDX-License-Identifier: MIT */
#include "host.h"

enum { N = 50, TRIES = 4 };

static unsigned char seen[N];
static unsigned outcomes, failures;
static char room[512];

static int echo(void *ctx, const plua_item *item, plua_out *out) {
  uint64_t head = item->index;
  (void)ctx;
  int err = plua_write(out, &head, sizeof head);
  return err ? err : plua_write(out, item->data, item->len);
}

static size_t length(uint64_t i) {
  return i % 7 == 3 ? 70000 + i : i * 3;
}

/* Whether a call that answered 'err' should be tried again. Whatever fails says why. */
static bool again(int err) {
  static unsigned tries;
  if (err >= 0) {
    tries = 0;
    return false;
  }
  CHECK(plua_strerror(err) && *plua_strerror(err));
  failures++;
  return ++tries < TRIES;
}

static int put(plua_pool *p, uint64_t job, uint64_t i) {
  static unsigned char bytes[100000];
  plua_out *out;
  int err;
  memset(bytes, (int)(i + 1), length(i));
  do {
    err = plua_put(p, job, &out);
    if (!err && (err = plua_write(out, bytes, length(i))) != 0) plua_put_drop(p);
    if (!err) err = plua_put_end(p);
  } while (again(err));
  return err;
}

static void check(const plua_event *e) {
  uint64_t head;
  CHECK(e->index < N && !seen[e->index]);
  seen[e->index] = 1;
  outcomes++;
  if (e->what == PLUA_LOST) { /* the worker's side of an error: told, not swallowed */
    CHECK(e->code < 0);
    failures++;
    return;
  }
  CHECK_IS(e->failed, 0);
  CHECK_IS(e->len, sizeof head + length(e->index));
  memcpy(&head, e->data, sizeof head);
  CHECK_IS(head, e->index);
  for (size_t i = sizeof head; i < e->len; i++)
    CHECK_IS(((const unsigned char *)e->data)[i], e->index + 1);
}

static int step(plua_pool *p, plua_event *e) {
  int err = plua_next(p, e);
  if (err) return err;
  if (e->what == PLUA_FORK) {
    do err = plua_fork(p);
    while (again(err));
    if (err > 0) err = 0;
  }
  if (e->what == PLUA_RESULT || e->what == PLUA_LOST) check(e);
  return e->what == PLUA_BOOT ? PLUA_EBOOT : err;
}

static int sleep_by_wait(plua_pool *p) {
  int r;
  do r = plua_wait(p, -1, 0);
  while (again(r == -EINTR ? 0 : r));
  return r > 0 ? 0 : r;
}

static int sleep_by_poll(plua_pool *p) {
  struct pollfd f = {.events = POLLIN};
  int r;
  do f.fd = plua_fd(p);
  while (again(f.fd));
  if (f.fd < 0) return f.fd;
  do r = plua_dispatch(p);
  while (again(r));
  if (r == 0) poll(&f, 1, 5000);
  return r < 0 ? r : 0;
}

static int use(plua_pool *p, bool poll_it) {
  uint64_t job;
  plua_event e;
  plua_job o = {.size = sizeof o, .call = "x", .call_len = 1, .crash_retries = 1};
  int err;
  do err = plua_submit(p, &o, &job);
  while (again(err));
  for (uint64_t i = 0; i < N && !err; i++) {
    err = put(p, job, i);
    if (!err && i % 5 == 0) err = step(p, &e);
  }
  while (!err && outcomes < N) {
    err = step(p, &e);
    if (!err && e.what == PLUA_NOTHING) err = poll_it ? sleep_by_poll(p) : sleep_by_wait(p);
  }
  if (!err) err = plua_forget(p, job);
  return err;
}

/* Arguments: wait or poll; spare. */
int main(int argc, char **argv) {
  plua_pool *p = NULL;
  plua_options o = {.size = sizeof o, .workers = 2, .flags = argc > 2 ? PLUA_SPARE : 0};
  plua_tasks t = {.size = sizeof t, .run = echo};
  int fds[2] = {0, 0}, err;
  for (int fd = 0; fd < 200; fd++) fds[0] += fcntl(fd, F_GETFD) >= 0;
  do err = plua_open(&p, &o, &t);
  while (again(err));
  if (err)
    CHECK(p == NULL);
  else
    err = use(p, argc > 1 && strcmp(argv[1], "poll") == 0);
  plua_close(p);
  for (int fd = 0; fd < 200; fd++) fds[1] += fcntl(fd, F_GETFD) >= 0;
  CHECK_IS(fds[1], fds[0]);
  host_no_children();
  setvbuf(stdout, room, _IOFBF, sizeof room); /* else it would allocate */
  puts(err ? plua_strerror(err) : failures ? "right in the end" : "right");
  return err ? 3 : 0;
}
