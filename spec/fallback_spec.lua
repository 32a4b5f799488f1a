-- What an older kernel lacks, and a Lua whose math.random is another one: the ways around give the
-- same answers. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

-- The first has the same number wherever Linux has it.
local CLOSE_RANGE <const>, EPOLL_PWAIT2 <const>, ENOSYS <const> = "syscall436", "epoll_pwait2", 38

-- Runs a script in the stock interpreter, where a system call does not exist.
local function without(call, text)
  local command <const> = ("LD_PRELOAD=%s/preload/iofail.so IOFAIL=%s:%d:1:sticky"):format(
    helper.build, call, ENOSYS)
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

describe("a kernel that sleeps by milliseconds only", function()
  helper.guard()

  it("is woken in time all the same", function()
    local result <const> = without(EPOLL_PWAIT2, [[
      local plua = require "plua"
      local pool <close> = plua.pool { workers = 2 }
      local sum = 0
      for _, v in ipairs(pool:map(function(i) return i * i end, plua.range(1, 1000))) do
        sum = sum + v
      end
      local late = pool:apply_async(function() while true do end end)
      local fine, err = pcall(late.get, late, 0.05)
      print(sum, fine, err.kind)
      pool:terminate()
    ]])
    assert.equal("333833500\tfalse\ttimeout\n", result.out, result.err)
  end)
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
