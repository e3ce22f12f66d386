"""How the sweeps choose their points and keep their rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import faults
import kills
import pytest
import rows
import warm

POINTS = [
    warm.Point(call, n, f"{call}{n}") for call in ("write", "rename", "openat", "mkdir", "unlink") for n in range(9)
]


def test_every_error_and_call_is_chosen() -> None:
    found = faults.faults(POINTS)
    assert len(found) == sum(len(faults.ERRORS[p.call]) for p in POINTS)
    for count in (8, 12, 40):
        some = faults.chosen(found, count)
        assert len(some) == count
        assert {f.error for f in some} == {"ENOSPC", "EROFS", "EACCES", "EIO", "EMFILE"}
        assert {f.point.call for f in some} == {p.call for p in POINTS}
        assert some == faults.chosen(found, count)
    assert faults.chosen(found, None) == found
    assert {p.call for p in kills.chosen(POINTS, 3)} == {p.call for p in POINTS}


def test_what_is_judged(tmp_path: Path) -> None:
    fault = faults.Fault("EIO", POINTS[0])
    good = f"error: {tmp_path}/a.json: Input/output error\nhint: the disk reports a fault"

    def told(text: str, code: int = 1) -> list[str]:
        return faults.judged(warm.Ended(code, text, 0.0, ""), fault, [tmp_path])

    assert not told(good)
    assert not told("", 0)
    assert told(good, 0)
    assert told(good, 5)
    assert told("Traceback (most recent call last)\n" + good)
    assert told(good + "\n" + good)
    assert told("error: no room")
    assert told("internal error: OSError")


def test_rows_are_kept_and_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "promises.json")
    made: list[str] = []

    def job(name: str, wrong: bool = False) -> tuple[str, Any]:
        def work() -> dict[str, Any]:
            made.append(name)
            return {"wrong": ["lost"] if wrong else []}

        return name, work

    options = argparse.Namespace(seconds=float("inf"), fresh=False)

    def run(*jobs: tuple[str, Any]) -> int:
        return rows.work("kills", jobs, options, lambda r: {"points": len(r)})

    assert run(job("a"), job("b", wrong=True)) == 1
    assert run(job("a"), job("b"), job("c")) == 0
    assert made == ["a", "b", "b", "c"]
    document = json.loads((tmp_path / "promises.json").read_text())
    assert document["schema"] == "xdeploy.promises/1"
    assert document["kills"]["points"] == document["kills"]["of"] == 3
    assert document["kills"]["failed"] == []
    assert document["kills"]["commit"]
    options.fresh, options.seconds = True, -1.0
    assert run(job("a")) == 0
    assert made[-1] == "c"
