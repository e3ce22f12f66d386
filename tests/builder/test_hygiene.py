"""Packages compile without a warning for every core, need nothing but memcpy and memset, and keep no state."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.builder import compilers
from tests.builder.test_portable import network
from xdeploy.builder import _assembly
from xdeploy.builder.package import Package
from xdeploy.program import bind
from xdeploy.target import load_target

ALLOWED = {"memcpy", "memset"}
# the EABI's names for the same, and what every C runtime has for a core without the instruction
EABI = {"__aeabi_memcpy", "__aeabi_memcpy4", "__aeabi_memcpy8", "__aeabi_memset", "__aeabi_memset4", "__aeabi_memclr",
        "__aeabi_memclr4", "__aeabi_memclr8"}  # fmt: skip
NO_LONG_PRODUCT = {"__aeabi_lmul", "__aeabi_uidiv", "__aeabi_idiv", "__aeabi_uidivmod", "__aeabi_idivmod",
                   "__aeabi_llsl", "__aeabi_lasr", "__aeabi_llsr"}  # fmt: skip
NO_BIT_FIELDS = NO_LONG_PRODUCT | {"__gnu_thumb1_case_uqi", "__gnu_thumb1_case_sqi", "__gnu_thumb1_case_uhi"}
LEVELS = ["-O2", pytest.param("-O0", marks=pytest.mark.slow), pytest.param("-Os", marks=pytest.mark.slow),
          pytest.param("-O3", marks=pytest.mark.slow)]  # fmt: skip


def _write(core: str, form: str, folder: Path) -> Package:
    graph, golden = network()
    target = load_target(core)
    program = bind(graph, target, "net", form=form)
    package = Package(program, graph, golden, target, {}, _assembly(program, target))
    package.write(folder, 64)
    return package


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    _write("cortex-m4", "portable", folder)
    return folder


@pytest.mark.parametrize("optimise", LEVELS)
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
@pytest.mark.parametrize("core", [*compilers.CORES, "host"])
def test_portable_form(portable: Path, compiler: str, core: str, optimise: str, tmp_path: Path) -> None:
    words = [*compilers.command(compiler, core), *compilers.C, optimise]
    objects = compilers.compile_c([*words, "-std=c99"], portable, tmp_path / "c99")
    if core == "host":
        compilers.compile_c([*words, "-std=c11", "-DXD_NET_SELFTEST"], portable, tmp_path / "c11")
    _, missing, writable = compilers.symbols(objects)
    assert missing <= ALLOWED | EABI | (NO_BIT_FIELDS if core == "cortex-m0plus" else set())
    assert writable == {}


@pytest.mark.parametrize("core", compilers.CORES)
def test_tuned_form(core: str, tmp_path: Path) -> None:
    package = _write(core, "tuned", tmp_path / "net")
    hooks = tmp_path / "hooks.h"
    hooks.write_text("#define XD_LAYER_BEGIN(i) ((void)(i))\n#define XD_LAYER_END(i) ((void)(i))\n")
    for compiler in ("gcc", "zig"):
        words = [*compilers.command(compiler, core), *compilers.C, "-O2"]
        objects = compilers.compile_c([*words, "-std=c99"], tmp_path / "net", tmp_path / compiler)
        _, missing, writable = compilers.symbols(objects)
        assert missing <= ALLOWED | EABI | (NO_BIT_FIELDS if core == "cortex-m0plus" else set())
        assert writable == {}
        options = ["-std=c11", "-DXD_NET_SELFTEST", f'-DXD_NET_HOOKS="{hooks}"']
        objects = compilers.compile_c([*words, *options], tmp_path / "net", tmp_path / f"{compiler}-tested")
        kept = compilers.symbols(objects)[2]
        assert sum(kept.values()) <= -(-package.graph.tensors[package.graph.output].size // 8) * 8, kept


@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_header_in_other_languages(portable: Path, compiler: str, tmp_path: Path) -> None:
    source = '#include "xd_net.h"\nint xd_use(void *a);\nint xd_use(void *a)\n{\n'
    source += "    return xd_net_run_sized((const int8_t *)a, (int8_t *)a, a, XD_NET_ARENA_BYTES);\n}\n"
    for language, suffix in (("c99", "c"), ("c11", "c"), ("c++17", "cpp")):
        (tmp_path / f"x.{suffix}").write_text(source)
        words = [w for w in compilers.command(compiler, "cortex-m4") if w != "-Wcast-qual" or suffix == "c"]
        words += compilers.C if suffix == "c" else []
        more = [f"-std={language}", "-I", str(portable / "include"), "-c", f"x.{suffix}", "-o", "x.o"]
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_no_recursion_and_no_pointers_to_functions(portable: Path, tmp_path: Path) -> None:
    """GCC's own call graph has no cycle and no indirect call, and every frame's size is known when it compiles."""
    words = [*compilers.command("gcc", "cortex-m4"), "-std=c99", "-O1", "-fcallgraph-info=su"]
    compilers.compile_c(words, portable, tmp_path)
    calls: dict[str, set[str]] = {}
    frames: dict[str, str] = {}
    for path in tmp_path.glob("*.ci"):
        text = path.read_text()
        for caller, callee in re.findall(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', text):
            calls.setdefault(caller.split(":")[-1], set()).add(callee.split(":")[-1])
        frames |= {n.split(":")[-1]: f for n, f in re.findall(r'node: \{ title: "([^"]+)" label: "([^"]*)"', text)}
    assert "xd_net_run" in calls
    assert "__indirect_call" not in frames
    assert all("static" in f for n, f in frames.items() if n in calls or n.startswith("xd_net")), frames
    assert _depth(calls, "xd_net_run", ()) > 1


def _depth(calls: dict[str, set[str]], name: str, path: tuple[str, ...]) -> int:
    assert name not in path, f"recursion: {' -> '.join((*path, name))}"
    return 1 + max((_depth(calls, c, (*path, name)) for c in sorted(calls.get(name, ()))), default=0)


def test_words_that_must_not_occur(portable: Path) -> None:
    text = "".join(p.read_text() for p in [*portable.glob("src/*.c"), *portable.glob("*/*.h")])
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    own = {"xd_net.h", "xd_net_internal.h", "../include/xd_net.h"}
    assert set(re.findall(r"#include [<\"]([^>\"]+)", code)) <= {"stdint.h", "limits.h", "stddef.h", *own}
    assert not re.search(r"\b(malloc|calloc|free|printf|float|double|goto|setjmp)\b", code)
