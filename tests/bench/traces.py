"""Power traces as the instruments write them, from one function of time, with the energy known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

IDLE_W, ACTIVE_W = 2e-3, 20e-3
RATE = 10_000
PULSES = ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6))  # seconds
SECONDS = 0.7
SUPPLY = 1.8


def samples(rate: int = RATE, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds, watts and the gate: samples lie in the middle of their intervals, so that edges fall between them."""
    time = (np.arange(round(SECONDS * rate)) + 0.5) / rate
    gate = np.any([(a < time) & (time < b) for a, b in PULSES], axis=0)
    power = np.where(gate, ACTIVE_W, IDLE_W)
    return time, power + noise * np.random.default_rng(seed).normal(size=len(time)), gate.astype(int)


def write_csv(path: Path, head: str, rows: list[tuple[object, ...]], separator: str = ",", before: str = "") -> Path:
    lines = [head, *(separator.join(map(str, r)) for r in rows)]
    path.write_text(before + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def generic(path: Path, **options: float) -> Path:
    time, power, gate = samples(**options)  # type: ignore[arg-type]
    return write_csv(
        path, "Time (s),Power (mW),D0", [(f"{t:.9f}", p * 1e3, g) for t, p, g in zip(time, power, gate, strict=True)]
    )


def ppk2(path: Path, columns: str = "both") -> Path:
    """`Timestamp(ms),Current(uA)`, three decimals of current; D0 first in the word; the gate is D2."""
    time, power, gate = samples()
    heads = {
        "both": "Timestamp(ms),Current(uA),D0-D7,D0,D1,D2,D3,D4,D5,D6,D7",
        "word": "Timestamp(ms),Current(uA),D0-D7",
    }
    rows: list[tuple[object, ...]] = []
    for t, p, g in zip(time, power, gate, strict=True):
        bits = ["0", "0", str(g), "-", "0", "0", "0", "0"]
        both = (",".join(bits),) if columns == "both" else ()
        rows.append((f"{t * 1e3:.5f}", f"{p / SUPPLY * 1e6:.3f}", "".join(bits), *both))
    return write_csv(path, heads[columns], rows)


def joulescope(path: Path) -> Path:
    """Recorded statistics: SI units without saying so, header as a comment, charge and energy running along."""
    time, power, _ = samples()
    rows = [(f"{t:.6f}", f"{p / SUPPLY:.6g}", SUPPLY, f"{p:.6g}", 0, 0) for t, p in zip(time, power, strict=True)]
    return write_csv(path, "#time,current,voltage,power,charge,energy", rows)


def lpm01a(path: Path, energy: bool = False, told: bool = True, rate: int = RATE) -> Path:
    """The serial log: commands and their acknowledgement, time stamps, several samples a line, events at the edges."""
    _, power, gate = samples(rate)
    values = power / rate if energy else power / SUPPLY
    lines = ["PowerShield > ack htc", f"ack output {'energy' if energy else 'current'}", "ack format ascii_dec"]
    lines += [f"ack freq {rate // 1000}k"] if told else []
    row, level = "", 0
    for i, (v, g) in enumerate(zip(values, gate, strict=True)):
        if i % (rate // 10) == 0:
            lines += [row] if row else []
            lines.append(f"TimeStamp: {i // rate:03d}s {i * 1000 // rate % 1000:03d}ms, buff 02%")
            row = ""
        if g != level:
            lines += [row] if row else []
            lines.append(f"event {i * 1000 // rate} ris")
            row, level = "", int(g)
        exponent = int(np.floor(np.log10(v))) - 3
        row += f"{round(v / 10.0**exponent):04d}-{-exponent:02d}"
        if len(row) >= 28:
            lines.append(row)
            row = ""
    path.write_text("\r\n".join([*lines, row, "Acquisition completed"]) + "\r\n", encoding="ascii")
    return path


def closed_form(power: Callable[[float], float], start: float, end: float, steps: int = 200_001) -> float:
    """Energy by a fine midpoint rule, another way than trapezoids over the samples."""
    t = start + (np.arange(steps) + 0.5) * (end - start) / steps
    return float(np.mean([power(x) for x in t]) * (end - start))
