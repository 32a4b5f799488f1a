-- The fault matrix: every fault at every stage of an item, with few and many workers, in each kind
-- of call. After each: the others' results are right, each index has one outcome, the one that was
-- hit is told exactly, nothing ran more often than it may, the same pool answers again, and nothing
-- is left. Stages inside of plua need failpoints, faults that wait for a timeout need a short
-- grace: make check-fail runs those, and the others with 1 and 13 workers; make test runs
-- the others with 2 and 5. SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"

local N <const>, BAD <const> = 16, 5
local TIMEOUT <const> = 0.15
local SIGSTOP <const> = 19

-- ---- faults -----------------------------------------------------------------------------------

local function died(signal) return { kind = "crash", signal = signal } end
local function exited(status) return { kind = "exit", status = status } end
local FINE <const> = {}      -- the item's result is right
local SPOILT <const> = {}    -- anything, and so are all results that its worker had published
local LATE <const> = { kind = "timeout" }

local odd <const> = setmetatable({}, { __tostring = function() error "no" end })
odd.self = odd

-- What it is called; what is done; what becomes of the item, and in a failpoint the action.
local FAULTS <const> = {
  { "SIGSEGV", kit.segv, died "SIGSEGV", action = "segv", number = 11 },
  { "SIGBUS", kit.bus, died "SIGBUS", action = "bus", number = 7 },
  { "SIGFPE", kit.fpe, died "SIGFPE", action = "fpe", number = 8 },
  { "abort", kit.abort, died "SIGABRT", action = "abort", number = 6 },
  { "SIGKILL", function() kit.raise(9) end, died "SIGKILL", action = "kill", number = 9 },
  { "SIGTERM", function() kit.raise(15) end, died "SIGTERM", action = "term", number = 15 },
  { "exit(0)", function() kit.exit(0) end, exited(0), action = "exit0" },
  { "exit(1)", function() kit.exit(1) end, exited(1), action = "exit1" },
  { "_exit(0)", function() kit._exit(0) end, exited(0) },
  { "os.exit()", function() os.exit() end, exited(0) },
  { "an error", function() error "as told" end, { kind = "error" } },
  { "an odd error", function() error(odd) end, { kind = "error" } },
  { "an error nil", function() error() end, { kind = "error" } },
  { "a string beyond memory", function() return ("x"):rep(1 << 50) end, { kind = "error" } },
  { "an endless loop", function() while true do end end, LATE, waits = true },
  { "SIGSTOP", function() kit.raise(SIGSTOP) end, LATE, waits = true, action = "stop",
    number = SIGSTOP },
  { "a loop deaf to signals", function()
    kit.blocksigs()
    while true do end
  end, LATE, waits = true },
  { "all descriptors closed", function() kit.closeall(0) end, FINE },
  { "a fork that returns twice", function() kit.fork() end, FINE },
  { "shared memory overwritten", function() kit.scribble(0xff) end, SPOILT },
}

-- ---- stages -----------------------------------------------------------------------------------

-- What workers have already, as a module, so that it is not sent: the deeds, by number, and
-- objects that do one on their way, while they are written or read.
local kept <const> = { deeds = {}, Trap = {} }
package.loaded["spec.matrix_kept"] = kept
for number, fault in ipairs(FAULTS) do kept.deeds[number] = fault[2] end

function kept.Trap.__plua_save(trap)
  if trap.saves then kept.deeds[trap.fault]() end
  return { trap.fault, trap.item, trap.loads }
end
function kept.Trap.__plua_load(saved)
  if saved[3] then kept.deeds[saved[1]]() end
  return setmetatable({ item = saved[2] }, kept.Trap)
end
plua.register("matrix.Trap", kept.Trap)

function kept.value_of(r) return getmetatable(r) == kept.Trap and r.item or r end

local function refused(fault)
  return fault[3].kind == "error" and { kind = "encode" } or fault[3]
end

local function same(i) return i end

local function published(point, becomes)
  return function(_, fault)
    if not fault.action then return end
    local fail <const> = ("w.publish.%s:1:%s"):format(point, fault.action)
    return { becomes = becomes or fault[3], f = function(i)
      if i == BAD then kit.setenv("PLUA_FAIL", fail) end
      return i
    end }
  end
end

--- Each worker runs an item: it ends when there are as many of them. So all have started.
local function all_run(pool)
  local path <const>, n <const> = helper.tmp() .. "/here.", pool:stats().workers
  pool:map(function(i)
    io.open(path .. i, "w"):close()
    local give_up <const> = os.time() + 30
    for k = 1, n do
      local file
      repeat file = io.open(path .. k) until file or os.time() > give_up
      file:close()
    end
  end, plua.range(1, n), { chunksize = 1 })
end

-- Words for it; then what makes of a fault: the function f, the item that stands in the place of
-- BAD (nil: BAD itself), what becomes of it, init, and what is done to a pool before the call;
-- nothing where fault and stage do not go together.
local STAGES <const> = {
  { "in the first worker that starts", function(number, fault)
    if fault[3].kind == "error" or fault.waits or fault[3] == SPOILT then return end
    return { f = same, becomes = FINE, init = function(path)
      helper.write(path .. ".token", "")
      return function()
        if os.rename(path .. ".token", path .. ".taken") then kept.deeds[number]() end
      end
    end }
  end },
  { "while the item is decoded", function(number, fault)
    if fault[3] == SPOILT then return end -- who did it leaves no line
    return { becomes = refused(fault), item = { fault = number },
      f = function(i) return kept.value_of(i) end }
  end, without = { map = true } },
  { "while the item runs", function(number, fault)
    return { becomes = fault[3], f = function(i)
      if i == BAD then kept.deeds[number]() end
      return i
    end }
  end },
  { "in a finalizer", function(number, fault)
    return { becomes = fault[3].kind == "error" and FINE or fault[3], f = function(i)
      if i == BAD then
        setmetatable({}, { __gc = kept.deeds[number] })
        collectgarbage()
      end
      return i
    end }
  end },
  { "while the result is encoded", function(number, fault)
    return { becomes = refused(fault), f = function(i)
      return i == BAD and setmetatable({ fault = number, item = i, saves = true }, kept.Trap) or i
    end }
  end },
  { "before the result is published", published "before", point = true },
  { "in the middle of publishing", published "mid", point = true },
  { "after the result was published", published("after", FINE), point = true },
  { "in all workers while they wait", function(_, fault)
    if not fault.number then return end
    return { becomes = FINE, f = same, before = function(pool)
      all_run(pool)
      for _, pid in ipairs(helper.children()) do kit.kill(pid, fault.number) end
    end }
  end, without = { map = true, imap = true } },
}

-- ---- calls ------------------------------------------------------------------------------------

-- Each runs f over the data and answers the outcomes by index; a pool, if it has one, is handed to
-- 'before' and 'after'.
local CALLS <const> = {
  map = function(f, data, opts) return plua.map(f, data, opts) end,
  imap = function(f, data, opts)
    local list, at <const> = {}, { 0 }
    local function items()
      at[1] = at[1] + 1
      return data[at[1]]
    end
    for i, r in plua.imap(f, items, opts) do
      assert(i == #list + 1, "out of order")
      list[i] = r
    end
    return list
  end,
  apply_async = function(f, data, opts, before, after)
    local pool <close> = plua.pool(opts)
    before(pool)
    local futures <const>, list <const> = {}, {}
    for i = 1, N do futures[i] = pool:apply_async(f, data[i]) end
    for i = 1, N do
      local fine <const>, r <const> = pcall(futures[i].get, futures[i])
      assert.equal(fine, not plua.iserror(r))
      list[i] = r
    end
    after(pool)
    return list
  end,
  ["a pool's map"] = function(f, data, opts, before, after)
    local pool <close> = plua.pool(opts)
    before(pool)
    local list <const> = pool:map(f, data)
    after(pool)
    return list
  end,
}
local ORDER <const> = { "map", "imap", "apply_async", "a pool's map" }

local function again(pool)
  local r <const> = pool:map(function(x) return 2 * x end, plua.range(1, 20))
  for i = 1, 20 do assert.equal(2 * i, r[i]) end
end

-- ---- what must have come of it ----------------------------------------------------------------

local function data_with(item)
  local data <const> = {}
  for i = 1, N do data[i] = i end
  if item then
    data[BAD] = setmetatable({ fault = item.fault, item = BAD, loads = true }, kept.Trap)
  end
  return data
end

--- f, which leaves a line in the file each time that it begins: the item, and the process.
local function counted(f, path)
  return function(i)
    local file <close> = io.open(path, "a")
    file:write(kept.value_of(i), " ", kit.pid(), "\n")
    file:close()
    return f(i)
  end
end

-- How often each item ran, and which of them ran in a process that the fault has hit.
local function runs_of(path)
  local runs <const>, hit <const>, spoilt <const> = {}, {}, {}
  for i = 1, N do runs[i] = 0 end
  for i, pid in (helper.read(path) or ""):gmatch "(%d+) (%d+)" do
    runs[tonumber(i)] = runs[tonumber(i)] + 1
    hit[pid] = hit[pid] or tonumber(i) == BAD
  end
  for i, pid in (helper.read(path) or ""):gmatch "(%d+) (%d+)" do spoilt[tonumber(i)] = hit[pid] end
  return runs, spoilt
end

local function check_hit(r, becomes, attempts)
  if becomes == FINE then return assert.equal(BAD, kept.value_of(r)) end
  assert(plua.iserror(r), tostring(r))
  assert.same({ becomes.kind, becomes.signal, becomes.status, attempts },
    { r.kind, becomes.signal and r.signal, becomes.status and r.status, r.attempts }, tostring(r))
end

local function check(list, becomes, opts, path, decoded)
  local runs <const>, spoilt <const> = runs_of(path)
  local careful <const> = becomes == SPOILT
  for i = 1, N do
    if i ~= BAD and not (careful and spoilt[i]) then
      assert(kept.value_of(list[i]) == i, ("item %d: %s"):format(i, tostring(list[i])))
      assert(careful or runs[i] == 1, ("item %d ran %d times"):format(i, runs[i]))
    end
  end
  assert.is_nil(list[N + 1])
  if careful then return end
  local attempts <const> = becomes.kind and 1 + opts.retries or 1
  check_hit(list[BAD], becomes, attempts)
  if not decoded then assert.equal(attempts, runs[BAD], "runs of the one that was hit") end
end

-- ---- the product ------------------------------------------------------------------------------

local function cases()
  local list <const> = {}
  for _, stage in ipairs(STAGES) do
    for number, fault in ipairs(FAULTS) do
      local case <const> = stage[2](number, fault)
      local deep <const> = stage.point or fault.waits
      if case and (helper.failpoints or not deep) then
        case.name, case.waits = fault[1] .. " " .. stage[1], fault.waits
        case.workers = deep and { 1, 2, 5, 13 } or helper.failpoints and { 1, 13 } or { 2, 5 }
        case.without = stage.without or {}
        list[#list + 1] = case
      end
    end
  end
  return list
end

local function nothing() end

local function try(case, workers, call)
  local path <const> = helper.tmp() .. "/runs"
  local opts <const> = {
    workers = workers, on_error = "collect", retries = workers % 2 == 0 and 1 or 0,
    timeout = case.waits and TIMEOUT or nil, init = case.init and case.init(path),
  }
  local list <const> = CALLS[call](counted(case.f, path), data_with(case.item), opts,
    case.before or nothing, again)
  check(list, case.becomes, opts, path, case.item)
end

for _, case in ipairs(cases()) do
  describe(case.name .. ",", function()
    helper.guard()
    for _, workers in ipairs(case.workers) do
      for _, call in ipairs(ORDER) do
        if not case.without[call] then
          it(("%d workers, %s"):format(workers, call), function() try(case, workers, call) end)
        end
      end
    end
  end)
end
