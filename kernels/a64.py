"""AArch64's ways of multiplying codes with weights, as TVMScript: NEON of Armv8.0, dot product, int8 matrices.

One class per feature level; four output channels are a group.
"""

from __future__ import annotations

import numpy as np

from xdeploy.formats import Int8, Int32
from xdeploy.lir.graph import Node
from xdeploy.lir.ops import has_residual

from .a64out import QUAD, Stage, neon
from .product import CHUNK, Bind, Codes, Product
from .snippets import Source
from .vectors import as_type, half, ramp, shuffle

LOADS = 0.55  # instructions per vector that is loaded in sequence: mostly in pairs


def acc(index: int) -> str:
    """Accumulator number `index`."""
    return f"acc[{ramp(str(index * 4), 4)}]"


def _weight(w: str, index: int, lanes: int = CHUNK) -> str:
    return f"W[{ramp(f'{w} + {index * lanes}', lanes)}]"


def _interleaved(codes: Int8, together: int, depth: int) -> Int8:
    """(blocks, channels, codes) as (blocks, `depth` codes x groups of `together` channels of `depth` codes)."""
    blocks, channels, row = codes.shape
    cut = codes.reshape(blocks, channels // together, together, row // depth, depth)
    return np.ascontiguousarray(cut.transpose(0, 3, 1, 2, 4)).reshape(blocks, -1)


class _Neon(Product):
    """Groups of four channels, codes read as they are, the output stage of a64out."""

    lanes, dtype, chunk, unrolled = QUAD, "int8", CHUNK, 4

    def registers(self, node: Node) -> int:
        """Of 32; a residual's factors and bounds stay in registers."""
        return 26 if has_residual(node) else 31

    def after(self, node: Node) -> float:
        """Instructions of the output stage for a group."""
        return 9.0 if has_residual(node) else 3.6

    def stage(self, source: Source, node: Node) -> Stage:
        """The output stage."""
        return Stage(source, node)

    def multipliers(self, node: Node, multiplier: Int32) -> Int32:
        """Half of them, as `sqrdmulh` doubles."""
        return multiplier >> 1


class DotProduct(_Neon):
    """`sdot` by element: four channels by four codes of one pixel."""

    isa, unit, vectors, exact = "dotprod", 4, 1, (0, 4, 8, 12)

    def fits(self, pixels: int, quads: int, free: int) -> bool:
        """Accumulators, a vector of codes per pixel, and weights that pass through, several at a time."""
        return pixels * quads + pixels + 1 <= min(26, free)

    def accumulators(self, pixels: int, quads: int) -> int:
        """One for each pixel and quad."""
        return pixels * quads

    def cost(self, pixels: int, quads: int, codes: int) -> float:
        """An `sdot` for four codes of a pixel and a quad, and the loads."""
        return codes / 4 * quads * (pixels + LOADS) + pixels * LOADS * (2 if codes == 12 else 1)

    def sum_cost(self) -> float:
        """Nothing to do."""
        return 0.0

    def pack(self, codes: Int8) -> Int8:
        """(4 codes) x (quads) x (4 channels of 4 codes)."""
        return _interleaved(codes, 4, 4)

    def start(self, bias: Int32) -> Int32:
        """The bias."""
        return bias.reshape(-1, 4)

    def clear(self, s: Source, pixels: int, quads: int, at: str) -> None:
        """A copy of the bias for each pixel."""
        for v in range(quads):
            for p in range(pixels):
                s(f"{acc(p * quads + v)} = B[{ramp(f'{at} + {v * 4}', 4)}]")

    def multiply(
        self, s: Source, bind: Bind, pixels: int, quads: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Four codes after the other, so that each vector of weights is loaded once."""
        available = CHUNK if slack and codes > 8 else codes
        for q in range(codes // 4):
            fours = [bind(self._four(x, p, q, available)) for p in range(pixels)]
            for v in range(quads):
                weight = bind(_weight(w, q * quads + v))
                for p in range(pixels):
                    a = acc(p * quads + v)
                    s(f"{a} = {neon('int32x4', 'sdot.v4i32.v16i8', a, weight, fours[p])}")

    def _four(self, x: Codes, pixel: int, q: int, codes: int) -> str:
        """Codes 4q to 4q + 3 of a pixel, four times."""
        lanes = CHUNK if codes == CHUNK else 8 if q < codes // 8 * 2 else 4
        start = q * 4 // lanes * lanes
        value = x(pixel, start, lanes)
        if lanes == 4:
            one = as_type("int32", value)
        else:
            one = shuffle([as_type(f"int32x{lanes // 4}", value)], [q - start // 4])
        return as_type("int8x16", f"T.broadcast({one}, 4)")

    def sum(self, pixel: int, quad: int, quads: int) -> str:
        """The accumulator."""
        return acc(pixel * quads + quad)


class MatrixProduct(_Neon):
    """`smmla`: two pixels by two channels, eight codes deep."""

    isa, unit, vectors, exact = "i8mm", 8, 2, (0, 8)

    def fits(self, pixels: int, quads: int, free: int) -> bool:
        """Accumulators, codes of two pixels as loaded and interleaved, and weights that pass through."""
        pairs = -(-pixels // 2)
        return pairs * quads * 2 + 2 * pairs + 1 <= free

    def accumulators(self, pixels: int, quads: int) -> int:
        """One for each pair of pixels and of channels."""
        return -(-pixels // 2) * quads * 2

    def cost(self, pixels: int, quads: int, codes: int) -> float:
        """An `smmla` for eight codes of two pixels and two channels, the loads, and interleaving of pixels."""
        pairs = -(-pixels // 2)
        return codes / 8 * quads * 2 * (pairs + LOADS) + pairs * (2 * LOADS + codes / 8)

    def sum_cost(self) -> float:
        """One half of two accumulators."""
        return 1.0

    def pack(self, codes: Int8) -> Int8:
        """(8 codes) x (pairs of channels) x (2 channels of 8 codes)."""
        return _interleaved(codes, 2, 8)

    def start(self, bias: Int32) -> Int32:
        """Two channels, once for each of two pixels."""
        return np.ascontiguousarray(np.tile(bias.reshape(-1, 1, 2), (1, 2, 1))).reshape(-1, 4)

    def clear(self, s: Source, pixels: int, quads: int, at: str) -> None:
        """A copy of the bias for each pair of pixels."""
        for v in range(quads * 2):
            for p in range(-(-pixels // 2)):
                s(f"{acc(p * quads * 2 + v)} = B[{ramp(f'({at}) * 2 + {v * 4}', 4)}]")

    def multiply(
        self, s: Source, bind: Bind, pixels: int, quads: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Eight codes after the other; a last pixel without partner is paired with itself."""
        ends = [(2 * i, min(2 * i + 1, pixels - 1)) for i in range(-(-pixels // 2))]
        for q in range(codes // 8):
            pairs = [self._pair(x, *both, q, codes) for both in ends]  # bound, they would take registers for longer
            for v in range(quads * 2):
                weight = bind(_weight(w, q * quads * 2 + v))
                for p, pair in enumerate(pairs):
                    a = acc(p * quads * 2 + v)
                    s(f"{a} = {neon('int32x4', 'smmla.v4i32.v16i8', a, pair, weight)}")

    def _pair(self, x: Codes, first: int, second: int, q: int, codes: int) -> str:
        if codes == CHUNK:
            wide = [as_type("int64x2", x(p, 0, CHUNK)) for p in (first, second)]
            return as_type("int8x16", shuffle(wide, [q, 2 + q]))
        return shuffle([x(p, 0, 8) for p in (first, second)], range(16))

    def sum(self, pixel: int, quad: int, quads: int) -> str:
        """The pixel's half of two accumulators."""
        half, first = pixel % 2, pixel // 2 * quads * 2 + quad * 2
        return shuffle([acc(first), acc(first + 1)], [2 * half, 2 * half + 1, 4 + 2 * half, 5 + 2 * half])


class LongProduct(_Neon):
    """Armv8.0: `smull`, `smlal2` and `sadalp` for 16 codes of a pixel and a channel; no weight may be -128."""

    isa, unit, vectors, exact, late = "neon", 8, 4, (0, 8), True

    def fits(self, pixels: int, quads: int, free: int) -> bool:
        """Accumulators, codes, weights and products."""
        return pixels * quads * 4 <= min(16, free)  # more, and LLVM runs out of registers

    def accumulators(self, pixels: int, quads: int) -> int:
        """One for each pixel and channel."""
        return pixels * quads * 4

    def cost(self, pixels: int, quads: int, codes: int) -> float:
        """Three instructions for 16 codes of a pixel and a channel, two for eight, and the loads."""
        return quads * 4 * (pixels * (1 + codes / 8) + LOADS) + pixels * LOADS

    def sum_cost(self) -> float:
        """A tree of pairwise additions."""
        return 3.0

    def pack(self, codes: Int8) -> Int8:
        """(channels) x (codes)."""
        return np.ascontiguousarray(codes).reshape(len(codes), -1)

    def start(self, bias: Int32) -> Int32:
        """The bias, which is added at the end."""
        return bias.reshape(-1, 4)

    def clear(self, s: Source, pixels: int, quads: int, at: str) -> None:
        """Zeros, which LLVM leaves out where the first product follows."""
        for a in range(pixels * quads * 4):
            s(f"{acc(a)} = T.broadcast(0, 4)")

    def multiply(
        self, s: Source, bind: Bind, pixels: int, quads: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Two products fit into int16, as |w| is at most 127."""
        for c in range(quads * 4):
            weight = bind(_weight(w, c, codes))
            for p in range(pixels):
                a = acc(p * quads * 4 + c)
                halves = [
                    neon("int16x8", "smull.v8i16", _part(weight, h, codes), _part(x(p, 0, codes), h, codes))
                    for h in range(codes // 8)
                ]
                s(f"{a} = {a} + {neon('int32x4', 'saddlp.v4i32.v8i16', ' + '.join(halves))}")

    def sum(self, pixel: int, quad: int, quads: int) -> str:
        """The totals of four accumulators."""
        first = (pixel * quads + quad) * 4

        def add(a: str, b: str) -> str:
            return neon("int32x4", "addp.v4i32", a, b)

        return add(add(acc(first), acc(first + 1)), add(acc(first + 2), acc(first + 3)))


def _part(value: str, index: int, lanes: int) -> str:
    return value if lanes == 8 else half(value, index, lanes)


PRODUCTS: tuple[Product, ...] = (LongProduct(), DotProduct(), MatrixProduct())
