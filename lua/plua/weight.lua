--- Weights: what an item will cost, as the script guesses it, so that the longest are begun first.
-- Keeps true: an order depends on the items alone, and nothing but the time at which an item is
-- begun depends on it: results, errors and random numbers go by the item's own index.
-- Knows plua.core and errors; does not know calls. SPDX-License-Identifier: MIT

local core <const> = require("plua.core")
local errors <const> = require("plua.errors")

local M <const> = {}

-- Raises at the line of the script that called plua.
local function refuse(message)
  local where <const>, call <const> = errors.site(2)
  error(("%s%s: %s"):format(where and where .. ": " or "", call or "plua", message), 0)
end

local function shown(value)
  return type(value) == "string" and ("%q"):format(value) or tostring(value)
end

local function weigh(weight, items, n)
  local weights <const> = {}
  for i = 1, n do
    local cost <const> = weight(items[i])
    if type(cost) ~= "number" or cost ~= cost then return nil, i, cost end
    weights[i] = cost
  end
  return weights
end

--- The order in which the items are given out, for the core; nil where the call has no weights.
---@param weight? fun(item: any): number
---@param source plua.Source  not an iterator
---@return userdata? order
function M.order(weight, source)
  if not weight or source.n < 2 then return nil end
  local fine <const>, weights <const>, index <const>, cost <const> =
    core.call(weigh, weight, source.list or source.range, source.n)
  if not fine then error(weights, 0) end
  if not weights then
    refuse(("option 'weight' gave %s for item %d, where a number is wanted")
      :format(cost ~= cost and "NaN" or type(cost) == "nil" and "nil"
        or type(cost) .. " " .. shown(cost), index))
  end
  return core.order(weights, source.n)
end

--- For calls that cannot begin the longest items first.
---@param weight? function
---@param why string
function M.never(weight, why)
  if weight then refuse("option 'weight' is not for this call: " .. why) end
end

return M
