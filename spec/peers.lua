-- What the peers specs share: checks of what a call raises, items that end when the spec says so,
-- who ran them. SPDX-License-Identifier: MIT
local assert <const> = require "luassert"
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"

local peers <const> = {}

--- The list is that of the squares of 1 .. n.
function peers.check_squares(list, n)
  assert.equal(n, list.n)
  for i = 1, n do assert.equal(i * i, list[i]) end
end

--- The error object that fn raises.
function peers.failure(fn, ...)
  local fine <const>, err <const> = pcall(fn, ...)
  assert.is_false(fine, "no error was raised")
  assert(plua.iserror(err), tostring(err))
  return err
end

--- The text that fn raises.
function peers.refusal(fn, ...)
  local fine <const>, err <const> = pcall(fn, ...)
  assert.is_false(fine, "no error was raised")
  return tostring(err)
end

--- fn raises something that holds the text.
function peers.refuses(text, fn, ...)
  local said <const> = peers.refusal(fn, ...)
  assert(said:find(text, 1, true), said)
end

--- A function that waits until the file exists: items that end when the spec says so.
function peers.gate()
  local path <const> = helper.tmp() .. "/gate"
  local function wait(value)
    repeat
      local file <const> = io.open(path)
      if file then file:close() else kit.csleep(0.001) end
    until file
    return value
  end
  return wait, function() helper.write(path, "open") end
end

--- The processes that run n short items of a pool, as a set.
function peers.pids_of(pool, n)
  local set = {}
  for _, pid in ipairs(pool:map(function()
    kit.csleep(0.002)
    return kit.pid()
  end, helper.numbers(n), { chunksize = 1 })) do set[pid] = true end
  return set
end

return peers
