/* main_strays.c: ends the processes that items have left running, when the program ends.
   They are known by a mark that workers bear: a variable of the environment, which programs that
   items start inherit, and the name of the process, which lasts where a process only forks. What
   the script starts by itself bears none, and stays.
   How the program ends does not matter:
     by itself, or by a signal that it handles     strays_end looks for them
     by SIGKILL, or any other death                the watch, a process that waits for that, does
   Not found: those whose environment was cleared or changed (env -u PLUA_ITEM_OF, to leave
   something running on purpose), or that run as another user.
   Knows /proc and pidfds. Does not know workers. SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <lua.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "main.h"

enum {
  PEACE_MS = 50,  /* for those that are about to end by themselves, as their input does */
  TERM_MS = 200,  /* between SIGTERM and SIGKILL */
  KILL_MS = 2000, /* then they are the kernel's affair */
  EXEC_MS = 100,  /* for the kernel to make a new program ready */
  SHORT_MS = 2000 /* a run in which process ids cannot have come round */
};

static struct {
  pid_t owner;         /* 0: workers are not marked */
  volatile char *over; /* shared with the watch: 1, it has nothing to do; NULL: there is none */
  int64_t began_ms;
  char entry[64]; /* PLUA_ITEM_OF=... */
  char name[16];
} strays;

static int64_t clock_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void nap_ms(int ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
  while (nanosleep(&t, &t) < 0 && errno == EINTR) continue;
}

/* ---- who is one ----------------------------------------------------------------------------- */

static int open_proc(pid_t pid, const char *name) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
  return open(path, O_RDONLY | O_CLOEXEC);
}

/* The file's text, cut off at 'size'. */
static size_t read_proc(pid_t pid, const char *name, char *text, size_t size) {
  int fd = open_proc(pid, name);
  if (fd < 0) return 0;
  ssize_t n = read(fd, text, size);
  close(fd);
  return n > 0 ? (size_t)n : 0;
}

/* Whether the process, of which no environment could be read, has none: it has no memory, or its
   environment begins where it ends. In the midst of an exec it has memory, and neither yet. The
   numbers are those of proc_pid_stat(5), from the third on. */
static bool is_bare(pid_t pid) {
  enum { STATE = 3, VSIZE = 23, ENV_START = 50, ENV_END = 51 };
  char stat[1024];
  size_t n = read_proc(pid, "stat", stat, sizeof stat - 1);
  stat[n] = 0;
  char *at = strrchr(stat, ')');
  unsigned long long vsize = 0, start = 0, end = 0;
  for (int i = STATE - 1; at && i <= ENV_END; i++, at = strchr(at + 1, ' ')) {
    if (i == VSIZE) vsize = strtoull(at, NULL, 10);
    if (i == ENV_START) start = strtoull(at, NULL, 10);
    if (i == ENV_END) end = strtoull(at, NULL, 10);
  }
  return vsize == 0 || (end > 0 && start == end);
}

enum entry { NO, YES, EMPTY };

/* Whether the environment that the process was started with has the mark. Entries end with a 0;
   one that does not fit is read in parts, of which the first decides. */
static enum entry find_entry(pid_t pid) {
  char text[16384];
  size_t kept = 0, len = strlen(strays.entry) + 1;
  int fd = open_proc(pid, "environ");
  enum entry found = fd < 0 ? NO : EMPTY;
  bool whole = true; /* whether text begins with an entry */
  while (fd >= 0 && found != YES) {
    ssize_t n = read(fd, text + kept, sizeof text - kept);
    if (n < 0) found = NO;
    if (n <= 0) break;
    found = NO;
    char *at = text, *end = text + kept + n, *zero;
    while (found != YES && (zero = memchr(at, 0, (size_t)(end - at)))) {
      if (whole && (size_t)(zero + 1 - at) == len && memcmp(at, strays.entry, len) == 0)
        found = YES;
      whole = true;
      at = zero + 1;
    }
    kept = (size_t)(end - at);
    if (kept == sizeof text) kept = 0, whole = false;
    memmove(text, at, kept);
  }
  if (fd >= 0) close(fd);
  return found;
}

static bool has_entry(pid_t pid) {
  enum entry found = find_entry(pid);
  for (int i = 0; found == EMPTY && !is_bare(pid) && i < EXEC_MS; i++) {
    nap_ms(1);
    found = find_entry(pid);
  }
  return found == YES;
}

enum kind { NOT, FORKED, STARTED };

/* What a living process is to us; its name goes to 'name'. Workers count as forks. */
static enum kind kind_of(pid_t pid, char name[16], pid_t *parent) {
  char stat[256];
  size_t n = read_proc(pid, "stat", stat, sizeof stat - 1);
  stat[n] = 0;
  char *open = strchr(stat, '('), *close = strrchr(stat, ')');
  if (!open || !close || close - open > 16 || close[1] == 0) return NOT;
  if (close[2] == 'Z' || close[2] == 'X') return NOT;
  *parent = (pid_t)atoi(close + 3);
  *close = 0;
  snprintf(name, 16, "%s", open + 1);
  if (strcmp(name, strays.name) == 0) return FORKED;
  return has_entry(pid) ? STARTED : NOT;
}

/* ---- all of them ---------------------------------------------------------------------------- */

struct sweep {
  int signal; /* 0: only count */
  int found;
  char who[120]; /* the first of them, as a person reads it */
};

static void note(struct sweep *s, pid_t pid, const char *name) {
  size_t at = strlen(s->who);
  if (s->found++ < 3)
    snprintf(s->who + at, sizeof s->who - at, "%s%s (pid %d)", at ? ", " : "", name, (int)pid);
  else if (s->found == 4)
    snprintf(s->who + at, sizeof s->who - at, ", ...");
}

/* The pidfd is opened before the process is looked at, so a pid that was used again is not hit.
   Forks of a worker take no SIGTERM. Workers that live still are not told of. */
static void visit(struct sweep *s, pid_t pid) {
  char name[16];
  pid_t parent = 0;
  if (pid == strays.owner || pid == getpid()) return;
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);
  enum kind kind = fd < 0 ? NOT : kind_of(pid, name, &parent);
  bool worker = kind == FORKED && parent == strays.owner;
  if (kind != NOT && !worker) note(s, pid, name);
  if (worker || (kind != NOT && s->signal))
    syscall(SYS_pidfd_send_signal, fd, kind == FORKED ? SIGKILL : s->signal, NULL, 0);
  if (fd >= 0) close(fd);
}

/* The newest pid, as the kernel tells; 0: unknown. */
static pid_t last_pid(void) {
  char text[128];
  int fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  if (n <= 0) return 0;
  text[n] = 0;
  const char *last = strrchr(text, ' ');
  return last ? (pid_t)atoi(last + 1) : 0;
}

/* Looks at every process that may be younger than we are. */
static int sweep(struct sweep *s) {
  s->found = 0;
  s->who[0] = 0;
  pid_t last = last_pid();
  if (clock_ms() - strays.began_ms < SHORT_MS && last > strays.owner &&
      last - strays.owner < 2000) {
    for (pid_t pid = strays.owner + 1; pid <= last; pid++) visit(s, pid);
    return s->found;
  }
  DIR *d = opendir("/proc");
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d));)
    if (isdigit((unsigned char)*e->d_name)) visit(s, (pid_t)atoi(e->d_name));
  closedir(d);
  return s->found;
}

/* Sends the signal, and looks until they have gone or so much time has passed. Those that fork
   meanwhile are found by the next look; under SIGKILL they get it too. */
static bool gone_within(struct sweep *s, int signal, int ms) {
  int64_t ends = clock_ms() + ms;
  s->signal = signal;
  while (sweep(s)) {
    if (clock_ms() >= ends) return false;
    if (signal != SIGKILL) s->signal = 0;
    nap_ms(2);
  }
  return true;
}

static void end_all(bool quiet, int peace_ms) {
  struct sweep s = {0};
  if (gone_within(&s, 0, peace_ms)) return;
  if (!quiet)
    fprintf(stderr, "plua: ending %d process%s that items left running: %s\n", s.found,
            s.found > 1 ? "es" : "", s.who);
  if (!gone_within(&s, SIGTERM, TERM_MS)) gone_within(&s, SIGKILL, KILL_MS);
}

/* ---- the watch ------------------------------------------------------------------------------ */

/* It holds no descriptor of the program's, which somebody may wait to be closed. */
static _Noreturn void watch(int owner_fd) {
  prctl(PR_SET_NAME, "plua-watch");
  if (dup2(owner_fd, 0) < 0 || chdir("/") < 0) _exit(1);
  if (syscall(SYS_close_range, 1u, ~0u, 0u) < 0)
    for (int fd = 1; fd < 1024; fd++) close(fd);
  struct pollfd f = {0, POLLIN, 0};
  if (poll(&f, 1, -1) == 1 && !*strays.over) end_all(true, 0); /* no signal reaches it */
  _exit(0);
}

/* Made early, while there is little memory to copy, and by a child that ends at once, so that it is
   no child of ours: scripts may count theirs, or wait for all. It is born with all signals blocked
   and in a session of its own, since what a terminal or a shell sends to the job, and be it now, is
   not for it. Without it all is well, save after a SIGKILL. */
static void start_watch(void) {
  char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int fd = (int)syscall(SYS_pidfd_open, strays.owner, 0);
  if (page == MAP_FAILED || fd < 0) return;
  strays.over = page;
  sigset_t all, was;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &was);
  long pid = syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
  if (pid == 0) {
    setsid();
    if (syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL) == 0) watch(fd);
    _exit(0);
  }
  while (pid > 0 && waitpid((pid_t)pid, NULL, __WALL) < 0 && errno == EINTR) continue;
  sigprocmask(SIG_SETMASK, &was, NULL);
  close(fd);
}

/* ---- for main ------------------------------------------------------------------------------- */

void strays_end(bool quiet) {
  if (!strays.owner || strays.owner != getpid()) return;
  end_all(quiet, PEACE_MS);
  if (strays.over) *strays.over = 1;
  strays.owner = 0;
}

/* Also a script that calls os.exit ends here. */
static void at_exit(void) {
  strays_end(false);
}

void strays_open(lua_State *L) {
  struct timespec t;
  if (strays.owner) return;
  strays.owner = getpid();
  strays.began_ms = clock_ms();
  clock_gettime(CLOCK_BOOTTIME, &t);
  snprintf(strays.entry, sizeof strays.entry, "PLUA_ITEM_OF=%d-%lld.%09ld", (int)strays.owner,
           (long long)t.tv_sec, t.tv_nsec);
  snprintf(strays.name, sizeof strays.name, "plua:%d", (int)strays.owner);
  start_watch();
  atexit(at_exit);
  lua_getfield(L, -1, "mark");
  lua_pushstring(L, strchr(strays.entry, '=') + 1);
  lua_pushstring(L, strays.name);
  lua_call(L, 2, 0);
}
