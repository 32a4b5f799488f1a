-- Memory in workers: what they share with their parent, what they may use, when they are replaced.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"

local sanitized <const> = helper.san ~= ""
local FOREVER <const> = 1 << 40

local function pid() return plua.worker().pid end

local function kinds(results)
  local list <const> = {}
  for i = 1, results.n do
    list[i] = plua.iserror(results[i]) and results[i].kind or "fine"
  end
  return table.concat(list, " ")
end

-- The outcome of an item that runs alone, and of one after it, on one worker of 32 MiB.
local function alone(f, opts)
  local given <const> = { workers = 1, memory = "32M", on_error = "collect" }
  for name, value in pairs(opts or {}) do given[name] = value end
  local r <const> = plua.map(function(i) return i == 1 and f() or pid() end, { 1, 2 }, given)
  return r[1], r[2]
end

local function collect()
  collectgarbage()
  collectgarbage()
end

describe("a worker's limit of memory", function()
  helper.guard()

  local greedy <const> = {
    ["one huge string"] = function() return #("x"):rep(1 << 30) end,
    ["a list that grows"] = function()
      local t <const> = {}
      for i = 1, FOREVER do t[i] = i end
      return #t
    end,
    ["keys that grow"] = function()
      local t <const> = {}
      for i = 1, FOREVER do t["key" .. i] = true end
      return #t
    end,
    ["a string that doubles"] = function()
      local s = "x"
      while true do s = s .. s end
    end,
    ["many small tables"] = function()
      local t <const> = {}
      for i = 1, FOREVER do t[i] = { i } end
      return #t
    end,
    ["closures"] = function()
      local t <const> = {}
      for i = 1, FOREVER do t[i] = function() return i end end
      return #t
    end,
    ["coroutines"] = function()
      local t <const> = {}
      for i = 1, FOREVER do t[i] = coroutine.create(print) end
      return #t
    end,
    ["a buffer"] = function()
      local half <const> = ("x"):rep(11 << 20)
      return #table.concat({ half, half, half })
    end,
    ["what a coroutine holds"] = function()
      return coroutine.wrap(function() return #("x"):rep(1 << 30) end)()
    end,
  }
  for name, f in pairs(greedy) do
    it("refuses " .. name .. ", as an error of that item, and the worker goes on", function()
      local err <const>, after <const> = alone(f)
      assert.equal("memory", err.kind)
      assert.equal(1, err.index)
      assert.equal(1, err.attempts)
      assert.matches("^not enough memory: [%d.]+[KMG ]?%l* more, beside [%d.]+[KMG ]?%l*, is " ..
        "above the worker's limit of 32M$", err.message)
      assert.matches("memory_spec%.lua:%d+$", err.where)
      assert.matches("^item 1 %(1%): not enough memory: .* %(wanted at ", tostring(err))
      assert.equal(err.pid, after)
    end)
  end

  it("is no error where the item catches it", function()
    local caught <const>, after <const> = alone(function()
      local fine <const>, why <const> = pcall(string.rep, "x", 1 << 30)
      return { fine, why, pid() }
    end)
    assert.same({ false, "not enough memory", after }, caught)
  end)

  it("is not that of an error which came later", function()
    local err <const> = alone(function()
      pcall(string.rep, "x", 1 << 30)
      error("something else")
    end)
    assert.equal("error", err.kind)
    assert.matches("something else", err.message)
  end)

  if helper.san == "" then -- a sanitizer wants addresses of its own
    it("without one too, is not told with what an item before was refused", function()
      local script <const> = helper.script [[
        local function f(i)
          if i == 1 then return (select(2, pcall(string.rep, "x", (1 << 31) - 100))) end
          error("not enough memory", 0)
        end
        local opts = { workers = 1, chunksize = 2, on_error = "collect" }
        local got = require("plua").map(f, { 1, 2 }, opts)
        print(got[1], tostring(got[2]):match "[^\n]*")
      ]]
      local result <const> = helper.run("ulimit -v 2500000; " .. helper.plua .. " " .. script)
      assert.equal("not enough memory\titem 2 (2): not enough memory\n", result.out, result.err)
    end)
  end

  it("counts garbage only until it is collected", function()
    local sum <const> = alone(function()
      local n = 0
      for i = 1, 300 do n = n + #("x"):rep((1 << 20) + i) end
      return n
    end)
    assert.equal(300 * (1 << 20) + 300 * 301 // 2, sum)
  end)

  it("does not count what is inherited", function()
    local before <const> = {}
    for i = 1, 200000 do before[i] = { i } end
    local n <const> = alone(function()
      local t <const> = {}
      for i = 1, 2000 do t[i] = before[i][1] end
      return #t
    end, { memory = "1M" })
    assert.equal(2000, n)
  end)

  it("replaces a worker that stays nearly full, and charges nobody", function()
    local r <const> = plua.map(function(i)
      _G.HELD = _G.HELD or {}
      _G.HELD[#_G.HELD + 1] = ("x"):rep((3 << 20) + i)
      return { i, pid(), #_G.HELD }
    end, plua.range(1, 30), { workers = 1, memory = "32M", chunksize = 30 })
    local pids, n = {}, 0
    for i, result in ipairs(r) do
      assert.equal(i, result[1])
      if not pids[result[2]] then n = n + 1 end
      pids[result[2]] = true
      assert.truthy(result[3] < 10, result[3])
    end
    assert.truthy(n >= 3, n)
    assert.is_nil(_G.HELD)
  end)

  it("holds for a block of a fold", function()
    local _, errs <const> = plua.mapreduce(function(i)
      return i == 3 and #("x"):rep(1 << 30) or i
    end, math.max, { 1, 2, 3, 4 }, { workers = 1, memory = "32M", on_error = "collect" })
    assert.equal("memory", errs[1].kind)
    assert.equal(3, errs[1].index)
  end)

  it("holds for init, which is told once", function()
    local fine <const>, err <const> = pcall(plua.map, print, { 1, 2 }, { workers = 2,
      memory = "32M", init = function() _G.HELD = ("x"):rep(1 << 30) end })
    assert.is_false(fine)
    assert.equal("init", err.kind)
    assert.matches("^init: not enough memory: 1G more", tostring(err))
  end)

  it("holds for the items of a pool, and for what it is sent", function()
    local pool <close> = plua.pool { workers = 1, memory = "32M", on_error = "collect" }
    local r <const> = pool:map(function(s) return #(s .. "!") end,
      { "a", ("b"):rep(40 << 20), "c", ("d"):rep(20 << 20), "e" })
    assert.equal("fine memory fine memory fine", kinds(r))
    assert.equal(2, r[5])
    assert.equal("memory", select(2, pcall(pool.apply, pool, string.rep, "x", 1 << 30)).kind)
    assert.equal(3, pool:apply(math.max, 1, 3))
  end)

  it("is tried again where retries say so", function()
    local err <const> = alone(greedy["one huge string"], { retries = 2 })
    assert.equal("memory", err.kind)
    assert.equal(3, err.attempts)
  end)

  it("is none where items run in their caller's process", function()
    assert.equal(40 << 20, (alone(function() return #("x"):rep(40 << 20) end, { workers = 0 })))
  end)

  it("is an option of the command", function()
    local script <const> = helper.script [[
      return { data = { 1, 2 }, map = function(i) return #("x"):rep(i == 2 and 1 << 30 or 5) end }
    ]]
    local result <const> = helper.run(helper.plua .. " -j 1 --memory 32M " .. script)
    assert.equal(1, result.status)
    assert.matches("item 2 %(2%): not enough memory: 1G more, .* limit of 32M %(wanted at .*:1%)",
      result.err)
    assert.equal("5\n", result.out)
  end)

  -- A sanitizer's allocator ends the process where the system refuses.
  if not sanitized then
    it("holds for C code, together with Lua's memory", function()
      local r <const> = plua.map(function(i)
        if i == 4 then _G.HELD = ("x"):rep(12 << 20) end
        return kit.eat(({ 1, 4, 100, 1, 30, 1 })[i] << 20)
      end, { 1, 2, 3, 4, 5, 6 }, { workers = 1, memory = "32M" })
      assert.same({ true, true, false, true, false, true, n = 6 }, r)
    end)

    it("is told from what the system refuses", function()
      local script <const> = helper.script [[
        local kit = require "crashkit"
        local plua = require "plua"
        local r = plua.map(function(i) return #("x"):rep(i == 2 and 1 << 30 or 5) end, { 1, 2, 3 },
          { workers = 1, on_error = "collect" })
        print(r[1], r[2].kind, r[2].message, r[3])
      ]]
      local result <const> = helper.run("ulimit -v 1500000; " .. helper.plua .. " " .. script)
      assert.equal("5\tmemory\tnot enough memory: the system refused 1G more\t5\n", result.out)
    end)

    for k = 1, 12 do
      it("or its arena cannot be mapped (" .. k .. "): items are right or told of", function()
        local script <const> = helper.script [[
          local plua = require "plua"
          local r = plua.map(function(i) return #("x"):rep(i << 16) end, { 1, 2, 3 },
            { workers = 1, memory = "32M", on_error = "collect" })
          for i = 1, 3 do assert(r[i] == i << 16 or r[i].kind == "memory", tostring(r[i])) end
        ]]
        local result <const> = helper.run(("IOFAIL=mmap:12:%d LD_PRELOAD=%s %s %s"):format(k,
          helper.build .. "/preload/iofail.so", helper.plua, script))
        assert.truthy(result.status == 0 or result.err:find("Cannot allocate memory", 1, true) or
          result.err:find("init: no worker starts", 1, true), result.err)
      end)
    end
  end
end)

describe("a limit of resident memory", function()
  helper.guard()

  it("replaces a worker that has grown above it, between two items", function()
    local r <const> = plua.map(function(i)
      _G.HELD = _G.HELD or {}
      if i % 3 == 0 then _G.HELD[1] = ("x"):rep(80 << 20) end
      return { i, pid() }
    end, { 1, 2, 3, 4, 5, 6, 7 }, { workers = 1, max_rss = "64M", chunksize = 7 })
    for i = 2, 7 do
      assert.equal(i, r[i][1])
      assert.equal((i - 1) % 3 ~= 0, r[i][2] == r[i - 1][2])
    end
  end)

  it("lets a worker be that starts above it", function()
    local held <const> = ("x"):rep(100 << 20)
    local r <const> = plua.map(function() return #held > 0 and pid() end, { 1, 2, 3, 4, 5 },
      { workers = 1, max_rss = "16M", chunksize = 1 })
    for i = 2, 5 do assert.equal(r[1], r[i]) end
  end)

  it("holds in a pool", function()
    local pool <close> = plua.pool { workers = 1, max_rss = "64M" }
    local first <const> = pool:apply(function() _G.HELD = ("x"):rep(80 << 20) return pid() end)
    assert.not_equal(first, pool:apply(pid))
    assert.equal(2, pool:stats().started)
  end)
end)

describe("what a worker shares with its parent", function()
  helper.guard()

  local HEAPS <const> = {
    tables = function(i) return { id = i, name = "item" .. i } end,
    strings = function(i) return "a string that is not so short " .. i end,
    closures = function(i) return function() return i end end,
  }

  local function heap_of(kind)
    local heap <const> = {}
    for i = 1, 300000 do heap[i] = HEAPS[kind](i) end
    return heap
  end

  local function memory()
    local field <const> = {}
    for line in io.lines("/proc/self/smaps_rollup") do
      local name <const>, kib <const> = line:match("^(%S+):%s+(%d+) kB")
      if name then field[name] = tonumber(kib) end
    end
    return field.Private_Dirty + field.Private_Clean, field.Shared_Dirty
  end

  if not sanitized then
    for kind in pairs(HEAPS) do
      it("is nearly all of a heap of " .. kind .. ", however much garbage it makes", function()
        -- In a process of its own, whose heap holds nothing else.
        local script <const> = helper.script(([[
          package.path = "scripts/?.lua;" .. package.path
          local m = require "bench_memory"("%s", 50)
          print(m.private < 15 << 20, m.shared > 0.98 * m.heap)
        ]]):format(kind))
        local result <const> = helper.run(helper.plua .. " " .. script)
        assert.equal("true\ttrue\n", result.out, result.err)
      end)
    end

    it("is nearly all of a heap of strings, though items make others, however full their table is",
      function()
        local script <const> = helper.script([[
          local plua = require "plua"
          local heap = {}
          for i = 1, 230000 do heap[i] = ("string number %016d"):format(i) end
          collectgarbage()
          local bytes = collectgarbage("count")
          local shared = plua.map(function(x)
            local s
            for i = 1, 400000 do s = x .. i end
            for line in io.lines("/proc/self/smaps_rollup") do
              s = tonumber(line:match("^Shared_Dirty:%s+(%d+)")) or s
            end
            return s
          end, { "s" }, { workers = 1 })[1]
          print(#heap, shared > 0.8 * bytes)
        ]])
        local result <const> = helper.run(helper.plua .. " " .. script)
        assert.equal("230000\ttrue\n", result.out, result.err)
      end)

    it("has blocks of its own that keep what is in them, whatever order they come in", function()
      local result <const> = helper.run(helper.build .. "/host/arena_random", { timeout = 60 })
      assert.equal(0, result.status, result.err .. result.out)
      assert.truthy(result.out:find("ok: %d+ rounds"), result.out)
    end)

    it("gives memory back that its items no longer use", function()
      local most, left = table.unpack(plua.map(function()
        local t = {}
        for i = 1, 600000 do t[i] = { i } end
        for i = 1, 20 do t[-i] = ("x"):rep(2 << 20) end
        local full <const> = memory()
        t = #t
        collectgarbage()
        return { full, (memory()), t }
      end, { 1 }, { workers = 1 })[1], 1, 2)
      assert.truthy(most > 80000, most)
      assert.truthy(left < 45000, left)
    end)
  end

  it("is not collected again while it stays as large", function()
    local heap <const>, seen = heap_of("tables"), 0
    do
      local watched <const> = setmetatable({}, { __gc = function() seen = seen + 1 end })
      plua.map(function() return #heap + #watched end, { 1 }, { workers = 1 })
    end
    plua.map(function() return #heap end, { 1 }, { workers = 1 })
    assert.equal(0, seen)
    collect()
    assert.equal(1, seen)
  end)

  it("is not collected again where the script has just done so", function()
    local heap <const>, seen = heap_of("tables"), 0
    do
      local watched <const> = setmetatable({}, { __gc = function() seen = seen + 1 end })
      for _ = 1, 2 do
        collectgarbage()
        plua.map(function() return #heap + #watched end, { 1 }, { workers = 1 })
      end
      collectgarbage()
    end
    plua.map(function() return #heap end, { 1 }, { workers = 1 })
    assert.equal(0, seen)
    collect()
    assert.equal(1, seen)
  end)

  it("is collected again when it has grown since the script did so", function()
    local heap <const>, seen = heap_of("tables"), 0
    local more <const> = {}
    do
      local watched <const> = setmetatable({}, { __gc = function() seen = seen + 1 end })
      plua.map(function() return #heap + #watched end, { 1 }, { workers = 1 })
      collectgarbage()
    end
    for i = 1, #heap // 5 do more[i] = { id = i, name = "item" .. i } end
    plua.map(function() return #heap + #more end, { 1 }, { workers = 1 })
    assert.equal(1, seen)
  end)

  it("holds neither data nor results of a call that is over", function()
    local kept <const> = setmetatable({}, { __mode = "k" }) -- keys go last, after finalisers
    local pool <close> = plua.pool { workers = 1 }
    local function make(x) return { x } end
    for name, map in pairs { map = plua.map, pool_map = function(...) return pool:map(...) end } do
      local data = {}
      for i = 1, 1000 do data[i] = i end
      kept[data], kept[map(make, data)] = name .. "'s data", name .. "'s results"
    end
    collectgarbage()
    local found <const> = {}
    for _, what in pairs(kept) do found[#found + 1] = what end
    assert.same({}, found)
  end)

  it("is collected again when it has grown by more than a tenth", function()
    local heap <const>, seen = heap_of("tables"), 0
    do
      local watched <const> = setmetatable({}, { __gc = function() seen = seen + 1 end })
      plua.map(function() return #heap + #watched end, { 1 }, { workers = 1 })
    end
    local more <const> = heap_of("tables")
    plua.map(function() return #heap + #more end, { 1 }, { workers = 1 })
    assert.equal(1, seen)
  end)

  it("holds no garbage, that of a moment ago neither: it is finalised once", function()
    local heap <const>, marks <const> = heap_of("tables"), helper.tmp() .. "/marks"
    local function note()
      local file <close> = assert(io.open(marks, "ab"))
      file:write("x")
    end
    for _ = 1, 3 do
      setmetatable({}, { __gc = note })
      plua.map(function()
        collectgarbage("step")
        return #heap
      end, { 1, 2 }, { workers = 2 })
    end
    assert.equal("xxx", helper.read(marks))
  end)
end)

describe("the caller's mode of collection", function()
  helper.guard()

  local function mode_after(mode, call)
    collectgarbage(mode)
    call()
    local found <const> = collectgarbage("incremental")
    collectgarbage("generational")
    return found
  end

  local function fine() plua.map(math.abs, { 1, 2 }, { workers = 1 }) end
  local function failing() pcall(plua.map, error, { 1, 2 }, { workers = 1 }) end
  local function left()
    local loop <close> = select(4, plua.imap(math.abs, { 1, 2, 3 }, { workers = 1 }))
    assert.truthy(loop)
  end
  local function pooled()
    local pool <close> = plua.pool { workers = 1 }
    pool:map(math.abs, { 1 })
  end

  -- Runs in a process of its own, whose heap is small.
  it("is what it was when the call ends, by an error too", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      local calls = {
        function() plua.map(math.abs, { 1, 2 }, { workers = 1 }) end,
        function() pcall(plua.map, error, { 1, 2 }, { workers = 1 }) end,
        function() for _ in plua.imap(math.abs, { 1, 2, 3 }, { workers = 1 }) do break end end,
        function()
          local pool <close> = plua.pool { workers = 1 }
          pool:map(math.abs, { 1 })
        end,
      }
      for _, mode in ipairs { "incremental", "generational" } do
        for _, call in ipairs(calls) do
          collectgarbage(mode)
          call()
          print(collectgarbage(mode) == mode)
        end
      end
    ]]
    assert.equal(("true\n"):rep(8), helper.run(helper.plua .. " " .. script).out)
  end)

  it("collects a large heap whole again when that has grown by half, not before", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      local heap = {}
      local function grow(n) for i = #heap + 1, #heap + n do heap[i] = { i } end end
      local function call() plua.map(math.abs, { 1, 2 }, { workers = 1 }) end
      grow(200000)
      local gone = false
      local old = setmetatable({}, { __gc = function() gone = true end })
      call()
      old = nil
      for _ = 1, 2 do
        grow(60000)
        call()
        print(gone)
      end
    ]]
    assert.equal("false\ntrue\n", helper.run(helper.plua .. " " .. script).out)
  end)

  it("of a large heap comes back with the first collection after the call", function()
    local heap <const> = {}
    for i = 1, 200000 do heap[i] = { i } end
    for _, call in ipairs { fine, failing, left, pooled } do
      assert.equal("incremental", mode_after("incremental", function()
        call()
        for i = 1, 3000000 do heap[1] = { i, #heap } end
      end))
      assert.equal("generational", mode_after("generational", call))
    end
  end)
end)
