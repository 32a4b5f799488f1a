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
      local plua = require "plua"
      local stopped = arg[1]
      local n, pid = 0, nil
      for i in plua.imap_unordered(function(i)
        if i > 1 then
          for _ = 1, 2000 do
            if io.open(stopped) then return print("short " .. i) end
            os.execute("sleep 0.01")
          end
        end
        local stop = "(sleep 0.3; kill -STOP %d; echo %d >%s.new; mv %s.new %s) >/dev/null 2>&1 &"
        os.execute(stop:format(plua.worker().pid, plua.worker().pid, stopped, stopped, stopped))
        print(("long "):rep(200000)) -- nobody reads: it waits in the middle
      end, plua.range(1, 20), { workers = 2, chunksize = 1 }) do
        n = n + 1
        if n < 20 then assert(i > 1) else assert(i == 1) end
        if n == 19 then os.execute("kill -CONT " .. io.open(stopped):read("n")) end
      end]])
    local stopped <const> = helper.tmp() .. "/stopped"
    local result <const> = helper.run(([[set -o pipefail
      %s %s %s | (until [ -f %s ]; do sleep 0.01; done; cat) | wc -l]]):format(helper.plua, script,
      stopped, stopped), { timeout = 60 })
    assert.same({ 0, "" }, { result.status, result.err })
    assert.truthy(tonumber(result.out) >= 20, result.out)
  end)

  -- The program has a kernel of its own, and stands where a sanitizer would.
  if helper.san == "" then
    it("take turns, are patient and end, to the last byte", function()
      local result <const> = helper.run(helper.build .. "/host/lines_edges", { timeout = 60 })
      assert.equal("ok\n", result.out, result.err)
    end)
  end

  for _, how in ipairs { "plain", "wide", "before" } do
    it("are out when their item ends, printed by C: " .. how, function()
      local text <const> = written("a file", ([[
        local plua, kit = require "plua", require "crashkit"
        plua.map(function(i)
          if i == 2 then kit.raise(9) end
          kit.print("%s", "item " .. i .. "\n")
        end, plua.range(1, 2), { workers = 1, on_error = "collect", retries = 0 })]]):format(how))
      assert.equal("item 1\n", text)
    end)
  end

  -- A plain process has chosen bytes once Lua has printed; a worker has from the start.
  it("are bytes: wide characters to stdout are refused, and cost no other line", function()
    for _, output in ipairs { "live", "grouped" } do
      local text <const>, result <const> = written("a file", ([[
        local plua, kit = require "plua", require "crashkit"
        plua.each(function(i)
          if i == 2 then assert(not kit.print("wide now", "lost\n")) end
          print("by Lua", i)
          assert(kit.print("plain", "by C " .. i .. "\n"))
        end, plua.range(1, 3), { workers = 1, output = "%s" })]]):format(output))
      assert.equal(0, result.status, result.err)
      assert.equal("by Lua\t1\nby C 1\nby Lua\t2\nby C 2\nby Lua\t3\nby C 3\n", text)
    end
  end)

  it("go to streams that have their descriptors, as C modules ask for them", function()
    local script <const> = helper.script([[
      local plua, kit = require "plua", require "crashkit"
      for _, output in ipairs { "live", "grouped" } do
        print(table.unpack(plua.map(function()
          return { kit.fileno(io.stdout), kit.fileno(io.stderr) }
        end, { 1 }, { workers = 1, output = output })[1]))
      end]])
    assert.equal("1\t2\n1\t2\n", helper.run(helper.plua .. " " .. script).out)
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
    local script <const> = helper.script([[
      local plua = require "plua"
      plua.each(function(gate)
        io.write("begun\n")
        for _ = 1, 2000 do
          if io.open(gate) then return print("answered") end
          os.execute("sleep 0.01")
        end
      end, { arg[1] }, { workers = 1 })]])
    local command <const> = quote(("%s %s %s"):format(helper.plua, script, gate))
    local result <const> = helper.run(
      ("script -qefc %s /dev/null | (grep -m 1 begun; touch %s; cat)"):format(command, gate))
    assert.equal("begun\nanswered\n", (result.out:gsub("\r", "")), result.err)
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

describe("grouped output", function()
  helper.guard()

  local ITEMS <const> = [[
    local plua, kit = require "plua", require "crashkit"
    local function talk(i)
      print("begin " .. i)
      io.stderr:write("err ", i, "\n")
      os.execute("echo child " .. i)
      local t = kit.now() + 0.01
      while kit.now() < t do end
      print("end " .. i)
    end
    ]]

  -- The blocks of a text, by item; asserts that none is divided.
  local function blocks(text, n)
    local seen <const> = {}
    for block, i in text:gmatch("(begin (%d+)\nerr %d+\nchild %d+\nend %d+\n)") do
      assert.equal(("begin %s\nerr %s\nchild %s\nend %s\n"):gsub("%%s", i), block)
      seen[tonumber(i)] = (seen[tonumber(i)] or 0) + 1
    end
    for i = 1, n do assert.equal(1, seen[i], "block of item " .. i .. " in " .. text) end
  end

  for _, workers in ipairs { 0, 1, 4 } do
    it("comes in blocks, of children too, " .. workers .. " workers", function()
      local script <const> = helper.script(ITEMS .. ([[
        io.stdout:setvbuf("line")
        plua.each(talk, plua.range(1, 40), { workers = %d, output = "grouped" })
        local pool <close> = plua.pool { workers = %d, output = "grouped" }
        pool:each(talk, plua.range(41, 80))]]):format(workers, workers))
      local out <const> = helper.tmp() .. "/out"
      local result <const> = helper.run(("%s %s >%s 2>&1"):format(helper.plua, script, out))
      assert.equal(0, result.status, helper.read(out))
      blocks(helper.read(out), 80)
    end)
  end

  it("keeps stderr apart where it is another place", function()
    local script <const> = helper.script(ITEMS ..
      "plua.each(talk, plua.range(1, 20), { workers = 3, output = 'grouped' })")
    local result <const> = helper.run(helper.plua .. " " .. script)
    assert.equal(20, select(2, result.out:gsub("begin (%d+)\nchild %1\nend %1\n", "")))
    assert.equal(20, select(2, result.err:gsub("err %d+\n", "")))
  end)

  it("is an option of the command and of job scripts", function()
    local job <const> = helper.script(ITEMS ..
      "return { data = plua.range(1, 20), map = function(i) talk(i) end, done = function() end }")
    local out <const> = helper.tmp() .. "/out"
    local result <const> = helper.run(("%s -j 3 --output grouped %s >%s 2>&1"):format(helper.plua,
      job, out))
    assert.equal(0, result.status, helper.read(out))
    blocks(helper.read(out), 20)
    local wrong <const> = helper.run(("%s --output loud %s"):format(helper.plua, job))
    assert.equal(2, wrong.status)
    assert.truthy(wrong.err:find("'output' must be \"live\" or \"grouped\"", 1, true), wrong.err)
  end)

  it("comes before the result of its item", function()
    local script <const> = helper.script([[
      local plua = require "plua"
      for i in plua.imap_unordered(function(i) io.write("block ", i, "\n") end,
        plua.range(1, 50), { workers = 3, output = "grouped" }) do
        io.write("result ", i, "\n")
        io.flush()
      end]])
    local out <const> = helper.tmp() .. "/out"
    helper.run(("%s %s >%s"):format(helper.plua, script, out))
    local shown, results <const> = {}, {}
    for what, i in helper.read(out):gmatch("(%a+) (%d+)\n") do
      if what == "block" then shown[i] = true else results[#results + 1] = i end
      assert.is_true(shown[i], "result before block " .. i)
    end
    assert.equal(50, #results)
  end)

  it("goes with the error of an item that fails, exits or crashes, and is shown once", function()
    local script <const> = helper.script([[
      local plua, kit = require "plua", require "crashkit"
      local results = plua.map(function(i)
        io.write("out ", i, "\n")
        io.stderr:write("err ", i, "\n")
        if i == 1 then error "bad" end
        if i == 2 then kit.abort() end
        if i == 3 then os.exit(3) end
        if i == 4 then kit._exit(4) end
        if i == 5 then kit.raise(9) end
      end, plua.range(1, 6), { workers = 2, output = "grouped", on_error = "collect", retries = 0 })
      for i = 1, 5 do
        assert(results[i].output == ("out %d\nerr %d\n"):format(i, i), results[i].output)
        local shown = "its output:\n  | out " .. i .. "\n  | err " .. i
        assert(tostring(results[i]):find(shown, 1, true))
      end]])
    local result <const> = helper.run(helper.plua .. " " .. script .. " 2>&1")
    assert.equal(0, result.status, result.out)
    for i = 1, 6 do
      assert.equal(1, select(2, result.out:gsub(("out %d\nerr %d\n"):format(i, i), "")), result.out)
    end
  end)

  it("shows large blocks whole and tells 64 KiB of them", function()
    local script <const> = helper.script([[
      local plua = require "plua"
      local results = plua.map(function(i)
        for _ = 1, 3000 do io.write((string.char(118 + i)):rep(999), "\n") end
        io.write("last ", i, "\n")
        error "after much"
      end, plua.range(1, 4), { workers = 4, output = "grouped", on_error = "collect" })
      for i = 1, 4 do
        assert(#results[i].output == 65536 and results[i].output:sub(-7) == "last " .. i .. "\n")
        assert(#tostring(results[i]) < 4000)
      end]])
    local out <const> = helper.tmp() .. "/out"
    local result <const> = helper.run(("%s %s >%s"):format(helper.plua, script, out))
    assert.equal(0, result.status, result.err)
    local text <const> = helper.read(out)
    assert.equal(4 * 3000 * 1000 + 4 * 7, #text)
    for i = 1, 4 do
      local letter <const> = string.char(118 + i)
      local block <const> = text:match(letter .. ".*" .. letter .. "\nlast " .. i .. "\n")
      assert.equal(3000 * 1000 + 7, #block)
    end
  end)

  it("works where TMPDIR cannot be written, and where stdout is closed", function()
    local script <const> = helper.script(ITEMS ..
      "plua.each(talk, plua.range(1, 5), { workers = 2, output = 'grouped' })")
    local out <const> = helper.tmp() .. "/out"
    helper.run(("%s %s >%s 2>&1"):format(helper.plua, script, out), { env = { TMPDIR = "/proc" } })
    blocks(helper.read(out), 5)
    local result <const> = helper.run(helper.plua .. " " .. script .. " >&-")
    assert.equal(5, select(2, result.err:gsub("err %d\n", "")), result.err)
  end)

  it("of init and finish comes too", function()
    local script <const> = helper.script([[
      local plua = require "plua"
      plua.each(function() end, { 1, 2 }, { workers = 1, output = "grouped",
        init = function() print "init" end, finish = function() print "finish" end })]])
    assert.equal("init\nfinish\n", helper.run(helper.plua .. " " .. script).out)
  end)
end)

describe("output that cannot be written", function()
  helper.guard()

  local function full(opts, program)
    local script <const> = helper.script(([[
      local plua = require "plua"
      local list = plua.map(function(i)
        if i == 3 then print("lost") end
        return i
      end, plua.range(1, 5), { on_error = "collect", %s })
      for i = 1, 5 do io.stderr:write(tostring(list[i]), "\n") end
    ]]):format(opts))
    return helper.run(("%s %s >/dev/full"):format(program, script))
  end

  for _, opts in ipairs {
    "workers = 2", "workers = 1, output = 'grouped'", "workers = 0, output = 'grouped'",
  } do
    it("is the error of its item: " .. opts, function()
      for _, program in ipairs { helper.plua, helper.lua } do
        local result <const> = full(opts, program)
        assert.matches("^1\n2\nitem 3 %(3%): what it printed could not be written to " ..
          "standard output %(is the disk full%?%)\n.-4\n5\n", result.err)
      end
    end)
  end

  it("ends a call, with status 1", function()
    local script <const> = helper.script(
      "require('plua').each(function(i) io.write(i) end, { 1, 2, 3 }, { workers = 2 })")
    local result <const> = helper.run(helper.plua .. " " .. script .. " >/dev/full")
    assert.equal(1, result.status)
    assert.matches("^item %d %(%d%): what it printed could not be written", result.err)
  end)

  it("is nobody's fault where standard output is closed", function()
    local script <const> = helper.script(
      "require('plua').each(function(i) print(i) end, { 1, 2, 3 }, { workers = 2 })")
    local result <const> = helper.run(helper.plua .. " " .. script .. " >&-")
    assert.equal(0, result.status)
    assert.equal("", result.err)
  end)
end)

describe("an item in the caller's own process that ends it", function()
  helper.guard()

  for _, output in ipairs { "live", "grouped" } do
    for call, status in pairs {
      ["os.exit(3)"] = 3, ["os.exit(true, true)"] = 0, ["kit.exit(4)"] = 4,
      ["if kit.fork() > 0 then kit.waitall() end os.exit(5)"] = 5,
      ["if kit.fork() > 0 then kit.waitall() end os.exit(6, true)"] = 6,
    } do
      it(("loses nothing that was printed: %s, %s"):format(call, output), function()
        for _, program in ipairs { helper.plua, helper.lua } do
          local result <const> = helper.run(program .. " " .. helper.script(([[
            local plua, kit = require "plua", require "crashkit"
            plua.each(function(i)
              print("item", i)
              os.execute("echo a child")
              io.stderr:write("error ", i, "\n")
              io.write("the rest")
              io.flush()
              if i == 2 then %s end
              print ""
            end, { 1, 2, 3 }, { workers = 0, output = %q })
          ]]):format(call, output)))
          assert.same({
            status, "item\t1\na child\nthe rest\nitem\t2\na child\nthe rest",
            "error 1\nerror 2\n" }, { result.status, result.out, result.err })
        end
      end)
    end
  end
end)

describe("an item that kills its worker twice", function()
  helper.guard()

  it("tells the signal, the attempts and what it last wrote to stderr", function()
    local script <const> = helper.script([[
      local plua, kit = require "plua", require "crashkit"
      local results = plua.map(function(i)
        if i ~= 3 then return i end
        io.stderr:write("about to fall\n")
        os.execute("echo said by a child >&2")
        kit.abort()
      end, plua.range(1, 5), { workers = 2, on_error = "collect" })
      local err = results[3]
      assert(err.kind == "crash" and err.signal == "SIGABRT" and err.attempts == 2)
      assert(err.output == "about to fall\nsaid by a child\n", err.output)
      print(err)]])
    local result <const> = helper.run(helper.plua .. " " .. script)
    assert.equal(0, result.status, result.err)
    assert.truthy(result.out:find("killed by SIGABRT while running item 3 (3); tried 2 times\n" ..
      "its output:\n  | about to fall\n  | said by a child\n", 1, true), result.out)
    assert.equal(("about to fall\nsaid by a child\n"):rep(2), result.err)
  end)

  it("lets an item that survives its second try print as ever", function()
    local mark <const> = helper.tmp() .. "/mark"
    local script <const> = helper.script([[
      local plua, kit = require "plua", require "crashkit"
      plua.each(function(i)
        io.stderr:write("item ", i, "\n")
        local file = i == 2 and not io.open(arg[1]) and io.open(arg[1], "w")
        if file then file:close() kit.segv() end
      end, plua.range(1, 4), { workers = 1 })]])
    local result <const> = helper.run(("%s %s %s"):format(helper.plua, script, mark))
    assert.equal(0, result.status, result.err)
    assert.equal(2, select(2, result.err:gsub("item 2\n", "")))
    for _, i in ipairs { 1, 3, 4 } do
      assert.equal(1, select(2, result.err:gsub("item " .. i .. "\n", "")))
    end
  end)
end)

describe("items that print to a pipe that nobody reads", function()
  helper.guard()

  for _, option in ipairs { "", "--on-error collect", "--output grouped" } do
    it("end the command quietly, as cat ends " .. option, function()
      local scripts <const> = {
        [[require "plua".map(function(i) print(i) return i end, require "plua".range(1, 20000),
          { workers = 2, on_error = "collect" })]],
        [[return { data = require "plua".range(1, 20000), map = function(i) print(i) return i end,
          done = function() end }]],
      }
      for _, text in ipairs(scripts) do
        local result <const> = helper.run(("%s %s %s | head -1 >&2; echo ${PIPESTATUS[0]}"):format(
          helper.plua, option, helper.script(text)), { timeout = 30 })
        assert.equal("141\n", result.out)
        assert.truthy(result.err:find("^%d+\n$"), result.err)
      end
    end)
  end

  -- The shim stands where a sanitizer would.
  if helper.san == "" then
    it("say nothing where their worker starts while the owner ends", function()
      local script <const> = helper.script [[
        require "plua".each(print, require "plua".range(1, 3), { workers = 1 })]]
      for errno, told in pairs { [32] = "", [104] = "",
        [24] = "plua: worker 1: output cannot be kept: Too many open files\n" } do
        local result <const> = helper.run(helper.plua .. " --output grouped " .. script, { env = {
          IOFAIL = ("sendmsg:%d:1"):format(errno),
          LD_PRELOAD = helper.build .. "/preload/iofail.so",
        } })
        assert.same({ "1\n2\n3\n", told, 0 }, { result.out, result.err, result.status })
      end
    end)
  end

  it("are not tried again, and cost nobody else anything, in another host", function()
    local script <const> = helper.script([[
      local plua = require "plua"
      local results = plua.map(function(i)
        if i == 3 then print(i) end
        return i
      end, plua.range(1, 6), { workers = 2, on_error = "collect" })
      local err = results[3]
      local told = plua.iserror(err) and err.signal == "SIGPIPE" and err.attempts == 1
      io.stderr:write(tostring(told), " ", results[1], results[2], results[4], results[6], "\n")]])
    local result <const> = helper.run(("(sleep 0.3; %s %s) | true"):format(helper.lua, script))
    assert.equal("true 1246\n", result.err)
  end)
end)

describe("what the script printed before it submitted", function()
  helper.guard()

  for name, call in pairs {
    ["a call of plua"] = "plua.each(print, { 'item' }, { workers = 1 })",
    ["a call on a pool"] = "pool:each(print, { 'item' })",
    ["a loop on a pool"] = "for _ in pool:imap(print, { 'item' }) do end",
    ["apply"] = "pool:apply(print, 'item')",
    ["apply, not the first"] = "pool:apply(print, 'item')",
  } do
    it("comes out before what items print: " .. name, function()
      local script <const> = helper.script(([[
        local plua = require "plua"
        local pool <close> = plua.pool { workers = 1 }
        if %s then pool:apply(math.abs, 1) end
        io.write("script ")
        %s]]):format(name:find("not the first") ~= nil, call))
      local result <const> = helper.run(helper.plua .. " " .. script)
      assert.equal("", result.err)
      assert.equal("script item\n", result.out)
    end)
  end
end)
