-- Whether two values are the same, bit for bit. SPDX-License-Identifier: MIT

local function bits(x) return string.pack("n", x) end

--- Follows tables once, raw; tables as keys only by number.
---@param a any
---@param b any
---@param same? fun(a: function, b: function, met: table): boolean  for functions that are not one
---@param met? table  tables of a that were met -> those of b
---@return boolean
local function alike(a, b, same, met)
  if (math.type(a) or type(a)) ~= (math.type(b) or type(b)) then return false end
  if math.type(a) == "float" then return bits(a) == bits(b) end
  met = met or {}
  if same and type(a) == "function" then return a == b or same(a, b, met) end
  if type(a) ~= "table" then return a == b end
  if met[a] then return met[a] == b end
  met[a] = b
  local n = 0
  for k, v in next, a do
    n = n + 1
    if type(k) ~= "table" and not alike(v, rawget(b, k), same, met) then return false end
  end
  for _ in next, b do n = n - 1 end
  return n == 0 and getmetatable(a) == getmetatable(b)
end

return alike
