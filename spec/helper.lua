-- What every spec may use: start programs under a time limit, wait for events, make files that go
-- away, and find out what a spec has left behind. Knows processes and files, not what plua does.
-- SPDX-License-Identifier: MIT

local lfs <const> = require "lfs"
local system <const> = require "system"

local helper = {}

local root <const> = lfs.currentdir()
local function absolute(path) return path:sub(1, 1) == "/" and path or root .. "/" .. path end
local function quote(s) return "'" .. tostring(s):gsub("'", "'\\''") .. "'" end

helper.root = root
helper.quote = quote
helper.build = absolute(os.getenv("PLUA_BUILD") or "build")
-- A sanitizer, or none; either it or the counting of lines makes programs some ten times slower.
helper.slow = (os.getenv("PLUA_SAN") or "") ~= ""
helper.san = (os.getenv("PLUA_SAN") or ""):gsub("^coverage$", "")
helper.failpoints = os.getenv("PLUA_FAILPOINTS") == "1"
helper.plua = helper.build .. "/plua"

local lua <const> = os.getenv("PLUA_LUA") or "lua5.4"
local preload <const> = os.getenv("PLUA_PRELOAD") or ""
local lua_path <const> = root .. "/lua/?.lua;" .. root .. "/lua/?/init.lua;"
local kit_path <const> = helper.build .. "/kit/?.so;"
local lua_cpath <const> = helper.build .. "/lua/?.so;" .. kit_path

-- A command prefix: the stock interpreter, with the build's modules on its paths.
helper.lua = table.concat({
  "env", "LUA_PATH=" .. quote(lua_path .. ";"), "LUA_CPATH=" .. quote(lua_cpath .. ";"),
  preload ~= "" and "LD_PRELOAD=" .. quote(preload) or "", lua,
}, " ")

package.path = lua_path .. package.path
package.cpath = lua_cpath .. package.cpath

-- ---- files that go away ------------------------------------------------------------------------

local found <const>, kit <const> = pcall(require, "crashkit")
if not found then error("spec/kit is not built: run 'make kit' first\n" .. kit, 0) end
-- The sanitizer's runtime is for this process, not for the shells that it starts.
kit.setenv("LD_PRELOAD")
kit.setenv("ASAN_OPTIONS", os.getenv("PLUA_ASAN_OPTIONS"))
-- Short, whatever the variant: Lua cuts long names of chunks in messages.
local place <const> = ("%s/build/tmp/%d"):format(root, kit.pid())
local serial = 0
local made = {}

local function make_dir(path)
  local sofar = ""
  for part in path:gmatch("/[^/]+") do
    sofar = sofar .. part
    lfs.mkdir(sofar)
  end
  assert(lfs.attributes(path, "mode") == "directory", path .. ": cannot be made")
end

local function names(dir)
  local list = {}
  if not lfs.attributes(dir, "mode") then return list end
  for name in lfs.dir(dir) do
    if name ~= "." and name ~= ".." then list[#list + 1] = name end
  end
  table.sort(list)
  return list
end

local function remove_tree(path)
  if lfs.symlinkattributes(path, "mode") == "directory" then
    for _, name in ipairs(names(path)) do remove_tree(path .. "/" .. name) end
    lfs.rmdir(path)
  else
    os.remove(path)
  end
end

local function write(path, text)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(text))
end

local function read(path)
  local file <close> = io.open(path, "rb")
  return file and file:read("a") or nil
end

helper.read = read
helper.write = write

--- A fresh directory below the build directory, removed after the spec.
---@return string path
function helper.tmp()
  serial = serial + 1
  local path <const> = ("%s/%d"):format(place, serial)
  make_dir(path)
  made[#made + 1] = path
  return path
end

--- A file that holds `text`, removed after the spec.
---@param text string
---@param name? string  the file's name; default script.lua
---@return string path
function helper.script(text, name)
  local path <const> = helper.tmp() .. "/" .. (name or "script.lua")
  write(path, text)
  return path
end

local function remove_made()
  for i = #made, 1, -1 do
    remove_tree(made[i])
    made[i] = nil
  end
  lfs.rmdir(place)
end

-- ---- processes ---------------------------------------------------------------------------------

-- Not inherited by what a spec starts: they would change what it measures.
local unset <const> = "unset PLUA_WORKERS PLUA_FAIL PLUA_PROC_ROOT PLUA_SYS_ROOT " ..
  "LUA_INIT LUA_INIT_5_4 LUA_PATH LUA_PATH_5_4 LUA_CPATH_5_4 PLUA_TALLY MAKEFLAGS MAKELEVEL\n"

local function environment(env)
  local lines = { unset, "export LUA_CPATH=", quote(kit_path .. ";"), "\n" }
  for name, value in pairs(env or {}) do
    lines[#lines + 1] = value and ("export %s=%s\n"):format(name, quote(value)) or
      ("unset %s\n"):format(name)
  end
  return table.concat(lines)
end

-- GCC's two runtimes do not share a log: what the one for undefined behaviour says is on stderr.
local function keep_report(cmdline, err)
  local report <const> = err:match("[^\n]*%.[ch]:%d+:%d+: runtime error: .*")
  if not report or helper.san == "" then return end
  serial = serial + 1
  write(("%s/san/stderr.%d.%d"):format(helper.build, kit.pid(), serial), cmdline .. "\n" .. report)
end

-- bash, since it becomes a lone command instead of waiting for it: a death by signal stays one.
-- The group that `timeout` makes is recorded by the first process in it, and ended with all that is
-- still in it once the command has ended.
local function launch(dir, cmdline, timeout)
  write(dir .. "/group.sh", "echo $PPID >" .. quote(dir .. "/group") .. "\n. " ..
    quote(dir .. "/env.sh") .. "\nexec bash -c " .. quote(cmdline) .. "\n")
  local _, how, code = os.execute(("exec timeout -k 2 %s sh %s <%s >%s 2>%s"):format(
    timeout, quote(dir .. "/group.sh"), quote(dir .. "/in"), quote(dir .. "/out"),
    quote(dir .. "/err")))
  local group <const> = math.tointeger(tonumber(read(dir .. "/group")))
  if group then kit.kill(-group, 9) end
  return how, code
end

--- Runs a shell command line in a process group of its own that is ended afterwards.
---@param cmdline string
---@param opts? {stdin?: string, env?: table<string, string|false>, timeout?: number}
---@return {status: integer, signal?: integer, out: string, err: string, timedout: boolean} result
---   status is 128 + signal where a signal ended it
function helper.run(cmdline, opts)
  opts = opts or {}
  local dir <const> = helper.tmp()
  write(dir .. "/in", opts.stdin or "")
  write(dir .. "/env.sh", environment(opts.env))
  local how <const>, code <const> = launch(dir, cmdline, opts.timeout or 60)
  local result <const> = {
    status = how == "signal" and 128 + code or code,
    signal = how == "signal" and code or nil,
    timedout = how == "exit" and code == 124,
    out = read(dir .. "/out"),
    err = read(dir .. "/err"),
  }
  keep_report(cmdline, result.err)
  remove_tree(dir)
  return result
end

--- The children of a process, zombies included.
---@param pid? integer  default: this process
---@return integer[] pids
function helper.children(pid)
  return kit.children(pid or kit.pid())
end

--- Whether a process lives; a zombie does not.
---@param pid integer
---@return boolean
function helper.alive(pid)
  local stat <const> = read("/proc/" .. pid .. "/stat")
  local state <const> = stat and stat:match("%) (%a)")
  return state ~= nil and state ~= "Z" and state ~= "X"
end

--- Asks `fn` until it answers something true, for at most `seconds` (default 10).
---@return any answer  of fn; nil when time ran out
function helper.wait(fn, seconds)
  local limit <const> = kit.now() + (seconds or 10)
  repeat
    local answer <const> = fn()
    if answer then return answer end
    system.sleep(0.005)
  until kit.now() > limit
end

-- ---- data, and whether a pool lives ------------------------------------------------------------

--- The list 1 .. n.
function helper.numbers(n)
  local list <const> = {}
  for i = 1, n do list[i] = i end
  return list
end

--- An iterator over 1 .. n.
function helper.counter(n)
  local i = 0
  return function()
    i = i + 1
    if i <= n then return i end
  end
end

local KINDS <const> = {
  0.5, -0.0, 1 / 0, 0, 1, 127, 128, -1, -128, -129, 32767, 32768, -32769, 1 << 31, -1 << 31,
  (1 << 31) - 1, (-1 << 31) - 1, math.maxinteger, math.mininteger, true, false, "", "short",
  ("long"):rep(100), 2.0, n = 26, -- the last one is nil
}

--- The i-th of many plain values: each kind by itself, then in stretches.
function helper.kind(i)
  local stretch <const> = i < 6000 and 1 or i < 12000 and 7 or 700
  return KINDS[i // stretch % KINDS.n + 1]
end

--- Raises if a list does not hold the first n of them.
function helper.check_kinds(list, n)
  for i = 1, n do
    local want <const>, got <const> = helper.kind(i), list[i]
    if want ~= got or math.type(want) ~= math.type(got) or want == 0 and 1 / want ~= 1 / got then
      error(("value %d is %s and not %s"):format(i, got, want))
    end
  end
end

--- Fails unless the pool answers a call.
function helper.answers(pool)
  local list <const> = pool:map(function(x) return x + 1 end, helper.numbers(100))
  for i = 1, 100 do assert(list[i] == i + 1, "a wrong answer") end
end

-- ---- control groups ----------------------------------------------------------------------------

local function can_make(dir)
  local probe <const> = ("%s/plua-probe-%d"):format(dir, kit.pid())
  return lfs.mkdir(probe) and lfs.rmdir(probe) and dir
end

--- Where control groups that limit memory can be made; nil where they cannot.
---@return {dir: string, limit: string}?
function helper.memory_groups()
  local v1 <const>, v2 <const> = "/sys/fs/cgroup/memory", "/sys/fs/cgroup"
  if lfs.attributes(v1 .. "/memory.limit_in_bytes", "mode") and can_make(v1) then
    return { dir = v1, limit = "memory.limit_in_bytes" }
  end
  local controllers <const> = read(v2 .. "/cgroup.subtree_control")
  if controllers and controllers:find("memory") and can_make(v2) then
    return { dir = v2, limit = "memory.max" }
  end
end

--- Where control groups that freeze what is in them can be made; nil where they cannot.
---@return string?
function helper.freezer_groups()
  local dir <const> = "/sys/fs/cgroup/freezer"
  return lfs.attributes(dir, "mode") == "directory" and can_make(dir) or nil
end

--- A control group of its own below `dir`, to be closed: a process joins it by writing its number
--- into the file `procs`.
---@return {path: string, procs: string}
function helper.group(dir)
  serial = serial + 1
  local path <const> = ("%s/plua-spec-%d-%d"):format(dir, kit.pid(), serial)
  assert(lfs.mkdir(path))
  return setmetatable({ path = path, procs = path .. "/cgroup.procs" }, {
    __close = function() -- what ran there may still be on its way out
      assert(helper.wait(function() return lfs.rmdir(path) end), path .. ": cannot be removed")
    end,
  })
end

--- One that limits memory to `bytes`.
function helper.memory_group(groups, bytes)
  local group <const> = helper.group(groups.dir)
  write(group.path .. "/" .. groups.limit, tostring(bytes))
  return group
end

-- ---- what a spec leaves behind -----------------------------------------------------------------

local function descriptors()
  local set = {}
  for _, fd in ipairs(kit.fds()) do
    set[("descriptor %d -> %s"):format(fd,
      lfs.symlinkattributes("/proc/self/fd/" .. fd, "target") or "?")] = true
  end
  return set
end

local function add_files(set, dir, pattern)
  for _, name in ipairs(names(dir)) do
    if name:find(pattern) then set["file " .. dir .. "/" .. name] = true end
  end
end

local function snapshot()
  local set = descriptors()
  for _, pid in ipairs(kit.children()) do
    local stat <const> = read("/proc/" .. pid .. "/stat") or ""
    set[("child %d %s"):format(pid, stat:match("%b()") or "")] = true
  end
  add_files(set, "/dev/shm", "")
  add_files(set, "/tmp", "plua")
  add_files(set, place, "")
  return set
end

local function leaked(before)
  collectgarbage()
  collectgarbage()
  local list = {}
  for what in pairs(snapshot()) do
    if not before[what] then list[#list + 1] = what end
  end
  table.sort(list)
  return list
end

--- Installs checks around each spec of the block that calls it: no descriptor, child (zombies too),
--- shared memory or temporary file is left over.
function helper.guard()
  local busted <const> = require "busted"
  local before, name
  busted.subscribe({ "test", "start" }, function(element)
    name = element.name
    return nil, true
  end)
  busted.before_each(function()
    remove_made()
    collectgarbage()
    collectgarbage()
    before = snapshot()
  end)
  busted.after_each(function()
    remove_made()
    -- What other programs on this machine make in the shared places vanishes by itself.
    local list
    helper.wait(function()
      list = leaked(before)
      return #list == 0
    end, 2)
    if #list == 0 then return end
    error(("left behind by '%s': %s"):format(name, table.concat(list, ", ")), 0)
  end)
end

-- Where no guard watches, files go when the specs have ended.
do
  local there <const>, busted <const> = pcall(require, "busted")
  if there and busted.subscribe then
    busted.subscribe({ "suite", "end" }, function()
      remove_made()
      return nil, true
    end)
  end
end

return helper
