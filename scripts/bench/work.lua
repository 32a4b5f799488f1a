-- What the items of the benchmark do: the same functions for plua and for the serial loop.
-- Knows data and functions. Does not know plua, clocks or peers. SPDX-License-Identifier: MIT
local work <const> = {}

-- Passes of `spin` that take about a millisecond; peers have numbers of their own.
work.MS = 150000

function work.cube(x) return x ^ 3 end

--- Computes for a while; the same work each time.
function work.spin(passes)
  local x = 0.5
  for _ = 1, passes do x = x * 1.0000001 + 1e-9 end
  return x
end

--- Makes much that does not live long: tables, strings, lists that grow.
function work.churn()
  local last
  for i = 1, 500000 do last = { i, i + 1 } end
  for i = 1, 300000 do last = "item " .. i end
  for i = 1, 400 do last = ("x"):rep(100):rep(i) end
  for _ = 1, 20 do
    last = {}
    for i = 1, 40000 do last[i] = i end
  end
  return last
end

--- The floats 1.0 .. n.
function work.floats(n)
  local list <const> = {}
  for i = 1, n do list[i] = i + 0.0 end
  return list
end

--- `n` strings of 1 MiB, no two alike.
function work.strings(n)
  local list <const> = {}
  for i = 1, n do list[i] = ("%016d"):format(i):rep((1 << 20) // 16) end
  return list
end

--- `n` records of mixed fields; some share a table.
function work.records(n)
  local list <const>, shared <const> = {}, { "new", "used" }
  for i = 1, n do
    list[i] = { id = i, name = "item " .. i, price = i * 0.25, ok = i % 2 == 0,
      tags = i % 10 == 0 and shared or { "a", i } }
  end
  return list
end

--- Forty short items and a long one at `place` (first, middle, last), in passes of `spin`.
function work.skewed(place)
  local list <const> = {}
  for i = 1, 40 do list[i] = 10 * work.MS end
  table.insert(list, ({ first = 1, middle = 21, last = 41 })[place], 400 * work.MS)
  return list
end

--- The shortest time in which `workers` that take items one by one, in order, can do them all.
function work.greedy(costs, workers)
  local free <const> = {}
  for w = 1, workers do free[w] = 0 end
  for _, cost in ipairs(costs) do
    table.sort(free)
    free[1] = free[1] + cost
  end
  return math.max(table.unpack(free))
end

return work
