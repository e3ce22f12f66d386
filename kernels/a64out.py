"""AArch64: from sums to codes, 16 channels of a pixel at a time, with the residual addition where there is one.

Requantisation is one `sqrdmulh` (formats.Requant with half the multiplier); the zero point is added with saturation in
int16, which the clamp to int8 cannot tell from int32. A residual is added in int32 as lir.ops says; its shift is the
upper half of each lane followed by a narrowing shift where it is 16 or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from .outstage import OutStage
from .vectors import as_type, ramp, shuffle

QUAD = 4  # output channels that one requantised vector holds
_EIGHT = range(8)


def neon(result: str, name: str, *arguments: str) -> str:
    """Call of an LLVM intrinsic of AArch64's vectors."""
    return f'T.call_llvm_pure_intrin("{result}", "llvm.aarch64.neon.{name}", {", ".join(arguments)})'


class Stage(OutStage):
    """Groups of four channels; M holds half the multipliers."""

    _places: tuple[str, ...] = ()  # of pixels that lie apart, in quads of codes

    def words(self) -> bool:
        """Declare the view of the output that `apart` writes to."""
        self.s.view("Z", "Y", "int32")
        return True

    def apart(self, sums: Sequence[str], multiplier: str, places: Sequence[str], valid: Sequence[str] = ()) -> None:
        """Requantised together, and stored by lanes."""
        self._places, lanes = tuple(places), 16 if len(sums) > 2 else 8
        low, high = (self.a["add_" * self.residual + key] for key in ("low", "high"))
        multipliers = [multiplier] * len(sums)
        codes = self._clamped(self.codes(list(sums), multipliers, "0", len(sums) * QUAD), low, high, lanes)
        words = as_type(f"int32x{lanes // QUAD}", codes)
        for p, (place, test) in enumerate(zip(places, valid or [""] * len(sums), strict=True)):
            with self.s.block(f"if {test}:") if test else nullcontext():
                self.s(f"Z[{place}] = {shuffle([words], [p])}")
        self._places = ()

    def codes(self, sums: list[str], multipliers: list[str], at: str, channels: int) -> str:
        """Requantised, narrowed in two steps."""
        scaled = [self.bind(self._scaled(v, m)) for v, m in zip(sums, multipliers, strict=True)]
        eights = self._added(scaled, at, channels) if self.residual else self._plain(scaled)
        return eights[0] if len(eights) == 1 else shuffle(eights, range(16))

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
        if self._places:
            return [self.bind(f'T.cast(R[{ramp(f"{p} * {QUAD}", QUAD)}], "int32x4")') for p in self._places]
        quads = []
        for start in range(0, channels, 16):
            left = min(16, channels - start)
            for i in range(start, start + left, 8 if left >= 8 else 4):
                lanes = min(8, channels - i)
                wide = self.bind(f'T.cast(R[{ramp(f"{at} + {i}", lanes)}], "int16x{lanes}")')
                parts = [wide] if lanes == 4 else [shuffle([wide], range(k, k + 4)) for k in range(0, lanes, 4)]
                quads += [self.bind(f'T.cast({part}, "int32x4")') for part in parts]
        return quads
