/* cpus.c: how many cores this process may use, and which source says so.
   Invariant: every source gives a row, absent ones too, and a cgroup level that cannot be read as
   a number one more; what is absent, unlimited or garbage never lowers the answer; one row decides.
   Knows /proc, /sys and the environment. Does not know workers, pools or Lua.
   SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

enum { GARBAGE = -1, NO_LIMIT = 0 };

struct answer {
  plua_cpu_source *rows;
  int max, n;  /* room in rows, sources so far (may exceed max) */
  int cpus;    /* the smallest number so far; 0: none yet */
  int decider; /* the row it is from */
};

/* ---- rows --------------------------------------------------------------------------------- */

/* Copies what fits; a text that was cut ends in dots. */
static void copy_text(char *to, size_t size, const char *from) {
  size_t len = strlen(from);
  if (len < size) {
    memcpy(to, from, len + 1);
    return;
  }
  memcpy(to, from, size - 4);
  memcpy(to + size - 4, "...", 4);
}

static void fill(plua_cpu_source *row, const char *name, const char *where, const char *text,
                 int cpus) {
  memset(row, 0, sizeof *row);
  row->name = name;
  row->cpus = cpus;
  copy_text(row->where, sizeof row->where, where);
  copy_text(row->text, sizeof row->text, text);
}

/* Adds a row; of two that say the same number the first decides. */
static void add(struct answer *a, const char *name, const char *where, const char *text, int cpus) {
  if (cpus > 0 && (!a->cpus || cpus < a->cpus)) {
    a->cpus = cpus;
    a->decider = a->n;
  }
  if (a->n < a->max) fill(&a->rows[a->n], name, where, text, cpus);
  a->n++;
}

static void add_absent(struct answer *a, const char *name) {
  add(a, name, "", "", NO_LIMIT);
}

/* ---- texts -------------------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2))) static char *format(const char *fmt, ...) {
  char *text;
  va_list args;
  va_start(args, fmt);
  int len = vasprintf(&text, fmt, args);
  va_end(args);
  return len < 0 ? NULL : text;
}

/* What a file holds, to be freed. NULL if it cannot be read. */
static char *text_of(const char *path) {
  enum { STEP = 4096 };
  void *text = NULL;
  size_t cap = 0, len = 0;
  int fd = fd_above_stdio(open(path, O_RDONLY | O_CLOEXEC));
  ssize_t n = fd < 0 ? -1 : STEP;
  while (n == STEP) {
    n = grow(&text, &cap, len + STEP + 1, 1) ? -1 : read_all(fd, (char *)text + len, STEP);
    if (n > 0) len += (size_t)n;
  }
  if (fd >= 0) close(fd);
  if (n >= 0) ((char *)text)[len] = '\0';
  if (n < 0) free(text);
  return n < 0 ? NULL : text;
}

/* A copy of the next line without its end, to be freed. NULL at the end of the text. */
static char *next_line(const char **at) {
  if (!**at) return NULL;
  size_t len = strcspn(*at, "\n");
  char *line = strndup(*at, len);
  *at += len + ((*at)[len] == '\n');
  return line;
}

/* The first line that begins with 'prefix', without it; to be freed. NULL if there is none. */
static char *line_after(const char *path, const char *prefix) {
  char *line, *found = NULL, *text = text_of(path);
  const char *at = text;
  size_t len = strlen(prefix);
  while (text && !found && (line = next_line(&at))) {
    if (!strncmp(line, prefix, len)) found = strdup(line + len + strspn(line + len, " \t"));
    free(line);
  }
  free(text);
  return found;
}

static const char *skip_blanks(const char *p) {
  return p + strspn(p, " \t\r\n");
}

/* Reads an integer, then moves past the blanks behind it. */
static int read_integer(const char **at, long long *value) {
  char *end;
  errno = 0;
  *value = strtoll(*at, &end, 10);
  if (end == *at || errno) return 0;
  *at = skip_blanks(end);
  return 1;
}

static int as_count(long long n) {
  return n < 1 ? GARBAGE : n > INT_MAX ? INT_MAX : (int)n;
}

static int whole_number(const char *text) {
  long long n;
  return read_integer(&text, &n) && !*text && n <= INT_MAX ? as_count(n) : GARBAGE;
}

static int worker_number(const char *text) {
  int n = whole_number(text);
  return n > WORKERS_MAX ? GARBAGE : n;
}

/* "16(x2),8" is 16 on this node. */
static int first_number(const char *text) {
  long long n;
  if (!read_integer(&text, &n) || !strchr("(,", *text)) return GARBAGE;
  return n > INT_MAX ? GARBAGE : as_count(n);
}

/* How many CPUs "0-3,8,10-11" names. */
static int list_count(const char *text) {
  long long first, last, count = 0;
  do {
    if (!read_integer(&text, &first) || first < 0) return GARBAGE;
    last = first;
    if (*text == '-' && (text++, !read_integer(&text, &last))) return GARBAGE;
    if (last < first || last >= INT_MAX) return GARBAGE;
    count += last - first + 1;
    if (count > INT_MAX) return GARBAGE;
  } while (*text == ',' && text++);
  return *text ? GARBAGE : as_count(count);
}

/* Cores that "quota period" in microseconds stands for, rounded up. "max" and negative quotas are
   no limit; without a period it is the kernel's own default. */
static int quota_cpus(const char *text) {
  long long quota, period = 100000;
  if (!strncmp(text, "max", 3) && strchr(" \t", text[3])) return NO_LIMIT;
  if (!read_integer(&text, &quota)) return GARBAGE;
  if (*text && !read_integer(&text, &period)) return GARBAGE;
  if (*text || period < 1) return GARBAGE;
  return quota < 0 ? NO_LIMIT : as_count(quota / period + (quota % period != 0));
}

/* Whether 'item' is one of a list that is separated by commas. */
static int listed(const char *list, const char *item) {
  size_t len = strlen(item);
  for (; list; list = strchr(list, ',')) {
    list += *list == ',';
    if (!strncmp(list, item, len) && (!list[len] || list[len] == ',')) return 1;
  }
  return 0;
}

/* ---- roots -------------------------------------------------------------------------------- */

/* A variable's value; NULL if it is not set or empty. */
static const char *variable(const char *name) {
  const char *text = getenv(name);
  return text && *text ? text : NULL;
}

static const char *proc_root(void) {
  const char *root = variable("PLUA_PROC_ROOT");
  return root ? root : "/proc";
}

static const char *sys_root(void) {
  const char *root = variable("PLUA_SYS_ROOT");
  return root ? root : "/sys";
}

/* Where a mount point really is: one below /sys moves with PLUA_SYS_ROOT. */
static char *real_point(const char *point) {
  if (!strncmp(point, "/sys", 4) && (!point[4] || point[4] == '/'))
    return format("%s%s", sys_root(), point + 4);
  return strdup(point);
}

/* ---- the machine -------------------------------------------------------------------------- */

/* A row from a line of CPU numbers in a file. Answers whether it says a number. */
static int add_list(struct answer *a, const char *name, char *path, const char *prefix) {
  char *text = path ? line_after(path, prefix) : NULL;
  int count = text ? list_count(text) : NO_LIMIT;
  if (text)
    add(a, name, path, text, count);
  else
    add_absent(a, name);
  free(text);
  free(path);
  return count > 0;
}

/* What the C library counts is asked only where /sys does not tell. */
static void add_online(struct answer *a) {
  if (add_list(a, "online", format("%s/devices/system/cpu/online", sys_root()), "")) {
    add_absent(a, "sysconf");
    return;
  }
  char text[32];
  long count = sysconf(_SC_NPROCESSORS_ONLN);
  snprintf(text, sizeof text, "%ld", count);
  add(a, "sysconf", "_SC_NPROCESSORS_ONLN", text, count > 0 ? as_count(count) : 1);
}

/* Writes the CPUs of a mask as a list, "0-3,8". To be freed. */
static char *mask_text(const cpu_set_t *mask, size_t bytes) {
  size_t len, end = bytes * CHAR_BIT;
  char *text = NULL;
  FILE *out = open_memstream(&text, &len);
  if (!out) return NULL;
  const char *comma = "";
  for (size_t cpu = 0; cpu < end; cpu++) {
    if (!CPU_ISSET_S(cpu, bytes, mask)) continue;
    size_t last = cpu;
    while (CPU_ISSET_S(last + 1, bytes, mask)) last++; /* none is behind the end */
    fprintf(out, last > cpu ? "%s%zu-%zu" : "%s%zu", comma, cpu, last);
    comma = ",";
    cpu = last;
  }
  fclose(out);
  return text;
}

/* The kernel refuses a mask that is smaller than its own, so it grows until it fits. */
static void add_mask(struct answer *a) {
  cpu_set_t *mask = NULL;
  size_t bytes = 0;
  int err = EINVAL;
  for (size_t cpus = 1024; err == EINVAL && cpus <= 1 << 22; cpus *= 2) {
    CPU_FREE(mask);
    mask = CPU_ALLOC(cpus);
    bytes = CPU_ALLOC_SIZE(cpus);
    if (mask) CPU_ZERO_S(bytes, mask);
    err = !mask ? ENOMEM : sched_getaffinity(0, bytes, mask) ? errno : 0;
  }
  char *text = err ? NULL : mask_text(mask, bytes);
  if (text)
    add(a, "affinity", "sched_getaffinity", text, as_count(CPU_COUNT_S(bytes, mask)));
  else
    add_absent(a, "affinity");
  free(text);
  CPU_FREE(mask);
}

static void add_affinity(struct answer *a) {
  if (variable("PLUA_PROC_ROOT"))
    add_list(a, "affinity", format("%s/self/status", proc_root()), "Cpus_allowed_list:");
  else
    add_mask(a);
}

/* ---- cgroups ------------------------------------------------------------------------------ */

/* One of the two kinds of hierarchy, and what was found in it so far. */
struct hierarchy {
  const char *name;
  int v1;
  struct answer *answer;
  plua_cpu_source tightest; /* cpus 0: levels were seen, none sets a limit */
  int seen, bad;            /* levels that were understood, that were not */
};

struct mount {
  char *root, *point; /* the directory of the hierarchy that is mounted, and where */
  char *type, *super;
};

/* \040 and its like stand for blanks, line ends and backslashes. */
static void unescape(char *p) {
  char *to = p;
  while (*p) {
    int octal = p[0] == '\\' && strspn(p + 1, "01234567") >= 3;
    *to++ = octal ? (char)((p[1] - '0') * 64 + (p[2] - '0') * 8 + (p[3] - '0')) : *p;
    p += octal ? 4 : 1;
  }
  *to = '\0';
}

/* "id parent device root point options [optional...] - type source super". Cuts up the line. */
static int parse_mount(char *line, struct mount *m) {
  char *tail = strstr(line, " - ");
  if (!tail) return 0;
  *tail = '\0';
  tail += 3;
  for (int skip = 0; skip < 3; skip++) strsep(&line, " ");
  m->root = strsep(&line, " ");
  m->point = strsep(&line, " ");
  m->type = strsep(&tail, " ");
  strsep(&tail, " ");
  m->super = tail;
  if (!m->point || !m->super) return 0;
  unescape(m->root);
  unescape(m->point);
  return 1;
}

static int mount_matches(const struct hierarchy *h, const struct mount *m) {
  if (!h->v1) return !strcmp(m->type, "cgroup2");
  return !strcmp(m->type, "cgroup") && listed(m->super, "cpu");
}

/* The path of this process in the hierarchy, "/a/b"; to be freed. NULL if it is in none. */
static char *own_path(const struct hierarchy *h, const char *groups) {
  char *line, *found = NULL;
  while (!found && (line = next_line(&groups))) {
    char *rest = line; /* id:controllers:path, and a path may contain colons */
    const char *id = strsep(&rest, ":"), *controllers = strsep(&rest, ":");
    int match = rest && (h->v1 ? listed(controllers, "cpu") : !strcmp(id, "0") && !*controllers);
    if (match) found = strdup(rest);
    free(line);
  }
  return found;
}

/* What is left of 'path' below 'root': "" or "/...". NULL if it is not below; a namespace shows
   what lies outside of it as "/..". */
static const char *path_below(const char *root, const char *path) {
  size_t len = strcmp(root, "/") ? strlen(root) : 0;
  if (strncmp(path, root, len)) return NULL;
  const char *rest = path + len;
  if (*rest && *rest != '/') return NULL;
  if (!strcmp(rest, "/")) return "";
  int outside = !strncmp(rest, "/..", 3) && (!rest[3] || rest[3] == '/');
  return outside ? NULL : rest;
}

/* What a level says, "quota period", and in which file. Both to be freed; 0 if it says nothing. */
static int read_level(int v1, const char *dir, char **where, char **text) {
  *where = format(v1 ? "%s/cpu.cfs_quota_us" : "%s/cpu.max", dir);
  *text = *where ? line_after(*where, "") : NULL;
  if (!v1 || !*text) return *text != NULL;
  char *path = format("%s/cpu.cfs_period_us", dir), *quota = *text;
  char *period = path ? line_after(path, "") : NULL;
  *text = format(period ? "%s %s" : "%s", quota, period);
  free(path);
  free(period);
  free(quota);
  return *text != NULL;
}

static void look_at_level(struct hierarchy *h, const char *dir) {
  char *where, *text;
  if (read_level(h->v1, dir, &where, &text)) {
    int cpus = quota_cpus(text), best = h->tightest.cpus;
    if (cpus == GARBAGE) {
      add(h->answer, h->name, where, text, cpus);
      h->bad++;
    } else if (!h->seen++ || (cpus > 0 && (!best || cpus < best))) {
      fill(&h->tightest, h->name, where, text, cpus);
    }
  }
  free(where);
  free(text);
}

/* Looks at every level from the leaf up to the mount's own root. */
static void walk_up(struct hierarchy *h, const char *point, const char *below) {
  char *mounted = real_point(point);
  char *dir = mounted ? format("%s%s", mounted, below) : NULL;
  char *top = dir ? dir + strlen(mounted) : NULL;
  while (top) {
    look_at_level(h, dir);
    char *slash = strrchr(top, '/');
    if (!slash) break;
    *slash = '\0';
  }
  free(dir);
  free(mounted);
}

/* Every mount that shows our path shows our ancestors, so all count. Where none does (a container
   that hides its path), the first mount's root is the nearest ancestor that can be seen. */
static void walk_mounts(struct hierarchy *h, const char *mounts, const char *path) {
  char *line, *hidden = NULL;
  int shown = 0;
  for (; (line = next_line(&mounts)); free(line)) {
    struct mount m;
    if (!parse_mount(line, &m) || !mount_matches(h, &m)) continue;
    const char *below = path_below(m.root, path);
    if (below) walk_up(h, m.point, below);
    shown |= below != NULL;
    if (!below && !hidden) hidden = strdup(m.point);
  }
  if (!shown && hidden) walk_up(h, hidden, "");
  free(hidden);
}

static void add_cgroup(struct answer *a, struct hierarchy h, const char *groups,
                       const char *mounts) {
  char *path = own_path(&h, groups);
  h.answer = a;
  if (path) walk_mounts(&h, mounts, path);
  if (h.seen)
    add(a, h.name, h.tightest.where, h.tightest.text, h.tightest.cpus);
  else if (!h.bad)
    add_absent(a, h.name);
  free(path);
}

/* What a file below /proc/self holds, to be freed. NULL if it cannot be read. */
static char *own_text(const char *name) {
  char *path = format("%s/self/%s", proc_root(), name);
  char *text = path ? text_of(path) : NULL;
  free(path);
  return text;
}

/* To list the mounts costs the kernel more than all the rest: it is asked once. */
static void add_cgroups(struct answer *a) {
  char *groups = own_text("cgroup"), *mounts = groups ? own_text("mountinfo") : NULL;
  const char *in = groups ? groups : "", *on = mounts ? mounts : "";
  add_cgroup(a, (struct hierarchy){.name = "cgroup v2"}, in, on);
  add_cgroup(a, (struct hierarchy){.name = "cgroup v1", .v1 = 1}, in, on);
  free(groups);
  free(mounts);
}

/* ---- variables ---------------------------------------------------------------------------- */

/* A row from a variable; one that does not 'count' is shown and limits nothing. Answers the number
   it stands for, 0 if none. */
static int add_variable(struct answer *a, const char *name, int (*parse)(const char *), int count) {
  const char *text = variable(name);
  if (!text) {
    add_absent(a, name);
    return 0;
  }
  int cpus = count ? parse(text) : NO_LIMIT;
  add(a, name, name, text, cpus);
  return cpus > 0 ? cpus : 0;
}

static int on_one_node(void) {
  const char *nodes = variable("SLURM_JOB_NUM_NODES");
  if (!nodes) nodes = variable("SLURM_NNODES");
  return !nodes || whole_number(nodes) == 1;
}

static void add_schedulers(struct answer *a) {
  int known = add_variable(a, "SLURM_CPUS_PER_TASK", whole_number, 1);
  known |= add_variable(a, "SLURM_CPUS_ON_NODE", whole_number, !known && on_one_node());
  add_variable(a, "SLURM_TASKS_PER_NODE", first_number, !known);
  known = add_variable(a, "PBS_NUM_PPN", whole_number, 1);
  add_variable(a, "NCPUS", whole_number, !known);
  add_variable(a, "LSB_DJOB_NUMPROC", whole_number, 1);
  add_variable(a, "NSLOTS", whole_number, 1);
  add_variable(a, "PJM_VNODE_CORE", whole_number, 1);
}

int plua_cpus(plua_cpu_source *sources, int max, int *n) {
  struct answer a = {.rows = sources, .max = sources ? max : 0};
  int wanted = add_variable(&a, "PLUA_WORKERS", worker_number, 1);
  add_online(&a);
  add_affinity(&a);
  add_cgroups(&a);
  add_schedulers(&a);
  add_variable(&a, "OMP_THREAD_LIMIT", whole_number, 1);
  if (wanted) {
    a.cpus = wanted;
    a.decider = 0;
  }
  if (a.decider < a.max) sources[a.decider].decides = 1;
  if (n) *n = a.n < a.max ? a.n : a.max;
  return a.cpus;
}
