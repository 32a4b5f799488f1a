-- The start: the cubes of 1 to 6 by a parallel map, by futures of a pool, and as a job.
-- Run it with  plua scripts/cubes.lua  and change the function.    SPDX-License-Identifier: MIT
local plua = require "plua"

local numbers <const> = { 1, 2, 3, 4, 5, 6 }
local function cube(x) return x * x * x end

-- By map: all results at once, in the order of the data.
print(table.concat(plua.map(cube, numbers), " "))

-- By futures: each call is submitted to a pool of workers, and its result is fetched when needed.
do
  local pool <close> = plua.pool()
  local futures = {}
  for i, x in ipairs(numbers) do futures[i] = pool:apply_async(cube, x) end
  for i, future in ipairs(futures) do io.write(future:get(), i < #futures and " " or "\n") end
end

-- As a job: plua maps the data and prints every result on a line of its own.
return { data = numbers, map = cube }
