-- What users of multiprocessing.Pool, concurrent.futures and loky rely on, as the suites of those
-- define it, under the names that plua gives it.
-- luacheck: ignore 512
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local peers <const> = require "spec.peers"
local numbers <const>, check_squares <const> = helper.numbers, peers.check_squares
local failure <const>, refusal <const>, refuses <const> =
  peers.failure, peers.refusal, peers.refuses
local gate <const>, pids_of <const> = peers.gate, peers.pids_of

local function square(x) return x * x end

local function count(set)
  local n = 0
  for _ in pairs(set) do n = n + 1 end
  return n
end

--- 1 .. total, but an error at one of them.
local function failing(total, at)
  local i = 0
  return function()
    i = i + 1
    if i == at then error("say when") end
    return i <= total and i or nil
  end
end

describe("multiprocessing.Pool: a pool of plua", function()
  helper.guard()

  it("applies", function()
    local pool <close> = plua.pool { workers = 4 }
    assert.equal(25, pool:apply(square, 5))
    assert.same({ 1, 2, 3, nil, 5, n = 5 },
      table.pack(pool:apply(function(...) return ... end, 1, 2, 3, nil, 5)))
    assert.equal(0, select("#", pool:apply(function() end)))
    assert.same({ nil, n = 1 }, table.pack(pool:apply(function() return nil end)))
  end)

  it("maps in order, in whatever pieces", function()
    local pool <close> = plua.pool { workers = 4 }
    check_squares(pool:map(square, numbers(10)), 10)
    for _, size in ipairs { 1, 20, 100, "auto" } do
      check_squares(pool:map(square, numbers(100), { chunksize = size }), 100)
      check_squares(plua.map(square, numbers(100), { chunksize = size, workers = 2 }), 100)
    end
    check_squares(pool:map(square, numbers(10000)), 10000)
  end)

  it("refuses pieces of no size", function()
    local pool <close> = plua.pool { workers = 1 }
    for _, size in ipairs { 0, -1, 1.5, "big" } do
      refuses("chunksize", pool.map, pool, square, { 1 }, { chunksize = size })
    end
  end)

  it("starmaps in order", function()
    local pool <close> = plua.pool { workers = 4 }
    local pairs_, expected = {}, {}
    for i = 1, 100 do
      pairs_[i] = { i, 100 - i }
      expected[i] = i * (100 - i)
    end
    local function mul(a, b) return a * b end
    local list <const> = pool:starmap(mul, pairs_)
    local later <const> = pool:starmap_async(mul, pairs_, { chunksize = 7 }):get()
    for i = 1, 100 do assert.same({ expected[i], expected[i] }, { list[i], later[i] }) end
  end)

  it("answers empty data with nothing", function()
    local pool <close> = plua.pool { workers = 2 }
    local function never() error("called") end
    for _, on in ipairs { pool, plua } do
      local function call(name, ...)
        if on == plua then return plua[name](...) end
        return pool[name](pool, ...)
      end
      assert.same({ n = 0 }, call("map", never, {}))
      assert.same({ n = 0 }, call("starmap", never, {}))
      assert.same({ n = 0 }, call("map", never, function() end))
      for _ in call("imap", never, {}) do error("an item") end
      for _ in call("imap", never, function() end) do error("an item") end
      for _ in call("imap_unordered", never, {}) do error("an item") end
      assert.equal(0, call("each", never, {}))
      assert.same({ n = 0 }, call("filter", never, {}))
      assert.is_nil(call("find", never, {}))
      assert.is_nil((call("mapreduce", never, never, {})))
    end
    assert.same({ n = 0 }, pool:map_async(never, {}):get(1))
    assert.same({ n = 0 }, pool:starmap_async(never, {}):get(1))
  end)

  it("tells callbacks of map_async, once, in the owner", function()
    local pool <close> = plua.pool { workers = 2 }
    local told = {}
    local future <const> = pool:map_async(square, numbers(10))
    future:add_done_callback(function(f) told[#told + 1] = { f:get(), kit.pid() } end)
    future:wait()
    assert.equal(1, #told)
    check_squares(told[1][1], 10)
    assert.equal(kit.pid(), told[1][2])
    future:get()
    assert.equal(1, #told)
  end)

  it("tells callbacks of errors", function()
    local pool <close> = plua.pool { workers = 2 }
    local told
    local future <const> = pool:map_async(function(x) error("wrong " .. x) end, { 7 })
    future:add_done_callback(function(f) told = f end)
    future:wait(10)
    assert.equal(future, told)
    assert.is_false(told:successful())
    assert(tostring(failure(told.get, told)):find("wrong 7", 1, true))
  end)

  it("refuses what cannot cross before anything runs, and goes on", function()
    local dir <const> = helper.tmp()
    local pool <close> = plua.pool { workers = 2 }
    local function mark(x)
      helper.write(dir .. "/ran", "")
      return x
    end
    local thread <const> = coroutine.create(print)
    local text = refusal(pool.map, pool, function(x) return x end, { 1, 2, { a = { thread } } })
    for _, part in ipairs { "item 3", ".a[1]", "coroutine" } do
      assert(text:find(part, 1, true), text)
    end
    text = refusal(pool.map_async, pool, function(x) return x end, { 1, io.stdout })
    assert(text:find("item 2", 1, true) and text:find("FILE*", 1, true), text)
    text = refusal(pool.apply, pool, mark, 1, thread)
    assert(text:find("argument 2", 1, true), text)
    text = refusal(pool.apply_async, pool, function() return thread end)
    assert(text:find("coroutine", 1, true), text)
    check_squares(pool:map(square, numbers(10)), 10)
    assert.is_nil(helper.read(dir .. "/ran"))
  end)

  it("charges one item for a result that cannot cross", function()
    local pool <close> = plua.pool { workers = 2 }
    local function f(x)
      if x == 3 then return { deep = { coroutine.create(print) } } end
      return x
    end
    for _, list in ipairs { pool:map(f, numbers(5), { on_error = "collect" }),
      plua.map(f, numbers(5), { on_error = "collect", workers = 2 }) } do
      for _, i in ipairs { 1, 2, 4, 5 } do assert.equal(i, list[i]) end
      assert.same({ "encode", 3 }, { list[3].kind, list[3].index })
      assert(tostring(list[3]):find(".deep[1]", 1, true), tostring(list[3]))
    end
    assert.equal("encode", failure(pool.apply, pool, f, 3).kind)
    assert.equal(4, pool:apply(f, 4))
    assert.equal(2, pool:stats().started)
  end)

  it("hands on what an iterator raises, and goes on", function()
    local pool <close> = plua.pool { workers = 2 }
    for _, at in ipairs { 1, 3, 7 } do
      for _, size in ipairs { 1, 2, 4, "auto" } do
        local opts <const> = { chunksize = size }
        for _, name in ipairs { "map", "each", "filter", "starmap" } do
          refuses("say when", pool[name], pool, square, failing(10, at), opts)
          refuses("say when", plua[name], square, failing(10, at), opts)
        end
        refuses("say when", pool.map_async, pool, square, failing(10, at), opts)
      end
    end
    check_squares(pool:map(square, numbers(10)), 10)
  end)

  it("delivers by imap what came before an iterator raised", function()
    local pool <close> = plua.pool { workers = 2 }
    for _, name in ipairs { "imap", "imap_unordered" } do
      for _, at in ipairs { 1, 3, 7 } do
        for _, size in ipairs { 1, 2, 4 } do
          for _, on in ipairs { pool, plua } do
            local seen, n = {}, 0
            local function items() return failing(10, at) end
            local text <const> = refusal(function()
              local opts <const> = { chunksize = size }
              local function body(i, r)
                seen[i] = r
                n = n + 1
              end
              if on == plua then
                for i, r in plua[name](square, items(), opts) do body(i, r) end
              else
                for i, r in pool[name](pool, square, items(), opts) do body(i, r) end
              end
            end)
            assert(text:find("say when", 1, true), text)
            assert.equal(at - 1, n)
            for i = 1, at - 1 do assert.equal(i * i, seen[i]) end
          end
        end
      end
    end
    check_squares(pool:map(square, numbers(10)), 10)
  end)

  it("answers get with a timeout in time, and later with the value", function()
    local pool <close> = plua.pool { workers = 2 }
    local wait <const>, open <const> = gate()
    local future <const> = pool:apply_async(wait, "value")
    local began <const> = kit.now()
    assert.equal("timeout", failure(future.get, future, 0.05).kind)
    assert.equal("timeout", failure(future.wait, future, 0.05).kind)
    assert.equal("timeout", failure(future.get, future, 0).kind)
    assert(kit.now() - began >= 0.1 and kit.now() - began < 2)
    assert.is_false(future:ready())
    refuses("not done", future.successful, future)
    open()
    assert.equal("value", future:get(10))
    assert.is_true(future:ready())
    assert.is_true(future:successful())
  end)

  it("imaps lazily and in order, over lists and iterators", function()
    local pool <close> = plua.pool { workers = 4 }
    for _, size in ipairs { 1, 100, "auto" } do
      local n = 0
      for i, r in pool:imap(square, numbers(1000), { chunksize = size }) do
        n = n + 1
        assert.same({ n, n * n }, { i, r })
      end
      assert.equal(1000, n)
      local step <const> = pool:imap(square, plua.range(1, 3))
      assert.same({ 1, 1 }, { step() })
      assert.same({ 2, 4 }, { step() })
      assert.same({ 3, 9 }, { step() })
      assert.is_nil(step())
      assert.is_nil(step())
    end
  end)

  it("imaps without order, each once", function()
    local pool <close> = plua.pool { workers = 4 }
    local seen = {}
    for i, r in pool:imap_unordered(square, numbers(1000)) do
      assert.is_nil(seen[i])
      seen[i] = r
    end
    for i = 1, 1000 do assert.equal(i * i, seen[i]) end
    local wait <const>, open <const> = gate()
    local order = {}
    for i in pool:imap_unordered(function(x)
      if x == 1 then wait() end
    end, numbers(20), { chunksize = 1 }) do
      order[#order + 1] = i
      if #order == 10 then open() end
    end
    assert.equal(20, #order)
    assert.not_equal(1, order[1])
  end)

  it("goes on with imap after an item that failed, called by hand", function()
    local step <const>, _, _, team <close> = plua.imap(function(x)
      if x == 2 then error("two") end
      return x
    end, { 1, 2, 3 }, { workers = 2 })
    assert.same({ 1, 1 }, { step() })
    assert.equal(2, failure(step).index)
    assert.same({ 3, 3 }, { step() })
    assert.is_nil(step())
    assert.is_truthy(team)
  end)

  it("terminates at once though it is busy", function()
    local began <const> = kit.now()
    local pool <close> = plua.pool { workers = 4 }
    local future <const> = pool:map_async(function() kit.csleep(0.1) end, plua.range(1, 10000))
    local single <const> = pool:apply_async(kit.csleep, 8)
    pool:terminate()
    assert.is_true(pool:join())
    assert(kit.now() - began < 2)
    assert.equal("cancelled", failure(future.get, future).kind)
    assert.equal("cancelled", failure(single.get, single).kind)
    refuses("terminated", pool.map, pool, square, { 1 })
    pool:terminate()
    pool:close()
  end)

  it("takes no work once it is closed, and finishes what it has", function()
    local pool <close> = plua.pool { workers = 2 }
    local wait <const>, open <const> = gate()
    local futures = {}
    for i = 1, 20 do futures[i] = pool:apply_async(wait, i) end
    pool:close()
    for _, name in ipairs { "map", "starmap", "imap", "imap_unordered", "each", "filter", "find",
      "map_async", "starmap_async", "apply", "apply_async" } do
      refuses("closed", pool[name], pool, square, { 1 })
    end
    refuses("closed", pool.mapreduce, pool, square, square, { 1 })
    refuses("closed", pool.resize, pool, 3)
    assert.is_false(pool:join(0.05))
    open()
    assert.is_true(pool:join(10))
    for i = 1, 20 do assert.equal(i, futures[i]:get()) end
    pool:close()
    assert.is_true(pool:join())
  end)

  it("is not joined while it is open", function()
    local pool <close> = plua.pool { workers = 1 }
    refuses("close", pool.join, pool)
  end)

  it("finishes its work when its scope ends, and ends with an error of its scope", function()
    local future, outer
    do
      local pool <close> = plua.pool { workers = 2 }
      outer = pool
      check_squares(pool:map(square, numbers(10)), 10)
      future = pool:map_async(function(x)
        kit.csleep(0.01)
        return x * x
      end, numbers(10))
    end
    check_squares(future:get(), 10)
    refuses("closed", outer.map, outer, square, { 1 })
    local began <const> = kit.now()
    assert(refusal(function()
      local pool <close> = plua.pool { workers = 2 }
      future = pool:apply_async(kit.csleep, 8)
      error("out")
    end):find("out", 1, true))
    assert(kit.now() - began < 5)
    assert.equal("cancelled", failure(future.get, future).kind)
  end)

  it("shows where in the worker an error was raised", function()
    local pool <close> = plua.pool { workers = 1 }
    local function raising() error("some message") end
    local line <const> = debug.getinfo(raising, "S").linedefined
    local function outer(x)
      local r <const> = raising(x)
      return r
    end
    for _, err in ipairs { failure(pool.apply, pool, outer), failure(pool.map, pool, outer, { 1 }),
      failure(plua.map, outer, { 1 }, { workers = 1 }) } do
      local text <const> = tostring(err)
      assert(text:find(("peers_spec.lua:%d: some message"):format(line), 1, true), text)
      local _, frames <const> = err.traceback:gsub("peers_spec.lua:%d+:", "")
      assert(frames >= 2, text)
      assert.is_nil(text:find("plua/run.lua", 1, true), text)
    end
  end)

  it("prints the worker's traceback where a script does not catch it", function()
    local script <const> = helper.script [[
local plua = require "plua"
local function inner(x) error("some message " .. x) end
local function work(x) local r = inner(x) return r end
plua.map(work, { 1 })
]]
    local result <const> = helper.run(helper.plua .. " " .. script)
    assert.equal(1, result.status)
    assert(result.err:find("script.lua:2: some message 1", 1, true), result.err)
    assert(result.err:find("script.lua:3:", 1, true), result.err)
    assert.equal("", result.out)
  end)

  it("keeps the value of an error, whatever it is", function()
    local pool <close> = plua.pool { workers = 1 }
    local function raise(v) error(v, 0) end
    for _, value in ipairs { "text", 42, 1.5, true, { code = 7, { "nested" } } } do
      local err <const> = failure(pool.apply, pool, raise, value)
      assert.same({ "error", value }, { err.kind, err.value })
    end
    assert.equal(false, failure(pool.apply, pool, raise, false).value)
    local err <const> = failure(pool.apply, pool, raise, nil)
    assert.equal("error", err.kind)
    for _, make in ipairs {
      function() error(coroutine.create(print)) end,
      function() error(setmetatable({}, { __tostring = function() error("again") end })) end,
      function() error(setmetatable({}, { __tostring = function() return 5 end })) end,
      function()
        local t = {}
        t.t = t
        error(t)
      end,
      function() error(io.stdout) end,
      function() error(print) end,
    } do
      assert.equal("error", failure(pool.apply, pool, make).kind)
      assert.is_string(tostring(failure(pool.apply, pool, make)))
    end
    assert.equal(9, pool:apply(square, 3))
    assert.equal(1, pool:stats().started)
  end)

  it("raises the one error though all items fail, and none is counted twice", function()
    local pool <close> = plua.pool { workers = 2 }
    for _ = 1, 20 do
      local err <const> = failure(pool.map, pool, function(x) error("at " .. x) end, numbers(50))
      assert(err.message:find("at " .. err.index, 1, true))
    end
    local list <const> = pool:map(function(x) error("at " .. x) end, numbers(50),
      { on_error = "collect" })
    for i = 1, 50 do assert(list[i].index == i and list[i].message:find("at " .. i, 1, true)) end
    check_squares(pool:map(square, numbers(10)), 10)
  end)

  it("keeps no arguments and no results of calls that are over", function()
    local pool <close> = plua.pool { workers = 2 }
    local weak <const> = setmetatable({}, { __mode = "v" })
    local function f(t) return { t[1] } end
    do
      local data = {}
      for i = 1, 10 do
        data[i] = { i }
        weak[#weak + 1] = data[i]
      end
      local list = pool:map(f, data)
      for i = 1, 10 do weak[#weak + 1] = list[i] end
      for _, r in pool:imap(f, data) do weak[#weak + 1] = r end
      local future = pool:apply_async(f, data[1])
      weak[#weak + 1] = future
      weak[#weak + 1] = future:get()
      pool:map_async(f, data):get()
      list = plua.map(f, data, { workers = 2 })
      for i = 1, 10 do weak[#weak + 1] = list[i] end
      for _ in plua.imap(f, data, { workers = 2 }) do break end
    end
    pool:apply(square, 2)
    collectgarbage()
    collectgarbage()
    assert.equal(0, count(weak))
  end)

  it("keeps nothing of futures that nobody waits for", function()
    local pool <close> = plua.pool { workers = 2 }
    local weak <const> = setmetatable({}, { __mode = "v" })
    for i = 1, 20 do
      local object = { i }
      weak[#weak + 1] = object
      local future = pool:apply_async(function(t) return t end, object)
      weak[#weak + 1] = future
    end
    assert(helper.wait(function()
      pool:apply(square, 2)
      collectgarbage()
      collectgarbage()
      return count(weak) == 0
    end, 5))
  end)

  it("replaces workers after so many items", function()
    local pool <close> = plua.pool { workers = 3, max_tasks_per_child = 10 }
    local futures, pids = {}, {}
    for i = 1, 100 do
      futures[i] = pool:apply_async(function(x) return x * x, kit.pid() end, i)
    end
    for i = 1, 100 do
      local r <const>, pid <const> = futures[i]:get()
      assert.equal(i * i, r)
      pids[pid] = (pids[pid] or 0) + 1
    end
    assert(count(pids) >= 10)
    for _, n in pairs(pids) do assert(n <= 10) end
  end)

  it("gives each item a worker of its own under max_tasks_per_child = 1", function()
    local list <const> = plua.map(function() return kit.pid() end, numbers(30),
      { workers = 2, max_tasks_per_child = 1 })
    local pids = {}
    for i = 1, 30 do pids[list[i]] = true end
    assert.equal(30, count(pids))
  end)

  it("finishes its work though it is closed early and workers are replaced", function()
    local pool <close> = plua.pool { workers = 3, max_tasks_per_child = 1 }
    local futures = {}
    for i = 1, 6 do
      futures[i] = pool:apply_async(function(x)
        kit.csleep(0.03)
        return x * x
      end, i)
    end
    pool:close()
    assert.is_true(pool:join(10))
    for i = 1, 6 do assert.equal(i * i, futures[i]:get()) end
  end)

  it("runs init once in each worker, with what it captured, and replacements too", function()
    local path <const> = helper.tmp() .. "/starts"
    local config <const> = { offset = 100 }
    local pool <close> = plua.pool { workers = 2, max_tasks_per_child = 5, init = function()
      rawset(_G, "Offset", config.offset)
      local file <close> = assert(io.open(path, "a"))
      file:write("x")
    end }
    local list <const> = pool:map(function(x)
      return x + Offset -- luacheck: ignore
    end, numbers(50))
    for i = 1, 50 do assert.equal(i + 100, list[i]) end
    assert.is_nil(rawget(_G, "Offset"))
    pool:close()
    pool:join()
    local stats <const> = pool:stats()
    assert(#helper.read(path) >= 10, #helper.read(path))
    assert(stats.started >= 10)
  end)

  it("runs finish once in each worker that leaves", function()
    local path <const> = helper.tmp() .. "/ends"
    do
      local pool <close> = plua.pool { workers = 3, finish = function()
        local file <close> = assert(io.open(path, "a"))
        file:write("x")
      end }
      pids_of(pool, 20)
    end
    assert.equal("xxx", helper.read(path))
  end)

  it("ends workers and descriptors when it is collected", function()
    local fds <const>, children <const> = #kit.fds(), #helper.children()
    do
      local pool = plua.pool { workers = 3 }
      pool:map(square, numbers(10))
      pool:apply_async(kit.csleep, 8)
    end
    collectgarbage()
    collectgarbage()
    assert.same({ fds, children }, { #kit.fds(), #helper.children() })
  end)

  it("runs nested calls in the worker itself, at any depth", function()
    local function leaf(x) return { x, kit.pid() } end
    local function middle(x)
      local rows <const> = plua.map(leaf, { x, x + 1 }, { workers = 5 })
      local pool <close> = plua.pool { workers = 3 }
      return { rows, kit.pid(), pool:map(square, { x }), pool:apply(square, x) }
    end
    local function top(x) return { plua.map(middle, { x }, { workers = 2 }), kit.pid() } end
    local pool <close> = plua.pool { workers = 2 }
    for _, list in ipairs { plua.map(top, numbers(4), { workers = 2 }),
      pool:map(top, numbers(4)) } do
      for x = 1, 4 do
        local pid <const>, inner <const> = list[x][2], list[x][1][1]
        assert.equal(pid, inner[2])
        assert.same({ { x, pid }, { x + 1, pid } }, { inner[1][1], inner[1][2] })
        assert.same({ x * x, x * x }, { inner[3][1], inner[4] })
        assert.not_equal(kit.pid(), pid)
      end
    end
  end)

  it("says clearly that a pool of the parent's is not for workers", function()
    local pool <close> = plua.pool { workers = 2 }
    local text <const> = tostring(failure(plua.map, function(x) return pool:apply(square, x) end,
      { 1, 2 }, { workers = 2 }))
    assert(text:find("another process", 1, true) or text:find("inside", 1, true), text)
    assert.equal(4, pool:apply(square, 2))
    refuses("pool", pool.map, pool, function() return pool:apply(square, 1) end, { 1 })
  end)

  it("keeps its workers between calls", function()
    local pool <close> = plua.pool { workers = 2 }
    local before <const> = pids_of(pool, 50)
    for _ = 1, 5 do
      for pid in pairs(pids_of(pool, 50)) do assert.is_true(before[pid]) end
    end
    assert.equal(2, pool:stats().started)
  end)

  it("mixes calls: many maps and applies under way at once", function()
    local pool <close> = plua.pool { workers = 3 }
    local maps, applies = {}, {}
    for i = 1, 20 do
      maps[i] = pool:map_async(function(x) return x + i end, numbers(50))
      applies[i] = pool:apply_async(square, i)
    end
    check_squares(pool:map(square, numbers(100)), 100)
    for i = 20, 1, -1 do
      assert.equal(i * i, applies[i]:get())
      local list <const> = maps[i]:get()
      for k = 1, 50 do assert.equal(k + i, list[k]) end
    end
  end)
end)
