--- plua: runs Lua functions over data on all the cores that a program may use.
-- Gathers the public interface; knows the other modules, and adds nothing of its own but
-- plua.worker and plua.register. SPDX-License-Identifier: MIT

local core <const> = require("plua.core")
local data <const> = require("plua.data")
local errors <const> = require("plua.errors")
local future <const> = require("plua.future")
local map <const> = require("plua.map")
local options <const> = require("plua.options")
local pool <const> = require("plua.pool")

---@class plua
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

--- Who runs this code.
---@return { id: integer, pid: integer, item: integer?, attempt: integer? }?  nil outside workers;
---  id 0: an item that the caller runs itself; item and attempt are missing outside items
function plua.worker()
  local id <const>, pid <const>, item <const>, attempt <const> = core.worker()
  if not id then return nil end
  return { id = id, pid = pid, item = item, attempt = attempt }
end

--- Lets tables with that metatable cross between processes, under a name that both sides know.
-- Register before a team is started.
---@param name string
---@param metatable table
---@return table metatable
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
