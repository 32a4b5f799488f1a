/* golden.c: messages kept in files, each byte of which is changed, one at a time, and each of which
   is cut after every byte: what comes of it is a value or an error, at a cost that its length
   allows. Reads by what the fuzzer runs, which aborts where that is not so.
   Arguments: files of spec/fuzz/corpus. SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "../fuzz/decode.c"
#include "plua.h"

static unsigned char whole[1 << 16], changed[1 << 16];

static size_t load(const char *name) {
  FILE *file = fopen(name, "rb");
  if (!file) {
    perror(name);
    exit(1);
  }
  size_t n = fread(whole, 1, sizeof whole, file);
  fclose(file);
  return n;
}

/* The first byte belongs to the fuzzer: with 1 in it, what was read is written and read again. */
static unsigned cut(size_t n) {
  for (size_t i = 0; i <= n; i++) LLVMFuzzerTestOneInput(whole, i);
  return (unsigned)n;
}

static unsigned change(size_t n) {
  unsigned count = 0;
  for (size_t i = 1; i < n; i++) {
    unsigned char b = whole[i];
    const unsigned char other[] = {
      0x00, 0x7f, 0x80, 0xff, (unsigned char)(b + 1), (unsigned char)(b - 1)};
    for (size_t k = 0; k < sizeof other; k++, count++) {
      memcpy(changed, whole, n);
      changed[i] = other[k];
      LLVMFuzzerTestOneInput(changed, n);
    }
  }
  return count;
}

/* A golden message that no reader takes any more tests nothing. With functions, it is refused. */
static void check_whole(const char *name, size_t n) {
  size_t used = 0;
  LLVMFuzzerTestOneInput(whole, n);
  int values = codec_read_plain(L, whole + 1, n - 1, &used);
  if (values == PLUA_ECODEC && strstr(lua_tostring(L, -1), "a function")) values = 1;
  if (values < 0) {
    fprintf(stderr, "%s: %s\n", name, lua_tostring(L, -1));
    exit(1);
  }
  lua_settop(L, 0);
}

int main(int argc, char **argv) {
  unsigned cuts = 0, changes = 0;
  for (int i = 1; i < argc; i++) {
    size_t n = load(argv[i]);
    check_whole(argv[i], n);
    cuts += cut(n);
    changes += change(n);
  }
  printf("ok: %d messages, %u cuts, %u changes\n", argc - 1, cuts, changes);
  if (L) lua_close(L);
  return 0;
}
