"""Every row equals the numpy reference bit for bit, on the host and in the emulators.

By default each on every third case that it takes, from the other end with an odd seed; with `-m slow` on all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import seed
from tests.kernels import harness
from tests.kernels.cases import KERNEL_OPS, cases
from xdeploy.target import load_target

ALL = {op: cases(op) for op in KERNEL_OPS}
if seed() % 2:
    ALL = {op: listed[::-1] for op, listed in ALL.items()}
AMOUNT = pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)], ids=["third", "all"])


def _check(batch: harness.Batch, runner: str, folder: Path) -> None:
    before = batch.image.bytes.copy()
    getattr(harness, f"run_{runner}")(batch, folder)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


@AMOUNT
def test_host(step: int, tmp_path: Path) -> None:
    batch = harness.Batch(load_target("x86-64"), harness.host_image())
    harness.fill(batch, ALL, step=step)
    _check(batch, "host", tmp_path)


@AMOUNT
@pytest.mark.parametrize("name", ["cortex-a72", "cortex-m4"])
def test_unicorn(name: str, step: int, tmp_path: Path) -> None:
    batch = harness.Batch(load_target(name), harness.Image(harness.DATA))
    harness.fill(batch, ALL, samples=2, step=step)
    _check(batch, "unicorn", tmp_path)


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m3", "cortex-a7"])
def test_few_cases(name: str, tmp_path: Path) -> None:
    """Cores without DSP instructions, one without long multiplication and division, Armv7-A: a case of each kind."""
    batch = harness.Batch(load_target(name), harness.Image(harness.DATA))
    step = 18 if name == "cortex-a7" else 9  # LLVM takes its time to vectorise
    few = {op: listed[:: step if op in ("conv2d", "linear") else 2] for op, listed in ALL.items()}
    harness.fill(batch, few, samples=2)
    _check(batch, "unicorn", tmp_path)


@AMOUNT
@pytest.mark.qemu
def test_qemu(step: int, tmp_path: Path) -> None:
    if not harness.has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    batch = harness.Batch(load_target("cortex-m55"), harness.Image(harness.DATA))
    harness.fill(batch, ALL, samples=2, step=step)
    _check(batch, "qemu", tmp_path)
