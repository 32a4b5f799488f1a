-- Draws what scale.lua measured: four small charts in one picture (SVG).
-- Knows the runs' fields. Does not run anything. SPDX-License-Identifier: MIT
local WIDTH <const>, HEIGHT <const>, GAP <const> = 330, 190, 80
local COLOURS <const> = { "#0b5fa5", "#d1495b", "#2e8b57", "#edae49" }

local function log10(x) return math.log(x, 10) end

--- A chart: title, what y and x are, {low, high} of both axes (x logarithmic), series of {name,
--- points}; their names stand at the left above, or at the right below.
local function chart(out, left, top, c)
  local function x_of(x)
    return left + WIDTH * (log10(x) - log10(c.x[1])) / (log10(c.x[2]) - log10(c.x[1]))
  end
  local function y_of(y)
    if c.log then
      return top + HEIGHT * (1 - (log10(y) - log10(c.y[1])) / (log10(c.y[2]) - log10(c.y[1])))
    end
    return top + HEIGHT * (1 - (y - c.y[1]) / (c.y[2] - c.y[1]))
  end
  local function add(text, ...) out[#out + 1] = text:format(...) end
  add('<text x="%d" y="%d" font-weight="bold">%s</text>', left, top - 24, c.title)
  add('<text x="%d" y="%d" fill="#555555">%s</text>', left, top - 9, c.label)
  add('<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#999999"/>', left, top, WIDTH,
    HEIGHT)
  for _, y in ipairs(c.marks) do
    add('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="%s"/>', left, y_of(y), left + WIDTH,
      y_of(y), y == c.target and "#111111" or "#e5e5e5")
    add('<text x="%d" y="%.1f" text-anchor="end">%g</text>', left - 6, y_of(y) + 4, y)
  end
  local x = c.x[1]
  while x <= c.x[2] * 1.01 do
    add('<text x="%.1f" y="%d" text-anchor="middle">%s</text>', x_of(x), top + HEIGHT + 16,
      x < 10000 and ("%g"):format(x) or ("1e%d"):format(math.floor(log10(x) + 0.5)))
    x = x * 10
  end
  add('<text x="%d" y="%d" text-anchor="middle" fill="#555555">%s</text>', left + WIDTH // 2,
    top + HEIGHT + 32, c.across or "workers")
  for i, s in ipairs(c.series) do
    local points <const> = {}
    for j, p in ipairs(s.points) do points[j] = ("%.1f,%.1f"):format(x_of(p[1]), y_of(p[2])) end
    add('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>',
      table.concat(points, " "), COLOURS[i])
    for _, p in ipairs(s.points) do
      add('<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>', x_of(p[1]), y_of(p[2]), COLOURS[i])
    end
    local below <const> = c.names_below
    add('<text x="%d" y="%d" fill="%s" text-anchor="%s">%s</text>',
      below and left + WIDTH - 8 or left + 10,
      top + 2 + 15 * i + (below and HEIGHT - 15 * #c.series - 12 or 0), COLOURS[i],
      below and "end" or "start", s.name)
  end
end

--- Points of the runs that fit: {x, y}.
local function points(runs, x, y, fits)
  local list <const> = {}
  for _, run in ipairs(runs) do
    if not fits or fits(run) then list[#list + 1] = { run[x], y(run) } end
  end
  return list
end

local function highest(series, at_least)
  local most = at_least
  for _, s in ipairs(series) do
    for _, p in ipairs(s.points) do most = math.max(most, p[2]) end
  end
  return most
end

local function of(law) return function(run) return run.law == law end end

local function work(all)
  local series <const> = {}
  if #all.counts > 0 then
    series[1] = { name = "instructions, 1,000 items a worker",
      points = points(all.counts, "workers", function(c) return c.each end) }
  end
  for _, law in ipairs { "pareto", "lognormal" } do
    series[#series + 1] = { name = "ns, " .. law .. " costs", points = points(all.grid, "workers",
      function(r) return math.max(1, r.parent_ns_per_item) end, of(law)) }
  end
  return { title = "The parent's work for an item", label = "pool, pump, sched",
    x = { 10, 10000 }, y = { 1, 1000 }, log = true, marks = { 1, 10, 100, 1000 },
    series = series }
end

local function makespan(all)
  local series <const> = {}
  for i, law in ipairs { "pareto", "lognormal" } do
    series[i] = { name = law .. " costs", points = points(all.grid, "workers",
      function(r) return r.makespan_ns / r.greedy_ns end, of(law)) }
  end
  return { title = "Makespan against greedy, item by item", label = "ratio",
    x = { 10, 10000 }, y = { 0.98, math.max(1.06, highest(series, 0)) },
    marks = { 0.98, 1, 1.02, 1.04, 1.06 }, target = 1.02, series = series }
end

local function memory(all)
  local function mb(r) return r.memory_bytes / 1048576 end
  local series <const> = {
    { name = "by workers, 1e4 items each", points = points(all.grid, "workers", mb, of "pareto") },
    { name = "by thousands of items, 100 workers", points = points(all.longer, "thousands", mb) },
  }
  return { title = "The parent's memory", label = "MB of pool, pump, sched", x = { 10, 10000 },
    across = "workers, or thousands of items", y = { 0.1, 10 }, log = true,
    marks = { 0.1, 1, 10 }, series = series }
end

local function limit(all)
  local series <const> = {}
  for i, workers in ipairs { 10, 100, 1000, 10000 } do
    series[i] = { name = ("%d workers"):format(workers), points = points(all.limited, "us",
      function(r) return 100 * r.used end, function(r) return r.workers == workers end) }
  end
  return { title = ("Where the parent is the limit: %d ns a result"):format(all.result_ns),
    label = "% of the workers' time that is work", across = "microseconds an item",
    x = { 1, 10000 }, names_below = true,
    y = { 0, 100 }, marks = { 0, 25, 50, 75, 100 }, series = series }
end

--- The picture, as text.
return function(all)
  for _, r in ipairs(all.longer) do r.thousands = r.items / 1000 end
  for _, r in ipairs(all.limited) do r.us = r.mean_ns / 1000 end
  local out <const> = {
    ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" ' ..
      'font-size="12">'):format(2 * (WIDTH + GAP) + 20, 2 * (HEIGHT + GAP) + 20),
    '<rect width="100%" height="100%" fill="#ffffff"/>',
  }
  for i, make in ipairs { work, makespan, memory, limit } do
    local column <const>, line <const> = (i - 1) % 2, (i - 1) // 2
    chart(out, 50 + column * (WIDTH + GAP), 50 + line * (HEIGHT + GAP), make(all))
  end
  out[#out + 1] = "</svg>"
  return table.concat(out, "\n") .. "\n"
end
