-- The owner's half of a team by itself: workers that are no processes, whose rings, words and slots
-- are written by hand, or whose events are. SPDX-License-Identifier: MIT

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

  it("ends whom it should, frees what nobody reads, tells what is to be told", function()
    ok(helper.build .. "/host/pool_edges")
  end)

  -- The shim stands before the system call itself, where a sanitizer stands.
  if helper.san == "" then
    local function ok_where(failing, arguments)
      ok(("env LD_PRELOAD=%s/preload/iofail.so IOFAIL=epoll_pwait2:%s %s/host/local_edges%s")
        :format(helper.build, failing, helper.build, arguments))
    end

    it("does so where the kernel waits in milliseconds only", function()
      ok_where("38:1:sticky", "")
    end)

    it("tells that a wait was interrupted", function() ok_where("4:1", " interrupted") end)
  end
end)
