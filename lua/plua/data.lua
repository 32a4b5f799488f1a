--- Data: what a call runs over: a list (a table with items 1, 2, ...), a table whose field n says
-- how many items it has, holes included, an iterator function that is called until it answers nil,
-- or a range of numbers.
-- Keeps true: the rest of plua sees a plain table and a count, or a range, or an iterator.
-- Knows plua.core and options; does not know calls. SPDX-License-Identifier: MIT

local core <const> = require("plua.core")
local options <const> = require("plua.options")

local M <const> = {}

--- What plua.range answers: `range[i]` is the i-th number, `#range` how many there are.
---@class plua.Range
---@field n integer  how many numbers
local Range <const> = { __name = "plua.Range" }

function Range.__index(range, i)
  if math.type(i) ~= "integer" or i < 1 or i > range.n then return nil end
  return range.first + (i - 1) * range.step
end

function Range.__len(range) return range.n end

function Range.__newindex() error("a range cannot be changed", 2) end

function Range.__tostring(range)
  return ("plua.range(%s, %s, %s)"):format(range.first,
    range.first + (range.n - 1) * range.step, range.step)
end

core.register(Range, "plua.Range")

-- d // s of unsigned integers.
local function unsigned_div(d, s)
  if s < 0 then return math.ult(d, s) and 0 or 1 end
  local q <const> = ((d >> 1) // s) << 1
  return math.ult(d - q * s, s) and q or q + 1
end

-- Steps from first to last, both included; nil where an integer cannot count them.
local function steps(first, last, step)
  if math.type(first) == "integer" and math.type(step) == "integer" then
    last = step > 0 and math.floor(last) or math.ceil(last)
    if step > 0 and last < first or step < 0 and last > first then return 0 end
    local whole <const> = math.tointeger(last)
    if not whole then return nil end
    local n <const> = step > 0 and unsigned_div(whole - first, step)
      or unsigned_div(first - whole, -step)
    if n < 0 or n == math.maxinteger then return nil end
    return n + 1
  end
  return math.max(0, math.floor((last - first) / step) + 1)
end

--- The numbers that `for i = first, last, step` runs through, which workers compute by themselves.
-- Has a length and can be indexed like a list. Floats are first + k * step, rounded once each,
-- where `for` adds up: their last digits may differ, and so may whether the last one still counts.
---@param first number
---@param last number
---@param step? number  default 1; not 0
---@return plua.Range
function M.range(first, last, step)
  options.check_number(first, "plua.range: first must be a number", 3)
  options.check_number(last, "plua.range: last must be a number", 3)
  step = step == nil and 1 or step
  options.check_number(step, "plua.range: step must be a number", 3)
  if step == 0 then error("plua.range: step must not be 0", 2) end
  local n <const> = math.tointeger(steps(first, last, step))
  if not n then error("plua.range: it has no end, or more numbers than an integer counts", 2) end
  return setmetatable({ first = first, step = step, n = n }, Range)
end

-- ---- what a call takes ------------------------------------------------------------------------

local ipairs_next <const> = ipairs({})

local function explain(name, instead)
  return ("data is what %s(t) gives; a call takes one value: pass t itself, as in plua.map(f, t)%s")
    :format(name, instead)
end

-- The number of items of a table.
local function count(t, level)
  local named <const> = type(rawget(t, "n")) == "number"
  local n <const> = named and rawget(t, "n") or #t
  local whole <const> = type(n) == "number" and math.tointeger(n)
  if whole and whole >= 0 then return whole end
  local what <const> = named and "field n, its number of items," or "length, by __len,"
  error(("data has a %s which is %s"):format(what, tostring(n)), level + 1)
end

-- A copy without metatable, which workers can read raw.
local function plain(t, n)
  local meta <const> = getmetatable(t)
  if meta == nil or type(meta) == "table" and rawget(meta, "__index") == nil then return t end
  local list <const> = {}
  for i = 1, n do list[i] = t[i] end
  return list
end

local function of_table(t, level)
  local meta <const> = getmetatable(t)
  if type(meta) == "table" and rawget(meta, "__name") == "plua.Future" then
    error("data is a future: pass what its get() answers", level)
  end
  local n <const> = count(t, level)
  if n == 0 and rawget(t, "n") == nil and next(t) ~= nil then -- source left by a tail call
    error("data is a table without items 1, 2, ...: pass a list, or set its field n", level)
  end
  return { list = plain(t, n), n = n }
end

---@class plua.Source
---@field list? table      n items
---@field range? plua.Range  of n numbers
---@field iterator? function  called until nil
---@field n? integer

--- What the data of a call is.
---@param data any
---@param level? integer  where an error points to, as error counts; default: the caller's caller
---@return plua.Source
function M.source(data, level)
  level = level or 3
  local kind <const> = type(data)
  if kind == "table" then
    if getmetatable(data) == Range then return { range = data, n = data.n } end
    return of_table(data, level)
  end
  if kind ~= "function" then
    local what <const> = io.type(data) and "a file: pass file:lines()" or kind
    error(("data must be a list or an iterator function, not %s"):format(what), level)
  end
  if data == ipairs_next then error(explain("ipairs", ""), level) end
  if data == next then
    error(explain("pairs", " if it is a list, or else a list of its keys"), level)
  end
  return { iterator = data }
end

local function only_one(i, value, ...)
  if value ~= nil and select("#", ...) > 0 then
    error(("the iterator gave %d values for item %d where one is wanted; starmap takes several")
      :format(1 + select("#", ...), i), 0)
  end
  return value
end

local function packed(_, value, ...)
  if value == nil then return nil end
  return table.pack(value, ...)
end

--- The same with an iterator run to its end.
---@param source plua.Source
---@param star boolean  its values are an item's arguments
---@return plua.Source
function M.drained(source, star)
  local iterator <const> = source.iterator
  if not iterator then return source end
  local take <const> = star and packed or only_one
  local list, n = {}, 0
  local function pull()
    while true do
      local item <const> = take(n + 1, iterator())
      if item == nil then return end
      n = n + 1
      list[n] = item
    end
  end
  local fine <const>, err <const> = core.call(pull)
  if not fine then error(err, 0) end
  return { list = list, n = n }
end

return M
