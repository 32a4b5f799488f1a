-- Measures plua beside the serial loop and beside the peers that are installed, in one run, each
-- case several times in turn; prints a table. Usage: plua scripts/bench.lua [case ...]
-- SPDX-License-Identifier: MIT
local plua = require "plua"
local json = require "plua.json"

local ROUNDS <const> = 5
local WORKERS <const> = 2

local function clock()
  return require("plua.core").now()
end

local function cube(x) return x ^ 3 end

local function sequence(n)
  local t = {}
  for i = 1, n do t[i] = i end
  return t
end

--- Seconds of one call, after a full collection so that no case pays for the one before.
local function seconds(f)
  collectgarbage()
  local start <const> = clock()
  f()
  return clock() - start
end

local function serial(n)
  local data <const> = sequence(n)
  return function()
    local out <const> = {}
    for i = 1, #data do out[i] = cube(data[i]) end
    return out
  end
end

--- What a peer's own program prints: seconds, as a number on a line.
local function program(command)
  return function()
    local pipe <const> = assert(io.popen(command .. " 2>/dev/null"))
    local line <const> = pipe:read "l"
    pipe:close()
    return tonumber(line)
  end
end

local PYTHON <const> = [[
import sys, time
from multiprocessing import Pool
def cube(x): return x ** 3
def main():
    n, warm, chunk = int(sys.argv[1]), sys.argv[2] == "warm", int(sys.argv[3]) or None
    data = [float(i) for i in range(n)]
    if warm:
        with Pool(2) as p:
            p.map(cube, data[:1000])
            t = time.perf_counter()
            p.map(cube, data, chunk)
            print(time.perf_counter() - t)
    else:
        t = time.perf_counter()
        with Pool(2) as p: p.map(cube, data, chunk)
        print(time.perf_counter() - t)
main()
]]

local function python(n, kind, chunk)
  if not os.execute("command -v python3 >/dev/null 2>&1") then return nil end
  local path <const> = "build/bench.py"
  local file <close> = assert(io.open(path, "w"))
  file:write(PYTHON)
  return program(("python3 %s %d %s %d"):format(path, n, kind, chunk or 0))
end

local pool <close> = plua.pool { workers = WORKERS }

local function futures(data)
  local f <const> = {}
  for i = 1, #data do f[i] = pool:apply_async(cube, data[i]) end
  for i = 1, #f do f[i]:get() end
end

local function round_trips(data)
  for i = 1, #data do pool:apply(cube, data[i]) end
end

local function lazily(data)
  local i = 0
  local function next_item()
    i = i + 1
    return data[i]
  end
  local sum = 0
  for _, result in plua.imap(cube, next_item, { workers = WORKERS }) do sum = sum + result end
  return sum
end

local ONE_SHOT <const> = { workers = WORKERS }
local BY_ONE <const> = { workers = WORKERS, chunksize = 1 }

-- name, items, our call, what it must stay below (ns an item), the peer's pool and chunk size
local CASES <const> = {
  { "one-shot map", 1000000, function(data) plua.map(cube, data, ONE_SHOT) end, 100, "cold" },
  { "warm pool map", 1000000, function(data) pool:map(cube, data) end, 200, "warm" },
  { "chunksize 1", 20000, function(data) plua.map(cube, data, BY_ONE) end, nil, "cold", 1 },
  { "apply_async, get", 20000, futures },
  { "pool:apply, idle worker", 2000, round_trips },
  { "imap over an iterator", 1000000, lazily },
}

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2], list[1], list[#list]
end

--- Runs ours, the serial loop and the peer in turn, ROUNDS times.
local function measure(name, n, run, limit, kind, chunk)
  local data <const> = sequence(n)
  local ours, loop, peer = {}, {}, {}
  local program_of_peer <const> = kind and python(n, kind, chunk)
  run(data) -- warm
  for round = 1, ROUNDS do
    ours[round] = seconds(function() run(data) end)
    loop[round] = seconds(serial(n))
    if program_of_peer and round <= 3 then peer[round] = program_of_peer() end
  end
  local each <const>, low <const>, high <const> = median(ours)
  local base <const>, theirs <const> = median(loop), median(peer)
  return { case = name, items = n, ns = each / n * 1e9, low = low / n * 1e9, high = high / n * 1e9,
    serial = base / n * 1e9, python = theirs and theirs / n * 1e9, limit = limit }
end

local function cell(value) return value and ("%.1f"):format(value) or "-" end

local chosen <const> = {}
for _, name in ipairs(arg) do chosen[name] = true end
print(("ns an item, median of %d rounds, %d workers"):format(ROUNDS, WORKERS))
local LINE <const> = "%-24s %9s %9s %19s %9s %9s %9s"
print(LINE:format("case", "items", "plua", "spread", "serial", "python", "limit"))
local rows, missed = {}, false
for _, c in ipairs(CASES) do
  if not next(chosen) or chosen[c[1]] then
    local r <const> = measure(table.unpack(c, 1, 6))
    rows[#rows + 1] = r
    local over <const> = r.limit and r.ns > r.limit
    missed = missed or over
    local spread <const> = cell(r.low) .. " .. " .. cell(r.high)
    print(LINE:format(r.case, r.items, cell(r.ns), spread, cell(r.serial), cell(r.python),
      cell(r.limit)) .. (over and "  over" or ""))
  end
end
local file <close> = assert(io.open("build/bench.json", "w"))
file:write(json.encode(rows), "\n")
if missed then print "over: slower than its limit in this run" end
