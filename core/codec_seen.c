/* codec_seen.c: tables that are looked into: their plain pairs are written without a call of Lua's.
   Only in the fast pass, in which no table changes and nothing is collected.
   Any other pair is put on Lua's stack, and written from there as those of all tables are.
   SPDX-License-Identifier: MIT */
#include "codec_peek.h"
#include "codec_write.h"

static int is_plain(unsigned tag) {
  switch (tag) {
  case PEEK_FALSE:
  case PEEK_TRUE:
  case PEEK_INTEGER:
  case PEEK_FLOAT:
  case PEEK_STRING:
    return 1;
  }
  return 0;
}

static int put_plain(struct codec_writer *w, union peek_any value, unsigned tag, int key) {
  if (tag == PEEK_INTEGER) return wire_put_integer(w->out, value.integer);
  if (tag == PEEK_FLOAT) return wire_put_float(w->out, value.number);
  if (tag != PEEK_STRING) return wire_put_tag(w->out, tag == PEEK_TRUE ? W_TRUE : W_FALSE);
  const struct peek_string *s = value.pointer;
  return codec_put_string(w, s->bytes, s->len, key);
}

/* Of the array part. 0, a negative code, or CODEC_OPENED: a pair is not plain. */
static int put_items(struct codec_writer *w, struct write_frame *f, uint32_t n) {
  for (; f->next < n; f->next++) {
    const struct peek_value *v = &f->seen->array[f->next];
    lua_Integer key = (lua_Integer)f->next + 1;
    int err = 0;
    if (codec_peek_empty(v->tag)) continue;
    if (!is_plain(v->tag)) return CODEC_OPENED;
    if (!codec_is_item(f, key)) err = wire_put_integer(w->out, key);
    if (err == 0) err = put_plain(w, v->value, v->tag, 0);
    if (err < 0) return err;
  }
  return 0;
}

/* The same of the rest, which lies at 'first' and on. */
static int put_nodes(struct codec_writer *w, struct write_frame *f, uint32_t first) {
  const struct peek_table *t = f->seen;
  for (; f->next - first < UINT64_C(1) << t->log_nodes; f->next++) {
    const struct peek_node *n = &t->node[f->next - first];
    int err = 0;
    if (codec_peek_empty(n->tag)) continue;
    if (!is_plain(n->tag) || !is_plain(n->key_tag)) return CODEC_OPENED;
    if (!codec_is_item(f, n->key_tag == PEEK_INTEGER ? n->key.integer : 0))
      err = put_plain(w, n->key, n->key_tag, 1);
    if (err == 0) err = put_plain(w, n->value, n->tag, 0);
    if (err < 0) return err;
  }
  return 0;
}

static int put_pairs(struct codec_writer *w, struct write_frame *f) {
  uint32_t n = codec_peek_items(f->seen);
  int err = put_items(w, f, n);
  return err ? err : put_nodes(w, f, n);
}

/* The pair that is due, for those who write from the stack. */
static void push_pair(lua_State *L, struct write_frame *f) {
  const struct peek_table *t = f->seen;
  uint64_t at = f->next++;
  uint32_t n = codec_peek_items(t);
  if (at < n) {
    lua_pushinteger(L, (lua_Integer)at + 1);
    codec_peek_push(L, t->array[at].value, t->array[at].tag);
  } else {
    const struct peek_node *node = &t->node[at - n];
    codec_peek_push(L, node->key, node->key_tag);
    codec_peek_push(L, node->value, node->tag);
  }
}

int codec_next_seen(struct codec_writer *w, struct write_frame *f) {
  lua_settop(w->L, f->at);
  int more = put_pairs(w, f);
  if (more == CODEC_OPENED) push_pair(w->L, f);
  return more;
}

/* Puts the tag, and the numbers that begin the array part as they lie there. */
static int put_run(struct codec_writer *w, const struct peek_table *t, uint32_t *n) {
  unsigned char tag = 0;
  *n = codec_peek_run(t, &tag);
  if (!*n) return wire_put_tag(w->out, W_TABLE);
  int err = plua_room(w->out, 8 * (size_t)*n + 5);
  if (err < 0) return err;
  wire_put_u32(w->out, tag == PEEK_INTEGER ? W_INTS : W_FLOATS, *n);
  for (uint32_t i = 0; i < *n; i++) memcpy(w->out->at + 8 * (size_t)i, &t->array[i].value, 8);
  w->out->at += 8 * (size_t)*n;
  return 0;
}

int codec_open_seen(struct codec_writer *w) {
  struct write_frame seen = {.kind = F_TABLE, .state = T_NEXT, .seen = codec_peek(w->L, -1)};
  uint32_t n = 0;
  int err = put_run(w, seen.seen, &n);
  seen.head = codec_here(w);
  if (err == 0) err = codec_put_counts(w);
  if (err < 0) return err;
  seen.next = n;
  seen.expect = (lua_Integer)n + 1;
  err = put_pairs(w, &seen);
  if (err == 0) codec_patch_counts(w, &seen);
  if (err != CODEC_OPENED) return err;
  struct write_frame *f = codec_frame(w, F_TABLE);
  if (!f) return codec_refuse_depth(w);
  seen.at = f->at;
  *f = seen;
  return CODEC_OPENED;
}
