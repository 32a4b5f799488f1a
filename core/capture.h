/* capture.h: what a worker writes to stdout and stderr, kept in files until it may be shown.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_CAPTURE_H
#define PLUA_CAPTURE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { CAPTURE_OUT = 1, CAPTURE_ERR = 2, CAPTURE_TAIL = 1 << 16 };

/* Index 0 is stdout's, 1 is stderr's. Where both are one place, one file takes both, in order. */
struct capture {
  bool on;
  bool one;                /* file[0] takes both */
  int file[2];             /* unlinked, or memory; -1: not kept */
  int real[2];             /* where it goes in the end; -1: was closed */
  int place[2];            /* of lines.h */
  _Atomic uint64_t *shown; /* two numbers: how much of each file is there already */
};

/* Makes the files for what 'which' names; they lie below TMPDIR, or in memory where that cannot be.
   'shown' outlives this process. 0 or a negated errno, and then nothing is open. */
int capture_open(struct capture *c, int which, _Atomic uint64_t *shown);
void capture_close(struct capture *c);
/* Descriptors 1 and 2 lead to the files, or to where they led before. */
void capture_on(struct capture *c);
void capture_off(struct capture *c);
/* The last bytes of what was captured and not shown, at most 'max' of them: stdout's, then
   stderr's. */
size_t capture_tail(const struct capture *c, char *bytes, size_t max);
/* Shows what was captured, each file as one block, and empties the files. Whoever dies in here is
   followed by one who goes on where it stopped. Tells lines_lost what could not be shown. */
void capture_show(struct capture *c);

/* Sends the files through a socket, which outlives this process too. 0 or a negated errno. */
int capture_send(const struct capture *c, int socket, unsigned worker);
/* Receives such files, to be shown at descriptors 1 and 2: 0, the sender's number and pid;
   or a negated errno (-EAGAIN: nothing is there). 'shown' must be set before they are. */
int capture_receive(struct capture *c, int socket, unsigned *worker, pid_t *pid);

#endif
