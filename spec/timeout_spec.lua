-- Timeouts: an item that runs for too long is ended, it alone; its worker lives on where Lua can be
-- interrupted. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local crash <const> = require "crashkit"

local TIMEOUT <const> = 0.1
local SLACK <const> = not helper.slow and 5 or 30 -- seconds: these are no measurements

local function nest(depth)
  if depth == 0 then while true do end end
  return coroutine.wrap(nest)(depth - 1)
end

local function ping_pong()
  local co <const> = coroutine.create(function() while true do coroutine.yield() end end)
  while true do coroutine.resume(co) end
end

local function many_coroutines()
  local list <const> = {}
  while true do list[#list % 1000 + 1] = coroutine.create(print) end
end

-- What Lua can be got out of.
local SOFT <const> = {
  ["a loop"] = function() while true do end end,
  ["a loop in nested coroutines"] = function() nest(20) end,
  ["coroutines that call each other"] = ping_pong,
  ["making coroutines without end"] = many_coroutines,
  ["a loop that swallows errors"] = function()
    while true do pcall(function() while true do end end) end
  end,
  ["a call that swallows the error and returns"] = function()
    pcall(function() while true do end end)
    return "fine"
  end,
  ["removing hooks"] = function() while true do debug.sethook() end end,
  ["a loop below a C function"] = function()
    table.sort({ 3, 1, 2 }, function() while true do end end)
  end,
  ["closing variables that loop"] = function()
    local _ <close> = setmetatable({}, { __close = function() while true do end end })
    while true do end
  end,
  ["a call of plua inside"] = function()
    plua.map(function() while true do end end, plua.range(1, 1000000), { on_error = "collect" })
  end,
}

-- What only a kill ends.
local HARD <const> = {
  ["a loop in C"] = function() return (("a"):rep(40)):find((".-"):rep(12) .. "b") end,
  ["a sleep in C that goes on after signals"] = function() crash.csleep(600) end,
  ["a loop with signals blocked"] = function()
    crash.blocksigs()
    while true do end
  end,
  ["a loop with signals ignored"] = function()
    crash.ignsigs()
    while true do end
  end,
  ["a finalizer that loops"] = function()
    setmetatable({}, { __gc = function() while true do end end })
    collectgarbage()
  end,
  ["a message handler that loops"] = function()
    xpcall(error, function() while true do end end)
  end,
  ["a stopped worker"] = function() crash.raise(19) end,
}

local WAYS <const> = {
  map = function(f, n, opts) return plua.map(f, plua.range(1, n), opts) end,
  imap = function(f, n, opts)
    local results <const> = { n = 0 }
    for i, result in plua.imap(f, plua.range(1, n), opts) do results[i], results.n = result, i end
    return results
  end,
  ["pool:map"] = function(f, n, opts)
    local pool <close> = plua.pool { workers = opts.workers }
    return pool:map(f, plua.range(1, n), { timeout = opts.timeout, on_error = opts.on_error })
  end,
}

-- Six items, of which the third does it; the others say where they ran.
local function run(way, workers, f)
  local began <const> = crash.now()
  local results <const> = WAYS[way](function(i)
    if i ~= 3 then return crash.pid() end
    return f()
  end, 6, { workers = workers, timeout = TIMEOUT, on_error = "collect" })
  assert.equal(6, results.n)
  local err <const> = results[3]
  assert.is_true(plua.iserror(err), tostring(err))
  assert.equal("timeout", err.kind, tostring(err))
  assert.same({ 3, 3, 1 }, { err.index, err.item, err.attempts })
  assert.matches("^item 3 %(3%) ran longer than 0%.1 s", err.message)
  assert.is_true(crash.now() - began >= TIMEOUT)
  assert.is_true(crash.now() - began < SLACK)
  local pids, count = { [err.pid] = true }, 1
  for i, pid in ipairs(results) do
    assert.equal(i == 3 and "table" or "number", type(pid), tostring(pid))
    if i ~= 3 and not pids[pid] then pids[pid], count = true, count + 1 end
  end
  return err, count
end

for _, workers in ipairs { 1, 2, 3 } do
  describe("with workers = " .. workers .. ", an item that runs for too long in", function()
    helper.guard()

    for name, f in pairs(SOFT) do
      for way in pairs(WAYS) do
        it(name .. " is interrupted and its worker goes on, by " .. way, function()
          local err <const>, processes <const> = run(way, workers, f)
          assert.is_nil(err.signal)
          assert.is_true(processes <= workers)
          assert.matches("timeout_spec.lua:%d+:", err.traceback)
          assert.matches("%.lua:%d+$", err.where) -- that of busted, where globals are looked up
        end)
      end
    end

    for name, f in pairs(HARD) do
      it(name .. " loses its worker", function()
        local err <const> = run("map", workers, f)
        assert.equal("SIGKILL", err.signal)
        assert.matches(", did not stop, and worker %d %(pid %d+%) was killed$", err.message)
        assert.equal(err.message, tostring(err))
      end)
    end
  end)
end

describe("a timeout", function()
  helper.guard()

  it("interrupts first, however long the caller was busy elsewhere", function()
    local results <const> = {}
    for i, result in plua.imap(function(i)
      while i == 2 do pcall(function() while true do end end) end
      return i
    end, { 1, 2 }, { workers = 1, timeout = TIMEOUT, on_error = "collect", chunksize = 1 }) do
      results[i] = result
      local ends <const> = crash.now() + 1
      while i == 1 and crash.now() < ends do end
    end
    assert.same({ "timeout", nil }, { results[2].kind, results[2].signal })
  end)

  it("kills by imap and on a pool too", function()
    for _, way in ipairs { "imap", "pool:map" } do
      assert.equal("SIGKILL", run(way, 2, HARD["a loop in C"]).signal)
    end
  end)

  it("tells where the item was stuck", function()
    local line <const> = debug.getinfo(1, "l").currentline + 1
    local function stuck() while true do end end
    local fine <const>, err <const> = pcall(plua.map, function() stuck() end, { "x" },
      { workers = 1, timeout = TIMEOUT })
    assert.is_false(fine)
    local where <const> = "timeout_spec.lua:" .. line
    assert.matches(where, err.where, 1, true)
    assert.matches("[^\n]*" .. where:gsub("%p", "%%%0") .. ": in [^\n]*stuck", err.traceback)
    assert.matches('^item 1 %("x"%) ran longer than 0.1 s %(stuck at %S+:' .. line ..
      "%)\n  in worker 1 %(pid %d+%)\nstack traceback:", tostring(err))
    assert.is_true(err.elapsed >= TIMEOUT / 2 and err.elapsed < SLACK)
  end)

  it("never hits the item that comes after", function()
    for _, workers in ipairs { 1, 2 } do
      local late = 0
      local results <const> = plua.map(function(i)
        local ends <const> = crash.now() + (i % 2 == 0 and 0.008 + i % 5 * 0.002 or 0)
        while crash.now() < ends do end
        return -i
      end, plua.range(1, 200), { workers = workers, timeout = 0.01, on_error = "collect" })
      for i = 1, 200 do
        if plua.iserror(results[i]) then
          late = late + 1
          assert.equal("timeout", results[i].kind)
          assert.equal(0, i % 2, tostring(results[i]))
          assert.is_nil(results[i].signal)
        else
          assert.equal(-i, results[i])
        end
      end
      assert.is_true(late > 0 and late <= 100)
    end
  end)

  it("hits each item of a batch that deserves it", function()
    local results <const> = plua.map(function(i) while i % 3 == 0 do end return i end,
      plua.range(1, 9), { workers = 1, timeout = 0.05, on_error = "collect", chunksize = 9 })
    for i = 1, 9 do
      if i % 3 == 0 then assert.equal("timeout", results[i].kind)
      else assert.equal(i, results[i]) end
    end
  end)

  it("leaves no hook behind", function()
    local results <const> = plua.map(function(i)
      while i == 1 do end
      local co <const> = coroutine.create(function() return debug.gethook() end)
      return { debug.gethook() == nil, select(2, coroutine.resume(co)) == nil }
    end, { 1, 2 }, { workers = 1, timeout = TIMEOUT, on_error = "collect" })
    assert.same({ true, true }, results[2])
  end)

  it("is not needed where an item sets a hook: that ends with the item", function()
    local sethook <const> = debug.sethook -- as modules keep it
    local function limit(set) set(function() error("too many steps") end, "", 1000) end
    local items <const> = {
      function() limit(debug.sethook) end, -- and forgets it
      function() limit(debug.sethook) while true do end end,
      function() limit(sethook) while true do end end,
      function() pcall(function() limit(debug.sethook) while true do end end) end,
    }
    local function f(i)
      if items[i] then return items[i]() end
      for _ = 1, 3000 do i = i + 1 end
      return debug.gethook() == nil
    end
    local pool <close> = plua.pool { workers = 1 }
    for n = 1, #items do
      local data <const> = { n, 5, 6, n = 3 }
      for name, call in pairs { map = plua.map, memory = plua.map, pool = function(...)
        return pool:map(...)
      end } do
        local opts <const> = { on_error = "collect", chunksize = 3 }
        if name ~= "pool" then opts.workers = 1 end
        if name == "memory" then opts.memory = "1G" end
        local results <const> = call(f, data, opts)
        assert.equal(n == 2 or n == 3, plua.iserror(results[1]))
        assert.same({ true, true }, { results[2], results[3] }, name .. n)
      end
    end
  end)

  it("leaves a hook alone that 'init' has set", function()
    local results <const> = plua.map(function() return debug.gethook() ~= nil end, { 1, 2, 3 },
      { workers = 1, init = function() debug.sethook(function() end, "", 1000000) end })
    assert.same({ true, true, true, n = 3 }, results)
  end)

  it("is the item's outcome, unless retries are asked for", function()
    local opts <const> = { workers = 1, timeout = 0.05, on_error = "collect" }
    local loop <const> = SOFT["a loop"]
    assert.equal(1, plua.map(loop, { 1 }, opts)[1].attempts)
    opts.retries = 2
    assert.equal(3, plua.map(loop, { 1 }, opts)[1].attempts)
    local results <const> = plua.map(function()
      while plua.worker().attempt < 3 do end
      return "late"
    end, { 1 }, opts)
    assert.equal("late", results[1])
  end)

  it("is for a block, of mapreduce, and names the item", function()
    local value <const>, errs <const> = plua.mapreduce(function(x)
      while x == 514 do end
      return x
    end, function(a, b) return a + b end, plua.range(1, 516),
      { workers = 2, timeout = TIMEOUT, on_error = "collect" })
    assert.equal(516 * 517 // 2 - 513 - 514, value)
    assert.equal(1, #errs)
    assert.matches("^item 514 %(514%) ran longer than 0.1 s", errs[1].message)
  end)

  it("is that of the pool, or of a call on it", function()
    local pool <close> = plua.pool { workers = 2, timeout = TIMEOUT, on_error = "collect" }
    local loop <const> = SOFT["a loop"]
    assert.equal("timeout", pool:map(loop, { 1 })[1].kind)
    local fine <const>, err <const> = pcall(pool.apply, pool, loop)
    assert.is_false(fine)
    assert.equal("timeout", err.kind)
    assert.equal("timeout", pool:map_async(loop, { 1 }):get()[1].kind)
    local function half(s) crash.csleep(s) return "done" end
    local long <const> = pool:map(half, { 3 * TIMEOUT }, { timeout = math.huge })
    assert.equal("done", long[1])
    local short <const> = pool:map(loop, { 1 }, { timeout = 0.02 })
    assert.matches("longer than 0.02 s", short[1].message)
    assert.equal(0, pool:stats().crashed)
  end)

  it("finds coroutines that earlier items of a pool made", function()
    local pool <close> = plua.pool { workers = 1 }
    pool:apply(function()
      local made <const> = coroutine.wrap(function()
        coroutine.yield()
        while true do end
      end)
      package.loaded.made = made
      made()
    end)
    local fine <const>, err <const> = pcall(pool.map, pool,
      function() return package.loaded.made() end, { 1 }, { timeout = TIMEOUT })
    assert.same({ false, "timeout", nil }, { fine, err.kind, err.signal })
    assert.equal(0, pool:stats().crashed)
  end)

  it("does nothing where the caller runs items itself, and inside items", function()
    local function slow() crash.csleep(0.03) return true end
    assert.is_true(plua.map(slow, { 1 }, { workers = 0, timeout = 0.001 })[1])
    local inner <const> = plua.map(function()
      return plua.map(slow, { 1 }, { timeout = 0.001 })[1]
    end, { 1 }, { workers = 1 })
    assert.is_true(inner[1])
  end)

  it("must be a number above 0", function()
    for _, value in ipairs { 0, -1, "1", 0 / 0, true } do
      local fine <const>, message <const> =
        pcall(plua.map, print, {}, { timeout = value })
      assert.is_false(fine)
      assert.matches("option 'timeout' must be a number of seconds above 0", message, 1, true)
    end
    assert.equal(1, plua.map(math.abs, { -1 }, { workers = 1, timeout = math.huge })[1])
    assert.equal(1, plua.map(math.abs, { -1 }, { workers = 1, timeout = 86400 })[1])
  end)

  it("can be given on the command line, and by a job", function()
    local script <const> = helper.script [[
      return { data = { 1, 2, 3 }, map = function(x) while x == 2 do end return x end,
        on_error = "collect", timeout = tonumber(arg[1]) }
    ]]
    for _, line in ipairs { "--timeout 0.1 " .. script, "--timeout=.1 " .. script,
      "-j 1 " .. script .. " 0.1", "--timeout 100 " .. script .. " 0.1" } do
      local result <const> = helper.run(helper.plua .. " " .. line)
      assert.same({ "1\n3\n", 1 }, { result.out, result.status })
      assert.matches("^item 2 %(2%) ran longer than 0.1 s %(stuck at ", result.err)
    end
    local result <const> = helper.run(helper.plua .. " --timeout soon " .. script)
    assert.equal(2, result.status)
    assert.matches("option 'timeout' must be a number of seconds above 0", result.err, 1, true)
  end)
end)

describe("a worker that somebody stops while it runs nothing", function()
  helper.guard()

  local SIGSTOP <const>, SIGCONT <const> = 19, 18
  local function double(i) return 2 * i end
  local function check(r)
    for i = 1, 50 do assert.equal(2 * i, r[i]) end
  end

  it("is replaced where there is a timeout, and costs no item", function()
    for _, workers in ipairs { 1, 2 } do
      local pool <close> = plua.pool { workers = workers, retries = 0 }
      for _ = 1, 3 do
        crash.kill(pool:apply(crash.pid), SIGSTOP)
        check(pool:map(double, plua.range(1, 50), { timeout = TIMEOUT }))
      end
      assert.equal(0, pool:stats().crashed)
    end
  end)

  it("is replaced before its first item too", function()
    local path <const> = helper.tmp() .. "/started"
    local function init()
      if helper.read(path) then return end
      helper.write(path, "x")
      crash.raise(SIGSTOP)
    end
    for _, workers in ipairs { 1, 2 } do
      os.remove(path)
      check(plua.map(double, plua.range(1, 50),
        { workers = workers, timeout = TIMEOUT, init = init }))
    end
  end)

  it("does not keep a pool that had a timeout from ending", function()
    local pool <close> = plua.pool { workers = 2, timeout = TIMEOUT }
    check(pool:map(double, plua.range(1, 50)))
    crash.kill(pool:apply(crash.pid), SIGSTOP)
    pool:close()
    assert.is_true(pool:join(SLACK))
  end)

  local function ends_with_stopped(pool, pid)
    crash.kill(pid, SIGSTOP)
    pool:close()
    local gone <const> = pool:join(SLACK)
    if not gone then crash.kill(pid, 9) end -- or this would hang
    assert.is_true(gone)
  end

  it("does not keep a pool that had a long timeout from ending", function()
    local pool <close> = plua.pool { workers = 2 }
    check(pool:map(double, plua.range(1, 50), { timeout = 1000 }))
    local pid <const> = pool:apply(crash.pid)
    ends_with_stopped(pool, pid)
  end)

  it("is left alone while its pool that ends has work to give out", function()
    local dir <const> = helper.tmp() .. "/"
    local pool <close> = plua.pool { workers = 2, finish = function()
      helper.write(dir .. crash.pid(), "x")
    end }
    local pids <const> = pool:map(function() crash.csleep(0.1) return crash.pid() end, { 1, 2 },
      { chunksize = 1 })
    crash.kill(pids[1], SIGSTOP)
    for _ = 1, 2400 do pool:apply_async(crash.csleep, 0.001) end -- more than lie ready at once
    pool:close()
    local gone <const> = pool:join(4 * SLACK)
    if not gone then crash.kill(pids[1], 9) end
    assert.is_true(gone)
    assert.equal("x", helper.read(dir .. pids[1]))
  end)

  it("does not keep any pool from ending, and runs 'finish'", function()
    local path <const> = helper.tmp() .. "/finished"
    local pool <close> = plua.pool { workers = 2, finish = function() helper.write(path, "x") end }
    local pid <const> = pool:apply(crash.pid)
    ends_with_stopped(pool, pid)
    assert.equal("x", helper.read(path))
  end)

  it("does not keep a pool from ending though it is stopped again", function()
    local pool <close> = plua.pool { workers = 1, finish = function() crash.raise(SIGSTOP) end }
    local pid <const> = pool:apply(crash.pid)
    crash.kill(pid, SIGSTOP)
    pool:close()
    local fine <const>, err <const> = pcall(pool.join, pool, SLACK)
    if fine then crash.kill(pid, 9) end
    assert.same({ false, "crash" }, { fine, err.kind })
    assert.matches("was killed by SIGKILL while running 'finish'", err.message, 1, true)
  end)

  it("does not keep a one-shot call from ending", function()
    local script <const> = helper.script(([[
      local plua, crash = require "plua", require "crashkit"
      local r = plua.map(crash.pid, { 1, 2 }, { workers = 2, chunksize = 1,
        finish = function() crash.raise(%d) end })
      print(r.n)
    ]]):format(SIGSTOP))
    local result <const> = helper.run(helper.lua .. " " .. script, { timeout = SLACK })
    assert.equal("2\n", result.out, result.err)
  end)

  it("does not keep its place when the pool is made smaller", function()
    local pool <close> = plua.pool { workers = 2 }
    local meet <const> = pool:map(function() crash.csleep(0.1) return crash.pid() end, { 1, 2 },
      { chunksize = 1 })
    for _, pid in ipairs(meet) do crash.kill(pid, SIGSTOP) end
    pool:resize(1)
    local future <const> = pool:apply_async(crash.pid)
    pcall(future.wait, future, 2)
    local left <const> = helper.wait(function()
      return not helper.alive(meet[1]) or not helper.alive(meet[2])
    end)
    for _, pid in ipairs(meet) do if helper.alive(pid) then crash.kill(pid, SIGCONT) end end
    assert.is_true(left)
    assert.truthy(meet[1] == future:get() or meet[2] == future:get())
  end)

  it("keeps the item that it runs, though its pool ends", function()
    local pool <close> = plua.pool { workers = 1 }
    local future <const> = pool:apply_async(function() crash.raise(SIGSTOP) return crash.pid() end)
    pool:close()
    assert.same({ pcall(pool.join, pool, 2) }, { true, false })
    for _, pid in ipairs(helper.children()) do crash.kill(pid, SIGCONT) end
    assert.is_true(pool:join(SLACK))
    assert.equal("number", type(future:get()))
  end)

  it("is waited for where there is none", function()
    local pool <close> = plua.pool { workers = 1 }
    local pid <const> = pool:apply(crash.pid)
    crash.kill(pid, SIGSTOP)
    local future <const> = pool:apply_async(crash.pid)
    local fine <const>, err <const> = pcall(future.wait, future, 3 * TIMEOUT)
    crash.kill(pid, SIGCONT)
    assert.same({ false, "timeout" }, { fine, err.kind })
    assert.equal(pid, future:get())
  end)
end)
