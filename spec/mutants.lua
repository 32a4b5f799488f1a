-- Comparisons that can be flipped and nothing changes that anyone could see, and why.
-- Read by scripts/mutate.lua. SPDX-License-Identifier: MIT
return {
}
