"""Measured power traces in CSV, read in pieces: time, power and the level of one digital channel.

A trace of any size needs the memory of one piece. What is not a number, not finite or of another width than the
header ends in a UsageError that names the line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xdeploy.bench.columns import Column, header
from xdeploy.errors import UsageError, choose_from, shown
from xdeploy.formats import Float64

BLOCK = 1 << 20  # bytes read at once
LONGEST = 1 << 14  # bytes of a line
HEADER_LINES = 200  # a header stands within so many lines
_COMMENTS = ("#", "%", "//")
_SEPARATORS = ("\t", ";", ",")
# words of digital columns; '-' and 'X' are the PPK2's "no sample" and "both within this sample"
_LEVELS = {
    "0": 0.0, "1": 1.0, "-": math.nan, "X": math.nan, "": math.nan, "low": 0.0, "high": 1.0, "false": 0.0, "true": 1.0,
    "False": 0.0, "True": 1.0, "L": 0.0, "H": 1.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a trace: float64 (n,) seconds, watts, and the gate's level (above 0.5 is high, NaN as before).

    line: where the piece begins in its file, for messages.
    """

    time: Float64
    power: Float64
    level: Float64 | None
    line: int


class Trace(Protocol):
    """An opened trace: who measured it, its digital channels by name, and its pieces in order."""

    instrument: str
    digital: tuple[str, ...]

    def chunks(self, gate: str | None = None) -> Iterator[Chunk]:
        """The pieces, with the level of the channel `gate`."""


def lines_of(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Number of the first line (from 1), and lines without their ends, block by block.

    Raises:
        UsageError: the file cannot be read, or holds a line that no trace has.
    """
    number, rest = 1, b""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                lines = (rest + block).split(b"\n")
                rest = lines.pop()
                longest = max(map(len, lines), default=0)
                if max(longest, len(rest)) > LONGEST:
                    at = number + next((i for i, x in enumerate(lines) if len(x) > LONGEST), len(lines))
                    raise UsageError(f"{path}, line {at}: longer than {LONGEST} bytes; this is no trace")
                yield number, lines
                number += len(lines)
    except OSError as error:
        raise UsageError(f"trace {path} cannot be read: {error.strerror}") from None
    if rest:
        yield number, [rest]


def first_lines(path: Path) -> list[str]:
    """The first lines as text, however they are encoded.

    Raises:
        UsageError: the file cannot be read, is empty, or is in UTF-16.
    """
    lines = next(lines_of(path), (1, []))[1][:HEADER_LINES]
    if not lines:
        raise UsageError(f"trace {path} is empty")
    if lines[0].startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in lines[0]:
        raise UsageError(f"trace {path} is no text in UTF-8 or Latin-1", hint="export it as CSV in UTF-8")
    return [_text(line) for line in lines]


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError:
        return line.decode("latin-1").rstrip("\r")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the header of a CSV stands (line from 1), its columns, the separator and the decimal sign."""

    line: int
    columns: tuple[Column, ...]
    separator: str
    decimal_comma: bool
    marked: bool  # the header is written as a comment, as Joulescope does

    def first(self, *kinds: str) -> int | None:
        """Index of the first column of one of these kinds, tried in order."""
        for kind in kinds:
            for i, c in enumerate(self.columns):
                if c.kind == kind:
                    return i
        return None


def layout(lines: Sequence[str]) -> Layout | None:
    """The layout that the first lines of a file tell; None if none of them is a header."""
    for number, line in enumerate(lines, 1):
        plain = line.lstrip("#% ").strip()
        separator = next((s for s in _SEPARATORS if s in plain), None)
        columns = None if separator is None else header(plain.split(separator))
        if separator is None or columns is None:
            continue
        data = [x for x in lines[number : number + 50] if not x.startswith(_COMMENTS)]
        comma = separator != "," and any("," in x for x in data)
        return Layout(number, tuple(columns), separator, comma, plain != line.strip())
    return None


class CsvTrace:
    """A CSV with a header: time, and power, or current times voltage, or current times the given supply.

    Args:
        path: the file.
        found: its layout.
        instrument: what is told in the result.
        supply: volts, for traces of current alone.
        si: columns that tell no unit are in seconds, amperes, volts and watts.
    """

    def __init__(self, path: Path, found: Layout, instrument: str, supply: float | None, si: bool = False) -> None:
        self.path, self.layout, self.instrument, self.supply = path, found, instrument, supply
        at = {k: found.first(k) for k in ("time", "power", "current", "voltage")}
        time, power, current, voltage = at.values()
        assert time is not None, "a header names a time"
        uses = (time, power) if power is not None else (time, current) if supply else (time, current, voltage)
        self._numbers = [i for i in uses if i is not None]
        self._scales = [self._scale(found.columns[i], si) for i in self._numbers]
        if power is None and len(self._numbers) == 2 and not supply:
            raise UsageError(
                f"{path} holds current, but neither power nor voltage",
                hint="tell the voltage of the board's supply: --supply 1.8V",
            )
        if power is None and len(self._numbers) == 2:
            self._scales[1] *= supply or 1.0
        bits = found.first("bits")
        self._bits = {} if bits is None else {f"D{n}": n for n in range(8)}
        named = [c.name for c in found.columns if c.kind == "digital"]
        self.digital = tuple(dict.fromkeys([*named, *self._bits]))

    def _scale(self, c: Column, si: bool) -> float:
        if c.scale is None and not si:
            hint = f"write it into the header, such as '{c.name} ({_EXAMPLES[c.kind]})'"
            raise UsageError(f"{self.path}, line {self.layout.line}: column {shown(c.name)} tells no unit", hint=hint)
        return 1.0 if c.scale is None else c.scale

    def chunks(self, gate: str | None = None) -> Iterator[Chunk]:
        """The pieces, each checked.

        Raises:
            UsageError: a line that is not as the header says, with its number; or an unknown channel.
        """
        place = None if gate is None else self._place(gate)
        for number, raw in lines_of(self.path):
            skipped = max(0, self.layout.line + 1 - number)
            lines = [x.decode("latin-1").rstrip("\r") for x in raw[skipped:]]
            kept = [x for x in lines if x.strip() and not x.startswith(_COMMENTS)]
            if kept:
                first = number + skipped
                values = self._numbers_of(kept, lines, first)
                level = None if place is None else self._level(kept, place, lines, first)
                power = values[:, 1] if values.shape[1] == 2 else values[:, 1] * values[:, 2]
                yield Chunk(values[:, 0], power, level, first)

    def _place(self, gate: str) -> tuple[int, int | None]:
        """Index of the column, and which of its characters where eight channels share one word."""
        names = [c.name for c in self.layout.columns]
        if gate in names:
            return names.index(gate), None
        if gate in self._bits:
            return int(self.layout.first("bits") or 0), self._bits[gate]
        raise choose_from("gate", gate, {*self.digital, *names})

    def _numbers_of(self, kept: list[str], lines: list[str], first: int) -> Float64:
        """The numeric columns (n, k) in SI units."""
        sep = self.layout.separator
        width = len(self.layout.columns) - 1
        if any(x.count(sep) != width for x in kept):
            raise self._blame(lines, first)
        plain = [x.replace(",", ".") for x in kept] if self.layout.decimal_comma else kept
        try:
            values: Float64 = np.loadtxt(
                plain, np.float64, delimiter=sep, usecols=self._numbers, ndmin=2, quotechar='"', comments=None
            )
        except ValueError:
            raise self._blame(lines, first) from None
        if not np.isfinite(values).all():
            raise self._blame(lines, first)
        scaled: Float64 = values * np.array(self._scales)
        return scaled

    def _level(self, kept: list[str], place: tuple[int, int | None], lines: list[str], first: int) -> Float64:
        column, bit = place
        words = [x.split(self.layout.separator)[column].strip().strip('"') for x in kept]
        try:
            cells = words if bit is None else [w[bit] for w in words]
            return np.array([_LEVELS[c] if c in _LEVELS else float(c) for c in cells])
        except (ValueError, IndexError):
            raise self._blame(lines, first, place) from None

    def _blame(self, lines: list[str], first: int, place: tuple[int, int | None] | None = None) -> UsageError:
        """The error of the first line that is wrong."""
        columns, sep = self.layout.columns, self.layout.separator
        for number, line in enumerate(lines, first):
            cells = line.split(sep)
            where = f"{self.path}, line {number}"
            if not line.strip() or line.startswith(_COMMENTS):
                continue
            if len(cells) != len(columns):
                return UsageError(f"{where}: {len(cells)} column(s); the header has {len(columns)}")
            for i in self._numbers:
                text = cells[i].strip().strip('"').replace(",", "." if self.layout.decimal_comma else ",")
                if not _is_number(text):
                    return UsageError(f"{where}: {shown(columns[i].name)} is {shown(cells[i])}, not a finite number")
            word = "" if place is None else cells[place[0]].strip().strip('"')
            bad = place is not None and word not in _LEVELS and not _is_number(word)
            if bad or (place is not None and place[1] is not None and len(word) != len(self._bits)):
                return UsageError(f"{where}: {shown(word)} is no level of a digital channel")
        return UsageError(f"{self.path}, line {first}: not as the header says")


_EXAMPLES: dict[str, Any] = {"time": "s", "current": "mA", "voltage": "V", "power": "mW"}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
