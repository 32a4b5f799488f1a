/* ptykit.c: a Lua module that runs a command on a terminal of its own, as a person does: in the
   foreground of a session whose controlling terminal it is.
     open(path, argument...) -> pid, fd       fd: the keyboard and the screen, for write and read
     write(fd, text)
     read(fd, seconds) -> text                "" if nothing came in time; nil at the end
     wait(pid, seconds) -> "exit" | "signal" | "stop", number      nil: none of them in time
     close(fd)
   For specs only. SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

__attribute__((visibility("default"))) int luaopen_ptykit(lua_State *L);

enum { ARGS_MAX = 32 };

static int pty_open(lua_State *L) {
  char *argv[ARGS_MAX + 1] = {0};
  int n = lua_gettop(L), fd;
  luaL_argcheck(L, n >= 1 && n <= ARGS_MAX, 1, "1 to 32 words");
  for (int i = 0; i < n; i++) argv[i] = (char *)(size_t)luaL_checkstring(L, i + 1);
  pid_t pid = forkpty(&fd, NULL, NULL, NULL);
  if (pid < 0) return luaL_error(L, "forkpty: %s", strerror(errno));
  if (pid == 0) {
    for (int sig = 1; sig < NSIG; sig++) signal(sig, SIG_DFL);
    execv(argv[0], argv);
    _exit(127);
  }
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  lua_pushinteger(L, pid);
  lua_pushinteger(L, fd);
  return 2;
}

static int pty_write(lua_State *L) {
  size_t len;
  const char *text = luaL_checklstring(L, 2, &len);
  if (write((int)luaL_checkinteger(L, 1), text, len) != (ssize_t)len)
    return luaL_error(L, "write: %s", strerror(errno));
  return 0;
}

/* A terminal whose processes are gone answers EIO. */
static int pty_read(lua_State *L) {
  char text[4096];
  struct pollfd f = {(int)luaL_checkinteger(L, 1), POLLIN, 0};
  if (poll(&f, 1, (int)(luaL_checknumber(L, 2) * 1000)) < 1) {
    lua_pushliteral(L, "");
    return 1;
  }
  ssize_t n = read(f.fd, text, sizeof text);
  if (n <= 0) return 0;
  lua_pushlstring(L, text, (size_t)n);
  return 1;
}

static int pty_wait(lua_State *L) {
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  struct timespec t = {0, 2000000};
  int status;
  for (double left = luaL_checknumber(L, 2); left > 0; left -= 0.002) {
    if (waitpid(pid, &status, WNOHANG | WUNTRACED) == pid) {
      bool stopped = WIFSTOPPED(status), killed = WIFSIGNALED(status);
      lua_pushstring(L, stopped ? "stop" : killed ? "signal" : "exit");
      lua_pushinteger(L, stopped  ? WSTOPSIG(status)
                         : killed ? WTERMSIG(status)
                                  : WEXITSTATUS(status));
      return 2;
    }
    nanosleep(&t, NULL);
  }
  return 0;
}

static int pty_close(lua_State *L) {
  close((int)luaL_checkinteger(L, 1));
  return 0;
}

int luaopen_ptykit(lua_State *L) {
  static const luaL_Reg functions[] = {{"open", pty_open}, {"write", pty_write}, {"read", pty_read},
                                       {"wait", pty_wait}, {"close", pty_close}, {NULL, NULL}};
  luaL_newlib(L, functions);
  return 1;
}
