-- One repetition of one case by plua, or by the serial loop beside it, in a process of its own:
--   plua scripts/bench/ours.lua plua|serial|... CASE N
-- prints "name value" lines; seconds is the time of the measured part, after the warm-up that the
-- case tells. Knows plua. Does not know peers or targets. SPDX-License-Identifier: MIT
local here <const> = arg[0]:match "^(.*/)" or "./"
package.path = here .. "?.lua;" .. package.path
local plua <const> = require "plua"
local now <const> = require("plua.core").now
local work <const> = require "work"

local WORKERS <const> = 2
local cube <const>, spin <const> = work.cube, work.spin

local who <const>, name <const>, n <const> = arg[1], arg[2], tonumber(arg[3])

local function say(what, value) print(("%s %.9f"):format(what, value)) end

--- Seconds of one call; after a full collection, so that nothing pays for what went before.
local function seconds(f, ...)
  collectgarbage()
  local start <const> = now()
  f(...)
  return now() - start
end

--- A number of kB from a file below /proc/self.
local function kilobytes(file, field)
  for line in io.lines("/proc/self/" .. file) do
    local value <const> = line:match("^" .. field .. ":%s*(%d+) kB")
    if value then return tonumber(value) end
  end
end

local function private_mb()
  return (kilobytes("smaps_rollup", "Private_Clean") + kilobytes("smaps_rollup", "Private_Dirty"))
    / 1024
end

local function loop(f, data)
  return function()
    local out <const> = {}
    for i = 1, #data do out[i] = f(data[i]) end
    return out
  end
end

local function team(opts)
  opts = opts or {}
  opts.workers = WORKERS
  return opts
end

--- A pool whose workers have run something.
local function warm_pool(opts)
  local pool <const> = plua.pool(team(opts))
  pool:map(cube, work.floats(1000))
  return pool
end

-- who -> case -> function
local plain <const>, serial <const> = {}, {}
local runs <const> = { plua = plain, serial = serial }

-- ---- many small items ----

function plain.oneshot()
  local data <const> = work.floats(n)
  plua.map(cube, work.floats(1000), team())
  say("seconds", seconds(plua.map, cube, data, team()))
end

function plain.warm()
  local data <const> = work.floats(n)
  local pool <close> = warm_pool()
  pool:map(cube, data)
  say("seconds", seconds(pool.map, pool, cube, data))
end

function plain.chunk1()
  local data <const> = work.floats(n)
  say("seconds", seconds(plua.map, cube, data, team { chunksize = 1 }))
end

function plain.async()
  local data <const> = work.floats(n)
  local pool <close> = warm_pool()
  local function all()
    local futures <const> = {}
    for i = 1, n do futures[i] = pool:apply_async(cube, data[i]) end
    for i = 1, n do futures[i]:get() end
  end
  all()
  say("seconds", seconds(all))
end

function plain.trip()
  local pool <close> = warm_pool()
  local function all()
    for i = 1, n do pool:apply(cube, i + 0.0) end
  end
  all()
  say("seconds", seconds(all))
end

function plain.imap()
  local function numbers()
    local i = 0.0
    return function()
      i = i + 1
      return i <= n and i or nil
    end
  end
  collectgarbage()
  local before <const> = kilobytes("status", "VmRSS")
  say("seconds", seconds(function()
    local sum = 0
    for _, r in plua.imap(cube, numbers(), team()) do sum = sum + r end
    return sum
  end))
  say("growth_mb", (kilobytes("status", "VmHWM") - before) / 1024)
end

local function cubes_serial() say("seconds", seconds(loop(cube, work.floats(n)))) end
for _, case in ipairs { "oneshot", "warm", "chunk1", "async", "trip", "imap" } do
  serial[case] = cubes_serial
end

-- ---- large values ----

function plain.lists()
  local list <const>, unpack <const> = work.floats(1000), table.unpack
  local function give() return { unpack(list) } end
  local data <const> = work.floats(n)
  plua.map(give, { 1, 2 }, team())
  say("seconds", seconds(plua.map, give, data, team()))
end

function plain.strings_in()
  local pool <close>, data <const> = warm_pool(), work.strings(n)
  local function size(s) return #s end
  pool:map(size, { data[1], data[2] })
  say("seconds", seconds(pool.map, pool, size, data))
end

function plain.strings_both()
  local pool <close>, data <const> = warm_pool(), work.strings(n)
  local function echo(s) return s end
  pool:map(echo, { data[1], data[2] })
  say("seconds", seconds(pool.map, pool, echo, data))
end

function plain.codec()
  package.cpath = here .. "../../build/kit/?.so;" .. package.cpath
  local codec <const> = require "codectest"
  local list <const> = work.records(n)
  local text
  say("seconds", seconds(function() text = assert(codec.encode(list)) end) +
    seconds(function() assert(codec.decode(text)) end))
end

function serial.codec()
  local cjson <const> = require "cjson"
  local list <const> = work.records(n)
  local text
  say("seconds", seconds(function() text = cjson.encode(list) end) +
    seconds(function() cjson.decode(text) end))
end

-- ---- items that compute ----

--- The time of f(), and around it that of the serial loop, half before and half after: the machine
--- is not as fast at all times.
local function beside_serial(data, f)
  local half <const> = #data // 2
  local before <const> = seconds(loop(spin, table.move(data, 1, half, 1, {})))
  say("seconds", f())
  say("serial", before + seconds(loop(spin, table.move(data, half + 1, #data, 1, {}))))
end

local function milliseconds()
  local data <const> = {}
  for i = 1, n do data[i] = work.MS end
  return data
end

function plain.cpu()
  local data <const>, pool <close> = milliseconds(), warm_pool()
  beside_serial(data, function() return seconds(pool.map, pool, spin, data) end)
end

--- The longest time of bare processes that do so many passes each: what the machine can give now.
local function bare(loads)
  local pipes <const>, slowest = {}, 0
  for i, passes in ipairs(loads) do
    pipes[i] = assert(io.popen(("%s %s bare spin %d"):format(arg[-1], arg[0], passes)))
  end
  for _, pipe in ipairs(pipes) do
    slowest = math.max(slowest, tonumber(pipe:read("a"):match "seconds (%S+)"))
    pipe:close()
  end
  return slowest
end

runs.bare = {}
function runs.bare.spin() say("seconds", seconds(spin, n)) end
function runs.bare.cpu()
  local half <const> = n // 2 * work.MS
  beside_serial(milliseconds(), function() return bare { half, half } end)
end

--- Beside the time: that of the serial loop, and the best time as a part of it. 'f' is given the
--- data and what the longest of two workers has to do at the least.
local function skew(place, f, best)
  local data <const> = work.skewed(place)
  local all = 0
  for _, cost in ipairs(data) do all = all + cost end
  best = best or work.greedy(data, WORKERS)
  beside_serial(data, function() return f(data, best, all) end)
  say("best", best / all)
end

local function map_with(opts)
  return function(data) return seconds(plua.map, spin, data, team(opts)) end
end
local function bare_skew(_, best, all) return bare { best, all - best } end

for _, place in ipairs { "first", "middle", "last" } do
  plain["skew_" .. place] = function() skew(place, map_with {}) end
  runs.bare["skew_" .. place] = function() skew(place, bare_skew) end
end

local OPTIMUM <const> = 400 * work.MS
function plain.skew_weight()
  skew("last", map_with { weight = function(cost) return cost end }, OPTIMUM)
end
function runs.bare.skew_weight() skew("last", bare_skew, OPTIMUM) end

-- ---- many processes, much memory ----

function plain.thousand()
  local items <const> = work.floats(n)
  local function all()
    local pool <close> = plua.pool { workers = n }
    pool:map(cube, items, { chunksize = 1 })
  end
  say("seconds", seconds(all))
  local kb <const> = {}
  local pool <close> = plua.pool { workers = n }
  for i, mb in ipairs(pool:map(private_mb, plua.range(1, 200), { chunksize = 1 })) do
    kb[i] = mb * 1024
  end
  table.sort(kb)
  say("private_kb", kb[#kb // 2])
end

-- kind of heap -> makes one of about 90 MB
local HEAPS <const> = {}
function HEAPS.tables()
  local heap <const> = {}
  for i = 1, 500000 do heap[i] = { id = i, name = "item" .. i } end
  return heap
end
function HEAPS.strings()
  local heap <const> = {}
  for i = 1, 1000000 do heap[i] = ("a string of its own, number %016d"):format(i) end
  return heap
end
function HEAPS.closures()
  local heap <const> = {}
  for i = 1, 1000000 do heap[i] = function() return i end end
  return heap
end

--- What a worker over such a heap has for itself after 2.3 million short-lived tables.
local function private_after(kind)
  local heap <const> = HEAPS[kind]()
  collectgarbage()
  local function churn()
    local last
    for i = 1, 2300000 do last = { i, i + 1 } end
    return private_mb(), #heap, last
  end
  local results <const> = plua.map(churn, { 1, 2 }, team { chunksize = 1 })
  say("heap_mb", collectgarbage "count" / 1024)
  say("private_mb", math.max(results[1], results[2]))
  heap[1] = nil
end

for kind in pairs(HEAPS) do
  plain["private_" .. kind] = function() private_after(kind) end
end

local function churn_seconds()
  local start <const> = os.clock()
  work.churn()
  return os.clock() - start
end
function plain.churn() say("seconds", plua.map(churn_seconds, { 1 }, team())[1]) end
function serial.churn() say("seconds", churn_seconds()) end

--- How much longer a second call takes than over a small heap: what a collection costs.
function plain.second_map()
  local function twice()
    plua.map(cube, { 1, 2 }, team())
    local start <const> = now()
    plua.map(cube, { 1, 2 }, team())
    return now() - start
  end
  local small <const> = twice()
  local heap <const> = HEAPS.tables()
  collectgarbage()
  local large <const> = twice()
  say("small", small)
  say("seconds", large)
  heap[1] = nil
end

-- ---- for counting instructions: nothing depends on the clock, the data is made before ----

runs.count = {}

--- Runs of n items and of 2 n differ in nothing but the items: both make both lists.
local function counted(least, f)
  local data <const> = { [least] = work.floats(least), [2 * least] = work.floats(2 * least) }
  f(data[n])
end

local FIXED <const> = { chunksize = 250, workers = 1 }
local ONE <const> = { chunksize = 1, workers = 1 }

local function in_pool(f)
  return function(data)
    local pool <close> = plua.pool { workers = 1, chunksize = 250 }
    f(pool, data)
  end
end

function runs.count.oneshot()
  counted(20000, function(data) plua.map(cube, data, FIXED) end)
end
function runs.count.warm()
  counted(20000, in_pool(function(pool, data) pool:map(cube, data) end))
end
function runs.count.chunk1()
  counted(4000, function(data) plua.map(cube, data, ONE) end)
end
function runs.count.async()
  counted(4000, in_pool(function(pool, data)
    local futures <const> = {}
    for i = 1, n do futures[i] = pool:apply_async(cube, data[i]) end
    for i = 1, n do futures[i]:get() end
  end))
end
function runs.count.trip()
  counted(1000, in_pool(function(pool, data)
    for i = 1, n do pool:apply(cube, data[i]) end
  end))
end
function runs.count.lists()
  local list <const>, unpack <const> = work.floats(1000), table.unpack
  counted(100, function(data) plua.map(function() return { unpack(list) } end, data, FIXED) end)
end
function runs.count.strings()
  local text <const> = ("x"):rep(100000)
  counted(100, in_pool(function(pool, data)
    pool:map(function(i) return i .. text end, data)
  end))
end

local run <const> = runs[who] and runs[who][name]
if not run then
  io.stderr:write("ours.lua: nothing is known of '", tostring(who), " ", tostring(name), "'\n")
  os.exit(2)
end
run()
