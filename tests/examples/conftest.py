"""The examples as programs that a reader has in the folder: imported by path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session", autouse=True)
def _importable() -> None:
    """As Python has it when it runs one of them; the folder of one with several files is its own."""
    for folder in (EXAMPLES, EXAMPLES / "kws_mfcc", EXAMPLES.parent / "benchmarks"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
