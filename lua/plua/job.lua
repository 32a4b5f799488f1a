--- Jobs: a script that returns { data =, map =, ... } says what is to be done, and this does it.
-- Keeps true: results come out in input order, on stdout, and nothing else does; memory stays
-- bounded unless 'done' asks for the whole list; a failed item makes the status 1.
-- Knows the public interface of plua, data to check it first, and when run waits. Does not know the
-- command line.
-- SPDX-License-Identifier: MIT

local plua <const> = require("plua")
local data <const> = require("plua.data")
local options <const> = require("plua.options")
local run <const> = require("plua.run")

local M <const> = {}

--- What a script of the command may return. Without emit, reduce or done each result is printed on
-- a line of its own, in input order: a string as it is, a table as JSON, anything else as tostring
-- gives it.
---@class plua.Job: plua.Options
---@field data table|function|plua.Range  what plua.imap takes
---@field map fun(item: any, index: integer): any  runs in the workers
---@field reduce? fun(acc: any, result: any): any  folds the results into one; associative
---@field emit? fun(result: any, item: any, index: integer)  gets each result, in input order
---@field done? fun(results: any)  gets the list of results, or what 'reduce' made of them
---@field key? fun(item: any): any  names an item, whatever its position; nothing calls it yet

local FIELDS <const> = {
  data = "data", map = "function", reduce = "function", emit = "function", done = "function",
  key = "function",
}

local DATA <const> = { table = true, ["function"] = true, userdata = true }

-- ---- is it a job? ----------------------------------------------------------------------------

local function known_names()
  local list <const>, set <const> = {}, {}
  for name in pairs(FIELDS) do table.insert(list, name) end
  for _, name in ipairs(options.names) do table.insert(list, name) end
  table.sort(list)
  for _, name in ipairs(list) do set[name] = true end
  return list, set
end

local function unknown_field(job)
  local list <const>, known <const> = known_names()
  for name in next, job do
    if type(name) ~= "string" then
      return ("a job has named fields only, not [%s]"):format(tostring(name))
    end
    if not known[name] then
      return ("a job has no field '%s': %s"):format(name, options.hint(name, list))
    end
  end
end

local function wrong_type(job)
  for name, kind in pairs(FIELDS) do
    local value <const> = job[name]
    if kind == "function" and value ~= nil and type(value) ~= "function" then
      return ("field '%s' of the job is a %s, not a function"):format(name, type(value))
    end
  end
  if not DATA[type(job.data)] then
    return ("field 'data' of the job is a %s, not a list or an iterator"):format(type(job.data))
  end
end

local function misfit(job)
  if job.map == nil then return "the job has 'data' but no 'map', the function to apply" end
  if job.data == nil then return "the job has 'map' but no 'data' to apply it to" end
  if job.reduce and job.emit then
    return "the job has both 'reduce' and 'emit': a fold leaves no single results to emit"
  end
end


local function without_place(message) return (message:gsub("^[^:]+:%d+: ", "")) end

-- What is wrong with the data, or nil.
local function data_fault(job)
  local fine <const>, message <const> = pcall(data.source, job.data)
  if not fine then return "field 'data' of the job: " .. without_place(message) end
end

-- The job's options; nil and what is wrong with them. A job tells its failures by itself, whoever
-- wants them collected.
local function options_of(job)
  local opts <const> = {}
  for name, value in next, job do
    if not FIELDS[name] then opts[name] = value end
  end
  local fine <const>, checked <const> = pcall(options.check, opts)
  if not fine then return nil, without_place(checked) end
  opts.on_error = checked.on_error
  return opts
end

-- ---- doing it --------------------------------------------------------------------------------

-- A result as a line: strings as they are, tables as JSON, the rest as tostring has it.
local function line_of(result)
  if type(result) == "string" then return result end
  if type(result) == "table" then return require("plua.json").encode(result) end
  return tostring(result)
end

local function write_fault(message) error("cannot write to standard output: " .. message, 0) end

local function write_line(text)
  local fine <const>, message <const> = io.stdout:write(text, "\n")
  if not fine then write_fault(message) end
end

local function print_result(result, _, index)
  local fine <const>, text <const> = pcall(line_of, result)
  if not fine then error(("result %d cannot be printed: %s"):format(index, tostring(text)), 0) end
  write_line(text)
end

local function report(err)
  io.stdout:flush()
  io.stderr:write(tostring(err), "\n")
end

-- The data, and a function that gives item i: once, in order, while it is remembered.
local function with_items(source)
  if type(source) ~= "function" then return source, function(i) return source[i] end end
  local items <const>, pulled = {}, 0
  local function remember(...)
    if (...) ~= nil then
      pulled = pulled + 1
      items[pulled] = (...)
    end
    return ...
  end
  local function take(i)
    local item <const> = items[i]
    items[i] = nil
    return item
  end
  return function() return remember(source()) end, take
end

local EINTR <const> = 4

-- What has been printed is out before a wait: it may be long, and end by a kill.
local function flush_results()
  if io.type(io.stdout) ~= "file" then return end
  local fine <const>, message <const>, code <const> = io.stdout:flush()
  if not fine and code ~= EINTR then write_fault(message) end -- the wait tells of Ctrl-C
end

-- Results one by one: to 'emit' or to stdout, and into the list that 'done' wants.
local function stream(job, opts)
  local source, item_of = job.data, nil
  if job.emit then source, item_of = with_items(job.data) end
  local emit <const> = job.emit or (not job.done and print_result)
  local results <const>, failed = { n = 0 }, 0
  local _ <close> = run.before_waiting(flush_results)
  for i, result in plua.imap(job.map, source, opts) do
    local item <const> = item_of and item_of(i)
    if job.done then results[i], results.n = result, i end
    if plua.iserror(result) then
      failed = failed + 1
      report(result)
    elseif emit then
      emit(result, item, i)
    end
  end
  if job.done then job.done(results) end
  return failed
end

-- All results as one value: to 'done' or to stdout. Errors cost the blocks they happen in.
local function fold(job, opts)
  local value <const>, errors <const> = plua.mapreduce(job.map, job.reduce, job.data, opts)
  for _, err in ipairs(errors or {}) do report(err) end
  local failed <const> = errors and #errors or 0
  if job.done then
    job.done(value)
  elseif value ~= nil or failed == 0 then
    write_line(line_of(value))
  end
  return failed
end

--- Runs a job. Errors of items and of the job's functions are raised, unless on_error says else.
---@param job plua.Job
---@return integer? status  0: all went well, 1: an item failed; nil: it is no job
---@return string? message  what is wrong with it
---@return integer? code  the status for that
function M.run(job)
  local fault <const> = unknown_field(job) or misfit(job) or wrong_type(job) or data_fault(job)
  if fault then return nil, fault, 2 end
  local opts <const>, wrong <const> = options_of(job)
  if not opts then return nil, wrong, 2 end
  local failed <const> = (job.reduce and fold or stream)(job, opts)
  return failed == 0 and 0 or 1
end

return M
