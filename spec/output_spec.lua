-- What items print: whole lines in "live" output, blocks in "grouped", the last words of the dead.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local quote <const> = helper.quote

-- Prints lines that tell what they should be: by print, by io.write in one and in several parts,
-- and to stderr in parts.
local WRITER <const> = [[
local plua = require "plua"
function line_of(i, j, longest)
  local n = math.random(1, longest)
  local letter = string.char(97 + (7 * i + j) % 26)
  return ("%d.%d.%d:%d:"):format(i, plua.worker().attempt, j, n) .. letter:rep(n)
end
function write(way, line)
  if way == 1 then print(line .. "$")
  elseif way == 2 then io.write(line, "$\n")
  elseif way == 3 then io.write(line) io.write("$", "\n")
  else io.stderr:write(line, "$", "\n") end
end
]]

-- What is wrong with a text of such lines, how many are whole, how many only begun.
local function judge(text)
  local whole <const>, wrong <const>, cut = {}, {}, 0
  local n = 0
  for line in text:gmatch("([^\n]+)\n") do -- one that was killed may leave an empty line
    local i <const>, attempt <const>, j <const>, len <const>, body <const>, mark <const> =
      line:match("^(%d+)%.(%d+)%.(%d+):(%d+):(%a*)(%$?)$")
    local letter <const> = i and string.char(97 + (7 * tonumber(i) + tonumber(j)) % 26)
    local pure <const> = i and not body:find("[^" .. letter .. "]")
    if pure and mark == "$" and #body == tonumber(len) then
      local name <const> = ("%s.%s.%s"):format(i, attempt, j)
      if whole[name] then wrong[#wrong + 1] = name .. " is there twice" end
      whole[name], n = tonumber(len), n + 1
    elseif pure and mark == "" and #body < tonumber(len) and tonumber(len) > 4000 then
      cut = cut + 1
    else
      wrong[#wrong + 1] = "torn: " .. line:sub(1, 60)
    end
  end
  return table.concat(wrong, "\n", 1, math.min(#wrong, 10)), n, cut, whole
end

local function written(how, body, opts)
  local script <const> = helper.script(WRITER .. body)
  local out <const> = helper.tmp() .. "/out"
  local shapes <const> = {
    ["a file"] = "%s >%s 2>&1",
    ["a pipe"] = "%s 2>&1 | cat >%s",
    ["a terminal"] = "script -qefc %s /dev/null | tr -d '\\r' >%s",
    ["a socket"] = "python3 -c 'import socket, subprocess, sys\n" ..
      "a, b = socket.socketpair()\n" ..
      "p = subprocess.Popen(sys.argv[2:], stdout=a, stderr=a)\n" ..
      "a.close()\n" ..
      "f = open(sys.argv[1], \"wb\")\n" ..
      "for part in iter(lambda: b.recv(1 << 16), b\"\"): f.write(part)\n" ..
      "sys.exit(p.wait())' OUT %s",
  }
  local command = ("%s %s"):format(helper.plua, script)
  if how == "a terminal" then command = quote(command) end
  local shape <const> = how == "a socket" and shapes[how]:gsub("OUT", function() return out end)
    or shapes[how]
  local result <const> = helper.run("set -o pipefail; " .. shape:format(command, out), opts)
  return helper.read(out), result
end

describe("lines that items print", function()
  helper.guard()

  for _, how in ipairs { "a file", "a pipe", "a terminal", "a socket" } do
    it("come out whole to " .. how .. ", however long", function()
      local text <const>, result <const> = written(how, [[
        plua.each(function(i)
          for j = 1, 40 do
            local longest = j % 3 == 0 and 100000 or j % 3 == 1 and 6000 or 100
            write(math.random(4), line_of(i, j, longest))
          end
        end, plua.range(1, 16), { workers = 8 })]], { timeout = 300 })
      assert.equal(0, result.status, result.err)
      local wrong <const>, n <const>, cut <const> = judge(text)
      assert.equal("", wrong)
      assert.same({ 640, 0 }, { n, cut })
    end)
  end

  it("come out whole, ten thousand from eight workers", function()
    local text <const>, result <const> = written("a pipe", [[
      plua.each(function(i)
        for j = 1, 100 do
          write(math.random(4), line_of(i, j, math.random(20) == 1 and 50000 or 200))
        end
      end, plua.range(1, 100), { workers = 8 })]], { timeout = 300 })
    assert.equal(0, result.status, result.err)
    local wrong <const>, n <const> = judge(text)
    assert.equal("", wrong)
    assert.equal(10000, n)
  end)

  it("are whole though workers are killed meanwhile: at most a long one ends early", function()
    local text <const>, result <const> = written("a pipe", [[
      local done = plua.map(function(i)
        if i % 2 == 0 and plua.worker().attempt == 1 then
          os.execute(("(sleep 0.%03d; kill -9 $PPID) 2>/dev/null &"):format(math.random(5, 60)))
        end
        for j = 1, 40 do write(math.random(3), line_of(i, j, j % 2 == 0 and 100000 or 100)) end
        return 40
      end, plua.range(1, 40), { workers = 4, retries = 5, on_error = "collect", seed = 7 })
      for i = 1, 40 do
        if done[i] ~= 40 then error(tostring(done[i])) end
      end]], { timeout = 300 })
    assert.equal(0, result.status, result.err)
    local wrong <const>, _ <const>, _ <const>, whole <const> = judge(text)
    assert.equal("", wrong)
    for i = 1, 40 do
      local complete = false
      for attempt = 1, 6 do
        local n = 0
        for j = 1, 40 do n = n + (whole[("%d.%d.%d"):format(i, attempt, j)] and 1 or 0) end
        complete = complete or n == 40
      end
      assert.is_true(complete, "item " .. i .. " has lost lines")
    end
  end)

  it("do not wait for a worker that was stopped in the middle of a long line", function()
    local script <const> = helper.script([[
      local plua, kit = require "plua", require "crashkit"
      local begun = kit.now()
      for i in plua.imap_unordered(function(i)
        if i > 1 then return print("short " .. i) end
        local stop = "(sleep 0.3; kill -STOP %d; sleep 8; kill -CONT %d) >/dev/null 2>&1 &"
        os.execute(stop:format(plua.worker().pid, plua.worker().pid))
        print(("long "):rep(200000)) -- nobody reads: it waits in the middle
      end, plua.range(1, 20), { workers = 2, chunksize = 1 }) do
        io.stderr:write(i, " ", kit.now() - begun < 7 and "soon" or "late", "\n")
      end]])
    local result <const> = helper.run(("%s %s | (sleep 1; cat) | wc -l"):format(helper.plua,
      script))
    local soon <const> = select(2, result.err:gsub("soon", ""))
    assert.equal(19, soon, result.err)
    assert.truthy(result.err:find("\n1 late\n"), result.err)
  end)

  it("keep what was written when C exits, and lose nothing at the end of an item", function()
    local text <const> = written("a file", [[
      io.write("parent ")
      io.stdout:setvbuf("full", 1 << 16)
      plua.map(function(i)
        io.write("item ", i)
        if i == 2 then os.exit(0) end
      end, plua.range(1, 3), { workers = 1, on_error = "collect", retries = 0 })
      print("end")]])
    assert.equal("parent item 1item 2item 3end\n", text)
  end)

  for _, mode in ipairs { "no", "line", "full" } do
    it("are whole after setvbuf '" .. mode .. "' in an item and in the parent", function()
      local text <const>, result <const> = written("a pipe", [[
        io.stdout:setvbuf("]] .. mode .. [[")
        plua.each(function(i)
          io.stdout:setvbuf("]] .. mode .. [[")
          for j = 1, 50 do write(math.random(4), line_of(i, j, 5000)) end
        end, plua.range(1, 40), { workers = 4 })]])
      assert.equal(0, result.status, result.err)
      local wrong <const>, n <const> = judge(text)
      assert.equal("", wrong)
      assert.equal(2000, n)
    end)
  end

  it("are seen on a terminal while their item goes on", function()
    local gate <const> = helper.tmp() .. "/gate"
    local text <const>, result <const> = written("a terminal", [[
      plua.each(function()
        io.write("begun\n")
        for _ = 1, 1000 do
          if io.open("]] .. gate .. [[") then return print("seen") end
          os.execute("sleep 0.01")
        end
        print("never seen")
      end, { 1 }, { workers = 1 })]] .. "\n-- " .. gate)
    assert.equal(0, result.status, result.err)
    assert.truthy(text:find("begun"))
  end)
end)

describe("the parent's buffer", function()
  helper.guard()

  it("is written once, whatever ends the workers", function()
    for _, ending in ipairs { "exit(0)", "quick_exit(0)", "_exit(0)", "abort()" } do
      local script <const> = helper.script([[
        local plua, kit = require "plua", require "crashkit"
        io.stdout:setvbuf("full", 1 << 16)
        io.write("once\n")
        local file = io.open(arg[1], "w")
        file:setvbuf("full", 1 << 16)
        file:write("hello\n")
        plua.map(function(i)
          file:flush()
          kit.]] .. ending .. [[
        end, { 1, 2, 3 }, { workers = 2, on_error = "collect" })
        file:write("world\n")
        file:close()
        io.write("end\n")]])
      local path <const> = helper.tmp() .. "/file"
      local result <const> = helper.run(("%s %s %s"):format(helper.plua, script, path))
      assert.equal("once\nend\n", result.out, ending)
      assert.equal("hello\nworld\n", helper.read(path), ending)
    end
  end)

  it("of a pipe to a program is written once", function()
    local script <const> = helper.script([[
      local plua = require "plua"
      local pipe = io.popen("cat", "w")
      pipe:write("once\n")
      plua.map(function(i) pipe:flush() return i end, { 1, 2, 3 }, { workers = 2 })
      pipe:close()]])
    assert.equal("once\n", helper.run(helper.plua .. " " .. script).out)
  end)
end)
