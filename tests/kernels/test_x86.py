"""x86-64 rows with AVX2: equal to the reference, chosen where meant, weights in the order they are read."""

from __future__ import annotations

import operator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from xdeploy.kernels.conv import Shape
from xdeploy.kernels.x86 import LANES, PairProduct
from xdeploy.kernels.x86depthwise import pairs_of
from xdeploy.kernels.x86quad import QuadProduct
from xdeploy.kernels.x86winograd import Tiles

from tests.kernels import harness
from tests.kernels.cases import Case, cases, conv, linear
from xdeploy.kernel import KERNELS
from xdeploy.program import choose
from xdeploy.target import load_target

NONE = (0, 0, 0, 0)
DIRECT = [
    conv((5, 7), 20, 16, residual=True, relu=True),
    conv((4, 9), 24, 30, (1, 1), pads=NONE),
    conv((7, 6), 5, 18, (3, 3), (2, 2)),
    conv((6, 6), 3, 16, dilation=(1, 2), pads=(1, 2, 1, 2)),
    conv((1, 1), 64, 8, (1, 1), pads=NONE, fmt="c4s8"),
    conv((9, 13), 16, 40, residual=True),
    linear(73, 33),
    linear(8, 3),
]
QUAD = [
    *DIRECT[:5],
    *DIRECT[6:],
    conv((5, 7), 20, 12, relu=True),
    conv((9, 13), 16, 32, residual=True),
    conv((5, 9), 8, 48, residual=True, stride=(2, 1)),
    conv((4, 6), 12, 64, residual=True, fill="high"),
    conv((3, 5), 5, 112, residual=True, fill="low"),
    conv((6, 6), 3, 8, dilation=(1, 2), pads=(1, 2, 1, 2)),
    conv((2, 2), 64, 128, in_zero=127, residual=True),
    conv((4, 1), 16, 33, dilation=(2, 1), pads=(2, 1, 2, 1)),
    conv((7, 4), 8, 16, stride=(2, 2), fmt="c4s8"),
    conv((6, 5), 7, 140, (2, 2), pads=(0, 1, 1, 0), fmt="int4"),
    conv((8, 3), 6, 23, (1, 1), pads=NONE, fmt="int2", relu=True),
    conv((3, 29), 1, 57, (5, 1), pads=(2, 0, 2, 0), fmt="c3s8"),
    linear(129, 140, relu=True),
    linear(300, 64, fill="low"),
    linear(300, 149, fmt="int3", fill="high"),
    linear(64, 272, residual=True),
]
WINOGRAD = [
    conv((8, 8), 16, 16),
    conv((7, 5), 8, 24, relu=True),
    conv((6, 9), 24, 8, residual=True),
    conv((1, 1), 8, 8),
    conv((5, 70), 16, 16, residual=True, relu=True),
    conv((12, 4), 32, 40, pads=(0, 1, 2, 0), fmt="c4s8"),
    conv((6, 6), 16, 16, pads=(2, 2, 2, 2), fmt="int3"),
]
QUAD_WINOGRAD = [
    conv((8, 8), 16, 16),
    conv((7, 5), 8, 32, relu=True),
    conv((6, 9), 24, 32, residual=True),
    conv((1, 1), 8, 16),
    conv((5, 70), 16, 16, residual=True, relu=True),
    conv((12, 4), 32, 64, pads=(0, 1, 2, 0), fmt="c4s8"),
    conv((9, 20), 64, 64, residual=True),  # two strips, two blocks of channels
    conv((4, 4), 128, 128, fmt="int3", pads=(2, 2, 2, 2)),
    conv((3, 3), 16, 256, fill="low"),
]
DEPTHWISE = [
    conv((25, 5), 64, 64, groups=64),
    conv((9, 10), 8, 8, groups=8, relu=True),
    conv((6, 7), 20, 20, (5, 3), groups=20, pads=(2, 1, 2, 1), stride=(2, 1)),
    conv((6, 6), 40, 40, groups=40, residual=True),
    conv((5, 4), 3, 3, (4, 4), groups=3, pads=(2, 1, 1, 2)),
    conv((8, 8), 24, 24, groups=24, dilation=(1, 2), pads=(1, 2, 1, 2), fmt="c4s8"),
]


def _check(batch: harness.Batch, folder: Path) -> None:
    before = batch.image.bytes.copy()
    harness.run_host(batch, folder)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


@pytest.mark.parametrize(
    ("form", "own"),
    [
        ("direct", DIRECT),
        ("quad", QUAD),
        ("winograd2x2", WINOGRAD),
        ("quadwinograd2x2", QUAD_WINOGRAD),
        ("dw1x16", DEPTHWISE),
    ],
)
def test_rows_equal_the_reference(form: str, own: list[Case], tmp_path: Path) -> None:
    target = load_target("x86-64")
    batch = harness.Batch(target, harness.host_image(1 << 24))
    further = [c for op in ("conv2d", "linear") for c in cases(op) if c.node.attrs["weight_format"] == "int8"][::24]
    for case in [*own, *further]:
        name = f"{case.node.op}_s8_{case.node.format.short}_{form}__x86"
        fits = name in KERNELS and KERNELS[name].applies(case.graph, case.node, target)
        assert fits or case not in own, f"{name} does not take {case.name}"
        if fits:
            batch.add(KERNELS[name], case)
    _check(batch, tmp_path)


@pytest.mark.parametrize("form", ["quad", "winograd2x2", "quadwinograd2x2"])
def test_the_largest_sums_of_a_layer(form: str, tmp_path: Path) -> None:
    """All codes and weights at their ends, with as many channels as Winograd rows take."""
    target, row = load_target("x86-64"), KERNELS[f"conv2d_s8_s8_{form}__x86"]
    batch = harness.Batch(target, harness.host_image(1 << 24))
    for weight in (-127, 127):
        case = conv((4, 4), 64, 16)
        case.node.consts["codes"][:] = weight
        for code in (-128, 127):
            case.inputs[0][:] = code
            assert row.applies(case.graph, case.node, target)
            batch.add(row, case)
    _check(batch, tmp_path)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (conv((8, 8), 64, 64, residual=True), "winograd2x2"),
        (conv((16, 16), 16, 16, fmt="int4"), "winograd2x2"),
        (conv((8, 8), 64, 64, (1, 1), pads=NONE), "direct"),
        (conv((16, 16), 16, 32, stride=(2, 2)), "direct"),
        (linear(128, 64), "direct"),
        (conv((25, 5), 64, 64, groups=64), "dw1x16"),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_what_is_chosen(case: Case, form: str) -> None:
    assert choose(case.graph, case.node, load_target("x86-64")).name.endswith(f"_{form}__x86")


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_weights_and_order_give_the_channels_in_their_order(groups: int) -> None:
    """What vpmaddwd sums, and what packing its sums puts where."""
    rng = np.random.default_rng(groups)
    product, channels = PairProduct(), groups * LANES
    codes, x = rng.integers(-128, 128, (channels, 6)).astype(np.int8), rng.integers(-128, 128, 6)
    order = product.order(groups)
    packed = product.pack(codes[order][None])[0].reshape(3, groups, LANES, 2).astype(np.int64)
    sums = (packed * x.reshape(3, 1, 1, 2)).sum(axis=(0, 3))
    stored = []
    for first in range(0, groups, 2):
        if first + 1 == groups:
            stored.append(sums[first])
        else:  # vpackssdw: four lanes of either, twice
            a, b = sums[first].reshape(2, 4), sums[first + 1].reshape(2, 4)
            stored.append(np.concatenate([a[0], b[0], a[1], b[1]]))
    assert (np.concatenate(stored) == codes.astype(np.int64) @ x).all()


@pytest.mark.parametrize("form", ["quad", "quadwinograd2x2"])
def test_weights_are_those_of_the_row_that_is_named(form: str) -> None:
    target, seen = load_target("x86-64"), 0
    for case in [*QUAD, *QUAD_WINOGRAD, *(c for op in ("conv2d", "linear") for c in cases(op))]:
        name = f"{case.node.op}_s8_{case.node.format.short}_{form}__x86"
        if name in KERNELS and KERNELS[name].applies(case.graph, case.node, target):
            row = KERNELS[name]
            named = KERNELS[row.tags["weights_of"]]
            assert named.applies(case.graph, case.node, harness.host_level(named.isa))
            mine, theirs = (r.pack(case.graph, case.node)["weights"] for r in (row, named))
            assert mine.dtype == theirs.dtype
            assert (mine == theirs).all()
            seen += 1
    assert seen >= 10


@pytest.mark.parametrize("packed", [1, 2, 4, 8])
def test_quads_are_found_where_they_are_packed(packed: int) -> None:
    """By the order in which the other level packs, and by the expression that kernels use."""
    product = QuadProduct(packed)
    places = [product.place(quad) for quad in range(4 * packed)]
    assert sorted(places) == list(range(0, 64 * packed, 16))
    names = {"T": SimpleNamespace(bitwise_and=operator.and_, shift_right=operator.rshift)}
    assert [eval(product.byte(str(quad)), names) for quad in range(4 * packed)] == places


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 2), (5, 5), (2, 7)])
def test_every_tap_is_in_one_pair(kernel: tuple[int, int]) -> None:
    taps = [tap for pair in pairs_of(kernel) for tap in pair if tap is not None]
    assert sorted(taps) == [(y, x) for y in range(kernel[0]) for x in range(kernel[1])]


def test_strips_cut_all_rows() -> None:
    for case in WINOGRAD:
        shape = Shape.of(case.graph, case.node)
        tiles = Tiles.of(shape)
        assert tiles.rows % tiles.strip == 0
        assert 2 * tiles.rows - shape.out_height in (0, 1)
        assert 2 * tiles.columns - shape.out_width in (0, 1)
