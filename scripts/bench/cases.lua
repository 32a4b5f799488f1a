-- The cases of the benchmark: what is done how often, in which unit it is told, what it stands
-- beside, and what it must reach. Knows figures. Does not know how they are measured.
--   n, unit      how many items; the unit of all figures in the row
--   value        makes the figure of the fields that a contender printed
--   more         true: the greater the better
--   rounds       at most so many repetitions, where one takes long
--   bare         two bare processes that do the same work are measured too, round by round, and so
--                many times as often as the rest: where a hundredth counts, the machine's own noise
--                is ten
--   serial       whether there is a serial loop to stand beside
--   limit        {probe command, how its seconds become a figure, what it is}
--   peers        who -> how many items, true for n, or a text: why there is no figure
--   targets      of a table of medians: {text, whether it is met, by which ratio it holds if it is
--                not} each; 'pair' is the median of plua's figure by the limit's of the same round
-- A bound in ns, us or ms was set on one machine, beside what a peer took there. On a slower one,
-- or in a slow hour, it holds by ratio: where plua is as far ahead of that peer now as then.
-- SPDX-License-Identifier: MIT

local function each(scale) return function(f, n) return f.seconds / n * scale end end
local function whole(scale) return function(f) return f.seconds * scale end end

local NO_FUTURES <const> = "has no futures"
local NO_SINGLE <const> = "has no call for one item"
local PER_ITEM <const> = "starts a process an item"
local TEXT_ONLY <const> = "its results are text"
local LIST_ONLY <const> = "returns whole lists"
local FORKS <const> = "forks for each call"

--- Adds the ratio by which a bound holds that is not met, if it does.
local function or_ratio(target, ratio, least, most, whom)
  if target[2] or not ratio or ratio < least or ratio > most then return target end
  target[3] = ("%.3g of %s (%s %.3g)"):format(ratio, whom, most < math.huge and "<=" or ">=",
    most < math.huge and most or least)
  return target
end

--- `took`: what Python's multiprocessing took where the bound was set, if it can do the same.
local function at_most(v, unit, bound, took)
  local ratio <const> = took and v.mp and v.plua / v.mp
  return or_ratio({ ("<= %g %s"):format(bound, unit), v.plua <= bound }, ratio, 0,
    bound / (took or 1), "multiprocessing")
end

--- Met when plua needs at most `factor` times what another one does; not judged without that one.
local function at_most_times(v, who, factor, text)
  return { text, v[who] and v.plua <= factor * v[who] }
end

local cases <const> = {
  { id = "oneshot", name = "one-shot map, x^3, fork included", n = 1000000, unit = "ns/item",
    value = each(1e9), serial = true,
    limit = { "fork 200", function(f) return f.seconds / 200 * 2 / 1e6 * 1e9 end,
      "two forks" },
    peers = { mp = true, cf = true, joblib = true, mce = true, parmap = true,
      parallel = PER_ITEM },
    targets = function(v)
      return { at_most(v, "ns", 55, 272), at_most_times(v, "mp", 1 / 5, "5 x multiprocessing"),
        at_most_times(v, "serial", 1.3, "1.3 x serial") }
    end },
  { id = "warm", name = "map on a warm pool, x^3", n = 1000000, unit = "ns/item",
    value = each(1e9), serial = true,
    peers = { mp = true, cf = true, joblib = true, mce = true, parmap = FORKS,
      parallel = PER_ITEM },
    targets = function(v) return { at_most(v, "ns", 80, 200) } end },
  { id = "chunk1", name = "one-shot map, chunksize = 1", n = 20000, unit = "us/item",
    value = each(1e6), serial = true,
    limit = { "pipe 20000", function(f) return f.seconds / 20000 * 1e6 end, "pipe round trip" },
    peers = { mp = true, cf = true, joblib = true, mce = true, parmap = true, parallel = 200 },
    targets = function(v) return { at_most(v, "us", 0.5, 16.1) } end },
  { id = "async", name = "apply_async, then get", n = 20000, unit = "us/item",
    value = each(1e6), serial = true,
    peers = { mp = true, cf = true, joblib = NO_FUTURES, mce = NO_FUTURES, parmap = NO_FUTURES,
      parallel = NO_FUTURES },
    targets = function(v) return { at_most(v, "us", 1.5, 22.4) } end },
  { id = "trip", name = "pool:apply, worker idle", n = 2000, unit = "us", value = each(1e6),
    serial = true,
    limit = { "wake 20000", function(f) return f.seconds / 20000 * 1e6 end,
      "futex and eventfd round trip" },
    peers = { mp = true, cf = true, joblib = NO_SINGLE, mce = NO_SINGLE, parmap = FORKS,
      parallel = PER_ITEM },
    targets = function(v) return { { "limit + 2 us", v.limit and v.plua <= v.limit + 2 } } end },
  { id = "start", name = "whole process: 6 cubes, 2 workers", n = 1, unit = "ms",
    value = whole(1e3), exec = true,
    peers = { mp = true, cf = true, joblib = true, mce = true, parmap = true, parallel = true },
    targets = function(v)
      return { { "lua5.4 -e '' + 3 ms", v.serial and v.plua <= v.serial + 3 } }
    end },
  { id = "lists", name = "results of 1,000 floats", n = 2000, unit = "us/item",
    value = each(1e6),
    limit = { "copy 16", function(f) return f.seconds / 16 * 8000 / (1 << 20) * 1e6 end,
      "memcpy of 8,000 bytes" },
    peers = { mp = true, cf = true, joblib = true, mce = true, parmap = true,
      parallel = TEXT_ONLY },
    targets = function(v) return { at_most(v, "us", 15, 87) } end },
}

-- ---- large strings ----

local function gigabytes(ways)
  return function(f, n) return ways * n * (1 << 20) / f.seconds / 1e9 end
end

local COPY <const> = { "copy 256", function(f) return 256 * (1 << 20) / f.seconds / 1e9 end,
  "memcpy" }

local function fast_copy(v)
  return { { "3 GB/s or half of memcpy",
    v.limit and v.plua >= math.min(3, v.limit / 2) } }
end

cases[#cases + 1] = { id = "strings_in", name = "256 strings of 1 MiB, in", n = 256,
  unit = "GB/s", more = true, value = gigabytes(1), limit = COPY, targets = fast_copy,
  peers = { mp = true, cf = true, joblib = true, mce = true,
    parmap = "sends no items: forks with them", parallel = TEXT_ONLY } }
cases[#cases + 1] = { id = "strings_both", name = "256 strings of 1 MiB, in and back", n = 256,
  unit = "GB/s", more = true, value = gigabytes(2), limit = COPY, targets = fast_copy,
  peers = { mp = true, cf = true, joblib = true, mce = true,
    parmap = "sends no items: forks with them", parallel = TEXT_ONLY } }

-- ---- items that compute: each contender beside its own serial loop ----

-- The bounds are for two idle cores: where two bare processes do not reach them either, they are
-- what there is to reach.
local BARE <const> = "bare processes"

cases[#cases + 1] = { id = "cpu", name = "2,000 items of 1 ms: part of ideal", n = 2000,
  unit = "of ideal", more = true, bare = 4,
  value = function(f) return f.serial / 2 / f.seconds end,
  peers = { mp = true, cf = true, joblib = true, mce = true, parmap = true, parallel = PER_ITEM },
  targets = function(v)
    return { or_ratio({ ">= 0.99", v.plua >= 0.99 }, v.pair, 0.99, math.huge, BARE) }
  end }

for _, place in ipairs { "first", "middle", "last", "weight" } do
  local weighed <const> = place == "weight" and "has no such option"
  cases[#cases + 1] = { id = "skew_" .. place, n = 41, unit = "x best", bare = 4,
    name = weighed and "40 of 10 ms, 400 ms last, weight" or "40 of 10 ms, 400 ms " .. place,
    value = function(f) return f.seconds / (f.serial * f.best) end,
    peers = { mp = weighed or true, cf = weighed or true, joblib = weighed or true,
      mce = weighed or true, parmap = weighed or true, parallel = weighed or true },
    targets = function(v)
      return { or_ratio({ "<= 1.02", v.plua <= 1.02 }, v.pair, 0, 1.02, BARE) }
    end }
end

-- ---- size ----

cases[#cases + 1] = { id = "imap", name = "imap over an iterator, 1e7", n = 10000000,
  unit = "ns/item", value = each(1e9), serial = 1000000, rounds = 2, extra = "growth_mb",
  peers = { mp = true, cf = true, joblib = LIST_ONLY, mce = true, parmap = LIST_ONLY,
    parallel = PER_ITEM },
  targets = function(v)
    return { at_most(v, "ns", 300), { "grows <= 16 MB", v.plua_growth_mb <= 16 } }
  end }
cases[#cases + 1] = { id = "thousand", name = "1,000 workers, one item each", n = 1000,
  unit = "ms", value = whole(1e3), extra = "private_kb",
  limit = { "fork 1000", whole(1e3), "1,000 forks" },
  peers = { mp = true, cf = true, joblib = "starts 1,000 interpreters", mce = true, parmap = true,
    parallel = "starts 1,000 interpreters" },
  targets = function(v)
    local forks <const> = v.limit and v.plua / v.limit
    return { or_ratio(at_most(v, "ms", 150), forks, 0, 1.1, "1,000 bare forks"),
      { "<= 300 kB private", v.plua_private_kb <= 300 } }
  end }
cases[#cases + 1] = { id = "codec", name = "1e6 records encoded, decoded; serial: lua-cjson",
  n = 1000000, unit = "us/item", value = each(1e6), serial = true, rounds = 3, peers = {},
  targets = function(v) return { at_most_times(v, "serial", 0.5, "half of lua-cjson") } end }

-- ---- memory ----

local HEAPS <const> = { "tables", "strings", "closures" }
for _, kind in ipairs(HEAPS) do
  cases[#cases + 1] = { id = "private_" .. kind, rounds = 1, peers = {},
    name = ("private memory over a heap of %s"):format(kind), n = 1, unit = "x heap",
    value = function(f) return f.private_mb / f.heap_mb end,
    targets = function(v)
      return { kind == "tables" and { "<= 15 MB", v.plua_private_mb <= 15 } or
        { "<= 0.2 x heap", v.plua <= 0.2 } }
    end }
end
cases[#cases + 1] = { id = "churn", name = "an item that allocates much: its CPU time", n = 1,
  unit = "ms", value = whole(1e3), serial = true, peers = {},
  targets = function(v) return { at_most_times(v, "serial", 1.05, "1.05 x serial") } end }
cases[#cases + 1] = { id = "second_map", name = "second map over an unchanged heap",
  n = 1, unit = "ms more", value = function(f) return (f.seconds - f.small) * 1e3 end, peers = {},
  rounds = 3, targets = function(v) return { at_most(v, "ms", 10) } end }

return cases
