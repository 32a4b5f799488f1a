-- Counts the status codes of a web server's log of any size: each item is a part of the file, which
-- workers read by themselves; a line belongs to the part that it begins in.
-- Usage: statuses.lua file [bytes of a part]                       SPDX-License-Identifier: MIT
local plua = require "plua"

local path <const>, part <const> = arg[1], math.tointeger(tonumber(arg[2] or 1 << 24))
if not path or not part or part < 1 then error("usage: statuses.lua file [bytes of a part]", 0) end

local function open()
  local file <const>, why <const> = io.open(path, "rb")
  return file or error(why, 0)
end

--- How often each code occurs in the lines that begin in [first, first + part).
local function count(first)
  local log <close> = open()
  if first > 0 then
    log:seek("set", first - 1)
    log:read "L" -- begins before, or is the end of a line that does
  end
  local counts, at = {}, log:seek()
  while at < first + part do
    local line <const> = log:read "L"
    if not line then break end
    local code <const> = line:match '" (%d%d%d) ' or "none"
    counts[code] = (counts[code] or 0) + 1
    at = at + #line
  end
  return counts
end

local function add(sum, counts)
  for code, n in pairs(counts) do sum[code] = (sum[code] or 0) + n end
  return sum
end

local log <close> = open()
local total <const> = plua.mapreduce(count, add, plua.range(0, log:seek "end" - 1, part)) or {}
local codes <const> = {}
for code in pairs(total) do codes[#codes + 1] = code end
table.sort(codes)
for _, code in ipairs(codes) do print(("%4s %d"):format(code, total[code])) end
