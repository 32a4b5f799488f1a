-- Nothing is left behind (P4): not by a parent that is killed, not by a loop that is left, and not
-- in poor surroundings. SPDX-License-Identifier: MIT
-- luacheck: ignore 512
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local numbers <const>, answers <const> = helper.numbers, helper.answers

describe("a parent that is killed by SIGKILL", function()
  helper.guard()

  local DEEDS <const> = {
    spins = "kit.spin()",
    ["spins in Lua"] = "while true do end",
    sleeps = "kit.csleep(100)",
    ["is stopped"] = "kit.raise(19)",
    ["blocks all signals"] = "kit.blocksigs() kit.spin()",
    ["ignores all signals"] = "kit.ignsigs() kit.csleep(100)",
  }
  local CALLS <const> = {
    map = "plua.map(f, data, { workers = 3 })",
    imap = "for _ in plua.imap(f, data, { workers = 3 }) do end",
    pool = "local pool = plua.pool { workers = 3 } pool:map(f, data)",
    ["idle pool"] = [[local pool = plua.pool { workers = 3 }
      pool:map(function(i) return i end, data) f() ]],
  }

  --- Starts a script in the background; answers its process.
  local function start(text, program)
    local script <const> = helper.script(text)
    local note <const> = script .. ".pid"
    os.execute(("%s %s </dev/null >%s.out 2>&1 & echo $! >%s"):format(program, script, script,
      note))
    return math.tointeger(helper.read(note)), script
  end

  -- The processes that the parent has, once `count` items have begun.
  local function workers_of(parent, dir, count)
    assert(helper.wait(function()
      local begun <const> = helper.read(dir .. "/begun")
      return begun and #begun >= count and #helper.children(parent) >= 3
    end, 10), "items have not begun, or workers are missing")
    return helper.children(parent)
  end

  for called, line in pairs(CALLS) do
    it(("leaves no worker of a %s, whatever it does"):format(called), function()
      for deed, what in pairs(DEEDS) do
        local dir <const> = helper.tmp()
        local idle <const> = called == "idle pool"
        -- LUA_CPATH leads the program to the kit.
        local parent <const> = start(([[
          local plua, kit = require "plua", require "crashkit"
          local data = { 1, 2, 3, 4, 5, 6 }
          local function f()
            local file = io.open(%q, "a") file:write("x") file:close()
            %s
          end
          %s
        ]]):format(dir .. "/begun", idle and "kit.spin()" or what, line), helper.lua)
        local fine <const>, err <const> = pcall(function()
          local pids <const> = workers_of(parent, dir, idle and 1 or 2)
          assert(#pids >= 3, #pids .. " workers")
          kit.kill(parent, 9)
          local killed <const> = kit.now()
          for _, pid in ipairs(pids) do
            assert(helper.wait(function() return not helper.alive(pid) end, 1),
              ("worker that %s outlives its parent"):format(deed))
          end
          assert(kit.now() - killed < 1)
        end)
        if not fine then
          for _, pid in ipairs(helper.children(parent)) do kit.kill(pid, 9) end
          kit.kill(parent, 9)
          error(err, 0)
        end
        if idle then break end
      end
    end)
  end
end)

-- It stays the parent of its workers.
describe("a parent that becomes another program", function()
  helper.guard()

  local NEXT <const> = [[
    local kit = require "crashkit"
    local ends, living = kit.now() + 5
    repeat
      living = 0
      for _, pid in ipairs(kit.children()) do
        local stat <close> = io.open(("/proc/%d/stat"):format(pid))
        if stat and not stat:read("a"):find("%) Z") then living = living + 1 end
      end
    until living == 0 or kit.now() > ends
    print(#kit.children() > 0, living)
  ]]

  for name, line in pairs {
    ["of a pool that rests"] = "local pool = plua.pool { workers = 3 } pool:map(math.abs, data)",
    ["of a pool of many"] = "local pool = plua.pool { workers = 20 } pool:map(math.abs, data)",
    ["of a pool that has work left"] = [[local pool = plua.pool { workers = 2 }
      for i = 1, 200 do pool:apply_async(string.rep, "x", 100000) end]],
    ["of a loop that goes on"] = [[
      for i in plua.imap(function(i) return ("x"):rep(100000) end, plua.range(1, 1e5)) do
        if i == 20 then break_out() end
      end]],
  } do
    it("leaves no worker " .. name, function()
      local program <const> = "exec " .. helper.lua .. " " .. helper.script(NEXT, "next.lua")
      local result <const> = helper.run(helper.lua .. " " .. helper.script(([[
        local plua, kit = require "plua", require "crashkit"
        local data = { 1, -2, 3 }
        local function break_out() kit.exec("sh", "-c", %q) end
        %s
        break_out()
      ]]):format(program, line)))
      assert.equal("true\t0\n", result.out, result.err)
    end)
  end
end)

-- The kernel forgets whom a process shall end with when it takes another user.
describe("a parent of workers that give up their rights", function()
  helper.guard()

  for name, where in pairs {
    ["in init, and are busy"] = { init = "kit.untie", item = "kit.spin()" },
    ["in init, and are idle"] = { init = "kit.untie", item = "" },
    ["in an item"] = { init = "nil", item = "kit.untie()" },
    ["in an item, and have much to say"] = { init = "nil",
      item = "kit.untie() return ('x'):rep(200000)" },
  } do
    it("leaves none of those that do so " .. name, function()
      local dir <const> = helper.tmp()
      local pid <const> = kit.fork()
      if pid == 0 then
        load(([[
          local plua, kit = require "plua", require "crashkit"
          local pool = plua.pool { workers = 2, init = %s }
          local futures = {}
          for i = 1, 400 do
            futures[i] = pool:apply_async(function()
              local file <close> = io.open(%q, "a")
              file:write("x")
              file:close()
              %s
            end)
          end
          kit.csleep(100)]]):format(where.init, dir .. "/begun", where.item))()
        kit._exit(0)
      end
      local pids
      assert(helper.wait(function()
        pids = helper.children(pid)
        return #(helper.read(dir .. "/begun") or "") >= 2 and #pids >= 3
      end, 10))
      kit.kill(pid, 9)
      assert(helper.wait(function() return kit.reap(pid) == pid end))
      local left <const> = {}
      for _, worker in ipairs(pids) do
        if not helper.wait(function() return not helper.alive(worker) end, 2) then
          left[#left + 1] = worker
          kit.kill(worker, 9)
        end
      end
      assert.same({}, left)
    end)
  end
end)

describe("a parent that is killed early or late", function()
  helper.guard()

  -- Starts the command; answers it when the file it leaves traces in has so many bytes.
  local function start(text, trace, bytes, env)
    local script <const> = helper.script(text)
    os.execute(("env LUA_CPATH='%s/kit/?.so;' %s %s %s </dev/null >%s.out 2>&1 & echo $! >%s.pid")
      :format(helper.build, env or "", helper.plua, script, script, script))
    local parent <const> = math.tointeger(helper.read(script .. ".pid"))
    local begun <const> = helper.wait(function() return #(helper.read(trace) or "") >= bytes end)
    local pids <const> = helper.children(parent)
    kit.kill(parent, 9)
    assert(begun, helper.read(script .. ".out"))
    return pids
  end

  local function gone(pids, seconds)
    for _, pid in ipairs(pids) do
      local ended <const> = helper.wait(function() return not helper.alive(pid) end, seconds)
      if not ended then kit.kill(pid, 9) end
      assert(ended, "a process outlives its parent")
    end
  end

  if helper.san == "" then
    it("leaves no process that was just forked, and had not yet asked to die with it", function()
      local trace <const> = helper.tmp() .. "/trace"
      local pids <const> = start([[
        local plua = require "plua"
        for _ in plua.imap(function() while true do end end, { 1, 2 }, { workers = 2 }) do end
      ]], trace, 1, ("LATE_MS=300 LATE_TRACE=%s LD_PRELOAD=%s/preload/lateprctl.so"):format(trace,
        helper.build))
      assert(#pids >= 1)
      gone(pids, 1.3)
    end)
  end

  for name, deed in pairs {
    spins = "kit.spin()", ["blocks all signals"] = "kit.blocksigs() kit.spin()",
    ["is stopped"] = "kit.raise(19)",
  } do
    it(("leaves no replacement that %s, and no spare"):format(name), function()
      local trace <const> = helper.tmp() .. "/trace"
      local pids <const> = start(([[
        local plua, kit = require "plua", require "crashkit"
        for _ in plua.imap(function()
          if plua.worker().attempt == 1 then kit.raise(9) end
          local file <close> = io.open(%q, "a")
          file:setvbuf("no")
          file:write("x")
          %s
        end, { 1, 2 }, { workers = 2, retries = 1 }) do end]]):format(trace, deed), trace, 2)
      assert(#pids >= 3, #pids .. " processes")
      gone(pids, 1)
    end)
  end
end)

describe("a loop over imap that is left", function()
  helper.guard()

  -- Children and descriptors of this process.
  local function holdings() return { #helper.children(), #kit.fds() } end

  for _, name in ipairs { "imap", "imap_unordered" } do
    it("ends the workers of " .. name .. " by break, error, goto and return", function()
      local before <const> = holdings()
      local function endless(i)
        local n = i
        return function()
          n = n + 1
          return n
        end
      end
      for _ in plua[name](function(x) return x end, endless(0), { workers = 2 }) do break end
      assert.same(before, holdings())
      local fine = pcall(function()
        for i in plua[name](function(x) return x end, endless(0), { workers = 2 }) do
          if i == 10 then error("enough") end
        end
      end)
      assert.is_false(fine)
      assert.same(before, holdings())
      local answer <const> = (function()
        for _, v in plua[name](function(x) return -x end, endless(0), { workers = 2 }) do
          return v
        end
      end)()
      assert(answer < 0)
      assert.same(before, holdings())
    end)

    it("ends workers of " .. name .. " that are busy for ever", function()
      local before <const>, began <const> = holdings(), kit.now()
      for _ in plua[name](function(x)
        if x > 1 then kit.spin() end
        return x
      end, numbers(10), { workers = 3 }) do break end
      assert.same(before, holdings())
      assert(kit.now() - began < 5)
    end)
  end

  it("leaves the workers of a pool as they are", function()
    local pool <close> = plua.pool { workers = 2 }
    for _ in pool:imap(function(x) return x end, plua.range(1, 1000000)) do break end
    answers(pool)
    assert.equal(2, pool:stats().started)
  end)
end)

describe("poor surroundings", function()
  helper.guard()

  local SCRIPT <const> = [[
    local plua, kit = require "plua", require "crashkit"
    local out = assert(io.open(arg[1], "w"))
    local data = {}
    for i = 1, 200 do data[i] = i end
    local function check(r)
      for i = 1, 200 do
        if i == 17 then assert(r[i].kind == "crash" or r[i].kind == "lost", tostring(r[i]))
        else assert(r[i] == i * i, i) end
      end
    end
    local function f(i) if i == 17 then kit.segv() end return i * i end
    for _ = 1, 3 do check(plua.map(f, data, { workers = 4, on_error = "collect" })) end
    local r = {}
    for i, v in plua.imap(f, data, { workers = 4, on_error = "collect" }) do r[i] = v end
    check(r)
    local pool <close> = plua.pool { workers = 4 }
    check(pool:map(f, data, { on_error = "collect" }))
    assert(pool:apply(function() return 5 end) == 5)
    out:write("done\n")
    out:close()
  ]]

  local function survives(line, ...)
    for _, program in ipairs { helper.plua, helper.lua } do
      local out <const> = helper.tmp() .. "/out"
      local command <const> = ("%s %s %s"):format(program, helper.script(SCRIPT), out)
      local result <const> = helper.run(line:format(command), { timeout = 30, ... })
      assert.equal("done\n", helper.read(out), result.err)
      assert.equal(0, result.status, result.err)
    end
  end

  it("SIGCHLD is ignored in the parent", function() survives("trap '' CHLD; exec %s") end)
  it("stdin is closed", function() survives("%s <&-") end)
  it("stdout is closed", function() survives("%s >&-") end)
  it("stderr is closed", function() survives("%s 2>&-") end)
  it("all three are closed", function() survives("%s <&- >&- 2>&-") end)
  it("twenty descriptors serve four workers", function() survives("ulimit -n 20; exec %s") end)
  it("SIGPIPE, SIGTERM and SIGINT are ignored", function()
    survives("trap '' PIPE TERM INT; exec %s")
  end)

  it("too few processes: one line says why, or fewer workers do it", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      local fine, r = pcall(plua.map, function(i) return i * i end, plua.range(1, 100),
        { workers = 8 })
      if fine then
        for i = 1, 100 do assert(r[i] == i * i) end
      else
        assert(tostring(r):find("fork") or tostring(r):find("Resource"), tostring(r))
      end
      print("done")
    ]]
    os.execute("chmod a+rx " .. script:match(".*/"))
    local result <const> = helper.run(
      ("setpriv --reuid=65533 --clear-groups prlimit --nproc=4 %s %s"):format(helper.plua, script))
    assert.equal("done\n", result.out, result.err)
  end)
end)
