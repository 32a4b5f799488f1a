--- Pools: workers that live, with the state that they found when the pool was made.
-- Keeps true: functions and items are sent; what was submitted has an outcome, also when the pool
-- ends before it. Knows plua.core, run, options, data and future; does not know one-shot calls.
-- SPDX-License-Identifier: MIT

local core <const> = require("plua.core")
local data <const> = require("plua.data")
local future <const> = require("plua.future")
local errors <const> = require("plua.errors")
local options <const> = require("plua.options")
local run <const> = require("plua.run")
local weight <const> = require("plua.weight")

local getmetatable <const>, type <const> = getmetatable, type

local M <const> = {}

--- A to-be-closed value: `local pool <close> = plua.pool()`. Left normally, it finishes what was
-- submitted; left by an error, or collected, it terminates. Methods are called with a colon.
---@class plua.Pool
---@field package handle userdata
---@field package opts table
---@field package state "open"|"closed"|"terminated"
---@field package calls integer  calls so far that used the pool's own seed
---@field package streams table  sessions of loops that go on, which may give workers more to do
local Pool <const> = { __name = "plua.Pool" }
Pool.__index = Pool

local GOLDEN <const> = 0x9E3779B97F4A7C15

local function check(pool)
  if getmetatable(pool) ~= Pool then
    error(("a pool is wanted, not %s (call its methods with a colon)"):format(type(pool)), 3)
  end
  if pool.state == "open" then return end
  if pool.state == "closed" then error("the pool is closed: it takes no more work", 3) end
  error("the pool is terminated: it takes no more work", 3)
end

-- ---- calls over data --------------------------------------------------------------------------

local Session <const> = {}
Session.__index = Session

-- Workers leave once nothing more can come.
local function wind_up(pool)
  if pool.state == "closed" and next(pool.streams) == nil and pool.handle:alive() then
    pool.handle:shutdown()
  end
end

function Session.finish() end

function Session:close()
  local pool <const> = self.pool
  if self.job and self.handle:alive() then self.job:forget() end
  if not pool.streams[self] then return end
  pool.streams[self] = nil
  wind_up(pool)
end

-- As a one-shot call's: nothing is held until the finaliser has run.
function Session:__close(err)
  run.note(self, err)
  self:close()
  if not self.call.window then self.job, self.call, self.list = nil, nil, nil end
end

Session.__gc = Session.close

-- A call without a seed of its own draws one; under the pool's seed each call gets the next.
local function seed_of(pool, opts)
  if opts.seeded or not opts.seed then return run.seed(opts) end
  pool.calls = pool.calls + 1
  return opts.seed + (pool.calls - 1) * GOLDEN
end

local function complete(spec, call, pool)
  local source <const> = call.source
  spec.f, spec.reduce, spec.seed = call.f, call.reduce, seed_of(pool, call.opts)
  spec.source, spec.open = core.FROM_BYTES, true
  if call.order then
    spec.source = core.FROM_PLACED
  elseif source.range then
    spec.source, spec.range = core.FROM_RANGE, { source.range.first, source.range.step }
  end
  return spec
end

-- Numbers that are given out in another order are sent one by one.
local function unrolled(range)
  local list <const> = {}
  for i = 1, range.n do list[i] = range[i] end
  return list
end

-- Items of a list, encoded as a stream wants them.
local function put_slice(session, first, last)
  local list <const> = session.list
  session.handle:put_some(session.job, list, first, last)
end

-- Items of a list that a call waits for. What lies between script and workers stays bounded.
function Session:put_more()
  local few <const> = 2 * self.workers + 2
  self.more = self.handle:put(self.job, self.list, self.list_n, few)
end

local function begin_on(pool)
  return function(call)
    local handle <const>, source <const> = pool.handle, call.source
    local spec <const> = complete(run.spec(call), call, pool)
    local job <const> = handle:job(spec)
    local list <const> = source.list or call.order and unrolled(source.range)
    local session <const> = setmetatable({
      handle = handle, job = job, workers = pool.workers, list = list, pool = pool,
      call = call, list_n = source.n,
    }, Session)
    if call.window then
      pool.streams[session] = true
      if list then session.put = put_slice end
    elseif list and call.at_once then
      handle:put(job, list, source.n)
    elseif list then
      session:put_more()
    else
      handle:extend(job, run.positions(call))
      job:close_input()
    end
    return session
  end
end

--- As plua.map, on the pool's workers.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return table results
function Pool:map(f, data_, opts)
  check(self)
  return (run.list(begin_on(self), run.call(core.MAP, f, data_, opts, self.opts)))
end

--- As plua.starmap, on the pool's workers.
---@param f fun(...): any
---@param data table|function
---@param opts? plua.Options
---@return table results
function Pool:starmap(f, data_, opts)
  check(self)
  return (run.list(begin_on(self), run.call(core.STAR, f, data_, opts, self.opts)))
end

--- As plua.imap, on the pool's workers, which outlive a loop that is left.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return fun(): integer?, any
function Pool:imap(f, data_, opts)
  check(self)
  local call <const> = run.call(core.MAP, f, data_, opts, self.opts, core.ORDER)
  return run.plainly(run.stream(begin_on(self), call))
end

--- As plua.imap_unordered, on the pool's workers.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return fun(): integer?, any
function Pool:imap_unordered(f, data_, opts)
  check(self)
  local call <const> = run.call(core.MAP, f, data_, opts, self.opts, core.QUEUE)
  return run.plainly(run.stream(begin_on(self), call))
end

--- As plua.each, on the pool's workers.
---@param f fun(item: any, index: integer)
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return integer n
---@return table? errors
function Pool:each(f, data_, opts)
  check(self)
  return run.plainly(run.each(begin_on(self), run.call(core.EACH, f, data_, opts, self.opts)))
end

--- As plua.filter, on the pool's workers.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return table items
function Pool:filter(f, data_, opts)
  check(self)
  return (run.filter(begin_on(self), run.call(core.FILTER, f, data_, opts, self.opts)))
end

--- As plua.find, on the pool's workers.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return integer? index
---@return any result
function Pool:find(f, data_, opts)
  check(self)
  return run.plainly(run.find(begin_on(self), run.call(core.MAP, f, data_, opts, self.opts)))
end

--- As plua.mapreduce, on the pool's workers.
---@param f fun(item: any, index: integer): any
---@param reduce fun(acc: any, result: any): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return any value
---@return plua.Error[]? errors
function Pool:mapreduce(f, reduce, data_, opts)
  check(self)
  run.check_function(reduce, "reduce", data_)
  local call <const> = run.call(core.FOLD, f, data_, opts, self.opts)
  call.reduce = reduce
  return run.plainly(run.fold(begin_on(self), call))
end

-- ---- calls that answer later ------------------------------------------------------------------

local function submit(pool, f, ...)
  local promise <const> = future.new(pool.handle)
  return promise, pool.handle:apply(pool.apply_spec, promise, f, ...)
end

-- f of pool:apply(f, ...): what pool:apply(f(...)) gives is none.
local function refuse_applied(f)
  error(("f must be a function, not %s: name it, its arguments follow, as in pool:apply(f, 1, 2)")
    :format(type(f)), 3)
end

--- Calls f(...) in a worker, and waits for it.
---@param f function
---@param ... any
---@return any ...  its results
function Pool:apply(f, ...)
  check(self)
  if type(f) ~= "function" then refuse_applied(f) end
  return run.plainly(submit(self, f, ...):get())
end

--- Calls f(...) in a worker. That it failed is told by the future; of one that nobody asks, as the
-- program ends: by the command, with status 1; elsewhere as a warning (lua5.4 -W).
---@param f function
---@param ... any
---@return plua.Future  of its results
function Pool:apply_async(f, ...)
  check(self)
  if type(f) ~= "function" then refuse_applied(f) end
  local handle <const> = self.handle
  local promise <const> = future.new(handle)
  if handle:apply(self.apply_spec, promise, f, ...) then future.look(handle) end
  return promise
end

local function map_async(pool, call)
  call.source = data.drained(call.source, call.mode == core.STAR)
  call.keep = core.LIST
  local n <const> = call.source.n
  local on_error <const> = call.opts.on_error
  local promise <const> = future.new(pool.handle, function(job)
    run.answer(job, on_error)
    local results <const> = job:results()
    run.tell(call.opts, results, n)
    results.n = n
    return results
  end)
  if n == 0 then
    future.conclude(promise, nil, { n = 0 })
    return promise
  end
  call.order = weight.order(call.opts.weight, call.source)
  call.at_once = true -- it proceeds while the script does something else
  local session <const> = setmetatable(begin_on(pool)(call), nil) -- the job outlives it
  promise.job = session.job
  promise.job:own(promise)
  if pool.workers > 0 then future.look(pool.handle) end
  return promise
end

--- As pool:map, but answers at once.
---@param f fun(item: any, index: integer): any
---@param data table|function|plua.Range
---@param opts? plua.Options
---@return plua.Future  of the list
function Pool:map_async(f, data_, opts)
  check(self)
  return (map_async(self, run.call(core.MAP, f, data_, opts, self.opts)))
end

--- As pool:starmap, but answers at once.
---@param f fun(...): any
---@param data table|function
---@param opts? plua.Options
---@return plua.Future  of the list
function Pool:starmap_async(f, data_, opts)
  check(self)
  return (map_async(self, run.call(core.STAR, f, data_, opts, self.opts)))
end

-- ---- life -------------------------------------------------------------------------------------

--- Takes no more work. What was submitted is done, loops that go on too, then workers leave.
function Pool:close()
  if self.state ~= "open" then return end
  self.state = "closed"
  wind_up(self)
end

-- Loops that go on get no more: their next step raises this.
local function end_streams(pool)
  for session in pairs(pool.streams) do
    session.err = "the pool ended while this loop went on: its other results are lost"
    session:close()
  end
end

-- The futures that wait for an outcome.
local function waiting(handle)
  local list <const> = {}
  for _, job in pairs(handle:jobs()) do
    local owner <const>, keep <const> = job:owner()
    if owner then list[#list + 1] = owner end
    if keep == core.FUTURES then
      for _, promise in pairs(job:results()) do list[#list + 1] = promise end
    end
  end
  return list
end

--- Ends the workers at once. Futures that have no outcome get an error of kind "cancelled".
function Pool:terminate()
  if self.state == "terminated" then return end
  local handle <const> = self.handle
  self:stats() -- raises where a call on the pool is under way
  self.state = "terminated"
  if not handle:alive() then return end
  local futures <const> = waiting(handle)
  handle:close()
  for _, promise in ipairs(futures) do
    future.conclude(promise,
      core.error { kind = "cancelled", message = "the pool was terminated" })
  end
  run.callbacks()
end

--- Waits until the workers of a closed pool have done everything and are gone. Raises what a
-- 'finish' raised. A loop over results that goes on is ended by that.
---@param timeout? number  seconds
---@return boolean gone  false: time ran out
function Pool:join(timeout)
  if self.state == "open" then error("close or terminate the pool before you join it", 2) end
  future.check_timeout(timeout)
  local handle <const> = self.handle
  local ends <const> = timeout and core.now() + timeout
  end_streams(self)
  while handle:alive() do
    local left <const> = ends and math.max(0, ends - core.now())
    local status <const> = handle:pump(nil, left)
    if status == "ended" then
      local err <const> = handle:left()
      self:stats()
      handle:close()
      run.callbacks()
      if err ~= nil then error(err, 0) end
    elseif status == "timeout" then
      run.callbacks()
      return false
    end
  end
  run.callbacks()
  return true
end

--- From now on so many workers. Those too many leave when they are idle. There is room for a good
-- many more than the pool began with; an error tells the limit.
---@param workers integer|string  as the option
function Pool:resize(workers)
  check(self)
  local given <const> = options.check({ workers = workers })
  local n <const> = options.team(given.workers)
  if n == 0 then error("a pool cannot be resized to 0 workers: make one with workers = 0", 2) end
  if self.workers == 0 then return end
  local fine <const>, message <const> = pcall(self.handle.resize, self.handle, n)
  if not fine then error((message:gsub("^.-plua: ", "")), 2) end
  self.workers = n
end

--- What the pool has done so far; of one that has ended, what it had done then. The fields:
-- `workers` wanted and `alive` now; items `submitted`, `done` (they have an outcome) and `retried`;
-- processes `started`, and `crashed` while running an item; `batches` of items sent, and
-- `taken_back` from slow workers; `bytes_in` sent to workers, `bytes_out` received.
---@return table<string, integer> stats
function Pool:stats()
  if not self.handle:alive() then return self.last or {} end
  self.last = self.handle:stats()
  return self.last
end

-- Left normally: finishes what was submitted. Left by an error: terminates.
function Pool:__close(err)
  if err ~= nil then return self:terminate() end
  self:close()
  if self.handle:alive() then self:join() end
end

function Pool:__tostring()
  return ("plua.Pool: %d workers, %s"):format(self.workers, self.state)
end

-- Inside an item a pool runs in the worker itself, unless it is to be nested.
local function team_size(opts)
  if core.inside() and not opts.nested then return 0, 1 end
  return options.team(opts.workers)
end

--- Workers that live until the pool is closed: local pool <close> = plua.pool { workers = 4 }
-- They see what was loaded when the pool was made; functions and items are sent to them. A pool
-- that is neither closed nor a <close> variable ends with its last reference, or with the script,
-- and what it has not done by then is dropped, with a warning.
---@param opts? plua.Options  those of calls are the defaults of calls on the pool
---@return plua.Pool
function M.open(opts)
  local given <const> = options.check(opts)
  if given.weight then error("option 'weight' is one of calls: it is about their items", 2) end
  local workers <const>, cores <const> = team_size(given)
  local fine <const>, handle <const> = pcall(core.open, {
    once = false, workers = workers, cores = cores, spare = true, seed = 0,
    memory = given.memory, max_rss = given.max_rss,
    max_tasks = given.max_tasks_per_child, init = given.init, finish = given.finish,
    grouped = given.output == "grouped",
  })
  if not fine then errors.not_opened(handle, workers) end
  local started <const>, why <const> = pcall(handle.start, handle)
  if not started then
    handle:close()
    error(why, 0)
  end
  return setmetatable({
    handle = handle, opts = given, workers = workers, state = "open", calls = 0,
    streams = setmetatable({}, { __mode = "k" }),
    apply_spec = options.set_retries(given.retries, {
      mode = core.APPLY, keep = core.FUTURES, policy = core.COLLECT, open = true,
      seed = given.seed and given.seed - GOLDEN or run.seed(given), timeout = given.timeout,
      chunksize = math.tointeger(given.chunksize) or 0,
    }),
  }, Pool)
end

return M
