/* codec_read.h: the reader, shared by the files that read tables and functions.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_READ_H
#define PLUA_CODEC_READ_H

#include "codec_ahead.h"
#include "codec_state.h"
#include "codec_wire.h"

/* What is being read, outermost first. */
enum read_kind {
  R_ITEMS, /* at: table; a value for key i is due */
  R_KEY,   /* at: table; a key is due */
  R_VALUE, /* at: table, key; its value is due */
  R_CELL,  /* at: function; the value of upvalue i is due */
  R_LOAD   /* at: __plua_load; its argument is due */
};
struct read_frame {
  enum read_kind kind;
  int at;
  lua_Integer i;
  uint32_t items, pairs; /* still to come; R_CELL: items is the number of upvalues */
  lua_Integer shared;    /* R_LOAD: under which the object is remembered; 0: not */
};

/* Invariants: begin <= p <= end. 'owed' is the number of bytes, at the least, that the tables and
   functions open now still need; it never exceeds end - p when something is allocated for it, so
   that all memory asked for is in proportion to the message. The bytes may change while they are
   read: each is fetched once. */
struct codec_reader {
  lua_State *L;
  const unsigned char *begin, *p, *end;
  size_t owed;
  struct codec_room *room;
  int depth;
  int n;      /* values, once they are read */
  int paused; /* the collector is stopped meanwhile */
  int plain;  /* READ_DATA, READ_QUIET or both; either: nothing is required anew */
  int met;    /* stack index: nil, or table of what later references name */
  int envs;   /* stack index: nil, or list of private globals */
  uint32_t nenvs;
  uint32_t strings; /* defined so far */
  struct codec_ahead ahead;
};

enum { READ_OPENED = 1 };
enum { READ_DATA = 1, READ_QUIET = 2 }; /* no bytecode; no hooks */

/* Pushes the next value (0), or opens a frame for it (READ_OPENED). Negative: a string is pushed
   that says why. */
int codec_take(struct codec_reader *r);
/* Reads one value whole. 0 or negative. */
int codec_take_whole(struct codec_reader *r);
/* Takes a value that must be a string. */
int codec_take_string(struct codec_reader *r);

/* lua_pushlstring, which is cheaper where much memory is new (codec_text.c). */
void codec_push_text(lua_State *L, const void *bytes, size_t len);

/* Takes the number behind a tag W_I8 to W_I64 or W_FLOAT. */
int codec_take_number(struct codec_reader *r, unsigned tag);

/* The collector runs again, if it was stopped for this message. */
void codec_resume_gc(struct codec_reader *r);

/* "malformed message: what, at byte n". */
int codec_malformed(struct codec_reader *r, const char *what);

/* Opens a frame over the value at the top. NULL: too deep, and a string is pushed. */
struct read_frame *codec_read_frame(struct codec_reader *r, enum read_kind kind);

/* Remembers the value at the top for later references to 'key'. */
void codec_remember(struct codec_reader *r, lua_Integer key);

/* The next n bytes are there. */
static inline int codec_left(const struct codec_reader *r, size_t n) {
  return (size_t)(r->end - r->p) >= n;
}

/* Keys of 'met': strings by number, then values by offset; cells have theirs negated. */
static inline lua_Integer codec_key_at(const struct codec_reader *r, size_t offset) {
  (void)r;
  return (lua_Integer)offset + W_STRINGS + 1;
}

/* ---- functions and names (codec_load.c) ------------------------------------------------------ */

int codec_take_code(struct codec_reader *r, lua_Integer shared);
int codec_take_cells(struct codec_reader *r); /* R_CELL: goes on with the next upvalue */
int codec_take_module(struct codec_reader *r);
int codec_take_field(struct codec_reader *r);
int codec_take_env(struct codec_reader *r);
int codec_take_stub(struct codec_reader *r);
int codec_take_globals(struct codec_reader *r);

#endif
