-- How much disk the installed packages of each section take, by the package database: the parent
-- cuts it up, workers read the entries. Usage: packages.lua [file] SPDX-License-Identifier: MIT
local plua = require "plua"

local path <const> = arg[1] or "/var/lib/dpkg/status"
local file <close>, why = io.open(path)
local text = file and file:read("a")
if not text then error(("%s: name a dpkg status file"):format(why or path), 0) end

--- The share of one entry: {section = {kilobytes, packages}}, or nothing.
local function read_entry(entry)
  entry = "\n" .. entry
  if not entry:find("\nStatus: [^\n]* installed%f[\n\0]") then return {} end
  local section <const> = entry:match("\nSection: *([^\n]+)") or "(none)"
  return { [section] = { tonumber(entry:match("\nInstalled%-Size: *(%d+)")) or 0, 1 } }
end

local function add(sums, more)
  for section, sum in pairs(more) do
    local so_far <const> = sums[section] or { 0, 0 }
    sums[section] = { so_far[1] + sum[1], so_far[2] + sum[2] }
  end
  return sums
end

local sums <const> = plua.mapreduce(read_entry, add, (text .. "\n\n"):gmatch("(%S.-)\n\n+")) or {}
local sections <const> = {}
for section in pairs(sums) do sections[#sections + 1] = section end
if #sections == 0 then error(path .. ": no installed package in it", 0) end
table.sort(sections, function(a, b)
  local x <const>, y <const> = sums[a][1], sums[b][1]
  return x > y or x == y and a < b
end)
for _, section in ipairs(sections) do
  print(("%10.1f MB %5d  %s"):format(sums[section][1] / 1024, sums[section][2], section))
end
