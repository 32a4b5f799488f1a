-- Flips comparisons in what can be proved by itself (scheduler, ring, board, store, codec, count of
-- cores) and where deaths are met (hear, local, start, proc, lines), one at a time, and asks
-- whether a spec turns red:
--   lua mutate.lua BUILD [WHICH [SEED [PLACES [JOBS]]]]
-- WHICH: so many, taken at random; "all"; "21-40" of all; or "none": only looks whether all that
-- spec/mutants.lua excuses is still there. PLACES: a pattern such as sched or codec_name.c:96.
-- Keeps true: the sources stay as they are; a mutant lives below BUILD/mutate, and can neither run
-- for ever nor take all memory. A mutant that all specs pass is a failure, unless spec/mutants.lua
-- says why nothing can tell it from the original.
-- SPDX-License-Identifier: MIT

io.stdout:setvbuf("line")
local build <const>, which <const>, seed <const> = arg[1] or "build", arg[2] or "24", arg[3] or "1"
local places <const> = arg[4] or ""
local jobs <const> = math.tointeger(arg[5] or "2") -- mutants that are tried at the same time
local dir <const> = build .. "/mutate"
local known <const> = dofile("spec/mutants.lua")

local FLIPS <const> = {
  ["<"] = "<=", ["<="] = "<", [">"] = ">=", [">="] = ">", ["=="] = "!=", ["!="] = "==",
  ["&&"] = "||", ["||"] = "&&",
}

-- What proves a file that knows processes: a program for its edges, if it has one, then whoever
-- uses teams.
local function teams(edges, ...)
  local proof <const> = { plua = true, module = true,
    host = { "host_death", "host_cancel", "host_pool", "host_jobs", "host_inject", edges },
    run = { "@init_spec.lua", "@orphans_spec.lua", "@capi_spec.lua", ... } }
  if edges then table.insert(proof.run, 1, "%s/host/" .. edges) end
  return proof
end

-- What is told by failpoints alone is proved in a build that has them.
local FAIL <const> = { start = true }

-- What proves the files whose names begin so: programs of spec/host that are linked with the
-- mutant, or a module of spec/kit and the spec file that loads it; 'plua': the program too,
-- 'module': what `require "plua"` loads. Each command must end with 0 within the time limit.
local PROOFS <const> = {
  hear = teams("hear_edges", "@recovery_spec.lua", "@damage_spec.lua"),
  ["local"] = teams("local_edges", -- and as before Linux 5.11
    "env LD_PRELOAD=%s/preload/iofail.so IOFAIL=epoll_pwait2:38:1:sticky %s/host/local_edges",
    "env LD_PRELOAD=%s/preload/iofail.so IOFAIL=epoll_pwait2:4:1 %s/host/local_edges interrupted",
    "@inject_spec.lua", "@pool_spec.lua", "@recovery_spec.lua", "@damage_spec.lua"),
  start = teams(nil, "@inject_spec.lua", "@fail_spec.lua --filter=spare", "@spare_spec.lua"),
  proc = teams("proc_edges",
    "env LD_PRELOAD=%s/preload/iofail.so IOFAIL=syscall434:24:1:sticky %s/host/proc_edges"
      .. " unwatched", -- and as before Linux 5.9
    "env LD_PRELOAD=%s/preload/iofail.so IOFAIL=syscall436:38:1:sticky %s/host/proc_edges",
    "@inject_spec.lua", "@spare_spec.lua", "@recovery_spec.lua", "@signals_spec.lua"),
  lines = { host = { "lines_edges" }, run = { "%s/host/lines_edges" } },
  sched = { host = { "sched_edges", "sched_explore", "sched_random" },
    run = { "%s/host/sched_edges memory", "%s/host/sched_explore 5",
      "env SEED=1 %s/host/sched_random 30" } },
  ring = { host = { "ring_edges", "ring_threads", "stepkill" },
    run = { "%s/host/ring_edges", "env SEED=1 %s/host/ring_threads 20000", "%s/host/stepkill 7" } },
  codec = { kit = { "codectest" }, run = { "@codec_spec.lua", "@codec_gc_spec.lua" } },
  store = { host = { "store_edges", "store_random" },
    run = { "%s/host/store_edges", "env SEED=1 %s/host/store_random", -- and as before Linux 5.14
      "env LD_PRELOAD=%s/preload/iofail.so IOFAIL=madvise:22:1:sticky %s/host/store_edges" } },
  places = { host = { "places_edges", "store_random" },
    run = { "%s/host/places_edges", "env SEED=1 %s/host/store_random" } },
  board = { host = { "board_edges", "board_threads" },
    run = { "%s/host/board_edges", "env SEED=1 %s/host/board_threads 20000" } },
  cpus = { plua = true, kit = { "cputest" }, run = { "@cpus_spec.lua" } },
}
-- Seconds for each command, of waiting and of work: only the first depend on what else runs here.
local WAIT <const>, WORK <const> = 60, 30
local MEMORY_KB <const> = 4 << 20 -- for each process, private

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

-- The text with comments, strings, characters, preprocessor lines and what only the compiler checks
-- blanked, at the same places.
local function code_only(text)
  local function blank(s) return (s:gsub("[^\n]", " ")) end
  text = text:gsub("/%*.-%*/", blank)
  text = text:gsub("_Static_assert%b()", blank)
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
    if FLIPS[op] and code:find("^%s", from - 1) and code:find("^%s", to + 1) then
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

local flags <const> = "-std=c11 -D_GNU_SOURCE= -O1 -g -fPIC -w -fno-lto "
  .. output("pkg-config --cflags lua5.4"):gsub("\n", "")
local libs <const> = output("pkg-config --libs lua5.4"):gsub("\n", "") .. " -lm -ldl -pthread"
local root <const> = output("pwd"):gsub("\n", "")

local function points_of(file)
  return FAIL[file:match("core/(%a+)")]
end

local function proof_of(file)
  return PROOFS[file:match("core/(%a+)")]
end

-- What does not change from mutant to mutant is made once.
local function prepare()
  for i = 1, jobs do
    local place <const> = ("%s/%d"):format(dir, i)
    run(("mkdir -p %s/kit %s/host %s/lua/plua && cp %s/kit/*.so %s/kit/"):format(place, place,
      place, build, place))
    run(("ln -sfn ../../preload %s/preload && cp %s/lua/plua/core.so %s/lua/plua/"):format(place,
      build, place))
  end
  write(dir .. "/busted.lua", "require('busted.runner')({ standalone = false })\n")
end

-- A shell command with the name by which the report calls it.
local function command_of(text, place, points)
  local spec <const> = text:match("^@(.*)")
  if not spec then return ("timeout -k 2 %d %s"):format(WAIT, (text:gsub("%%s", place))) end
  -- As where lines are counted: fewer rounds of what is tried at random.
  return ("PLUA_BUILD=%s PLUA_LUA=lua5.4 PLUA_SAN=coverage PLUA_FAILPOINTS=%s PLUA_TALLY=%s/tally"
    .. " timeout -k 2 %d lua5.4 %s/busted.lua --no-keep-going -o spec/report.lua spec/%s"):format(
    place, points and "1" or "", place, WAIT, dir, spec)
end

-- What timeout answers when it has ended a command.
local FAILS <const> = "fails() { case $1 in 124|137) echo late $2;; *) echo red $2;; esac; exit; }"

-- A mutant may leave processes behind: they end with its session.
local SESSION <const> = "setsid sh %s/try.sh & s=$!; trap 'pkill -9 -s $s; exit' INT TERM; "
  .. "wait $s; pkill -9 -s $s"

-- Begins to try a file with this text; 'place' is a directory that nothing else uses meanwhile.
-- What is read from the answer: "invalid", "alive", or "red" or "late" and the command that failed.
local function try(file, text, place)
  local proof <const>, name <const> = proof_of(file), file:match("[^/]*$")
  local points <const> = points_of(file)
  local from <const> = points and build .. "/fail" or build
  local with <const> = points and flags .. " -DPLUA_FAILPOINTS" or flags
  local core <const> = place .. "/core" -- all sources, of which one is the mutant
  -- A header is proved by all files that its own are named like.
  local units <const> = name:match("%.c$") and name or file:match("core/(%a+)") .. "*.c"
  write(place .. "/mutant", text)
  local script <const> = { "exec 2>" .. place .. "/log",
    ("ulimit -c 0; ulimit -d %d; ulimit -t %d"):format(MEMORY_KB, WORK),
    FAILS, ("rm -rf %s && mkdir %s && ln -s %s/core/*.[ch] %s"):format(core, core, root, core),
    ("mv -f %s/mutant %s/%s"):format(place, core, name),
    ("(cd %s && gcc -c %s %s) || { echo invalid; exit; }"):format(core, with, units) }
  local function link(how, out, source, others)
    script[#script + 1] = ("gcc %s %s -iquote %s -o %s/%s %s %s/*.o %s/libplua.a %s"):format(how,
      with, core, place, out, source, core, from, others) .. " || { echo invalid; exit; }"
  end
  if proof.plua then
    link("-Wl,-E", "plua", ("%s/core/main*.o %s/core/modules.o"):format(from, from), libs)
  end
  if proof.module then
    link("-shared -Wl,-Bsymbolic,-u,luaopen_plua_core", "lua/plua/core.so", "", libs)
  end
  for _, each in ipairs(proof.host or {}) do
    link("", "host/" .. each, "spec/host/" .. each .. ".c", libs)
  end
  for _, each in ipairs(proof.kit or {}) do
    link("-shared -Wl,-Bsymbolic", ("kit/%s.so"):format(each), "spec/kit/" .. each .. ".c", libs)
  end
  for _, each in ipairs(proof.run) do
    script[#script + 1] = ("%s >%s/log 2>&1 </dev/null || fails $? '%s'"):format(
      command_of(each, place, points), place, each)
  end
  script[#script + 1] = "echo alive"
  write(place .. "/try.sh", table.concat(script, "\n") .. "\n")
  return assert(io.popen(SESSION:format(place)))
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

local sources <const> = "core/sched*.[ch] core/ring.[ch] core/codec*.[ch] core/store.c "
  .. "core/places.c core/board.[ch] core/cpus.c core/hear.c core/local.c core/start.c core/proc.c "
  .. "core/lines.c"
local all <const>, source <const>, proofs <const> = {}, {}, {}
for file in output("ls " .. sources):gmatch("%S+") do
  local found, text <const> = sites(file)
  source[file] = text
  for _, site in ipairs(found) do
    excuse(site)
    if (file .. ":" .. site.line):find(places) then
      all[#all + 1] = site
      proofs[proof_of(file)] = file
    end
  end
end

local stale = false
for _, each in ipairs(known) do
  if not each.used then
    io.stderr:write(("mutate: spec/mutants.lua excuses what is no longer there: %s: %s: %s\n")
      :format(each.file, each.op, each.text))
    stale = true
  end
end
if stale then os.exit(2) end
if which == "none" then os.exit(true) end

prepare()

for _, file in pairs(proofs) do
  if points_of(file) then
    run(("make -s B=%s/fail FAIL=1 all kit >%s/log 2>&1"):format(build, dir))
  end
end

-- A red spec says nothing where the originals are red too.
for _, file in pairs(proofs) do
  local place <const> = dir .. "/1"
  local fate <const>, by <const> = answer_of(try(file, source[file], place))
  if fate ~= "alive" then
    io.stderr:write(("mutate: %s fails as it is: %s\n%s\n"):format(file, by, read(place .. "/log")))
    os.exit(2)
  end
end

if math.tointeger(which) then shuffle(all) end
local first, last = which:match("^(%d+)-(%d+)$")
first = math.tointeger(first) or 1
last = math.min(math.tointeger(last) or math.tointeger(which) or #all, #all)
local tally <const> = { red = 0, late = 0, excused = 0, alive = 0, invalid = 0 }

local function told(site, fate)
  tally[fate] = tally[fate] + 1
  if fate ~= "alive" then return end
  print(("ALIVE %s:%d: %s for %s: %s"):format(site.file, site.line, FLIPS[site.op], site.op,
    site.text))
end

-- So many at a time; their answers are read in the order in which they began.
local busy <const>, tried = {}, 0
local function finish_oldest()
  local job <const> = table.remove(busy, 1)
  told(job.site, (answer_of(job.pipe)))
  return job.place
end
for i = first, last do
  local site <const> = all[i]
  if excuse(site) then
    told(site, "excused")
  else
    tried = tried + 1
    local place <const> = #busy < jobs and dir .. "/" .. tried or finish_oldest()
    local text <const> = source[site.file]
    local before <const>, after <const> = text:sub(1, site.at - 1), text:sub(site.at + #site.op)
    local mutant <const> = before .. FLIPS[site.op] .. after
    busy[#busy + 1] = { site = site, place = place, pipe = try(site.file, mutant, place) }
  end
end
while #busy > 0 do finish_oldest() end
print(("%d of %d mutants: %d turned a spec red, %d made it hang, %d no one can tell apart, "
  .. "%d are no C, %d ALIVE"):format(last - first + 1, #all, tally.red, tally.late, tally.excused,
  tally.invalid, tally.alive))
os.exit(tally.alive == 0 and tally.red + tally.late + tally.excused > 0)
