-- Runs the contenders of a case in turn, each repetition in a process of its own, and sums up.
-- Knows commands and the lines "name value" that they print. Does not know plua or peers.
-- SPDX-License-Identifier: MIT
local measure <const> = {}

-- A contender that needs longer than this for one repetition gets no further one.
local PATIENCE_S <const> = 30

--- Runs a command; the fields that it printed, or nil and why there are none.
function measure.run(command)
  local pipe <const> = assert(io.popen("timeout 600 " .. command .. " 2>&1"))
  local fields, last = {}, "printed nothing"
  for line in pipe:lines() do
    local name <const>, value <const> = line:match "^([%a_]+) (%-?[%d.]+)$"
    if name then fields[name] = tonumber(value) end
    fields.none = fields.none or line:match "^none (.*)$"
    last = line
  end
  local ok <const>, how <const>, code <const> = pipe:close()
  if fields.none then return nil, fields.none end
  if ok and next(fields) then return fields end
  return nil, ok and last or ("%s (%s %d)"):format(last, how, code)
end

--- The middle of a list of numbers, its least and its greatest.
function measure.median(list)
  local sorted <const> = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  local n <const> = #sorted
  local middle <const> = (sorted[(n + 1) // 2] + sorted[n // 2 + 1]) / 2
  return middle, sorted[1], sorted[n]
end

--- One repetition more of a contender.
local function once(contender, value, result, now)
  local start <const> = now()
  local fields <const>, why <const> = measure.run(contender.command)
  if not fields then
    result.why = why
    return
  end
  local list <const> = result.values
  list[#list + 1] = (contender.value or value)(fields, contender.n)
  for name, number in pairs(fields) do
    result.fields[name] = result.fields[name] or {}
    table.insert(result.fields[name], number)
  end
  result.slow = now() - start > PATIENCE_S
end

local function sum_up(result)
  local middles <const> = {}
  for name, list in pairs(result.fields) do middles[name] = measure.median(list) end
  result.fields, result.slow = middles, nil
  result.runs = #result.values
  if result.runs > 0 then
    result.median, result.low, result.high = measure.median(result.values)
  end
  return result
end

--- The median of the ratios of two contenders' figures, round by round; nil where there are none.
function measure.pair(one, other)
  local ratios <const> = {}
  for i, value in ipairs(other and other.values or {}) do
    ratios[i] = one.values[i] and one.values[i] / value
  end
  return ratios[1] and (measure.median(ratios))
end

--- Repeats all contenders of a case in turn, each for so many rounds.
---@param contenders {who: string, command: string, n: number, rounds: integer}[]
---@param value fun(fields: table, n: number): number
---@return table<string, table> results  by who: median, low, high, runs, fields; or why
function measure.rounds(contenders, value, now)
  local results <const>, most = {}, 0
  for _, c in ipairs(contenders) do
    results[c.who] = { values = {}, fields = {} }
    most = math.max(most, c.rounds)
  end
  for round = 1, most do
    for _, c in ipairs(contenders) do
      local result <const> = results[c.who]
      local due <const> = round <= c.rounds and not result.why and not result.slow
      if due then once(c, value, result, now) end
    end
  end
  for _, result in pairs(results) do sum_up(result) end
  return results
end

return measure
