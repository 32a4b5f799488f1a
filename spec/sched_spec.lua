-- The scheduler by itself: every interleaving of small cases, and long random ones.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

-- Slow programs see fewer cases.
local plain <const> = not helper.slow

local function program(cmdline, seconds)
  local result <const> = helper.run(helper.build .. "/host/" .. cmdline, { timeout = seconds })
  assert.equal(0, result.status, cmdline .. ": " .. result.err .. result.out)
  return result.out
end

describe("the scheduler", function()
  helper.guard()

  it("is right where one more or less decides", function()
    -- A sanitizer needs more memory than the limit leaves.
    local memory <const> = helper.san == "" and "memory" or ""
    assert.equal("ok: edges\n", program("sched_edges " .. memory, 60))
  end)

  it("gives each item one outcome in every interleaving of small cases", function()
    local out <const> = program("sched_explore " .. (plain and 12 or 6), 200)
    local states <const> = tonumber(out:match("ok: (%d+) states"))
    assert.truthy(states and states > (plain and 2000000 or 100000), out)
  end)

  it("gives each item one outcome among thousands, with crashes, errors and take-backs", function()
    local out <const> = program("sched_random " .. (plain and 600 or 60), 100)
    assert.truthy(tonumber(out:match("(%d+) outcomes")) > 100000, out)
  end)
end)
