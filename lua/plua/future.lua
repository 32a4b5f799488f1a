--- Futures: results that come later.
-- Keeps true: a future is done once; its callbacks run once, as the outermost call of plua returns.
-- A future of apply gets its outcome from the core: N and the values behind it, or 'err'. One of a
-- whole job ('gather') makes its own when the job is over. Knows plua.core, options and run; does
-- not know pools.
-- SPDX-License-Identifier: MIT

local core <const> = require("plua.core")
local options <const> = require("plua.options")
local run <const> = require("plua.run")

-- Looked up once: futures come by the thousand.
local getmetatable <const>, setmetatable <const> = getmetatable, setmetatable
local unpack <const> = table.unpack

local M <const> = {}

--- What apply_async, map_async and starmap_async of a pool answer. It makes progress, and callbacks
-- run, whenever the script is inside a call of plua.
---@class plua.Future
---@field package err? any    what get raises
---@field package job? userdata  of one that gathers
---@field package gather? fun(job: userdata): any  the value of a whole job
local Future <const> = { __name = "plua.Future" }
Future.__index = Future

-- What each has, in a list, which costs less than names: its pool's handle; the job and the item
-- that it is of it, false in one that gathers; how many values it has, false while it is not done;
-- then these. lib_pump.c gives them.
local HANDLE <const>, JOB <const>, INDEX <const>, N <const> = 1, 2, 3, 4

local function check(future)
  if getmetatable(future) ~= Future then
    error(("a future is wanted, not %s (call its methods with a colon)"):format(type(future)), 3)
  end
end

--- A future without an outcome yet.
---@param handle userdata
---@param gather? fun(job: userdata): any
---@return plua.Future
function M.new(handle, gather)
  local future <const> = setmetatable({ handle, false, false, false, false }, Future)
  if gather then future.gather = gather end
  return future
end

-- Gives the future its outcome; N, which says that it has one, last: an interrupt may come between.
local function conclude(future, err, ...)
  if future[N] then return end
  local n <const> = select("#", ...)
  future.err = err
  for i = 1, n do future[N + i] = (select(i, ...)) end
  if future.callbacks then core.complete(future) end
  future[N] = n
end

M.conclude = conclude

-- Why nothing can come any more; nil while something can.
local function hopeless(handle)
  local failure <const> = handle:failure()
  if failure ~= nil then return failure end
  local alive <const>, ended <const>, foreign <const> = handle:alive()
  if foreign then handle:stats() end -- raises whose it is
  if alive and not ended then return nil end
  if ended then return core.error { kind = "lost", message = "the pool ended before the call" } end
  return core.error { kind = "cancelled", message = "the pool was terminated" }
end

-- The job is over: its value is the future's, or what was raised on the way to it (by on_error). A
-- Ctrl-C there is nobody's outcome.
local function gather(future)
  local fine <const>, value <const> = pcall(future.gather, future.job)
  if fine then return conclude(future, nil, value) end
  if run.is_interrupt(value) then error(value, 0) end
  if value ~= nil then return conclude(future, value) end
  conclude(future, core.error { kind = "error", message = "on_error raised nil" })
end

-- Whether it has its outcome, as far as that has arrived.
local function done(future)
  if future[N] then return true end
  if future.gather then
    local settled <const>, err <const> = future.job:state()
    if settled and err ~= nil then conclude(future, err)
    elseif settled then gather(future) end
  end
  if not future[N] then
    local err <const> = hopeless(future[HANDLE])
    if err ~= nil then conclude(future, err) end
  end
  return future[N] ~= false
end

-- ---- waiting ----------------------------------------------------------------------------------

-- Takes in what arrives at one handle. A pool that has failed is told by its futures.
local function pump(handle, timeout)
  local fine <const>, err <const> = pcall(handle.pump, handle, nil, timeout)
  if not fine and handle:alive() and handle:failure() == nil then error(err, 0) end
  return fine and err == "ready"
end

--- Takes in what has arrived, and replaces workers that have died: what was submitted proceeds.
---@param handle userdata
function M.look(handle) pump(handle, 0) end

-- The handles of futures that are not done, each once.
local function handles_of(futures)
  local list, seen = {}, {}
  for _, future in ipairs(futures) do
    local handle <const> = future[HANDLE]
    if not done(future) and not seen[handle] then
      seen[handle] = true
      list[#list + 1] = handle
    end
  end
  return list
end

-- Until something has arrived for one of the futures, or so many seconds have passed.
local function advance(futures, timeout)
  local handles <const> = handles_of(futures)
  if #handles == 1 then
    pump(handles[1], timeout)
    return
  end
  local news = false
  for _, handle in ipairs(handles) do news = pump(handle, 0) or news end
  if not news and #handles > 0 then core.sleep(handles, timeout) end
end

-- Until enough(); false when time runs out.
local function wait_until(futures, timeout, enough)
  local ends <const> = timeout and core.now() + timeout
  while not enough() do
    local left <const> = ends and ends - core.now()
    if left and left <= 0 then
      advance(futures, 0)
      return enough()
    end
    advance(futures, left)
  end
  return true
end

--- Raises, at the caller's caller, unless it is a number of seconds or nil.
---@param timeout any
function M.check_timeout(timeout)
  if timeout ~= nil then options.check_number(timeout, "timeout must be a number of seconds", 4) end
end

local check_timeout <const> = M.check_timeout

local function raise_timeout(timeout)
  error(core.error {
    kind = "timeout", message = ("no result within %g seconds"):format(timeout),
  }, 0)
end

local function await(future, timeout)
  if future[N] then return end
  local one <const> = { future }
  if not wait_until(one, timeout, function() return done(future) end) then
    run.callbacks()
    raise_timeout(timeout)
  end
end

--- The results of the call; what it raised is raised. Takes part in the work of the pool meanwhile.
---@param timeout? number  seconds; beyond them an error of kind "timeout" is raised
---@return any ...  what the function returned; of map_async and starmap_async, the list
function Future:get(timeout)
  check(self)
  if timeout ~= nil then check_timeout(timeout) end
  if not self[N] then await(self, timeout) end
  run.callbacks()
  if self.err ~= nil then
    run.told(self)
    error(self.err, 0)
  end
  if self[N] == 1 then return self[N + 1] end
  return unpack(self, N + 1, N + self[N])
end

--- Waits until the future is done, whatever its outcome.
---@param timeout? number  seconds; beyond them an error of kind "timeout" is raised
function Future:wait(timeout)
  check(self)
  check_timeout(timeout)
  await(self, timeout)
  run.callbacks()
end

--- Whether it is done, by what has arrived until now. Never waits.
---@return boolean
function Future:ready()
  check(self)
  if not done(self) then pump(self[HANDLE], 0) end
  done(self)
  run.callbacks() -- which may end it too
  return self[N] ~= false
end

--- Whether it is done and has no error. Raises when it is not done.
---@return boolean
function Future:successful()
  check(self)
  if not self:ready() then error("the future is not done yet: wait for it, or ask ready()", 2) end
  if self.err ~= nil then run.told(self) end
  return self.err == nil
end

--- Takes the call back; where it runs, its worker is replaced.
---@return boolean cancelled  false: it was done before
function Future:cancel()
  check(self)
  if self:ready() then return false end
  local job <const>, index <const> = self[JOB] or self.job, self[INDEX]
  job:cancel(index or nil)
  if index then job:results()[index + 1] = nil end
  conclude(self, core.error { kind = "cancelled", message = "the call was cancelled" })
  run.callbacks()
  return true
end

--- Calls fn(future) once it is done, as the outermost call of plua returns. What fn raises is told
-- on stderr and harms nothing.
---@param fn fun(future: plua.Future)
function Future:add_done_callback(fn)
  check(self)
  if type(fn) ~= "function" then
    error(("a callback must be a function, not %s"):format(type(fn)), 2)
  end
  local list <const> = self.callbacks or { begun = 0 }
  list[#list + 1] = fn
  self.callbacks = list
  run.told(self)
  if self[N] then core.complete(self) end
  run.callbacks()
end

-- ---- several ----------------------------------------------------------------------------------

-- The futures of a list, each once.
local function check_futures(futures)
  if type(futures) ~= "table" or getmetatable(futures) == Future then
    local what <const> = type(futures) == "table" and "one future" or type(futures)
    error(("a list of futures is wanted, not %s"):format(what), 3)
  end
  local list, seen, n = {}, {}, 0
  for i, future in ipairs(futures) do
    n = i
    if getmetatable(future) ~= Future then
      error(("futures[%d] is no future but %s"):format(i, type(future)), 3)
    end
    if not seen[future] then
      seen[future] = true
      list[#list + 1] = future
    end
  end
  for key in next, futures do
    if key ~= "n" and not (math.type(key) == "integer" and key >= 1 and key <= n) then
      error(("futures has the key %s: a list of futures 1, 2, ... without holes is wanted"):format(
        type(key) == "string" and ("%q"):format(key) or tostring(key)), 3)
    end
  end
  return list
end

local function read_options(opts, ...)
  if opts == nil then return {} end
  if type(opts) ~= "table" then
    error(("options must be a table, not %s"):format(type(opts)), 3)
  end
  local names <const> = { ... }
  for name in next, opts do
    if name ~= options.nearest(name, names) then
      error(("unknown option '%s'; %s"):format(tostring(name), options.hint(name, names)), 3)
    end
  end
  return opts
end

local ENOUGH <const> = {
  all = function(count, all) return count == all end,
  first = function(count, all) return count > 0 or all == 0 end,
  error = function(count, all, failed) return failed > 0 or count == all end,
}

--- Waits for futures, of one pool or of several.
---@param futures plua.Future[]
---@param opts? { when?: "all"|"first"|"error", timeout?: number }  "all" is the default
---@return plua.Future[] done  whatever their outcome, in the order given
---@return plua.Future[] pending  the others; some, where time ran out
function M.wait(futures, opts)
  futures = check_futures(futures)
  opts = read_options(opts, "when", "timeout")
  check_timeout(opts.timeout)
  local enough <const> = ENOUGH[opts.when or "all"]
  if not enough then
    error(("option 'when' must be \"all\", \"first\" or \"error\", not %s")
      :format(tostring(opts.when)), 2)
  end
  wait_until(futures, opts.timeout, function()
    local count, failed = 0, 0
    for _, future in ipairs(futures) do
      if done(future) then
        count = count + 1
        if future.err ~= nil then failed = failed + 1 end
      end
    end
    return enough(count, #futures, failed)
  end)
  local finished, pending = {}, {}
  for _, future in ipairs(futures) do
    local list <const> = done(future) and finished or pending
    list[#list + 1] = future
  end
  run.callbacks()
  return finished, pending
end

--- Futures as they are done: for future in plua.as_completed(futures) do ... end
---@param futures plua.Future[]
---@param opts? { timeout?: number }  seconds for all; beyond them kind "timeout" is raised
---@return fun(): plua.Future?
function M.as_completed(futures, opts)
  futures = check_futures(futures)
  opts = read_options(opts, "timeout")
  check_timeout(opts.timeout)
  local ends <const> = opts.timeout and core.now() + opts.timeout
  local pending, ready, at = futures, {}, 0
  local function sort()
    local rest <const> = {}
    for _, future in ipairs(pending) do
      local list <const> = done(future) and ready or rest
      list[#list + 1] = future
    end
    pending = rest
    return at < #ready or #pending == 0
  end
  return function()
    if at == #ready then
      at, ready = 0, {}
      local fine <const> = wait_until(pending, ends and math.max(0, ends - core.now()), sort)
      run.callbacks()
      if not fine then raise_timeout(opts.timeout) end
    end
    at = at + 1
    return ready[at]
  end
end

return M
