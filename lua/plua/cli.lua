--- The command line: what its words mean, and what is run in which order.
-- Keeps true: all of lua's own options mean what they mean there; nothing runs before the whole
-- line is understood. Knows the host table of the program (call, stopped, grace, isatty, version,
-- lua, copyright). Does not know how items are run. Loads nothing at the top: the program reads the
-- options before 'require' exists.
-- SPDX-License-Identifier: MIT

local M <const> = {}

local EX_FAILED <const>, EX_USAGE <const>, EX_TEMPFAIL <const> = 1, 2, 75
local SIGINT <const>, SIGPIPE <const> = 2, 13

local USAGE <const> = [=[
usage: plua [options] [script [args]]
Options of lua:
  -e stat   execute string 'stat'
  -i        enter interactive mode after executing 'script'
  -l mod    require library 'mod' into global 'mod'
  -l g=mod  require library 'mod' into global 'g'
  -v        show version information
  -E        ignore environment variables
  -W        turn warnings on
  --        stop handling options
  -         stop handling options and execute stdin
Defaults for every parallel call of the script (--name value or --name=value):
  -j, --workers N            worker processes: a number, "50%" of the cores, 0 for none
  --chunksize N              items that a worker takes at once, or "auto"
  --retries N                how often a failed item is run again; or by kind, as in
                             crash=2,error=1,timeout=0,killed=3,oom=3
  --timeout S                seconds that an item may run; 0.5 is fine
  --on-error raise|collect   stop at the first item that fails, or go on and report all
  --memory SIZE              what a worker may use of its own: 512M, 2G
  --max-rss SIZE             replace a worker that is larger between two items
  --output live|grouped      what items print: line by line, or an item's as one block
  --max-tasks-per-child N    replace a worker after N items
  --seed N                   start of the random numbers that items draw
  --nested                   calls inside a worker get workers of their own
Other:
  --grace S                  seconds that running items have after SIGTERM or SIGUSR1; else 25
  --cpus                     show how many cores may be used, and why
  --version, --help
]=]

-- Options that stand alone. All others take a value.
local FLAGS <const> = { nested = true }
local ACTIONS <const> = { help = true, version = true, cpus = true }
-- Options of the command, not of calls.
local OWN <const> = { grace = true }
local SCRIPT_ONLY <const> = { init = true, finish = true, weight = true }

---@class plua.Plan
---@field argv table  the words, [0] is the program
---@field steps table  what -e, -l and -W ask for, in their order
---@field options table  {name, text of the value, word} of each option of plua
---@field executes? boolean  there is a -e
---@field script? integer  where in argv the script's name is
---@field unknown? string  the word that is no option
---@field failure? string  what else is wrong with the line

-- The argument of the one-letter option at i, joined to it or the next word.
local function argument(plan, i, may_dash)
  local word <const> = plan.argv[i]
  if #word > 2 then return word:sub(3), i end
  local following <const> = plan.argv[i + 1]
  if following and (may_dash or following:sub(1, 1) ~= "-") then return following, i + 1 end
  plan.failure = ("'%s' needs argument"):format(word)
  return nil, i
end

local LETTERS <const> = {
  i = function(plan) plan.interactive, plan.banner = true, true end,
  v = function(plan) plan.banner = true end,
  E = function(plan) plan.noenv = true end,
  W = function(plan) table.insert(plan.steps, { kind = "W" }) end,
}

-- Reads the option of one letter at i; answers where it ends.
local function read_short(plan, i)
  local word <const> = plan.argv[i]
  local letter <const> = word:sub(2, 2)
  if LETTERS[letter] and #word == 2 then
    LETTERS[letter](plan)
    return i
  end
  if letter == "e" or letter == "l" then
    local text <const>, last <const> = argument(plan, i, false)
    table.insert(plan.steps, { kind = letter, text = text })
    plan.executes = plan.executes or letter == "e"
    return last
  end
  if letter == "j" then
    local text <const>, last <const> = argument(plan, i, true)
    if text then table.insert(plan.options, { "workers", text, "-j" }) end
    return last
  end
  plan.unknown = word
  return i
end

-- Reads --name, --name=value or --name value at i; answers where it ends.
local function read_long(plan, i)
  local word <const> = plan.argv[i]
  local key <const>, text <const> = word:match("^(%-%-[^=]+)=(.*)$")
  local name <const> = (key or word):sub(3):gsub("-", "_")
  if ACTIONS[name] then
    plan[name] = true
    if text then plan.failure = ("'%s' takes no value"):format(key) end
    return i
  end
  local option <const> = { name, nil, key or word }
  table.insert(plan.options, option)
  if FLAGS[name] then
    option[2] = text or "true"
    return i
  end
  option[2] = text or plan.argv[i + 1]
  return text and i or i + 1
end

--- Understands the words of a command line, as far as this is possible without running anything.
---@param argv table  the words; [0] is the program
---@return plua.Plan
function M.parse(argv)
  local plan <const> = { argv = argv, steps = {}, options = {} }
  local i = 1
  while argv[i] and argv[i]:sub(1, 1) == "-" and argv[i] ~= "-" do
    if argv[i] == "--" then
      i = i + 1
      break
    end
    i = (argv[i]:sub(1, 2) == "--" and read_long or read_short)(plan, i)
    if plan.failure or plan.unknown then return plan end
    i = i + 1
  end
  plan.script = argv[i] and i
  return plan
end

-- ---- what is wrong with the line ------------------------------------------------------------

local function complain(text)
  io.stdout:flush()
  io.stderr:write("plua: ", text, "\n")
end

local function unknown_option(word)
  local options <const> = require("plua.options")
  local list <const> = {}
  for _, set in ipairs { FLAGS, ACTIONS, OWN } do
    for name in pairs(set) do table.insert(list, name) end
  end
  for _, name in ipairs(options.names) do
    if not SCRIPT_ONLY[name] then table.insert(list, name) end
  end
  table.sort(list)
  local hint = ""
  if #word > 2 then
    local near <const> = options.nearest((word:gsub("^%-+", ""):gsub("-", "_")), list)
    hint = near and ("; the nearest is '--%s'"):format((near:gsub("_", "-"))) or ""
  end
  return ("unrecognized option '%s'%s (plua --help shows all)"):format(word, hint)
end

local function known(name)
  for _, each in ipairs(require("plua.options").names) do
    if each == name then return true end
  end
  return false
end

local function grace_fault(value, word)
  local seconds <const> = tonumber(value)
  if seconds and seconds >= 0 then return end
  return ("'%s' must be a number of seconds, 0 or more, not %q"):format(word, value)
end

-- What is wrong with one option, or nil.
local function fault_of(option)
  local name <const>, value <const>, word <const> = option[1], option[2], option[3]
  if SCRIPT_ONLY[name] then
    return ("'%s' takes a function, which only a script can give"):format(word)
  end
  if not OWN[name] and not known(name) then return unknown_option(word) end
  if value == nil then return ("'%s' needs a value"):format(word) end
  if name == "grace" then return grace_fault(value, word) end
end

-- Makes the options the defaults of all calls. nil, or what is wrong.
local function apply(list, host)
  local defaults <const> = {}
  for _, option in ipairs(list) do
    local fault <const> = fault_of(option)
    if fault then return fault end
    if option[1] == "grace" then host.grace(tonumber(option[2]))
    else defaults[option[1]] = option[2] end
  end
  if next(defaults) == nil then return end
  local _ <const>, fault <const> = require("plua.options").set_defaults(defaults)
  return fault
end

local function line_fault(plan, host)
  if plan.unknown then return unknown_option(plan.unknown) end
  return plan.failure or apply(plan.options, host)
end

-- ---- running ---------------------------------------------------------------------------------

local function is_plua_error(err)
  local plua <const> = package.loaded["plua"]
  return type(plua) == "table" and plua.iserror and plua.iserror(err)
end

-- An error of plua as it reads, and which call of the script it ended.
local function describe_ours(text)
  local where <const>, call <const> = require("plua.errors").site(4)
  if not call or text:find(where, 1, true) then return text end
  return ("%s\n  in %s at %s"):format(text, call, where)
end

-- A text with the frames that are the script's. What the core refuses comes with a remedy.
local function describe_text(errors, prefix, err)
  local place, reason <const> = errors.placed(err)
  if reason then
    local where <const> = place == "" and errors.site(3)
    if where then place = where .. ": " end
    err = place .. errors.explained(reason)
  end
  local frames <const> = errors.users_frames(debug.traceback("", 3):sub(2))
  return prefix .. err .. (frames and "\n" .. frames or "")
end

-- With a remedy where a script takes for granted what it has to ask for.
local function reminded(err)
  if not err:find("(global 'plua')", 1, true) then return err end
  return err .. "\n  plua is a module: begin with  local plua = require \"plua\""
end

-- What a person needs to know about an uncaught error, as lua has it: a text with a traceback, or
-- what the error says of itself. The frames below 'host.call' are ours and say nothing.
local function describe(err, prefix)
  local kind <const> = type(err)
  if kind ~= "string" and kind ~= "number" then
    local meta <const> = getmetatable(err)
    if type(meta) == "table" and rawget(meta, "__tostring") then
      local fine <const>, text <const> = pcall(tostring, err)
      if fine and not is_plua_error(err) then return prefix .. text end
      if fine then return (describe_ours(text)) end
    end
    err = ("(error object is a %s value)"):format(kind)
  end
  err = reminded(tostring(err))
  local errors <const> = package.loaded["plua.errors"]
  if errors then return describe_text(errors, prefix, err) end
  local trace <const> = debug.traceback(prefix .. err, 3)
  return (trace:gsub("\n\t%[C%]: in [^\n]*\n\tplua/cli%.lua:.*", "\n\t[C]: in ?"))
end

-- Where a signal stopped the script, as the error tells: "script.lua:7: ", or "" inside a call of
-- plua. nil: it is another error.
local function stopped_at(host, err)
  local name <const> = host.stopped()
  if not name then return nil end
  if type(err) == "string" then return err:match("^(.*)interrupted!$") end
  return name ~= "SIGINT" and is_plua_error(err) and err.kind == "cancelled" and "" or nil
end

local function grouped(n)
  local digits <const> = ("%d"):format(n)
  return (digits:reverse():gsub("%d%d%d", "%0,"):reverse():gsub("^,", ""))
end

-- How far the call came that a signal has ended: ": 1,234 of 10,000 items done".
local function progress()
  local run <const> = package.loaded["plua.run"]
  local cut <const> = run and run.cut
  if not cut then return "" end
  run.cut = nil -- interactively, there is more to come
  local count <const> = cut.total or cut.done
  local more <const> = cut.more > 0 and (" (and %s out of turn)"):format(grouped(cut.more)) or ""
  return (": %s%s %s%s done%s"):format(grouped(cut.done),
    cut.total and " of " .. grouped(cut.total) or "", cut.unit, count == 1 and "" or "s", more)
end

-- Says that a signal has ended the script. The status and the signal to leave with.
local function report_stop(host, place)
  local name <const> = host.stopped()
  local by <const> = name == "SIGINT" and "interrupted" or "stopped by " .. name
  local far <const> = progress()
  io.stdout:flush()
  io.stderr:write(host.prefix, far == "" and place or "", by, far, "\n")
  if name == "SIGINT" then return EX_FAILED, SIGINT end
  return EX_TEMPFAIL, 0
end

-- Runs f(...) to its end. 0, 0 and its results; or, once the error has been reported, the status
-- and the signal to leave with.
local function execute(host, f, ...)
  local status, signal, place = EX_FAILED, 0, nil
  local function handler(err)
    if is_plua_error(err) and err.kind == "init" then status = EX_USAGE end -- nothing has run
    if is_plua_error(err) and err.signal == "SIGPIPE" then -- nobody reads what the items print
      signal = SIGPIPE
      return nil
    end
    place = stopped_at(host, err)
    if place then return err end -- what is being closed is told of it
    local text <const> = describe(err, host.prefix) -- no tail call: the traceback counts levels
    return text
  end
  local results <const> = table.pack(host.call(handler, f, ...))
  if results[1] then return 0, 0, table.unpack(results, 2, results.n) end
  if signal == SIGPIPE then return EX_FAILED, signal end
  if place then return report_stop(host, place) end
  io.stdout:flush()
  io.stderr:write(tostring(results[2]), "\n")
  return status, signal
end

-- Runs a chunk with arguments, if it could be loaded.
local function run_chunk(host, chunk, message, ...)
  if chunk then return execute(host, chunk, ...) end
  complain(message)
  return EX_USAGE, 0
end

local function run_init(host)
  local name = "LUA_INIT_" .. _VERSION:match("(%d+%.%d+)"):gsub("%.", "_")
  local text = os.getenv(name)
  if not text then
    name, text = "LUA_INIT", os.getenv("LUA_INIT")
  end
  if not text then return 0, 0 end
  if text:sub(1, 1) == "@" then return run_chunk(host, loadfile(text:sub(2))) end
  return run_chunk(host, load(text, "=" .. name))
end

-- -l mod, -l mod-suffix, -l g=mod
local function run_library(host, text)
  local name, module = text:match("^([^=]*)=(.*)$")
  if not name then
    name, module = text:match("^[^-]*"), text
  end
  local status <const>, signal <const>, value <const> = execute(host, require, module)
  if status == 0 then _G[name] = value end
  return status, signal
end

-- A chunk that ended well and returned a table with data or map has given us a job.
local function run_jobs(host, name, ended, ended_by, value)
  if ended ~= 0 or type(value) ~= "table" then return ended, ended_by end
  if rawget(value, "data") == nil and rawget(value, "map") == nil then return 0, 0 end
  local status <const>, signal <const>, outcome <const>, message <const> =
    execute(host, require("plua.job").run, value)
  if status ~= 0 then return status, signal end
  if outcome then return outcome, 0 end
  complain(name .. ": " .. message)
  return EX_USAGE, 0
end

local COMMAND_LINE <const> = "=(command line)"

local STEPS <const> = {
  e = function(host, text)
    local chunk <const>, message <const> = load(text, COMMAND_LINE)
    return run_jobs(host, COMMAND_LINE:sub(2), run_chunk(host, chunk, message))
  end,
  l = run_library,
  W = function()
    warn("@on")
    return 0, 0
  end,
}

local function run_steps(host, steps)
  for _, step in ipairs(steps) do
    local status <const>, signal <const> = STEPS[step.kind](host, step.text)
    if status ~= 0 then return status, signal end
  end
  return 0, 0
end

-- Runs the script, or stdin where 'file' is nil.
local function run_script(host, file)
  if type(arg) ~= "table" then
    complain("'arg' is not a table")
    return EX_FAILED, 0
  end
  local chunk <const>, message <const> = loadfile(file)
  return run_jobs(host, file or "stdin", run_chunk(host, chunk, message, table.unpack(arg)))
end

-- ---- the interactive mode --------------------------------------------------------------------

local function prompt(name, default)
  local value <const> = _G[name]
  io.stdout:write(value == nil and default or tostring(value))
  io.stdout:flush()
  return io.stdin:read("L")
end

local function is_incomplete(message) return message and message:sub(-5) == "<eof>" end

-- Reads a statement or an expression over as many lines as it takes. A chunk; or nil and what is
-- wrong with it; or nil at the end of the input.
local function read_chunk()
  local text = prompt("_PROMPT", "> ")
  if not text then return end
  text = text:gsub("\n$", ""):gsub("^=", "return ")
  local expression <const> = load("return " .. text .. ";", "=stdin")
  if expression then return expression end
  while true do
    local chunk <const>, message <const> = load(text, "=stdin")
    if chunk or not is_incomplete(message) then return chunk, message end
    local line <const> = prompt("_PROMPT2", ">> ")
    if not line then return nil, message end
    text = text .. "\n" .. line:gsub("\n$", "")
  end
end

-- Prints the results of a chunk. Answers its status.
local function show(status, _, ...)
  if status ~= 0 or select("#", ...) == 0 then return status end
  local fine <const>, message <const> = pcall(print, ...)
  if not fine then
    io.stderr:write(("error calling 'print' (%s)\n"):format(tostring(message)))
  end
  return status
end

-- As in lua, errors without the program's name too; and 'plua' is there without being asked for.
local function interact(host)
  host.prefix = ""
  if rawget(_G, "plua") == nil then rawset(_G, "plua", require("plua")) end
  while true do
    local chunk <const>, message <const> = read_chunk()
    if chunk then
      if show(execute(host, chunk)) == EX_TEMPFAIL then return EX_TEMPFAIL, 0 end
    elseif message then
      io.stderr:write(message, "\n")
    else
      break
    end
  end
  io.stdout:write("\n")
  return 0, 0
end

-- ---- what only prints ------------------------------------------------------------------------

local function banner(host)
  return ("plua %s, %s\n"):format(host.version, host.copyright)
end

-- Lines with columns of equal width.
local function align(rows)
  local width <const> = {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do width[i] = math.max(width[i] or 0, #cell) end
  end
  local lines <const> = {}
  for _, row in ipairs(rows) do
    local line = ""
    for i, cell in ipairs(row) do line = line .. cell .. (" "):rep(width[i] - #cell + 2) end
    table.insert(lines, (line:gsub("%s+$", "")))
  end
  return table.concat(lines, "\n")
end

local function cpus_cell(source)
  if source.text == "" then return "-" end
  if source.cpus < 0 then return "not understood" end
  return source.cpus == 0 and "no limit" or tostring(source.cpus)
end

local function show_cpus()
  local plua <const> = require("plua")
  local n <const>, decider <const> = plua.cpu_count()
  local rows <const> = { { "SOURCE", "CPUS", "SAYS", "WHERE" } }
  for _, source in ipairs(plua.cpus()) do
    local text <const> = source.text == "" and "-" or source.text
    local where <const> = source.where == "" and "-" or source.where
    local mark <const> = source.decides and "<- decides" or ""
    table.insert(rows, { source.name, cpus_cell(source), text, where, mark })
  end
  io.stdout:write(("%d, decided by %s\n"):format(n, decider), align(rows), "\n")
end

-- ---- the run ---------------------------------------------------------------------------------

-- The global 'arg': the script is 0, what stands before it is negative.
local function arg_table(plan)
  local list <const> = {}
  local base <const> = plan.script or 0
  for i = 0, #plan.argv do list[i - base] = plan.argv[i] end
  return list
end

local function script_file(plan)
  local name <const> = plan.argv[plan.script]
  if name == "-" and plan.argv[plan.script - 1] ~= "--" then return nil end
  return name
end

-- What comes after the script: the interactive mode, or stdin if there was nothing else to do.
local function run_rest(plan, host)
  local idle <const> = not (plan.script or plan.banner or plan.executes)
  if idle and not host.isatty() then return run_script(host, nil) end
  if idle then io.stdout:write(banner(host)) end
  if idle or plan.interactive then return interact(host) end
  return 0, 0
end

-- The parts of a run; each answers a status and a signal, and one that fails is the last.
local PARTS <const> = {
  function(plan, host)
    if plan.noenv then return 0, 0 end
    return run_init(host)
  end,
  function(plan, host) return run_steps(host, plan.steps) end,
  function(plan, host)
    if not plan.script then return 0, 0 end
    return run_script(host, script_file(plan))
  end,
  run_rest,
}

local function run_all(plan, host)
  for _, part in ipairs(PARTS) do
    local status <const>, signal <const> = part(plan, host)
    if status ~= 0 then return status, signal end
  end
  local run <const> = package.loaded["plua.run"]
  if not run then return 0, 0 end
  local untold <const> = run.untold()
  if untold then complain(untold) end
  return (untold or run.failures > 0) and EX_FAILED or 0, 0 -- told: --on-error collect wanted them
end

--- Carries out what 'parse' understood.
---@param plan plua.Plan
---@param host table  what the program offers: call, stopped, grace, isatty, version, lua, copyright
---@return integer status  for exit
---@return integer signal  not 0: the process should die by it instead
function M.run(plan, host)
  local fault <const> = line_fault(plan, host)
  if fault then
    complain(fault)
    return EX_USAGE, 0
  end
  host.prefix = "plua: "
  if plan.help then io.stdout:write(USAGE) end
  if plan.version then io.stdout:write(("plua %s (%s)\n"):format(host.version, host.lua)) end
  if plan.cpus then show_cpus() end
  if plan.help or plan.version or plan.cpus then return 0, 0 end
  if plan.banner then io.stdout:write(banner(host)) end
  rawset(_G, "arg", arg_table(plan))
  return run_all(plan, host)
end

return M
