/* codec.h: Lua values as bytes, and back. Knows Lua values and bytes; nothing of processes.
   SPDX-License-Identifier: MIT */
#ifndef PLUA_CODEC_H
#define PLUA_CODEC_H

#include <stddef.h>

struct lua_State;
struct plua_out;

/* Prepares L: the registry tables of names (C functions, modules) and of registered metatables.
   Idempotent. Raises Lua errors (memory). */
void codec_open(struct lua_State *L);

/* Writes the n values at the top of the stack as one message; the stack is left as it was.
   0, or a negative code with what had been written left to the caller to drop: then one string is
   pushed that tells what cannot cross and where (".conn.socket: userdata (FILE*)"; with several
   values "value 2.x: ..."). A global that cannot cross is no failure: a stub goes in its place.
   Runs no metamethod save the __plua_* hooks, and those protected. Raises only memory errors and
   interrupts. */
int codec_write(struct lua_State *L, int n, struct plua_out *out);

/* Reads one message: pushes its values and answers how many; *used (may be NULL) is how many bytes
   the message took. A negative code: no value is pushed, but one string that says why.
   PLUA_EFORMAT: not a message; PLUA_ECODEC: it names a metatable, a module or a function that this
   state does not have, or a hook failed; PLUA_EDEPTH. Survives any bytes, also bytes that change
   while it reads, unless they hold a function: Lua does not verify bytecode, so such messages must
   come from a process of ours. May run code: __plua_load, and 'require' for a module that is not
   loaded yet. Raises what codec_write does. */
int codec_read(struct lua_State *L, const void *bytes, size_t len, size_t *used);

/* The same for bytes from anywhere: refuses functions (PLUA_ECODEC) and requires nothing anew.
   Hooks of registered metatables still run. */
int codec_read_plain(struct lua_State *L, const void *bytes, size_t len, size_t *used);

/* The same for showing values to people: runs no hook, so an object that needs one, and all that
   holds it, is refused (PLUA_ECODEC); requires nothing anew. */
int codec_read_quiet(struct lua_State *L, const void *bytes, size_t len);

/* Where the code of the Lua function at the top lies, if it is code that crosses: as long as that
   function lives, one of the same address was made at the same place. NULL: it cannot be told, or
   the function goes by a name. Raises only memory errors. */
const void *codec_code(struct lua_State *L);

/* Whether the error at the top is an interrupt, which Ctrl-C raises in whatever runs then: for no
   value or item to answer for. The programs lua and plua raise the same text. */
int codec_interrupted(struct lua_State *L);

/* Pushes a table as lua_createtable does; memory for many items is asked for all at once. */
void codec_push_list(struct lua_State *L, int items, int fields);

/* Registers the metatable at the top of the stack under 'name': tables that carry it cross, and
   carry it on the other side. Pops it. Both sides must register the name. For the hooks
   __plua_save and __plua_load, by which other objects and userdata cross, see codec.c. */
void codec_register(struct lua_State *L, const char *name);

#endif
