-- A soak: calls of every kind while workers are killed, stopped and go on at random, and now and
-- then their owner is stopped too. Every result is checked; every item must have one outcome.
-- Usage: plua scripts/torture.lua [seconds [seed [items]]]; fewer items suit slow builds
-- SPDX-License-Identifier: MIT
local plua = require "plua"

local seconds <const> = tonumber(arg[1] or 20)
local seed <const> = math.tointeger(tonumber(arg[2] or os.time()))
local ITEMS <const> = math.tointeger(tonumber(arg[3] or 1000))
if not seconds or not seed or not ITEMS then
  error("usage: plua torture.lua [seconds [seed [items]]]", 0)
end
math.randomseed(seed)
local random <const> = math.random
local stat <close> = assert(io.open("/proc/self/stat"))
local me <const> = stat:read("n")

--- A shell that hits a random child of ours now and then, until this process is gone, and us now
--- and then; a dot in the log for each hit.
local CHAOS <const> = [[RANDOM=%d; me=%d; while kill -0 $me 2>/dev/null; do
  all=($(cat /proc/$me/task/*/children 2>/dev/null)); n=${#all[@]}
  sleep 0.0$((RANDOM %% 4))$((RANDOM %% 9 + 1)); [ $n -gt 1 ] || continue
  pid=${all[$((RANDOM %% n))]}; [ $((RANDOM %% 50)) != 0 ] || pid=$me
  how=$((RANDOM %% 5)); [ $pid != $me ] || how=0
  case $(cat /proc/$pid/comm 2>/dev/null) in plua|plua:*) ;; *) continue;; esac
  case $how in
    0) kill -STOP $pid; sleep 0.01; kill -CONT $pid;;
    1) kill -SEGV $pid;; 2) kill -TERM $pid;; *) kill -KILL $pid;;
  esac
  printf . >>%s
done >/dev/null 2>&1]]

--- A chain of hashes: some work, whose result anyone can check.
local function chain(x)
  local h = x
  for _ = 1, 1000 + x % 7 * 1000 do
    h = (h * 6364136223846793005 + 1442695040888963407) ~ (h >> 29)
  end
  return h
end

local wanted <const>, list <const> = {}, {}
for i = 1, ITEMS do wanted[i], list[i] = chain(i), i end

-- ---- what must be true --------------------------------------------------------------------------

local outcomes, lost = 0, 0

local function must(fine, what, ...)
  if not fine then error(("seed %d: "):format(seed) .. what:format(...), 2) end
end

--- An error must be a crash, or of a kind that the call has asked for.
local function check_error(err, kind)
  must(plua.iserror(err), "no error of ours: %s", err)
  must(err.kind == "crash" or err.kind == kind, "%s", err)
  lost = lost + (err.kind == "crash" and 1 or 0)
end

local function check(i, value, kind)
  outcomes = outcomes + 1
  if not plua.iserror(value) then return must(value == wanted[i], "item %d is wrong", i) end
  must(value.index == i, "item %d has the error of another: %s", i, value)
  check_error(value, kind)
end

local function whole(results, kind)
  must(results.n == ITEMS, "%s results", results.n)
  for i = 1, ITEMS do check(i, results[i], kind) end
end

--- Takes results of a loop, each once, all or as many as 'most'; in input order or not.
local function loop(order, most, ...)
  local n, seen = 0, {}
  for i, value in ... do
    n = n + 1
    must(not seen[i] and (i == n or not order), "item %d comes as number %d", i, n)
    seen[i] = true
    check(i, value)
    if n == most then break end
  end
  must(n == (most or ITEMS), "the loop ended after %d", n)
end

-- ---- calls --------------------------------------------------------------------------------------

local function either(a, b) if random(2) == 1 then return a else return b end end

local function counter(last, what)
  local i = 0
  return function()
    i = i + 1
    if i <= last then return i elseif what then error(what, 0) end
  end
end

local function data() return either(list, either(plua.range(1, ITEMS), counter(ITEMS))) end
local function some() return either(nil, random(ITEMS)) end

local function options(more)
  local opts <const> = more or {}
  opts.workers, opts.retries, opts.on_error = random(6), random(0, 3), "collect"
  opts.chunksize = either(nil, random(50))
  return opts
end

local function open()
  return plua.pool(options {
    max_tasks_per_child = either(nil, random(10, 200)), output = either("live", "grouped"),
  })
end

--- Futures of chain(i), for random i: {future, i, cancelled}, and how often each was told.
local function futures(pool, n)
  local all, told = {}, {}
  for k = 1, n do
    local i <const> = random(ITEMS)
    all[k] = { pool:apply_async(chain, i), i, false }
    told[k] = 0
    all[k][1]:add_done_callback(function() told[k] = told[k] + 1 end)
  end
  return all, told
end

local function settle(all, told, kind)
  for k, one in ipairs(all) do
    local fine <const>, value <const> = pcall(one[1].get, one[1], 60)
    outcomes = outcomes + 1
    must(not one[3] or not fine and value.kind == "cancelled", "cancelled: %s", value)
    if fine then must(value == wanted[one[2]], "future %d is wrong", k)
    else check_error(value, one[3] and "cancelled" or kind) end
    must(told[k] == 1, "future %d was told %d times", k, told[k])
  end
end

local CALLS <const> = {
  function() whole(plua.map(chain, data(), options())) end,
  function() loop(true, some(), plua.imap(chain, data(), options())) end,
  function() loop(false, some(), plua.imap_unordered(chain, data(), options())) end,
  function() whole(plua.map(chain, list, options { weight = function(i) return i % 7 end })) end,

  function() -- a list and a loop side by side, while the team changes its size
    local pool <close> = open()
    local later <const> = pool:map_async(chain, data())
    pool:resize(random(8))
    loop(true, some(), pool:imap(chain, data()))
    whole(later:get())
    whole(pool:map(chain, list, { weight = function(i) return i % 7 end }))
  end,

  function() -- futures, some of them cancelled as they run
    local pool <close> = open()
    local all <const>, told <const> = futures(pool, random(300))
    for _ = 1, random(0, 100) do
      local one <const> = all[random(#all)]
      one[3] = one[1]:cancel() or one[3]
      if random(10) == 1 then pool:resize(random(7)) end
    end
    settle(all, told)
  end,

  function() -- a pool that is terminated
    local pool <const> = open()
    local all <const>, told <const> = futures(pool, random(100))
    pcall(all[1][1].get, all[1][1], either(0, 0.01))
    if random(2) == 1 then pool:close() end
    pool:terminate()
    settle(all, told, "cancelled")
  end,

  function() -- items that never end
    local pool <close> = open()
    whole(pool:map(function(i)
      while i % 97 == 0 do i = i + 97 end
      return chain(i)
    end, plua.range(1, ITEMS), { timeout = 0.05 }), "timeout")
  end,

  function() -- items that fail
    whole(plua.map(function(i)
      if i % 5 == 0 then error("mine", 0) end
      return chain(i)
    end, data(), options()), "error")
  end,

  function() -- an iterator that fails: what it gave before comes first
    local pool <close>, last <const>, n = open(), random(0, ITEMS), 0
    local fine <const>, err <const> = pcall(function()
      for i, value in pool:imap(chain, counter(last, "mine")) do
        n = n + 1
        check(i, value)
      end
    end)
    must(not fine and err == "mine" and n == last, "%d of %d, then %s", n, last, err)
    whole(pool:map(chain, data()))
  end,

  function() -- loops that take turns, some of them left or forgotten
    local pool <close>, all <const> = open(), {}
    for k = 1, random(2, 5) do
      all[k] = coroutine.create(function()
        for i, value in pool:imap(chain, data()) do
          check(i, value)
          if random(3) == 1 then coroutine.yield() end
        end
      end)
    end
    while #all > 0 do
      local k <const> = random(#all)
      local fine <const>, err <const> = coroutine.resume(all[k])
      must(fine, "%s", err)
      local left <const> = coroutine.status(all[k]) ~= "dead" and random(100) == 1
      if left and random(2) == 1 then coroutine.close(all[k]) end
      if left or coroutine.status(all[k]) == "dead" then table.remove(all, k) end
    end
    collectgarbage()
  end,

  function() -- results larger than a ring
    local size <const> = random(2000000)
    local r <const> = plua.map(function(i) return ("x"):rep(size) .. i end, plua.range(1, 9),
      options())
    for i = 1, 9 do
      if plua.iserror(r[i]) then check_error(r[i])
      else must(r[i] == ("x"):rep(size) .. i, "large result %d is wrong", i) end
    end
  end,

  function() -- teams inside items
    local r <const> = plua.map(function(i)
      local inner <const> = plua.map(function(j) return i * j end, plua.range(1, 20),
        { workers = 2, nested = true, retries = 1000 })
      return math.max(table.unpack(inner))
    end, plua.range(1, 8), { workers = 2, retries = 1000, nested = true })
    for i = 1, 8 do must(r[i] == 20 * i, "nested result %d is wrong", i) end
  end,
}

print(("torture: seed %d, %g seconds, %d items"):format(seed, seconds, ITEMS))
local log <const> = os.tmpname()
local shell <const> = CHAOS:format(seed % 32768, me, log):gsub("'", "'\\''")
local chaos <const> = assert(io.popen("exec bash -c '" .. shell .. "'", "w"))
local clock <const> = require("plua.core").now
local start <const>, rounds = clock(), 0
repeat
  rounds = rounds + 1
  CALLS[random(#CALLS)]()
until clock() - start >= seconds
local hits <const> = #assert(io.open(log)):read("a")
os.remove(log)
must(hits > 0, "nobody was hit")
local RESULT <const> = "%d calls, %d outcomes, each right; %d hits, %d items lost all their workers"
print(RESULT:format(rounds, outcomes, hits, lost))
io.stdout:flush()
os.exit(true, false) -- without waiting for the shell, which sees that we are gone
return chaos
