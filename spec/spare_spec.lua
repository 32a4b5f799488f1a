-- Replacements come from an idle copy of the owner, the spare; it may be killed like any other.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"

--- A pool whose processes are killed again and again, in the order that `order` gives.
local SCRIPT <const> = [[
local plua, kit = require "plua", require "crashkit"
local workers, order = %d, %q
local pool <close> = plua.pool { workers = workers, retries = 5 }
local function twice(x) return 2 * x end
for round = 1, 150 do
  local r = pool:map(twice, plua.range(1, 50))
  for i = 1, 50 do assert(r[i] == 2 * i, ("round %%d: item %%d is %%s"):format(round, i, r[i])) end
  local all = kit.children()
  table.sort(all)
  if order == "oldest last" then table.sort(all, function(a, b) return a > b end) end
  for _, pid in ipairs(all) do kit.kill(pid, 9) end
end
for x = 1, 20 do assert(pool:apply(twice, x) == 2 * x) end
pool:map(twice, plua.range(1, 50))
-- Who died last is waited for when the pool next looks.
local living, ended
local ends = kit.now() + 5
repeat
  pool:apply(twice, 1)
  living, ended = 0, 0
  for _, pid in ipairs(kit.children()) do
    local stat <close> = io.open(("/proc/%%d/stat"):format(pid))
    local state = stat and stat:read("a"):match("%%) (%%a)")
    if state == "Z" then ended = ended + 1 end
    living = living + 1
  end
until ended == 0 or kit.now() > ends
assert(ended == 0, "a child that ended was never waited for")
assert(living <= workers + (workers < 16 and 1 or 2),
  living .. " processes for " .. workers .. " workers")
print "right"
]]

describe("a pool whose workers and spare are all killed", function()
  helper.guard()
  for _, workers in ipairs { 1, 2, 3, 20 } do
    for _, order in ipairs { "oldest first", "oldest last" } do
      it(("answers rightly and leaves none: %d workers, %s"):format(workers, order), function()
        local script <const> = helper.script(SCRIPT:format(workers, order))
        local r <const> = helper.run(helper.plua .. " " .. script, { timeout = 40 })
        assert.equal("right\n", r.out, r.err)
      end)
    end
  end
end)

describe("a pool of many workers", function()
  helper.guard()

  it("loses one of its two spares, and then the other, and its workers see the state of then",
    function()
      local r <const> = helper.run(helper.plua .. " " .. helper.script [[
        local plua, kit = require "plua", require "crashkit"
        string.seen = "then"
        local pool <close> = plua.pool { workers = 20, retries = 5 }
        string.seen = "now"
        local function who(i)
          require "crashkit".csleep(0.005)
          return require "crashkit".pid()
        end
        local function spares()
          local count, list = {}, {}
          for _ = 1, 3 do
            for _, pid in ipairs(pool:map(who, plua.range(1, 20), { chunksize = 1 })) do
              count[pid] = true
            end
          end
          for _, pid in ipairs(kit.children()) do
            if not count[pid] then list[#list + 1] = pid end
          end
          table.sort(list)
          return list, count
        end
        for round = 1, 6 do
          local idle, workers = spares()
          assert(#idle == 2, ("round %d: %d spares"):format(round, #idle))
          kit.kill(idle[round % 2 + 1], 9)
          for pid in pairs(workers) do kit.kill(pid, 9) end
          local r = pool:map(function() return require "string".seen end, plua.range(1, 40))
          for i = 1, 40 do assert(r[i] == "then", r[i]) end
        end
        print "right"]])
      assert.same({ "right\n", "" }, { r.out, r.err })
    end)
end)

describe("a pool that has grown as far as it can", function()
  helper.guard()

  it("has workers that allocate, and send what no ring takes, to the last", function()
    local r <const> = helper.run(helper.plua .. " " .. helper.script [[
      local plua, kit = require "plua", require "crashkit"
      local pool <close> = plua.pool { workers = 1 }
      pool:resize(256)
      local function item(x)
        local list <const> = {}
        for i = 1, 2000 do list[i] = { x + i } end
        require("crashkit").csleep(0.001)
        return require("plua").worker().id, list[2000][1], ("x"):rep(100000) .. x
      end
      local seen, n, ends = {}, 0, kit.now() + 30
      while n < 256 and kit.now() < ends do
        local futures <const> = {}
        for x = 1, 600 do futures[x] = pool:apply_async(item, x) end
        for x, future in ipairs(futures) do
          local id <const>, y <const>, text <const> = future:get()
          assert(y == x + 2000 and #text == 100000 + #tostring(x))
          if not seen[id] then n = n + 1 end
          seen[id] = true
        end
      end
      print(n, pool:stats().alive, pool:stats().started)]])
    assert.same({ "256\t256\t256\n", "" }, { r.out, r.err })
  end)
end)

describe("a pool whose script has started a thread since", function()
  helper.guard()

  it("has workers that die replaced, as long as the spare lives", function()
    local r <const> = helper.run(helper.plua .. " " .. helper.script [[
      local plua, kit = require "plua", require "crashkit"
      string.seen = "then"
      local pool <close> = plua.pool { workers = 2, retries = 1 }
      string.seen = "now"
      kit.thread()
      for round = 1, 5 do
        local r = pool:map(function(i)
          local plua, kit = require "plua", require "crashkit"
          if plua.worker().attempt == 1 then kit.raise(9) end
          return require "string".seen
        end, { 1, 2, 3 })
        for i = 1, 3 do assert(r[i] == "then", r[i]) end
      end
      local ends = kit.now() + 5 -- who died last may not have been made again yet
      repeat pool:apply(math.abs, 1) until pool:stats().started >= 17 or kit.now() > ends
      print(pool:stats().started)]])
    assert.same({ "17\n", "" }, { r.out, r.err })
  end)
end)
