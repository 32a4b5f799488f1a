-- Memory and system calls that fail under the Lua interface, each at its turn: a call answers
-- rightly or raises an error with words, the same pool goes on after it, nothing is left over.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"

-- The operations; each ends as f does or raises.
local OPERATIONS <const> = [[
  local plua, kit = require "plua", require "crashkit"
  local data = {}
  for i = 1, 60 do data[i] = "item " .. i end
  local function f(s, i) return s .. "!", i end
  local function right(r, or_error)
    for i = 1, 60 do
      if r[i] ~= data[i] .. "!" and not (or_error and plua.iserror(r[i])) then return false end
    end
    return true
  end
  local function g(s, i)
    if i % 3 == 0 then error("not " .. s) end
    return s .. "!"
  end
  local function right_or_told(i, fine, r)
    if i % 3 == 0 then return plua.iserror(r) and r.message:find("not item " .. i, 1, true) end
    return fine and r == data[i] .. "!"
  end
  -- Asks again after an error that is not the item's own; what was it, if it stays?
  local function insist(ask)
    local fine, r, s
    for _ = 1, 4 do
      fine, r, s = pcall(ask)
      if fine or plua.iserror(r) then break end
    end
    if not fine and not plua.iserror(r) then error(r, 0) end
    assert(fine or r.kind ~= "timeout", "an outcome is lost")
    return fine, r, s
  end
  local pool
  local function fresh() pool = plua.pool { workers = 2 } pool:map(f, data) end
  local OPERATIONS = {
    map = function() return right(plua.map(f, data, { workers = 2 })) end,
    ["map, collecting"] = function()
      return right(plua.map(f, data, { workers = 2, on_error = "collect" }), true)
    end,
    imap = function()
      local r = {}
      for i, v in plua.imap(f, data, { workers = 2 }) do r[i] = v end
      return right(r)
    end,
    mapreduce = function()
      return plua.mapreduce(function(s) return #s end, function(a, b) return a + b end, data,
        { workers = 2 }) == 411
    end,
    ["a pool's map"] = function() return right(pool:map(f, data)) end,
    apply_async = function()
      local futures = {}
      for i = 1, 20 do futures[i] = pool:apply_async(f, data[i], i) end
      for i = 1, 20 do if futures[i]:get() ~= data[i] .. "!" then return false end end
      return true
    end,
    ["futures that fail"] = function()
      local futures, refused = {}, nil
      for i = 1, 20 do
        local fine, future = pcall(pool.apply_async, pool, g, data[i], i)
        if fine then futures[i] = future else refused = future end
      end
      for i, future in pairs(futures) do
        if not right_or_told(i, insist(function() return future:get(5) end)) then return false end
      end
      return not refused or error(refused, 0)
    end,
    ["a future list"] = function()
      local future = pool:map_async(g, data, { on_error = "collect" })
      local _, list = insist(function() return future:get(5) end)
      for i = 1, 60 do
        if not right_or_told(i, true, list[i]) then return false end
      end
      return true
    end,
    ["a loop by hand"] = function()
      local step = pool:imap(g, data, { on_error = "collect" })
      for i = 1, 60 do
        local _, at, r = insist(step)
        if at ~= i or not right_or_told(i, true, r) then return false end
      end
      return step() == nil
    end,
    ["a pool made and closed"] = function()
      local p <close> = plua.pool { workers = 2 }
      return p:apply(f, "x") == "x!"
    end,
  }
  local function holdings()
    collectgarbage() collectgarbage()
    return #kit.fds()
  end
  -- Runs the operation with the failure armed, and looks at what is left.
  local function try(name, arm, disarm)
    arm()
    local fine, r = pcall(OPERATIONS[name])
    local calls = disarm()
    if fine then assert(r, name .. ": wrong results") else
      local text = tostring(r)
      assert(#text > 3 and not text:find("^%a+: 0x") and not text:find("nil value"), text)
    end
    local again, list = pcall(pool.map, pool, f, data)
    assert(again and right(list), name .. ": the pool does not go on: " .. tostring(list))
    return calls, fine
  end
  local name = arg[1]
]]

local MEMORY <const> = OPERATIONS .. [[
  fresh()
  pcall(OPERATIONS[name])
  local fds = holdings()
  local k, calls, fines, refusals = 0, 0, 0, tonumber(arg[2])
  repeat
    local fine
    k = k + 1
    calls, fine = try(name, function() kit.mfail(k, refusals) end, function()
      return kit.mfail(0)
    end)
    fines = fines + (fine and 1 or 0)
  until calls < k
  pool:terminate()
  pool = nil
  fresh()
  assert(holdings() <= fds, "descriptors leak")
  pool:terminate()
  print("tried", k, fines)
]]

local CALLS <const> = OPERATIONS .. [[
  fresh()
  pcall(OPERATIONS[name])
  local fds = holdings()
  for word in arg[2]:gmatch("%S+") do
    for k = 1, 4 do
      for _, how in ipairs { "", ":sticky" } do
        try(name, function() kit.iofail(word:format(k) .. how) end, kit.iofail)
      end
    end
  end
  pool:terminate()
  pool = nil
  fresh()
  assert(holdings() <= fds, "descriptors leak")
  pool:terminate()
  print "tried"
]]

local NAMES <const> = { "map", "map, collecting", "imap", "mapreduce", "a pool's map",
  "apply_async", "futures that fail", "a future list", "a loop by hand",
  "a pool made and closed" }
-- Of allocations in a row. Lua asks twice before it gives up.
local REFUSALS <const> = { once = 1, twice = 2, ["for good"] = 0 }

-- Under stock Lua, whose memory is malloc's, with a shim.
local function run(shim, text, ...)
  local words <const> = { (helper.lua:gsub(" (%S+)$", " LD_PRELOAD=" ..
    helper.quote(helper.build .. "/preload/" .. shim .. ".so") .. " %1")),
    helper.script(text) }
  for _, word in ipairs { ... } do words[#words + 1] = helper.quote(word) end
  local result <const> = helper.run(table.concat(words, " "), { timeout = 100 })
  assert.equal(0, result.status, result.err)
  assert.truthy(result.out:find("^tried"), result.out .. result.err)
  return result.out
end

-- The shims stand where a sanitizer stands.
if helper.san == "" then
  describe("where memory runs out", function()
    helper.guard()
    for _, name in ipairs(NAMES) do
      for word, refusals in pairs(REFUSALS) do
        it(("%s, at each allocation: %s"):format(word, name), function()
          run("mfail", MEMORY, name, refusals)
        end)
      end
    end
  end)

  describe("where the system refuses", function()
    helper.guard()
    local CALLS_REFUSED <const> = "fork:11:%d mmap:12:%d memfd_create:24:%d ftruncate:5:%d " ..
      "posix_fallocate:28:%d write:28:%d read:5:%d eventfd:24:%d epoll_create1:24:%d " ..
      "epoll_ctl:12:%d madvise:12:%d syscall434:24:%d"
    for _, name in ipairs(NAMES) do
      it("any call, at its turn: " .. name, function()
        run("iofail", CALLS, name, CALLS_REFUSED)
      end)
    end
  end)
end
