"""Winograd convolution F(2x2, 3x3) in exact integers, for cores with the Armv7E-M DSP instructions.

A tile of 2x2 outputs costs 16 multiplications per pair of channels instead of 36. With G doubled every matrix is
integer (Lavin and Gray 2015, equation 8): U = (2G) g (2G)^T is prepared offline as int16, V = B^T d B of a 4x4 patch
of codes lies within 4 * 128, and A^T (U * V) A is four times the convolution. Sums may wrap on the way: modulo 2^32 the
last one is right as soon as four times the accumulator fits int32, which `applies` proves. The zero point is folded
into the bias; patches that reach outside hold it. Weights take 32/9 of the bytes, which the row's tag says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, INT32_LIMIT, Int64, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .armgather import clip_rows
from .conv import Shape
from .snippets import Source, channel_consts
from .winogradasm import PLACES, QUAD, STACK_ARGS, SUMS, TILES, Product, transform

PATCH = 4  # rows and columns of input that a tile reads
TABLE = 16 * TILES  # bytes of the tiles' places: 12 each, rounded up
_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])


def transformed(values: NDArray[Any]) -> Int64:
    """Weights (O, 3, 3, I) -> U (O, 16, I), four times those of real Winograd."""
    u: Int64 = np.einsum("ai,oijc,bj->oabc", _G, values.astype(np.int64), _G)
    return u.reshape(len(values), PLACES, -1)


def exact(node: Node) -> bool:
    """Whether four times the accumulator stays inside int32, and U inside int16."""
    sums = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
    bias = np.abs(channel_consts(node)["bias"].astype(np.int64))
    return int((sums * 128 + bias).max()) * 4 < INT32_LIMIT and int(np.abs(transformed(node.values)).max()) < 2**15


@dataclass(frozen=True, slots=True)
class WinogradRow:
    """The row of one weight format."""

    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """3x3, stride 1, no dilation or groups, channels in multiples of 4 and 2, sums proven."""
        if node.format != self.format:
            return False
        shape = Shape.of(graph, node)
        plain = (shape.kernel, shape.stride, shape.dilation, shape.groups) == ((3, 3), (1, 1), (1, 1), 1)
        return plain and shape.channels % 4 == 0 == shape.out_channels % 2 and exact(node)

    def product(self, node: Node) -> Product:
        """The assembly function this node needs."""
        a, full = node.attrs, (-128, 127)
        add = has_residual(node)
        add_bounded = add and (a["add_low"], a["add_high"]) != full
        return Product(a["shift"], (a["low"], a["high"]) != full, add, add_bounded)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Transforms, products and inverse transforms of all tiles, and fetching patches at the border."""
        shape, extra = Shape.of(graph, node), 30.0 * has_residual(node)
        rows, columns = -(-shape.out_height // 2), -(-shape.out_width // 2)
        tiles, quads = rows * columns, shape.channels // 4
        sums = -(-tiles // TILES) * (shape.out_channels // 2) * (PLACES * (17.0 * quads + 11) + 50)
        border = max(tiles - max(rows - 2, 0) * max(columns - 2, 0), 0) * (60.0 + 24 * quads)
        return sums + tiles * (180.0 * quads + 80 + shape.out_channels * (65 + extra)) + border

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Sums, transformed patches, the tiles' places and one patch of codes."""
        shape = Shape.of(graph, node)
        return self.patch_at(shape) + PATCH * PATCH * shape.channels

    def table_at(self, shape: Shape) -> int:
        """Byte of the workspace where the places of the tiles begin."""
        return SUMS + QUAD * (shape.channels // 4)

    def patch_at(self, shape: Shape) -> int:
        """Byte of the workspace where a patch at the border is put together."""
        return self.table_at(shape) + TABLE

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """U by pair of output channels, place, quad, channel, k in the order 0, 2, 1, 3; (4 * bias, multiplier)."""
        consts = channel_consts(node)
        u = transformed(node.values)
        cut = u.reshape(len(u) // 2, 2, PLACES, -1, 2, 2).transpose(0, 2, 3, 1, 5, 4)
        table = np.stack([consts["bias"] * 4, consts["multiplier"]], axis=1)
        return {"weights": np.ascontiguousarray(cut.astype(np.int16)), "bias_multiplier": np.ascontiguousarray(table)}

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Transform three tiles, multiply them, and so on."""
        return _Writer(self, graph, node).write()


class _Writer:
    """Writes one function of a WinogradRow; all geometry is passed as scalars."""

    def __init__(self, row: WinogradRow, graph: LoweredGraph, node: Node) -> None:
        self.row, self.node, self.shape, self.product = row, node, Shape.of(graph, node), row.product(node)
        self.source = s = Source()
        s.input(0, "X")
        s.const("U", "weights", "int16")
        s.const("B", "bias_multiplier", "int32")
        if self.product.residual:
            s.input(1, "R")
        s.output("Y")
        s.workspace("P", "int8")
        s.view("S", "P", "int32")
        s.local("at", 2)
        for name, value in self._scalars().items():
            s.integer(name, value)

    def _scalars(self) -> dict[str, int]:
        shape = self.shape
        rows, columns, quads = -(-shape.out_height // 2), -(-shape.out_width // 2), shape.channels // 4
        return {
            "count": rows * columns, "groups": -(-rows * columns // TILES), "columns": columns, "quads": quads,
            "height": shape.height, "width": shape.width, "channels": shape.channels, "top": shape.pads[0],
            "left": shape.pads[1], "run": PATCH * shape.channels, "out_height": shape.out_height,
            "out_width": shape.out_width, "out_channels": shape.out_channels, "table_at": self.row.table_at(shape),
            "patch_at": self.row.patch_at(shape), "entry": self.product.entry(quads), "span": QUAD * quads + SUMS,
            "in_zero": self.node.attrs["in_zero"],
        }  # fmt: skip

    def write(self) -> Code:
        """The loops over groups of tiles and over the tiles of one."""
        s = self.source
        a = self.node.attrs
        known = {
            "tiles": "T.address_of(P[table_at])", "tiles_end": "T.address_of(P[table_at + valid * 12])",
            "residual": self._distance(), "entry": "entry", "span": "span", "channels": "out_channels",
        }  # fmt: skip
        stack = [known.get(n) or (s.integer(n, a[n]) if n in a else "0") for n in STACK_ARGS]
        s("at[0] = 0", "at[1] = 0")
        with s.block("for t in range(T.max(groups, 1)):"):
            s(f"valid: T.let[T.int32] = T.min(count - t * {TILES}, {TILES})")
            with s.block("for p in range(T.max(valid, 1)):"):
                self._tile()
            pointers = ("T.address_of(P[0])", "T.address_of(U[0])", "T.address_of(B[0])", "T.address_of(Y[0])")
            self.source.call(self.product.function(), *pointers, *stack)
        return s.code()

    def _distance(self) -> str:
        return "T.address_of(R[0])" if self.product.residual else "T.address_of(P[0])"

    def _tile(self) -> None:
        """Transform the patch of tile p, whose place is (at[0], at[1]) in pairs of pixels, and note its place."""
        s = self.source
        s("iy: T.let[T.int32] = at[0] * 2 - top", "ix: T.let[T.int32] = at[1] * 2 - left")
        s("entry_at: T.let[T.int32] = T.shift_right(table_at, 2) + p * 3")
        s("S[entry_at] = T.if_then_else(at[1] * 2 + 1 < out_width, out_channels, 0)")
        s("S[entry_at + 1] = T.if_then_else(at[0] * 2 + 1 < out_height, out_width * out_channels, 0)")
        s("S[entry_at + 2] = (at[0] * 2 * out_width + at[1] * 2) * out_channels")
        to, patch = f"T.address_of(P[{SUMS} + p * 8])", "T.address_of(P[patch_at])"
        source = "T.address_of(X[(iy * width + ix) * channels])"
        with s.block(f"if iy >= 0 and iy <= height - {PATCH} and ix >= 0 and ix <= width - {PATCH}:"):
            self.source.call(transform(), source, to, "channels", "width * channels", "quads")
        with s.block("else:"):
            s("lead: T.let[T.int32] = T.min(T.max(0 - ix, 0) * channels, run)")
            s("inside: T.let[T.int32] = T.min((width - ix) * channels, run) - lead")
            border = ("lead", "inside", "iy", "1", "height", "in_zero")
            self.source.call(clip_rows(), source, patch, "run", str(PATCH), "width * channels", *border)
            self.source.call(transform(), patch, to, "channels", "run", "quads")
        s("at[1] = at[1] + 1")
        with s.block("if at[1] == columns:"):
            s("at[1] = 0", "at[0] = at[0] + 1")


for _name in ("int8",):
    _row, _kernel = WinogradRow(FORMATS[_name]), f"conv2d_s8_{FORMATS[_name].short}_winograd{TILES}x2__armv7em"
    KERNELS.add(
        _kernel,
        Kernel(
            _kernel, "conv2d", _row.format.short, "armv7em", _row.applies, _row.cost, _row.workspace, _row.pack,
            _row.emit, notes="Winograd", tags={"form": "winograd", "extra_flash": "32/9"},
        ),
    )  # fmt: skip
