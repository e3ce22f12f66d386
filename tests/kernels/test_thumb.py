"""The rows for cores without DSP instructions: shapes around their tiles, all formats, extremes, choice and counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.armasm import function
from xdeploy.kernels.thumb import stream
from xdeploy.kernels.thumbdwtile import widest
from xdeploy.kernels.thumbgather import copy_run, fill_run
from xdeploy.kernels.thumbm0 import is_near, upper_word

from tests.kernels import harness
from tests.kernels.cases import Case, conv, linear
from xdeploy.formats import FORMATS, weight_format
from xdeploy.kernel import KERNELS, Arg, Code
from xdeploy.lir.ops import macs
from xdeploy.program import choose
from xdeploy.target import load_target

CORES = [("cortex-m0plus", "armv6m"), ("cortex-m3", "armv7m")]


def _small(case: Case, most: int) -> Case:
    """The case with codebook entries of at most this magnitude, which it reaches on both sides."""
    book = np.linspace(-most, most, len(case.node.consts["codebook"])).round().astype(np.int8)
    node = replace(case.node, consts={**case.node.consts, "codebook": book})
    return Case(f"{case.name}_{most}", replace(case.graph, nodes=(node,)), case.inputs)


def _cases() -> Iterator[Case]:
    for most in (7, 15, 31):  # every length of a turn of the rows for small weights
        yield _small(conv((4, 5), 7, 6, fmt="c4s8", relu=True), most)
    yield _small(conv((3, 3), 9, 5, (2, 3), fmt="c2s8", fill="low", in_zero=-128), 7)
    for fmt in FORMATS:
        yield conv((4, 5), 3, 5, (2, 2), pads=(1, 0, 0, 1), fmt=fmt)
        yield conv((3, 6), 4, 4, groups=4, fmt=fmt, relu=fmt == "int8")
        yield linear(13, 6, fmt, residual=True)
    yield from (conv((1, 3), n, 4, (1, 1), pads=(0, 0, 0, 0), fmt="int2") for n in (1, 2, 3, 7, 10, 11))
    yield from (conv((1, n), 9, 3, (1, 1), pads=(0, 0, 0, 0), relu=True) for n in (1, 2, 3, 4, 5))
    yield conv((4, 4), 8, 6, stride=(2, 1), residual=True, relu=True, in_zero=127)
    yield conv((5, 5), 4, 4, fill="low", in_zero=-128)
    yield conv((5, 5), 4, 4, fmt="int4", fill="high", in_zero=127)
    yield conv((7, 7), 3, 2, dilation=(2, 2), pads=(1, 2, 0, 1))
    yield from (conv((2, n), 5, 5, groups=5) for n in (1, 2, 3, 4, 5, 7))  # every width of a depthwise tile
    yield conv((6, 9), 3, 3, (5, 4), groups=3, pads=(2, 2, 2, 1), stride=(1, 2), dilation=(1, 2), in_zero=-128)
    yield conv((4, 5), 16, 16, groups=16, pads=(0, 0, 0, 0), relu=True)


CASES = list(_cases())


@pytest.mark.parametrize(("name", "isa"), CORES)
def test_bit_exact(name: str, isa: str, tmp_path: Path) -> None:
    batch = harness.Batch(load_target(name), harness.Image(harness.DATA))
    used = set()
    for case in CASES:
        for row in harness.rows(case.node.op, case, batch.target):
            if row.isa == isa:
                batch.add(row, case, samples=3)
                used.add(row.name)
    assert used == {k.name for k in KERNELS.values() if k.isa == isa}
    before = batch.image.bytes.copy()
    harness.run_unicorn(batch, tmp_path)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


# instructions per multiply-accumulate that the rows may take, with the whole call counted
_LIMITS = {
    "cortex-m0plus": {"conv": 4.0, "pointwise": 4.1, "depthwise": 8.6, "small weights": 2.8},
    "cortex-m3": {"conv": 1.45, "pointwise": 1.4, "depthwise": 3.0, "small weights": 1.6},
}
_SHAPES = {
    "conv": conv((12, 12), 16, 16),
    "pointwise": conv((12, 5), 64, 64, (1, 1), pads=(0, 0, 0, 0)),
    "depthwise": conv((12, 5), 64, 64, groups=64),
    "small weights": conv((8, 8), 32, 16, fmt="int4"),
}


@pytest.mark.parametrize(("name", "isa"), CORES)
def test_chosen_and_fast(name: str, isa: str, tmp_path: Path) -> None:
    batch = harness.Batch(load_target(name), harness.Image(harness.DATA))
    rows = {}
    for kind, case in _SHAPES.items():
        rows[kind] = row = choose(case.graph, case.node, batch.target)
        assert row.isa == isa, f"{kind}: {row.name} is chosen"
        batch.add(row, case, samples=1)
    machine = harness.Unicorn(harness.link(batch, tmp_path), batch.target, batch.image, count=True)
    for call, (kind, case) in zip(batch.calls, _SHAPES.items(), strict=True):
        counted = machine.call(call.symbol, call.args)
        assert counted / macs(case.graph, case.node) < _LIMITS[name][kind], kind
        assert rows[kind].cost(case.graph, case.node, batch.target) == pytest.approx(counted, rel=0.15), kind


def _upper_word_code(shift: int, near: bool, zero: int) -> Code:
    """A function over (count, sums, multipliers, results) around the lines that form the upper word."""
    lines = ["push {r4-r7, lr}", "mov r8, r0", "mov r9, r1", "mov r10, r2", "mov r11, r3", "1:"]
    lines += ["mov r1, r9", "ldm r1!, {r0}", "mov r9, r1", "mov r1, r10", "ldm r1!, {r4}", "mov r10, r1"]
    lines += ["uxth r5, r4", "lsrs r4, r4, #16", "movs r6, #1", "lsls r6, r6, #15", f"movs r7, #{abs(zero)}"]
    lines += ["lsls r7, r7, #16", f"{'subs' if zero < 0 else 'adds'} r6, r6, r7", *upper_word(shift, near)]
    lines += ["mov r2, r11", "stm r2!, {r1}", "mov r11, r2", "mov r1, r8", "subs r1, #1", "mov r8, r1", "bne 1b"]
    ir, name = function("upper", "i32, ptr, ptr, ptr", [*lines, "pop {r4-r7, pc}"])
    pointers = ", ".join(f'p{v}: T.handle("int32")' for v in "amy")
    text = f"@T.prim_func\ndef {{symbol}}(n: T.int32, {pointers}):\n"
    text += "".join(f'    {v} = T.decl_buffer((1048576,), "int32", data=p{v})\n' for v in "amy")
    places = ", ".join(f"T.address_of({v}[0])" for v in "amy")
    text += f'    T.evaluate(T.call_extern("int32", "{name}", n, {places}))\n'
    return Code("tir", text, (), ir)


@pytest.mark.parametrize(("shift", "near", "zero"), [(0, False, -128), (3, False, 127), (0, True, -5), (2, True, 100)])
def test_upper_word_of_a_product(shift: int, near: bool, zero: int, tmp_path: Path) -> None:
    """Against the definition in Python's integers, at all edges of both factors."""
    top = (1 << 31) - (1 << 24) if near else (1 << 31) - 2
    largest = (1 << 22) if near else (1 << 31) - 1
    assert not near or is_near(largest, top)
    edges = [0, 1, 2, 255, 65534, 65535, 65536, 65537, 98304, largest - 1, largest]
    rng = np.random.default_rng(1)
    sums = [s * e for e in edges for s in (1, -1)] + rng.integers(-largest, largest + 1, 40).tolist()
    sums = [s >> shift for s in sums] + ([] if near else [-(1 << 31) >> shift])
    scales = [2, 65534, 65536, 65538, 131070, top, *(2 * rng.integers(1, top // 2, 10)).tolist()]
    pairs = np.array([(s, m) for s in sums for m in scales], np.int64)
    image = harness.Image(harness.DATA)
    batch = harness.Batch(load_target("cortex-m0plus"), image)
    batch.functions["upper"] = _upper_word_code(shift, near, zero)
    given = [image.put(column.astype(np.int32)) for column in pairs.T]
    to = image.put(np.zeros(len(pairs), np.int32), written=True)
    cpu = harness.Unicorn(harness.link(batch, tmp_path), batch.target, image)
    cpu.call("upper", (len(pairs), *given, to))
    cpu.read_back()
    expected = [zero + (((s << shift) * m + (1 << 31)) >> 32) for s, m in pairs.tolist()]
    assert image.read(to, 4 * len(pairs)).view(np.int32).tolist() == expected


def test_sums_that_do_not_fit_half_an_accumulator_are_refused() -> None:
    case = conv((3, 3), 32, 2)
    row = KERNELS["conv2d_s8_s8_4x2__armv7m"]
    target = load_target("cortex-m3")
    for magnitude, fits in ((127, False), (113, True)):  # 288 weights: 36,576 and 32,544
        codes = np.full_like(case.node.consts["codes"], magnitude)
        node = replace(case.node, consts={**case.node.consts, "codes": codes})
        assert row.applies(case.graph, node, target) is fits


@pytest.mark.parametrize("name", FORMATS)
def test_streams_end_on_whole_bytes(name: str) -> None:
    """Read back bit by bit from the end of every pair of channels."""
    fmt, rng = weight_format(name), np.random.default_rng(2)
    for channels, row in ((1, 1), (2, 5), (5, 8), (3, 7)):
        codes = rng.integers(0, 2**fmt.bits, (channels, row))
        packed = stream(fmt, codes, 0)[:-3]
        pairs = -(-channels // 2)
        own = np.split(packed, pairs)
        padded = np.zeros((2 * pairs, row), np.int64)
        padded[:channels] = codes
        for i, part in enumerate(own):
            assert len(part) == -(-row * 2 * fmt.bits // 8)
            whole = int.from_bytes(part.tobytes(), "little") >> len(part) * 8 - row * 2 * fmt.bits
            found = [whole >> fmt.bits * n & 2**fmt.bits - 1 for n in range(2 * row)]
            assert found == padded[2 * i : 2 * i + 2].T.ravel().tolist()


def test_tiles_leave_few_pixels_over() -> None:
    assert [widest(n, 5) for n in (1, 2, 3, 4, 5, 6, 7, 25)] == [1, 2, 3, 4, 5, 3, 3, 5]
    assert [widest(n, 4) for n in (5, 16, 25)] == [4, 4, 4]


def _mover(pair: tuple[str, str], word: str) -> Code:
    """A function over (a, b, n): `word` tells the arguments of the assembly function in terms of these."""
    text = '@T.prim_func\ndef {symbol}(pa: T.handle("int8"), pb: T.handle("int8"), n: T.int32):\n'
    text += "".join(f'    {v} = T.decl_buffer((1048576,), "int8", data=p{v})\n' for v in "ab")
    text += f'    T.evaluate(T.call_extern("int32", "{pair[1]}", {word}))\n'
    return Code("tir", text, (Arg("input"),), pair[0])


def test_runs_are_copied_and_filled_on_armv6m(tmp_path: Path) -> None:
    """Every length and alignment, nothing beside the run."""
    image = harness.Image(harness.DATA, 1 << 16)
    batch = harness.Batch(load_target("cortex-m0plus"), image)
    batch.functions = {
        "copy": _mover(copy_run(), "T.address_of(a[0]), T.address_of(b[0]), n"),
        "fill": _mover(fill_run(), "T.address_of(b[0]), n, 77"),
    }
    source = np.arange(64, dtype=np.int8)
    jobs = []
    given = image.put(source)
    for symbol in ("copy", "fill"):
        for count in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 19):
            for at, to in ((0, 0), (1, 0), (0, 2), (3, 3), (4, 8)):
                jobs.append((symbol, count, at, to, image.put(np.zeros(40, np.int8), written=True)))
    cpu = harness.Unicorn(harness.link(batch, tmp_path), batch.target, image)
    for symbol, count, at, to, place in jobs:
        cpu.call(symbol, (given + at, place + to, count))
    cpu.read_back()
    for symbol, count, at, to, place in jobs:
        expected = np.zeros(40, np.int8)
        expected[to : to + count] = source[at : at + count] if symbol == "copy" else 77
        assert np.array_equal(image.read(place, 40), expected), (symbol, count, at, to)
