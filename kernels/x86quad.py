"""x86-64 with AVX2 on weights as AVX512-VNNI reads them: a library for both levels stores them once.

There 64 bytes are four weights of each of 16 channels (`x86vnni`). 16 of them, those of four channels, are widened, and
`vpmaddwd` with four codes of one pixel gives two sums for each channel, which are added at the end. So much is
multiplied at a time as by `x86.PairProduct`; tiles are cut inside the blocks of the other level's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product as product_of
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from . import x86vnni
from .conv import Shape
from .directconv import DirectRow, Writer
from .directrows import kernel_of, register
from .imagecopy import copy_cost
from .product import CHUNK, Bind, Codes
from .snippets import Source, channel_consts
from .tiling import Runs, Tiling, Way, along, ways
from .vectors import as_type, ramp
from .x86 import LANES, PairProduct, acc, intrinsic

_QUAD = 4  # channels of a vector of sums, and codes that one of them multiplies at a time
_ORDER = [0, 1, 4, 5, 2, 3, 6, 7]  # the channel in each lane of `vphaddd`
_GROUPS = (1, 2, 4)  # of eight channels, in a tile


class QuadProduct(PairProduct):
    """Four codes of one pixel by four channels; `packed` groups of 16 channels stand together in a block."""

    chunk = unit = _QUAD
    vectors, late, folds, rounds = 2, True, True, 1

    def __init__(self, packed: int = 1) -> None:
        self.packed = packed

    def order(self, groups: int) -> list[int]:
        """As adding the two sums of each channel leaves them."""
        return [LANES * group + place for group in range(groups) for place in _ORDER]

    def place(self, quad: int) -> int:
        """Byte of a block's unit of four codes where the weights of quad number `quad` of its channels begin."""
        order = x86vnni.PRODUCTS[0].order(self.packed)
        return order.index(quad * _QUAD) * _QUAD

    def byte(self, quad: str) -> str:
        """The same of a quad that is known when the function runs."""
        some = min(x86vnni.QUAD, self.packed)
        shift = some.bit_length() - 1
        inner = f"T.bitwise_and({quad}, {_QUAD * some - 1})"
        place = f"T.bitwise_and({quad}, {some - 1}) * {_QUAD} + T.shift_right({inner}, {shift})"
        return f"(T.shift_right({quad}, {shift + 2}) * {_QUAD * some} + {place}) * {CHUNK}"

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Accumulators, the codes of all pixels or the weights of all quads, one of the others and its product."""
        return 2 * pixels * groups + min(2 * groups, pixels) + 2 <= free

    def accumulators(self, pixels: int, groups: int) -> int:
        """Two for each pixel and group."""
        return 2 * pixels * groups

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every four codes: load weights, broadcast codes, multiply and add."""
        return codes / _QUAD * (3.0 * groups + pixels + 4.0 * pixels * groups)

    def sum_cost(self) -> float:
        """Three that take as long as seven, and the bias."""
        return 8.0

    def sum(self, pixel: int, group: int, groups: int) -> str:
        """Eight channels."""
        first = 2 * (pixel * groups + group)
        return intrinsic("int32x8", "x86.avx2.phadd.d", acc(first), acc(first + 1))

    def multiply(
        self, s: Source, bind: Bind, pixels: int, groups: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Each pixel's codes meet the weights of every quad; what is less of the two stays in registers."""
        for turn in range(self.rounds):
            self._turn(s, bind, pixels, groups, x, w, turn)

    def _turn(self, s: Source, bind: Bind, pixels: int, groups: int, x: Codes, w: str, turn: int) -> None:
        """The codes whose weights are expanded together."""
        first, codes = self.place(0), self.unit // self.rounds
        steps = [self.place(quad) - first for quad in range(2 * groups)]

        def weights(quad: int) -> list[str]:
            return [bind(f'T.cast({part}, "int16x16")') for part in self.expanded(bind, f"{w} + {steps[quad]}", turn)]

        def values(pixel: int) -> list[str]:
            words = [as_type("int64", x(pixel, at, _QUAD)) for at in range(turn * codes, (turn + 1) * codes, _QUAD)]
            return [bind(as_type("int16x16", f"T.broadcast({word}, {_QUAD})")) for word in words]

        def add(pixel: int, quad: int, value: list[str], weight: list[str]) -> None:
            a = acc(2 * groups * pixel + quad)
            for one in zip(value, weight, strict=True):
                s(f"{a} = {a} + {intrinsic('int32x8', 'x86.avx2.pmadd.wd', *one)}")

        if pixels < len(steps):
            tile = [values(pixel) for pixel in range(pixels)]
            for quad in range(len(steps)):
                weight = weights(quad)
                for pixel, value in enumerate(tile):
                    add(pixel, quad, value, weight)
            return
        quads = [weights(quad) for quad in range(len(steps))]
        for pixel in range(pixels):
            value = values(pixel)
            for quad, weight in enumerate(quads):
                add(pixel, quad, value, weight)

    def expanded(self, bind: Bind, at: str, turn: int) -> list[str]:
        """int8 weights of a quad, for each four codes of a turn."""
        return [f"W[{ramp(at, CHUNK)}]"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Equal tiles: `count` one behind the other from channel `start` on, in each of `blocks` blocks from `block` on."""

    product: QuadProduct
    block: int
    blocks: int
    start: int
    count: int
    groups: int  # of eight channels
    channels: int  # of a tile; the last group may not be whole
    pixels: tuple[tuple[int, int], ...]
    cost: float
    way: Way


def other(op: str, fmt: WeightFormat) -> DirectRow:
    """The row whose weights are read."""
    return DirectRow(op, x86vnni.PRODUCTS[0], fmt)


@dataclass(frozen=True, slots=True)
class QuadRow(DirectRow):
    """One row: an operation, a weight format."""

    @property
    def theirs(self) -> DirectRow:
        """The row whose weights are read."""
        return other(self.op, self.format)

    def reader(self, packed: int) -> QuadProduct:
        """What multiplies weights of which `packed` groups of 16 channels stand together."""
        return PRODUCTS[packed]

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups; with a residual whole groups of 16 channels."""
        return self.theirs.applies(graph, node, target)

    def tiling(self, shape: Shape, node: Node) -> Tiling:
        """The other row's blocks."""
        return self.theirs.tiling(shape, node)

    def pieces(self, shape: Shape, node: Node) -> list[Piece]:
        """How the blocks of the other row are cut."""
        t = self.tiling(shape, node)
        found, wide = [], t.groups * x86vnni.LANES
        if t.blocks:
            found += self._pieces(shape, node, t.groups, (0, t.blocks), wide)
        if t.rest:
            found += self._pieces(shape, node, t.rest, (t.blocks, 1), shape.out_channels - t.blocks * wide)
        return found

    def _pieces(self, shape: Shape, node: Node, packed: int, blocks: tuple[int, int], channels: int) -> list[Piece]:
        """The cheapest tiles for blocks (first, number) of `packed` groups of 16 channels, `channels` in use."""
        product, runs = self.reader(packed), Runs.of(shape, True)
        output = (product.registers(node), product.after(node))

        def piece(way: Way, groups: int, start: int, count: int, some: int) -> Piece:
            pixels, cost = along(product, runs, way, groups, output)
            cost = way.rows * (cost + 6) * count * blocks[1]
            return Piece(product, *blocks, start, count, groups, some, pixels, cost, way)

        choices = []
        for way, groups in product_of(ways(product, shape), (g for g in _GROUPS if 2 * packed % g == 0)):
            count, rest = divmod(channels, groups * LANES)
            cut = [piece(way, groups, 0, count, groups * LANES)] if count else []
            cut += [piece(way, -(-rest // LANES), channels - rest, 1, rest)] if rest else []
            choices.append(cut)
        return min(choices, key=lambda cut: sum(p.cost for p in cut))

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Instructions of the tiles, copying, and waiting for weights."""
        shape = Shape.of(graph, node)
        return sum(p.cost for p in self.pieces(shape, node)) + copy_cost(shape) + self.product.waiting(graph, node) + 30

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """The other row's weights; bias and multipliers in this one's order."""
        weights, consts = self.theirs.pack(graph, node)["weights"], channel_consts(node)
        groups = -(-len(consts["bias"]) // LANES)
        order = self.product.order(groups)
        table = np.zeros((2, groups * LANES), np.int32)
        table[:, : len(consts["bias"])] = consts["bias"], self.product.multipliers(node, consts["multiplier"])
        bias, multiplier = (np.ascontiguousarray(row) for row in table[:, order])
        return {"weights": weights, "bias": bias, "multiplier": multiplier, **self.product.constants(node)}

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels, the tiles of a block, rows, pixels."""
        return _Writer(self, graph, node).code()


class _Writer(Writer):
    """Writes one function of a QuadRow."""

    def __init__(self, row: QuadRow, graph: LoweredGraph, node: Node) -> None:
        self.pieces = row.pieces(Shape.of(graph, node), node)
        self.piece, self.at = self.pieces[0], ("0", "0")
        super().__init__(row, graph, node)

    def tiles(self) -> list[tuple[int, int]]:
        """Of all pieces."""
        return [(pixels, piece.groups) for piece in self.pieces for pixels, _ in piece.pixels]

    def blocks(self) -> None:
        """Piece after piece."""
        s = self.source
        for piece in self.pieces:
            self.piece, self.product = piece, piece.product
            with (
                s.block(f"for o in range({s.turns(piece.blocks)}):") if piece.blocks > 1 else nullcontext(),
                s.block(f"for h in range({s.turns(piece.count)}):") if piece.count > 1 else nullcontext(),
            ):
                self._place()
                self.block("o", piece.groups, piece.pixels, piece.channels)

    def _place(self) -> None:
        """First channel and weight of the tiles of one turn."""
        s, piece = self.source, self.piece
        block = f"({piece.block} + o)" if piece.blocks > 1 else str(piece.block)
        tile = "h" if piece.count > 1 else "0"
        first = s.let(f"{block} * {self.before} + {piece.start} + {tile} * {piece.groups * LANES}")
        each = sum(self.parts) * self.runs.count * self.before
        quad = s.let(f"{piece.start // _QUAD} + {tile} * {2 * piece.groups}")
        self.at = (first, s.let(f"{block} * {each // piece.product.fields} + {piece.product.byte(quad)}"))

    @property
    def way(self) -> Way:
        """That of the piece."""
        return self.piece.way

    @property
    def before(self) -> int:
        """Channels of a block in front of those of the piece, all of which are equal."""
        return self.tiling.groups * x86vnni.LANES

    def channel(self, o: str) -> str:
        """The first channel of the turn."""
        return self.at[0]

    def weights(self, o: str) -> str:
        """Where the weights of the turn begin."""
        return self.at[1]

    def wide(self, groups: int) -> int:
        """Weights of one code of a window, all channels of a block."""
        return self.piece.product.packed * x86vnni.LANES


PRODUCTS = {packed: QuadProduct(packed) for packed in (1, 2, 4, 8)}


def _rows() -> Iterator[Kernel]:
    for op in ("conv2d", "linear"):
        for fmt in FORMATS.values():
            theirs = f"{op}_s8_{fmt.short}_direct__vnni"
            yield kernel_of(QuadRow(op, PRODUCTS[1], fmt), "quad", 8, "weights as AVX512-VNNI reads them", theirs)


register(_rows())
