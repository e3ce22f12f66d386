"""Winograd convolution F(4x4, 3x3) in exact integers for Armv8.0: 36 multiplications for 16 outputs instead of 144.

G is scaled to integers (24 times, its last row 12 times, which the inverse makes up for), so U = G g G^T fits int16,
V = B^T d B of a 6x6 patch of codes lies within 100 * 128, and A^T (U * V) A is 576 times the convolution (Lavin, Gray
2015, section 4.3). All of it is right modulo 2^32, where 9 has an inverse: what is left is 64 times the accumulator,
which `exact` proves to fit. The padded image is int16; a strip of tiles at a time is transformed, then multiplied place
by place for 16 channels (`smlal` by element) and transformed back into codes. Weights take eight times the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, INT32_LIMIT, Int64, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .a64 import acc
from .a64out import QUAD, Stage, neon
from .conv import Shape
from .imagecopy import WideCopying, copy_cost, copy_image, image_codes, opened, row_codes
from .snippets import channel_consts, cut
from .vectors import half, ramp, shuffle

SIZE, PATCH, PLACES = 4, 6, 36  # outputs and inputs of a tile along one side; products of a tile
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 12]])
_NINTH = 954437177  # 9 * this is 1 modulo 2^32
_SHIFT = 6  # 576 = 9 * 2^6
_EIGHT = 8  # input channels of a vector
_STRIP = 8  # tiles at a time, more only where a row has more
_TILES, _QUADS = 4, 4  # of one matrix product in registers
_MOST_WEIGHTS = 1 << 19  # bytes of U: what a small second-level cache holds
_STREAMED = 32  # bytes of weights that cost as much as an instruction, where they are read once per strip


def transformed(values: NDArray[Any]) -> Int64:
    """Weights (O, 3, 3, I) -> U (O, 36, I)."""
    u: Int64 = np.einsum("ai,oijc,bj->oabc", G, values.astype(np.int64), G)
    return u.reshape(len(values), PLACES, -1)


def exact(node: Node) -> bool:
    """Whether 64 times the accumulator stays inside int32; U is within 16 * 9 * 128."""
    sums = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
    bias = np.abs(channel_consts(node)["bias"].astype(np.int64))
    return int((sums * 128 + bias).max()) << _SHIFT < INT32_LIMIT


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the output is cut: `rows` x `columns` tiles of 4x4, `strip` rows of them at a time."""

    rows: int
    columns: int
    strip: int

    @staticmethod
    def of(shape: Shape) -> Tiles:
        """The most rows that divide all of them."""
        rows, columns = -(-shape.out_height // SIZE), -(-shape.out_width // SIZE)
        fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * columns <= _STRIP]
        return Tiles(rows, columns, max(fitting, default=1))

    @property
    def count(self) -> int:
        """Tiles of a strip."""
        return self.strip * self.columns


def _padded(shape: Shape) -> Shape:
    """The shape with the padding that whole tiles read."""
    tiles, (top, left, _, _) = Tiles.of(shape), shape.pads
    bottom, right = SIZE * tiles.rows + 2 - shape.height - top, SIZE * tiles.columns + 2 - shape.width - left
    return replace(shape, pads=(top, left, bottom, right))


def _patches_at(shape: Shape) -> int:
    """Byte of the workspace where the transformed patches begin."""
    return -(-image_codes(_padded(shape)) * 2 // 64) * 64


def _sums_at(shape: Shape) -> int:
    """Byte of the workspace where the sums of 16 channels begin."""
    return _patches_at(shape) + Tiles.of(shape).count * shape.channels * PLACES * 2


@dataclass(frozen=True, slots=True)
class WinogradRow(WideCopying):
    """The row of one weight format."""

    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """3x3, stride 1, no dilation or groups, channels in multiples of 8 and 4, weights not large, sums proven."""
        if node.format != self.format:
            return False
        shape = Shape.of(graph, node)
        plain = (shape.kernel, shape.stride, shape.dilation, shape.groups) == ((3, 3), (1, 1), (1, 1), 1)
        if not plain or PLACES * shape.channels * shape.out_channels * 2 > _MOST_WEIGHTS:
            return False
        return shape.channels % _EIGHT == 0 == shape.out_channels % QUAD and exact(node)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Transforms, products and inverse transforms of all tiles; weights are read once per strip."""
        shape, tiles = Shape.of(graph, node), Tiles.of(Shape.of(graph, node))
        quads, c = shape.out_channels // QUAD, shape.channels
        product = sum(
            n * count * (c * (t * q + t / _EIGHT + q / 4) + t * q + 8)
            for t, n in cut(tiles.count, _TILES)
            for q, count in cut(quads, _QUADS)
        )
        inverse = quads * (300.0 + 110.0 * has_residual(node))
        weights = PLACES * c * shape.out_channels * 2 / _STREAMED
        each = c / _EIGHT * 300 + inverse
        strips = tiles.rows // tiles.strip
        return strips * (PLACES * product + weights + tiles.count * each) + 2 * copy_cost(_padded(shape))

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The padded image, and of one strip the transformed patches and the sums of 16 channels."""
        shape = Shape.of(graph, node)
        return _sums_at(shape) + Tiles.of(shape).count * _QUADS * PLACES * QUAD * 4

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """U by block of 16 output channels, place, input channel; 576 times the bias; half the multipliers."""
        consts, u = channel_consts(node), transformed(node.values)
        parts, start = [], 0
        for quads, count in cut(len(u) // QUAD, _QUADS):
            wide = quads * QUAD
            some = u[start : start + count * wide].reshape(count, wide, PLACES, -1)
            parts.append(some.transpose(0, 2, 3, 1).reshape(-1))
            start += count * wide
        bias = consts["bias"].astype(np.int64) * 576
        return {
            "weights": np.concatenate(parts).astype(np.int16),
            "bias": bias.astype(np.uint64).astype(np.uint32).view(np.int32),  # modulo 2^32
            "multiplier": np.ascontiguousarray(consts["multiplier"] >> 1),
        }

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then strip by strip."""
        return _Writer(graph, node).code()


class _Writer:
    """Writes one function of a WinogradRow."""

    def __init__(self, graph: LoweredGraph, node: Node) -> None:
        self.node, self.shape = node, Shape.of(graph, node)
        self.tiles = Tiles.of(self.shape)
        self.source = s = opened(node, True, "int16", weights="int16")
        s.view("S", "P", "int32")
        s.integer("nothing", 0)
        self.stage = Stage(s, node)
        self.stage.words()
        for name, value in (("four", 4), ("eight", 8), ("ninth", _NINTH)):
            s.integer(name, value)
        s.local("acc", QUAD * _TILES * _QUADS)

    def code(self) -> Code:
        """The whole function."""
        s, tiles, quads = self.source, self.tiles, self.shape.out_channels // QUAD
        copy_image(s, _padded(self.shape), "int16")
        with s.block(f"for strip in range({s.turns(tiles.rows // tiles.strip)}):"):
            with s.block(f"for row in range({s.turns(tiles.strip)}):"), s.block(
                f"for column in range({s.turns(tiles.columns)}):"
            ):  # fmt: skip
                self._transform()
            start = 0
            for some, count in cut(quads, _QUADS):
                with s.block(f"for o in range({s.turns(count)}):"):
                    self._block(f"({start} + o * {some})", some)
                start += some * count
        return s.code()

    def _block(self, quad: str, quads: int) -> None:
        """Sums of up to 16 channels of a strip, and their codes."""
        s = self.source
        weights = s.let(f"{quad} * {QUAD * PLACES * self.shape.channels}")
        with s.block(f"for place in range({s.turns(PLACES)}):"):
            first = 0
            for tiles, count in cut(self.tiles.count, _TILES):
                with s.block(f"for t in range({s.turns(count)}):"):
                    self._product(weights, quads, f"({first} + t * {tiles})", tiles)
                first += tiles * count
        with s.block(f"for row in range({s.turns(self.tiles.strip)}):"), s.block(
            f"for column in range({s.turns(self.tiles.columns)}):"
        ), s.block(f"for q in range({s.turns(quads)}):"):  # fmt: skip
            self._inverse(f"({quad} + q)", quads)

    # ------------------------------------------------------------------------------------------- the three steps
    def _transform(self) -> None:
        """B^T d B of one tile, eight channels at a time."""
        s, c = self.source, self.shape.channels
        wide = row_codes(_padded(self.shape), True)
        with s.block(f"for k in range({s.turns(c // _EIGHT)}):"):
            y = f"(strip * {self.tiles.strip} + row)"
            base = s.let(f"{y} * {SIZE * wide} + column * {SIZE * c} + k * {_EIGHT}")
            tile = f"(row * {self.tiles.columns} + column)"
            to = s.let(f"{_patches_at(self.shape) // 2} + ({tile} * {c // _EIGHT} + k) * {PLACES * _EIGHT}")
            columns = [
                self._differences([f"P[{ramp(f'{base} + {i * wide + j * c}', _EIGHT)}]" for i in range(PATCH)])
                for j in range(PATCH)
            ]
            for i in range(PATCH):
                for j, value in enumerate(self._differences([column[i] for column in columns])):
                    s(f"P[{ramp(f'{to} + {(PATCH * i + j) * _EIGHT}', _EIGHT)}] = {value}")

    def _differences(self, values: list[str]) -> list[str]:
        """B^T d of six values; those that are added four times by `mla`."""
        bind, four = self.stage.bind, f'T.broadcast(T.cast(four, "int16"), {_EIGHT})'
        d = [bind(v) for v in values]
        even, odd = bind(f"{d[4]} - {d[2]}"), bind(f"{d[3]} - {d[1]}")
        twice = bind(f"{odd} + {odd}")
        a, b = bind(f"{d[4]} - {d[2]} * {four}"), bind(f"{d[3]} - {d[1]} * {four}")
        ends = f"{even} + ({d[0]} - {d[2]}) * {four}", f"({d[5]} - {d[3]}) - {odd} * {four}"
        middle = f"{a} + {b}", f"{a} - {b}", f"{even} + {twice}", f"{even} - {twice}"
        return [bind(v) for v in (ends[0], *middle, ends[1])]

    def _product(self, weights: str, quads: int, tile: str, tiles: int) -> None:
        """Sums of one place: a few tiles by up to 16 channels."""
        s, c = self.source, self.shape.channels
        for index in range(tiles * quads):
            s(f"{acc(index)} = T.broadcast(0, {QUAD})")
        x = s.let(f"{_patches_at(self.shape) // 2} + {tile} * {c * PLACES} + place * {_EIGHT}")
        # t * nothing: or LLVM would load weights before the loop over tiles, and run out of registers
        w = s.let(f"{weights} + place * {c * quads * QUAD} + t * nothing")
        size = 2 * _EIGHT if c % (2 * _EIGHT) == 0 and c > 2 * _EIGHT else _EIGHT  # at a time, or LLVM loads too early
        self._multiply(x, w, tiles, quads, size)
        if c > size:
            with s.block(f"for k in range({s.turns(c // size - 1)}):"):
                at = f"({size} + k * {size})"
                self._multiply(f"{x} + {at} * {PLACES}", f"{w} + {at} * {quads * QUAD}", tiles, quads, size)
        sums = s.let(f"{_sums_at(self.shape) // 4} + {tile} * {quads * PLACES * QUAD} + place * {QUAD}")
        for t in range(tiles):
            for v in range(quads):
                s(f"S[{ramp(f'{sums} + {(t * quads + v) * PLACES * QUAD}', QUAD)}] = {acc(t * quads + v)}")

    def _multiply(self, x: str, w: str, tiles: int, quads: int, channels: int) -> None:
        """Add the products of some input channels."""
        s, bind, c = self.source, self.stage.bind, self.shape.channels
        x, w = s.let(x), s.let(w)
        for k in range(0, channels, _EIGHT):
            codes = [bind(f"P[{ramp(f'{x} + {t * c * PLACES + k * PLACES}', _EIGHT)}]") for t in range(tiles)]
            for lane in range(_EIGHT):
                at = f"{w} + {(k + lane) * quads * QUAD}"
                for v, weight in enumerate(self._weights(at, quads)):
                    for t in range(tiles):
                        one = f"T.broadcast({shuffle([codes[t]], [lane])}, {QUAD})"
                        a = acc(t * quads + v)
                        s(f"{a} = {a} + {neon('int32x4', 'smull.v4i32', weight, one)}")

    def _weights(self, at: str, quads: int) -> list[str]:
        """Weights of one input channel for each quad, loaded two quads at a time."""
        found: list[str] = []
        for v in range(0, quads - 1, 2):
            both = self.stage.bind(f"W[{ramp(f'{at} + {v * QUAD}', 2 * QUAD)}]")
            found += [half(both, h, 2 * QUAD) for h in (0, 1)]
        if quads % 2:
            found.append(self.stage.bind(f"W[{ramp(f'{at} + {(quads - 1) * QUAD}', QUAD)}]"))
        return found

    def _inverse(self, quad: str, quads: int) -> None:
        """A^T M A of four channels of one tile, and its codes, four pixels of a row at a time."""
        s, shape, bind = self.source, self.shape, self.stage.bind
        tile = f"(row * {self.tiles.columns} + column)"
        base = s.let(f"{_sums_at(shape) // 4} + ({tile} * {quads} + q) * {PLACES * QUAD}")
        columns = []
        for j in range(PATCH):
            column = [bind(f"S[{ramp(f'{base} + {(PATCH * i + j) * QUAD}', QUAD)}]") for i in range(PATCH)]
            if j == 1:  # in all outputs, once
                column[1] = bind(f"{column[1]} + B[{ramp(f'{quad} * {QUAD}', QUAD)}]")
            columns.append(self._totals(column))
        multiplier = bind(f"M[{ramp(f'{quad} * {QUAD}', QUAD)}]")
        for i in range(SIZE):
            sums = [bind(f"T.shift_right({v} * T.broadcast(ninth, {QUAD}), T.broadcast({_SHIFT}, {QUAD}))")
                    for v in self._totals([column[i] for column in columns])]  # fmt: skip
            y = f"((strip * {self.tiles.strip} + row) * {SIZE} + {i})"
            with s.block(f"if {y} < {shape.out_height}:") if shape.out_height % SIZE else nullcontext():
                self._row(sums, multiplier, y, quad)

    def _totals(self, m: list[str]) -> list[str]:
        """A^T m of six values."""
        bind = self.stage.bind
        four, eight = (f"T.broadcast({name}, {QUAD})" for name in ("four", "eight"))
        p, q, r, t = (bind(v) for v in (f"{m[1]} + {m[2]}", f"{m[1]} - {m[2]}", f"{m[3]} + {m[4]}", f"{m[3]} - {m[4]}"))
        last = f"{q} + {t} * {eight} + ({m[5]} + {m[5]})"
        return [bind(v) for v in (f"{m[0]} + {p} + {r}", f"{q} + ({t} + {t})", f"{p} + {r} * {four}", last)]

    def _row(self, sums: list[str], multiplier: str, y: str, quad: str) -> None:
        """Four pixels; where tiles reach over the image, those outside are read inside and not written."""
        shape, ragged = self.shape, self.shape.out_width % SIZE != 0
        at, valid = [], []
        for j in range(SIZE):
            x = f"column * {SIZE} + {j}"
            valid.append(f"{x} < {shape.out_width}" if ragged else "")
            inside = f"T.min({x}, {shape.out_width - 1})" if ragged else f"({x})"
            at.append(self.source.let(f"({y} * {shape.out_width} + {inside}) * {shape.out_channels // QUAD} + {quad}"))
        self.stage.apart(sums, multiplier, at, valid)


# 4-bit weights were chosen for their size, and have rows that look them up while they multiply
_row, _name = WinogradRow(FORMATS["int8"]), "conv2d_s8_s8_winograd4x4__neon"
KERNELS.add(
    _name,
    Kernel(
        _name, "conv2d", "s8", "neon", _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
        in_place=_row.in_place, notes="Winograd", tags={"form": "winograd", "extra_flash": "8"},
    ),
)  # fmt: skip
