"""Assembly of the Helium rows for zero-heavy weights: gathered codes times what is not zero (see sparsemve).

Four sums stand in even core registers, which VMLAVA adds into: those of four pixels and one channel, or of one pixel
and four channels. q5 and q6 hold the clamp, q7 the places of four pixels' outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .armasm import function

LANES = 4
PUSHED = 13 * 4 + 6 * 8  # r0-r11 and lr, d10-d15; stack arguments follow
STACK_ARGS = (
    "counts", "residual", "segments", "left", "row", "channels", "valid", "stride", "shift", "out_zero", "low", "high",
    "add_a", "add_b", "add_const", "add_right", "add_low", "add_high",
)  # fmt: skip
_POINTERS = ("counts", "residual")
_SUMS, _BASES = ("r0", "r2", "r4", "r6"), ("r1", "r3", "r5", "r7")
_PLACES, _VALUES, _NEXT, _COUNTS, _N = "r8", "r9", "r10", "r11", "r12"


@dataclass(frozen=True, slots=True)
class GatherTile:
    """All output channels of four pixels, one at a time (conv), or of one pixel, four at a time."""

    conv: bool
    many: bool  # a row has more than one segment
    shifted: bool  # the sums, to the left, before the multiplication
    residual: bool

    def _slot(self, name: str) -> str:
        return f"[sp, #{PUSHED + 4 * STACK_ARGS.index(name)}]"

    @property
    def turn(self) -> int:
        """Instructions per 16 entries."""
        return len(self._products(0)) + 1

    @property
    def around_segment(self) -> int:
        """Instructions per segment beside them."""
        return len(self._segment(0)) - self.turn - 2

    @property
    def around(self) -> float:
        """Instructions per channel beside its segments."""
        parts = 1 if self.conv else LANES
        whole = len(self._channels()) - parts * (len(self._segment(0)) + (4 if self.many else 0))
        return whole / parts + (4.0 if self.many else 0.0)

    # ------------------------------------------------------------------------------------------ multiply
    def _products(self, part: int) -> list[str]:
        lines = [f"vldrb.u8 q0, [{_PLACES}], #16", f"vldrb.u8 q1, [{_VALUES}], #16"]
        pairs = zip(_SUMS, _BASES, strict=True) if self.conv else [(_SUMS[part], _BASES[0])]
        for i, (total, base) in enumerate(pairs):
            lines += [f"vldrb.u8 q{2 + i % 2}, [{base}, q0]", f"vmlava.s8 {total}, q1, q{2 + i % 2}"]
        return lines

    def _segment(self, part: int) -> list[str]:
        """One segment: its places, then its values."""
        lines = [f"ldrh {_N}, [{_COUNTS}], #2", f"add {_VALUES}, {_PLACES}, {_N}", f"add {_NEXT}, {_VALUES}, {_N}"]
        lines += [f"wlstp.8 lr, {_N}, 4f", "3:", *self._products(part), "letp lr, 3b", "4:"]
        lines.append(f"mov {_PLACES}, {_NEXT}")
        if self.many:
            bases = _BASES if self.conv else _BASES[:1]
            lines += [f"add.w {b}, {b}, #256" for b in bases]
            lines += [f"ldr {_N}, {self._slot('left')}", f"subs {_N}, {_N}, #1", f"str {_N}, {self._slot('left')}"]
            lines.append("bne.w 6b")
        return lines

    def _part(self, part: int) -> list[str]:
        """All segments of a channel."""
        if not self.many:
            return self._segment(part)
        lines = [f"ldr {_N}, {self._slot('segments')}", f"str {_N}, {self._slot('left')}"]
        lines += [] if self.conv else [f"ldr {_BASES[0]}, [sp, #0]"]
        return [*lines, "6:", *self._segment(part)]

    # -------------------------------------------------------------------------------------- output stage
    def _open(self) -> list[str]:
        """Sums begin with the bias (conv) or with zero."""
        if not self.conv:
            return [f"mov {r}, #0" for r in _SUMS]
        lines = [f"ldr {_N}, [sp, #8]", f"ldr r0, [{_N}]", *(f"mov {r}, r0" for r in _SUMS[1:])]
        lines += [f"ldr {_BASES[0]}, [sp, #0]", f"ldr {_N}, {self._slot('row')}"]
        return [*lines, *(f"add.w {b}, {a}, {_N}" for a, b in pairwise(_BASES))]

    def _requantise(self) -> list[str]:
        lines = ["vmov q0[2], q0[0], r0, r4", "vmov q0[3], q0[1], r2, r6", "ldr r0, [sp, #8]"]
        if self.conv:
            lines += ["ldr r2, [r0, #4]", "vdup.32 q1, r2", "add r0, r0, #8"]
        else:
            lines += ["vldrw.u32 q2, [r0], #16", "vldrw.u32 q1, [r0], #16", "vadd.i32 q0, q0, q2"]
        lines += ["str r0, [sp, #8]"]
        lines += [f"ldr r0, {self._slot('shift')}", "vshl.s32 q0, r0"] if self.shifted else []
        lines += [f"ldr r0, {self._slot('out_zero')}", "vrmulh.s32 q0, q0, q1", "vadd.i32 q0, q0, r0"]
        return [*lines, "vmax.s32 q0, q0, q5", "vmin.s32 q0, q0, q6"]

    def _add_residual(self) -> list[str]:
        """Acc = clamp((acc * a + r * b + const) >> shift)."""
        lines = [f"ldr r0, {self._slot('residual')}", "vpst"]
        lines += ["vldrbt.s32 q1, [r0, q7]", "add r0, r0, #1"] if self.conv else ["vldrbt.s32 q1, [r0], #4"]
        lines += [f"str r0, {self._slot('residual')}"]
        lines += [f"ldr {r}, {self._slot(n)}" for r, n in (("r2", "add_a"), ("r4", "add_b"), ("r6", "add_const"))]
        lines += ["vmul.i32 q0, q0, r2", "vmla.s32 q0, q1, r4", "vadd.i32 q0, q0, r6"]
        lines += [f"ldr r0, {self._slot('add_right')}", "vshl.s32 q0, r0"]
        for name, op in (("add_low", "vmax"), ("add_high", "vmin")):
            lines += [f"ldr r0, {self._slot(name)}", "vdup.32 q2, r0", f"{op}.s32 q0, q0, q2"]
        return lines

    def _store(self) -> list[str]:
        lines = ["ldr r0, [sp, #12]", "vpst"]
        lines += ["vstrbt.32 q0, [r0, q7]", "add r0, r0, #1"] if self.conv else ["vstrbt.32 q0, [r0], #4"]
        return [*lines, "str r0, [sp, #12]"]

    def _channels(self) -> list[str]:
        """The loop over channels."""
        lines = ["2:", *self._open()]
        lines += [] if self.conv else [f"ldr {_BASES[0]}, [sp, #0]"]
        for part in range(1 if self.conv else LANES):
            lines += self._part(part)
        lines += [f"ldr {_N}, {self._slot('valid' if self.conv else 'channels')}", f"vctp.32 {_N}"]
        lines += self._requantise()
        lines += self._add_residual() if self.residual else []
        lines += [*self._store(), f"ldr r0, {self._slot('channels')}", f"subs r0, r0, #{1 if self.conv else LANES}"]
        return [*lines, f"str r0, {self._slot('channels')}", "bgt.w 2b"]

    def lines(self) -> list[str]:
        """The function body."""
        head = ["vpush {d10-d15}", "push {r0-r11, lr}", f"mov {_PLACES}, r1", f"ldr {_COUNTS}, {self._slot('counts')}"]
        for name, q in (("low", "q5"), ("high", "q6")):
            head += [f"ldr r4, {self._slot(name)}", f"vdup.32 {q}, r4"]
        head += ["mov r0, #0", "vidup.u32 q7, r0, #1", f"ldr r0, {self._slot('stride')}", "vmul.i32 q7, q7, r0"]
        return [*head, *self._channels(), "add sp, sp, #16", "pop {r4-r11, lr}", "vpop {d10-d15}", "bx lr"]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        types = ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS]
        return function("sparsegather", ", ".join(["ptr"] * 4 + types), self.lines())
