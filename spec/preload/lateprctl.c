/* lateprctl.c: holds a process up for LATE_MS before it asks to die with its parent, and says so by
   a byte in the file LATE_TRACE. To be preloaded. Knows nothing of plua.
   SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void be_late(void) {
  const char *trace = getenv("LATE_TRACE"), *ms = getenv("LATE_MS");
  long wait = ms ? atol(ms) : 0;
  struct timespec t = {wait / 1000, wait % 1000 * 1000000};
  int fd = trace ? open(trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
  if (fd >= 0 && write(fd, "x", 1) < 0) _exit(1);
  if (fd >= 0) close(fd);
  nanosleep(&t, NULL);
}

int prctl(int option, ...) {
  va_list args;
  va_start(args, option);
  unsigned long value = va_arg(args, unsigned long);
  va_end(args);
  if (option == PR_SET_PDEATHSIG) be_late();
  return (int)syscall(SYS_prctl, option, value, 0, 0, 0);
}
