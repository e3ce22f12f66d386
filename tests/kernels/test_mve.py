"""Helium rows: what the packed weights hold, and shapes around the tiles' edges in the emulator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.mve import blocks_of

from tests.kernels import harness
from tests.kernels.cases import Case, conv, linear
from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS
from xdeploy.lir.ops import macs
from xdeploy.program import choose
from xdeploy.target import load_target

M55 = load_target("cortex-m55")


@pytest.mark.parametrize("name", FORMATS)
def test_chunks_hold_every_code_once(name: str) -> None:
    """Setting one bit of one code sets one bit of its chunk, another one for every bit."""
    fmt, places = FORMATS[name], set()
    assert blocks_of(fmt, np.zeros((7, 33), np.int8)).shape == (2, 3, 8 * fmt.bits)
    for channel, k, bit in np.ndindex(4, 16, fmt.bits):
        codes = np.zeros((4, 16), np.uint8)
        codes[channel, k] = 1 << bit
        packed = np.unpackbits(blocks_of(fmt, codes.view(np.int8)).view(np.uint8))
        assert packed.sum() == 1
        places.add(int(packed.argmax()))
    assert places == set(range(64 * fmt.bits))


@pytest.mark.parametrize("name", FORMATS)
def test_chosen_and_cheap(name: str) -> None:
    """Every format is fast enough on 64 channels, by the row that is chosen."""
    case = conv((8, 8), 64, 64, fmt=name)
    row = choose(case.graph, case.node, M55)
    assert row.isa == "mve"
    assert row.cost(case.graph, case.node, M55) < 0.25 * macs(case.graph, case.node)


def _edges() -> Iterator[Case]:
    for width in (7, 15, 16, 17, 33):  # pixels around the tiles'
        yield conv((1, width), 5, 6, (1, 3), pads=(0, 1, 0, 1), fmt="c3s8", residual=width % 2 == 1)
    for channels in (16, 32, 48, 64, 80, 96):  # 1 to 6 chunks, read in place or not
        yield conv((2, 3), channels, 4, (1, 1), pads=(0, 0, 0, 0), fmt="int4", relu=True)
        yield conv((1, 3), channels, 5, (1, 1), pads=(0, 0, 0, 0), fmt="c2s8")
        yield linear(channels, 9, "c5s8")
    for fmt in ("int3", "c1s8", "c6s8"):
        yield conv((3, 2), 4, 7, (5, 5), pads=(4, 4, 4, 4), fmt=fmt, in_zero=9)  # windows beside the input
        yield conv((7, 8), 3, 4, dilation=(2, 1), pads=(3, 1, 2, 0), stride=(2, 3), fmt=fmt)
        yield conv((7, 8), 3, 4, dilation=(1, 2), pads=(3, 1, 2, 0), fmt=fmt)


@pytest.mark.qemu
def test_edges(tmp_path: Path) -> None:
    if not harness.has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    batch = harness.Batch(M55, harness.Image(harness.DATA))
    for case in _edges():
        for row in KERNELS.values():
            if row.isa == "mve" and row.op == case.node.op and row.applies(case.graph, case.node, M55):
                batch.add(row, case)
    before = batch.image.bytes.copy()
    harness.run_qemu(batch, tmp_path)
    assert len(batch.calls) > 60
    assert batch.failures() == []
    assert batch.image.damaged(before) == []
