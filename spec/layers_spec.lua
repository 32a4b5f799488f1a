-- The layers check: what it lets pass and what it refuses. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local lfs <const> = require "lfs"

local lua <const> = os.getenv("PLUA_LUA") or "lua5.4"

-- A tree of a few files: name -> text.
local function tree(files)
  local root <const> = helper.tmp()
  for _, dir in ipairs { "core", "lua", "lua/plua" } do lfs.mkdir(root .. "/" .. dir) end
  for name, text in pairs(files) do helper.write(root .. "/" .. name, text) end
  return root
end

local function check(root) return helper.run(lua .. " scripts/layers.lua " .. root) end

local function refused(files, ...)
  local result <const> = check(tree(files))
  assert.equal(1, result.status, "passed")
  for _, text in ipairs { ... } do assert.truthy(result.err:find(text, 1, true), result.err) end
end

local function accepted(files)
  local result <const> = check(tree(files))
  assert.equal("", result.err)
  assert.equal(0, result.status)
end

describe("the layers check", function()
  helper.guard()

  it("finds nothing in this project", function()
    local result <const> = check(".")
    assert.equal("", result.err)
    assert.equal(0, result.status)
  end)

  it("lets a room include what stands below it, and its own headers", function()
    accepted {
      ["core/pool.c"] = '#include "pool_table.h"\n#include "sched.h"\n#include "base.h"\n',
      ["core/pool_table.h"] = '#include "base.h"\n',
      ["core/codec_write.c"] = '#include <lua.h>\n#include "codec.h"\n#include "plua.h"\n',
      ["core/main.c"] = '#include <lauxlib.h>\n#include "plua.h"\n',
    }
  end)

  it("refuses an include of what stands above, and names file and line", function()
    refused({ ["core/ring.c"] = '#include "base.h"\n#include "pool.h"\n' },
      "core/ring.c:2: pool.h: ring may include only: fail base plua")
  end)

  it("refuses a neighbour of the same layer", function()
    refused({ ["core/ring.c"] = '#include "board.h"\n' }, "core/ring.c:1: board.h")
  end)

  it("lets the program see nothing internal", function()
    refused({ ["core/main.c"] = '#include "base.h"\n' }, "main may include only: plua")
  end)

  it("keeps plua.h free of everything", function()
    refused({ ["core/plua.h"] = '#include "base.h"\n' }, "plua may include only: nothing")
  end)

  for _, header in ipairs { "lua.h", "lauxlib.h", "lualib.h" } do
    it("keeps " .. header .. " out of rooms that do not know Lua", function()
      refused({ ["core/pool.c"] = "#include <" .. header .. ">\n" }, "core/pool.c:1: " .. header)
    end)
  end

  it("asks for a layer where a room is new", function()
    refused({ ["core/attic.c"] = "int attic;\n" }, "core/attic.c:1", "scripts/layers.lua")
  end)

  for call, remedy in pairs {
    ["time(NULL);"] = "now_ns",
    ["gettimeofday(&t, 0);"] = "now_ns",
    ["clock_gettime(CLOCK_REALTIME, &t);"] = "now_ns",
    ["waitpid(-1, &s, 0);"] = "pid",
    ["wait(&s);"] = "pid",
    ["waitid(P_ALL, 0, &i, 0);"] = "pid",
    ["kill(pid, 9);"] = "pidfd",
  } do
    it("refuses " .. call .. " in the core", function()
      refused({ ["core/pool.c"] = "void f(void) {\n  " .. call .. "\n}\n" }, "core/pool.c:2",
        remedy)
    end)
  end

  it("reads code, not comments, strings or longer names", function()
    accepted {
      ["core/pool.c"] = [[
/* kill(pid) would be wrong here,
   and so would time(NULL) */
// waitpid(-1)
static const char *s = "kill(1) \" time(0)";
static char quote = '"';
void f(void) { pool_kill(1); runtime(2); waitpid(pid, 0, 0); }
void g(struct link *l) { l->ops->kill(l, 1); l->wait(l); l->ops.kill(l, 2); }
]],
    }
  end)

  it("finds a call behind a comment on the same line", function()
    refused({ ["core/pool.c"] = "/* why */ kill(1, 2); /* not */\n" }, "core/pool.c:1: kill(")
  end)

  it("lets the program do what it owns its process for", function()
    accepted { ["core/main.c"] = "void f(void) { kill(getpid(), 2); }\n" }
  end)

  it("refuses a Lua module that requires what stands above it", function()
    refused({ ["lua/plua/future.lua"] = '\nlocal map <const> = require "plua.map"\n' },
      "lua/plua/future.lua:2: future (floor 1) may not require map (floor 2)")
  end)

  it("refuses pool and map knowing each other", function()
    refused({ ["lua/plua/pool.lua"] = 'local map = require("plua.map")\n' },
      "lua/plua/pool.lua:1")
  end)

  it("refuses a circle on the ground floor", function()
    refused({
      ["lua/plua/errors.lua"] = 'require "plua.options"\n',
      ["lua/plua/options.lua"] = 'require "plua.text"\n',
      ["lua/plua/text.lua"] = 'require "plua.errors"\n',
    }, "requires itself by way of others")
  end)

  it("lets modules require downwards", function()
    accepted {
      ["lua/plua/init.lua"] = 'require "plua.map"\nrequire "plua.core"\n',
      ["lua/plua/map.lua"] = 'require "plua.options" -- not require "plua.job"\n',
      ["lua/plua/options.lua"] = 'require "plua.text"\n',
      ["lua/plua/text.lua"] = "return {}\n",
      ["lua/plua/job.lua"] = 'require "plua"\n',
    }
  end)
end)
