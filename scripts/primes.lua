-- Counts the primes below n: each item is a range of numbers, the counts are added up. Workers
-- inherit the small primes to sieve with. Usage: primes.lua [n]    SPDX-License-Identifier: MIT
local plua = require "plua"

local n <const> = math.tointeger(tonumber(arg[1] or 1e6))
if not n or n < 0 then error(("n must be a whole number, not %q"):format(arg[1]), 0) end
local SPAN <const> = 20000

local small <const> = {} -- the primes up to the square root of n
for k = 2, math.floor(n ^ 0.5) + 1 do
  local prime = true
  for _, p in ipairs(small) do
    if p * p > k then break end
    if k % p == 0 then prime = false break end
  end
  if prime then small[#small + 1] = k end
end

--- Counts the primes in [first, first + SPAN) that are less than n.
local function count(first)
  local last <const> = math.min(first + SPAN, n) - 1
  local composite, primes = {}, 0
  for _, p in ipairs(small) do
    local multiple <const> = math.max(p * p, (first + p - 1) // p * p)
    for k = multiple, last, p do composite[k - first + 1] = true end
  end
  for k = math.max(first, 2), last do
    if not composite[k - first + 1] then primes = primes + 1 end
  end
  return primes
end

local function add(a, b) return a + b end
local total <const> = plua.mapreduce(count, add, plua.range(0, n - 1, SPAN)) or 0
print(("%d primes below %d"):format(total, n))
