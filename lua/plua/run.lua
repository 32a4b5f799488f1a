--- What a call does: check its arguments, submit, take outcomes in, hand them over.
-- Keeps true: each item's outcome reaches the caller once, in input order where that is promised;
-- a call that ends by an error leaves nothing running. Knows plua.core, data and errors; whether
-- workers were forked for the call or live already is the affair of 'begin', which a call is given.
-- SPDX-License-Identifier: MIT

local core <const> = require("plua.core")
local data <const> = require("plua.data")
local errors <const> = require("plua.errors")
local options <const> = require("plua.options")
local weight <const> = require("plua.weight")

local M <const> = {}

---@class plua.Call
---@field mode integer   core.MAP, ...
---@field keep integer   core.LIST, ...
---@field f function
---@field reduce? function
---@field source plua.Source
---@field opts table
---@field window? boolean  items are given as results are taken
---@field order? userdata   in which the items are given out; nil: their own

--- Raises unless f is a function.
---@param f any
---@param name string
---@param follows any  the argument behind it: a function there was meant to be f
---@param level? integer  where the error points to; default: the caller's caller
function M.check_function(f, name, follows, level)
  if type(f) == "function" then return end
  local remedy <const> = type(follows) == "function" and ": data comes after the functions" or ""
  error(("%s must be a function, not %s%s"):format(name, type(f), remedy), level or 3)
end

--- Answers what it is given. A call among its arguments is no tail call, so that messages find the
--- function that the script has called.
function M.plainly(...) return ... end

--- The call that a public function makes of its arguments. What is wrong with them is raised at
--- the caller of that function.
---@param mode integer  core.MAP, ...
---@param f any
---@param data_ any
---@param opts any
---@param base? table  the pool's own options, where the call is one on a pool
---@param keep? integer  core.ORDER or core.QUEUE of streams
---@return plua.Call
function M.call(mode, f, data_, opts, base, keep)
  M.check_function(f, "f", data_, 4)
  return {
    mode = mode, keep = keep, f = f,
    source = data.source(data_, 4), opts = options.check(opts, base, 4),
  }
end

---@class plua.Session  to be closed
---@field handle userdata
---@field job userdata
---@field workers integer
---@field err? any  what a loop over it raises at its end
---@field more? boolean  of the list some is left to be given
---@field put_more fun(session)  gives more of it
---@field finish fun(session)  ends in peace what was begun for the call

local POLICY <const> = { raise = core.RAISE, collect = core.COLLECT }

-- Blocks that n items make: 512 of 1, 512 of 2, 512 of 4, ...
local function blocks(n)
  local count, size = 0, 1
  while n > 512 * size do
    n, count, size = n - 512 * size, count + 512, size * 2
  end
  return count + (n + size - 1) // size
end

--- How many positions a call has: blocks where it folds.
---@param call plua.Call
---@return integer
function M.positions(call)
  local n <const> = call.source.n or 0
  return call.mode == core.FOLD and blocks(n) or n
end

--- What handle:job takes, as far as every call has it.
---@param call plua.Call
---@return table
function M.spec(call)
  local opts <const>, source <const> = call.opts, call.source
  return options.set_retries(opts.retries, {
    mode = call.mode, keep = call.keep, total = source.n,
    policy = POLICY[opts.on_error or "raise"] or core.CALL,
    chunksize = call.order and 1 or math.tointeger(opts.chunksize) or 0, order = call.order,
    timeout = opts.timeout,
    data = source.list or source.range,
  })
end

--- The seed of a call: its option, or a draw from the caller's generator.
---@param opts table
---@return integer
function M.seed(opts) return opts.seed or core.draw() end

-- ---- calls that are ended ----------------------------------------------------------------------

--- How far the call came that has been ended because the process is told to stop.
---@class plua.Cut
---@field done integer   items (blocks where it folds) that are done; of a loop, that were taken
---@field more integer   of a loop: those done behind one that is not
---@field total? integer  nil where an iterator gives them
---@field unit string    "item" or "block"

---@type plua.Cut?
M.cut = nil

--- Notes how far a session's call came, if it is closed by an error while the process is told to
-- stop.
---@param session plua.Session
---@param err any
function M.note(session, err)
  local call <const>, job <const> = session.call, session.job
  local _ <const>, told <const> = core.stopping()
  if err == nil or not told or not (call and job) then return end
  local _, _, _, done <const>, taken <const> = job:state()
  local streamed <const> = call.window
  M.cut = {
    done = streamed and taken or done, more = streamed and done - taken or 0,
    total = call.source.n and M.positions(call),
    unit = call.mode == core.FOLD and "block" or "item",
  }
end

-- ---- warnings ---------------------------------------------------------------------------------

local warned <const> = {}

-- What goes wrong without ending anything is told once by warn(), which is silent unless the script
-- or -W turned it on. The command shows what begins as these do.
core.warner(function(text)
  local what <const> = text:gsub("%d+", "")
  if warned[what] then return end
  warned[what] = true
  warn("plua: " .. errors.explained(text))
end)

-- ---- callbacks --------------------------------------------------------------------------------

local function report(err)
  local fine <const>, text <const> = pcall(tostring, err)
  io.stderr:write("plua: a callback failed: ",
    fine and text or "(error object whose __tostring fails)", "\n")
end

-- Failures that no get has raised yet: those of futures that are still there, one of all, and how
-- many there are. No future is kept, which would keep its pool.
local untold <const>, witness, failures = setmetatable({}, { __mode = "k" }), nil, 0

local function failure_of(future)
  if future.err ~= nil or not future.gather then return future.err end
  local _ <const>, err <const> = future.job:state()
  return err
end

local function note_failure(future)
  local err <const> = failure_of(future)
  if err == nil or future.told or untold[future] ~= nil then return end
  if errors.iserror(err) and err.kind == "cancelled" then return end
  untold[future], failures, witness = err, failures + 1, witness or err
end

--- The script knows, or will be told, whether the future has failed.
---@param future plua.Future
function M.told(future)
  future.told = true
  local err <const> = untold[future]
  if err == nil then return end
  untold[future], failures = nil, failures - 1
  if witness == err then witness = select(2, next(untold)) end
end

--- What is to be said, once, of futures that failed and that nobody asked.
---@return string? text  nil: nothing
function M.untold()
  if failures == 0 then return nil end
  local n <const> = failures
  failures = 0
  local what <const> = n == 1 and "1 call failed, and nobody asked its future" or
    ("%d calls failed, and nobody asked their futures"):format(n)
  if witness == nil then return what end -- its future has been asked, the others are gone
  return ("%s%s: %s"):format(what, n > 1 and "; one of them" or "", witness)
end

-- Where the program is not ours, that is said, if warnings are on, as its state is closed.
M.at_end = setmetatable({}, { __gc = function()
  local text <const> = not core.worker() and M.untold()
  if text then warn("plua: " .. text) end
end })

--- Whether an error is a Ctrl-C, or the like, that came in a function of the script's: no outcome
-- of that function, but for the call around it to raise. The program lua raises the same.
---@param err any
---@return boolean
function M.is_interrupt(err) return type(err) == "string" and err:find("interrupted!$") ~= nil end

-- Runs those callbacks of a future that have not begun.
local function call_back(future)
  local callbacks <const> = future.callbacks
  while callbacks and callbacks.begun < #callbacks do
    local fine <const>, err <const> = core.call_next(callbacks, future)
    if not fine and M.is_interrupt(err) then error(err, 0) end
    if not fine then report(err) end
  end
  future.callbacks = nil
end

-- Futures that are done, 'at' the one whose callbacks run. What an interrupt leaves, wherever it
-- comes, waits for another call.
local Due <const> = {}

function Due.__close(due, err)
  if err == nil then return end
  for i = due.at, #due.list do core.complete(due.list[i]) end
end

local function call_all()
  local due <close> = setmetatable({ list = {}, at = 1 }, Due)
  core.completed(due)
  for _, future in ipairs(due.list) do note_failure(future) end
  for i, future in ipairs(due.list) do
    due.at = i
    call_back(future)
  end
end

--- Runs the callbacks of futures that are done, unless a function of the script's called us.
function M.callbacks()
  while core.completed() do call_all() end
end

-- ---- lists ------------------------------------------------------------------------------------

-- The function that on_error is, on an error. What it raises ends the call.
local function ask(on_error, err)
  local fine <const>, value <const> = core.call(on_error, err)
  if not fine then error(value, 0) end
  return value
end

-- Failures that on_error was not asked about, as an interrupt came between.
local unasked <const> = setmetatable({}, { __mode = "k" })

--- Gives the job's failures so far to on_error, if that is a function.
---@param job userdata
---@param on_error any
function M.answer(job, on_error)
  if type(on_error) ~= "function" then return end
  local list <const> = unasked[job] or job:failed()
  unasked[job] = nil
  for at, index in ipairs(list) do
    local fine <const>, value <const> = core.call(on_error, job:results()[index])
    if not fine and M.is_interrupt(value) then
      unasked[job] = table.move(list, at, #list, 1, {})
    end
    if not fine then error(value, 0) end
    job:results()[index] = value -- maybe another table: on_error may have taken outcomes in
  end
end

--- Takes outcomes in until the job is over. Raises its error.
local function settle(session, on_error)
  local job <const>, handle <const> = session.job, session.handle
  repeat
    local settled = job:state()
    if not settled then
      local status <const> = handle:pump(job, nil, not session.more)
      M.answer(job, on_error)
      if session.more then session:put_more() end
      settled = job:state()
      if not settled and status ~= "ready" then error("plua: the pool ended under a call", 0) end
    end
  until settled
  M.answer(job, on_error)
end

--- How many failures were told because the command line wanted them collected.
M.failures = 0

local function tell_one(err)
  M.failures = M.failures + 1
  io.stdout:flush()
  io.stderr:write(tostring(err), "\n")
end

--- Tells of the failures among n outcomes, where not the script but the command line has asked for
-- them: the script may not look.
---@param opts table
---@param results table
---@param n integer
function M.tell(opts, results, n)
  if not opts.tell then return end
  for i = 1, n do
    if errors.iserror(results[i]) then tell_one(results[i]) end
  end
end

-- Runs the call to its end and answers the table of outcomes.
local function outcomes(begin, call)
  call.keep = core.LIST
  call.order = weight.order(call.opts.weight, call.source)
  local session <close> = begin(call)
  settle(session, call.opts.on_error)
  session:finish()
  local _ <const>, err <const> = session.job:state()
  M.callbacks()
  if err ~= nil then error(err, 0) end
  M.tell(call.opts, session.job:results(), M.positions(call))
  return session.job:results()
end

local function no_outcomes(call) return call.source.n == 0 end

---@alias plua.Begin fun(call: plua.Call): plua.Session

--- plua.map and plua.starmap.
---@param begin plua.Begin
---@param call plua.Call
---@return table
function M.list(begin, call)
  call.source = data.drained(call.source, call.mode == core.STAR)
  local results <const> = no_outcomes(call) and {} or outcomes(begin, call)
  results.n = call.source.n
  return results
end

--- plua.each: the number of items, and under "collect" the errors by item.
function M.each(begin, call)
  call.source = data.drained(call.source, false)
  local errs <const> = no_outcomes(call) and {} or outcomes(begin, call)
  if call.opts.on_error == "collect" then return call.source.n, errs end
  return call.source.n
end

--- plua.filter.
function M.filter(begin, call)
  call.source = data.drained(call.source, false)
  local source <const> = call.source
  local verdicts <const> = no_outcomes(call) and {} or outcomes(begin, call)
  local items <const>, kept, n = source.list or source.range, {}, 0
  for i = 1, source.n do
    local verdict <const> = verdicts[i]
    if verdict then
      n = n + 1
      kept[n] = errors.iserror(verdict) and verdict or items[i]
    end
  end
  kept.n = n
  return kept
end

--- plua.mapreduce.
function M.fold(begin, call)
  weight.never(call.opts.weight, "its blocks of items are the same whatever they cost")
  call.source = data.drained(call.source, false)
  if no_outcomes(call) then return nil end
  local parts <const>, on_error <const> = outcomes(begin, call), call.opts.on_error
  local acc, begun, errs
  for i = 1, M.positions(call) do
    local part <const> = parts[i]
    if on_error == "collect" and errors.iserror(part) then
      errs = errs or {}
      errs[#errs + 1] = part
    elseif not begun then
      acc, begun = part, true
    else
      acc = call.reduce(acc, part)
    end
  end
  if errs then return acc, errs end
  return acc
end

-- ---- streams ----------------------------------------------------------------------------------

local WINDOW <const> = 4096      -- items given and not taken, at most
local BYTES <const> = 4 << 20    -- of payloads and replies between the script and the workers

-- Gives workers more to do. Positions are free; items of an iterator are pulled and encoded.
local function refill(stream)
  local session <const>, source <const> = stream.session, stream.source
  if core.stopping() then -- nothing new may begin
    stream.ended = true
    session.job:stop()
    return
  end
  if source.iterator then
    local more <const>, what <const> =
      session.handle:feed(session.job, source.iterator, stream.window, BYTES)
    stream.slow = more and what
    if not more then stream.ended, stream.err = true, what end
    local _, _, given = session.job:state()
    stream.given = given
    return
  end
  local given <const> = math.min(source.n, stream.whole or stream.taken + stream.window)
  local more <const> = given - stream.given
  if more > 0 and session.put then session:put(stream.given + 1, given)
  elseif more > 0 then session.handle:extend(session.job, more) end
  stream.given = given
  if given == source.n then
    stream.ended = true
    session.job:close_input()
  end
end

-- The window grows with what the script has taken: who takes a few items has few computed. Large
-- replies, so many bytes each, keep it small: all of it may lie here while one item is slow.
local function top_up(stream, bytes)
  stream.slow = false
  if stream.ended or stream.given - stream.taken > stream.window // 2 then return end
  local least <const> = 2 * stream.workers
  local most <const> = math.max(least, math.min(WINDOW, BYTES // math.max(bytes, 1)))
  stream.window = math.min(most, least + 2 * stream.taken)
  refill(stream)
end

-- The stream is at its end: tells what ended it, once.
local function finish(stream)
  local session <const> = stream.session
  stream.session = nil
  session:finish()
  session:close()
  M.callbacks()
  local _ <const>, cut <const> = session.job:state() -- it was told to stop
  local err <const> = stream.err or session.err or cut
  if err ~= nil then error(err, 0) end
  return nil
end

local function deliver(stream, index, value, failed)
  if not failed then return index, value end
  local on_error <const> = stream.on_error
  if stream.tell then tell_one(value) end
  if on_error == "collect" then return index, value end
  if type(on_error) == "function" then return index, ask(on_error, value) end
  error(value, 0)
end

local function nothing() end
local before_waiting = nothing

--- Has f called before a stream waits for outcomes, or for data that is slow to come.
---@param f fun()
---@return table  to be closed: until then
function M.before_waiting(f)
  before_waiting = f
  return setmetatable({}, { __close = function() before_waiting = nothing end })
end

-- How many results can be taken before the window must be looked at again.
local function credit(stream) return stream.given - stream.taken - stream.window // 2 - 1 end

local function advance(stream)
  local session <const> = stream.session
  if not session then return nil end
  local job <const> = session.job
  while session.err == nil do
    if stream.slow then -- what has arrived does not wait for another pull
      session.handle:pump(job, 0)
      local index <const>, value <const>, failed <const> = job:take()
      if index then return deliver(stream, index, value, failed) end
      before_waiting()
    end
    local _, _, _, _, taken <const>, bytes <const> = job:state()
    stream.taken = taken
    top_up(stream, bytes) -- first, so that workers go on while the script uses what there is
    job:lend(stream.slow and 0 or credit(stream) - 1)
    local index <const>, value <const>, failed <const> = job:take()
    if index then return deliver(stream, index, value, failed) end
    if job:state() then return finish(stream) end
    if not stream.slow then
      before_waiting()
      session.handle:pump(job)
    end
  end
  return finish(stream)
end

--- plua.imap and plua.imap_unordered: what a generic for takes. 'call.keep' says the order.
function M.stream(begin, call)
  local opts <const>, source <const> = call.opts, call.source
  if source.iterator then
    weight.never(opts.weight, "an iterator gives its items one by one; pass a list")
  end
  call.window = true
  call.order = weight.order(opts.weight, source)
  local session <const> = begin(call)
  local stream <const> = {
    session = session, source = source, workers = math.max(session.workers, 1), window = 0,
    taken = 0, given = 0, ended = false, on_error = opts.on_error,
    tell = opts.tell,
    whole = call.order and call.keep == core.ORDER and source.n, -- the first may be begun last
  }
  return session.job:loop(function() return advance(stream) end), nil, nil, session
end

--- plua.find, over a stream in input order.
function M.find(begin, call)
  weight.never(call.opts.weight, "it looks for the first in the order of the input")
  call.keep = core.ORDER
  for index, result in M.stream(begin, call) do
    if result and not (errors.iserror(result) and call.opts.on_error == "collect") then
      return index, result
    end
  end
  return nil
end

return M
