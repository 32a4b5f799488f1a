/* codec_wire.h: the bytes of a message, one tag a value, and how plain values are put.
   A message is one value, or W_VALUES, a count and as many values. Where a function in it reads
   globals, the globals follow, up to W_END. Numbers lie in the order and width of this machine: a
   message never leaves it. Zero is no tag, so blank memory is no message.
   Knows struct plua_out. Does not know the Lua state. SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_WIRE_H
#define PLUA_CODEC_WIRE_H

#include <stdint.h>
#include <string.h>

#include "plua.h"

/* Tags. Those marked * are even; with bit 0 set, a later W_REF names this value by its offset from
   the start of the message, and the reader has to remember it. The writer sets the bit when it
   meets the value again. u8 to u64 stand for little unsigned numbers of so many bits. */
enum wire {
  W_NIL = 0x01,
  W_FALSE,
  W_TRUE,
  W_I8, /* integers, by width */
  W_I16,
  W_I32,
  W_I64,
  W_FLOAT,
  W_STR8, /* u8 length, bytes */
  W_STR32,
  W_STR64,
  W_SDEF,   /* u8 length, bytes: the next of at most 256 strings that W_SREF names */
  W_SREF,   /* u8 */
  W_REF32,  /* u32 offset */
  W_REF64,  /* u64 offset */
  W_VALUES, /* u32 count, values */
  W_END,
  W_MODULE,        /* string: its name */
  W_FIELD,         /* string, string: a module's name and a field of it */
  W_ENV,           /* u32: the private globals of that number */
  W_STUB,          /* string: why this global could not cross */
  W_CELLREF,       /* u64 offset of a W_CELL: two closures share this upvalue */
  W_NULL,          /* light userdata NULL, which means the same anywhere */
  W_TABLE = 0x20,  /* * u32 items, u32 pairs; the items, then keys and values */
  W_INTS = 0x22,   /* * u32 n; n raw integers, then the rest as after W_TABLE */
  W_FLOATS = 0x24, /* * the same with floats */
  W_OBJECT = 0x26, /* * string: name of the metatable; then an unmarked table */
  W_SAVED = 0x28,  /* * string: name of the metatable; then what __plua_save gave */
  W_LONG = 0x2a,   /* * u64 length, bytes: a string long enough to be worth a reference */
  W_CODE = 0x2c,   /* * u64 length, dump, u8 upvalues; each W_CELL or W_CELLREF */
  W_CELL = 0x2e,   /* * one value */
  W_SHORT = 0x40,  /* 0x40 to 0x7f: a string of 0 to 63 bytes */
  W_SMALL = 0x80   /* 0x80 to 0xff: an integer of 0 to 127 */
};

enum {
  W_SHARED = 1,         /* the bit of tags marked * */
  W_STRINGS = 256,      /* W_SDEFs that count in a message */
  CODEC_SHORT_LEN = 40, /* Lua interns strings up to here: equal ones have one address */
  CODEC_DEPTH = 100000  /* values nested in values; Lua's own stack ends not far above */
};

/* Puts one tag and the len bytes of its number. */
static inline int wire_put(plua_out *out, unsigned tag, const void *number, size_t len) {
  int err = plua_room(out, 1 + len);
  if (err < 0) return err;
  unsigned char *p = out->at;
  out->at = p + 1 + len;
  *p = (unsigned char)tag;
  memcpy(p + 1, number, len);
  return 0;
}

static inline int wire_put_tag(plua_out *out, unsigned tag) {
  int err = plua_room(out, 1);
  if (err < 0) return err;
  *out->at++ = (unsigned char)tag;
  return 0;
}

static inline int wire_put_u32(plua_out *out, unsigned tag, uint32_t n) {
  return wire_put(out, tag, &n, sizeof n);
}

static inline int wire_put_u64(plua_out *out, unsigned tag, uint64_t n) {
  return wire_put(out, tag, &n, sizeof n);
}

static inline int wire_put_float(plua_out *out, double x) {
  return wire_put(out, W_FLOAT, &x, sizeof x);
}

static inline int wire_put_integer(plua_out *out, int64_t i) {
  if (i >= 0 && i < 128) return wire_put_tag(out, W_SMALL | (unsigned)i);
  if (i == (int32_t)i) {
    int32_t i32 = (int32_t)i;
    int16_t i16 = (int16_t)i;
    int8_t i8 = (int8_t)i;
    if (i == i8) return wire_put(out, W_I8, &i8, sizeof i8);
    if (i == i16) return wire_put(out, W_I16, &i16, sizeof i16);
    return wire_put(out, W_I32, &i32, sizeof i32);
  }
  return wire_put(out, W_I64, &i, sizeof i);
}

/* Puts a string of any length that nothing refers to. */
static inline int wire_put_string(plua_out *out, const char *s, size_t len) {
  int err = plua_room(out, len + 9);
  if (err < 0) return err;
  if (len < 64) {
    *out->at++ = (unsigned char)(W_SHORT | len);
  } else if (len < 256) {
    *out->at++ = W_STR8;
    *out->at++ = (unsigned char)len;
  } else if (len <= UINT32_MAX) {
    uint32_t n = (uint32_t)len;
    wire_put(out, W_STR32, &n, sizeof n);
  } else {
    uint64_t n = len;
    wire_put(out, W_STR64, &n, sizeof n);
  }
  memcpy(out->at, s, len);
  out->at += len;
  return 0;
}

#endif
