"""Winograd convolution F(2x2, 3x3) in exact integers for AVX2: 16 multiplications for four outputs instead of 36.

`winograd` has the algebra and its limits. The padded image is int16; a strip of tiles at a time is transformed,
multiplied place by place as a matrix product of pairs (`x86.WidePairProduct`), and transformed back into codes. Weights
take 32/9 of the bytes, which the row's tag says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .conv import Shape
from .imagecopy import WideCopying, copy_cost, copy_image, image_codes, opened, row_codes
from .product import CHUNK
from .snippets import channel_consts, cut
from .vectors import ramp
from .winograd import exact, transformed
from .winogradasm import PLACES
from .x86 import LANES, PairProduct, WidePairProduct, acc

_STRIP = 32  # tiles at a time, more only where a row has more
_PRODUCT = WidePairProduct()
_PIXELS, _GROUPS = 6, 2  # tiles and groups of channels of one matrix product in registers
_STREAMED = 32  # bytes of weights that cost as much as an instruction, where they are read once per strip


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the output is cut: `rows` x `columns` tiles of 2x2, `strip` rows of them at a time."""

    rows: int
    columns: int
    strip: int

    @staticmethod
    def of(shape: Shape) -> Tiles:
        """The most rows that divide all of them."""
        rows, columns = -(-shape.out_height // 2), -(-shape.out_width // 2)
        fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * columns <= _STRIP]
        return Tiles(rows, columns, max(fitting, default=1))

    @property
    def count(self) -> int:
        """Tiles of a strip."""
        return self.strip * self.columns


def padded(shape: Shape) -> Shape:
    """The shape with the padding that whole tiles read."""
    tiles, (top, left, _, _) = Tiles.of(shape), shape.pads
    bottom, right = 2 * tiles.rows + 2 - shape.height - top, 2 * tiles.columns + 2 - shape.width - left
    return replace(shape, pads=(top, left, bottom, right))


def groups_of(shape: Shape) -> int:
    """Groups of eight output channels."""
    return -(-shape.out_channels // LANES)


@dataclass(frozen=True, slots=True)
class WinogradRow(WideCopying):
    """The row of one weight format."""

    format: WeightFormat

    @property
    def read(self) -> float:
        """Bytes of weights that come from farther caches, by those of int8."""
        return 32 / 9

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """3x3, stride 1, no dilation or groups, channels in multiples of 8, sums proven."""
        if node.format != self.format:
            return False
        shape = Shape.of(graph, node)
        plain = (shape.kernel, shape.stride, shape.dilation, shape.groups) == ((3, 3), (1, 1), (1, 1), 1)
        return plain and shape.channels % LANES == 0 == shape.out_channels % LANES and exact(node)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Transforms, products and inverse transforms of all tiles; weights are read once per strip, and waited for."""
        shape, tiles = Shape.of(graph, node), Tiles.of(Shape.of(graph, node))
        groups, strips = groups_of(shape), tiles.rows // tiles.strip
        product = sum(
            n * (_PRODUCT.cost(pixels, g, shape.channels) + pixels * g + 6) * count
            for pixels, n in cut(tiles.count, _PIXELS)
            for g, count in cut(groups, _GROUPS)
        )
        inverse = groups * (44.0 + 4 * _PRODUCT.after(node))
        each = shape.channels / 16 * 66 + inverse + 12
        weights = PLACES * shape.channels * groups * LANES * 2 / _STREAMED
        wait = self.read * _PRODUCT.waiting(graph, node)
        return strips * (PLACES * product + weights + tiles.count * each) + copy_cost(padded(shape)) + wait

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The padded image, and of one strip the transformed tiles and their sums."""
        shape = Shape.of(graph, node)
        return behind(shape, groups_of(shape))

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """U by place, tile of groups, pair of input channels; four times the bias; multipliers."""
        consts, order = channel_consts(node), _PRODUCT.order(groups_of(Shape.of(graph, node)))
        u = transformed(node.values)[order]  # channels, places, input channels
        pairs = u.reshape(len(u) // LANES, LANES, PLACES, -1, 2).transpose(2, 0, 3, 1, 4)
        parts, start = [], 0
        for groups, count in cut(len(u) // LANES, _GROUPS):
            some = pairs[:, start : start + groups * count]
            some = some.reshape(PLACES, count, groups, *some.shape[2:]).transpose(0, 1, 3, 2, 4, 5)
            parts.append(some.reshape(PLACES, -1))
            start += groups * count
        return {
            "weights": np.concatenate(parts, axis=1).astype(np.int16).reshape(-1),
            "bias": np.ascontiguousarray(consts["bias"][order] * 4),
            "multiplier": np.ascontiguousarray(consts["multiplier"][order]),
        }

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then strip by strip."""
        return Writer(graph, node, "int16", _PRODUCT, groups_of(Shape.of(graph, node))).code()


def _tiles_step(shape: Shape) -> int:
    """Transformed codes from one place to the next; the odd line keeps places out of one set of the cache."""
    return -(-Tiles.of(shape).count * shape.channels // 32) * 32 + 32


def sums_step(shape: Shape, groups: int) -> int:
    """Sums from one place to the next, as above."""
    return -(-Tiles.of(shape).count * groups * LANES // 16) * 16 + 16


def _tiles_at(shape: Shape) -> int:
    """Byte of the workspace where the transformed tiles begin."""
    return -(-image_codes(padded(shape)) * 2 // 64) * 64


def sums_at(shape: Shape) -> int:
    """Byte of the workspace where the sums begin."""
    return _tiles_at(shape) + PLACES * _tiles_step(shape) * 2


def behind(shape: Shape, groups: int) -> int:
    """Byte of the workspace behind the sums."""
    return sums_at(shape) + PLACES * sums_step(shape, groups) * 4


class Writer:
    """Writes one function of a WinogradRow.

    weights: their type in memory; product: of transformed ones; groups: of eight channels that have sums at a time;
    odd: transformed weights between those of two places.
    """

    def __init__(
        self, graph: LoweredGraph, node: Node, weights: str, product: PairProduct, groups: int, odd: int = 0
    ) -> None:
        self.shape, self.product = Shape.of(graph, node), product
        self.tiles, self.groups = Tiles.of(self.shape), groups
        self.source = s = opened(node, True, "int16", weights=weights)
        s.view("S", "P", "int32")
        self.stage = product.stage(s, node)
        s.local("acc", LANES * _PIXELS * _GROUPS)
        self.wide, self.step = groups * LANES, sums_step(self.shape, groups)  # channels of the sums, sums of a place
        self.weights = self.wide * self.shape.channels + odd  # of a place

    def code(self) -> Code:
        """The whole function."""
        s, tiles = self.source, self.tiles
        copy_image(s, padded(self.shape), "int16")
        with s.block(f"for strip in range({self.source.turns(tiles.rows // tiles.strip)}):"):
            self.transform()
            self.multiply()
        return s.code()

    def transform(self) -> None:
        """Transform the tiles of a strip."""
        self._each_tile(self._transform)

    def multiply(self) -> None:
        """Products of a strip, and its codes."""
        with self.source.block(f"for place in range({self.source.turns(PLACES)}):"):
            self._products()
        self._each_tile(self._inverse)

    def channel(self, local: str) -> str:
        """Number of a channel among all, by its number among those that have sums."""
        return local

    def _each_tile(self, body: Any) -> None:
        s = self.source
        with (
            s.block(f"for row in range({self.source.turns(self.tiles.strip)}):"),
            s.block(f"for column in range({self.source.turns(self.tiles.columns)}):"),
        ):
            body(f"(row * {self.tiles.columns} + column)")

    def _transform(self, tile: str) -> None:
        """B^T d B of one tile, a vector of channels at a time."""
        s, c = self.source, self.shape.channels
        lanes = 16 if c % 16 == 0 else LANES
        row = row_codes(padded(self.shape), True)
        with s.block(f"for k in range({self.source.turns(c // lanes)}):"):
            base = s.let(f"(strip * {self.tiles.strip} + row) * {2 * row} + column * {2 * c} + k * {lanes}")
            to = s.let(f"{_tiles_at(self.shape) // 2} + {tile} * {c} + k * {lanes}")
            rows = [
                _differences([self.stage.bind(f"P[{ramp(f'{base} + {i * row + j * c}', lanes)}]") for i in range(4)])
                for j in range(4)
            ]  # by column: four values down it
            rows = [[self.stage.bind(v) for v in column] for column in rows]
            for i in range(4):
                for j, value in enumerate(_differences([column[i] for column in rows])):
                    s(f"P[{ramp(f'{to} + {(4 * i + j) * _tiles_step(self.shape)}', lanes)}] = {value}")

    def _products(self) -> None:
        """Sums of one place: tiles of the strip by channels."""
        s, start = self.source, 0
        for groups, count in cut(self.groups, _GROUPS):
            with s.block(f"for o in range({self.source.turns(count)}):"):
                first = 0
                for tiles, n in cut(self.tiles.count, _PIXELS):
                    with s.block(f"for t in range({self.source.turns(n)}):"):
                        self._product(groups, tiles, f"({start} + o * {groups})", f"({first} + t * {tiles})")
                    first += tiles * n
            start += groups * count

    def _product(self, groups: int, tiles: int, group: str, tile: str) -> None:
        s, c = self.source, self.shape.channels
        for index in range(groups * tiles):
            s(f"{acc(index)} = T.broadcast(0, {LANES})")
        codes = s.let(f"{_tiles_at(self.shape) // 2} + place * {_tiles_step(self.shape)} + {tile} * {c}")
        weights = s.let(f"place * {self.weights} + {group} * {c * LANES}")
        with s.block(f"for k in range({self.source.turns(c // 2)}):"):

            def code(tile: int, offset: int, lanes: int) -> str:
                return f"P[{ramp(f'{codes} + {tile * c + offset} + k * 2', lanes)}]"

            at = f"{weights} + k * {groups * CHUNK}"
            self.product.multiply(s, self.stage.bind, tiles, groups, 2, code, at, True)
        sums = f"{sums_at(self.shape) // 4} + place * {self.step} + {tile} * {self.wide} + {group} * {LANES}"
        for p in range(tiles):
            for v in range(groups):
                s(f"S[{ramp(f'{sums} + {p * self.wide + v * LANES}', LANES)}] = {acc(p * groups + v)}")

    def _inverse(self, tile: str) -> None:
        """A^T M A of one tile, and its codes, up to 16 channels at a time."""
        s, start = self.source, 0
        for groups, count in cut(self.groups, _GROUPS):
            with s.block(f"for o in range({self.source.turns(count)}):"):
                first = f"({start} + o * {groups}) * {LANES}"
                outputs = [self._outputs(tile, f"{first} + {v * LANES}") for v in range(groups)]
                channels = [self.channel(f"{first} + {v * LANES}") for v in range(groups)]
                multipliers = [f"M[{ramp(channel, LANES)}]" for channel in channels]
                for i in (0, 1):
                    for j in (0, 1):
                        self._pixel(i, j, [values[2 * i + j] for values in outputs], multipliers, first)
            start += groups * count

    def _outputs(self, tile: str, channel: str) -> list[str]:
        """The four sums of eight channels of a tile."""
        base = self.source.let(f"{sums_at(self.shape) // 4} + {tile} * {self.wide} + {channel}")
        sums = [[f"S[{ramp(f'{base} + {(4 * i + j) * self.step}', LANES)}]" for j in range(4)] for i in range(4)]
        sums[1][1] = f"({sums[1][1]} + B[{ramp(self.channel(channel), LANES)}])"  # all four outputs contain it
        columns = [[self.stage.bind(v) for v in _totals([sums[i][j] for i in range(4)])] for j in range(4)]
        four = [total for i in (0, 1) for total in _totals([column[i] for column in columns])]
        return [self.stage.bind(f"T.shift_right({v}, T.broadcast(2, {LANES}))") for v in four]

    def _pixel(self, i: int, j: int, sums: list[str], multipliers: list[str], first: str) -> None:
        """Requantise and store the output (i, j) of a tile, if it is inside."""
        s, shape = self.source, self.shape
        y, x = f"((strip * {self.tiles.strip} + row) * 2 + {i})", f"(column * 2 + {j})"
        at = s.let(f"({y} * {shape.out_width} + {x}) * {shape.out_channels} + {self.channel(first)}")
        tests = [f"{y} < {shape.out_height}"] * (i and shape.out_height % 2)
        tests += [f"{x} < {shape.out_width}"] * (j and shape.out_width % 2)
        if tests:
            with s.block(f"if {' and '.join(tests)}:"):
                self.stage(sums, multipliers, at, LANES * len(sums))
        else:
            self.stage(sums, multipliers, at, LANES * len(sums))


def _differences(d: list[str]) -> list[str]:
    """B^T d of four values."""
    return [f"{d[0]} - {d[2]}", f"{d[1]} + {d[2]}", f"{d[2]} - {d[1]}", f"{d[1]} - {d[3]}"]


def _totals(m: list[str]) -> list[str]:
    """A^T m of four values."""
    return [f"{m[0]} + {m[1]} + {m[2]}", f"{m[1]} - {m[2]} - {m[3]}"]


def register(row: WinogradRow, stem: str, notes: str, tags: Mapping[str, str]) -> None:
    """Add a row to the registry. stem: of the form's name, before the tile."""
    name = f"conv2d_s8_{row.format.short}_{stem}2x2__x86"
    KERNELS.add(
        name,
        Kernel(
            name, "conv2d", row.format.short, "x86", row.applies, row.cost, row.workspace, row.pack, row.emit,
            in_place=row.in_place, notes=notes, tags={"form": "winograd", **tags},
        ),
    )  # fmt: skip


for _format in FORMATS.values():
    register(WinogradRow(_format), "winograd", "Winograd", {"extra_flash": f"{8 * 32}/{9 * _format.bits}"})
