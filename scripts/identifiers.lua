-- The ten most frequent identifiers of C headers, without comments, literals and keywords: workers
-- read the files and fold their counts. Usage: plua scripts/identifiers.lua [file or directory ...]
-- SPDX-License-Identifier: MIT
local plua = require "plua"

local keyword <const> = {}
for word in ([[auto break case char const continue default do double else enum extern float for goto
  if inline int long register restrict return short signed sizeof static struct switch typedef union
  unsigned void volatile while]]):gmatch "%a+" do keyword[word] = true end
local ENDS <const> = { ["/*"] = "^/%*.-%*/", ["//"] = "^[^\n]*", ['"'] = '^"[^"\n]*"',
  ["'"] = "^'[^'\n]*'", ["/"] = "^/" }

--- C source without comments, literals and the names of directives.
local function code_of(text)
  text = ("\n" .. text):gsub("\\\r?.", "") -- escapes, and the ends of continued lines
  local parts, from, at = {}, 1, text:find "[/\"']"
  while at do
    local _, to = text:find(ENDS[text:sub(at, at + 1)] or ENDS[text:sub(at, at)], at)
    parts[#parts + 1] = text:sub(from, at - 1)
    from = (to or at) + 1
    at = text:find("[/\"']", from)
  end
  return (table.concat(parts, " ") .. " " .. text:sub(from)):gsub("\n[ \t]*#[ \t]*%a+", "\n")
end

--- The words of a file and how often each occurs; keys with "#" count something else.
local function count(path)
  local file <close>, why = io.open(path, "rb")
  local text <const> = file and file:read "a"
  if not text then
    io.stderr:write("identifiers: " .. (why or path .. ": cannot be read") .. "\n")
    return { ["#unread"] = 1 }
  end
  local counts <const> = { ["#files"] = 1, ["#bytes"] = #text, ["#" .. plua.worker().id] = 1 }
  for word in code_of(text):gmatch "%f[%w_][%a_][%w_]*" do
    counts[word] = (counts[word] or 0) + 1
  end
  return counts
end

local function add(sum, counts)
  for word, n in pairs(counts) do sum[word] = (sum[word] or 0) + n end
  return sum
end

--- The files that are named, whatever they are, and the headers below directories.
local function find(places)
  local files, complete = {}, true
  for _, place in ipairs(places) do
    local directory <close> = io.open(place .. "/.")
    if directory then
      local quoted <const> = "'" .. place:gsub("^%-", "./-"):gsub("'", "'\\''") .. "'"
      local pipe <const> = assert(io.popen("find -H " .. quoted .. " -type f -name '*.h' -print0"))
      for path in pipe:read("a"):gmatch "[^\0]+" do files[#files + 1] = path end
      complete = pipe:close() and complete
    else
      files[#files + 1] = place
    end
  end
  return files, complete
end

local function seconds()
  local uptime <close> = assert(io.open "/proc/uptime")
  return uptime:read "n"
end

local start <const>, places <const> = seconds(), #arg > 0 and arg or { "/usr/include" }
local files <const>, complete <const> = find(places)
local sum <const> = plua.mapreduce(count, add, files) or {}

local words, workers = {}, 0
for word in pairs(sum) do
  if word:find "^#[1-9]" then workers = workers + 1 end
  if not keyword[word] and word:byte() ~= 35 then words[#words + 1] = word end
end
table.sort(words, function(a, b) return sum[a] > sum[b] or sum[a] == sum[b] and a < b end)
for i = 1, math.min(10, #words) do print(("%9d  %s"):format(sum[words[i]], words[i])) end

io.stdout:flush()
if #files == 0 then io.stderr:write("identifiers: no C header below ", places[1], "\n") end
io.stderr:write(("%d files, %.1f MB, %.2f seconds, %d workers\n"):format(sum["#files"] or 0,
  (sum["#bytes"] or 0) / 1e6, seconds() - start, workers))
if #files == 0 or sum["#unread"] or not complete then os.exit(false, true) end
