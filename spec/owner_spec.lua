-- The owner's half of a team by itself: workers that are no processes, whose rings, words and slots
-- are written by hand. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

local function ok(cmdline)
  local result <const> = helper.run(cmdline, { timeout = 60 })
  assert.equal("ok\n", result.out, result.err)
end

describe("the owner", function()
  helper.guard()

  it("believes of workers what its own tables confirm, to the byte", function()
    ok(helper.build .. "/host/hear_edges")
  end)

  it("takes back, holds, ends and heals to the last item", function()
    ok(helper.build .. "/host/local_edges")
  end)

  if helper.san == "" then
    it("does so where the kernel waits in milliseconds only", function()
      ok(("env LD_PRELOAD=%s/preload/iofail.so IOFAIL=epoll_pwait2:38:1:sticky %s/host/local_edges")
        :format(helper.build, helper.build))
    end)
  end
end)
