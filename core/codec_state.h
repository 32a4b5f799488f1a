/* codec_state.h: what the codec keeps in a Lua state, between the writer and the reader.
   All of it hangs in the registry, C memory on userdata: an error of Lua's can leak nothing.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_STATE_H
#define PLUA_CODEC_STATE_H

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>

#include "base.h"
#include "codec.h"

_Static_assert(sizeof(lua_Integer) == 8 && sizeof(lua_Number) == 8,
               "messages hold integers and floats of 64 bits: Lua is built with others");

/* The registry's entries of the codec, each under the address of a byte of codec_keys. */
enum codec_key {
  KEY_METAS,  /* table: metatable -> name, name -> metatable; [1] = "__plua_save" */
  KEY_NAMES,  /* weak keys: module or function -> "module" or "module\0field" */
  KEY_DUMPS,  /* weak keys: function -> its dump */
  KEY_CODES,  /* weak values: where code lies -> a function that has a dump; or false: not told */
  KEY_LOADED, /* userdata: package.loaded as it was when KEY_NAMES had all of it; or nil */
  KEY_ENV,    /* metatable of private globals: falls back on the state's globals */
  KEY_STUB,   /* metatable of a global that could not cross; in it, the reason */
  KEY_ROOM,   /* metatable of working memory */
  KEY_WRITER, /* working memory of the writer */
  KEY_READER, /* working memory of the reader */
  KEY_COUNT
};

extern const char codec_keys[KEY_COUNT];

static inline int codec_push(lua_State *L, enum codec_key key) {
  return lua_rawgetp(L, LUA_REGISTRYINDEX, &codec_keys[key]);
}

/* Raises the error on top, which a protected call has ended with, if no value is to blame for it:
   memory, or an interrupt. */
void codec_blameless(lua_State *L, int status);

/* Makes the registry's table under 'key', whose keys ("k") or values ("v") are weak. */
void codec_open_weak(lua_State *L, enum codec_key key, const char *mode);

/* Working memory, used again from message to message. It may be busy: a hook that runs inside one
   message encodes another, or an error of Lua's has thrown the last user out. Then a fresh one
   takes its place, and the old one lives as long as a stack holds it. */
struct codec_room {
  int busy;
  int peek;                            /* Lua's memory may be looked into: see codec_peek.h */
  const struct ahead_strings *strings; /* of the state, if they are seen: see codec_ahead.h */
  void *frames;                        /* malloc'd; at most one user */
  size_t cap;
  void *heap; /* blocks of the writer's map */
};

/* Pushes the room under 'key', made if need be, and marks it busy. May raise (memory). */
void *codec_room_take(lua_State *L, enum codec_key key, size_t size);

/* Gives it back; memory beyond what small messages need is freed. */
void codec_room_give(struct codec_room *room);

/* Addresses met in a message, and where: see codec_map.c. */
struct codec_map_slot {
  const void *p;
  size_t at;
};
struct codec_map_region {
  uintptr_t number; /* of the region, plus 1; 0: free */
  uint32_t *leaf;
};
enum { CODEC_MAP_SMALL = 64 };
struct codec_map {
  struct codec_map_slot *slots; /* 'small' or a block */
  size_t mask, used;
  struct codec_map_region *regions; /* a block; NULL: there are few addresses, all in slots */
  size_t region_mask, region_used;
  struct codec_map_region last;
  unsigned char *room, *room_end; /* for leaves, zeroed */
  struct codec_map_slot small[CODEC_MAP_SMALL];
};

void codec_map_clear(struct codec_map *m, void **heap);
/* 1 and *at: p is known. 0: p is now known as being at 'here'. Or -ENOMEM. */
int codec_map_meet(struct codec_map *m, void **heap, const void *p, size_t here, size_t *at);
/* Forgets what was met at 'from' or later. */
void codec_map_forget(struct codec_map *m, size_t from);
/* Frees what a map has taken. */
void codec_map_free(void **heap);

/* ---- names (codec_name.c) ------------------------------------------------------------------- */

/* Makes the map of names fit for a message: looks for modules that are new since it was made.
   peek: Lua's memory may be looked into. */
void codec_names_refresh(lua_State *L, int peek);

/* Pushes the name of the module or function at the top, or pushes nothing: 1 or 0. A C function
   that is not found has all modules searched again. */
int codec_name_find(lua_State *L);

/* Pushes the module called 'name' (it is loaded if it is not yet, unless 'plain'). 0, or
   PLUA_ECODEC and a string is pushed that says why not. */
int codec_name_module(lua_State *L, const char *name, int plain);

/* ---- bytecode (codec_code.c) ---------------------------------------------------------------- */

/* Calls found(arg, name, len) for each name that a dumped function may look up in one of its
   upvalues whose entry in env[] is non-zero; names can come twice. 0, or -1 if the dump is not of
   the Lua that this file knows. */
typedef void codec_found(void *arg, const char *name, size_t len);
int codec_code_scan(const unsigned char *dump, size_t len, const unsigned char env[256],
                    codec_found *found, void *arg);

#endif
