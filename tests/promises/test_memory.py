"""Loading, scoring, calibrating and counting right answers: memory does not grow with the number of images."""

from __future__ import annotations

import time

import pytest
from memory import KINDS, Watch, measure, status

MOST = 1.1  # of the memory that the fewest images take
NAMES = 700  # bytes for each file of a zip or folder in Python's own list of them, while it is read


def test_the_watch_sees_what_is_held_for_a_moment() -> None:
    before = status("RssAnon")
    with Watch() as watch:
        held = bytearray(b"x" * (200 * 2**20))
        assert status("RssAnon") > before + 180 * 2**20
        end = time.monotonic() + 60  # a busy machine may leave the watch no turn in this moment
        while watch.most <= before + 180 * 2**20 and time.monotonic() < end:
            time.sleep(0.001)
        del held
    assert watch.most > before + 180 * 2**20


def check(kind: str, *counts: int) -> None:
    rows = [measure(n, kind) for n in counts]
    for row in rows:
        assert row["scored"] == row["images"] * 3 // 5  # the rest is held out for validation and test
        assert row["tested"] == row["images"] // 5
    listed = NAMES * (counts[-1] - counts[0]) if kind in ("zip", "folder") else 0
    assert rows[-1]["resident"] <= MOST * rows[0]["resident"], rows
    assert rows[-1]["anonymous"] <= MOST * rows[0]["anonymous"] + listed, rows


def test_flat_to_4000_images() -> None:
    check("zip", 500, 4_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_flat_to_50000_images(kind: str) -> None:
    check(kind, 500, 50_000)
