-- What an older kernel lacks or a sandbox refuses, and a Lua whose math.random is another one: the
-- ways around give the same answers, or say what is missing. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

-- The first has the same number wherever Linux has it.
local CLOSE_RANGE <const>, EPOLL_PWAIT2 <const> = "syscall436", "epoll_pwait2"
local PIDFD_OPEN <const>, PIDFD_SEND_SIGNAL <const> = "syscall434", "syscall424"
-- Sandboxes that are older than a call answer the one or the other.
local ENOSYS <const>, EPERM <const> = 38, 1
local EINVAL <const> = 22 -- as under valgrind

-- Runs a script in the stock interpreter, where a system call does not exist.
local function without(call, text, errno)
  local command <const> = ("LD_PRELOAD=%s/preload/iofail.so IOFAIL=%s:%d:1:sticky"):format(
    helper.build, call, errno or ENOSYS)
  local lua <const> = helper.lua:gsub("LD_PRELOAD='(.-)'", "LD_PRELOAD='%1'\":$LD_PRELOAD\"")
  return helper.run(command .. " " .. lua .. " " .. helper.script(text))
end

describe("a kernel without close_range", function()
  helper.guard()

  it("leaves a pool's workers no descriptor of the script", function()
    local result <const> = without(CLOSE_RANGE, [[
      local plua = require "plua"
      local here <close> = io.open("/proc/self/status")
      local pool <close> = plua.pool { workers = 2 }
      local seen = pool:apply(function()
        local n = 0
        for fd = 3, 30 do
          local pipe <close> = io.popen("readlink /proc/" .. io.open("/proc/self/stat"):read("n") ..
            "/fd/" .. fd)
          if pipe:read("a"):find("/status") then n = n + 1 end
        end
        return n
      end)
      print(seen, #pool:map(function(i) return i end, { 1, 2, 3 }))
    ]])
    assert.equal("0\t3\n", result.out, result.err)
  end)
end)

-- What needs each of the calls: results, a wait that is limited, an item that is, an end.
local ALL <const> = [[
  local plua = require "plua"
  local pool <close> = plua.pool { workers = 2 }
  local sum = 0
  for _, v in ipairs(pool:map(function(i) return i * i end, plua.range(1, 1000))) do
    sum = sum + v
  end
  local function endless() while true do end end
  local late = pool:apply_async(endless)
  local _, err = pcall(late.get, late, 0.05)
  local _, stuck = pcall(plua.map, endless, { 1 }, { timeout = 0.05 })
  print(sum, err.kind, stuck.kind)
  pool:terminate()
]]

for name, call in pairs {
  ["sleeps by milliseconds only"] = EPOLL_PWAIT2,
  ["sends signals to numbers only"] = PIDFD_SEND_SIGNAL,
} do
  describe("a system that " .. name, function()
    helper.guard()

    for errno, how in pairs { [ENOSYS] = "is older", [EPERM] = "has an older sandbox" } do
      it("does all there is all the same, as it " .. how, function()
        local result <const> = without(call, ALL, errno)
        assert.equal("333833500\ttimeout\ttimeout\n", result.out, result.err)
      end)
    end
  end)
end

describe("a system that maps nothing twice", function()
  helper.guard()

  it("has room for results larger than the ring, though descriptors were closed", function()
    local result <const> = without("mremap", [[
      local plua, kit = require "plua", require "crashkit"
      local function f(i)
        if i % 4 == 3 then kit.closeall(3) end
        return ("x"):rep(2000000 + i)
      end
      local pool <close> = plua.pool { workers = 2 }
      for _, map in ipairs { plua.map, function(...) return pool:map(...) end } do
        for i, x in ipairs(map(f, { 1, 2, 3, 4, 5, 6 })) do assert(#x == 2000000 + i, i) end
      end
      print "all"
    ]], EINVAL)
    assert.equal("all\n", result.out, result.err)
  end)
end)

describe("a system that cannot tell when a process ends", function()
  helper.guard()

  for errno, why in pairs {
    [ENOSYS] = "Function not implemented", [EPERM] = "Operation not permitted",
  } do
    it("is told of, with a remedy: " .. why, function()
      local result <const> = without(PIDFD_OPEN, ALL, errno)
      local want <const> = "script.lua:2: plua: cannot start worker 1 of 2: " .. why .. "; "
      assert.truthy(result.err:find(want, 1, true), result.err)
      assert.truthy(result.err:find("strace -f", 1, true), result.err)
      assert.equal(1, result.status)
    end)
  end
end)

describe("a math.random of the script's own", function()
  helper.guard()

  it("draws the same for any number of workers, from the seed", function()
    local result <const> = helper.run(helper.lua .. " " .. helper.script([[
      local random = math.random
      math.random = function(...) return random(...) end
      local plua = require "plua"
      local function draws(workers, seed)
        return table.concat(plua.map(function() return math.random(1 << 40) end,
          plua.range(1, 20), { workers = workers, seed = seed }), " ")
      end
      assert(draws(1, 5) == draws(3, 5) and draws(0, 5) == draws(2, 5))
      assert(draws(1, 5) ~= draws(1, 6))
      assert(draws(2) ~= draws(2)) -- each call has a seed of its own
      print("right")
    ]]))
    assert.equal("right\n", result.out, result.err)
  end)
end)
