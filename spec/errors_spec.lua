-- Errors: what they hold, and what a person reads. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local crash <const> = require "crashkit"

local function caught(f, ...)
  local fine <const>, err <const> = pcall(f, ...)
  assert.is_false(fine)
  return err
end

-- The line of the caller, as messages give it.
local function here(offset)
  return ("errors_spec.lua:%d"):format(debug.getinfo(2, "l").currentline + (offset or 0))
end

for _, workers in ipairs { 0, 1, 2, 3, 7, 64 } do
  describe("with workers = " .. workers .. ", an error of an item", function()
    helper.guard()
    local opts <const> = { workers = workers }
    local collect <const> = { workers = workers, on_error = "collect" }

    it("tells what, which item, where, and the worker's traceback", function()
      local line <const> = here(2)
      local err <const> = caught(plua.map, function(item)
        if item == "bad" then error("no good") end
      end, { "fine", "bad" }, opts)
      assert.is_true(plua.iserror(err))
      assert.equal("error", err.kind)
      assert.equal(2, err.index)
      assert.equal("bad", err.item)
      assert.equal(1, err.attempts)
      assert.matches(line .. ": no good", err.message, 1, true)
      assert.equal(err.message, err.value)
      assert.matches(line, err.where, 1, true)
      assert.matches("in function 'error'", err.traceback, 1, true)
      assert.matches(line, err.traceback, 1, true)
      assert.equal(workers > 0, err.worker ~= nil)
      assert.equal(workers > 0 and "number" or "nil",
        type(workers > 0 and err.pid or nil))
    end)

    it("tells the calls as Lua's own traceback does, each time", function()
      local object <const> = {}
      local function fails(x) return x + nil end
      local function deep(n) return (n == 0 and error("no good") or deep(n - 1)) end
      function object.field() return (fails(1)) end
      function object:method() return (self.field()) end
      package.loaded["plua_spec"] = { named = object.field } -- goes by the module's name
      local cases <const> = {
        function() return fails(1) end,
        function() return (object:method()) end,
        function() return (object.field()) end,
        function() return (deep(5)) end,
        function() return (load("return ... + {}", "=text")(1)) end,
        function() return (("a"):gsub("a", function() return (fails(1)) end)) end,
        function() return (string.rep()) end,
      }
      local function asked(case) return select(2, xpcall(case, debug.traceback)) end
      for k, case in ipairs(cases) do
        local errs <const> = plua.map(case, { 1, 2 }, collect)
        local text <const> = plua.map(function() return (asked(case)) end, { 1 }, opts)[1]
        local levels <const> = text:match("(stack traceback:.-)\n\t%[C%]: in function 'xpcall'")
        assert.equal(levels, errs[1].traceback, k)
        assert.equal(levels, errs[2].traceback, k)
        assert.equal(k == 2 or k == 3, levels:find("'plua_spec.named'", 1, true) ~= nil)
      end
      local err <const> = caught(plua.map, function() return (deep(40)) end, { 1 }, opts)
      assert.matches("in function 'error'.*%.%.%.\t%(skipping %d+ levels%)", err.traceback)
      package.loaded["plua_spec"] = nil
    end)

    it("that came from a call of plua inside it is told once", function()
      local line <const> = here(2)
      local err <const> = caught(plua.map, function(x)
        plua.map(function(y) error("inner " .. y) end, { x })
      end, { 7 }, opts)
      assert.matches("^item 1 %(7%): [^\n]*" .. line .. ": inner 7$", err.message)
      assert.matches(line .. "$", err.where)
      local text <const> = tostring(err)
      assert.equal(1, select(2, text:gsub("stack traceback", "")))
      assert.is_nil(text:find("plua/run.lua", 1, true))
    end)

    it("reads well", function()
      local line <const> = here(1)
      local err <const> = caught(plua.map, function() error("no good") end, { "x\ny" }, opts)
      local text <const> = tostring(err)
      assert.matches('^item 1 %("x\\ny"%): ', text)
      assert.matches(line .. ": no good\n", text, 1, true)
      assert.is_nil(text:find("plua/", 1, true))
      assert.is_nil(text:find("[C]: in ?", 1, true))
      assert.is_true(select(2, text:gsub("\n", "")) <= 6)
    end)

    it("shows the begin of a long string, cut between its characters", function()
      for lead = 0, 3 do
        local item <const> = ("x"):rep(lead) .. ("\u{65E5}"):rep(40)
        local text <const> = tostring(caught(plua.map, function() error("no") end, { item }, opts))
        local shown <const> = text:match('^item 1 %("([^"]+)"%.%.%.%): ')
        assert.truthy(shown and utf8.len(shown), text)
        assert.equal(shown, item:sub(1, #shown))
        assert.is_true(#shown > 56)
      end
    end)

    it("is what __close is given, and may raise again", function()
      for _, raised in ipairs { "no good", { code = 7 }, 7.5, true } do
        local line <const> = here(5)
        local errs <const> = plua.map(function(again)
          local _ <close> = setmetatable({}, { __close = function(_, err)
            error(again and err or { seen = err }, 0)
          end })
          error(raised, 0)
        end, { true, false }, collect)
        assert.same(raised, errs[1].value)
        assert.matches(line .. "$", errs[1].where)
        assert.matches(line .. ": in function <", errs[1].traceback, 1, true)
        assert.same({ seen = raised }, errs[2].value)
      end
    end)

    it("is told whole where __close calls plua, and that fails too", function()
      for _, inner in ipairs { "outer", "inner" } do
        local line <const>, inner_line <const> = here(6), here(4)
        local within
        local errs <const> = plua.map(function()
          local _ <close> = setmetatable({}, { __close = function()
            within = plua.map(function() error(inner, 0) end, { 1 }, collect)[1].where
          end })
          error("outer", 0)
        end, { 1 }, collect)
        assert.equal("outer", errs[1].message)
        assert.matches(line .. "$", errs[1].where)
        assert.matches(line .. ": in function <", errs[1].traceback, 1, true)
        if workers == 0 then assert.matches(inner_line .. "$", within) end
      end
    end)

    it("keeps a table that was raised as its value", function()
      local results <const> = plua.map(function(x) error({ code = x }) end, { 7 }, collect)
      assert.same({ code = 7 }, results[1].value)
      assert.equal("(error object is a table value)", results[1].message)
      assert.matches("^item 1 %(7%): error object {code = 7} %(raised at ", tostring(results[1]))
      local class <const> = { __tostring = function(e) return "code " .. e.code end }
      plua.register("errors_spec.class", class)
      local raise <const> = function() error(setmetatable({ code = 3 }, class)) end
      local err <const> = plua.map(raise, { 1 }, collect)[1]
      assert.equal("code 3", err.message)
      assert.equal(3, err.value.code)
    end)

    it("keeps the text of a value that cannot cross, and of nil", function()
      local results <const> = plua.map(function(x)
        if x == 1 then error(io.stdout) end
        if x == 2 then error(nil) end
        error({ print, coroutine.create(print) })
      end, { 1, 2, 3 }, collect)
      assert.matches("^file %(", results[1].value)
      assert.equal("nil", results[2].value)
      assert.equal("(error object is a table value)", results[3].value)
    end)

    it("of Lua itself names the line", function()
      local results <const> = plua.map(function(x) return x.y.z end, { {} }, collect)
      assert.matches("errors_spec.lua:%d+: attempt to index a nil value %(field 'y'%)",
        results[1].message)
      results[1] = plua.map(function() -- luacheck: ignore
        local function deep() return 1 + deep() end
        return deep()
      end, { 1 }, collect)[1]
      assert.matches("stack overflow", results[1].message)
    end)

    it("in a nested call tells both", function()
      local err <const> = caught(plua.map, function()
        return plua.map(function() error("inner") end, { "in" })
      end, { "out" }, opts)
      assert.matches("inner", tostring(err))
      assert.matches('item 1 ("out")', tostring(err), 1, true)
      assert.matches('item 1 ("in")', tostring(err), 1, true)
      assert.is_true(plua.iserror(err.value))
      assert.equal("in", err.value.item)
    end)

    it("is raised for the one item, collected, or answered by a function", function()
      local function f(x) return x % 2 == 0 and error("even") or x end
      local results <const> = plua.map(f, { 1, 2, 3, 4 }, collect)
      assert.same({ 1, 3 }, { results[1], results[3] })
      assert.same({ 2, 4 }, { results[2].index, results[4].index })
      local asked <const> = plua.map(f, { 1, 2, 3, 4 },
        { workers = workers, on_error = function(err) return -err.index end })
      assert.same({ 1, -2, 3, -4, n = 4 }, asked)
      local err <const> = caught(plua.map, f, { 1, 2, 3, 4 },
        { workers = workers, on_error = function() error("enough", 0) end })
      assert.equal("enough", err)
      local streamed <const> = {}
      local zero <const> = { workers = workers, on_error = function() return 0 end }
      for i, r in plua.imap(f, { 1, 2 }, zero) do streamed[i] = r end
      assert.same({ 1, 0 }, streamed)
    end)

    it("is tried again as often as retries says", function()
      local err <const> = caught(plua.map, function() error("never") end, { 1 },
        { workers = workers, retries = 2 })
      assert.equal(3, err.attempts)
      assert.matches("tried 3 times", tostring(err))
      local results <const> = plua.map(function()
        if plua.worker().attempt < 3 then error("not yet") end
        return math.random(1 << 40)
      end, { 1 }, { workers = workers, retries = 2, seed = 1 })
      local draw <const> = function() return math.random(1 << 40) end
      assert.equal(plua.map(draw, { 1 }, { seed = 1 })[1], results[1])
    end)

    it("in each and filter is not passed over", function()
      local function f(x) return x == 2 and error("two") or x end
      assert.equal(2, caught(plua.each, f, { 1, 2, 3 }, opts).index)
      local n <const>, errs <const> = plua.each(f, { 1, 2, 3 }, collect)
      assert.equal(3, n)
      assert.equal(2, errs[2].index)
      local kept <const> = plua.filter(f, { 1, 2, 3 }, collect)
      assert.equal(3, kept.n)
      assert.is_true(plua.iserror(kept[2]))
    end)

    it("in mapreduce blames the item within its block", function()
      local function f(x) return x == 1500 and error("late") or x end
      local function add(a, b) return a + b end
      local err <const> = caught(plua.mapreduce, f, add, plua.range(1, 3000), opts)
      assert.equal(1500, err.index)
      assert.equal(1500, err.item)
      local sum <const>, errs <const> = plua.mapreduce(f, add, plua.range(1, 3000), collect)
      assert.equal(1, #errs)
      assert.equal(3000 * 3001 // 2 - 1499 - 1500, sum)
    end)

    it("of a result that cannot cross costs that item, with the path", function()
      local results <const> = plua.map(function(x)
        if x == 2 then return { conn = { socket = io.stdout } } end
        return x
      end, { 1, 2, 3 }, collect)
      assert.same({ 1, 3 }, { results[1], results[3] })
      assert.equal("encode", results[2].kind)
      assert.equal("result.conn.socket: userdata (FILE*)", results[2].message)
    end)

    it("of init is told once, whatever on_error says", function()
      local err <const> = caught(plua.map, print, { 1, 2, 3 }, {
        workers = workers, on_error = "collect", init = function() error("not today") end,
      })
      assert.equal("init", err.kind)
      assert.matches("errors_spec.lua:%d+: not today", err.message)
      assert.is_nil(err.index)
      local pool <const> = plua.pool { workers = workers, init = function() error("nor ever") end }
      for _ = 1, 2 do assert.matches("nor ever", tostring(caught(pool.apply, pool, print))) end
      pool:terminate()
    end)

    it("of finish is raised after the results were made", function()
      local err <const> = caught(plua.map, tostring, { 1 },
        { workers = workers, finish = function() error("unfinished") end })
      assert.matches("^spec/errors_spec.lua:%d+: unfinished$", err.message)
      assert.matches("^finish: spec/errors_spec.lua:%d+: unfinished\n", tostring(err))
    end)
  end)
end

for _, workers in ipairs { 1, 2, 3 } do
  describe("with workers = " .. workers .. ", a death", function()
    helper.guard()

    it("reads as one sentence", function()
      local err <const> = caught(plua.map, function(x)
        if x == "x" then crash.segv() end
      end, { "a", "x" }, { workers = workers })
      assert.matches('^worker %d+ %(pid %d+%) was killed by SIGSEGV while running item 2 %("x"%); '
        .. "tried 2 times$", tostring(err))
      assert.same({ "crash", "SIGSEGV", 2 }, { err.kind, err.signal, err.attempts })
    end)

    it("by os.exit tells the status", function()
      local err <const> = caught(plua.map, function() os.exit(4) end, { 1 },
        { workers = workers, retries = 0 })
      assert.matches("exited with status 4 while running item 1 %(1%)$", tostring(err))
    end)

    it("in init ends the call with the reason", function()
      local err <const> = caught(plua.map, print, { 1 },
        { workers = workers, init = function() crash.segv() end })
      assert.equal("init", err.kind)
      assert.equal("SIGSEGV", err.signal)
      assert.matches("killed by SIGSEGV", tostring(err))
    end)

    it("of a pool's worker tells the item that was sent", function()
      local pool <close> = plua.pool { workers = workers, retries = 0 }
      local err <const> = caught(pool.map, pool, crash.raise, { 9 })
      assert.equal(9, err.item)
      assert.equal("SIGKILL", err.signal)
    end)
  end)
end

describe("an error", function()
  helper.guard()

  it("of finish may be a status that os.exit is given", function()
    local err <const> = caught(plua.map, function() end, { 1 },
      { workers = 1, finish = function() os.exit(3) end })
    assert.matches("'finish' called os.exit with status 3", err.message)
    plua.map(function() end, { 1 }, { workers = 1, finish = function() os.exit(0) end })
  end)

  it("that a hook raises is the caller's, where the caller runs the items", function()
    local script <const> = helper.script [[
      local plua, crash = require "plua", require "crashkit"
      local function work(i)
        print(i)
        crash.kill(crash.pid(), 2)
        while true do end
      end
      plua.map(work, { 1, 2, 3 }, { workers = 0, on_error = "collect" })
      print "survived"
    ]]
    local result <const> = helper.run(helper.plua .. " " .. script)
    assert.same({ "1\n", 130 }, { result.out, result.status })
    assert.equal("plua: interrupted: 0 of 3 items done\n", result.err)
  end)

  it("shows items in short: strings quoted and cut, small tables", function()
    local function shown(item)
      return tostring(caught(plua.map, function() error("e", 0) end, { item }, { workers = 0 }))
        :match("^item 1 %((.*)%): e")
    end
    assert.equal('"a\\"b\\0"', shown('a"b\0'))
    assert.equal('"' .. ("x"):rep(60) .. '"...', shown(("x"):rep(100)))
    assert.equal('{1, "two", {...}}', shown({ 1, "two", {} }))
    assert.equal("{a = 1}", shown({ a = 1 }))
    assert.equal("{1, 2, 3, 4, ...}", shown({ 1, 2, 3, 4, 5, 6 }))
    assert.equal("1.5", shown(1.5))
  end)

  it("shows equal tables alike, whatever the order in which they were made", function()
    local keys <const> = { "z", "b", "a", 2.5, true, -1, "c" }
    local function shown(from, to, step)
      local item <const> = {}
      for i = from, to, step do item[keys[i]] = i end
      return tostring(caught(plua.map, function() error("e", 0) end, { item }, { workers = 0 }))
    end
    assert.matches("item 1 ({[-1] = 6, [2.5] = 4, a = 3, b = 2, ...}): e",
      shown(1, #keys, 1), 1, true)
    assert.equal(shown(1, #keys, 1), shown(#keys, 1, -1))
  end)

  it("joins other text as a string does", function()
    local err <const> = caught(plua.map, function() error("e", 0) end, { 1 }, { workers = 0 })
    assert.equal("failed: " .. tostring(err), "failed: " .. err)
    assert.equal(tostring(err) .. 1, err .. 1)
    assert.equal(tostring(err) .. tostring(err), err .. err)
    local line <const> = here(1)
    local message <const> = caught(function() return err .. nil end)
    assert.matches(line .. ": attempt to concatenate a nil value", message, 1, true)
  end)

  it("of what cannot be sent names the call, the thing, its place in it, and a remedy", function()
    local pool <close> = plua.pool { workers = 1 }
    local line <const> = here(1)
    local _ <const>, err <const> = pcall(function() pool:map(print, { 1, { a = io.stdout } }) end)
    assert.equal(2, err.index)
    assert.matches(line, err.where, 1, true)
    local text <const> = ": pool:map: item 2 cannot cross to a worker: .a: userdata (FILE*)\n  make"
    assert.matches(line .. text, tostring(err), 1, true)
    local thread <const> = coroutine.create(print)
    local function sent(...) return tostring(caught(pool.apply, pool, ...)) end
    assert.matches("the function cannot cross to a worker: upvalue 'thread': coroutine",
      sent(function() return thread end), 1, true)
    assert.matches("argument 1 cannot cross to a worker: coroutine", sent(print, thread), 1, true)
    local stay <const> = "\n  a pool and its futures stay in the process that made them: inside "
    assert.matches(stay, sent(function() return pool:apply(print) end), 1, true)
    assert.matches(stay, sent(print, pool:apply_async(math.abs, 1)), 1, true)
    assert.matches(stay, tostring(caught(plua.map, function() return pool end, { 1 })), 1, true)
  end)

  it("of what cannot be sent names each call as the script does", function()
    local pool <close> = plua.pool { workers = 1 }
    local function f() return io.stdout end
    local data <const> = { io.stdout }
    local calls <const> = {
      ["pool:map"] = function() pool:map(f, data) end,
      ["pool:starmap"] = function() pool:starmap(f, { data }) end,
      ["pool:each"] = function() pool:each(f, data) end,
      ["pool:filter"] = function() pool:filter(f, data) end,
      ["pool:find"] = function() pool:find(f, data) end,
      ["pool:mapreduce"] = function() pool:mapreduce(f, f, data) end,
      ["pool:map_async"] = function() pool:map_async(f, data) end,
      ["pool:starmap_async"] = function() pool:starmap_async(f, { data }) end,
      ["pool:apply"] = function() pool:apply(f, io.stdout) end,
      ["pool:apply_async"] = function() pool:apply_async(f, io.stdout) end,
      ["the loop"] = function() for _ in pool:imap(f, data) do _ = nil end end,
    }
    for name, call in pairs(calls) do
      assert.equal(name, caught(call).call)
    end
  end)

  it("of a result that cannot cross says so, and what to do", function()
    local err <const> = caught(plua.map, function() return { a = io.stdout } end, { 1 })
    local text <const> = "item 1 (1): its result cannot cross to the caller: .a: userdata (FILE*)\n"
    assert.equal(1, tostring(err):find(text, 1, true), tostring(err))
    assert.matches("\n  return what it holds", tostring(err), 1, true)
  end)

  it("has no frame of plua in its traceback, whatever calls whom", function()
    local err <const> = caught(plua.map, function()
      for _ in plua.imap(function(x) return x end, { 1 }, { on_error = "collect" }) do
        plua.mapreduce(tostring, function() error("in reduce") end, { 1, 2 })
      end
    end, { 1 }, { workers = 1 })
    assert.matches("in reduce", err.traceback .. tostring(err), 1, true)
    assert.is_nil(err.traceback:find("plua/%l+%.lua"), err.traceback)
    assert.is_nil(err.traceback:find("plua.core", 1, true), err.traceback)
  end)

  it("of a death says how, or why that is not known", function()
    local script <const> = helper.script([[
      local function die(i) require("crashkit")[arg[1] ](tonumber(arg[2]) or i) end
      require("plua").map(die, { 9 }, { workers = 1, retries = 0 })]])
    local function message(line, ...)
      local command <const> = table.concat({ helper.lua, script, ... }, " ")
      return helper.run(line:format(command)).err:match("%) (.-) while running item 1 %(9%)\n")
    end
    assert.equal("was killed by SIGABRT", message("%s", "abort"))
    assert.equal("died of unknown cause (its exit status was taken elsewhere: SIGCHLD is " ..
      "ignored, or its handler waits for every child)", message("trap '' CHLD; %s", "abort"))
    local seen <const> = helper.wait(function()
      local text <const> = message("%s; :", "scribble", "255")
      return text ~= nil and text
    end)
    assert.equal("broke the protocol (its shared memory was overwritten)", seen)
  end)

  it("of a death in finish is raised after the results were made", function()
    local function id(x) return x end
    for how, text in pairs { abort = "was killed by SIGABRT", _exit = "exited with status 3" } do
      local opts <const> = { workers = 1, finish = function() require("crashkit")[how](3) end }
      local wanted <const> = "^worker 1 %(pid %d+%) " .. text .. " while running 'finish'$"
      local err <const> = caught(plua.map, id, { 1 }, opts)
      assert.equal(how == "abort" and "crash" or "exit", err.kind)
      assert.matches(wanted, tostring(err))
      assert.matches(wanted, tostring(caught(function()
        local pool <close> = plua.pool(opts)
        assert.equal(1, pool:apply(id, 1))
      end)))
    end
    local opts <const> = { workers = 2, max_tasks_per_child = 1 }
    opts.finish = function() if plua.worker().id == 2 then crash.abort() end end
    assert.matches("'finish'", tostring(caught(plua.map, id, helper.numbers(50), opts)))
    opts.finish = nil
    assert.equal(50, plua.map(id, helper.numbers(50), opts).n)
  end)

  it("that nobody catches ends the lua program with its text", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script([[
      local plua = require "plua"
      plua.map(function(x) error("mine") end, {"it"}, {workers = 2})
    ]], "uncaught.lua"))
    assert.equal(1, result.status)
    assert.matches('item 1 %("it"%): .*uncaught.lua:2: mine', result.err)
  end)
end)
