-- The peers that plua is measured beside: which are installed, and how each is called.
-- Knows programs. Does not know cases or times. SPDX-License-Identifier: MIT
local peers <const> = {}

local function output(command)
  local pipe <const> = assert(io.popen(command .. " 2>/dev/null"))
  local line <const> = pipe:read "l"
  pipe:close()
  return line and line ~= "" and line or nil
end

-- The distribution's Python first: make bench-deps installs for that one.
local PYTHON <const> = output "ls /usr/bin/python3" or "python3"

--- In the order of the table's columns: name, title, what tells its version, its command.
---@param dir string  where the benchmark's files lie
---@param build string  where its programs lie
function peers.list(dir, build)
  local py <const> = ("%s %s/peers/pool.py "):format(PYTHON, dir)
  local function version(code) return ("%s -c '%s'"):format(PYTHON, code) end
  return {
    { who = "mp", title = "multiprocessing", command = py .. "mp",
      version = version "import platform; print(platform.python_version())" },
    { who = "cf", title = "concurrent.futures", command = py .. "cf",
      version = version "import platform; print(platform.python_version())" },
    { who = "joblib", title = "joblib", command = py .. "joblib",
      version = version "import joblib; print(joblib.__version__)" },
    { who = "mce", title = "Perl MCE", command = ("perl %s/peers/mce.pl"):format(dir),
      version = "perl -MMCE -e 'print $MCE::VERSION'" },
    { who = "parmap", title = "OCaml Parmap", command = build .. "/bench/parmap",
      version = ("test -x %s/bench/parmap && ocamlfind ocamlopt -version"):format(build) },
    { who = "parallel", title = "GNU parallel", command = ("sh %s/peers/parallel.sh"):format(dir),
      version = "parallel --version | sed -n 's/^GNU parallel //p'" },
  }
end

--- Notes each peer's version in `version`; nil: it is not installed.
function peers.find(list)
  for _, peer in ipairs(list) do peer.version = output(peer.version) end
  return list
end

peers.output = output

return peers
