-- How often an item is run again, by what became of it; and alone, where memory ran out.
-- SPDX-License-Identifier: MIT
-- luacheck: ignore 512
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local options <const> = require "plua.options"

-- kind of retries -> what an item does, and the kind of its error
local DEEDS <const> = {
  crash = { function() kit.segv() end, "crash" },
  error = { function() error("no") end, "error" },
  timeout = { function() while true do end end, "timeout" },
  killed = { function() kit.kill(kit.pid(), 9) kit.csleep(10) end, "crash" },
}
local KINDS <const> = { "crash", "error", "killed", "timeout" }

local function opts_of(retries)
  return { workers = 2, timeout = 0.05, on_error = "collect", retries = retries }
end

-- How often the second of three items was begun, in a call or a pool.
local function attempts(deed, retries)
  local function f(item)
    if item == 2 then deed() end
    return -item
  end
  local r <const> = plua.map(f, { 1, 2, 3 }, opts_of(retries))
  assert.same({ -1, -3 }, { r[1], r[3] })
  local pool <close> = plua.pool(opts_of(retries))
  local fine <const>, err <const> = pcall(pool.apply, pool, f, 2)
  assert.is_false(fine)
  assert.equal(r[2].attempts, err.attempts)
  return r[2].attempts, r[2]
end

describe("retries", function()
  helper.guard()

  for _, kind in ipairs(KINDS) do
    it("as a number are for every kind: " .. kind, function()
      for n = 0, 2 do assert.equal(n + 1, (attempts(DEEDS[kind][1], n))) end
    end)

    it("by kind are for that kind alone: " .. kind, function()
      local numbers <const> = { crash = 0, error = 0, timeout = 0, killed = 0 }
      for _, other in ipairs(KINDS) do
        numbers[other] = 2
        assert.equal(other == kind and 3 or 1, (attempts(DEEDS[kind][1], numbers)))
        numbers[other] = 0
      end
    end)

    it("that are not named have their defaults: " .. kind, function()
      local usual <const> = { crash = 2, error = 1, timeout = 1, killed = 4 }
      local n <const>, err <const> = attempts(DEEDS[kind][1], { oom = 1 })
      assert.equal(usual[kind], n)
      assert.equal(DEEDS[kind][2], err.kind)
      assert.equal(usual[kind], (attempts(DEEDS[kind][1])))
    end)
  end

  it("are the same for a timeout that ends softly and one that needs a kill", function()
    local hang <const> = function() kit.spin() end
    local n <const>, err <const> = attempts(hang, { timeout = 1 })
    assert.same({ 2, "timeout", "SIGKILL" }, { n, err.kind, err.signal })
    assert.equal(1, (attempts(hang, { crash = 5, error = 5, killed = 5 })))
  end)

  it("of one item hold nobody up: it is run by itself", function()
    local began <const>, items <const> = kit.now(), helper.slow and 10000 or 200000
    local r <const> = plua.map(function(i)
      if i == 1 then kit.abort() end
      return i
    end, plua.range(1, items), { workers = 2, on_error = "collect", retries = { crash = 5 } })
    assert.equal(6, r[1].attempts)
    for i = 2, items do assert.equal(i, r[i]) end
    assert(kit.now() - began < 20)
  end)

  it("are counted with workers = 0 too", function()
    local runs = 0
    local r <const> = plua.map(function() runs = runs + 1 error("no") end, { 1 },
      { workers = 0, on_error = "collect", retries = { error = 2, crash = 7 } })
    assert.same({ 3, 3 }, { runs, r[1].attempts })
  end)

  it("of a wrong kind or number are refused, with the nearest that exists", function()
    local function refused(value)
      local fine <const>, message <const> = pcall(plua.map, print, { 1 }, { retries = value })
      assert.is_false(fine)
      return message
    end
    assert.truthy(refused({ crsh = 1 }):find("no kind 'crsh'; the nearest is 'crash'", 1, true))
    assert.truthy(refused({ 1 }):find("knows no kind '1'", 1, true))
    assert.truthy(refused({ crash = -1 }):find("crash must be a whole number, 0 or more, not -1", 1,
      true))
    assert.truthy(refused({ oom = "1" }):find("oom must be a whole number", 1, true))
    assert.truthy(refused("crash=1"):find("crash, error, timeout, killed, oom", 1, true))
    assert.truthy(refused(1.5):find("must be a whole number", 1, true))
  end)

  describe("on the command line", function()
    local SCRIPT <const> = [[
      local plua, kit = require "plua", require "crashkit"
      local r = plua.map(function(i) if i == 1 then kit.abort() end error("no") end, { 1, 2 })
      print(r[1].attempts, r[2].attempts)
    ]]
    local function run(words)
      return helper.run(("%s -j2 --on-error collect %s %s"):format(helper.plua, words,
        helper.script(SCRIPT)))
    end

    it("are a number, or numbers by kind", function()
      assert.equal("3\t3\n", run("--retries 2").out)
      assert.equal("3\t2\n", run("--retries crash=2,error=1").out)
      assert.equal("2\t3\n", run("'--retries=error=2'").out)
      assert.equal("1\t1\n", run("--retries 0").out)
    end)

    it("are refused where they are wrong", function()
      for word, text in pairs {
        ["crash=2,eror=1"] =
          "plua: option 'retries' knows no kind 'eror'; the nearest is 'error'\n",
        ["crash=x"] = "plua: option 'retries': crash must be a whole number, 0 or more, not x\n",
        ["many"] = "plua: option 'retries' must be a whole number",
        ["crash"] = "plua: option 'retries' must be a whole number",
      } do
        local result <const> = run("--retries " .. word)
        assert.equal(2, result.status)
        assert.equal(text, result.err:sub(1, #text))
      end
    end)
  end)

  it("are understood as texts only from there", function()
    assert.is_true(options.set_defaults { retries = "crash=3, oom=0" })
    assert.same({ crash = 3, oom = 0 }, options.check().retries)
    assert.is_true(options.set_defaults {})
  end)
end)

-- ---- memory ------------------------------------------------------------------------------------

-- The kernel's counter, as files that the items write: version 2, version 1, none of a cgroup.
local PLACES <const> = {
  ["cgroup v2"] = { "0::/a/b\n", "sys/fs/cgroup/a/b/memory.events" },
  ["cgroup v2 at the top"] = { "0::/elsewhere/b\n", "sys/fs/cgroup/memory.events" },
  ["cgroup v1"] = { "5:cpu:/x\n4:memory:/a/b\n0::/\n",
    "sys/fs/cgroup/memory/a/b/memory.oom_control" },
  ["/proc/vmstat"] = { "0::/\n", "proc/vmstat" },
}

local FAKE <const> = [[
  local plua, kit = require "plua", require "crashkit"
  local counter, log = arg[1], arg[2]
  local function note(text)
    local file <close> = assert(io.open(log, "a"))
    file:write(text, "\n")
  end
  local function killed_by_kernel()
    local file = assert(io.open(counter))
    local n = file:read("a"):match("\noom_kill (%d+)") + 1
    file:close()
    file = assert(io.open(counter .. ".new", "w"))
    file:write("low 0\nworkingset_oom_kill 77\noom_kill ", n, "\noom_group_kill 0\n")
    file:close()
    os.rename(counter .. ".new", counter)
    kit.kill(kit.pid(), 9)
    kit.csleep(10)
  end
  local BAD = { [3] = 1, [20] = 100 } -- item -> how often memory runs out for it
  local function f(i)
    local me = plua.worker()
    note("begin " .. i)
    local bad = BAD[i] and me.attempt <= BAD[i]
    local killed = i == 30 and me.attempt == 1
    if not bad and not killed then kit.csleep(0.01) end
    note("end " .. i)
    if bad then killed_by_kernel() end
    if killed then kit.kill(kit.pid(), 9) kit.csleep(10) end
    return i * i
  end
]]

local function make_dirs(path)
  os.execute("mkdir -p " .. helper.quote(path:match("^(.*)/")))
end

local function fake_place(place)
  local root <const> = helper.tmp()
  local cgroup <const>, counter <const> = table.unpack(PLACES[place])
  make_dirs(root .. "/proc/self/cgroup")
  make_dirs(root .. "/" .. counter)
  helper.write(root .. "/proc/self/cgroup", cgroup)
  helper.write(root .. "/" .. counter, "low 0\noom_kill 0\n")
  return root, root .. "/" .. counter
end

local function run_fake(place, text)
  local root <const>, counter <const> = fake_place(place)
  local log <const> = root .. "/log"
  helper.write(log, "")
  local result <const> = helper.run(
    ("%s %s %s %s"):format(helper.lua, helper.script(FAKE .. text), counter, log),
    { env = { PLUA_PROC_ROOT = root .. "/proc", PLUA_SYS_ROOT = root .. "/sys" } })
  assert.equal(0, result.status, result.err)
  return result, helper.read(log)
end

-- How often an item ran; from the second time on, nothing else did meanwhile.
local function runs_alone(log, item)
  local running <const>, tries = {}, 0
  for verb, i in log:gmatch("(%a+) (%d+)\n") do
    if i == item and verb == "begin" then
      tries = tries + 1
      if tries > 1 then assert.same({}, running) end
    elseif running[item] and tries > 1 then
      assert.equal(item, i, "something ran beside it: " .. i)
    end
    running[i] = verb == "begin" or nil
  end
  return tries
end

describe("an item that the kernel killed for want of memory", function()
  helper.guard()

  for place in pairs(PLACES) do
    it("is told apart and run again alone, counted by " .. place, function()
      local result <const>, log <const> = run_fake(place, [[
        local data = {}
        for i = 1, 40 do data[i] = i end
        local r = plua.map(f, data, { workers = 3, on_error = "collect", chunksize = 1 })
        for i = 1, 40 do if i ~= 20 then assert(r[i] == i * i, tostring(r[i])) end end
        print(r[20].kind, r[20].signal, r[20].attempts)
        print(r[20])
      ]])
      assert.truthy(result.out:find("^memory\tSIGKILL\t4\n"), result.out)
      local text <const> = result.out:gsub("pid %d+", "pid N"):gsub("worker %d", "worker W")
      assert.truthy(text:find("memory ran out: the kernel's OOM killer ended worker W (pid N) " ..
        "while it ran item 20 (20); tried 4 times\n" ..
        "  use fewer workers, or set a limit on each by the option memory\n", 1, true), text)
      assert.equal(2, runs_alone(log, "3"))
      assert.equal(4, runs_alone(log, "20"))
    end)
  end

  it("is no retry of another kind, and retries = 0 ends it at once", function()
    local result <const> = run_fake("cgroup v2", [[
      for _, retries in ipairs { 0, { oom = 0 }, { oom = 1, killed = 0 } } do
        local r = plua.map(function() f(20) end, { 1 },
          { workers = 1, on_error = "collect", retries = retries })
        print(r[1].kind, r[1].attempts)
      end
    ]])
    assert.equal("memory\t1\nmemory\t1\nmemory\t2\n", result.out)
  end)

  it("leaves a pool, a loop and futures usable", function()
    local result <const> = run_fake("cgroup v1", [[
      local pool <close> = plua.pool { workers = 2 }
      local a = pool:apply_async(f, 3)
      local b = pool:apply_async(f, 20)
      local c = pool:apply_async(f, 5)
      print(a:get(), c:get(), select(2, pcall(b.get, b)).kind)
      local n = 0
      for i, v in plua.imap(f, plua.range(1, 15), { workers = 2 }) do
        assert(v == i * i)
        n = n + v
      end
      print(n, pool:map(f, { 1, 2 })[2])
    ]])
    assert.equal("9\t25\tmemory\n1240\t4\n", result.out)
  end)

  -- Where this machine lets us have a memory cgroup: the kernel's own work.
  local groups <const> = helper.memory_groups()
  if groups then
    it("is run again alone, and then has room enough", function()
      -- A sanitizer needs memory of its own for each byte.
      local shift <const> = helper.san ~= "" and 22 or 20
      local group <close> = helper.memory_group(groups, 64 << shift)
      local script <const> = helper.script(([[
        local plua, kit, shift = require "plua", require "crashkit", %d
        local r = plua.map(function(i)
          local s = ("x"):rep(24 << shift)
          kit.csleep(0.2)
          return #s >> shift
        end, { 1, 2, 3 }, { workers = 3, chunksize = 1, on_error = "collect" })
        for i = 1, 3 do print(tostring(r[i])) end
        local e = plua.map(function() return #("x"):rep(100 << shift) end, { 1 },
          { workers = 1, on_error = "collect" })[1]
        print(e.kind, e.signal, e.attempts)
      ]]):format(shift))
      local result <const> = helper.run(
        ("echo $$ >%s && exec %s %s"):format(group.procs, helper.lua, script))
      assert.equal("24\n24\n24\nmemory\tSIGKILL\t4\n", result.out, result.err)
    end)
  end

  it("is a kill like any other where nothing is counted", function()
    local result <const> = run_fake("cgroup v2", [[
      local r = plua.map(function() kit.kill(kit.pid(), 9) kit.csleep(10) end, { 1 },
        { workers = 1, on_error = "collect" })
      print(r[1].kind, r[1].signal, r[1].attempts)
    ]])
    assert.equal("crash\tSIGKILL\t4\n", result.out)
  end)
end)
