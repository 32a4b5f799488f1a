/* codec_peek.h: plain values in a table's array part, without a call of Lua's for each.
   Knows how Lua 5.4 lays out a table, and uses that only where codec_peek_fits has found it so in
   this state; elsewhere, and in the test build with tiny limits, all goes through Lua's interface.
   Reads values, and writes such as need no memory of their own over nils of a table that nobody
   else has seen yet: no barrier of the collector's is due for either. SPDX-License-Identifier: MIT
 */
#ifndef PLUA_CODEC_PEEK_H
#define PLUA_CODEC_PEEK_H

#include <lua.h>
#include <stdint.h>

/* Whether tables of this state are laid out as below. May raise (memory). */
int codec_peek_fits(lua_State *L);

struct peek_value {
  union {
    lua_Integer integer;
    lua_Number number;
    const void *pointer;
  } value;
  unsigned char tag;
};
enum {
  PEEK_NIL = 0x00,
  PEEK_EMPTY = 0x10,
  PEEK_FALSE = 0x01,
  PEEK_TRUE = 0x11,
  PEEK_INTEGER = 0x03,
  PEEK_FLOAT = 0x13
};

struct peek_table {
  void *next;
  unsigned char type, marked, flags, log_nodes;
  unsigned int limit; /* the array part has at least so many entries */
  struct peek_value *array;
  void *node, *free_node, *meta, *gray;
};

static inline struct peek_table *codec_peek(lua_State *L, int at) {
  return (struct peek_table *)(uintptr_t)lua_topointer(L, at);
}

/* How many numbers of one kind, 'tag', lie at 1, 2, ... of the array part. */
static inline uint32_t codec_peek_run(const struct peek_table *t, unsigned char *tag) {
  uint32_t n = 0;
  if (!t->limit) return 0;
  *tag = t->array[0].tag;
  if (*tag != PEEK_INTEGER && *tag != PEEK_FLOAT) return 0;
  while (n < t->limit && t->array[n].tag == *tag) n++;
  return n;
}

#endif
