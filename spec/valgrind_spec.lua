-- A small part under valgrind, which sees bytes that were never written and blocks that nobody
-- frees. It cannot watch processes by descriptors, so there are no workers here: the codec, the
-- scheduler, the payload store, the ring and calls that run in their caller.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

local valgrind <const> = "valgrind -q --error-exitcode=99 --leak-check=full"
  .. " --errors-for-leak-kinds=definite "

local SCRIPT <const> = [[
  local plua = require "plua"
  local shared = { 1, 2.5, "three", { [true] = "x" } }
  local function work(x)
    if x % 7 == 0 then error { code = x } end
    if x % 11 == 0 then return print end
    return { x, ("x"):rep(x * 50), shared, shared, f = function(y) return x + y end }
  end
  local opts = { workers = 0, on_error = "collect", seed = 1 }
  local function right(r, n)
    assert(r.n == n)
    for i = 1, n do
      if i % 7 == 0 then assert(r[i].kind == "error" and tostring(r[i]))
      else assert(i % 11 == 0 or r[i][1] == i and r[i][3] == r[i][4] and r[i].f(1) == i + 1) end
    end
  end
  right(plua.map(work, plua.range(1, 150), opts), 150)
  do
    local pool <close> = plua.pool(opts)
    right(pool:map(work, plua.range(1, 150)), 150)
    local futures = {}
    local function count(...) return select("#", ...), ... end
    for i = 1, 60 do futures[i] = pool:apply_async(count, i, shared) end
    for i = 1, 60 do
      local n, a, b = futures[i]:get()
      assert(n == 2 and a == i and b[4][true] == "x")
    end
    local function add(a, b) return a + b end
    local sum = pool:mapreduce(function(x) return x end, add, plua.range(1, 999))
    assert(sum == 499500)
    for i, s in pool:imap(tostring, { 1, 2, 3 }) do assert(s == tostring(i)) end
    local last = 0
    local function source() last = last + 1 return last <= 1000 and last or nil end
    for i, s in pool:imap(tostring, source) do assert(s == tostring(i)) end
  end
  print "right"
]]

-- One checker at a time.
if helper.san == "" then
  describe("under valgrind", function()
    helper.guard()

    local function clean(command)
      local result <const> = helper.run(valgrind .. command, { timeout = 120 })
      assert.equal(0, result.status, command .. ": " .. result.err .. result.out)
      return result.out
    end

    for _, program in ipairs {
      "sched_random 3", "store_random 4000", "ring_edges", "sched_edges",
    } do
      it(program .. " is clean", function()
        assert.truthy(clean(helper.build .. "/host/" .. program):find "ok")
      end)
    end

    it("values cross, calls and pools run and fail, in their caller's process", function()
      local file <const> = helper.script(SCRIPT)
      assert.equal("right\n", clean(helper.plua .. " " .. file))
    end)
  end)
end
