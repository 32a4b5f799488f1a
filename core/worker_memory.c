/* worker_memory.c: what a worker's Lua state allocates from.
   New blocks come from an arena of the worker's own. Blocks that it inherited are read and written
   in place, but never freed: the free lists of whoever made them lie all over memory that is still
   shared with the parent, and stays so.
   Invariant: while an item's own code runs, the blocks of the worker's own take at most the cap;
   our own code between items is not refused anything, so it can tell of what happened.
   Knows Lua, the arena and the process's limits; does not know pools.
   SPDX-License-Identifier: MIT */
#include <lauxlib.h>
#include <lua.h>
#include <string.h>
#include <sys/resource.h>

#include "base.h"
#include "worker.h"
#include "worker_arena.h"

/* A sanitizer sees what it allocates itself, so there blocks pass through. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* What C code may map itself beside: its buffers, what libc maps ahead. */
#define SLACK ((size_t)8 << 20)
/* Garbage between two young collections, where the heap is large. */
#define MINOR ((size_t)8 << 20)

struct memory {
  struct arena *arena; /* NULL: blocks pass through to 'alloc' */
  lua_Alloc alloc;     /* what was found */
  void *ud;
  size_t passed;      /* bytes that passed through and are in use, as far as can be told */
  size_t limit;       /* for 'used'; the cap while an item runs */
  size_t cap;         /* SIZE_MAX: none */
  size_t thread_size; /* of a thread's block; 0: threads are not watched, or none was made */
  size_t data;        /* private writable memory that was inherited */
  const struct runner *r;
  size_t asked;   /* what was refused last since the item began; 0: nothing */
  size_t had;     /* what was in use then */
  bool refused;   /* it was the system that refused, not we */
  char where[96]; /* the line that asked; "": not known */
};

static struct memory *memory; /* NULL: not a worker */

static size_t used(const struct memory *m) {
  return m->arena ? arena_used(m->arena) : m->passed;
}

/* ---- limits --------------------------------------------------------------------------------- */

/* What is refused, and the line of the item that asked. Allocates nothing: we are inside Lua's
   allocator. */
static void *refuse(struct memory *m, size_t n, bool system) {
  lua_Debug ar;
  m->asked = n;
  m->had = used(m);
  m->refused = system;
  m->where[0] = '\0';
  for (int level = 0; m->r->L && lua_getstack(m->r->L, level, &ar); level++) {
    lua_getinfo(m->r->L, "Sl", &ar);
    if (ar.currentline <= 0 || is_ours(m->r->rt, &ar)) continue;
    snprintf(m->where, sizeof m->where, "%s:%d", ar.short_src, ar.currentline);
    break;
  }
  return NULL;
}

/* Whether the worker may have n bytes more. Where not, Lua collects all garbage and asks again. */
static bool allowed(const struct memory *m, size_t n) {
  return LIKELY(n <= m->limit && used(m) <= m->limit - n);
}

static size_t data_now(void) {
  char line[128];
  size_t kib = 0;
  FILE *f = fopen("/proc/self/status", "re");
  while (f && fgets(line, sizeof line, f))
    if (sscanf(line, "VmData: %zu kB", &kib) == 1) break;
  if (f) fclose(f);
  return kib << 10;
}

/* What C code may map beyond what was inherited: the cap too, the arena's idle memory apart. */
static bool limit_data(const struct memory *m) {
  struct rlimit now;
  if (SANITIZED || m->cap == SIZE_MAX || !m->data) return false;
  size_t idle = m->arena ? arena_mapped(m->arena) - arena_used(m->arena) : 0;
  size_t want = m->data + m->cap + SLACK + idle;
  if (want < m->cap || getrlimit(RLIMIT_DATA, &now) < 0) return false;
  if (now.rlim_max != RLIM_INFINITY && want > now.rlim_max) want = now.rlim_max;
  if (want == now.rlim_cur) return false;
  now.rlim_cur = want;
  return setrlimit(RLIMIT_DATA, &now) == 0;
}

/* ---- the allocator -------------------------------------------------------------------------- */

static void *pass(struct memory *m, void *block, size_t osize, size_t nsize) {
  size_t old = block ? osize : 0;
  if (nsize > old && !allowed(m, nsize - old)) return refuse(m, nsize - old, false);
  void *fresh = m->alloc(m->ud, block, osize, nsize);
  if (nsize && !fresh) return refuse(m, nsize, true);
  m->passed += nsize;
  m->passed -= old < m->passed ? old : m->passed; /* some was inherited */
  return fresh;
}

static void *take(struct memory *m, size_t n) {
  if (UNLIKELY(!allowed(m, n))) return refuse(m, n, false);
  void *block = arena_take(m->arena, n);
  if (UNLIKELY(!block) && limit_data(m)) block = arena_take(m->arena, n);
  return LIKELY(block != NULL) ? block : refuse(m, n, true);
}

/* A block of the arena's. */
static void *resize(struct memory *m, void *block, size_t size, size_t nsize) {
  if (nsize > size && !allowed(m, nsize - size)) return refuse(m, nsize - size, false);
  void *moved = arena_resize(m->arena, block, nsize);
  if (UNLIKELY(!moved) && limit_data(m)) moved = arena_resize(m->arena, block, nsize);
  return LIKELY(moved != NULL) ? moved : refuse(m, nsize, true);
}

/* An inherited block that shrinks stays; one that grows is copied, and what it was stays. */
static void *move_in(struct memory *m, void *block, size_t osize, size_t nsize) {
  if (nsize <= osize) return block;
  void *fresh = take(m, nsize);
  if (fresh) memcpy(fresh, block, osize);
  return fresh;
}

static void *serve_block(struct memory *m, void *block, size_t osize, size_t nsize) {
  if (UNLIKELY(!m->arena)) return pass(m, block, osize, nsize);
  if (!block) return take(m, nsize);
  if (!nsize) {
    arena_give(m->arena, block);
    return NULL;
  }
  size_t size = arena_size(m->arena, block);
  return size ? resize(m, block, size, nsize) : move_in(m, block, osize, nsize);
}

/* A new thread is zeroed, since a signal handler may set its hook before Lua has made it whole. */
static void watch_thread(struct memory *m, void *block, size_t size) {
  memset(block, 0, size);
  m->thread_size = size;
  stop_made(block);
}

static void *allocate(void *ud, void *block, size_t osize, size_t nsize) {
  struct memory *m = ud;
  if (!block) {
    if (!nsize) return NULL;
    block = serve_block(m, NULL, osize, nsize);
    if (UNLIKELY(osize == LUA_TTHREAD) && block && m->r->timed) watch_thread(m, block, nsize);
    return block;
  }
  if (UNLIKELY(osize == m->thread_size) && !nsize) stop_gone(block);
  return serve_block(m, block, osize, nsize);
}

/* What is made before the first item is used by every copy of this process, each of which has pages
   of its own of it: so it lies close together. Never freed, as what was inherited is not. */
static void *allocate_early(void *ud, void *block, size_t osize, size_t nsize) {
  struct memory *m = ud;
  void *early = !block && nsize && m->arena ? arena_lay(m->arena, nsize) : NULL;
  if (!early) return allocate(ud, block, osize, nsize);
  if (osize == LUA_TTHREAD && m->r->timed) watch_thread(m, early, nsize);
  return early;
}

/* ---- a worker's life ------------------------------------------------------------------------ */

/* Young collections do not look at what is old: they can be frequent, so that little is touched.
   Whole ones unshare all: they may wait until the heap is twice or thrice what it was. */
static void pace(lua_State *L) {
  size_t heap = ((size_t)lua_gc(L, LUA_GCCOUNT) << 10) + 1, percent = MINOR * 100 / heap;
  lua_gc(L, LUA_GCGEN, percent < 1 ? 1 : percent < 20 ? (int)percent : 20, 200);
  if (percent < 20) lua_gc(L, LUA_GCSTEP, 0); /* when the next one comes was settled before */
}

void memory_open(struct runner *r) {
  static struct memory m;
  void *ud;
  lua_Alloc found = lua_getallocf(r->host, &ud);
  if (found != allocate) { /* else: a worker's worker, whose parent's blocks are inherited */
    m.alloc = found;
    m.ud = ud;
  }
  struct arena *own = SANITIZED ? NULL : arena_open();
  if (own) m.arena = own;
  m.passed = m.asked = 0;
  m.limit = SIZE_MAX;
  m.cap = r->memory ? r->memory : SIZE_MAX;
  m.r = r;
  m.data = r->memory ? data_now() : 0;
  memory = &m;
  limit_data(&m);
  lua_setallocf(r->host, allocate_early, &m);
  if (r->generational) pace(r->host);
}

void memory_ready(const struct runner *r) {
  lua_setallocf(r->host, allocate, memory);
}

void memory_arm(const struct runner *r) {
  if (!memory || !r->process) return;
  memory->limit = memory->cap;
  memory->asked = 0;
}

void memory_disarm(const struct runner *r) {
  if (memory && r->process) memory->limit = SIZE_MAX;
}

void memory_settle(const struct runner *r) {
  struct memory *m = memory;
  if (!m || !r->process || m->cap == SIZE_MAX) return;
  size_t most = m->asked ? m->cap / 2 : m->cap - m->cap / 4;
  if (LIKELY(used(m) <= most)) return;
  lua_gc(r->L, LUA_GCCOLLECT);
  if (used(m) > most) *r->spent = 1;
}

/* ---- telling -------------------------------------------------------------------------------- */

/* Before 5.4.3 a buffer's error says where it was raised, as any other. */
static bool is_lua_own(const char *text) {
  const char *own = strstr(text, "not enough memory");
  return own && !own[strlen("not enough memory")] && (own == text || own[-1] == ' ');
}

bool memory_failed(lua_State *L, int status) {
  if (status == LUA_ERRMEM) return true;
  if (!memory || !memory->asked || lua_type(L, -1) != LUA_TSTRING) return false;
  return is_lua_own(lua_tostring(L, -1)); /* a coroutine's: it has passed through lua_error since */
}

/* 64M, 1.5G: as the option is written. */
static const char *human(char *text, size_t size, size_t bytes) {
  static const char units[] = "KMGT";
  if (bytes < 1024) {
    snprintf(text, size, "%zu bytes", bytes);
    return text;
  }
  double n = (double)bytes / 1024;
  unsigned u = 0;
  for (; n >= 1024 && u < 3; u++) n /= 1024;
  snprintf(text, size, n < 10 ? "%.2g%c" : "%.0f%c", n, units[u]);
  return text;
}

void memory_report(lua_State *L) {
  char cap[32], more[32], now[32];
  const struct memory *m = memory;
  if (!m || !m->asked) {
    lua_pushliteral(L, "not enough memory");
  } else if (m->refused) {
    lua_pushfstring(L, "not enough memory: the system refused %s more",
                    human(more, sizeof more, m->asked));
  } else {
    lua_pushfstring(L, "not enough memory: %s more, beside %s, is above the worker's limit of %s",
                    human(more, sizeof more, m->asked), human(now, sizeof now, m->had),
                    human(cap, sizeof cap, m->cap));
  }
  if (m && m->asked && m->where[0])
    lua_pushstring(L, m->where);
  else
    lua_pushnil(L);
}
