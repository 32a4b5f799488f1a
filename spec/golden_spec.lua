-- Messages of the codec that are kept as files, also the fuzzer's first: all that a byte more, less
-- or other can make of them. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

describe("golden messages", function()
  helper.guard()

  it("become values or errors, at a fair cost, whatever one byte is or where they end", function()
    local program <const> = helper.build .. "/host/golden"
    local result <const> = helper.run(program .. " spec/fuzz/corpus/*", { timeout = 120 })
    assert.equal(0, result.status, result.err)
    local messages <const>, changes <const> =
      result.out:match("^ok: (%d+) messages, %d+ cuts, (%d+) changes\n$")
    assert.is_true(tonumber(messages) >= 10 and tonumber(changes) > 4000, result.out)
  end)
end)
