-- Memory and system calls that fail, one after the other: a host that opens a pool, maps 50 items
-- with payloads and closes ends with the right results or with an error that has a name; never by a
-- signal, too late, or leaving something behind. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

local host <const> = helper.build .. "/host/host_inject"

local function run(env, arguments)
  local words <const> = { "env" }
  for name, value in pairs(env) do words[#words + 1] = name .. "=" .. helper.quote(value) end
  words[#words + 1] = host .. " " .. arguments
  local result <const> = helper.run(table.concat(words, " "), { timeout = 20 })
  local text <const> = ("%s -> %d %s%s"):format(table.concat(words, " "), result.status, result.out,
    result.err)
  assert.truthy(result.status == 0 or result.status == 3, text)
  assert.truthy(result.status == 0 and result.out:find("^right") or #result.out > 3, text)
  return result.status == 0 and result.out
end

local function shim(name) return helper.build .. "/preload/" .. name .. ".so" end

-- Until the failure comes so late that nothing notices it, a few times in a row.
local function until_clean(one_more)
  local clean, k, right = 0, 0, 0
  repeat
    k = k + 1
    local out <const> = one_more(k)
    clean = out == "right\n" and clean + 1 or 0
    right = right + (out and 1 or 0)
  until clean == 6 or k == 400
  return k, right
end

-- The shims stand before malloc or syscall themselves, where a sanitizer stands.
if helper.san == "" then
  describe("when memory runs out", function()
    helper.guard()

    for _, how in ipairs { "wait", "poll", "wait spare" } do
      it("once, a host that tries again is right in the end (" .. how .. ")", function()
        local k <const>, right <const> = until_clean(function(k)
          return run({ MFAIL_AT = k, LD_PRELOAD = shim "mfail" }, how)
        end)
        assert.truthy(k > 25, k)
        assert.equal(k, right)
      end)
    end

    it("for good, a host is told", function()
      local k <const> = until_clean(function(k)
        return run({ MFAIL_AT = k, MFAIL_STICKY = 1, LD_PRELOAD = shim "mfail" }, "wait")
      end)
      assert.truthy(k > 25, k)
    end)
  end)

  local EIO <const>, ENOMEM <const>, EMFILE <const> = 5, 12, 24
  local PIDFD_OPEN <const>, PIDFD_SEND_SIGNAL <const>, FUTEX <const> = 434, 424, 202
  local functions <const> = {
    write = EIO, read = EIO, ftruncate = EIO, posix_fallocate = 28, mmap = ENOMEM,
    madvise = ENOMEM, memfd_create = EMFILE, fork = 11, eventfd = EMFILE, epoll_create1 = EMFILE,
    epoll_ctl = ENOMEM, timerfd_create = EMFILE, ["syscall" .. PIDFD_OPEN] = EMFILE,
    ["syscall" .. PIDFD_SEND_SIGNAL] = false, ["syscall" .. FUTEX] = 4,
  }

  describe("when the system refuses", function()
    helper.guard()

    for name, errno in pairs(functions) do
      if errno then
        for _, how in ipairs { "", ":sticky" } do
          it(("%s%s, a host is right or is told"):format(name, how), function()
            for _, arguments in ipairs { "wait", "poll", "wait spare" } do
              for k = 1, 5 do
                run({ IOFAIL = ("%s:%d:%d%s"):format(name, errno, k, how),
                  LD_PRELOAD = shim "iofail" }, arguments)
              end
            end
          end)
        end
      end
    end

    for _, name in ipairs { "write", "read" } do
      it("all but a byte of a " .. name .. ", a host is right", function()
        for k = 1, 4 do
          assert.truthy(run({ IOFAIL = ("%s:0:%d:short"):format(name, k),
            LD_PRELOAD = shim "iofail" }, "poll"))
        end
      end)
    end
  end)
end
