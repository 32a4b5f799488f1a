-- Draws the Mandelbrot set: workers compute rows, the parent writes them in order as they come.
-- Usage: plua scripts/mandelbrot.lua [picture.pgm [width]]         SPDX-License-Identifier: MIT
local plua = require "plua"

local path <const> = arg[1] or "build/mandelbrot.pgm"
local width <const> = math.tointeger(tonumber(arg[2] or 800))
if path:find "^%-" then error("usage: mandelbrot.lua [picture.pgm [width]]", 0) end
if not width or width < 1 then
  error(("the width must be a positive integer, not %q"):format(arg[2]), 0)
end
local height <const> = (width * 3 + 3) // 4
local STEPS <const> = 255

--- White where z = z^2 + c leaves at once, black where it stays.
local function grey(cx, cy)
  local x, y = 0.0, 0.0
  for step = 1, STEPS do
    local xx, yy = x * x, y * y
    if xx + yy > 4 then return 257 - step end
    x, y = xx - yy + cx, 2 * x * y + cy
  end
  return 0
end

local function row(j)
  local bytes, cy = {}, 2.4 * (j - 0.5) / height - 1.2
  for i = 1, width do bytes[i] = string.char(grey(3.2 * (i - 0.5) / width - 2.3, cy)) end
  return table.concat(bytes)
end

local file <const> = assert(io.open(path, "wb"))
assert(file:write(("P5\n%d %d\n255\n"):format(width, height)))
for _, bytes in plua.imap(row, plua.range(1, height)) do assert(file:write(bytes)) end
assert(file:close())
print(("%s: %d x %d"):format(path, width, height))
