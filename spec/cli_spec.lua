-- The command line of plua: what lua's options mean, plua's own ones, errors, statuses, signals.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

local quote <const> = helper.quote

local function plua(arguments, opts) return helper.run(helper.plua .. " " .. arguments, opts) end
local function eval(code, opts) return plua("-e " .. quote(code), opts) end

-- Prints the arguments as the script sees them; the program's own name differs.
local SHOW_ARGS <const> = [[
local first = 0
while arg[first - 1] do first = first - 1 end
for i = first + 1, #arg do print(i, arg[i]) end
print(first, select("#", ...), ...)
]]

local INTERRUPT <const> = [[
local function interrupt()
  local stat <close> = io.open("/proc/self/stat")
  io.popen("kill -INT " .. stat:read("n")):close()
  for _ = 1, 1e10 do end
end
]]

describe("plua, as lua", function()
  helper.guard()

  -- Both run the same line; what they print, after the program's name, and the status are equal.
  local function compare(arguments, opts)
    local function answer(program, name)
      local result <const> = helper.run(program .. " " .. arguments, opts)
      local err <const> = ("\n" .. result.err):gsub("\n" .. name .. ": ", "\nPROGRAM: ")
      return { status = result.status, signal = result.signal, out = result.out, err = err }
    end
    local expected <const> = answer(helper.lua, "%g*lua[%d.]*")
    assert.same(expected, answer(helper.plua, "plua"))
    return expected
  end

  local script, failing, returning
  before_each(function()
    script = helper.script(SHOW_ARGS)
    failing = helper.script("local function f(x) error('no ' .. x) end\nf('way')")
    returning = helper.script("return { n = 1, 2, 3 }")
  end)

  for _, arguments in ipairs {
    "-e 'print(1)' -e 'print(2)'",
    "-e'print(1)'",
    "-e 'print(arg[0] ~= nil, #arg, ...)'",
    "-l math -e 'print(math.pi)'",
    "-l m=math -e 'print(m == math)'",
    "-lmath -e 'x = 1' -e 'print(x)'",
    "-W -e 'warn(\"loud\")'",
    "-e 'warn(\"quiet\")'",
    "-e 'warn(\"@on\")' -e 'warn(\"loud\")'",
    "-e 'os.exit(7)'",
    "-e 'os.exit(true, true)'",
    "-e 'os.exit(false)'",
    "-e 'error(42)'",
    "-e 'error()'",
    "-e 'error({})'",
    "-e 'error(print)'",
    "-e 'error(setmetatable({}, {__tostring = function() return \"mine\" end}))'",
    "-e 'error(\"no place\", 0)'",
    "-e 'error(\"level 2\", 2)'",
    "-e 'local t = nil; t.x = 1'",
    "-e 'coroutine.wrap(function() error(\"inside\") end)()'",
    "-e 'print(collectgarbage(\"incremental\"))'",
    "-e 'print(debug.gethook())'",
    "-e 'for k in pairs(package.loaded) do print(k) end' | sort",
    "-e 'for k in pairs(_G) do print(k) end' | sort",
  } do
    it("answers to " .. arguments .. " alike", function() compare(arguments) end)
  end

  it("hands the script its arguments, and the table arg", function()
    compare(script .. " one 'two words' ''")
    compare("-e 'x = 1' -W " .. script)
    compare("-- " .. script .. " -x --")
    compare(script .. " -e --workers -j")
  end)

  it("traces the script's functions, none of its own", function()
    assert.equal(1, compare(failing).status)
  end)

  it("skips a first line that begins with #", function()
    compare(helper.script("#!/usr/bin/env plua\nprint('ran', ...)\n") .. " x")
  end)

  it("runs as the interpreter of a #! line", function()
    local path <const> = helper.script("#!" .. helper.plua .. "\nprint('ran', ...)\n")
    assert.equal("ran\tx\n", helper.run("chmod +x " .. path .. " && " .. path .. " x").out)
  end)

  it("runs binary chunks", function()
    local path <const> = helper.tmp() .. "/chunk"
    helper.write(path, string.dump(assert(load("print('compiled')"))))
    compare(path)
  end)

  it("reads the script from standard input", function()
    compare("", { stdin = "print('in', ...)" })
    compare("- a b", { stdin = "print('in', ...)\nerror('x')" })
    compare("-W", { stdin = "warn('in')" })
    compare("-v < /dev/null | cut -c1-0")
  end)

  it("ignores the table that a script returns if it is no job", function() compare(returning) end)

  it("obeys LUA_INIT, of both names, and @file", function()
    local file <const> = helper.script("print('from file')")
    compare("-e 'print(1)'", { env = { LUA_INIT = "print('init')" } })
    compare("-e 'print(1)'", { env = { LUA_INIT = "@" .. file } })
    compare("-e 'print(1)'", { env = { LUA_INIT = "print(1)", LUA_INIT_5_4 = "print('5.4')" } })
    compare("-e 'print(1)'", { env = { LUA_INIT = "error('bad')" } })
  end)

  it("ignores LUA_INIT and LUA_PATH under -E", function()
    local env <const> = { LUA_INIT = "print('init')", LUA_PATH = "/x/?.lua", LUA_PATH_5_4 = "/x" }
    assert.equal("done\n", plua("-E -e 'print(\"done\")'", { env = env }).out)
    assert.equal("false\n",
      plua("-E -e 'print(package.path:find(\"/x\") ~= nil)'", { env = env }).out)
  end)

  it("obeys LUA_PATH", function()
    local dir <const> = helper.tmp()
    helper.write(dir .. "/mine.lua", "return 'found'")
    local env <const> = { LUA_PATH = dir .. "/?.lua;;" }
    assert.equal("found\n", plua("-l mine -e 'print(mine)'", { env = env }).out)
  end)

  it("carries its modules in itself", function()
    local result <const> = eval("print(require('plua').version, package.searchpath('plua', '/x'))",
      { env = { LUA_PATH = "/nowhere", LUA_CPATH = "/nowhere" } })
    assert.truthy(result.out:find("^%d+%.%d+%.%d+\tnil"), result.err)
  end)
end)

describe("plua's interactive mode", function()
  helper.guard()

  local function interact(lines, arguments)
    return plua("-i " .. (arguments or ""), { stdin = lines })
  end

  it("prints expressions, reads statements over several lines", function()
    local result <const> = interact("x = 1\nx, x + 1\n=x + 2\nfor i = 1, 2 do\nprint(i)\nend\n")
    assert.equal("> > 1\t2\n> 3\n> >> >> 1\n2\n> \n", result.out:match("\n(.*)$"))
    assert.equal("", result.err)
    assert.equal(0, result.status)
  end)

  it("goes on after errors, and names no program in them", function()
    local result <const> = interact("local = 1\nerror('a')\n'fine'\n")
    assert.truthy(result.out:find("> fine\n", 1, true))
    assert.truthy(result.err:find("^stdin:1: <name> expected near '='\nstdin:1: a\nstack trace"))
    assert.equal(0, result.status)
  end)

  it("reports a statement that the end of the input cuts", function()
    assert.equal("stdin:1: <name> expected near <eof>\n", interact("for").err)
  end)

  it("obeys _PROMPT and _PROMPT2", function()
    local result <const> = interact("_PROMPT = 'a '\n_PROMPT2 = 'b '\nif x then\nend\n")
    assert.equal("> a a b a \n", result.out:match("\n(.*)$"))
  end)

  it("shows errors of print", function()
    local result <const> = interact("print = nil\n1\n")
    assert.truthy(result.err:find("error calling 'print'", 1, true))
  end)

  it("comes after the script", function()
    local result <const> = interact("x\n", helper.script("x = 'set by the script'"))
    assert.truthy(result.out:find("> set by the script\n", 1, true))
  end)

  it("does not come after a script that failed", function()
    local result <const> = interact("print('reached')\n", helper.script("error('a')"))
    assert.falsy(result.out:find("reached", 1, true))
    assert.equal(1, result.status)
  end)

  it("has plua as a global, and maps functions that were typed", function()
    local result <const> = interact("function f(x) return x * k end\nk = 7\n" ..
      "table.unpack(plua.map(f, {1, 2, 3}, {workers = 2}))\n")
    assert.equal("", result.err)
    assert.truthy(result.out:find("> 7\t14\t21\n", 1, true))
  end)

  it("starts by itself on a terminal", function()
    local result <const> = helper.run("{ echo '6 * 7'; } | script -qec " .. helper.plua ..
      " /dev/null")
    assert.truthy(result.out:find("42", 1, true), result.out .. result.err)
  end)
end)

describe("plua's options", function()
  helper.guard()

  local function refused(arguments, pattern)
    local result <const> = plua(arguments .. " -e 'print(\"ran\")'")
    assert.equal("", result.out)
    assert.truthy(result.err:find(pattern), result.err)
    assert.truthy(result.err:find("^plua: [^\n]*\n$"), result.err)
    assert.equal(2, result.status)
  end

  it("show the nearest name where one is unknown", function()
    refused("--wrokers 3", "unrecognized option '%-%-wrokers'; the nearest is '%-%-workers'")
    refused("--on-eror=raise", "'%-%-on%-eror'; the nearest is '%-%-on%-error'")
    refused("--chunk-size", "the nearest is '%-%-chunksize'")
    refused("--cpu", "the nearest is '%-%-cpus'")
    refused("--progress", "unrecognized option '%-%-progress' %(plua %-%-help shows all%)")
    refused("-workers", "unrecognized option '%-workers'; the nearest is '%-%-workers'")
    refused("-q", "unrecognized option '%-q'")
  end)

  it("refuse values that make no sense", function()
    refused("--workers=-1", "workers")
    refused("-j many", "workers")
    refused("--on-error=maybe", "on.error")
    refused("--seed=x", "seed")
    refused("--help=3", "'%-%-help' takes no value")
    refused("--init=x", "'%-%-init' takes a function")
  end)

  it("need their values", function()
    for _, word in ipairs { "-e", "-l", "-j", "--workers" } do
      local result <const> = plua(word)
      assert.truthy(result.err:find("^plua: '" .. word:gsub("%-", "%%-") .. "' needs "), result.err)
      assert.equal(2, result.status)
    end
    assert.truthy(plua("-e -i").err:find("'-e' needs argument", 1, true))
  end)

  it("are understood before anything runs", function()
    local result <const> = plua("-e 'print(1)' --wrokers 3", { env = { LUA_INIT = "print(2)" } })
    assert.equal("", result.out)
  end)

  local COUNT <const> = quote [[
    local pids, n = {}, 0
    local list = require("plua").map(function(i) return require("plua").worker().pid end,
      {1, 2, 3, 4, 5, 6}, {chunksize = 1})
    for _, pid in ipairs(list) do pids[pid] = true end
    for _ in pairs(pids) do n = n + 1 end
    print(n <= 1)]]

  for _, words in ipairs { "-j 1", "-j1", "--workers 1", "--workers=1", "-j 9 -j 1", "-j 1%" } do
    it(words .. " sets the number of workers", function()
      assert.same({ out = "true\n", err = "" }, (function(r)
        return { out = r.out, err = r.err }
      end)(plua(words .. " -e " .. COUNT)))
    end)
  end

  it("are defaults: what a call says itself wins", function()
    local code <const> = [[
      local plua = require("plua")
      local function fail(x) error("failed") end
      print(plua.iserror(plua.map(fail, {1})[1]))
      print((pcall(plua.map, fail, {1}, {on_error = "raise"})))]]
    local result <const> = plua("--on-error collect -j 1 -e " .. quote(code))
    assert.equal("true\nfalse\n", result.out, result.err)
  end)

  it("--seed makes random numbers the same for every run", function()
    local code <const> = quote [[
      print(table.concat(require("plua").map(function() return math.random(1 << 30) end,
        {1, 2, 3, 4}), " "))]]
    local first <const> = plua("--seed 5 -j 1 -e " .. code)
    assert.equal("", first.err)
    assert.equal(first.out, plua("--seed 5 -j 3 -e " .. code).out)
    assert.not_equal(first.out, plua("--seed 6 -j 3 -e " .. code).out)
  end)

  it("--version and --help tell, and run nothing", function()
    local version <const> = plua("--version -e 'print(1)'")
    assert.truthy(version.out:find("^plua %d+%.%d+%.%d+ %(Lua 5%.4%.%d+%)\n$"), version.out)
    local help <const> = plua("--help").out
    for _, word in ipairs { "-e stat", "--workers", "--seed", "--cpus" } do
      assert.truthy(help:find(word, 1, true), word)
    end
  end)

  it("--help names every option that a command line can give", function()
    local options <const> = require "plua.options"
    local help <const> = plua("--help").out
    for _, name in ipairs(options.names) do
      if name ~= "init" and name ~= "finish" and name ~= "weight" then
        assert.truthy(help:find("--" .. name:gsub("_", "-"), 1, true), name)
      end
    end
  end)

  it("--cpus shows the count, every source and the one that decides", function()
    local result <const> = plua("--cpus", { env = { PLUA_WORKERS = "7" } })
    assert.truthy(result.out:find("^7, decided by PLUA_WORKERS\n"), result.out .. result.err)
    assert.truthy(result.out:find("\nSOURCE +CPUS +SAYS +WHERE"))
    assert.truthy(result.out:find("\nPLUA_WORKERS +7 +7 .*<%- decides"))
    assert.truthy(result.out:find("\naffinity +%d"))
    local _, deciders <const> = result.out:gsub("<%- decides", "")
    assert.equal(1, deciders)
  end)
end)

describe("plua, when things go wrong,", function()
  helper.guard()

  it("says in a line that a script is not there", function()
    local result <const> = plua("/no/such/script.lua")
    assert.equal("plua: cannot open /no/such/script.lua: No such file or directory\n", result.err)
    assert.equal(2, result.status)
  end)

  it("says where a script does not load", function()
    local path <const> = helper.script("x = 1\nif then\n")
    local result <const> = plua(path)
    assert.equal(("plua: %s:2: unexpected symbol near 'then'\n"):format(path), result.err)
    assert.equal(2, result.status)
    assert.equal(2, eval("x =").status)
    assert.equal(2, plua("-", { stdin = "x =" }).status)
  end)

  it("reminds of the module where a script has not asked for it", function()
    local path <const> = helper.script("x = 1\nplua.map(print, { x })\n")
    local result <const> = plua(path)
    assert.equal(("plua: %s:2: attempt to index a nil value (global 'plua')\n" ..
      '  plua is a module: begin with  local plua = require "plua"\n' ..
      "stack traceback:\n\t%s:2: in main chunk\n\t[C]: in ?\n"):format(path, path), result.err)
  end)

  it("prints the error of an item as it is", function()
    local path <const> = helper.script([[
      local plua = require("plua")
      local function halve(x) return x.size // 2 end
      plua.map(halve, { {size = 1}, 2, {size = 3} }, { workers = 2 })]])
    local result <const> = plua(path)
    assert.equal(1, result.status)
    assert.truthy(result.err:find("item 2", 1, true), result.err)
    assert.truthy(result.err:find(path .. ":2: attempt to index", 1, true), result.err)
    assert.falsy(result.err:find("plua/cli.lua", 1, true), result.err)
    local _, traces <const> = result.err:gsub("stack traceback", "")
    assert.equal(1, traces, result.err)
  end)

  for what, code in pairs {
    ["a wrong option"] = "plua.map(print, {1}, {wrkers = 2})",
    ["data that are none"] = "plua.map(print, {a = 1})",
    ["an iterator that fails"] = "plua.map(print, function() error('no more') end)",
    ["a stream that fails"] = "for _ in plua.imap(print, function() error('no more') end) do end",
    ["a fold that fails"] = "plua.mapreduce(tostring, function(a) return a.x.y end, {1, 2})",
    ["a pool that is closed"] = "local p = plua.pool {workers = 1} p:close() p:map(print, {1})",
    ["a nested call"] = "plua.map(function() plua.map(error, {'x'}) end, {1}, {workers = 1})",
    ["a method without its pool"] = "plua.pool {workers = 1}.map(print, {1})",
  } do
    it("shows no frame of its own for " .. what, function()
      local path <const> = helper.script("local plua = require 'plua'\nlocal function go()\n" ..
        code .. "\nend\ngo()\nprint('reached')")
      local result <const> = plua(path)
      assert.same({ "", 1 }, { result.out, result.status })
      assert.falsy(result.err:find("plua/%l+%.lua"), result.err)
      assert.falsy(result.err:find("plua.core", 1, true), result.err)
      assert.truthy(result.err:find("script.lua:3", 1, true), result.err)
    end)
  end

  it("names the call that an uncaught error of an item ended", function()
    local path <const> = helper.script([[
      local plua = require("plua")
      local function f(x) return x.y end
      plua.map(f, { {} })
      plua.map(f, { 1 }, { workers = 1 })]])
    local result <const> = plua(path)
    assert.truthy(result.err:find("\n  in plua.map at [^\n]*script.lua:4\n$"), result.err)
    for call, code in pairs {
      ["pool:apply"] = "print(plua.pool():apply(f))",
      ["plua.mapreduce"] = "print(plua.mapreduce(f, f, { 1 }))",
      ["the loop"] = "for _ in plua.imap(f, { 1 }) do end",
    } do
      local text <const> = "local plua = require 'plua'\nlocal function f() return io.stdout end\n"
      local err <const> = plua(helper.script(text .. code)).err
      assert.truthy(err:find("\n  in " .. call .. " at [^\n]*script.lua:3\n$"), err)
    end
  end)

  it("tells failures and exits with 1 where only the command line said collect", function()
    local code <const> = [[
      local plua = require("plua")
      local function f(x) if x == 2 then error("no " .. x) end return x end
      local function run(over)
        for _, r in plua.imap(f, {1, 2, 3}, over) do print(type(r)) end
      end
      %s]]
    local MAP <const> = "for _, r in ipairs(plua.map(f, {1, 2, 3})) do print(type(r)) end"
    for _, body in ipairs { "run()", MAP } do
      local path <const> = helper.script(code:format(body))
      local result <const> = plua("--on-error collect -j 2 " .. path)
      assert.equal("number\ntable\nnumber\n", result.out)
      assert.truthy(result.err:find("^item 2 %(2%): [^\n]*script.lua:2: no 2\n"), result.err)
      assert.equal(1, result.status)
    end
    local own <const> = plua("--on-error collect " .. helper.script(code:format(
      "run({on_error = 'collect'})")))
    assert.same({ "number\ntable\nnumber\n", "", 0 }, { own.out, own.err, own.status })
  end)

  it("says what the lua program misses where only LUA_PATH is set", function()
    local result <const> = helper.run(helper.lua .. " -e 'package.cpath = \"\" require \"plua\"'")
    assert.truthy(result.err:find("module 'plua.core' not found", 1, true), result.err)
    assert.truthy(result.err:find("add lib/lua/5.4/?.so", 1, true), result.err)
    assert.equal(1, result.status)
  end)

  it("names the limit and the remedy where the system gives no memory or file", function()
    local path <const> = helper.script("local plua = require 'plua'\n" ..
      "plua.map(print, plua.range(1, 500))")
    local line <const> = "ulimit -f 100; exec " .. helper.plua .. " -j 500 " .. path
    local result <const> = helper.run(line)
    assert.truthy(result.err:find("^plua: [^\n]*script.lua:2: plua.map: no shared memory for " ..
      "500 workers: [^\n]* %(ulimit %-f is %d+%); use fewer workers"), result.err)
    assert.equal(1, select(2, result.err:gsub("plua: ", "")))
    assert.equal(1, result.status)
  end)

  it("ends by SIGINT when the script did not catch it", function()
    local result <const> = plua(helper.script(INTERRUPT .. "print('begun')\ninterrupt()"))
    assert.equal(2, result.signal)
    assert.equal("begun\n", result.out)
    assert.truthy(result.err:find("^plua: [^\n]*script%.lua:%d+: interrupted\n$"), result.err)
  end)

  it("lets a script catch SIGINT", function()
    local result <const> = plua(helper.script(INTERRUPT .. [[
      local fine, message = pcall(interrupt)
      print(fine, message:match("interrupted!$"))
      error("later")]]))
    assert.equal("false\tinterrupted!\n", result.out)
    assert.same({ 1, nil }, { result.status, result.signal })
  end)

  it("is interrupted inside a map", function()
    local path <const> = helper.script([[
      local plua = require("plua")
      local pid
      do
        local stat <close> = io.open("/proc/self/stat")
        pid = stat:read("n")
      end
      plua.map(function(x)
        if x == 3 then io.popen("kill -INT " .. pid):close() end
        while x == 3 do end
        return x
      end, {1, 2, 3, 4}, {workers = 2})]])
    for _ = 1, 10 do -- the signal finds the program in a wait, before it or behind it
      local result <const> = plua(path, { timeout = 20 })
      assert.equal(2, result.signal, result.err)
      assert.truthy(result.err:find("^plua: interrupted: %d of 4 items done\n$"), result.err)
    end
  end)

  it("ends quietly when nobody reads its output", function()
    local path <const> = helper.script("for i = 1, 1e6 do print(i) end")
    local result <const> = helper.run(helper.plua .. " " .. path ..
      " | head -1; echo ${PIPESTATUS[0]}")
    assert.equal("1\n141\n", result.out)
    assert.equal("", result.err)
  end)

  it("ends quietly where items print to a pipe that is closed", function()
    local path <const> = helper.script("local plua = require 'plua'\n" ..
      "plua.each(function(i) print(i) end, plua.range(1, 100000), { workers = 2 })")
    local result <const> = helper.run(helper.plua .. " " .. path ..
      " | head -1; echo ${PIPESTATUS[0]}")
    assert.equal("141", result.out:match("(%d+)\n$"))
    assert.equal("", result.err)
  end)

  it("ends quietly even if it was started with SIGPIPE ignored", function()
    local path <const> = helper.script("for i = 1, 1e6 do print(i) end")
    local result <const> = helper.run(("trap '' PIPE; %s %s | head -1"):format(helper.plua, path))
    assert.same({ "1\n", "" }, { result.out, result.err })
  end)

  it("fails when its output cannot be written", function()
    local result <const> = helper.run(helper.plua .. " -e 'print(1)' >/dev/full")
    assert.truthy(result.err:find("^plua: cannot write to standard output"), result.err)
    assert.equal(1, result.status)
  end)

  it("survives a stack overflow", function()
    local result <const> = eval("local function f() return f() + 1 end f()")
    assert.truthy(result.err:find("stack overflow", 1, true))
    assert.equal(1, result.status)
  end)

  it("shows errors whose __tostring fails", function()
    local result <const> = eval("error(setmetatable({}, {__tostring = function() error('x') end}))")
    assert.truthy(result.err:find("(error object is a table value)", 1, true))
  end)

  it("tells of an interrupt while the module is loaded as of any other", function()
    local result <const> = helper.run(helper.plua .. [[ -e '
      package.loaded.plua, package.loaded["plua.core"] = nil, nil
      package.preload["plua.core"] = function() error("here: interrupted!", 0) end
      print(select(2, pcall(require, "plua")))']], { timeout = 20 })
    assert.equal("here: interrupted!\n", result.out, result.err)
  end)
end)
