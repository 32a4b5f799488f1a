-- Futures: what they answer, when, and what their callbacks may do.
-- SPDX-License-Identifier: MIT

-- Functions that are sent must not carry the spec runner's environment along.
local describe <const>, it <const>, assert <const> = describe, it, assert
local _ENV <const> = _G -- luacheck: ignore 211

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local crash <const> = require "crashkit"
local system <const> = require "system"

local function add(a, b) return a + b end

local function raise(x) error("raised " .. x) end

for _, workers in ipairs { 0, 1, 2, 3, 7, 64 } do
  describe("with workers = " .. workers .. ", a future", function()
    helper.guard()

    -- A spec with a pool of its own, which is terminated afterwards.
    local function with_pool(body)
      return function()
        local pool <const> = plua.pool { workers = workers }
        local guard <close> = setmetatable({}, { __close = function() pool:terminate() end })
        body(pool, guard)
      end
    end

    it("answers its results as often as it is asked", with_pool(function(pool)
      local count <const> = function(...) return select("#", ...), ... end
      local future <const> = pool:apply_async(count, 1, nil)
      assert.same({ n = 3, 2, 1 }, table.pack(future:get()))
      assert.same({ n = 3, 2, 1 }, table.pack(future:get(0)))
      assert.is_true(future:ready())
      assert.is_true(future:successful())
    end))

    -- Raises an interrupt at the at-th instruction of plua's own. False: there are not so many.
    local function strike(at, f, ...)
      local n = 0
      debug.sethook(function()
        if not debug.getinfo(2, "S").source:find("plua/%l+%.lua$") then return end
        n = n + 1
        if n == at then error("interrupted!", 0) end
      end, "", 1)
      local fine <const>, err <const> = pcall(f, ...)
      debug.sethook()
      assert(fine or err == "interrupted!", err)
      return n >= at
    end

    it("keeps its outcome and its callbacks wherever an interrupt comes", with_pool(function(pool)
      local at, ran = 0, 0
      local function count() ran = ran + 1 end
      repeat
        at, ran = at + 1, 0
        local future <const>, other <const> = pool:map_async(math.abs, { -1, -2 }),
          pool:apply_async(math.abs, -3)
        future:add_done_callback(count)
        future:add_done_callback(count)
        other:add_done_callback(count)
        local struck <const> = strike(at, plua.wait, { future, other })
        assert.same({ n = 2, 1, 2 }, future:get())
        assert.equal(3, other:get())
        assert.equal(3, ran, at)
      until not struck
      assert(at > 100, at)
    end))

    it("is no data of another call", with_pool(function(pool)
      local future <const> = pool:map_async(math.abs, { -1, -2 })
      for _, call in ipairs { plua.map, plua.each, function(...) return pool:map_async(...) end } do
        local fine <const>, err <const> = pcall(call, math.abs, future)
        assert.is_false(fine)
        assert.matches("data is a future: pass what its get() answers", err, 1, true)
      end
      assert.same({ n = 2, 1, 2 }, pool:map(math.abs, future:get()))
    end))

    it("raises what the call raised, each time", with_pool(function(pool)
      local future <const> = pool:apply_async(raise, 5)
      for _ = 1, 2 do
        local fine <const>, err <const> = pcall(future.get, future)
        assert.is_false(fine)
        assert.equal("error", err.kind)
        assert.matches("raised 5", err.message)
      end
      future:wait()
      assert.is_false(future:successful())
    end))

    it("answers out of order", with_pool(function(pool)
      local futures <const> = {}
      for i = 1, 50 do futures[i] = pool:apply_async(add, i, i) end
      for i = 50, 1, -1 do assert.equal(2 * i, futures[i]:get()) end
    end))

    it("runs its callbacks once, as a call of plua returns", with_pool(function(pool)
      local future <const>, calls = pool:apply_async(add, 1, 2), {}
      future:add_done_callback(function(f) calls[#calls + 1] = f:get() end)
      future:add_done_callback(function() calls[#calls + 1] = "second" end)
      future:wait()
      assert.same({ 3, "second" }, calls)
      future:add_done_callback(function() calls[#calls + 1] = "late" end)
      future:get()
      assert.same({ 3, "second", "late" }, calls)
    end))

    it("of a list has callbacks too, and they may submit", with_pool(function(pool)
      local more
      local future <const> = pool:map_async(function(x) return x end, { 1, 2, 3 })
      future:add_done_callback(function(f) more = pool:apply_async(add, f:get()[3], 10) end)
      assert.same({ 1, 2, 3, n = 3 }, future:get())
      assert.equal(13, more:get())
    end))

    it("runs callbacks while the pool is joined", with_pool(function(pool)
      local called
      pool:apply_async(add, 1, 2):add_done_callback(function(f) called = f:get() end)
      pool:close()
      pool:join()
      assert.equal(3, called)
    end))

    it("of a list raises the error of an item, or collects it", with_pool(function(pool)
      local future <const> = pool:map_async(raise, { 1 })
      assert.is_false(pcall(future.get, future))
      local results <const> = pool:map_async(raise, { 1, 2 }, { on_error = "collect" }):get()
      assert.equal(2, results[2].index)
      results[1] = pool:map_async(raise, { 1 }, { on_error = function(e) return e.index end }):get()
      assert.same({ 1, n = 1 }, results[1])
      assert.same({ n = 0 }, pool:map_async(raise, {}):get())
    end))

    it("of a list has what on_error raises as its one outcome", with_pool(function(pool)
      local values <const> = { "mine", { 1 }, false, nil }
      for i = 1, 4 do
        local asked = 0
        local future <const> = pool:map_async(raise, { 1, 2, 3 }, { on_error = function()
          asked = asked + 1
          error(values[i], 0)
        end })
        future:wait()
        for _ = 1, 2 do
          local fine <const>, err <const> = pcall(future.get, future)
          assert.is_false(fine)
          assert.equal(values[i] == nil and "on_error raised nil" or values[i],
            plua.iserror(err) and err.message or err)
          assert.is_true(future:ready())
          assert.is_false(future:successful())
        end
        assert.equal(1, asked)
      end
    end))

    it("may be taken back while a callback ends the pool", with_pool(function(pool)
      local path <const> = helper.tmp() .. "/ran"
      local first <const> = pool:apply_async(function() io.open(path, "w"):close() end)
      local future <const> = pool:apply_async(crash.csleep, workers == 0 and 0 or 100)
      first:add_done_callback(function() pool:terminate() end)
      helper.wait(function() return workers == 0 or io.open(path) end)
      system.sleep(0.05) -- its outcome is told by what asks for the other's
      future:cancel()
      assert.is_true(future:ready())
      assert.is_false(future:successful())
    end))

    it("can be waited for with others", with_pool(function(pool)
      local futures <const> = { pool:apply_async(add, 1, 1), pool:apply_async(raise, 1) }
      local done <const>, pending <const> = plua.wait(futures)
      assert.equal(2, #done)
      assert.equal(0, #pending)
      assert.equal(0, #(plua.wait {}))
      local n = 0
      for future in plua.as_completed(futures) do
        n = n + 1
        assert.is_true(future:ready())
      end
      assert.equal(2, n)
    end))

    it("is waited for without limit where the time would never come", with_pool(function(pool)
      for _, seconds in ipairs { math.huge, 1e300, 1e12 } do
        assert.equal(7, pool:apply_async(function() return 7 end):get(seconds))
        local other <close> = plua.pool { workers = 1 }
        local both <const> = { pool:apply_async(tostring, 1), other:apply_async(tostring, 2) }
        assert.equal(2, #plua.wait(both, { timeout = seconds }))
      end
    end))

    it("cancelled before it runs never runs", with_pool(function(pool)
      local path <const> = helper.tmp() .. "/ran"
      if workers > 0 then
        for _ = 1, workers do pool:apply_async(crash.csleep, 100) end
      end
      local future <const> = pool:apply_async(function() io.open(path, "w"):close() end)
      if workers == 0 then
        assert.is_false(future:cancel()) -- asking for it runs it, in the caller's process
        return
      end
      assert.is_true(future:cancel())
      assert.is_false(future:cancel())
      local fine <const>, err <const> = pcall(future.get, future)
      assert.is_false(fine)
      assert.equal("cancelled", err.kind)
      assert.is_nil(io.open(path))
    end))
  end)
end

for _, workers in ipairs { 1, 2, 3 } do
  describe("with workers = " .. workers .. ", a future", function()
    helper.guard()

    it("that takes too long raises timeout and stays", function()
      local pool <const> = plua.pool { workers = workers }
      local future <const> = pool:apply_async(crash.csleep, 100)
      for _, method in ipairs { "get", "wait" } do
        local fine <const>, err <const> = pcall(future[method], future, 0.02)
        assert.is_false(fine)
        assert.equal("timeout", err.kind)
      end
      assert.is_false(future:ready())
      assert.has_error(function() future:successful() end)
      local done <const>, pending <const> = plua.wait({ future }, { timeout = 0.02 })
      assert.same({ 0, 1 }, { #done, #pending })
      local fine <const>, err <const> = pcall(plua.as_completed({ future }, { timeout = 0.02 }))
      assert.is_false(fine)
      assert.equal("timeout", err.kind)
      pool:terminate()
    end)

    it("cancelled while it runs is cancelled, and its worker replaced", function()
      local pool <close> = plua.pool { workers = workers }
      local path <const> = helper.tmp() .. "/begun"
      local function begin_and_sleep()
        io.open(path, "w"):close()
        require("crashkit").csleep(100)
      end
      local future <const> = pool:apply_async(begin_and_sleep)
      local list <const> = pool:map_async(function(x) return x end, { 1, 2, 3 })
      assert.is_truthy(helper.wait(function()
        future:ready()
        return io.open(path)
      end)):close()
      assert.is_true(future:cancel())
      assert.equal("cancelled", select(2, pcall(future.get, future)).kind)
      assert.same({ 1, 2, 3, n = 3 }, list:get())
      assert.equal(3, pool:apply(add, 1, 2))
      local sleeper <const> = pool:map_async(crash.csleep, { 100, 100, 100 })
      assert.is_true(sleeper:cancel())
      assert.equal("cancelled", select(2, pcall(sleeper.get, sleeper)).kind)
      assert.equal(3, pool:apply(add, 1, 2))
    end)

    it("whose worker dies has that as its error", function()
      local pool <close> = plua.pool { workers = workers, retries = 0 }
      local future <const> = pool:apply_async(crash.segv)
      local err <const> = select(2, pcall(future.get, future))
      assert.equal("crash", err.kind)
      assert.equal("SIGSEGV", err.signal)
    end)
  end)
end

describe("futures", function()
  helper.guard()

  it("of several pools are waited for together", function()
    local a <close> = plua.pool { workers = 1 }
    local b <close> = plua.pool { workers = 1 }
    local slow <const> = a:apply_async(crash.csleep, 100)
    local quick <const> = b:apply_async(add, 1, 2)
    local done <const>, pending <const> = plua.wait({ slow, quick }, { when = "first" })
    assert.same({ 1, 1 }, { #done, #pending })
    assert.is_true(rawequal(quick, done[1]))
    local failing <const> = b:apply_async(raise, 1)
    done[1] = plua.wait({ slow, failing }, { when = "error" })[1]
    assert.is_true(rawequal(failing, done[1]))
    a:terminate()
  end)

  it("a callback that raises is told once, and harms nothing", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua = require "plua"
      local pool <close> = plua.pool { workers = 1 }
      local future = pool:apply_async(function() return 5 end)
      future:add_done_callback(function() error("in callback", 0) end)
      local odd = setmetatable({}, { __tostring = function() error("in tostring", 0) end })
      future:add_done_callback(function() error(odd) end)
      future:add_done_callback(function() print("next") end)
      print(future:get())
      print(future:get())
    ]])
    assert.equal("next\n5\n5\n", result.out)
    assert.equal("plua: a callback failed: in callback\n" ..
      "plua: a callback failed: (error object whose __tostring fails)\n", result.err)
  end)

  it("run callbacks only as the outermost call returns", function()
    local pool <close> = plua.pool { workers = 1 }
    local future <const> = pool:apply_async(add, 1, 2)
    local inside, seen = false, nil
    future:add_done_callback(function() seen = inside end)
    local i = 0
    plua.map(function(x) return x end, function()
      inside = true
      i = i + 1
      if i == 2 then
        future:wait()
        inside = false
        return nil
      end
      return i
    end, { workers = 1 })
    assert.is_false(seen)
  end)

  it("keep the pool alive", function()
    local future <const> = plua.pool({ workers = 1 }):apply_async(add, 1, 2)
    collectgarbage()
    collectgarbage()
    assert.equal(3, future:get())
  end)

  it("refuse what is none of them", function()
    assert.has_error(function() plua.wait({ 1 }) end, "futures[1] is no future but number")
    assert.has_error(function() plua.wait({}, { wen = "all" }) end,
      "unknown option 'wen'; the nearest is 'when'")
    assert.has_error(function() plua.as_completed({}, { 1 }) end,
      "unknown option '1'; known are timeout")
    assert.has_error(function() plua.wait({}, 5) end, "options must be a table, not number")
    assert.has_error(function() plua.wait({}, { when = "never" }) end)
    local pool <close> = plua.pool { workers = 1 }
    assert.has_error(function() plua.wait(pool:apply_async(add, 1, 2)) end,
      "a list of futures is wanted, not one future")
    local one <const> = pool:apply_async(add, 1, 2)
    assert.has_error(function() one.get() end,
      "a future is wanted, not nil (call its methods with a colon)")
    for _, list in ipairs { { one, nil, one }, { one, [0] = one } } do
      assert.has_error(function() plua.wait(list) end, ("futures has the key %d: a list of " ..
        "futures 1, 2, ... without holes is wanted"):format(list[0] and 0 or 3))
    end
    assert.has_error(function() plua.as_completed({ one = one }) end,
      'futures has the key "one": a list of futures 1, 2, ... without holes is wanted')
    assert.equal(1, #plua.wait(table.pack(one)))
    pool:close()
    assert.has_error(function() pool:join("soon") end,
      "timeout must be a number of seconds, not string")
  end)
end)

describe("a call that failed", function()
  helper.guard()

  local FAILING <const> = [[
    local plua = require "plua"
    local pool <close> = plua.pool { workers = 2 }
    local list = {}
    for i = 1, 9 do
      list[i] = pool:apply_async(function() if i % 4 == 3 then error("no " .. i, 0) end end)
    end
    list[10] = pool:map_async(function(x) error("no map", 0) end, { 1 })
  ]]

  local function ran(code, program)
    return helper.run((program or helper.plua) .. " " .. helper.script(FAILING .. code))
  end

  it("and that nobody asked is told as the command ends, with status 1", function()
    for _, code in ipairs {
      "", "plua.wait(list)", "list = nil", "for _ in plua.as_completed(list) do end",
    } do
      local result <const> = ran(code)
      assert.matches("^plua: 3 calls failed, and nobody asked their futures; one of them: item %d",
        result.err)
      assert.equal(1, result.status)
    end
    local gone <const> = ran([[plua.wait(list) local first = list[3] list = nil collectgarbage()
      pcall(first.get, first)]])
    assert.matches("^plua: 2 calls failed, and nobody asked their futures[\n;]", gone.err)
    local one <const> = ran("pcall(list[3].get, list[3]) pcall(list[10].get, list[10])")
    assert.matches("^plua: 1 call failed, and nobody asked its future: item 7: no 7", one.err)
    assert.equal(1, one.status)
  end)

  it("is the script's affair where it asked, or gave callbacks", function()
    for _, code in ipairs {
      "for _, f in ipairs(list) do pcall(f.get, f) end",
      "for _, f in ipairs(list) do f:wait() f:successful() end",
      "for _, f in ipairs(list) do f:add_done_callback(function() end) end",
      "plua.wait(list) for _, f in ipairs(list) do f:add_done_callback(function() end) end",
      "list[12] = pool:apply_async(function() while true do end end) list[12]:cancel()" ..
        " for i = 1, 10 do pcall(list[i].get, list[i]) end",
    } do
      local result <const> = ran(code)
      assert.equal("", result.err, code)
      assert.equal(0, result.status)
    end
  end)

  it("adds nothing to an error that ends the script", function()
    local result <const> = ran("plua.wait(list) error('bad script', 0)")
    assert.matches("^plua: bad script\n", result.err)
    assert.is_nil(result.err:find("nobody asked", 1, true))
  end)

  it("is told by a warning in another host, where these are on", function()
    assert.equal("", ran("", helper.lua).err)
    assert.matches("^Lua warning: plua: 3 calls failed", ran("", helper.lua .. " -W").err)
  end)
end)

describe("a pool that is forgotten", function()
  helper.guard()

  local function told(code, workers)
    local result <const> = helper.run(helper.plua .. " " .. helper.script([[
      local plua = require "plua"
      local pool = plua.pool { workers = math.tointeger(arg[1]) }
      local function idle() while true do end end
    ]] .. code) .. " " .. (workers or 2))
    assert.equal(0, result.status, result.err)
    return result.err
  end

  it("tells how much it had to do", function()
    local text <const> = "plua: a pool is dropped before %s of its items %s known to be done"
    assert.truthy(told("pool:apply_async(idle)"):find(text:format(1, "is"), 1, true))
    assert.truthy(told("for _ = 1, 5 do pool:apply_async(idle) end pool = nil collectgarbage()")
      :find(text:format(5, "are"), 1, true))
    assert.truthy(told("pool:apply_async(idle)", 0):find(text:format(1, "is"), 1, true))
    assert.truthy(told("pool:map_async(idle, plua.range(1, 1000)) pool:close()")
      :find(text:format(1000, "are"), 1, true))
  end)

  it("says nothing where that was wanted, or nothing was to be done", function()
    for _, code in ipairs {
      "pool:map(math.abs, { 1, 2 }) pool:apply(math.abs, 1)",
      "for _ in pool:imap(math.abs, plua.range(1, 10000)) do break end",
      "pool:find(function(x) return x > 3 end, plua.range(1, 10000))",
      "pcall(pool.map, pool, error, plua.range(1, 1000))",
      "pool:apply_async(idle):cancel() pool:map_async(idle, { 1, 2 }):cancel()",
      "pool:apply_async(idle) pool:terminate()",
    } do
      assert.equal("", told(code), code)
    end
  end)
end)
