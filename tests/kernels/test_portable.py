"""The rows of plain C: every row on every case equals the reference, without undefined behaviour or warnings."""

from __future__ import annotations

import ctypes
import itertools
import math
import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.ctext import CLAMP, REQUANTISE, SHIFT

from tests.kernels import harness
from tests.kernels.cases import KERNEL_OPS, cases, conv, linear
from xdeploy.builder.zig import cc
from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Code
from xdeploy.program import choose
from xdeploy.target import load_target

ALL = {op: cases(op) for op in KERNEL_OPS}
STRICT = [
    "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wcast-qual",
    "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wvla", "-Wundef", "-Wdouble-promotion", "-Werror",
]  # fmt: skip
ZIG = [sys.executable, "-m", "ziglang", "cc"]
COMPILERS = {
    "gcc": ["gcc"],
    "arm-none-eabi-gcc": ["arm-none-eabi-gcc", "-mcpu=cortex-m0plus", "-mthumb"],
    "zig": ZIG,
    "zig-m4": [*ZIG, "-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4"],
}


def _write(functions: Mapping[str, Code], path: Path) -> None:
    texts, heads = [], []
    for symbol, code in functions.items():
        found = re.search(r"static void (\{symbol\}\([^)]*\))", code.text)
        assert found, symbol
        heads.append(f"void {found[1]};".replace("{symbol}", symbol))
        texts.append(code.text.replace("static void {symbol}(", "void {symbol}(").replace("{symbol}", symbol))
    path.write_text("\n".join(["#include <stdint.h>", *heads, *texts]))


@pytest.fixture(scope="module")
def batch() -> harness.Batch:
    made = harness.Batch(load_target("x86-64"), harness.host_image(1 << 24))
    harness.fill(made, ALL, c99=True)
    return made


def _run(batch: harness.Batch, folder: Path) -> None:
    before = batch.image.bytes.copy()
    harness.call_host(batch, folder)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


@pytest.mark.parametrize(
    "flags",
    [["-O2", "-fno-sanitize=all"], ["-O1", "-fsanitize=undefined", "-fsanitize-trap=undefined"]],
    ids=["optimised", "undefined"],
)
def test_equals_reference(batch: harness.Batch, flags: list[str], tmp_path: Path) -> None:
    _write(batch.functions, tmp_path / "k.c")
    cc(["-std=c99", "-fPIC", "-shared", *flags, "k.c", "-o", "k.so"], tmp_path)
    # in a child: a trap ends the process, and the outputs stay unwritten for the next run
    child = multiprocessing.get_context("fork").Process(target=_run, args=(batch, tmp_path))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_rounding_over_the_whole_range(tmp_path: Path) -> None:
    """Both rules at the edges of int32, where the trick without shifts of negative numbers could fail."""
    text = "#include <stdint.h>\n" + CLAMP + REQUANTISE.replace("static ", "", 1) + SHIFT.replace("static ", "", 1)
    (tmp_path / "k.c").write_text(text.replace("{symbol}", "f"))
    flags = ["-O1", "-fsanitize=undefined", "-fsanitize-trap=undefined"]
    cc(["-std=c99", "-fPIC", "-shared", *flags, "k.c", "-o", "k.so"], tmp_path)
    library = ctypes.CDLL(str(tmp_path / "k.so"))
    rng = np.random.default_rng(0)
    edges = [0, 1, -1, 2**31 - 1, -(2**31) + 1, 2**30, -(2**30)]
    sums = [*edges, *(int(v) for v in rng.integers(-(2**31) + 1, 2**31, 200))]
    multipliers = [0, 2, 2**30, 2**31 - 2, *(2 * int(v) for v in rng.integers(0, 2**30, 20))]
    for acc, m in itertools.product(sums, multipliers):
        exact = -7 + math.floor(Fraction(acc * m, 2**32) + Fraction(1, 2))
        assert library.f_requantise(acc, m, -7, -(2**31), 2**31 - 1) == exact, (acc, m)
    for value, shift in itertools.product([-(2**31), *sums], range(1, 25)):
        assert library.f_shift(value, shift) == value >> shift, (value, shift)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_warnings(batch: harness.Batch, compiler: str, tmp_path: Path) -> None:
    command = COMPILERS[compiler]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    _write(batch.functions, tmp_path / "k.c")
    subprocess.run([*command, *STRICT, "-O1", "-c", "k.c", "-o", "k.o"], cwd=tmp_path, check=True)


def test_every_operation_and_format_has_a_row() -> None:
    there = {(k.op, k.weight) for k in KERNELS.values() if k.isa == "c99"}
    weighted = {(op, f.short) for op in ("conv2d", "linear") for f in FORMATS.values()}
    assert there == weighted | {(op, "-") for op in KERNEL_OPS if op not in ("conv2d", "linear")}


@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m0plus", "x86-64"])
def test_only_the_portable_form_chooses_them(name: str) -> None:
    target = load_target(name)
    for op, listed in ALL.items():
        for case in listed:
            assert op == case.node.op
            assert choose(case.graph, case.node, target).isa != "c99", case.name
            assert choose(case.graph, case.node, target, "portable").isa == "c99", case.name


def test_layers_of_other_sizes_share_the_function() -> None:
    target = load_target("cortex-m4")
    pairs = [
        (conv((5, 5), 8, 6, fmt="c4s8"), conv((9, 7), 3, 5, (1, 1), (2, 2), (0, 0, 0, 0), fmt="c4s8")),
        (linear(27, 5, "int3"), linear(64, 10, "int3")),
        (conv((5, 6), 6, 6, groups=6), conv((9, 9), 4, 4, (5, 5), groups=4)),
    ]
    for pair in pairs:
        texts = [
            min(harness.rows(c.node.op, c, target, c99=True), key=lambda k: k.cost(c.graph, c.node, target))
            .emit(c.graph, c.node, target)
            .text
            for c in pair
        ]
        assert texts[0] == texts[1]
