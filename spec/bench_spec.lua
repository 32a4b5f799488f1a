-- The benchmark and the simulation do what their first lines say. Not how fast anything is.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local json <const> = require "plua.json"

--- Elements that are opened are closed, in order; the names of all that occur.
local function well_formed(text)
  local open, seen = {}, {}
  for close, name, rest in text:gmatch "<(/?)(%a+)([^>]*)>" do
    seen[name] = (seen[name] or 0) + 1
    if close == "/" then
      assert.equal(table.remove(open), name)
    elseif rest:sub(-1) ~= "/" then
      open[#open + 1] = name
    end
  end
  assert.same({}, open)
  assert.is_nil(text:gsub("<[^<>]*>", ""):find "[<>]")
  return seen
end

local function numbers(text)
  local fields <const> = {}
  for name, value in text:gmatch "([%a_]+) (%-?[%d.]+)\n" do fields[name] = tonumber(value) end
  return fields
end

--- A directory of one's own with the programs that the benchmark starts.
local function place()
  local dir <const> = helper.tmp()
  assert(os.execute(("ln -s '%s/bench' '%s/kit' '%s/simulate' '%s'"):format(helper.build,
    helper.build, helper.build, dir)))
  return dir
end

local function bench(dir, options)
  return helper.run(("%s scripts/bench.lua --dir=%s %s"):format(helper.plua, dir, options),
    { timeout = 200 })
end

describe("the benchmark", function()
  helper.guard()

  it("measures a case beside its peers; tells it as text, JSON and picture", function()
    local dir <const> = place()
    local result <const> = bench(dir, "--runs=1 --case=trip --no-counts")
    assert.same({ "", 0 }, { result.err, result.status })
    assert.matches("\npool:apply, worker idle +us +[%d.]+ ", result.out)
    local run <const> = json.decode(helper.read(dir .. "/bench-part.json"))
    local row <const> = run.rows[1]
    assert.same({ 1, "trip", 2000, 1 }, { #run.rows, row.id, row.items, row.rounds })
    for _, who in ipairs { "plua", "serial", "limit" } do
      local r <const> = row.results[who]
      assert.is_true(r.low > 0 and r.low <= r.median and r.median <= r.high, who)
    end
    assert.equal("has no call for one item", row.results.joblib.why)
    assert.equal(row.results.plua.median <= row.results.limit.median + 2, row.targets[1].met)
    local seen <const> = well_formed(helper.read(dir .. "/bench-part.svg"))
    assert.is_true(seen.circle > 9 and seen.svg == 2)
    os.rename(dir .. "/bench-part.json", dir .. "/bench.json")
    assert.matches("| pool:apply, worker idle | us | **", helper.run(
      ("%s scripts/bench.lua --dir=%s --markdown"):format(helper.plua, dir)).out, 1, true)
  end)

  it("names what became dearer since an earlier run, and fails then", function()
    local dir <const> = place()
    assert.equal(0, bench(dir, "--runs=1 --case=trip --no-counts").status)
    local path <const> = dir .. "/bench-part.json"
    local run <const> = json.decode(helper.read(path))
    local ours <const> = run.rows[1].results.plua
    ours.low, ours.median, ours.high = 0.001, 0.001, 0.001
    helper.write(path, json.encode(run))
    local result = bench(dir, "--runs=1 --case=trip --no-counts --compare=" .. path)
    assert.equal(1, result.status)
    assert.matches("\ntrip, us [^\n]* DEARER\n", result.out)
    ours.low, ours.median, ours.high = 1e9, 1e9, 1e9
    helper.write(dir .. "/old.json", json.encode(run))
    result = bench(dir, "--runs=1 --case=trip --no-counts --compare=" .. dir .. "/old.json")
    assert.equal(0, result.status)
    assert.matches("\ntrip, us [^\n]* %-100.0 %%\n", result.out)
  end)

  it("judges by the bound, else beside what stood next to it when the bound was set", function()
    local cases <const>, report <const> = dofile "scripts/bench/cases.lua",
      dofile "scripts/bench/report.lua"
    local function verdict(id, medians)
      for _, case in ipairs(cases) do
        if case.id == id then return report.verdict { targets = report.targets(case, medians) } end
      end
    end
    for _, t in ipairs {
      { "met", "async", { plua = 1.5, mp = 2 } },
      { "by ratio: 0.05 of multiprocessing (<= 0.067)", "async", { plua = 2, mp = 40 } },
      { "MISSES <= 1.5 us", "async", { plua = 2, mp = 22.4 } },
      { "MISSES <= 1.5 us", "async", { plua = 2 } },
      { "by ratio: 0.2 of multiprocessing (<= 0.202)", "oneshot",
        { plua = 60, serial = 60, mp = 300 } },
      { "MISSES 1.3 x serial", "oneshot", { plua = 50, serial = 38, mp = 300 } },
      { "not judged: 5 x multiprocessing", "oneshot", { plua = 50, serial = 39 } },
      { "met", "cpu", { plua = 0.99, pair = 0.5 } },
      { "by ratio: 0.99 of bare processes (>= 0.99)", "cpu", { plua = 0.9, pair = 0.99 } },
      { "MISSES >= 0.99", "cpu", { plua = 0.98, pair = 0.98 } },
      { "by ratio: 1.02 of bare processes (<= 1.02)", "skew_last", { plua = 1.5, pair = 1.02 } },
      { "MISSES <= 1.02", "skew_last", { plua = 1.03, pair = 1.03 } },
      { "by ratio: 1.1 of 1,000 bare forks (<= 1.1)", "thousand",
        { plua = 220, limit = 200, plua_private_kb = 300 } },
      { "MISSES <= 150 ms, <= 300 kB private", "thousand",
        { plua = 151, limit = 100, plua_private_kb = 301 } },
    } do
      assert.equal(t[1], verdict(t[2], t[3]))
    end
  end)

  it("leaves the last whole run alone where some cases are run", function()
    local dir <const> = place()
    helper.write(dir .. "/bench.json", "whole")
    helper.write(dir .. "/bench.svg", "picture")
    local result <const> = bench(dir, "--runs=1 --case=trip --no-counts")
    assert.matches("written: [^\n]*/bench%-part.json, [^\n]*/bench%-part.svg\n", result.out)
    assert.same({ "whole", "picture" },
      { helper.read(dir .. "/bench.json"), helper.read(dir .. "/bench.svg") })
  end)

  it("says which options there are, and that no case has such a name", function()
    assert.matches("'--fast' is not understood: --runs=N", bench("build", "--fast").err, 1, true)
    for options, message in pairs {
      ["--case=nothing"] = "no case is named like 'nothing'",
      ["--runs=x"] = "--runs is a whole number above 0, not 'x'",
      ["--runs=0"] = "--runs is a whole number above 0, not '0'",
      ["--compare=/nothing"] = "/nothing: No such file or directory",
    } do
      local result <const> = bench(place(), options)
      assert.same({ 2, "bench.lua: " .. message .. "\n", "" },
        { result.status, result.err, result.out })
    end
  end)
end)

describe("the simulation", function()
  helper.guard()

  local function simulate(line)
    local result <const> = helper.run(helper.build .. "/simulate " .. line, { timeout = 100 })
    assert.same({ "", 0 }, { result.err, result.status })
    return numbers(result.out)
  end

  it("is within 2 % of greedy list scheduling, whatever the costs and the team", function()
    for _, law in ipairs { "pareto", "lognormal", "constant" } do
      for _, team in ipairs { "10 100000", "200 400000" } do
        local r <const> = simulate(("%s %s 10000 0 7"):format(team, law))
        assert.is_true(r.makespan_ns <= 1.02 * r.greedy_ns, law .. " " .. team)
      end
    end
  end)

  it("is the same each time, but for the clock", function()
    local first <const>, again <const> = simulate "50 50000 pareto 5000 60 3",
      simulate "50 50000 pareto 5000 60 3"
    first.parent_ns_per_item, again.parent_ns_per_item = nil, nil
    assert.same(first, again)
  end)

  it("needs memory for workers, not for items", function()
    local few <const> = simulate "100 20000 pareto 1000 0 1"
    local many <const> = simulate "100 1000000 pareto 1000 0 1"
    assert.is_true(many.memory_bytes < 1.5 * few.memory_bytes)
  end)
end)
