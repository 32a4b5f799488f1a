-- What other pools are known to do badly when something dies, each once, and what happens here.
-- The same faults at every step and in every call: recovery_spec, damage_spec, orphans_spec.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local answers <const> = helper.answers

local N <const> = 40

local function double(x) return 2 * x end

-- Maps with one bad item on a pool of two; the others are right and the pool goes on.
local function only_one_lost(deed, kind)
  local pool <close> = plua.pool { workers = 2, on_error = "collect" }
  local list <const> = pool:map(function(i)
    if i == 7 then deed() end
    return 2 * i
  end, plua.range(1, N))
  assert.equal(N, list.n)
  for i = 1, N do
    if i == 7 then assert.equal(kind, list[i].kind) else assert.equal(2 * i, list[i]) end
  end
  answers(pool)
end

describe("a fault that other pools do not survive", function()
  helper.guard()

  it("a worker that is killed hangs a map for ever: here it costs one item", function()
    only_one_lost(function() kit.raise(9) end, "crash")
  end)

  it("a task that exits hangs a map for ever: here it costs one item", function()
    only_one_lost(function() os.exit(0) end, "exit")
    only_one_lost(function() kit.exit(0) end, "exit")
  end)

  it("one dead worker breaks an executor for good: here the next call answers", function()
    local pool <close> = plua.pool { workers = 2, retries = 0 }
    for _ = 1, 20 do
      local future <const> = pool:apply_async(kit.segv)
      local after <const> = pool:apply_async(double, 21)
      local ok <const>, err <const> = pcall(future.get, future)
      assert.is_false(ok)
      assert.equal("SIGSEGV", err.signal)
      assert.equal(42, after:get())
    end
    answers(pool)
  end)

  it("idle workers that are killed leave a pool without answers: here they are replaced", function()
    local pool <close> = plua.pool { workers = 2 }
    answers(pool)
    for _, pid in ipairs(helper.children()) do kit.kill(pid, 9) end
    answers(pool)
  end)

  it("an initialiser that fails is started again without end: here it is told once", function()
    local path <const> = helper.tmp() .. "/starts"
    local function start_badly()
      local file <close> = assert(io.open(path, "a"))
      file:write("x")
      error("no licence")
    end
    local opts <const> = { workers = 2, init = start_badly }
    local ok <const>, err <const> = pcall(plua.map, double, plua.range(1, N), opts)
    assert.is_false(ok)
    assert.equal("init", err.kind)
    assert.truthy(err.message:find("no licence", 1, true))
    assert.is_true(#helper.read(path) <= 2)
    assert.same({}, helper.children())
  end)

  it("workers outlive a parent that is killed: here they are gone within a second", function()
    local note <const> = helper.tmp() .. "/pids"
    local script <const> = helper.script(([[
      local plua = require "plua"
      plua.map(function()
        local file = io.open(%q, "a")
        file:write(plua.worker().pid, "\n")
        file:close()
        while true do end
      end, { 1, 2, 3 }, { workers = 3 })
    ]]):format(note))
    os.execute(("%s %s </dev/null >/dev/null 2>&1 & echo $! >%s.parent"):format(
      helper.plua, script, note))
    local pids <const> = {}
    assert(helper.wait(function()
      for k in pairs(pids) do pids[k] = nil end
      for pid in (helper.read(note) or ""):gmatch("(%d+)\n") do pids[#pids + 1] = tonumber(pid) end
      return #pids == 3
    end))
    kit.kill(math.tointeger(tonumber(helper.read(note .. ".parent"))), 9)
    for _, pid in ipairs(pids) do
      assert(helper.wait(function() return not helper.alive(pid) end, 1), pid)
    end
  end)

  it("a result that cannot be sent kills a handler thread: here it is the item's error", function()
    only_one_lost(function() error(coroutine.create(double)) end, "error")
    local pool <close> = plua.pool { workers = 2, on_error = "collect" }
    local list <const> = pool:map(function(i) return i == 3 and coroutine.create(double) or i end,
      plua.range(1, N))
    assert.equal("encode", list[3].kind)
    answers(pool)
  end)

  it("a result larger than a pipe deadlocks with a dead worker: here all others arrive", function()
    local list <const> = plua.map(function(i)
      if i % 5 == 0 then kit.raise(9) end
      return ("x"):rep(300000 + i)
    end, plua.range(1, N), { workers = 3, retries = 0, on_error = "collect" })
    for i = 1, N do
      if i % 5 == 0 then
        assert.equal("SIGKILL", list[i].signal)
      else
        assert.equal(300000 + i, #list[i])
      end
    end
  end)

  it("an item that hangs takes its pool along: here a timeout costs it alone", function()
    local pool <close> = plua.pool { workers = 2, timeout = 0.1, on_error = "collect" }
    local list <const> = pool:map(function(i)
      while i == 7 do end
      return 2 * i
    end, plua.range(1, N))
    assert.equal("timeout", list[7].kind)
    for i = 1, N do assert(i == 7 or list[i] == 2 * i) end
    answers(pool)
  end)

  it("an iterator that raises hangs the feeding thread: here its error is raised", function()
    local pool <close> = plua.pool { workers = 2 }
    local n = 0
    local ok <const>, err <const> = pcall(pool.map, pool, double, function()
      n = n + 1
      if n == 5 then error("no more") end
      return n
    end)
    assert.is_false(ok)
    assert.truthy(tostring(err):find("no more", 1, true))
    answers(pool)
  end)
end)
