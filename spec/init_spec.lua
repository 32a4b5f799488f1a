-- Workers that cannot start: the call ends at once, with one message that says why, and forks no
-- further. SPDX-License-Identifier: MIT
-- luacheck: ignore 512
local helper <const> = require "spec.helper"
local plua <const> = require "plua"
local kit <const> = require "crashkit"
local numbers <const> = helper.numbers

local function id(x) return x end

-- What a worker does before its first item -> how the error reads.
local WAYS <const> = {
  raises = { function() error "no database" end, "^init: spec/init_spec.lua:%d+: no database\n" },
  ["raises a table"] = { function() error { code = 5 } end, "^init: error object {code = 5}" },
  ["is killed by SIGSEGV"] = { function() kit.segv() end,
    "^init: no worker starts: one after the other died before it ran anything, the last was " ..
      "killed by SIGSEGV\n" },
  ["aborts"] = { function() kit.abort() end, "the last was killed by SIGABRT\n" },
  ["leaves by exit(0)"] = { function() kit.exit(0) end, "the last exited with status 0\n" },
  ["leaves by os.exit(7)"] = { function() os.exit(7) end, "the last exited with status 7\n" },
}

-- Each makes workers that run `init`.
local CALLS <const> = {
  map = function(init) plua.map(id, numbers(50), { workers = 3, init = init }) end,
  imap = function(init)
    for _ in plua.imap(id, numbers(50), { workers = 3, init = init }) do error "it ran" end
  end,
  mapreduce = function(init)
    plua.mapreduce(id, math.max, numbers(50), { workers = 3, init = init })
  end,
  ["a pool's map"] = function(init)
    local pool <close> = plua.pool { workers = 3, init = init }
    pool:map(id, numbers(50))
  end,
  ["apply"] = function(init)
    local pool <close> = plua.pool { workers = 3, init = init }
    pool:apply(id, 1)
  end,
  ["apply_async"] = function(init)
    local pool <close> = plua.pool { workers = 3, init = init }
    local futures <const> = {}
    for i = 1, 9 do futures[i] = pool:apply_async(id, i) end
    futures[9]:get()
  end,
}

describe("an init that fails", function()
  helper.guard()

  for way, what in pairs(WAYS) do
    it("ends every call at once, with the reason: it " .. way, function()
      for name, call in pairs(CALLS) do
        local path <const> = helper.tmp() .. "/begun"
        local began <const> = kit.now()
        local fine <const>, err <const> = pcall(call, function()
          local file <close> = io.open(path, "a")
          file:write("x")
          file:close()
          what[1]()
        end)
        assert.is_false(fine, name)
        assert.equal("init", err.kind, name)
        assert.truthy(tostring(err):find(what[2]), name .. ": " .. tostring(err))
        assert(kit.now() - began < 5, name)
        assert(#helper.read(path) <= 9, name .. ": it forks on: " .. #helper.read(path))
      end
    end)
  end

  it("ends a pool too when only a replacement's does", function()
    local path <const> = helper.tmp() .. "/begun"
    helper.write(path, "")
    local function init()
      local file <close> = io.open(path, "a")
      file:write("x")
      file:flush()
      if file:seek("end") > 2 then error "the third one" end
    end
    for name, leave in pairs {
      dies = function() kit.abort() end,
      ["is old"] = function() end,
    } do
      helper.write(path, "")
      local pool <close> = plua.pool { workers = 2, init = init, max_tasks_per_child = 1 }
      local fine <const>, err <const> = pcall(pool.map, pool, function(i)
        if i == 2 then leave() end
        return i
      end, numbers(20))
      assert.is_false(fine, name)
      assert.truthy(tostring(err):find("^init: spec/init_spec.lua:%d+: the third one\n"), name)
      local again <const>, why <const> = pcall(pool.apply, pool, id, 1)
      assert.same({ false, "init" }, { again, why.kind })
      pool:terminate()
    end
  end)

  it("makes the command end with 2, in a second, with one message", function()
    for way, expected in pairs {
      ["error 'no database'"] = "^init: [^\n]*script.lua:2: no database\n",
      ["require 'crashkit'.segv()"] = "^init: no worker starts: [^\n]*SIGSEGV\n",
      ["require 'crashkit'._exit(3)"] = "^init: no worker starts: [^\n]*status 3\n",
    } do
      local script <const> = helper.script(
        ("return { data = { 1, 2, 3 }, map = print, init = function()\n %s end }"):format(way))
      for _, workers in ipairs { 1, 4 } do
        local began <const> = kit.now()
        local result <const> = helper.run(("%s -j %d %s"):format(helper.plua, workers, script))
        assert.equal(2, result.status, result.err)
        assert.equal("", result.out)
        assert.truthy(result.err:find(expected), result.err)
        assert.equal(1, select(2, result.err:gsub("init:", "")), result.err)
        assert(kit.now() - began < 1 or helper.san ~= "", kit.now() - began)
      end
    end
  end)
end)
