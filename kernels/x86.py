"""x86-64 with AVX2: pairs of codes times pairs of weights, eight output channels in a vector.

`vpmaddwd` adds two int16 products per lane, exactly. Codes are widened once, when the image is copied; a pair of one
pixel is broadcast, and meets the weights of eight channels, widened as they are loaded. Two groups of eight channels
are stored in the order in which packing their results puts them right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from xdeploy.formats import Int8, Int32
from xdeploy.lir.graph import Node
from xdeploy.lir.ops import has_residual

from .outstage import OutStage
from .product import CHUNK, Bind, Codes, Product
from .snippets import Source
from .vectors import as_type, half, ramp, shuffle

LANES = 8  # output channels that one requantised vector holds
_REGISTERS = 16
# Beyond the first cache of 32 or 48 KiB, and beyond a second of 1 MiB (2 MiB in newer cores). Fitted to what
# benchmarks/lowbit.py measures on all sides of them: time by bytes, as instructions that would take as long.
WAITS = ((64 << 10, 0.05), (1 << 20, 0.25))
STREAMS = ((1 << 20, 0.5),)  # the same of convolutions, which have more to do meanwhile, but hardly wait before that
_PACKED = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]  # lane of two vectors at each place of `vpackssdw`


def intrinsic(result: str, name: str, *arguments: str) -> str:
    """Call of an LLVM intrinsic."""
    return f'T.call_llvm_pure_intrin("{result}", "llvm.{name}", {", ".join(arguments)})'


def acc(index: int, lanes: int = LANES) -> str:
    """Accumulator number `index`."""
    return f"acc[{ramp(str(index * lanes), lanes)}]"


class BroadcastProduct(Product):
    """`unit` codes of one pixel are broadcast and meet the channels of a vector: an accumulator for each of these."""

    vectors = 1
    exact: tuple[int, ...] = ()

    def accumulators(self, pixels: int, groups: int) -> int:
        """One for each pixel and group."""
        return pixels * groups

    def sum_cost(self) -> float:
        """Nothing to do."""
        return 0.0

    def pack(self, codes: Int8) -> Int8:
        """(units) x (channels of a unit's codes)."""
        blocks, channels, row = codes.shape
        cut = codes.reshape(blocks, channels, row // self.unit, self.unit).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(cut).reshape(blocks, -1)

    def start(self, bias: Int32) -> Int32:
        """The bias."""
        return bias.reshape(-1, self.lanes)

    def clear(self, s: Source, pixels: int, groups: int, at: str) -> None:
        """A copy of the bias for each pixel; zeros where it comes late."""
        if self.late:
            for index in range(self.accumulators(pixels, groups)):
                s(f"{acc(index, self.lanes)} = T.broadcast(0, {self.lanes})")
            return
        for v in range(groups):
            for p in range(pixels):
                s(f"{self.sum(p, v, groups)} = B[{ramp(f'{at} + {v * self.lanes}', self.lanes)}]")

    def sum(self, pixel: int, group: int, groups: int) -> str:
        """The accumulator."""
        return acc(pixel * groups + group, self.lanes)


class PairProduct(BroadcastProduct):
    """`vpmaddwd`: a pair of codes of one pixel by eight channels."""

    isa, lanes, dtype, waits, streams = "x86", LANES, "int16", WAITS, STREAMS
    chunk = unit = 2  # more at a time, and LLVM would add products first, and run out of registers

    def order(self, groups: int) -> list[int]:
        """Two groups share 16 channels, so that the halves of `vpackssdw` come out in order; a last one is alone."""
        order = [2 * LANES * g + place for g in range(groups // 2) for place in _PACKED]
        return order + list(range(len(order), groups * LANES))

    def registers(self, node: Node) -> int:
        """All: the output stage begins when the sums are done."""
        return _REGISTERS

    def after(self, node: Node) -> float:
        """Instructions of the output stage for a group."""
        return 22.0 if has_residual(node) else 12.0

    def stage(self, source: Source, node: Node) -> Stage:
        """The output stage."""
        return Stage(source, node, self.order)

    def multipliers(self, node: Node, multiplier: Int32) -> Int32:
        """As they are."""
        return multiplier

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Accumulators, the weights of all groups, a pair of codes and its product."""
        return pixels * groups + groups + 2 <= free

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every pair of codes: load weights, broadcast codes, multiply and add."""
        return codes / 2 * (1.5 * groups + pixels + 2.0 * pixels * groups)

    def multiply(
        self, s: Source, bind: Bind, pixels: int, groups: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Each pixel's pair meets the weights of every group."""
        weights = [self._weights(bind, w, v) for v in range(groups)]
        for p in range(pixels):
            value = bind(as_type("int16x16", f"T.broadcast({as_type('int32', x(p, 0, 2))}, {LANES})"))
            for v in range(groups):
                a = acc(p * groups + v)
                s(f"{a} = {a} + {intrinsic('int32x8', 'x86.avx2.pmadd.wd', value, weights[v])}")

    def _weights(self, bind: Bind, w: str, index: int) -> str:
        """Pairs of eight channels, widened."""
        return bind(f'T.cast(W[{ramp(f"{w} + {index * CHUNK}", CHUNK)}], "int16x16")')


class WidePairProduct(PairProduct):
    """The same with weights that are int16 in memory."""

    def _weights(self, bind: Bind, w: str, index: int) -> str:
        """Pairs of eight channels."""
        return bind(f"W[{ramp(f'{w} + {index * CHUNK}', CHUNK)}]")


class Stage(OutStage):
    """Groups of eight channels, up to two at a time; M holds the multipliers.

    order(groups): the channel in each lane of the sums.
    """

    def __init__(self, source: Source, node: Node, order: Callable[[int], list[int]]) -> None:
        super().__init__(source, node)
        self.order = order
        every = {"upper": "T.broadcast(T.int64(32), 4)", "rounding": "T.broadcast(T.int64(2147483648), 4)"}
        if self.residual:
            every |= {
                f"every_{k}": f"T.broadcast({k}, {LANES})" for k in ("low", "high", "add_a", "add_b", "add_const")
            }
        else:
            every["zero"] = 'T.broadcast(T.cast(out_zero, "int16"), 16)'
        source(*(f"{name} = {value}" for name, value in every.items()))

    def tile(
        self, sums: Sequence[Sequence[str]], multipliers: Sequence[str], at: Sequence[str], channels: int, lanes: int
    ) -> None:
        """Pixel after pixel; of eight channels without residual two at a time."""
        pairs = len(sums) // 2 * 2 if channels == LANES and not self.residual else 0
        order = [pixel * LANES + channel for pixel in (0, 1) for channel in self.order(1)]
        for p in range(0, pairs, 2):
            codes = self._narrowed([sums[k][0] for k in (p, p + 1)], [*multipliers] * 2, "", order)
            value = self._clamped(codes, self.a["low"], self.a["high"], 2 * LANES)
            for index in (0, 1):
                self.s(f"Y[{ramp(at[p + index], LANES)}] = {half(value, index, 2 * LANES)}")
        super().tile(sums[pairs:], multipliers, at[pairs:], channels, lanes)

    def codes(self, sums: list[str], multipliers: list[str], at: str, channels: int) -> str:
        """Requantised, narrowed in two steps."""
        return self._narrowed(sums, multipliers, at, self.order(len(sums)))

    def _narrowed(self, sums: list[str], multipliers: list[str], at: str, order: list[int]) -> str:
        """Codes of one vector or two, whose lanes hold the channels of `order`."""
        scaled = [self.bind(self._scaled(v, m)) for v, m in zip(sums, multipliers, strict=True)]
        if self.residual:
            scaled = self._added(scaled, at)
        if len(scaled) == 1:
            parts = [half(scaled[0], i, LANES) for i in (0, 1)]
            wide, lanes = intrinsic("int16x8", "x86.sse2.packssdw.128", *parts), 8
        else:
            wide, lanes = intrinsic("int16x16", "x86.avx2.packssdw", *scaled), 16
        if not self.residual:
            zero = "zero" if lanes == 16 else half("zero", 0, 16)
            wide = intrinsic(f"int16x{lanes}", f"sadd.sat.v{lanes}i16", wide, zero)
        wide = self.bind(wide)
        parts = [wide, wide] if lanes == 8 else [half(wide, i, lanes) for i in (0, 1)]
        narrow = intrinsic("int8x16", "x86.sse2.packsswb.128", *parts)
        packed = order if lanes == 8 else [order[lane] for lane in _PACKED]
        back = [packed.index(channel) for channel in range(lanes)]
        return narrow if back == list(range(16)) else shuffle([narrow], back)

    def _scaled(self, value: str, multiplier: str) -> str:
        """(value * m + 2^31) >> 32: products of even and of odd lanes, whose upper halves are put together."""
        if self.a["shift"]:
            value = f"T.shift_left({value}, T.broadcast({self.a['shift']}, {LANES}))"
        pairs = [self.bind(as_type("int64x4", v)) for v in (value, multiplier)]
        even = " * ".join(f"T.shift_right(T.shift_left({v}, upper), upper)" for v in pairs)
        odd = " * ".join(f"T.shift_right({v}, upper)" for v in pairs)
        products = [as_type("int32x8", f"{v} + rounding") for v in (even, odd)]
        return shuffle([self.bind(v) for v in products], [1, 9, 3, 11, 5, 13, 7, 15])

    def _added(self, scaled: list[str], at: str) -> list[str]:
        """Scaled sums plus the residual, before its clamp."""
        codes = self.bind(f"R[{ramp(at, LANES * len(scaled))}]")
        order = self.order(len(scaled))
        if order == list(range(LANES)):
            others = [codes]
        else:
            others = [shuffle([codes], order[start : start + LANES]) for start in range(0, len(order), LANES)]
        totals = []
        for value, other in zip(scaled, others, strict=True):
            bounded = f"T.max(T.min({value}, every_high), every_low)"
            residual = f'T.cast({other}, "int32x8") * every_add_b'
            total = f"{bounded} * every_add_a + {residual} + every_add_const"
            totals.append(self.bind(f"T.shift_right({total}, T.broadcast({self.a['add_shift']}, {LANES}))"))
        return totals


PRODUCTS: tuple[Product, ...] = (PairProduct(),)
