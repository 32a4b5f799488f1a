-- Weights: the longest items are begun first, and nothing else is changed by that: results, errors,
-- indexes and random numbers go by the item. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local core <const> = require "plua.core"

local N <const> = 40

-- Costs in no order, equal ones among them.
local function costs(n)
  local list <const> = {}
  for i = 1, n do list[i] = i * 17 % 23 end
  return list
end

local function cost(x) return x end
local function light_first(x) return -x end

-- What an item sees of itself: its value, its index, a random number, its place for plua.worker.
local function seen(x, i)
  local self <const> = plua.worker()
  return ("%s %d %d %d"):format(x, i, math.random(1 << 30), self and self.item or i)
end

-- The calls of a team: the functions of plua, or the methods of a pool, by the same names.
local function calls_of(pool, workers)
  return setmetatable({}, { __index = function(_, name)
    return function(f, data, opts)
      if pool then return pool[name](pool, f, data, opts) end
      opts.workers = workers
      return plua[name](f, data, opts)
    end
  end })
end

local function gathered(iterator, ...)
  local list, n = {}, 0
  for i, result in iterator, ... do list[i], n = result, n + 1 end
  list.n = n
  return list
end

local function message_of(f, ...)
  local fine <const>, err <const> = pcall(f, ...)
  assert.is_false(fine)
  return tostring(err)
end

for _, workers in ipairs { 0, 1, 2, 3 } do
  for _, kind in ipairs { "one-shot", "pool" } do
    describe(("with weights, %s, %d workers,"):format(kind, workers), function()
      helper.guard()

      --- A behaviour of the calls of such a team.
      local function shows(name, test)
        it(name, function()
          local pool <close> = kind == "pool" and plua.pool { workers = workers } or nil
          test(calls_of(pool, workers))
        end)
      end

      local function plain() return plua.map(seen, costs(N), { workers = 0, seed = 7 }) end

      shows("items get their own index, random numbers and place", function(calls)
        local expected <const>, data <const> = plain(), costs(N)
        for _, weight in ipairs { cost, light_first } do
          local opts <const> = { seed = 7, weight = weight }
          assert.same(expected, calls.map(seen, data, opts))
          assert.same(expected, gathered(calls.imap(seen, data, opts)))
          assert.same(expected, gathered(calls.imap_unordered(seen, data, opts)))
        end
      end)

      shows("imap answers in the order of the input", function(calls)
        local at = 0
        local opts <const> = { weight = light_first }
        for i, result in calls.imap(function(x) return -x end, costs(N), opts) do
          at = at + 1
          assert.equal(at, i)
          assert.equal(-(i * 17 % 23), result)
        end
        assert.equal(N, at)
      end)

      shows("ranges, tables, lists of arguments and holes keep their places", function(calls)
        local sums <const> = calls.map(function(x, i) return x * 100 + i end, plua.range(2, 60, 2),
          { weight = light_first })
        for i = 1, 30 do assert.equal(200 * i + i, sums[i]) end
        local tables <const> = calls.map(function(t, i) return t.x + i end,
          { { x = 10 }, { x = 30 }, { x = 20 } }, { weight = function(t) return t.x end })
        assert.same({ 11, 32, 23, n = 3 }, tables)
        assert.same({ 3, 7, 11, n = 3 }, calls.starmap(function(a, b) return a + b end,
          { { 1, 2 }, { 3, 4 }, { 5, 6 } }, { weight = function(pair) return pair[2] end }))
        assert.same({ 5, nil, 6, n = 3 }, calls.map(function(x) return x end, { 5, nil, 6, n = 3 },
          { weight = function(x) return x or math.huge end }))
        assert.same({ 2, 4, 6, n = 3 }, calls.filter(function(x) return x % 2 == 0 end,
          { 1, 2, 3, 4, 5, 6 }, { weight = cost }))
        assert.equal(3, (calls.each(function() end, { 1, 2, 3 }, { weight = cost })))
        assert.same({ n = 0 }, calls.map(error, {}, { weight = error }))
      end)

      shows("errors tell the item's own index", function(calls)
        local function picky(x) return x == 3 and error "three" or x end
        local results <const> = calls.map(picky, { 1, 2, 3, 4 },
          { weight = cost, on_error = "collect" })
        assert.equal(3, results[3].index)
        assert.equal(3, results[3].item)
        assert.same({ 1, 2, 4 }, { results[1], results[2], results[4] })
        local asked
        calls.map(picky, { 1, 2, 3, 4 }, { weight = cost, on_error = function(err)
          asked = err.index
        end })
        assert.equal(3, asked)
        local fine <const>, err <const> = pcall(calls.map, picky, { 3, 9, 9 }, { weight = cost })
        assert.is_false(fine)
        assert.equal(1, err.index)
      end)

      if workers > 0 then
        shows("a death costs its own item", function(calls)
          local results <const> = calls.map(function(x)
            if x == 7 then require("crashkit").raise(9) end
            return x
          end, { 1, 7, 30, 4 }, { weight = cost, on_error = "collect", retries = 0 })
          assert.equal("crash", results[2].kind)
          assert.equal(2, results[2].index)
          assert.same({ 1, 30, 4 }, { results[1], results[3], results[4] })
        end)
      end
    end)
  end
end

describe("weights", function()
  helper.guard()

  it("have the heaviest item begun first, equal ones as they came", function()
    for _, make in ipairs { function() end, function() return plua.pool { workers = 0 } end } do
      local pool <const> = make()
      local begun <const> = {}
      local data <const> = { 3, 1, 2, 3, 1, 2.5 }
      rawset(_G, "plua_begun", begun)
      calls_of(pool, 0).map(function(_, i)
        local list <const> = rawget(_G, "plua_begun")
        list[#list + 1] = i
      end, data, { weight = cost })
      rawset(_G, "plua_begun", nil)
      assert.same({ 1, 4, 6, 3, 2, 5 }, begun)
      if pool then pool:terminate() end
    end
  end)

  it("are asked once for each item, by the caller", function()
    local asked = {}
    plua.map(function(x) return x end, { 5, 6, 7 }, { workers = 2, weight = function(x)
      asked[#asked + 1] = x
      return 0
    end })
    assert.same({ 5, 6, 7 }, asked)
  end)

  it("work for futures of lists", function()
    local pool <close> = plua.pool { workers = 2 }
    assert.same({ 2, 4, 6, n = 3 },
      pool:map_async(function(x) return 2 * x end, { 1, 2, 3 }, { weight = cost }):get())
    assert.same({ 1, 12, n = 2 }, pool:starmap_async(function(a, b) return a * b end,
      { { 1, 1 }, { 3, 4 } }, { weight = function(t) return t[1] end }):get())
  end)

  it("that are no numbers are refused, and the item named", function()
    local function bad(value) return function(x) return x == 2 and value or 1 end end
    local line <const> = debug.getinfo(1, "l").currentline + 1
    local function call() plua.map(cost, { 1, 2 }, { weight = bad "x" }) end
    assert.equal(("spec/weight_spec.lua:%d: plua.map: option 'weight' gave string \"x\" for "
      .. "item 2, where a number is wanted"):format(line), message_of(call))
    assert.matches("gave NaN for item 2",
      message_of(plua.map, cost, { 1, 2 }, { weight = bad(0 / 0) }))
    assert.matches("gave nil for item 1",
      message_of(plua.map, cost, { 1, 2 }, { weight = function() end }))
    assert.matches("weight_spec.lua:%d+: oops",
      message_of(plua.map, cost, { 1, 2 }, { weight = function() error "oops" end }))
    assert.matches("option 'weight' must be a function",
      message_of(plua.map, cost, { 1, 2 }, { weight = 1 }))
  end)

  it("are refused where they can change nothing", function()
    local opts <const> = { weight = cost }
    local function endless() return 1 end
    local pool <close> = plua.pool { workers = 1 }
    for _, message in ipairs {
      message_of(plua.find, cost, { 1, 2 }, opts), message_of(pool.find, pool, cost, { 1 }, opts),
      message_of(plua.mapreduce, cost, cost, { 1, 2 }, opts),
      message_of(plua.imap, cost, endless, opts),
      message_of(pool.imap_unordered, pool, cost, endless, opts),
    } do
      assert.matches("option 'weight' is not for this call: ", message, 1, true)
    end
    assert.matches("option 'weight' is one of calls", message_of(plua.pool, opts), 1, true)
  end)

  it("take an iterator's items together where a call takes all", function()
    local i = 0
    local results <const> = plua.map(function(x, at) return x + at end, function()
      i = i + 1
      return i <= 5 and 10 * i or nil
    end, { workers = 2, weight = cost })
    assert.same({ 11, 22, 33, 44, 55, n = 5 }, results)
  end)

  it("can be given by a job", function()
    local path <const> = helper.script [[
      return {
        data = { 1, 2, 3 },
        map = function(x) return x * x end,
        weight = function(x) return x end,
      }
    ]]
    local result <const> = helper.run(("%s/plua -j 2 %s"):format(helper.build, path))
    assert.equal("1\n4\n9\n", result.out)
    assert.equal(0, result.status)
  end)

  it("begin the longest of many first, wherever it stands", function()
    local data <const> = {}
    for i = 1, 12 do data[i] = 0.02 end
    data[12] = 0.2
    local began <const> = core.now()
    local starts <const> = plua.map(function(seconds)
      local start <const> = core.now()
      repeat until core.now() - start >= seconds
      return start - began
    end, data, { workers = 2, weight = cost })
    for i = 1, 11 do assert(starts[12] <= starts[i] + 0.02, "item 12 waited for item " .. i) end
  end)
end)
