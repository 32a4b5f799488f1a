--- Error objects: what went wrong with an item, and how a person reads it.
-- Keeps true: every error that plua raises about an item is one of these, and says which item,
-- where and why. Knows plua.core; does not know options or pools.
-- SPDX-License-Identifier: MIT

local core <const> = require("plua.core")

local M <const> = {}

---@class plua.Error
---@field kind "error"|"crash"|"exit"|"timeout"|"memory"|"cancelled"|"encode"|"init"|"lost"
---@field message string   what happened, in a sentence
---@field value any        what the function raised, where it can cross; else its text
---@field traceback? string  the worker's, without frames of plua
---@field where? string    file:line of the innermost Lua function that ran
---@field index? integer   the item's place in the data, from 1
---@field item any         the item itself, where the caller still has it
---@field worker? integer  the worker's number
---@field pid? integer     its process
---@field attempts? integer  how often the item was begun
---@field signal? string   what killed the worker: "SIGSEGV"
---@field status? integer  what the worker exited with
---@field elapsed? number  seconds that the item ran
local Error <const> = { __name = "plua.Error" }

local SHORT <const> = 60 -- characters of a string that a message shows

-- Frames of these modules are ours: a user's traceback does without them.
local OURS <const> = {
  cli = true, data = true, errors = true, future = true, init = true, inline = true, job = true,
  map = true, options = true, pool = true, run = true, stream = true,
}

local brief

local function brief_string(text)
  local cut <const> = #text > SHORT and text:sub(1, SHORT) or text
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

local function brief_table(t)
  local parts, length <const> = {}, rawlen(t)
  for i = 1, math.min(length, 4) do parts[#parts + 1] = brief(rawget(t, i), 2) end
  if length > 4 then parts[#parts + 1] = "..." end
  local named = 0
  for key, value in next, t do
    if math.type(key) ~= "integer" or key < 1 or key > length then
      named = named + 1
      if named > 4 then
        parts[#parts + 1] = "..."
        break
      end
      parts[#parts + 1] = brief_key(key) .. " = " .. brief(value, 2)
    end
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

-- How the worker ended.
local function fate(err)
  if err.signal then return "was killed by " .. err.signal end
  if err.status then return "exited with status " .. err.status end
  return "died"
end

-- Texts for what no function raised.
local MESSAGE <const> = {
  crash = function(err, reason)
    local cause <const> = (err.signal or err.status) and fate(err) or reason or "died"
    return ("%s %s while running %s%s"):format(who(err), cause, which(err) or "an item", tries(err))
  end,
  cancelled = function(err) return (which(err) or "the call") .. " was cancelled" end,
  init = function(err)
    return ("workers die before they run anything: one %s"):format(fate(err))
  end,
}
MESSAGE.exit = MESSAGE.crash

local function is_ours(line)
  local name <const> = line:match("^%s*%.*.-plua/([%w_]+)%.lua:%d+:") or
    line:match("^%s*plua/([%w_]+)%.lua:%d+:")
  return name and OURS[name]
end

-- The traceback without frames of plua, and without the C functions that those called.
local function users_frames(traceback)
  local lines, kept = {}, {}
  for line in traceback:gmatch("[^\n]+") do lines[#lines + 1] = line end
  for i, line in ipairs(lines) do
    local c_of_ours <const> = line:find("^%s*%[C%]:") and lines[i + 1] and is_ours(lines[i + 1])
    if not is_ours(line) and not c_of_ours then kept[#kept + 1] = line end
  end
  return #kept > 1 and table.concat(kept, "\n") or nil
end

local function item_of(data, index)
  local fine <const>, item = pcall(function() return data[index] end)
  if fine then return item end
  return nil
end

-- Makes the error object of what the core knows. The fields 'data' and 'reason' are for us only.
local function make(fields)
  local data <const>, reason <const> = fields.data, fields.reason
  fields.data, fields.reason = nil, nil
  if data ~= nil and fields.index then
    fields.item = item_of(data, fields.index)
    if fields.value ~= nil or fields.traceback then fields.last = nil end
  end
  if not fields.message then
    local text <const> = MESSAGE[fields.kind]
    fields.message = text and text(fields, reason) or reason or fields.kind
  end
  if fields.kind == "error" and fields.value == nil then fields.value = fields.message end
  if fields.traceback then fields.traceback = users_frames(fields.traceback) end
  return setmetatable(fields, Error)
end

-- Messages of these kinds name the item by themselves.
local WHOLE <const> = { crash = true, exit = true, cancelled = true }

--- What a person needs: what, which item, where, the worker's traceback.
function Error.__tostring(err)
  local parts = {}
  local subject <const> = not WHOLE[err.kind] and which(err)
  parts[1] = subject and subject .. ": " .. err.message or err.message
  if err.kind == "init" then parts[1] = "init: " .. err.message end
  local where <const> = err.where
  if where and not err.message:find(where, 1, true) then
    parts[1] = parts[1] .. (" (raised at %s)"):format(where)
  end
  if not WHOLE[err.kind] then
    local by <const> = (err.worker and "in " .. who(err) or "") .. tries(err)
    if by ~= "" then parts[#parts + 1] = "  " .. by:gsub("^; ", "") end
  end
  parts[#parts + 1] = err.traceback
  return table.concat(parts, "\n")
end

--- Whether a value is an error object of plua.
---@param value any
---@return boolean
function M.iserror(value)
  return type(value) == "table" and getmetatable(value) == Error
end

core.maker(make)
core.register(Error, "plua.Error")

return M
