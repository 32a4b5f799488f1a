-- The codec: every kind of value there and back, what is shared, what is refused and where, and
-- any bytes at all. SPDX-License-Identifier: MIT
require "spec.helper"
local alike <const> = require "spec.alike"
local codec <const> = require "codectest"

-- Files of specs have an _ENV of their own, which only looks like a table: globals are set in _G.
local G <const> = _G

local function values(ok, ...)
  if not ok then error((...), 3) end
  return ...
end

--- Sends values through the codec; an error if they cannot cross.
local function cross(...)
  local message <const>, why <const> = codec.encode(...)
  if not message then error(why, 2) end
  if #message ~= codec.used(message) then error("a message of another length", 2) end
  return values(codec.decode(message))
end

--- The reason why values cannot cross.
local function refusal(...)
  local message <const>, why <const>, code <const> = codec.encode(...)
  assert.is_nil(message)
  return why, code
end

local function bits(x) return string.pack("n", x) end

local function same(a, b)
  if not alike(a, b) then assert.same(a, b) error("not alike, to the bit", 2) end
end

local nan <const> = string.unpack("n", string.pack("J", 0x7ff8dead0000beef))
local negative_nan <const> = string.unpack("n", string.pack("J", 0xfff8000000000001))

local plain <const> = {
  0, 1, -1, 127, 128, -128, -129, 32767, 32768, -32768, -32769, 2147483647, 2147483648, -2147483648,
  -2147483649, math.maxinteger, math.mininteger, 0.0, -0.0, 1.0, 0.1, 1 / 0, -1 / 0, nan,
  negative_nan, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 2.0 ^ 53, true, false, "",
  "x", "\0", "a\0b", ("x"):rep(40), ("x"):rep(41), ("x"):rep(63), ("x"):rep(64), ("x"):rep(255),
  ("x"):rep(256), ("\255"):rep(70000),
}

describe("codec: plain values", function()
  it("of empty tables, however deep they lie and whatever follows them", function()
    for depth = 1, 190 do
      local leaf <const> = { {}, 1, {}, { [{}] = {}, x = 2 } }
      local nest = leaf
      for _ = 2, depth do nest = { "a", nest, k = "b" } end
      local back = cross(nest)
      for _ = 2, depth do
        assert.same({ "a", "b" }, { back[1], back.k })
        back = back[2]
      end
      assert.same({ {}, 1, {} }, { back[1], back[2], back[3] })
      assert.equal(2, back[4].x)
      for key, value in next, back[4] do
        assert(key == "x" or next(key) == nil and next(value) == nil)
      end
      local f <const> = cross((function(e, n) return function() return e, n end end)({}, nest))
      assert.is_nil(next((f())))
    end
  end)

  it("cross bit for bit, alone and in a table", function()
    for _, v in ipairs(plain) do
      same(v, cross(v))
      same({ v, { v }, k = v }, cross { v, { v }, k = v })
    end
    same(plain, cross(plain))
  end)

  -- Short ways past the codec, for values alone: where they do not lead, the others do.
  it("are read without preparation, up to strings of 63 bytes", function()
    local function told(bytes) return codec.plain(bytes) end
    for _, tail in ipairs { "", ("\1"):rep(100), ("\255"):rep(100) } do
      for _, v in ipairs(plain) do
        local message <const> = codec.encode(v)
        local short <const> = type(v) ~= "string" or #v < 64
        local took <const>, got <const> = told(message .. tail)
        assert.equal(short and #message or 0, took)
        if short then same(v, got) end
      end
      assert.same({ n = 2, 1 }, table.pack(told(codec.encode(nil) .. tail)))
    end
    for _, v in ipairs(plain) do
      local message <const> = codec.encode(v)
      for n = 0, math.min(#message - 1, 64) do assert.equal(0, told(message:sub(1, n))) end
    end
    for tag = 0, 255 do
      local is_plain <const> = tag >= 1 and tag <= 8 or tag >= 0x40
      assert.equal(is_plain, told(string.char(tag) .. ("\1"):rep(100)) > 0)
    end
  end)

  it("need no memory where they are no strings", function()
    for _, tail in ipairs { "", ("\1"):rep(100) } do
      for _, v in ipairs(plain) do
        local yes <const>, got <const> = codec.seen(codec.encode(v) .. tail)
        assert.equal(type(v) ~= "string", yes)
        if yes then same(v, got) end
      end
      assert.same({ n = 2, true }, table.pack(codec.seen(codec.encode(nil) .. tail)))
    end
    for _, v in ipairs(plain) do
      local message <const> = codec.encode(v)
      for n = 0, math.min(#message - 1, 64) do assert.is_false(codec.seen(message:sub(1, n))) end
    end
    for tag = 0, 255 do
      local needs_none <const> = tag >= 1 and tag <= 8 or tag >= 0x80
      assert.equal(needs_none, codec.seen(string.char(tag) .. ("\1"):rep(100)))
    end
  end)

  it("are taken from where they lie, if they are numbers", function()
    if not codec.LOOKS then return end
    for _, v in ipairs(plain) do
      local bytes <const> = codec.taken(v)
      assert.equal(type(v) == "number" and codec.encode(v) or nil, bytes)
    end
    codec.limit(4)
    local none <const>, small <const> = codec.taken(0.5), codec.taken(300)
    codec.limit(nil)
    assert.is_nil(none)
    assert.equal(codec.encode(300), small)
  end)

  it("are numbers of an array as far as it is known to reach", function()
    for _, limit in ipairs { 0, 1, 2, 15, 16 } do assert.equal(limit, codec.run(limit)) end
  end)

  it("cross as nil, as none and as many", function()
    assert.equal(0, select("#", cross()))
    assert.equal(1, select("#", cross(nil)))
    assert.same({ n = 4, nil, 1, nil, nil }, table.pack(cross(nil, 1, nil, nil)))
    local many <const> = {}
    for i = 1, 3000 do many[i] = i * 1.5 end
    assert.same(many, { cross(table.unpack(many)) })
  end)

  it("cost a byte or two where they are small", function()
    assert.equal(1, #codec.encode(100))
    assert.equal(1, #codec.encode(true))
    assert.equal(6, #codec.encode("hello"))
    assert.equal(9, #codec.encode(1.5))
  end)

  it("cost the table and themselves in a list, whatever its keys", function()
    assert.equal(1 + 8, #codec.encode {})
    assert.equal(9 + 2, #codec.encode { "a" })
    assert.equal(9 + 1 + 1, #codec.encode { [2] = 1 })
    assert.equal(9 + 2 + 1, #codec.encode { [-1] = 1 })
    assert.equal(9 + 2 + 1, #codec.encode { x = 1 })
    assert.equal(1 + 4 + 3 * 8 + 8, #codec.encode { 1, 2, 3 })
    -- A number that does not lie in the array part: alone or raw, as the state lets us see.
    assert.equal(codec.LOOKS and 9 + 1 or 1 + 4 + 8 + 8, #codec.encode { [1] = 5 })
    assert.equal(codec.LOOKS and 9 + 9 or 1 + 4 + 8 + 8, #codec.encode { [1] = 0.5 })
    assert.equal(9 + 9 + 1, #codec.encode { [1.5] = 1 })
  end)

  it("cost the same beside a function; numbers go raw wherever they lie", function()
    local function size(t) return #codec.encode(print, t) - #codec.encode(print, {}) + 9 end
    assert.equal(9 + 2, size { "a" })
    assert.equal(9 + 1 + 1, size { [2] = 1 })
    assert.equal(9 + 2 + 1, size { x = 1 })
    assert.equal(9 + 9 + 1, size { [1.5] = 1 })
    assert.equal(13 + 3 * 8, size { 1, 2, 3 })
    assert.equal(13 + 8, size { [1] = 5 })
    assert.equal(13 + 2 * 8 + 9, size { 1, 2, 0.5 })
    assert.equal(13 + 2 * 8 + 1, size { 0.5, 0.25, 2 })
    assert.equal(13 + 8 + 2, size { 0.5, "x" })
    assert.equal(13 + 2 * 8 + 1 + 1, size { 1, 2, nil, 4 })
    assert.equal(13 + 2 * 8 + 2 + 1, size { 1, 2, x = 3 })
    assert.equal(13 + 2 * 8 + 9 + 1, size { 1, 2, [1.5] = 3 })
  end)

  it("cost little where very many repeat, those that were met first", function()
    local LEN <const>, N <const> = 30, 1000
    for _ = 1, 3 do
      local new <const>, list <const> = {}, {}
      for i = 1, N do
        new[i] = ("%0" .. LEN .. "d"):format(math.random(0) >> 1)
        list[2 * i - 1], list[2 * i] = new[i], new[i]
      end
      local once <const> = #codec.encode(list)
      table.move(new, 1, N, 2 * N + 1, list)
      local refs <const> = (N * (1 + LEN) - (#codec.encode(list) - once)) // (LEN - 1)
      assert.is_true(refs > 240 and refs <= 256, refs)
    end
  end)

  it("cost little where they repeat, whatever was sent before", function()
    for _, length in ipairs { 40, 64, 300 } do
      local text <const> = ("k"):rep(length)
      local function size(n)
        local records <const> = {}
        for i = 1, n do records[i] = { [text] = true, x = text } end
        return #codec.encode(records)
      end
      for _ = 1, 2 do assert.is_true(size(10) - size(5) <= 5 * 22) end
    end
  end)

  it("delimit themselves: a message ends where the next begins", function()
    local first <const> = codec.encode { 1, 2, { x = "y" } }
    local second <const> = codec.encode("z", 2)
    assert.equal(#first, codec.used(first .. second))
    assert.same({ true, "z", 2 }, { codec.decode((first .. second):sub(#first + 1)) })
  end)
end)

describe("codec: tables", function()
  it("keep every kind of key", function()
    local key <const> = { "a key" }
    local t <const> = {
      [1] = "one", [1.5] = "float", [-0.5] = "negative", [true] = "yes", [false] = "no",
      ["a\0b"] = "zero", [""] = "empty", [math.mininteger] = "min", [2 ^ 70] = "large",
      [1 / 0] = "inf", [key] = key,
    }
    local got <const> = cross(t)
    same(t, got)
    local found
    for k, v in next, got do
      if type(k) == "table" then found = k assert.equal(k, v) end
    end
    assert.same(key, found)
  end)

  it("keep holes, long arrays and what follows them", function()
    same({ 1, nil, 3, nil, nil, 6 }, cross { 1, nil, 3, nil, nil, 6 })
    same({ nil, nil, 3 }, cross { nil, nil, 3 })
    for _, make in ipairs {
      function(i) return i end, function(i) return i / 3 end, function(i) return "s" .. i % 7 end,
      function(i) return i % 2 == 0 and i or i + 0.5 end,
      function(i) return i < 500 and i or i / 2 end,
      function(i) return i % 100 == 0 and {} or -i end,
    } do
      for _, n in ipairs { 0, 1, 2, 3, 7, 8, 1000 } do
        local up <const>, down <const> = {}, {}
        local mixed <const> = { name = "n", [0.5] = 1, [n + 5] = 2 }
        for i = 1, n do up[i], mixed[i] = make(i), make(i) end
        for i = n, 1, -1 do down[i] = make(i) end
        same(up, cross(up))
        same(down, cross(down))
        same(mixed, cross(mixed))
      end
    end
  end)

  it("keep what lies behind a border in the middle of the array", function()
    for _, value in ipairs { 0.5, "s" } do
      local t <const> = {}
      for i = 1, 16 do t[i] = value end
      for _, i in ipairs { 10, 11, 12, 13, 15, 16 } do t[i] = nil end
      assert.equal(9, #t) -- from now on Lua takes this for the size of the array
      same(t, cross(t))
    end
  end)

  it("do not bring back what was taken out", function()
    local t <const> = { 1, 2, 3, x = 1, y = "y", [0.5] = {}, z = {} }
    t[2], t.x, t[0.5], t.z = nil, nil, nil, nil
    same({ 1, nil, 3, y = "y" }, cross(t))
    for k in next, t do t[k] = nil end
    same({}, cross(t))
  end)

  it("keep string keys that look like the number that is due", function()
    local t <const> = { {}, {}, {} }
    t["4"], t["1"] = {}, {}
    same(t, cross(t))
    same({ ["1"] = {} }, cross { ["1"] = {} })
  end)

  it("keep numbers wherever the table has put them", function()
    same({ [1] = 5, [2] = 6, x = 1 }, cross { [1] = 5, [2] = 6, x = 1 })
    same({ [1] = 0.5, [2] = 1, [3] = "x" }, cross { [1] = 0.5, [2] = 1, [3] = "x" })
    same({ [1] = 5, [3] = 6 }, cross { [1] = 5, [3] = 6 })
    same({ [1] = 5 }, cross { [1] = 5 })
  end)

  it("keep more strings that repeat than a byte can count", function()
    local records <const> = {}
    for i = 1, 3000 do
      for _ = 1, 3 do records[#records + 1] = { ["key " .. i] = "value " .. i } end
    end
    same(records, cross(records))
  end)

  it("keep what is shared where there is much of it, of every kind", function()
    local N <const> = 3000
    local tables, texts, functions, all = {}, {}, {}, {}
    for i = 1, N do
      local n = i
      tables[i] = { i }
      texts[i] = ("%064d"):format(i)
      functions[i] = { function() return n end, function() n = n + 1 end }
      all[i] = { tables[i], texts[i], functions[i] }
    end
    local plain_one <const>, plain_two <const> = cross({ tables, texts }, { texts, tables })
    local function_one <const>, everything <const> = cross(functions, all)
    for i = 1, N do
      assert(rawequal(plain_one[1][i], plain_two[2][i]) and plain_one[1][i][1] == i)
      assert(plain_one[2][i] == texts[i] and plain_two[1][i] == texts[i])
      local get <const>, add <const> = table.unpack(function_one[i])
      assert(rawequal(everything[i][3], function_one[i]) and everything[i][2] == texts[i])
      add()
      assert(get() == i + 1)
    end
  end)

  it("keep shared references and cycles", function()
    local shared <const> = { 1 }
    local got <const> = cross { shared, { shared }, k = shared, [shared] = 2 }
    assert.equal(got[1], got[2][1])
    assert.equal(got[1], got.k)
    assert.equal(2, got[got[1]])
    local loop <const> = {}
    loop.self, loop[loop] = loop, loop
    local back <const> = cross(loop)
    assert.equal(back, back.self)
    assert.equal(back, back[back])
    local a <const>, b <const> = cross(shared, shared)
    assert.equal(a, b)
  end)

  it("run no metamethod, whatever a registered metatable says", function()
    local function never() error("a metamethod ran") end
    local meta <const> = {
      __index = never, __newindex = never, __pairs = never, __len = never, __eq = never,
      __tostring = never, __call = never, __concat = never, __metatable = "hidden",
    }
    codec.register("spec.silent", meta)
    local got <const> = cross {
      setmetatable({ x = 1, [2] = 3 }, meta), setmetatable({ 1, 2 }, meta),
    }
    assert.equal(meta, debug.getmetatable(got[1]))
    assert.equal(1, rawget(got[1], "x"))
    assert.equal(3, rawget(got[1], 2))
    assert.equal(meta, debug.getmetatable(got[2]))
    assert.equal(2, rawget(got[2], 2))
  end)

  it("carry a registered metatable, and share through it", function()
    local Point <const> = { __name = "Point" }
    Point.__index = Point
    function Point:sum() return self.x + self.y end
    codec.register("spec.Point", Point)
    local p <const> = setmetatable({ x = 1, y = 2 }, Point)
    p.self = p
    local list <const> = cross { p, p, setmetatable({ x = 3, y = 4 }, Point) }
    assert.equal(3, list[1]:sum())
    assert.equal(7, list[3]:sum())
    assert.equal(list[1], list[2])
    assert.equal(list[1], list[1].self)
  end)

  it("carry a metatable registered under a name of any length", function()
    for _, length in ipairs { 0, 1, 40, 41, 63, 64, 255, 256, 70000 } do
      local Named <const>, Saved <const> = {}, { __plua_save = function(o) return o.x end }
      Saved.__plua_load = function(x) return setmetatable({ x = x }, Saved) end
      codec.register(("n"):rep(length), Named)
      codec.register(("s"):rep(length), Saved)
      for _, meta in ipairs(length == 0 and { Saved } or { Named, Saved }) do
        local list <const> = {}
        for i = 1, 3 do list[i] = setmetatable({ x = i }, meta) end
        for i, object in ipairs(cross(list)) do
          assert.equal(meta, getmetatable(object))
          assert.equal(i, object.x)
        end
      end
    end
  end)

  it("carry a registered metatable beside functions too", function()
    local Point <const> = {}
    codec.register("spec.beside", Point)
    local p <const> = setmetatable({ x = 1 }, Point)
    local got <const> = cross { p, print, p, setmetatable({ 1, 2 }, Point) }
    assert.equal(Point, getmetatable(got[1]))
    assert.equal(1, got[1].x)
    assert.equal(got[1], got[3])
    assert.equal(Point, getmetatable(got[4]))
    assert.equal(2, got[4][2])
  end)

  it("of a metatable whose name went to another one are refused", function()
    local old <const>, new <const> = {}, {}
    codec.register("spec.moved", old)
    codec.register("spec.moved", new)
    assert.equal(new, getmetatable((cross(setmetatable({}, new)))))
    assert.matches("metatable that is not registered", (refusal(setmetatable({}, old))))
    codec.register("spec.moved", new)
    codec.register("spec.moved to", new)
    assert.equal(new, getmetatable((cross(setmetatable({}, new)))))
  end)

  it("name a metatable that the other side does not know", function()
    codec.register("spec.known", {})
    local message = codec.encode(setmetatable({}, (function()
      local m <const> = {}
      codec.register("spec.other", m)
      return m
    end)()))
    message = message:gsub("spec%.other", "spec.where")
    local value <const>, why <const>, code <const> = codec.decode(message)
    assert.is_nil(value)
    assert.equal("no metatable is registered here under the name 'spec.where': plua.register it "
      .. "before workers are made", why)
    assert.equal(codec.ECODEC, code)
  end)

  it("cross nested 50,000 deep, and are refused a million deep", function()
    local chain = false
    for i = 1, 50000 do chain = { next = chain, i = i } end
    local got, n = cross(chain), 0
    while got do got, n = got.next, n + 1 end
    assert.equal(50000, n)
    for _ = 1, 950000 do chain = { next = chain } end
    local why <const>, code <const> = refusal(chain)
    assert.equal(codec.EDEPTH, code)
    assert.matches("^%.next%.next.*%.%.%..*%.next: nested more than 100000 deep$", why)
    assert.is_true(#why < 200)
  end)

  it("cross from inside a coroutine", function()
    local t <const> = { { 1 }, f = function(x) return x + 1 end }
    local got <const> = coroutine.wrap(function() return cross(t) end)()
    assert.equal(1, got[1][1])
    assert.equal(3, got.f(2))
  end)
end)

-- Where a state has many strings, the reader looks for them ahead of time.
describe("codec: strings", function()
  local crowd <const> = {}
  for i = 1, 20000 do crowd[i] = "string " .. i end

  local function list(first, last) return table.move(crowd, first, last, 1, {}) end

  --- Those that are looked for where looking is possible.
  local function seen(strings) return codec.LOOKS and strings or {} end

  it("come back in a state that has many", function()
    same(crowd, cross(crowd))
    local records <const> = {}
    for i, s in ipairs(crowd) do
      records[i] = { s, i, -i, i / 3, i * 2 ^ 40 // 1, name = s .. "!", ("x"):rep(i % 300) }
    end
    same(records, cross(records))
  end)

  it("come back where they are new", function()
    local function message()
      local new <const> = {}
      for i = 1, 5000 do new[i] = "new " .. i end
      return codec.encode(new)
    end
    local bytes <const> = message()
    collectgarbage()
    local got <const> = values(codec.decode(bytes))
    assert.equal(5000, #got)
    for i, s in ipairs(got) do assert.equal("new " .. i, s) end
  end)

  it("are looked for, the next sixteen", function()
    assert.same(seen(list(1, 16)), codec.ahead(codec.encode(list(1, 20)), 10))
    assert.same(seen(list(1, 9)), codec.ahead(codec.encode(list(1, 9)), 10))
    assert.same(seen(list(2, 9)), codec.ahead(codec.encode(list(1, 9)), 19))
    local longest <const> = { ("y"):rep(40), crowd[1] }
    assert.same(seen(longest), codec.ahead(codec.encode(longest), 1))
  end)

  it("are looked for behind values of any width", function()
    local class <const> = {}
    codec.register("string 1", class)
    for _, value in ipairs { true, false, 0, 1, -1, 300, -40000, 1 << 40, 0.5, ("x"):rep(41),
      ("x"):rep(63), ("x"):rep(200), { {} }, { 1, 2, 3 }, { 0.5, 0.25 } } do
      local message <const> = codec.encode { "", value, crowd[5], crowd[6] }
      assert.same(seen { "", crowd[5], crowd[6] }, codec.ahead(message, 1), value)
    end
    assert.same(seen(list(1, 2)), codec.ahead(codec.encode(setmetatable({ crowd[2] }, class)), 1))
    local shared <const> = {}
    assert.same(seen(list(3, 4)),
      codec.ahead(codec.encode { shared, shared, crowd[3], crowd[3], crowd[3], crowd[4] }, 1))
  end)

  it("are looked for up to a function, and not where there are none", function()
    local message <const> = codec.encode { crowd[1], function() end, crowd[2] }
    assert.same(seen(list(1, 1)), codec.ahead(message, 1))
    assert.same({}, codec.ahead("", 1))
  end)

  it("are not looked for beyond the end, nor where there is no message", function()
    local message <const> = codec.encode { crowd[1], 1.5, { 1, 2 }, ("x"):rep(200), crowd[2] }
    for n = 0, #message - 1 do
      assert.equal(codec.LOOKS and n >= 18 and 1 or 0, #codec.ahead(message:sub(1, n), 1))
    end
    for _ = 1, 5000 do
      local bytes <const> = {}
      for i = 1, math.random(40) do bytes[i] = string.char(math.random(0, 0x50)) end
      assert.is_true(#codec.ahead(table.concat(bytes), 1) <= 16)
    end
  end)
end)

describe("codec: the map of addresses", function()
  local seed <const> = tonumber(os.getenv("PLUA_SEED")) or os.time()
  local BASE <const> = 0x7f0000000000

  -- What the codec meets: blocks of malloc's in a few places, and now and then anything.
  local function address(spread)
    local kind <const> = math.random(8)
    if kind == 1 then return BASE + math.random(spread * 64) end
    if kind == 2 then return math.random(0) >> 16 | 1 << 40 end
    return BASE + math.random(spread) * (kind == 3 and 16 or 48)
  end

  it("knows each by the offset where it was met first (seed " .. seed .. ")", function()
    math.randomseed(seed)
    for round = 1, 120 do
      local map <const>, met <const> = codec.map(), {}
      local spread <const>, n <const> = 4 ^ math.random(2, 8) // 1 | 0, 4 ^ math.random(1, 6) // 1
      local here = math.random(3) == 1 and (1 << 30) - n // 2 | 0 or 0
      for _ = 1, n do
        local p <const> = address(spread)
        if codec.meet(map, p, here) ~= met[p] then error(("round %d: %x"):format(round, p)) end
        met[p] = met[p] or here
        here = here + 1
        if math.random(300) == 1 then -- as of a global that cannot cross
          local from <const> = here - math.random(n // 2)
          codec.forget(map, from < 0 and 0 or from)
          for k, at in next, met do if at >= from then met[k] = nil end end
        end
      end
      for p, at in next, met do assert(codec.meet(map, p, here) == at) end
    end
  end)

  it("has room for very many of any kind, and forgets them", function()
    for _, step in ipairs { 24, 16, 1 << 15 } do
      local map <const>, N <const> = codec.map(), 100000
      for i = 1, N do assert(codec.meet(map, BASE + i * step, i) == nil) end
      for i = 1, N do assert(codec.meet(map, BASE + i * step, N) == i) end
      codec.forget(map, 100)
      for i = 1, N do assert(codec.meet(map, BASE + i * step, i) == (i < 100 and i or nil)) end
    end
  end)

  it("knows neighbours of what is forgotten", function()
    for round = 1, 1000 do
      local map <const>, order <const>, from <const> = codec.map(), {}, round % 60
      for i = 0, 59 do table.insert(order, math.random(i + 1), BASE + i // 2 * 64 + i % 2 * 16) end
      for at, p in ipairs(order) do assert(codec.meet(map, p, at) == nil) end
      codec.forget(map, from)
      for at, p in ipairs(order) do
        assert(codec.meet(map, p, at) == (at < from and at or nil))
      end
    end
  end)
end)

describe("codec: memory that is not laid out as Lua's", function()
  it("is not taken for a table of Lua's", function()
    assert.is_true(codec.fits "nothing")
    assert.is_true(codec.fits "nil")
    for thing in ("limit nodes array node flags float number int integer empty value key bytes " ..
      "length true false fifth"):gmatch "%a+" do
      assert.is_false(codec.fits(thing), thing)
    end
  end)

  it("is not taken for Lua's strings", function()
    assert.is_true(codec.keeps "nothing")
    assert.is_true(codec.keeps "single") -- list of strings
    for thing in ("lists none three elsewhere bytes length hash"):gmatch "%a+" do
      assert.is_false(codec.keeps(thing), thing)
    end
  end)
end)

--- What makes values at random, of so many tables in tables.
local function generator()
  local value
  local strings <const> = { "", "key", "another key", ("long "):rep(20), "\0\1\2" }
  local function scalar()
    local kind <const> = math.random(6)
    if kind == 1 then return math.random(0) end
    if kind == 2 then return string.unpack("n", string.pack("j", math.random(0))) end
    if kind == 3 then return math.random(2) == 1 end
    if kind == 4 then return strings[math.random(#strings)] end
    if kind == 5 then return ("x"):rep(math.random(0, 300)) end
    return math.random(-300, 300)
  end
  local function key()
    local k <const> = scalar()
    if k ~= k then return 0 end
    return k
  end
  function value(depth, pool)
    if depth == 0 or math.random(3) == 1 then return scalar() end
    if #pool > 0 and math.random(8) == 1 then return pool[math.random(#pool)] end
    local t <const> = {}
    pool[#pool + 1] = t
    local numbers <const> = math.random(4) == 1 and math.random(0, 20) or 0
    for i = 1, numbers do t[i] = math.random(9) == 1 and i / 2 or i end
    for i = 1, math.random(0, 6) do t[i] = value(depth - 1, pool) end
    for _ = 1, math.random(0, 6) do t[key()] = value(depth - 1, pool) end
    return t
  end
  return value
end

describe("codec: values made at random", function()
  local seed <const> = tonumber(os.getenv("PLUA_SEED")) or os.time()

  it("come back the same (seed " .. seed .. ")", function()
    math.randomseed(seed)
    local value <const> = generator()
    for _ = 1, 300 do
      local v <const> = value(5, {})
      same(v, cross(v))
    end
  end)

  it("come back the same from memory that is not looked into (seed " .. seed .. ")", function()
    math.randomseed(seed)
    local value <const> = generator()
    for round = 1, 300 do
      local v <const> = value(5, {})
      codec.look(round % 3 == 0)
      local message <const> = codec.encode(v)
      codec.look(round % 3 == 1)
      local got <const> = values(codec.decode(message))
      codec.look(true)
      same(v, got)
    end
  end)
end)

describe("codec: functions", function()
  it("cross with their upvalues, false and nil among them", function()
    local n <const>, no, none = 41, false, nil
    local f <const> = cross(function() return n + 1, no, none end)
    assert.same({ n = 3, 42, false }, table.pack(f()))
    no, none = 1, 1
    assert.same({ n = 3, 42, false }, table.pack(f()))
  end)

  it("share an upvalue that they shared", function()
    local n = 0
    local function up() n = n + 1 return n end
    local function get() return n end
    local t <const> = cross { up = up, get = get, deep = { get } }
    t.up() t.up()
    assert.equal(2, t.get())
    assert.equal(2, t.deep[1]())
    assert.equal(0, n)
    local a <const>, b <const> = cross(up, get)
    a()
    assert.equal(1, b())
  end)

  it("recurse, alone and in turn", function()
    local function fact(k) return k < 2 and 1 or k * fact(k - 1) end
    assert.equal(120, cross(fact)(5))
    local odd
    local function even(k) return k == 0 or odd(k - 1) end
    function odd(k) return k ~= 0 and even(k - 1) end
    local e <const>, o <const> = cross(even, odd)
    assert.is_true(e(10))
    assert.is_true(o(7))
  end)

  it("keep cycles through tables, and identity", function()
    local t <const> = {}
    function t.me() return t end
    local got <const> = cross(t)
    assert.equal(got, got.me())
    local f <const>, g <const> = cross(t.me, t.me)
    assert.equal(f, g)
  end)

  it("cross twice, with the upvalues of the day", function()
    local n = 1
    local function f() return n end
    assert.equal(1, cross(f)())
    n = 2
    assert.equal(2, cross(f)())
  end)

  it("cross again from where they arrived", function()
    G.spec_helper = function(x) return x * 3 end
    local function f(x) return spec_helper(x) end
    local once <const> = cross(f)
    G.spec_helper = nil
    assert.equal(6, cross(once)(2))
    assert.equal(6, cross(cross(once))(2))
  end)

  it("keep their lines for tracebacks", function()
    local ok <const>, why <const> = pcall(cross(function() error("here") end))
    assert.is_false(ok)
    assert.matches("codec_spec.lua:%d+: here$", why)
  end)

  it("cross with more upvalues and constants than one byte of an instruction can count", function()
    local source <const> = { "local t = {}" }
    for i = 1, 300 do source[#source + 1] = ("t[%d] = 'constant %d'"):format(i, i) end
    source[#source + 1] = "return t, late_global, math.pi"
    local f <const> = load(table.concat(source, "\n"), "=many", "t", _ENV)
    G.late_global = "late"
    local got <const> = cross(f)
    G.late_global = nil
    local t <const>, late <const>, pi <const> = got()
    assert.equal("constant 300", t[300])
    assert.equal("late", late)
    assert.equal(math.pi, pi)
  end)

  it("cross when they were stripped", function()
    G.stripped_global = 5
    local f <const> = load(string.dump(function(x) return x + stripped_global end, true))
    local got <const> = cross(f)
    G.stripped_global = nil
    assert.equal(7, got(2))
  end)

  it("are refused by the reader that takes only data", function()
    local _, why <const>, code <const> = codec.decode_plain(codec.encode { function() end })
    assert.equal("a function, where only data is taken", why)
    assert.equal(codec.ECODEC, code)
    assert.same({ true, { 1 } }, { codec.decode_plain(codec.encode { 1 }) })
  end)
end)

describe("codec: the globals that functions read", function()
  local names <const> = { "g_add", "g_base", "g_deep", "g_file", "g_table", "g_count", "g_thread" }
  after_each(function()
    for _, name in ipairs(names) do G[name] = nil end
  end)

  it("cross, and those of global functions too", function()
    G.g_base = 10
    function G.g_deep(x) return x + g_base end
    function G.g_add(x) return (function(y) return g_deep(y) end)(x) end
    local f <const> = cross(function(x) return g_add(x) end)
    for _, name in ipairs(names) do G[name] = nil end
    assert.equal(15, f(5))
  end)

  it("are one private table for all functions of a message", function()
    G.g_count = 0
    local up <const>, get <const> = cross(function() g_count = g_count + 1 end,
      function() return g_count end)
    up() up()
    assert.equal(2, get())
    assert.equal(0, G.g_count)
  end)

  it("may have short names, and none", function()
    G.g, G[""] = 5, 6
    local f <const> = cross(load("return g, _ENV['']"))
    G.g, G[""] = nil, nil
    assert.same({ 5, 6 }, { f() })
  end)

  it("are found in the code, all of them and no others", function()
    local function named(source) return codec.globals(string.dump(load(source))) end
    assert.same({ "b", "c" }, named("a = b; return function() return c.x, 'd' end"))
    assert.same({ "x" }, named("local t = x; return function() t.y = 1; return t.z end"))
    assert.same({ "x", "y" },
      named("local e = x; return function() local _ENV = e; return z end, y"))
    -- From where _ENV is taken as a value, each constant may be a name.
    assert.same({ "a", "a", "b", "c" },
      named("local e = _ENV; return a, 1.5, 'b', 'c', true, 1 << 40"))
    for _, n in ipairs { 254, 255, 256, 257, 300 } do
      local source <const>, all <const> = { "local t = {} " }, {}
      for i = 1, n do source[i + 1], all[i] = ("t['k%d'] = t "):format(i), "k" .. i end
      source[#source + 1] = "return last"
      all[#all + 1] = "last"
      assert.same(n < 256 and { "last" } or all, named(table.concat(source)))
    end
  end)

  it("are not sought in what no dump of this Lua begins or ends with", function()
    local dump <const> = string.dump(load("a = b; return function() return c end"))
    assert.same({ "b", "c" }, codec.globals(dump))
    for n = 0, #dump - 1 do assert.is_nil(codec.globals(dump:sub(1, n))) end
    for i = 1, 15 do
      local other <const> = string.char(dump:byte(i) ~ 1)
      assert.is_nil(codec.globals(dump:sub(1, i - 1) .. other .. dump:sub(i + 1)))
    end
    for i = 16, #dump do
      for _, other in ipairs { 0, 0x7f, 0x80, 0xff } do
        local found <const> = codec.globals(dump:sub(1, i - 1) .. string.char(other)
          .. dump:sub(i + 1))
        assert.is_true(found == nil or #found < #dump)
      end
    end
  end)

  it("are those that are read as globals, no others of a name that occurs", function()
    G.g_table, G.g_base = { "told nobody" }, 1
    local t <const> = { g_table = 2 }
    local message <const> = codec.encode(function()
      t.g_table = "g_table"
      return g_base, t.g_table
    end)
    assert.is_nil(message:find("told nobody", 1, true))
  end)

  it("are refused where they are those of more tables than a byte can count", function()
    local functions <const> = {}
    for i = 1, 256 do
      functions[i] = load("return e_own", "=env", "t",
        setmetatable({ e_own = i }, { __index = G }))
    end
    assert.equal("[256]: functions with more than 255 tables of globals", (refusal(functions)))
    functions[256] = nil
    for i, f in ipairs(cross(functions)) do assert.equal(i, f()) end
  end)

  it("are not a table with a metatable that is no _ENV", function()
    local proxy <const> = setmetatable({}, { __index = G })
    assert.equal(
      ".upvalue 'proxy': table with a metatable that is not registered (plua.register)",
      (refusal(function() return proxy end)))
  end)

  it("fall back on those of the place where they arrive", function()
    local f <const> = cross(function() return g_base, tostring(1) end)
    G.g_base = "local"
    assert.same({ "local", "1" }, { f() })
  end)

  it("keep what functions and values share", function()
    G.g_table = {}
    local t <const> = G.g_table
    local f <const> = cross(function() return g_table, t end)
    local a <const>, b <const> = f()
    assert.equal(a, b)
    assert.not_equal(t, a)
  end)

  it("become stubs that tell the reason where they cannot cross", function()
    G.g_file, G.g_thread = io.tmpfile(), { { coroutine.create(print) } }
    local f <const> = cross(function(how)
      if how == 1 then return g_file:read() end
      if how == 2 then return g_thread[1] end
      if how == 3 then return g_file() end
      if how == 4 then return #g_thread end
      return how
    end)
    G.g_file:close()
    assert.equal(5, f(5))
    local file <const> = "global 'g_file' cannot cross processes: userdata (FILE*)"
    local thread <const> = "global 'g_thread' cannot cross processes: [1][1]: coroutine"
    for how, why in ipairs { file, thread, file, thread } do
      local ok <const>, message <const> = pcall(f, how)
      assert.is_false(ok)
      assert.matches("codec_spec.lua:%d+: ", message)
      assert.equal(why, message:match(":%d+: (.*)"))
    end
  end)

  it("are told as stubs beside other operands too", function()
    G.g_thread = coroutine.create(print)
    local f <const> = cross(function(how)
      if how == 1 then return setmetatable({}, {}) .. g_thread end
      if how == 2 then return 1 + g_thread end
      return g_thread
    end)
    for how = 1, 2 do
      local _, message <const> = pcall(f, how)
      assert.matches(":%d+: global 'g_thread' cannot cross processes: coroutine$", message)
    end
    local _, message <const> = pcall(debug.getmetatable(f(3)).__len, {})
    assert.equal("this global could not cross processes", message)
  end)

  it("stay stubs, with the reason, when they are sent on", function()
    G.g_thread = coroutine.create(print)
    local f <const> = cross(cross(function() return g_thread() end))
    local _, message <const> = pcall(f)
    assert.equal("global 'g_thread' cannot cross processes: coroutine",
      message:match("global 'g_thread' cannot cross processes: coroutine$"))
  end)

  it("are those of an _ENV that falls back on others; without metatable it is a table", function()
    local base <const> = { e_base = 1 }
    local env <const> = setmetatable({ e_own = 2 },
      { __index = setmetatable({}, { __index = base }) })
    local f <const> = cross(load("return e_own, e_base, tostring(3), e_none", "=env", "t", env))
    assert.same({ n = 4, 2, 1, "3" }, table.pack(f()))
    local bare <const> = cross(load("return e_own, tostring", "=env", "t", { e_own = 2 }))
    assert.same({ n = 2, 2 }, table.pack(bare()))
  end)

  it("cross though others beside them do not", function()
    local shared <const> = { "shared" }
    G.g_file = { shared, "repeated", "repeated", "repeated", coroutine.create(print) }
    G.g_table = { shared, "repeated", "repeated", "repeated" }
    local f <const> = cross(function() return g_table, shared, rawlen(g_file) end)
    local t <const>, s <const> = f()
    assert.equal(t[1], s)
    assert.same({ { "shared" }, "repeated", "repeated", "repeated" }, t)
  end)

  it("cross whole where one beside them took many shared values back", function()
    local many <const> = {}
    for i = 1, 500 do many[i] = { i, ("%099d"):format(i) } end
    G.g_file = { many, many, coroutine.create(print) }
    G.g_table = { many, many[500] }
    local t <const> = cross(function() return g_table, rawlen(g_file) end)()
    for i = 1, 500 do assert.same(many[i], t[1][i]) end
    assert.equal(t[1][500], t[2])
  end)

  it("are refused as upvalues, not made stubs", function()
    local conn <const> = io.stdout
    local why <const>, code <const> = refusal(function() return conn end)
    assert.equal(".upvalue 'conn': userdata (FILE*)", why)
    assert.equal(codec.ECODEC, code)
  end)
end)

describe("codec: names", function()
  it("stand for C functions", function()
    assert.equal(math.sqrt, cross(math.sqrt))
    assert.equal(print, cross(print))
    assert.equal(codec.encode, cross(codec.encode))
    assert.same({ string.rep, next }, { cross(string.rep, next) })
  end)

  it("stand for modules, the globals among them", function()
    assert.equal(string, cross(string))
    assert.equal(G, cross(G))
    assert.equal(codec, cross { m = codec }.m)
    local f <const> = cross(function() return math.floor(2.5), string, codec end)
    assert.same({ 2, string, codec }, { f() })
  end)

  it("stand for Lua functions of modules that are not Lua's own", function()
    local say <const> = require "say"
    assert.equal(say.set_namespace, cross(say.set_namespace))
    string.spec_added = function(x) return x .. "!" end
    local got <const> = cross(string.spec_added)
    assert.not_equal(string.spec_added, got)
    assert.equal("a!", got("a"))
    string.spec_added = nil
  end)

  it("make the other side load the module", function()
    local m <const> = { f = function() end, new = true }
    package.loaded["spec.made"] = m
    local message <const> = codec.encode(m)
    package.loaded["spec.made"] = nil
    local again <const> = { f = print }
    package.preload["spec.made"] = function() return again end
    assert.same({ true, again }, { codec.decode(message) })
    package.loaded["spec.made"] = nil
    local _, plain_why <const> = codec.decode_plain(message)
    assert.equal("module 'spec.made' is not loaded here", plain_why)
    package.preload["spec.made"] = nil
    local _, why <const>, code <const> = codec.decode(message)
    assert.matches("^module 'spec.made' cannot be loaded here: module 'spec.made' not found:", why)
    assert.equal(codec.ECODEC, code)
  end)

  it("are found whatever else there is for a key among the modules", function()
    local m <const> = { f = function() end }
    package.loaded[1], package.loaded[true], package.loaded["spec.beside"] = m, m, m
    local got <const> = cross(m)
    package.loaded[1], package.loaded[true], package.loaded["spec.beside"] = nil, nil, nil
    assert.equal(m, got)
  end)

  it("are found as soon as they are there, wherever they lie", function()
    for i = 1, 300 do
      local m <const> = { f = function() return i end }
      package.loaded["spec.made"] = m
      for _ = 1, 2 do
        local got <const>, f <const> = cross(m, m.f)
        assert.equal(m, got)
        assert.equal(m.f, f)
      end
      package.loaded["spec.made"] = nil
      collectgarbage()
    end
  end)

  it("are found anew under another name", function()
    local m <const> = { f = function() end }
    package.loaded["spec.made"] = m
    for _ = 1, 3 do assert.equal(m, cross(m)) end
    package.loaded["spec.made"], package.loaded["spec.beside"] = nil, m
    cross(m)
    for _ = 1, 3 do assert.equal(m, cross(m)) end
    package.loaded["spec.beside"] = nil
  end)

  it("are found though a finalizer changes modules while a message is written", function()
    local m, steps, from
    local changed, wrong = 0, 0
    local before <const> = (os.getenv "B" or ""):find "small" and 5 or 10 -- fewer run there
    local function small() return steps end
    local function replace()
      steps = steps + 1
      if steps > from then
        m = { f = print }
        package.loaded["spec.made"] = m
      end
    end
    local garbage <const> = { __gc = replace }
    for i = 1, 600 do package.loaded["spec.pad" .. i] = true end
    collectgarbage("incremental", 100, 4, 1) -- some finalizers at each step, a step at each turn
    for i = 1, 60 do
      collectgarbage("stop")
      m, steps, from = nil, 0, math.huge
      package.loaded["spec.made"] = { f = print }
      codec.encode(small)
      collectgarbage()
      for _ = 1, 100 + i * 10 do setmetatable({}, garbage) end
      while steps == 0 do collectgarbage("step", 0) end
      codec.encode(small)
      package.loaded["spec.other"] = not package.loaded["spec.other"] or nil
      steps, from = 0, before
      collectgarbage("restart")
      codec.encode(small)
      collectgarbage("stop")
      from = math.huge
      if m then
        changed = changed + 1
        if cross(m) ~= m then wrong = wrong + 1 end
      end
    end
    for i = 1, 600 do package.loaded["spec.pad" .. i] = nil end
    package.loaded["spec.made"], package.loaded["spec.other"] = nil, nil
    collectgarbage("incremental", 200, 100, 13)
    collectgarbage("restart")
    assert.is_true(changed > 0)
    assert.equal(0, wrong)
  end)

  it("are modules from when on they are more than data", function()
    local m <const> = { limit = 5 }
    package.loaded["spec.data"] = m
    for _ = 1, 3 do assert.not_equal(m, cross(function() return m end)()) end
    m.f = function() end
    for _ = 1, 3 do assert.equal(m, cross(function() return m end)()) end
    package.loaded["spec.data"] = nil
  end)

  it("are modules whatever it is that makes them more than data", function()
    local ways <const> = {
      function(m) m[1] = print end,
      function(m) m[4] = function() end end,
      function(m) m[true] = coroutine.create(print) end,
      function(m) m.u = codec.userdata(1) end,
      function(m) setmetatable(m, {}) end,
    }
    for _, change in ipairs(ways) do
      local m <const> = { 1, 2, 3, { print }, limit = 5, t = { print } }
      local function f() return m end
      package.loaded["spec.data"] = m
      for _ = 1, 3 do assert.not_equal(m, cross(f)()) end
      change(m)
      for _ = 1, 3 do assert.equal(m, cross(f)()) end
      package.loaded["spec.data"] = nil
    end
  end)

  it("stand for the functions of what was data, as soon as they are there", function()
    local m <const> = { limit = 5 }
    package.loaded["spec.data"] = m
    for _ = 1, 3 do cross(function() end) end
    function m.f() end
    assert.equal(m.f, cross(m.f))
    package.loaded["spec.data"] = nil
  end)

  it("are those of the functions that are modules now", function()
    local function first() end
    local function second() end
    package.loaded["spec.made"] = first
    for _ = 1, 3 do assert.equal(first, cross(first)) end
    package.loaded["spec.made"] = second
    assert.equal(second, cross(second))
    package.loaded["spec.made"] = nil
  end)

  it("are no empty ones", function()
    local m <const> = { f = function() end }
    package.loaded[""] = m
    for _ = 1, 3 do assert.not_equal(m, cross(m)) end
    package.loaded[""] = nil
  end)

  it("stand for modules with userdata, but not for the tables that are their fields", function()
    local m <const> = { u = codec.userdata(1), t = { 1 } }
    package.loaded["spec.made"] = m
    local got <const>, t <const> = cross(m, m.t)
    package.loaded["spec.made"] = { f = print, t = m.t }
    local also <const> = cross(m.t)
    package.loaded["spec.made"] = nil
    assert.equal(m, got)
    assert.same({ 1 }, t)
    assert.not_equal(m.t, t)
    assert.not_equal(m.t, also)
  end)

  it("do not stand for modules of plain data, which go as tables", function()
    package.loaded["spec.data"] = { limit = 5 }
    local data <const> = package.loaded["spec.data"]
    local got <const> = cross(function() return data end)()
    package.loaded["spec.data"] = nil
    assert.not_equal(data, got)
    assert.same({ limit = 5 }, got)
  end)

  it("are looked up anew when a field has changed", function()
    local message <const> = codec.encode(math.cos)
    assert.is_string(message)
    local cos <const> = math.cos
    math.cos = math.sin
    local sin <const> = cross(math.sin)
    local why <const> = refusal(cos)
    math.cos = cos
    assert.equal(math.sin, sin)
    assert.equal("C function without a name in a module", why)
  end)
end)

describe("codec: a result that only its worker could read", function()
  local plua <const> = require "plua"
  local WHY <const> =
    "no metatable is registered here under the name 'spec.only there': plua.register it "
      .. "before workers are made"

  local function make(i)
    if i ~= 2 then return i end
    local class <const> = {}
    require("plua").register("spec.only there", class)
    return setmetatable({}, class)
  end

  it("is its item's error, and no other's", function()
    local opts <const> = { workers = 2, on_error = "collect" }
    local list <const> = plua.map(make, { 1, 2, 3 }, opts)
    assert.same({ 1, 3 }, { list[1], list[3] })
    local streamed <const> = {}
    for i, result in plua.imap(make, { 1, 2, 3 }, opts) do streamed[i] = result end
    assert.same({ 1, 3 }, { streamed[1], streamed[3] })
    for _, err in ipairs { list[2], streamed[2] } do
      assert.same({ "encode", WHY, 2, 2 }, { err.kind, err.message, err.index, err.item })
    end
    local ok <const>, err <const> = pcall(plua.map, make, { 1, 2, 3 }, { workers = 2 })
    assert.same({ false, "encode", WHY }, { ok, err.kind, err.message })
  end)

  it("is its future's error", function()
    local pool <close> = plua.pool { workers = 1 }
    local future <const> = pool:apply_async(make, 2)
    local ok <const>, err <const> = pcall(future.get, future)
    assert.same({ false, "encode", WHY }, { ok, err.kind, err.message })
    assert.equal(3, pool:apply(make, 3))
  end)
end)

describe("codec: null", function()
  it("of lua-cjson is null on the other side, as a value and as a key", function()
    local null <const> = require("cjson").null
    local pool <close> = require("plua").pool { workers = 1 }
    local got <const> = pool:apply(function(x)
      local cjson <const> = require("cjson")
      return { x == cjson.null, cjson.decode("[null]")[1], { [x] = 1 } }
    end, null)
    assert.same({ true, null, { [null] = 1 } }, got)
  end)
end)

describe("codec: what cannot cross", function()
  local meta <const> = { __name = "Thing" }
  local cases <const> = {
    { "coroutine", function() return coroutine.create(print) end },
    { ".conn.socket: userdata (FILE*)", function() return { conn = { socket = io.stdout } } end },
    { "[3].cb: coroutine", function() return { 1, 2, { cb = coroutine.create(print) } } end },
    { '["a key"][1.5]: light userdata',
      function() return { ["a key"] = { [1.5] = codec.lightuserdata() } } end },
    { "[true]: light userdata", function() return { [true] = codec.lightuserdata() } end },
    { ".list (a key): coroutine",
      function() return { list = { [coroutine.create(print)] = 1 } } end },
    { " (a key).x: coroutine", function() return { [{ x = coroutine.create(print) }] = 1 } end },
    { ".f: C function without a name in a module", function() return { f = codec.closure() } end },
    { ".f: C function without a name in a module",
      function() return { f = ("x"):gmatch("y") } end },
    { ".p: table (Thing) with a metatable that is not registered (plua.register)",
      function() return { p = setmetatable({}, meta) } end },
    { "table with a metatable that is not registered (plua.register)",
      function() return setmetatable({}, {}) end },
    { "userdata", function() return codec.userdata(1) end },
    { ".u: userdata (Thing)", function() return { u = codec.userdata(1, meta) } end },
    { ".f.upvalue 'file': userdata (FILE*)", function()
      local file <const> = io.stdout
      return { f = function() return file end }
    end },
    { ".upvalue 'inner'.upvalue 'deep'.x: coroutine", function()
      local deep <const> = { x = coroutine.create(print) }
      local function inner() return deep end
      return function() return inner() end
    end },
  }

  -- A key is shown as far as its 40th byte.
  local long <const> = ("a "):rep(20)
  cases[#cases + 1] = { ('["%s"]: coroutine'):format(long),
    function() return { [long] = coroutine.create(print) } end }
  cases[#cases + 1] = { ('["%s..."]: coroutine'):format(long),
    function() return { [long .. "b"] = coroutine.create(print) } end }

  cases[#cases + 1] = { ".k" .. ("k"):rep(39) .. ": coroutine",
    function() return { [("k"):rep(40)] = coroutine.create(print) } end }
  for key, path in pairs { ["1a"] = '["1a"]', [""] = '[""]', ["a-b"] = '["a-b"]', a1_ = ".a1_" } do
    cases[#cases + 1] = { path .. ": coroutine",
      function() return { [key] = coroutine.create(print) } end }
  end
  cases[#cases + 1] = { "[table]: coroutine",
    function() return { [{}] = coroutine.create(print) } end }
  cases[#cases + 1] = { ".upvalue 1: coroutine", function()
    local thread <const> = coroutine.create(print)
    local f <const> = load(string.dump(function() return thread end, true))
    debug.setupvalue(f, 1, thread)
    return f
  end }
  -- Of long paths the middle is left out.
  local all <const>, ends <const> = (".d"):rep(14), (".d"):rep(12) .. "..." .. (".d"):rep(2)
  for depth, path in pairs { [14] = all, [15] = ends } do
    cases[#cases + 1] = { path .. ": coroutine", function()
      local value = coroutine.create(print)
      for _ = 1, depth do value = { d = value } end
      return value
    end }
  end

  for _, case in ipairs(cases) do
    it("is refused with the path: " .. case[1], function()
      local why <const>, code <const> = refusal(case[2]())
      assert.equal(case[1], why)
      assert.equal(codec.ECODEC, code)
    end)
  end

  it("says which of several values", function()
    assert.equal("value 2.x: coroutine", (refusal(1, { x = coroutine.create(print) }, 3)))
    assert.equal("value 3: light userdata", (refusal(1, 2, codec.lightuserdata())))
  end)

  it("does not stay in the way of the next message", function()
    local t <const> = { a = { 1 } }
    for _ = 1, 100 do
      refusal { t, coroutine.create(print) }
      same({ t, t.a }, cross { t, t.a })
    end
  end)

  it("is what finds no room, with the code of the writer", function()
    codec.limit(100)
    local why <const>, code <const> = refusal({ ("x"):rep(200) })
    local _, code_of_plain <const> = refusal(("x"):rep(200))
    local _, code_of_function <const> = refusal(function() return ("x"):rep(200) end)
    codec.limit(nil)
    assert.equal("larger than the shared memory that could be mapped (ulimit -v?)", why)
    assert.same({ codec.ETOOBIG, codec.ETOOBIG, codec.ETOOBIG },
      { code, code_of_plain, code_of_function })
  end)
end)

describe("codec: hooks", function()
  local Counter <const> = { __name = "Counter" }
  Counter.__plua_save = function(u) return { n = codec.number(u) } end
  Counter.__plua_load = function(v) return codec.userdata(v.n, Counter) end
  codec.register("spec.Counter", Counter)

  it("let userdata cross, shared", function()
    local u <const> = codec.userdata(7, Counter)
    local got <const> = cross { u, u, { k = u } }
    assert.equal(7, codec.number(got[1]))
    assert.equal(Counter, debug.getmetatable(got[1]))
    assert.equal(got[1], got[2])
    assert.equal(got[1], got[3].k)
    assert.not_equal(u, got[1])
  end)

  it("may save any value, nested objects too", function()
    local Box <const> = {}
    Box.__plua_save = function(b) return b.inner end
    Box.__plua_load = function(inner) return setmetatable({ inner = inner }, Box) end
    codec.register("spec.Box", Box)
    local function box(v) return setmetatable({ inner = v }, Box) end
    local shared <const> = { "shared" }
    local got <const> = cross { box(1), box(nil), box(box("deep")), box(shared), shared,
      box { codec.userdata(3, Counter) }, [box("key")] = 1 }
    assert.equal(1, got[1].inner)
    assert.is_nil(got[2].inner)
    assert.equal("deep", got[3].inner.inner)
    assert.equal(got[5], got[4].inner)
    assert.equal(3, codec.number(got[6].inner[1]))
    assert.equal(1, cross(box(box(box(box(1))))).inner.inner.inner.inner)
  end)

  it("may themselves send and receive", function()
    local Nested <const> = {}
    Nested.__plua_save = function(o) return codec.encode(o.list) end
    Nested.__plua_load = function(s)
      return setmetatable({ list = select(2, codec.decode(s)) }, Nested)
    end
    codec.register("spec.Nested", Nested)
    local list <const> = { { 1, 2 }, { x = "y" } }
    local got <const> = cross { setmetatable({ list = list }, Nested), list }
    assert.same(list, got[1].list)
    assert.same(list, got[2])
  end)

  it("may save what was sent before, and other objects that were", function()
    local Box <const> = {}
    Box.__plua_save = function(b) return b.inner end
    Box.__plua_load = function(inner) return setmetatable({ inner = inner }, Box) end
    codec.register("spec.Before", Box)
    local function box(v) return setmetatable({ inner = v }, Box) end
    local shared <const>, a <const> = { "shared" }, box(1)
    local got <const> = cross { shared, { { a } }, box { a, shared } }
    assert.equal(got[1], got[3].inner[2])
    assert.equal(got[2][1][1], got[3].inner[1])
  end)

  it("may save what is garbage at once: nothing else is taken for it", function()
    local Fresh <const> = {}
    Fresh.__plua_save = function(o)
      collectgarbage()
      return { { o.n } }
    end
    Fresh.__plua_load = function(v) return v[1][1] end
    codec.register("spec.Fresh", Fresh)
    local list <const> = {}
    for i = 1, 200 do list[i] = setmetatable({ n = i }, Fresh) end
    for i, n in ipairs(cross(list)) do assert.equal(i, n) end
  end)

  it("are not run by the reader that shall run none", function()
    assert.same({ true, { 1, "x" } }, { codec.decode_quiet(codec.encode { 1, "x" }) })
    local _, why <const>, code <const> =
      codec.decode_quiet(codec.encode { codec.userdata(7, Counter) })
    assert.equal("an object that only its __plua_load can make", why)
    assert.equal(codec.ECODEC, code)
  end)

  it("are what userdata needs: a name alone is not enough", function()
    local Named <const> = { __name = "Named" }
    codec.register("spec.Named", Named)
    assert.equal("userdata (Named)", (refusal(codec.userdata(1, Named))))
  end)

  it("that fail refuse the value, with its path", function()
    local Bad <const> = { __plua_save = function() error("no way", 0) end }
    codec.register("spec.Bad", Bad)
    assert.equal(".x: __plua_save failed: no way", (refusal { x = setmetatable({}, Bad) }))
    local Late <const> = {
      __plua_save = function() return 1 end,
      __plua_load = function() error("not here", 0) end,
    }
    codec.register("spec.Late", Late)
    local _, why <const>, code <const> = codec.decode(codec.encode { setmetatable({}, Late) })
    assert.equal("__plua_load failed: not here", why)
    assert.equal(codec.ECODEC, code)
  end)

  it("are needed on both sides", function()
    local Half <const> = { __plua_save = function() return 1 end }
    codec.register("spec.Half", Half)
    local _, why <const>, code <const> = codec.decode(codec.encode(setmetatable({}, Half)))
    assert.equal("an object with __plua_save whose metatable has no __plua_load here", why)
    assert.equal(codec.ECODEC, code)
  end)

  it("must make an object: nil is none, and no key", function()
    local Nothing <const> = { __plua_save = function() return 1 end, __plua_load = function() end }
    codec.register("spec.Nothing", Nothing)
    local o <const> = setmetatable({}, Nothing)
    for _, value in ipairs { o, { o }, { o, o }, { [o] = 1 }, { x = o } } do
      local _, why <const>, code <const> = codec.decode(codec.encode(value))
      assert.equal("__plua_load gave nil where an object belongs", why)
      assert.equal(codec.ECODEC, code)
    end
    Nothing.__plua_load = function() return false end
    assert.same({ false, false, [false] = 1 }, cross { o, o, [o] = 1 })
  end)

  it("cannot save an object inside itself", function()
    local Self <const> = { __plua_save = function(o) return { { o } } end }
    codec.register("spec.Self", Self)
    assert.equal(".__plua_save()[1][1]: what __plua_save gave holds the object itself",
      (refusal(setmetatable({}, Self))))
    Self.__plua_save = function(o) return { { 1 }, { { 2 } }, o } end
    assert.equal(".__plua_save()[3]: what __plua_save gave holds the object itself",
      (refusal(setmetatable({}, Self))))
  end)

  it("ask for registration", function()
    local meta <const> = { __name = "Loose", __plua_save = function() return 1 end }
    assert.equal(
      "table (Loose) has __plua_save, but its metatable is not registered (plua.register)",
      (refusal(setmetatable({}, meta))))
  end)

  it("that change what is being written harm only the message", function()
    local t
    local Evil <const> = {
      __plua_save = function()
        for i = 1, 1000 do t["new" .. i] = i end
        for k in pairs(t) do if k ~= "new1" then t[k] = nil end end
        collectgarbage()
        return "saved"
      end,
      __plua_load = function(s) return s end,
    }
    codec.register("spec.Evil", Evil)
    for i = 1, 20 do
      t = { a = {}, b = {}, c = "string", d = { {} } }
      t["e" .. i] = setmetatable({}, Evil)
      local message <const>, why <const> = codec.encode(t)
      assert.is_true(message ~= nil or type(why) == "string")
      if message then codec.decode(message) end
    end
  end)
end)

describe("codec: bytes that are no message", function()
  local function golden()
    local n, shared = 0, { "shared" }
    G.spec_global = { 1, 2, 3 }
    local Point <const> = { __plua_load = function(v) return v end }
    codec.register("spec.Golden", Point)
    local Saved <const> = { __plua_save = function() return { 1 } end }
    Saved.__plua_load = function() return {} end
    codec.register("spec.Saved", Saved)
    local data <const> = {
      codec.encode { 1, -1, 300, 70000, 1 << 40, 1.5, true, false, "short", ("long "):rep(100) },
      codec.encode { { 1, 2, 3 }, { 1.5, 2.5 }, { 1, 2, "x", k = 1 } },
      codec.encode({ a = shared, b = shared, [shared] = { a = { a = 1 } } }, nil, "x"),
      codec.encode(setmetatable({ x = 1, y = setmetatable({ 1, 2 }, Point) }, Point)),
      codec.encode { print, math.sqrt, string },
      codec.encode { setmetatable({}, Saved), setmetatable({}, Saved) },
    }
    local code <const> = {
      codec.encode(function() n = n + 1 return n, shared, spec_global end, function() return n end),
    }
    G.spec_global = nil
    return data, code
  end
  local data <const>, code <const> = golden()

  local function survives(read, message)
    local ok <const>, why <const>, number <const> = read(message)
    if ok then return end
    if type(why) == "string" and number == codec.EFORMAT then return end
    if number ~= codec.ECODEC and number ~= codec.EDEPTH then error("refused with no code") end
  end

  it("are refused when empty, blank or cut off anywhere", function()
    local _, why <const>, number <const> = codec.decode("")
    assert.equal("malformed message: it is cut short, at byte 0", why)
    assert.equal(codec.EFORMAT, number)
    assert.is_nil((codec.decode(("\0"):rep(64))))
    for _, list in ipairs { data, code } do
      for _, message in ipairs(list) do
        for i = 0, #message - 1 do
          local ok <const>, _, cut <const> = codec.decode(message:sub(1, i))
          if ok or cut ~= codec.EFORMAT then error(("cut at %d of %d"):format(i, #message)) end
        end
      end
    end
  end)

  it("give an error or a value after any change of one byte", function()
    for _, message in ipairs(data) do
      for i = 1, #message do
        local byte <const> = message:byte(i)
        for _, other in ipairs { 0, 0x7f, 0x80, 0xff, (byte + 1) % 256, byte ~ 1 } do
          local changed <const> = message:sub(1, i - 1) .. string.char(other) .. message:sub(i + 1)
          survives(codec.decode_plain, changed)
        end
      end
    end
  end)

  it("give an error or a value when functions are damaged outside their bytecode", function()
    for _, message in ipairs(code) do
      local first <const> = message:find("\27Lua", 1, true)
      for i = 1, first - 9 do
        for _, other in ipairs { 0, 0x7f, 0x80, 0xff, (message:byte(i) + 1) % 256 } do
          survives(codec.decode_plain,
            message:sub(1, i - 1) .. string.char(other) .. message:sub(i + 1))
        end
      end
    end
  end)

  it("cannot ask for more memory than they could fill", function()
    local function u32(n) return string.pack("I4", n) end
    collectgarbage()
    local before <const> = collectgarbage("count")
    local bombs <const> = {
      "\x20" .. u32(0xffffffff) .. u32(0), "\x20" .. u32(0) .. u32(0xffffffff),
      "\x22" .. u32(0xffffffff) .. ("\0"):rep(100), "\x0a" .. u32(0xffffffff) .. "x",
      "\x0b" .. string.pack("J", 1 << 63) .. "x", "\x10" .. u32(0xffffffff) .. "\1",
      "\x10" .. u32(900000) .. "\1",
      "\x2a" .. string.pack("J", 0xffffffffffffffff),
      "\x2c" .. string.pack("J", -1 >> 1) .. "\27Lua",
      -- nested tables, each claiming all that is left
      ("\x20" .. u32(9000) .. u32(0)):rep(1000) .. ("\1"):rep(9000),
    }
    for _, bomb in ipairs(bombs) do
      local ok <const>, _, number <const> = codec.decode(bomb)
      assert.is_nil(ok)
      assert.equal(codec.EFORMAT, number)
    end
    assert.is_true(collectgarbage("count") - before < 4096)
  end)

  it("cannot make keys of nil or NaN, or nests without end", function()
    local function u32(n) return string.pack("I4", n) end
    local pair <const> = "\x20" .. u32(0) .. u32(1)
    assert.matches("a key that is nil", select(2, codec.decode(pair .. "\1\1")))
    local not_a_number <const> = pair .. "\8" .. bits(nan) .. "\1"
    assert.matches("a key that is no number", select(2, codec.decode(not_a_number)))
    local nest <const> = ("\x20" .. u32(1) .. u32(0)):rep(200000) .. "\1"
    local _, why <const>, number <const> = codec.decode(nest)
    assert.equal("nested more than 100000 deep", why)
    assert.equal(codec.EDEPTH, number)
  end)

  it("cannot put anything but a string where a name belongs", function()
    local function refused(message)
      local _, why <const>, number <const> = codec.decode(message)
      assert.equal(codec.EFORMAT, number)
      return why
    end
    local at_1 <const> = "malformed message: no string where one belongs, at byte 1"
    assert.equal(at_1, refused("\x12"))
    assert.equal(at_1, refused("\x12\x80")) -- 0
    assert.equal(at_1, refused(("\x12"):rep(1000000))) -- names of names of names
    -- a reference to a table, the first of two values
    local two <const> = "\x10" .. string.pack("I4", 2)
    local list <const> = "\x21" .. string.pack("I4I4", 1, 0) .. "\x80"
    assert.equal("malformed message: no string where one belongs, at byte 21",
      refused(two .. list .. "\x12\x0e" .. string.pack("I4", 5)))
  end)

  it("cannot be more values than Lua's stack holds", function()
    local N <const> = 1000001
    local _, why <const>, number <const> =
      codec.decode("\x10" .. string.pack("I4", N) .. ("\1"):rep(N))
    assert.equal("malformed message: more values than it can hold, at byte 5", why)
    assert.equal(codec.EFORMAT, number)
  end)

  it("cannot refer to what is not there", function()
    local function why(message) return (select(2, codec.decode(message))) end
    for _, at in ipairs { 5, 6, 1 << 31 } do
      assert.equal("malformed message: a reference forwards, at byte 5",
        why("\x0e" .. string.pack("I4", at)))
    end
    assert.equal("malformed message: a reference to nothing, at byte 5",
      why("\x0e" .. string.pack("I4", 4)))
    assert.equal("malformed message: a reference to no string, at byte 2", why("\x0d\0"))
  end)

  it("cannot be bytecode that Lua does not load", function()
    local message <const> = codec.encode(function() end):gsub("\27Lua", "\27Lub")
    local _, why <const>, number <const> = codec.decode(message)
    assert.matches("^malformed message: a function, plua: ", why)
    assert.equal(codec.EFORMAT, number)
  end)

  it("cannot share upvalues with what has none", function()
    local n = 0
    local function f() n = n + 1 end
    local message <const> = codec.encode(f, function() return n end, f)
    local ref <const> = #message - 13 -- a W_CELLREF; then comes only the reference to f
    assert.equal(0x16, message:byte(ref))
    local cell <const> = string.unpack("J", message, ref + 1) + 1
    assert.equal(0x2f, message:byte(cell))
    for _, damaged in ipairs {
      message:sub(1, cell - 1) .. "\x2e" .. message:sub(cell + 1), -- no more
      message:sub(1, ref) .. string.pack("J", 5) .. message:sub(ref + 9), -- to f itself
      message:sub(1, ref) .. string.pack("J", 1 << 40) .. message:sub(ref + 9),
    } do
      local _, why <const> = codec.decode(damaged)
      assert.matches("^malformed message: a shared upvalue of nothing", why)
    end
    local alone <const> = codec.encode(function() return n end) -- ends with a W_CELL and a W_SMALL
    assert.equal("\x2e\x80", alone:sub(-2))
    local _, why <const> = codec.decode(alone:sub(1, -3) .. "\x16" .. string.pack("J", 0))
    assert.matches("^malformed message: a shared upvalue of nothing", why)
  end)

  it("may be anything at all", function()
    local seed <const> = tonumber(os.getenv("PLUA_SEED")) or os.time()
    math.randomseed(seed)
    for round = 1, 20000 do
      local bytes <const> = {}
      local highest <const> = round % 2 == 0 and 255 or 0x40
      for i = 1, math.random(40) do bytes[i] = string.char(math.random(0, highest)) end
      survives(codec.decode_plain, table.concat(bytes))
    end
  end)
end)

describe("codec: memory", function()
  it("stays where it was over many messages and refusals", function()
    local shared <const> = {}
    local function f() return shared, print end
    local function round()
      for i = 1, 200 do
        cross { i, { shared, shared }, f, "repeated", "repeated" }
        refusal { coroutine.create(print), f }
        codec.decode("\x20\1\1\1")
      end
      collectgarbage()
      collectgarbage()
      return collectgarbage("count")
    end
    round()
    local before <const> = round()
    for _ = 1, 5 do round() end
    assert.is_true(round() - before < 32)
  end)

  it("is not searched over and over where addresses are regular", function()
    local shapes <const> = { function() return {} end, function(i) return { x = i } end,
      function(i) return { {}, { x = i } } end, function(i) return { i, i, i, i, i, i, i } end }
    for _, make in ipairs(shapes) do
      local t <const> = {}
      for i = 1, 100000 do t[i] = make(i) end
      local began <const> = os.clock()
      codec.encode(t)
      assert.is_true(os.clock() - began < 2)
    end
  end)

  it("is not collected while a large message is read, but again afterwards", function()
    local t <const> = {}
    for i = 1, 200000 do t[i] = { i } end
    local message <const> = codec.encode(t)
    for _ = 1, 3 do assert.equal(200000, #cross(t)) end
    assert.is_true(collectgarbage("isrunning"))
    assert.is_nil((codec.decode(message:sub(1, -2))))
    assert.is_true(collectgarbage("isrunning"))
    collectgarbage("stop")
    local ok <const> = codec.decode(message)
    local runs <const> = collectgarbage("isrunning")
    collectgarbage("restart")
    assert.is_true(ok)
    assert.is_false(runs)
  end)
end)
