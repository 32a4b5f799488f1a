-- One-shot calls: the same answers for any number of workers, in input order, and one outcome an
-- item whatever dies. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local core <const> = require "plua.core"
local crash <const> = require "crashkit"
local numbers <const>, counter <const> = helper.numbers, helper.counter

local TEAMS <const> = { 0, 1, 2, 3, 7, 64 }

local function add(a, b) return a + b end

for _, workers in ipairs(TEAMS) do
  local opts <const> = { workers = workers }

  describe("with workers = " .. workers .. ", map", function()
    helper.guard()

    it("answers in input order, and says how many items there were", function()
      local results <const> = plua.map(function(x, i) return x * 10 + i end, { 5, 6, 7 }, opts)
      assert.same({ 51, 62, 73, n = 3 }, results)
    end)

    it("keeps what each of many results is, whatever comes before and behind", function()
      local results <const> = plua.map(helper.kind, plua.range(1, 20000), opts)
      helper.check_kinds(results, 20000)
      assert.equal(20000, results.n)
    end)

    it("keeps holes of data with n, and nil results", function()
      local data <const> = { n = 4.0, [1] = 1, [4] = 4 }
      local results <const> = plua.map(function(x) return x end, data, opts)
      assert.same({ n = 4, [1] = 1, [4] = 4 }, results)
    end)

    it("answers an empty list for no data, and starts nobody", function()
      assert.same({ n = 0 }, plua.map(print, {}, opts))
      assert.is_nil((plua.mapreduce(print, print, {}, opts)))
      assert.equal(0, plua.each(print, {}, opts))
      assert.is_nil(plua.find(print, {}, opts))
      for _ in plua.imap(print, {}, opts) do error("no item has no result") end
      for _ in plua.imap_unordered(print, counter(0), opts) do error("nor this") end
    end)

    it("runs an iterator to its end", function()
      local results <const> = plua.map(function(x) return x * x end, counter(100), opts)
      assert.equal(100, results.n)
      assert.equal(10000, results[100])
    end)

    it("computes the items of a range in the workers", function()
      local results <const> = plua.map(function(x) return x end, plua.range(10, 1, -3), opts)
      assert.same({ 10, 7, 4, 1, n = 4 }, results)
    end)

    it("reads a list that is computed by a metatable", function()
      local data <const> = setmetatable({}, {
        __index = function(_, i) return i <= 3 and i * 2 or nil end,
        __len = function() return 3 end,
      })
      assert.same({ 2, 4, 6, n = 3 }, plua.map(function(x) return x end, data, opts))
    end)

    it("calls a C function with the item alone", function()
      assert.same({ 2.0, 3.0, n = 2 }, plua.map(math.sqrt, { 4, 9 }, opts))
      assert.same({ 10, 11, n = 2 }, plua.map(tonumber, { "10", "11" }, opts))
    end)

    it("sees upvalues, globals, userdata and modules as they are", function()
      local file <close> = assert(io.open("/dev/null"))
      local results <const> = plua.map(function() return io.type(file) end, { 1 }, opts)
      assert.equal("file", results[1])
    end)

    it("carries tables there and back as copies", function()
      local results <const> = plua.map(function(t)
        t.seen = true
        return { t, t }
      end, { { 1 }, { 2 } }, opts)
      assert.is_true(rawequal(results[1][1], results[1][2]))
      assert.same({ 2, seen = true }, results[2][1])
      local shared <const> = {}
      local copies <const> = plua.map(function(i)
        shared[1] = i
        return shared
      end, { 1, 2 }, opts)
      assert.same({ 1 }, copies[1])
    end)
  end)

  describe("with workers = " .. workers, function()
    helper.guard()

    it("starmap tells what is no list of arguments", function()
      local list <const> = { 5, { n = -1 }, { 1, n = 0.5 }, { n = 0 / 0 }, { n = 1 << 40 } }
      local results <const> = plua.starmap(print, list, { workers = workers, on_error = "collect" })
      for i, why in ipairs { "is no list of", "no number of", "no number of", "no number of",
        "has more arguments than a call takes" } do
        assert.equal("error", results[i].kind)
        assert.matches(why, results[i].message)
      end
    end)

    it("starmap spreads lists of arguments, with their n, and all values of an iterator", function()
      local results <const> = plua.starmap(function(...) return select("#", ...) end,
        { { 1, 2 }, {}, table.pack(nil, nil, nil) }, opts)
      assert.same({ 2, 0, 3, n = 3 }, results)
      local i = 0
      local iterator <const> = function()
        i = i + 1
        if i <= 3 then return i, nil, i end
      end
      results[1] = nil
      assert.same({ "1nil1", "2nil2", "3nil3", n = 3 }, plua.starmap(function(a, b, c)
        return tostring(a) .. tostring(b) .. tostring(c)
      end, iterator, opts))
    end)

    it("each sends nothing and counts", function()
      assert.equal(50, plua.each(function() return io.stdout end, numbers(50), opts))
    end)

    it("filter answers the items themselves", function()
      local items <const> = plua.filter(function(x) return x % 3 == 0 end, plua.range(1, 10), opts)
      assert.same({ 3, 6, 9, n = 3 }, items)
      local a <const>, b <const> = {}, {}
      assert.is_true(rawequal(b, plua.filter(function(_, i) return i == 2 end, { a, b }, opts)[1]))
    end)

    it("find answers the first true result, also of an endless iterator", function()
      local f <const> = function(x) return x >= 30 and x * 2 end
      assert.same({ 30, 60 }, { plua.find(f, plua.range(1, 1000), opts) })
      assert.same({ 30, 60 }, { plua.find(f, counter(math.huge), opts) })
      assert.is_nil(plua.find(f, { 1, 2 }, opts))
    end)

    it("mapreduce gives the same bits as one worker", function()
      local f <const> = function(x) return 1 / x end
      local expected <const> = plua.mapreduce(f, add, plua.range(1, 5000), { workers = 1 })
      assert.equal(expected, (plua.mapreduce(f, add, plua.range(1, 5000), opts)))
      assert.equal(expected, (plua.mapreduce(f, add, numbers(5000), opts)))
      assert.equal(expected, (plua.mapreduce(f, add, counter(5000), opts)))
    end)

    it("mapreduce keeps the order of what it folds", function()
      local letters <const> = plua.mapreduce(function(x) return tostring(x % 10) end,
        function(a, b) return a .. b end, plua.range(1, 2000), opts)
      assert.equal(("1234567890"):rep(200), letters)
    end)

    it("imap answers in input order", function()
      local at = 0
      for i, r in plua.imap(function(x) return x * 2 end, counter(500), opts) do
        at = at + 1
        assert.equal(at, i)
        assert.equal(2 * at, r)
      end
      assert.equal(500, at)
    end)

    it("imap and imap_unordered pass nil on as a result", function()
      for _, call in ipairs { plua.imap, plua.imap_unordered } do
        local n = 0
        for _, r in call(function() return nil end, { 1, 2, 3 }, opts) do
          n = n + 1
          assert.is_nil(r)
        end
        assert.equal(3, n)
      end
    end)

    it("imap_unordered answers each item once", function()
      local seen, n = {}, 0
      for i, r in plua.imap_unordered(function(x) return -x end, numbers(300), opts) do
        assert.is_nil(seen[i])
        assert.equal(-i, r)
        seen[i], n = true, n + 1
      end
      assert.equal(300, n)
    end)

    it("imap raises at the item's turn, and an iterator called by hand goes on", function()
      local iterator <const> = plua.imap(function(x)
        if x == 2 then error("two") end
        return x
      end, { 1, 2, 3 }, opts)
      assert.equal(1, (iterator()))
      local fine <const>, err <const> = pcall(iterator)
      assert.is_false(fine)
      assert.equal(2, err.index)
      assert.same({ 3, 3 }, { iterator() })
      assert.is_nil(iterator())
      assert.is_nil(iterator())
    end)

    it("imap delivers what came before an iterator's error, then that", function()
      local i, got = 0, {}
      local source <const> = function()
        i = i + 1
        if i == 4 then error("out of data", 0) end
        return i
      end
      local fine <const>, err <const> = pcall(function()
        for _, r in plua.imap(function(x) return x end, source, opts) do got[#got + 1] = r end
      end)
      assert.is_false(fine)
      assert.equal("out of data", err)
      assert.same({ 1, 2, 3 }, got)
    end)

    it("streams keep what belongs together, of small and large items, nil, errors", function()
      local n <const>, long <const> = 3000, ("x"):rep(70)
      local function item(i)
        if i % 7 == 0 then return { i } end
        return i % 5 == 0 and long .. i or i
      end
      local function source()
        local i = 0
        return function()
          i = i + 1
          if i > n then error("out of data", 0) end
          return item(i)
        end
      end
      local function f(x, i)
        if i % 100 == 1 then error("an error") end
        if i % 3 == 0 then return nil end
        return type(x) == "table" and x[1] or x
      end
      for _, name in ipairs { "imap", "imap_unordered" } do
        local seen, last = {}, 0
        local fine <const>, err <const> = pcall(function()
          local given <const> = { workers = opts.workers, on_error = "collect" }
          for i, r in plua[name](f, source(), given) do
            seen[i], last = (seen[i] or 0) + 1, last + 1
            if name == "imap" then assert.equal(last, i) end
            if i % 100 == 1 then
              assert.equal(i, r.index)
            else
              local x <const> = item(i)
              assert.equal(i % 3 ~= 0 and (type(x) == "table" and i or x) or nil, r)
            end
          end
        end)
        assert.is_false(fine)
        assert.equal("out of data", err)
        for i = 1, n do assert.equal(1, seen[i]) end
        assert.equal(n, last)
      end
    end)

    it("an iterator that gives several values is refused where one is wanted", function()
      local source <const> = function() return 1, 2 end
      assert.has_error(function() plua.map(print, source, opts) end)
      assert.has_error(function()
        for _ in plua.imap(print, source, opts) do error("no result") end
      end)
    end)

    it("a loop that is left ends its team", function()
      for i in plua.imap(function(x) return x end, counter(math.huge), opts) do
        if i == 10 then break end
      end
      assert.same({}, helper.children())
    end)

    it("random numbers depend on the seed and the item only", function()
      local draw <const> = function() return math.random(1 << 40) end
      local one <const> = plua.map(draw, numbers(50), { workers = 1, seed = 7 })
      assert.same(one, plua.map(draw, numbers(50), { workers = workers, seed = 7 }))
      local seen = {}
      for i = 1, 50 do
        assert.is_nil(seen[one[i]])
        seen[one[i]] = true
      end
    end)

    -- Each bit of each sum (exclusive or) is set in half of the items, within 5 standard
    -- deviations; a generator whose items shared half of its state would miss by 14.
    it("random numbers of an item know nothing of one another nor of the next item's", function()
      local count <const> = 5000
      local drawn <const> = plua.map(function()
        return { math.random(0), math.random(0), math.random(0), math.random(0) }
      end, plua.range(1, count + 1), { workers = workers, seed = 7 })
      local sums <const> = {
        function(a) return a[1] end, function(a) return a[4] end,
        function(a, b) return a[1] ~ b[1] end, function(a, b) return a[2] ~ b[1] end,
        function(a) return a[1] ~ a[2] end, function(a) return a[1] ~ a[2] ~ a[3] end,
        function(a) return a[1] ~ a[2] ~ a[3] ~ a[4] end,
      }
      for which, sum in ipairs(sums) do
        local set <const> = {}
        for i = 1, count do
          local x <const> = sum(drawn[i], drawn[i + 1])
          for bit = 1, 64 do set[bit] = (set[bit] or 0) + (x >> (bit - 1) & 1) end
        end
        for bit = 1, 64 do
          local deviation <const> = math.abs(set[bit] - count / 2) / math.sqrt(count / 4)
          assert.is_true(deviation < 5, ("sum %d, bit %d: %.1f"):format(which, bit, deviation))
        end
      end
    end)

    it("the default seed is one draw of the caller's generator", function()
      math.randomseed(11, 12)
      local a <const> = plua.map(function() return math.random() end, { 1, 2 }, opts)
      local after <const> = math.random()
      math.randomseed(11, 12)
      math.random(0)
      assert.equal(math.random(), after)
      math.randomseed(11, 12)
      assert.same(a, plua.map(function() return math.random() end, { 1, 2 }, { workers = 1 }))
    end)

    it("nested calls run in the worker, at any depth", function()
      local function tree(depth)
        if depth == 0 then return 1 end
        local parts <const> = plua.map(function() return tree(depth - 1) end, { 1, 2 },
          { workers = 4 })
        return parts[1] + parts[2]
      end
      assert.equal(32, plua.map(function() return tree(4) end, { 1, 2 }, opts)[2] * 2)
      local children <const> = plua.map(function()
        plua.map(function() return 1 end, { 1, 2, 3 }, { workers = 3 })
        return #helper.children(crash.pid())
      end, { 1 }, { workers = math.max(workers, 1) })
      assert.equal(0, children[1])
    end)

    it("nested random numbers derive from the enclosing item", function()
      local f <const> = function()
        return plua.map(function() return math.random(1 << 40) end, { 1, 2 })
      end
      local one <const> = plua.map(f, { 1, 2 }, { workers = 1, seed = 3 })
      assert.same(one, plua.map(f, { 1, 2 }, { workers = workers, seed = 3 }))
      assert.not_equal(one[1][1], one[2][1])
    end)

    it("tells an item who runs it", function()
      local me <const> = plua.map(function() return plua.worker() end, { "a", "b" }, opts)
      assert.equal(2, me[2].item)
      assert.equal(1, me[2].attempt)
      assert.equal(workers > 0, me[2].pid ~= crash.pid())
      assert.equal(workers > 0, me[2].id > 0)
      assert.is_nil(plua.worker())
    end)
  end)
end

-- ---- workers that die --------------------------------------------------------------------------

for _, workers in ipairs { 1, 2, 3, 7 } do
  describe("with workers = " .. workers .. ", a death", function()
    helper.guard()

    local function collect(f, n, retries)
      return plua.map(f, numbers(n), { workers = workers, retries = retries, on_error = "collect" })
    end

    local function check(results, n, victim)
      assert.equal(n, results.n)
      for i = 1, n do
        if i ~= victim then assert.equal(i, results[i]) end
      end
      return results[victim]
    end

    for _, signal in ipairs { { "SIGKILL", 9 }, { "SIGSEGV", 11 }, { "SIGTERM", 15 } } do
      it("by " .. signal[1] .. " costs the one item that ran", function()
        local err <const> = check(collect(function(i)
          if i == 20 then crash.kill(crash.pid(), signal[2]) end
          return i
        end, 100, 0), 100, 20)
        assert.equal("crash", err.kind)
        assert.equal(signal[1], err.signal)
        assert.equal(20, err.index)
        assert.equal(20, err.item)
        assert.equal(1, err.attempts)
      end)
    end

    it("is tried again once by default", function()
      local err <const> = check(collect(function(i)
        if i == 3 then crash.segv() end
        return i
      end, 10), 10, 3)
      assert.equal(2, err.attempts)
      local results <const> = plua.map(function(i)
        if i == 3 and plua.worker().attempt == 1 then crash.segv() end
        return i
      end, numbers(10), { workers = workers })
      assert.equal(3, results[3])
    end)

    it("by os.exit or exit() is an outcome of kind exit", function()
      for _, leave in ipairs { os.exit, crash.exit } do
        local err <const> = check(collect(function(i)
          if i == 5 then leave(3) end
          return i
        end, 30, 0), 30, 5)
        assert.equal("exit", err.kind)
        assert.equal(3, err.status)
      end
    end)

    it("with status 0 is a death too", function()
      local err <const> = check(collect(function(i)
        if i == 5 then os.exit(true, true) end
        return i
      end, 30, 0), 30, 5)
      assert.equal("exit", err.kind)
      assert.equal(0, err.status)
    end)

    it("leaves replacements with what the first team saw", function()
      local seen = "first"
      local got = {}
      for i, r in plua.imap(function(x)
        if x % 10 == 0 and plua.worker().attempt == 1 then crash.segv() end
        return seen
      end, numbers(40), { workers = workers }) do
        seen = "changed"
        got[i] = r
      end
      for i = 1, 40 do assert.equal("first", got[i]) end
    end)

    it("of every item's worker still ends the call", function()
      local results <const> = collect(function() crash.kill(crash.pid(), 9) end, 12, 0)
      for i = 1, 12 do assert.equal("crash", results[i].kind) end
    end)
  end)
end

describe("a hundred maps with workers killed at random", function()
  helper.guard()

  it("give every item its result", function()
    local seed <const> = os.time()
    math.randomseed(seed)
    for round = 1, 100 do
      local killer <const>, killed = math.random(200), 0
      local sum = 0
      for i, r in plua.imap_unordered(function(x)
        return { crash.pid(), x }
      end, numbers(200), { workers = 3, retries = 5 }) do
        assert.equal(i, r[2])
        sum = sum + i
        if i == killer and r[1] ~= crash.pid() and killed == 0 then
          killed = killed + 1
          crash.kill(r[1], 9)
        end
      end
      assert.equal(20100, sum, ("round %d of seed %d"):format(round, seed))
    end
  end)
end)

-- ---- the caller's process ----------------------------------------------------------------------

describe("a one-shot call", function()
  helper.guard()

  it("holds few results that are large, however many are to come", function()
    local script <const> = helper.script [[
      local plua, crash = require "plua", require "crashkit"
      local function large(i)
        if i == 50 then crash.csleep(0.5) end
        return ("x"):rep(1 << 18)
      end
      local n = 0
      local function iterator() n = n + 1 return n <= 1000 and n or nil end
      for _ in plua.imap(large, plua.range(1, 1000), { workers = 3 }) do end
      for _ in plua.imap(large, iterator, { workers = 3 }) do end
      for line in io.lines "/proc/self/status" do print(line:match "^VmHWM:%s+(%d+)") end
    ]]
    local result <const> = helper.run(helper.lua .. " " .. script)
    local kilobytes <const> = tonumber(result.out:match("%d+"))
    assert.is_true(kilobytes < (helper.san == "" and 64 or 512) * 1024, result.out .. result.err)
  end)

  it("hands over what has arrived while its iterator is slow", function()
    local pulled, ahead = 0, {}
    local function items()
      if pulled == 60 then return end
      local till <const> = core.now() + 0.01
      repeat until core.now() >= till
      pulled = pulled + 1
      return pulled
    end
    for i in plua.imap(function(x) return x end, items, { workers = 2 }) do
      ahead[i] = pulled - i
    end
    table.sort(ahead) -- half a window of 60 where results wait for it to be full
    assert.is_true(ahead[30] <= 8, table.concat(ahead, " "))
  end)

  it("pulls an iterator only as fast as results are taken", function()
    local pulled = 0
    local source <const> = function()
      pulled = pulled + 1
      return pulled
    end
    for i in plua.imap(function(x) return x end, source, { workers = 2 }) do
      assert.is_true(pulled <= 3 * i + 8)
      if i == 100 then break end
    end
  end)

  it("numbers items as the iterator gives them, which takes from its own loop too", function()
    for _, workers in ipairs { 0, 2 } do
      local given, calls, inside, loop = 0, 0, false, nil
      local seen, n = {}, 0
      local function take()
        local i <const>, r <const> = loop()
        if i then
          assert.equal(i, r)
          assert.is_nil(seen[i])
          seen[i], n = true, n + 1
        end
        return i
      end
      loop = plua.imap(function(x) return x end, function()
        calls = calls + 1
        if calls % 11 == 0 and not inside then
          inside = true
          take()
          inside = false
        end
        if calls > 900 then return nil end
        given = given + 1
        return given
      end, { workers = workers })
      repeat until not take()
      assert.equal(given, n)
    end
  end)

  it("has room for what blocks answer, and not for each item", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua = require "plua"
      local function one() return 1 end
      local function add(a, b) return a + b end
      print(plua.mapreduce(one, add, plua.range(1, 6000000), { workers = 2 }))
      for line in io.lines "/proc/self/status" do print(line:match "^VmHWM:%s+(%d+)") end
    ]])
    local sum <const>, kilobytes <const> = result.out:match("(%d+)%D+(%d+)")
    assert.equal("6000000", sum, result.err)
    assert.is_true(tonumber(kilobytes) < (helper.san == "" and 32 or 512) * 1024, result.out)
  end)

  it("keeps the parent's memory bounded over a long iterator", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua = require "plua"
      local function rss()
        for line in io.lines("/proc/self/status") do
          local kb = line:match("^VmRSS:%s*(%d+)")
          if kb then return tonumber(kb) end
        end
      end
      local i, n, before = 0, 1000000, nil
      local function source() i = i + 1 if i <= n then return i end end
      for k in plua.imap(function(x) return ("x"):rep(20) .. x end, source, {workers = 2}) do
        if k == 10000 then before = rss() end
      end
      print(rss() - before < 16 * 1024)
    ]])
    assert.equal("true\n", result.out .. result.err)
  end)

  it("writes what was buffered before it once only", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua = require "plua"
      io.stdout:setvbuf("full")
      io.write("once ")
      plua.map(function(x) io.write("item", x, " ") end, {1}, {workers = 2})
      io.write("end")
    ]])
    assert.equal("once item1 end", result.out)
  end)

  it("writes what workers left in files, and finalises nothing twice", function()
    local path <const> = helper.tmp() .. "/log"
    local result <const> = helper.run(helper.lua .. " " .. helper.script(([[
      local plua = require "plua"
      local file
      local function note(text)
        local f <close> = io.open(%q, "a")
        f:write(text, "\n")
      end
      setmetatable({}, {__gc = function() note("garbage") end})
      local live = setmetatable({}, {__gc = function() note("live") end})
      plua.map(function(x)
        file = file or io.open(%q .. "." .. x, "w")
        file:write("kept open")
        return 1
      end, {1, 2}, {workers = 2, chunksize = 1})
      live = nil
    ]]):format(path, path)))
    assert.equal("", result.err)
    assert.equal("garbage\nlive\n", io.open(path):read("a"))
    assert.matches("^kept open", (io.open(path .. ".1") or io.open(path .. ".2")):read("a"))
  end)

  it("gives workers an empty stdin, and leaves the parent's where it was", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua = require "plua"
      print(io.read("l"))
      local r = plua.map(function() return tostring(io.read("l")) end, {1, 2}, {workers = 2})
      print(r[1], r[2])
      print(io.read("l"))
    ]], { stdin = "one\ntwo\n" })
    assert.equal("one\nnil\tnil\ntwo\n", result.out)
  end)

  it("tells numeric libraries how many threads they may start", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua = require "plua"
      local r = plua.map(function()
        return {os.getenv("OMP_NUM_THREADS"), os.getenv("MKL_NUM_THREADS")}
      end, {1}, {workers = 64})
      print(r[1][1], r[1][2], os.getenv("OMP_NUM_THREADS"))
    ]], { env = { MKL_NUM_THREADS = "5", OMP_NUM_THREADS = false, PLUA_WORKERS = "3" } })
    assert.equal("3\t5\tnil\n", result.out .. result.err)
  end)

  it("runs init and finish once in each worker", function()
    local path <const> = helper.tmp() .. "/log"
    local function note(text)
      local file <close> = assert(io.open(path, "a"))
      file:write(text, "\n")
    end
    local ready = false
    local results <const> = plua.map(function() return ready end, numbers(20), {
      workers = 2,
      init = function()
        ready = true
        note("init")
      end,
      finish = function() note("finish") end,
    })
    for i = 1, 20 do assert.is_true(results[i]) end
    local text <const> = assert(io.open(path)):read("a")
    assert.equal(2, select(2, text:gsub("init", "")))
    assert.equal(2, select(2, text:gsub("finish", "")))
  end)

  it("replaces a worker after max_tasks_per_child items", function()
    local pids <const> = plua.map(function() return crash.pid() end, numbers(20),
      { workers = 1, max_tasks_per_child = 5, chunksize = 1 })
    local seen, n = {}, 0
    for i = 1, 20 do
      if not seen[pids[i]] then seen[pids[i]], n = true, n + 1 end
    end
    assert.equal(4, n)
  end)

  it("works in a coroutine, and items may yield to their own", function()
    local co <const> = coroutine.wrap(function()
      local results <const> = plua.map(function(x)
        local inner <const> = coroutine.wrap(function() coroutine.yield(x) end)
        return inner()
      end, { 1, 2 }, { workers = 2 })
      coroutine.yield(results[2])
    end)
    assert.equal(2, co())
  end)

  it("ends by the interrupt of the lua program", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script [[
      local plua = require "plua"
      local crash = require "crashkit"
      local parent = crash.pid()
      print(pcall(plua.map, function(x)
        if x == 1 then crash.kill(parent, 2) end
        crash.csleep(30)
      end, {1, 2}, {workers = 2}))
    ]], { timeout = 20 })
    assert.matches("interrupted!", result.out)
  end)

  it("is repeated five hundred times without a trace", function()
    for i = 1, 500 do
      local results <const> = plua.map(function(x) return x + i end, { 1, 2 }, { workers = 2 })
      assert.equal(2 + i, results[2])
    end
  end)

  it("explains what it cannot run over, at the caller's line", function()
    local line <const> = ("map_spec.lua:%d: "):format(debug.getinfo(1, "l").currentline + 4)
    for _, name in ipairs { "map", "starmap", "imap", "each", "filter", "find" } do
      local call <const> = plua[name]
      for _, data in ipairs { ipairs { { 1, 2 } }, next, { a = 1 }, { 1, n = -1 } } do
        local fine <const>, err <const> = pcall(function() return (call(print, data, 1)) end)
        assert.is_false(fine)
        assert.equal(line, err:match("map_spec.lua:%d+: "), err)
        local what <const> = data == next and "pairs" or "ipairs"
        assert.matches(type(data) == "table" and "data %l+ a %l+ .-items" or
          "data is what " .. what .. "%(t%) gives", err)
      end
    end
    assert.matches("data is what ipairs%(t%) gives; .* pass t itself",
      select(2, pcall(plua.mapreduce, print, math.max, ipairs { 1, 2 })))
  end)

  it("permits a team inside an item where nested = true", function()
    local results <const> = plua.map(function()
      local pids <const> = plua.map(function() return crash.pid() end, { 1 },
        { workers = 1, nested = true })
      return pids[1] ~= crash.pid()
    end, { 1 }, { workers = 1 })
    assert.is_true(results[1])
  end)
end)
