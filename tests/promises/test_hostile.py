"""Hostile files through the command line: no code of theirs runs, memory stays bounded, the message is clear."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path

import pytest
import small
import warm

from tests.promises.gadgets import GADGETS

MEMORY = 1 << 30  # bytes that a command may take beyond what is loaded before it begins
_WORDS = 8 << 10  # characters of a message at most


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    warm.load_all()


def _limited(arguments: list[str]) -> int:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    return warm.command_line(arguments)


@pytest.mark.parametrize("name", GADGETS)
def test_gadget(name: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    small.prepare(work)
    gadget = GADGETS[name]
    arguments = gadget.make(work)
    known = {p.name for p in work.iterdir()} | {"out", "__pycache__"}
    ended = warm.run(partial(_limited, arguments), warm.Place.below(tmp_path / "spot", work))
    assert ended.code in gadget.codes, (ended.code, ended.text[-2000:])
    assert {p.name for p in work.iterdir()} <= known, "something was written"
    assert not (tmp_path / "canary").exists()
    assert "error: " in ended.text
    assert "Traceback" not in ended.text
    assert "internal error" not in ended.text
    assert len(ended.text) < _WORDS


def test_there_are_enough() -> None:
    assert len(GADGETS) >= 15
