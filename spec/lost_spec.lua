-- Workers that a kill does not end: the kernel holds them, or (as seen from here the same) the
-- signal does not arrive. The call ends all the same, each item with one outcome (P1, P2).
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local kit <const> = require "crashkit"

-- Signals sent through a pidfd come to nothing.
local PIDFD_SEND_SIGNAL <const> = 424
local DEAF <const> = {
  IOFAIL = ("syscall%d:0:1:sticky"):format(PIDFD_SEND_SIGNAL),
  LD_PRELOAD = helper.build .. "/preload/iofail.so",
}

local CHECK <const> = [[
  local plua, kit = require "plua", require "crashkit"
  local data = {}
  for i = 1, 20 do data[i] = i end
  local function check(r, retries)
    for i = 1, 20 do if i ~= 2 then assert(r[i] == -i, tostring(r[i])) end end
    local e = r[2]
    assert(e.kind == "lost" and e.attempts == 1 and e.index == 2 and e.pid > 1, tostring(e))
    assert(e.elapsed > 5 and e.elapsed < 20, e.elapsed)
    print((tostring(e):gsub("pid %d+", "pid N"):gsub("worker %d", "worker W")))
  end
]]

local TOLD <const> = "item 2 (2): its worker was killed, but does not end (is it frozen, or " ..
  "stuck in a device?): what became of the item is not known\n  in worker W (pid N)\n"

describe("an item whose worker is killed and does not end", function()
  helper.guard()

  -- Sanitizers stand where the shim stands.
  if helper.san == "" then
    for form, text in pairs {
      map = [[check(plua.map(f, data, opts))]],
      imap = [[local r = {}
        for i, v in plua.imap(f, data, opts) do assert(r[i] == nil) r[i] = v end
        check(r)]],
      ["a pool, which goes on"] = [[
        local pool <close> = plua.pool { workers = 2, timeout = 0.1 }
        local told = 0
        local future = pool:map_async(f, data, { on_error = "collect", retries = 3 })
        future:add_done_callback(function() told = told + 1 end)
        check(future:get())
        local until_ = kit.now() + 3 -- the lost one wakes up meanwhile, and publishes
        while kit.now() < until_ do
          local r = pool:map(function(i) return i end, data)
          for i = 1, 20 do assert(r[i] == i) end
        end
        local s = pool:stats()
        assert(told == 1 and s.alive == 2 and s.submitted == s.done, s.alive)]],
    } do
      it("has one outcome: " .. form, function()
        local script <const> = helper.script(CHECK .. [[
          local opts = { workers = 2, timeout = 0.1, on_error = "collect", retries = 3 }
          local function f(i)
            if i == 2 then kit.csleep(7) end
            return -i
          end
        ]] .. text)
        local result <const> = helper.run(helper.lua:gsub(" (%S+)$", " LD_PRELOAD=" ..
          helper.quote(DEAF.LD_PRELOAD) .. " %1") .. " " .. script,
          { env = { IOFAIL = DEAF.IOFAIL }, timeout = 40 })
        assert.equal(TOLD, result.out, result.err)
        assert.equal(0, result.status)
      end)
    end
  end

  local freezer <const> = helper.freezer_groups()
  if freezer then
    it("is lost where a control group is frozen, and leaves nothing once it thaws", function()
      local group <close> = helper.group(freezer)
      local script <const> = helper.script(CHECK .. [[
        local group = arg[1]
        local function say(name, text)
          local file <close> = assert(io.open(group .. "/" .. name, "w"))
          file:write(text)
        end
        check(plua.map(function(i)
          if i == 2 then
            say("cgroup.procs", kit.pid())
            say("freezer.state", "FROZEN")
            kit.csleep(0.01)
          end
          return -i
        end, data, { workers = 3, timeout = 0.1, on_error = "collect" }))
      ]])
      local began <const> = kit.now()
      local result <const> = helper.run(("%s %s %s"):format(helper.lua, script, group.path),
        { timeout = 40 })
      local took <const> = kit.now() - began
      helper.write(group.path .. "/freezer.state", "THAWED")
      assert.equal(TOLD, result.out, result.err)
      assert(took < 20, took)
      assert(helper.wait(function() return helper.read(group.procs) == "" end), "it lives on")
    end)
  end
end)
