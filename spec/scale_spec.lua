-- What holds at any size and for any number of workers: many items, long streams, many pools, large
-- and odd values. SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local alike <const> = require "spec.alike"
local plua <const> = require "plua"
local kit <const> = require "crashkit"

-- What every script here knows: how many MB of memory its process has in use.
local RESIDENT <const> = [[
local function resident()
  local file <close> = io.open("/proc/self/status")
  return tonumber(file:read("a"):match("VmRSS:%s+(%d+)")) / 1024
end
]]

--- What a script prints, run by the program, in so many seconds.
local function output(text, seconds, arguments)
  local script <const> = helper.script(RESIDENT .. text)
  local line <const> = ("%s %s %s"):format(helper.plua, script, arguments or "")
  local result <const> = helper.run(line, { timeout = seconds })
  assert.same({ "", 0 }, { result.err, result.status })
  return result.out
end

describe("a million items", function()
  helper.guard()

  it("go through map, each to its place", function()
    local list <const> = plua.map(function(x) return 3 * x + 1 end, plua.range(1, 1000000),
      { workers = 2 })
    assert.equal(1000000, list.n)
    for i = 1, 1000000 do
      if list[i] ~= 3 * i + 1 then error(("item %d: %s"):format(i, tostring(list[i]))) end
    end
  end)

  it("go through map from a list, strings too", function()
    local data = {}
    for i = 1, 1000000 do data[i] = i % 3 == 0 and tostring(i) or i end
    local list <const> = plua.map(function(x) return x end, data, { workers = 3 })
    for i = 1, 1000000 do
      if list[i] ~= data[i] then error(("item %d: %s"):format(i, tostring(list[i]))) end
    end
  end)

  it("go through a pool", function()
    local pool <close> = plua.pool { workers = 2 }
    local data = {}
    for i = 1, 1000000 do data[i] = i end
    local list <const> = pool:map(function(x) return x + 0.5 end, data)
    assert.equal(1000000, list.n)
    for i = 1, 1000000 do
      if list[i] ~= i + 0.5 then error(("item %d: %s"):format(i, tostring(list[i]))) end
    end
    assert.equal(500000500000, pool:mapreduce(function(x) return x end,
      function(a, b) return a + b end, data))
  end)
end)

describe("a long stream", function()
  helper.guard()

  -- Prints by how many MB the resident memory of the parent has grown at the most.
  local STREAM <const> = [[
    local plua = require "plua"
    local name, n = arg[1], math.tointeger(arg[2])
    local function double(x) return 2 * x end
    local function items(count)
      local i = 0
      return function()
        i = i + 1
        return i <= count and i or nil
      end
    end
    local on = name:find("^pool") and plua.pool { workers = 2 }
    local short = name:match("imap.*")
    local function run(count, body)
      if on then return on[short](on, double, items(count)) end
      return plua[short](double, items(count), { workers = 2 })
    end
    for _ in run(10000) do end
    collectgarbage()
    local before, most, count, sum = resident(), 0, 0, 0
    for i, r in run(n) do
      count = count + 1
      sum = sum + r
      assert(r == 2 * i)
      if short == "imap" then assert(i == count) end
      if count % 100000 == 0 then most = math.max(most, resident() - before) end
    end
    assert(count == n and sum == n * (n + 1))
    print(most)
    if on then on:close() on:join() end
  ]]

  for name, n in pairs { imap = 10000000, imap_unordered = 1000000, ["pool imap"] = 1000000 } do
    it(("of %d items goes through %s in less than 16 MB"):format(n, name), function()
      local grown <const> = tonumber(output(STREAM, 60, ("'%s' %d"):format(name, n)))
      assert(grown < 16, ("grew by %.1f MB"):format(grown))
    end)
  end

  it("is pulled only as fast as results are taken", function()
    local pulled = 0
    local function endless()
      pulled = pulled + 1
      return pulled
    end
    local taken = 0
    for i, r in plua.imap(function(x) return x end, endless, { workers = 2 }) do
      taken = taken + 1
      assert.same({ taken, taken }, { i, r })
      assert(pulled <= 4 * taken + 64, ("%d pulled, %d taken"):format(pulled, taken))
      if taken == 2000 then break end
    end
  end)

  it("of large items is pulled by their bytes", function()
    local text <const> = [[
      local plua = require "plua"
      local i = 0
      local function items()
        i = i + 1
        return i <= 400 and ("x"):rep(1000000 + i) or nil
      end
      local before, most = resident(), 0
      for index, r in plua.imap(function(s) return s end, items, { workers = 2 }) do
        assert(#r == 1000000 + index)
        most = math.max(most, resident() - before)
      end
      print(most)
    ]]
    local grown <const> = tonumber(output(text, 30))
    assert(grown < 100, ("grew by %.1f MB, of 400 that went through"):format(grown))
  end)
end)

describe("five hundred pools", function()
  helper.guard()

  it("opened, used and closed leave descriptors, children and memory as they were", function()
    local text <const> = [[
      local plua, kit = require "plua", require "crashkit"
      local function holdings() return #kit.fds(), #kit.children() end
      local data = {}
      for i = 1, 20 do data[i] = i end
      local function use(i)
        local pool <close> = plua.pool { workers = 2 }
        local r = pool:map(function(x) return x + i end, data)
        assert(r[20] == 20 + i)
        assert(pool:apply(function(x) return x end, i) == i)
        if i % 7 == 0 then pool:apply_async(function() end) end
        if i % 5 == 0 then pool:terminate() end
      end
      local fds, children = holdings()
      local early
      for i = 1, 500 do
        use(i)
        local f, c = holdings()
        assert(f == fds and c == children, ("pool %d: %d descriptors, %d children"):format(i, f, c))
        if i == 100 then collectgarbage() collectgarbage() early = resident() end
      end
      collectgarbage()
      collectgarbage()
      print(resident() - early)
    ]]
    local grown <const> = tonumber(output(text, 60))
    assert(grown < 1, ("memory grew by %.1f MB over 400 pools"):format(grown))
  end)

  it("the same for calls that fork a team each", function()
    local text <const> = [[
      local plua, kit = require "plua", require "crashkit"
      local fds, early = #kit.fds()
      for i = 1, 500 do
        local r = plua.map(function(x) return x + i end, { 1, 2, 3, 4 }, { workers = 2 })
        assert(r[4] == 4 + i)
        for _ in plua.imap(math.abs, plua.range(1, 100), { workers = 2 }) do break end
        pcall(plua.map, function() error("x") end, { 1, 2 }, { workers = 2 })
        assert(#kit.fds() == fds and #kit.children() == 0)
        if i == 100 then collectgarbage() collectgarbage() early = resident() end
      end
      collectgarbage()
      collectgarbage()
      print(resident() - early)
    ]]
    local grown <const> = tonumber(output(text, 60))
    assert(grown < 1, ("memory grew by %.1f MB over 400 calls"):format(grown))
  end)

  it("open at once work side by side", function()
    local pools = {}
    for i = 1, 20 do pools[i] = plua.pool { workers = 2 } end
    local futures = {}
    for i = 1, 20 do
      futures[i] = pools[i]:map_async(function(x) return x * i end, plua.range(1, 50))
    end
    for i = 20, 1, -1 do
      local list <const> = futures[i]:get()
      for x = 1, 50 do assert.equal(x * i, list[x]) end
    end
    for i = 1, 20 do
      pools[i]:close()
      assert.is_true(pools[i]:join(10))
    end
  end)
end)

describe("a script that uses every call", function()
  helper.guard()

  local EVERY <const> = [[
    local plua = require "plua"
    local on
    if arg[2] == "pool" then on = plua.pool { workers = tonumber(arg[1]), seed = 42 } end
    math.randomseed(7)
    local function call(name, ...)
      if on then return on[name](on, ...) end
      return plua[name](...)
    end
    local function options(extra)
      local opts = extra or {}
      if not on then opts.workers = tonumber(arg[1]) end
      return opts
    end
    local show
    function show(v)
      if type(v) == "table" then
        if plua.iserror(v) then
          return show { v.kind, v.index, v.value, v.where:match("[^/]*$") }
        end
        local keys, parts = {}, {}
        for k in pairs(v) do keys[#keys + 1] = k end
        table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
        for _, k in ipairs(keys) do parts[#parts + 1] = show(k) .. "=" .. show(v[k]) end
        return "{" .. table.concat(parts, ",") .. "}"
      end
      if math.type(v) == "float" then return ("%a"):format(v) end
      return tostring(v)
    end
    local data = {}
    for i = 1, 700 do data[i] = i end
    print("map", show(call("map", function(x, i) return x * x + i end, data, options())))
    print("floats", show(call("map", function(x) return math.sin(x) / x end, data, options())))
    print("random", show(call("map", function()
      return { math.random(), math.random(1000000) }
    end, data, options())))
    print("random again", show(call("map", function() return math.random(0) end, data, options())))
    print("seeded", show(call("map", function() return math.random(0) end, data,
      options { seed = 99 })))
    print("strings", show(call("starmap", function(a, b) return a:rep(b) .. "\0" .. a end,
      { { "a", 3 }, { "", 0 }, { "\xff", 700 } }, options())))
    local ordered = {}
    for i, r in call("imap", function(x) return { x, { tostring(x) }, random = math.random() } end,
      data, options()) do ordered[#ordered + 1] = { i, r } end
    print("imap", show(ordered))
    local n, iterated = 0, {}
    for i, r in call("imap", function(x) return x .. "!" end, function()
      n = n + 1
      return n <= 700 and n or nil
    end, options()) do iterated[i] = r end
    print("iterator", show(iterated))
    local unordered = {}
    for i, r in call("imap_unordered", function(x) return x % 7 end, data, options()) do
      unordered[i] = r
    end
    print("unordered", show(unordered))
    print("filter", show(call("filter", function(x) return x % 11 == 3 end, data, options())))
    print("find", call("find", function(x) return x * x > 200000 and x end, data, options()))
    print("find none", call("find", function() end, data, options()))
    print("each", call("each", function() end, data, options()))
    for _, count in ipairs { 1, 2, 511, 512, 513, 700, 1600, 5000 } do
      print("fold", count, show(call("mapreduce", function(x) return 1 / x + math.random() end,
        function(a, b) return a + b end, plua.range(1, count), options())))
    end
    print("join", show(call("mapreduce", function(x) return tostring(x) end,
      function(a, b) return a .. "," .. b end, data, options())))
    print("errors", show(call("map", function(x)
      if x % 100 == 50 then error({ at = x }) end
      if x % 100 == 60 then error("text", 0) end
      return x
    end, data, options { on_error = "collect" })))
    print("holes", show(call("map", function(x)
      if x % 2 == 0 then return x end
    end, data, options())))
    print("range", show(call("map", function(x) return x end, plua.range(10, -5, -3), options())))
    print("after", math.random(0))
    if on then
      print("apply", show(table.pack(on:apply(function(...)
        return math.random(0), select("#", ...), ...
      end, 1, nil, 3))))
      local futures = {}
      for i = 1, 50 do futures[i] = on:apply_async(function() return math.random(0) end) end
      for i = 1, 50 do print("future", futures[i]:get()) end
      print("map_async", show(on:map_async(function(x) return x + math.random() end, data):get()))
      on:close()
      on:join()
    end
  ]]

  for _, kind in ipairs { "one-shot", "pool" } do
    it(("prints the same for any number of workers, %s"):format(kind), function()
      local first
      for _, workers in ipairs { 0, 1, 2, 3, 7, 64 } do
        local text <const> = output(EVERY, 30, ("%d %s"):format(workers, kind))
        first = first or text
        assert(#text > 100000)
        if text ~= first then
          local a <const>, b <const> = first:gmatch("[^\n]*\n"), text:gmatch("[^\n]*\n")
          for line in a do
            local other <const> = b()
            if line ~= other then
              error(("%d workers: %s...\ninstead of: %s..."):format(workers,
                tostring(other):sub(1, 200), line:sub(1, 200)))
            end
          end
        end
        assert(text == first, "more lines than with 0 workers")
      end
    end)
  end
end)

describe("results and items of any size", function()
  helper.guard()

  local sizes <const> = { 0, 1, 100 }
  for k = 1, 20 do
    for d = -1, 1 do sizes[#sizes + 1] = (1 << k) + d end
  end

  it("up to 1 MiB are whole, wherever they meet the end of a ring", function()
    local function f(n) return ("%d:"):format(n) .. ("x"):rep(n) end
    local pool <close> = plua.pool { workers = 2 }
    for _, list in ipairs { plua.map(f, sizes, { workers = 1 }),
      plua.map(f, sizes, { workers = 3 }), pool:map(f, sizes) } do
      for i, n in ipairs(sizes) do
        if list[i] ~= f(n) then error(("size %d"):format(n)) end
      end
    end
  end)

  it("up to 1 MiB cross as items too", function()
    local data = {}
    for i, n in ipairs(sizes) do data[i] = ("y"):rep(n) end
    local pool <close> = plua.pool { workers = 2 }
    local list <const> = pool:map(function(s) return { #s, s:sub(-1) } end, data)
    local count = 0
    for i, r in plua.imap(function(s) return { #s, s } end, function()
      count = count + 1
      return data[count]
    end, { workers = 2 }) do
      assert.same({ sizes[i], true }, { r[1], r[2] == data[i] })
    end
    for i, n in ipairs(sizes) do assert.same({ n, n > 0 and "y" or "" }, list[i]) end
  end)

  it("of one size each fill rings to every edge", function()
    for _, n in ipairs { 1, 7, 8, 9, 63, 64, 65, 1000, 4095, 65537 } do
      local items <const> = n < 1000 and 5000 or 300
      local list <const> = plua.map(function(i) return string.char(i % 256):rep(n) end,
        plua.range(1, items), { workers = 2 })
      for i = 1, items do
        if list[i] ~= string.char(i % 256):rep(n) then error(("size %d, item %d"):format(n, i)) end
      end
    end
  end)

  it("of 50 MB cross both ways, several at once", function()
    local big <const> = ("0123456789abcdef"):rep(50 * 1024 * 1024 // 16)
    local list <const> = plua.map(function(i) return big .. i end, { 1, 2, 3 }, { workers = 2 })
    for i = 1, 3 do assert(list[i] == big .. i) end
    list[1], list[2], list[3] = nil, nil, nil
    local pool <close> = plua.pool { workers = 2 }
    assert(pool:apply(function(s) return s end, big) == big)
    local answer <const>, length <const> = pool:apply(function(s) return s:sub(-3), #s end, big)
    assert.same({ "def", #big }, { answer, length })
    local items = {}
    for i = 1, 100000 do items[i] = { i, tostring(i) } end
    local back <const> = pool:apply(function(t) return t end, items)
    for i = 1, 100000 do assert(back[i][1] == i and back[i][2] == tostring(i)) end
  end)
end)

describe("values of every kind", function()
  helper.guard()

  local NAN <const> = 0 / 0
  local values <const> = {
    false, true, 0, -1, 1, 127, 128, -128, -129, 32767, 65536, 2147483647, -2147483649, 1 << 53,
    (1 << 53) + 1, math.maxinteger, math.mininteger, 0.0, -0.0, 1.5, -1e308, 5e-324,
    2.0 ^ -1060, math.huge, -math.huge, NAN, math.pi, 1e15, 2.0 ^ 53, 2.0 ^ 63, "", "\0",
    "a\0b", "\xff\xfe\x80", "utf8 \u{20ac}", ("long "):rep(1000), {}, { 1, 2, 3 }, { 1.5, 2.5 },
    { 1, 2.5, "3" }, { {}, {} },
    { a = 1, b = { c = { d = "deep" } } }, { [true] = 1, [1.5] = 2, [-1] = 3, [1 << 40] = 4 },
    { nil, 2, nil, 4 }, { n = 5 }, { 1, 2, 3, x = "mixed", [10] = "far" },
    { math.maxinteger, math.mininteger, 0 }, { 0.0, -0.0, NAN, math.huge }, { "a", "b", "a" },
    { true, false, true },
  }

  it("cross there and back, bit for bit", function()
    local pool <close> = plua.pool { workers = 2 }
    local n <const> = #values
    for how, list in pairs {
      ["one-shot"] = plua.map(function(v) return v end, values, { workers = 2 }),
      inline = plua.map(function(v) return v end, values, { workers = 0 }),
      pool = pool:map(function(v) return v end, values),
      starmap = pool:starmap(function(v) return v end,
        plua.map(function(v) return { v } end, values, { workers = 0 })),
    } do
      for i = 1, n do
        if not alike(values[i], list[i]) then error(("%s: value %d"):format(how, i)) end
      end
    end
    for i = 1, n do
      if not alike(values[i], (pool:apply(function(v) return v end, values[i]))) then
        error(("apply: value %d"):format(i))
      end
    end
  end)

  it("nil among results and arguments keeps its place", function()
    local pool <close> = plua.pool { workers = 2 }
    for _, list in ipairs { plua.map(function(i) if i % 2 == 0 then return i end end,
      plua.range(1, 9), { workers = 2 }), pool:map(function(i)
      if i % 2 == 0 then return i end
    end, plua.range(1, 9)) } do
      assert.equal(9, list.n)
      for i = 1, 9 do assert.equal(i % 2 == 0 and i or nil, list[i]) end
    end
    local holes <const> = plua.map(function(v) return v == nil and "nil" or v end,
      { 1, nil, 3, nil, n = 5 }, { workers = 2 })
    assert.same({ 1, "nil", 3, "nil", "nil", n = 5 }, holes)
    assert.same(table.pack(nil, 2, nil),
      table.pack(pool:apply(function(...) return ... end, nil, 2, nil)))
  end)

  it("shared and cyclic tables keep their shape", function()
    local pool <close> = plua.pool { workers = 2 }
    local shared <const> = { "shared" }
    local item <const> = { shared, shared, { shared } }
    item.self = item
    for _, r in ipairs { pool:apply(function(t) return t end, item),
      plua.map(function(t) return t end, { item }, { workers = 1 })[1] } do
      assert.equal(r, r.self)
      assert.equal(r[1], r[2])
      assert.equal(r[1], r[3][1])
      assert.equal("shared", r[1][1])
    end
  end)

  it("functions with what they capture", function()
    local pool <close> = plua.pool { workers = 2 }
    local count = 10
    local function up() count = count + 1 return count end
    local function get() return count end
    local function factorial(n) return n < 2 and 1 or n * factorial(n - 1) end
    assert.same({ 11, 11, 120 }, { pool:apply(function() return up(), get(), factorial(5) end) })
    assert.equal(10, count)
    local adder <const> = pool:apply(function(k) return function(x) return x + k end end, 5)
    assert.equal(7, adder(2))
    assert.same({ 2.0, 3.0, n = 2 }, pool:map(math.sqrt, { 4, 9 }))
    assert.same({ 2.0, 3.0, n = 2 }, plua.map(math.sqrt, { 4, 9 }, { workers = 2 }))
    assert.equal(string.upper, pool:apply(function() return string.upper end))
    assert.equal(kit.pid, pool:apply(function() return kit.pid end))
  end)

  it("a deep table is carried or refused by name, never by a crash", function()
    local pool <close> = plua.pool { workers = 2 }
    for _, depth in ipairs { 100, 10000, 1000000 } do
      local deep = {}
      for _ = 1, depth do deep = { deep } end
      local fine <const>, r = pcall(pool.apply, pool, function(t) return t end, deep)
      if fine then
        for _ = 1, depth do r = r[1] end
        assert.same({}, r)
      else
        assert(tostring(r):find("deep", 1, true), tostring(r):sub(1, 200))
      end
      if depth == 100 then assert.is_true(fine) end
    end
    assert.equal(4, pool:apply(function(x) return x end, 4))
  end)
end)
