/* codec_write.h: the writer, shared by the files that write tables, objects and functions.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_WRITE_H
#define PLUA_CODEC_WRITE_H

#include "codec_state.h"
#include "codec_wire.h"

/* What is being written, outermost first: a stack of our own, since the C stack has no limit that
   can be asked for. A frame's value lies at 'at' on Lua's stack, what it works on above it. */
enum write_kind {
  F_TABLE, /* at: table, key, value */
  F_SAVED, /* at: object, what __plua_save gave */
  F_CELLS  /* at: function, value of upvalue i */
};
enum table_state {
  T_NEXT, /* key on the stack: the next pair is due */
  T_PAIR, /* key and value there, neither written */
  T_KEY,  /* the key, itself a table, is being written */
  T_VALUE /* key written, value due or being written */
};
struct write_frame {
  enum write_kind kind;
  enum table_state state; /* F_TABLE */
  int at;
  int done;           /* F_SAVED: the value is written */
  int i, n;           /* F_CELLS: upvalue at work, how many */
  size_t head;        /* F_TABLE: offset of its two counts; F_SAVED: of its tag */
  lua_Integer expect; /* F_TABLE: key of the next item; 0: items are over */
  uint32_t items, pairs;
  const struct peek_table *seen; /* F_TABLE: it is looked into, see codec_seen.c; or NULL */
  uint64_t next;                 /* seen: position of the pair that is due */
};

/* An item follows the one before it; the first pair that does not ends the items. */
static inline int codec_is_item(struct write_frame *f, lua_Integer key) {
  if (f->expect && key == f->expect) {
    f->expect++;
    f->items++;
    return 1;
  }
  f->expect = 0;
  f->pairs++;
  return 0;
}

/* A short string met before: the second time it is defined, from then on named by number. */
struct write_string {
  const char *s;
  uint32_t message; /* of which message this entry is */
  uint32_t number;  /* 0: met once; else its number, from 1 */
};
/* Two share a place: else two keys of one record could drive each other out for ever. */
enum { STRING_SHIFT = 57, STRING_SETS = 1 << (64 - STRING_SHIFT), STRING_WAYS = 2 };

struct write_room {
  struct codec_room room;
  struct codec_map map;
  uint32_t message;
  struct write_string strings[2][STRING_SETS][STRING_WAYS]; /* values, keys */
};

/* The first, fast pass knows only what needs no allocation in Lua, so that no collector step, no
   finalizer and no hook runs: addresses stay true. Where it meets more (functions, hooks,
   modules) it gives up, and the slow pass begins anew, protected, keeping all it meets. */
struct codec_writer {
  lua_State *L;
  plua_out *out;
  struct write_room *room;
  size_t base; /* of the message, from out->begin */
  int slow;
  int give_up; /* the fast pass asks for the slow one */
  int depth;   /* frames */
  int saving;  /* F_SAVED frames among them */
  int keep;    /* slow: stack index of the table of all that was met */
  int envs;    /* slow: of {env, names, env, names, ...}; names: list, set, [0] = done */
  int nenvs;
  int value, n;     /* which of how many values, for the path */
  uint32_t strings; /* defined so far */
  const void *meta; /* fast: the metatable met last, and its name */
  const char *meta_name;
  size_t meta_len;
};

static inline size_t codec_here(const struct codec_writer *w) {
  return (size_t)(w->out->at - w->out->begin) - w->base;
}

static inline unsigned char *codec_at(const struct codec_writer *w, size_t offset) {
  return w->out->begin + w->base + offset;
}

/* The two counts of a table: their place, filled once they are known. */
static inline int codec_put_counts(struct codec_writer *w) {
  static const uint32_t none[2];
  return plua_write(w->out, none, sizeof none);
}
static inline void codec_patch_counts(struct codec_writer *w, const struct write_frame *f) {
  uint32_t counts[2] = {f->items, f->pairs};
  memcpy(codec_at(w, f->head), counts, sizeof counts);
}

/* All that follow work on the value at the top of the stack. 0: it is written and left where it
   is. 1: a frame was opened that owns it. Negative: refused, and a string pushed that says why, or
   the code of out->more, nothing pushed. */
enum { CODEC_OPENED = 1 };

int codec_put(struct codec_writer *w);
int codec_put_object(struct codec_writer *w); /* stack: value, its metatable (popped) */
int codec_put_function(struct codec_writer *w);

/* Opens the table at the top, whose tag has not been written yet. */
int codec_open_table(struct codec_writer *w);

/* The same of a table that can be seen; all that is plain in it goes without a frame. */
int codec_open_seen(struct codec_writer *w);
/* Goes on to the first pair that is not plain and pushes its key and value: 1; 0: there is none. */
int codec_next_seen(struct codec_writer *w, struct write_frame *f);

/* Writes the value whole and pops it. 0 or negative. */
int codec_put_whole(struct codec_writer *w);

/* 1: the value with this address was written before and a reference to it has been put. 0: it is
   new; the marked tag is put here next. */
int codec_put_again(struct codec_writer *w, const void *p);

int codec_put_string(struct codec_writer *w, const char *s, size_t len, int key);

/* 1: the module, or function of a module, was put by its name. 0: it has none. */
int codec_put_named(struct codec_writer *w);

/* Opens a frame over the value at the top. NULL: refused, see codec_refuse. */
struct write_frame *codec_frame(struct codec_writer *w, enum write_kind kind);
/* Ends the innermost frame; pops its value and all above it. */
void codec_unframe(struct codec_writer *w);
/* The innermost one: it moves when another is opened. */
struct write_frame *codec_top(const struct codec_writer *w);

int codec_step_cells(struct codec_writer *w, struct write_frame *f);
int codec_step_saved(struct codec_writer *w, struct write_frame *f);

/* Writes the globals that functions of the message want, one by one. 0 or negative. */
int codec_put_globals(struct codec_writer *w);

/* Pushes "path: what" for the value at work and answers PLUA_ECODEC. */
int codec_refuse(struct codec_writer *w, const char *fmt, ...)
  __attribute__((format(printf, 2, 3)));
/* The same for a nest that is too deep: PLUA_EDEPTH. */
int codec_refuse_depth(struct codec_writer *w);

/* Asks for the slow pass. */
static inline int codec_give_up(struct codec_writer *w) {
  w->give_up = 1;
  return PLUA_ECODEC;
}

#endif
