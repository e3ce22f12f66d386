"""Winograd convolution for AVX2 on weights as AVX512-VNNI reads them, which are transformed in every inference.

So a library for both levels stores them once, as int8 (`x86quad`). A block of output channels at a time is transformed
into the workspace: a few instructions for each weight, which then meets every tile of the image (`x86winograd`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS
from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from . import x86vnni, x86winograd
from .conv import Shape
from .directconv import DirectRow
from .imagecopy import copy_image
from .product import CHUNK, Bind
from .snippets import channel_consts
from .vectors import as_type, ramp, shuffle
from .winogradasm import PLACES
from .x86 import LANES, WidePairProduct
from .x86quad import PRODUCTS, QuadProduct, other
from .x86winograd import Tiles, Writer, behind, padded, register

_BLOCK = 64 << 10  # bytes of transformed weights at a time, more only where one group of 16 channels has more
_UNIT = x86vnni.UNIT
_ODD = 32  # weights, which keep places out of one set of the cache
_TRANSFORM = 12.0  # instructions that would take as long as transforming the nine weights of a pair of channels


class TransformedProduct(WidePairProduct):
    """Weights are int16 number `first` of the workspace and on, channels as `vpshufps` leaves them, or `vphaddd`."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def order(self, groups: int) -> list[int]:
        """As quads of channels are put together."""
        return PRODUCTS[1].order(groups)

    def _weights(self, bind: Bind, w: str, index: int) -> str:
        """Pairs of eight channels."""
        return bind(f"U[{ramp(f'{w} + {self.first + index * CHUNK}', CHUNK)}]")


_PRODUCT = TransformedProduct()


@dataclass(frozen=True, slots=True)
class QuadWinogradRow(x86winograd.WinogradRow):
    """The row of one weight format."""

    @property
    def theirs(self) -> DirectRow:
        """The row whose weights are read."""
        return other("conv2d", self.format)

    def reader(self, count: int) -> QuadProduct:
        """What knows the places of weights of which `count` groups of 16 channels stand together."""
        return PRODUCTS[count]

    @property
    def read(self) -> float:
        """Those of the other row."""
        return 1 / self.theirs.product.fields

    def packed(self, shape: Shape, node: Node) -> int:
        """Groups of 16 channels that the other row puts together; 0 where not all of its blocks are equal."""
        t = self.theirs.tiling(shape, node)
        return 0 if t.blocks and t.rest else t.groups if t.blocks else t.rest

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """3x3, stride 1, no dilation or groups, inputs in multiples of 8, outputs of 16, sums proven."""
        if node.format != self.format or graph.tensors[node.output].shape[-1] % x86vnni.LANES:
            return False
        fits = x86winograd.WinogradRow.applies(self, graph, node, target) and self.theirs.applies(graph, node, target)
        shape = Shape.of(graph, node)
        return fits and shape.channels % self.reader(1).unit == 0 and self.packed(shape, node) > 0

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """As with weights that are transformed already, and transforming them; tiles again for each block."""
        shape = Shape.of(graph, node)
        tiles, blocks = Tiles.of(shape), shape.out_channels // (each_of(shape) * x86vnni.LANES)
        again = (blocks - 1) * (tiles.rows > tiles.strip) * tiles.rows * tiles.columns
        tile = shape.channels / 16 * 66 + 12
        weights = shape.channels * shape.out_channels * _TRANSFORM
        return x86winograd.WinogradRow.cost(self, graph, node, target) + again * tile + weights

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The padded image, of one strip the tiles and their sums, of one block the weights."""
        shape = Shape.of(graph, node)
        groups = 2 * each_of(shape)
        return weights_at(shape, groups) + PLACES * (groups * LANES * shape.channels + _ODD) * 2

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """The other row's weights; four times the bias; multipliers."""
        consts, order = channel_consts(node), _PRODUCT.order(x86winograd.groups_of(Shape.of(graph, node)))
        return {
            "weights": self.theirs.pack(graph, node)["weights"],
            "bias": np.ascontiguousarray(consts["bias"][order] * 4),
            "multiplier": np.ascontiguousarray(consts["multiplier"][order]),
            **self.reader(1).constants(node),
        }

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels, strip by strip."""
        return _Writer(graph, node, self.reader(self.packed(Shape.of(graph, node), node))).code()


def each_of(shape: Shape) -> int:
    """Groups of 16 channels of a block."""
    total, bytes_ = shape.out_channels // x86vnni.LANES, 2 * PLACES * shape.channels * x86vnni.LANES
    return max(n for n in range(1, total + 1) if total % n == 0 and (n == 1 or n * bytes_ <= _BLOCK))


def weights_at(shape: Shape, groups: int) -> int:
    """Byte of the workspace where the transformed weights begin."""
    return -(-behind(shape, groups) // 64) * 64


class _Writer(Writer):
    """Writes one function of a QuadWinogradRow."""

    def __init__(self, graph: LoweredGraph, node: Node, theirs: QuadProduct) -> None:
        shape = Shape.of(graph, node)
        self.each, self.theirs = each_of(shape), theirs
        self.first = weights_at(shape, 2 * self.each) // 2
        super().__init__(graph, node, "int8", TransformedProduct(self.first), 2 * self.each, _ODD)
        self.source.view("U", "P", "int16")
        theirs.declare(self.source, node)

    def code(self) -> Code:
        """The whole function."""
        s, shape, tiles = self.source, self.shape, self.tiles
        strips = tiles.rows // tiles.strip
        copy_image(s, padded(shape), "int16")
        if strips == 1:
            with s.block(f"for strip in range({s.turns(1)}):"):
                self.transform()
        with s.block(f"for block in range({s.turns(shape.out_channels // (self.each * x86vnni.LANES))}):"):
            self._transform_weights()
            with s.block(f"for strip in range({s.turns(strips)}):"):
                if strips > 1:
                    self.transform()
                self.multiply()
        return s.code()

    def channel(self, local: str) -> str:
        """Behind the blocks before."""
        return f"block * {self.wide} + {local}"

    def _transform_weights(self) -> None:
        """(2G) g (2G)^T of a block: eight output channels by four input channels at a time, of a unit in turns."""
        s, c, product = self.source, self.shape.channels, self.theirs
        wide, unit = product.packed * x86vnni.LANES, product.unit  # weights of one code, and codes
        step = product.place(2) - product.place(0)
        with (
            s.block(f"for j in range({s.turns(c // unit)}):"),
            s.block(f"for i in range({s.turns(self.each)}):"),
            s.block(f"for m in range({s.turns(2)}):"),
        ):
            group = s.let(f"block * {self.each} + i")
            inner = product.byte(f"(T.bitwise_and({group}, {product.packed - 1}) * {LANES // 2})")
            start = f"T.shift_right({group}, {product.packed.bit_length() - 1}) * {9 * c * wide // product.fields}"
            base = s.let(f"{start} + {inner} + m * {step} + j * {unit * wide // product.fields}")
            quads = [f"{base} + {product.place(q) - product.place(0)}" for q in (0, 1)]
            to = s.let(f"{self.first} + i * {2 * LANES * c} + j * {2 * unit * LANES} + m * {CHUNK}")
            for part in range(unit // _UNIT):
                self._transform_part(part, quads, f"{to} + {part * 2 * _UNIT * LANES}")

    def _transform_part(self, part: int, quads: Sequence[str], to: str) -> None:
        """Four input channels of a unit, those of number `part`."""
        tap = self.shape.channels * self.theirs.packed * x86vnni.LANES // self.theirs.fields  # bytes
        taps = [[self._tap(f"{quad} + {k * tap}", part) for quad in quads] for k in range(9)]
        for half in (0, 1):
            lanes = [start + half for start in (0, 2, 8, 10, 4, 6, 12, 14)]
            values = self._transformed([as_type("int16x16", shuffle(pair, lanes)) for pair in taps])
            for place, value in enumerate(values):
                self.source(f"U[{ramp(f'{to} + {place * self.weights + half * 2 * CHUNK}', CHUNK)}] = {value}")

    def _tap(self, at: str, part: int) -> str:
        """Weights of four channels by four of one tap, as pairs."""
        bind = self.stage.bind
        turn, place = divmod(part, self.theirs.unit // _UNIT // self.theirs.rounds)
        found = self.theirs.expanded(bind, at, turn)[place]
        return bind(as_type("int32x8", f'T.cast({found}, "int16x16")'))

    def _transformed(self, taps: list[str]) -> list[str]:
        """The 16 values of nine taps."""
        taps = [self.stage.bind(tap) for tap in taps]
        rows = [self._line(taps[column::3]) for column in range(3)]
        return [value for i in range(4) for value in self._line([row[i] for row in rows])]

    def _line(self, g: list[str]) -> list[str]:
        """2G times three values."""
        bind = self.stage.bind
        both = bind(f"{g[0]} + {g[2]}")
        return [bind(v) for v in (f"{g[0]} + {g[0]}", f"{both} + {g[1]}", f"{both} - {g[1]}", f"{g[2]} + {g[2]}")]


for _format in FORMATS.values():
    _shared = {"weights_of": f"conv2d_s8_{_format.short}_direct__vnni"}
    register(QuadWinogradRow(_format), "quadwinograd", "Winograd, weights as AVX512-VNNI reads them", _shared)
