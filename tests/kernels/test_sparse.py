"""Rows for zero-heavy weights: their streams, random sparsity in the emulators, cost, and when they are chosen."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.sparsemve import segments
from xdeploy.kernels.sparsepack import Stream, decode, dense_bytes, encode, entries_per_word, gap_widths, smaller

from tests.kernels import harness
from tests.kernels.cases import Case, conv, linear
from xdeploy.builder.zig import cc
from xdeploy.formats import FORMATS, Int8
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.program import choose
from xdeploy.target import load_target

M4, M55 = load_target("cortex-m4"), load_target("cortex-m55")


def thin(case: Case, zeros: float, seed: int = 0, blank: str = "") -> Case:
    """The case with a share of its weights zero; "rows": also every second output, "columns": every second input."""
    rng, node = np.random.default_rng([seed, round(100 * zeros), *case.name.encode()]), case.node
    consts, zero, codes = dict(node.consts), 0, node.consts["codes"].copy()
    if node.format is not None and node.format.codebook:
        book = consts["codebook"].copy()
        zero = len(book) // 2
        book[zero] = 0
        consts["codebook"] = book
    codes[rng.random(codes.shape) < zeros] = zero
    if blank == "rows":
        codes[::2] = zero
    if blank == "columns":
        codes[..., ::2] = zero
    consts["codes"] = codes
    graph = replace(case.graph, nodes=(replace(node, consts=consts),))
    return Case(f"{case.name}_z{zeros}{blank}", graph, case.inputs)


def _sparse(case: Case, target_name: str, isa: str = "") -> list[Kernel]:
    target = load_target(target_name)
    own = [r for r in KERNELS.values() if "_sparse" in r.name and r.op == case.node.op and r.isa in target.features]
    return [r for r in own if (not isa or r.isa == isa) and r.applies(case.graph, case.node, target)]


def _values(rng: np.random.Generator, rows: int, row: int, zeros: float, limit: int) -> Int8:
    values = rng.integers(-limit, limit + 1, (rows, row))
    values[rng.random(values.shape) < zeros] = 0
    return values.astype(np.int8)


# -------------------------------------------------------------------------------------------------- streams
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("gap_bits", [8, 6, 5, 4, 3])
def test_streams_hold_the_weights(gap_bits: int, zeros: float) -> None:
    limit = 127 if gap_bits == 8 else 2 ** (7 - gap_bits) - 1
    for row in (1, 7, 255, 256, 257, 1000):
        values = _values(np.random.default_rng(row), 5, row, zeros, limit)
        stream = encode(values, gap_bits)
        assert (decode(stream, gap_bits, row) == values).all()
        assert len(stream.data) == 4 * stream.counts.sum()
        assert stream.counts.max() <= -(-row // entries_per_word(gap_bits)) + 1


def _walk(stream: Stream, gap_bits: int) -> Iterator[list[tuple[int, int]]]:
    """Per row the (gap, value) entries, read byte by byte."""
    data = stream.data.tolist()
    at = 0
    for count in stream.counts.tolist():
        found = []
        for _ in range(count * entries_per_word(gap_bits)):
            if gap_bits == 8:
                found.append((data[at], data[at + 1] - 256 * (data[at + 1] > 127)))
                at += 2
            else:
                byte, at = data[at], at + 1
                found.append((byte % 2**gap_bits, (byte - 256 * (byte > 127)) >> gap_bits))
        yield found


@pytest.mark.parametrize("gap_bits", [8, 4])
def test_far_weights_are_reached_in_steps(gap_bits: int) -> None:
    values = np.zeros((3, 2000), np.int8)
    values[0, 1999], values[2, [0, 600]] = 5, (-3, 7)
    stream = encode(values, gap_bits)
    for row, entries in zip(values, _walk(stream, gap_bits), strict=True):
        rebuilt, k = np.zeros(2000, np.int64), 0
        for gap, value in entries:
            k += gap
            assert k < 2000  # never beyond the input, not even by an entry that adds nothing
            rebuilt[k] += value
        assert (rebuilt == row).all()


@pytest.mark.parametrize("row", [1, 256, 257, 700])
def test_segments_hold_the_weights(row: int) -> None:
    values = _values(np.random.default_rng(row), 4, row, 0.8, 127)
    data, counts = segments(values)
    at, rebuilt = 0, np.zeros_like(values)
    for channel, segment in np.ndindex(*counts.shape):
        n = int(counts[channel, segment])
        places, found = data[at : at + n], data[at + n : at + 2 * n].view(np.int8)
        rebuilt[channel, 256 * segment + places.astype(int)] = found
        at += 2 * n
    assert at == len(data)
    assert (rebuilt == values).all()


def test_one_byte_where_value_and_gap_fit() -> None:
    assert {f.short: gap_widths(f) for f in FORMATS.values() if len(gap_widths(f)) > 1} == {
        "s2": (8, 6), "s3": (8, 5), "s4": (8, 4), "s5": (8, 3),
    }  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_applies_only_where_smaller(name: str) -> None:
    """At every sparsity: if a row applies, all it stores but biases and multipliers is less than the packed weights."""
    seen = set()
    for zeros in (0.0, 0.4, 0.6, 0.8, 0.9, 0.99):
        case = thin(linear(300, 24, name), zeros)
        applying = _sparse(case, "cortex-m55")
        seen.add(bool(applying))
        for row in applying:
            packed = row.pack(case.graph, case.node)
            stored = sum(array.nbytes for key, array in packed.items() if key in ("weights", "counts"))
            assert stored < dense_bytes(case.node), (row.name, zeros)
            assert len(packed["counts"]) in (24, 6 * 4)
    assert seen == {True, False}


def test_a_stream_as_large_as_the_weights_is_refused() -> None:
    """int8, half of it zeros: two bytes per entry and the counts on top."""
    case = thin(linear(64, 8), 0.5)
    codes = np.tile(np.array([0, 3], np.int8), (8, 32))
    node = replace(case.node, consts={**case.node.consts, "codes": codes})
    assert not smaller(node, 8)
    codes[:, 1::8] = 0
    assert smaller(replace(node, consts={**node.consts, "codes": codes}), 8)


# ------------------------------------------------------------------------------------------------ emulators
def _bases() -> Iterator[Case]:
    yield linear(600, 6, residual=True)  # more than one segment
    yield linear(257, 7, "c6s8", relu=True)
    yield linear(129, 5, "int4", relu=True)
    yield linear(90, 3, "int3", residual=True, relu=True)
    yield linear(33, 4, "int2")
    yield linear(40, 9, "int5")
    yield conv((5, 7), 8, 5, residual=True, relu=True)
    yield conv((3, 6), 16, 6, (1, 1), pads=(0, 0, 0, 0), fmt="int4")
    yield conv((4, 4), 8, 3, (1, 1), pads=(0, 0, 0, 0), residual=True)  # whole tiles, read in place
    yield conv((6, 5), 3, 4, stride=(2, 1), pads=(2, 1, 0, 1), fmt="int3", in_zero=99)
    yield conv((7, 8), 3, 4, dilation=(2, 3), pads=(3, 2, 2, 3), fmt="int2", in_zero=-128)
    yield conv((4, 5), 32, 3, fmt="c3s8", residual=True)  # more than one segment
    yield conv((1, 1), 5, 2, fmt="int6")


def _random_cases(shares: Sequence[float]) -> Iterator[Case]:
    for i, base in enumerate(_bases()):
        for zeros in shares:
            yield thin(base, zeros, i)
        yield thin(base, 0.8, i, "rows")
        yield thin(base, 0.85, i, "columns")


def _batch(target_name: str, shares: Sequence[float], isa: str = "") -> harness.Batch:
    target = load_target(target_name)
    image = harness.host_image() if target.kind == "host" else harness.Image(harness.DATA)
    batch = harness.Batch(target, image)
    for case in _random_cases(shares):
        for row in _sparse(case, target_name, isa):
            batch.add(row, case, 2)
    return batch


def _check(batch: harness.Batch, runner: str, folder: Path, least: int) -> None:
    before = batch.image.bytes.copy()
    if runner == "plain_c":
        harness.call_host(batch, folder)
    else:
        getattr(harness, f"run_{runner}")(batch, folder)
    assert len(batch.calls) >= least
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


def test_random_sparsity_on_m4(tmp_path: Path) -> None:
    batch = _batch("cortex-m4", (0.6, 0.93, 1.0), "armv7em")
    _check(batch, "unicorn", tmp_path, 150)
    run = {call.label.split()[0] for call in batch.calls}
    for tile in ("linear_s8_s8_sparse1x1", "conv2d_s8_s8_sparse8x1", "conv2d_s8_s4_sparsebyte4x1"):
        assert f"{tile}__armv7em" in run


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-a72"])
def test_random_sparsity_elsewhere(name: str, tmp_path: Path) -> None:
    _check(_batch(name, (0.8, 1.0), "tir"), "unicorn", tmp_path, 60)


def test_random_sparsity_on_the_host(tmp_path: Path) -> None:
    _check(_batch("x86-64", (0.7, 0.95, 1.0), "tir"), "host", tmp_path, 60)


@pytest.mark.qemu
def test_random_sparsity_on_m55(tmp_path: Path) -> None:
    if not harness.has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    _check(_batch("cortex-m55", (0.8, 0.93, 0.99, 1.0), "mve"), "qemu", tmp_path, 100)


def test_random_sparsity_in_plain_c(tmp_path: Path) -> None:
    """With traps for undefined behaviour, in a child that one of them would end."""
    batch = harness.Batch(load_target("x86-64"), harness.host_image())
    for case in _random_cases((0.7, 0.95, 1.0)):
        for row in _sparse(case, "x86-64", "c99"):
            batch.add(row, case, 2)
    bodies = [c.text.replace("static void {symbol}(", "void {symbol}(") for c in batch.functions.values()]
    texts = [body.replace("{symbol}", symbol) for symbol, body in zip(batch.functions, bodies, strict=True)]
    (tmp_path / "k.c").write_text("\n".join(texts))
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O1", "-fsanitize=undefined"]
    cc([*flags, "-fsanitize-trap=undefined", "-fPIC", "-shared", "k.c", "-o", "k.so"], tmp_path)
    child = multiprocessing.get_context("fork").Process(target=_check, args=(batch, "plain_c", tmp_path, 60))
    child.start()
    child.join(60)
    assert child.exitcode == 0


# --------------------------------------------------------------------------------------- cost and the choice
def _counted(pairs: Sequence[tuple[Case, Kernel]], folder: Path) -> list[int]:
    batch = harness.Batch(M4, harness.Image(harness.DATA))
    for case, row in pairs:
        batch.add(row, case, 1)
    machine = harness.Unicorn(harness.link(batch, folder), M4, batch.image, count=True)
    counts = [machine.call(call.symbol, call.args) for call in batch.calls]
    machine.read_back()
    assert batch.failures() == []
    return counts


def _dense(case: Case) -> Kernel:
    rows = [r for r in harness.rows(case.node.op, case, M4) if "_sparse" not in r.name]
    return min(rows, key=lambda r: (r.cost(case.graph, case.node, M4), r.name))


BARS = [
    (linear(256, 64), 0.75), (linear(256, 64, "int4"), 0.75), (linear(64, 10), 0.8),
    (conv((6, 6), 32, 32, (1, 1), pads=(0, 0, 0, 0)), 0.85), (conv((6, 6), 16, 16), 0.85),
    (conv((6, 6), 16, 16, fmt="int4"), 0.85), (conv((6, 6), 16, 16, fmt="c4s8", residual=True), 0.85),
]  # fmt: skip


def test_faster_than_dense_from_the_bars_on(tmp_path: Path) -> None:
    """Executed instructions on the M4: the chosen row is sparse, faster and smaller, and its cost is what it takes."""
    pairs = []
    for base, zeros in BARS:
        for share in (zeros, 0.95):
            case = thin(base, share)
            chosen = choose(case.graph, case.node, M4)
            assert "_sparse" in chosen.name, case.name
            pairs += [(case, chosen), (case, _dense(case))]
    counts = _counted(pairs, tmp_path)
    for (case, row), sparse, dense in zip(pairs[::2], counts[::2], counts[1::2], strict=True):
        assert sparse < dense, case.name  # a Winograd row, where there is one
        assert row.cost(case.graph, case.node, M4) == pytest.approx(sparse, rel=0.15), case.name


@pytest.mark.parametrize("target", [M4, M55], ids=lambda t: t.name)
@pytest.mark.parametrize(
    "base", [linear(256, 64), conv((6, 6), 32, 32), conv((6, 6), 32, 32, fmt="int4")], ids=lambda c: c.name
)
def test_dense_below_the_threshold(base: Case, target: harness.Target) -> None:
    """Few zeros: a dense row. Many: a sparse one. Once sparse, always sparse."""
    chosen = [
        "_sparse" in choose(case.graph, case.node, target).name
        for case in (thin(base, share) for share in (0.0, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97))
    ]
    assert chosen == sorted(chosen)
    assert chosen[:3] == [False] * 3
    assert chosen[-2:] == [True] * 2


def test_helium_rows_wait_for_four_fifths() -> None:
    """A gathering load is slow in cycles: below 80 % zeros the row does not apply, though it would be smaller."""
    for base in (linear(256, 64), conv((6, 6), 32, 32)):
        assert not _sparse(thin(base, 0.75), "cortex-m55", "mve")
        assert _sparse(thin(base, 0.85), "cortex-m55", "mve")


def test_groups_and_depthwise_stay_dense() -> None:
    for groups in (2, 8):
        case = thin(conv((5, 5), 8, 8, groups=groups), 0.95)
        assert not _sparse(case, "cortex-m55")
