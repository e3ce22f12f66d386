"""The instruments' own formats beside plain CSV, and which of them a file is in.

* Joulescope: CSV of the recorded statistics (`#time,current,voltage,power,charge,energy`, SI units) and `.jls`, which
  the package `pyjls` reads (github.com/jetperch/pyjoulescope_ui, github.com/jetperch/jls).
* Nordic PPK2: `Timestamp(ms),Current(uA)` with `D0-D7` in one word, D0 first, or one column each
  (github.com/NordicSemiconductor/pc-nrfconnect-ppk, exportChartAction).
* ST X-NUCLEO-LPM01A: the log of its serial port in `format ascii_dec`, where 6409-07 is 640.9 uA; in `output energy`
  a value is the joules of one sample (UM2269; read alike by mlcommons/tiny, power_manager_lpm).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.traces import Chunk, CsvTrace, Layout, Trace, first_lines, layout, lines_of
from xdeploy.errors import ToolchainError, UsageError, choose_from, shown
from xdeploy.formats import Float64

FORMATS = ("auto", "csv", "joulescope", "ppk2", "lpm01a")
_SAMPLES = 1 << 18  # of a .jls, read at once
_LPM_VALUE = re.compile(rb"\d{4}[+-]\d{2}")
_LPM_STAMP = re.compile(rb"TimeStamp:\s*(\d+)s\s*(\d+)ms")
_LPM_FREQUENCY = re.compile(rb"\bfreq\s+(\d+)(k?)\b", re.IGNORECASE)
_LPM_EVENT = re.compile(rb"event\s+\d+\s+(ris|fal)")


def open_trace(path: Path, kind: str = "auto", supply: float | None = None) -> Trace:
    """Open a measured trace.

    Args:
        path: the file.
        kind: one of FORMATS; "auto" looks at the file.
        supply: volts of the board's supply, for traces of current alone.

    Raises:
        UsageError: unknown format, not such a file, or no voltage. ToolchainError: a reader is not installed.
    """
    if kind not in FORMATS:
        raise choose_from("format of a trace", kind, FORMATS)
    if not path.is_file():
        raise UsageError(f"trace {path} does not exist or is no file")
    if path.suffix.lower() == ".jls":
        if kind not in ("auto", "joulescope"):
            raise UsageError(f"{path} is a Joulescope file, not {kind}")
        return JlsTrace(path, supply)
    lines = first_lines(path)
    found = layout(lines)
    if kind == "lpm01a" or (kind == "auto" and found is None and _is_lpm(lines)):
        return LpmTrace(path, supply)
    if found is None:
        raise UsageError(
            f"no line of {path} names the columns: a time, and a current or power, with units",
            hint="such as 'time (s),current (mA),D0' in its first line",
        )
    return _csv(path, found, kind, supply)


def _csv(path: Path, found: Layout, kind: str, supply: float | None) -> CsvTrace:
    names = [c.name.lower() for c in found.columns]
    ppk2 = "timestamp(ms)" in names and "current(ua)" in names
    if kind == "ppk2" and not ppk2:
        raise UsageError(f"{path} is no export of a PPK2: it has no columns Timestamp(ms) and Current(uA)")
    joulescope = kind == "joulescope" or (kind == "auto" and found.marked and "time" in names)
    name = "Nordic PPK2" if ppk2 and kind != "csv" else "Joulescope" if joulescope else "CSV"
    return CsvTrace(path, found, name, supply, si=joulescope)


def _is_lpm(lines: list[str]) -> bool:
    return any(_LPM_STAMP.search(x.encode()) for x in lines) or bool(_LPM_VALUE.match(lines[-1].encode()))


class LpmTrace:
    """What an X-NUCLEO-LPM01A sent over its serial port; events toggle the gate `events`.

    The sampling rate is the `freq` that the log holds, else samples over time stamps.
    """

    instrument = "ST X-NUCLEO-LPM01A"
    digital: tuple[str, ...] = ("events",)

    def __init__(self, path: Path, supply: float | None) -> None:
        self.path = path
        self.rate, self.joules = self._facts()
        if supply is None and not self.joules:
            hint = "tell the voltage it supplied: --supply 1.8V"
            raise UsageError(f"{path} holds current, but no voltage", hint=hint)
        # energy of one sample times samples a second, or amperes times volts
        self._scale = self.rate if self.joules else float(supply or 0.0)

    def _facts(self) -> tuple[float, bool]:
        rate, joules, count, stamps = 0.0, False, 0, list[tuple[float, int]]()
        for _, lines in lines_of(self.path):
            for line in lines:
                if _LPM_VALUE.match(line):
                    count += len(_LPM_VALUE.findall(line))
                elif stamp := _LPM_STAMP.search(line):
                    stamps = [*stamps[:1], (int(stamp[1]) + int(stamp[2]) * 1e-3, count)]
                elif found := _LPM_FREQUENCY.search(line):
                    rate = float(found[1]) * (1000.0 if found[2] else 1.0)
                elif b"bin_hexa" in line:
                    hint = "record it with `format ascii_dec`"
                    raise UsageError(f"{self.path} is in the instrument's binary format", hint=hint)
                joules = joules or b"output energy" in line
        if not rate and len(stamps) == 2 and stamps[1][0] > stamps[0][0]:
            rate = (stamps[1][1] - stamps[0][1]) / (stamps[1][0] - stamps[0][0])
        if not rate or not count:
            lacking = "samples such as 6409-07" if not count else "sampling rate: neither `freq` nor time stamps"
            raise UsageError(f"{self.path} is no log of an LPM01A: it holds no {lacking}")
        return rate, joules

    def chunks(self, gate: str | None = None) -> Iterator[Chunk]:
        """The pieces.

        Raises:
            UsageError: a line of digits that are no samples, or an unknown channel.
        """
        if gate not in (None, *self.digital):
            raise choose_from("gate", str(gate), self.digital)
        sample, level = itertools.count(), 0.0
        for number, lines in lines_of(self.path):
            values, levels = list[float](), list[float]()
            for at, line in enumerate(lines, number):
                if _LPM_EVENT.match(line):
                    level = 1.0 - level
                elif line[:1].isdigit():
                    found = self._values(line.rstrip(b"\r"), at)
                    values += found
                    levels += [level] * len(found)
            if values:
                time = np.array(list(itertools.islice(sample, len(values)))) / self.rate
                yield Chunk(time, np.array(values) * self._scale, np.array(levels) if gate else None, number)

    def _values(self, line: bytes, at: int) -> list[float]:
        found = _LPM_VALUE.findall(line)
        if b"".join(found) != line.replace(b" ", b""):
            text = shown(line.decode("latin-1"))
            raise UsageError(f"{self.path}, line {at}: {text} is no row of samples such as 6409-07")
        return [float(v[:4] + b"e" + v[4:]) for v in found]


class JlsTrace:
    """A Joulescope `.jls`: its power signal, or current times voltage; `gpi` signals are digital channels."""

    instrument = "Joulescope"

    def __init__(self, path: Path, supply: float | None) -> None:
        try:
            import pyjls
        except ImportError:
            hint = "pip install pyjls, or export the trace as CSV"
            raise ToolchainError(f"{path}: the Python package 'pyjls' is not installed", hint=hint) from None
        self.path, self._reader_of = path, pyjls.Reader
        with self._open() as reader:
            signals = {str(s.name): s for s in reader.signals.values() if s.signal_type == 0 and s.length}
        if not signals.keys() & {"power", "current"}:
            raise UsageError(f"{path} holds neither power nor current, but: {', '.join(signals) or 'no samples'}")
        self.digital = tuple(n for n in signals if n.startswith("gpi") or n == "trigger_in")
        names = ("power",) if "power" in signals else ("current", "voltage")
        self._signals, self._names = signals, [n for n in names if n in signals]
        if self._names == ["current"] and supply is None:
            hint = "tell the voltage of the board's supply: --supply 1.8V"
            raise UsageError(f"{path} holds current, but neither power nor voltage", hint=hint)
        self._supply = float(supply or 0.0)

    def _open(self) -> Any:
        try:
            return self._reader_of(str(self.path))
        except (RuntimeError, OSError, ValueError) as error:
            raise UsageError(f"{self.path} is no readable .jls: {error}") from None

    def chunks(self, gate: str | None = None) -> Iterator[Chunk]:
        """The pieces.

        Raises:
            UsageError: signals of different rates, samples that are not finite, or an unknown channel.
        """
        if gate not in (None, *self.digital):
            raise choose_from("gate", str(gate), self.digital)
        used = [self._signals[n] for n in (*self._names, *([gate] if gate else []))]
        if len({s.sample_rate for s in used}) != 1:
            raise UsageError(f"{self.path}: {', '.join(s.name for s in used)} have different sampling rates")
        length = min(s.length for s in used)
        with self._open() as reader:
            for start in range(0, length, _SAMPLES):
                count = min(_SAMPLES, length - start)
                rows = [self._samples(reader, s, start, count) for s in used]
                current = rows[0] * (rows[1] if len(self._names) == 2 else self._supply)
                power = rows[0] if self._names == ["power"] else current
                if not np.isfinite(power).all():
                    at = start + int(np.argmin(np.isfinite(power)))
                    raise UsageError(f"{self.path}: sample {at} of {self._names[0]} is lost")
                time = np.arange(start, start + count) / float(used[0].sample_rate)
                yield Chunk(time, power, rows[-1] if gate else None, start)

    @staticmethod
    def _samples(reader: Any, signal: Any, start: int, count: int) -> Float64:
        """Samples as float64; signals of one bit come packed, the first in the lowest bit."""
        raw = np.asarray(reader.fsr(signal.signal_id, start, count))
        if raw.dtype == np.uint8 and len(raw) < count:
            raw = np.unpackbits(raw, bitorder="little", count=count)
        return raw.astype(np.float64)
