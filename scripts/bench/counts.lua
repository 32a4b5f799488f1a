-- Instructions an item, in the parent and in a worker, counted by callgrind: they repeat where the
-- clock does not. Two runs that differ in the number of items only; the difference is told.
-- Knows valgrind. Does not know cases' meaning. SPDX-License-Identifier: MIT
local peers <const> = require "peers"

-- The hot paths; ours.lua runs COUNTED items, then twice as many.
local PATHS <const> = { "oneshot", "warm", "chunk1", "async", "trip", "lists", "strings" }
local COUNTED <const> = { oneshot = 20000, warm = 20000, chunk1 = 4000, async = 4000, trip = 1000,
  lists = 100, strings = 100 }

--- The sums of one run: the parent's, and its workers' together.
local function collect(dir)
  local parent, workers = nil, 0
  local first <const> = tonumber(peers.output("cat " .. dir .. "/pid"))
  local pipe <const> = assert(io.popen("ls " .. dir .. "/callgrind.*"))
  for path in pipe:lines() do
    local pid <const> = tonumber(path:match "%d+$")
    local sum
    for line in io.lines(path) do sum = tonumber(line:match "^summary: (%d+)") or sum end
    if pid == first then parent = sum else workers = workers + (sum or 0) end
  end
  pipe:close()
  return parent, workers
end

local function count(plua, here, build, path, n)
  local dir <const> = build .. "/bench/counts"
  os.execute(("rm -rf %s && mkdir -p %s"):format(dir, dir))
  local ok <const> = os.execute(("echo $$ >%s/pid; exec env LD_PRELOAD=%s/bench/pidfd.so " ..
    "valgrind -q --tool=callgrind --trace-children=yes --callgrind-out-file=%s/callgrind.%%p " ..
    "%s %s/bench/ours.lua count %s %d >%s/log 2>&1"):format(dir, build, dir, plua, here, path, n,
    dir))
  if not ok then return nil end
  return collect(dir)
end

--- path -> {parent, worker}: instructions an item. Empty, and says so, where they cannot be had.
return function(plua, here, build, chosen)
  local all <const> = {}
  if not peers.output "valgrind --version" then
    print "instructions: not counted, valgrind is not installed"
    return all
  end
  for _, path in ipairs(PATHS) do
    if chosen { id = path, name = path } then
      local n <const> = COUNTED[path]
      local parent1 <const>, worker1 <const> = count(plua, here, build, path, n)
      local parent2 <const>, worker2 <const> = count(plua, here, build, path, 2 * n)
      if parent1 and parent2 then
        all[path] = { parent = (parent2 - parent1) / n, worker = (worker2 - worker1) / n }
        print(("instructions/item %-9s parent %8.0f, worker %8.0f"):format(path, all[path].parent,
          all[path].worker))
      else
        print("instructions/item " .. path .. ": not counted: see " .. build .. "/bench/counts/log")
      end
    end
  end
  return all
end
