"""Convolution rows for x86-64 with AMX-int8: tiles of up to 16 pixels by 16 output channels by 64 codes.

A tile register holds up to 16 rows of 64 bytes. The pixels of a row of the padded image are windows at equal distances,
so their codes are loaded as the rows of a tile from where they lie, for every stride. Weights, bias and multipliers are
those of the direct rows of AVX512-VNNI, array for array: a tile of weights has its rows as far apart as groups of
channels stand side by side there. So a library that has both holds one copy, and the sums pass the same output stage.

Accumulators begin with the bias, loaded as a tile whose rows are all the same. Sums reach vectors through the
workspace: while a step is multiplied, the one before it is requantised. Every function sets the tiles' shapes and
releases them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS
from xdeploy.kernel import Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from . import directconv, directrows
from .conv import Shape
from .imagecopy import copy_cost, image_codes, row_codes
from .tiling import Runs
from .vectors import ramp
from .x86vnni import LANES, QUAD, UNIT, ByteProduct

ROWS = 16  # of a tile register
WORD = 4  # bytes of a sum
LINE = 64  # bytes of a tile's row
_SUMS = ROWS * LANES  # of a tile
_TILES, _ACCUMULATORS = 8, 4  # registers, the first of which hold sums
_CODES, _WEIGHTS = (4, 5), (6, 7)  # registers that are loaded in turns
# Instructions of AVX512-VNNI in the time of one tile multiplication, which hardly depends on its size: 7 ns where the
# unit is fast and 14 ns where it is slow, measured on a Sapphire Rapids
_MULTIPLY = 64.0
_CONFIGURE = 600.0  # likewise, of setting and releasing shapes: 95 ns
_FLAT = 12  # chunks of a window: of more, loops are made
_Load = Callable[[int], None]


class TileProduct(ByteProduct):
    """The weights, constants and sums of AVX512-VNNI, multiplied by AMX."""

    isa = "amx"


@dataclass(frozen=True, slots=True)
class Cut:
    """How a layer's pixels and codes become tiles.

    pixels: of a tile, all in one row. across: tiles of a row. rows: of the image. units: of four codes, in a chunk.
    chunks: of a run.
    """

    pixels: int
    across: int
    rows: int
    units: int
    chunks: int

    @staticmethod
    def of(shape: Shape, runs: Runs) -> Cut:
        """Tiles of equal size: the largest that divide what there is."""
        rows, width = (1, shape.pixels) if shape.pointwise else (shape.out_height, shape.out_width)
        pixels, run = _divisor(width, ROWS), -(-runs.codes // UNIT)
        units = _divisor(run, LINE // UNIT)
        return Cut(pixels, width // pixels, rows, units, run // units)

    @property
    def tiles(self) -> int:
        """Of all pixels."""
        return self.across * self.rows

    def together(self, groups: int) -> int:
        """Tiles of pixels of one step: side by side, or whole rows of them."""
        fitting = (_ACCUMULATORS // groups, 2, 1)
        return next(p for p in fitting if p * groups <= _ACCUMULATORS and self._steps(p))

    def _steps(self, tiles: int) -> bool:
        if self.across % tiles == 0:
            return True
        return tiles % self.across == 0 and self.rows % (tiles // self.across) == 0

    def place(self, step: str, tile: int, together: int) -> tuple[str, str]:
        """Row and first column of a tile of a step."""
        if self.across % together:
            y, x = divmod(tile, self.across)
            return f"(({step}) * {together // self.across} + {y})", str(x * self.pixels)
        steps = self.across // together
        column = f"(T.floormod({step}, {steps}) * {together} + {tile}) * {self.pixels}"
        return f"T.floordiv({step}, {steps})", column


def _divisor(number: int, most: int) -> int:
    """The largest divisor up to `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


@dataclass(frozen=True, slots=True)
class TileRow(directconv.DirectRow):
    """One row: a weight format."""

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Multiplications of tiles, the output stage, copying, waiting for weights, setting shapes."""
        shape = Shape.of(graph, node)
        runs = Runs.of(shape, True)
        cut, groups = Cut.of(shape, runs), -(-shape.out_channels // LANES)
        multiplied = cut.tiles * groups * runs.count * cut.chunks * _MULTIPLY
        after = shape.pixels * groups * (2.0 + self.product.after(node))
        return multiplied + after + copy_cost(shape) + self.product.waiting(graph, node) + _CONFIGURE

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The padded image, and a step's sums."""
        return sums_at(Shape.of(graph, node)) + _ACCUMULATORS * _SUMS * WORD

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """What AVX512-VNNI has, and the shapes of the tiles."""
        shape = Shape.of(graph, node)
        shapes = tile_shapes(Cut.of(shape, Runs.of(shape, True)))
        return {**directconv.DirectRow.pack(self, graph, node), "shapes": shapes}

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, set shapes, then blocks of channels."""
        return _Writer(self, graph, node).code()


def sums_at(shape: Shape) -> int:
    """The byte of the workspace where sums begin, behind the image."""
    return -(-image_codes(shape) // LINE) * LINE


def tile_shapes(cut: Cut) -> NDArray[np.uint8]:
    """What `ldtilecfg` loads (Intel SDM volume 1, 18.2): palette 1, then bytes of a row and rows of every tile.

    Tiles that hold weights have as many rows as a chunk has units, all others as many as pixels.
    """
    shapes = np.zeros(LINE, np.uint8)
    shapes[0] = 1
    for tile in range(_TILES):
        of_weights = tile in _WEIGHTS
        shapes[16 + 2 * tile] = cut.units * UNIT if tile in _CODES else LINE
        shapes[48 + tile] = cut.units if of_weights else cut.pixels
    return shapes


def _tile(name: str, *args: str | int) -> str:
    """A statement: an instruction of AMX; numbers are tiles."""
    told = (f"T.int8({a})" if isinstance(a, int) else a for a in args)
    return f'T.evaluate(T.call_llvm_intrin("void", "llvm.x86.{name}", {", ".join(told)}))'


class _Writer(directconv.Writer):
    """Writes one function of a TileRow."""

    def __init__(self, row: TileRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row, graph, node)
        self.cut = Cut.of(self.shape, self.runs)
        self.source.const("S", "shapes", "uint8")
        self.source.view("Z", "P", "int32")
        self.sums = sums_at(self.shape) // WORD

    def blocks(self) -> None:
        """All blocks of channels, between setting and releasing the tiles' shapes."""
        self.source(_tile("ldtilecfg", "T.address_of(S[0])"))
        super().blocks()
        self.source('T.evaluate(T.call_llvm_intrin("void", "llvm.x86.tilerelease"))')

    def block(self, o: str, groups: int, tiles: tuple[tuple[int, int], ...], channels: int) -> None:
        """All pixels of one block of channels, as many groups at a time as the output stage packs."""
        for first in range(0, groups, QUAD):
            some = min(QUAD, groups - first)
            self._quad(_Quad(self, o, first, some, groups, min(some * LANES, channels - first * LANES)))

    def _quad(self, quad: _Quad) -> None:
        """Step after step: multiply the next one, requantise the last one, fetch sums."""
        s, last = self.source, self.cut.tiles // quad.together - 1
        quad.multiply("0")
        quad.fetch()
        if last:
            with s.block(f"for t in range({s.turns(last)}):"):
                quad.multiply("t + 1")
                quad.finish("t")
                quad.fetch()
        quad.finish(str(last))

    def finish_tile(self, quad: _Quad, first_sum: int, pixel: str) -> None:
        """Requantise and store the pixels of one tile, as many at a time as the output stage packs."""
        s, each = self.source, QUAD // quad.groups
        whole, rest = divmod(self.cut.pixels, each)
        if whole:
            with s.block(f"for m in range({s.turns(whole)}):"):
                self._pixels(quad, f"{first_sum} + m * {each * LANES}", f"{pixel} + m * {each}", each)
        if rest:
            done = whole * each
            self._pixels(quad, str(first_sum + done * LANES), f"{pixel} + {done}", rest)

    def _pixels(self, quad: _Quad, first_sum: str, pixel: str, count: int) -> None:
        at = [[f"{first_sum} + {v * _SUMS + p * LANES}" for v in range(quad.groups)] for p in range(count)]
        sums = [[f"Z[{ramp(place, LANES)}]" for place in row] for row in at]
        multipliers = [f"M[{ramp(f'{quad.channel} + {v * LANES}', LANES)}]" for v in range(quad.groups)]
        places = [f"({pixel} + {p}) * {self.shape.out_channels} + {quad.channel}" for p in range(count)]
        self.stage.tile(sums, multipliers, places, quad.channels, LANES)


class _Quad:
    """Up to four groups of channels of a block, whose sums are requantised together."""

    def __init__(self, writer: _Writer, o: str, first: int, groups: int, wide: int, channels: int) -> None:
        self.writer, self.source, self.cut = writer, writer.source, writer.cut
        self.groups, self.channels = groups, channels
        self.channel = f"{writer.channel(o)} + {first * LANES}"
        self.weights = f"{writer.weights(o)} + {first * LINE}"
        self.apart = wide * LINE  # bytes from a row of a tile of weights to the next
        self.together = self.cut.together(groups)

    def _each(self) -> Iterator[tuple[int, int, int]]:
        """Tile of pixels, group of channels, register of their sums."""
        return ((p, v, p * self.groups + v) for p in range(self.together) for v in range(self.groups))

    def multiply(self, step: str) -> None:
        """The sums of a step, in registers."""
        s, shape, runs = self.source, self.writer.shape, self.writer.runs
        now = s.let(step)
        row, pixel = shape.stride[0] * row_codes(shape, True), shape.stride[1] * shape.channels
        places = [self.cut.place(now, p, self.together) for p in range(self.together)]
        images = [s.let(f"{y} * {row} + {x} * {pixel}") for y, x in places]
        for _, v, register in self._each():
            s(_tile("tileloadd64", register, f"T.address_of(B[{self.channel} + {v * LANES}])", "T.int64(0)"))
        step_of_run = self.cut.chunks * self.cut.units * self.apart
        if runs.count * self.cut.chunks <= _FLAT:
            for r in range(runs.count):
                offset = r // runs.columns * runs.row_step + r % runs.columns * runs.column_step
                for k in range(self.cut.chunks):
                    self._chunk([f"{i} + {offset}" for i in images], f"{self.weights} + {r * step_of_run}", str(k))
            return
        with s.block(f"for ky in range({s.turns(runs.rows)}):"):
            for kx in range(runs.columns):
                codes = [s.let(f"{i} + ky * {runs.row_step} + {kx * runs.column_step}") for i in images]
                weights = s.let(f"{self.weights} + (ky * {runs.columns} + {kx}) * {step_of_run}")
                with s.block(f"for j in range({s.turns(self.cut.chunks)}):"):
                    self._chunk(codes, weights, "j")

    def _chunk(self, codes: list[str], weights: str, chunk: str) -> None:
        """A chunk of the codes of every pixel times the weights of every group: whichever are fewer stay loaded."""
        pixel, size = self.writer.shape.stride[1] * self.writer.shape.channels, self.cut.units * UNIT

        def load_codes(p: int) -> None:
            at = f"T.address_of(P[{codes[p]} + {chunk} * {size}])"
            self.source(_tile("tileloadd64", _CODES[p % 2], at, f"T.int64({pixel})"))

        def load_weights(v: int) -> None:
            at = f"T.address_of(W[{weights} + {chunk} * {self.cut.units * self.apart} + {v * LINE}])"
            self.source(_tile("tileloadd64", _WEIGHTS[v % 2], at, f"T.int64({self.apart})"))

        if self.groups < self.together:
            self._products(load_weights, self.groups, load_codes, self.together, lambda v, p: (p, v))
        else:
            self._products(load_codes, self.together, load_weights, self.groups, lambda p, v: (p, v))

    def _products(
        self, load: _Load, few: int, load_other: _Load, many: int, placed: Callable[[int, int], tuple[int, int]]
    ) -> None:
        """Load both sides' tiles; the few, two at most, stay while the others take turns."""
        for i in range(few):
            load(i)
        for j in range(many):
            load_other(j)
            for i in range(few):
                p, v = placed(i, j)
                tiles = _CODES[p % 2], _WEIGHTS[v % 2]
                self.source(_tile("tdpbusd", p * self.groups + v, *tiles))

    def fetch(self) -> None:
        """Store the sums in the workspace."""
        for _, _, register in self._each():
            at = f"T.address_of(Z[{self.writer.sums + register * _SUMS}])"
            self.source(_tile("tilestored64", register, at, f"T.int64({LINE})"))

    def finish(self, step: str) -> None:
        """Requantise a step's sums."""
        now = self.source.let(step)
        width = self.cut.across * self.cut.pixels
        for p in range(self.together):
            y, x = self.cut.place(now, p, self.together)
            first = self.writer.sums + p * self.groups * _SUMS
            self.writer.finish_tile(self, first, self.source.let(f"{y} * {width} + {x}"))


def _rows() -> Iterator[Kernel]:
    product = TileProduct()
    return (directrows.expanded(TileRow("conv2d", product, fmt)) for fmt in FORMATS.values())


directrows.register(_rows())
