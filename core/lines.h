/* lines.h: streams to stdout and stderr that write whole lines, whoever else writes there.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_LINES_H
#define PLUA_LINES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Makes what processes that are forked from now on share, so that they take turns with long lines.
   Without it (memory) long lines may be torn. */
void lines_share(void);

/* A stream in front of descriptor 'fd', 1 or 2: each line that is complete goes out by one write,
   what is not waits for its end or for lines_end. NULL: no memory. Never closed. */
FILE *lines_open(int fd);
/* Whether the streams hold an unfinished line. */
extern bool lines_unfinished;
/* Why something for stdout was not written since this was 0: a negated errno. A stdout that is
   closed is nobody's loss. */
extern int lines_lost;
/* Writes unfinished lines of flushed streams as they are. */
void lines_end(void);

/* While 'direct', descriptor 'fd' (1 or 2) leads to a file of this process's own: no turns. */
void lines_direct(int fd, bool direct);

/* The number of the place that stderr is: 0: the same as stdout, or 1. Of stdout it is 0. */
int lines_place(int out, int err);
/* Copies the bytes from *shown to 'end' of a file to 'fd' as one block, in a turn of its own;
   counts them in *shown as they go. 0 or a negated errno. */
int lines_copy(int fd, int place, int file, _Atomic uint64_t *shown, uint64_t end);

#endif
