-- Pi by the Monte Carlo method. plua seeds math.random for each item, so the digits are the same
-- for any number of workers. Usage: pi.lua [blocks [seed]]         SPDX-License-Identifier: MIT
local plua = require "plua"

local blocks <const> = math.tointeger(tonumber(arg[1] or 100))
local seed <const> = math.tointeger(tonumber(arg[2] or 1))
if not blocks or blocks < 1 or not seed then
  error("usage: plua pi.lua [blocks [seed]], a positive and any integer", 0)
end
local POINTS <const> = 100000 -- in a block

--- How many of a block's points lie in the quarter of the circle.
local function hits()
  local random <const>, inside = math.random, 0
  for _ = 1, POINTS do
    local x <const>, y <const> = random(), random()
    if x * x + y * y < 1 then inside = inside + 1 end
  end
  return inside
end

local function add(a, b) return a + b end
local inside <const> = plua.mapreduce(hits, add, plua.range(1, blocks), { seed = seed })
local points <const> = blocks * POINTS
local p <const> = inside / points
print(("%.6f +- %.6f from %d points"):format(4 * p, 4 * (p * (1 - p) / points) ^ 0.5, points))
