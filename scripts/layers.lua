-- Checks who may know whom: C includes and Lua requires follow the layers below, and the core makes
-- no call that it must not. layers.lua [ROOT]. Knows file names and texts; compiles nothing.
-- SPDX-License-Identifier: MIT

-- A room is a file's name up to its first underscore (codec_map.c is of codec). It may include its
-- own headers and those of the rooms that are named. plua.h knows nothing.
local C <const> = {
  plua = "",
  base = "plua",
  fail = "base plua",
  cpus = "base plua",
  oom = "base plua",
  ring = "fail base plua",
  board = "base plua",
  proc = "fail base plua",
  lines = "base plua",
  capture = "lines base plua",
  sched = "base plua",
  store = "fail base plua",
  places = "base plua",
  codec = "base plua",
  link = "base plua",
  team = "board ring proc capture fail base plua",
  serve = "team board ring proc capture lines fail base plua",
  spare = "team board ring proc capture fail base plua",
  ["local"] = "link oom team board ring proc capture fail base plua",
  start = "local link oom team board ring proc fail base plua",
  hear = "local link oom team board ring proc fail base plua",
  words = "local link oom team board ring proc capture base plua",
  stream = "link base plua",
  worker = "codec lines link fail base plua",
  pump = "pool link sched store places fail base plua",
  lost = "pool link sched store places base plua",
  watch = "pool link sched store places base plua",
  pool = "link sched store places fail base plua",
  lib = "worker codec lines capture base plua",
  main = "plua",
}

-- Rooms that may see Lua.
local SEES_LUA <const> = { codec = true, worker = true, lib = true, main = true }

-- A Lua module stands on a floor and requires only what is below; on the ground floor modules may
-- lean on each other, without a circle. "plua" itself (init.lua) gathers floor 2.
local LUA_FLOOR <const> = { core = 0, pool = 2, map = 2, init = 3, job = 4, cli = 5 }
local GROUND <const> = 1

-- Calls that have no place in the core. The third entry names
-- the rooms that may: the program owns its process; proc ends a child that it has not reaped.
local BANNED <const> = {
  { "%f[%w_]CLOCK_REALTIME%f[^%w_]", "wall clock: time is monotonic here (now_ns)" },
  { "%f[%w_]gettimeofday%s*%(", "wall clock: time is monotonic here (now_ns)" },
  { "%f[%w_]time%s*%(", "wall clock: time is monotonic here (now_ns)" },
  { "%f[%w_]waitpid%s*%(%s*%-1", "takes the host's children away: wait for a pid", "main" },
  { "%f[%w_]wait%s*%(", "takes the host's children away: wait for a pid", "main" },
  { "%f[%w_]P_ALL%f[^%w_]", "takes the host's children away: wait for a pid", "main" },
  { "%f[%w_]kill%s*%(", "a pid may have been used again: signal a pidfd", "main proc" },
}

local faults = {}

local function fault(path, line, text)
  faults[#faults + 1] = ("%s:%d: %s"):format(path, line, text)
end

local function words(list)
  local set = {}
  for word in list:gmatch("%S+") do set[word] = true end
  return set
end

local function files(dir, pattern)
  local list = {}
  local pipe <close> = assert(io.popen(("ls '%s' 2>/dev/null"):format(dir)))
  for name in pipe:lines() do
    if name:find(pattern) then list[#list + 1] = name end
  end
  return list
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return assert(file:read("a"))
end

-- Blank in place of what is no code, so that line numbers stay.
local function blank(text) return (text:gsub("[^\n]", " ")) end

local function c_code(text)
  local out, at = {}, 1
  while true do
    local from <const> = text:find('["\'/]', at)
    if not from then break end
    local to, code
    local two <const> = text:sub(from, from + 1)
    if two == "/*" then
      to = select(2, text:find("*/", from + 2, true)) or #text
    elseif two == "//" then
      to = (text:find("\n", from, true) or #text + 1) - 1
    elseif two:sub(1, 1) == "/" then
      to, code = from, "/"
    else
      to = from + 1
      while to <= #text and text:sub(to, to) ~= two:sub(1, 1) do
        to = to + (text:sub(to, to) == "\\" and 2 or 1)
      end
    end
    out[#out + 1] = text:sub(at, from - 1)
    out[#out + 1] = code or blank(text:sub(from, to))
    at = to + 1
  end
  out[#out + 1] = text:sub(at)
  return table.concat(out)
end

-- Calls visit(line number, line) for each line.
local function each_line(text, visit)
  local number = 0
  for line in (text .. "\n"):gmatch("([^\n]*)\n") do
    number = number + 1
    visit(number, line)
  end
end

local function room_of(name)
  local stem <const> = name:gsub("%.[ch]$", "")
  return C[stem] and stem or stem:match("^[^_]+")
end

local function check_include(path, number, room, target)
  local other <const> = room_of(target)
  if target == "lua.h" or target == "lauxlib.h" or target == "lualib.h" then
    if not SEES_LUA[room] then
      fault(path, number, target .. ": only codec, worker, lib and main see Lua")
    end
  elseif not C[other] then
    fault(path, number, target .. ": is of no known room")
  elseif other ~= room and not words(C[room])[other] then
    fault(path, number, ("%s: %s may include only: %s"):format(target, room,
      C[room] == "" and "nothing" or C[room]))
  end
end

local function check_includes(path, room, text)
  each_line(text, function(number, line)
    local target <const> = line:match('^%s*#%s*include%s+"([^"]+)"') or
      line:match("^%s*#%s*include%s+<(l[ua][^>/]*%.h)>")
    if target then check_include(path, number, room, target) end
  end)
end

local function check_calls(path, room, text)
  each_line(c_code(text), function(number, line)
    -- A member of that name (link->kill) is another function.
    line = line:gsub("%->%s*[%w_]+", ""):gsub("%.%s*[%a_][%w_]*", "")
    for _, rule in ipairs(BANNED) do
      if line:find(rule[1]) and not words(rule[3] or "")[room] then
        fault(path, number, line:match(rule[1]) .. " " .. rule[2])
      end
    end
  end)
end

local function check_c(root)
  for _, name in ipairs(files(root .. "/core", "%.[ch]$")) do
    local path <const>, room <const> = "core/" .. name, room_of(name)
    local text <const> = read(root .. "/" .. path)
    if not C[room] then
      fault(path, 1, "this room has no layer: give it one in scripts/layers.lua")
    else
      check_includes(path, room, text)
      check_calls(path, room, text)
    end
  end
end

local function floor_of(module) return LUA_FLOOR[module] or GROUND end

-- The modules of plua that a text requires, comments apart: name -> line.
local function requires(text)
  local found = {}
  each_line(text, function(number, line)
    line = line:gsub("%-%-.*", "")
    for name in line:gmatch("require%s*%(?%s*[\"']plua%.?([%w_.]*)[\"']") do
      found[name == "" and "init" or name] = number
    end
  end)
  return found
end

-- Depth first; 'open' holds the modules on the way to here.
local function find_circle(graph, name, open, done)
  if open[name] then return name end
  if done[name] then return nil end
  open[name] = true
  for other in pairs(graph[name] or {}) do
    local circle <const> = find_circle(graph, other, open, done)
    if circle then return circle end
  end
  open[name], done[name] = nil, true
end

local function check_lua(root)
  local graph = {}
  for _, file in ipairs(files(root .. "/lua/plua", "%.lua$")) do
    local path <const>, name <const> = "lua/plua/" .. file, file:gsub("%.lua$", "")
    graph[name] = requires(read(root .. "/" .. path))
    for other, line in pairs(graph[name]) do
      local mine <const>, theirs <const> = floor_of(name), floor_of(other)
      if theirs > mine or theirs == mine and mine ~= GROUND then
        fault(path, line, ("%s (floor %d) may not require %s (floor %d)"):format(
          name, mine, other, theirs))
      end
    end
  end
  local done = {}
  for name in pairs(graph) do
    local circle <const> = find_circle(graph, name, {}, done)
    if circle then
      fault("lua/plua/" .. circle .. ".lua", 1, circle .. " requires itself by way of others")
      return
    end
  end
end

local root <const> = arg[1] or "."
check_c(root)
check_lua(root)
table.sort(faults)
for _, text in ipairs(faults) do io.stderr:write(text, "\n") end
os.exit(#faults == 0)
