-- Jobs: what a script that returns one prints, in which order, and what its faults are called;
-- and the JSON that its tables are printed as. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

-- Runs a script that returns the table with these fields.
local function job(fields, opts)
  opts = opts or {}
  local path <const> = helper.script((opts.before or "") .. "\nreturn {\n" .. fields .. "\n}\n")
  return helper.run(("%s %s %s"):format(helper.plua, opts.options or "-j 2", path), opts)
end

local function printed(fields, opts)
  local result <const> = job(fields, opts)
  assert.equal("", result.err)
  assert.equal(0, result.status)
  return result.out
end

describe("a job", function()
  helper.guard()

  it("prints results in input order, each on a line", function()
    local cubes <const> = "data = {1, 2, 3, 4, 5, 6}, map = function(x) return x * x * x end"
    assert.equal("1\n8\n27\n64\n125\n216\n", printed(cubes))
  end)

  it("runs from -e and from standard input as from a file", function()
    local text <const> = "return {data = {1, 2}, map = function(x) return 2 * x end}"
    local result <const> = helper.run(helper.plua .. " -e " .. helper.quote(text))
    assert.same({ "2\n4\n", "", 0 }, { result.out, result.err, result.status })
    assert.equal("2\n4\n", helper.run(helper.plua .. " -", { stdin = text }).out)
    local wrong <const> = helper.run(helper.plua .. " -e 'return {data = {1}}'")
    assert.equal("plua: (command line): the job has 'data' but no 'map', the function to apply\n",
      wrong.err)
    assert.equal(2, wrong.status)
  end)

  it("leaves nothing behind: what comes after it waits as it would have", function()
    local first <const> = "return {data = {1, 2}, map = function(x) return 2 * x end}"
    local second <const> = [[
      local methods, n = getmetatable(io.stdout).__index, 0
      local flush = methods.flush
      methods.flush = function(...) n = n + 1 return flush(...) end
      for _ in require("plua").imap(function(x) return x end, {1, 2, 3}) do end
      print(n)]]
    local result <const> = helper.run(("%s -e %s -e %s"):format(helper.plua, helper.quote(first),
      helper.quote(second)))
    assert.same({ "2\n4\n0\n", "", 0 }, { result.out, result.err, result.status })
  end)

  describe("that waits", function()
    -- Runs a job whose output is the file 'out', which its functions can read.
    local function with_out(fields)
      local out <const> = helper.tmp() .. "/out"
      local path <const> = helper.script(([[
        local out <const> = %q
        local function written()
          local file <close> = assert(io.open(out))
          return file:read("a")
        end
        return { %s }]]):format(out, fields))
      local result <const> = helper.run(("%s -j 1 %s >%s"):format(helper.plua, path, out))
      assert.same({ "", 0 }, { result.err, result.status })
      return helper.read(out)
    end

    it("for an item has printed the results that there are", function()
      assert.equal("first\nfirst\n\n", with_out [[
        data = { 1, 2 }, map = function(i)
          local late <const> = os.time() + 20
          while i == 2 and written() == "" and os.time() < late do end
          return i == 1 and "first" or written()
        end]])
    end)

    it("for its data has printed them too", function()
      local lines <const> = with_out [[
        data = (function()
          local n = 0
          return function()
            os.execute("sleep 0.05")
            n = n + 1
            return n < 200 and written() == "" and n or nil
          end
        end)(), map = function(i) return i end]]
      local _, n <const> = lines:gsub("\n", "")
      assert(n < 199, n)
    end)
  end)

  it("prints strings as they are, tables as JSON, the rest as tostring", function()
    assert.equal('a"b\n{"k":[1,2.0]}\nnil\ntrue\n1.5\n-0.0\n', printed [[
      data = {1, 2, 3, 4, 5, 6},
      map = function(i)
        return ({'a"b', {k = {1, 2.0}}, nil, true, 1.5, -0.0})[i]
      end]])
  end)

  it("prints the same for any number of workers", function()
    local fields <const> = [[
      data = coroutine.wrap(function() for i = 1, 500 do coroutine.yield(i) end end),
      map = function(x) return {x = x, r = math.random(), s = ("s"):rep(x % 7)} end,
      seed = 3]]
    local expected <const> = printed(fields, { options = "-j 0" })
    for _, workers in ipairs { 1, 2, 3, 7, 64 } do
      local out <const> = printed(fields, { options = "-j " .. workers })
      assert(out == expected, ("differs with %d workers"):format(workers))
    end
  end)

  it("has nothing to print where there is no data", function()
    assert.equal("", printed "data = {}, map = print")
    assert.equal("", printed "data = function() end, map = print")
  end)

  it("keeps the order where items take different times", function()
    assert.equal("1\n2\n3\n4\n5\n6\n7\n8\n", printed [[
      data = {1, 2, 3, 4, 5, 6, 7, 8}, chunksize = 1,
      map = function(x)
        local n = 0
        for _ = 1, x % 3 == 1 and 2e6 or 1 do n = n + 1 end
        return x
      end]])
  end)

  it("gives 'emit' the result, the item and the index, in order", function()
    local tail <const> = [[map = function(x) return #x end,
      emit = function(result, item, i) print(i, item, result) end]]
    local expected <const> = "1\tone\t3\n2\tfour\t4\n3\tseven\t5\n"
    assert.equal(expected, printed("data = {'one', 'four', 'seven'}, " .. tail))
    assert.equal(expected, printed("data = ('one four seven'):gmatch('%a+'), " .. tail))
  end)

  it("gives 'emit' the items of a range", function()
    assert.equal("10:20 12:24 14:28 ", printed([[
      data = plua.range(10, 14, 2), map = function(x) return 2 * x end,
      emit = function(result, item) io.write(item, ":", result, " ") end]],
      { before = "local plua = require('plua')" }))
  end)

  it("gives 'done' the whole list, holes and all", function()
    assert.equal("4\t1\tnil\tnil\n", printed [[
      data = {1, 2, 3, 4}, map = function(x) if x < 2 then return x end end,
      done = function(list) print(list.n, list[1], list[2], list[4]) end]])
  end)

  it("calls 'emit' for each, then 'done'", function()
    assert.equal("emit 2\nemit 4\ndone 2\n", printed [[
      data = {1, 2}, map = function(x) return 2 * x end,
      emit = function(x) print("emit " .. x) end, done = function(t) print("done " .. #t) end]])
  end)

  it("prints what 'reduce' makes of the results, or gives it to 'done'", function()
    local sum <const> = [[data = {1, 2, 3, 4}, map = function(x) return x * x end,
      reduce = function(a, b) return a + b end]]
    assert.equal("30\n", printed(sum))
    assert.equal("sum 30\n", printed(sum .. ", done = function(v) print('sum ' .. v) end"))
    assert.equal("nil\n", printed("data = {}, map = print, reduce = print"))
  end)

  it("runs 'init' before the items of each worker", function()
    assert.equal("7\n7\n", printed [[
      data = {1, 2}, init = function() k = 7 end, map = function() return k end]])
  end)

  it("may set options; the command line gives defaults only", function()
    local fields <const> = [[data = {1, 2}, on_error = "collect",
      map = function(x) if x == 1 then error("no") end return x end]]
    assert.equal("2\n", job(fields, { options = "--on-error raise -j 2" }).out)
  end)

  it("reads endless data only as fast as results are taken", function()
    local result <const> = job([[
      data = function() n = n + 1 return n end,
      map = function(x) return x end,
      emit = function(x) if x == 20000 then print(n < 200000) os.exit(0, true) end end]],
      { before = "n = 0" })
    assert.same({ "true\n", 0 }, { result.out, result.status })
  end)

  it("can be read from standard input", function()
    local text <const> = "return {data = {1, 2}, map = function(x) return -x end}"
    assert.equal("-1\n-2\n", helper.run(helper.plua .. " -j 2 -", { stdin = text }).out)
    assert.equal("-1\n-2\n", helper.run(helper.plua .. " -j 2", { stdin = text }).out)
  end)

  it("ends quietly when nobody reads its output", function()
    local path <const> = helper.script("return {data = require('plua').range(1, 1000000), " ..
      "map = function(x) return x end}")
    local result <const> = helper.run(helper.plua .. " -j 2 " .. path .. " | head -2")
    assert.same({ "1\n2\n", "" }, { result.out, result.err })
  end)
end)

describe("an item that fails", function()
  helper.guard()

  local FAILING <const> = [[
    data = {1, 2, 3, 4},
    map = function(x) if x % 2 == 0 then error("even: " .. x) end return x end]]

  it("ends the job; the results before it are printed", function()
    local result <const> = job(FAILING)
    assert.equal("1\n", result.out)
    assert.truthy(result.err:find("item 2.*even: 2"), result.err)
    assert.falsy(result.err:find("even: 4", 1, true))
    assert.equal(1, result.status)
  end)

  for place, arguments in pairs {
    ["the job"] = { FAILING .. ", on_error = 'collect'", "-j 2" },
    ["the command line"] = { FAILING, "-j 2 --on-error collect" },
  } do
    it("is reported, and the others printed, if " .. place .. " says collect", function()
      local result <const> = job(arguments[1], { options = arguments[2] })
      assert.equal("1\n3\n", result.out)
      assert.truthy(result.err:find("even: 2.*even: 4"), result.err)
      assert.equal(1, result.status)
    end)
  end

  it("is in its place in the list of 'done', and not given to 'emit'", function()
    local result <const> = job(FAILING .. [[, on_error = "collect",
      emit = function(x) print("emit", x) end,
      done = function(t)
        for i = 1, t.n do print(i, plua.iserror(t[i]) and t[i].kind or t[i]) end
      end]], { before = "local plua = require('plua')" })
    assert.equal("emit\t1\nemit\t3\n1\t1\n2\terror\n3\t3\n4\terror\n", result.out)
    assert.equal(1, result.status)
  end)

  it("is the script's own matter if on_error is a function", function()
    local result <const> = job(FAILING .. ", on_error = function(e) print('took', e.index) end")
    assert.truthy(result.out:find("took\t2\n", 1, true), result.out .. result.err)
    assert.truthy(result.out:find("took\t4\n", 1, true))
    assert.same({ "", 0 }, { result.err, result.status })
  end)

  it("that took its worker along costs itself only", function()
    local result <const> = job([[
      data = {1, 2, 3}, on_error = "collect", retries = 0,
      map = function(x) if x == 2 then os.exit(3) end return x end]])
    assert.equal("1\n3\n", result.out)
    assert.truthy(result.err:find("item 2", 1, true), result.err)
    assert.equal(1, result.status)
  end)

  it("is left out of what 'reduce' makes, and reported, if the job says collect", function()
    local result <const> = job(FAILING .. [[, on_error = "collect",
      reduce = function(a, b) return a + b end]])
    assert.equal("4\n", result.out)
    assert.truthy(result.err:find("even: 2.*even: 4"), result.err)
    assert.equal(1, result.status)
  end)

  it("ends a job with 'reduce' too", function()
    local result <const> = job(FAILING .. ", reduce = function(a, b) return a + b end")
    assert.equal("", result.out)
    assert.truthy(result.err:find("even: 2", 1, true), result.err)
    assert.equal(1, result.status)
  end)
end)

describe("a function of the job that fails", function()
  helper.guard()

  for _, name in ipairs { "emit", "done" } do
    it("is reported once, with a traceback: " .. name, function()
      local result <const> = job(("data = {1, 2}, map = function(x) return x end,\n" ..
        "%s = function() error('ouch') end"):format(name))
      local _, times <const> = result.err:gsub("ouch", "")
      assert.equal(1, times, result.err)
      assert.truthy(result.err:find("script.lua:4: ouch\nstack traceback:", 1, true), result.err)
      assert.falsy(result.err:find("plua/%l+%.lua"), result.err)
      assert.equal(1, result.status)
    end)
  end

  it("names the result that has no form in JSON", function()
    local result <const> = job("data = {1}, map = function() return {a = {0/0}} end")
    assert.truthy(result.err:find("result 1 cannot be printed: .a[1]: ", 1, true), result.err)
    assert.equal(1, result.status)
  end)
end)

describe("a table that is no job", function()
  helper.guard()

  local CASES <const> = {
    ["data = {}"] = "has 'data' but no 'map'",
    ["map = print"] = "has 'map' but no 'data'",
    ["data = {}, mapp = print"] = "no field 'mapp': the nearest is 'map'",
    ["data = {}, map = print, worker = 2"] = "no field 'worker': the nearest is 'workers'",
    ["data = {}, map = print, emitt = print"] = "no field 'emitt': the nearest is 'emit'",
    ["data = {}, map = 3"] = "field 'map' of the job is a number, not a function",
    ["data = {}, map = print, key = 'x'"] = "field 'key' of the job is a string, not a function",
    ["data = 3, map = print"] = "field 'data' of the job is a number",
    ["data = {}, map = print, reduce = print, emit = print"] = "both 'reduce' and 'emit'",
    ["data = {}, map = print, 5"] = "named fields only, not [1]",
    ["data = {}, map = print, workers = 'x'"] = "workers",
    ["data = {}, map = print, on_error = 'x'"] = "on_error",
    ["data = {a = 1}, map = print"] = "script.lua: field 'data' of the job: data is a table",
    ["map = print, data = (ipairs {})"] = "field 'data' of the job: data is what ipairs(t) gives",
  }
  for fields, message in pairs(CASES) do
    it("is refused: " .. fields, function()
      local result <const> = job(fields)
      assert.truthy(result.err:find(message, 1, true), result.err)
      assert.truthy(result.err:find("^plua: [^\n]*\n$"), result.err)
      assert.same({ "", 2 }, { result.out, result.status })
    end)
  end

  it("is nothing to complain of if it has neither data nor map", function()
    assert.equal("", printed "VERSION = 1")
  end)
end)

describe("json", function()
  local json <const> = require "plua.json"

  local FORMS <const> = {
    { 9007199254740993, "9007199254740993" },
    { math.mininteger, "-9223372036854775808" },
    { 1.0, "1.0" }, { -0.0, "-0.0" }, { 0.1, "0.1" }, { 1 / 3, "0.3333333333333333" },
    { 0.1 + 0.2, "0.30000000000000004" }, { 1e100, "1e+100" }, { 2^53, "9007199254740992.0" },
    { 5e-324, "4.9406564584125e-324" },
    { "a\"\\\n\0\127/é", [["a\"\\\n\u0000\u007f/é"]] },
    { {}, "{}" }, { { 1, 2, 3 }, "[1,2,3]" }, { { 1, nil, 3 }, "[1,null,3]" },
    { table.pack(1, nil, nil), "[1,null,null]" }, { { n = 2 }, '{"n":2}' },
    { { [1000] = 1 }, '{"1000":1}' }, { { 1, x = 2 }, '{"1":1,"x":2}' }, { { [0] = 1 }, '{"0":1}' },
    { { b = 1, a = { c = true } }, '{"a":{"c":true},"b":1}' }, { { [""] = 1 }, '{"":1}' },
  }
  for _, form in ipairs(FORMS) do
    it("writes " .. form[2], function() assert.equal(form[2], json.encode(form[1])) end)
  end

  it("writes null, and tables that occur twice", function()
    local t <const> = { 1 }
    assert.equal("[null,[1],[1]]", json.encode { json.null, t, t })
  end)

  it("names the place of what it cannot write", function()
    local circle <const> = { a = {} }
    circle.a.b = circle
    local cases <const> = {
      [".x[2]: "] = { x = { 1, 0 / 0 } },
      ["value: inf"] = math.huge,
      [".f: a function"] = { f = print },
      [".u: a userdata"] = { u = io.stdout },
      ['["a b"]: a thread'] = { ["a b"] = coroutine.create(print) },
      [".a.b: a table that contains itself"] = circle,
      [".s: a string that is not UTF-8 (byte 2)"] = { s = "a\255" },
      ["value: a key that is a boolean"] = { [true] = 1 },
      ["value: a key that is a float"] = { [1.5] = 1 },
      ["value: both the keys"] = { [-1] = 1, ["-1"] = 2 },
    }
    for message, value in pairs(cases) do
      local fine <const>, err <const> = pcall(json.encode, value)
      assert.falsy(fine)
      assert.truthy(err:find(message, 1, true), err)
    end
  end)

  it("refuses what is nested too deeply, and nothing less", function()
    local function nest(n)
      local t = {}
      for _ = 2, n do t = { t } end
      return t
    end
    assert.equal("[[[{}]]]", json.encode(nest(4)))
    assert.truthy(pcall(json.encode, nest(1000)))
    local _, err <const> = pcall(json.encode, nest(1001))
    assert.equal("value: nested deeper than 1000 tables", err)
  end)

  it("is not changed by the locale's decimal comma", function()
    local before <const> = os.setlocale(nil, "numeric")
    for _, name in ipairs { "de_DE.UTF-8", "fr_FR.UTF-8", "C" } do
      if os.setlocale(name, "numeric") then assert.equal("[0.5]", json.encode { 0.5 }) end
    end
    os.setlocale(before, "numeric")
  end)

  it("reads back exactly what it has written", function()
    for _, form in ipairs(FORMS) do
      local text <const> = form[2]
      local value <const> = json.decode(text)
      assert.equal(text, json.encode(value))
      assert.equal(math.type(form[1]), math.type(value))
    end
    assert.equal("#1", json.decode('"#1"'))
    assert.equal("$x", json.decode('{"#$":["$x"]}')["#$"][1])
    assert.equal(json.null, json.decode("[null]")[1])
  end)

  it("reads random doubles and integers back, bit for bit", function()
    local seed <const> = os.time()
    math.randomseed(seed)
    for _ = 1, 20000 do
      local bits <const> = math.random(0)
      local float <const> = string.unpack("d", string.pack("j", bits))
      for _, x in ipairs { bits, float } do
        if x == x and math.abs(x) ~= math.huge then
          local back <const> = json.decode(json.encode(x))
          assert(x == back and math.type(x) == math.type(back), "seed " .. seed)
        end
      end
    end
  end)

  it("refuses malformed texts", function()
    for _, text in ipairs {
      "", "[1,]", "{", "[01]", "[1.]", "[.5]", "[1e]", "[-]", "[+1]", "[0x10]", "nan", "[NaN]",
      '"a', '"a\\"', "[1 2]", "[1.2.3]", "{1:2}", "[1]x", "truex",
    } do
      local fine <const>, err <const> = pcall(json.decode, text)
      assert.falsy(fine, text)
      assert.truthy(err:find("malformed JSON", 1, true), err)
    end
  end)
end)
