-- A parameter sweep: an epidemic is simulated for each point of a grid, one line of CSV each.
-- Usage: plua scripts/sweep.lua > sweep.csv                        SPDX-License-Identifier: MIT

local grid <const> = {}
for contacts = 2, 20, 2 do
  for days = 2, 14, 2 do
    grid[#grid + 1] = { contacts = contacts, days = days }
  end
end

--- Susceptible, infected and recovered shares of a population, by Euler steps of an hour.
local function epidemic(point)
  local beta <const>, gamma <const> = 0.05 * point.contacts, 1 / point.days
  local s, i, h = 0.999, 0.001, 1 / 24
  local peak, peak_day = i, 0.0
  for step = 1, 24 * 365 do
    local caught <const>, cured <const> = beta * s * i * h, gamma * i * h
    s, i = s - caught, i + caught - cured
    if i > peak then peak, peak_day = i, step * h end
  end
  return { peak = peak, day = peak_day, total = 1 - s }
end

local function emit(result, point)
  print(("%d,%d,%.6f,%.2f,%.6f"):format(point.contacts, point.days, result.peak, result.day,
    result.total))
end

print("contacts,days,peak,peak_day,total")
return { data = grid, map = epidemic, emit = emit }
