"""Fixtures that several files of kernels' tests use."""

from __future__ import annotations

import pytest
import unicorn.arm64_const as a64


@pytest.fixture
def newest_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's 64-bit CPU, with dot product."""
    monkeypatch.setattr(a64, "UC_CPU_ARM64_A72", a64.UC_CPU_ARM64_MAX)
