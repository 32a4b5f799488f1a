--- Options and cores: what calls and pools can be told, and how many cores they may use.
-- Keeps true: an option that does not exist, or a value that it cannot have, is an error that names
-- the nearest one or what is wanted. Knows plua.core for the core count; does not know calls.
-- SPDX-License-Identifier: MIT

local core <const> = require("plua.core")

local M <const> = {}

--- The same names in calls, in the table of a job and, as --name value, on the command line. A name
-- that does not exist is an error that offers the nearest one; so is a value of the wrong kind.
-- Those given to plua.pool are the defaults of calls on it; workers, init, finish, output, memory,
-- max_rss, max_tasks_per_child and nested belong to the pool alone.
---@class plua.Options
---@field workers? integer|string  how many processes, up to 65000; a share of the cores such as
---  "50%"; 0: items run in the caller's own process, with the same outcome, save that os.exit in
---  an item ends the program. Default: what PLUA_WORKERS says, or else as many as plua.cpu_count
---  answers. A one-shot call starts no more than it has items
---@field chunksize? integer|"auto"  items that a worker takes at once, 1 to 65535. Default "auto":
---  about half a millisecond of work, by measured rates
---@field retries? integer|plua.Retries  how often an item is run again: a number for every kind of
---  failure, or numbers by kind. Default: once where it took its worker along, three times where
---  somebody else killed the worker or memory ran out, never after an error or a timeout. With 0 no
---  item is begun twice. On the command line: --retries 2 or --retries crash=2,error=1
---@field timeout? number  seconds that an item may run, above 0; math.huge and the default: as long
---  as it likes. Then it is interrupted, or its worker is killed where it does not stop; its
---  outcome is an error of kind "timeout". Of mapreduce, seconds for a block. Nothing can stop an
---  item that its caller runs itself (workers = 0): there, and in calls inside an item, it does
---  nothing
---@field on_error? "raise"|"collect"|fun(err: plua.Error): any  "raise", the default: the first
---  error ends the call. "collect": the others go on, error objects stand where results would. A
---  function: is called with each error, by the caller; what it returns is the result
---@field init? fun()  runs once in each worker, before its first item. Default: none
---@field finish? fun()  runs once in each worker that leaves in peace, last. What it raises, or a
---  death in it, is raised after the results were made. Default: none
---@field memory? integer|string  how much a worker may use of its own, in bytes or as "512M" (K, M,
---  G or T: times 1024), at least "64K"; what it inherits does not count. Lua's memory beyond that
---  is refused: the item fails with an error of kind "memory". The worker goes on, or is replaced
---  where it stays nearly full. What C code maps is limited too (RLIMIT_DATA), together with Lua's;
---  C code that takes a refusal badly crashes its worker. Does nothing with workers = 0, whose
---  memory is the caller's. Default: no limit
---@field max_rss? integer|string  between two items, a worker whose resident memory is above this
---  is replaced; what it shares with its parent counts. One that starts that large is replaced when
---  it has grown by a tenth of this. Written as memory is. Default: never
---@field max_tasks_per_child? integer  a worker is replaced after so many items, 1 or more.
---  Default: never
---@field seed? integer  where the random numbers that items draw begin: math.random is seeded anew
---  for each item by this and its index. Default: drawn from the caller's math.random
---@field weight? fun(item: any): number  what an item will cost, more or less, in any unit: those
---  that cost most are begun first, one by one whatever chunksize says, so that no long one is left
---  for the end. The caller calls it once for each item. Results keep their places. Not for pools
---  as a whole, nor for find, mapreduce and imap over an iterator; imap gives out all at once
---@field output? "live"|"grouped"  "live", the default: what items print comes out at once, line by
---  line, each line whole whoever else prints; an unfinished one waits for its end, or the item's.
---  "grouped": what an item wrote to stdout and stderr, and what C code and programs that it
---  started wrote there, comes out as one block when it ends, before its result, in order of
---  completion; stderr's is a block of its own where that is another file. Meanwhile it lies in an
---  unlinked file in TMPDIR, or in memory where none can be made there. The error of an item that
---  failed has it too
---@field nested? boolean  whether a call inside an item may have workers of its own. Default false:
---  it runs in the worker

--- How often an item is run again, by what became of it. An item that failed is run by itself.
---@class plua.Retries
---@field crash? integer  its worker died or exited while running it; default 1
---@field error? integer  the function raised, or the result cannot cross; default 0
---@field timeout? integer  it ran longer than its timeout; default 0
---@field killed? integer  SIGKILL or SIGTERM that plua did not send ended its worker; default 3
---@field oom? integer  memory ran out and the kernel ended its worker: then it is run while no
---  other item runs; default 3

local WORKERS_MAX <const> = 65000
local PERCENT <const> = "^%s*(%d+%.?%d*)%s*%%%s*$"

local function integer(low, high)
  return function(value)
    local n <const> = type(value) == "number" and math.tointeger(value) or nil
    if n and n >= low and n <= high then return n end
  end
end

local function of_type(wanted)
  return function(value)
    if type(value) == wanted then return value end
  end
end

local whole_workers <const> = integer(0, WORKERS_MAX)

local function workers(value)
  if type(value) ~= "string" then return whole_workers(value) end
  local percent <const> = tonumber(value:match(PERCENT))
  if percent and percent > 0 then return value end
end

local chunk <const> = integer(1, 65535)

local function chunksize(value)
  if value == "auto" then return value end
  return chunk(value)
end

local function on_error(value)
  if value == "raise" or value == "collect" or type(value) == "function" then return value end
end

local UNITS <const> = { [""] = 1, K = 1 << 10, M = 1 << 20, G = 1 << 30, T = 1 << 40 }
local LEAST <const>, MOST <const> = 1 << 16, 1 << 60

-- Bytes, or a number with a unit: "1.5G".
local function bytes(value)
  local n, unit = value, ""
  if type(value) == "string" then
    n, unit = value:match("^%s*(%d+%.?%d*)%s*([KMGTkmgt]?)%s*$")
    n = tonumber(n)
  end
  if type(n) ~= "number" then return nil end
  local all <const> = n * UNITS[unit:upper()]
  if all >= LEAST and all <= MOST then return math.tointeger(all // 1) end
end

local function output(value)
  if value == "live" or value == "grouped" then return value end
end

local function seconds(value)
  if type(value) == "number" and value > 0 then return value end -- NaN is not
end

local SIZE <const> = "a number of bytes or one with a unit such as \"512M\", at least \"64K\""
local RETRIES <const> = { crash = 1, error = 0, timeout = 0, killed = 3, oom = 3 }
local RETRIES_MAX <const> = 1 << 30
local KINDS <const> = { "crash", "error", "timeout", "killed", "oom" }
local times <const> = integer(0, RETRIES_MAX)

-- A number, or numbers by kind. nil, and what is wrong where more can be told of it.
local function retries(value)
  if type(value) ~= "table" then return times(value) end
  local fine <const> = {}
  for kind, n in next, value do
    if not RETRIES[kind] then
      return nil, ("option 'retries' knows no kind '%s'; %s"):format(tostring(kind),
        M.hint(kind, KINDS))
    end
    fine[kind] = times(n)
    if not fine[kind] then
      return nil, ("option 'retries': %s must be a whole number, 0 or more, not %s"):format(kind,
        tostring(n))
    end
  end
  return fine
end

--- How often items are run again, as handle:job takes it.
---@param wanted nil|integer|table  the option, checked
---@param spec table  gets the fields
---@return table spec
function M.set_retries(wanted, spec)
  local by_kind <const> = type(wanted) == "table" and wanted or {}
  local function of(kind)
    return math.type(wanted) and wanted or by_kind[kind] or RETRIES[kind]
  end
  spec.crash_retries, spec.error_retries, spec.timeout_retries = of "crash", of "error",
    of "timeout"
  spec.kill_retries, spec.oom_retries = of "killed", of "oom"
  return spec
end

local INTEGER <const> = integer(math.mininteger, math.maxinteger)

-- name -> { what turns a value into the option's or nil, what it may be, only for teams }
local OPTIONS <const> = {
  workers = { workers, "a whole number up to 65000, a share like \"50%\", or 0", true },
  chunksize = { chunksize, "a whole number from 1 to 65535, or \"auto\"" },
  retries = { retries, "a whole number, 0 or more, or such numbers by kind: crash, error, " ..
    "timeout, killed, oom" },
  timeout = { seconds, "a number of seconds above 0" },
  on_error = { on_error, "\"raise\", \"collect\" or a function" },
  init = { of_type("function"), "a function", true },
  finish = { of_type("function"), "a function", true },
  max_tasks_per_child = { integer(1, math.maxinteger), "a whole number, 1 or more", true },
  memory = { bytes, SIZE, true },
  max_rss = { bytes, SIZE, true },
  seed = { INTEGER, "a whole number" },
  output = { output, "\"live\" or \"grouped\"", true },
  nested = { of_type("boolean"), "true or false", true },
  weight = { of_type("function"), "a function" },
}

--- The names of all options, in order.
---@type string[]
M.names = {}
for name in pairs(OPTIONS) do M.names[#M.names + 1] = name end
table.sort(M.names)

local defaults = {}

-- Letters to insert, drop or change to make b of a.
local function distance(a, b)
  local row <const> = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local corner = row[0]
    row[0] = i
    for j = 1, #b do
      local change <const> = corner + (a:byte(i) == b:byte(j) and 0 or 1)
      corner = row[j]
      row[j] = math.min(change, row[j] + 1, row[j - 1] + 1)
    end
  end
  return row[#b]
end

-- How many letters both begin with.
local function shared(a, b)
  local n = 0
  while n < #a and a:byte(n + 1) == b:byte(n + 1) do n = n + 1 end
  return n
end

-- What other pools call some of these.
local ELSEWHERE <const> = {
  processes = "workers", jobs = "workers", n_jobs = "workers", threads = "workers",
  cores = "workers", errors = "on_error",
}

-- How far a is from b. Where one begins as the other, they are near.
local function apart(a, b)
  local d = distance(a, b)
  local short, long = a:gsub("_", ""), b:gsub("_", "")
  if #short > #long then short, long = long, short end
  if #short > 2 and long:find(short, 1, true) == 1 then d = math.min(d, 1) end
  return d - shared(a, b) / 256
end

--- The name of a list that is most like the one given; of several, the one that begins like it.
---@param name any
---@param list string[]
---@return string? nearest  nil where none is like it
function M.nearest(name, list)
  local best, least
  local text <const> = tostring(name):lower()
  for _, candidate in ipairs(list) do
    local d <const> = ELSEWHERE[text] == candidate and 0 or apart(text, candidate)
    if not least or d < least then best, least = candidate, d end
  end
  return best and 2 * least <= math.max(#text, #best) and best or nil
end

--- For the end of a message about an unknown name: the nearest one, or all.
---@param name any
---@param list string[]
---@return string
function M.hint(name, list)
  local near <const> = M.nearest(name, list)
  return near and ("the nearest is '%s'"):format(near) or "known are " .. table.concat(list, ", ")
end

--- Raises unless a value is a number, and not NaN.
---@param value any
---@param wanted string  the message, up to what the value is
---@param level integer  as error's, were it called here
function M.check_number(value, wanted, level)
  if type(value) == "number" and value == value then return end
  error(("%s, not %s"):format(wanted, type(value) == "number" and "NaN" or type(value)), level)
end

local function shown(value)
  return type(value) == "string" and ("%q"):format(value) or tostring(value)
end

-- The option's value as it is used; nil and what is wrong.
local function accept(name, value)
  local option <const> = OPTIONS[name]
  if type(name) ~= "string" then
    return nil, ("unknown option '%s'; options have names, as in { workers = 2 }")
      :format(tostring(name))
  end
  if not option then
    return nil, ("unknown option '%s'; %s"):format(name, M.hint(name, M.names))
  end
  local fine <const>, why <const> = option[1](value)
  if fine == nil then
    return nil, why or ("option '%s' must be %s, not %s %s"):format(name, option[2], type(value),
      shown(value))
  end
  return fine
end

-- "crash=2,error=1" as a table; other texts as they are.
local function by_kind(text)
  local list <const> = {}
  for part in text:gmatch("[^,]+") do
    local kind <const>, n <const> = part:match("^%s*([%w_]+)%s*=%s*(%S+)%s*$")
    if not kind then return text end
    list[kind] = math.tointeger(tonumber(n)) or n
  end
  return next(list) and list or text
end

--- Sets what calls use where they say nothing themselves, as the command line does.
-- Texts that stand for a number are understood.
---@param values table  name -> value
---@return boolean? ok  nil when something is wrong, and nothing has changed
---@return string? message
function M.set_defaults(values)
  local fresh <const> = {}
  for name, value in next, values do
    if value == "true" or value == "false" then value = value == "true" end
    local number <const> = type(value) == "string" and tonumber(value) or nil
    if name == "retries" and not number and type(value) == "string" then value = by_kind(value) end
    local fine <const>, message <const> = accept(name, math.tointeger(number) or number or value)
    if fine == nil then return nil, message end
    fresh[name] = fine
  end
  defaults = fresh
  return true
end

--- The options of a call, checked, over the defaults.
-- The field 'tell' is set where the command line, not the script, has failures collected; 'seeded'
-- where the seed is the call's own.
---@param given? table
---@param base? table  the pool's own options, where the call is one on a pool
---@param level? integer  where an error points to, as error counts; default: the caller's caller
---@return table
function M.check(given, base, level)
  level = level or 3
  local opts <const> = {}
  for name, value in next, base or defaults do opts[name] = value end
  if not base then opts.tell = defaults.on_error == "collect" or nil end
  opts.seeded = nil
  if given == nil then return opts end
  if type(given) ~= "table" then
    error(("options must be a table such as { workers = 2 }, not %s"):format(type(given)), level)
  end
  for name, value in next, given do
    local fine <const>, message <const> = accept(name, value)
    if fine == nil then error(message, level) end
    if base and OPTIONS[name][3] then
      error(("option '%s' is one of plua.pool: workers of a pool live already"):format(name),
        level)
    end
    opts[name] = fine
  end
  if given.on_error ~= nil then opts.tell = nil end
  opts.seeded = given.seed ~= nil or nil
  return opts
end

-- ---- cores ------------------------------------------------------------------------------------

local warned = {}

local function warn_once(source)
  local text <const> = ("%s = %q"):format(source.name, source.text)
  if warned[text] then return end
  warned[text] = true
  io.stderr:write("plua: ignoring ", text, ": not a number of cores (", source.where, ")\n")
end

-- What the machine, its container and the batch system grant: the count, every source, and the
-- number of workers for calls that name none: PLUA_WORKERS=0 asks for what workers = 0 does.
local function granted()
  local n <const>, sources <const> = core.cpus()
  local plain = n
  for _, source in ipairs(sources) do
    if source.name == "PLUA_WORKERS" and source.text:find("^%s*0+%s*$") then plain = 0
    elseif source.cpus < 0 then warn_once(source) end
  end
  return n, sources, plain
end

-- The number that the option stands for, of so many cores.
local function number_of(wanted, cores)
  if type(wanted) ~= "string" then return wanted end
  local share <const> = tonumber(wanted:match(PERCENT)) / 100
  return math.max(1, math.min(WORKERS_MAX, math.floor(cores * share + 0.5)))
end

-- What was set for all calls, as a source.
local function setting(cores)
  local wanted <const> = defaults.workers
  local source <const> = { name = "-j", where = "", text = "", cpus = 0, decides = false }
  if wanted == nil then return source end
  source.where, source.text, source.decides = "command line", tostring(wanted), true
  source.cpus = math.max(1, number_of(wanted, cores))
  return source
end

--- Every source that the core count is decided from: its name, where it is read, its raw text, the
-- number that it stands for (0: no limit; -1: not understood) and whether it decides.
---@return { name: string, where: string, text: string, cpus: integer, decides: boolean }[] sources
function M.cpus()
  local cores <const>, sources <const> = core.cpus()
  local own <const> = setting(cores)
  if own.decides then
    for _, source in ipairs(sources) do source.decides = false end
  end
  sources[#sources + 1] = own
  return sources
end

--- How many cores this program may use: what -j says, else what the machine, its container and the
-- batch system grant.
---@return integer n
---@return string source  the name of what decided
function M.cpu_count()
  local cores <const>, sources <const> = granted()
  local own <const> = setting(cores)
  if own.decides then return own.cpus, own.name end
  for _, source in ipairs(sources) do
    if source.decides then return cores, source.name end
  end
  return cores, "online"
end

--- The number of workers and the cores for each.
---@param wanted nil|integer|string  the option
---@param most? integer  there is no work for more
---@return integer workers
---@return integer cores
function M.team(wanted, most)
  local cores <const>, _, plain <const> = granted()
  local n <const> = math.min(number_of(wanted or plain, cores), most or WORKERS_MAX)
  return n, math.max(1, cores // math.max(n, 1))
end

return M
