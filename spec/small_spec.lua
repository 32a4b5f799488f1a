-- Small places: few descriptors, few processes, nowhere to write, a full disk, signals all the
-- time. A call answers rightly, with fewer workers where it must, or says what is wanting.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"

-- Uses every kind of call; arg[1]: how many workers.
local WORK <const> = [[
  local plua, kit = require "plua", require "crashkit"
  local opts = { workers = math.tointeger(arg[1]) }
  local data = {}
  for i = 1, 300 do data[i] = i end
  local function square(i) return i * i end
  local function check(r) for i = 1, 300 do assert(r[i] == i * i, i) end end
  check(plua.map(square, data, opts))
  local r = {}
  for i, v in plua.imap(square, data, opts) do r[i] = v end
  check(r)
  local c = plua.map(function(i)
    if i == 7 then kit.abort() end
    return square(i)
  end, data, { workers = opts.workers, on_error = "collect" })
  assert(c[7].kind == "crash")
  c[7] = 49
  check(c)
  local pool <close> = plua.pool(opts)
  check(pool:map(square, data))
  assert(pool:apply(square, 9) == 81)
  print "right"
]]

local function run(line, ...)
  return helper.run(line:format(...), { timeout = 60 })
end

local function is_right(result)
  assert.equal("right\n", result.out, result.err)
  assert.equal(0, result.status, result.err)
  return result.err
end

local function count(text, what) return select(2, text:gsub(what, "")) end

describe("a place where", function()
  helper.guard()

  it("nothing can be written is enough: no /dev/shm, no current directory", function()
    local script <const> = helper.script(WORK)
    is_right(run("cd /proc && %s %s 3", helper.plua, script))
    -- With a namespace of its own, where this machine grants one.
    local unshare <const> = "unshare -rm sh -c 'mount -t tmpfs -o ro,size=4k none /dev/shm && " ..
      "cd /proc && exec %s %s 3'"
    if run("unshare -rm true").status == 0 then
      is_right(run(unshare, helper.plua, script))
    end
  end)

  it("there are 64 descriptors serves four workers in silence, a hundred with fewer", function()
    local script <const> = helper.script(WORK)
    assert.equal("", is_right(run("ulimit -n 64; exec %s %s 4", helper.plua, script)))
    for _, n in ipairs { 64, 20 } do
      local said <const> = is_right(run("ulimit -n %d; exec %s %s 100", n, helper.plua, script))
      assert.truthy(said:find("^plua: only %d+ of 100 workers could be started: Too many open " ..
        "files %(ulimit %-n[^)]*%); use fewer workers, close files, or raise the limit\n$"), said)
    end
  end)

  it("there are too few descriptors for one worker says so", function()
    local script <const> = helper.script(WORK)
    for n = 4, 6 do
      local result <const> = run("ulimit -n %d; exec %s %s 2", n, helper.plua, script)
      assert.equal(1, result.status)
      assert.truthy(result.err:find("Too many open files (ulimit -n", 1, true), result.err)
      assert.equal(1, count(result.err, "Too many"))
    end
  end)

  it("memory for shared files is refused says so", function()
    local script <const> = helper.script(WORK)
    local result <const> = run("ulimit -v 60000; exec %s %s 2", helper.plua, script)
    assert.truthy(result.status == 0 or result.err:find("ulimit %-v is 60000"), result.err)
  end)

  if helper.san == "" then
    local function refused(from, program, script)
      local shim <const> = helper.build .. "/preload/iofail.so"
      return helper.run(("exec env LD_PRELOAD=%s %s %s"):format(shim, program, script),
        { env = { IOFAIL = ("fork:11:%d:sticky"):format(from) } })
    end
    local ONE <const> = [[
      local plua = require "plua"
      local r = plua.%s
      print "right"
    ]]
    local MAP <const> = "map(function(i) return i end, plua.range(1, 50), { workers = 5 })"

    it("processes are few goes on with fewer workers, and the command says so once", function()
      local script <const> = helper.script(ONE:format(MAP))
      local said <const> = is_right(refused(3, helper.plua, script))
      assert.truthy(said:find("^plua: only 2 of 5 workers could be started: Resource " ..
        "temporarily unavailable %(ulimit %-u[^)]*%); use fewer workers, or raise the limit, " ..
        "which a container may have of its own\n$"), said)
    end)

    it("processes are few leaves a host in peace, unless its warnings are on", function()
      local script <const> = helper.script(ONE:format(MAP))
      assert.equal("", is_right(refused(3, helper.lua, script)))
      local said <const> = is_right(refused(3, helper.lua .. " -W", script))
      assert.truthy(said:find("^Lua warning: plua: only 2 of 5 workers could be started: "), said)
    end)

    it("no pool can start keeps nothing of one that was tried", function()
      local script <const> = helper.script [[
        local plua, kit = require "plua", require "crashkit"
        collectgarbage("stop")
        local before = #kit.fds()
        local fine, err = pcall(plua.pool, { workers = 2 })
        print(#kit.fds() - before, fine, err)
      ]]
      local result <const> = refused(1, helper.plua, script)
      assert.truthy(result.out:find("^0\tfalse\t[^\n]*script.lua:4: plua: cannot start worker 1 "),
        result.out .. result.err)
    end)

    it("there is no process to be had says so, and names the limit", function()
      for _, program in ipairs { helper.plua, helper.lua } do
        local result <const> = refused(1, program, helper.script(ONE:format(MAP)))
        assert.equal(1, result.status)
        assert.equal("", result.out)
        assert.truthy(result.err:find("script.lua:2: .-cannot start worker 1 of 5: Resource " ..
          "temporarily unavailable %(ulimit %-u"), result.err)
        assert.equal(1, count(result.err, "Resource temp"))
      end
    end)

    it("a pool has no room for an item says so, and what to do", function()
      local script <const> = helper.script [[
        local plua, kit = require "plua", require "crashkit"
        local pool <close> = plua.pool { workers = 1 }
        kit.iofail("madvise:12:1:sticky")
        local fine, why = pcall(pool.map, pool, function(s) return #s end, { ("x"):rep(1 << 20) })
        kit.iofail()
        print(fine, why)
        print(pool:apply(math.max, 1, 2))
      ]]
      local result <const> = helper.run(("exec env LD_PRELOAD=%s/preload/iofail.so %s %s"):format(
        helper.build, helper.plua, script))
      assert.matches("^false\t.-no room for what is sent to workers: Cannot allocate memory " ..
        "%(a pool keeps it in memory until it is done%); send less at once.-\n2\n$", result.out)
    end)

    it("processes are few for a while only gets the others later", function()
      local script <const> = helper.script [[
        local plua, kit = require "plua", require "crashkit"
        kit.iofail("fork:11:3")
        local set, n = {}, 0
        for _, pid in ipairs(plua.map(function() kit.csleep(0.02) return kit.pid() end,
          plua.range(1, 400), { workers = 4, chunksize = 1 })) do
          n = n + (set[pid] and 0 or 1)
          set[pid] = true
        end
        print(n)
      ]]
      local result <const> = helper.run(("exec env LD_PRELOAD=%s/preload/iofail.so %s %s"):format(
        helper.build, helper.plua, script))
      assert.equal("4\n", result.out, result.err)
      assert.equal(1, count(result.err, "only %d of 4 workers could be started"), result.err)
    end)
  end

  it("a signal comes every millisecond is no trouble", function()
    for _, program in ipairs { helper.plua, helper.lua } do
      local script <const> = helper.script("require('crashkit').storm(0.001)\n" .. WORK ..
        "for _ = 1, 20 do check(plua.map(square, data, opts)) end\n" ..
        "for _ = 1, 20 do check(pool:map(square, data)) end\n" ..
        "assert(pool:apply(function() kit.csleep(0.3) return 1 end) == 1)\n" ..
        "local f = pool:apply_async(kit.csleep, 0.2) assert(not pcall(f.get, f, 0.05)) f:get()\n" ..
        "require('crashkit').storm(0)")
      is_right(run("exec %s %s 3", program, script))
    end
  end)

  it("the disk is full ends with 1 and a message", function()
    local result <const> = run("exec %s %s >/dev/full", helper.plua, helper.script [[
      return { data = { 1, 2, 3 }, map = function(x) return x end, workers = 2 }
    ]])
    assert.equal(1, result.status)
    local message <const> = "plua: cannot write to standard output: No space left on device\n"
    assert.equal(message, result.err)
    local printed <const> = run("exec %s -e 'print(1)' >/dev/full", helper.plua)
    assert.equal(1, printed.status)
    assert.equal("plua: cannot write to standard output\n", printed.err) -- print keeps the reason
  end)

  it("files may not grow says so", function()
    local result <const> = run("trap '' XFSZ; ulimit -f 8; exec %s %s 2", helper.plua,
      helper.script(WORK))
    assert.truthy(result.status == 0 or result.err:find("File too large (ulimit -f is 8)", 1, true),
      result.err)
    assert.equal(1, count(result.err .. result.out, "File too large") + count(result.out, "right"))
  end)
end)
