-- Flips comparisons in the scheduler, the ring and the codec, one at a time, and asks whether a
-- spec turns red: lua mutate.lua BUILD [COUNT|all [SEED [FILES]]], FILES a pattern such as sched
-- Keeps true: the sources stay as they are; a mutant lives below BUILD/mutate. A mutant that all
-- specs pass is a failure, unless spec/mutants.lua says why nothing can tell it from the original.
-- SPDX-License-Identifier: MIT

local build <const>, count <const>, seed <const> = arg[1] or "build", arg[2] or "24", arg[3] or "1"
local files <const> = arg[4] or ""
local dir <const> = build .. "/mutate"
local known <const> = dofile("spec/mutants.lua")

local FLIPS <const> = {
  ["<"] = "<=", ["<="] = "<", [">"] = ">=", [">="] = ">", ["=="] = "!=", ["!="] = "==",
  ["&&"] = "||", ["||"] = "&&",
}

-- What proves a file: programs of spec/host that are linked with the mutant, or a module of
-- spec/kit and the spec file that loads it. Each command must end with 0 within the time limit.
local PROOFS <const> = {
  sched = { host = { "sched_explore", "sched_random" },
    run = { "%s/sched_explore 6", "%s/sched_random 60" } },
  ring = { host = { "ring_threads", "stepkill" },
    run = { "%s/ring_threads 20000", "%s/stepkill 1" } },
  codec = { kit = { "codectest" }, run = { "@codec_spec.lua" } },
}
local LIMIT <const> = 60

local function run(command)
  local ok, how, code = os.execute(command)
  if how == "signal" and code == 2 then os.exit(130) end
  return ok == true, code
end

local function output(command)
  local pipe <close> = assert(io.popen(command))
  return pipe:read("a")
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

local function write(path, text)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(text))
end

-- The text with comments, strings, characters and preprocessor lines blanked, at the same places.
local function code_only(text)
  local function blank(s) return (s:gsub("[^\n]", " ")) end
  text = text:gsub("/%*.-%*/", blank)
  text = text:gsub('"[^"\n]*"', blank):gsub("'\\?[^'\n]'", blank)
  return (("\n" .. text):gsub("\n%s*#[^\n]*", blank):sub(2))
end

--- Every comparison and every "and"/"or" of a file: { file, at, op, line, text }.
local function sites(file)
  local text <const> = read(file)
  local code <const> = code_only(text)
  local found <const> = {}
  local at = 1
  while true do
    local from <const>, to <const> = code:find("[<>=!&|%-]+", at)
    if not from then return found, text end
    local op <const> = code:sub(from, to)
    if FLIPS[op] and code:sub(from - 1, from - 1) == " " and code:sub(to + 1, to + 1) == " " then
      local _, line <const> = text:sub(1, from):gsub("\n", "")
      local whole <const> = text:sub(1, from - 1):match("[^\n]*$") .. text:match("^[^\n]*", from)
      found[#found + 1] = { file = file, at = from, op = op, line = line + 1,
        text = whole:match("^%s*(.-)%s*$") }
    end
    at = to + 1
  end
end

local function proof_of(file)
  return PROOFS[file:match("core/(%a+)")]
end

local flags <const> = "-std=c11 -D_GNU_SOURCE= -O1 -g -fPIC -w -iquote core "
  .. output("pkg-config --cflags lua5.4"):gsub("\n", "")
local module <const> = "gcc -fno-lto -shared -Wl,-Bsymbolic " .. flags
local libs <const> = build .. "/libplua.a "
  .. output("pkg-config --libs lua5.4"):gsub("\n", "") .. " -lm -ldl -pthread"

-- Links what proves a file with the mutant's object, which stands before the archive's.
local function link(proof, object)
  for _, name in ipairs(proof.host or {}) do
    local command <const> = ("gcc -fno-lto %s -o %s/%s spec/host/%s.c %s %s 2>%s/log"):format(
      flags, dir, name, name, object, libs, dir)
    if not run(command) then return false end
  end
  for _, name in ipairs(proof.kit or {}) do
    local command <const> = (module .. " -o %s/kit/%s.so spec/kit/%s.c %s %s/libplua.a -pthread"
      .. " 2>%s/log"):format(dir, name, name, object, build, dir)
    if not run(command) then return false end
  end
  return true
end

local function command_of(text)
  local spec <const> = text:match("^@(.*)")
  if not spec then return ("timeout -k 2 %d " .. text):format(LIMIT, dir) end
  return ("PLUA_BUILD=%s PLUA_LUA=lua5.4 PLUA_TALLY=%s/tally timeout -k 2 %d lua5.4 %s/busted.lua"
    .. " -o spec/report.lua spec/%s"):format(dir, dir, LIMIT, dir, spec)
end

-- Whether some proof fails; the name of the one that does. nil: the mutant cannot be built.
local function killed(file, text)
  local proof <const> = proof_of(file)
  local source <const>, object <const> = dir .. "/mutant.c", dir .. "/mutant.o"
  write(source, text)
  if not run(("gcc %s -c -o %s %s 2>%s/log"):format(flags, object, source, dir)) then return nil end
  if not link(proof, object) then return nil end
  for _, each in ipairs(proof.run) do
    if not run(command_of(each) .. (" >%s/log 2>&1"):format(dir)) then return true, each end
  end
  return false
end

local function excuse(site)
  for _, each in ipairs(known) do
    if each.file == site.file and each.text == site.text and each.op == site.op then
      each.used = true
      return each.why
    end
  end
end

-- A shuffle that is the same for the same seed.
local function shuffle(list)
  math.randomseed(math.tointeger(seed) or 1)
  for i = #list, 2, -1 do
    local j <const> = math.random(i)
    list[i], list[j] = list[j], list[i]
  end
end

run(("mkdir -p %s/kit && cp %s/kit/*.so %s/kit/ && ln -sfn ../lua %s/lua"):format(
  dir, build, dir, dir))
write(dir .. "/busted.lua", "require('busted.runner')({ standalone = false })\n")

local all <const>, source <const> = {}, {}
for file in output("ls core/sched.c core/ring.c core/codec*.c"):gmatch("%S+") do
  local found, text <const> = sites(file)
  source[file] = text
  if not file:find(files) then found = {} end
  table.move(found, 1, #found, #all + 1, all)
end

-- A red spec says nothing where the originals are red too.
for _, file in ipairs { "core/sched.c", "core/ring.c", "core/codec.c" } do
  local red <const>, by <const> = killed(file, source[file])
  if red ~= false then
    io.stderr:write(("mutate: %s fails as it is: %s\n"):format(file, by or read(dir .. "/log")))
    os.exit(2)
  end
end

if count ~= "all" then shuffle(all) end
local wanted <const> = count == "all" and #all or math.min(assert(math.tointeger(count)), #all)
local tally <const> = { red = 0, excused = 0, alive = 0, invalid = 0 }
for i = 1, wanted do
  local site <const> = all[i]
  local text <const> = source[site.file]
  local flip <const> = FLIPS[site.op]
  local dead <const> = excuse(site) and "excused"
    or killed(site.file, text:sub(1, site.at - 1) .. flip .. text:sub(site.at + #site.op))
  local fate <const> = dead == nil and "invalid" or dead == false and "alive"
    or dead == true and "red" or dead
  tally[fate] = tally[fate] + 1
  if fate == "alive" then
    print(("ALIVE %s:%d: %s for %s: %s"):format(site.file, site.line, flip, site.op, site.text))
  end
end
print(("%d of %d mutants: %d turned a spec red, %d no one can tell apart, %d are no C, %d ALIVE")
  :format(wanted, #all, tally.red, tally.excused, tally.invalid, tally.alive))
os.exit(tally.alive == 0 and tally.red > 0)
