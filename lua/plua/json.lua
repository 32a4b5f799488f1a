--- JSON, exact: what is written reads back as the same numbers and strings.
-- Integers are written as integers, whatever their size; floats with the fewest digits that read
-- back the same, and with a point or an exponent, so that they stay floats. Keys are sorted: equal
-- tables give equal text. Writing needs nothing but Lua; reading is done by lua-cjson, whose
-- numbers (all floats, there) are replaced by exact ones. Does not know workers or results.
--
-- A table is an array if its keys are positive integers and it is not sparse: the highest is at
-- most 10, or at most twice as many as there are; holes become null. A field n beside such keys,
-- as table.pack sets it, is the array's length. Any other table is an object; its integer keys
-- become their decimal text. The empty table is {}. Metatables are not looked at.
-- NaN, infinities, strings that are not UTF-8, keys and values of other types and cycles have no
-- form in JSON: an error that names the place.
-- SPDX-License-Identifier: MIT

local M <const> = {}

local DEPTH_MAX <const> = 1000
local SMALL_ARRAY <const> = 10

-- What stands for null; nil where lua-cjson is not installed.
local found <const>, cjson <const> = pcall(require, "cjson")
M.null = found and cjson.null or nil

-- ---- writing ---------------------------------------------------------------------------------

-- One text being written: parts, the path to the value at hand, the tables that it lies in.
---@class plua.json.Writer
---@field parts string[]
---@field path string[]
---@field inside table<table, boolean>

local function refuse(writer, what)
  local path <const> = table.concat(writer.path)
  error(("%s: %s has no form in JSON"):format(path == "" and "value" or path, what), 0)
end

local ESCAPES <const> = {
  ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f",
  ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
}

local function escape(c) return ESCAPES[c] or ("\\u%04x"):format(c:byte()) end

local function string_text(writer, s)
  local _, bad <const> = utf8.len(s)
  if bad then refuse(writer, ("a string that is not UTF-8 (byte %d)"):format(bad)) end
  return '"' .. s:gsub('[%c"\\\127]', escape) .. '"'
end

-- The shortest text that reads back as x; always with a point or an exponent.
local function float_text(writer, x)
  if x ~= x or x == math.huge or x == -math.huge then refuse(writer, tostring(x)) end
  local text
  for digits = 14, 17 do
    text = ("%%.%dg"):format(digits):format(x)
    if tonumber(text) == x then break end
  end
  text = text:gsub(",", ".") -- some locales write a comma
  return text:find("[.e]") and text or text .. ".0"
end

local write_value

-- The length of t as an array; nil if it is an object.
local function array_length(t)
  local count, highest, extra = 0, 0, 0
  for key in next, t do
    if math.type(key) == "integer" and key > 0 then
      count, highest = count + 1, math.max(highest, key)
    else
      extra = extra + 1
    end
  end
  if count == 0 then return nil end
  if extra > 0 then
    local n <const> = rawget(t, "n")
    if extra > 1 or math.type(n) ~= "integer" or n < highest then return nil end
    highest = n
  end
  return (highest <= SMALL_ARRAY or highest <= 2 * count) and highest or nil
end

local function write_array(writer, t, n)
  local parts <const>, path <const> = writer.parts, writer.path
  local level <const> = #path + 1
  parts[#parts + 1] = "["
  for i = 1, n do
    if i > 1 then parts[#parts + 1] = "," end
    path[level] = ("[%d]"):format(i)
    write_value(writer, rawget(t, i))
  end
  path[level] = nil
  parts[#parts + 1] = "]"
end

-- The keys of an object as texts, sorted, and what they stand for.
local function object_fields(writer, t)
  local keys <const>, values <const> = {}, {}
  for key, value in next, t do
    if type(key) ~= "string" and math.type(key) ~= "integer" then
      refuse(writer, ("a key that is a %s (%s)"):format(math.type(key) or type(key), tostring(key)))
    end
    local name <const> = tostring(key)
    if values[name] ~= nil then refuse(writer, ("both the keys %s and %q"):format(name, name)) end
    keys[#keys + 1], values[name] = name, value
  end
  table.sort(keys)
  return keys, values
end

local function write_object(writer, t)
  local parts <const>, path <const> = writer.parts, writer.path
  local keys <const>, values <const> = object_fields(writer, t)
  local level <const> = #path + 1
  parts[#parts + 1] = "{"
  for i, key in ipairs(keys) do
    if i > 1 then parts[#parts + 1] = "," end
    path[level] = key:find("^[%a_][%w_]*$") and "." .. key or ("[%q]"):format(key)
    parts[#parts + 1] = string_text(writer, key)
    parts[#parts + 1] = ":"
    write_value(writer, values[key])
  end
  path[level] = nil
  parts[#parts + 1] = "}"
end

local function write_table(writer, t)
  if writer.inside[t] then refuse(writer, "a table that contains itself") end
  if #writer.path >= DEPTH_MAX then
    error(("value: nested deeper than %d tables"):format(DEPTH_MAX), 0)
  end
  writer.inside[t] = true
  local n <const> = array_length(t)
  if n then
    write_array(writer, t, n)
  else
    write_object(writer, t)
  end
  writer.inside[t] = nil
end

local SCALARS <const> = {
  ["nil"] = function() return "null" end,
  boolean = function(_, v) return tostring(v) end,
  string = string_text,
  number = function(writer, v)
    if math.type(v) == "integer" then return ("%d"):format(v) end
    return float_text(writer, v)
  end,
  userdata = function(writer, v)
    if M.null ~= nil and rawequal(v, M.null) then return "null" end
    return refuse(writer, "a userdata")
  end,
}

function write_value(writer, v)
  local kind <const> = type(v)
  if kind == "table" then return write_table(writer, v) end
  local scalar <const> = SCALARS[kind]
  if not scalar then refuse(writer, "a " .. kind) end
  writer.parts[#writer.parts + 1] = scalar(writer, v)
end

--- The JSON text of a value. Raises an error that names the place where there is none.
---@param value any
---@return string
function M.encode(value)
  local writer <const> = { parts = {}, path = {}, inside = {} }
  write_value(writer, value)
  return table.concat(writer.parts)
end

-- ---- reading ---------------------------------------------------------------------------------

-- cjson is given each number as a string with this mark, and each string with the other one.
local NUMBER <const>, STRING <const> = "#", "$"

local function is_number(text)
  local rest <const> = text:match("^-?0(.*)$") or text:match("^-?[1-9]%d*(.*)$")
  if not rest then return false end
  local exponent <const> = rest:match("^%.%d+(.*)$") or rest
  return exponent == "" or exponent:find("^[eE][+-]?%d+$") ~= nil
end

-- Where the string that begins at 'from' ends.
local function string_end(text, from)
  local at = from + 1
  while true do
    local stop <const> = text:find('["\\]', at)
    if not stop then error("a string has no end", 0) end
    if text:byte(stop) == 34 then return stop end
    at = stop + 2
  end
end

-- The text with its numbers and strings marked.
local function mark(text)
  local parts <const> = {}
  local at = 1
  while true do
    local from <const> = text:find('["%-%d]', at)
    if not from then break end
    parts[#parts + 1] = text:sub(at, from - 1)
    local to
    if text:byte(from) == 34 then
      to = string_end(text, from)
      parts[#parts + 1] = '"' .. STRING .. text:sub(from + 1, to)
    else
      to = select(2, text:find("^[%w.+-]+", from))
      local literal <const> = text:sub(from, to)
      if not is_number(literal) then error(("malformed number '%s'"):format(literal), 0) end
      parts[#parts + 1] = '"' .. NUMBER .. literal .. '"'
    end
    at = to + 1
  end
  parts[#parts + 1] = text:sub(at)
  return table.concat(parts)
end

-- Takes the marks off again.
local function unmark(value)
  if type(value) == "string" then
    local rest <const> = value:sub(2)
    return value:sub(1, 1) == NUMBER and tonumber(rest) or rest
  end
  if type(value) ~= "table" then return value end
  local plain <const> = {}
  for key, item in next, value do
    if type(key) == "string" and key:sub(1, 1) == NUMBER then error("a key that is a number", 0) end
    plain[type(key) == "string" and key:sub(2) or key] = unmark(item)
  end
  return plain
end

local reader -- of our own: its settings are no one else's

--- The value of a JSON text; null becomes json.null. Raises an error where it is malformed.
---@param text string
---@return any
function M.decode(text)
  if not found then
    error("reading JSON needs lua-cjson (Debian: apt-get install lua-cjson; else luarocks)", 2)
  end
  reader = reader or cjson.new()
  reader.decode_invalid_numbers(false)
  local fine <const>, value <const> = pcall(function() return unmark(reader.decode(mark(text))) end)
  -- cjson counts characters of the marked text: a number that would mislead
  if not fine then error("malformed JSON: " .. value:gsub(" at character %d+", ""), 2) end
  return value
end

return M
