/* proc.h: start, watch, signal and reap one process, and the hygiene of a forked child.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_PROC_H
#define PLUA_PROC_H

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct proc {
  pid_t pid; /* 0: none */
  int fd;    /* its pidfd; -1: none, then it is gone already */
};

/* The caller's signal set-up, from which children make theirs; taken once, before forking. Bit n-1
   is signal n. */
struct proc_signals {
  uint64_t handled; /* not at its default */
  uint64_t ignored; /* those of 'handled' that have no handler */
};

void proc_signals_read(struct proc_signals *s);

/* How many threads this process has. */
int proc_threads(void);

/* Forks. 1 in the caller, 0 in the child, or a negated errno. In the child all signals are blocked,
   so that none runs a handler of the caller's: proc_child unblocks them. */
int proc_fork(struct proc *p);
/* In a process whose sibling is to be made: forks a child of this process's own parent. Its pid is
   stored in *pid, shared memory, before it runs. The pid, 0 in the new process, or a negated errno.
 */
int proc_fork_sibling(_Atomic int32_t *pid);
/* Opens the pidfd of a child that was started by proc_fork_sibling. 0, or a negated errno and the
   child is gone. */
int proc_adopt(struct proc *p, pid_t pid);

/* Sends a signal through the pidfd, so that a reused pid is never hit. 0 or a negated errno. */
int proc_signal(const struct proc *p, int sig);
/* Whether it has ended (it need not have been reaped). */
bool proc_ended(const struct proc *p);
/* Waits until it has ended, or it is that late. */
bool proc_await(const struct proc *p, int64_t until_ns);
/* Whether it stands still, stopped by a signal. */
bool proc_stopped(const struct proc *p);
/* Whether a process, living or not yet reaped, is a child of this one. */
bool proc_is_child(pid_t pid);
/* Takes the exit status of an ended process and closes the pidfd. *sig is 0 after an exit;
 *status is -1 when the host took the status away. */
void proc_reap(struct proc *p, int *sig, int *status);

/* Child: dies with its parent; leaves by _exit when that is gone already. */
void proc_tie(pid_t parent);
/* Child: default signals, empty mask, /dev/null as stdin; its own children inherit that. What a
   terminal or a batch system sends to a whole group is the parent's affair: SIGINT, and what it
   handles of SIGHUP, SIGTERM, SIGUSR1 and SIGUSR2, does nothing here; what it ignores of these and
   of SIGQUIT (nohup, a shell's background jobs) stays ignored. */
void proc_child(const struct proc_signals *s);
/* Child: closes every descriptor above 2 but the n at 'keep' (negative ones are none). */
void proc_close_others(const int *keep, int n);

#endif
