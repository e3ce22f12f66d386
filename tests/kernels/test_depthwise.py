"""The assembly rows for depthwise convolutions: shapes around their tiles, in place, and the range of 16-bit sums."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.mvedepthwise import tap_groups

from tests.kernels import harness
from tests.kernels.cases import Case, conv
from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS
from xdeploy.program import choose
from xdeploy.target import Target, load_target


def _cases() -> Iterator[Case]:
    for fmt in FORMATS:
        yield conv((5, 5), 8, 8, groups=8, fmt=fmt, relu=fmt in ("int8", "c4s8"))
    yield conv((7, 7), 8, 8, groups=8, stride=(2, 2))
    yield conv((8, 8), 20, 20, groups=20, pads=(0, 0, 1, 1), stride=(2, 2))
    yield conv((9, 9), 12, 12, groups=12, pads=(2, 2, 2, 2), dilation=(2, 2))
    yield conv((6, 7), 16, 16, groups=16, pads=(0, 0, 0, 0))
    yield conv((10, 6), 8, 8, (5, 5), groups=8, pads=(2, 2, 2, 2), stride=(2, 1), in_zero=-128)
    yield conv((3, 3), 4, 4, (1, 1), groups=4, pads=(0, 0, 0, 0))
    yield conv((3, 1), 4, 4, groups=4)
    yield conv((1, 8), 4, 4, (1, 3), groups=4, pads=(0, 1, 0, 1), stride=(1, 2))
    yield from (conv((4, 4), 4, 4, groups=4, fill=fill) for fill in ("zero", "low", "high"))
    yield conv((4, 3), 6, 6, groups=6, pads=(1, 0, 1, 2))  # an even number of channels for Helium alone


CASES = list(_cases())


def _batch(target: Target, row_end: str, taken: int) -> harness.Batch:
    batch = harness.Batch(target, harness.Image(harness.DATA))
    count = 0
    for case in CASES:
        for row in harness.rows("conv2d", case, target):
            if row.name.endswith(row_end) and row.notes == "depthwise":
                batch.add(row, case, samples=3)
                count += 1
    assert count == taken
    return batch


# planes take windows of 3x3 in steps of one: every format, no padding, one column, three fills
@pytest.mark.parametrize(("row_end", "taken"), [("2x4__armv7em", len(CASES) - 1), ("2x1__armv7em", len(FORMATS) + 5)])
def test_two_pixels(row_end: str, taken: int, tmp_path: Path) -> None:
    batch = _batch(load_target("cortex-m4"), row_end, taken)
    before = batch.image.bytes.copy()
    harness.run_unicorn(batch, tmp_path)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


@pytest.mark.qemu
def test_eight_channels(tmp_path: Path) -> None:
    if not harness.has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    batch = _batch(load_target("cortex-m55"), "__mve", len(CASES))
    before = batch.image.bytes.copy()
    harness.run_qemu(batch, tmp_path)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


@pytest.mark.parametrize(("name", "isa"), [("cortex-m4", "armv7em"), ("cortex-m55", "mve")])
def test_they_are_chosen(name: str, isa: str) -> None:
    case = conv((8, 8), 64, 64, groups=64)
    assert choose(case.graph, case.node, load_target(name)).isa == isa


def test_taps_that_fit_one_sum_of_16_bits() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        values = rng.integers(-128, 128, (rng.integers(1, 20), rng.integers(1, 26)))
        sizes = tap_groups(values)
        assert sum(sizes) == values.shape[1]
        parts = np.split(np.abs(values), np.cumsum(sizes)[:-1], axis=1)
        worst = [int(part.sum(axis=1).max()) * 128 for part in parts]
        assert max(worst) <= 32767
        for one, two in itertools.pairwise(parts):  # no group could have taken one tap more
            assert int((one.sum(axis=1) + two[:, 0]).max()) > 255


def test_only_equal_shapes_from_the_ring_are_overwritten() -> None:
    rows = [k for k in KERNELS.values() if k.notes == "depthwise" and k.isa in ("armv7em", "mve")]
    kept = {
        "padded": conv((5, 5), 8, 8, groups=8),
        "narrowed": conv((5, 5), 8, 8, groups=8, pads=(1, 0, 1, 0)),
        "strided": conv((5, 5), 8, 8, groups=8, stride=(2, 2)),
        "direct": conv((5, 5), 8, 8, (1, 1), groups=8, pads=(0, 0, 0, 0)),
    }
    assert rows
    for row in rows:
        assert {name: row.in_place(c.graph, c.node) for name, c in kept.items()} == {
            "padded": True, "narrowed": False, "strided": False, "direct": False,
        }  # fmt: skip
