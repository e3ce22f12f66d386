"""Figures that ship with the package, of the layers of the zoo's networks: read only, behind the user's own cache.

Each file in `figures`, written by benchmarks/pretune.py, is of one network and weight format: lines of JSON, a head and
then a row for each kernel on each shape and target. They are counts of emulators, which are the same on every machine;
times do not ship. A row's key holds what decides its figures: the kernel's text, shapes, target, and the versions of
compiler and emulator. It leaves out the code that measures, so that tests measure some rows again.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from xdeploy.tune.jobs import Figures

SCHEMA = "xdeploy.pretuned/1"
FOLDER, SUFFIX = "figures", ".jsonl"
COLUMNS = ("target", "kernel", "key", "instructions", "cycles", "code", "helpers")
KEY = 32  # of the hexadecimal digits of `Job.work`


@dataclass(frozen=True, slots=True)
class Entry:
    """The figures of one kernel row on one shape and target; `key` is how `Job.work` begins."""

    target: str
    kernel: str
    key: str
    figures: Figures


class Pretuned:
    """What ships, or nothing. A file that is broken or of another schema counts as not there."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.table: Mapping[str, Figures] = {e.key: e.figures for e in entries}

    def get(self, work: str) -> Figures | None:
        """The figures that ship for `Job.work`, or None."""
        return self.table.get(work[:KEY])


@functools.cache
def pretuned() -> Pretuned:
    """All that ships with this package."""
    found: list[Entry] = []
    for text in shipped().values():
        with contextlib.suppress(ValueError, RecursionError):
            found += read(text)
    return Pretuned(found)


def shipped() -> dict[str, str]:
    """Name of a network and format -> text of its file, in order."""
    folder = files("xdeploy.tune") / FOLDER
    paths = sorted((p for p in folder.iterdir() if p.name.endswith(SUFFIX)), key=lambda p: p.name)
    return {p.name.removesuffix(SUFFIX): p.read_bytes().decode(errors="replace") for p in paths}


def read(text: str) -> list[Entry]:
    """The rows of a file.

    Raises:
        ValueError: it is not one.
    """
    head, *rows = [json.loads(line) for line in text.splitlines()] or [None]
    if not isinstance(head, dict) or (head.get("schema"), head.get("columns")) != (SCHEMA, list(COLUMNS)):
        raise ValueError("not a file of figures that ship")
    return [_entry(row) for row in rows]


def _entry(row: Any) -> Entry:
    if not isinstance(row, list) or len(row) != len(COLUMNS) or any(not isinstance(text, str) for text in row[:3]):
        raise ValueError(f"not a row of {', '.join(COLUMNS)}")
    target, kernel, key, *counts = row
    own = dict(zip(COLUMNS[3:], counts, strict=True))
    return Entry(target, kernel, key, Figures.from_dict({**Figures().to_dict(), **own}))


def written(entries: Iterable[Entry], tools: Mapping[str, str]) -> str:
    """The text of a file: equal entries once, in order of target, kernel and key.

    Args:
        entries: its rows, in any order.
        tools: versions of compiler and emulators, for the head.

    Raises:
        ValueError: a figure was timed, or is of a kernel that may not be chosen.
    """
    rows = {}
    for e in entries:
        if e.figures.nanoseconds is not None or not e.figures.sound:
            raise ValueError(f"{e.kernel} on {e.target}: only sound counts ship")
        told = e.figures.to_dict()
        rows[e.target, e.kernel, e.key] = [e.target, e.kernel, e.key, *(told[c] for c in COLUMNS[3:])]
    lines = [{"schema": SCHEMA, "columns": list(COLUMNS), "tools": dict(tools)}, *(rows[k] for k in sorted(rows))]
    return "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines)
