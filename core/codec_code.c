/* codec_code.c: which names a function looks up in its globals, read from its dump.
   A global is a field of the upvalue _ENV: OP_GETTABUP with a constant key, in the function or in
   one nested in it that inherits the upvalue. Where the upvalue is taken as a value (GETUPVAL, as
   for keys past the 255th constant), each string constant from there inwards may be a name.
   Knows the dump of Lua 5.4; another is told apart by its head. Trusts lua_dump, yet reads
   nothing past the end. Does not know the Lua state. SPDX-License-Identifier: MIT */
#include <string.h>

#include "codec_state.h"

enum { OP_GETUPVAL = 9, OP_GETTABUP = 11 };
enum { K_NIL = 0, K_FALSE = 1, K_TRUE = 17, K_INTEGER = 3, K_FLOAT = 19, K_SHORT = 4, K_LONG = 20 };

struct span {
  const unsigned char *p;
  size_t n;
};

/* A dump that is being read. 'bad' once set stays, and all that is read is zero. */
struct scan {
  const unsigned char *p, *end;
  int bad;
  codec_found *found;
  void *arg;
};

static const unsigned char *skip(struct scan *s, size_t n) {
  static const unsigned char zeros[16];
  if ((size_t)(s->end - s->p) < n) {
    s->bad = 1;
    s->p = s->end;
    return zeros;
  }
  s->p += n;
  return s->p - n;
}

/* Seven bits a byte, the most significant first, the last byte marked. */
static size_t get_size(struct scan *s) {
  size_t n = 0;
  unsigned char b;
  do {
    if (s->p == s->end || n >> 56) {
      s->bad = 1;
      return 0;
    }
    b = *s->p++;
    n = n << 7 | (b & 0x7f);
  } while (!(b & 0x80));
  return n;
}

/* Length and bytes; the length is stored plus one, 0 for no string at all. */
static struct span get_string(struct scan *s) {
  size_t n = get_size(s);
  struct span none = {NULL, 0};
  if (!n) return none;
  struct span text = {skip(s, n - 1), n - 1};
  return s->bad ? none : text;
}

/* Reads a constant; a string is answered, everything else passed over. */
static struct span get_constant(struct scan *s) {
  struct span none = {NULL, 0};
  switch (*skip(s, 1)) {
  case K_NIL:
  case K_FALSE:
  case K_TRUE:
    return none;
  case K_INTEGER:
  case K_FLOAT:
    skip(s, 8);
    return none;
  case K_SHORT:
  case K_LONG:
    return get_string(s);
  }
  s->bad = 1;
  return none;
}

static void skip_debug(struct scan *s) {
  skip(s, get_size(s)); /* a byte a line */
  for (size_t n = get_size(s); n && !s->bad; n--) {
    get_size(s);
    get_size(s);
  }
  for (size_t n = get_size(s); n && !s->bad; n--) {
    get_string(s);
    get_size(s);
    get_size(s);
  }
  for (size_t n = get_size(s); n && !s->bad; n--) get_string(s);
}

/* Tells each key that the code looks up in an env upvalue; answers whether it takes one whole. */
static int scan_code(struct scan *s, struct span code, const struct span *k, size_t nk,
                     const unsigned char env[256]) {
  int whole = 0;
  for (size_t i = 0; i + 4 <= code.n; i += 4) {
    uint32_t op;
    memcpy(&op, code.p + i, sizeof op);
    unsigned b = op >> 16 & 0xff, c = op >> 24;
    if ((op & 0x7f) == OP_GETUPVAL && env[b]) whole = 1;
    if ((op & 0x7f) != OP_GETTABUP || !env[b] || c >= nk || !k[c].p) continue;
    s->found(s->arg, (const char *)k[c].p, k[c].n);
  }
  return whole;
}

/* Only the first 256 constants can be keys of OP_GETTABUP. */
struct constants {
  struct span first[256];
  size_t n;
  const unsigned char *begin;
  size_t all;
};

static void get_constants(struct scan *s, struct constants *k) {
  k->all = get_size(s);
  k->begin = s->p;
  k->n = 0;
  for (size_t i = 0; i < k->all && !s->bad; i++) {
    struct span text = get_constant(s);
    if (i < 256) k->first[k->n++] = text;
  }
}

static void tell_constants(struct scan *s, const struct constants *k) {
  struct scan again = *s;
  again.p = k->begin;
  for (size_t i = 0; i < k->all && !again.bad; i++) {
    struct span text = get_constant(&again);
    if (text.p) s->found(s->arg, (const char *)text.p, text.n);
  }
}

/* Which upvalues of a nested function are its parent's env. */
static void get_upvalues(struct scan *s, const unsigned char parent[256], unsigned char env[256]) {
  memset(env, 0, 256);
  size_t n = get_size(s);
  for (size_t i = 0; i < n && !s->bad; i++) {
    const unsigned char *u = skip(s, 3); /* in the parent's stack?, index, kind */
    if (i < 256 && !u[0]) env[i] = parent[u[1]];
  }
}

/* Upvalues of the outermost function are what 'outer' says; of others, what they inherit from it.
 */
static void scan_function(struct scan *s, const unsigned char outer[256], int outermost, int whole,
                          int depth) {
  struct constants k;
  unsigned char env[256];
  if (depth > 220) s->bad = 1; /* deeper than Lua's parser goes */
  if (s->bad) return;
  get_string(s); /* source */
  get_size(s);   /* lines defined from and to */
  get_size(s);
  skip(s, 3); /* parameters, vararg, stack */
  size_t n = get_size(s);
  if (n > SIZE_MAX / 4) s->bad = 1;
  struct span code = {s->p, n * 4};
  skip(s, code.n);
  if (s->bad) return;
  get_constants(s, &k);
  get_upvalues(s, outer, env);
  if (outermost) memcpy(env, outer, sizeof env);
  if (s->bad) return;
  whole |= scan_code(s, code, k.first, k.n, env);
  if (whole) tell_constants(s, &k);
  for (n = get_size(s); n && !s->bad; n--) scan_function(s, env, 0, whole, depth + 1);
  skip_debug(s);
}

/* "\x1bLua", 5.4, the official format, a text that transfers in text mode would harm, and the
   widths of instructions, integers and floats; then one of each number. */
static int get_head(struct scan *s) {
  static const unsigned char head[] = {0x1b, 'L',  'u',  'a',  0x54, 0, 0x19, 0x93,
                                       '\r', '\n', 0x1a, '\n', 4,    8, 8};
  const unsigned char *p = skip(s, sizeof head);
  if (s->bad || memcmp(p, head, sizeof head) != 0) return -1;
  skip(s, 8 + 8 + 1);
  return s->bad ? -1 : 0;
}

int codec_code_scan(const unsigned char *dump, size_t len, const unsigned char env[256],
                    codec_found *found, void *arg) {
  struct scan s = {dump, dump + len, 0, found, arg};
  if (get_head(&s) < 0) return -1;
  scan_function(&s, env, 1, 0, 0);
  return s.bad ? -1 : 0;
}
