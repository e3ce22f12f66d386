"""Sums at the very edge of int32: what the proof admits runs exactly on every core, one more is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.kernels import harness
from tests.kernels.cases import Case, conv, linear
from xdeploy.errors import UnsupportedError
from xdeploy.formats import FORMATS, INT32_LIMIT
from xdeploy.lir.ops import verify
from xdeploy.target import load_target

MULTIPLIERS = np.array([2**31 - 2, 2, 2**30, 2**31 - 4, 1 << 20, 2**31 - 2], np.int64).astype(np.int32)


def _edge(case: Case, shift: int, beyond: int = 0) -> Case:
    """Weights of one sign per channel, as large as they can be, and the bias that makes the proof's bound the limit.

    Inputs of -128 against a zero point of 127 then reach it in every window that needs no padding: upwards in even
    channels, downwards in odd ones.
    """
    node = case.node
    fmt, codes = FORMATS[str(node.attrs["weight_format"])], node.consts["codes"].copy()
    consts = dict(node.consts)
    odd = np.arange(len(codes)) % 2 == 1
    if fmt.codebook:
        consts["codebook"] = consts["codebook"].copy()
        consts["codebook"][0], consts["codebook"][-1] = -127, 127
        codes[~odd], codes[odd] = 0, 2**fmt.bits - 1
    else:
        codes[~odd], codes[odd] = -fmt.limit, fmt.limit
    consts["codes"] = codes
    values = fmt.values(codes, consts.get("codebook")).astype(np.int64)
    heavy = np.abs(values.reshape(len(codes), -1)).sum(axis=1) * 255
    bias = (INT32_LIMIT - 1 >> shift) - heavy + beyond
    consts["bias"] = np.where(odd, -bias, bias).astype(np.int32)
    consts["multiplier"] = MULTIPLIERS[: len(codes)]
    changed = replace(node, consts=consts, attrs={**node.attrs, "in_zero": 127, "shift": shift})
    graph = replace(case.graph, nodes=(changed,))
    inputs = case.inputs[0].copy()
    inputs[1] = -128
    return Case(f"{case.name}_edge{shift}", graph, (inputs,))


MOST = ("int8", "int4", "int2", "int3", "c4s8", "c6s8")


def _cases(shift: int, beyond: int = 0, formats: tuple[str, ...] = MOST) -> list[Case]:
    cases = []
    for fmt in formats:
        cases += [_edge(linear(64, 6, fmt), shift, beyond), _edge(conv((4, 5), 4, 6, fmt=fmt), shift, beyond)]
        cases.append(_edge(conv((4, 5), 4, 4, groups=4, fmt=fmt), shift, beyond))
    return [*cases, _edge(conv((6, 6), 16, 4), shift, beyond), _edge(conv((1, 5), 8, 4, (1, 1)), shift, beyond)]


def _sums(case: Case) -> int:
    """The largest accumulator (shifted) that the case's inputs reach, with int64 from the definition."""
    node = case.node
    assert node.op == "linear"
    x = case.inputs[0].astype(np.int64) - node.attrs["in_zero"]
    sums = x @ node.values.astype(np.int64).T + node.consts["bias"]
    return int(np.abs(sums).max()) << node.attrs["shift"]


def _batch(name: str, image: harness.Image, formats: tuple[str, ...] = MOST[:1]) -> harness.Batch:
    batch = harness.Batch(load_target(name), image)
    for case in _cases(0, formats=formats) + _cases(3, formats=formats):
        verify(case.graph)
        for row in harness.rows(case.node.op, case, batch.target):
            batch.add(row, case, samples=2)
    return batch


@pytest.mark.parametrize("shift", [0, 3])
def test_the_proof_is_tight(shift: int) -> None:
    for case in _cases(shift):
        verify(case.graph)
        if case.node.op == "linear":
            assert INT32_LIMIT - 1 - (1 << shift) < _sums(case) < INT32_LIMIT
    for case in _cases(shift, beyond=1):
        with pytest.raises(UnsupportedError, match=r"^layer: the int32 accumulator could overflow"):
            verify(case.graph)


@pytest.mark.parametrize("formats", [MOST[:1], pytest.param(MOST, marks=pytest.mark.slow)], ids=["int8", "most"])
@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-a72"])
def test_unicorn(name: str, formats: tuple[str, ...], tmp_path: Path) -> None:
    batch = _batch(name, harness.Image(harness.DATA), formats)
    harness.run_unicorn(batch, tmp_path)
    assert batch.failures() == []


def test_host(tmp_path: Path) -> None:
    batch = _batch("x86-64", harness.host_image(), MOST[::2])
    harness.run_host(batch, tmp_path)
    assert batch.failures() == []


@pytest.mark.qemu
@pytest.mark.parametrize("formats", [MOST[:1], pytest.param(MOST, marks=pytest.mark.slow)], ids=["int8", "most"])
def test_qemu(formats: tuple[str, ...], tmp_path: Path) -> None:
    if not harness.has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    batch = _batch("cortex-m55", harness.Image(harness.DATA), formats)
    harness.run_qemu(batch, tmp_path)
    assert batch.failures() == []
