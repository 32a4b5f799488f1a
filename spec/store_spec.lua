-- The store of payloads by itself. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

describe("the payload store", function()
  helper.guard()

  it("keeps contents until they are freed and gives memory back, in any order", function()
    local result <const> = helper.run(helper.build .. "/host/store_random", { timeout = 120 })
    assert.equal(0, result.status, result.err .. result.out)
    assert.truthy(result.out:find("ok: %d+ payloads"), result.out)
  end)
end)
