"""Memory and time of stages; what asking for help may load."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from xdeploy import meter
from xdeploy.meter import Meter

MIB = 1 << 20


def test_the_peak_is_that_of_the_stage_alone():
    """A larger stage before does not count, memory that was given back in the middle does."""
    import numpy as np

    with Meter() as large:
        np.ones(300 * MIB, np.uint8).sum()
    with Meter() as small:
        np.ones(20 * MIB, np.uint8).sum()
    if "peak_rss_note" in small.memory:
        pytest.skip("this system does not let a process reset its peak")
    assert large.memory["peak_rss"] - small.memory["peak_rss"] > 200 * MIB
    assert 0 < small.memory["peak_rss"] < 100 * 1024 * MIB
    assert large.seconds > 0


def test_children_count_while_they_live():
    hold = "b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096]); import time; time.sleep(1.5)"
    with Meter() as alone:
        pass
    with Meter() as both:
        subprocess.run([sys.executable, "-c", hold], check=True)
    assert both.memory["peak_rss"] - alone.memory["peak_rss"] > 150 * MIB


def test_without_the_systems_help_it_says_so(monkeypatch):
    monkeypatch.setattr(meter, "_forget_peak", lambda: False)
    with Meter() as m:
        pass
    assert m.memory["peak_rss"] > 0
    assert "since its start" in m.memory["peak_rss_note"]


def test_an_error_goes_through():
    with pytest.raises(ZeroDivisionError), Meter() as m:
        1 / 0  # noqa: B018
    assert m.memory["peak_rss"] > 0


def test_each_stage_has_its_row(kept, first):
    rows = json.loads((kept.parent / "out" / "run.json").read_text())["stages"]
    assert set(rows) == {"lower", "cortex-m4", "accuracy"}
    for row in rows.values():
        assert 10 * MIB < row["peak_rss"] < 64 * 1024 * MIB
        assert row["seconds"] > 0


@pytest.mark.parametrize("words", [["--help"], ["build", "--help"], ["--version"]])
def test_help_loads_nothing_that_takes_time(words):
    code = f"import sys\nfrom xdeploy.cli import main\ntry: main({words!r})\nexcept SystemExit: pass\n"
    code += "heavy = ('numpy', 'rich', 'importlib.metadata', 'tomllib', 'email', 'shtab', 'ctypes', 'subprocess')\n"
    code += "print('loaded:', [m for m in heavy if m in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    assert done.stdout.strip().endswith("loaded: []")
