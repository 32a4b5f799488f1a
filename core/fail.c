/* fail.c: does at a point what PLUA_FAIL says. In test builds only (make FAIL=1).
   Invariant: counts lie in memory that all processes of a team share, so that the nth time happens
   once, whoever comes by and whoever replaces whom.
   Knows the environment and signals. Does not know what a point is for.
   SPDX-License-Identifier: MIT */
#include "fail.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base.h"

enum { RULES = 16, TEXT = 1024, EVERY = 0 };

enum action { SIGNAL, EXIT, DELAY, ERRNO, APPEND };

struct rule {
  enum fail_point point;
  uint64_t nth; /* EVERY: each time */
  enum action action;
  long value;
  char path[256]; /* APPEND */
};

static const struct {
  const char *text;
  int fails;
} points[] = {
#define X(name, text, fails, what) {text, fails},
  FAIL_POINTS(X)
#undef X
};

static const struct {
  const char *text;
  enum action action;
  long value;
} actions[] = {
  {"kill", SIGNAL, SIGKILL}, {"stop", SIGNAL, SIGSTOP}, {"segv", SIGNAL, SIGSEGV},
  {"bus", SIGNAL, SIGBUS},   {"fpe", SIGNAL, SIGFPE},   {"abort", SIGNAL, SIGABRT},
  {"term", SIGNAL, SIGTERM}, {"exit0", EXIT, 0},        {"exit1", EXIT, 1},
  {"append=", APPEND, 0},    {"delay=", DELAY, 0},      {"errno=", ERRNO, 0},
};

static char said[TEXT]; /* what the rules were read from */
static struct rule rules[RULES];
static unsigned count;
static _Atomic uint64_t *seen; /* shared: how often each point was passed */

_Noreturn static void refuse(const char *why, const char *what) {
  fprintf(stderr, "plua: PLUA_FAIL: %s '%s'\n", why, what);
  _exit(2);
}

static enum fail_point read_point(const char *text) {
  for (unsigned i = 0; i < FAIL_COUNT; i++)
    if (strcmp(points[i].text, text) == 0) return (enum fail_point)i;
  refuse("there is no point (core/fail.h lists them)", text);
}

static uint64_t read_number(const char *text) {
  char *end;
  unsigned long n = strtoul(text, &end, 10);
  if (end == text || *end || n == 0) refuse("not a count from 1 on", text);
  return n;
}

static void read_action(struct rule *r, const char *text) {
  for (size_t i = 0; i < sizeof actions / sizeof *actions; i++) {
    size_t len = strlen(actions[i].text);
    bool valued = actions[i].text[len - 1] == '=';
    if (valued ? strncmp(text, actions[i].text, len) != 0 : strcmp(text, actions[i].text) != 0)
      continue;
    r->action = actions[i].action;
    r->value = actions[i].value;
    if (r->action == APPEND)
      snprintf(r->path, sizeof r->path, "%s", text + len);
    else if (valued)
      r->value = (long)read_number(text + len);
    if (r->action == ERRNO && !points[r->point].fails)
      refuse("no errno can be had at", points[r->point].text);
    return;
  }
  refuse("there is no action", text);
}

static void read_rule(char *text) {
  char *rest, *point = strtok_r(text, ":", &rest), *nth = strtok_r(NULL, ":", &rest);
  char *action = strtok_r(NULL, ":", &rest);
  if (!action || strtok_r(NULL, ":", &rest)) refuse("not point:nth:action", text);
  if (count == RULES) refuse("one too many", text);
  struct rule r = {.point = read_point(point)};
  r.nth = strcmp(nth, "*") == 0 ? EVERY : read_number(nth);
  read_action(&r, action);
  rules[count++] = r;
}

/* Until something is asked for nothing is mapped. */
static void forget_counts(void) {
  size_t size = sizeof *seen * FAIL_COUNT;
  if (seen) munmap((void *)seen, size);
  seen = NULL;
  if (!count) return;
  void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) refuse("no memory for", said);
  seen = page;
}

static void read_rules(const char *text) {
  char copy[TEXT], *rest;
  size_t size = strlen(text) + 1;
  if (size > TEXT) refuse("too long", text);
  memcpy(said, text, size);
  memcpy(copy, text, size);
  count = 0;
  for (char *one = strtok_r(copy, ",", &rest); one; one = strtok_r(NULL, ",", &rest))
    read_rule(one);
  forget_counts();
}

static void look(void) {
  const char *text = getenv("PLUA_FAIL");
  if (!text) text = "";
  if (strcmp(text, said) != 0) read_rules(text);
}

/* What cannot be understood is told when the program starts. */
__attribute__((constructor)) static void look_early(void) {
  look();
}

void fail_reset(void) {
  look();
  forget_counts();
}

static void append(const struct rule *r) {
  char line[64];
  int fd = open(r->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) refuse("cannot open", r->path);
  snprintf(line, sizeof line, "%s\n", points[r->point].text);
  write_all(fd, line, strlen(line));
  close(fd);
}

static int act(const struct rule *r) {
  struct timespec t = {r->value / 1000, r->value % 1000 * 1000000};
  switch (r->action) {
  case SIGNAL:
    raise((int)r->value);
    return 0;
  case EXIT:
    exit((int)r->value);
  case DELAY:
    while (nanosleep(&t, &t) < 0) continue;
    return 0;
  case ERRNO:
    return -(int)r->value;
  case APPEND:
    append(r);
    return 0;
  }
  IMPOSSIBLE("action of no kind");
}

int fail_at(enum fail_point point) {
  look();
  if (!count) return 0;
  uint64_t n = atomic_fetch_add(&seen[point], 1) + 1;
  int err = 0;
  for (unsigned i = 0; i < count && !err; i++)
    if (rules[i].point == point && (rules[i].nth == EVERY || rules[i].nth == n))
      err = act(&rules[i]);
  return err;
}
