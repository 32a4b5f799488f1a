-- The job scripts to learn from: each does what its first lines say, for any number of workers.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"

local WORKERS <const> = { 0, 1, 2, 3 }

--- Runs a script of scripts/ with some workers.
local function run(workers, line, opts)
  return helper.run(("%s -j %d scripts/%s"):format(helper.plua, workers, line), opts)
end

--- Its output, which must be the same for any number of workers; nothing goes to stderr.
local function output(line)
  local first
  for _, workers in ipairs(WORKERS) do
    local result <const> = run(workers, line)
    assert.same({ "", 0 }, { result.err, result.status })
    first = first or result.out
    assert.equal(first, result.out, workers .. " workers")
  end
  return first
end

--- Loads a script with a print that collects its lines. For scripts that return a job.
local function load_job(path)
  local lines = {}
  local env <const> = setmetatable({}, { __index = _G })
  function env.print(...) table.insert(lines, table.concat({ ... }, "\t")) end
  return assert(loadfile(path, "t", env))(), lines
end

describe("cubes.lua", function()
  helper.guard()

  it("prints the cubes by map, by futures and as a job", function()
    local line <const> = "1 8 27 64 125 216\n"
    assert.equal(line .. line .. line:gsub(" ", "\n"), output "cubes.lua")
  end)

  it("runs under the stock interpreter too, which leaves the job alone", function()
    local result <const> = helper.run(helper.lua .. " scripts/cubes.lua")
    assert.same({ ("1 8 27 64 125 216\n"):rep(2), "" }, { result.out, result.err })
  end)
end)

describe("mandelbrot.lua", function()
  helper.guard()

  local function picture(workers, width)
    local path <const> = helper.tmp() .. "/set.pgm"
    local result <const> = run(workers, ("mandelbrot.lua '%s' %d"):format(path, width))
    assert.same({ "", 0 }, { result.err, result.status })
    return helper.read(path)
  end

  it("draws the same picture with any number of workers", function()
    local first <const> = picture(0, 80)
    for _, workers in ipairs(WORKERS) do assert.equal(first, picture(workers, 80)) end
  end)

  it("draws the set: black inside, white far away, symmetric about the real axis", function()
    local text <const> = picture(2, 80)
    local head <const>, pixels <const> = text:match("^(P5\n80 60\n255\n)(.*)$")
    assert.truthy(head)
    assert.equal(80 * 60, #pixels)
    local function pixel(x, y)
      local i <const>, j <const> = (x + 2.3) / 3.2 * 80 // 1, (y + 1.2) / 2.4 * 60 // 1
      return pixels:byte(math.tointeger(80 * j + i + 1))
    end
    assert.same({ 0, 0, 0 }, { pixel(0, 0.01), pixel(-1, 0.01), pixel(-0.1, 0.7) })
    assert.equal(255, pixel(-2.29, 1.19))
    for row = 0, 29 do
      local mirror <const> = 59 - row
      assert.equal(pixels:sub(80 * row + 1, 80 * row + 80),
        pixels:sub(80 * mirror + 1, 80 * mirror + 80))
    end
  end)

  it("names the file that it cannot write, and the width that is none", function()
    local result = run(2, "mandelbrot.lua /nowhere/set.pgm")
    assert.equal(1, result.status)
    assert.matches("/nowhere/set.pgm: No such file or directory", result.err, 1, true)
    result = run(2, "mandelbrot.lua --help")
    assert.equal(1, result.status)
    assert.matches("usage: mandelbrot.lua", result.err, 1, true)
    result = run(2, "mandelbrot.lua /nowhere/set.pgm wide")
    assert.equal(1, result.status)
    assert.matches('must be a positive integer, not "wide"', result.err, 1, true)
  end)
end)

describe("primes.lua", function()
  helper.guard()

  it("counts the 78498 primes below a million", function()
    assert.equal("78498 primes below 1000000\n", output "primes.lua")
  end)

  it("counts as a plain test of each number does", function()
    local function is_prime(k)
      for d = 2, math.floor(k ^ 0.5) do
        if k % d == 0 then return false end
      end
      return k > 1
    end
    for _, n in ipairs { 0, 1, 2, 3, 4, 5, 100, 19999, 20000, 20001, 40010 } do
      local count = 0
      for k = 0, n - 1 do count = count + (is_prime(k) and 1 or 0) end
      local result <const> = run(2, "primes.lua " .. n)
      assert.equal(("%d primes below %d\n"):format(count, n), result.out)
    end
  end)

  it("refuses what is no number", function()
    local result <const> = run(2, "primes.lua many")
    assert.equal(1, result.status)
    assert.matches('n must be a whole number, not "many"', result.err, 1, true)
  end)
end)

describe("statuses.lua", function()
  helper.guard()

  it("counts each line once, wherever its file is cut", function()
    local path <const> = helper.tmp() .. "/log"
    local lines <const>, want = {}, { ["200"] = 0, ["404"] = 0, none = 0 }
    for i = 1, 200 do
      local code <const> = i % 7 == 0 and "404" or i % 11 == 0 and "none" or "200"
      want[code] = want[code] + 1
      lines[i] = code == "none" and ("?"):rep(i % 5) or ('h "GET /%d" %s %d'):format(i, code, i)
    end
    want = (" 200 %d\n 404 %d\nnone %d\n"):format(want["200"], want["404"], want.none)
    for _, last in ipairs { "", "\n" } do
      helper.write(path, table.concat(lines, "\n") .. last)
      for _, part in ipairs { 1, 2, 19, 20, 64, 1000, 5000, 1 << 20 } do
        assert.equal(want, output(("statuses.lua %s %d"):format(path, part)))
      end
    end
  end)

  it("finds nothing in an empty file, and says which file is not there", function()
    local path <const> = helper.tmp() .. "/log"
    helper.write(path, "")
    assert.equal("", output("statuses.lua " .. path))
    local result <const> = run(2, "statuses.lua " .. path .. ".gz")
    assert.same({ "", 1 }, { result.out, result.status })
    assert.matches("log.gz: No such file or directory", result.err, 1, true)
    assert.matches("usage: statuses.lua", run(2, "statuses.lua").err, 1, true)
  end)
end)

describe("resume.lua", function()
  helper.guard()

  local function sorted(text)
    local lines = {}
    for line in text:gmatch "[^\n]*\n?" do table.insert(lines, line) end
    table.sort(lines)
    return table.concat(lines)
  end

  it("does what has no line yet, wherever its file was cut off", function()
    local path <const> = helper.tmp() .. "/sweep.csv"
    local result = run(2, "resume.lua " .. path)
    assert.same({ "0 of 100 done before, 100 now, 0 failed\n", "", 0 },
      { result.out, result.err, result.status })
    local all <const> = sorted(helper.read(path))
    assert.matches("%f[%d]98,97[0-9]+,%d+\n", all)
    for _, size in ipairs { #all, #all - 1, #all // 2, 7, 1, 0 } do
      local part <const> = helper.read(path):sub(1, size)
      local _, before <const> = part:gsub("\n", "")
      helper.write(path, part)
      result = run(3, "resume.lua " .. path)
      assert.equal(("%d of 100 done before, %d now, 0 failed\n"):format(before, 100 - before),
        result.out)
      assert.equal(all, sorted(helper.read(path)))
    end
  end)

  it("tells of items that fail, and does them when it runs again", function()
    local path <const> = helper.tmp() .. "/sweep.csv"
    local result <const> = helper.run(("%s -e %s scripts/resume.lua %s"):format(helper.plua,
      helper.quote [[
        local plua <const> = require "plua"
        local imap <const> = plua.imap_unordered
        function plua.imap_unordered(f, ...)
          return imap(function(block) return block == 3 and error("no three") or f(block) end, ...)
        end]], path))
    assert.equal("0 of 100 done before, 99 now, 1 failed\n", result.out)
    assert.equal(1, result.status)
    assert.matches("item 3 %(3%): .-no three", result.err)
    assert.equal("99 of 100 done before, 1 now, 0 failed\n", run(1, "resume.lua " .. path).out)
  end)

  it("leaves alone what it cannot read", function()
    assert.matches("usage: resume.lua file", run(1, "resume.lua").err, 1, true)
    local result <const> = run(1, "resume.lua " .. helper.tmp())
    assert.same({ "", 1 }, { result.out, result.status })
    assert.matches("Is a directory", result.err, 1, true)
  end)
end)

describe("pi.lua", function()
  helper.guard()

  it("prints the same digits with any number of workers, near pi", function()
    local text <const> = output "pi.lua 12"
    local value <const>, margin <const> = text:match("^(%S+) %+%- (%S+) from 1200000 points\n$")
    assert.is_true(math.abs(value - math.pi) < 4 * margin)
  end)

  it("prints other digits for another seed", function()
    assert.not_equal(run(2, "pi.lua 3 1").out, run(2, "pi.lua 3 2").out)
  end)
end)

describe("sweep.lua", function()
  helper.guard()

  it("prints a line of CSV for each point, as a loop over the grid would", function()
    local job <const>, lines <const> = load_job "scripts/sweep.lua"
    for i, point in ipairs(job.data) do job.emit(job.map(point, i), point, i) end
    assert.equal(1 + #job.data, #lines)
    assert.equal(table.concat(lines, "\n") .. "\n", output "sweep.lua")
  end)

  it("computes an epidemic that ends as theory says", function()
    local job <const> = load_job "scripts/sweep.lua"
    for i, point in ipairs(job.data) do
      local ratio <const> = 0.05 * point.contacts * point.days -- basic reproduction number
      local result <const> = job.map(point, i)
      if ratio > 1.5 and point.days * ratio < 60 then
        -- the final size z of an epidemic solves z = 1 - s0 * exp(-ratio * z)
        local expected <const> = 1 - 0.999 * math.exp(-ratio * result.total)
        assert.near(expected, result.total, 0.005)
      end
    end
  end)
end)

describe("packages.lua", function()
  helper.guard()

  local INSTALLED <const> = "Status: install ok installed"
  local function entry(fields) return table.concat(fields, "\n") .. "\n" end

  it("adds up the installed packages of each section", function()
    local path <const> = helper.script(table.concat({
      entry { "Package: a", INSTALLED, "Section: libs", "Installed-Size: 1024" },
      entry { "Package: b", "Status: deinstall ok config-files", "Section: libs",
        "Installed-Size: 4096" },
      entry { "Package: c", "Status: install ok unpacked", "Section: c", "Installed-Size: 1" },
      entry { "Package: d", "Status: hold ok installed", "Section: libs", "Installed-Size: 512",
        "Description: more", " Section: not this", " .", " end" },
      entry { "Package: e", "Section: contrib/net", "Installed-Size: 2048", INSTALLED },
      entry { "Package: f", INSTALLED, "Section: empty" },
      entry { "Package: g", INSTALLED, "Installed-Size: 2048" },
    }, "\n"), "status")
    assert.equal(table.concat({
      "       2.0 MB     1  (none)",
      "       2.0 MB     1  contrib/net",
      "       1.5 MB     2  libs",
      "       0.0 MB     1  empty", "",
    }, "\n"), output("packages.lua " .. helper.quote(path)))
  end)

  it("does so for thousands of packages", function()
    local entries, sums = {}, {}
    for i = 1, 5000 do
      local section <const> = "s" .. i * i % 7
      sums[section] = (sums[section] or 0) + i
      entries[i] = entry { "Package: p" .. i, INSTALLED,
        "Section: " .. section, "Installed-Size: " .. i }
    end
    local path <const> = helper.script(table.concat(entries, "\n"), "status")
    local text <const> = output("packages.lua " .. helper.quote(path))
    for section, kilobytes in pairs(sums) do
      assert.matches(("%.1f MB +%%d+  %s\n"):format(kilobytes / 1024, section), text)
    end
  end)

  it("says what is wrong with its input", function()
    for path, why in pairs {
      ["/nowhere/status"] = "/nowhere/status: No such file or directory: name a dpkg status file",
      ["/usr"] = "/usr: name a dpkg status file",
      ["/dev/null"] = "/dev/null: no installed package in it",
    } do
      local result <const> = run(2, "packages.lua " .. path)
      assert.equal(1, result.status)
      assert.matches(why, result.err, 1, true)
    end
  end)
end)

local KEYWORDS <const> = [[ auto break case char const continue default do double else enum extern
  float for goto if inline int long register restrict return short signed sizeof static struct
  switch typedef union unsigned void volatile while ]]

--- The characters of a C source outside of comments and literals, found one by one.
local function plain_code(text)
  text = text:gsub("\\\r?\n", "")
  local out, state, i = {}, "code", 1
  while i <= #text do
    local c <const>, two <const> = text:sub(i, i), text:sub(i, i + 1)
    if state == "code" then
      state = two == "/*" and "*/" or two == "//" and "\n" or (c == '"' or c == "'") and c or state
      out[#out + 1] = state == "code" and c or " "
      i = i + ((two == "/*" or two == "//") and 2 or 1)
    elseif state ~= "*/" and state ~= "\n" and c == "\\" then
      i = i + 2
    elseif text:sub(i, i + #state - 1) == state then
      i = i + #state
      if state == "\n" then out[#out + 1] = "\n" end
      state = "code"
    else
      i = i + 1
    end
  end
  return table.concat(out)
end

--- What identifiers.lua should print for these files, by a plain loop over them.
local function expected_top(paths)
  local counts, words = {}, {}
  for _, path in ipairs(paths) do
    local code <const> = ("\n" .. plain_code(helper.read(path))):gsub("\n%s*#%s*%a+", "\n")
    for word in code:gmatch "[%w_]+" do
      if word:find "^[%a_]" and not KEYWORDS:find("%s" .. word .. "%s") then
        if not counts[word] then words[#words + 1] = word end
        counts[word] = (counts[word] or 0) + 1
      end
    end
  end
  table.sort(words, function(a, b)
    return counts[a] > counts[b] or counts[a] == counts[b] and a < b
  end)
  local lines = {}
  for i = 1, math.min(10, #words) do lines[i] = ("%9d  %s\n"):format(counts[words[i]], words[i]) end
  return table.concat(lines)
end

describe("identifiers.lua", function()
  helper.guard()

  local function headers(files)
    local root <const> = helper.tmp()
    assert(os.execute("mkdir -p " .. helper.quote(root .. "/sub/deeper")))
    for name, text in pairs(files) do helper.write(root .. "/" .. name, text) end
    return root
  end

  local function identifiers(workers, ...)
    local words = {}
    for i, argument in ipairs { ... } do words[i] = helper.quote(argument) end
    return run(workers, "identifiers.lua " .. table.concat(words, " "))
  end

  it("counts this library's headers as a plain loop does, with any number of workers", function()
    local paths, bytes = {}, 0
    local pipe <close> = assert(io.popen "ls core/*.h")
    for path in pipe:lines() do
      paths[#paths + 1] = path
      bytes = bytes + #helper.read(path)
    end
    local expected <const> = expected_top(paths)
    for _, workers in ipairs(WORKERS) do
      local result <const> = identifiers(workers, "core")
      assert.same({ expected, 0 }, { result.out, result.status })
      local start <const> = ("^%d files, %.1f MB, "):format(#paths, bytes / 1e6)
      assert.matches(start .. "%d+%.%d+ seconds, %d+ workers\n$", result.err)
    end
  end)

  it("leaves out comments, literals, keywords and directives; breaks ties by name", function()
    local root <const> = headers { ["a.h"] = [[
#define one /* two " three */ 0x1Full 'f' "four /* \" five" // six /* seven
  #  include <eight.h>
const char *nine = "http://ten", eleven = '"', twelve = '\''; int thir\
teen; /**/ fourteen /* // */ fifteen // */
]] }
    local result <const> = identifiers(2, root)
    local lines = {}
    for word in ("eight eleven fifteen fourteen h nine one thirteen twelve"):gmatch "%a+" do
      lines[#lines + 1] = "        1  " .. word .. "\n"
    end
    assert.equal(table.concat(lines), result.out)
  end)

  it("finds headers in every directory, under any name, and reads what is named", function()
    local root <const> = headers {
      ["a.h"] = "x y", ["sub/b's\n%d.h"] = "x", ["sub/deeper/-c .h"] = "x z", ["sub/d.c"] = "no no",
      ["named"] = "x y w",
    }
    assert(os.execute("ln -s /nowhere " .. helper.quote(root .. "/sub/gone.h")))
    local result <const> = identifiers(2, root .. "/sub", root .. "/a.h", root .. "/named")
    assert.equal("        4  x\n        2  y\n        1  w\n        1  z\n", result.out)
    assert.same({ 0, "4 files" }, { result.status, result.err:match "^%d+ files" })
  end)

  it("reports each file that it cannot read, counts the others, and fails", function()
    local root <const> = headers { ["a.h"] = "x" }
    for _, workers in ipairs(WORKERS) do
      local result <const> = identifiers(workers, "/nowhere/b.h", root, "/proc/self/mem")
      assert.same({ "        1  x\n", 1 }, { result.out, result.status })
      assert.matches("identifiers: /nowhere/b.h: No such file or directory\n", result.err, 1, true)
      assert.matches("identifiers: /proc/self/mem: cannot be read\n", result.err, 1, true)
      assert.matches("1 files, ", result.err, 1, true)
    end
  end)

  it("says so when there is no header", function()
    local root <const> = headers { ["a.c"] = "x" }
    local result <const> = identifiers(2, root)
    assert.same({ "", 1 }, { result.out, result.status })
    assert.matches("identifiers: no C header below " .. root, result.err, 1, true)
  end)
end)

describe("submit.sh", function()
  helper.guard()

  it("runs the main job on the cores that Slurm grants", function()
    local result <const> = helper.run("sh scripts/submit.sh core", {
      env = {
        SLURM_CPUS_PER_TASK = "1", SLURM_SUBMIT_DIR = helper.root,
        PATH = helper.build .. ":" .. os.getenv "PATH",
      },
    })
    assert.equal(run(2, "identifiers.lua core").out, result.out)
    assert.matches("SLURM_CPUS_PER_TASK +1 +1 +SLURM_CPUS_PER_TASK +<%- decides", result.err)
    assert.matches("1 workers\n$", result.err)
    assert.equal(0, result.status)
  end)

  it("asks Slurm for 32 cores on one node before its first command", function()
    local head <const> = helper.read("scripts/submit.sh"):match "^#!/bin/sh\n(.-)\n[^#\n]"
    assert.matches("\n#SBATCH --nodes=1\n", head, 1, true)
    assert.matches("\n#SBATCH --cpus-per-task=32\n", head, 1, true)
    assert.matches("\n#SBATCH --signal=B:USR1@60\n", head, 1, true)
  end)
end)
