-- The ring by itself: two threads, and bytes that make no sense; and a writer that is killed at any
-- instruction. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

local function program(cmdline)
  local result <const> = helper.run(helper.build .. "/host/" .. cmdline, { timeout = 120 })
  assert.equal(0, result.status, cmdline .. ": " .. result.err .. result.out)
  return result.out
end

describe("a ring", function()
  helper.guard()

  it("carries frames of every size between two threads, in rings of every size", function()
    local out <const> = program("ring_threads 100000")
    assert.truthy(out:find("ok: %d+ frames"), out)
    assert.truthy(out:find("ok: garbage: 20000 rings"), out)
  end)

  it("is right where one byte more or less decides", function()
    assert.equal("ok: edges\n", program("ring_edges"))
  end)
end)

describe("a worker that is killed after any instruction", function()
  helper.guard()

  -- Instrumented code is long, most of all for threads: there not every instruction is tried.
  local STRIDE <const> = { thread = 1009 }
  local out = ""
  local stride <const> = helper.slow and (STRIDE[helper.san] or 211) or 1
  lazy_setup(function() out = program("stepkill " .. stride) end)

  it("leaves a whole frame or none", function()
    local points <const>, whole <const> =
      out:match("ok: publish: (%d+) points, (%d+) whole, %d+ none, 0 torn")
    assert.truthy(points and tonumber(whole) > 0, out)
    if stride == 1 then assert.truthy(tonumber(points) > 300, out) end
  end)

  it("leaves a batch to others or is known to have taken it, and how far it got", function()
    local ready <const>, claimed <const> =
      out:match("ok: take and claim: %d+ points, (%d+) ready, %d+ taken, %d+ begun, (%d+) claimed")
    assert.truthy(ready and tonumber(ready) > 0 and tonumber(claimed) > 0, out)
  end)
end)
