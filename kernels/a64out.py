"""AArch64: from sums to codes, 16 channels of a pixel at a time, with the residual addition where there is one.

Requantisation is one `sqrdmulh` (formats.Requant with half the multiplier); the zero point is added with saturation in
int16, which the clamp to int8 cannot tell from int32. A residual is added in int32 as lir.ops says; its shift is the
upper half of each lane followed by a narrowing shift where it is 16 or more.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdeploy.lir.graph import Node
from xdeploy.lir.ops import has_residual

from .a64 import QUAD, as_type, neon, ramp, shuffle
from .snippets import Source

_EIGHT = range(8)


def stage_cost(node: Node, channels: int) -> float:
    """Instructions for one pixel's `channels` channels, their sums given."""
    quads = -(-channels // QUAD)
    return quads * (8.5 if has_residual(node) else 3.3) + 3


class Stage:
    """Writes the output stage; declares its scalars on `source`. M holds half the multipliers."""

    def __init__(self, source: Source, node: Node) -> None:
        self.s, self.a, a = source, node.attrs, node.attrs
        self.residual, self._count = has_residual(node), 0
        if not self.residual:
            source.integer("out_zero", a["out_zero"])
            return
        source.input(1, "R")
        # the zero point leaves the clamp and enters the constant, modulo 2^32 as in the register
        constant = (a["add_const"] + a["out_zero"] * a["add_a"] + (1 << 31)) % (1 << 32) - (1 << 31)
        source.integer("low", a["low"] - a["out_zero"])
        source.integer("high", a["high"] - a["out_zero"])
        for name, value in (("add_a", a["add_a"]), ("add_b", a["add_b"]), ("add_const", constant)):
            source.integer(name, value)

    def __call__(self, sums: Sequence[str], multipliers: Sequence[str], at: str, channels: int) -> None:
        """Write `channels` codes (1 to 16) at `at`: one sum and one half multiplier per quad of channels."""
        scaled = [self.bind(self._scaled(v, m)) for v, m in zip(sums, multipliers, strict=True)]
        eights = self._added(scaled, at, channels) if self.residual else self._plain(scaled)
        prefix = "add_" if self.residual else ""
        low, high = self.a[f"{prefix}low"], self.a[f"{prefix}high"]
        self._store(self._clamped(eights, low, high), at, channels)

    def bind(self, value: str) -> str:
        """A name for a value; no name is used twice."""
        self._count += 1
        self.s(f"v{self._count} = {value}")
        return f"v{self._count}"

    def _scaled(self, value: str, multiplier: str) -> str:
        if self.a["shift"]:
            value = f"T.shift_left({value}, T.broadcast({self.a['shift']}, 4))"
        return neon("int32x4", "sqrdmulh.v4i32", value, multiplier)

    def _halves(self, quads: list[str], narrow: str) -> list[str]:
        """int16x8 of pairs of int32x4, the last one with itself where it is alone."""
        pairs = [(quads[i], quads[min(i + 1, len(quads) - 1)]) for i in range(0, len(quads), 2)]
        return [shuffle([narrow.format(a), narrow.format(b)], _EIGHT) for a, b in pairs]

    def _plain(self, scaled: list[str]) -> list[str]:
        """int8x8 of scaled sums: zero point and saturation."""
        wide = self._halves(scaled, neon("int16x4", "sqxtn.v4i16", "{}"))
        zero = 'T.broadcast(T.cast(out_zero, "int16"), 8)'
        return [
            self.bind(neon("int8x8", "sqxtn.v8i8", neon("int16x8", "sqadd.v8i16", self.bind(v), zero))) for v in wide
        ]

    def _added(self, scaled: list[str], at: str, channels: int) -> list[str]:
        """int8x8 of scaled sums plus the residual, before its clamp."""
        other = self._residuals(at, channels)
        totals = []
        for value, r in zip(scaled, other, strict=True):
            bounded = f"T.max(T.min({value}, T.broadcast(high, 4)), T.broadcast(low, 4))"
            sums = f"T.broadcast(add_const, 4) + {bounded} * T.broadcast(add_a, 4) + {r} * T.broadcast(add_b, 4)"
            totals.append(self.bind(sums))
        shift = int(self.a["add_shift"])
        if shift < 16:
            return [self.bind(neon("int8x8", "sqxtn.v8i8", v)) for v in
                    self._halves(totals, neon("int16x4", "sqshrn.v4i16", "{}", str(shift)))]  # fmt: skip
        upper = [
            shuffle([as_type("int16x8", a), as_type("int16x8", b)], range(1, 16, 2))
            for a, b in ((totals[i], totals[min(i + 1, len(totals) - 1)]) for i in range(0, len(totals), 2))
        ]
        if shift == 16:
            return [self.bind(neon("int8x8", "sqxtn.v8i8", v)) for v in upper]
        return [self.bind(neon("int8x8", "sqshrn.v8i8", v, str(shift - 16))) for v in upper]

    def _residuals(self, at: str, channels: int) -> list[str]:
        """int32x4 of the residual's codes for each quad; channels is a multiple of four."""
        quads = []
        for start in range(0, channels, 16):
            left = min(16, channels - start)
            for i in range(start, start + left, 8 if left >= 8 else 4):
                lanes = min(8, channels - i)
                wide = self.bind(f'T.cast(R[{ramp(f"{at} + {i}", lanes)}], "int16x{lanes}")')
                parts = [wide] if lanes == 4 else [shuffle([wide], range(k, k + 4)) for k in range(0, lanes, 4)]
                quads += [self.bind(f'T.cast({part}, "int32x4")') for part in parts]
        return quads

    def _clamped(self, eights: list[str], low: int, high: int) -> str:
        """int8x8 or int8x16 within the bounds that saturation does not give already."""
        lanes = 8 * len(eights)
        value = eights[0] if lanes == 8 else shuffle(eights, range(16))
        if high < 127:
            value = f"T.min({value}, T.broadcast(T.int8({high}), {lanes}))"
        if low > -128:
            value = f"T.max({value}, T.broadcast(T.int8({low}), {lanes}))"
        return self.bind(value)

    def _store(self, value: str, at: str, channels: int) -> None:
        start = 0
        lanes = 16 if channels > 8 else 8
        for size in (16, 8, 4, 2, 1):
            while channels - start >= size:
                part = value if size == lanes else shuffle([value], range(start, start + size))
                index = ramp(f"{at} + {start}", size) if size > 1 else f"{at} + {start}"
                self.s(f"Y[{index}] = {part}")
                start += size
