"""What the header promises, checked by a compiler against the graph and the program; the hooks, on real counters."""

from __future__ import annotations

import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builder import compilers
from tests.builder.test_portable import network
from tests.networks import residual_network
from xdeploy import __version__
from xdeploy.builder import _assembly
from xdeploy.builder.package import Package
from xdeploy.program import bind
from xdeploy.target import load_target

TOLD = {"model": {"name": 'a "b" */', "sha256": "0123abcd" * 8}, "recipe": {"seed": 3}}
PRINT = """\
#include "xd_net.h"
#include <stdio.h>
static const int in[] = XD_NET_INPUT_SHAPE, out[] = XD_NET_OUTPUT_SHAPE;
static const char *const names[] = XD_NET_LAYER_NAMES, *const labels[] = XD_NET_LABELS;
static XD_NET_INPUT_TYPE code = -128;
int main(void)
{
    unsigned i;
    printf("%s\\n%d\\n%s\\n%s\\n%s\\n%s\\n", XD_NET_XDEPLOY_VERSION, XD_NET_ABI_VERSION, XD_NET_MODEL_NAME,
           XD_NET_MODEL_SHA256, XD_NET_RECIPE_SHA256, XD_NET_TARGET);
    printf("%d %d %u %d %d %u %ld\\n", XD_NET_ARENA_BYTES, XD_NET_ARENA_USED, XD_NET_ARENA_ALIGN, XD_NET_STACK_BYTES,
           XD_NET_WEIGHT_BYTES, XD_NET_WEIGHTS_CRC32, (long)XD_NET_MACS);
    printf("%s %s %s %d %d %.9g %d\\n", XD_NET_INPUT_NAME, XD_NET_INPUT_DTYPE, XD_NET_INPUT_LAYOUT, XD_NET_INPUT_BYTES,
           XD_NET_INPUT_DIMS, (double)XD_NET_INPUT_SCALE, XD_NET_INPUT_ZERO_POINT);
    printf("%s %s %s %d %d %.9g %d\\n", XD_NET_OUTPUT_NAME, XD_NET_OUTPUT_DTYPE, XD_NET_OUTPUT_LAYOUT,
           XD_NET_OUTPUT_BYTES, XD_NET_OUTPUT_DIMS, (double)XD_NET_OUTPUT_SCALE, XD_NET_OUTPUT_ZERO_POINT);
    for (i = 0; i < sizeof in / sizeof in[0]; ++i) printf("%d ", in[i]);
    printf("\\n");
    for (i = 0; i < sizeof out / sizeof out[0]; ++i) printf("%d ", out[i]);
    printf("\\n%d %d %d %u\\n", XD_NET_LAYERS, (int)(sizeof names / sizeof names[0]), XD_NET_LABELS_COUNT,
           (unsigned)(sizeof labels / sizeof labels[0]));
    for (i = 0; i < sizeof names / sizeof names[0]; ++i) printf("%s\\n", names[i]);
    printf("%d %u %u\\n", (int)code, (unsigned)sizeof(xd_net_input), (unsigned)sizeof(xd_net_arena));
    return 0;
}
"""


def drawn(folder: Path, core: str = "cortex-m4", form: str = "portable", **told: Any) -> Package:
    graph, golden = residual_network() if form == "tuned" else network()
    target = load_target(core)
    program = bind(graph, target, "net", form)
    package = Package(program, graph, golden, target, {**TOLD, **told}, _assembly(program, target))
    package.write(folder, 1234)
    return package


def test_every_macro_says_what_is(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    package = drawn(tmp_path, form="tuned")
    (tmp_path / "main.c").write_text(PRINT)
    strict = ["gcc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Iinclude", "main.c", "-o", "t"]
    subprocess.run(strict, cwd=tmp_path, check=True)
    lines = subprocess.run([tmp_path / "t"], capture_output=True, text=True, check=True).stdout.split("\n")
    p, graph = package.program, package.graph
    assert lines[:6] == [__version__, "1", 'a "b" */', "0123abcd" * 8, package.recipe_sha256, "cortex-m4"]
    assert re.fullmatch(r"[0-9a-f]{64}", lines[4])
    crc = zlib.crc32(b"".join(a.tobytes() for a in p.constants.values()))
    assert lines[6] == f"{p.arena} {p.arena} {p.align} 1234 {p.weight_bytes} {crc} {p.macs}"
    for line, name, layout in ((lines[7], graph.input, "HWC"), (lines[8], graph.output, "C")):
        t = graph.tensors[name]
        words = line.split()
        io_name = "x" if name == graph.input else "y"
        assert words[:5] == [io_name, "int8", layout, str(t.size), str(len(t.shape))]
        assert (np.float32(words[5]), int(words[6])) == (np.float32(t.q.scale), t.q.zero_point)
    assert [tuple(map(int, line.split())) for line in lines[9:11]] == [
        graph.tensors[n].shape for n in (graph.input, graph.output)
    ]
    count = len(p.calls)
    assert lines[11] == f"{count} {count} 2 2"
    assert lines[12 : 12 + count] == [c.node for c in p.calls]
    assert lines[12 + count] == f"-128 {graph.tensors[graph.input].size} {p.arena}"


def test_asserts_stop_a_compiler_that_does_not_fit(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    drawn(tmp_path)
    header = tmp_path / "include/xd_net.h"
    text = header.read_text()
    changes = {
        "XD_NET_ARENA_ALIGN 8U": "XD_NET_ARENA_ALIGN 12U", "XD_NET_INPUT_BYTES 192": "XD_NET_INPUT_BYTES 191",
        "XD_NET_ARENA_USED ": "XD_NET_ARENA_USED 9", 
        "#include <limits.h>": "#include <limits.h>\n#undef CHAR_BIT\n#define CHAR_BIT 16",
    }  # fmt: skip
    words = ["gcc", "-std=c99", "-fsyntax-only", "-Iinclude", "-x", "c", str(header)]
    assert subprocess.run(words, cwd=tmp_path, check=False).returncode == 0
    for old, new in changes.items():
        assert old in text
        header.write_text(text.replace(old, new))
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0, old
        assert "xd_net_" in done.stderr


CLOCK = """\
#include <time.h>
extern unsigned long long spent[XD_NET_LAYERS];
static unsigned long long now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (unsigned long long)t.tv_sec * 1000000000ULL + (unsigned long long)t.tv_nsec;
}
#define XD_LAYER_BEGIN(i) (spent[i] -= now())
#define XD_LAYER_END(i) (spent[i] += now())
"""
PROFILE = """\
#define _POSIX_C_SOURCE 199309L
#include "xd_net.h"
#include <stdio.h>
static XD_NET_ALIGNED xd_net_arena a;
static XD_NET_ALIGNED xd_net_input x;
static XD_NET_ALIGNED xd_net_output y;
unsigned long long spent[XD_NET_LAYERS];
static const char *const names[] = XD_NET_LAYER_NAMES;
int main(void)
{
    int i, status = 0;
    for (i = 0; i < 200; ++i) status |= xd_net_run(x, y, a);
    for (i = 0; i < XD_NET_LAYERS; ++i) printf("%s\\t%llu\\n", names[i], spent[i]);
    return status;
}
"""


def test_a_header_of_hooks_times_every_layer(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    package = drawn(tmp_path)
    (tmp_path / "clock.h").write_text(CLOCK)
    (tmp_path / "main.c").write_text(PROFILE)
    sources = [str(p) for p in tmp_path.glob("src/*.c")]
    words = ["gcc", "-std=gnu99", "-O1", '-DXD_NET_HOOKS="clock.h"', "-I.", "-Iinclude", "-Isrc", "main.c"]
    subprocess.run([*words, *sources, "-o", "t"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "t"], capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [r[0] for r in rows] == [c.node for c in package.program.calls]
    assert all(0 < int(r[1]) < 60e9 for r in rows)


DWT = """\
#include <stdint.h>
extern uint32_t cycles[XD_NET_LAYERS];
#define CYCCNT (*(volatile uint32_t *)0xE0001004U)
#define XD_LAYER_BEGIN(i) (cycles[i] -= CYCCNT)
#define XD_LAYER_END(i) (cycles[i] += CYCCNT)
"""


def test_a_cycle_counter_is_read_around_every_call(tmp_path: Path) -> None:
    """DWT_CYCCNT of Armv7-M: two volatile reads per layer in what GCC makes of the executor."""
    package = drawn(tmp_path, form="tuned")
    (tmp_path / "dwt.h").write_text(DWT)
    words = [*compilers.command("gcc", "cortex-m4"), "-std=c99", "-O2", f'-DXD_NET_HOOKS="{tmp_path / "dwt.h"}"']
    text = subprocess.run([*words, "-Iinclude", "-Isrc", "-S", "src/xd_net.c", "-o", "-"], cwd=tmp_path,
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    calls = re.findall(r"^\s+bl\s+(xd_net_\w+)", text, re.MULTILINE)
    assert calls == [c.symbol for c in package.program.calls]
    bases = re.findall(r"^\s+ldr\s+\w+, \[(\w+), #4\]", text, re.MULTILINE)  # 0xE0001000 is in one of the registers
    assert 2 * len(calls) in {bases.count(b) for b in bases}
