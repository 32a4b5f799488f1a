/* exit.c: the lines that a worker ran count too, though it leaves by _exit, where counters are not
   written of themselves. For builds with COV=1, linked with --wrap=_exit.
   SPDX-License-Identifier: MIT */
#include <gcov.h>
#include <unistd.h>

_Noreturn void __real__exit(int status);
_Noreturn void __wrap__exit(int status);

/* Of mfail.c, where that is loaded: counters cannot be written without memory. */
__attribute__((weak)) void mfail_stop(void);

/* Runs before the destructor that writes the counters, which has a priority. */
__attribute__((destructor)) static void stop_failing(void) {
  if (mfail_stop) mfail_stop();
}

void __wrap__exit(int status) {
  stop_failing();
  __gcov_dump();
  __real__exit(status);
}
