-- One process by itself: signals, descriptors, how it is watched and waited for; and where the
-- kernel lacks a call or refuses it. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

local function ok(arguments, failing)
  local shim <const> = failing
    and ("env LD_PRELOAD=%s/preload/iofail.so IOFAIL=%s:1:sticky "):format(helper.build, failing)
  local result <const> = helper.run((shim or "") .. helper.build .. "/host/proc_edges" .. arguments,
    { timeout = 60 })
  assert.equal("ok\n", result.out, result.err)
end

describe("a process", function()
  helper.guard()

  it("is watched, waited for and freed of what it inherits, to the last descriptor", function()
    ok ""
  end)

  -- The shims stand before the system call themselves, where a sanitizer stands.
  if helper.san == "" then
    it("is freed of descriptors without close_range", function() ok("", "syscall436:38") end)

    it("that cannot be watched is ended", function() ok(" unwatched", "syscall434:24") end)
  end
end)
