-- The installed tree: what lies where, and that programs find it. SPDX-License-Identifier: MIT

local helper <const> = require "spec.helper"
local lfs <const> = require "lfs"

local lua <const> = os.getenv("PLUA_LUA") or "lua5.4"
local cc <const> = os.getenv("PLUA_CC") or "gcc"
-- Always the plain build, whatever variant the specs run on.
local make <const> = "make " .. (os.getenv("PLUA_MAKE") or "")

-- The host that README shows.
local HOST <const> = assert(helper.read("README.md"):match("\n```c\n(.-)```\n"))

-- Two states in one program, each with a pool and a C function of the host's.
local STATES <const> = [[
#include <lua.h>
#include <lauxlib.h>
#include <lualib.h>
#include <plua.h>
#include <stdio.h>

static int cube(lua_State *L) {
  lua_Integer x = luaL_checkinteger(L, 1);
  lua_pushinteger(L, x * x * x);
  return 1;
}

static void run(lua_State *L, const char *code) {
  if (luaL_dostring(L, code)) printf("error: ");
  printf("%s\n", lua_tostring(L, -1));
  lua_settop(L, 0);
}

int main(void) {
  lua_State *state[2];
  for (int i = 0; i < 2; i++) {
    lua_State *L = state[i] = luaL_newstate();
    luaL_openlibs(L);
    luaL_requiref(L, "plua.core", luaopen_plua_core, 0);
    lua_register(L, "cube", cube);
    run(L, "plua = require 'plua' pool = plua.pool { workers = 2 }"
           "return table.concat(plua.map(cube, { 1, 2, 3 }), ' ')");
  }
  for (int i = 0; i < 4; i++)
    run(state[i % 2], "return table.concat(pool:map(function(x) return cube(x) + 1 end, "
                      "{ 1, 2, 3 }), ' ')");
  lua_close(state[0]);
  lua_close(state[1]);
  return 0;
}
]]

local function sh(command, opts)
  local result <const> = helper.run(command, opts)
  assert.equal(0, result.status, command .. "\n" .. result.out .. result.err)
  return result.out
end

local function files_below(dir)
  local list = {}
  for path in sh("find " .. dir .. " ! -type d | sort"):gmatch("[^\n]+") do
    list[#list + 1] = path:sub(#dir + 2)
  end
  return list
end

-- Installed once for all specs: the tree is only read.
local prefix <const> = helper.build .. "/installed"
local version

setup(function()
  sh("rm -rf " .. prefix)
  sh(make .. " install PREFIX=" .. prefix, { timeout = 300 })
  version = helper.read("core/plua.h"):match('PLUA_VERSION "([^"]+)"')
end)

teardown(function() sh("rm -rf " .. prefix) end)

local function pkg_config(args)
  return (sh("pkg-config " .. args .. " plua",
    { env = { PKG_CONFIG_PATH = prefix .. "/lib/pkgconfig" } }):gsub("%s+$", ""))
end

local function compile_host(how, source)
  local dir <const> = helper.tmp()
  helper.write(dir .. "/host.c", source or HOST)
  sh(("%s -std=c11 -Wall -Wextra -Werror -o %s/host %s/host.c %s"):format(cc, dir, dir, how))
  return dir .. "/host"
end

describe("make install", function()
  helper.guard()

  it("puts each thing where it belongs, and nothing else", function()
    local want = {
      "bin/plua", "include/plua.h", "lib/libplua.a", "lib/libplua.so", "lib/libplua.so.0",
      "lib/libplua.so." .. version, "lib/lua/5.4/plua/core.so", "lib/pkgconfig/plua.pc",
      "share/man/man1/plua.1",
    }
    for name in lfs.dir("lua/plua") do
      if name:find("%.lua$") then want[#want + 1] = "share/lua/5.4/plua/" .. name end
    end
    table.sort(want)
    local found <const> = files_below(prefix)
    table.sort(found)
    assert.same(want, found)
  end)

  it("lets the stock interpreter map over two workers", function()
    local out <const> = sh(lua .. [[ -e '
      local plua <const> = require "plua"
      local r <const> = plua.map(function(x) return x * x * x end, {1, 2, 3}, {workers = 2})
      print(plua.version, table.concat(r, " "))']], {
      env = {
        LUA_PATH = prefix .. "/share/lua/5.4/?.lua;" .. prefix .. "/share/lua/5.4/?/init.lua",
        LUA_CPATH = prefix .. "/lib/lua/5.4/?.so",
      },
    })
    assert.equal(version .. "\t1 8 27\n", out)
  end)

  it("gives a program that needs no path and no other file of plua", function()
    local dir <const> = helper.tmp()
    sh("cp " .. prefix .. "/bin/plua " .. dir)
    helper.write(dir .. "/job.lua", "return {data = {1, 2, 3}, map = function(x) return x + 1 end}")
    local out <const> = sh("cd / && " .. dir .. "/plua -j 2 " .. dir .. "/job.lua",
      { env = { LUA_PATH = "", LUA_CPATH = "" } })
    assert.equal("2\n3\n4\n", out)
  end)

  it("runs what README begins with, which prints what README says", function()
    local dir <const> = helper.tmp()
    local code <const>, name <const>, printed <const> = helper.read("README.md"):match(
      "\n```lua\n(.-)```\n.-saved as `([%w.]+)`.-\n```\n(.-)```\n")
    helper.write(dir .. "/" .. name, code)
    assert.equal(printed, sh(("cd %s && %s/bin/plua %s"):format(dir, prefix, name)))
  end)

  it("lets a C program be linked by pkg-config", function()
    local host <const> = compile_host(pkg_config("--cflags --libs"))
    assert.equal("441\n", sh(host, { env = { LD_LIBRARY_PATH = prefix .. "/lib" } }))
  end)

  it("lets a C program be linked statically, without Lua", function()
    local host <const> = compile_host(pkg_config("--cflags") .. " " .. prefix .. "/lib/libplua.a")
    assert.equal("441\n", sh(host))
  end)

  it("gives require \"plua\" to the states of a host", function()
    local host <const> = compile_host(pkg_config("--cflags --libs --static"), STATES)
    local out <const> = sh(host, { env = {
      LD_LIBRARY_PATH = prefix .. "/lib", LUA_CPATH = "",
      LUA_PATH = prefix .. "/share/lua/5.4/?.lua;" .. prefix .. "/share/lua/5.4/?/init.lua",
    } })
    assert.equal(("1 8 27\n"):rep(2) .. ("2 9 28\n"):rep(4), out)
  end)

  it("says its version and its compatibility", function()
    assert.equal(version, pkg_config("--modversion"))
    local dynamic <const> = sh("readelf -dW " .. prefix .. "/lib/libplua.so")
    assert.truthy(dynamic:find("SONAME.-%[libplua%.so%.0%]"), dynamic)
  end)

  it("exports the public functions only", function()
    for symbol in sh("nm -D --defined-only " .. prefix .. "/lib/libplua.so"):gmatch("%S+\n") do
      local name <const> = symbol:gsub("%s", "")
      assert.truthy(name:find("^plua_") or name:find("^luaopen_plua_"), name)
    end
  end)

  it("hardens what it builds", function()
    for _, file in ipairs { "/bin/plua", "/lib/libplua.so", "/lib/lua/5.4/plua/core.so" } do
      local elf <const> = sh("readelf -ldW " .. prefix .. file)
      assert.truthy(elf:find("GNU_RELRO"), file .. ": no RELRO")
      assert.truthy(elf:find("NOW"), file .. ": binds lazily")
      assert.falsy(elf:find("GNU_STACK[^\n]*RWE"), file .. ": executable stack")
    end
  end)

  it("honours DESTDIR, which leaves no trace in the files", function()
    local dir <const> = helper.tmp()
    sh(make .. " install PREFIX=/usr DESTDIR=" .. dir, { timeout = 300 })
    assert.same(files_below(prefix), files_below(dir .. "/usr"))
    local pc <const> = helper.read(dir .. "/usr/lib/pkgconfig/plua.pc")
    assert.truthy(pc:find("^prefix=/usr\n"), pc)
    assert.falsy(pc:find(dir, 1, true))
  end)

  it("tells pkg-config where that is, though PREFIX names no root", function()
    local here <const> = sh("pwd"):gsub("\n", "/")
    local dir <const> = helper.build:sub(#here + 1) .. "/installed.here"
    sh(make .. " install PREFIX=" .. dir, { timeout = 300 })
    local pc <const> = helper.read(dir .. "/lib/pkgconfig/plua.pc")
    sh("rm -rf " .. dir)
    assert.equal(here .. dir, pc:match("^prefix=([^\n]*)"))
  end)

  it("is undone by uninstall", function()
    local dir <const> = helper.tmp()
    sh(make .. " install PREFIX=/usr DESTDIR=" .. dir, { timeout = 300 })
    sh(make .. " uninstall PREFIX=/usr DESTDIR=" .. dir)
    assert.same({}, files_below(dir))
  end)
end)
