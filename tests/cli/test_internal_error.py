"""A fault of ours, as the one who meets it sees it: where it is, and how to report it."""

from __future__ import annotations

import pytest

from xdeploy import doctor
from xdeploy.cli import main


def broken() -> list[doctor.Check]:
    raise KeyError("x")


def test_it_tells_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", broken)
    assert main(["doctor"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("internal error: KeyError: 'x' (xdeploy/commands/tools.py, line ")
    assert told[1].startswith("hint: run again with --debug")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(KeyError):
        main(["doctor", "--debug"])
