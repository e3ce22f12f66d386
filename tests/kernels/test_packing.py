"""Packed weights hold the codes, and no more bytes than the format needs."""

from __future__ import annotations

import re

import numpy as np
import pytest
from xdeploy.kernels.armdecode import interleave
from xdeploy.kernels.vector import blocks_of
from xdeploy.kernels.weights import RowLayout

from tests.kernels.cases import cases
from tests.kernels.harness import rows
from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS
from xdeploy.target import load_target


def _codes(name: str, shape: tuple[int, int]) -> np.ndarray:
    fmt, rng = FORMATS[name], np.random.default_rng(0)
    low, high = (0, 2**fmt.bits) if fmt.codebook else (-fmt.limit, fmt.limit + 1)
    return rng.integers(low, high, shape).astype(np.int8)


@pytest.mark.parametrize("row", [1, 7, 8, 9, 27, 64])
@pytest.mark.parametrize("name", FORMATS)
def test_planar_rows_unpack_to_the_codes(name: str, row: int) -> None:
    layout, codes = RowLayout(FORMATS[name], row), _codes(name, (3, row))
    packed = layout.pack(codes)
    assert packed.shape == (3, layout.row_bytes)
    assert layout.row_bytes < FORMATS[name].row_bytes(row) + layout.planes
    assert (layout.unpack(packed) == codes).all()


def test_smlad_order_is_what_sxtb16_splits() -> None:
    """sxtb16 of a word gives bytes 0 and 2, rotated by 8 bytes 1 and 3: channel 0's and channel 1's pair."""
    codes = _codes("int8", (2, 8))
    words = interleave(FORMATS["int8"], "wide", codes).reshape(2, 2, 4)  # quad, half, byte
    for quad in range(2):
        for half in range(2):
            pair = [4 * quad + half, 4 * quad + half + 2]
            assert words[quad, half, 0::2].tolist() == codes[0, pair].tolist()
            assert words[quad, half, 1::2].tolist() == codes[1, pair].tolist()


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "c4s8"])
def test_smlad_weights_keep_their_size(name: str) -> None:
    codes = _codes(name, (6, 48))
    form = "pairs" if name == "c4s8" else "wide"
    assert interleave(FORMATS[name], form, codes).nbytes == 6 * FORMATS[name].row_bytes(48)


def test_vector_blocks_split_nibbles() -> None:
    codes = _codes("int4", (4, 16))
    packed = blocks_of(FORMATS["int4"], codes)[0, 0]
    low, high = ((packed << 4).astype(np.int8) >> 4), (packed.astype(np.int8) >> 4)
    assert (np.concatenate([low, high], axis=1) == codes).all()


def test_names_follow_the_grammar() -> None:
    for name in KERNELS:
        row = KERNELS[name]
        assert name == row.name
        parts = re.fullmatch(r"(\w+?)_(?:s8|f32)_(-|\w+)_(\w*\d+x\d+|direct|gathered|dense|packed|quad)__(\w+)", name)
        assert parts is not None
        assert (parts[1], parts[2], parts[4]) == (row.op, row.weight, row.isa)


@pytest.mark.parametrize("target", ["x86-64", "cortex-a72", "cortex-m0plus", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_cost_is_positive_and_workspace_is_exact_int(op: str, target: str) -> None:
    machine = load_target(target)
    for case in cases(op):
        for row in rows(op, case, machine):
            assert row.cost(case.graph, case.node, machine) > 0
            assert isinstance(row.workspace(case.graph, case.node), int)
