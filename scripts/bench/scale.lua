-- How plua scales beyond this machine: runs build/simulate over a grid of teams and jobs, prints
-- what came out, writes scale.json and draws scale.svg beside it.
--   plua scripts/bench/scale.lua [--items=N] [--readme]
-- items: those of the largest team, 1e8 if not told. readme: no run; copies the picture of the last
-- one to where the README shows it.
-- Knows the simulator's output. Does not know what it simulates. SPDX-License-Identifier: MIT
local here <const> = arg[0]:match "^(.*)/" or "."
package.path = here .. "/?.lua;" .. package.path
local json <const> = require "plua.json"
local peers <const> = require "peers"
local draw <const> = require "curves"

local build <const> = (arg[-1] or "build/plua"):match "^(.*)/" or "build"
local TEAMS <const> = { 10, 100, 1000, 10000 }
local MEAN_NS <const> = 10000 -- of an item
local COUNTED <const> = 1000  -- items a worker whose instructions are counted
local RESULT_NS <const> = 60  -- that the parent needs for a small result, as `make bench` shows

local items, readme = 1e8, false
for _, word in ipairs(arg) do
  items = tonumber(word:match "^%-%-items=(.*)$") or items
  readme = readme or word == "--readme"
end
if readme then
  assert(os.execute(("cp %s/scale.svg %s/scale.svg"):format(build, here)))
  return
end

local function simulate(workers, n, law, mean_ns, parent_ns, prefix)
  local command <const> = ("%s %s/simulate %d %.0f %s %d %d 1"):format(prefix or "", build, workers,
    n, law, mean_ns, parent_ns)
  local pipe <const> = assert(io.popen(command))
  local run <const> = { workers = workers, items = math.tointeger(n), law = law,
    mean_ns = mean_ns }
  for line in pipe:lines() do
    local name <const>, value <const> = line:match "^([%a_]+) (%-?[%d.]+)$"
    if name then run[name] = tonumber(value) end
  end
  assert(pipe:close(), command)
  return run
end

--- Instructions of pool, pump and sched for an item, which repeat where the clock does not; each
--- team has as many items a worker.
local function instructions(workers)
  local out <const> = build .. "/simulate.callgrind"
  local n <const> = COUNTED * workers
  simulate(workers, n, "pareto", MEAN_NS, 0,
    "valgrind -q --tool=callgrind --callgrind-out-file=" .. out)
  local pipe <const> = assert(io.popen("callgrind_annotate --auto=no --threshold=100 " .. out))
  local sum = 0
  for line in pipe:lines() do
    local count <const>, file <const> = line:match "^ *([%d,]+) .-core/(%a+)%.c:"
    if count and ("pool pump sched places watch"):find(file) then
      sum = sum + tonumber((count:gsub(",", "")))
    end
  end
  pipe:close()
  return sum / n
end

local LINE <const> = "%-10s %7s %12s %12s %10s %9s %10s %9s"

local function show(run)
  print(LINE:format(run.law, run.workers, run.items, ("%.1f ms"):format(run.makespan_ns / 1e6),
    ("%.4f"):format(run.makespan_ns / run.greedy_ns), ("%.1f"):format(run.parent_ns_per_item),
    ("%d kB"):format(run.memory_bytes // 1024), run.divided))
end

--- Teams of growing size, each with as many items a worker.
local function grid()
  local runs <const> = {}
  for _, law in ipairs { "pareto", "lognormal" } do
    for _, workers in ipairs(TEAMS) do
      local run <const> = simulate(workers, items * workers // TEAMS[#TEAMS], law, MEAN_NS, 0)
      runs[#runs + 1] = run
      show(run)
    end
  end
  return runs
end

--- The same team with ever more items.
local function longer()
  local runs <const> = {}
  for _, n in ipairs { 1e5, 1e6, 1e7 } do
    runs[#runs + 1] = simulate(100, math.min(n, items), "pareto", MEAN_NS, 0)
    show(runs[#runs])
  end
  return runs
end

--- How much of the workers' time is work, where the parent needs RESULT_NS for each result.
local function limited()
  local runs <const> = {}
  for _, workers in ipairs(TEAMS) do
    for _, mean_ns in ipairs { 1000, 10000, 100000, 1000000, 10000000 } do
      local n <const> = math.min(items, math.max(1000000, 40 * workers))
      local run <const> = simulate(workers, n, "constant", mean_ns, RESULT_NS)
      run.used = n * mean_ns / workers / run.makespan_ns
      runs[#runs + 1] = run
      print(("%7d workers, items of %5.0f us: %5.1f %% of their time is work"):format(workers,
        mean_ns / 1000, 100 * run.used))
    end
  end
  return runs
end

print(LINE:format("costs", "workers", "items", "makespan", "to greedy", "ns/item", "memory",
  "divided"))
local all <const> = { grid = grid(), longer = longer(), limited = limited(), counts = {},
  result_ns = RESULT_NS }
if peers.output "valgrind --version" then
  for i, workers in ipairs(TEAMS) do
    all.counts[i] = { workers = workers, each = instructions(workers) }
    print(("%7d workers: %.0f instructions of the parent an item"):format(workers,
      all.counts[i].each))
  end
end

local function write(path, text)
  local file <close> = assert(io.open(path, "w"))
  assert(file:write(text))
end
write(build .. "/scale.json", json.encode(all) .. "\n")
write(build .. "/scale.svg", draw(all))
print(("written: %s/scale.json, %s/scale.svg"):format(build, build))
