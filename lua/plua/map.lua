--- One-shot calls: workers are forked for one call, after everything is loaded.
-- Keeps true: the function, its upvalues and the data are inherited, so only results are sent; no
-- worker outlives its call. Knows plua.core, run, options and errors; does not know pools.
-- SPDX-License-Identifier: MIT

local core <const> = require("plua.core")
local errors <const> = require("plua.errors")
local options <const> = require("plua.options")
local run <const> = require("plua.run")

local M <const> = {}

local MANY <const> = 16 -- workers that a spare makes sooner than the caller's own process

local LEAVE <const> = 1 -- seconds for workers to leave, where no 'finish' of the user's runs

-- ---- a team for one call ----------------------------------------------------------------------

-- Until every worker has gone: in peace, so that what their files hold is written.
local function leave(handle, limit)
  handle:shutdown()
  local ends <const> = limit and core.now() + limit
  repeat
    local left <const> = ends and ends - core.now()
    if left and left <= 0 then return end
    local status <const> = handle:pump(nil, left)
  until status ~= "ready"
end

local Session <const> = {}
Session.__index = Session

function Session:finish()
  leave(self.handle, not self.has_finish and LEAVE or nil)
  local err <const> = self.handle:left()
  if err ~= nil then error(err, 0) end
end

function Session:close() self.handle:close() end

-- What has a finaliser lives until the second collection, and all that it holds: a call that is
-- over lets its data and results go. A loop that was left may still be asked by hand.
function Session:__close(err)
  run.note(self, err)
  self:close()
  if not self.call.window then self.job, self.call = nil, nil end
end

Session.__gc = Session.close

-- Inside an item the call runs there: nested calls never multiply processes.
local function team_size(opts, most)
  if core.inside() and not opts.nested then return 0, 1 end
  return options.team(opts.workers, most)
end

local function source_of(source)
  if source.list then return core.FROM_LIST, source.list end
  if source.range then return core.FROM_RANGE, { source.range.first, source.range.step } end
  return core.FROM_BYTES, nil
end

-- Opens the team and the job of a call.
local function begin(call)
  local opts <const> = call.opts
  local positions <const> = run.positions(call)
  local workers <const>, cores <const> = team_size(opts, call.source.n and positions)
  local from <const>, inherited <const> = source_of(call.source)
  local fine <const>, handle <const> = pcall(core.open, {
    once = true, workers = workers, cores = cores, max_tasks = opts.max_tasks_per_child,
    memory = opts.memory, max_rss = opts.max_rss,
    grouped = opts.output == "grouped",
    spare = call.window or type(opts.on_error) == "function" or workers >= MANY,
    init = opts.init, finish = opts.finish, timed = opts.timeout ~= nil,
    f = call.f, reduce = call.reduce, data = inherited,
    mode = call.mode, source = from, seed = run.seed(opts), count = call.source.n,
    order = call.order,
  })
  if not fine then errors.not_opened(handle, workers) end
  local session <const> = setmetatable({
    handle = handle, workers = workers, has_finish = opts.finish ~= nil, call = call,
  }, Session)
  local spec <const> = run.spec(call)
  if call.window then spec.open = true else spec.count = positions end
  session.job = handle:job(spec)
  return session
end

-- ---- calls ------------------------------------------------------------------------------------

--- Applies `f` to each item of `data` in parallel, keeping order.
-- Equals: for i, item in ipairs(data) do out[i] = f(item, i) end
-- unless `f` depends on state that earlier calls changed. A C function gets the item alone. The
-- first error of an item is raised, unless `opts.on_error` says else. An iterator is called to its
-- end before the first item runs, here and in all others but imap, imap_unordered and find.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range  a sequence, a table with n, an iterator, a range
---@param opts? plua.Options
---@return table results  results.n items; holes stay holes
function M.map(f, data_, opts)
  return (run.list(begin, run.call(core.MAP, f, data_, opts)))
end

--- Applies `f` to the values of each item: f(table.unpack(item)).
-- Equals: for i, item in ipairs(data) do out[i] = f(table.unpack(item)) end
-- An item with a field n has that many values. All values of an iterator are one item.
---@param f fun(...): any
---@param data table|function  a list of lists, or an iterator
---@param opts? plua.Options
---@return table results  results.n items; holes stay holes
function M.starmap(f, data_, opts)
  return (run.list(begin, run.call(core.STAR, f, data_, opts)))
end

--- Results one by one, in input order, while the others are being computed.
-- Equals: for i, item in ipairs(data) do coroutine.yield(i, f(item, i)) end
-- An iterator is pulled only as fast as results are taken, so it may be endless; it cannot yield to
-- a coroutine around the call. An item's error is raised at its turn: a for loop ends there, an
-- iterator that is called by hand goes on. A loop that is left ends the workers.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return fun(): integer?, any  for the generic for: index, result
function M.imap(f, data_, opts)
  return run.plainly(run.stream(begin, run.call(core.MAP, f, data_, opts, nil, core.ORDER)))
end

--- As plua.imap, in the order in which items are done.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return fun(): integer?, any  for the generic for: index, result
function M.imap_unordered(f, data_, opts)
  return run.plainly(run.stream(begin, run.call(core.MAP, f, data_, opts, nil, core.QUEUE)))
end

--- Calls `f` for each item and sends no results.
-- Equals: for i, item in ipairs(data) do f(item, i) end
---@param f fun(item: any, index: integer)
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return integer n  the number of items
---@return table? errors  under on_error = "collect": the errors, by index
function M.each(f, data_, opts)
  return run.plainly(run.each(begin, run.call(core.EACH, f, data_, opts)))
end

--- The items for which `f` is true, in input order.
-- Equals: for i, item in ipairs(data) do if f(item, i) then out[#out + 1] = item end end
-- Under on_error = "collect" the error of an item stands in its place.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return table items
function M.filter(f, data_, opts)
  return (run.filter(begin, run.call(core.FILTER, f, data_, opts)))
end

--- The first true result in input order; items after it are withdrawn.
-- Equals: for i, item in ipairs(data) do local r = f(item, i) if r then return i, r end end
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return integer? index  nil where there is none
---@return any result
function M.find(f, data_, opts)
  return run.plainly(run.find(begin, run.call(core.MAP, f, data_, opts)))
end

--- Folds the results of `f` by `reduce`, which must be associative.
-- Equals: for i, item in ipairs(data) do acc = i == 1 and f(item, i) or reduce(acc, f(item, i)) end
-- Workers fold blocks whose bounds depend on the data alone (512 of 1 item, 512 of 2, 512 of 4,
-- ...), the caller folds the blocks in input order: the same bits for any number of workers. A
-- block that a crash takes along runs again whole; an item's error costs its block, and `timeout`
-- holds for a block.
---@param f fun(item: any, index: integer): any
---@param reduce fun(acc: any, result: any): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return any value  nil where there is no data
---@return plua.Error[]? errors  under on_error = "collect": of the blocks left out, if any
function M.mapreduce(f, reduce, data_, opts)
  run.check_function(reduce, "reduce", data_)
  local call <const> = run.call(core.FOLD, f, data_, opts)
  call.reduce = reduce
  return run.plainly(run.fold(begin, call))
end

return M
