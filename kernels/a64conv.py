"""Convolution rows for AArch64 with dot product whose loops are assembly (`a64convasm`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, Int32, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .a64 import DotProduct
from .a64convasm import CHANNELS, PIXELS, Added, Tiles
from .conv import Shape
from .imagecopy import Copying, copy_cost, copy_image, opened, row_codes
from .outstage import added_constant
from .product import CHUNK
from .snippets import channel_consts
from .tiling import Runs

_CALL = 6  # instructions of the function around it
_MOST_SHIFT = 24  # 16 by taking upper halves, the rest while they are narrowed


@dataclass(frozen=True, slots=True)
class TiledRow(Copying):
    """One row: a weight format."""

    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups, channels in multiples of 16, no dilation along rows."""
        if node.op != "conv2d" or node.format != self.format or node.attrs.get("groups", 1) != 1:
            return False
        shape = Shape.of(graph, node)
        whole = shape.channels % CHUNK == 0 and shape.out_channels % CHANNELS == 0
        if not whole or Runs.of(shape, False).columns > 1 or max(_reach(shape)) >= 1 << 16:
            return False
        return not has_residual(node) or 0 < node.attrs["add_shift"] <= _MOST_SHIFT

    def copied(self, shape: Shape) -> bool:
        """Only for its padding."""
        return any(shape.pads)

    def tiles(self, shape: Shape, node: Node) -> Tiles:
        """The function of a layer."""
        copied, a = self.copied(shape), node.attrs
        runs, line = Runs.of(shape, copied), row_codes(shape, copied)
        rows, width = (1, shape.pixels) if shape.pointwise else (shape.out_height, shape.out_width)
        shift, low, high = (int(a[k]) for k in ("shift", "low", "high"))
        return Tiles(
            rows, width, runs.rows, runs.codes // CHUNK, shape.stride[1] * shape.channels // CHUNK, runs.row_step,
            shape.stride[0] * line, shape.out_channels, shift, low, high, low == a["out_zero"] == -128, _added(node),
        )  # fmt: skip

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Instructions, counted, and copying."""
        shape = Shape.of(graph, node)
        return self.tiles(shape, node).count() + (copy_cost(shape) if self.copied(shape) else 0.0) + _CALL

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights by 16 channels and rows of a window, as dot products read them; what the output stage needs."""
        shape, consts = Shape.of(graph, node), channel_consts(node)
        runs = Runs.of(shape, self.copied(shape))
        codes = node.values.reshape(-1, CHANNELS, runs.rows, runs.codes)
        parts = [DotProduct().pack(codes[:, :, row]) for row in range(runs.rows)]
        return {
            "weights": np.stack(parts, axis=1).reshape(-1), "bias": consts["bias"],
            "multiplier": consts["multiplier"] >> 1, "stage": _stage(node),
        }  # fmt: skip

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy where there is padding, and one call."""
        shape = Shape.of(graph, node)
        copied, tiles = self.copied(shape), self.tiles(shape, node)
        s = opened(node, copied)
        s.const("S", "stage", "int32")
        other = s.input(1, "R") if has_residual(node) else "Y"
        if copied:
            copy_image(s, shape)
        # an address to be computed: linkers jump over functions that only jump, which then are not seen to be called
        image = f"T.address_of({'P' if copied else 'X'}[{s.integer('first', 0)}])"
        pointers = (f"T.address_of({name}[0])" for name in ("W", "B", "M", "Y", other, "S"))
        s.call(tiles.function(), image, *pointers, s.integer("blocks", tiles.blocks))
        return s.code()


def _reach(shape: Shape) -> tuple[int, ...]:
    """What has to fit into 16 bits: counts of the loops, and bytes from the first pixel of a tile to the last one's."""
    apart = PIXELS * max(shape.stride[1] * shape.channels, shape.out_channels)
    return shape.pixels if shape.pointwise else shape.out_height, shape.out_width, apart


def _added(node: Node) -> Added | None:
    if not has_residual(node):
        return None
    shift, low, high = (int(node.attrs[f"add_{k}"]) for k in ("shift", "low", "high"))
    return Added(shift, low, high)


def _stage(node: Node) -> Int32:
    """Four vectors: of a residual, bounds before it, factors and what is added; else only the zero point, or 128."""
    a, table = node.attrs, np.zeros((4, 4), np.int32)
    if not has_residual(node):
        lowest = a["low"] == a["out_zero"] == -128
        table[3] = _repeated(-128, np.int8) if lowest else _repeated(a["out_zero"], np.int16)
        return table.reshape(-1)
    table[0], table[1] = a["low"] - a["out_zero"], a["high"] - a["out_zero"]
    table[2, :2] = a["add_a"], a["add_b"]
    table[3] = added_constant(node)
    return table.reshape(-1)


def _repeated(value: int, dtype: type[np.integer[Any]]) -> Int32:
    """A vector of equal lanes."""
    return np.full(CHUNK // np.dtype(dtype).itemsize, value, dtype).view(np.int32)


for _format in FORMATS.values():
    _row, _name = TiledRow(_format), f"conv2d_s8_{_format.short}_tile4x16__dotprod"
    _tags = {} if _format.bits == 8 else {"extra_flash": f"8/{_format.bits}"}
    KERNELS.add(
        _name,
        Kernel(
            _name, "conv2d", _format.short, "dotprod", _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
            in_place=_row.in_place, notes="" if _format.bits == 8 else "weights expanded to int8", tags=_tags,
        ),
    )  # fmt: skip
