-- Builds the reference from the sources: doc.lua DIR plua.h lua/plua/*.lua writes DIR/c.md,
-- DIR/lua.md, and DIR/inside.md for those who work on plua itself. Fails on a public function
-- without a comment. Knows the shape of the project's comments, not what they say.
-- SPDX-License-Identifier: MIT

local faults = {}

local function fault(path, line, text)
  faults[#faults + 1] = ("%s:%d: %s"):format(path, line, text)
end

local function read_lines(path)
  local lines = {}
  for line in io.lines(path) do lines[#lines + 1] = line end
  return lines
end

local function write(path, parts)
  local file <close> = assert(io.open(path, "w"))
  assert(file:write(table.concat(parts, "\n"), "\n"))
end

-- ---- C: sections, comments and the declarations below them -------------------------------------

local function without_marks(comment)
  local text <const> = comment:gsub("^%s*/%*+%s?", ""):gsub("%s*%*/%s*$", "")
  return (text:gsub("\n[ \t]+", "\n"):gsub("%s*SPDX%-License%-Identifier: %S+", ""))
end

-- The lines from i on to the one that 'ends' matches, and the number of that line.
local function take(lines, i, ends)
  local from <const> = i
  while i < #lines and not lines[i]:find(ends) do i = i + 1 end
  return table.concat(lines, "\n", from, i), i
end

local function declared(text)
  if text:find("^#") then return nil end
  return text:match("PLUA_API.-([%w_]+)%s*%(") or text:match("^static inline.-([%w_]+)%s*%(")
end

-- A function stands below a comment of its own, or in the group below one that names it.
local function check_comment(path, line, text, comment)
  local name <const> = declared(text)
  if not name then return end
  if not comment then
    fault(path, line, name .. " has no comment: say what it takes, answers and owns")
  end
end

-- One paragraph of the header: an optional comment, then code.
local function c_paragraph(path, lines, i, out)
  local comment, code, start
  local declares = {}
  if lines[i]:find("^%s*/%*") then
    comment, i = take(lines, i, "%*/")
    i = i + 1
  end
  start = i
  while i <= #lines and lines[i] ~= "" do
    if declared(lines[i]) then declares[#declares + 1] = { i, lines[i] } end
    i = i + 1
  end
  for _, each in ipairs(declares) do check_comment(path, each[1], each[2], comment) end
  code = table.concat(lines, "\n", start, i - 1)
  if comment then out[#out + 1] = without_marks(comment) .. "\n" end
  if code:find("%S") and not code:find("^#") then
    out[#out + 1] = "```c\n" .. code .. "\n```\n"
  elseif code:find("^#define PLUA_") then
    out[#out + 1] = "```c\n" .. code .. "\n```\n"
  end
  return i
end

local function c_reference(path)
  local lines <const>, out <const> = read_lines(path), { "# The C interface: plua.h\n" }
  local i = 1
  while i <= #lines do
    local title <const> = lines[i]:match("^/%* %-%-%-%- (.-) %-+ %*/")
    if title then
      out[#out + 1] = "## " .. title:gsub("^%l", string.upper) .. "\n"
      i = i + 1
    elseif lines[i] == "" then
      i = i + 1
    else
      i = c_paragraph(path, lines, i, out)
    end
  end
  return out
end

-- ---- Lua: what stands above a function ---------------------------------------------------------

local function module_of(path)
  local name <const> = path:match("plua/([%w_]+)%.lua$")
  return name == "init" and "plua" or "plua." .. name
end

-- The comment lines right above line i, first to last.
local function comment_above(lines, i)
  local from = i
  while from > 1 and lines[from - 1]:find("^%-%-") do from = from - 1 end
  if from == i then return nil end
  return table.move(lines, from, i - 1, 1, {})
end

-- "type  what it is": two spaces stand between them.
local function say_type(what, text, out)
  local kind <const>, meaning <const> = text:match("^(.-)%s%s+(.*)$")
  out[#out + 1] = ("- %s `%s`%s"):format(what, kind or text, meaning and ": " .. meaning or "")
end

local function say_param(text, out)
  local name <const>, rest <const> = text:match("^(%S+)%s+(.*)$")
  say_type(("**%s**"):format(name or text), rest or "any", out)
end

-- Text as it stands; annotations as a list; a line "Equals:" with its code as code.
local function render(comment)
  local text, list = {}, {}
  for _, line in ipairs(comment) do
    local tag <const>, rest <const> = line:match("^%-%-%-@(%w+)%s*(.*)$")
    if tag == "param" then
      say_param(rest, list)
    elseif tag == "return" then
      say_type("returns", rest, list)
    elseif tag then
      list[#list + 1] = ("- %s `%s`"):format(tag, rest)
    else
      text[#text + 1] = (line:gsub("^%-%-%-?%s?", ""))
    end
  end
  local shown = table.concat(text, "\n")
  if #list > 0 then shown = shown .. "\n\n" .. table.concat(list, "\n") end
  return shown
end

local function is_internal(comment)
  for _, line in ipairs(comment or {}) do
    if line:find("^%-%-%-@private") or line:find("^%-%-%-@package") then return true end
  end
  return false
end

-- What init.lua hands on under its own name: "plua.map.imap" -> "plua.imap", read from its lines
-- 'local map = require "plua.map"' and 'imap = map.imap'.
local function handed_on(path)
  local modules <const>, names <const> = {}, {}
  for _, line in ipairs(read_lines(path)) do
    local variable <const>, module <const> =
      line:match("local ([%w_]+)[^=]*= require%s*%(?[\"'](plua%.[%w_]+)")
    if variable then modules[variable] = module end
    for key, owner, name in line:gmatch("([%w_]+)%s*=%s*([%w_]+)%.([%w_]+)") do
      if modules[owner] then names[modules[owner] .. "." .. name] = "plua." .. key end
    end
  end
  return names
end

-- 'M.map' goes by the name that a script uses for it, whatever the module calls its table.
local function heading(module, own, signature, public)
  local owner <const>, name <const>, rest <const> =
    signature:match("^([%w_]+)([.:][%w_]+)(.*)$")
  if owner ~= own then return signature end
  return (public[module .. name] or module .. name) .. rest
end

-- The first paragraph of a file says what the module is.
local function preface(lines)
  local text = {}
  for _, line in ipairs(lines) do
    local said <const> = line:match("^%-%-%-?%s?(.*)$")
    if not said then break end
    if not said:find("SPDX") then text[#text + 1] = said end
  end
  return table.concat(text, "\n")
end

local function returned_table(lines)
  for i = #lines, 1, -1 do
    local name <const> = lines[i]:match("^return ([%a_][%w_]*)%s*$")
    if name then return name end
  end
end

-- Tables that carry a class: variable -> class, from '---@class' lines above 'local X <const> ='.
local function class_tables(lines)
  local tables, class = {}, nil
  for _, line in ipairs(lines) do
    class = line:match("^%-%-%-@class%s+([%w_.]+)") or class
    local variable <const> = line:match("^local ([%w_]+)")
    if variable and class then tables[variable] = class end
    if not line:find("^%-%-") then class = nil end
  end
  return tables
end

-- A class with its fields, those apart that are marked as the package's own.
local function describe_class(lines, i)
  local class <const> = lines[i]:match("^%-%-%-@class%s+(.+)$")
  local out <const> = { ("### %s\n"):format(class) }
  while lines[i + 1] and lines[i + 1]:find("^%-%-%-@field") do
    i = i + 1
    local field <const> = lines[i]:match("^%-%-%-@field%s+(.+)$")
    if not field:find("^package ") and not field:find("^private ") then say_param(field, out) end
  end
  return table.concat(out, "\n") .. "\n"
end

-- The function that a line defines for others: its owner, its name with the mark, its signature. A
-- method of a table without a class is the module's own business.
local function exported(line, own, classes)
  local signature <const> = line:match("^function%s+([%w_]+[.:][%w_.:]+%b())")
  if not signature then return nil end
  local owner <const>, name <const> = signature:match("^([%w_]+)([.:][%w_]+)")
  if name:find("^[.:]_") or owner ~= own and not classes[owner] then return nil end
  return owner, name, signature
end

-- Modules that scripts require themselves; of the others they see what init.lua hands on.
local FACES <const> = { plua = true, ["plua.job"] = true, ["plua.json"] = true }

local function lua_module(path, public, outside, inside)
  local lines <const>, module <const> = read_lines(path), module_of(path)
  local own <const>, classes <const> = returned_table(lines), class_tables(lines)
  local out <const>, hidden <const> = {}, {}
  local seen = FACES[module] or false
  for i, line in ipairs(lines) do
    local owner <const>, name <const>, signature <const> = exported(line, own, classes)
    if owner then
      local comment <const> = comment_above(lines, i)
      if not comment then
        fault(path, i, signature .. " has no comment: say what it takes and what it answers")
      elseif not is_internal(comment) then
        local open <const> = FACES[module] or owner ~= own or public[module .. name]
        seen = seen or open
        table.insert(open and out or hidden, ("### %s\n\n%s\n"):format(
          heading(module, own, signature, public), render(comment)))
      end
    elseif line:find("^%-%-%-@class") and not line:find("@class plua$") then
      table.insert(out, describe_class(lines, i))
    end
  end
  local title <const> = ("## %s\n\n%s\n"):format(module, preface(lines))
  if seen then
    outside[#outside + 1] = title .. "\n" .. table.concat(out, "\n")
  else
    table.move(out, 1, #out, #hidden + 1, hidden)
  end
  if #hidden > 0 then inside[#inside + 1] = title .. "\n" .. table.concat(hidden, "\n") end
end

-- ---- all of it ---------------------------------------------------------------------------------

local function main(dir, ...)
  local outside, inside, public = { "# The Lua interface\n" }, { "# Inside\n" }, {}
  assert(os.execute(("mkdir -p '%s'"):format(dir)))
  for _, path in ipairs { ... } do
    if path:find("plua/init%.lua$") then public = handed_on(path) end
  end
  for _, path in ipairs { ... } do
    if path:find("%.h$") then
      write(dir .. "/c.md", c_reference(path))
    else
      lua_module(path, public, outside, inside)
    end
  end
  write(dir .. "/lua.md", outside)
  write(dir .. "/inside.md", inside)
  for _, text in ipairs(faults) do io.stderr:write(text, "\n") end
  return #faults == 0
end

if not arg[2] then
  io.stderr:write("usage: doc.lua DIR plua.h lua/plua/*.lua\n")
  os.exit(2)
end
os.exit(main(table.unpack(arg)))
