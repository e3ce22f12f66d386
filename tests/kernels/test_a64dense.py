"""AArch64's dense layers and pointwise tiles: shapes of all kinds, how weights lie, what is proven of scaled sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels import a64linear
from xdeploy.kernels.a64chunks import DotProducts, Rows
from xdeploy.kernels.a64dense import Dense
from xdeploy.kernels.a64quads import Quads
from xdeploy.kernels.outstage import scaled_range

from tests.kernels import harness
from tests.kernels.cases import Case, conv, linear
from tests.kernels.test_a64 import NONE, clamped
from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.target import load_target

pytestmark = pytest.mark.usefixtures("newest_cpu")
LEVEL = {Quads: "neon", Rows: "neon", DotProducts: "dotprod"}
CPU = {"neon": "cortex-a72", "dotprod": "cortex-a76"}
FORM = pytest.mark.parametrize("form", LEVEL)


def _shapes(form: type[Dense], count: int) -> list[tuple[int, int]]:
    """Codes, of every remainder by eight, and channels, of a few blocks and a rest."""
    rng = np.random.default_rng([9, form.block])
    codes = 8 * rng.integers(2, 60, count) + np.arange(count) % 8
    return list(zip(codes.tolist(), rng.integers(1, 5 * form.block // 2, count).tolist(), strict=True))


def _run(batch: harness.Batch, row: Kernel, found: list[Case], folder: Path) -> list[str]:
    for case in found:
        assert row.applies(case.graph, case.node, batch.target)
        batch.add(row, case)
    before = batch.image.bytes.copy()
    harness.run_unicorn(batch, folder)
    assert batch.image.damaged(before) == []
    return batch.failures()


@FORM
def test_forms_equal_the_reference(form: type[Dense], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isa = LEVEL[form]
    monkeypatch.setitem(a64linear.FORMS, isa, (form,))
    found = [linear(k, n, relu=k % 2 == 0) for k, n in _shapes(form, 16)]
    found += [clamped(linear(k, n, relu=k % 3 == 0)) for k, n in [*_shapes(form, 4), (127, 65), (128, 128), (264, 3)]]
    batch = harness.Batch(load_target(CPU[isa]), harness.Image(harness.DATA, 1 << 24))
    assert _run(batch, KERNELS[f"linear_s8_s8_dense__{isa}"], found, tmp_path) == []


def test_pointwise_tiles_equal_the_reference(tmp_path: Path) -> None:
    """Codes in multiples of 8, channels of 16, pixels of every remainder by four."""
    rng, found = np.random.default_rng(12), list[Case]()
    for i in range(12):
        size, codes, channels = (1 + i % 3, int(rng.integers(1, 9))), 8 * int(rng.integers(1, 24)), 16 << i % 3
        case = conv(size, codes, channels, (1, 1), pads=NONE, relu=i % 2 == 0, in_zero=int(rng.integers(-128, 128)))
        found.append(clamped(case) if i % 3 else case)
    batch = harness.Batch(load_target("cortex-a72"), harness.Image(harness.DATA, 1 << 24))
    assert _run(batch, KERNELS["conv2d_s8_s8_tile4x16__neon"], found, tmp_path) == []


@FORM
def test_every_weight_is_held_once(form: type[Dense], monkeypatch: pytest.MonkeyPatch) -> None:
    isa = LEVEL[form]
    monkeypatch.setitem(a64linear.FORMS, isa, (form,))
    for codes, channels in ((16, 4), (95, 20), (735, 64), (129, 81), (26, 7)):
        case = linear(codes, channels)
        packed = a64linear.DenseRow(isa, FORMATS["int8"]).pack(case.graph, case.node)
        assert np.abs(packed["weights"].astype(np.int64)).sum() == np.abs(case.node.values.astype(np.int64)).sum()


def test_the_form_with_fewer_instructions_is_taken() -> None:
    row = a64linear.DenseRow("neon", FORMATS["int8"])
    for codes, channels, form in ((512, 512, Quads), (735, 64, Quads), (512, 4, Rows), (128, 12, Rows)):
        assert type(row.dense(linear(codes, channels).node)) is form


def _edge(case: Case, sign: int, greatest: int) -> Case:
    """A layer whose codes of -128 make this scaled sum by way of the largest weights."""
    node, shift, channels = case.node, 4, len(case.node.values)
    least = int(node.values.astype(np.int64)[0].sum()) * (-128 - node.attrs["in_zero"])
    assert (least > 0) == (sign > 0)
    multiplier = 2 * round(greatest / (least << shift) * 2.0**31)
    consts = {
        **node.consts,
        "bias": np.zeros(channels, np.int32),
        "multiplier": np.full(channels, multiplier, np.int32),
    }
    node = replace(node, consts=consts, attrs={**node.attrs, "shift": shift})
    return replace(case, name=f"{case.name}_{greatest}", graph=replace(case.graph, nodes=(node,)))


EDGES = [(1, 32767, "low", True), (1, 32768, "low", False), (-1, -32768, "high", True), (-1, -32769, "high", False)]


@pytest.mark.parametrize("name", [*(f"linear_s8_s8_dense__{isa}" for isa in CPU), "conv2d_s8_s8_tile4x16__neon"])
def test_sums_are_narrowed_by_halves_where_that_is_proven(name: str, tmp_path: Path) -> None:
    """At the last scaled sum that fits into int16 and at the next, which some inputs make."""
    row, found = KERNELS[name], list[Case]()
    target = load_target(CPU[row.isa])
    for sign, greatest, fill, small in EDGES:
        pointwise = conv((1, 5), 24, 16, (1, 1), pads=NONE, fill=fill, in_zero=5)
        plain = linear(24, 20, fill=fill) if row.op == "linear" else pointwise
        case = _edge(plain, sign, greatest)
        assert scaled_range(case.node)[sign > 0] == greatest
        for each in (case, clamped(case)):
            assert ("uzp1" in row.emit(each.graph, each.node, target).llvm_ir) == small
            found.append(each)
    assert _run(harness.Batch(target, harness.Image(harness.DATA, 1 << 24)), row, found, tmp_path) == []


@pytest.mark.parametrize("seed", range(8))
def test_no_input_leaves_the_proven_range(seed: int) -> None:
    """By the inputs that are worst for each channel, and random ones, in unbounded integers."""
    rng = np.random.default_rng([10, seed])
    case = linear(int(rng.integers(16, 200)), int(rng.integers(1, 40)))
    node, zero = case.node, int(rng.integers(-128, 128))
    node = replace(node, attrs={**node.attrs, "in_zero": zero, "shift": int(rng.integers(0, 4))})
    w = node.values.astype(np.int64)
    inputs = np.concatenate([np.where(w > 0, 127, -128), np.where(w > 0, -128, 127), rng.integers(-128, 128, w.shape)])
    sums = (inputs - zero) @ w.T + node.consts["bias"]
    scaled = ((sums << node.attrs["shift"]) * node.consts["multiplier"].astype(np.int64) + (1 << 31)) >> 32
    assert scaled_range(node) == (scaled.min(), scaled.max())
