-- Measures what a worker shares with its parent and what its memory costs in time:
-- bench_memory.lua [heap ...] prints a line for each kind of heap; required, answers the function
-- that measures. Knows /proc/self/smaps_rollup and plua; sets no target.
-- SPDX-License-Identifier: MIT

local plua <const> = require("plua")

-- What fills a heap of so many MiB, about.
local HEAPS <const> = {
  tables = function(mib)
    local t <const> = {}
    for i = 1, mib * 5900 do t[i] = { id = i, name = "item" .. i } end
    return t
  end,
  strings = function(mib)
    local t <const> = {}
    for i = 1, mib * 12000 do t[i] = "a rather short string " .. i end
    return t
  end,
  closures = function(mib)
    local t <const> = {}
    for i = 1, mib * 9900 do t[i] = function() return i end end
    return t
  end,
}

local function rollup()
  local field <const> = {}
  for line in io.lines("/proc/self/smaps_rollup") do
    local name <const>, kib <const> = line:match("^(%S+):%s+(%d+) kB")
    if name then field[name] = tonumber(kib) * 1024 end
  end
  return { private = field.Private_Dirty + field.Private_Clean, shared = field.Shared_Dirty }
end

-- 2.3 million tables that die young.
local function short_lived()
  local t
  for i = 1, 2300000 do t = { i, i + 1 } end
  return t
end

local function seconds(f)
  local begun <const> = os.clock()
  f()
  return os.clock() - begun
end

--- Fills a heap, forks a worker over it that makes 2.3e6 short-lived tables, and looks.
---@param kind "tables"|"strings"|"closures"
---@param mib? integer  about how large the heap is; default 90
---@return table figures  bytes: heap; private and shared, of the worker's memory afterwards what is
---   its own and what it shares. Seconds: first and second, of the parent's for a call that forks
---   and one more over the same heap; alone and worker, of the loop in the script and in the worker
local function measure(kind, mib)
  local heap <const> = HEAPS[kind](mib or 90)
  collectgarbage()
  local bytes <const> = collectgarbage("count") * 1024
  local function call(f) return plua.map(f, { heap }, { workers = 1 })[1] end
  local function nothing() return true end
  local first <const> = seconds(function() call(nothing) end)
  local second <const> = seconds(function() call(nothing) end)
  local seen <const> = call(function()
    local took <const> = seconds(short_lived)
    local memory <const> = rollup()
    return { private = memory.private, shared = memory.shared, worker = took }
  end)
  return {
    heap = bytes, private = seen.private, shared = seen.shared, first = first, second = second,
    alone = seconds(short_lived), worker = seen.worker,
  }
end

if ... == "bench_memory" or ... == "scripts.bench_memory" then return measure end

local function mib(bytes) return bytes / (1 << 20) end

for _, kind in ipairs(#arg > 0 and arg or { "tables", "strings", "closures" }) do
  local m <const> = measure(kind)
  print(("%-9s heap %5.1f MiB; worker: own %5.1f, shared %5.1f MiB; call %5.1f ms, " ..
    "again %4.1f ms; loop %.0f ms alone, %.0f ms in the worker"):format(kind, mib(m.heap),
    mib(m.private), mib(m.shared), m.first * 1e3, m.second * 1e3, m.alone * 1e3, m.worker * 1e3))
  collectgarbage()
end
