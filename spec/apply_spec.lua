-- Single calls whose functions are written out where they are called: each call makes a new one.
-- SPDX-License-Identifier: MIT

-- Functions that are sent must not carry the spec runner's environment along.
local describe <const>, it <const>, assert <const> = describe, it, assert
local _ENV <const> = _G -- luacheck: ignore 211
-- luacheck: globals Shared

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local crash <const> = require "crashkit"

-- Jobs of the pool that may have outcomes to come.
local function jobs(pool)
  local n = 0
  for _ in pairs(pool.handle:jobs()) do n = n + 1 end
  return n
end

local function all(futures)
  local results <const> = {}
  for i, future in ipairs(futures) do results[i] = future:get() end
  return results
end

-- A function that gives n, of code that nothing else has.
local function giver(n, upvalue)
  local text <const> = upvalue and "local a = ... return function() return a, %d end"
    or "return function() return %d end"
  return load(text:format(n))(upvalue)
end

for _, workers in ipairs { 0, 1, 3 } do
  describe("functions written out in a loop, with " .. workers .. " workers,", function()
    helper.guard()

    it("have their upvalues as they are at the call", function()
      local pool <close> = plua.pool { workers = workers }
      local list <const>, wanted <const>, futures <const> = {}, {}, {}
      local function sum(t, by)
        local s = 0
        for _, v in ipairs(t) do s = s + by * v end
        return s
      end
      for i = 1, 200 do
        list[#list + 1] = i
        futures[i] = pool:apply_async(function(x, ...)
          return math.tointeger(sum(list, i)) + x + select("#", ...)
        end, i, nil, nil)
        wanted[i] = i * i * (i + 1) // 2 + i + 2
      end
      assert.same(wanted, all(futures))
    end)

    it("have the globals as they are at the call", function()
      local pool <close> = plua.pool { workers = workers }
      local futures <const> = {}
      for i = 1, 20 do
        rawset(_G, "Shared", { i })
        futures[i] = pool:apply_async(function() return Shared[1] * 10 end)
      end
      rawset(_G, "Shared", nil)
      for i, result in ipairs(all(futures)) do assert.equal(10 * i, result) end
    end)

    it("are one job where they differ, and where they do not", function()
      local pool <close> = plua.pool { workers = workers }
      local futures <const> = {}
      for i = 1, 100 do futures[i] = pool:apply_async(function() return i end) end
      assert.is_true(jobs(pool) <= 2)
      for i = 101, 200 do futures[i] = pool:apply_async(function(x) return x end, i) end
      assert.is_true(jobs(pool) <= 4)
      for i, result in ipairs(all(futures)) do assert.equal(i, result) end
    end)

    it("may come in turns of any length", function()
      local pool <close> = plua.pool { workers = workers }
      local function double(x) return 2 * x end
      local function negate(x) return -x end
      local futures <const>, wanted <const> = {}, {}
      local kinds <const> = { double, negate, tostring, math.abs }
      local n = 0
      for turn = 1, 40 do
        local f <const> = kinds[turn % 4 + 1]
        for _ = 1, turn * 7 % 4 + 1 do
          n = n + 1
          futures[n], wanted[n] = pool:apply_async(f, n), f(n)
        end
      end
      assert.same(wanted, all(futures))
    end)

    it("are never taken for others that came to lie where they lay", function()
      local pool <close> = plua.pool { workers = workers }
      for i = 1, 300 do
        assert.equal(i, pool:apply(giver(i)))
        local a <const>, n <const> = pool:apply(giver(i, "a"))
        assert.same({ "a", i }, { a, n })
        collectgarbage()
      end
    end)

    it("are not mixed up with what a hook or a finalizer submits meanwhile", function()
      local pool <close> = plua.pool { workers = workers }
      local futures <const>, others <const> = {}, {}
      for i = 1, 20 do
        local function other() return "other" end
        local f <const> = i % 2 == 0 and function() return "f" end or function() return i end
        debug.sethook(function() others[#others + 1] = pool:apply_async(other) end, "", 1)
        futures[i] = pool:apply_async(f)
        debug.sethook()
      end
      for i, result in ipairs(all(futures)) do assert.equal(i % 2 == 0 and "f" or i, result) end
      assert.is_true(#others > 20)
      for _, result in ipairs(all(others)) do assert.equal("other", result) end
    end)

    it("keep nothing alive but what the last one holds", function()
      local pool <close> = plua.pool { workers = workers }
      local kept <const> = setmetatable({}, { __mode = "k" })
      for i = 1, 4 do
        local held <const> = { i }
        kept[held] = true
        assert.equal(i, pool:apply(function() return held[1] end))
      end
      collectgarbage()
      local left <const> = next(kept)
      assert.same({ 4 }, left)
      assert.is_nil(next(kept, left))
    end)

    it("fail with their own number and line", function()
      local pool <close> = plua.pool { workers = workers }
      for i = 1, 6 do
        local line <const> = debug.getinfo(1, "l").currentline + 2
        local future <const> = pool:apply_async(function()
          if i > 0 then error("no " .. i) end
        end)
        local fine <const>, err <const> = pcall(future.get, future)
        assert.is_false(fine)
        assert.same({ "error", i }, { err.kind, err.index })
        assert.matches(("apply_spec.lua:%d: no %d$"):format(line, i), err.message)
      end
    end)

    it("that cannot cross are refused, and the next one is not", function()
      local pool <close> = plua.pool { workers = workers }
      for i = 1, 6 do
        local file <const> = i % 2 == 0 and io.stdout or i
        local fine <const>, got <const> = pcall(pool.apply, pool, function() return file end)
        assert.equal(i % 2 == 1, fine)
        if fine then assert.equal(i, got) else assert.matches("function.*FILE", got.message) end
        local f <const> = function() return i end
        local refused <const>, why <const> = pcall(pool.apply, pool, f, io.stdout)
        assert.is_false(refused)
        assert.matches("argument 1: userdata", why.message)
      end
    end)

    it("draw the random numbers of their number", function()
      local function drawn(f)
        local pool <close> = plua.pool { workers = workers, seed = 3 }
        local list <const> = {}
        for i = 1, 8 do list[i] = pool:apply(f(i)) end
        return list
      end
      local function draw() return math.random(1 << 40) end
      assert.same(drawn(function() return draw end), drawn(function(i)
        return function() return i and math.random(1 << 40) end
      end))
    end)
  end)
end

describe("functions written out in a loop", function()
  helper.guard()

  it("go by name where a module has them, whatever else has their code", function()
    local function made() return function() return "code" end end
    local f <const>, other <const> = made(), made()
    package.loaded["spec.made"] = { f = f }
    local pool <close> = plua.pool {
      workers = 2,
      init = function() package.loaded["spec.made"].f = function() return "theirs" end end,
    }
    for _ = 1, 3 do
      assert.equal("theirs", pool:apply(f))
      assert.equal("code", pool:apply(other))
      assert.equal("code", pool:apply(made()))
      assert.equal("theirs", pool:apply(f))
      assert.equal("theirs", pool:apply(f))
    end
    package.loaded["spec.made"] = nil
  end)

  it("are run again, as they were, when their worker has died", function()
    local pool <close> = plua.pool { workers = 2, retries = { crash = 3 } }
    local path <const> = helper.tmp()
    local futures <const> = {}
    for i = 1, 30 do
      local name <const> = path .. i
      futures[i] = pool:apply_async(function()
        local seen <const> = io.open(name)
        if i % 10 ~= 0 then return i end
        if seen then
          seen:close()
          os.remove(name)
          return -i
        end
        io.open(name, "w"):close()
        crash.segv()
      end)
    end
    for i, result in ipairs(all(futures)) do assert.equal(i % 10 == 0 and -i or i, result) end
    assert.equal(3, pool:stats().crashed)
  end)

  it("run under limits of time and of memory", function()
    local pool <close> = plua.pool { workers = 1, timeout = 0.2, memory = "64M" }
    for i = 1, 4 do
      assert.equal(i, pool:apply(function() return i end))
      local ends <const>, late <const> = pcall(pool.apply, pool, function() while i do end end)
      assert.same({ false, "timeout" }, { ends, late.kind })
      local fits <const>, big <const> = pcall(pool.apply, pool, function()
        return #("x"):rep(i << 27)
      end)
      assert.same({ false, "memory" }, { fits, big.kind })
    end
  end)

  it("leave no memory behind in the caller, however large one of them was", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      local pool <close> = plua.pool { workers = 1 }
      local function small() return 1 end
      local function used()
        collectgarbage()
        return tonumber(io.open("/proc/self/status"):read("a"):match("RssAnon:%s*(%d+)"))
      end
      local function length(text) return pool:apply(function() return #text end) end
      for _ = 1, 3 do assert(length("x") == 1 and pool:apply(small) == 1) end
      local before = used()
      for _ = 1, 3 do assert(length(("x"):rep(32 << 20)) == 32 << 20) end
      for _ = 1, 3 do assert(length("x") == 1 and pool:apply(small) == 1) end
      print((used() - before) // 1024)
    ]]
    local result <const> = helper.run(helper.lua .. " " .. script)
    assert.is_true((tonumber(result.out) or math.huge) < 16, result.out .. result.err)
  end)
end)
