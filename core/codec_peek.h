/* codec_peek.h: what lies in Lua's memory, without a call of Lua's for each value.
   Knows how Lua 5.4 lays out a thread, a table and a string, and uses that only where
   codec_peek_fits has found it so in this state; elsewhere, and in the test build with tiny limits,
   all goes through Lua's interface.
   Reads values, and writes them over nils: into the stack, which the collector always looks
   through, and such as need no memory of their own into a table that nobody else has seen yet. No
   barrier of the collector's is due for either. SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_PEEK_H
#define PLUA_CODEC_PEEK_H

#include <lua.h>
#include <stdint.h>

/* Whether the memory of this state is laid out as below. May raise (memory). */
int codec_peek_fits(lua_State *L);

enum {
  PEEK_NIL = 0x00,
  PEEK_EMPTY = 0x10,
  PEEK_FALSE = 0x01,
  PEEK_TRUE = 0x11,
  PEEK_INTEGER = 0x03,
  PEEK_FLOAT = 0x13,
  PEEK_STRING = 0x44 /* one that is kept once */
};
union peek_any {
  lua_Integer integer;
  lua_Number number;
  const void *pointer;
};
struct peek_value {
  union peek_any value;
  unsigned char tag;
};

struct peek_string {
  void *next;
  unsigned char type, marked, extra, len;
  uint32_t hash;
  struct peek_string *rest; /* of its list */
  char bytes[];
};

struct peek_node {
  union peek_any value;
  unsigned char tag, key_tag;
  int next;
  union peek_any key;
};

enum { PEEK_HINT = 0x80 }; /* a flag: the limit is not the size */
struct peek_table {
  void *next;
  unsigned char type, marked, flags, log_nodes;
  unsigned int limit; /* the array part has at least so many entries */
  struct peek_value *array;
  struct peek_node *node;
  void *free_node, *meta, *gray;
};

struct peek_function {
  void *next;
  unsigned char type, marked, upvalues;
  void *gray;
  const void *code; /* which functions made at one place share; of Lua functions only */
};

struct peek_thread {
  void *next;
  unsigned char type, marked, status, hooks;
  unsigned short calls;
  struct peek_value *top;
  void *state; /* what all threads share */
};

static inline struct peek_table *codec_peek(lua_State *L, int at) {
  return (struct peek_table *)(uintptr_t)lua_topointer(L, at);
}

/* The value on top of the stack. */
static inline struct peek_value *codec_peek_top(lua_State *L) {
  return ((struct peek_thread *)(void *)L)->top - 1;
}

/* Whether t is seen to hold what codec_peek_fits has put into it: 0.1, 0x123456789abcdef, true,
   false, true and room for three values more, and true under a short string of 'len' bytes that lie
   at 'key'. */
int codec_peek_table_fits(const struct peek_table *t, const char *key, size_t len);

/* Whether Lua functions are laid out as above. May raise (memory). */
int codec_peek_code_fits(lua_State *L);

/* Whether the tag is that of nil, or of what stands where nothing is. */
static inline int codec_peek_empty(unsigned tag) {
  return (tag & 0x0f) == PEEK_NIL;
}

/* Entries of the array part: where the limit does not tell them, they are a power of two. */
static inline uint32_t codec_peek_items(const struct peek_table *t) {
  uint32_t n = t->limit;
  if (!(t->flags & PEEK_HINT) || !(n & (n - 1))) return n;
  return UINT32_C(1) << (32 - __builtin_clz(n));
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

/* Moves the top by n values: those above it were written, and there is room for them; or those
   below it are taken off. */
static inline void codec_peek_move(lua_State *L, int n) {
  ((struct peek_thread *)(void *)L)->top += n;
}

/* Pushes a value that something else holds. */
static inline void codec_peek_push(lua_State *L, union peek_any value, unsigned char tag) {
  lua_pushnil(L);
  struct peek_value *top = codec_peek_top(L);
  top->value = value;
  top->tag = tag;
}

#endif
