"""The programs of benchmarks/ import their parts from their own folder, and so do their tests; on one thread."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.threads import one_thread

__all__ = ["one_thread"]

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
