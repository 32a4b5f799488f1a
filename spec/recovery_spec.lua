-- What plua keeps when workers die: one outcome for each item (P1), a call that ends (P2), exact
-- blame (P3) and no process left behind (P4). Deaths are real ones.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local numbers <const>, answers <const> = helper.numbers, helper.answers

local N <const>, BAD <const> = 40, 17

-- name of the death -> what an item does, and the kind, signal and status that its error has
local DEATHS <const> = {
  segv = { function() kit.segv() end, "crash", "SIGSEGV" },
  bus = { function() kit.bus() end, "crash", "SIGBUS" },
  fpe = { function() kit.fpe() end, "crash", "SIGFPE" },
  abort = { function() kit.abort() end, "crash", "SIGABRT" },
  cstack = { function() kit.cstack() end, "crash", "SIGSEGV" },
  ["raise(9)"] = { function() kit.raise(9) end, "crash", "SIGKILL" },
  ["exit(0)"] = { function() kit.exit(0) end, "exit", nil, 0 },
  ["exit(3)"] = { function() kit.exit(3) end, "exit", nil, 3 },
  ["_exit(0)"] = { function() kit._exit(0) end, "exit", nil, 0 },
  ["quick_exit(0)"] = { function() kit.quick_exit(0) end, "exit", nil, 0 },
  ["os.exit(0)"] = { function() os.exit(0) end, "exit", nil, 0 },
  ["os.exit(true, true)"] = { function() os.exit(true, true) end, "exit", nil, 0 },
  ["os.exit(false)"] = { function() os.exit(false) end, "exit", nil, 1 },
}

-- A kill may have been anybody's, not the item's: it is tried more often.
local function tries(signal) return signal == "SIGKILL" and 4 or 2 end

local function sorted_names(set)
  local list <const> = {}
  for name in pairs(set) do list[#list + 1] = name end
  table.sort(list)
  return list
end

--- Calls plua.name(...) or pool:name(...).
local function call(on, name, ...)
  if on == plua then return plua[name](...) end
  return on[name](on, ...)
end

-- Each runs f over 1 .. N under "collect" and answers the outcomes by item: the item, or an error.
local FORMS <const> = {
  map = function(on, f, data, opts) return call(on, "map", f, data, opts) end,
  starmap = function(on, f, data, opts)
    local packs <const> = {}
    for i, item in ipairs(data) do packs[i] = { item } end
    return call(on, "starmap", f, packs, opts)
  end,
  imap = function(on, f, data, opts)
    local list <const> = {}
    for i, r in call(on, "imap", f, data, opts) do
      assert(i == #list + 1, "out of order")
      list[i] = r
    end
    return list
  end,
  imap_unordered = function(on, f, data, opts)
    local list <const> = {}
    for i, r in call(on, "imap_unordered", f, data, opts) do
      assert(list[i] == nil, "told twice")
      list[i] = r
    end
    return list
  end,
  each = function(on, f, data, opts)
    local n <const>, errs <const> = call(on, "each", f, data, opts)
    local list <const> = {}
    for i = 1, n do list[i] = errs[i] or data[i] end
    return list
  end,
  filter = function(on, f, data, opts)
    return call(on, "filter", function(item)
      f(item)
      return true
    end, data, opts)
  end,
  mapreduce = function(on, f, data, opts)
    local function join(a, b) return table.move(b, 1, #b, #a + 1, a) end
    local items <const>, errs <const> = call(on, "mapreduce", function(item)
      return { f(item) }
    end, join, data, opts)
    local list <const> = {}
    for _, item in ipairs(items) do list[item] = item end
    for _, err in ipairs(errs or {}) do list[err.index] = err end
    return list
  end,
}

--- The outcomes are right but for the items of `bad`; answers the error of the first of those.
local function check_all(list, bad)
  for i = 1, N do
    if not bad[i] then assert.equal(i, list[i]) end
  end
  for i in pairs(bad) do
    assert(plua.iserror(list[i]), ("item %d: no error but %s"):format(i, tostring(list[i])))
  end
  return list[next(bad)]
end

local function check_error(err, kind, signal, status, attempts)
  assert.same({ kind, signal, status, BAD, attempts },
    { err.kind, err.signal, err.status, err.index, err.attempts }, tostring(err))
  assert(math.type(err.pid) == "integer" and err.pid > 1 and err.pid ~= kit.pid())
  assert(err.worker >= 1)
  assert(not helper.alive(err.pid), "the worker lives")
  local text <const> = tostring(err)
  assert(text:find(("item %d"):format(BAD), 1, true), text)
  assert(text:find(signal or ("status %d"):format(status), 1, true), text)
end

--- A function that counts its runs in a file, and does `deed` at item BAD.
local function counted(path, deed)
  return function(item)
    local file <close> = assert(io.open(path, "a"))
    file:write(item, "\n")
    file:close()
    if item == BAD then deed() end
    return item
  end
end

local function count_runs(path)
  local runs = {}
  for i = 1, N do runs[i] = 0 end
  for line in io.lines(path) do
    local item <const> = math.tointeger(line)
    runs[item] = runs[item] + 1
  end
  return runs
end

describe("an item that takes its worker along", function()
  helper.guard()

  for _, death in ipairs(sorted_names(DEATHS)) do
    local deed <const>, kind <const>, signal <const>, status <const> =
      table.unpack(DEATHS[death], 1, 4)
    it("by " .. death .. " costs itself alone, in every call", function()
      local data <const> = numbers(N)
      local function f(item)
        if item == BAD then deed() end
        return item
      end
      for name, form in pairs(FORMS) do
        local list <const> = form(plua, f, data, { workers = 2, on_error = "collect" })
        check_error(check_all(list, { [BAD] = true }), kind, signal, status, tries(signal))
        assert.is_truthy(name)
      end
      local pool <close> = plua.pool { workers = 2 }
      for _, form in pairs(FORMS) do
        local list <const> = form(pool, f, data, { on_error = "collect" })
        check_error(check_all(list, { [BAD] = true }), kind, signal, status, tries(signal))
      end
      answers(pool)
    end)
  end

  for _, workers in ipairs { 1, 2, 5 } do
    for _, retries in ipairs { 0, 1, 2 } do
      it(("runs %d times with %d workers and its neighbours once"):format(retries + 1, workers),
        function()
          local dir <const> = helper.tmp()
          local opts <const> = { workers = workers, on_error = "collect", retries = retries }
          local in_pool <const> = { on_error = "collect", retries = retries }
          local pool <close> = plua.pool { workers = workers }
          for name, form in pairs(FORMS) do
            for on, options in pairs { [plua] = opts, [pool] = in_pool } do
              local path <const> = ("%s/%s%s"):format(dir, name, on == pool and "-pool" or "")
              local list <const> = form(on, counted(path, kit.abort), numbers(N), options)
              check_error(check_all(list, { [BAD] = true }), "crash", "SIGABRT", nil, retries + 1)
              local expected = {}
              for i = 1, N do expected[i] = i == BAD and retries + 1 or 1 end
              assert.same(expected, count_runs(path), name)
            end
          end
          answers(pool)
        end)
    end
  end

  it("succeeds when its second run does", function()
    local path <const> = helper.tmp() .. "/runs"
    local function f(item)
      local file <close> = assert(io.open(path, "a+"))
      local before <const> = file:read("a")
      file:write(item, "\n")
      file:close()
      if item == BAD and not before:find("\n17\n", 1, true) then kit.raise(9) end
      return item, plua.worker().attempt
    end
    local list <const> = plua.map(f, numbers(N), { workers = 2 })
    for i = 1, N do assert.equal(i, list[i]) end
    assert.equal(2, count_runs(path)[BAD])
  end)

  it("is raised as the one error", function()
    local function f(item)
      if item == BAD then kit.segv() end
      return item
    end
    local pool <close> = plua.pool { workers = 2 }
    for name in pairs(FORMS) do
      for _, on in ipairs { plua, pool } do
        local data = numbers(N)
        if name == "starmap" then
          for i = 1, N do data[i] = { i } end
        end
        local fine <const>, err <const> = pcall(function()
          local opts <const> = on == plua and { workers = 2 } or {}
          if name == "mapreduce" then
            return call(on, name, f, function(x, y) return x + y end, data, opts)
          end
          if not name:find("^imap") then return call(on, name, f, data, opts) end
          for i in call(on, name, f, data, opts) do assert(i ~= BAD) end
        end)
        assert.is_false(fine, name)
        assert(plua.iserror(err), tostring(err))
        check_error(err, "crash", "SIGSEGV", nil, 2)
      end
    end
    answers(pool)
  end)

  it("is given to a function of on_error, whose answer takes its place", function()
    local pool <close> = plua.pool { workers = 2 }
    for name, form in pairs(FORMS) do
      if name ~= "each" and name ~= "filter" and name ~= "mapreduce" then
        for _, on in ipairs { plua, pool } do
          local seen = {}
          local list <const> = form(on, function(item)
            if item == BAD then kit.segv() end
            return item
          end, numbers(N), { workers = on == plua and 2 or nil, on_error = function(err)
            seen[#seen + 1] = err
            return "mended"
          end })
          assert.equal("mended", list[BAD], name)
          assert.equal(1, #seen, name)
          check_error(seen[1], "crash", "SIGSEGV", nil, 2)
          for i = 1, N do assert(i == BAD or list[i] == i) end
        end
      end
    end
  end)

  it("is passed over by find under collect, and raised else", function()
    local function f(item)
      if item == BAD then kit.segv() end
      return item == N and "here"
    end
    local pool <close> = plua.pool { workers = 2 }
    for _, on in ipairs { plua, pool } do
      local index <const>, result <const> =
        call(on, "find", f, numbers(N), { on_error = "collect" })
      assert.same({ N, "here" }, { index, result })
      local fine <const>, err <const> = pcall(call, on, "find", f, numbers(N))
      assert.is_false(fine)
      check_error(err, "crash", "SIGSEGV", nil, 2)
    end
  end)

  it("does not matter to find behind the first hit", function()
    for _ = 1, 20 do
      local index <const> = plua.find(function(item)
        if item == BAD then kit.segv() end
        return item == 3
      end, numbers(N), { workers = 2 })
      assert.equal(3, index)
    end
  end)

  it("fails its apply and its future, and the pool answers", function()
    for _, death in ipairs(sorted_names(DEATHS)) do
      local deed <const>, kind <const>, signal <const>, status <const> =
        table.unpack(DEATHS[death], 1, 4)
      local pool <close> = plua.pool { workers = 2 }
      local before <const> = pool:apply_async(function() return "before" end)
      local future <const> = pool:apply_async(deed)
      local after <const> = pool:apply_async(function() return "after", nil, 3 end)
      local fine <const>, err <const> = pcall(future.get, future)
      assert.is_false(fine)
      assert.same({ kind, signal, status, tries(signal) },
        { err.kind, err.signal, err.status, err.attempts })
      assert.equal("before", before:get())
      assert.same({ "after", nil, 3 }, { after:get() })
      assert.is_false(future:successful())
      local applied <const>, why <const> = pcall(pool.apply, pool, deed)
      assert.is_false(applied)
      assert.equal(kind, why.kind)
      answers(pool)
    end
  end)
end)

describe("an item that kills whoever decodes it", function()
  helper.guard()

  it("costs itself alone, not the caller that tells of it", function()
    local script <const> = helper.script [[
      local plua, kit = require "plua", require "crashkit"
      local Trap = { __plua_save = function() return 1 end, __plua_load = kit.segv }
      plua.register("Trap", Trap)
      local opts = { workers = 2, on_error = "collect" }
      local function items()
        local i = 0
        return function()
          i = i + 1
          return i == 5 and setmetatable({}, Trap) or i <= 10 and i or nil
        end
      end
      local function f(x) return x end
      local function check(i, r)
        assert(i == 5 and r.kind == "crash" and r.signal == "SIGSEGV" or r == i, tostring(r))
      end
      for i, r in plua.imap(f, items(), opts) do check(i, r) end
      local pool <close> = plua.pool(opts)
      for i, r in pool:imap(f, items()) do check(i, r) end
      for i, r in ipairs(pool:map(f, items())) do check(i, r) end
      check(5, select(2, pcall(pool.apply, pool, f, setmetatable({}, Trap))))
      assert(pool:apply(f, 7) == 7)
      print "right"
    ]]
    local result <const> = helper.run(helper.plua .. " " .. script)
    assert.same({ "right\n", 0 }, { result.out, result.status }, result.err)
  end)
end)

describe("every signal that ends a process", function()
  helper.guard()

  local SIGNALS <const> = {
    SIGHUP = 1, SIGQUIT = 3, SIGILL = 4, SIGTRAP = 5, SIGABRT = 6, SIGBUS = 7, SIGFPE = 8,
    SIGKILL = 9, SIGUSR1 = 10, SIGSEGV = 11, SIGUSR2 = 12, SIGPIPE = 13, SIGALRM = 14, SIGTERM = 15,
    SIGSTKFLT = 16, SIGXCPU = 24, SIGXFSZ = 25, SIGVTALRM = 26, SIGPROF = 27, SIGPWR = 30,
    SIGSYS = 31,
  }

  it("is named in the error of the item that it hit", function()
    for name, number in pairs(SIGNALS) do
      local list <const> = plua.map(function(item)
        if item == BAD then kit.raise(number) end
        return item
      end, numbers(N), { workers = 2, on_error = "collect", retries = 0 })
      check_error(check_all(list, { [BAD] = true }), "crash", name, nil, 1)
    end
  end)

  it("is named in a pool too", function()
    local pool <close> = plua.pool { workers = 2, retries = 0 }
    for name, number in pairs(SIGNALS) do
      local list <const> = pool:map(function(item)
        if item == BAD then kit.raise(number) end
        return item
      end, numbers(N), { on_error = "collect" })
      check_error(check_all(list, { [BAD] = true }), "crash", name, nil, 1)
    end
    assert.equal(0, pool:stats().retried)
    answers(pool)
  end)

  it("has no effect where it ends none", function()
    for _, number in ipairs { 2, 17, 18, 23, 28 } do -- INT CHLD CONT URG WINCH
      local list <const> = plua.map(function(item)
        kit.raise(number)
        return item
      end, numbers(N), { workers = 2 })
      for i = 1, N do assert.equal(i, list[i]) end
    end
  end)
end)

describe("when every item takes its worker along", function()
  helper.guard()

  for _, workers in ipairs { 1, 2, 5 } do
    it(("a map over %d workers has an error for each"):format(workers), function()
      local list <const> = plua.map(function() kit.raise(9) end, plua.range(1, 200),
        { workers = workers, on_error = "collect", retries = 0 })
      for i = 1, 200 do
        assert.same({ "crash", "SIGKILL", i, 1 },
          { list[i].kind, list[i].signal, list[i].index, list[i].attempts })
      end
    end)
  end

  it("a thousand errors come from a pool, which answers afterwards", function()
    local pool <close> = plua.pool { workers = 2, retries = 0 }
    local list <const> = pool:map(kit.segv, numbers(1000), { on_error = "collect" })
    for i = 1, 1000 do assert.same({ "crash", i }, { list[i].kind, list[i].index }) end
    assert.equal(1000, pool:stats().crashed)
    answers(pool)
  end)

  it("imap and imap_unordered tell each", function()
    for _, name in ipairs { "imap", "imap_unordered" } do
      local list <const> = FORMS[name](plua, function() kit.abort() end, numbers(N),
        { workers = 2, on_error = "collect" })
      for i = 1, N do assert.same({ "crash", 2 }, { list[i].kind, list[i].attempts }) end
    end
  end)

  it("two in three of them leave the third right", function()
    local list <const> = plua.map(function(item)
      if item % 3 ~= 0 then kit.segv() end
      return item
    end, plua.range(1, 300), { workers = 3, on_error = "collect", retries = 0 })
    for i = 1, 300 do
      if i % 3 == 0 then assert.equal(i, list[i]) else assert.equal("crash", list[i].kind) end
    end
  end)
end)

-- Kills a random child of a process, at random moments, until the process is gone.
local KILLER <const> = [[
local kit = require "crashkit"
local parent, seed, pause = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[3])
math.randomseed(seed)
local kills = 0
local function alive()
  local file = io.open("/proc/" .. parent .. "/stat")
  local text = file and file:read("a") -- nil once it is gone, though it could be opened
  if file then file:close() end
  local state = text and text:match("%) (%a)")
  return state and state ~= "Z"
end
while alive() do
  local pids = kit.children(parent)
  if #pids > 0 and kit.kill(pids[math.random(#pids)], 9) then kills = kills + 1 end
  kit.csleep(math.random() * pause)
end
io.stderr:write("kills ", kills, "\n")
]]

local function under_fire(text, seed, pause)
  local script <const>, killer <const> = helper.script(text), helper.script(KILLER, "killer.lua")
  local result <const> = helper.run(("%s %s %d & %s %s $! %d %s; wait $!"):format(
    helper.plua, script, seed, helper.lua, killer, seed, helper.slow and 5 * pause or pause),
    { timeout = helper.slow and 120 or 40 })
  local said <const> = ("seed %d, status %d\n%s%s"):format(seed, result.status, result.out,
    result.err)
  assert.equal(0, result.status, said)
  local kills <const> = tonumber(result.err:match("kills (%d+)"))
  assert(kills and kills >= 5, said)
  return result, said
end

describe("workers that are killed from outside at random moments", function()
  helper.guard()
  local seed <const> = os.time() % 1000000
  io.stderr:write(("recovery_spec: seed %d\n"):format(seed))

  it("change nothing in a hundred maps", function()
    local result <const>, said <const> = under_fire([[
      local plua = require "plua"
      local function work(i)
        local x = i
        for _ = 1, 2000 do x = (x * 1103515245 + 12345) & 0x7fffffff end
        return x
      end
      local data, expected = {}, {}
      for i = 1, 300 do data[i] = i; expected[i] = work(i) end
      for round = 1, 100 do
        local r = plua.map(work, data, { workers = 2, retries = 1000 })
        assert(r.n == 300)
        for i = 1, 300 do assert(r[i] == expected[i], "round " .. round .. " item " .. i) end
      end
      print("done")
    ]], seed, 0.006)
    assert.equal("done\n", result.out, said)
  end)

  it("change nothing in calls of a pool, with payloads and large results", function()
    local result <const>, said <const> = under_fire([[
      local plua = require "plua"
      local pool = plua.pool { workers = 3, retries = 1000 }
      local data = {}
      for i = 1, 100 do data[i] = { i, ("x"):rep(i * 50) } end
      for round = 1, 60 do
        local r = pool:map(function(t) return t[2] .. t[2]:rep(t[1] % 7) end, data)
        for i = 1, 100 do assert(r[i] == ("x"):rep(i * 50 * (1 + i % 7)), round .. " " .. i) end
        local n = 0
        for i, v in pool:imap(function(t) return t[1] end, data) do
          n = n + 1
          assert(i == n and v == n)
        end
        assert(n == 100)
        local sum = pool:mapreduce(function(t) return t[1] end, function(a, b) return a + b end,
          data)
        assert(sum == 5050)
      end
      pool:close()
      assert(pool:join(20))
      print("done")
    ]], seed + 1, 0.006)
    assert.equal("done\n", result.out, said)
  end)

  it("cost at most the items that ran, under retries = 0", function()
    local result <const>, said <const> = under_fire([[
      local plua = require "plua"
      local lost, told = 0, 0
      for round = 1, 100 do
        local r = plua.map(function(i)
          local x = i
          for _ = 1, 1000 do x = (x * 1103515245 + 12345) & 0x7fffffff end
          return i
        end, plua.range(1, 300), { workers = 2, retries = 0, on_error = "collect" })
        for i = 1, 300 do
          if plua.iserror(r[i]) then
            lost = lost + 1
            local e = r[i]
            assert(e.kind == "crash" and e.signal == "SIGKILL" and e.index == i, tostring(e))
          else
            assert(r[i] == i)
          end
        end
      end
      print("lost " .. lost)
    ]], seed + 2, 0.006)
    local lost <const> = tonumber(result.out:match("lost (%d+)"))
    assert(lost <= tonumber(result.err:match("kills (%d+)")), said)
  end)

  it("change nothing in imap over an iterator", function()
    local result <const>, said <const> = under_fire([[
      local plua = require "plua"
      for round = 1, 20 do
        local i, n = 0, 0
        local function items() i = i + 1; return i <= 1000 and i or nil end
        for index, v in plua.imap(function(x)
          local y = x
          for _ = 1, 500 do y = (y * 1103515245 + 12345) & 0x7fffffff end
          return x * 2
        end, items, { workers = 2, retries = 1000 }) do
          n = n + 1
          assert(index == n and v == 2 * n)
        end
        assert(n == 1000)
      end
      print("done")
    ]], seed + 3, 0.006)
    assert.equal("done\n", result.out, said)
  end)
end)

describe("workers that die while the script does something else", function()
  helper.guard()

  -- A pool whose workers have all been killed, unseen by it.
  local function killed_pool()
    local pool <const> = plua.pool { workers = 2, retries = 0 }
    answers(pool)
    for _, pid in ipairs(helper.children()) do
      kit.kill(pid, 9)
      assert(helper.wait(function() return not helper.alive(pid) end))
    end
    return pool
  end

  for name, submit in pairs {
    apply_async = function(pool, f) return pool:apply_async(f, 1) end,
    map_async = function(pool, f) return pool:map_async(f, { 1 }) end,
  } do
    it("are replaced when " .. name .. " is called: what it submits proceeds", function()
      local pool <close> = killed_pool()
      local path <const> = helper.tmp() .. "/ran"
      local function deed()
        io.open(path, "w"):close()
        return "done"
      end
      local future
      assert(helper.wait(function() -- a call right after another need not look
        future = submit(pool, deed)
        return helper.read(path)
      end), "nobody runs it")
      local result <const> = future:get()
      assert.equal("done", name == "map_async" and result[1] or result)
    end)
  end

  it("are noticed by ready()", function()
    local pool <close> = plua.pool { workers = 1, retries = 0 }
    local future <const> = pool:apply_async(function() kit.raise(9) end)
    assert(helper.wait(function() return future:ready() end), "it is never ready")
    assert.is_false(future:successful())
  end)
end)
