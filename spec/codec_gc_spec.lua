-- The codec while the collector runs whenever it may: what is written and read lives through it,
-- and finalizers that change what is being written do no harm. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

local seed <const> = tonumber(os.getenv("PLUA_SEED")) or os.time()

-- A whole collection at every allocation, young ones, small steps; none.
local MODES <const> = {
  always = 'collectgarbage("incremental", 1, 1000, 60)',
  young = 'collectgarbage("generational", 1, 1)',
  steps = 'collectgarbage("incremental", 100, 400, 4)',
  never = 'collectgarbage("stop")',
}

-- In a process of its own: there, a whole collection is short.
local function run(mode, text)
  local head <const> = ("math.randomseed(%d) local function collect() %s end\n"):format(seed,
    MODES[mode])
  local script <const> = helper.script('local codec = require "codectest"\n' .. head .. text)
  local result <const> = helper.run(helper.lua .. " " .. script, { timeout = 120 })
  assert.equal("right\n", result.out, result.err)
end

local VALUES <const> = [[
local Plain, Saved = {}, {}
Saved.__plua_save = function(o) return { o.inner, "saved " .. math.random(50) } end
Saved.__plua_load = function(v) return setmetatable({ inner = v[1] }, Saved) end
codec.register("Plain", Plain)
codec.register("Saved", Saved)

local function scalar()
  local kind = math.random(8)
  if kind == 1 then return math.random(0) end
  if kind == 2 then return math.random() end
  if kind == 3 then return math.random(2) == 1 end
  if kind == 4 then return "key" .. math.random(30) end
  if kind == 5 then return ("x"):rep(math.random(0, 45)) .. math.random(9) end
  if kind == 6 then return ("y"):rep(math.random(60, 70)) end
  if kind == 7 then return "new " .. math.random(0) end
  return math.random(-200, 200)
end

local function make(depth, pool, data)
  local kind = math.random(12)
  if depth == 0 or kind < 4 then return scalar() end
  if kind == 4 and #pool > 0 then return pool[math.random(#pool)] end
  if not data and kind == 5 then
    local a, b = make(depth - 1, pool), scalar()
    pool[#pool + 1] = function() return a, b end
    return pool[#pool]
  end
  if not data and kind == 6 then return setmetatable({ inner = make(depth - 1, pool) }, Saved) end
  local t = setmetatable({}, kind == 7 and Plain or nil)
  pool[#pool + 1] = t
  for i = 1, math.random(4) == 1 and math.random(20) or 0 do t[i] = i end
  for i = 1, math.random(0, 6) do t[i] = make(depth - 1, pool, data) end
  for _ = 1, math.random(0, 6) do t[scalar()] = make(depth - 1, pool, data) end
  for k in next, t do if math.random(7) == 1 then t[k] = nil end end
  for i = #t, math.max(1, #t - math.random(5)), -1 do t[i] = nil end
  return #t and t
end

-- Functions here give two values.
local alike = require "spec.alike"
local function same(f, g, met)
  local a, b = f()
  local c, d = g()
  return alike({ a, b }, { c, d }, same, met)
end
]]

describe("the codec, the collector running", function()
  helper.guard()

  for mode in pairs(MODES) do
    it(("whenever it may (%s), carries values made at random (seed %d)"):format(mode, seed),
      function()
        run(mode, VALUES .. [[
          for round = 1, 120 do
            collectgarbage("stop")
            local data = round % 2 == 0
            local value = make(5, {}, data)
            collectgarbage("restart")
            collect()
            local message = assert(codec.encode(value))
            local ok, got = codec.decode(message)
            if not ok or not alike(value, got, same) then error("not alike in round " .. round) end
            for _ = 1, data and 20 or 0 do
              local at = math.random(#message)
              codec.decode_plain(message:sub(1, at - 1) .. string.char(math.random(0, 255))
                .. message:sub(at + 1))
            end
            collectgarbage("restart")
          end
          print "right"
        ]])
      end)

    it(("whenever it may (%s), keeps the pairs of a table that finalizers change (seed %d)"):format(
      mode, seed), function()
        run(mode, [[
          local t
          local function fill(n)
            for _ = 1, n do
              local key = "key " .. math.random(200)
              t[key] = key .. "!"
            end
          end
          local function change()
            if t == nil then return end
            for key in next, t do t[key] = nil end
            fill(math.random(100))
            setmetatable({}, { __gc = change })
          end
          local all = {}
          for i = 1, 200 do all["key " .. i] = "key " .. i .. "!" end
          collect()
          for round = 1, 150 do
            t = {}
            fill(60)
            setmetatable({}, { __gc = change })
            local message = codec.encode(round % 3 > 0 and print, all, t)
            t = nil
            local ok, _, _, got = codec.decode(message or codec.encode(1, 2, {}))
            assert(ok)
            for key, value in next, got do if value ~= key .. "!" then error(key) end end
          end
          print "right"
        ]])
      end)
  end
end)
