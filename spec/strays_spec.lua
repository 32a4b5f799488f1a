-- Processes that items started do not outlive the command (P4), however it ends; what the script
-- started by itself does. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local kit <const> = require "crashkit"
local pty <const> = require "ptykit"

local HEAD <const> = [[
local plua, kit = require "plua", require "crashkit"
local function note(text)
  local file <close> = io.open(%q, "a")
  file:setvbuf("no")
  file:write(text .. "\n")
end
local function await(n)
  local ends = kit.now() + 10
  repeat
    local count = 0
    for _ in io.lines(%q) do count = count + 1 end
  until count >= n or kit.now() > ends
end
local function shell(line) os.execute((line:gsub("NOTE", %q))) end
]]

-- What items leave running; each notes the process.
local DEEDS <const> = {
  ["a program in the background"] = [[shell("sleep 600 & echo $! >>NOTE")]],
  ["a daemon"] = [[shell("setsid sh -c 'echo $$ >>NOTE; exec sleep 600' </dev/null >/dev/null &")]],
  ["one whose parents have gone"] = [[shell("(sh -c 'sleep 600 & echo $! >>NOTE' &)")]],
  ["one that ignores SIGTERM"] = [[shell("(trap '' TERM; sleep 600 & echo $! >>NOTE)")]],
  ["one that is stopped"] = [[shell("sleep 600 & echo $! >>NOTE; kill -STOP $!")]],
  ["a fork"] = [[note(kit.forkleak(600, false))]],
  ["a fork that is its own session"] = [[note(kit.forkleak(600, true))]],
  ["a program that it writes to"] = [[
    Pipe = io.popen("echo $$ >>" .. NOTE .. "; exec sleep 600", "w")]],
}

-- How the command ends.
local ENDS <const> = {
  ["by itself"] = { "", "exit 0" },
  ["by os.exit"] = { "os.exit(3)", "exit 3" },
  ["by an error"] = { "error('x')", "exit 1" },
  ["by Ctrl-C"] = { "kit.kill(kit.pid(), 2) while true do end", "signal 2" },
  ["by SIGTERM"] = { "kit.kill(kit.pid(), 15) while true do end", "exit 75" },
  ["by SIGKILL"] = { "kit.kill(kit.pid(), 9)", "signal 9" },
  ["by SIGHUP"] = { "kit.kill(kit.pid(), 1)", "signal 1" },
  ["by a crash"] = { "kit.segv()", "signal 11" },
}

-- Runs the script to its end. How it ended, its stderr and the processes that were noted. The
-- terminal's SIGHUP, when the command has ended, is kept away from those.
local function run(text, hup)
  local dir <const> = helper.tmp()
  local notes <const> = dir .. "/notes"
  helper.write(notes, "")
  helper.write(dir .. "/x.lua", HEAD:format(notes, notes, notes) ..
    ("NOTE = %q\n"):format(notes) .. text)
  local pid <const>, fd <const> = pty.open("/bin/bash", "-c",
    (hup and "" or "trap '' HUP\n") ..
    ("ulimit -c 0; LUA_CPATH='%s/kit/?.so;' exec %s -j 2 %s/x.lua >%s/out 2>%s/err"):format(
      helper.build, helper.plua, dir, dir, dir))
  local how <const>, code <const> = pty.wait(pid, 30)
  if not how then
    kit.kill(pid, 9)
    pty.wait(pid, 10)
  end
  pty.close(fd)
  local list <const> = {}
  for line in (helper.read(notes) or ""):gmatch("%d+") do list[#list + 1] = tonumber(line) end
  return ("%s %s"):format(how, code), helper.read(dir .. "/err"), list
end

local function all_gone(list)
  return helper.wait(function()
    for _, pid in ipairs(list) do
      if helper.alive(pid) then return false end
    end
    return true
  end, 1)
end

local function kill_all(list)
  for _, pid in ipairs(list) do kit.kill(pid, 9) end
end

describe("a command that ends", function()
  helper.guard()

  for name, ending in pairs(ENDS) do
    it(name .. " ends what items left running", function()
      for deed, what in pairs(DEEDS) do
        local how <const>, err <const>, list <const> =
          run(("plua.each(function() %s end, { 1, 2 })\nawait(2)\n%s"):format(what, ending[1]),
            name == "by SIGHUP")
        local gone <const> = all_gone(list)
        kill_all(list)
        assert.equal(ending[2], how, err)
        assert.equal(2, #list, deed .. ": " .. err)
        assert(gone, deed .. " is left")
      end
    end)

    it(name .. " ends what living workers started", function()
      local how <const>, err <const>, list <const> = run(([[
        local pool = plua.pool()
        pool:each(function() os.execute("sleep 600 & echo $! >>" .. NOTE) end, { 1, 2 })
        %s]]):format(ending[1]), name == "by SIGHUP")
      local gone <const> = all_gone(list)
      kill_all(list)
      assert.equal(ending[2], how, err)
      assert.equal(2, #list, err)
      assert(gone, "something is left")
    end)
  end

  it("says what it ended, in a line", function()
    local _, err <const>, list <const> =
      run([[plua.each(function() shell("sleep 600 & echo $! >>NOTE") end, { 1, 2 })]])
    assert.truthy(err:find("^plua: ending 2 processes that items left running: " ..
      "sleep %(pid %d+%), sleep %(pid %d+%)\n$"), err)
    assert(all_gone(list))
  end)

  it("says nothing of those that end by themselves", function()
    local _, err <const> = run([[
      plua.each(function() P = io.popen("cat >/dev/null", "w") P:write("x") end, { 1, 2 })]])
    assert.equal("", err)
  end)

  it("finds those that an item hid behind a long environment", function()
    local _, err <const>, list <const> = run([[plua.each(function()
      shell("export A=$(head -c 70000 /dev/zero | tr '\\0' a) B=b; sleep 600 & echo $! >>NOTE")
    end, { 1 })]])
    local gone <const> = all_gone(list)
    kill_all(list)
    assert.equal(1, #list, err)
    assert(gone, "it is left")
  end)

  it("finds those that are in the midst of an exec", function()
    local _, err <const>, list <const> = run([[plua.each(function()
      shell("echo 'exec sh NOTE.sh' >NOTE.sh; sh NOTE.sh & echo $! >>NOTE")
    end, { 1 })]])
    local gone <const> = all_gone(list)
    kill_all(list)
    assert.equal(1, #list, err)
    assert.truthy(err:find("^plua: ending 1 process that items left running: sh %(pid %d+%)\n$"),
      err)
    assert(gone, "it is left")
  end)

  it("leaves alone what the script itself started, and what an item wants to stay", function()
    local how <const>, err <const>, list <const> = run([[
      shell("sleep 600 & echo $! >>NOTE")
      shell("setsid sleep 600 & echo $! >>NOTE")
      plua.each(function()
        shell("env -u PLUA_ITEM_OF sleep 600 & echo $! >>NOTE;" ..
          "until grep -q sleep /proc/$!/comm; do :; done")
      end, { 1 })
      shell("sleep 600 & echo $! >>NOTE")]])
    local alive = 0
    for _, pid in ipairs(list) do alive = alive + (helper.alive(pid) and 1 or 0) end
    kill_all(list)
    assert.equal("exit 0", how)
    assert.equal("", err)
    assert.equal(4, alive)
  end)

  it("leaves its own watch nowhere, and no child that wait would see", function()
    local how <const>, err <const>, list <const> = run([[
      plua.map(function() end, { 1, 2 })
      for _, pid in ipairs(kit.children()) do note(pid) end
      print(kit.waitall())]])
    assert.equal("exit 0", how, err)
    assert(all_gone(list))
  end)

  it("costs a script without plua no process", function()
    local result <const> = helper.run(helper.plua .. " -e 'for l in " ..
      "io.lines(\"/proc/self/task/\" .. io.open(\"/proc/self/stat\"):read(\"n\") .. " ..
      "\"/children\") do print(l) end'")
    assert.same({ 0, "" }, { result.status, result.out })
  end)
end)

describe("the library in another program", function()
  helper.guard()

  it("ends nothing, and marks nothing", function()
    local result <const> = helper.run(helper.lua .. " -e " .. helper.quote([[
      local plua = require "plua"
      print(plua.map(function() return os.getenv("PLUA_ITEM_OF") or "none" end, { 1 })[1])
      local pipe = io.popen("pgrep -c -P " .. io.open("/proc/self/stat"):read("n") .. " plua")
      print(pipe:read("n"))]]))
    assert.equal("none\n0\n", result.out, result.err)
  end)
end)
