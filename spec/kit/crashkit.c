/* crashkit.c: a Lua module that does to its own process what bad code does: die in every way, block
   for ever, litter, scribble. For specs only. Knows the operating system; knows nothing of plua.
   SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

/* The sanitizers must not see these faults before the kernel does. */
#define RAW __attribute__((no_sanitize("address", "undefined", "thread")))

int luaopen_crashkit(lua_State *L);

/* ---- to die -------------------------------------------------------------------------------- */

static RAW int crash_segv(lua_State *L) {
  volatile char *page = mmap(NULL, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  *page = 1;
  return luaL_error(L, "survived a write to protected memory");
}

static RAW int crash_bus(lua_State *L) {
  int fd = memfd_create("crashkit", MFD_CLOEXEC);
  volatile char *page = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  *page = 1;
  return luaL_error(L, "survived a write behind the end of a file");
}

static RAW int crash_fpe(lua_State *L) {
  volatile int zero = 0;
  volatile int result = 1 / zero;
  (void)result;
  raise(SIGFPE); /* some processors divide by zero in silence */
  return luaL_error(L, "survived a division by zero");
}

static int crash_abort(lua_State *L) {
  (void)L;
  abort();
}

static int crash_exit(lua_State *L) {
  exit((int)luaL_optinteger(L, 1, 0));
}

static int crash__exit(lua_State *L) {
  _exit((int)luaL_optinteger(L, 1, 0));
}

static int crash_quick_exit(lua_State *L) {
  quick_exit((int)luaL_optinteger(L, 1, 0));
}

static int crash_raise(lua_State *L) {
  lua_pushinteger(L, raise((int)luaL_checkinteger(L, 1)));
  return 1;
}

static int deeper(volatile char *above);
static int (*volatile next_frame)(volatile char *above) = deeper;

/* A frame of a page each; the sum keeps the compiler from making a loop of it. */
static RAW int deeper(volatile char *above) {
  volatile char page[4096];
  page[0] = *above;
  return next_frame(page) + page[0];
}

static int crash_cstack(lua_State *L) {
  volatile char top = 1;
  lua_pushinteger(L, deeper(&top));
  return 1;
}

/* ---- to block ------------------------------------------------------------------------------ */

static int crash_spin(lua_State *L) {
  volatile unsigned turns = 0;
  (void)L;
  do turns++;
  while (turns || !turns);
  return 0;
}

/* Sleeps on whatever signals come. */
static int crash_csleep(lua_State *L) {
  double seconds = luaL_checknumber(L, 1);
  struct timespec t = {.tv_sec = (time_t)seconds};
  t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
  while (nanosleep(&t, &t) < 0 && errno == EINTR) {}
  return 0;
}

static int crash_blocksigs(lua_State *L) {
  sigset_t all;
  (void)L;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  return 0;
}

static int crash_ignsigs(lua_State *L) {
  (void)L;
  for (int i = 1; i < NSIG; i++) signal(i, SIG_IGN);
  return 0;
}

static void *sleeper(void *arg) {
  for (;;) pause();
  return arg;
}

/* Starts a thread that lives as long as the process. */
static int crash_thread(lua_State *L) {
  pthread_t thread;
  int err = pthread_create(&thread, NULL, sleeper, NULL);
  if (err) return luaL_error(L, "pthread_create: %s", strerror(err));
  pthread_detach(thread);
  return 0;
}

/* ---- to litter ----------------------------------------------------------------------------- */

static int crash_closeall(lua_State *L) {
  int from = (int)luaL_optinteger(L, 1, 0);
  int to = (int)sysconf(_SC_OPEN_MAX);
  for (int fd = from; fd < to && fd < 65536; fd++) close(fd);
  return 0;
}

/* garbage(a, b, n): n bytes of noise to each descriptor of a..b, none of which may block. */
static int crash_garbage(lua_State *L) {
  int a = (int)luaL_checkinteger(L, 1), b = (int)luaL_checkinteger(L, 2);
  size_t n = (size_t)luaL_checkinteger(L, 3);
  unsigned char *noise = lua_newuserdatauv(L, n ? n : 1, 0);
  unsigned state = 0x9e3779b9u;
  for (size_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    noise[i] = (unsigned char)(state >> 24);
  }
  signal(SIGPIPE, SIG_IGN);
  for (int fd = a; fd <= b; fd++) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) continue;
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    if (write(fd, noise, n) < 0) continue; /* not writable: left alone */
  }
  return 0;
}

static int crash_nofile(lua_State *L) {
  rlim_t n = (rlim_t)luaL_checkinteger(L, 1);
  struct rlimit limit = {.rlim_cur = n, .rlim_max = n};
  lua_pushboolean(L, setrlimit(RLIMIT_NOFILE, &limit) == 0);
  return 1;
}

/* Takes so many bytes for good and touches each page. true, or false when there are not as many. */
static int crash_eat(lua_State *L) {
  size_t n = (size_t)luaL_checkinteger(L, 1);
  static void *volatile eaten; /* what goes before is lost on purpose, but reachable from here */
  char *bytes = malloc(n + sizeof(void *));
  lua_pushboolean(L, bytes != NULL);
  if (!bytes) return 1;
  memset(bytes, 0x55, n + sizeof(void *));
  memcpy(bytes, (void *)&eaten, sizeof(void *));
  eaten = bytes;
  return 1;
}

static RAW void fill(volatile unsigned char *from, const volatile unsigned char *to, int byte) {
  while (from < to) *from++ = (unsigned char)byte;
}

/* scribble(byte): overwrites every shared mapping that can be written, the first 4 MiB of each
   (plua's are sparse and huge). Answers how many bytes. */
static int crash_scribble(lua_State *L) {
  int byte = (int)luaL_optinteger(L, 1, 0xff);
  enum { MAX = 4096 };
  struct span {
    size_t from, to;
  } *spans = lua_newuserdatauv(L, MAX * sizeof *spans, 0);
  char *line = NULL;
  size_t room = 0, total = 0, n = 0;
  FILE *maps = fopen("/proc/self/maps", "re");
  if (!maps) return luaL_error(L, "/proc/self/maps: %s", strerror(errno));
  while (n < MAX && getline(&line, &room, maps) > 0) {
    char mode[5];
    if (sscanf(line, "%zx-%zx %4s", &spans[n].from, &spans[n].to, mode) != 3) continue;
    if (spans[n].to - spans[n].from > 4 << 20) spans[n].to = spans[n].from + (4 << 20);
    if (mode[1] == 'w' && mode[3] == 's') n++;
  }
  free(line);
  fclose(maps);
  for (size_t i = 0; i < n; i++) {
    fill((volatile unsigned char *)spans[i].from, (volatile unsigned char *)spans[i].to, byte);
    total += spans[i].to - spans[i].from;
  }
  lua_pushinteger(L, (lua_Integer)total);
  return 1;
}

/* spoil(value): overwrites the first word of every shared mapping that can be written and does not
   begin where its file does: of plua's, the word that tells which item runs. */
static RAW int crash_spoil(lua_State *L) {
  uint64_t value = (uint64_t)luaL_checkinteger(L, 1);
  char line[512], mode[5];
  size_t from, offset;
  FILE *maps = fopen("/proc/self/maps", "re");
  if (!maps) return luaL_error(L, "/proc/self/maps: %s", strerror(errno));
  while (fgets(line, sizeof line, maps))
    if (sscanf(line, "%zx-%*x %4s %zx", &from, mode, &offset) == 3 && offset > 0 &&
        mode[1] == 'w' && mode[3] == 's')
      *(volatile uint64_t *)from = value;
  fclose(maps);
  return 0;
}

/* retouch(text, at, change): changes a byte of what plua's message that holds the text lies among,
   counted from the message's beginning, which is at a multiple of 8: exclusive or with 'change'.
   Answers how many it found. */
static RAW int crash_retouch(lua_State *L) {
  size_t len, from, to, offset;
  const char *text = luaL_checklstring(L, 1, &len);
  ptrdiff_t where = (ptrdiff_t)luaL_checkinteger(L, 2);
  unsigned char change = (unsigned char)luaL_checkinteger(L, 3);
  uint32_t found = 0;
  char line[512], mode[5];
  FILE *maps = fopen("/proc/self/maps", "re");
  if (!maps) return luaL_error(L, "/proc/self/maps: %s", strerror(errno));
  while (fgets(line, sizeof line, maps)) {
    if (sscanf(line, "%zx-%zx %4s %zx", &from, &to, mode, &offset) != 4) continue;
    if (!offset || mode[1] != 'w' || mode[3] != 's' || to - from > 64 << 20) continue;
    const char *at = memmem((void *)from, to - from, text, len);
    if (!at) continue;
    volatile unsigned char *head = (unsigned char *)(((uintptr_t)at - 1) & ~(uintptr_t)7);
    head[where] ^= change;
    found++;
  }
  fclose(maps);
  lua_pushinteger(L, found);
  return 1;
}

static char note_path[4096];

static void note(void) {
  int fd = open(note_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  static const char text[] = "ATEXIT-RAN\n";
  if (fd < 0) return;
  if (write(fd, text, sizeof text - 1) < 0) abort();
  close(fd);
}

/* atexit(path): appends the line ATEXIT-RAN to the file when the process exits. */
static int crash_atexit(lua_State *L) {
  size_t len;
  const char *path = luaL_checklstring(L, 1, &len);
  luaL_argcheck(L, len < sizeof note_path, 1, "path is too long");
  memcpy(note_path, path, len + 1);
  lua_pushboolean(L, atexit(note) == 0);
  return 1;
}

/* ---- processes ----------------------------------------------------------------------------- */

/* fork(): as the system's. Both processes go on. */
static int crash_fork(lua_State *L) {
  lua_pushinteger(L, fork());
  return 1;
}

/* forkleak(seconds, setsid): a child that outlives its parent by so long. Answers its pid. */
static int crash_forkleak(lua_State *L) {
  unsigned seconds = (unsigned)luaL_checkinteger(L, 1);
  int away = lua_toboolean(L, 2);
  pid_t pid = fork();
  if (pid == 0) {
    if (away) setsid();
    while (seconds) seconds = sleep(seconds);
    _exit(0);
  }
  lua_pushinteger(L, pid);
  return 1;
}

static int crash_kill(lua_State *L) {
  int err = kill((pid_t)luaL_checkinteger(L, 1), (int)luaL_checkinteger(L, 2));
  lua_pushboolean(L, err == 0);
  return 1;
}

/* setenv(name[, value]): for this process and what it starts; without value: removed. */
static int crash_setenv(lua_State *L) {
  const char *name = luaL_checkstring(L, 1), *value = luaL_optstring(L, 2, NULL);
  lua_pushboolean(L, (value ? setenv(name, value, 1) : unsetenv(name)) == 0);
  return 1;
}

/* The stdout that this module was loaded with: C++ keeps one so. */
static FILE *before;

/* print(how, text): "plain": to stdout; "before": to that of before; "wide": as wide characters,
   there too; "wide now": as wide characters to stdout. Whether C says that all went well. */
static int crash_print(lua_State *L) {
  const char *how = luaL_checkstring(L, 1), *text = luaL_checkstring(L, 2);
  FILE *file = strcmp(how, "plain") == 0 || strcmp(how, "wide now") == 0 ? stdout : before;
  bool wide = strncmp(how, "wide", 4) == 0;
  lua_pushboolean(L, (wide ? fwprintf(file, L"%s", text) : fputs(text, file)) >= 0);
  return 1;
}

/* fileno(file) */
static int crash_fileno(lua_State *L) {
  const luaL_Stream *s = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  lua_pushinteger(L, fileno(s->f));
  return 1;
}

static int crash_pid(lua_State *L) {
  lua_pushinteger(L, getpid());
  return 1;
}

static int crash_ppid(lua_State *L) {
  lua_pushinteger(L, getppid());
  return 1;
}

/* exec(program, ...): becomes that program. */
static int crash_exec(lua_State *L) {
  int n = lua_gettop(L);
  char **argv = lua_newuserdatauv(L, ((size_t)n + 1) * sizeof *argv, 0);
  for (int i = 0; i < n; i++) argv[i] = (char *)luaL_checkstring(L, i + 1);
  argv[n] = NULL;
  execvp(argv[0], argv);
  return luaL_error(L, "%s: %s", argv[0], strerror(errno));
}

/* waitall(): waits for all children; a list of {pid, status} as waitpid tells them. */
static int crash_waitall(lua_State *L) {
  lua_newtable(L);
  for (lua_Integer i = 1;; i++) {
    int status;
    pid_t pid;
    do pid = waitpid(-1, &status, 0);
    while (pid < 0 && errno == EINTR);
    if (pid < 0) return 1;
    lua_createtable(L, 2, 0);
    lua_pushinteger(L, pid);
    lua_rawseti(L, -2, 1);
    lua_pushinteger(L, status);
    lua_rawseti(L, -2, 2);
    lua_rawseti(L, -2, i);
  }
}

/* subreaper(): from now on orphans below this process become its children. */
static int crash_subreaper(lua_State *L) {
  lua_pushboolean(L, prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  return 1;
}

/* untie(): the process does not end with its parent any more, as where it takes another user. */
static int crash_untie(lua_State *L) {
  lua_pushboolean(L, prctl(PR_SET_PDEATHSIG, 0) == 0);
  return 1;
}

/* reap([pid]): never waits: pid, "exit" | "signal" | "stop", number of a child, or of that one,
   that ended or was stopped; 0: none did; nil: there is none. */
static int crash_reap(lua_State *L) {
  int status;
  pid_t pid = waitpid((pid_t)luaL_optinteger(L, 1, -1), &status, WNOHANG | WUNTRACED);
  if (pid < 0) return 0;
  lua_pushinteger(L, pid);
  if (pid == 0) return 1;
  lua_pushstring(L, WIFEXITED(status) ? "exit" : WIFSTOPPED(status) ? "stop" : "signal");
  lua_pushinteger(L, WIFEXITED(status)    ? WEXITSTATUS(status)
                     : WIFSTOPPED(status) ? WSTOPSIG(status)
                                          : WTERMSIG(status));
  return 3;
}

/* mfail(k[, n]): lets the preloaded mfail.so (see there) fail the k-th allocation from now on and
   the next n - 1, all from the k-th on where n is 0; answers how many there were since the last
   call. */
static int crash_mfail(lua_State *L) {
  long (*arm)(long, long);
  long at = (long)luaL_checkinteger(L, 1);
  *(void **)&arm = dlsym(RTLD_DEFAULT, "mfail_arm");
  if (!arm) return luaL_error(L, "mfail.so is not preloaded");
  long were = arm(0, 0);
  lua_pushinteger(L, were);
  arm(at, (long)luaL_optinteger(L, 2, 1));
  return 1;
}

/* iofail([what]): the same for iofail.so. */
static int crash_iofail(lua_State *L) {
  long (*arm)(const char *);
  const char *what = luaL_optstring(L, 1, NULL);
  *(void **)&arm = dlsym(RTLD_DEFAULT, "iofail_arm");
  if (!arm) return luaL_error(L, "iofail.so is not preloaded");
  lua_pushinteger(L, arm(what));
  return 1;
}

static void nothing(int sig) {
  (void)sig;
}

/* storm(seconds): SIGALRM every so often, to a handler that lets calls fail with EINTR; 0: over. */
static int crash_storm(lua_State *L) {
  struct sigaction a = {.sa_handler = nothing};
  long us = (long)(luaL_checknumber(L, 1) * 1e6);
  struct itimerval t = {{us / 1000000, us % 1000000}, {us / 1000000, us % 1000000}};
  sigaction(SIGALRM, &a, NULL);
  setitimer(ITIMER_REAL, &t, NULL);
  return 0;
}

/* ---- to look ------------------------------------------------------------------------------- */

/* Monotonic seconds. */
static int crash_now(lua_State *L) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  lua_pushnumber(L, (double)t.tv_sec + (double)t.tv_nsec / 1e9);
  return 1;
}

/* Appends the numbers that a directory's entries are named by, but 'except'. stack: ..., list */
static void add_numbers(lua_State *L, DIR *dir, int except) {
  for (struct dirent *e; (e = readdir(dir));) {
    char *end;
    long n = strtol(e->d_name, &end, 10);
    if (end == e->d_name || *end || n == except) continue;
    lua_pushinteger(L, n);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
  }
}

/* fds(): the open descriptors, in the kernel's order. */
static int crash_fds(lua_State *L) {
  DIR *dir = opendir("/proc/self/fd");
  if (!dir) return luaL_error(L, "/proc/self/fd: %s", strerror(errno));
  lua_newtable(L);
  add_numbers(L, dir, dirfd(dir));
  closedir(dir);
  return 1;
}

/* Appends the children of one thread. stack: ..., list */
static void add_children(lua_State *L, long pid, const char *thread) {
  char path[320];
  long child;
  snprintf(path, sizeof path, "/proc/%ld/task/%s/children", pid, thread);
  FILE *file = fopen(path, "re");
  if (!file) return; /* the thread has ended */
  while (fscanf(file, "%ld", &child) == 1) {
    lua_pushinteger(L, child);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
  }
  fclose(file);
}

/* children([pid]): of all its threads, zombies included. Empty where there is no such process. */
static int crash_children(lua_State *L) {
  long pid = (long)luaL_optinteger(L, 1, getpid());
  char path[64];
  snprintf(path, sizeof path, "/proc/%ld/task", pid);
  lua_newtable(L);
  DIR *dir = opendir(path);
  if (!dir) return 1;
  for (struct dirent *e; (e = readdir(dir));)
    if (e->d_name[0] != '.') add_children(L, pid, e->d_name);
  closedir(dir);
  return 1;
}

static const luaL_Reg functions[] = {
  {"segv", crash_segv},
  {"bus", crash_bus},
  {"fpe", crash_fpe},
  {"abort", crash_abort},
  {"exit", crash_exit},
  {"_exit", crash__exit},
  {"quick_exit", crash_quick_exit},
  {"raise", crash_raise},
  {"closeall", crash_closeall},
  {"garbage", crash_garbage},
  {"forkleak", crash_forkleak},
  {"fork", crash_fork},
  {"spin", crash_spin},
  {"csleep", crash_csleep},
  {"blocksigs", crash_blocksigs},
  {"ignsigs", crash_ignsigs},
  {"cstack", crash_cstack},
  {"eat", crash_eat},
  {"scribble", crash_scribble},
  {"spoil", crash_spoil},
  {"retouch", crash_retouch},
  {"thread", crash_thread},
  {"setenv", crash_setenv},
  {"print", crash_print},
  {"fileno", crash_fileno},
  {"pid", crash_pid},
  {"ppid", crash_ppid},
  {"nofile", crash_nofile},
  {"atexit", crash_atexit},
  {"now", crash_now},
  {"kill", crash_kill},
  {"mfail", crash_mfail},
  {"iofail", crash_iofail},
  {"storm", crash_storm},
  {"fds", crash_fds},
  {"children", crash_children},
  {"exec", crash_exec},
  {"waitall", crash_waitall},
  {"subreaper", crash_subreaper},
  {"untie", crash_untie},
  {"reap", crash_reap},
  {NULL, NULL},
};

int luaopen_crashkit(lua_State *L) {
  before = stdout;
  luaL_newlib(L, functions);
  return 1;
}
