-- A sweep that goes on where it was stopped: each result is a line of a file as soon as it is done;
-- run again, it does only what has no line: what was not begun, was under way or has failed.
-- Usage: plua scripts/resume.lua file                              SPDX-License-Identifier: MIT
local plua = require "plua"

local path <const> = arg[1]
if not path then error("usage: resume.lua file", 0) end
local BLOCKS <const>, SPAN <const> = 100, 1000

--- The number of a block that takes the most steps of Collatz's rule to reach 1.
local function longest(block)
  local start, most = 0, -1
  for k = (block - 1) * SPAN + 1, block * SPAN do
    local n, steps = k, 0
    while n ~= 1 do n, steps = n % 2 == 0 and n // 2 or 3 * n + 1, steps + 1 end
    if steps > most then start, most = k, steps end
  end
  return { start = start, steps = most }
end

local NOT_THERE <const> = 2 -- ENOENT

--- The blocks that have a line. A last line that a kill has cut off is removed.
local function recall()
  local file <close>, why <const>, code <const> = io.open(path)
  if not file and code ~= NOT_THERE then error(why, 0) end
  local text <const> = file and assert(file:read "a") or ""
  local whole, have = text:match "^.*\n" or "", {}
  if whole ~= text then
    local copy <const> = assert(io.open(path .. ".new", "w"))
    assert(copy:write(whole))
    assert(copy:close())
    assert(os.rename(path .. ".new", path))
  end
  for block in whole:gmatch "(%d+),[^\n]*\n" do have[tonumber(block)] = true end
  return have
end

local have <const>, todo, failed = recall(), {}, 0
for block = 1, BLOCKS do
  if not have[block] then todo[#todo + 1] = block end
end
local file <const> = assert(io.open(path, "a"))
file:setvbuf "line"
for i, result in plua.imap_unordered(longest, todo, { on_error = "collect" }) do
  if plua.iserror(result) then
    failed = failed + 1
    io.stderr:write(tostring(result), "\n")
  else
    assert(file:write(todo[i], ",", result.start, ",", result.steps, "\n"))
  end
end
assert(file:close())
print(("%d of %d done before, %d now, %d failed"):format(BLOCKS - #todo, BLOCKS, #todo - failed,
  failed))
if failed > 0 then os.exit(false, true) end
