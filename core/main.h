/* main.h: what the files of the program share.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_MAIN_H
#define PLUA_MAIN_H

#include <stdbool.h>

struct lua_State;

enum { EX_TEMPFAIL = 75 }; /* stopped; it may be run again */

/* ---- main_signals.c: SIGINT, SIGTERM and SIGUSR1 --------------------------------------------- */

/* call(handler, f, ...) -> true, results... | false, what handler made of the error.
   xpcall that a signal can interrupt. */
int signals_call(struct lua_State *L);
/* stopped() -> the name of the signal that has stopped the last call, or nil */
int signals_stopped(struct lua_State *L);
/* grace(seconds): how long running items may go on after SIGTERM or SIGUSR1. */
int signals_grace(struct lua_State *L);
/* plua.core has been loaded, its table is on top: from now on SIGTERM and SIGUSR1 let items end. */
void signals_core(struct lua_State *L);

/* ---- main_strays.c: processes that items started --------------------------------------------- */

/* Has workers marked. plua.core's table is on top of the stack. */
void strays_open(struct lua_State *L);
/* Ends what items have left running, and says so unless it is to be 'quiet'. */
void strays_end(bool quiet);

#endif
