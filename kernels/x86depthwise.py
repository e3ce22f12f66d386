"""Depthwise convolution for AVX2: two taps of 16 channels interleaved for `vpmaddwd`.

Codes are widened when the image is copied. Two rows of a column are interleaved once for every pixel of a tile that the
column is a tap of; taps of an odd last row are paired along the row. The channels of two sums lie as x86.Stage wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape, is_depthwise
from .imagecopy import WideCopying, copy_cost, copy_image, opened, row_codes
from .snippets import channel_consts
from .vectors import ramp, shuffle
from .x86 import LANES, PairProduct, intrinsic

_TILE = 3  # pixels along a row at a time
_MOST_TAPS = 64
_FULL = 2 * LANES  # channels of a block; a last one of up to eight is half as wide
_PRODUCT = PairProduct()
Tap = tuple[int, int]  # row, column of the window


def pairs_of(kernel: tuple[int, int]) -> list[tuple[Tap, Tap | None]]:
    """The taps of a window, two at a time: rows of one column, then columns of an odd last row."""
    rows, columns = kernel
    found: list[tuple[Tap, Tap | None]] = [((y, x), (y + 1, x)) for x in range(columns) for y in range(0, rows - 1, 2)]
    if rows % 2:
        last = rows - 1
        found += [((last, x), (last, x + 1) if x + 1 < columns else None) for x in range(0, columns, 2)]
    return found


@dataclass(frozen=True, slots=True)
class DepthwiseRow(WideCopying):
    """The row of one weight format."""

    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise with multiplier 1 in this format; with a residual channels in multiples of 8."""
        if node.format != self.format or not is_depthwise(graph, node):
            return False
        shape = Shape.of(graph, node)
        fits = shape.kernel[0] * shape.kernel[1] <= _MOST_TAPS
        return fits and (shape.channels % LANES == 0 or not has_residual(node))

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Vectors, each with its pairs of taps, and the output stage."""
        shape = Shape.of(graph, node)
        pairs = len(pairs_of(shape.kernel))
        blocks = -(-shape.channels // _FULL)
        return shape.pixels * blocks * (pairs * 6.0 + 2 * _PRODUCT.after(node) + 6) + copy_cost(shape)

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights of pairs of taps by block, pair, sum; bias and multipliers in the order of the sums."""
        shape, consts = Shape.of(graph, node), channel_consts(node)
        taps = node.values.reshape(shape.channels, *shape.kernel).astype(np.int16)
        order = _PRODUCT.order(-(-shape.channels // LANES))
        padded = np.zeros((len(order), *shape.kernel), np.int16)
        padded[: shape.channels] = taps
        padded = padded[order]
        weights = np.zeros((len(pairs_of(shape.kernel)), len(order), 2), np.int16)
        for k, pair in enumerate(pairs_of(shape.kernel)):
            for i, tap in enumerate(pair):
                if tap is not None:
                    weights[k, :, i] = padded[:, tap[0], tap[1]]
        parts = [weights[:, start : start + _FULL].reshape(-1) for start in range(0, len(order), _FULL)]
        table = np.zeros((2, len(order)), np.int32)
        table[:, : shape.channels] = consts["bias"], consts["multiplier"]
        table = table[:, order]
        return {"weights": np.concatenate(parts), "bias": table[0].copy(), "multiplier": table[1].copy()}

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels, rows, pixels."""
        return _Writer(graph, node).code()


class _Writer:
    """Writes one function of a DepthwiseRow."""

    def __init__(self, graph: LoweredGraph, node: Node) -> None:
        self.shape = Shape.of(graph, node)
        self.pairs = pairs_of(self.shape.kernel)
        self.source = s = opened(node, True, "int16", weights="int16")
        self.stage = _PRODUCT.stage(s, node)
        s.local("acc", _TILE * _FULL)

    def code(self) -> Code:
        """The whole function."""
        s, (blocks, rest) = self.source, divmod(self.shape.channels, _FULL)
        copy_image(s, self.shape, "int16")
        if blocks:
            with s.block(f"for o in range({self.source.turns(blocks)}):"):
                self._rows("o", _FULL)
        if rest:
            self._rows(str(blocks), rest)
        return s.code()

    def _rows(self, o: str, codes: int) -> None:
        """All pixels of a block of channels, `codes` of which are stored."""
        s, width = self.source, self.shape.out_width
        tile = min(_TILE, width)
        with s.block(f"for y in range({self.source.turns(self.shape.out_height)}):"):
            with s.block(f"for x in range({self.source.turns(width // tile)}):"):
                self._tile(o, f"x * {tile}", tile, codes)
            if width % tile:
                with s.block(f"for x in range({self.source.turns(1)}):"):
                    self._tile(o, f"{width // tile * tile} + x", width % tile, codes)

    def _tile(self, o: str, x: str, count: int, codes: int) -> None:
        s, shape = self.source, self.shape
        lanes = _FULL if codes > LANES else LANES
        step = shape.stride[1] * shape.channels
        row = row_codes(shape, True)
        base = s.let(f"y * {shape.stride[0] * row} + ({x}) * {step} + {o} * {_FULL}")
        weights = s.let(f"{o} * {len(self.pairs) * _FULL * 2}")
        self._clear(o, count, lanes)
        bound: dict[tuple[int, int, int], str] = {}
        for k, pair in enumerate(self.pairs):
            factors = [self.stage.bind(f"W[{ramp(f'{weights} + {(2 * k + h) * lanes}', lanes)}]") for h in (0, 1)]
            for p in range(count):
                first, second = (
                    p * step + tap[0] * shape.dilation[0] * row + tap[1] * shape.dilation[1] * shape.channels
                    for tap in (pair[0], pair[1] or pair[0])
                )
                for h in (0, 1):
                    if (first, second, h) not in bound:
                        both = [f"P[{ramp(f'{base} + {at}', lanes)}]" for at in (first, second)]
                        bound[first, second, h] = self.stage.bind(_interleaved(both, h, lanes))
                    a = _acc(p, h, lanes)
                    s(f"{a} = {a} + {_products(bound[first, second, h], factors[h], lanes)}")
        self._outputs(o, x, count, codes, lanes)

    def _clear(self, o: str, count: int, lanes: int) -> None:
        for h in (0, 1):
            bias = self.stage.bind(f"B[{ramp(f'{o} * {_FULL} + {h * lanes // 2}', lanes // 2)}]")
            for p in range(count):
                self.source(f"{_acc(p, h, lanes)} = {bias}")

    def _outputs(self, o: str, x: str, count: int, codes: int, lanes: int) -> None:
        shape = self.shape
        groups = lanes // LANES
        multipliers = [f"M[{ramp(f'{o} * {_FULL} + {g * LANES}', LANES)}]" for g in range(groups)]
        for p in range(count):
            halves = [_acc(p, h, lanes) for h in (0, 1)]
            sums = halves if groups == 2 else [shuffle(halves, range(LANES))]
            at = self.source.let(f"(y * {shape.out_width} + {x} + {p}) * {shape.channels} + {o} * {_FULL}")
            self.stage(sums, multipliers, at, codes)


def _acc(pixel: int, index: int, lanes: int) -> str:
    """Half the sums of a pixel: of 16 channels in x86's order, of eight as they are."""
    return f"acc[{ramp(str(pixel * _FULL + index * lanes // 2), lanes // 2)}]"


def _interleaved(both: list[str], upper: int, lanes: int) -> str:
    """Pairs of the first or second four channels of every eight (`vpunpcklwd`, `vpunpckhwd`)."""
    channels = [start + i for start in range(4 * upper, lanes, 8) for i in range(4)]
    return shuffle(both, [c + lanes * second for c in channels for second in (0, 1)])


def _products(codes: str, weights: str, lanes: int) -> str:
    """int32 sums of pairs."""
    name = "x86.avx2.pmadd.wd" if lanes == _FULL else "x86.sse2.pmadd.wd"
    return intrinsic(f"int32x{lanes // 2}", name, codes, weights)


for _format in FORMATS.values():
    _row, _name = DepthwiseRow(_format), f"conv2d_s8_{_format.short}_dw1x16__x86"
    KERNELS.add(
        _name,
        Kernel(
            _name, "conv2d", _format.short, "x86", _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
            in_place=_row.in_place, notes="depthwise", tags={"extra_flash": f"20/{_format.bits}"},
        ),
    )  # fmt: skip
