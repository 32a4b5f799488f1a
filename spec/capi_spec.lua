-- The C interface as hosts use it: each case is one run of a small C program that knows plua.h
-- only, checks what it sees, and looks for children and descriptors left behind.
-- SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"

-- What a case proves; its name is the program's argument. Limits on memory and descriptors are not
-- for sanitized programs, which need more of both than any limit leaves.
local programs <const> = {
  host_jobs = {
    title = "jobs",
    cubes = "runs positions with any number of workers and any chunk size",
    two_pools = "runs two pools at once",
    many_jobs = "tells the outcomes of many jobs apart",
    extend = "takes items while others run",
    run_many = "hands items to run_many, where a host has it, whatever they do",
    runs = "tells results in runs, each once, though workers die between them",
    result_sizes = "brings replies of every size near the bounds of the ring",
    result_10mb = "brings replies of 10 MB beside small ones",
    result_100mb = "brings replies of 100 MB",
    result_small_area = { "brings replies where a worker's area is small", limits = true },
    payload_sizes = "sends payloads of every size",
    payload_memory = "gives payload memory back as outcomes are released",
    put_on_positions = "refuses payloads in a job of positions, and positions in one of payloads",
    put_drop = "forgets a payload that is dropped",
    put_runs = "takes runs of small payloads, as many as have room",
    forget = "forgets a job in the middle, with its memory",
    forget_told = "tells nothing of a forgotten job, its cancelled items included",
  },
  host_pool = {
    title = "pools",
    bad_arguments = "refuse bad arguments",
    too_many_items = "refuse more items than they count",
    strerrors = "have a text for every code",
    inert_in_child = "are inert in a child that the host forks",
    many_pools = "can be opened and closed 500 times without growth",
    close_in_full_run = "leave nothing when they are closed in full run",
    boot_fails = "report why a worker cannot start",
    boot_dies = "fail after three workers that died at boot",
    guard_returns = "fail when the guard does not run the body",
    ready_once = "make what workers have in common once in each spare",
    spare_descriptors = "give workers none of the descriptors of spares",
    shutdown = "end in peace, each worker leaving once",
    shutdown_twice = "tell each end where a job gets items after one",
    shutdown_stopped = "end in peace though a worker that rests is stopped",
    max_tasks = "replace a worker after its number of items",
    resize = "grow and shrink",
    resize_in_run = "grow and shrink in the middle of a job",
    few_descriptors = { "work with fewer workers where descriptors are few", limits = true },
    few_descriptors_spares = { "start no second spare in place of the only worker", limits = true },
    no_descriptors = { "say that there are no descriptors", limits = true },
    file_size_limit = { "outlive a limit on the size of files", limits = true },
    locked_memory = { "take no memory ahead in a host that locks all of it", limits = true },
    privileges_dropped = "end with a host that may not kill them any more",
    threads = { "refuse to fork a process that has threads, and say so", limits = true },
    closed_stdio = { "take the place of no closed standard stream", limits = true },
    signals_untouched = "leave signals, handlers and mask as they are",
  },
  host_death = {
    title = "deaths of workers",
    crashes = "cost the item that was run, a hundred times among a thousand",
    crashes_one_worker = "are survived by a pool of one",
    crashes_many_workers = "are survived by a pool of nine",
    crashes_spare = "are made good from the spare",
    sigchld_ignored = "are seen by a host that ignores SIGCHLD",
    sigchld_taken = "are seen by a host that waits for all children itself",
    both_die = "at the same moment are charged each to its own item",
    kills = "by kill -9 at any moment lose no result",
    exits = "by exit are outcomes, and run no exit handler of the host",
    item_forks = "do not come from items that fork",
    scribbled_zeros = "by zeros over all shared memory end in outcomes",
    scribbled_ones = "by ones over all shared memory end in outcomes",
    scribbled_7f = "by other bytes over all shared memory end in outcomes",
    items_close_fds = "by closed descriptors lose no result",
    crash_retries = "are tried again as often as was asked",
    retries_by_kind = "have retries of their own by kind: crashes, errors, timeouts, kills",
    retries_of_old_hosts = "killed by others are crashes to a host that knows no other name",
    error_retries = "are one thing, errors another: these have retries of their own",
    elapsed = "aside: a failed item's time is its own",
  },
  host_cancel = {
    title = "cancelling and waiting",
    cancel_waiting = "takes back what waits, wherever it lies",
    kill_one_worker = "kills what runs in the only worker, its neighbours unharmed",
    kill_chunks = "kills what runs inside a batch, its neighbours unharmed",
    kill_spare = "kills what runs and replaces the worker from the spare",
    kill_unheard = "kills what runs though nothing was heard of it yet",
    kill_failed = "has nothing tried again that has begun",
    kill_range = "kills a range silently",
    kill_at_random = "gives one outcome each, however late it comes",
    cancelled_payloads = "frees the payloads",
    poll_loop = "works from the host's own poll loop",
    poll_deaths = "wakes the host's poll loop at deaths",
    signal_storm = "goes on in a storm of signals",
    wait_times_out = "ends a wait at its time",
    far_times = "takes times that never come for no limit",
  },
}

local function add(program, case, what)
  local limits <const> = type(what) == "table" and what.limits
  if limits and helper.san ~= "" then return end
  it(type(what) == "table" and what[1] or what, function()
    local command <const> = ("%s/host/%s %s"):format(helper.build, program, case)
    local result <const> = helper.run(command, { timeout = 100 })
    assert.equal(0, result.status, command .. ": " .. result.err)
    if case ~= "closed_stdio" then assert.equal("ok\n", result.out) end
  end)
end

for program, cases in pairs(programs) do
  describe("C hosts: " .. cases.title, function()
    helper.guard()

    for case, what in pairs(cases) do
      if case ~= "title" then add(program, case, what) end
    end

    it("has every case of the program in this list", function()
      local usage <const> = helper.run(helper.build .. "/host/" .. program).err
      for case in usage:gmatch("\n  ([%w_]+)") do assert.truthy(cases[case], case) end
    end)
  end)
end
