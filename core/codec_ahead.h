/* codec_ahead.h: strings to come are looked for before they are due.
   Lua keeps each short string once. Where a state holds many, finding one is a walk from one cache
   miss to the next, and nearly half of the time in which data are read: so the memory on the way to
   the next few strings is fetched meanwhile.
   Only a hint: a wrong guess costs time. SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_AHEAD_H
#define PLUA_CODEC_AHEAD_H

#include <lua.h>
#include <stdint.h>

/* Lua's table of strings. */
struct ahead_strings {
  struct peek_string **lists;
  int used, size; /* size: of lists; a power of two */
};

/* Where that is in this state; NULL: it cannot be told. May raise (memory). */
struct ahead_strings *codec_ahead_find(lua_State *L);

/* Whether a short string of this hash is kept there: its 'len' bytes lie at s. */
int codec_ahead_keeps(const struct ahead_strings *t, uint32_t hash, const char *s, size_t len);

/* Strings are numbered from where looking began: 'due' are read, 'found' looked for. */
enum { AHEAD = 16 };
struct codec_ahead {
  const struct ahead_strings *strings; /* NULL: never looks */
  const unsigned char *p;              /* what follows the last string that was looked for */
  unsigned due, found;
  uint32_t hash[AHEAD]; /* by number % AHEAD */
};

void codec_ahead_look(struct codec_ahead *a, const unsigned char *next, const unsigned char *end);

/* A short string is read now; what follows it in the message lies at next. */
static inline void codec_ahead_step(struct codec_ahead *a, const unsigned char *next,
                                    const unsigned char *end) {
  enum { FEW = 1 << 14 }; /* these are in the cache */
  if (a->strings && a->strings->size > FEW) codec_ahead_look(a, next, end);
}

#endif
