"""No row reads or writes a single byte beyond its buffers: inputs, output, workspace and each of its constants."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels import fences, harness
from tests.kernels.cases import KERNEL_OPS, Case, cases
from xdeploy.target import load_target

ALL = {op: cases(op) for op in KERNEL_OPS}


def _batch(name: str, step: int) -> harness.Batch:
    """Every row on every `step`-th case, weighted operations thinned out alone; a second sample runs in place."""
    batch = harness.Batch(load_target(name), harness.Image(harness.DATA))
    few: dict[str, list[Case]] = {
        op: listed[:: step if op in ("conv2d", "linear") else 1] for op, listed in ALL.items()
    }
    harness.fill(batch, few, samples=2)
    return batch


QUICK = [("cortex-m4", 6), ("cortex-m0plus", 6)]
CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m33", "cortex-a72")
ALL_CASES = [pytest.param(name, 1, marks=pytest.mark.slow) for name in CORES]


@pytest.mark.parametrize(("name", "step"), [*QUICK, *ALL_CASES])
def test_unicorn(name: str, step: int, tmp_path: Path) -> None:
    batch = _batch(name, step)
    assert fences.unicorn_violations(batch, tmp_path) == []
    assert batch.failures() == []


def test_a_byte_too_many_is_seen(tmp_path: Path) -> None:
    """One byte less is allowed for every block: the last accesses to each are told."""
    batch = _batch("cortex-m4", 40)
    batch.image.blocks = [(start, size - 1, written) for start, size, written in batch.image.blocks if size]
    told = fences.unicorn_violations(batch, tmp_path)
    assert {line.split()[0] for line in told} == {"read", "write"}
    assert any("conv2d" in line for line in told)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.qemu
def test_qemu(step: int, tmp_path: Path) -> None:
    if not harness.has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    batch = _batch("cortex-m55", step)
    assert fences.qemu_violations(batch, tmp_path) == []
    assert batch.failures() == []
