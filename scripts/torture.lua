-- A soak: many items while their workers are killed, stopped and go on at random; every result is
-- checked, every item must have one outcome. Usage: plua scripts/torture.lua [seconds [seed]]
-- SPDX-License-Identifier: MIT
local plua = require "plua"

local seconds <const> = tonumber(arg[1] or 20)
local seed <const> = math.tointeger(tonumber(arg[2] or os.time()))
if not seconds or not seed then error("usage: plua torture.lua [seconds [seed]]", 0) end
math.randomseed(seed)
local ITEMS <const>, WORKERS <const> = 2000, 4
local stat <close> = assert(io.open("/proc/self/stat"))
local me <const> = stat:read("n")

--- A shell that hits a random child of ours now and then, until this process is gone.
local CHAOS <const> = [[RANDOM=%d; while kill -0 %d 2>/dev/null; do
  all=($(cat /proc/%d/task/*/children 2>/dev/null)); n=${#all[@]}
  sleep 0.0$((RANDOM %% 4))$((RANDOM %% 9 + 1)); [ $n -gt 1 ] || continue
  pid=${all[$((RANDOM %% n))]}; [ "$(cat /proc/$pid/comm 2>/dev/null)" = plua ] || continue
  case $((RANDOM %% 4)) in
    0) kill -STOP $pid; sleep 0.01; kill -CONT $pid;; 1) kill -SEGV $pid;; *) kill -KILL $pid;;
  esac
done >/dev/null 2>&1]]

--- A chain of hashes: some work, whose result anyone can check.
local function chain(x)
  local h = x
  for _ = 1, 1000 + x % 7 * 3000 do
    h = (h * 6364136223846793005 + 1442695040888963407) ~ (h >> 29)
  end
  return h
end

local wanted <const> = {}
for i = 1, ITEMS do wanted[i] = chain(i) end

local outcomes, lost = 0, 0
local function check(i, value)
  outcomes = outcomes + 1
  if plua.iserror(value) then
    assert(value.index == i and value.kind == "crash", tostring(value))
    lost = lost + 1
  else
    assert(value == wanted[i], ("seed %d: item %d is wrong"):format(seed, i))
  end
end

local OPTIONS <const> = { workers = WORKERS, on_error = "collect", retries = 3 }
local data <const> = plua.range(1, ITEMS)
local function whole(results)
  assert(results.n == ITEMS)
  for i = 1, ITEMS do check(i, results[i]) end
end
local function one_shot() whole(plua.map(chain, data, OPTIONS)) end
local function lazily()
  local n = 0
  for i, value in plua.imap(chain, data, OPTIONS) do
    n = n + 1
    assert(i == n)
    check(i, value)
  end
  assert(n == ITEMS)
end
local function pooled()
  local pool <close> = plua.pool(OPTIONS)
  whole(pool:map(chain, data))
  whole(pool:map_async(chain, data):get())
  local futures <const> = {}
  for i = 1, 200 do futures[i] = pool:apply_async(chain, i) end
  for i, value in pool:imap(chain, data) do check(i, value) end
  for i = 1, 200 do
    local fine <const>, value <const> = pcall(futures[i].get, futures[i])
    if fine then check(i, value) else assert(value.kind == "crash", tostring(value)) end
  end
end

print(("torture: seed %d, %g seconds, %d workers"):format(seed, seconds, WORKERS))
local hits <const> = CHAOS:format(seed % 32768, me, me):gsub("'", "'\\''")
local chaos <const> = assert(io.popen("exec bash -c '" .. hits .. "'", "w"))
local clock <const> = require("plua.core").now
local start <const>, rounds = clock(), 0
repeat
  rounds = rounds + 1;
  ({ one_shot, lazily, pooled })[math.random(3)]()
until clock() - start >= seconds
local RESULT <const> = "%d calls, %d outcomes, each right; %d items lost four workers"
print(RESULT:format(rounds, outcomes, lost))
io.stdout:flush()
os.exit(true, false) -- without waiting for the shell, which sees that we are gone
return chaos
