-- What the owner believes of what workers say, by itself.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

describe("the owner", function()
  helper.guard()

  it("believes of workers what its own tables confirm, to the byte", function()
    local result <const> = helper.run(helper.build .. "/host/hear_edges", { timeout = 60 })
    assert.equal("ok\n", result.out, result.err)
  end)
end)
