-- Builds the reference from the sources: doc.lua DIR plua.h lua/plua/*.lua writes DIR/c.md,
-- DIR/lua.md for users, and DIR/inside.md for those who work on plua itself. Fails on a public
-- function without a comment, or one that lists other parameters than the function has. Knows the
-- shape of the project's comments, not what they say.
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

-- ---- Lua: comments and what they stand above ---------------------------------------------------

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

-- The text of a comment, and its annotations, {tag, text}; "---  ..." goes on with the one before.
local function parse(comment)
  local text <const>, tags <const> = {}, {}
  for _, line in ipairs(comment) do
    local tag <const>, rest <const> = line:match("^%-%-%-@(%w+)%s*(.*)$")
    local more <const> = #tags > 0 and line:match("^%-%-%-%s%s+(.*)$")
    if tag then
      tags[#tags + 1] = { tag, rest }
    elseif more then
      tags[#tags][2] = tags[#tags][2] .. " " .. more
    else
      text[#text + 1] = line:gsub("^%-%-%-?%s?", ""):gsub("^Equals: (.+)$", "Equals: `%1`")
    end
  end
  local whole <const> = table.concat(text, "\n"):gsub("%s*SPDX%-License%-Identifier: %S+", "")
  return whole, tags
end

local function is_internal(tags)
  for _, tag in ipairs(tags) do
    if tag[1] == "private" or tag[1] == "package" then return true end
  end
  return false
end

-- "type  what it is": two spaces stand between them.
local function type_of(text)
  local kind <const>, meaning <const> = text:match("^(.-)%s%s+(.*)$")
  return kind or text, meaning and ": " .. meaning or ""
end

-- "opts? type  what it is"
local function say_named(text)
  local name <const>, optional <const>, rest <const> = text:match("^([^%s?]+)(%??)%s*(.*)$")
  local kind <const>, meaning <const> = type_of(rest ~= "" and rest or "any")
  return ("- **%s** (`%s`%s)%s"):format(name, kind, optional ~= "" and ", optional" or "", meaning)
end

-- "type name  what it is"; the name may be missing.
local function say_return(text)
  local kind <const>, meaning <const> = type_of(text)
  local plain <const>, name <const> = kind:match("^(.*[^,:|])%s([%a_][%w_]*)$")
  if not name then return ("- returns `%s`%s"):format(kind, meaning) end
  return ("- returns **%s** (`%s`)%s"):format(name, plain, meaning)
end

local function say_tag(tag)
  if tag[1] == "param" then return say_named(tag[2]) end
  if tag[1] == "return" then return say_return(tag[2]) end
  return ("- %s `%s`"):format(tag[1], tag[2])
end

local function render(text, tags)
  local list <const> = {}
  for _, tag in ipairs(tags) do list[#list + 1] = say_tag(tag) end
  return text .. (#list > 0 and "\n\n" .. table.concat(list, "\n") or "")
end

-- ---- Lua: functions and classes of a module ----------------------------------------------------

-- The parameters as the comment lists them, "f, data [, opts]", and their names alone.
local function parameters(tags)
  local shown, names = "", {}
  for _, tag in ipairs(tags) do
    if tag[1] == "param" then
      local name <const>, optional <const> = tag[2]:match("^([^%s?]+)(%??)")
      local comma <const> = #names > 0 and ", " or ""
      names[#names + 1] = name
      shown = shown .. (optional == "" and comma .. name
        or ("%s[%s%s]"):format(#names > 1 and " " or "", comma, name))
    end
  end
  return shown, table.concat(names, ", ")
end

-- The function that a line defines for others: its owner, its mark and name, its parameters. A
-- method of a table without a class is the module's own business. A parameter whose name is that
-- of a module ends in an underscore in the source only.
local function exported(line, own, classes)
  local owner <const>, name <const>, list <const> =
    line:match("^function%s+([%w_]+)([.:][%w_]+)(%b())")
  if not owner or name:find("^[.:]_") or owner ~= own and not classes[owner] then return nil end
  return owner, name, (list:sub(2, -2):gsub("_%f[,\0]", ""))
end

local function returned_table(lines)
  for i = #lines, 1, -1 do
    local name <const> = lines[i]:match("^return ([%a_][%w_]*)%s*$")
    if name then return name end
  end
end

-- A class: its name, its text, its fields but the package's own, the variable that holds it.
local function read_class(lines, i, said)
  local class <const> = { name = said:match("^[%w_.]+"), functions = {} }
  local last = i
  while lines[last + 1] and lines[last + 1]:find("^%-%-%-") do last = last + 1 end
  local fields <const>, list <const> = select(2, parse(table.move(lines, i, last, 1, {}))), {}
  for _, tag in ipairs(fields) do
    local hidden <const> = tag[2]:find("^package ") or tag[2]:find("^private ")
    if tag[1] == "field" and not hidden then list[#list + 1] = say_named(tag[2]) end
  end
  local parent <const> = said:match("^[%w_.]+:%s*([%w_.]+)")
  if parent then list[#list + 1] = ("- and every field of `%s`"):format(parent) end
  local text <const> = parse(comment_above(lines, i) or {})
  class.text = text .. (#list > 0 and text ~= "" and "\n\n" or "") .. table.concat(list, "\n")
  class.variable = lines[last + 1] and lines[last + 1]:match("^local ([%w_]+)")
  return class
end

local function read_classes(lines)
  local list <const>, by_variable <const> = {}, {}
  for i, line in ipairs(lines) do
    local said <const> = line:match("^%-%-%-@class%s+(.+)$")
    if said then
      local class <const> = read_class(lines, i, said)
      list[#list + 1] = class
      if class.variable then by_variable[class.variable] = class end
    end
  end
  return list, by_variable
end

-- The first paragraph of a file says what the module is.
local function read_head(lines)
  local last = 0
  while lines[last + 1] and lines[last + 1]:find("^%-%-") do last = last + 1 end
  return (parse(table.move(lines, 1, last, 1, {})))
end

local uncommented = {} -- module and name of functions that have been complained about

local function read_module(path)
  local lines <const>, name <const> = read_lines(path), module_of(path)
  local own <const>, module <const> = returned_table(lines), { name = name, functions = {} }
  local classes <const>, by_variable <const> = read_classes(lines)
  module.head, module.classes = read_head(lines), classes
  for i, line in ipairs(lines) do
    local owner <const>, short <const>, list <const> = exported(line, own, by_variable)
    if owner then
      local place <const> = owner == own and module or by_variable[owner]
      local comment <const> = comment_above(lines, i)
      local text <const>, tags <const> = parse(comment or {})
      if not text:find("%S") then
        fault(path, i, owner .. short .. " has no comment: say what it takes and what it answers")
        uncommented[name .. short] = true
      elseif not is_internal(tags) then
        table.insert(place.functions,
          { name = short, list = list, text = text, tags = tags, path = path, line = i })
      end
    end
  end
  return module
end

-- ---- Lua: what is public -----------------------------------------------------------------------

-- What init.lua hands on under its own name: "plua.map.imap" -> "plua.imap", read from its lines
-- 'local map = require "plua.map"' and 'imap = map.imap'.
local function handed_on(path)
  local modules <const>, names <const> = {}, {}
  for i, line in ipairs(read_lines(path)) do
    local variable <const>, module <const> =
      line:match("local ([%w_]+)[^=]*= require%s*%(?[\"'](plua%.[%w_]+)")
    if variable then modules[variable] = module end
    for key, owner, name in line:gmatch("([%w_]+)%s*=%s*([%w_]+)%.([%w_]+)") do
      local from <const> = modules[owner]
      if from then names[from .. "." .. name] = { name = "plua." .. key, path = path, line = i } end
    end
  end
  return names
end

-- Its name and parameters as a script writes them.
local function show(fn, name)
  local shown <const>, names <const> = parameters(fn.tags)
  if names ~= fn.list then
    fault(fn.path, fn.line,
      ("%s takes (%s), but its comment says @param for (%s)"):format(name, fn.list, names))
  end
  return ("### %s(%s)\n\n%s\n"):format(name, shown, render(fn.text, fn.tags))
end

-- The functions that scripts see, in 'open'; the others in 'hidden'.
local function sort_functions(module, public, open, hidden)
  for _, fn in ipairs(module.functions) do
    local handed <const> = public[module.name .. fn.name]
    if handed then handed.shown = true end
    if handed or module.name == "plua" then
      open[#open + 1] = show(fn, handed and handed.name or "plua" .. fn.name)
    else
      hidden[#hidden + 1] = ("### %s%s(%s)\n\n%s\n"):format(
        module.name, fn.name, fn.list, render(fn.text, fn.tags))
    end
  end
end

-- A class and its methods, called by its name in small letters: pool:map(f).
local function describe_class(class)
  local parts <const> = { ("### %s\n\n%s\n"):format(class.name, class.text) }
  local object <const> = class.name:match("[%w_]+$"):lower()
  for _, fn in ipairs(class.functions) do parts[#parts + 1] = show(fn, object .. fn.name) end
  return table.concat(parts, "\n")
end

-- The classes that scripts meet: the roots, and those that a public comment names. Adds them to
-- each module's 'open', the others to 'hidden'.
local ROOTS <const> = { ["plua.Job"] = true }

local function sort_classes(modules)
  local waiting = {}
  local text = ""
  for _, module in ipairs(modules) do
    text = text .. table.concat(module.open)
    for _, class in ipairs(module.classes) do
      class.module = module
      if class.name ~= "plua" then waiting[#waiting + 1] = class end
    end
  end
  repeat
    local rest <const> = {}
    local before <const> = #waiting
    for _, class in ipairs(waiting) do
      local pattern <const> = class.name:gsub("%.", "%%.") .. "%f[^%w_.]"
      if ROOTS[class.name] or text:find(pattern) then
        class.shown = describe_class(class)
        text = text .. class.shown
      else
        rest[#rest + 1] = class
      end
    end
    waiting = rest
  until #waiting == before
end

local function place_classes(modules)
  sort_classes(modules)
  for _, module in ipairs(modules) do
    for _, class in ipairs(module.classes) do
      if class.name == "plua" then
        table.insert(module.open, 1, class.text .. "\n")
      elseif class.shown then
        table.insert(module.open, class.shown)
      else
        table.insert(module.hidden, describe_class(class))
      end
    end
  end
end

-- What init.lua hands on and no comment above a function describes must be a field of 'plua'.
local function check_public(public, modules)
  local fields = ""
  for _, module in ipairs(modules) do
    for _, class in ipairs(module.classes) do
      if class.name == "plua" then fields = fields .. class.text end
    end
  end
  for name, handed in pairs(public) do
    local field <const> = ("**%s**"):format(handed.name:match("[%w_]+$"))
    if not handed.shown and not uncommented[name] and not fields:find(field, 1, true) then
      fault(handed.path, handed.line, handed.name .. " is described nowhere: a comment above the "
        .. "function, or a @field of class plua, is wanted")
    end
  end
end

-- ---- Lua: the pages ----------------------------------------------------------------------------

-- The order in which a reader wants them; others follow.
local ORDER <const> = {
  "plua.map", "plua.data", "plua.options", "plua.pool", "plua.future", "plua.errors", "plua",
}

local function in_order(modules)
  local place <const> = {}
  for i, module in ipairs(modules) do place[module] = #ORDER + i end
  for i, name in ipairs(ORDER) do
    for _, module in ipairs(modules) do
      if module.name == name then place[module] = i end
    end
  end
  table.sort(modules, function(a, b) return place[a] < place[b] end)
end

-- A module's head for users: what stands before "Keeps true:", as a title and a sentence.
local function headline(module)
  local head <const> = module.head:match("^(.-)%s*%f[%w]Keeps true:") or module.head
  local title <const>, lead <const> = head:match("^([%w ,%-]+):%s+(.*)$")
  return title or module.name, ((lead or head):gsub("^%l", string.upper))
end

local function lua_reference(modules)
  local out <const>, contents <const> = {}, {}
  for _, module in ipairs(modules) do
    if #module.open > 0 then
      local title <const>, lead <const> = headline(module)
      local anchor <const> = title:lower():gsub("[^%w -]", ""):gsub(" ", "-")
      contents[#contents + 1] = ("- [%s](#%s)"):format(title, anchor)
      out[#out + 1] = ("## %s\n\n%s\n"):format(title, lead)
      out[#out + 1] = table.concat(module.open, "\n")
    end
  end
  table.insert(out, 1, "# The Lua interface\n\n" .. table.concat(contents, "\n") .. "\n")
  return out
end

-- For those who work on plua: each module's whole head, and what scripts do not see.
local function inside_reference(modules)
  local out <const> = { "# Inside the Lua modules\n" }
  for _, module in ipairs(modules) do
    out[#out + 1] = ("## %s\n\n%s\n"):format(module.name, module.head)
    out[#out + 1] = table.concat(module.hidden, "\n")
  end
  return out
end

local function lua_pages(dir, paths, public)
  local modules <const> = {}
  for _, path in ipairs(paths) do
    local module <const> = read_module(path)
    module.open, module.hidden = {}, {}
    sort_functions(module, public, module.open, module.hidden)
    modules[#modules + 1] = module
  end
  place_classes(modules)
  check_public(public, modules)
  in_order(modules)
  write(dir .. "/lua.md", lua_reference(modules))
  write(dir .. "/inside.md", inside_reference(modules))
end

-- ---- all of it ---------------------------------------------------------------------------------

local function main(dir, ...)
  local public, paths <const> = {}, {}
  assert(os.execute(("mkdir -p '%s'"):format(dir)))
  for _, path in ipairs { ... } do
    if path:find("plua/init%.lua$") then public = handed_on(path) end
    if path:find("%.h$") then write(dir .. "/c.md", c_reference(path))
    else paths[#paths + 1] = path end
  end
  lua_pages(dir, paths, public)
  table.sort(faults)
  for _, text in ipairs(faults) do io.stderr:write(text, "\n") end
  return #faults == 0
end

if not arg[2] then
  io.stderr:write("usage: doc.lua DIR plua.h lua/plua/*.lua\n")
  os.exit(2)
end
os.exit(main(table.unpack(arg)))
