"""Pointwise convolutions of Armv8.0 in assembly: tiles of four pixels by 16 channels, codes repeated as in `a64quads`.

Eight vectors of weights are loaded for eight codes of all four pixels. The tile's weights are read from the first level
of caches again for every tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .a64asm import LOADED, Outputs, W, bounded, called, entered, function, left, load, more, narrowed, offset, scaled
from .a64dense import ACC, X
from .a64quads import UNIT, by_fours, products, repeated
from .conv import Shape
from .snippets import channel_consts

PIXELS, CHANNELS = 4, 16  # of a tile
# image, weights, bias, multipliers, y, blocks, zero point
PARAMETERS = "ptr, ptr, ptr, ptr, ptr, i32, i32"
_CALL = 2  # instructions of the function around it
_POINTERS = ("x13", "x14", "x15", "x16")  # of the pixels
_ZERO, _MOST = 15, 4  # vector; units of eight codes in a turn
_LIMIT = 1 << 14  # of codes and channels, and of tiles


@dataclass(frozen=True, slots=True)
class Points:
    """One layer's function. codes: multiple of 8; channels: of 16."""

    pixels: int
    codes: int
    channels: int
    after: Outputs

    @property
    def blocks(self) -> int:
        """Of 16 channels."""
        return self.channels // CHANNELS

    def count(self) -> int:
        """Instructions of one call."""
        whole, rest = divmod(self.pixels, PIXELS)
        tiles = whole * (self._tile_count(PIXELS) + len(self._onward()) + 2) + (self._tile_count(rest) if rest else 0)
        block = len(self._first()) + (whole > 0) + tiles + len(_next_block())
        return _CALL + len(self._opening()) + self.blocks * block + len(left())

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; PARAMETERS."""
        whole, rest = divmod(self.pixels, PIXELS)
        lines = [*self._opening(), "1:", *self._first()]
        if whole:
            lines += [f"mov w12, #{whole}", "2:", *self._tile(PIXELS), *self._onward(), "subs w12, w12, #1", "b.ne 2b"]
        if rest:
            lines += self._tile(rest)
        return function("points", PARAMETERS, [*lines, *_next_block(), *left()])

    def _opening(self) -> list[str]:
        return [*entered(), offset(_ZERO, self.after.lowest, "w6"), f"mov x8, #{self.channels}"]

    def _first(self) -> list[str]:
        """Pointers to the first pixels, and to the block's outputs."""
        ahead = [more(p, self.codes, before) for before, p in itertools.pairwise(_POINTERS)]
        return ["mov x9, x4", f"mov {_POINTERS[0]}, x0", *(line for lines in ahead for line in lines)]

    def _onward(self) -> list[str]:
        """From the pixels of a tile, read to their ends, to those of the next."""
        return [line for p in _POINTERS for line in more(p, (PIXELS - 1) * self.codes)]

    # ------------------------------------------------------------------------------------------------- one tile
    @property
    def _turns(self) -> tuple[int, int]:
        """Of the loop over codes, and units of eight in each."""
        units = self.codes // UNIT
        each = next(n for n in range(_MOST, 0, -1) if units % n == 0)
        return units // each, each

    def _tile(self, pixels: int) -> list[str]:
        (turns, each), lines = self._turns, ["mov x11, x1"]
        for p in range(pixels):
            lines += load(ACC + LOADED * p, LOADED, "x2", step=False)
        loop = self._unit(pixels) * each
        if turns > 1:
            loop = [f"mov w17, #{turns}", "3:", *loop, "subs w17, w17, #1", "b.ne 3b"]
        return [*lines, *loop, *self._outputs(pixels)]

    def _tile_count(self, pixels: int) -> int:
        turns, each = self._turns
        loop = turns * (each * len(self._unit(pixels)) + 2 * (turns > 1)) + (turns > 1)
        return 1 + pixels + loop + len(self._outputs(pixels))

    def _unit(self, pixels: int) -> list[str]:
        """Eight codes of every pixel with all channels."""
        lines = load(W, 2 * LOADED, "x11")
        for p in range(pixels):
            lines.append(repeated(4, _POINTERS[p], f"#{UNIT}"))
            for i, group in enumerate(products(4, CHANNELS // 4, ACC + LOADED * p)):
                lines += [line.replace("{w}", f"v{W + i}") for line in group]
        return lines

    def _outputs(self, pixels: int) -> list[str]:
        """Requantise and store."""
        lines, after = load(X, LOADED, "x3", step=False), self.after
        for p in range(pixels):
            a = [f"v{ACC + LOADED * p + i}" for i in range(LOADED)]
            lines += [*scaled(a, X, after.shift), *narrowed(a, _ZERO, after.lowest, after.small)]
            lines += [*bounded(a[0], after.low, after.high, W), f"st1 {{{a[0]}.16b}}, [x9], x8"]
        return lines


def _next_block() -> list[str]:
    """A tile ends where the next block's weights begin."""
    return ["mov x1, x11", "add x2, x2, #64", "add x3, x3, #64", "add x4, x4, #16", "subs w5, w5, #1", "b.ne 1b"]


# ---------------------------------------------------------------------------------------------------------- the row
def _points(graph: LoweredGraph, node: Node) -> Points:
    shape = Shape.of(graph, node)
    return Points(shape.pixels, shape.row, shape.out_channels, Outputs.of(node))


def _applies(graph: LoweredGraph, node: Node, target: Target) -> bool:
    """Pointwise, int8, no residual, codes in multiples of 8 and channels of 16, no weight of -128."""
    if node.format != FORMATS["int8"] or has_residual(node) or int(node.values.min(initial=0)) == -128:
        return False
    shape = Shape.of(graph, node)
    whole = shape.row % UNIT == 0 == shape.out_channels % CHANNELS
    return shape.pointwise and whole and max(shape.row, shape.out_channels, shape.pixels // PIXELS) < _LIMIT


def _cost(graph: LoweredGraph, node: Node, target: Target) -> float:
    """Instructions, counted."""
    return float(_points(graph, node).count())


def _workspace(graph: LoweredGraph, node: Node) -> int:
    """None."""
    return 0


def _pack(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    """Weights by 16 channels as they are read, bias, half the multipliers."""
    consts, rows = channel_consts(node), node.values.reshape(len(node.values), -1)
    blocks = [by_fours(rows[i : i + CHANNELS]) for i in range(0, len(rows), CHANNELS)]
    return {"weights": np.concatenate(blocks), "bias": consts["bias"], "multiplier": consts["multiplier"] >> 1}


def _emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """One call."""
    points, s = _points(graph, node), called()
    # an address to be computed: linkers jump over functions that only jump, which then are not seen to be called
    image = f"T.address_of(X[{s.integer('first', 0)}])"
    pointers = (f"T.address_of({name}[0])" for name in ("W", "B", "M", "Y"))
    s.call(points.function(), image, *pointers, s.integer("blocks", points.blocks),
           s.integer("out_zero", node.attrs["out_zero"]))  # fmt: skip
    return s.code()


_NAME = "conv2d_s8_s8_tile4x16__neon"
KERNELS.add(_NAME, Kernel(_NAME, "conv2d", "s8", "neon", _applies, _cost, _workspace, _pack, _emit))
