/* store.h: payloads in shared memory, read-only for workers. SPDX-License-Identifier: MIT */
#ifndef PLUA_STORE_H
#define PLUA_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "plua.h"

struct store;

/* Keeps payloads in [off, off + len) of a mapping whose file is 'fd'. 0 or -ENOMEM. */
int store_open(struct store **out, unsigned char *base, uint64_t off, uint64_t len, int fd);
void store_close(struct store *s);

/* Lends a writer for one payload; payloads of one chain lie one behind the other where they can.
   One at a time. 0 or a negative code (-ENOMEM, -ENOSPC: no memory; nothing is lost). */
int store_begin(struct store *s, uint64_t chain, plua_out **out);
/* Keeps it: *off is the place of its length (8 bytes), the payload follows. *follows: it lies right
   behind the payload of its chain that was stored before. */
void store_end(struct store *s, uint64_t *off, bool *follows);
void store_drop(struct store *s);
/* Keeps the first of n payloads, len[i] bytes each, which lie one behind the other in 'bytes', as
   many as have room where the store is right now: how many, 0 too. off[] are their places; *follows
   is that of the first, each of the others lies right behind the one before. */
unsigned store_run(struct store *s, uint64_t chain, const unsigned char *bytes, const size_t *len,
                   unsigned n, uint64_t *off, bool *follows);
/* Gives a payload's memory back. */
void store_free(struct store *s, uint64_t off);
/* The same for n payloads that lie one behind the other, from 'first' to 'last'. */
void store_free_run(struct store *s, uint64_t first, uint64_t last, unsigned n);

#endif
