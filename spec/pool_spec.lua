-- Pools: living workers that functions and items are sent to; how they end.
-- SPDX-License-Identifier: MIT

-- Functions that are sent must not carry the spec runner's environment along.
local describe <const>, it <const>, assert <const> = describe, it, assert
local _ENV <const> = _G -- luacheck: ignore 211
-- luacheck: globals Ready State

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local crash <const> = require "crashkit"
local numbers <const>, counter <const> = helper.numbers, helper.counter

local function add(a, b) return a + b end

for _, workers in ipairs { 0, 1, 2, 3, 7, 64 } do
  describe("a pool of " .. workers .. " workers", function()
    helper.guard()

    it("maps as plua.map does", function()
      local pool <close> = plua.pool { workers = workers }
      local f <const> = function(x, i) return x * 10 + i end
      assert.same({ 51, 62, 73, n = 3 }, pool:map(f, { 5, 6, 7 }))
      assert.same({ 11, 22, n = 2 }, pool:map(f, counter(2)))
      assert.same({ 11, 22, n = 2 }, pool:map(f, plua.range(1, 2)))
      assert.same({ n = 0 }, pool:map(f, {}))
      assert.same({ 2.0, n = 1 }, pool:map(math.sqrt, { 4 }))
      assert.same({ "ab", n = 1 }, pool:starmap(function(a, b) return a .. b end, { { "a", "b" } }))
    end)

    it("carries each of many items as what it is, there and back", function()
      local pool <close> = plua.pool { workers = workers }
      local items <const> = { n = 20000 }
      for i = 1, items.n do items[i] = helper.kind(i) end
      local function same(x) return x end
      helper.check_kinds(pool:map(same, items), items.n)
      helper.check_kinds(pool:map_async(same, items):get(), items.n)
      local function cost(x) return x and 1 or 2 end
      helper.check_kinds(pool:map(same, items, { weight = cost }), items.n)
    end)

    it("runs every other call over data too", function()
      local pool <close> = plua.pool { workers = workers }
      assert.equal(9, pool:each(function() end, numbers(9)))
      assert.same({ 2, 4, n = 2 }, pool:filter(function(x) return x % 2 == 0 end, plua.range(1, 5)))
      assert.same({ 4, 8 }, { pool:find(function(x) return x > 3 and 2 * x end, counter(1 << 40)) })
      for _, data in ipairs { numbers(100), plua.range(1, 100) } do
        local sum, n = 0, 0
        for i, r in pool:imap(function(x) return x end, data) do
          n = n + 1
          assert.equal(n, i)
          sum = sum + r
        end
        for _, r in pool:imap_unordered(function(x) return x end, data) do sum = sum + r end
        assert.equal(10100, sum)
      end
    end)

    it("folds to the same bits as a one-shot team", function()
      local pool <close> = plua.pool { workers = workers }
      local f <const> = function(x) return 1 / x end
      local expected <const> = plua.mapreduce(f, add, plua.range(1, 3000), { workers = 1 })
      assert.equal(expected, (pool:mapreduce(f, add, plua.range(1, 3000))))
      assert.equal(expected, (pool:mapreduce(f, add, numbers(3000))))
    end)

    it("apply answers all results, nils too", function()
      local pool <close> = plua.pool { workers = workers }
      local echo <const> = function(...) return ... end
      assert.same({ n = 3, 1, nil, 3 }, table.pack(pool:apply(echo, 1, nil, 3)))
      assert.equal(0, select("#", pool:apply(function() end)))
    end)

    it("apply refuses more values than a message holds, and goes on", function()
      local pool <close> = plua.pool { workers = workers }
      local many <const> = function(n) return table.unpack({}, 1, n) end
      for n = 50000, 950000, 50000 do
        local future <const> = pool:apply_async(many, n)
        future:wait()
        local fine <const>, found <const> = pcall(function() return select("#", future:get()) end)
        assert.equal(fine and n or "encode", fine and found or found.kind)
      end
      assert.is_false(pcall(pool.apply, pool, tostring, many(250000)))
      assert.equal(1, pool:apply(math.tointeger, 1))
    end)

    it("sends a function with its upvalues as they are at the call", function()
      local pool <close> = plua.pool { workers = workers }
      local factor = 2
      local f <const> = function(x) return x * factor end
      assert.equal(10, pool:apply(f, 5))
      factor = 3
      assert.equal(15, pool:apply(f, 5))
      assert.same({ 3, 6, n = 2 }, pool:map(f, { 1, 2 }))
    end)

    it("refuses what cannot cross before anything runs", function()
      local pool <close> = plua.pool { workers = workers }
      local path <const> = helper.tmp() .. "/ran"
      local f <const> = function() io.open(path, "w"):close() end
      local conn <const> = io.stdout
      local _, err = pcall(pool.map, pool, f, { 1, 2, { conn = { socket = conn } } })
      assert.equal("encode", err.kind)
      assert.equal("item 3: .conn.socket: userdata (FILE*)", err.message)
      _, err = pcall(pool.map, pool, function() return conn end, { 1 })
      assert.equal("encode", err.kind)
      assert.matches("^function.*upvalue 'conn': userdata %(FILE%*%)", err.message)
      _, err = pcall(pool.apply, pool, f, 1, conn)
      assert.matches("argument 2: userdata %(FILE%*%)", err.message)
      assert.is_nil(io.open(path))
      assert.equal(4, pool:apply(add, 2, 2))
    end)

    it("draws random numbers by the seed and the count of calls", function()
      local draw <const> = function() return math.random(1 << 40) end
      local function run()
        local pool <close> = plua.pool { workers = workers, seed = 5 }
        local first <const>, second <const> = pool:map(draw, numbers(5)), pool:map(draw, numbers(5))
        return { first, second, pool:apply(draw), pool:apply(draw) }
      end
      local results <const> = run()
      local pool <close> = plua.pool { workers = 1, seed = 5 }
      assert.same(results[1], pool:map(draw, numbers(5)))
      assert.same(results[1], plua.map(draw, numbers(5), { workers = workers, seed = 5 }))
      assert.not_same(results[1], results[2])
      assert.same(results, run())
      assert.not_equal(results[3], results[4])
    end)

    it("draws other numbers for single calls; a call with a seed draws those", function()
      local function draw() return math.random(1 << 40) end
      local pool <close> = plua.pool { workers = workers, seed = 5 }
      assert.not_equal(pool:map(draw, { 1 })[1], pool:apply(draw))
      local wanted <const> = plua.map(draw, numbers(3), { workers = workers, seed = 5 })
      for _ = 1, 2 do assert.same(wanted, pool:map(draw, numbers(3), { seed = 5 })) end
    end)

    it("tells of a single call that failed the number that its worker knew", function()
      local pool <close> = plua.pool { workers = workers }
      local function fail() error { item = plua.worker().item } end
      local function fail_too(_, _) fail() end
      pool:apply(tostring, 1)
      for n, f in ipairs { fail, fail, fail_too } do
        local _ <const>, err <const> = pcall(pool.apply, pool, f, "a")
        assert.equal(n + 1, err.index)
        assert.equal(n + 1, err.value.item)
        assert.is_nil(err.item)
        assert.matches("^item " .. n + 1 .. ": ", tostring(err))
      end
    end)

    it("serves several calls at once", function()
      local pool <close> = plua.pool { workers = workers }
      local a <const> = pool:map_async(function(x) return x end, numbers(100))
      local b <const> = pool:starmap_async(function(x) return -x end, { { 1 }, { 2 } })
      local sum = 0
      for _, r in pool:imap(function(x) return x end, numbers(50)) do
        sum = sum + r + pool:apply(add, r, 0)
      end
      assert.equal(2550, sum)
      assert.same({ -1, -2, n = 2 }, b:get())
      assert.equal(100, a:get()[100])
    end)

    it("goes on after errors of items", function()
      local pool <close> = plua.pool { workers = workers }
      for _ = 1, 20 do
        local fine <const>, err <const> = pcall(pool.map, pool, function(x)
          if x == 5 then error("five") end
          return x
        end, numbers(40))
        assert.is_false(fine)
        assert.equal(5, err.index)
      end
      assert.same({ 1, 2, n = 2 }, pool:map(function(x) return x end, { 1, 2 }))
    end)

    it("a loop that is left leaves the pool at work", function()
      local pool <close> = plua.pool { workers = workers }
      for i in pool:imap(function(x) return x end, counter(1 << 40)) do
        if i == 5 then break end
      end
      assert.equal(3, pool:apply(add, 1, 2))
    end)

    it("finishes what was submitted when it is left normally", function()
      local path <const> = helper.tmp() .. "/log"
      do
        local pool <close> = plua.pool { workers = workers }
        pool:map_async(function(x)
          local file <close> = io.open(path, "a")
          file:write(x, "\n")
        end, numbers(20))
      end
      assert.equal(20, select(2, io.open(path):read("a"):gsub("\n", "")))
    end)

    it("runs init and finish in each worker, and join tells what finish raised", function()
      local pool <const> = plua.pool {
        workers = workers, init = function() Ready = "ready" end,
        finish = function() error("unfinished business") end,
      }
      assert.equal("ready", pool:apply(function() return Ready end))
      pool:close()
      local fine <const>, err <const> = pcall(pool.join, pool)
      assert.is_false(fine)
      assert.matches("unfinished business", tostring(err))
      rawset(_G, "Ready", nil)
    end)

    it("is joined though a future was waited for until the workers had gone", function()
      local pool <const> = plua.pool { workers = workers }
      local future <const> = pool:map_async(function(x) return x end, numbers(50))
      pool:close()
      assert.equal(50, future:get()[50])
      for _ = 1, 1000 do future:ready() end
      pool.handle:pump(nil, 0.2) -- takes in the end, which is told once
      assert.is_true(pool:join(20))
    end)

    it("says why it takes no work after close, terminate and join", function()
      local pool <const> = plua.pool { workers = workers }
      assert.has_error(function() pool:join() end, "close or terminate the pool before you join it")
      pool:close()
      assert.has_error(function() pool:map(print, { 1 }) end,
        "the pool is closed: it takes no more work")
      assert.is_true(pool:join())
      assert.is_true(pool:join())
      pool:terminate()
      assert.has_error(function() pool:apply(print) end,
        "the pool is terminated: it takes no more work")
    end)
  end)
end

-- ---- death and ends ----------------------------------------------------------------------------

for _, workers in ipairs { 1, 2, 3, 7 } do
  describe("a pool of " .. workers .. " workers", function()
    helper.guard()

    it("loses one item to a death, and gets a new worker", function()
      local pool <close> = plua.pool { workers = workers, retries = 0 }
      for round = 1, 5 do
        local results <const> = pool:map(function(x)
          if x == 7 then require("crashkit").raise(9) end
          return x
        end, numbers(30), { on_error = "collect" })
        assert.equal("crash", results[7].kind, "round " .. round)
        assert.equal(7, results[7].item)
        for i = 1, 30 do assert.is_true(i == 7 or results[i] == i) end
      end
    end)

    it("shows replacements the state that the pool was made with", function()
      State = "then"
      local pool <close> = plua.pool { workers = workers, retries = 0 }
      State = "now"
      local look <const> = load("return _G.State")
      assert.equal("then", pool:apply(look))
      for _ = 1, workers + 2 do pcall(pool.apply, pool, crash.segv) end
      for _ = 1, 10 do assert.equal("then", pool:apply(look)) end
      rawset(_G, "State", nil)
    end)

    it("is ended at once by terminate, whatever runs", function()
      local pool <const> = plua.pool { workers = workers }
      local running <const> = pool:apply_async(crash.csleep, 100)
      local list <const> = pool:map_async(crash.csleep, { 100, 100 })
      pool:terminate()
      assert.same({}, helper.children())
      for _, future in ipairs { running, list } do
        local fine <const>, err <const> = pcall(future.get, future)
        assert.is_false(fine)
        assert.equal("cancelled", err.kind)
      end
    end)

    it("may be terminated by the iterator that gives its items", function()
      local pool <const> = plua.pool { workers = workers }
      local step <const> = pool:imap(math.abs, function()
        pool:terminate()
        return 1
      end)
      local fine <const>, err <const> = pcall(step)
      assert.is_false(fine)
      assert.matches("the pool is terminated", tostring(err))
      assert.same({}, helper.children())
    end)

    it("cannot be terminated by a hook while a value is encoded for it", function()
      local pool <const> = plua.pool { workers = workers }
      local Evil <const> = { __plua_save = function() pool:terminate() end }
      plua.register("spec.evil", Evil)
      local evil <const> = setmetatable({}, Evil)
      local given <const> = { evil }
      for _, call in ipairs {
        function() pool:map(math.abs, given) end,
        function() pool:map(function() return evil end, { 1 }) end,
        function() pool:apply(math.abs, evil) end,
        pool:imap(math.abs, function() return evil end),
      } do
        local fine <const>, err <const> = pcall(call)
        assert.is_false(fine)
        assert.matches("the pool is in use by the call that this one interrupts", tostring(err))
      end
      assert.equal(2, pool:apply(math.abs, -2))
      pool:terminate()
      assert.same({}, helper.children())
    end)

    it("is terminated when an error leaves its scope", function()
      local begun <const> = crash.now()
      local fine <const>, err <const> = pcall(function()
        local pool <close> = plua.pool { workers = workers }
        pool:apply_async(crash.csleep, 100)
        error("left", 0)
      end)
      assert.same({ false, "left" }, { fine, err })
      assert.is_true(crash.now() - begun < 50)
    end)

    it("is terminated when it is collected", function()
      plua.pool({ workers = workers }):apply_async(crash.csleep, 100)
      collectgarbage()
      collectgarbage()
      assert.same({}, helper.children())
    end)

    it("join gives up when its time is over", function()
      local pool <const> = plua.pool { workers = workers }
      pool:apply_async(crash.csleep, 100)
      pool:close()
      assert.is_false(pool:join(0.05))
      pool:terminate()
      assert.is_true(pool:join())
    end)

    it("counts", function()
      local pool <close> = plua.pool { workers = workers }
      pool:map(function(x) return x end, numbers(10))
      local stats <const> = pool:stats()
      assert.equal(10, stats.submitted)
      assert.equal(10, stats.done)
      assert.equal(workers, stats.workers)
    end)
  end)
end

describe("a pool", function()
  helper.guard()

  it("can be resized", function()
    local pool <close> = plua.pool { workers = 1 }
    pool:apply(add, 1, 2)
    pool:resize(3)
    pool:map(function(x) return x end, numbers(100))
    assert.equal(3, pool:stats().workers)
    pool:resize(1)
    assert.is_truthy(helper.wait(function()
      pool:apply(add, 1, 2)
      return pool:stats().alive == 1
    end))
    assert.has_error(function() pool:resize(0) end)
    assert.has_error(function() pool:resize("many") end)
  end)

  it("runs inside an item in the item's worker", function()
    local results <const> = plua.map(function()
      local pool <close> = plua.pool { workers = 4 }
      return pool:apply(function() return require("crashkit").pid() end) == crash.pid()
    end, { 1 }, { workers = 1 })
    assert.is_true(results[1])
  end)

  it("tells a worker that inherited it whose it is", function()
    local pool <close> = plua.pool { workers = 1 }
    local results <const> = plua.map(function()
      return select(2, pcall(pool.map, pool, math.sqrt, { 4 }))
    end, { 1 }, { workers = 1 })
    assert.matches("belongs to the process that made it", tostring(results[1]))
    assert.matches("plua.map", tostring(results[1]))
    assert.equal(3, pool:apply(add, 1, 2))
  end)

  it("is not ended by a worker that inherited and collects it", function()
    local pool <close> = plua.pool { workers = 1 }
    local holder <const> = { pool }
    plua.map(function()
      if holder[1] then pcall(holder[1].terminate, holder[1]) end
      holder[1] = nil
      collectgarbage()
    end, { 1, 2 }, { workers = 2 })
    assert.equal(3, pool:apply(add, 1, 2))
  end)

  it("keeps the order of a million small items", function()
    local pool <close> = plua.pool { workers = 2 }
    local results <const> = pool:map(function(x) return -x end, plua.range(1, 1000000))
    for i = 1, 1000000 do
      if results[i] ~= -i then error("item " .. i) end
    end
  end)

  it("carries items and results of many megabytes", function()
    local pool <close> = plua.pool { workers = 2 }
    local big <const> = ("0123456789abcdef"):rep(1 << 18)
    local results <const> = pool:map(function(s) return s .. #s end, { big, big, big })
    assert.equal(big .. #big, results[3])
  end)

  it("is opened and closed five hundred times without a trace", function()
    for i = 1, 500 do
      local pool <close> = plua.pool { workers = 2 }
      if i % 2 == 0 then assert.equal(i, pool:apply(add, i, 0)) end
    end
  end)

  it("that is closed in a loop over results goes on with it, then its workers leave", function()
    local function list()
      local items <const> = {}
      for i = 1, 9000 do items[i] = i end
      return items
    end
    local function iterator()
      local n = 0
      return function()
        n = n + 1
        return n <= 9000 and n or nil
      end
    end
    for _, data in ipairs { plua.range(1, 9000), list(), iterator() } do
      for _, workers in ipairs { 0, 1, 3 } do
        local pool <close> = plua.pool { workers = workers }
        local sum = 0
        local items <const> = type(data) == "function" and iterator() or data
        for i, x in pool:imap(function(x) return x end, items) do
          if i == 3 then pool:close() end
          sum = sum + x
        end
        assert.equal(9000 * 9001 // 2, sum)
        assert.is_true(pool:join(20))
      end
    end
  end)

  it("that is joined in a loop over results ends the loop by an error", function()
    for _, workers in ipairs { 0, 2 } do
      local pool <close> = plua.pool { workers = workers }
      local ok <const>, message <const> = pcall(function()
        for i in pool:imap(function(x) return x end, plua.range(1, 1000000)) do
          if i == 3 then
            pool:close()
            assert.is_true(pool:join(20))
          end
        end
      end)
      assert.is_false(ok)
      assert.matches("the pool ended while this loop went on", message)
    end
  end)

  it("names the script's line, not its own, when it is misused", function()
    local pool <const> = plua.pool { workers = 2 }
    local ok <const>, message <const> = pcall(function() pool:resize(60000) end)
    assert.is_false(ok)
    assert.matches("^[^\n]*pool_spec.lua:%d+: a pool of 2 can be resized to 1 .. %d+ workers",
      message)
    local future <const> = pool:apply_async(function() while true do end end)
    local err <const> = plua.map(function() return (future:get()) end, { 1 },
      { workers = 1, on_error = "collect" })[1]
    assert.matches("pool_spec.lua:%d+: plua: this pool belongs to the process that made it",
      err.message)
    pool:terminate()
  end)

  it("lets registered classes cross", function()
    local Point <const> = {}
    Point.__index = Point
    function Point.sum(p) return p.x + p.y end
    plua.register("pool_spec.Point", Point)
    local pool <close> = plua.pool { workers = 1 }
    local p <const> = pool:apply(function(q)
      q.x = q:sum()
      return q
    end, setmetatable({ x = 1, y = 2 }, Point))
    assert.equal(5, p:sum())
  end)
end)

describe("a pool in a process that the script forked", function()
  helper.guard()

  it("does nothing as it is closed, and refuses work by name", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua, kit = require "plua", require "crashkit"
      local function use(pool)
        local future <const> = pool:apply_async(kit.csleep, 100)
        if kit.fork() > 0 then return future:cancel() and "parent" end
        for _, call in ipairs { "map", "apply", "imap" } do
          local fine, err = pcall(pool[call], pool, print, { 1 })
          assert(not fine and tostring(err):find("belongs to another process"), err)
        end
        local fine, err = pcall(future.get, future)
        assert(not fine and tostring(err):find("belongs to another process"), err)
        return "child"
      end
      local function scope()
        local pool <close> = plua.pool { workers = 1 }
        return use(pool)
      end
      local function scope_by_error()
        local pool <close> = plua.pool { workers = 1 }
        error(use(pool), 0)
      end
      local _, a = pcall(scope)
      local _, b = pcall(scope_by_error)
      kit.waitall()
      io.write(a, " ", b, "\n")]])
    local lines <const> = {}
    for line in result.out:gmatch("[^\n]+") do lines[#lines + 1] = line end
    table.sort(lines)
    assert.same({ "child child", "child parent", "parent child", "parent parent" }, lines,
      result.err)
    assert.same({ 0, "" }, { result.status, result.err })
  end)
end)

describe("a call on a pool that fails while it is sent", function()
  helper.guard()
  it("leaves the pool as it was", function()
    local pool <close> = plua.pool { workers = 2 }
    local many <const> = {}
    for i = 1, 200000 do many[i] = i end
    assert.is_false((pcall(function() return pool:apply(select, "#", table.unpack(many)) end)))
    assert.equal(5, pool:apply(math.abs, -5))
    assert.same({ 1, 2, n = 2 }, pool:map(math.abs, { -1, -2 }))
  end)

  it("explains ipairs and pairs", function()
    local pool <close> = plua.pool { workers = 1 }
    assert.error_matches(function() pool:map(math.abs, ipairs { 1 }) end, "what ipairs%(t%) gives")
  end)
end)
