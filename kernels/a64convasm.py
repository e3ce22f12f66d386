"""An AArch64 function for a convolution with dot product, in assembly: tiles of four pixels by 16 channels.

As in `a64asm`, weights come 64 bytes by a load. Where windows of neighbouring pixels share codes, and few enough are
alive at a time, each vector of codes is loaded once for all four pixels, into a ring of eight registers. The output
stage, with a residual too, stands in the same function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .a64asm import CHUNK, bounded, fed, function, load, more, narrowed, scaled

PIXELS, CHANNELS = 4, 16  # of a tile
# image, weights, bias, multipliers, y, residual, what the output stage needs, turns of the loop over blocks
PARAMETERS = "ptr, ptr, ptr, ptr, ptr, ptr, ptr, i32"
_RING, _WEIGHTS, _ACC = 8, 8, 16  # registers of codes, from 0 on; first one of weights; first accumulator
_LONGEST = 12  # chunks of a run that is written out
_NEAR = 1008  # bytes that a pair of loads reaches
# registers of the output stage: multipliers in 0..3, four vectors of the table, the residual's codes, others
_LOW, _HIGH, _FACTORS, _CONST = 4, 5, 6, 7
_OTHER, _WIDE, _OTHERS, _SPARE = 8, (9, 10), (11, 12, 13, 14), 15


@dataclass(frozen=True, slots=True)
class Added:
    """The residual addition. shift, low, high: as the node's."""

    shift: int
    low: int
    high: int


@dataclass(frozen=True)
class Tiles:
    """One layer's function.

    rows, width: of the output. taps: rows of a window. chunks: vectors of 16 codes of a row of it. step: vectors from a
    pixel to the next. tap_step, row_step: bytes from a row of a window, of the output, to the next. channels: multiple
    of 16. shift, low, high, lowest: as of `a64asm.Dense`.
    """

    rows: int
    width: int
    taps: int
    chunks: int
    step: int
    tap_step: int
    row_step: int
    channels: int
    shift: int
    low: int
    high: int
    lowest: bool
    added: Added | None = None

    @property
    def blocks(self) -> int:
        """Of 16 channels."""
        return self.channels // CHANNELS

    @cached_property
    def ring(self) -> bool:
        """Whether codes are shared by the pixels of a tile."""
        return (PIXELS - 1) * self.step < _RING and self.chunks <= _LONGEST

    @property
    def together(self) -> int:
        """Chunks of one turn of the loop over a run that is not shared."""
        return next(n for n in (4, 2, 1) if self.chunks % n == 0)

    def count(self) -> int:
        """Instructions of one call."""
        whole, rest = divmod(self.width, PIXELS)
        along = len(more("x13", PIXELS * self.step * CHUNK)) + 2
        row = 3 + len(more("x9", self.row_step)) + (whole * (self._tile_count(PIXELS) + along) + 1 if whole else 0)
        row += self._tile_count(rest) if rest else 0
        return 12 + self.blocks * (10 + self.rows * row)

    def _tile_count(self, pixels: int) -> int:
        turns = 1 if self.ring else self.chunks // self.together
        run = turns * (len(self._run(pixels) if self.ring else self._turn(pixels)) + 2 * (turns > 1)) + (turns > 1)
        if self.taps > 1:
            run = 1 + self.taps * (run + len(self._to_next(pixels)) + 2)
        return 2 + pixels + run + len(self._outputs(pixels))

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; PARAMETERS."""
        saved = [f"d{n}, d{n + 1}, [sp, #{16 * i}]" for i, n in enumerate(range(8, 16, 2))]
        whole, rest = divmod(self.width, PIXELS)
        lines = ["sub sp, sp, #64", *(f"stp {pair}" for pair in saved), "sub x5, x5, x4"]
        lines += ["1:", "mov x9, x0", "mov x10, x4", f"mov w8, #{self.rows}"]
        lines += ["2:", "mov x13, x9"]
        if whole:
            lines += [f"mov w12, #{whole}", "3:", *self._tile(PIXELS)]
            lines += [*more("x13", PIXELS * self.step * CHUNK), "subs w12, w12, #1", "b.ne 3b"]
        if rest:
            lines += self._tile(rest)
        lines += [*more("x9", self.row_step), "subs w8, w8, #1", "b.ne 2b"]
        # a tile ends where the next block's weights begin
        lines += ["mov x1, x15", "add x2, x2, #64", "add x3, x3, #64", "add x4, x4, #16"]
        lines += ["subs w7, w7, #1", "b.ne 1b", *(f"ldp {pair}" for pair in saved), "add sp, sp, #64", "ret"]
        return function("conv", PARAMETERS, lines)

    # ------------------------------------------------------------------------------------------------- one tile
    def _tile(self, pixels: int) -> list[str]:
        lines = ["mov x15, x1", "mov x14, x13"]
        for p in range(pixels):
            lines += load(_ACC + 4 * p, 4, "x2", step=False)
        run = self._run(pixels) if self.ring else self._looped(pixels)
        if self.taps > 1:
            run = [f"mov w16, #{self.taps}", "4:", *run, *self._to_next(pixels), "subs w16, w16, #1", "b.ne 4b"]
        return lines + run + self._outputs(pixels)

    def _to_next(self, pixels: int) -> list[str]:
        """From the end of a row of the windows to the next one."""
        return more("x14", self.tap_step - (self._vectors(pixels) if self.ring else self.chunks) * CHUNK)

    def _vectors(self, pixels: int) -> int:
        """Vectors of codes of one row of all windows."""
        return (pixels - 1) * self.step + self.chunks

    def _run(self, pixels: int) -> list[str]:
        """One row of all windows, its codes loaded once; of a batch that is loaded nothing may be overwritten early."""
        batch = next(n for n in (4, 2, 1) if n <= _RING - (pixels - 1) * self.step)
        todo: list[list[str]] = []
        loaded, total = 0, self._vectors(pixels)
        for chunk in range(self.chunks):
            first: list[str] = []
            while loaded <= chunk + (pixels - 1) * self.step:
                n = min(batch, total - loaded)
                first += load(loaded % _RING, n, "x14")
                loaded += n
            products = self._products([(chunk + p * self.step) % _RING for p in range(pixels)])
            products[0][:0] = first
            todo += products
        return list(fed(todo, "x15", _WEIGHTS))

    def _looped(self, pixels: int) -> list[str]:
        turns = self.chunks // self.together
        loop = [f"mov w17, #{turns}", "5:"] if turns > 1 else []
        return loop + self._turn(pixels) + (["subs w17, w17, #1", "b.ne 5b"] if turns > 1 else [])

    def _turn(self, pixels: int) -> list[str]:
        """Some chunks of one row of all windows, two of a pixel by one load where there are two."""
        pair = min(2, self.together)
        todo: list[list[str]] = []
        for _ in range(0, self.together, pair):
            first = list(self._codes(pixels, pair))
            for k in range(pair):
                products = self._products([pair * p + k for p in range(pixels)])
                products[0][:0] = first if k == 0 else []
                todo += products
        return list(fed(todo, "x15", _WEIGHTS))

    def _codes(self, pixels: int, pair: int) -> Iterator[str]:
        """The next one or two vectors of every pixel; the pointer steps on with the first pixel's."""
        for p in range(pixels - 1, -1, -1):
            offset, registers = p * self.step * CHUNK, ", ".join(f"q{pair * p + k}" for k in range(pair))
            name = "ldp" if pair == 2 else "ldr"
            if p == 0:
                yield f"{name} {registers}, [x14], #{pair * CHUNK}"
            elif offset <= _NEAR or pair == 1:
                yield f"{name} {registers}, [x14, #{offset}]"
            else:
                yield from more("x11", offset, "x14")
                yield f"{name} {registers}, [x11]"

    @staticmethod
    def _products(codes: list[int]) -> list[list[str]]:
        """16 codes of every pixel, in these registers, with four quads of channels: a group by vector of weights."""
        todo = []
        for four in range(4):
            for quad in range(4):
                accumulators = (f"v{_ACC + 4 * p + quad}.4s" for p in range(len(codes)))
                todo.append([f"sdot {a}, {{w}}.16b, v{x}.4b[{four}]" for a, x in zip(accumulators, codes, strict=True)])
        return todo

    # ------------------------------------------------------------------------------------------------- the outputs
    def _outputs(self, pixels: int) -> list[str]:
        """Requantise, add the residual, and store."""
        lines = load(0, 4, "x3", step=False) + load(_LOW, 4, "x6", step=False)
        lines += ["add x11, x10, x5"] * (self.added is not None)
        for p in range(pixels):
            a = [f"v{_ACC + 4 * p + i}" for i in range(4)]
            lines += scaled(a, 0, self.shift)
            if self.added is None:
                lines += [*narrowed(a, _CONST, self.lowest), *bounded(a[0], self.low, self.high, _SPARE)]
            else:
                lines += [*self._sum(self.added, a, p), *bounded(a[0], self.added.low, self.added.high, _SPARE)]
            lines.append(f"str q{_ACC + 4 * p}, [x10, #{p * self.channels}]")
        return lines + more("x10", pixels * self.channels)

    def _sum(self, add: Added, a: list[str], pixel: int) -> list[str]:
        """Codes of the convolution plus the residual's, in a[0], before their bounds."""
        others, wide = [f"v{n}" for n in _OTHERS], [f"v{n}" for n in _WIDE]
        lines = [f"smin {v}.4s, {v}.4s, v{_HIGH}.4s" for v in a] + [f"smax {v}.4s, {v}.4s, v{_LOW}.4s" for v in a]
        lines.append(f"ldr q{_OTHER}, [x11, #{pixel * self.channels}]")
        lines += [f"sxtl {wide[0]}.8h, v{_OTHER}.8b", f"sxtl2 {wide[1]}.8h, v{_OTHER}.16b"]
        for i, other in enumerate(others):
            lines.append(f"sxtl2 {other}.4s, {wide[i // 2]}.8h" if i % 2 else f"sxtl {other}.4s, {wide[i // 2]}.4h")
        lines += [f"mul {v}.4s, {v}.4s, v{_FACTORS}.s[0]" for v in a]
        lines += [f"add {v}.4s, {v}.4s, v{_CONST}.4s" for v in a]
        lines += [f"mla {v}.4s, {other}.4s, v{_FACTORS}.s[1]" for v, other in zip(a, others, strict=True)]
        return lines + _shifted(a, add)


def _shifted(a: list[str], add: Added) -> list[str]:
    """Four vectors of int32 shifted to 16 codes, saturated, in a[0]."""
    lines, pairs, shift = [], (a[:2], a[2:]), add.shift
    if shift < 16:
        for one, two in pairs:
            lines += [f"sqshrn {one}.4h, {one}.4s, #{shift}", f"sqshrn2 {one}.8h, {two}.4s, #{shift}"]
    else:
        lines += [f"uzp2 {one}.8h, {one}.8h, {two}.8h" for one, two in pairs]
    name, by = ("sqshrn", f", #{shift - 16}") if shift > 16 else ("sqxtn", "")
    return [*lines, f"{name} {a[0]}.8b, {a[0]}.8h{by}", f"{name}2 {a[0]}.16b, {a[2]}.8h{by}"]
