"""What the columns of a measured trace mean: the quantity and unit that a header cell tells, in its many spellings."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TIME = {
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "millis": 1e-3,
    "milliseconds": 1e-3, "us": 1e-6, "usec": 1e-6, "micros": 1e-6, "microseconds": 1e-6, "ns": 1e-9, "min": 60.0,
}  # fmt: skip
_PREFIXES = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "milli": 1e-3, "micro": 1e-6, "nano": 1e-9}
_BASES = {
    "current": ("a", "amp", "amps", "ampere", "amperes"),
    "voltage": ("v", "volt", "volts"),
    "power": ("w", "watt", "watts"),
}
# unit as it is written in lower case -> quantity and factor to SI; milli and not mega: nobody logs megawatts of a board
UNITS: dict[str, tuple[str, float]] = {k: ("time", v) for k, v in _TIME.items()} | {
    f"{prefix}{base}": (kind, factor)
    for kind, bases in _BASES.items()
    for base in bases
    for prefix, factor in _PREFIXES.items()
    if len(prefix) < 2 or len(base) > 1
}
_WORDS = {
    "time": ("time", "timestamp", "timestamps", "t", "elapsed"),
    "current": ("current", "curr", "i", "amperage"),
    "voltage": ("voltage", "u"),
    "power": ("power", "p"),
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}
_GLUED = re.compile(r"(time|timestamp|current|voltage|power)([mun]?[avw]|[mun]?s)")
_DIGITAL = re.compile(
    r"(d|dio|din|gpio|gpi|io|in|ch|dut)[ _]?\[?\d+\]?|gate|trigger|trig|digital|gpio|gpi|marker|sync|events"
)
_BITS = re.compile(r"d0\s*-\s*d7")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: kind is time, current, voltage, power, digital, bits (D0 to D7 in one word) or other.

    scale: factor to seconds, amperes, volts or watts; None where the header tells no unit.
    """

    name: str
    kind: str
    scale: float | None = None


def column(text: str) -> Column:
    """The column that a header cell names, such as `Time (s)`, `timestamp_ms`, `current [mA]`, `Power(mW)` or `uA`."""
    name = text.strip().strip("\"'").strip()
    plain = name.replace("µ", "u").replace("μ", "u").lower()
    if _BITS.fullmatch(plain):
        return Column(name, "bits")
    if _DIGITAL.fullmatch(plain.rpartition(".")[2]):
        return Column(name, "digital")
    bracketed = re.search(r"[(\[{]\s*([a-z]+)\s*[)\]}]", plain)
    words = [w for w in re.split(r"[^a-z0-9]+", plain) if w]
    glued = _GLUED.fullmatch("".join(words))
    if glued:
        words = [glued[1], glued[2]]
    unit = UNITS.get(bracketed[1] if bracketed else words[-1] if words else "")
    said = next((_KINDS[w] for w in words if w in _KINDS), None)
    if bracketed and unit is None:
        return Column(name, "other")  # a unit of something else: joules, coulombs, degrees
    if unit is None:
        return Column(name, said or "other")
    if said not in (None, unit[0]):
        return Column(name, "other")
    return Column(name, unit[0], unit[1])


def header(cells: list[str]) -> list[Column] | None:
    """The columns of a line, or None if it does not name a time and a current or power."""
    columns = [column(c) for c in cells]
    kinds = {c.kind for c in columns}
    return columns if "time" in kinds and kinds & {"current", "power"} else None
