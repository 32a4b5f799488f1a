--- Error objects: what went wrong with an item, and how a person reads it.
-- Keeps true: every error that plua raises about an item is one of these, and says which item,
-- where and why; of tracebacks, a person sees no frame of plua. Knows plua.core; does not know
-- options or pools.
-- SPDX-License-Identifier: MIT

local core <const> = require("plua.core")

local M <const> = {}

--- `tostring(err)` is what a person needs: what, which item, where, the worker's traceback.
--
-- The kinds: "error" the function raised; "crash" a signal ended its worker; "exit" its worker
-- exited; "timeout" it ran, or was waited for, too long; "memory" there was no more within its
-- limit, or memory ran out and the kernel ended its worker; "cancelled" it was taken back;
-- "encode" a value cannot cross; "init" workers cannot start; "lost" it has no outcome, as its
-- pool ended, or its worker was killed and does not end.
---@class plua.Error
---@field kind "error"|"crash"|"exit"|"timeout"|"memory"|"cancelled"|"encode"|"init"|"lost"
---@field message string   what happened, in a sentence
---@field value any        what the function raised, where it can cross; else its text
---@field traceback? string  the worker's, without frames of plua
---@field where? string    file:line of the innermost Lua function that ran; where memory ran out in
---  a coroutine, of what resumed it; of what could not be
---  sent to a worker, of the call
---@field call? string     of what could not be sent: by which call, "pool:map"
---@field index? integer   the item's place in the data, from 1
---@field item any         the item itself, where the caller still has it
---@field worker? integer  the worker's number
---@field pid? integer     its process
---@field attempts? integer  how often the item was begun
---@field signal? string   what killed the worker: "SIGSEGV"
---@field status? integer  what the worker exited with
---@field elapsed? number  seconds that the item ran
---@field output? string   the last of what it printed, at most 64 KiB, under output = "grouped";
---  else, of an item that took its worker along, what it wrote to stderr last
---@field package finishing? boolean  'finish' raised it
local Error <const> = { __name = "plua.Error" }

local SHORT <const> = 60 -- characters of a string that a message shows

-- Frames of these modules, which lie beside this one, are ours.
local OURS <const> = {
  cli = true, data = true, errors = true, future = true, init = true, job = true, json = true,
  map = true, options = true, pool = true, run = true, weight = true,
}
local HERE <const> = debug.getinfo(1, "S").short_src
local HOME <const> = HERE:gsub("errors%.lua$", "")

local brief

local function brief_string(text)
  local n = math.min(SHORT, #text)
  while n < #text and n > SHORT - 4 and text:byte(n + 1) & 0xC0 == 0x80 do n = n - 1 end
  local cut <const> = text:sub(1, n) -- between characters of UTF-8
  local shown <const> = cut:gsub('[%c"\\\127-\255]', function(c)
    if c == '"' or c == "\\" then return "\\" .. c end
    if c == "\n" then return "\\n" end
    return c:byte() >= 128 and c or ("\\%d"):format(c:byte())
  end)
  return ('"%s"%s'):format(shown, cut ~= text and "..." or "")
end

local function brief_key(key)
  if type(key) == "string" and key:find("^[%a_][%w_]*$") then return key end
  return "[" .. brief(key, 2) .. "]"
end

local RANK <const> = { number = "1", string = "2", boolean = "3" } -- the rest by the type's name

-- Numbers, strings, booleans, then what has no order and looks alike.
local function key_before(a, b)
  local kind <const>, other <const> = type(a), type(b)
  if kind ~= other then return (RANK[kind] or kind) < (RANK[other] or other) end
  if kind == "boolean" then return not a and b end
  return RANK[kind] ~= nil and a < b
end

-- The keys of t beside 1 .. length, in order: the same text for equal tables.
local function named_keys(t, length)
  local keys <const> = {}
  for key in next, t do
    if math.type(key) ~= "integer" or key < 1 or key > length then keys[#keys + 1] = key end
  end
  table.sort(keys, key_before)
  return keys
end

local function brief_table(t)
  local parts, length <const> = {}, rawlen(t)
  for i = 1, math.min(length, 4) do parts[#parts + 1] = brief(rawget(t, i), 2) end
  if length > 4 then parts[#parts + 1] = "..." end
  for i, key in ipairs(named_keys(t, length)) do
    parts[#parts + 1] = i > 4 and "..." or brief_key(key) .. " = " .. brief(rawget(t, key), 2)
    if i > 4 then break end
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

-- A value in a few characters; runs no metamethods.
function brief(value, depth)
  local kind <const> = type(value)
  if kind == "string" then return brief_string(value) end
  if kind == "number" or kind == "boolean" or kind == "nil" then return tostring(value) end
  if kind == "table" and depth < 2 then return brief_table(value) end
  return kind == "table" and "{...}" or kind
end

-- "item 5 ("x")", or "items 513 to 514" of a block; nil where no item is to blame.
local function which(err)
  if not err.index then return nil end
  if err.last then return ("items %d to %d"):format(err.index, err.last) end
  if err.item == nil then return ("item %d"):format(err.index) end
  return ("item %d (%s)"):format(err.index, brief(err.item, 1))
end

local function who(err)
  if not err.worker then return "the worker" end
  return ("worker %d (pid %d)"):format(err.worker, err.pid or 0)
end

local function tries(err)
  local n <const> = err.attempts or 1
  return n > 1 and ("; tried %d times"):format(n) or ""
end

-- How the worker ended, as far as the process could be asked.
local function fate(err)
  if err.signal then return "was killed by " .. err.signal end
  if err.status then return "exited with status " .. err.status end
  return "died of unknown cause (its exit status was taken elsewhere: SIGCHLD is ignored, or " ..
    "its handler waits for every child)"
end

-- What was done about an item that ran for too long: the worker survives if it could stop it.
local function too_long(err, _, timeout)
  local text <const> = ("%s ran longer than %.9g s"):format(which(err) or "the item", timeout or 0)
  if not err.signal then return text end
  return ("%s, did not stop, and %s was killed%s"):format(text, who(err), tries(err))
end

-- The remedy stands on a line of its own.
local function out_of_memory(err)
  return ("memory ran out: the kernel's OOM killer ended %s while it ran %s%s\n" ..
    "  use fewer workers, or set a limit on each by the option memory"):format(who(err),
    which(err) or "an item", tries(err))
end

-- Texts for what no function raised.
local MESSAGE <const> = {
  timeout = too_long,
  crash = function(err, reason)
    local ours <const> = reason and reason:match("^worker (broke .*)$") -- killed for that, by us
    local what <const> = which(err) or reason == "finish" and "'finish'" or "an item"
    return ("%s %s while running %s%s"):format(who(err), ours or fate(err), what, tries(err))
  end,
  cancelled = function(err) return (which(err) or "the call") .. " was cancelled" end,
  init = function(err)
    return ("no worker starts: one after the other died before it ran anything, the last %s")
      :format(fate(err))
  end,
}
MESSAGE.exit = MESSAGE.crash
MESSAGE.memory = function(err, reason) return err.signal and out_of_memory(err) or reason end

-- ---- frames -----------------------------------------------------------------------------------

-- Whether code of that file, as messages name it, is ours. Long names are cut in front, and the
-- names of files beside this one at another place then.
local function is_ours(file)
  local dir <const>, name <const> = file:match("^(.-)([%w_]+)%.lua$")
  if not OURS[name] then return false end
  return dir == HOME or HERE:sub(1, 3) == "..." and dir:sub(-6) == "/plua/"
end

local function is_our_line(line)
  local file <const> = line and line:match("^\t(.-):%d+: in ")
  return file and is_ours(file)
end

--- A traceback without frames of plua, without the C functions that those called, and without the
-- marks of tail calls that belong to either.
---@param traceback string  "stack traceback:" and a line for each frame
---@return string? traceback  nil where nothing of the user's is in it
function M.users_frames(traceback)
  local lines <const>, kept, dropped = {}, {}, false
  for line in traceback:gmatch("[^\n]+") do lines[#lines + 1] = line end
  for i, line in ipairs(lines) do
    if line ~= "\t(...tail calls...)" then
      dropped = is_our_line(line) or line:find("^\t%[C%]: in ") and is_our_line(lines[i + 1])
    end
    if not dropped then kept[#kept + 1] = line end
  end
  local bare <const> = #kept < #lines and #kept == 2 and kept[2] == "\t[C]: in ?"
  return #kept > 1 and not bare and table.concat(kept, "\n") or nil
end

-- What a script calls that frame's function: "plua.map", "pool:map"; "plua" where it has no name.
local function name_of(frame)
  for name, value in next, package.loaded["plua"] or {} do
    if value == frame.func then return "plua." .. name end
  end
  local module <const> = frame.short_src:match("([%w_]+)%.lua$")
  if frame.namewhat == "method" and (module == "pool" or module == "future") then
    return module .. ":" .. frame.name
  end
  return "plua"
end

--- The line of the script that called plua, and what it called.
---@param level integer  where to begin: 1 is the caller
---@return string? where  file:line; nil where there is no such line
---@return string? call  "plua.map"; "the loop" where a generic for did; "plua" where its name is
---  not to be known; nil: nothing of plua
function M.site(level)
  local ours, loop
  for at = level + 1, math.maxinteger do
    local frame <const> = debug.getinfo(at, "Slnf")
    if not frame then return nil end
    if frame.currentline > 0 then
      if not is_ours(frame.short_src) then
        local call <const> = ours and (loop and "the loop" or name_of(ours))
        return ("%s:%d"):format(frame.short_src, frame.currentline), call
      end
      ours = frame
    end
    loop = frame.namewhat == "for iterator"
  end
end

-- ---- what the system refuses -------------------------------------------------------------------

local REFUSED <const> = "plua needs Linux 5.4 or newer, and a sandbox that permits its calls: " ..
  "strace -f shows which one is refused"

-- What a refusal of the system's is due to: the limit and its name in /proc, where there is one;
-- and what to do.
local REFUSALS <const> = {
  { "Cannot allocate memory", "ulimit -v", "Max address space",
    "use fewer workers, or raise the limit" },
  { "File too large", "ulimit -f", "Max file size", "use fewer workers, or raise the limit" },
  { "Resource temporarily unavailable", "ulimit -u", "Max processes",
    "use fewer workers, or raise the limit, which a container may have of its own" },
  { "Too many open files", "ulimit -n", "Max open files",
    "use fewer workers, close files, or raise the limit" },
  { "Operation not permitted", nil, nil, REFUSED },
  { "Function not implemented", nil, nil, REFUSED },
}

-- The soft limit of that name, as ulimit shows it; nil where there is none.
local function limit_of(name)
  local file <close> = io.open("/proc/self/limits")
  if not file then return nil end
  for line in file:lines() do
    local rest <const> = line:sub(1, #name) == name and line:sub(#name + 1)
    local value <const>, unit <const> = (rest or ""):match("^%s+(%d+)%s+%S+%s*(%a*)")
    if value then return unit == "bytes" and ("%d"):format(value // 1024) or value end
  end
end

-- The text with the limit behind a refusal and a remedy.
local function limited(text)
  for _, refusal in ipairs(REFUSALS) do
    if text:sub(-#refusal[1]) == refusal[1] then
      if not refusal[2] then return text .. "; " .. refusal[4] end
      local limit <const> = limit_of(refusal[3])
      local why <const> = limit and ("%s is %s"):format(refusal[2], limit) or refusal[2]
      return ("%s (%s); %s"):format(text, why, refusal[4])
    end
  end
  return text
end

-- What the store of a pool says when there is no room in it, and nothing else.
local FULL <const> = {
  ["No space left on device"] = true, ["Cannot allocate memory"] = true, ["File too large"] = true,
}

--- A failure of the core as a person needs it: with the limit behind it and a remedy, where known.
---@param text string
---@return string
function M.explained(text)
  if not FULL[text] then return limited(text) end
  return ("no room for what is sent to workers: %s (a pool keeps it in memory until it is " ..
    "done); send less at once, as imap does, or allow more memory"):format(text)
end

--- A message that the core raises, taken apart: "script.lua:3: plua: the reason".
---@param message any
---@return string? place  "script.lua:3: ", or empty
---@return string? text   the reason; nil where the message is not the core's
function M.placed(message)
  if type(message) ~= "string" then return nil end
  local place <const>, text <const> = message:match("^([^\n]-:%d+: )plua: (.*)$")
  if place then return place, text end
  return "", message:match("^plua: (.*)$")
end

--- Raises why no team of workers can be opened, at the script's line that wanted one.
---@param message any  what core.open raised
---@param workers integer
function M.not_opened(message, workers)
  local _ <const>, text <const> = M.placed(message)
  if not text then error(message, 0) end
  local where <const>, call <const> = M.site(2)
  error(("%s%sno shared memory for %d worker%s: %s"):format(where and where .. ": " or "",
    call and call .. ": " or "", workers, workers == 1 and "" or "s", limited(text)), 0)
end

-- ---- making -----------------------------------------------------------------------------------

local function item_of(data, index)
  local fine <const>, item = pcall(function() return data[index] end)
  if fine then return item end
  return nil
end

-- An item that failed because a call of plua inside it did: that one's words, place and traceback.
local function hand_on(fields)
  local inner <const> = fields.value
  fields.message = tostring(inner):match("^[^\n]*")
  fields.where = inner.where
  fields.traceback = inner.traceback or fields.traceback
end

-- Items mostly fail alike: the traceback that was trimmed last, and what was left of it.
local last_traceback, last_trimmed

local function trimmed(traceback)
  if traceback ~= last_traceback then
    last_traceback, last_trimmed = traceback, M.users_frames(traceback)
  end
  return last_trimmed
end

-- Makes the error object of what the core knows. The fields 'data' and 'reason' are for us only.
local function make(fields)
  if fields.kind == "error" and M.iserror(fields.value) then hand_on(fields) end
  local data <const>, reason <const>, timeout <const> = fields.data, fields.reason, fields.timeout
  fields.data, fields.reason, fields.timeout = nil, nil, nil
  fields.finishing = reason == "finish" and fields.kind == "error" or nil
  if data ~= nil and fields.index then
    fields.item = item_of(data, fields.index)
    if fields.value ~= nil or fields.traceback then fields.last = nil end
  end
  if not fields.message then
    local text <const> = MESSAGE[fields.kind]
    fields.message = text and text(fields, reason, timeout) or reason or fields.kind
  end
  if fields.kind == "error" and fields.value == nil then fields.value = fields.message end
  if fields.kind == "encode" and not fields.attempts then
    fields.index = fields.index or math.tointeger(tonumber(fields.message:match("^item (%d+)")))
    fields.where, fields.call = M.site(2)
  end
  if fields.traceback then fields.traceback = trimmed(fields.traceback) end
  return setmetatable(fields, Error)
end

-- Messages of these kinds name the item by themselves, and of those who lost their worker, it.
local WHOLE <const> = { crash = true, exit = true, cancelled = true, timeout = true }
local function is_whole(err) return WHOLE[err.kind] or err.kind == "memory" and err.signal end

-- What happened at the place that an error names.
local VERB <const> = { timeout = "stuck", memory = "wanted" }

-- ---- reading ----------------------------------------------------------------------------------

local SEND <const> = "make it inside the function or in init, or use plua.map and its sisters, " ..
  "whose workers inherit what the script has"
local STAY <const> = "a pool and its futures stay in the process that made them: inside an item " ..
  "use plua.map and its sisters, which run in the worker"
local RETURN <const> = "return what it holds, or give its metatable hooks, see plua.register"

-- The remedy for a value that cannot cross, by what the codec calls it; nil where that says it.
local function remedy_of(reason, remedy)
  if reason:find("(plua.Pool)", 1, true) or reason:find("(plua.Future)", 1, true) then
    return STAY
  end
  if reason:find("plua.register", 1, true) then return nil end
  if reason:find("userdata", 1, true) or reason:find("coroutine", 1, true) then return remedy end
end

local NO_WAY <const> = "its result cannot cross to the caller: "
local SENT <const> = { "item %d+", "argument ?%d*", "reduce function", "function" }

-- What the message says of which thing: "item 3", ".conn.socket: userdata (FILE*)".
local function split(message)
  for _, thing in ipairs(SENT) do
    local name <const>, reason <const> = message:match("^(" .. thing .. "):? ?(.*)$")
    if name and name:find("function$") then return "the " .. name, (reason:gsub("^%.", "")) end
    if name then return name, reason end
  end
end

-- What could not be sent to a worker: a sentence, and what to do.
local function not_sent(err)
  local thing <const>, reason <const> = split(err.message)
  if not thing then return err.message end
  local parts <const> = { err.where }
  parts[#parts + 1] = err.call
  parts[#parts + 1] = thing .. " cannot cross to a worker"
  parts[#parts + 1] = reason
  local remedy <const> = remedy_of(reason, SEND)
  return table.concat(parts, ": ") .. (remedy and "\n  " .. remedy or "")
end

local LINES <const>, BYTES <const> = 10, 2048 -- of what the item printed

-- The last lines of what the item printed, set off; nil where there are none.
local function last_words(output)
  if type(output) ~= "string" then return nil end
  local text <const> = output:sub(-BYTES):gsub("%s+$", "")
  local lines <const> = {}
  for line in text:gmatch("[^\n]+") do lines[#lines + 1] = "  | " .. line end
  if #lines == 0 then return nil end
  local cut <const> = #lines > LINES or #output > BYTES
  return (cut and "its last output:\n" or "its output:\n") ..
    table.concat(lines, "\n", math.max(1, #lines - LINES + 1))
end

-- A table that was raised has no text of its own: what it holds, in brief.
local function said_by(err)
  if type(err.value) ~= "table" or not err.message:find("^%(error object is a table") then
    return err.message
  end
  return "error object " .. brief(err.value, 1)
end

--- What a person needs: what, which item, where, the worker's traceback.
function Error.__tostring(err)
  if err.kind == "encode" and not err.attempts then return not_sent(err) end
  local parts = {}
  local subject <const> = not is_whole(err) and which(err)
  local said, of_result = said_by(err), 0
  if err.kind == "encode" then said, of_result = said:gsub("^result:? ?", NO_WAY) end
  parts[1] = subject and subject .. ": " .. said or said
  if err.kind == "init" then parts[1] = "init: " .. said end
  if err.finishing then parts[1] = "finish: " .. said end
  local where <const> = err.where
  if where and not err.message:find(where, 1, true) then
    local verb <const> = VERB[err.kind] or "raised"
    parts[1] = ("%s (%s at %s)"):format(parts[1], verb, where)
  end
  if not is_whole(err) or err.kind == "timeout" and not err.signal then
    local by <const> = (err.worker and "in " .. who(err) or "") .. tries(err)
    if by ~= "" then parts[#parts + 1] = "  " .. by:gsub("^; ", "") end
  end
  local remedy <const> = of_result > 0 and remedy_of(said, RETURN)
  if remedy then parts[#parts + 1] = "  " .. remedy end
  parts[#parts + 1] = err.traceback
  parts[#parts + 1] = last_words(err.output)
  return table.concat(parts, "\n")
end

--- Whether a value is an error object of plua.
---@param value any
---@return boolean
function M.iserror(value)
  return type(value) == "table" and getmetatable(value) == Error
end

local function without_place(text) return (tostring(text):gsub("^[^\n]-:%d+: ", "")) end

--- So that "failed: " .. err reads as tostring(err) does.
function Error.__concat(a, b)
  if M.iserror(a) then a = tostring(a) end
  if M.iserror(b) then b = tostring(b) end
  local fine <const>, text <const> = pcall(function() return a .. b end)
  if not fine then error((without_place(text):gsub(" %(upvalue.*", "")), 2) end
  return text
end

core.maker(make)
core.explainer(M.explained)
core.register(Error, "plua.Error")

return M
