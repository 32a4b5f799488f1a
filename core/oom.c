/* oom.c: the kernel's count of processes that it killed for want of memory.
   Invariant: a count that moved stands for one death each, and for deaths soon after it moved: the
   counter is shared with everything in its cgroup, or on the machine where there is none.
   Knows the files of cgroups and /proc. Does not know workers. SPDX-License-Identifier: MIT */
#include "oom.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

#define STALE_NS 5000000000

static const char *root_of(const char *variable, const char *usual) {
  const char *root = getenv(variable);
  return root && *root ? root : usual;
}

/* A small file as a text; false: it cannot be read. */
static bool slurp(const char *path, char *text, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read_all(fd, text, size - 1);
  if (fd >= 0) close(fd);
  text[n > 0 ? n : 0] = 0;
  return n > 0;
}

/* The number behind "oom_kill " at the begin of a line. */
static bool counted(const char *path, uint64_t *n) {
  char text[16384];
  if (!*path || !slurp(path, text, sizeof text)) return false;
  for (const char *at = text; (at = strstr(at, "oom_kill ")); at++) {
    if (at > text && at[-1] != '\n') continue;
    *n = strtoull(at + 9, NULL, 10);
    return true;
  }
  return false;
}

/* "4:memory:/some/where" or "0::/some/where": the part behind 'what', cut at the line's end. */
static bool group_of(const char *text, const char *what, char *group, size_t size) {
  for (const char *line = text; *line;) {
    const char *end = strchrnul(line, '\n'), *colon = memchr(line, ':', (size_t)(end - line));
    size_t n = strlen(what);
    if (colon && strncmp(colon, what, n) == 0) {
      snprintf(group, size, "%.*s", (int)(end - colon - (ptrdiff_t)n), colon + n);
      return true;
    }
    line = *end ? end + 1 : end;
  }
  return false;
}

/* In a container the group's name is often the host's, and its files lie at the top. */
static bool try_group(struct oom *o, const char *dir, const char *group, const char *file) {
  const char *sys = root_of("PLUA_SYS_ROOT", "/sys");
  for (int top = 0; top < 2; top++) {
    int n = snprintf(o->path, sizeof o->path, "%s/fs/cgroup/%s%s/%s", sys, dir, top ? "" : group,
                     file);
    if (n < (int)sizeof o->path && counted(o->path, &o->seen)) return true;
  }
  return false;
}

void oom_open(struct oom *o) {
  const char *proc = root_of("PLUA_PROC_ROOT", "/proc");
  char text[4096], path[256], group[160];
  memset(o, 0, sizeof *o);
  snprintf(path, sizeof path, "%s/self/cgroup", proc);
  if (slurp(path, text, sizeof text)) {
    if (group_of(text, ":memory:", group, sizeof group)) {
      if (try_group(o, "memory", group, "memory.oom_control")) return;
    } else if (group_of(text, "::", group, sizeof group)) {
      if (try_group(o, "", group, "memory.events")) return;
    }
  }
  snprintf(o->path, sizeof o->path, "%s/vmstat", proc);
  if (!counted(o->path, &o->seen)) o->path[0] = 0;
}

bool oom_took(struct oom *o) {
  uint64_t n;
  int64_t now = now_ns();
  if (counted(o->path, &n) && n > o->seen) {
    o->left += n - o->seen;
    o->seen = n;
    o->moved_ns = now;
  }
  if (now - o->moved_ns > STALE_NS) o->left = 0;
  if (!o->left) return false;
  o->left--;
  return true;
}
