-- SPDX-License-Identifier: MIT
std = "lua54"
max_line_length = 100
codes = true
files["spec"].std = "+busted"
files[".luacheckrc"].std = "+luacheckrc"
-- This one is about globals.
files["spec/codec_spec.lua"].ignore = { "111", "112", "113", "122", "142", "143" }
-- What embed.c sets.
files["scripts/embed.lua"].read_globals = { "LUA_IDENT" }
