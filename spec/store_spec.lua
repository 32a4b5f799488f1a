-- The store of payloads by itself. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

describe("the payload store", function()
  helper.guard()

  it("keeps contents until they are freed and gives memory back, in any order", function()
    local result <const> = helper.run(helper.build .. "/host/store_random", { timeout = 120 })
    assert.equal(0, result.status, result.err .. result.out)
    assert.truthy(result.out:find("ok: %d+ payloads"), result.out)
  end)

  it("has places told by item, across chunks of them", function()
    local result <const> = helper.run(helper.build .. "/host/places_edges", { timeout = 120 })
    assert.equal("ok\n", result.out, result.err)
  end)

  it("fills a small area to its end, again and again, whatever the kernel can do", function()
    local program <const> = helper.build .. "/host/store_edges"
    local EINVAL <const> = 22 -- of MADV_POPULATE_WRITE, before Linux 5.14
    local without <const> = ("LD_PRELOAD=%s/preload/iofail.so IOFAIL=madvise:%d:1:sticky "):format(
      helper.build, EINVAL)
    for _, how in ipairs { "", helper.san == "" and without or "" } do
      local result <const> = helper.run(how .. program, { timeout = 120 })
      assert.equal("ok\n", result.out, result.err)
    end
  end)
end)
