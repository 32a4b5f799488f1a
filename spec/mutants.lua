-- Comparisons that can be flipped and nothing changes that anyone could see, and why.
-- A text is a whole line; nth says which of its operators of that kind is meant, if not the first.
-- Read by scripts/mutate.lua. SPDX-License-Identifier: MIT
local same <const> = "the smaller of two: where they are equal, either is right"

return {
  { file = "core/ring.c", op = "<", why = same,
    text = "uint64_t whole = rest < free ? rest : free;" },
  { file = "core/ring.c", op = "<", text = "if (free < rest || free - rest < need) return NULL;",
    why = "where free is rest, nothing is free before the rest, and a need is never 0" },
  { file = "core/ring.c", op = ">", why = same,
    text = "if (end > r->tail - r->head) end = r->tail - r->head;" },
  { file = "core/ring.c", op = ">", why = same, text = "if (end > limit) end = limit;" },
}
