"""AVX512-VNNI rows against the reference, bit for bit; on a CPU without it they are compiled to an object only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.x86vnni import LANES, QUAD, ByteProduct, unpacked

from tests.kernels import harness
from tests.kernels.cases import Case, cases, conv, linear
from xdeploy.kernel import KERNELS
from xdeploy.program import choose

NONE = (0, 0, 0, 0)


def scaled(case: Case, factor: float) -> Case:
    """The same with larger multipliers, which are not doubled any more, or even need a shift."""
    consts = {**case.node.consts}
    shift = max(0, int(np.ceil(np.log2(factor * consts["multiplier"].max() / (1 << 31)))))
    multiplier = consts["multiplier"].astype(np.float64) * factor / (1 << shift)
    consts["multiplier"] = (multiplier / 2).astype(np.int64).astype(np.int32) * 2
    node = replace(case.node, consts=consts, attrs={**case.node.attrs, "shift": case.node.attrs["shift"] + shift})
    return replace(case, name=f"{case.name}_x{factor:g}", graph=replace(case.graph, nodes=(node,)))


DIRECT = [
    conv((5, 7), 20, 12, residual=False, relu=True),
    conv((5, 7), 20, 16, residual=True, relu=True),
    conv((9, 13), 16, 32, residual=True),
    conv((5, 9), 8, 48, residual=True, stride=(2, 1)),
    conv((4, 6), 12, 64, residual=True, fill="high"),
    conv((3, 5), 5, 112, residual=True, fill="low"),
    conv((4, 9), 24, 30, (1, 1), pads=NONE),
    conv((7, 6), 5, 18, (3, 3), (2, 2)),
    conv((6, 6), 3, 8, dilation=(1, 2), pads=(1, 2, 1, 2)),
    conv((1, 1), 64, 8, (1, 1), pads=NONE, fmt="c4s8"),
    conv((3, 29), 16, 16, in_zero=127),
    conv((2, 2), 24, 140, relu=True),  # tiles of whole rows, as below
    conv((4, 4), 16, 64, residual=True),
    conv((9, 5), 8, 64, stride=(2, 2), fmt="int4"),
    conv((7, 1), 16, 48, dilation=(2, 1), pads=(2, 1, 2, 1)),
    conv((6, 5), 7, 140, (2, 2), pads=(0, 1, 1, 0), fmt="int4"),
    scaled(conv((4, 7), 16, 16), 700.0),
    scaled(conv((4, 7), 4, 16, residual=True), 700.0),
    scaled(conv((4, 7), 16, 33), 3e4),
    scaled(conv((4, 7), 4, 32, residual=True), 3e4),
    linear(73, 33),
    linear(8, 3),
    linear(129, 140, relu=True),
    linear(300, 64, fill="low"),
    linear(300, 17, fill="high"),
]
DEPTHWISE = [
    conv((25, 5), 64, 64, groups=64),
    conv((9, 10), 8, 8, groups=8, relu=True),
    conv((7, 12), 16, 16, groups=16, stride=(2, 2)),
    conv((6, 9), 32, 32, groups=32, stride=(2, 2), pads=(0, 1, 1, 0)),
    conv((5, 8), 16, 16, groups=16, residual=True),
    conv((6, 7), 72, 72, (5, 3), groups=72, pads=(2, 1, 2, 1), stride=(2, 1)),
    conv((6, 6), 128, 128, groups=128, residual=True, relu=True),
    conv((4, 14), 130, 130, (2, 4), groups=130, pads=(0, 2, 1, 1), fill="low"),
    conv((8, 8), 64, 64, groups=64, dilation=(1, 2), pads=(1, 2, 1, 2), fmt="c4s8", fill="high"),
    scaled(conv((3, 9), 64, 64, groups=64, stride=(1, 3)), 3e4),
]


@pytest.mark.parametrize(("form", "own"), [("direct", DIRECT), ("dw1x64", DEPTHWISE)])
def test_rows_equal_the_reference(form: str, own: list[Case], tmp_path: Path) -> None:
    target = harness.host_level("vnni")
    batch = harness.Batch(target, harness.host_image(1 << 24))
    further = [c for op in ("conv2d", "linear") for c in cases(op) if c.node.attrs["weight_format"] == "int8"][::24]
    for case in [*own, *further]:
        name = f"{case.node.op}_s8_{case.node.format.short}_{form}__vnni"
        fits = name in KERNELS and KERNELS[name].applies(case.graph, case.node, target)
        assert fits or case not in own, f"{name} does not take {case.name}"
        if fits:
            batch.add(KERNELS[name], case)
    harness.check_level(batch, "vnni", tmp_path)


@pytest.mark.parametrize("row", ["conv2d_s8_s8_direct__vnni"])
def test_nothing_saturates_on_the_way(row: str, tmp_path: Path) -> None:
    """All codes and weights at their ends: pairs of products of bytes leave int16, which vpmaddubsw would clip."""
    batch = harness.Batch(harness.host_level("vnni"), harness.host_image(1 << 24))
    for weight in (-128, 127):
        for code in (-128, 127):
            case = conv((4, 5), 64, 64, in_zero=-128 if code == 127 else 127)
            case.node.consts["codes"][:] = weight
            case.inputs[0][:] = code
            assert KERNELS[row].applies(case.graph, case.node, batch.target)
            batch.add(KERNELS[row], case)
    harness.check_level(batch, "vnni", tmp_path)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (conv((8, 8), 64, 64, residual=True), "direct"),
        (conv((16, 16), 16, 16, fmt="int4"), "direct"),
        (conv((8, 8), 64, 64, (1, 1), pads=NONE), "direct"),
        (conv((16, 16), 16, 32, stride=(2, 2)), "direct"),
        (linear(128, 64), "direct"),
        (conv((25, 5), 64, 64, groups=64), "dw1x64"),
        (conv((24, 24), 16, 16, groups=16, stride=(2, 2)), "dw1x64"),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_what_is_chosen(case: Case, form: str) -> None:
    assert choose(case.graph, case.node, harness.host_level("vnni")).name.endswith(f"_{form}__vnni")


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_order_and_packing_give_the_channels_in_their_order(groups: int) -> None:
    """What packing four vectors of sums puts where, by the definition of vpackssdw and vpacksswb."""
    order = np.array(ByteProduct().order(groups)).reshape(groups, LANES)
    some = min(groups, QUAD)
    pixels = QUAD // some
    for start in range(0, groups, QUAD):
        part = order[start : start + some] - start * LANES
        vectors = [part[g] + 1000 * p for p in range(pixels) for g in range(some)]
        quads = np.stack(vectors).reshape(QUAD, 4, 4)  # vector, 128 bits, lane
        packed = quads.transpose(1, 0, 2).reshape(64)
        stored = packed[unpacked(some)].reshape(pixels, some * LANES)
        assert (stored == np.arange(some * LANES) + 1000 * np.arange(pixels)[:, None]).all()


def test_weights_meet_their_codes() -> None:
    """What vpdpbusd sums."""
    rng = np.random.default_rng(3)
    codes, x = rng.integers(-128, 128, (32, 12)).astype(np.int8), rng.integers(0, 256, 12)
    packed = ByteProduct().pack(codes[None])[0].reshape(3, 32, 4).astype(np.int64)
    assert ((packed * x.reshape(3, 1, 4)).sum(axis=(0, 2)) == codes.astype(np.int64) @ x).all()
