-- The board by itself: each edge of it; an owner and workers as threads of one process.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

describe("the board", function()
  helper.guard()

  it("is posted to, taken from and healed to the last entry", function()
    local result <const> = helper.run(helper.build .. "/host/board_edges", { timeout = 120 })
    assert.equal("ok\n", result.out, result.err)
  end)

  it("lets each item be claimed once or come back once, whatever the owner does", function()
    -- Sanitizers watch the threads; where lines are counted, each is run soon.
    local items <const> = not helper.slow and 2000000 or helper.san ~= "" and 300000 or 20000
    local result <const> = helper.run(("%s/host/board_threads %d"):format(helper.build, items),
      { timeout = 120 })
    assert.equal(0, result.status, result.err .. result.out)
    assert.truthy(result.out:find("ok: %d+ items, %d+ claimed"), result.out)
    assert.truthy(result.out:find("ok: order", 1, true), result.out)
    assert.truthy(result.out:find("ok: call", 1, true), result.out)
  end)
end)
