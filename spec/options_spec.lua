-- Options: which there are, what they may be, and what is said of the others.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local options <const> = require "plua.options"
local crash <const> = require "crashkit"

local function message_of(f, ...)
  local fine <const>, message <const> = pcall(f, ...)
  assert.is_false(fine)
  return message
end

local function pids(n, opts)
  local seen, count = {}, 0
  opts.chunksize = 1
  for _, pid in plua.imap_unordered(function() return crash.pid() end, plua.range(1, n), opts) do
    if not seen[pid] then seen[pid], count = true, count + 1 end
  end
  return count
end

describe("an option", function()
  helper.guard()

  it("that does not exist is refused where it was written, with the nearest name", function()
    local line <const> = debug.getinfo(1, "l").currentline + 1
    local message <const> = message_of(function() plua.map(print, { 1 }, { worker = 2 }) end)
    assert.matches(("options_spec.lua:%d: unknown option 'worker'; the nearest is 'workers'")
      :format(line), message, 1, true)
    assert.matches("nearest is 'chunksize'", message_of(plua.map, print, {}, { chunk_size = 1 }))
    assert.matches("nearest is 'max_tasks_per_child'", message_of(plua.pool, { maxtasks = 1 }))
    assert.matches("unknown option '1'; options have names, as in { workers = 2 }",
      message_of(plua.map, print, {}, { "workers" }), 1, true)
  end)

  it("of a later day is unknown", function()
    for _, name in ipairs { "progress", "start" } do
      assert.matches("unknown option '" .. name, message_of(plua.map, print, {}, { [name] = 1 }))
    end
  end)

  it("with a value that it cannot have is refused, and what is wanted told", function()
    for name, values in pairs {
      workers = { -1, 1.5, "many", "0%", true, 65001 }, chunksize = { 0, "big", 70000 },
      retries = { -1, "2" }, timeout = { 0, "1" }, on_error = { "ignore", 1 },
      init = { "f" }, finish = { {} },
      memory = { 0, "1", "10X", "M", 1000, -1, true, "64KB" }, max_rss = { 0, "9E", {} },
      max_tasks_per_child = { 0 }, seed = { 0.5, "x" }, nested = { 1 },
      output = { "loud", 1 },
    } do
      for _, value in ipairs(values) do
        assert.matches("option '" .. name .. "' must be ",
          message_of(plua.map, print, {}, { [name] = value }))
      end
    end
    assert.matches("options must be a table such as { workers = 2 }, not number",
      message_of(plua.map, print, {}, 4), 1, true)
  end)

  it("of a team is refused on a living pool", function()
    local pool <close> = plua.pool { workers = 1 }
    assert.matches("option 'workers' is one of plua.pool", message_of(pool.map, pool, print, {},
      { workers = 2 }))
  end)

  it("given to the pool is the default of its calls", function()
    local pool <close> = plua.pool { workers = 1, on_error = "collect" }
    assert.equal("error", pool:map(error, { "x" })[1].kind)
    assert.is_false(pcall(pool.map, pool, error, { "x" }, { on_error = "raise" }))
  end)
end)

describe("workers", function()
  helper.guard()

  it("may be a number, more than there are cores, or a share", function()
    assert.equal(1, pids(20, { workers = 1 }))
    local all <const> = plua.map(function() return plua.worker().id end, plua.range(1, 50),
      { workers = plua.cpu_count() + 3, chunksize = 1 })
    assert.equal(50, all.n)
    assert.same({ 1, 1 }, { plua.map(function(x) return x end, { 1 }, { workers = "50%" })[1],
      plua.map(function(x) return x end, { 1 }, { workers = "300%" })[1] })
  end)

  it("are never more than items", function()
    local ids <const> = plua.map(function() return plua.worker().id end, { 1, 2 }, { workers = 64 })
    assert.is_true(ids[1] <= 2 and ids[2] <= 2)
  end)

  it("of 0 run everything in the calling process", function()
    local results <const> = plua.map(function() return crash.pid() end, { 1, 2 }, { workers = 0 })
    assert.same({ crash.pid(), crash.pid(), n = 2 }, results)
  end)

  it("come from PLUA_WORKERS, and garbage there is told once", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      plua.map(print, {}) plua.cpu_count() plua.cpu_count()
      print(plua.cpu_count())
    ]]
    local result <const> = helper.run(helper.lua .. " " .. script, { env = { PLUA_WORKERS = "5" } })
    assert.same({ "5\tPLUA_WORKERS\n", "" }, { result.out, result.err })
    local garbage <const> =
      helper.run(helper.lua .. " " .. script, { env = { PLUA_WORKERS = "no" } })
    assert.matches('^plua: ignoring PLUA_WORKERS = "no": not a number of cores', garbage.err)
    assert.equal(1, select(2, garbage.err:gsub("\n", "")))
    local inline <const> = helper.script [[
      local plua = require "plua"
      print(plua.map(function() return plua.worker().id end, { 1 })[1], plua.cpu_count() > 0)
    ]]
    local none <const> = helper.run(helper.lua .. " " .. inline, { env = { PLUA_WORKERS = "0" } })
    assert.same({ "0\ttrue\n", "" }, { none.out, none.err })
  end)
end)

describe("defaults", function()
  helper.guard()
  after_each(function() assert.is_true(options.set_defaults {}) end)

  it("hold for calls that say nothing themselves", function()
    assert.is_true(options.set_defaults { workers = "0", on_error = "collect", retries = 1 })
    local results <const> = plua.map(function() error("x") end, { 1 })
    assert.equal(2, results[1].attempts)
    assert.is_nil(results[1].worker)
    assert.is_false(pcall(plua.map, error, { 1 }, { on_error = "raise" }))
  end)

  it("of workers are the core count", function()
    local cores <const> = plua.cpu_count()
    local sources <const> = #plua.cpus()
    assert.is_true(options.set_defaults { workers = "8" })
    assert.same({ 8, "-j" }, { plua.cpu_count() })
    assert.is_true(options.set_defaults { workers = "200%" })
    assert.same({ 2 * cores, "-j" }, { plua.cpu_count() })
    local own, deciders = plua.cpus()[sources], 0
    assert.same({ name = "-j", text = "200%", where = "command line", cpus = 2 * cores,
      decides = true }, own)
    for _, source in ipairs(plua.cpus()) do deciders = deciders + (source.decides and 1 or 0) end
    assert.same({ 1, sources }, { deciders, #plua.cpus() })
    assert.is_true(options.set_defaults { workers = "0" })
    assert.equal(1, plua.cpu_count())
  end)

  it("that collect errors have them told, since the script may not look", function()
    local code <const> = [[
      local plua = require "plua"
      require "plua.options".set_defaults { on_error = "collect", workers = 2 }
      local function f(x) if x == 2 then error("no good") end return x end
      plua.map(f, { 1, 2, 3 })
      for _ in plua.imap(f, { 1, 2, 3 }) do end
      plua.map(f, { 1, 2, 3 }, { on_error = "collect" })
      local pool <close> = plua.pool()
      pool:map_async(f, { 1, 2, 3 }):get()
      print(require "plua.run".failures)
    ]]
    local result <const> = helper.run(helper.lua .. " " .. helper.script(code))
    assert.equal("3\n", result.out)
    assert.equal(3, select(2, result.err:gsub("item 2 %(2%): [^\n]*no good", "")))
  end)

  it("are refused as options are, and nothing changes then", function()
    local fine <const>, message <const> = options.set_defaults { seeds = 1 }
    assert.is_nil(fine)
    assert.equal("unknown option 'seeds'; the nearest is 'seed'", message)
    assert.is_nil((options.set_defaults { workers = "x" }))
  end)
end)

describe("names", function()
  it("are listed in order, and compared", function()
    assert.same({ "chunksize", "finish", "init", "max_rss", "max_tasks_per_child", "memory",
      "nested", "on_error", "output", "retries", "seed", "timeout", "weight", "workers" },
      options.names)
    assert.equal("retries", options.nearest("retry", options.names))
    assert.is_nil(options.nearest("x", {}))
    assert.is_nil(options.nearest("progress", options.names))
    assert.equal("known are a, b", options.hint("progress", { "a", "b" }))
    for name, near in pairs {
      max_workers = "workers", processes = "workers", n_jobs = "workers", initializer = "init",
      maxtasksperchild = "max_tasks_per_child", errors = "on_error", Timeout = "timeout",
    } do
      assert.equal(near, options.nearest(name, options.names), name)
    end
  end)
end)

describe("data", function()
  helper.guard()

  it("that is none is refused, and what was meant guessed", function()
    assert.matches("data must be a list or an iterator function, not nil",
      message_of(plua.map, print))
    assert.matches("data is what ipairs%(t%) gives", message_of(plua.map, print, ipairs {}))
    assert.matches("data is what pairs%(t%) gives", message_of(plua.map, print, pairs {}))
    assert.matches("without items 1, 2", message_of(plua.map, print, { a = 1 }))
    for _, n in ipairs { -1, 0.5, 1 / 0, 0 / 0 } do
      assert.matches("^data has a field n, its number of items, which is %-?%w",
        message_of(plua.map, print, { 1, n = n }))
      local data <const> = setmetatable({ 1 }, { __len = function() return n end })
      assert.matches("^data has a length, by __len, which is %-?%w",
        message_of(plua.map, print, data))
    end
    local data <const> = setmetatable({ 1 }, { __len = function() return "1" end })
    assert.equal("data has a length, by __len, which is 1", message_of(plua.map, print, data))
    data.n = 1.0
    assert.equal("integer", math.type(plua.map(tostring, data).n))
    assert.matches("f must be a function, not nil$", message_of(plua.map, nil, {}))
    assert.matches("reduce must be a function, not nil$", message_of(plua.mapreduce, print))
  end)

  it("in the function's place, or as what gives it, is told what to write", function()
    local first <const> = "must be a function, not table: data comes after the functions"
    assert.matches("f " .. first, message_of(plua.map, { 1 }, print))
    assert.matches("reduce " .. first, message_of(plua.mapreduce, print, { 1 }, print))
    local pool <close> = plua.pool { workers = 1 }
    assert.matches("f " .. first, message_of(pool.map, pool, { 1 }, print))
    assert.matches("reduce " .. first, message_of(pool.mapreduce, pool, print, { 1 }, print))
    for _, call in ipairs { pool.apply, pool.apply_async } do
      assert.matches("f must be a function, not number: name it, its arguments follow",
        message_of(call, pool, 9))
    end
    assert.matches("what pairs%(t%) gives; .* a list of its keys", message_of(plua.map, print,
      pairs { a = 1 }))
    local file <close> = assert(io.open("Makefile"))
    assert.matches("not a file: pass file:lines%(%)", message_of(plua.map, print, file))
  end)

  it("may be a range, which has a length and can be indexed", function()
    local range <const> = plua.range(2, 10, 3)
    assert.same({ 3, 2, 8, nil }, { #range, range[1], range[3], range[4] })
    assert.equal(0, #plua.range(1, 0))
    assert.equal(11, #plua.range(0, 1, 0.1))
    assert.equal(5, #plua.range(5, 1, -1))
    local sum = 0
    for _, x in ipairs(range) do sum = sum + x end
    assert.equal(15, sum)
    assert.has_error(function() plua.range(1, 2, 0) end)
    local _ <const>, err <const> = pcall(plua.range, 0 / 0, 2)
    assert.matches("first must be a number, not NaN$", err)
    assert.has_error(function() plua.range(1, math.huge) end)
    assert.has_error(function() plua.range("1", 2) end)
  end)
end)
