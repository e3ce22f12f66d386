"""Depthwise convolution for AVX512-VNNI: 64 outputs at a time, up to four rows of a window by one `vpdpbusd`.

The bytes of up to four rows of a column are interleaved, once for every pixel of a tile that the column is a tap of.
What interleaving does to the order of channels, packing the sums undoes. Of 64 channels or more a vector is a part of a
pixel's; of 8, 16 and 32 it is neighbouring pixels, whose codes are picked out of two vectors where the stride is 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, Int8, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape, is_depthwise
from .imagecopy import Copying, copy_cost, copy_image, opened, row_codes
from .snippets import channel_consts, cut
from .vectors import as_type, ramp, shuffle
from .x86 import acc, intrinsic
from .x86vnni import LANES, OFFSET, QUAD, ByteProduct

_BLOCK = QUAD * LANES  # outputs of a vector of codes
_TILE = 6  # pixels along a row at a time
_MOST_TAPS = 64
_PRODUCT = ByteProduct()


def starts_of(codes: int) -> list[int]:
    """Where blocks of 64 codes begin; a last one that is not whole overlaps the one before it."""
    return [min(start, codes - _BLOCK) for start in range(0, codes, _BLOCK)]


@dataclass(frozen=True, slots=True)
class DepthwiseRow(Copying):
    """The row of one weight format."""

    format: WeightFormat

    def copied(self, shape: Shape) -> bool:
        """Always: as uint8."""
        return True

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise with multiplier 1; 64 channels or more, or 8, 16, 32 in rows of 64 codes or more.

        Blocks that overlap write some codes twice, which a residual in the output's place does not allow.
        """
        if node.format != self.format or not is_depthwise(graph, node):
            return False
        shape = Shape.of(graph, node)
        if shape.kernel[0] * shape.kernel[1] > _MOST_TAPS:
            return False
        together = shape.channels if shape.channels >= _BLOCK else shape.out_width * shape.channels
        narrow = shape.channels >= _BLOCK or (shape.channels in (8, 16, 32) and shape.stride[1] <= 2)
        return narrow and together >= _BLOCK and (together % _BLOCK == 0 or not has_residual(node))

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Vectors: interleaving, products and the output stage."""
        shape = Shape.of(graph, node)
        fours = -(-shape.kernel[0] // QUAD) * shape.kernel[1]
        vectors = -(-shape.pixels * shape.channels // _BLOCK)
        return vectors * (fours * 16.0 + QUAD * _PRODUCT.after(node) + 8) + copy_cost(shape)

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights by block, column, four rows, accumulator; bias and multipliers in the order of the accumulators."""
        shape, consts = Shape.of(graph, node), channel_consts(node, OFFSET)
        taps = node.values.reshape(shape.channels, *shape.kernel)
        places = [c for start in _channels(shape) for c in (start + np.array(_PRODUCT.order(QUAD))) % shape.channels]
        multiplier = _PRODUCT.multipliers(node, consts["multiplier"])
        return {
            "weights": _packed(taps[places]), "bias": consts["bias"][places], "multiplier": multiplier[places],
        }  # fmt: skip

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels, rows, vectors of codes."""
        return _Writer(graph, node).code()


def _channels(shape: Shape) -> list[int]:
    """The first channel of every block."""
    return starts_of(shape.channels) if shape.channels >= _BLOCK else [0]


def _packed(taps: Int8) -> Int8:
    """Taps (places of all blocks, rows, columns) in the order they are read."""
    places, rows, columns = taps.shape
    padded = np.zeros((places, -(-rows // QUAD) * QUAD, columns), np.int8)
    padded[:, :rows] = taps
    split = padded.reshape(places // _BLOCK, QUAD, LANES, -1, QUAD, columns)  # block, sum, lane, four, row, column
    return np.ascontiguousarray(split.transpose(0, 5, 3, 1, 2, 4)).reshape(-1)


class _Writer:
    """Writes one function of a DepthwiseRow."""

    def __init__(self, graph: LoweredGraph, node: Node) -> None:
        self.shape = Shape.of(graph, node)
        self.row = row_codes(self.shape, True)
        self.source = s = opened(node, True, "uint8")
        self.residual = has_residual(node)
        self.stage = _PRODUCT.stage(s, node)
        self.fours = [range(i, min(i + QUAD, self.shape.kernel[0])) for i in range(0, self.shape.kernel[0], QUAD)]
        s.local("acc", _TILE * _BLOCK)

    def code(self) -> Code:
        """The whole function."""
        s, shape = self.source, self.shape
        copy_image(s, shape, "uint8")
        if shape.channels < _BLOCK:
            whole, rest = divmod(shape.out_width * shape.channels, _BLOCK)
            with s.block(f"for y in range({s.turns(shape.out_height)}):"):
                with s.block(f"for x in range({s.turns(whole)}):"):
                    self._tile("0", "0", 1, f"x * {_BLOCK}")
                if rest:
                    self._tile("0", "0", 1, str(whole * _BLOCK + rest - _BLOCK))
            return s.code()
        whole, rest = divmod(shape.channels, _BLOCK)
        with s.block(f"for o in range({s.turns(whole)}):"):
            self._rows("o", f"o * {_BLOCK}")
        if rest:
            self._rows(str(whole), str(shape.channels - _BLOCK))
        return s.code()

    def _rows(self, block: str, channel: str) -> None:
        """All pixels of a block of channels."""
        s, shape, start = self.source, self.shape, 0
        tiles = -(-shape.out_width // _TILE)
        with s.block(f"for y in range({s.turns(shape.out_height)}):"):
            for pixels, count in cut(shape.out_width, -(-shape.out_width // tiles)):
                with s.block(f"for x in range({s.turns(count)}):"):
                    self._tile(block, channel, pixels, f"({start} + x * {pixels}) * {shape.channels}")
                start += pixels * count

    def _tile(self, block: str, channel: str, pixels: int, at: str) -> None:
        """Some pixels of a block, or 64 codes of neighbouring ones; `at`: of the output, in its row."""
        s, shape = self.source, self.shape
        base = s.let(f"y * {shape.stride[0] * self.row} + {at} * {shape.stride[1]} + {channel}")
        weights = s.let(f"{block} * {shape.kernel[1] * len(self.fours) * _BLOCK * QUAD}")
        for p in range(pixels):
            for v in range(QUAD):
                s(f"{acc(p * QUAD + v, LANES)} = B[{ramp(f'{block} * {_BLOCK} + {v * LANES}', LANES)}]")
        users: dict[int, list[tuple[int, int]]] = {}  # column of the image from the tile's first -> pixel, tap
        for p in range(pixels):
            for kx in range(shape.kernel[1]):
                users.setdefault(p * shape.stride[1] + kx * shape.dilation[1], []).append((p, kx))
        for column, taps in sorted(users.items()):
            for i, rows in enumerate(self.fours):
                codes = self._interleaved(f"{base} + {column * shape.channels}", rows)
                for p, kx in taps:
                    w = f"{weights} + {(kx * len(self.fours) + i) * _BLOCK * QUAD}"
                    for v in range(QUAD):
                        a, factors = acc(p * QUAD + v, LANES), f"W[{ramp(f'{w} + {v * _BLOCK}', _BLOCK)}]"
                        s(f"{a} = {intrinsic('int32x16', 'x86.avx512.vpdpbusd.512', a, codes[v], factors)}")
        multipliers = [f"M[{ramp(f'{block} * {_BLOCK} + {v * LANES}', LANES)}]" for v in range(QUAD)]
        for p in range(pixels):
            place = s.let(f"y * {shape.out_width * shape.channels} + {at} + {p * shape.channels} + {channel}")
            other = self.stage.bind(f"R[{ramp(place, _BLOCK)}]") if self.residual else ""
            sums = [acc(p * QUAD + v, LANES) for v in range(QUAD)]
            s(f"Y[{ramp(place, _BLOCK)}] = {self.stage.codes(sums, multipliers, other)}")

    def _interleaved(self, at: str, rows: range) -> list[str]:
        """Four vectors: of every place the codes of up to four rows, zeros for what is missing."""
        codes = [self._codes(f"{at} + {ky * self.shape.dilation[0] * self.row}") for ky in rows]
        codes += ["T.broadcast(T.uint8(0), 64)"] * (QUAD - len(codes))
        bind = self.stage.bind
        pairs = [[bind(as_type("int16x32", shuffle(codes[i : i + 2], _unpacked(16, half)))) for i in (0, 2)]
                 for half in (0, 1)]  # fmt: skip
        return [bind(as_type("uint8x64", shuffle(pair, _unpacked(8, half)))) for pair in pairs for half in (0, 1)]

    def _codes(self, at: str) -> str:
        """64 codes of the image, the next pixels' where a vector holds several."""
        first, channels = self.stage.bind(f"P[{ramp(at, _BLOCK)}]"), self.shape.channels
        if channels >= _BLOCK or self.shape.stride[1] == 1:
            return first
        second = self.stage.bind(f"P[{ramp(f'{at} + {_BLOCK}', _BLOCK)}]")
        return self.stage.bind(shuffle([first, second], [2 * p + c for p in range(0, _BLOCK, channels)
                                                         for c in range(channels)]))  # fmt: skip


def _unpacked(lanes: int, half: int) -> list[int]:
    """Lower or upper halves of every 128 bits of two vectors, in turn; `lanes`: of 128 bits."""
    total = lanes * 4
    places = [start + i for start in range(half * lanes // 2, total, lanes) for i in range(lanes // 2)]
    return [place + total * second for place in places for second in (0, 1)]


for _format in FORMATS.values():
    _row, _name = DepthwiseRow(_format), f"conv2d_s8_{_format.short}_dw1x64__vnni"
    KERNELS.add(
        _name,
        Kernel(
            _name, "conv2d", _format.short, "vnni", _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
            in_place=_row.in_place, notes="depthwise", tags={"extra_flash": f"14/{_format.bits}"},
        ),
    )  # fmt: skip
