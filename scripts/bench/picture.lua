-- The table as a picture (SVG): a row a case, a dot for each contender, as a factor of plua's time
-- on a logarithmic axis; further right is slower. Knows rows. Does not measure.
-- SPDX-License-Identifier: MIT
local figure <const> = require("report").figure

local LEFT <const>, TOP <const>, ROW <const>, WIDTH <const> = 350, 70, 26, 620 -- names end at LEFT
local COLOURS <const> = {
  { "plua", "plua", "#0b5fa5" }, { "serial", "serial loop", "#777777" },
  { "limit", "machine's limit", "#111111" }, { "mp", "multiprocessing", "#d1495b" },
  { "cf", "concurrent.futures", "#edae49" }, { "joblib", "joblib", "#8d5a97" },
  { "mce", "Perl MCE", "#2e8b57" }, { "parmap", "OCaml Parmap", "#e07a2f" },
  { "parallel", "GNU parallel", "#3aa6b9" },
}

local function escape(text)
  return (tostring(text):gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;",
    ['"'] = "&quot;" }))
end

--- How many times slower than plua; nil where there is nothing to compare.
local function factor(row, who)
  local ours <const>, other <const> = row.results.plua, row.results[who]
  if not (ours and ours.median and other and other.median) then return nil end
  if ours.median <= 0 or other.median <= 0 then return nil end
  return row.more and ours.median / other.median or other.median / ours.median
end

local function bounds(rows)
  local low, high = 0.5, 2
  for _, row in ipairs(rows) do
    for _, c in ipairs(COLOURS) do
      local f <const> = factor(row, c[1])
      if f then low, high = math.min(low, f), math.max(high, f) end
    end
  end
  return 10 ^ math.floor(math.log(low, 10)), 10 ^ math.ceil(math.log(high, 10))
end

local function text(out, x, y, words, more)
  out[#out + 1] = ('<text x="%.0f" y="%.0f" %s>%s</text>'):format(x, y, more or "", escape(words))
end

local function grid(out, at, low, high, bottom)
  local mark = low
  while mark <= high * 1.001 do
    local x <const> = at(mark)
    out[#out + 1] = ('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/>'):format(x, TOP - 8,
      x, bottom, math.abs(mark - 1) < 1e-6 and "#0b5fa5" or "#dddddd")
    text(out, x, TOP - 14, ("%gx"):format(mark), 'text-anchor="middle" fill="#555555"')
    mark = mark * 10
  end
end

local function legend(out)
  local x = 10
  for _, c in ipairs(COLOURS) do
    out[#out + 1] = ('<circle cx="%.0f" cy="20" r="5" fill="%s"/>'):format(x, c[3])
    text(out, x + 9, 24, c[2])
    x = x + 30 + 6.6 * #c[2]
  end
end

local function row_of(out, row, y, at)
  text(out, LEFT - 10, y + 4, row.name, 'text-anchor="end"')
  for i = #COLOURS, 1, -1 do
    local who <const>, title <const>, colour <const> = table.unpack(COLOURS[i])
    local f <const> = factor(row, who)
    if f then
      local told <const> = ("%s: %s %s"):format(title, figure(row.results[who].median), row.unit)
      out[#out + 1] = ('<circle cx="%.1f" cy="%d" r="5" fill="%s"><title>%s</title></circle>')
        :format(at(f), y, colour, escape(told))
    end
  end
  local ours <const> = row.results.plua
  text(out, LEFT + WIDTH + 16, y + 4, ours.median and figure(ours.median) .. " " .. row.unit or
    ours.why)
end

--- The picture of a run, as text.
return function(run)
  local low <const>, high <const> = bounds(run.rows)
  local function at(f)
    return LEFT + WIDTH * math.log(f / low) / math.log(high / low)
  end
  local bottom <const> = TOP + ROW * #run.rows
  local out <const> = {
    ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" ' ..
      'font-size="12">'):format(LEFT + WIDTH + 180, bottom + 30),
    '<rect width="100%" height="100%" fill="#ffffff"/>',
  }
  legend(out)
  grid(out, at, low, high, bottom)
  for i, row in ipairs(run.rows) do row_of(out, row, TOP + ROW * i - ROW // 2, at) end
  text(out, LEFT, bottom + 20, "time as a factor of plua's; the figure at the right is plua's")
  out[#out + 1] = "</svg>"
  return table.concat(out, "\n") .. "\n"
end
