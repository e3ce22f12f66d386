"""The portable form of a small network: clean C99 for any compiler, bit-exact on an emulated core, self-contained."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from tests.networks import Drawer
from xdeploy.bench.unicorn import UnicornRunner
from xdeploy.builder import build
from xdeploy.formats import QParams
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lir.ops import softmax_table
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

STRICT = [
    "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wcast-qual",
    "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wvla", "-Wundef", "-Wdouble-promotion", "-Werror",
]  # fmt: skip
# the EABI's names of a 64-bit product and a 32-bit quotient, for cores without the instruction
HELPERS = {"memcpy", "memset", "__aeabi_memcpy", "__aeabi_memset", "__aeabi_memclr", "__aeabi_lmul", "__aeabi_uidiv"}


def network() -> tuple[LoweredGraph, GoldenIo]:
    """Convolutions with and without residual, depthwise, in several formats; add, pools, linear, softmax."""
    d = Drawer((8, 8, 3))
    a = d.conv("stem", "x", 8)
    b = d.conv("block", d.conv("wise", a, 8, groups=8, fmt="int5"), 8, fmt="c4s8", residual=a)
    c = d.max_pool("pool", d.add("sum", d.conv("side", b, 8, k=1, fmt="int3"), b))
    e = d.linear("head", d.reshape("flat", c), 5, fmt="int4")
    table = softmax_table(0.2, 5)
    return d.finish(d._add("softmax", "softmax", (e,), {}, QParams(1 / 256, -128), table=table))


@pytest.fixture(scope="module", params=["cortex-m4", "cortex-m0plus"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, GoldenIo]:
    graph, golden = network()
    target = load_target(request.param)
    program = bind(graph, target, "net", form="portable")
    assert all(call.kernel.endswith("__c99") for call in program.calls)
    folder = tmp_path_factory.mktemp("portable") / target.name
    return build(program, graph, golden, target, folder, PackageOptions(form="portable"), {}), golden


def test_bit_exact_in_the_emulator(built: tuple[Artifact, GoldenIo]) -> None:
    artifact, golden = built
    model = str(load_target(str(artifact.manifest["target"])).runner["model"])
    ran = UnicornRunner(artifact, model).run(golden.input_codes)
    np.testing.assert_array_equal(ran.outputs, golden.output_codes)
    assert 0 < ran.stack <= artifact.manifest["stack_bound"]


@pytest.mark.parametrize("compiler", ["zig", "arm-none-eabi-gcc"])
def test_clean_and_self_contained(built: tuple[Artifact, GoldenIo], compiler: str, tmp_path: Path) -> None:
    artifact, _ = built
    target = load_target(str(artifact.manifest["target"]))
    if compiler == "zig":
        triple = str(target.compiler["triple"])
        command = [sys.executable, "-m", "ziglang", "cc", "-target", triple, *target.compiler["flags"]]
        command += ["-fno-sanitize=all", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables"]
    elif shutil.which(compiler):
        command = [compiler, *target.compiler["gcc_flags"]]
    else:
        pytest.skip(f"{compiler} is not installed")
    defined, undefined = set(), set()
    for source in sorted(artifact.folder.glob("src/*.c")):
        out = tmp_path / f"{source.stem}.o"
        subprocess.run(
            [*command, *STRICT, "-O2", "-Iinclude", "-Isrc", "-c", f"src/{source.name}", "-o", str(out)],
            cwd=artifact.folder, check=True,
        )  # fmt: skip
        with out.open("rb") as file:
            for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols():
                (undefined if symbol["st_shndx"] == "SHN_UNDEF" else defined).add(symbol.name)
    assert undefined - defined - {""} <= HELPERS


def test_nothing_but_c(built: tuple[Artifact, GoldenIo]) -> None:
    artifact, _ = built
    assert artifact.manifest["form"] == "portable"
    assert not list(artifact.folder.glob("src/*.S"))
    text = "".join(p.read_text() for p in artifact.folder.glob("src/*.c"))
    assert not re.search(r"__attribute__|__asm|\basm\b|__builtin|#\s*pragma", text)
