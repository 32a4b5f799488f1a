-- Signals to the command: Ctrl-C and Ctrl-Z on a terminal, what a batch system sends, what nohup
-- keeps away. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local kit <const> = require "crashkit"
local pty <const> = require "ptykit"

local HUP <const>, INT <const>, QUIT <const>, KILL <const>, USR1 <const> = 1, 2, 3, 9, 10
local TERM <const> = 15

-- What scripts begin with: step(text) leaves a trace that the spec can wait for.
local HEAD <const> = [[
local plua = require "plua"
local function step(text)
  local file <close> = io.open(%q, "a")
  file:setvbuf("no")
  file:write(text)
end
]]

local running <const> = {}

-- Starts the command in the foreground of a terminal of its own.
local function start(text, options, launcher, shell)
  local dir <const> = helper.tmp()
  local trace <const> = dir .. "/trace"
  helper.write(dir .. "/x.lua", HEAD:format(trace) .. text)
  local line <const> = ("%s %s %s %s/x.lua >%s/out 2>%s/err"):format(
    launcher or "", helper.plua, options or "-j 2", dir, dir, dir)
  local pid <const>, fd <const> = pty.open("/bin/bash", "-c",
    ("export LUA_CPATH='%s/kit/?.so;'\n"):format(helper.build) ..
      (shell or "exec %s"):format(line))
  local run <const> = { pid = pid, fd = fd, dir = dir, trace = trace }
  running[#running + 1] = run
  return run
end

local function trace(run) return helper.read(run.trace) or "" end

local function await(run, n)
  assert(helper.wait(function() return #trace(run) >= n end, 20), "no progress: " ..
    trace(run) .. (helper.read(run.dir .. "/err") or ""))
  run.family = helper.children(run.pid)
end

local function gone(run)
  for _, pid in ipairs(run.family or {}) do
    assert(helper.wait(function() return not helper.alive(pid) end, 2), "a worker is left")
  end
end

-- Waits for the end: how, the number, seconds since 'since'; and what was printed is in run.
local function ending(run, since)
  local how <const>, code <const> = pty.wait(run.pid, 40)
  local took <const> = kit.now() - (since or kit.now())
  assert.is_not_nil(how, "it does not end")
  pty.close(run.fd)
  run.pid = nil
  run.out, run.err = helper.read(run.dir .. "/out"), helper.read(run.dir .. "/err")
  gone(run)
  return how .. " " .. code, took
end

local function clean()
  for i = #running, 1, -1 do
    local run <const> = running[i]
    running[i] = nil
    if run.pid then
      kit.kill(run.pid, KILL)
      pty.wait(run.pid, 10)
      pty.close(run.fd)
    end
  end
end

-- Lines 1 .. n, as a job prints its results.
local function prefix(text)
  local n = 0
  for line in text:gmatch("(%d+)\n") do
    n = n + 1
    assert.equal(n, tonumber(line))
  end
  return n
end

local JOB <const> = [[
return { data = plua.range(1, 10000), chunksize = 1, map = function(x)
  if x > 40 then
    step("x")
    require("crashkit").csleep(%s)
  end
  return x
end }]]

local SPIN <const> = [[
return { data = plua.range(1, 10), map = function(x)
  step("x")
  %s
end }]]

describe("Ctrl-C", function()
  helper.guard()
  after_each(clean)

  it("ends a job: one line says how far it came, and the shell sees SIGINT", function()
    local run <const> = start(JOB:format("0.1"))
    await(run, 4)
    local since <const> = kit.now()
    pty.write(run.fd, "\3")
    local how <const>, took <const> = ending(run, since)
    assert.equal("signal 2", how)
    assert(took < 1.5, took)
    local n <const> = prefix(run.out)
    assert(n >= 40, n)
    local done <const> = run.err:match("^plua: interrupted: (%d+) of 10,000 items done[^\n]*\n$")
    assert.equal(n, tonumber(done), run.err)
  end)

  for name, deed in pairs {
    ["loop in Lua"] = "while true do end",
    ["block all signals"] = "local kit = require 'crashkit' kit.blocksigs() kit.spin()",
    ["run programs"] = "os.execute('sleep 60')",
    ["are stopped"] = "require('crashkit').raise(19)",
  } do
    it("ends items that " .. name, function()
      local run <const> = start(SPIN:format(deed))
      await(run, 2)
      local since <const> = kit.now()
      pty.write(run.fd, "\3")
      local how <const>, took <const> = ending(run, since)
      assert.equal("signal 2", how)
      assert(took < 1.5, took)
      assert.equal("plua: interrupted: 0 of 10 items done\n", run.err)
    end)
  end

  it("in on_error is no outcome of a future, which would swallow it", function()
    local run <const> = start([[
      local pool = plua.pool { workers = 1 }
      local future = pool:map_async(function() error("x") end, { 1 }, { on_error = function()
        step("x")
        while true do end
      end })
      future:wait()
      step("x")]])
    await(run, 1)
    pty.write(run.fd, "\3")
    assert.equal("signal 2", (ending(run)))
  end)

  local CALLBACK <const> = [[
    local pool = plua.pool { workers = 1 }
    local future = pool:apply_async(function() end)
    local n = 0
    for i = 1, 3 do
      future:add_done_callback(function()
        n = n + 1
        if i == 2 then
          step("x")
          while true do end
        end
      end)
    end
    %s
    step("y")]]

  it("in a callback ends what called it", function()
    for key, how in pairs { [INT] = "signal 2", [TERM] = "exit 75" } do
      local run <const> = start(CALLBACK:format("future:wait()"))
      await(run, 1)
      local since <const> = kit.now()
      kit.kill(run.pid, key)
      local ended <const>, took <const> = ending(run, since)
      assert.equal(how, ended)
      assert(took < 1.5, took)
      assert.equal("x", trace(run))
      assert.falsy(run.err:find("callback"), run.err)
    end
  end)

  it("in a callback leaves the others for the next call", function()
    local run <const> = start(CALLBACK:format([[
      local fine, err = pcall(future.wait, future)
      print(fine, err:match("interrupted!$"), n)
      future:wait()
      print(n)]]))
    await(run, 1)
    kit.kill(run.pid, INT)
    assert.equal("exit 0", (ending(run)))
    assert.equal("false\tinterrupted!\t2\n3\n", run.out, run.err)
  end)

  it("in on_error leaves the rest to be asked about", function()
    local run <const> = start([[
      local pool = plua.pool { workers = 1 }
      local n = 0
      local future = pool:map_async(function() error("x") end, { 1, 2, 3 }, { on_error = function()
        n = n + 1
        if n == 2 then
          step("x")
          while true do end
        end
        return n
      end })
      print(pcall(future.get, future))
      print(table.unpack(future:get()))]])
    await(run, 1)
    kit.kill(run.pid, INT)
    assert.equal("exit 0", (ending(run)))
    assert.truthy(run.out:find("^false\t[^\n]*interrupted!\n1\t3\t4\n$"), run.out .. run.err)
  end)

  -- Objects that cross by hooks; the first that comes here is met by a Ctrl-C.
  local OBJECT <const> = [[
    local kit, owner, C = require "crashkit", require("crashkit").pid(), {}
    local function strike(here)
      if not here or kit.pid() ~= owner or C.struck then return end
      C.struck = true
      kit.raise(2)
    end
    C.__plua_save = function() strike(%s) return 1 end
    C.__plua_load = function() strike(%s) return setmetatable({}, C) end
    plua.register("C", C)
    local function object() return setmetatable({}, C) end
  ]]

  it("in __plua_load is no outcome of an item", function()
    for text, out in pairs {
      ["print(pcall(plua.map, object, { 1, 2, 3 }, { on_error = 'collect' }))"] = "",
      [ [[
        local step = plua.imap(object, plua.range(1, 9))
        print(pcall(step))
        for i = 1, 9 do assert(step() == i) end
        assert(step() == nil)
        print("all")]] ] = "all\n",
    } do
      local run <const> = start(OBJECT:format("false", "true") .. text)
      assert.equal("exit 0", (ending(run)))
      assert.truthy(run.out:find("^false\t[^\n]*interrupted!\n" .. out .. "$"), run.out .. run.err)
    end
  end)

  it("in __plua_save ends the call", function()
    for _, call in ipairs { "pool:map(type, { object(), 2 })", "pool:apply(type, object())",
      "for _ in pool:imap(type, object) do end" } do
      local run <const> = start(OBJECT:format("true", "false") ..
        "local pool = plua.pool { workers = 1 } " .. call)
      assert.equal("signal 2", (ending(run)))
      assert.truthy(run.err:find("^plua: [^\n]*interrupted[^\n]*\n$"), run.err)
    end
  end)

  it("in an iterator does not wait for what was pulled before", function()
    local run <const> = start([[
      local n = 0
      for _ in plua.imap(require("crashkit").csleep, function()
        n = n + 1
        if n < 3 then return 15 end
        step("x")
        while true do end
      end) do end]])
    await(run, 1)
    local since <const> = kit.now()
    kit.kill(run.pid, INT)
    local how <const>, took <const> = ending(run, since)
    assert.equal("signal 2", how)
    assert(took < 10, took)
  end)

  it("is not lost while the heap is made ready for workers", function()
    local run <const> = start([[
      local kit = require "crashkit"
      local texts = { ("x"):rep(8 << 20) }
      for i = 1, 60000 do texts[i + 1] = ("%015d"):format(i) end -- few more, and Lua's table grows
      collectgarbage()
      collectgarbage("stop")
      setmetatable({}, { __gc = function() kit.raise(2) end })
      plua.map(print, { 1, 2 })
      print("on")]])
    assert.equal("signal 2", (ending(run)))
    assert.equal("plua: interrupted: 0 of 2 items done\n", run.err)
  end)

  it("comes a second time: ends at once", function()
    local run <const> = start(SPIN:format("require('crashkit').ignsigs() while true do end"))
    await(run, 2)
    local since <const> = kit.now()
    kit.kill(run.pid, INT)
    kit.kill(run.pid, INT)
    local how <const>, took <const> = ending(run, since)
    assert.equal("signal 2", how)
    assert(took < 0.5, took)
  end)

  it("lets items that can be interrupted write what their files hold", function()
    local run <const> = start([[
      plua.each(function()
        local file = io.open(arg[0] .. ".data", "w")
        file:setvbuf("full")
        file:write("kept")
        step("x")
        while true do end
      end, { 1 })]])
    await(run, 1)
    pty.write(run.fd, "\3")
    assert.equal("signal 2", (ending(run)))
    assert.equal("kept", helper.read(run.dir .. "/x.lua.data"))
  end)

  it("tells interactively how far a call came, once", function()
    local lines <const> = helper.tmp() .. "/lines"
    helper.write(lines, [[
kit = require "crashkit" me = kit.pid()
plua.map(function(i) if i == 1 then kit.kill(me, 2) end while true do end end, { 1, 2 })
kit.kill(me, 2) while true do end
]])
    local result <const> = helper.run(helper.plua .. " -i <" .. helper.quote(lines))
    assert.equal(0, result.status)
    assert.matches("interrupted: 0 of 2 items done\nstdin:1: interrupted\n", result.err)
  end)

  it("can be caught by a script, whose pool works on", function()
    local run <const> = start([[
      local pool = plua.pool { workers = 2 }
      local fine, err = pcall(pool.map, pool, function(x)
        local file = io.open(x, "a") file:write("x") file:close()
        while true do end
      end, { arg[0] .. ".begun" })
      print(fine, err)
      print(#plua.map(function(x) return x end, { 1, 2, 3 }))]])
    assert(helper.wait(function() return helper.read(run.dir .. "/x.lua.begun") end, 20))
    kit.kill(run.pid, INT)
    assert.equal("exit 0", (ending(run)))
    assert.truthy(run.out:find("^false\t[^\n]*interrupted!\n3\n$"), run.out .. run.err)
  end)

  for name, text in pairs {
    ["a script that computes"] = "step('x') while true do end",
    ["a coroutine that computes"] = "coroutine.wrap(function() step('x') while true do end end)()",
    ["a call in a coroutine"] = [[coroutine.wrap(function()
      plua.each(function() step("x") while true do end end, { 1, 2 })
    end)()]],
    ["items of the script's own process"] = [[
      plua.map(function() step("x") while true do end end, { 1 }, { workers = 0 })]],
    ["a loop over results"] = [[
      for _ in plua.imap(function(x) return x end, plua.range(1, 1e6)) do
        step("x")
        while true do end
      end]],
    ["futures"] = [[
      local pool = plua.pool()
      pool:apply_async(function(s) s("x") while true do end end, step):get()]],
  } do
    it("ends " .. name .. " by one line", function()
      local run <const> = start(text)
      await(run, 1)
      local since <const> = kit.now()
      kit.kill(run.pid, INT)
      local how <const>, took <const> = ending(run, since)
      assert.equal("signal 2", how)
      assert(took < 1.5, took)
      assert.truthy(run.err:find("^plua: [^\n]*interrupted[^\n]*\n$"), run.err)
    end)
  end
end)

describe("SIGTERM", function()
  helper.guard()
  after_each(clean)

  local SLOW <const> = [[
    return { data = plua.range(1, 100), chunksize = 1, map = function(x)
      step("b")
      require("crashkit").csleep(0.5)
      step("e")
      return x
    end }]]

  for _, signal in ipairs { { "SIGTERM", TERM }, { "SIGUSR1", USR1 } } do
    for _, whom in ipairs { "command", "group" } do
      it(("as %s to the %s lets running items finish, begins none"):format(signal[1], whom),
        function()
          local run <const> = start(SLOW)
          await(run, 2)
          kit.kill(whom == "group" and -run.pid or run.pid, signal[2])
          assert.equal("exit 75", (ending(run)))
          local _, begun <const> = trace(run):gsub("b", "")
          local _, ended <const> = trace(run):gsub("e", "")
          assert.equal(begun, ended)
          assert(begun <= 4, begun)
          assert.equal(ended, prefix(run.out))
          assert.equal(("plua: stopped by %s: %d of 100 items done\n"):format(signal[1], ended),
            run.err)
        end)
    end
  end

  it("ends what does not finish within the grace", function()
    local run <const> = start(SPIN:format("while true do end"), "-j 2 --grace 0.3")
    await(run, 2)
    local since <const> = kit.now()
    kit.kill(-run.pid, TERM)
    local how <const>, took <const> = ending(run, since)
    assert.equal("exit 75", how)
    assert(took >= 0.3 and took < 1.8, took)
    assert.equal("plua: stopped by SIGTERM: 0 of 10 items done\n", run.err)
  end)

  it("comes a second time: the grace is over", function()
    local run <const> = start(SPIN:format("while true do end"))
    await(run, 2)
    kit.kill(run.pid, TERM)
    -- It has been taken notice of when nothing may begin any more.
    kit.csleep(0.2)
    local since <const> = kit.now()
    kit.kill(run.pid, TERM)
    local how <const>, took <const> = ending(run, since)
    assert.equal("exit 75", how)
    assert(took < 1.5, took)
  end)

  it("by timeout, which sends it twice, is one", function()
    local run <const> = start(SLOW, nil, "timeout 0.8")
    assert(helper.wait(function() return #trace(run) >= 2 end, 20))
    ending(run)
    local _, begun <const> = trace(run):gsub("b", "")
    local _, ended <const> = trace(run):gsub("e", "")
    assert.equal(begun, ended)
    assert.truthy(run.err:find("^plua: stopped by SIGTERM: %d of 100 items done\n$"), run.err)
  end)

  it("followed by Ctrl-C ends by that", function()
    local run <const> = start(SPIN:format("while true do end"))
    await(run, 2)
    kit.kill(run.pid, TERM)
    kit.kill(run.pid, INT)
    assert.equal("signal 2", (ending(run)))
    assert.equal("plua: interrupted: 0 of 10 items done\n", run.err)
  end)

  it("does not take results from a call whose items had all begun", function()
    local run <const> = start([[
      local r = plua.map(function(x) step("x") require("crashkit").csleep(0.5) return x end,
        { 1, 2 })
      print(r[1], r[2])
      plua.map(print, { 1 })]])
    await(run, 2)
    kit.kill(run.pid, TERM)
    assert.equal("exit 75", (ending(run)))
    assert.equal("1\t2\n", run.out)
    assert.truthy(run.err:find("^plua: stopped by SIGTERM[^\n]*\n$"), run.err)
  end)

  it("gives a loop the results that are there, and the script an error to catch", function()
    local run <const> = start([[
      local seen = 0
      local fine, err = pcall(function()
        for i, r in plua.imap(function(x)
          step("x")
          require("crashkit").csleep(0.3)
          return x
        end, plua.range(1, 1000)) do
          assert(i == r and r == seen + 1)
          seen = r
        end
      end)
      print(fine, err.kind, seen)
      print(pcall(plua.map, print, { 1 }))]])
    await(run, 2)
    kit.kill(run.pid, TERM)
    assert.equal("exit 0", (ending(run)))
    local n <const> = run.out:match("^false\tcancelled\t(%d+)\nfalse\tstopped")
    assert.equal(#trace(run), tonumber(n), run.out .. run.err)
  end)

  it("gives futures what had begun", function()
    local run <const> = start([[
      local pool = plua.pool { workers = 1 }
      local function f(s) s("x") require("crashkit").csleep(0.3) return "done" end
      local a, b = pool:apply_async(f, step), pool:apply_async(f, step)
      print(a:get())
      print(pcall(b.get, b))
      b:get()]])
    await(run, 1)
    kit.kill(run.pid, TERM)
    assert.equal("exit 75", (ending(run)))
    assert.truthy(run.out:find("^done\nfalse\tstopped before all was done"), run.out .. run.err)
    assert.equal("x", trace(run))
  end)

  it("begins nothing more of a pool that was closed", function()
    local run <const> = start([[
      do
        local pool <close> = plua.pool { workers = 2 }
        for i = 1, 100 do
          pool:apply_async(function(s) s("x") require("crashkit").csleep(0.3) end, step)
        end
      end
      print("on")]])
    await(run, 2)
    kit.kill(run.pid, TERM)
    assert.equal("exit 75", (ending(run)))
    assert.equal("", run.out)
    assert(#trace(run) <= 4, #trace(run))
  end)

  it("loses nothing that waits for a slow reader", function()
    local run <const> = start([[
      local read = arg[0]:gsub("x.lua$", "read")
      local pipe = io.popen("sleep 2.5; cat >" .. read, "w")
      return { data = plua.range(1, 1000000), map = function(x) return ("%099d"):format(x) end,
        emit = function(line, i)
          if i == 100 then step("x") end
          pipe:write(line, "\n")
        end }]])
    await(run, 1) -- long before the pipe is full; what ends waits ends them when it is
    kit.kill(run.pid, TERM)
    assert.equal("exit 75", (ending(run)))
    local n <const> = prefix(helper.read(run.dir .. "/read"))
    assert(n >= 100)
    local grouped <const> = ("%d"):format(n):reverse():gsub("%d%d%d", "%0,"):reverse()
    local told <const> = run.err:gsub(" %(and %d+ out of turn%)", "")
    assert.equal("plua: stopped by SIGTERM: " .. grouped:gsub("^,", "") ..
      " of 1,000,000 items done\n", told)
  end)

  it("says nothing of a call that failed before", function()
    local run <const> = start([[
      pcall(plua.map, error, { 1, 2, 3 })
      step("x")
      while true do end]])
    await(run, 1)
    kit.kill(run.pid, TERM)
    assert.equal("exit 75", (ending(run)))
    assert.truthy(run.err:find("^plua: [^\n]*x%.lua:%d+: stopped by SIGTERM\n$"), run.err)
  end)

  it("ends a script that has nothing under way at once", function()
    for _, text in ipairs { "step('x') while true do end",
      "local pool = plua.pool() pool:apply(function() end) step('x') while true do end",
      "plua.map(function() end, {1, 2}) step('x') while true do end" } do
      local run <const> = start(text)
      await(run, 1)
      local since <const> = kit.now()
      kit.kill(run.pid, TERM)
      local how <const>, took <const> = ending(run, since)
      assert.equal("exit 75", how)
      assert(took < 1.5, took)
      assert.truthy(run.err:find("^plua: [^\n]*x%.lua:%d+: stopped by SIGTERM\n$"), run.err)
    end
  end)

  it("ends a script that waits for input, whatever it has open", function()
    local run <const> = start([[
      local pool = plua.pool()
      pool:apply(function() end)
      step("x")
      io.read()]])
    await(run, 1)
    local since <const> = kit.now()
    kit.kill(run.pid, TERM)
    local how <const>, took <const> = ending(run, since)
    assert.equal("exit 75", how)
    assert(took < 10, took) -- the grace is 25
    assert.truthy(run.err:find("^plua: [^\n]*x%.lua:%d+: stopped by SIGTERM\n$"), run.err)
  end)

  it("lets items of the script's own process finish", function()
    local run <const> = start(SLOW, "-j 0")
    await(run, 1)
    kit.kill(run.pid, TERM)
    assert.equal("exit 75", (ending(run)))
    assert.equal("be", trace(run))
    assert.equal("1\n", run.out)
  end)

  it("ends a script without plua as it ends lua", function()
    local result <const> = helper.run("(kill -TERM $BASHPID & exec sleep 9) & wait; " ..
      helper.plua .. " -e 'io.popen(\"kill -TERM $PPID\"):close() while true do end'",
      { timeout = 20 })
    assert.equal(15, result.signal)
  end)

  it("has a grace that must be a number", function()
    local result <const> = helper.run(helper.plua .. " --grace soon -e ''")
    assert.equal(2, result.status)
    assert.equal("plua: '--grace' must be a number of seconds, 0 or more, not \"soon\"\n",
      result.err)
  end)
end)

describe("other signals", function()
  helper.guard()
  after_each(clean)

  local WORK <const> = [[
    local r = plua.map(function(x)
      step("x")
      require("crashkit").csleep(0.4)
      return plua.worker().attempt
    end, { 1, 2, 3, 4 }, { timeout = 2 })
    print(table.concat(r))]]

  it("nohup keeps SIGHUP away, from workers too", function()
    local run <const> = start(WORK, nil, "nohup")
    await(run, 2)
    kit.kill(-run.pid, HUP)
    assert.equal("exit 0", (ending(run)))
    assert.equal("1111\n", run.out, run.err)
  end)

  it("SIGINT and SIGQUIT stay ignored, as a shell has it for jobs in the background", function()
    local run <const> = start(WORK, nil, "env --ignore-signal=INT,QUIT")
    await(run, 2)
    kit.kill(-run.pid, INT)
    kit.kill(-run.pid, QUIT)
    assert.equal("exit 0", (ending(run)))
    assert.equal("1111\n", run.out, run.err)
  end)

  for name, signal in pairs { SIGHUP = HUP, SIGQUIT = QUIT, SIGKILL = KILL } do
    it(name .. " ends the command and its workers at once", function()
      local run <const> = start(SPIN:format("while true do end"))
      await(run, 2)
      kit.kill(run.pid, signal)
      assert.equal("signal " .. signal, (ending(run)))
    end)
  end

  it("Ctrl-Z stops all of it, and no timeout counts that", function()
    local run <const> = start(WORK, nil, nil, "set -m; %s; read; fg; exit $?")
    await(run, 2)
    local command <const> = run.family[1]
    pty.write(run.fd, "\26")
    local function stopped(pid)
      local stat <const> = helper.read("/proc/" .. pid .. "/stat") or ""
      return stat:find("(plua-watch)", 1, true) or stat:match("%) (%a)") == "T"
    end
    assert(helper.wait(function() return stopped(command) end), "it goes on")
    for _, pid in ipairs(helper.children(command)) do
      assert(helper.wait(function() return stopped(pid) end), "a worker goes on")
    end
    kit.csleep(2.2) -- longer than the timeout
    pty.write(run.fd, "\n")
    assert.equal("exit 0", (ending(run)))
    assert.equal("1111\n", run.out, run.err)
  end)

  it("are not ignored by programs that items start", function()
    local run <const> = start([[
      print(plua.map(function()
        local pipe <close> = io.popen("grep -E 'Sig(Ign|Blk)' /proc/self/status")
        return pipe:read("a")
      end, { 1 })[1])]])
    assert.equal("exit 0", (ending(run)))
    local blocked <const>, ignored <const> = run.out:match("SigBlk:%s*(%x+)\nSigIgn:%s*(%x+)")
    assert.equal(0, tonumber(blocked, 16))
    assert.equal(0, tonumber(ignored, 16) & 0x7fffffff) -- not the C library's own
  end)
end)
