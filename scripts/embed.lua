-- Writes the Lua modules named on the command line as a C table, for the program to carry: their
-- text, and, run by embed.c, what that Lua compiles it to, which the program loads faster where
-- its Lua is the same. Knows file names and C strings, not what the modules do.
-- SPDX-License-Identifier: MIT

--- "lua/plua/map.lua" -> "plua.map"; a package's init.lua stands for the package.
local function module_name(path)
  local name <const> = path:gsub("^lua/", ""):gsub("%.lua$", ""):gsub("/", ".")
  return (name:gsub("%.init$", ""))
end

--- "plua.map" -> "@plua/map.lua", so that tracebacks name files of the source tree.
local function chunk_name(path) return "@" .. path:gsub("^lua/", "") end

-- One C string a line: readable, and no compiler meets a line of a megabyte. Escapes are octal, of
-- three digits always, so that none swallows what follows it.
local function c_string(text)
  local lines = {}
  for line in text:gmatch("[^\n]*\n?") do
    lines[#lines + 1] = line:gsub('[^%w !#$%%&\'()*+,%-./:;<=>@%[%]^_`{|}~]', function(c)
      return ("\\%03o"):format(c:byte())
    end)
  end
  return '"' .. table.concat(lines, '"\n    "') .. '"'
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return assert(file:read("a"))
end

local function main(target, ...)
  local out = {
    "/* Made by scripts/embed.lua. */\n#include <stddef.h>\n",
    "struct plua_module {\n  const char *name, *chunk, *source;\n  size_t len;\n" ..
      "  const char *code;\n  size_t code_len;\n};\n",
    "extern const struct plua_module plua_modules[];\nextern const char plua_modules_lua[];\n",
    "const char plua_modules_lua[] = " .. c_string(rawget(_G, "LUA_IDENT") or "") .. ";\n",
  }
  local rows = {}
  for i, path in ipairs { ... } do
    local text <const> = read(path)
    out[#out + 1] = ("static const char source_%d[] =\n    %s;\n"):format(i, c_string(text))
    local chunk <const> = chunk_name(path)
    local code <const> = string.dump(assert(load(text, chunk, "t")))
    out[#out + 1] = ("static const char code_%d[] =\n    %s;\n"):format(i, c_string(code))
    rows[#rows + 1] = ('  {"%s", "%s", source_%d, sizeof source_%d - 1, code_%d, ' ..
      "sizeof code_%d - 1},\n"):format(module_name(path), chunk, i, i, i, i)
  end
  out[#out + 1] = "const struct plua_module plua_modules[] = {\n" .. table.concat(rows) ..
    "  {NULL, NULL, NULL, 0, NULL, 0},\n};\n"
  local file <close> = assert(io.open(target, "wb"))
  assert(file:write(table.concat(out, "\n")))
end

if not arg[1] then
  io.stderr:write("usage: embed.lua TARGET.c lua/plua/*.lua\n")
  os.exit(2)
end
main(table.unpack(arg))
