-- What users of concurrent.futures and loky rely on, as the suites of those define it, under the
-- names that plua gives it. SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local peers <const> = require "spec.peers"
local numbers <const>, check_squares <const> = helper.numbers, peers.check_squares
local failure <const>, refuses <const> = peers.failure, peers.refuses
local gate <const>, pids_of <const> = peers.gate, peers.pids_of

local function square(x) return x * x end

describe("concurrent.futures: a future of plua", function()
  helper.guard()

  it("is waited for: the first, an error, all, within a time", function()
    local pool <close> = plua.pool { workers = 3 }
    local wait <const>, open <const> = gate()
    local slow <const>, quick <const> = pool:apply_async(wait, 1), pool:apply_async(square, 2)
    local done, pending = plua.wait({ slow, quick }, { when = "first" })
    assert.same({ 1, 1 }, { #done, #pending })
    assert.equal(quick, done[1])
    assert.equal(slow, pending[1])
    done, pending = plua.wait({ slow, quick }, { timeout = 0.02 })
    assert.same({ 1, 1 }, { #done, #pending })
    done, pending = plua.wait({ slow, quick }, { timeout = 0 })
    assert.same({ 1, 1 }, { #done, #pending })
    local bad <const> = pool:apply_async(function() error("bad") end)
    done, pending = plua.wait({ slow, bad }, { when = "error" })
    assert.same({ 1, 1 }, { #done, #pending })
    assert.equal(bad, done[1])
    open()
    done, pending = plua.wait { slow, quick, bad }
    assert.same({ 3, 0 }, { #done, #pending })
    done, pending = plua.wait({ slow, quick }, { when = "error" })
    assert.same({ 2, 0 }, { #done, #pending })
    done, pending = plua.wait({}, { when = "first" })
    assert.same({ 0, 0 }, { #done, #pending })
  end)

  it("comes as it is completed", function()
    local pool <close> = plua.pool { workers = 2 }
    local wait <const>, open <const> = gate()
    local slow <const>, quick <const> = pool:apply_async(wait, 1), pool:apply_async(square, 2)
    local order = {}
    for future in plua.as_completed { slow, quick } do
      order[#order + 1] = future
      open()
    end
    assert.equal(quick, order[1])
    assert.equal(slow, order[2])
    assert.equal(2, #order)
  end)

  it("comes as it is completed, within a time", function()
    local pool <close> = plua.pool { workers = 2 }
    local wait <const>, open <const> = gate()
    local slow <const>, quick <const> = pool:apply_async(wait, 1), pool:apply_async(square, 2)
    quick:wait()
    for _, limit in ipairs { 0, 0.05 } do
      local seen = 0
      assert.equal("timeout", failure(function()
        for future in plua.as_completed({ slow, quick }, { timeout = limit }) do
          assert.equal(quick, future)
          seen = seen + 1
        end
      end).kind)
      assert.equal(1, seen)
    end
    open()
    for _ in plua.as_completed({}, { timeout = 0 }) do error("no future") end
  end)

  it("comes once though it is named twice", function()
    local pool <close> = plua.pool { workers = 1 }
    local future <const> = pool:apply_async(square, 3)
    local seen = 0
    for each in plua.as_completed { future, future } do
      assert.equal(future, each)
      seen = seen + 1
    end
    assert.equal(1, seen)
    local done <const> = plua.wait { future, future }
    assert.equal(1, #done)
  end)

  it("of several pools is waited for with others", function()
    local one <close> = plua.pool { workers = 1 }
    local two <close> = plua.pool { workers = 1 }
    local wait <const>, open <const> = gate()
    local futures <const> = { one:apply_async(wait, "one"), two:apply_async(square, 2) }
    local done <const> = plua.wait(futures, { when = "first", timeout = 10 })
    assert.equal(futures[2], done[1])
    open()
    local values = {}
    for future in plua.as_completed(futures) do values[tostring(future:get())] = true end
    assert.same({ one = true, ["4"] = true }, values)
  end)

  it("is cancelled before it begins", function()
    local pool <close> = plua.pool { workers = 1 }
    local wait <const>, open <const> = gate()
    local path <const> = helper.tmp() .. "/ran"
    local first <const> = pool:apply_async(wait, 1)
    local future <const> = pool:apply_async(helper.write, path, "ran")
    local told
    future:add_done_callback(function(f) told = f end)
    assert.is_true(future:cancel())
    assert.equal(future, told)
    assert.is_true(future:ready())
    assert.is_false(future:successful())
    assert.equal("cancelled", failure(future.get, future).kind)
    assert.is_false(future:cancel())
    open()
    assert.equal(1, first:get())
    pool:close()
    pool:join()
    assert.is_nil(helper.read(path))
    assert.equal(1, pool:stats().started)
  end)

  it("is cancelled while it runs, its worker alone replaced", function()
    local pool <close> = plua.pool { workers = 2 }
    local path <const> = helper.tmp() .. "/began"
    local future <const> = pool:apply_async(function()
      local file <close> = assert(io.open(path, "w"))
      file:write(kit.pid())
      file:close()
      kit.csleep(8)
    end)
    assert(helper.wait(function() return #(helper.read(path) or "") > 0 end))
    local pid <const> = math.tointeger(helper.read(path))
    local began <const> = kit.now()
    assert.is_true(future:cancel())
    assert.equal("cancelled", failure(future.get, future).kind)
    check_squares(pool:map(square, numbers(100)), 100)
    assert(helper.wait(function()
      pool:apply(square, 1)
      return not helper.alive(pid)
    end, 5))
    assert(kit.now() - began < 5)
  end)

  it("of a map is cancelled as a whole", function()
    local pool <close> = plua.pool { workers = 2 }
    local future <const> = pool:map_async(function() kit.csleep(8) end, numbers(3))
    assert.is_true(future:cancel())
    assert.equal("cancelled", failure(future.get, future).kind)
    check_squares(pool:map(square, numbers(100)), 100)
  end)

  it("is not cancelled once it is done", function()
    local pool <close> = plua.pool { workers = 1 }
    local future <const> = pool:apply_async(square, 4)
    future:wait()
    assert.is_false(future:cancel())
    assert.equal(16, future:get())
  end)

  it("calls callbacks in the order in which they were added, each once", function()
    local pool <close> = plua.pool { workers = 1 }
    local wait <const>, open <const> = gate()
    local future <const> = pool:apply_async(wait, 1)
    local order = {}
    for i = 1, 5 do future:add_done_callback(function() order[#order + 1] = i end) end
    assert.same({}, order)
    open()
    future:get()
    assert.same({ 1, 2, 3, 4, 5 }, order)
    future:add_done_callback(function() order[#order + 1] = 6 end)
    assert.same({ 1, 2, 3, 4, 5, 6 }, order)
  end)

  it("survives callbacks that raise, of which the others do not hear", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      local pool <close> = plua.pool { workers = 1 }
      local future = pool:apply_async(function() return 5 end)
      local told = 0
      future:add_done_callback(function() told = told + 1 end)
      future:add_done_callback(function() error("bad callback") end)
      future:add_done_callback(function() error(nil) end)
      future:add_done_callback(function() told = told + 1 end)
      print(future:get(), told)
    ]]
    local result <const> = helper.run(helper.plua .. " " .. script)
    assert.same({ "5\t2\n", 0 }, { result.out, result.status }, result.err)
    local _, times <const> = result.err:gsub("bad callback", "")
    assert.equal(1, times, result.err)
  end)

  it("lets a callback submit, wait and cancel", function()
    local pool <close> = plua.pool { workers = 2 }
    local second, value
    local first <const> = pool:apply_async(square, 2)
    first:add_done_callback(function(f)
      second = pool:apply_async(square, f:get())
      value = second:get()
      pool:apply_async(kit.csleep, 8):cancel()
      assert(pool:map(square, { 3 })[1] == 9)
    end)
    first:wait()
    assert.equal(16, value)
    assert.is_true(second:ready())
  end)

  it("tells a callback of a crash, which may submit again", function()
    local pool <close> = plua.pool { workers = 1, retries = 0 }
    local again
    local future <const> = pool:apply_async(function() kit.segv() end)
    future:add_done_callback(function(f)
      assert(not f:successful())
      again = pool:apply_async(square, 5)
    end)
    assert.equal("crash", failure(future.get, future).kind)
    assert.equal(25, again:get())
  end)

  it("is done though nobody looks before the pool is closed", function()
    for _ = 1, 20 do
      local pool <close> = plua.pool { workers = 4 }
      local futures = {}
      for i = 1, 50 do futures[i] = pool:apply_async(kit.csleep, 0.001) end
      pool:close()
      for i = 1, 50 do futures[i]:get(10) end
      local joined <const> = pool:join(5)
      if not joined then pool:terminate() end
      assert.is_true(joined)
    end
  end)

  it("that was cancelled right before the end delays nothing", function()
    for _ = 1, 20 do
      local pool <close> = plua.pool { workers = 1 }
      pool:apply(square, 1)
      pool:apply_async(square, 1):cancel()
      pool:close()
      assert.is_true(pool:join(5))
    end
  end)

  it("refuses a wrong use by name", function()
    local pool <close> = plua.pool { workers = 1 }
    local future <const> = pool:apply_async(square, 1)
    refuses("futures[2]", plua.wait, { future, 5 })
    refuses("when", plua.wait, { future }, { when = "never" })
    refuses("whn", plua.wait, { future }, { whn = "all" })
    refuses("timeout", future.get, future, "long")
    refuses("function", future.add_done_callback, future, 5)
    refuses("workers", plua.pool, { workers = -1 })
    refuses("'workers'", plua.pool, { worker = 1 })
    refuses("max_tasks_per_child", plua.pool, { max_tasks_per_child = 0 })
  end)
end)

describe("a script that ends without closing its pool", function()
  helper.guard()

  -- What is said of it: in a host whose warnings are off, nothing.
  local function warned(program, what)
    return program == helper.plua and ("plua: a pool is dropped before %s known to be done: " ..
      "join it, or make it a <close> variable\n"):format(what) or ""
  end

  it("leaves no process, and waits for none that is busy", function()
    for _, program in ipairs { helper.plua, helper.lua } do
      local script <const> = helper.script [[
        local plua, kit = require "plua", require "crashkit"
        pool = plua.pool { workers = 2 }
        print(pool:apply(kit.pid))
        pool:apply_async(kit.csleep, 8)
        pool:map_async(kit.csleep, { 8, 8, 8 })
      ]]
      local result <const> = helper.run(program .. " " .. script, { timeout = 10 })
      assert.same({ warned(program, "4 of its items are"), 0 }, { result.err, result.status })
      local pid <const> = math.tointeger(tonumber(result.out))
      assert(helper.wait(function() return not helper.alive(pid) end, 1))
    end
  end)

  it("by os.exit too", function()
    for _, arguments in ipairs { "3", "3, true" } do
      for _, program in ipairs { helper.plua, helper.lua } do
        local script <const> = helper.script(([[
          local plua, kit = require "plua", require "crashkit"
          local pool = plua.pool { workers = 2 }
          print(pool:apply(kit.pid))
          pool:apply_async(kit.csleep, 8)
          io.stdout:flush()
          os.exit(%s)
        ]]):format(arguments))
        local result <const> = helper.run(program .. " " .. script, { timeout = 10 })
        local told <const> = arguments == "3, true" and warned(program, "1 of its items is") or ""
        assert.same({ told, 3 }, { result.err, result.status })
        local pid <const> = math.tointeger(tonumber(result.out))
        assert(helper.wait(function() return not helper.alive(pid) end, 1))
      end
    end
  end)
end)

describe("loky: a pool of plua", function()
  helper.guard()

  -- An object whose crossing does something: 'save' in the sender, 'load' in the receiver.
  local function object(name, save, load)
    local meta <const> = { __plua_save = save or function() return 1 end,
      __plua_load = load or function() return "loaded" end }
    plua.register("peers." .. name, meta)
    return setmetatable({}, meta)
  end

  local owner <const> = kit.pid()
  local function in_worker(deed)
    return function()
      if kit.pid() ~= owner then deed() end
      return 1
    end
  end

  it("survives a crash while an argument is loaded", function()
    for i, deed in ipairs { kit.segv, kit.abort, function() os.exit(0) end, kit.exit } do
      local bad <const> = object("load" .. i, nil, in_worker(deed))
      local pool <close> = plua.pool { workers = 2 }
      local err <const> = failure(pool.apply, pool, square, bad)
      assert(err.kind == "crash" or err.kind == "exit", tostring(err))
      local list <const> = pool:map(type, { 1, bad, 3 }, { on_error = "collect" })
      assert.same({ "number", 2, "number" }, { list[1], list[2].index, list[3] })
      check_squares(pool:map(square, numbers(10)), 10)
    end
  end)

  it("survives a crash while a result is saved", function()
    for i, deed in ipairs { kit.segv, kit.abort, function() os.exit(0) end, kit.exit } do
      local bad <const> = object("save" .. i, in_worker(deed))
      local meta <const> = getmetatable(bad)
      local name <const> = "peers.save" .. i
      assert.is_truthy(meta)
      local pool <close> = plua.pool { workers = 2 }
      local list <const> = plua.map(function(x) return x == 2 and bad or x end, { 1, 2, 3 },
        { on_error = "collect", workers = 2 })
      assert.same({ 1, 2, 3 }, { list[1], list[2].index, list[3] }, name)
      check_squares(pool:map(square, numbers(10)), 10)
    end
  end)

  it("reports errors of hooks, on either side", function()
    local save <const> = object("save error", function() error("cannot save") end)
    local load <const> = object("load error", nil, in_worker(function() error("cannot load") end))
    local back <const> = object("back error", nil, function() error("cannot come back") end)
    local pool <close> = plua.pool { workers = 1 }
    refuses("cannot save", pool.apply, pool, square, save)
    assert(tostring(failure(pool.apply, pool, square, load)):find("cannot load", 1, true))
    assert(tostring(failure(plua.map, function() return save end, { 1 }, { workers = 1 }))
      :find("cannot save", 1, true))
    local list <const> = plua.map(function(x) return x == 2 and back or x end, { 1, 2, 3 },
      { on_error = "collect", workers = 1 })
    assert.same({ 1, 3 }, { list[1], list[3] })
    assert(plua.iserror(list[2]), tostring(list[2]))
    assert(tostring(list[2]):find("cannot come back", 1, true), tostring(list[2]))
    assert.equal(4, pool:apply(square, 2))
  end)

  it("replaces workers that are killed while idle", function()
    local pool <close> = plua.pool { workers = 3 }
    for _ = 1, 5 do
      local pids <const> = pids_of(pool, 100)
      for pid in pairs(pids) do kit.kill(pid, 9) end
      check_squares(pool:map(square, numbers(100)), 100)
      for pid in pairs(pids) do
        assert(helper.wait(function() return not helper.alive(pid) end), pid)
      end
    end
    assert.equal(0, pool:stats().crashed)
  end)

  it("answers at once though processes of its own are killed at any moment", function()
    local pool <close> = plua.pool { workers = 1, retries = 5 }
    for round = 1, 100 do
      assert.equal(round * round, pool:apply(square, round))
      local children <const> = helper.children()
      kit.kill(children[math.random(#children)], 9)
      local began <const> = kit.now()
      local futures = {}
      for i = 1, 5 do futures[i] = pool:apply_async(square, i) end
      for i = 1, 5 do assert.equal(i * i, futures[i]:get(10)) end
      assert(kit.now() - began < 0.9, ("round %d: %g s"):format(round, kit.now() - began))
    end
  end)

  it("lets items kill other workers", function()
    local pool <close> = plua.pool { workers = 3, retries = 5 }
    for _ = 1, 5 do
      local pids = {}
      for pid in pairs(pids_of(pool, 60)) do pids[#pids + 1] = pid end
      local list <const> = pool:map(function(pid)
        if pid ~= kit.pid() then kit.kill(pid, 9) end
        return "done"
      end, pids)
      for i = 1, #pids do assert.equal("done", list[i]) end
    end
  end)

  it("grows and shrinks", function()
    local pool <close> = plua.pool { workers = 2 }
    for _, n in ipairs { 1, 5, 2, 3, 1, 4 } do
      pool:resize(n)
      check_squares(pool:map(square, numbers(100)), 100)
      assert(helper.wait(function()
        pool:apply(square, 1)
        return pool:stats().alive == n and #helper.children() <= n + 1
      end, 5), ("%d workers: %d alive"):format(n, pool:stats().alive))
      assert.equal(n, pool:stats().workers)
    end
  end)

  it("grows while it is busy, to the use of what waits", function()
    local pool <close> = plua.pool { workers = 1 }
    local wait <const>, open <const> = gate()
    local blocked <const> = pool:apply_async(wait, "through")
    local behind <const> = pool:apply_async(square, 3)
    pool:resize(2)
    assert.equal(9, behind:get(10))
    open()
    assert.equal("through", blocked:get(10))
  end)

  it("survives crashes while it shrinks and grows", function()
    local pool <close> = plua.pool { workers = 3, retries = 0 }
    for round = 1, 10 do
      local future <const> = pool:map_async(function(x)
        if x % 7 == 3 then kit.segv() end
        return x
      end, numbers(30), { on_error = "collect" })
      pool:resize(round % 4 + 1)
      local list <const> = future:get(10)
      for i = 1, 30 do
        if i % 7 == 3 then assert.equal("crash", list[i].kind) else assert.equal(i, list[i]) end
      end
    end
  end)

  it("carries large results of workers that die right afterwards", function()
    local pool <close> = plua.pool { workers = 2, max_tasks_per_child = 1 }
    local list <const> = pool:map(function(x) return ("x"):rep(1000000 + x) end, numbers(10))
    for i = 1, 10 do assert.equal(1000000 + i, #list[i]) end
    local big <const> = ("y"):rep(5000000)
    for _, r in ipairs(pool:map(function(s) return #s end, { big, big, big })) do
      assert.equal(5000000, r)
    end
  end)

  it("does as well after a hundred failures of every kind", function()
    local pool <close> = plua.pool { workers = 2, retries = 0 }
    local fds <const> = #kit.fds()
    local deeds <const> = {
      function() error("e") end, function() kit.segv() end, function() os.exit(1) end,
      function() return coroutine.create(print) end, function() kit.raise(15) end,
    }
    for i = 1, 100 do
      failure(pool.apply, pool, deeds[i % #deeds + 1])
      assert.equal(i * i, pool:apply(square, i))
    end
    assert.equal(fds, #kit.fds())
    assert(#helper.children() <= 3)
  end)
end)
