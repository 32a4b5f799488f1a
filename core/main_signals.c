/* main_signals.c: what signals do to the script that runs.
   SIGINT raises "interrupted!" in it. SIGTERM and SIGUSR1, which a batch system sends ahead of its
   limit, ask the calls of plua to begin nothing new, and do the same only when the grace is over,
   or no call has anything under way. What comes again ends the program sooner.
   Keeps true: handlers touch the hook, the stop word and a timer, nothing else of the state; a
   signal that was ignored when the program began stays ignored; nothing outlives a call.
   Knows plua.h and Lua. Does not know options or jobs. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "main.h"
#include "plua.h"

enum {
  TICK_MS = 20,       /* how often system calls are ended until the script has seen the signal */
  STUCK_TICKS = 50,   /* so many without that: it is in C code or a coroutine, and ends at once */
  PATIENCE_MS = 1000, /* before ticks begin where there is a grace: calls may end by themselves */
  SAME_MS = 100,      /* timeout(1) and batch systems send to the process and to its group */
  GRACE_MS = 25000,   /* less than the 30 s that Slurm leaves between SIGTERM and SIGKILL */
  FDS_LOOKED_AT = 256
};

static volatile int own_word; /* stands in until plua.core is loaded */
static const char busy_key;

static struct {
  lua_State *volatile L;    /* whose hook is set; NULL: nothing runs that could be interrupted */
  volatile int *word;       /* enum plua_stop */
  volatile sig_atomic_t by; /* the signal that stops the script; 0: none has come */
  volatile sig_atomic_t ticks;
  volatile int64_t since_ms; /* when it came last */
  volatile int64_t ends_ms;  /* STOP_DRAIN: when the grace is over */
  int64_t grace_ms;
} now = {.word = &own_word, .grace_ms = GRACE_MS};

static int64_t clock_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- the hook ------------------------------------------------------------------------------- */

/* The hook is seen only when C returns to Lua. A race that one signal would lose:
     the script is in a C function that is about to wait
     SIGINT comes, the hook is set
     the function begins to wait, and nobody wakes it
   So a timer goes on ending system calls until the hook has run. 0: stop it. */
static void tick_after(int64_t first_ms, int64_t then_ms) {
  const struct itimerval timer = {{0, (suseconds_t)then_ms * 1000},
                                  {first_ms / 1000, (suseconds_t)(first_ms % 1000) * 1000}};
  setitimer(ITIMER_REAL, &timer, NULL);
}

/* Whether calls of plua have something under way, which STOP_DRAIN leaves them the time for. */
static bool busy(lua_State *L) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &busy_key) != LUA_TFUNCTION) {
    lua_pop(L, 1);
    return false;
  }
  lua_call(L, 0, 1);
  bool is = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return is;
}

/* "script.lua:7: " of the script's innermost function, or "". */
static void push_place(lua_State *L) {
  lua_Debug ar;
  for (int level = 0; lua_getstack(L, level, &ar); level++) {
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline <= 0 || strncmp(ar.source, "@plua/", 6) == 0) continue;
    lua_pushfstring(L, "%s:%d: ", ar.short_src, ar.currentline);
    return;
  }
  lua_pushliteral(L, "");
}

/* A call of plua may have seen the word first: then there is nothing to raise. */
static void on_hook(lua_State *L, lua_Debug *ar) {
  (void)ar;
  lua_sethook(L, NULL, 0, 0);
  if (*now.word == PLUA_STOP_DRAIN) {
    int64_t left = now.ends_ms - clock_ms();
    tick_after(left > 0 ? left + 1 : 1, TICK_MS);
    if (busy(L)) return;
  } else if (*now.word == PLUA_STOP_NOW) {
    *now.word = PLUA_STOP_TAKEN;
    tick_after(0, 0);
  } else {
    return;
  }
  push_place(L);
  lua_pushliteral(L, "interrupted!");
  lua_concat(L, 2);
  lua_error(L);
}

static void set_hook(void) {
  lua_State *L = now.L;
  if (L) lua_sethook(L, on_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKLINE | LUA_MASKCOUNT, 1);
}

/* ---- handlers ------------------------------------------------------------------------------- */

static void on_tick(int sig);

static void ticker(int flags) {
  const struct sigaction a = {.sa_handler = on_tick, .sa_flags = flags};
  sigaction(SIGALRM, &a, NULL);
}

static void stop_now(void) {
  *now.word = PLUA_STOP_NOW;
  now.ticks = 0;
  set_hook();
  ticker(0);
  tick_after(TICK_MS, TICK_MS);
}

/* Whether who writes to it may have to wait for a reader: descriptors of other kinds, such as a
   team's, are never ready for that. */
static bool has_reader(int fd) {
  struct stat st;
  int listens = 0;
  socklen_t len = sizeof listens;
  if (fstat(fd, &st) < 0) return false;
  if (!S_ISSOCK(st.st_mode)) return S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode);
  return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0 && !listens;
}

/* Whether the script may be writing to who does not read: if that is ended, stdio forgets what it
   held. */
static bool may_write(void) {
  for (int fd = 0; fd < FDS_LOOKED_AT; fd++) {
    struct pollfd f = {fd, POLLOUT, 0};
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY || !has_reader(fd)) continue;
    if (poll(&f, 1, 0) == 0) return true;
  }
  return false;
}

/* By the signal itself, so that who waits for this process sees it. */
static void die(int sig) {
  const struct sigaction standard = {.sa_handler = SIG_DFL};
  sigset_t this;
  sigaction(sig, &standard, NULL);
  sigemptyset(&this);
  sigaddset(&this, sig);
  sigprocmask(SIG_UNBLOCK, &this, NULL);
  raise(sig);
}

static const char *name_of(int sig) {
  return sig == SIGINT ? "SIGINT" : sig == SIGTERM ? "SIGTERM" : sig == SIGUSR1 ? "SIGUSR1" : NULL;
}

static void say(const char *text) {
  if (write(STDERR_FILENO, text, strlen(text)) < 0) return; /* there is nobody to tell */
}

/* The script does not come back to Lua code that could be interrupted. */
static void give_up(void) {
  if (now.by == SIGINT) {
    say("plua: interrupted\n");
    die(SIGINT);
  }
  say("plua: stopped by ");
  say(name_of(now.by));
  say("\n");
  _exit(EX_TEMPFAIL);
}

/* While there is a grace, a tick finds out whether the next one may end a system call. Nothing else
   has been written by then: before that the hook would have run. */
static void on_tick(int sig) {
  (void)sig;
  int err = errno;
  if (*now.word == PLUA_STOP_NOW) {
    now.ticks = now.ticks + 1;
    if (now.ticks >= STUCK_TICKS) give_up();
  } else if (*now.word != PLUA_STOP_DRAIN) {
    tick_after(0, 0);
  } else if (clock_ms() >= now.ends_ms) {
    stop_now();
  } else {
    ticker(may_write() ? SA_RESTART : 0);
  }
  errno = err;
}

/* The second one ends the process, and with it the workers. */
static void on_interrupt(int sig) {
  now.by = sig;
  now.since_ms = clock_ms();
  signal(sig, SIG_DFL);
  stop_now();
}

static void on_terminate(int sig) {
  int64_t time = clock_ms(), before = now.since_ms;
  if (!now.L) die(sig);
  if (now.by && time - before < SAME_MS) return;
  now.since_ms = time;
  if (!now.by) {
    now.by = sig;
    now.ends_ms = time + now.grace_ms;
    *now.word = PLUA_STOP_DRAIN;
    set_hook();
    ticker(SA_RESTART);
    tick_after(now.grace_ms < PATIENCE_MS ? now.grace_ms + 1 : PATIENCE_MS, TICK_MS);
  } else if (*now.word == PLUA_STOP_DRAIN) {
    stop_now();
  } else {
    die(sig);
  }
}

/* Without SA_RESTART, a blocked read returns for the hook to run. A process that was started with
   the signal ignored (nohup, sh -c 'plua x.lua &') keeps ignoring it. */
static void handle(int sig, void (*handler)(int), int flags) {
  struct sigaction old, new = {.sa_handler = handler, .sa_flags = flags};
  sigfillset(&new.sa_mask);
  if (sigaction(sig, NULL, &old) == 0 && old.sa_handler == SIG_IGN) return;
  sigaction(sig, &new, NULL);
}

/* ---- what main and plua.cli get ------------------------------------------------------------- */

void signals_core(lua_State *L) {
  now.word = plua_stop_word(L);
  *now.word = own_word; /* SIGINT may have come while it was loaded */
  lua_getfield(L, -1, "busy");
  lua_rawsetp(L, LUA_REGISTRYINDEX, &busy_key);
  handle(SIGALRM, on_tick, 0); /* now: workers undo what they find when a team is opened */
  handle(SIGTERM, on_terminate, SA_RESTART);
  handle(SIGUSR1, on_terminate, SA_RESTART);
}

static void begin(lua_State *L) {
  now.since_ms = 0;
  if (*now.word != PLUA_STOP_DRAIN) {
    *now.word = PLUA_STOP_NONE;
    now.by = 0;
  }
  now.L = L;
  handle(SIGINT, on_interrupt, 0);
}

/* A late signal must not hit the caller. */
static void end(lua_State *L) {
  handle(SIGINT, SIG_DFL, 0);
  now.L = NULL;
  if (now.by) tick_after(0, 0);
  lua_sethook(L, NULL, 0, 0);
}

int signals_call(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  luaL_checkany(L, 2);
  begin(L);
  int status = lua_pcall(L, lua_gettop(L) - 2, LUA_MULTRET, 1);
  end(L);
  lua_pushboolean(L, status == LUA_OK);
  lua_replace(L, 1); /* stack: ok, results */
  return lua_gettop(L);
}

int signals_stopped(lua_State *L) {
  lua_pushstring(L, name_of(now.by));
  return 1;
}

int signals_grace(lua_State *L) {
  lua_Number seconds = luaL_checknumber(L, 1);
  now.grace_ms = seconds < 1e9 ? (int64_t)(seconds * 1000) : INT64_C(1000000000000);
  return 0;
}
