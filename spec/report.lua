-- What busted prints: a line a spec that went wrong, and the counts, to PLUA_TALLY for the sum over
-- all files. A pending spec counts as failed: nothing is skipped. SPDX-License-Identifier: MIT

local passed, failed = 0, 0

return function()
  local busted <const> = require "busted"
  local handler <const> = require("busted.outputHandlers.base")()

  local function where(element)
    local trace <const> = element.trace or {}
    return ("%s:%s"):format(trace.short_src or "?", trace.currentline or "?")
  end

  local function complain(element, _, message, trace)
    failed = failed + 1
    local text <const> = type(message) == "string" and message or
      require("pl.pretty").write(message or "no message")
    io.write(("FAILED %s\n  %s (%s)\n  %s\n"):format(
      handler.getFullName(element), where(element), element.descriptor,
      (text:gsub("\n", "\n  "))))
    if trace and trace.traceback then
      io.write("  ", (trace.traceback:gsub("^%s+", ""):gsub("\n", "\n  ")), "\n")
    end
    io.flush()
    return nil, true
  end

  local function test_end(element, _, status)
    if status == "success" then passed = passed + 1 end
    if status == "pending" then complain(element, nil, "pending: a spec is not skipped") end
    return nil, true
  end

  local function suite_end()
    io.write(("   %d passed, %d failed in %.1f s\n"):format(
      passed, failed, handler.getDuration()))
    io.flush()
    local path <const> = os.getenv("PLUA_TALLY")
    if path then
      local file <close> = assert(io.open(path, "w"))
      file:write(passed, " ", failed, "\n")
    end
    return nil, true
  end

  busted.subscribe({ "test", "end" }, test_end)
  busted.subscribe({ "failure" }, complain)
  busted.subscribe({ "error" }, complain)
  busted.subscribe({ "suite", "end" }, suite_end)
  return handler
end
