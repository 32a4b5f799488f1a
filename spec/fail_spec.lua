-- Every failpoint (core/fail.h) with every action: a workload that meets it ends in time, with
-- right results or with an error that says why, and leaves no process. Needs a build that has the
-- points: make check-fail. SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local system <const> = require "system"
local counter <const> = helper.counter

local LIMIT <const> = 20 -- seconds that a workload may take; most take some milliseconds

-- Name -> {fails: whether errno can be had}, as the header lists them; in its order too.
local POINTS <const>, ORDER <const> = {}, {}
for name, fails in helper.read("core/fail.h"):gmatch 'X%([%u_]+, "([%w.]+)", (%d)' do
  POINTS[name], ORDER[#ORDER + 1] = { fails = fails == "1" }, name
end

-- ---- what is run ------------------------------------------------------------------------------

local SIGCONT <const> = 18
local BIG <const> = ("x"):rep(1200000) -- does not fit a ring

local function double(i)
  if i == 7 and plua.worker().attempt == 1 then kit.raise(9) end
  return i == 30 and BIG or 2 * i
end


local function must(fine, otherwise)
  if not fine then error(tostring(otherwise), 0) end
end

local function right(i, value)
  must(value == (i == 30 and BIG or 2 * i),
    plua.iserror(value) and value or ("item %d is %s"):format(i, tostring(value)))
end

local function all_right(r, n)
  must(r.n == n, "not all results")
  for i = 1, n do right(i, r[i]) end
end

local function in_turn(n, ...)
  local count = 0
  for i, value in ... do
    count = count + 1
    must(i == count, "out of order")
    right(i, value)
  end
  must(count == n, "not all results")
end

local place -- a directory for a workload's files
local OPTIONS <const> = { workers = 3, retries = 5, on_error = "collect" }

local function whole_pool(opts)
  local pool <close> = plua.pool(opts)
  all_right(pool:map(double, plua.range(1, 200), { chunksize = 20 }), 200)
  local futures <const> = {}
  for i = 1, 10 do futures[i] = pool:apply_async(double, i) end
  in_turn(50, pool:imap(double, counter(50)))
  for i = 1, 10 do right(i, futures[i]:get()) end
end

--- Half of the pool's workers die over their first items, and are made again.
local function half_die(opened)
  local pool <close> = opened
  for round = 1, 2 do
    local r <const> = pool:map(function(i)
      if round == 1 and i % 2 == 0 and plua.worker().attempt == 1 then kit.raise(9) end
      kit.csleep(0.002)
      return 2 * i
    end, plua.range(1, 20), { chunksize = 1 })
    for i = 1, 20 do must(r[i] == 2 * i, r[i]) end
  end
end

-- Name -> the parts of a workload; each is right, or raises.
local WORKLOADS <const> = {
  usual = {
    function() all_right(plua.map(double, plua.range(1, 200), OPTIONS), 200) end,
    function() in_turn(50, plua.imap(double, counter(50), OPTIONS)) end, -- has a spare
    function() whole_pool(OPTIONS) end,
  },
  -- Items that must be stopped: one in Lua, one that only a kill ends, one that is cancelled.
  late = {
    function()
      local pool <close> = plua.pool { workers = 2, retries = 5 }
      local r <const> = pool:map(function(i)
        if i == 3 then while true do end end
        if i == 5 then
          kit.blocksigs()
          while true do end
        end
        return 2 * i
      end, plua.range(1, 20), { timeout = 0.03, on_error = "collect" })
      for i = 1, 20 do
        if i == 3 or i == 5 then
          must(plua.iserror(r[i]) and r[i].kind == "timeout", r[i])
        else
          right(i, r[i])
        end
      end
      local path <const> = place .. "/begun"
      local future <const> = pool:apply_async(function()
        helper.write(path, "x")
        while true do end
      end)
      -- A look at the future each time: where no worker lives, one is made then.
      must(helper.wait(function() return future:ready() or helper.read(path) end), "never begins")
      future:cancel()
      for i = 1, 10 do right(i, pool:apply(double, i)) end
    end,
  },
  -- An item that ends by itself while the owner makes up its mind to kill it.
  narrow = {
    function()
      local r <const> = plua.map(function(i) kit.csleep(0.1) return 2 * i end, { 1 },
        { workers = 1, timeout = 0.03, on_error = "collect" })
      must(plua.iserror(r[1]) and r[1].kind == "timeout" and not r[1].signal, r[1])
    end,
  },
  -- So many workers that two spares make them; half of them die, and are made again.
  many = { function() half_die(plua.pool { workers = 20, retries = 5 }) end },
  -- A pool that becomes so large: its spare makes another.
  grown = {
    function()
      local pool <const> = plua.pool { workers = 2, retries = 5 }
      pool:resize(20)
      half_die(pool)
    end,
  },
  -- Many results that the owner is slow to take.
  large = {
    function()
      local r <const> = plua.map(function(i) return ("x"):rep(250000) .. i end, plua.range(1, 30),
        OPTIONS)
      for i = 1, 30 do must(r[i] == ("x"):rep(250000) .. i, r[i]) end
    end,
  },
}

--- Runs the parts in this process and answers what went wrong, a line each; "" where nothing did.
local function work(parts)
  local wrong <const> = {}
  for _, part in ipairs(parts) do
    local fine <const>, err <const> = pcall(part)
    if not fine then
      assert(plua.iserror(err) or type(err) == "string", "an error that is no error")
      wrong[#wrong + 1] = tostring(err)
    end
  end
  return table.concat(wrong, "\n")
end

-- ---- how it is run ----------------------------------------------------------------------------

kit.subreaper() -- workers that outlive their owner become our children

--- Runs a workload in a process of its own. Answers how that ended, by which number, what it said.
local function run(name, fail, timeout)
  local dir <const> = helper.tmp()
  local pid <const> = kit.fork()
  if pid == 0 then
    kit.setenv("PLUA_FAIL", fail)
    OPTIONS.timeout, place = timeout, dir
    local fine <const>, text <const> = pcall(work, WORKLOADS[name])
    helper.write(dir .. "/said", tostring(text))
    kit._exit(fine and 0 or 99)
  end
  local ends <const> = kit.now() + LIMIT
  local id, how, number
  repeat
    id, how, number = kit.reap(pid)
    if id == 0 then system.sleep(0.001) end
    if how == "stop" then kit.kill(pid, SIGCONT) end
  until how == "exit" or how == "signal" or kit.now() > ends
  if id == 0 then
    for _, child in ipairs(helper.children(pid)) do kit.kill(child, 9) end
    kit.kill(pid, 9)
    repeat until kit.reap(pid) ~= 0
    how, number = "hang", 0
  end
  return how, number, helper.read(dir .. "/said") or ""
end

--- No process of the workload lives a second after its end.
local function all_gone(what)
  local gone <const> = helper.wait(function()
    repeat local pid = kit.reap() until not pid or pid == 0
    return #helper.children() == 0
  end, 1)
  if gone then return end
  for _, pid in ipairs(helper.children()) do kit.kill(pid, 9) end
  error(what .. ": a process is left", 0)
end

-- ---- which workload meets which point, and what must happen before ----------------------------

local MEETS <const> = {
  ["w.wait"] = { "large", "p.sleep:*:delay=20," },
  ["p.takeback"] = { "late" }, ["p.hold"] = { "late" }, ["p.interrupt"] = { "late" },
  ["s.copy"] = { "grown" },
  ["p.kill"] = { "late" }, ["p.resume"] = { "narrow", "p.hold:1:delay=150," },
}

--- Runs what meets the point, with a fault there; nobody may be left.
local function at(point, nth, action, timeout)
  local meets <const> = MEETS[point] or { "usual" }
  local fail <const> = ("%s%s:%s:%s"):format(meets[2] or "", point, nth, action)
  local how <const>, number <const>, said <const> = run(meets[1], fail, timeout)
  all_gone(fail)
  assert(how ~= "hang", fail .. ": did not end")
  return how, number, said, fail
end

local function ended_right(how, number, said, fail)
  assert(how == "exit" and number == 0 and said == "",
    ("%s: %s %d: %s"):format(fail, how, number, said))
end

local function of(who)
  local list <const> = {}
  for _, point in ipairs(ORDER) do
    if who:find(point:sub(1, 1), 1, true) then list[#list + 1] = point end
  end
  return list
end

--- Whether none of our children runs.
local function all_sleep()
  for _, pid in ipairs(helper.children()) do
    local stat <const> = helper.read("/proc/" .. pid .. "/stat") or ""
    if not stat:find "%) S" then return false end
  end
  return true
end

local DEATHS <const> = { "kill", "segv", "abort", "exit0", "exit1" }

describe("PLUA_FAIL", function()
  helper.guard()

  it("is refused where it names what there is not", function()
    for fail, why in pairs {
      ["w.nowhere:1:kill"] = "there is no point (core/fail.h lists them) 'w.nowhere'",
      ["w.begin:1:dance"] = "there is no action 'dance'", ["w.begin:1"] = "not point:nth:action",
      ["w.begin:0:kill"] = "not a count from 1 on '0'", ["w.begin:x:kill"] = "not a count",
      ["w.begin:1:errno=5"] = "no errno can be had at 'w.begin'",
      ["w.begin:1:kill,p.fork:1:errno="] = "not a count from 1 on ''",
    } do
      local r <const> = helper.run(helper.plua .. " -e 'print(1)'", { env = { PLUA_FAIL = fail } })
      assert.same({ "", 2 }, { r.out, r.status })
      assert(r.err:find(why, 1, true), r.err)
    end
  end)

  it("counts over all processes of a team", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      local r = plua.map(function(i) return plua.worker().attempt end, plua.range(1, 100),
        { workers = 3 })
      local again = 0
      for i = 1, 100 do again = again + r[i] - 1 end
      print(again)
    ]]
    for fail, again in pairs { ["w.begin:4:kill"] = 1, ["w.begin:4:kill,w.begin:50:segv"] = 2,
      ["w.begin:300:kill"] = 0, ["w.ready:2:exit0"] = 0 } do
      local r <const> = helper.run(helper.plua .. " " .. script, { env = { PLUA_FAIL = fail } })
      all_gone(fail)
      assert.same({ again .. "\n", "", 0 }, { r.out, r.err, r.status }, fail)
    end
  end)

  for _, point in ipairs(ORDER) do
    it("finds " .. point .. " on the way of a workload", function()
      local how <const>, number <const>, said <const>, fail <const> = at(point, 1, "abort")
      if point:sub(1, 1) == "p" then
        assert.same({ "signal", 6 }, { how, number }, fail)
      else
        ended_right(how, number, said, fail)
        local log <const> = helper.tmp() .. "/log"
        local r <const> = { at(point, 1, "append=" .. log) }
        ended_right(table.unpack(r))
        assert(helper.read(log), point .. " is not met")
      end
    end)
  end
end)

describe("a process of the team that dies", function()
  helper.guard()

  for _, point in ipairs(of "ws") do
    it("at " .. point .. " changes no result", function()
      for _, death in ipairs(DEATHS) do
        for nth = 1, 5 do ended_right(at(point, nth, death)) end
      end
    end)
  end

  for _, point in ipairs(of "ws") do
    it("at " .. point .. ", while others make up for a death, changes no result", function()
      for _, first in ipairs { "w.deq:2", "w.begin:3", "w.publish.mid:5", "w.end:2" } do
        for nth = 4, 6, 2 do ended_right(at(point, nth, "kill," .. first .. ":kill")) end
      end
    end)
  end
end)

describe("a process of the team that is stopped", function()
  helper.guard()

  for _, point in ipairs(of "ws") do
    it("at " .. point .. " costs no item but its own, where there is a timeout", function()
      for nth = 1, 4, 3 do
        local how <const>, number <const>, said <const>, fail <const> = at(point, nth, "stop", 0.1)
        for line in said:gmatch "[^\n]+" do
          if not line:find("ran longer than 0.1 s", 1, true) then
            ended_right(how, number, said, fail)
          end
        end
        assert.same({ "exit", 0 }, { how, number }, fail)
      end
    end)
  end
end)

describe("a delay", function()
  helper.guard()

  for _, point in ipairs(ORDER) do
    it("at " .. point .. " changes no result", function()
      for nth = 1, 3 do ended_right(at(point, nth, "delay=50")) end
    end)
  end
end)

describe("a step that fails", function()
  helper.guard()

  local NAMES <const> = {
    [5] = "Input/output error", [11] = "Resource temporarily unavailable",
    [12] = "Cannot allocate memory", [24] = "Too many open files",
    [28] = "No space left on device",
  }

  for _, point in ipairs(ORDER) do
    if POINTS[point].fails then
      it(point .. ", changes no result or is told", function()
        for errno, name in pairs(NAMES) do
          for nth = 1, 6 do
            if nth == 6 and point ~= "p.dispatch" then nth = "*" end -- no room, for ever
            local how <const>, number <const>, said <const>, fail <const> =
              at(point, nth, "errno=" .. errno)
            assert.same({ "exit", 0 }, { how, number }, fail .. ": " .. said)
            if said ~= "" then assert(said:find(name, 1, true), fail .. ": " .. said) end
          end
        end
      end)
    end
  end
end)

describe("workers that die as they wake", function()
  helper.guard()

  -- Two of twelve are left, whom nobody else wakes; and no new ones can be forked.
  it("delay no call, though others sleep and none can take their place", function()
    local fails <const> = {}
    for nth = 13, 24 do fails[#fails + 1] = ("s.fork:%d:errno=11"):format(nth) end
    for _, death in ipairs { "kill", "exit0" } do
      local took <const> = {}
      for round = 1, 9 do
        kit.setenv("PLUA_FAIL", table.concat(fails, ","))
        local pool <close> = plua.pool { workers = 12 }
        kit.setenv("PLUA_FAIL")
        pool:map(function(i) -- each gets one; who slept first is woken first
          if i <= 10 then kit.setenv("PLUA_FAIL", "w.woken:*:" .. death) end
          kit.csleep(0.02)
        end, plua.range(1, 12), { chunksize = 1 })
        assert(helper.wait(all_sleep), "they do not rest")
        local start <const> = kit.now()
        right(1, pool:apply(function() return 2 end))
        took[round] = kit.now() - start
      end
      table.sort(took)
      assert(took[5] < 0.25, ("%s: half of the calls took %g s or more"):format(death, took[5]))
    end
  end)
end)

describe("the spare", function()
  helper.guard()

  it("is given up when it cannot make the first worker", function()
    for _, errno in ipairs { 1, 11, 12 } do
      local r <const> = helper.run(helper.plua .. " " .. helper.script [[
        local plua = require "plua"
        for i, r in plua.imap(function(i) return -i end, plua.range(1, 50), { workers = 2 }) do
          assert(r == -i)
        end
        local pool <close> = plua.pool { workers = 2 }
        for i = 1, 50 do assert(pool:apply(math.abs, -i) == i) end
        print(pool:stats().alive)]], { env = { PLUA_FAIL = "s.fork:*:errno=" .. errno } })
      all_gone("s.fork")
      assert.same({ "2\n", "" }, { r.out, r.err })
    end
  end)

  it("is kept when it cannot fork, since it alone has seen the state of then", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      string.seen = "then"
      local pool <close> = plua.pool { workers = 2, retries = 9 }
      pool:map(function() end, plua.range(1, 2))
      string.seen = "now"
      local told, seen = 0, nil
      for round = 1, 20 do
        local fine, r = pcall(pool.map, pool, function(i)
          local plua, kit = require "plua", require "crashkit"
          if plua.worker().attempt == 1 then kit.raise(9) end
          return require "string".seen
        end, plua.range(1, 4))
        if not fine then told = told + 1 end
        for i = 1, fine and 4 or 0 do assert(r[i] == "then", r[i]) end
      end
      print(told)
    ]]
    for errno, why in pairs { [11] = "Resource temporarily unavailable",
      [12] = "Cannot allocate memory" } do
      local fails <const> = {}
      for nth = 3, 15 do fails[#fails + 1] = ("s.fork:%d:errno=%d"):format(nth, errno) end
      local r <const> = helper.run(helper.plua .. " " .. script,
        { env = { PLUA_FAIL = table.concat(fails, ",") } })
      all_gone(fails[1])
      assert(r.status == 0 and math.tointeger(tonumber(r.out)), r.err)
      assert(r.err == "" or r.err:find(why, 1, true), r.err)
    end
  end)
end)

describe("the spares of many workers", function()
  helper.guard()

  for _, point in ipairs(of "s") do
    it("make up for one that dies, or cannot fork, at " .. point, function()
      local fails <const> = { "kill", "exit1", POINTS[point].fails and "errno=11" or nil,
        POINTS[point].fails and "errno=1" or nil }
      for _, action in ipairs(fails) do
        for _, nth in ipairs { 1, 2, 3, 4, 12, 13, 20, 21, 22, 25 } do
          local fail <const> = ("%s:%d:%s"):format(point, nth, action)
          local workload <const> = point == "s.copy" and "grown" or "many"
          local how <const>, number <const>, said <const> = run(workload, fail)
          all_gone(fail)
          ended_right(how, number, said, fail)
        end
      end
    end)
  end

  it("are one where processes are short, for the sake of the last worker", function()
    local script <const> = helper.script [[
      local plua, kit = require "plua", require "crashkit"
      local pool <close> = plua.pool { workers = 20 }
      local ends = kit.now() + 5 -- it is tried again now and then
      repeat pool:apply(math.abs, 1) until pool:stats().alive == 20 or kit.now() > ends
      print(pool:stats().alive, #kit.children())
    ]]
    for fail, said in pairs { ["p.fork:2:errno=11"] = "20\t21\n", [""] = "20\t22\n",
      ["s.fork:20:errno=11,s.fork:21:errno=11,s.fork:22:errno=11"] = "20\t21\n" } do
      local r <const> = helper.run(helper.plua .. " " .. script, { env = { PLUA_FAIL = fail } })
      all_gone(fail)
      assert.equal(said, r.out, fail)
      assert(r.err == "" or r.err:find("only 19 of 20 workers", 1, true), r.err)
    end
  end)
end)

describe("an owner that dies", function()
  helper.guard()

  for _, point in ipairs(of "p") do
    it("at " .. point .. " leaves no process", function()
      for _, death in ipairs { "kill", "exit0", "abort" } do
        for nth = 1, 5 do at(point, nth, death) end
      end
    end)
  end

  local RECOVERS <const> =
    { "p.reap", "p.death", "p.fork", "p.watch", "p.go", "p.spare", "p.close" }
  for _, point in ipairs(RECOVERS) do
    it("at " .. point .. ", while it makes up for a death, leaves no process", function()
      for nth = 1, 5 do at(point, nth, "kill,w.begin:3:kill,w.end:5:kill") end
    end)
  end
end)

describe("an owner that is stopped and goes on", function()
  helper.guard()

  for _, point in ipairs(of "p") do
    it("at " .. point .. " gets all results", function()
      for nth = 1, 2 do ended_right(at(point, nth, "stop")) end
    end)
  end
end)
