-- How long functions and files are: median, 95th percentile, the longest. lengths.lua FILE...
-- Trusts the layout: what opens in some column closes in the same. SPDX-License-Identifier: MIT

-- Calls visit(lines, name) for each C function: "... {" in column 0 to "}" in column 0.
local function c_functions(lines, visit)
  local from, name
  for i, line in ipairs(lines) do
    local head <const> = line:match("^[%a_].-([%w_]+)%s*%(")
    if head and not line:find(";%s*$") then from, name = i, head end
    if from and line:find("^}") then
      if line:find("^}%s*$") then visit(i - from + 1, name) end
      from = nil
    elseif from and line:find("^%s*$") and not name then
      from = nil
    end
  end
end

-- For each Lua function of more than a line: its "function" line to the "end" of the same indent.
local function lua_functions(lines, visit)
  for i, line in ipairs(lines) do
    local indent <const> = line:match('^(%s*)[^%-"]*%f[%w]function%s*[%w_.:]*%(')
    if indent and not line:find("%f[%w]end%f[%W]") then
      local name <const> = line:match("function%s+([%w_.:]+)") or line:match("([%w_]+)[^=]*=") or
        "anonymous"
      for j = i + 1, #lines do
        if lines[j]:find("^" .. indent .. "end%f[%W]") then
          visit(j - i + 1, name)
          break
        end
      end
    end
  end
end

local function percentile(sorted, p)
  return #sorted == 0 and 0 or sorted[math.max(1, math.ceil(#sorted * p))]
end

local function read_lines(path)
  local lines = {}
  for line in io.lines(path) do lines[#lines + 1] = line end
  return lines
end

local function row(what, lengths, longest)
  table.sort(lengths)
  print(("%-16s %5d %7d %5d %5d  %s"):format(what, #lengths, percentile(lengths, 0.5),
    percentile(lengths, 0.95), percentile(lengths, 1), longest or ""))
end

local kinds = {}
for _, path in ipairs(arg) do
  local kind <const> = path:match("%.lua$") and "Lua" or "C"
  local all = kinds[kind] or { files = {}, functions = {}, file_max = 0, function_max = 0 }
  kinds[kind] = all
  local lines <const> = read_lines(path)
  all.files[#all.files + 1] = #lines
  if #lines > all.file_max then all.file_max, all.file = #lines, path end
  local walk <const> = kind == "Lua" and lua_functions or c_functions
  walk(lines, function(length, name)
    all.functions[#all.functions + 1] = length
    if length > all.function_max then
      all.function_max, all.longest = length, ("%s in %s"):format(name, path)
    end
  end)
end

print(("%-16s %5s %7s %5s %5s  %s"):format("lines", "count", "median", "95 %", "max", "longest"))
for _, kind in ipairs { "C", "Lua" } do
  local all <const> = kinds[kind]
  if all then
    row(kind .. " files", all.files, all.file)
    row(kind .. " functions", all.functions, all.longest)
  end
end
