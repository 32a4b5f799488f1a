-- How many cores a process may use: the rule of plua_cpus, tried on fake trees of /proc and /sys.
-- SPDX-License-Identifier: MIT
local helper <const> = require "spec.helper"
local cputest <const> = require "cputest"

local VARIABLES <const> = {
  "PLUA_WORKERS", "PLUA_PROC_ROOT", "PLUA_SYS_ROOT", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE",
  "SLURM_TASKS_PER_NODE", "SLURM_JOB_NUM_NODES", "SLURM_NNODES", "PBS_NUM_PPN", "NCPUS",
  "LSB_DJOB_NUMPROC", "NSLOTS", "PJM_VNODE_CORE", "OMP_THREAD_LIMIT",
}

--- Writes files below a fresh directory, with the directories that they need.
---@param files table<string, string>
---@return string root
local function tree(files)
  local root <const> = helper.tmp()
  local directories = {}
  for path in pairs(files) do
    directories[#directories + 1] = helper.quote(root .. "/" .. path:gsub("[^/]*$", ""))
  end
  assert(os.execute("mkdir -p " .. table.concat(directories, " ")))
  for path, text in pairs(files) do helper.write(root .. "/" .. path, text) end
  return root
end

--- Builds a machine of 64 CPUs, changed by what is given (false removes a file).
---@param machine {proc?: table, sys?: table, env?: table}
---@return string proc, string sys
local function fake(machine)
  local files <const> = {
    ["proc/self/status"] = "Name:\tplua\nCpus_allowed:\tff\nCpus_allowed_list:\t0-63\n",
    ["proc/self/cgroup"] = "0::/\n",
    ["proc/self/mountinfo"] = "22 1 0:20 / /proc rw - proc proc rw\n",
    ["sys/devices/system/cpu/online"] = "0-63\n",
  }
  for _, part in ipairs { "proc", "sys" } do
    for path, text in pairs(machine[part] or {}) do
      files[part .. "/" .. path] = text or nil
    end
  end
  local root <const> = tree(files)
  return root .. "/proc", root .. "/sys"
end

--- Sets the variables, asks, and answers the count, the source that decides and all by name.
local function ask(env)
  for name, value in pairs(env) do cputest.setenv(name, value) end
  local count <const>, sources <const> = cputest.cpus()
  local decider, by_name = nil, {}
  for _, source in ipairs(sources) do
    by_name[source.name] = source
    if source.decides then
      assert.is_nil(decider, "two sources decide")
      decider = source
    end
  end
  assert.equal(count, assert(decider, "no source decides").cpus)
  return count, decider.name, by_name, sources
end

local function ask_on(machine)
  local env <const> = machine.env or {}
  env.PLUA_PROC_ROOT, env.PLUA_SYS_ROOT = fake(machine)
  return ask(env)
end

--- A line of mountinfo, of the kind that kernels write.
local function mount(kind, root, point)
  local super <const> = kind == "cgroup2" and "rw,nsdelegate" or "rw,cpu,cpuacct"
  return ("31 24 0:26 %s %s rw,nosuid shared:9 master:3 - %s %s %s\n")
    :format(root, point, kind, kind, super)
end

local V1 <const> = "5:memory:/else\n4:cpu,cpuacct:%s\n1:name=systemd:/init\n"

describe("the core count", function()
  helper.guard()
  local before = {}

  before_each(function()
    for _, name in ipairs(VARIABLES) do before[name] = cputest.setenv(name, nil) end
  end)

  after_each(function()
    for _, name in ipairs(VARIABLES) do cputest.setenv(name, before[name]) end
    cputest.machine(0)
  end)

  describe("of this machine", function()
    it("is what nproc says, or less where a quota is set", function()
      local pipe <close> = assert(io.popen("nproc"))
      local count <const>, _, sources = ask {}
      assert.is_true(count >= 1 and count <= pipe:read("n"))
      assert.equal("/sys/devices/system/cpu/online", sources.online.where)
      assert.equal("sched_getaffinity", sources.affinity.where)
    end)

    it("is asked for with a mask that grows beyond 1024 CPUs", function()
      cputest.machine(5000)
      local _, _, sources = ask { PLUA_SYS_ROOT = tree { ["x"] = "" } }
      assert.equal("0-4999", sources.affinity.text)
      assert.equal(5000, sources.affinity.cpus)
      cputest.machine(1)
      _, _, sources = ask {}
      assert.equal("0", sources.affinity.text)
    end)

    it("is asked for up to four million CPUs", function()
      local sys <const> = tree { ["x"] = "" }
      for n, text in pairs { [1 << 22] = "0-4194303", [1 << 23] = "" } do
        cputest.machine(n)
        local _, _, sources = ask { PLUA_SYS_ROOT = sys }
        assert.equal(text, sources.affinity.text)
      end
    end)

    it("can be asked for without the sources, or with few of them", function()
      local count <const>, sources <const> = cputest.cpus(0)
      assert.same({}, sources)
      local same <const>, three <const> = cputest.cpus(3)
      assert.equal(count, same)
      assert.equal(3, #three)
      cputest.setenv("OMP_THREAD_LIMIT", "1") -- the last source
      local one <const>, most <const> = cputest.cpus(#select(2, cputest.cpus()) - 1)
      assert.equal(1, one)
      for _, source in ipairs(most) do assert.is_true(source.cpus == 1 or not source.decides) end
    end)
  end)

  describe("from CPU lists", function()
    local function online(text)
      return ask_on { sys = { ["devices/system/cpu/online"] = text } }
    end

    it("counts single numbers and ranges", function()
      local count <const>, name <const> = online "0,2-5,8,10-11\n"
      assert.same({ 8, "online" }, { count, name })
    end)

    it("knows machines of more than 1024 CPUs", function()
      local allowed <const> = "Cpus_allowed_list:\t0-4095\n"
      local count <const> = ask_on {
        sys = { ["devices/system/cpu/online"] = "0-4095\n" }, proc = { ["self/status"] = allowed },
      }
      assert.equal(4096, count)
    end)

    it("reads a list longer than what a row shows", function()
      local cpus = {}
      for i = 1, 600 do cpus[i] = 2 * i end
      local _, _, sources = online(table.concat(cpus, ",") .. "\n")
      assert.equal(600, sources.online.cpus)
      assert.equal("...", sources.online.text:sub(-3))
      assert.equal(127, #sources.online.text)
    end)

    it("asks the C library where /sys does not tell", function()
      for _, text in ipairs { false, "" } do
        local _, name <const>, sources = online(text)
        assert.equal("sysconf", name)
        assert.equal(tostring(sources.sysconf.cpus), sources.sysconf.text)
      end
    end)

    it("is lowered by the affinity mask", function()
      local count <const>, name <const>, sources = ask_on {
        proc = { ["self/status"] = "Name:\tx\nCpus_allowed_list:\t3,7\n" },
      }
      assert.same({ 2, "affinity", "3,7" }, { count, name, sources.affinity.text })
    end)

    it("does without the affinity mask where status does not tell it", function()
      local count <const>, _, sources = ask_on { proc = { ["self/status"] = "Name:\tx\n" } }
      assert.equal(64, count)
      assert.same({ name = "affinity", where = "", text = "", cpus = 0, decides = false },
        sources.affinity)
    end)
  end)

  describe("under cgroup v2", function()
    local function v2(path, root, files, point)
      local sys = {}
      for file, text in pairs(files) do sys["fs/cgroup/" .. file] = text end
      return ask_on {
        proc = {
          ["self/cgroup"] = "0::" .. path .. "\n",
          ["self/mountinfo"] = "22 1 0:20 / / rw - ext4 /dev/vda1 rw\n" ..
            mount("cgroup2", root, point or "/sys/fs/cgroup"),
        },
        sys = sys,
      }
    end

    it("rounds the quota up", function()
      local cases <const> = {
        ["150000 100000"] = 2, ["200000 100000"] = 2, ["200001 100000"] = 3, ["1000 100000"] = 1,
        ["50000 10000"] = 5, ["300000"] = 3, ["3 1"] = 3,
      }
      for text, cpus in pairs(cases) do
        local files <const> = { ["job/cpu.max"] = text .. "\n" }
        local count <const>, name <const>, sources = v2("/job", "/", files)
        assert.equal(cpus, count, text)
        assert.equal("cgroup v2", name)
        assert.equal(text, sources["cgroup v2"].text)
        assert.matches("/sys/fs/cgroup/job/cpu%.max$", sources["cgroup v2"].where)
      end
    end)

    it("takes max for no limit", function()
      local files <const> = { ["job/cpu.max"] = "max 100000\n" }
      local count <const>, name <const>, sources = v2("/job", "/", files)
      assert.same({ 64, "online" }, { count, name })
      assert.same({ "max 100000", 0 }, { sources["cgroup v2"].text, sources["cgroup v2"].cpus })
    end)

    it("finds the limit of an ancestor above a leaf of max", function()
      local count <const>, _, sources = v2("/a/b/c", "/", {
        ["a/cpu.max"] = "300000 100000\n", ["a/b/cpu.max"] = "800000 100000\n",
        ["a/b/c/cpu.max"] = "max 100000\n",
      })
      assert.equal(3, count)
      assert.matches("/a/cpu%.max$", sources["cgroup v2"].where)
    end)

    it("names the level nearest to the leaf of two that say the same", function()
      local _, _, sources = v2("/a/b", "/", {
        ["a/cpu.max"] = "300000 100000\n", ["a/b/cpu.max"] = "300000 100000\n",
      })
      assert.matches("/a/b/cpu%.max$", sources["cgroup v2"].where)
    end)

    it("reads the first mount's root where several hide the path", function()
      local count <const> = ask_on {
        proc = {
          ["self/cgroup"] = "0::/a\n",
          ["self/mountinfo"] = mount("cgroup2", "/x", "/sys/fs/one") ..
            mount("cgroup2", "/y", "/sys/fs/two"),
        },
        sys = { ["fs/one/cpu.max"] = "500000 100000", ["fs/two/cpu.max"] = "100000 100000" },
      }
      assert.equal(5, count)
    end)

    it("passes levels whose controller is off", function()
      local count <const> = v2("/a/b/c", "/", {
        ["a/cpu.max"] = "500000 100000\n", ["a/b/c/cgroup.controllers"] = "memory\n",
      })
      assert.equal(5, count)
    end)

    it("says nothing where no level has the controller", function()
      local count <const>, _, sources = v2("/a", "/", { ["a/cgroup.controllers"] = "\n" })
      assert.equal(64, count)
      assert.equal("", sources["cgroup v2"].where)
    end)

    it("reads a container's own mount, its path relative to the mount's root", function()
      local files <const> = {
        ["cpu.max"] = "max 100000\n", ["x/cpu.max"] = "250000 100000\n",
        ["../cgroupx/cpu.max"] = "100000 100000\n",
      }
      assert.equal(3, (v2("/docker/abc/x", "/docker/abc", files)))
      assert.equal(64, (v2("/docker/abc", "/docker/abc", files)))
      assert.equal(64, (v2("/docker/abcx", "/docker/abc", files)))
    end)

    it("reads the mount's root where the container hides the path", function()
      local files <const> = {
        ["cpu.max"] = "200000 100000\n", ["../far/cpu.max"] = "100000 100000\n",
      }
      assert.equal(2, (v2("/", "/docker/abc", files)))
      assert.equal(2, (v2("/../far", "/", files)))
    end)

    it("reads every mount that shows its path, and no other", function()
      local count <const> = ask_on {
        proc = {
          ["self/cgroup"] = "0::/a/b\n",
          ["self/mountinfo"] = mount("cgroup2", "/other", "/sys/fs/other") ..
            mount("cgroup2", "/a", "/sys/fs/part") .. mount("cgroup2", "/", "/sys/fs/cgroup"),
        },
        sys = {
          ["fs/other/cpu.max"] = "100000 100000\n", ["fs/part/b/cpu.max"] = "300000 100000\n",
          ["fs/cgroup/a/cpu.max"] = "400000 100000\n",
        },
      }
      assert.equal(3, count)
    end)

    it("follows a path and a root that both lie outside of the namespace", function()
      assert.equal(4, (v2("/../job/x", "/..", { ["job/cpu.max"] = "400000 100000\n" })))
    end)

    it("reads mount points and groups with blanks, colons and backslashes", function()
      local count <const> = v2("/my job: 1", "/", {
        ["../odd \\ place/my job: 1/cpu.max"] = "600000 100000\n",
      }, "/sys/fs/odd\\040\\134\\040place")
      assert.equal(6, count)
    end)

    it("leaves mount points outside of /sys where they are", function()
      local point <const> = tree { ["job/cpu.max"] = "700000 100000\n" }:gsub(" ", "\\040")
      assert.equal(7, (v2("/job", "/", {}, point)))
    end)

    it("reads lines of any length", function()
      local long <const> = ("38 1 0:9 / /x rw - overlay overlay rw,lowerdir=%s\n")
        :format(("/layer"):rep(20000))
      local count <const> = ask_on {
        proc = { ["self/mountinfo"] = long .. mount("cgroup2", "/", "/sys/fs/cgroup") },
        sys = { ["fs/cgroup/cpu.max"] = "200000 100000\n" },
      }
      assert.equal(2, count)
    end)

    it("ignores a level that is garbage, names it, and heeds the others", function()
      for _, text in ipairs { "", "many", "100000 0", "-", "0 100000", "1 2 3", "9e3 100000" } do
        local count <const>, _, sources, list = v2("/a/b", "/", {
          ["a/cpu.max"] = "400000 100000\n", ["a/b/cpu.max"] = text .. "\n",
        })
        assert.equal(4, count, text)
        assert.matches("/a/cpu%.max$", sources["cgroup v2"].where)
        local bad
        for _, source in ipairs(list) do bad = source.cpus == -1 and source or bad end
        assert.equal(text, bad.text)
        assert.matches("/a/b/cpu%.max$", bad.where)
      end
    end)
  end)

  describe("under cgroup v1", function()
    local function v1(path, root, files)
      local sys = {}
      for file, text in pairs(files) do sys["fs/cgroup/cpu/" .. file] = text end
      return ask_on {
        proc = {
          ["self/cgroup"] = V1:format(path),
          ["self/mountinfo"] = mount("cgroup2", "/", "/sys/fs/cgroup/unified") ..
            "30 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" ..
            mount("cgroup", root, "/sys/fs/cgroup/cpu"),
        },
        sys = sys,
      }
    end

    it("rounds the quota up", function()
      local count <const>, name <const>, sources = v1("/job", "/", {
        ["job/cpu.cfs_quota_us"] = "350000\n", ["job/cpu.cfs_period_us"] = "100000\n",
      })
      assert.same({ 4, "cgroup v1" }, { count, name })
      assert.equal("350000 100000", sources["cgroup v1"].text)
      assert.matches("/job/cpu%.cfs_quota_us$", sources["cgroup v1"].where)
    end)

    it("takes -1 for no limit and looks at the ancestors", function()
      local files <const> = {
        ["a/b/cpu.cfs_quota_us"] = "-1\n", ["a/b/cpu.cfs_period_us"] = "100000\n",
      }
      assert.equal(64, (v1("/a/b", "/", files)))
      files["a/cpu.cfs_quota_us"], files["a/cpu.cfs_period_us"] = "20000\n", "10000\n"
      assert.equal(2, (v1("/a/b", "/", files)))
    end)

    it("reads a container's own mount", function()
      local files <const> = {
        ["cpu.cfs_quota_us"] = "500000\n", ["cpu.cfs_period_us"] = "100000\n",
      }
      assert.equal(5, (v1("/docker/abc", "/docker/abc", files)))
      assert.equal(5, (v1("/docker/abc/x", "/docker/abc", files)))
      assert.equal(5, (v1("/", "/docker/abc", files)))
    end)

    it("takes the kernel's own period where none is to be read", function()
      assert.equal(3, (v1("/", "/", { ["cpu.cfs_quota_us"] = "300000\n" })))
    end)

    it("says nothing where the controller is missing", function()
      local count <const>, _, sources = v1("/job", "/", { ["job/cpu.shares"] = "1024\n" })
      assert.equal(64, count)
      assert.equal("", sources["cgroup v1"].where)
    end)

    it("ignores garbage", function()
      for _, files in ipairs {
        { ["cpu.cfs_quota_us"] = "lots\n", ["cpu.cfs_period_us"] = "100000\n" },
        { ["cpu.cfs_quota_us"] = "\n" },
      } do
        local count <const>, _, sources = v1("/", "/", files)
        assert.equal(64, count)
        assert.equal(-1, sources["cgroup v1"].cpus)
      end
    end)

    it("takes no other controller for that of cores", function()
      local mounts <const> = mount("cgroup", "/", "/sys/fs/cgroup/cpu")
      local others, sys <const> = "", { ["fs/cgroup/cpu/cpu.cfs_quota_us"] = "500000\n" }
      for _, name in ipairs { "cpuset", "xyz" } do
        others = others .. mount("cgroup", "/", "/sys/fs/cgroup/" .. name):gsub("cpu,cpuacct", name)
        sys["fs/cgroup/" .. name .. "/cpu.cfs_quota_us"] = "100000\n"
      end
      local count <const> = ask_on {
        proc = {
          ["self/cgroup"] = "3:cpuset:/a\n" .. V1:format "/", ["self/mountinfo"] = others .. mounts,
        },
        sys = sys,
      }
      assert.equal(5, count)
    end)
  end)

  describe("on a hybrid of v1 and v2", function()
    local function hybrid(v1, v2)
      local _, name <const>, sources = ask_on {
        proc = {
          ["self/cgroup"] = V1:format "/slice/job" .. "0::/slice/job\n",
          ["self/mountinfo"] = mount("cgroup", "/", "/sys/fs/cgroup/cpu,cpuacct") ..
            mount("cgroup2", "/", "/sys/fs/cgroup/unified"),
        },
        sys = {
          ["fs/cgroup/cpu,cpuacct/slice/cpu.cfs_quota_us"] = v1 .. "\n",
          ["fs/cgroup/cpu,cpuacct/slice/cpu.cfs_period_us"] = "100000\n",
          ["fs/cgroup/unified/slice/job/cpu.max"] = v2 .. "\n",
        },
      }
      return sources["cgroup v1"].cpus, sources["cgroup v2"].cpus, name
    end

    it("looks at both", function()
      assert.same({ 3, 4, "cgroup v1" }, { hybrid("300000", "400000 100000") })
      assert.same({ 5, 4, "cgroup v2" }, { hybrid("500000", "400000 100000") })
      assert.same({ 0, 4, "cgroup v2" }, { hybrid("-1", "400000 100000") })
      assert.same({ 3, 0, "cgroup v1" }, { hybrid("300000", "max 100000") })
      assert.same({ 0, 0, "online" }, { hybrid("-1", "max 100000") })
    end)
  end)

  describe("does not need", function()
    it("cgroups, mounts or their files", function()
      for _, gone in ipairs { "self/cgroup", "self/mountinfo" } do
        assert.equal(64, (ask_on { proc = { [gone] = false } }))
      end
    end)

    it("well-formed lines", function()
      local count <const> = ask_on {
        proc = {
          ["self/cgroup"] = "\n:\n0:\nnonsense\n0:x:/other\n7::/other\n0::/job\n",
          ["self/mountinfo"] = "\n - \n1 2 3 - cgroup2\n1 2 0:3 / /sys/fs/cgroup - cgroup2 x\n" ..
            "- - - - - - -\n" .. mount("cgroup2", "/", "/sys/fs/cgroup"),
        },
        sys = {
          ["fs/cgroup/job/cpu.max"] = "200000 100000", ["fs/cgroup/other/cpu.max"] = "1 1",
        },
      }
      assert.equal(2, count)
    end)

    it("any file at all", function()
      local nowhere <const> = helper.tmp() .. "/nowhere"
      local count <const>, name <const> = ask { PLUA_PROC_ROOT = nowhere, PLUA_SYS_ROOT = nowhere }
      assert.is_true(count >= 1)
      assert.equal("sysconf", name)
    end)
  end)

  describe("under a batch scheduler", function()
    local function under(env)
      local count <const>, name <const>, sources = ask_on { env = env }
      return count, name, sources
    end

    local function decision(env)
      local count <const>, name <const> = under(env)
      return { count, name }
    end

    it("is the variable that tells of this task", function()
      for _, name in ipairs {
        "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "PBS_NUM_PPN", "NCPUS", "LSB_DJOB_NUMPROC",
        "NSLOTS", "PJM_VNODE_CORE", "OMP_THREAD_LIMIT",
      } do
        local count <const>, decider <const>, sources = under { [name] = " 5 " }
        assert.same({ 5, name, name }, { count, decider, sources[name].where })
        cputest.setenv(name, nil)
      end
    end)

    it("prefers Slurm's number for the task to that for the node", function()
      local count <const>, name <const>, sources = under {
        SLURM_CPUS_PER_TASK = "8", SLURM_CPUS_ON_NODE = "4", SLURM_TASKS_PER_NODE = "1",
        SLURM_JOB_NUM_NODES = "1",
      }
      assert.same({ 8, "SLURM_CPUS_PER_TASK" }, { count, name })
      assert.same({ "4", 0 }, { sources.SLURM_CPUS_ON_NODE.text, sources.SLURM_CPUS_ON_NODE.cpus })
    end)

    it("is the node's on one node, and the tasks' on several", function()
      local env <const> = {
        SLURM_CPUS_ON_NODE = "32", SLURM_TASKS_PER_NODE = "16(x2),8", SLURM_JOB_NUM_NODES = "1",
      }
      assert.same({ 32, "SLURM_CPUS_ON_NODE" }, decision(env))
      env.SLURM_JOB_NUM_NODES = "3"
      assert.same({ 16, "SLURM_TASKS_PER_NODE" }, decision(env))
    end)

    it("reads the number of nodes by its older name too", function()
      local env <const> = { SLURM_CPUS_ON_NODE = "32", SLURM_TASKS_PER_NODE = "4,2" }
      env.SLURM_NNODES = "2"
      assert.equal(4, (under(env)))
    end)

    it("is the processors of a PBS node rather than NCPUS", function()
      assert.equal(6, (under { PBS_NUM_PPN = "6", NCPUS = "1" }))
    end)

    it("never exceeds what the machine grants", function()
      local count <const>, name <const> = under { SLURM_CPUS_PER_TASK = "128" }
      assert.same({ 64, "online" }, { count, name })
    end)

    it("passes garbage to the next variable", function()
      local env <const> = { SLURM_CPUS_PER_TASK = "all", SLURM_CPUS_ON_NODE = "12" }
      local count <const>, _, sources = under(env)
      assert.equal(12, count)
      assert.equal(-1, sources.SLURM_CPUS_PER_TASK.cpus)
    end)
  end)

  describe("with garbage", function()
    for _, text in ipairs { "many", "0", "-4", "4x", "4,2", "4.5", "1e3", "0x10", " ",
      "99999999999999999999", "3000000000" } do
      it(("%q in a variable ignores it and marks its row"):format(text), function()
        for _, name in ipairs {
          "PLUA_WORKERS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "PBS_NUM_PPN", "NCPUS",
          "LSB_DJOB_NUMPROC", "NSLOTS", "PJM_VNODE_CORE", "OMP_THREAD_LIMIT",
        } do
          local count <const>, _, sources = ask_on { env = { [name] = text } }
          assert.equal(64, count)
          assert.same({ text, -1 }, { sources[name].text, sources[name].cpus })
          cputest.setenv(name, nil)
        end
      end)
    end

    it("in SLURM_TASKS_PER_NODE ignores it", function()
      for _, text in ipairs { "(x2)", "x", "0(x2)", "16x2", "-1,2" } do
        local count <const>, _, sources = ask_on { env = { SLURM_TASKS_PER_NODE = text } }
        assert.same({ 64, -1 }, { count, sources.SLURM_TASKS_PER_NODE.cpus })
      end
    end)

    it("in a CPU list ignores it", function()
      for _, text in ipairs { "all", "3-1", "3-1,0-9", "0-", "-2", "0,,1", "0-3,", "1;2",
        "2147483647", "0-99999999999", "0-2000000000,0-2000000000" } do
        local count <const>, name, sources = ask_on {
          proc = { ["self/status"] = "Cpus_allowed_list:\t" .. text .. "\n" },
        }
        assert.same({ 64, "online", -1 }, { count, name, sources.affinity.cpus }, text)
        _, name, sources = ask_on { sys = { ["devices/system/cpu/online"] = text .. "\n" } }
        assert.equal("sysconf", name)
        assert.equal(-1, sources.online.cpus)
      end
    end)

    it("or without takes the largest numbers", function()
      local MOST <const> = 0x7fffffff
      local count <const>, name <const>, sources = ask_on {
        env = { PLUA_WORKERS = "65000", OMP_THREAD_LIMIT = MOST, SLURM_TASKS_PER_NODE = MOST },
        sys = { ["devices/system/cpu/online"] = ("0-%d\n"):format(MOST - 1) },
      }
      assert.same({ 65000, "PLUA_WORKERS" }, { count, name })
      for _, each in ipairs { "OMP_THREAD_LIMIT", "SLURM_TASKS_PER_NODE", "online" } do
        assert.equal(MOST, sources[each].cpus)
      end
    end)

    it("shows what a row has room for", function()
      local whole <const>, long <const> = ("x"):rep(127), ("x"):rep(128)
      local _, _, sources = ask_on { env = { NSLOTS = whole, OMP_THREAD_LIMIT = long } }
      assert.equal(whole, sources.NSLOTS.text)
      assert.equal(("x"):rep(124) .. "...", sources.OMP_THREAD_LIMIT.text)
    end)

    it("takes an empty variable for one that is not set", function()
      local count <const>, _, sources = ask_on { env = { PLUA_WORKERS = "", NSLOTS = "" } }
      assert.same({ 64, 0, "" }, { count, sources.PLUA_WORKERS.cpus, sources.NSLOTS.where })
    end)
  end)

  describe("by PLUA_WORKERS", function()
    it("wins over everything, upwards and downwards", function()
      for _, count in ipairs { "3", "500" } do
        local got <const>, name <const> = ask_on {
          env = { PLUA_WORKERS = count, SLURM_CPUS_PER_TASK = "8", OMP_THREAD_LIMIT = "2" },
        }
        assert.same({ tonumber(count), "PLUA_WORKERS" }, { got, name })
      end
    end)

    it("still shows every other source once", function()
      local _, _, _, sources = ask_on { env = { PLUA_WORKERS = "3" } }
      local names = {}
      for i, source in ipairs(sources) do names[i] = source.name end
      assert.same({
        "PLUA_WORKERS", "online", "sysconf", "affinity", "cgroup v2", "cgroup v1",
        "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_TASKS_PER_NODE", "PBS_NUM_PPN",
        "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS", "PJM_VNODE_CORE", "OMP_THREAD_LIMIT",
      }, names)
    end)

    it("refuses more workers than a pool can have", function()
      local _, _, sources = ask_on { env = { PLUA_WORKERS = "65001" } }
      assert.equal(-1, sources.PLUA_WORKERS.cpus)
    end)
  end)

  describe("as users see it", function()
    local function container()
      local proc <const>, sys <const> = fake {
        proc = {
          ["self/cgroup"] = "0::/job\n",
          ["self/mountinfo"] = mount("cgroup2", "/", "/sys/fs/cgroup"),
        },
        sys = { ["fs/cgroup/job/cpu.max"] = "250000 100000\n" },
      }
      return { PLUA_PROC_ROOT = proc, PLUA_SYS_ROOT = sys }
    end

    local SHOW <const> = "local plua = require 'plua' " ..
      "print(plua.cpu_count()) print(plua.cpu_count()) print(plua.cpus()[5].text)"

    it("is what plua.cpu_count answers, and its source, under plua and the stock lua", function()
      for _, program in ipairs { helper.plua, helper.lua } do
        local line <const> = program .. " -e " .. helper.quote(SHOW)
        local result <const> = helper.run(line, { env = container() })
        local twice <const> = ("3\tcgroup v2\n"):rep(2)
        assert.same({ twice .. "250000 100000\n", "" }, { result.out, result.err })
      end
    end)

    it("is read from files of any length, whatever lies in memory", function()
      local online <const> = "devices/system/cpu/online"
      local code <const> = "print(require('plua').cpus()[2].cpus)"
      for text, cpus in pairs { ["0-3" .. (" "):rep(4092) .. "\n"] = 4, [""] = 0 } do
        local _, sys <const> = fake { sys = { [online] = text } }
        local line <const> = helper.plua .. " -e " .. helper.quote(code)
        local env <const> = { PLUA_SYS_ROOT = sys, MALLOC_PERTURB_ = "85" }
        assert.equal(cpus .. "\n", helper.run(line, { env = env }).out)
      end
    end)

    it("is shown by plua --cpus with every source, and the one that decided marked", function()
      local result <const> = helper.run(helper.plua .. " --cpus", { env = container() })
      local marked = {}
      for line in result.out:gmatch "[^\n]+" do
        if line:find("decides", 1, true) then marked[#marked + 1] = line end
      end
      assert.equal(1, #marked)
      assert.matches("^cgroup v2 +3 +250000 100000 +/%S+/job/cpu%.max +<%- decides$", marked[1])
      assert.matches("\nonline +64 +0%-63 ", result.out)
      assert.same({ "", 0 }, { result.err, result.status })
    end)

    it("is the number of workers, unless more are asked for", function()
      local code <const> = "local pool <close> = require('plua').pool {} " ..
        "print(pool:stats().workers)"
      local env <const> = container()
      for options, workers in pairs { [""] = "3\n", ["-j 5"] = "5\n" } do
        local line <const> = ("%s %s -e %s"):format(helper.plua, options, helper.quote(code))
        assert.equal(workers, helper.run(line, { env = env }).out)
      end
    end)

    it("comes with one warning for garbage, that names it", function()
      local env <const> = container()
      env.OMP_THREAD_LIMIT = "4,2"
      local line <const> = helper.plua .. " -e " .. helper.quote(SHOW)
      local result <const> = helper.run(line, { env = env })
      local _, warnings <const> = result.err:gsub("\n", "")
      assert.equal(1, warnings, result.err)
      assert.matches('OMP_THREAD_LIMIT = "4,2"', result.err, 1, true)
      assert.matches("^3\tcgroup v2\n", result.out)
    end)
  end)
end)
