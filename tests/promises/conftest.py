"""The tests use the parts of benchmarks/promises; on one thread."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.threads import one_thread

__all__ = ["one_thread"]

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "promises"))
