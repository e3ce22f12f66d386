"""x86-64 with AVX512-VNNI: four codes times four weights, 16 output channels in a vector.

`vpdpbusd` adds four products of an unsigned and a signed byte to each lane, exactly. Codes are made unsigned when the
image is copied, 128 more each; the bias takes that back. Four codes of one pixel are broadcast from memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdeploy.formats import Int32
from xdeploy.lir.graph import Node
from xdeploy.lir.ops import has_residual

from .outstage import TileStage, added_constant
from .product import Bind, Codes, Product
from .snippets import Source
from .vectors import as_type, ramp, shuffle
from .x86 import STREAMS, WAITS, BroadcastProduct, intrinsic

LANES = 16  # output channels that one requantised vector holds
UNIT = 4  # codes that one lane multiplies at a time
OFFSET = 128  # of codes
_REGISTERS = 32
QUAD = 4  # lanes that stay together when vectors are packed, and vectors that are packed at a time
_PART = 14  # bits of the lower part of a residual's factors
_UPPER = [lane + LANES * second for lane in range(1, LANES, 2) for second in (0, 1)]


class ByteProduct(BroadcastProduct):
    """`vpdpbusd`: four codes of one pixel by 16 channels."""

    isa, lanes, dtype, waits, streams = "vnni", LANES, "uint8", WAITS, STREAMS
    chunk = unit = UNIT
    offset, most_pixels, folds = OFFSET, 24, True

    def registers(self, node: Node) -> int:
        """All: the output stage begins when the sums are done."""
        return _REGISTERS

    def after(self, node: Node) -> float:
        """Instructions of the output stage for a group."""
        return 20.0 if has_residual(node) else 11.0

    def stage(self, source: Source, node: Node) -> Stage:
        """The output stage."""
        return Stage(source, node)

    def order(self, groups: int) -> list[int]:
        """As `Stage` wants them, at most four groups together."""
        order: list[int] = []
        for start in range(0, groups, QUAD):
            some = min(QUAD, groups - start)
            first = start * LANES
            order += [first + QUAD * (some * q + g) + i for g in range(some) for q in range(4) for i in range(4)]
        return order

    def multipliers(self, node: Node, multiplier: Int32) -> Int32:
        """As they are, or doubled."""
        return multiplier << int(is_doubled(node))

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Accumulators, the weights of all groups, codes of two pixels."""
        return groups in (1, 2, 4, 8) and pixels * groups + groups + 2 <= free

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every four codes: load weights, broadcast codes, multiply and add."""
        return codes / UNIT * (groups + pixels + pixels * groups)

    def multiply(
        self, s: Source, bind: Bind, pixels: int, groups: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Each pixel's four codes meet the weights of every group."""
        bytes_ = LANES * UNIT
        weights = [bind(f"W[{ramp(f'{w} + {v * bytes_}', bytes_)}]") for v in range(groups)]
        for p in range(pixels):
            value = bind(as_type(f"uint8x{bytes_}", f"T.broadcast({as_type('int32', x(p, 0, UNIT))}, {LANES})"))
            for v in range(groups):
                a = self.sum(p, v, groups)
                s(f"{a} = {intrinsic('int32x16', 'x86.avx512.vpdpbusd.512', a, value, weights[v])}")


class Stage(TileStage):
    """From sums to codes, four vectors at a time; M holds the multipliers, doubled where `is_doubled` says so.

    Accumulator g of a tile of G groups holds in quad q of its lanes the channels 4 * (G * q + g) + 0..3: packing four
    vectors puts their quads side by side, so that one permutation, or none, gives the codes in their order. Of doubled
    multipliers the rounding is done in int16, after packing, with the zero point; saturation there changes no code.
    """

    def __init__(self, source: Source, node: Node) -> None:
        super().__init__(source, node)
        a, self.doubled = node.attrs, is_doubled(node)
        zero = 0 if self.residual else source.integer("out_zero", a["out_zero"])
        if self.residual:
            source.input(1, "R")
            self._declare_sum(node)
        if self.doubled:
            source(f'rounding = T.broadcast(T.cast({zero} * 2 + 1, "int16"), 32)')
        else:
            whole = f'T.shift_left(T.cast({zero}, "int64"), T.int64(32))' if zero else "T.int64(0)"
            source(f"rounding = T.broadcast(T.int64(2147483648) + {whole}, 8)")
        source("upper = T.broadcast(T.int64(32), 8)")

    def _declare_sum(self, node: Node) -> None:
        """Bounds before the addition as int16; its factors as pairs of int16, upper and lower parts; its constant."""
        s, a = self.s, self.a
        for name, value in (("low", a["low"] - a["out_zero"]), ("high", a["high"] - a["out_zero"])):
            s(f'every_{name} = T.broadcast(T.cast({s.integer(name, value)}, "int16"), 32)')
        parts = [divmod(int(a[key]), 1 << _PART) for key in ("add_a", "add_b")]
        for name, (one, two) in (("upper", [p[0] for p in parts]), ("lower", [p[1] for p in parts])):
            pair = s.integer(f"factors_{name}", _signed(one & 0xFFFF | (two & 0xFFFF) << 16))
            s(f"every_{name} = {as_type('int16x32', f'T.broadcast({pair}, 16)')}")
        s(f"every_const = T.broadcast({s.integer('add_const', added_constant(node))}, 16)")

    def tile(
        self, sums: Sequence[Sequence[str]], multipliers: Sequence[str], at: Sequence[str], channels: int, lanes: int
    ) -> None:
        """Four vectors at a time."""
        groups = len(multipliers)
        if groups > QUAD:
            for g in range(0, groups, QUAD):
                places = [f"{place} + {g * LANES}" for place in at]
                some = min(QUAD * LANES, channels - g * LANES)
                self.tile([row[g : g + QUAD] for row in sums], multipliers[g : g + QUAD], places, some, lanes)
            return
        pixels = QUAD // groups
        for first in range(0, len(sums), pixels):
            rows, places = sums[first : first + pixels], [self.s.let(place) for place in at[first : first + pixels]]
            vectors = [v for row in rows for v in row]
            vectors += vectors[-1:] * (QUAD - len(vectors))
            factors = [*multipliers] * pixels
            other = self._others(places, groups) if self.residual else ""
            codes = self._permuted(self.codes(vectors, factors, other), groups)
            self._store(codes, places, groups, channels)

    def codes(self, sums: Sequence[str], multipliers: Sequence[str], other: str = "") -> str:
        """int8x64 of four vectors of sums, within their bounds; `other`: the residual's codes in the same places."""
        scaled = [self._scaled(v, m) for v, m in zip(sums, multipliers, strict=True)]
        halves = [self._packed(scaled[i : i + 2]) for i in (0, 2)]
        if self.residual:
            halves = [self._sum(half, other, i) for i, half in enumerate(halves)]
        prefix = "add_" * self.residual
        value = intrinsic("int8x64", "x86.avx512.packsswb.512", *halves)
        for key, free, name in (("high", 127, "min"), ("low", -128, "max")):
            bound = int(self.a[prefix + key])
            if bound != free:
                value = f"T.{name}({value}, T.broadcast(T.int8({bound}), 64))"
        return self.bind(value)

    def _scaled(self, value: str, multiplier: str) -> str:
        """The upper halves of products, int32; of undoubled ones rounded and with the zero point."""
        if self.a["shift"]:
            value = f"T.shift_left({value}, T.broadcast({self.a['shift']}, {LANES}))"
        pairs = [self.bind(as_type("int64x8", v)) for v in (value, multiplier)]
        even = " * ".join(f"T.shift_right(T.shift_left({v}, upper), upper)" for v in pairs)
        odd = " * ".join(f"T.shift_right({v}, upper)" for v in pairs)
        add = "" if self.doubled else " + rounding"
        products = [self.bind(as_type("int32x16", f"{v}{add}")) for v in (even, odd)]
        return self.bind(shuffle(products, _UPPER))

    def _packed(self, scaled: Sequence[str]) -> str:
        """int16x32 of two vectors, quads of lanes in turn."""
        value = intrinsic("int16x32", "x86.avx512.packssdw.512", *scaled)
        if self.doubled:
            value = intrinsic("int16x32", "sadd.sat.v32i16", value, "rounding")
            value = f"T.shift_right({value}, T.broadcast(T.int16(1), 32))"
        return self.bind(value)

    def _sum(self, value: str, other: str, upper: int) -> str:
        """int16x32 of scaled sums plus the residual's codes: pairs of both times pairs of the factors' two parts."""
        bounded = self.bind(f"T.max(T.min({value}, every_high), every_low)")
        twice = [start + i for start in range(8 * upper, 64, 16) for i in range(8) for _ in (0, 1)]
        wide = self.bind(f"T.shift_right({as_type('int16x32', shuffle([other], twice))}, T.broadcast(T.int16(8), 32))")
        sums = []
        for start in (0, 4):
            words = [k for lane in range(start, 32, 8) for k in range(lane, lane + 4)]
            pair = self.bind(shuffle([bounded, wide], [k + 32 * second for k in words for second in (0, 1)]))
            high, low = (
                intrinsic("int32x16", "x86.avx512.pmaddw.d.512", pair, f"every_{p}") for p in ("upper", "lower")
            )
            total = f"T.shift_left({high}, T.broadcast({_PART}, 16)) + every_const + {low}"
            sums.append(self.bind(f"T.shift_right({total}, T.broadcast({self.a['add_shift']}, 16))"))
        return self.bind(intrinsic("int16x32", "x86.avx512.packssdw.512", *sums))

    def _permuted(self, codes: str, groups: int) -> str:
        """Codes pixel after pixel, from codes as packing leaves them."""
        return codes if groups == QUAD else self.bind(shuffle([codes], unpacked(groups)))

    def _others(self, places: Sequence[str], groups: int) -> str:
        """The residual's codes of some pixels, as sums are packed."""
        size = groups * LANES
        parts = [self.bind(f"R[{ramp(place, size)}]") for place in places]
        parts += parts[-1:] * (QUAD // groups - len(parts))
        while len(parts) > 1:
            lanes = 64 // len(parts)
            parts = [self.bind(shuffle(parts[i : i + 2], range(2 * lanes))) for i in range(0, len(parts), 2)]
        back = sorted(range(64), key=unpacked(groups).__getitem__)
        return parts[0] if groups == QUAD else self.bind(shuffle(parts, back))

    def _store(self, codes: str, places: Sequence[str], groups: int, channels: int) -> None:
        """Write `channels` codes of each pixel."""
        size = groups * LANES
        for p, place in enumerate(places):
            start = 0
            for lanes in (64, 32, 16, 8, 4, 2, 1):
                while channels - start >= lanes:
                    part = range(p * size + start, p * size + start + lanes)
                    value = codes if lanes == 64 else shuffle([codes], part)
                    index = ramp(f"{place} + {start}", lanes) if lanes > 1 else f"{place} + {start}"
                    self.s(f"Y[{index}] = {value}")
                    start += lanes


def _signed(word: int) -> int:
    """32 bits as an int32."""
    return word - (1 << 32) if word >> 31 else word


def unpacked(groups: int) -> list[int]:
    """Where the codes of 64 / (16 * groups) pixels, one behind the other, stand after packing."""
    size, found = groups * LANES, []
    for pixel in range(QUAD // groups):
        for c in range(size):
            quad, rest = divmod(c, QUAD * groups)
            found.append(16 * quad + 4 * (pixel * groups + rest // QUAD) + rest % QUAD)
    return found


def is_doubled(node: Node) -> bool:
    """Whether twice the multipliers fit, so that (sum * 2m >> 32, plus 1) >> 1 is the same in fewer steps."""
    return int(node.attrs["shift"]) == 0 and int(node.consts["multiplier"].max()) < 1 << 30


PRODUCTS: tuple[Product, ...] = (ByteProduct(),)
