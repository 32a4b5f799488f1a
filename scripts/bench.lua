-- Measures plua beside the serial loop, the machine's limits and the peers that are installed, in
-- one run; prints a table, writes bench.json and bench.svg into the build directory; a run of some
-- cases only writes bench-part.json and bench-part.svg.
--   plua scripts/bench.lua [--runs=N] [--case=PATTERN] [--compare=OLD.json] [--dir=DIR]
--     [--no-counts]
--   plua scripts/bench.lua --markdown      the table of the last whole run, as Markdown
--   plua scripts/bench.lua --readme        puts that and the picture into the README
-- Each repetition is a process of its own that makes its data, warms up as its case tells, and
-- prints the time of the rest; contenders take turns. Exit status 1: dearer than OLD.json tells.
-- Knows the order of things; bench/ has the cases, the peers and the reports.
-- SPDX-License-Identifier: MIT
local here <const> = arg[0]:match "^(.*)/" or "."
package.path = here .. "/bench/?.lua;" .. package.path
local json <const> = require "plua.json"
local now <const> = require("plua.core").now
local cases <const> = require "cases"
local measure <const> = require "measure"
local peers <const> = require "peers"
local report <const> = require "report"
local picture <const> = require "picture"
local counts <const> = require "counts"

local ROUNDS <const>, WORKERS <const> = 5, 2
local STARTS <const> = 20 -- runs of a whole process that make one repetition

local known <const> = { runs = true, case = true, compare = true, dir = true, markdown = true,
  readme = true, ["no-counts"] = true }

local function options(list)
  local opts <const> = {}
  for _, word in ipairs(list) do
    local name <const>, value <const> = word:match "^%-%-([%a-]+)=?(.*)$"
    if not known[name] then
      io.stderr:write("bench.lua: '", word, "' is not understood: --runs=N --case=PATTERN ",
        "--compare=FILE --dir=DIR --no-counts --markdown --readme\n")
      os.exit(2)
    end
    opts[name] = value
  end
  return opts
end

local opts <const> = options(arg)
local plua <const> = arg[-1] or "plua"
local build <const> = opts.dir or plua:match "^(.*)/" or "build"
local probe <const> = build .. "/bench/probe"

local function refuse(...)
  io.stderr:write("bench.lua: ", ...)
  io.stderr:write "\n"
  os.exit(2)
end

local rounds <const> = opts.runs and math.tointeger(tonumber(opts.runs)) or ROUNDS
if opts.runs and tostring(rounds) ~= opts.runs or rounds < 1 then
  refuse("--runs is a whole number above 0, not '", opts.runs, "'")
end

local function read_run(path)
  local file <close>, why <const> = io.open(path)
  return json.decode((file or refuse(why)):read "a")
end

local function write(path, text)
  local file <close> = assert(io.open(path, "w"))
  assert(file:write(text))
end

if opts.markdown then
  print(report.markdown(read_run(build .. "/bench.json")))
  return
end

local BETWEEN <const> = "(<!%-%- bench: [^\n]*%-%->\n).-(<!%-%- end of bench %-%->)"

if opts.readme then
  local run <const> = read_run(build .. "/bench.json")
  local path <const> = here .. "/../README.md"
  local file <close> = assert(io.open(path))
  local text <const>, n <const> = file:read("a"):gsub(BETWEEN, function(first, last)
    return first .. report.markdown(run) .. "\n\n![The same as a picture: time as a factor of " ..
      "plua's](scripts/bench/bench.svg)\n" .. last
  end)
  assert(n == 1, "README.md has no lines '<!-- bench: ... -->' and '<!-- end of bench -->'")
  write(path, text)
  write(here .. "/bench/bench.svg", picture(run))
  return
end

-- ---- contenders ----

local function ours(who, case, n)
  return { who = who, n = n, command = ("%s %s/bench/ours.lua %s %s %d"):format(plua, here, who,
    case.id, n) }
end

--- A whole program is timed from outside.
local function program(who, command)
  return { who = who, n = 1, command = ("%s exec %d %s"):format(probe, STARTS, command) }
end

local function add_ours(list, case)
  if case.exec then
    local script <const> = build .. "/bench/six.lua"
    write(script, "local plua = require 'plua'\nprint(table.concat(plua.map(function(x) " ..
      "return x ^ 3 end, { 1, 2, 3, 4, 5, 6 }, { workers = 2 }), ' '))\n")
    list[1] = program("plua", plua .. " " .. script)
    list[2] = program("serial", "lua5.4 -e ''")
    return
  end
  list[1] = ours("plua", case, case.n)
  if case.serial then
    list[2] = ours("serial", case, case.serial == true and case.n or case.serial)
  end
  if case.bare then
    list[#list + 1] = ours("bare", case, case.n)
    list[#list].who, list[#list].what = "limit", "two bare processes in turn with plua"
  end
end

local function contenders(case, found)
  local list <const>, absent <const> = {}, {}
  add_ours(list, case)
  if case.limit then
    list[#list + 1] = { who = "limit", n = 1, command = probe .. " " .. case.limit[1],
      value = case.limit[2], what = case.limit[3] }
  end
  for _, peer in ipairs(found) do
    local can <const> = case.peers[peer.who]
    local n <const> = can == true and case.n or can
    if type(can) == "string" then
      absent[peer.who] = { why = can }
    elseif can and not peer.version then
      absent[peer.who] = { why = "not installed" }
    elseif can and case.exec then
      list[#list + 1] = program(peer.who, ("%s start 1"):format(peer.command))
    elseif can then
      list[#list + 1] = { who = peer.who, n = n, told_n = n ~= case.n and n or nil,
        command = ("%s %s %d"):format(peer.command, case.id, n) }
    end
  end
  return list, absent
end

-- ---- rows ----

local function medians_of(results, pair)
  local medians <const> = { pair = pair }
  for who, result in pairs(results) do
    medians[who] = result.median
    for name, value in pairs(result.fields or {}) do medians[who .. "_" .. name] = value end
  end
  return medians
end

local function row_of(case, found)
  local list <const>, absent <const> = contenders(case, found)
  local asked <const> = math.min(rounds, case.rounds or rounds)
  for _, c in ipairs(list) do
    local judged <const> = c.who == "plua" or c.who == "limit"
    c.rounds = judged and asked * (case.bare or 1) or asked
  end
  local results <const> = measure.rounds(list, case.value, now)
  for _, c in ipairs(list) do
    local r <const> = results[c.who]
    r.what, r.n = c.what, c.told_n
    if case.extra and r.fields[case.extra] then
      r.extra_name, r.extra = case.extra, r.fields[case.extra]
    end
  end
  for who, why in pairs(absent) do results[who] = why end
  local pair <const> = case.bare and measure.pair(results.plua, results.limit)
  return { id = case.id, name = case.name, unit = case.unit, more = case.more, items = case.n,
    rounds = asked, results = results, pair = pair,
    targets = report.targets(case, medians_of(results, pair)) }
end

local whole <const> = (opts.case or "") == ""

local function chosen(case)
  if whole then return true end
  return case.id:find(opts.case) ~= nil or case.name:find(opts.case, 1, true) ~= nil
end

-- ---- the run ----

local function first_line(path)
  local file <close> = io.open(path)
  return file and file:read "l" or "?"
end

local function machine(found)
  local versions <const> = { _VERSION }
  for _, peer in ipairs(found) do
    versions[#versions + 1] = ("%s %s"):format(peer.title, peer.version or "not installed")
  end
  return {
    cpu = peers.output "sed -n 's/^model name[^:]*: //p' /proc/cpuinfo" or "?",
    cores = require("plua").cpu_count(), kernel = first_line "/proc/sys/kernel/osrelease",
    load = first_line("/proc/loadavg"):match "^%S+", versions = table.concat(versions, ", "),
  }
end

-- Before anything is measured: it may be the file that is written then.
local old <const> = opts.compare and opts.compare ~= "" and read_run(opts.compare)

local function main()
  local any
  for _, case in ipairs(cases) do any = any or chosen(case) end
  if not any then refuse("no case is named like '", opts.case, "'") end
  local found <const> = peers.find(peers.list(here .. "/bench", build))
  local run <const> = { rounds = rounds, workers = WORKERS, rows = {}, machine = machine(found) }
  local head <const> = "%d rounds in turn, %d workers; mp: multiprocessing, cf: concurrent.futures"
  print(head:format(rounds, WORKERS))
  print(report.head())
  local function add(row)
    run.rows[#run.rows + 1] = row
    print(report.line(row))
    io.stdout:flush()
  end
  for _, case in ipairs(cases) do
    if chosen(case) then add(row_of(case, found)) end
  end
  for _, line in ipairs(report.notes(run.rows)) do print(line) end
  if not opts["no-counts"] then run.instructions = counts(plua, here, build, chosen) end
  return run
end

local function show_comparison(run)
  local lines <const>, dearer <const> = report.compare(old, run)
  print("since " .. opts.compare .. ":")
  for _, line in ipairs(lines) do print(line) end
  return dearer
end

--- How many rows have a verdict that begins so.
local function count(run, word)
  local n = 0
  for _, row in ipairs(run.rows) do
    if row.results.plua.median and report.verdict(row):find(word) == 1 then n = n + 1 end
  end
  return n
end

local run <const> = main()
local place <const> = build .. (whole and "/bench" or "/bench-part")
write(place .. ".json", json.encode(run) .. "\n")
write(place .. ".svg", picture(run))
print(("%d of %d cases miss a target, %d hold by ratio; written: %s.json, %s.svg"):format(
  count(run, "MISSES"), #run.rows, count(run, "by ratio"), place, place))
local dearer <const> = old and show_comparison(run)
os.exit(not dearer)
