"""Amounts and foreign names as they may stand in a terminal, in XML, in SARIF messages and in Markdown."""

from __future__ import annotations

import re

from xdeploy.errors import shown

_SCALES = (("", 1.0), ("m", 1e-3), ("u", 1e-6), ("n", 1e-9))
_NAMES = {"byte": "B", "instruction": "instructions", "cycle": "cycles"}


def amount(value: float | int | None, unit: str) -> str:
    """A value with its unit: 12,306 B; 36.472 ms; 25.00 %; a dash where there is none."""
    if value is None:
        return "-"
    if unit in ("s", "J"):
        prefix, scale = next((x for x in _SCALES if value >= x[1]), _SCALES[-1] if value else _SCALES[0])
        return f"{value / scale:.6g} {prefix}{unit}"
    if unit in ("%", "points"):
        return f"{value:.2f} {unit}"
    whole = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}".removesuffix(".0")
    return f"{whole} {_NAMES.get(unit, unit)}"


def change(before: float | int | None, now: float | int | None, unit: str = "") -> str:
    """How a value changed: +2.0 %, -0.52 points, none; a dash where it cannot be said."""
    if before is None or now is None:
        return "-"
    if before == now:
        return "none"
    if unit == "%":
        return f"{now - before:+.2f} points"
    return f"{100 * (now - before) / before:+.1f} %" if before else f"+{amount(now, unit)}"


def line(text: str, limit: int = 400) -> str:
    """Foreign text as one printable line."""
    return shown(text, limit, quote=False)


def message(text: str) -> str:
    """Plain text of a SARIF message: braces doubled (placeholders), no `](` (links)."""
    return line(text, 2000).replace("{", "{{").replace("}", "}}").replace("](", "] (")


def code(text: str, limit: int = 60) -> str:
    """Foreign text as a Markdown code span, in which nothing is a tag, a link or a mention; also within a table.

    A pipe gets an odd number of backslashes before it: whether pairs of them count differs between renderers.
    """
    plain = line(text, limit).strip() or "(no name)"
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if "`" in plain else ""
    piped = re.sub(r"(\\*)\|", lambda m: m[1] + ("\\\\" if len(m[1]) % 2 else "\\") + "|", plain)
    return f"{ticks}{space}{piped}{space}{ticks}"
