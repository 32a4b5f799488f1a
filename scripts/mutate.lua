-- Flips comparisons in the scheduler, the ring and the codec, one at a time, and asks whether a
-- spec turns red: lua mutate.lua BUILD [COUNT|all [SEED [PLACES]]], PLACES a pattern such as sched
-- or codec_name.c:96.
-- Keeps true: the sources stay as they are; a mutant lives below BUILD/mutate. A mutant that all
-- specs pass is a failure, unless spec/mutants.lua says why nothing can tell it from the original.
-- SPDX-License-Identifier: MIT

local build <const>, count <const>, seed <const> = arg[1] or "build", arg[2] or "24", arg[3] or "1"
local places <const> = arg[4] or ""
local dir <const> = build .. "/mutate"
local known <const> = dofile("spec/mutants.lua")

local FLIPS <const> = {
  ["<"] = "<=", ["<="] = "<", [">"] = ">=", [">="] = ">", ["=="] = "!=", ["!="] = "==",
  ["&&"] = "||", ["||"] = "&&",
}

-- What proves a file: programs of spec/host that are linked with the mutant, or a module of
-- spec/kit and the spec file that loads it. Each command must end with 0 within the time limit.
local PROOFS <const> = {
  sched = { host = { "sched_edges", "sched_explore", "sched_random" },
    run = { "%s/sched_edges memory", "%s/sched_explore 5", "env SEED=1 %s/sched_random 30" } },
  ring = { host = { "ring_edges", "ring_threads", "stepkill" },
    run = { "%s/ring_edges", "env SEED=1 %s/ring_threads 20000", "%s/stepkill 7" } },
  codec = { kit = { "codectest" }, run = { "@codec_spec.lua", "@codec_gc_spec.lua" } },
}
local LIMIT <const> = 60 -- seconds for each command
local JOBS <const> = 2 -- mutants that are tried at the same time

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

--- Every comparison and every "and"/"or" of a file: { file, at, op, line, text, nth }; nth counts
--- its like in the line.
local function sites(file)
  local text <const> = read(file)
  local code <const> = code_only(text)
  local found <const>, seen <const> = {}, {}
  local at = 1
  while true do
    local from <const>, to <const> = code:find("[<>=!&|%-]+", at)
    if not from then return found, text end
    local op <const> = code:sub(from, to)
    if FLIPS[op] and code:sub(from - 1, from - 1) == " " and code:sub(to + 1, to + 1) == " " then
      local _, line <const> = text:sub(1, from):gsub("\n", "")
      local whole <const> = text:sub(1, from - 1):match("[^\n]*$") .. text:match("^[^\n]*", from)
      local like <const> = op .. line
      seen[like] = (seen[like] or 0) + 1
      found[#found + 1] = { file = file, at = from, op = op, line = line + 1,
        text = whole:match("^%s*(.-)%s*$"), nth = seen[like] }
    end
    at = to + 1
  end
end

local flags <const> = "-std=c11 -D_GNU_SOURCE= -O1 -g -fPIC -w -iquote core "
  .. output("pkg-config --cflags lua5.4"):gsub("\n", "")
local libs <const> = build .. "/libplua.a "
  .. output("pkg-config --libs lua5.4"):gsub("\n", "") .. " -lm -ldl -pthread"

local function gcc(how, out, ins)
  return ("gcc -fno-lto %s %s -o %s %s"):format(how, flags, out, ins)
end

-- What does not change from mutant to mutant is compiled once.
local function prepare()
  for i = 1, JOBS do
    run(("mkdir -p %s/%d/kit && cp %s/kit/*.so %s/%d/kit/ && ln -sfn ../../lua %s/%d/lua"):format(
      dir, i, build, dir, i, dir, i))
  end
  write(dir .. "/busted.lua", "require('busted.runner')({ standalone = false })\n")
  for _, proof in pairs(PROOFS) do
    for _, name in ipairs(proof.host or {}) do
      assert(run(gcc("-c", dir .. "/" .. name .. ".o", "spec/host/" .. name .. ".c")))
    end
    for _, name in ipairs(proof.kit or {}) do
      assert(run(gcc("-c", dir .. "/" .. name .. ".o", "spec/kit/" .. name .. ".c")))
    end
  end
end

-- A shell command with the name by which the report calls it.
local function command_of(text, place)
  local spec <const> = text:match("^@(.*)")
  if not spec then return ("timeout -k 2 %d " .. text):format(LIMIT, place) end
  -- As under a sanitizer: fewer rounds of what is tried at random.
  return ("PLUA_BUILD=%s PLUA_LUA=lua5.4 PLUA_SAN=mutant PLUA_TALLY=%s/tally timeout -k 2 %d lua5.4"
    .. " %s/busted.lua --no-keep-going -o spec/report.lua spec/%s"):format(place, place, LIMIT, dir,
    spec)
end

-- Begins to try a file with this text; 'place' is a directory that nothing else uses meanwhile.
-- What is read from the answer: "invalid", "alive", or "red" and the command that failed.
local function try(file, text, place)
  local proof <const> = PROOFS[file:match("core/(%a+)")]
  write(place .. "/mutant.c", text)
  local script <const> = { "exec 2>" .. place .. "/log",
    gcc("-c", place .. "/mutant.o", place .. "/mutant.c") .. " || { echo invalid; exit; }" }
  local function link(how, out, name, last)
    script[#script + 1] = gcc(how, place .. out, ("%s/%s.o %s/mutant.o %s"):format(dir, name, place,
      last)) .. " || { echo invalid; exit; }"
  end
  for _, name in ipairs(proof.host or {}) do link("", "/" .. name, name, libs) end
  for _, name in ipairs(proof.kit or {}) do
    link("-shared -Wl,-Bsymbolic", "/kit/" .. name .. ".so", name, build .. "/libplua.a -pthread")
  end
  for _, each in ipairs(proof.run) do
    script[#script + 1] = ("%s >%s/log 2>&1 </dev/null || { echo 'red %s'; exit; }"):format(
      command_of(each, place), place, each)
  end
  script[#script + 1] = "echo alive"
  write(place .. "/try.sh", table.concat(script, "\n") .. "\n")
  return assert(io.popen("sh " .. place .. "/try.sh"))
end

local function answer_of(pipe)
  local answer <const> = pipe:read("l")
  pipe:close()
  if not answer then os.exit(130) end -- only a signal ends it before it has answered
  return answer:match("^(%a+) ?(.*)")
end

local function excuse(site)
  for _, each in ipairs(known) do
    if each.file == site.file and each.text == site.text and each.op == site.op
      and (each.nth or 1) == site.nth then
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

prepare()

local all <const>, source <const> = {}, {}
for file in output("ls core/sched*.c core/ring.c core/codec*.c"):gmatch("%S+") do
  local found, text <const> = sites(file)
  source[file] = text
  for _, site in ipairs(found) do
    excuse(site)
    if (file .. ":" .. site.line):find(places) then all[#all + 1] = site end
  end
end

for _, each in ipairs(known) do
  if not each.used then
    io.stderr:write(("mutate: spec/mutants.lua excuses what is no longer there: %s: %s: %s\n")
      :format(each.file, each.op, each.text))
    os.exit(2)
  end
end

-- A red spec says nothing where the originals are red too.
for _, file in ipairs { "core/sched.c", "core/ring.c", "core/codec.c" } do
  local place <const> = dir .. "/1"
  local fate <const>, by <const> = answer_of(try(file, source[file], place))
  if fate ~= "alive" then
    io.stderr:write(("mutate: %s fails as it is: %s\n%s\n"):format(file, by, read(place .. "/log")))
    os.exit(2)
  end
end

if count ~= "all" then shuffle(all) end
local wanted <const> = count == "all" and #all or math.min(assert(math.tointeger(count)), #all)
local tally <const> = { red = 0, excused = 0, alive = 0, invalid = 0 }

local function told(site, fate)
  tally[fate] = tally[fate] + 1
  if fate ~= "alive" then return end
  print(("ALIVE %s:%d: %s for %s: %s"):format(site.file, site.line, FLIPS[site.op], site.op,
    site.text))
end

-- JOBS at a time; their answers are read in the order in which they began.
local busy <const>, tried = {}, 0
local function finish_oldest()
  local job <const> = table.remove(busy, 1)
  told(job.site, (answer_of(job.pipe)))
  return job.place
end
for i = 1, wanted do
  local site <const> = all[i]
  if excuse(site) then
    told(site, "excused")
  else
    tried = tried + 1
    local place <const> = #busy < JOBS and dir .. "/" .. tried or finish_oldest()
    local text <const> = source[site.file]
    local before <const>, after <const> = text:sub(1, site.at - 1), text:sub(site.at + #site.op)
    local mutant <const> = before .. FLIPS[site.op] .. after
    busy[#busy + 1] = { site = site, place = place, pipe = try(site.file, mutant, place) }
  end
end
while #busy > 0 do finish_oldest() end
print(("%d of %d mutants: %d turned a spec red, %d no one can tell apart, %d are no C, %d ALIVE")
  :format(wanted, #all, tally.red, tally.excused, tally.invalid, tally.alive))
os.exit(tally.alive == 0 and tally.red > 0)
