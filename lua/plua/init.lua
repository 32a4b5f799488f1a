--- plua: runs Lua functions over data on all the cores that a program may use.
-- Keeps true: this table is the whole public interface; it adds nothing of its own but plua.worker
-- and plua.register. Knows the other modules. SPDX-License-Identifier: MIT

local found <const>, core <const> = pcall(require, "plua.core")
if not found then
  if tostring(core):find("interrupted!$") then error(core, 0) end
  error(("%s\nplua: its C half, plua/core.so, is found by LUA_CPATH or package.cpath: add " ..
    "lib/lua/5.4/?.so of the installed tree to it"):format(core), 0)
end

local data <const> = require("plua.data")
local errors <const> = require("plua.errors")
local future <const> = require("plua.future")
local map <const> = require("plua.map")
local options <const> = require("plua.options")
local pool <const> = require("plua.pool")

---@class plua
---@field version string  of this library, such as "0.1.0"
local plua <const> = {
  version = core.version,
  map = map.map, starmap = map.starmap, imap = map.imap, imap_unordered = map.imap_unordered,
  each = map.each, filter = map.filter, find = map.find, mapreduce = map.mapreduce,
  pool = pool.open,
  wait = future.wait, as_completed = future.as_completed,
  cpu_count = options.cpu_count, cpus = options.cpus,
  range = data.range,
  iserror = errors.iserror,
}

--- Who runs this code: nil outside workers, else a table with the fields `id` (the worker's number
-- from 1; 0 for an item that the caller runs itself), `pid` and, inside an item, `item` (its place
-- in the data, from 1) and `attempt` (1 for the first try).
---@return { id: integer, pid: integer, item: integer?, attempt: integer? }? self
function plua.worker()
  local id <const>, pid <const>, item <const>, attempt <const> = core.worker()
  if not id then return nil end
  return { id = id, pid = pid, item = item, attempt = attempt }
end

--- Lets values with that metatable cross between processes, under a name that both sides know.
-- Register before a pool is made or a one-shot call begins. A name stands for the metatable that
-- got it last; values of one that had it before do not cross any more.
--
-- What crosses without it: nil, booleans, numbers and strings, bit for bit; tables without a
-- metatable, with any keys, holes, cycles and shared references; Lua functions with their upvalues
-- and the globals that they read; modules and the C functions in them, by name. What does not:
-- coroutines, userdata, other metatables. In the data of a pool they are refused before anything
-- runs, with the path to them; in a result they cost that one item, an error of kind "encode".
--
-- A table whose metatable is registered crosses as a table, and gets the metatable back:
--
-- ```lua
-- local Point = {}
-- Point.__index = Point
-- function Point:length() return math.sqrt(self.x * self.x + self.y * self.y) end
-- plua.register("point", Point)
--
-- local points = plua.map(function(i)
--   return setmetatable({ x = 3 * i, y = 4 * i }, Point)
-- end, { 1, 2 })
-- print(points[2]:length()) --> 10.0
-- ```
--
-- Userdata, and objects that hold what cannot cross, need two hooks in the registered metatable.
-- `__plua_save(object)` answers one value that goes in the object's place; it may be a table, and
-- must not hold the object. `__plua_load(value)` answers the object, made anew on the other side:
-- nil is an error.
-- What a hook raises is the reason of the refusal. No other metamethod runs while values cross.
--
-- ```lua
-- local Account = {}
-- Account.__index = Account
--
-- local function open(name) return setmetatable({ name = name, file = io.tmpfile() }, Account) end
--
-- function Account.__plua_save(account) return account.name end
--
-- function Account.__plua_load(name) return open(name) end
--
-- plua.register("account", Account)
--
-- local pool <close> = plua.pool { workers = 2 }
-- print(pool:apply(function(account) return account.name, io.type(account.file) end, open "rent"))
-- --> rent    file
-- ```
---@param name string  the same on both sides
---@param metatable table
---@return table metatable  the one given
function plua.register(name, metatable)
  if type(name) ~= "string" then
    error(("plua.register: name must be a string, not %s"):format(type(name)), 2)
  end
  if type(metatable) ~= "table" then
    error(("plua.register: metatable must be a table, not %s"):format(type(metatable)), 2)
  end
  core.register(metatable, name)
  return metatable
end

return plua
