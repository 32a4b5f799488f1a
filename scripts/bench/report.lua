-- What was measured, as text: the table, Markdown for the README, the change since an earlier run.
-- Knows rows (as bench.json holds them). Does not measure. SPDX-License-Identifier: MIT
local report <const> = {}

--- A figure with three digits that count.
local function figure(x)
  if not x then return nil end
  local size <const> = math.abs(x)
  if size >= 1e5 then
    return (("%d"):format(x // 1):reverse():gsub("(%d%d%d)(%d)", "%1,%2"):reverse())
  end
  return (size >= 100 and "%.0f" or size >= 10 and "%.1f" or "%.2f"):format(x)
end
report.figure = figure

local function cell(result)
  if not result then return "" end
  return figure(result.median) or result.why == "not installed" and "n/i" or "-"
end

--- The targets of a case, judged.
---@param case table
---@param medians table  of plua, the limit and the peers, by who
---@return {text: string, met: boolean?, ratio: string?}[]  none where plua has no figure
function report.targets(case, medians)
  local targets <const> = {}
  local judged <const> = medians.plua and case.targets(medians) or {}
  for i, target in ipairs(judged) do
    targets[i] = { text = target[1], met = target[2], ratio = target[3] }
  end
  return targets
end

--- Whether a row's targets are met: "met", the ratio by which one holds, or those that are missed.
function report.verdict(row)
  local missed, ratios, unknown = {}, {}, {}
  for _, target in ipairs(row.targets) do
    if target.met == false then
      local list <const> = target.ratio and ratios or missed
      list[#list + 1] = target.ratio or target.text
    elseif target.met == nil then
      unknown[#unknown + 1] = target.text
    end
  end
  if #missed > 0 then return "MISSES " .. table.concat(missed, ", ") end
  if #ratios > 0 then return "by ratio: " .. table.concat(ratios, ", ") end
  return #unknown > 0 and "not judged: " .. table.concat(unknown, ", ") or "met"
end

local LINE <const> = "%-38s %-9s %9s %17s %8s %8s %8s %8s %8s %8s %8s %8s  %s"

function report.head()
  return LINE:format("case", "unit", "plua", "low .. high", "serial", "limit", "mp", "cf", "joblib",
    "MCE", "Parmap", "parallel", "target")
end

function report.line(row)
  local r <const> = row.results
  local ours <const> = r.plua
  local spread <const> = ours.low and figure(ours.low) .. " .. " .. figure(ours.high) or ""
  return LINE:format(row.name, row.unit, cell(ours), spread, cell(r.serial), cell(r.limit),
    cell(r.mp), cell(r.cf), cell(r.joblib), cell(r.mce), cell(r.parmap), cell(r.parallel),
    ours.median and report.verdict(row) or ours.why)
end

--- What a table cannot show: extra figures, limits, who could not take part and why.
function report.notes(rows)
  local lines <const> = {}
  for _, row in ipairs(rows) do
    local notes <const> = {}
    for _, who in ipairs { "plua", "serial", "limit", "mp", "cf", "joblib", "mce", "parmap",
      "parallel" } do
      local r <const> = row.results[who]
      if r and r.what then notes[#notes + 1] = "limit: " .. r.what end
      if r and r.why then notes[#notes + 1] = who .. ": " .. r.why end
      if r and r.extra then notes[#notes + 1] = ("%s %s %s"):format(who, r.extra_name,
        figure(r.extra)) end
      if r and r.n then notes[#notes + 1] = ("%s with %d items"):format(who, r.n) end
      if r and r.median and r.runs < row.rounds then
        notes[#notes + 1] = ("%s %d of %d runs"):format(who, r.runs, row.rounds)
      end
    end
    if row.pair then
      notes[#notes + 1] = ("plua by limit, round by round, %d times: %.3f"):format(
        row.results.plua.runs, row.pair)
    end
    if #notes > 0 then lines[#lines + 1] = row.id .. ": " .. table.concat(notes, "; ") end
  end
  return lines
end

-- ---- Markdown ----

local COLUMNS <const> = { "plua", "serial", "limit", "mp", "cf", "joblib", "mce", "parmap",
  "parallel" }

local function machine(run)
  local m <const> = run.machine
  return ("Medians of %d interleaved repetitions (where items compute, four times as many of" ..
    " plua and the limit), each a process of its own, %d workers, on %s (%d cores, load %s at" ..
    " its start), Linux %s; %s."):format(run.rounds, run.workers, m.cpu, m.cores, m.load, m.kernel,
    m.versions)
end

--- The table for the README.
function report.markdown(run)
  local lines <const> = { machine(run), "",
    "| case | unit | plua | serial loop | machine's limit | multiprocessing | concurrent.futures" ..
    " | joblib | Perl MCE | OCaml Parmap | GNU parallel | target |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|" }
  for _, row in ipairs(run.rows) do
    local cells <const> = { row.name, row.unit }
    for _, who in ipairs(COLUMNS) do cells[#cells + 1] = cell(row.results[who]) end
    cells[3] = row.results.plua.median and "**" .. cells[3] .. "**" or row.results.plua.why
    cells[#cells + 1] = row.results.plua.median and report.verdict(row) or ""
    lines[#lines + 1] = "| " .. table.concat(cells, " | ") .. " |"
  end
  return table.concat(lines, "\n")
end

-- ---- comparison ----

local function by_id(rows)
  local map <const> = {}
  for _, row in ipairs(rows) do map[row.id] = row end
  return map
end

-- Times count as changed where the spreads of both runs lie apart, and beyond this. A worker's
-- instructions repeat within a thousandth; the parent's depend on how often it had to wait.
local CLOCK_NOISE <const> = 0.1
local COUNT_NOISE <const> = { worker = 0.01, parent = 0.15 }

local function change(lines, what, was, is, noise, more)
  if not was or not is or was == 0 then return end
  local ratio <const> = is / was
  local dearer <const> = more and ratio < 1 - noise or not more and ratio > 1 + noise
  lines[#lines + 1] = ("%-44s %10s -> %10s  %+6.1f %%%s"):format(what, figure(was), figure(is),
    100 * (ratio - 1), dearer and "  DEARER" or "")
  return dearer
end

--- Lines that tell what changed since an earlier run, and whether something became dearer.
function report.compare(old, new)
  local lines, before <const>, any = {}, by_id(old.rows), false
  for _, row in ipairs(new.rows) do
    local was <const> = before[row.id] and before[row.id].results.plua
    local is <const> = row.results.plua
    local apart <const> = was and was.median and is.median and
      (is.low > was.high or is.high < was.low)
    any = change(lines, row.id .. ", " .. row.unit, was and was.median, is.median,
      apart and CLOCK_NOISE or math.huge, row.more) or any
  end
  for id, counts in pairs(new.instructions or {}) do
    local was <const> = old.instructions and old.instructions[id] or {}
    for who, count in pairs(counts) do
      any = change(lines, ("%s, instructions/item, %s"):format(id, who), was[who], count,
        COUNT_NOISE[who]) or any
    end
  end
  return lines, any
end

return report
