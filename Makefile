# plua: library, Lua module, program. SPDX-License-Identifier: MIT
# What must hold: all output lies below build/; a variant (sanitizer, small, other compiler) has a
# tree of its own, so that variants never mix; a changed flag rebuilds what it touches.

CC       ?= gcc#      the compiler: gcc or clang
CFLAGS   ?= $(if $(COV),-O0,-O2) -g# its options, and CPPFLAGS
LDFLAGS  ?=#          options for linking
WERROR   ?= -Werror#  empty: warnings do not stop the build
SAN      ?=#          a sanitizer: address (with undefined), thread, undefined
SMALL    ?=#          1: tiny limits, so that specs meet every edge
LTO      ?= $(if $(clang)$(SAN)$(SMALL)$(FAIL)$(COV),,1)# 1: the program and the module are optimised as a whole
FAIL     ?=#          1: failpoints, read from PLUA_FAIL
COV      ?=#          1: counts which lines run, for `make coverage`
LUA_PC   ?= lua5.4#   the pkg-config name of the Lua to build with
LUA_DIR  ?=#          or: a prefix (include, lib) or a source tree (src) of Lua 5.4
PREFIX   ?= /usr/local# where install puts things, and finds them later
DESTDIR  ?=#          stands before PREFIX, for packages
SPEC     ?= $(filter-out $(if $(FAIL),,spec/fail_spec.lua),$(sort $(wildcard spec/*_spec.lua)))# the specs that test runs: spec/map_spec.lua
SPEC_TIME ?= $(if $(SAN),900,300)# seconds that one spec file may take
COVERAGE ?= 95#      the share of core's lines that specs must run, in percent
MUTANTS  ?= 24#      flipped comparisons to try; all: each
FUZZ_TIME ?= 60#      seconds for each fuzz target
RUNS     ?= 5#        bench: repetitions of each case
CASE     ?=#          bench: a pattern of the cases to run, such as oneshot or skew
COMPARE  ?=#          bench: the bench.json of an earlier run to compare with
V        ?=#          1: shows the commands
# B=build/mine on the command line gives a build tree of one's own.

# What a knob names must be there.
there = $(if $(wildcard $2),,$(error $1))
$(foreach s,$(SPEC),$(call there,SPEC=$s: there is no such file,$s))
ifneq ($(LUA_DIR),)
$(call there,LUA_DIR=$(LUA_DIR): no Lua there: found neither include/lua.h nor src/lua.h in it,\
  $(LUA_DIR)/include/lua.h $(LUA_DIR)/src/lua.h)
$(call there,LUA_DIR=$(LUA_DIR): no built Lua there: found no liblua.a or liblua.so in lib or src,\
  $(foreach d,lib src,$(LUA_DIR)/$d/liblua.a $(LUA_DIR)/$d/liblua.so))
endif

ifeq ($(origin CC),default)
CC := gcc
endif
VERSION := $(shell sed -n 's/^.define PLUA_VERSION "\(.*\)"/\1/p' core/plua.h)
SOMAJOR := $(firstword $(subst ., ,$(VERSION)))
LUA_V   := 5.4
LUA     ?= $(or $(wildcard $(LUA_DIR:%=%/bin/lua) $(LUA_DIR:%=%/src/lua)),lua5.4)

none    :=
clang   := $(findstring clang,$(notdir $(firstword $(CC))))
variant := $(strip $(clang) $(SAN) $(SMALL:1=small) $(FAIL:1=fail) $(COV:1=cov) \
           $(if $(LUA_DIR),ownlua))
B       := build$(if $(variant),/$(subst $(none) $(none),-,$(variant)))

MAIN    := $(wildcard core/main*.c)
SRC     := $(filter-out $(MAIN) $(if $(FAIL),,core/fail.c),$(wildcard core/*.c))
OBJ     := $(SRC:core/%.c=$(B)/core/%.o) $(if $(COV),$(B)/cover/exit.o)
LUA_SRC := $(sort $(wildcard lua/plua/*.lua))
MAN     := $(wildcard core/plua.1)
KIT     := $(patsubst spec/kit/%.c,$(B)/kit/%.so,$(wildcard spec/kit/*.c))
HOST    := $(patsubst spec/host/%.c,$(B)/host/%,$(wildcard spec/host/*.c))
SHIM    := $(patsubst spec/preload/%.c,$(B)/preload/%.so,$(wildcard spec/preload/*.c))
BENCH   := $(B)/simulate $(B)/bench/probe $(B)/bench/pidfd.so $(B)/kit/codectest.so \
           $(if $(wildcard /usr/lib/ocaml/parmap/parmap.cmxa),$(B)/bench/parmap)
FORMATTED := $(wildcard core/*.[ch] spec/*/*.[ch] scripts/*.c scripts/*/*.c)
FUZZ    := $(patsubst spec/fuzz/%.c,build/fuzz/%,$(wildcard spec/fuzz/*.c))
SO      := libplua.so.$(VERSION)

# A line for each thing made, or the command.
made     = $(if $(V),,@echo '  $@' &&)
# Lua is asked for when a command needs it, not before: `make run` may have to install it first.
pc       = $(shell pkg-config $(1) $(LUA_PC) 2>/dev/null)
pc_lib   = $(patsubst -l%,%,$(filter -l%,$(call pc,--libs)))
archive  = $(findstring /,$(shell $(CC) -print-file-name=lib$(1).a))
lua_cflags = $(if $(LUA_DIR),-I$(LUA_DIR)/include -I$(LUA_DIR)/src,$(call pc,--cflags))
# The program carries Lua in itself where an archive of it exists: calls cost less than through a
# shared library.
lua_libs = $(if $(LUA_DIR),-L$(LUA_DIR)/lib -L$(LUA_DIR)/src -llua,$(call pc,--libs-only-L) \
           $(foreach l,$(pc_lib),$(if $(call archive,$l),-l:lib$l.a,-l$l))) -lm -ldl
lua_shared = $(if $(LUA_DIR),,$(call pc,--libs))
# Worked out once, at first use.
LUA_CFLAGS = $(eval LUA_CFLAGS := $(lua_cflags))$(LUA_CFLAGS)
LUA_LIBS   = $(eval LUA_LIBS := $(lua_libs))$(LUA_LIBS)
LUA_SHARED = $(eval LUA_SHARED := $(lua_shared))$(LUA_SHARED)

undefined     := undefined,float-cast-overflow
san_address   := -fsanitize=address,$(undefined)
san_thread    := -fsanitize=thread
san_undefined := -fsanitize=$(undefined)
SANFLAGS := $(if $(SAN),$(or $(san_$(SAN)),$(error SAN=$(SAN): use address, thread or undefined)) \
            -fno-omit-frame-pointer -fno-sanitize-recover=$(undefined))
ifeq ($(clang)-$(SAN),clang-thread)
$(error SAN=thread needs gcc: the runtime of clang cannot be loaded into a running lua5.4)
endif
ifneq ($(and $(clang),$(SAN)),)
RUNTIME  = $(dir $(shell $(CC) -print-file-name=libclang_rt.asan-x86_64.so))
SANLINK  = -shared-libsan -Wl,-rpath,$(RUNTIME)
endif

# Workers leave by _exit, so that has to write the counters.
COVFLAGS := $(if $(COV),--coverage -fprofile-update=atomic)
COVLINK  := $(if $(COV),--coverage -Xlinker --wrap=_exit)

WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wswitch-enum -Wvla \
            -Wpointer-arith $(WERROR)
FORTIFY  := $(if $(SAN)$(filter -O0,$(CFLAGS)),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
HARDEN   := -fstack-protector-strong $(FORTIFY)
DEFINES  := -D_GNU_SOURCE= $(if $(SMALL),-DPLUA_SMALL) $(if $(FAIL),-DPLUA_FAILPOINTS)
# -iquote: core/sched.h must not stand before the system's <sched.h>.
COMPILE   = $(CC) -std=c11 $(DEFINES) $(WARN) -fPIC -fno-plt -fvisibility=hidden $(HARDEN) \
            $(CFLAGS) $(CPPFLAGS) $(SANFLAGS) $(COVFLAGS) $(LUA_CFLAGS) -iquote core
LINK      = $(CC) $(CFLAGS) $(SANFLAGS) $(SANLINK) $(COVLINK) -Wl,-z,relro,-z,now $(LDFLAGS)
# Fat objects: whoever links the archive need not know of this.
WHOLE     = $(if $(LTO),-flto=auto -ffat-lto-objects)
APART     = $(if $(LTO),-fno-lto)
# A module binds its own calls to itself, also where the program brings a second copy.
MODULE    = $(LINK) -shared -Wl,-Bsymbolic

# These goals install what they need before anything is looked up.
needs := $(if $(filter run,$(MAKECMDGOALS)),run) $(if $(filter test,$(MAKECMDGOALS)),test) \
         $(if $(filter lint,$(MAKECMDGOALS)),lint) $(if $(filter bench simulate,$(MAKECMDGOALS)),run) \
         $(if $(filter fuzz,$(MAKECMDGOALS)),fuzz) \
         $(if $(filter coverage,$(MAKECMDGOALS)),test coverage) \
         $(if $(filter mutate,$(MAKECMDGOALS)),test) \
         $(if $(filter check,$(MAKECMDGOALS)),test fuzz)
ifneq ($(strip $(needs)),)
ifeq ($(findstring n,$(firstword -$(MAKEFLAGS))),)
$(shell CC='$(CC)' scripts/deps.sh $(needs) >&2)
ifneq ($(.SHELLSTATUS),0)
$(error what is named above is missing)
endif
endif
endif

.PHONY: all run test lint lint-lua lint-layers lint-mutants lint-sh lint-format lint-c lint-tidy \
  bench bench-deps bench-readme simulate doc format fuzz install uninstall clean help lengths \
  kit check check-address check-thread check-small check-fail check-fuzz check-torture \
  coverage mutate
.DELETE_ON_ERROR:
.SECONDARY:

all: $(B)/plua $(B)/libplua.a $(B)/$(SO) $(B)/lua/plua/core.so  ## library, Lua module, program

run: all  ## the main job: identifiers in the C headers of this machine
	$(B)/plua scripts/identifiers.lua

test: all kit  ## all specs; SPEC=spec/one_spec.lua for one; SAN= SMALL=1 FAIL=1
	@B='$(B)' LUA='$(LUA)' CC='$(CC)' SAN='$(SAN)$(COV:1=coverage)' FAIL='$(FAIL)' SPEC_TIME='$(SPEC_TIME)' PLUA_CC='$(CC)' \
	  PLUA_MAKE="CC='$(CC)' SAN= SMALL= FAIL= LUA_DIR='$(LUA_DIR)' $(if $(variant),,B='$(B)')" \
	  MAKEFLAGS= scripts/test.sh $(SPEC)

# What a plain run cannot see: all of these, though one fails.
check:  ## specs under sanitizers, with tiny limits and failpoints, a fuzz: some minutes
	@$(MAKE) --no-print-directory -k -j 1 check-address check-thread check-small check-fail \
	  check-fuzz check-torture
specs = $(1:%=spec/%_spec.lua)
check-address:
	@$(call variant_test,SAN=address,$(CHECK_ADDRESS))
check-thread:
	@$(call variant_test,SAN=thread,ring board)
check-small:
	@$(call variant_test,SMALL=1,codec map pool future recovery capi)
check-fail:
	@$(call variant_test,FAIL=1,matrix fail)
check-fuzz:
	@echo '== fuzz'
	@if $(MAKE) fuzz FUZZ_TIME=60 >build/fuzz.log 2>&1; then echo '1 passed, 0 failed'; \
	  else tail -n 40 build/fuzz.log; echo '0 passed, 1 failed'; exit 1; fi
check-torture: all
	@echo '== torture'
	@if timeout -k 5 120 $(B)/plua scripts/torture.lua 20; then echo '1 passed, 0 failed'; \
	  else echo '0 passed, 1 failed'; exit 1; fi

# The other specs build, install or read the sources, or run no line that these do not.
COVER := ring sched board store owner proc lost codec codec_gc golden fallback cpus errors map \
         pool future job cli capi inject init options output weight retries signals strays \
         spare timeout recovery small memory
coverage:  ## which lines and branches of core the specs run; COVERAGE= is the least
	@rm -f build/cov/core/*.gcda
	@$(call variant_test,COV=1 CC=gcc,$(COVER))
	gcovr -r . build/cov/core --filter core/ --branches
	gcovr -r . build/cov/core --filter core/ --print-summary --fail-under-line $(COVERAGE) \
	  --txt build/coverage.txt --html-details build/cov/report.html

mutate: all kit  ## flips comparisons: does a spec turn red? MUTANTS=all for each
	$(LUA) scripts/mutate.lua $(B) $(MUTANTS)

variant_test = echo '== $1' && \
  $(MAKE) --no-print-directory -j "$$(nproc)" $1 all kit >/dev/null && \
  $(MAKE) --no-print-directory $1 test SPEC='$(call specs,$2)'
CHECK_ADDRESS := codec codec_gc golden map pool future errors capi ring sched board store owner proc \
                 recovery memory output weight retries

kit: $(KIT) $(HOST) $(SHIM) $(BENCH)  ## what the specs load and start

lint: lint-lua lint-layers lint-mutants lint-sh lint-format lint-c lint-tidy  ## style, static checks, layers
lint-lua:
	luacheck -q lua scripts spec
lint-layers:
	$(LUA) scripts/layers.lua
lint-mutants:
	$(LUA) scripts/mutate.lua $(B) none
lint-sh:
	shellcheck .ci/run $(wildcard scripts/*.sh scripts/bench/peers/*.sh)
lint-format:
	clang-format --dry-run -Werror $(FORMATTED)
lint-c:
	cppcheck -q --std=c11 --error-exitcode=1 --inline-suppr \
	  --enable=warning,performance,portability -D_GNU_SOURCE \
	  '-D_Noreturn=__attribute__((noreturn))' core
lint-tidy:
	@echo clang-tidy core/*.c
	@printf '%s\0' $(wildcard core/*.c) | xargs -0 -n 1 -P "$$(nproc)" sh -c \
	  'clang-tidy --quiet "$$0" -- -std=c11 -D_GNU_SOURCE -DPLUA_FAILPOINTS -iquote core \
	  $(LUA_CFLAGS) 2>/dev/null'

format:  ## lays the C files out as lint wants them
	clang-format -i $(FORMATTED)

bench: all $(BENCH)  ## how fast, beside its peers: RUNS=5 CASE=pattern COMPARE=old.json
	$(B)/plua scripts/bench.lua --runs='$(RUNS)' --case='$(CASE)' --compare='$(COMPARE)'

bench-deps:  ## installs the peers that bench measures beside plua
	scripts/deps.sh bench

simulate: all $(B)/simulate  ## 10,000 workers and 1e8 items in virtual time; draws how it scales
	$(B)/plua scripts/bench/scale.lua

bench-readme:  ## puts the table and the picture of the last bench into the README
	$(B)/plua scripts/bench.lua --readme

doc: $(wildcard core/plua.h) $(LUA_SRC)  ## the reference, into build/doc
	$(LUA) scripts/doc.lua build/doc $^

lengths:  ## how long functions and files are
	$(LUA) scripts/lengths.lua core/*.[ch] lua/plua/*.lua scripts/*.lua

clean:  ## removes build/
	rm -rf build

help:  ## this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):.*## */  \1\t/p' Makefile | expand -t 16
	@echo 'Knobs, as in make test SAN=address:'
	@sed -n 's/^\([A-Z_]*\) *?=[^#]*# */  \1\t/p' Makefile | expand -t 16
	@printf '  B\ta build tree of its own, such as build/mine\n' | expand -t 16

# ---- build -------------------------------------------------------------------------------------

# Holds the command line; touched only when that has changed.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@$(if $(LUA_DIR),,pkg-config --exists $(LUA_PC) || { \
	  echo "plua: no Lua of the pkg-config name '$(LUA_PC)': run scripts/deps.sh build," \
	  "or name a Lua 5.4 by LUA_PC= or LUA_DIR=" >&2; exit 1; })
	@printf '%s\n' '$(COMPILE) $(WHOLE) $(LINK) $(LUA_LIBS)' | cmp -s - $@ || \
	  printf '%s\n' '$(COMPILE) $(WHOLE) $(LINK) $(LUA_LIBS)' >$@
.PHONY: FORCE
FORCE:

$(B)/core/%.o: core/%.c $(B)/flags
	@mkdir -p $(@D)
	$(made) $(COMPILE) $(WHOLE) -MMD -MP -c -o $@ $<

$(B)/cover/%.o: spec/cover/%.c $(B)/flags
	@mkdir -p $(@D)
	$(made) $(CC) -std=c11 $(WARN) -fPIC -O2 -c -o $@ $<

# Compiled by the Lua that the program gets; text only where that cannot run here.
$(B)/modules.c: scripts/embed.lua $(B)/embed $(LUA_SRC) $(B)/modules.list
	$(made) $(B)/embed scripts/embed.lua $@ $(LUA_SRC) || \
	  $(LUA) scripts/embed.lua $@ $(LUA_SRC)

$(B)/embed: scripts/embed.c $(B)/flags
	@mkdir -p $(@D)
	$(made) $(CC) -std=c11 $(DEFINES) $(WARN) -O1 $(LUA_CFLAGS) -o $@ $< $(LUA_LIBS)

# The list of inputs is an input too: a file that is gone must vanish from the archive.
$(B)/modules.list: FORCE
	@mkdir -p $(@D)
	@echo '$(LUA_SRC)' | cmp -s - $@ || echo '$(LUA_SRC)' >$@
$(B)/objects.list: FORCE
	@mkdir -p $(@D)
	@echo '$(OBJ)' | cmp -s - $@ || echo '$(OBJ)' >$@

$(B)/core/modules.o: $(B)/modules.c $(B)/flags
	@mkdir -p $(@D)
	$(made) $(COMPILE) -c -o $@ $<

$(B)/libplua.a: $(OBJ) $(B)/objects.list
	@rm -f $@
	$(made) $(AR) rcs $@ $(OBJ)

$(B)/$(SO): $(OBJ) $(B)/objects.list
	$(made) $(MODULE) $(APART) -Wl,-soname,libplua.so.$(SOMAJOR) -o $@ $(OBJ) $(LUA_SHARED)
	@ln -sf $(SO) $(B)/libplua.so.$(SOMAJOR)
	@ln -sf libplua.so.$(SOMAJOR) $(B)/libplua.so

# Lua's own functions stay undefined: the interpreter that loads the module has them.
$(B)/lua/plua/core.so: $(OBJ) $(B)/objects.list
	@mkdir -p $(@D)
	$(made) $(MODULE) $(WHOLE) -o $@ $(OBJ)

$(B)/plua: $(MAIN:%.c=$(B)/%.o) $(B)/core/modules.o $(B)/libplua.a
	$(made) $(LINK) $(WHOLE) -Wl,-E -o $@ $^ $(LUA_LIBS)

$(B)/kit/%.so: spec/kit/%.c $(B)/libplua.a $(B)/flags
	@mkdir -p $(@D)
	$(made) $(COMPILE) $(APART) -MMD -MP -fvisibility=default -shared -Wl,-Bsymbolic $(SANLINK) \
	  $(COVLINK) -o $@ $< \
	  $(B)/libplua.a -pthread

$(B)/host/%: spec/host/%.c $(B)/libplua.a $(B)/flags
	@mkdir -p $(@D)
	$(made) $(COMPILE) $(APART) -MMD -MP $(SANLINK) $(COVLINK) -o $@ $< $(B)/libplua.a $(LUA_LIBS) -pthread

# Preloaded into programs, so without sanitizers.
$(B)/preload/%.so: spec/preload/%.c $(B)/flags
	@mkdir -p $(@D)
	$(made) $(CC) -std=c11 $(DEFINES) $(WARN) -O2 -g -fPIC -shared -o $@ $< -ldl

# Of the benchmark: what the machine can do, and what counts instructions; no part of the library.
$(B)/bench/probe: scripts/bench/probe.c $(B)/flags
	@mkdir -p $(@D)
	$(made) $(CC) -std=c11 $(DEFINES) $(WARN) -O2 -o $@ $<

$(B)/bench/pidfd.so: scripts/bench/pidfd.c $(B)/flags
	@mkdir -p $(@D)
	$(made) $(CC) -std=c11 $(DEFINES) $(WARN) -O2 -fPIC -shared -o $@ $< -ldl

$(B)/bench/parmap: scripts/bench/peers/pool.ml
	@mkdir -p $(@D)
	@cp $< $(@D)/pool.ml
	$(made) cd $(@D) && ocamlfind ocamlopt -O3 -package parmap,unix -linkpkg pool.ml -o $(@F) \
	  2>/dev/null

# The real pool over workers that exist in virtual time: the backend and the clock are its own.
$(B)/simulate: scripts/simulate.c $(B)/libplua.a $(B)/flags
	$(made) $(COMPILE) $(APART) $(SANLINK) -Wl,--wrap=now_ns,--wrap=local_open -o $@ $< \
	  $(B)/libplua.a $(LUA_LIBS)

-include $(OBJ:.o=.d) $(MAIN:%.c=$(B)/%.d) $(KIT:.so=.d) $(HOST:=.d)

# ---- fuzzing: the library itself is instrumented -----------------------------------------------

fuzz: $(FUZZ)  ## each fuzz target for FUZZ_TIME seconds
	@set -e; for f in $(notdir $(FUZZ)); do mkdir -p build/fuzz/$$f.corpus; \
	  build/fuzz/$$f -max_total_time=$(FUZZ_TIME) -print_final_stats=1 \
	  -artifact_prefix=build/fuzz/$$f. build/fuzz/$$f.corpus \
	  $$(ls -d spec/fuzz/corpus 2>/dev/null); done

build/fuzz/%: spec/fuzz/%.c $(SRC) $(wildcard core/*.h)
	@mkdir -p $(@D)
	clang -std=c11 $(DEFINES) -g -O1 -fsanitize=fuzzer,address,undefined \
	  -fno-sanitize-recover=undefined $(LUA_CFLAGS) -iquote core -o $@ $< $(SRC) $(LUA_LIBS)

# ---- install -----------------------------------------------------------------------------------

# In quotes throughout: either may hold spaces.
root := $(DESTDIR)$(PREFIX)
from := $(if $(filter /%,$(PREFIX)),,$(CURDIR)/)$(PREFIX)
install: all  ## into DESTDIR/PREFIX
	install -d '$(root)/bin' '$(root)/include' '$(root)/lib/pkgconfig' \
	  '$(root)/lib/lua/$(LUA_V)/plua' '$(root)/share/lua/$(LUA_V)/plua' '$(root)/share/man/man1'
	install -m 755 $(B)/plua '$(root)/bin/'
	install -m 644 core/plua.h '$(root)/include/'
	install -m 644 $(B)/libplua.a '$(root)/lib/'
	install -m 755 $(B)/$(SO) '$(root)/lib/'
	ln -sf $(SO) '$(root)/lib/libplua.so.$(SOMAJOR)'
	ln -sf libplua.so.$(SOMAJOR) '$(root)/lib/libplua.so'
	printf '%s\n' 'prefix=$(from)' 'libdir=$${prefix}/lib' 'includedir=$${prefix}/include' '' \
	  'Name: plua' 'Description: runs Lua functions over data in forked worker processes' \
	  'Version: $(VERSION)' $(if $(LUA_DIR),,'Requires.private: $(LUA_PC)') \
	  'Libs: -L"$${libdir}" -lplua$(if $(LUA_DIR), $(strip $(LUA_LIBS)))' \
	  'Cflags: -I"$${includedir}"' >'$(root)/lib/pkgconfig/plua.pc'
	install -m 755 $(B)/lua/plua/core.so '$(root)/lib/lua/$(LUA_V)/plua/'
	$(if $(LUA_SRC),install -m 644 $(LUA_SRC) '$(root)/share/lua/$(LUA_V)/plua/')
	$(if $(MAN),install -m 644 $(MAN) '$(root)/share/man/man1/')

uninstall:  ## removes what install wrote
	rm -f '$(root)/bin/plua' '$(root)/include/plua.h' '$(root)/lib/libplua.a' \
	  '$(root)/lib/libplua.so' '$(root)/lib/libplua.so.$(SOMAJOR)' '$(root)/lib/$(SO)' \
	  '$(root)/lib/pkgconfig/plua.pc' '$(root)/share/man/man1/plua.1'
	rm -rf '$(root)/lib/lua/$(LUA_V)/plua' '$(root)/share/lua/$(LUA_V)/plua'
