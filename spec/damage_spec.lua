-- What plua bears from items and from init: closed descriptors, scribbled memory, forks, a start
-- that fails; and what stays the parent's own though workers inherit it.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local numbers <const>, answers <const> = helper.numbers, helper.answers

local N <const>, BAD <const> = 40, 17

describe("an item that does damage and goes on", function()
  helper.guard()

  it("may close all descriptors", function()
    for from = 0, 4 do
      local list = plua.map(function(i)
        if i % 10 == 5 then kit.closeall(from) end
        return i
      end, numbers(N), { workers = 2 })
      for i = 1, N do assert.equal(i, list[i]) end
      local pool <close> = plua.pool { workers = 2 }
      list = pool:map(function(i)
        if i % 10 == 5 then kit.closeall(from) end
        return i
      end, numbers(N))
      for i = 1, N do assert.equal(i, list[i]) end
      answers(pool)
    end
  end)

  it("may close all descriptors, and have a result larger than the ring", function()
    local function f(i)
      if i % 10 == 5 then kit.closeall(3) end
      return (tostring(i % 10)):rep(1 << 20)
    end
    local function check(list)
      for i = 1, N do assert(list[i] == (tostring(i % 10)):rep(1 << 20), i) end
    end
    check(plua.map(f, numbers(N), { workers = 2 }))
    local pool <close> = plua.pool { workers = 2 }
    check(pool:map(f, numbers(N)))
    answers(pool)
  end)

  it("may write garbage to all descriptors", function()
    local script <const> = helper.script [[
      local plua, kit = require "plua", require "crashkit"
      local data = {}
      for i = 1, 40 do data[i] = i end
      local function f(i) if i % 10 == 5 then kit.garbage(3, 1023, 65536) end return i end
      local function check(r) for i = 1, 40 do assert(r[i] == i, i) end end
      check(plua.map(f, data, { workers = 2 }))
      local pool <close> = plua.pool { workers = 2 }
      check(pool:map(f, data))
      check(pool:map(function(i) return i end, data))
      print("done")
    ]]
    local result <const> = helper.run(helper.plua .. " " .. script, { timeout = 20 })
    assert.same({ "done\n", "", 0 }, { result.out, result.err, result.status })
  end)

  it("may overwrite all shared memory that it can reach", function()
    for _, byte in ipairs { 0xff, 0, 0x7f } do
      for _, retries in ipairs { 0, 1 } do
        local path <const> = helper.tmp() .. "/runs"
        local result <const> = helper.run(("%s %s %d %d %s"):format(helper.plua, helper.script [[
          local plua, kit = require "plua", require "crashkit"
          local byte, retries, path = math.tointeger(arg[1]), math.tointeger(arg[2]), arg[3]
          local data = {}
          for i = 1, 40 do data[i] = i end
          local function f(i)
            local file <close> = io.open(path, "a")
            file:write(i, " ", kit.pid(), "\n")
            file:flush()
            if i == 17 then kit.scribble(byte) end
            return i
          end
          -- What the guilty workers had published lay in the memory that they overwrote.
          local function check(r)
            local guilty, spoilt = {}, {}
            for i, pid in io.open(path):read("a"):gmatch("(%d+) (%d+)") do
              if i == "17" then guilty[pid] = true end
            end
            for i, pid in io.open(path):read("a"):gmatch("(%d+) (%d+)") do
              if guilty[pid] then spoilt[tonumber(i)] = true end
            end
            os.remove(path)
            assert(r.n == 40 and spoilt[17])
            for i = 1, 40 do
              assert(spoilt[i] and r[i] ~= nil or r[i] == i, i .. ": " .. tostring(r[i]))
              assert(not plua.iserror(r[i]) or r[i].index == i)
            end
          end
          for _ = 1, 10 do
            check(plua.map(f, data, { workers = 3, on_error = "collect", retries = retries }))
          end
          local pool <close> = plua.pool { workers = 3, retries = retries }
          for _ = 1, 5 do check(pool:map(f, data, { on_error = "collect" })) end
          local r = pool:map(function(i) return -i end, data)
          for i = 1, 40 do assert(r[i] == -i) end
          print("done")
        ]], byte, retries, path), { timeout = 20 })
        assert.same({ "done\n", 0 }, { result.out, result.status },
          ("byte %d, retries %d: %s"):format(byte, retries, result.err))
      end
    end
  end)

  it("may say by its word that it runs another item, or none", function()
    local script <const> = helper.script [[
      local plua, kit = require "plua", require "crashkit"
      local word = math.tointeger(tonumber(arg[1]))
      local function f(i)
        if i % 30 == 10 and plua.worker().attempt == 1 then kit.spoil(word) end
        return -i
      end
      for workers = 1, 3 do
        local opts = { workers = workers, on_error = "collect", chunksize = 30 }
        local pool <close> = plua.pool(opts)
        for _, r in ipairs { plua.map(f, plua.range(1, 60), opts),
          pool:map(f, plua.range(1, 60)) } do
          for i = 1, 60 do
            if plua.iserror(r[i]) then assert(r[i].kind == "crash", tostring(r[i]))
            else assert(r[i] == -i, i) end
          end
        end
        for i = 1, 9 do assert(pool:apply(math.abs, -i) == i) end
      end
      print("done")
    ]]
    -- seq:32 next:16 end:16; none of a batch left, a few, more than there are, no such batch; held
    for _, word in ipairs { 0, 0x1001e001e, 0x10005001e, 0x1000bffff, 0x70000000b001e, -1 } do
      local result <const> = helper.run(("%s %s %d"):format(helper.plua, script, word),
        { timeout = 20 })
      assert.same({ "done\n", "", 0 }, { result.out, result.err, result.status },
        ("word %x"):format(word))
    end
  end)

  -- Ten messages of 16 bytes, and one that says that this is all: the first comes to hold them all.
  it("may overwrite what it has said: what is missed is run again", function()
    local path <const> = helper.tmp() .. "/last"
    local pool <close> = plua.pool { workers = 1 }
    local later <const> = pool:map_async(function(i)
      if i == 10 and plua.worker().attempt == 1 and not helper.read(path) then
        -- 7 bytes long are 10 * 16 + 16 - 6
        helper.write(path, tostring(kit.retouch("needle", 0, 7 ~ 10 * 16 + 16 - 6)))
      end
      return i == 1 and "needle" or ("item%02d"):format(i)
    end, plua.range(1, 10), { chunksize = 10, on_error = "collect" })
    assert(helper.wait(function() return helper.read(path) end), "the last item does not run")
    assert(helper.wait(function()
      for _, pid in ipairs(helper.children()) do
        local stat <const> = helper.read("/proc/" .. pid .. "/stat") or ""
        if not stat:find "%) S" then return false end
      end
      return true
    end))
    assert.equal("1", helper.read(path))
    local start <const> = kit.now()
    local r <const> = later:get(10)
    for i = 2, 10 do assert.equal(("item%02d"):format(i), r[i]) end
    assert(kit.now() - start < 5, "it took too long")
  end)

  -- Two batches, of three and two, lie there unread. Each message takes 16 bytes: what begins the
  -- first, items 1, 2 and 3, which may be of another kind, what ends the batch, and what begins the
  -- next. By 5f a length of 6 comes to hold all that follows.
  for name, third in pairs {
    ["a value"] = "return 'item3'",
    ["a value that lies elsewhere"] = "return ('item3'):rep(100000)",
    ["an error"] = "error('item3', 0)",
  } do
    it("may change any byte of what it has said, also of " .. name, function()
      local result <const> = helper.run(helper.plua .. " " .. helper.script(([[
        local plua, kit = require "plua", require "crashkit"
        local dir = arg[1] .. "/"
        local function third() %s end
        local pool <close> = plua.pool { workers = 1 }
        local round = 0
        local function check(at, change)
          round = round + 1
          local note, needle = dir .. round, ("n%%05d"):format(round)
          local later = pool:map_async(function(i)
            if i == 5 and not io.open(note) then
              while not io.open(note .. ".go") do kit.csleep(0.0005) end
              local n = kit.retouch(needle, at, change)
              local file <close> = io.open(note, "w")
              file:write(n, "\n")
            end
            if i == 3 then return third() end
            return i == 2 and needle or "item" .. i
          end, plua.range(1, 5), { chunksize = 3, on_error = "collect" })
          io.open(note .. ".go", "w"):close() -- from here on nobody looks at the messages
          local ends, said = kit.now() + 10
          repeat -- until the item was run, and its worker rests
            local file <close> = io.open(note)
            said = file and file:read()
            for _, pid in ipairs(kit.children()) do
              local stat <close> = io.open("/proc/" .. pid .. "/stat")
              if not stat:read("a"):find "%%) S" then said = nil end
            end
          until said or kit.now() > ends
          assert(said == "1", said)
          local start = kit.now()
          local r = later:get(10)
          assert(kit.now() - start < 5, "it took too long")
          assert(r.n == 5)
          for i = 1, 5 do
            assert(r[i] ~= nil, i)
            local near = i <= 3
            if plua.iserror(r[i]) then assert(near and r[i].index == i, tostring(r[i])) end
            assert(near or r[i] == "item" .. i, i)
          end
          assert(pool:apply(math.abs, -7) == 7)
        end
        for _, change in ipairs { 0x01, 0x5f, 0x80, 0xff } do
          for at = -32, 63 do
            local fine, err = pcall(check, at, change)
            if not fine then error(("byte %%d, change %%x: %%s"):format(at, change, err), 0) end
          end
        end
        print "right"]]):format(third)) .. " " .. helper.tmp(), { timeout = 60 })
      assert.same({ "right\n", "", 0 }, { result.out, result.err, result.status })
    end)
  end

  it("may fork, both copies going on", function()
    local script <const> = helper.script [[
      local plua, kit = require "plua", require "crashkit"
      local data = {}
      for i = 1, 20 do data[i] = i end
      local function f(i) kit.fork() return i end
      local function check(r) assert(r.n == 20) for i = 1, 20 do assert(r[i] == i, i) end end
      for _ = 1, 5 do check(plua.map(f, data, { workers = 2 })) end
      local n = 0
      for i, r in plua.imap_unordered(f, data, { workers = 2 }) do
        assert(i == r)
        n = n + 1
      end
      assert(n == 20)
      local pool <close> = plua.pool { workers = 2 }
      check(pool:map(f, data))
      assert(pool:apply(function() kit.fork() return 7 end) == 7)
      check(pool:map(function(i) return i end, data))
      print("done")
    ]]
    local result <const> = helper.run(helper.plua .. " " .. script, { timeout = 20 })
    assert.same({ "done\n", "", 0 }, { result.out, result.err, result.status })
  end)

  -- The copy returns when its original's result lies in the ring, and the owner looks at it later.
  it("may fork: what the copy returns never gets into what its original has said", function()
    for _, size in ipairs { 5, 100, 5000, 2000000 } do -- in a known place, and where more is needed
      local path <const> = helper.tmp() .. "/"
      local pool <close> = plua.pool { workers = 1 }
      local function there(name)
        local file <close> = io.open(path .. name)
        return file ~= nil
      end
      local function until_there(name)
        local ends <const> = kit.now() + 10
        repeat kit.csleep(0.001) until there(name) or kit.now() > ends
        assert(there(name), name .. " does not come")
      end
      local forks <const> = pool:apply_async(function()
        local copy <const> = kit.fork() == 0
        if copy then until_there("said") end
        return (copy and "wrong" or "right"):rep(size // 5)
      end)
      local waits <const> = pool:apply_async(function()
        helper.write(path .. "said", "")
        local copies <const> = kit.waitall()
        helper.write(path .. "ended", "")
        return #copies, copies[1][2]
      end)
      until_there("ended")
      local copies <const>, status <const> = waits:get()
      assert.same({ 1, 0 }, { copies, status })
      assert.equal(("right"):rep(size // 5), forks:get())
    end
  end)

  it("may fork in init and finish too: the copies run nothing and say nothing", function()
    local path <const> = helper.tmp() .. "/runs"
    for _ = 1, 10 do
      helper.write(path, "")
      local list <const> = plua.map(function(i)
        local file <close> = assert(io.open(path, "a"))
        file:write("x")
        return i
      end, numbers(N), { workers = 2, init = kit.fork, finish = kit.fork })
      for i = 1, N do assert.equal(i, list[i]) end
      assert.equal(N, #helper.read(path))
    end
  end)

  it("may leave a child behind, which delays nothing", function()
    for _, away in ipairs { false, true } do
      local start <const> = kit.now()
      local list <const> = plua.map(function(i)
        return i % 10 == 5 and kit.forkleak(30, away) or i
      end, numbers(N), { workers = 2 })
      for i = 1, N do
        if i % 10 == 5 then
          assert(helper.alive(list[i]))
          kit.kill(list[i], 9)
        else
          assert.equal(i, list[i])
        end
      end
      local pool <close> = plua.pool { workers = 2 }
      local pid <const> = pool:apply(kit.forkleak, 30, away)
      pool:close()
      assert(pool:join(5))
      kit.kill(pid, 9)
      assert(kit.now() - start < 5)
    end
  end)

  it("may start a thread, or take all signals away", function()
    local list <const> = plua.map(function(i)
      if i == BAD then kit.thread() end
      if i == BAD + 1 then kit.blocksigs() end
      if i == BAD + 2 then kit.ignsigs() end
      return i
    end, numbers(N), { workers = 2 })
    for i = 1, N do assert.equal(i, list[i]) end
  end)

  it("may be stopped and continued, uncharged", function()
    local list <const> = plua.map(function(i)
      if i == BAD then
        os.execute(([[(until grep -q '^State:.T' /proc/%d/status; do :; done; kill -CONT %d) &]])
          :format(kit.pid(), kit.pid()))
        kit.raise(19)
      end
      return { i, plua.worker().attempt }
    end, numbers(N), { workers = 2 })
    for i = 1, N do assert.same({ i, 1 }, list[i]) end
  end)
end)

describe("a worker that cannot start", function()
  helper.guard()

  local function fails(open, kind)
    local fine <const>, err <const> = pcall(open)
    assert.is_false(fine)
    assert(plua.iserror(err), tostring(err))
    assert.equal(kind or "init", err.kind)
    return tostring(err)
  end

  local function starts(init)
    return function() plua.map(tostring, numbers(N), { workers = 2, init = init }) end,
      function()
        local pool <close> = plua.pool { workers = 2, init = init }
        pool:map(function(x) return x end, numbers(N))
      end,
      function()
        local pool <close> = plua.pool { workers = 2, init = init }
        pool:apply(function() return 1 end)
      end,
      function()
        for _ in plua.imap(tostring, numbers(N), { workers = 2, init = init }) do kit.pid() end
      end
  end

  it("because init raises, says so with init's own message", function()
    for _, open in ipairs { starts(function() error("no licence") end) } do
      local text <const> = fails(open)
      local _, times <const> = text:gsub("no licence", "")
      assert.equal(1, times, text)
      assert(text:find("damage_spec.lua:%d+:"), text)
    end
  end)

  it("because init dies, says how, after a few tries", function()
    for death, what in pairs { SIGSEGV = kit.segv, SIGKILL = function() kit.raise(9) end } do
      for _, open in ipairs { starts(what) } do
        local text <const> = fails(open)
        assert(text:find(death, 1, true), text)
      end
    end
  end)

  it("because init exits, says with which status", function()
    for _, exit in ipairs { function() os.exit(3) end, function() kit._exit(3) end } do
      for _, open in ipairs { starts(exit) } do
        local text <const> = fails(open)
        assert(text:find("status 3", 1, true), text)
      end
    end
  end)

  it("ends the command with one message and a status that is not 0", function()
    for _, init in ipairs { [[error "no licence"]], [[require "crashkit".segv()]] } do
      local script <const> = helper.script(([[
        local plua = require "plua"
        plua.map(tostring, {1, 2, 3}, { workers = 2, init = function() %s end })
      ]]):format(init))
      local result <const> = helper.run(helper.plua .. " " .. script, { timeout = 10 })
      assert(result.status == 1 or result.status == 2, result.status)
      local _, times <const> = result.err:gsub("init:", "")
      assert.equal(1, times, result.err)
    end
  end)

  it("does not matter where init fails in a replacement only once", function()
    local path <const> = helper.tmp() .. "/starts"
    local list <const> = plua.map(function(i)
      if i == BAD then kit.segv() end
      return i
    end, numbers(N), { workers = 2, on_error = "collect", retries = 0, init = function()
      local file <close> = assert(io.open(path, "a+"))
      local before <const> = #file:read("a")
      file:write("x")
      file:close()
      if before == 2 then kit.raise(9) end
    end })
    for i = 1, N do assert(i == BAD or list[i] == i) end
    assert.same({ "crash", "SIGSEGV" }, { list[BAD].kind, list[BAD].signal })
  end)
end)

describe("what the parent holds at the fork", function()
  helper.guard()

  it("stdin is its own: workers find theirs empty", function()
    local script <const> = helper.script [[
      local plua = require "plua"
      local first = io.read("L")
      local seen = plua.map(function(i)
        if i == 3 and plua.worker().attempt == 1 then require "crashkit".exit(0) end
        return io.read("a") or "nil"
      end, { 1, 2, 3, 4, 5, 6 }, { workers = 2 })
      for i = 1, 6 do assert(seen[i] == "", seen[i]) end
      io.write(first, io.read("a"))
    ]]
    local lines <const> = "one\ntwo\nthree\nfour\nfive\n"
    local result <const> = helper.run(helper.plua .. " " .. script, { stdin = lines })
    assert.same({ lines, "", 0 }, { result.out, result.err, result.status })
  end)

  it("the offset of stdin stays where it was", function()
    local script <const> = helper.script [[
      require "plua".map(function() return io.read("L") end, { 1, 2, 3, 4 }, { workers = 2 })
    ]]
    local lines <const> = "one\ntwo\nthree\nfour\nfive\n"
    local result <const> = helper.run(("{ %s %s; cat; }"):format(helper.plua, script),
      { stdin = lines })
    assert.same({ lines, "" }, { result.out, result.err })
  end)

  for _, name in ipairs { "exit", "_exit", "quick_exit", "abort", "segv" } do
    it("what stdio holds is written once, though items end by " .. name, function()
      local dir <const> = helper.tmp()
      local script <const> = helper.script(([[
        local plua, kit = require "plua", require "crashkit"
        local path = %q
        kit.atexit(path .. "/exits")
        io.stdout:setvbuf("full")
        io.write("once\n")
        local file = io.open(path .. "/file", "w")
        file:setvbuf("full")
        file:write("once\n")
        plua.map(function(i)
          file:flush()
          io.flush()
          if i == 2 then kit.%s() end
        end, { 1, 2, 3 }, { workers = 2, on_error = "collect" })
        local pool <close> = plua.pool { workers = 2 }
        pool:map(function(i) if i == 2 then kit.%s() end end, { 1, 2, 3 }, { on_error = "collect" })
        io.write("end\n")
        file:write("end\n")
      ]]):format(dir, name, name))
      for _, program in ipairs { helper.plua, helper.lua } do
        local result <const> = helper.run(program .. " " .. script)
        assert.same({ "once\nend\n", 0 }, { result.out, result.status }, result.err)
        assert.equal("once\nend\n", helper.read(dir .. "/file"))
        assert.equal("ATEXIT-RAN\n", helper.read(dir .. "/exits"))
        os.remove(dir .. "/exits")
      end
    end)
  end

  it("what items print is all there, also of workers that die later", function()
    local script <const> = helper.script [[
      local plua, kit = require "plua", require "crashkit"
      io.stdout:setvbuf("full")
      plua.map(function(i)
        io.write("item ", i, "\n")
        if i > 5 and plua.worker().attempt == 1 then os.exit(0) end
      end, plua.range(1, 10), { workers = 2 })
    ]]
    local result <const> = helper.run(helper.plua .. " " .. script)
    assert.equal(0, result.status, result.err)
    for i = 1, 10 do
      local _, times <const> = result.out:gsub("item " .. i .. "\n", "")
      assert.equal(i > 5 and 2 or 1, times, result.out)
    end
  end)

  it("objects are finalised once, by their owner", function()
    local dir <const> = helper.tmp()
    local script <const> = helper.script(([[
      local plua, kit = require "plua", require "crashkit"
      local path, me = %q, kit.pid()
      local function watched(name)
        return setmetatable({}, { __gc = function()
          local file = io.open(path .. "/" .. name, "a")
          file:write(kit.pid() == me and "owner\n" or "other\n")
          file:close()
        end })
      end
      collectgarbage("stop")
      do local dead = watched("garbage") end -- luacheck: ignore
      live = watched("live")
      plua.map(function(i)
        collectgarbage()
        if i %% 10 == 5 then os.exit(0) end
        if i %% 10 == 6 then kit.exit(0) end
        return i
      end, plua.range(1, 40), { workers = 2, on_error = "collect" })
      do
        local pool <close> = plua.pool { workers = 2 }
        pool:map(function() collectgarbage() end, plua.range(1, 10))
      end
    ]]):format(dir))
    for _, program in ipairs { helper.plua, helper.lua } do
      local result <const> = helper.run(program .. " " .. script)
      assert.same({ "", 0 }, { result.err, result.status })
      assert.equal("owner\n", helper.read(dir .. "/garbage"))
      assert.equal("owner\n", helper.read(dir .. "/live"))
      os.remove(dir .. "/garbage")
      os.remove(dir .. "/live")
    end
  end)
end)
