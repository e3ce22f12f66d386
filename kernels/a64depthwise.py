"""Depthwise convolution for AArch64: 16 channels at a time, the taps of a column transposed for `sdot`.

With dot product, up to four rows of a column are interleaved so that the taps of a channel stand side by side; a column
serves every pixel that it is a tap of. Armv8.0 multiplies tap by tap and adds as many products in int16 as the layer's
weights allow. Where 16 is a multiple of the channels, a vector holds several pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, Int8, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .a64 import acc
from .a64out import QUAD, Stage, neon
from .conv import Shape, is_depthwise
from .imagecopy import Copying, copy_cost, copy_image, opened, row_codes
from .product import CHUNK
from .snippets import channel_consts
from .vectors import ramp, shuffle

_TILE = 3  # vectors along a row at a time
_INT16 = 255  # sum of |w| up to which products with codes stay inside int16
_MOST_TAPS = 64


@dataclass(frozen=True, slots=True)
class Lanes:
    """How channels and pixels lie in vectors: `blocks` of 16 channels, `vectors` of each along a row."""

    folded: bool  # a vector holds 16 / channels pixels
    blocks: int
    vectors: int
    rest: int  # codes of a further vector, of pixels where folded, else of channels
    step: int  # bytes from a vector's input to the next one's

    @staticmethod
    def of(shape: Shape) -> Lanes:
        """Fold where pixels lie side by side and fill vectors."""
        if shape.channels < CHUNK and CHUNK % shape.channels == 0 and shape.stride[1] == 1:
            vectors, rest = divmod(shape.out_width * shape.channels, CHUNK)
            return Lanes(True, 1, vectors, rest, CHUNK)
        blocks, rest = divmod(shape.channels, CHUNK)
        return Lanes(False, blocks, shape.out_width, rest, shape.stride[1] * shape.channels)

    def spread(self, values: NDArray[Any], channels: int) -> NDArray[Any]:
        """(..., channels) as (..., vectors of 16 lanes x 16)."""
        if self.folded:
            return np.tile(values, (1,) * (values.ndim - 1) + (CHUNK // channels,))
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -channels % CHUNK)])


def groups_of(taps: Int8) -> tuple[int, ...]:
    """How many taps (taps, channels) in a row may be added in int16, greedily; no weight is -128."""
    sizes: list[int] = []
    total = np.zeros(taps.shape[1], np.int64)
    for tap in np.abs(taps.astype(np.int64)):
        if sizes and int((total + tap).max()) <= _INT16:
            sizes[-1] += 1
            total += tap
        else:
            sizes.append(1)
            total = tap
    return tuple(sizes)


@dataclass(frozen=True, slots=True)
class DepthwiseRow(Copying):
    """One row: a feature level and a weight format."""

    isa: str
    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise with multiplier 1 in this format, without residual; for Armv8.0 no weight of -128."""
        if node.format != self.format or not is_depthwise(graph, node) or has_residual(node):
            return False
        kernel = Shape.of(graph, node).kernel
        fits = kernel[0] * kernel[1] <= _MOST_TAPS
        return fits and (self.isa != "neon" or int(node.values.min(initial=0)) > -128)

    def copied(self, shape: Shape) -> bool:
        """Whether the image is copied: for its padding, or since the last vector of codes would read on."""
        return any(shape.pads) or shape.channels % CHUNK != 0

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Vectors, each with its columns or taps, and the output stage."""
        shape = Shape.of(graph, node)
        lanes, (kh, kw) = Lanes.of(shape), shape.kernel
        if self.isa == "dotprod":
            columns = kw if shape.stride[1] >= kw else shape.stride[1] + (kw - 1) / _TILE
            each = -(-kh // 4) * (kw * 4 + columns * 11)
        else:
            each = kh * kw * 3.0 + 4 * len(groups_of(_taps(node)))
        further = bool(lanes.rest) * (1 if lanes.folded else lanes.vectors)
        count = shape.out_height * (lanes.vectors * lanes.blocks + further)
        return count * (each + 20) + (copy_cost(shape) if self.copied(shape) else 0.0)

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights, bias and half the multipliers in vectors of 16 channels."""
        shape, consts = Shape.of(graph, node), channel_consts(node)
        lanes, c = Lanes.of(shape), shape.channels
        taps = lanes.spread(_taps(node), c).reshape(*shape.kernel, -1, CHUNK)
        if self.isa == "dotprod":
            rows = -shape.kernel[0] % 4
            taps = np.pad(taps, [(0, rows), (0, 0), (0, 0), (0, 0)])
            cut = taps.reshape(-1, 4, *taps.shape[1:])  # groups, rows, columns, blocks, lanes
            packed = cut.transpose(3, 2, 0, 4, 1)
        else:
            packed = taps.transpose(2, 0, 1, 3)
        return {
            "weights": np.ascontiguousarray(packed).reshape(-1),
            "bias": lanes.spread(consts["bias"], c), "multiplier": lanes.spread(consts["multiplier"] >> 1, c),
        }  # fmt: skip

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels, rows, vectors."""
        return _Writer(self, graph, node).code()


def _taps(node: Node) -> Int8:
    """The weights (taps, channels)."""
    values: Int8 = np.ascontiguousarray(node.values.reshape(len(node.values), -1).T)
    return values


class _Writer:
    """Writes one function of a DepthwiseRow."""

    def __init__(self, row: DepthwiseRow, graph: LoweredGraph, node: Node) -> None:
        self.row, self.shape = row, Shape.of(graph, node)
        self.lanes, self.copied = Lanes.of(self.shape), row.copied(self.shape)
        self.groups = groups_of(_taps(node))
        self.source = s = opened(node, self.copied)
        self.stage = Stage(s, node)
        s.local("acc", _TILE * CHUNK)

    def code(self) -> Code:
        """The whole function."""
        s, lanes = self.source, self.lanes
        if self.copied:
            copy_image(s, self.shape)
        if lanes.blocks and lanes.vectors:
            with s.block(f"for o in range({self.source.turns(lanes.blocks)}):"):
                self._rows("o", lanes.vectors, CHUNK)
        if lanes.rest and not lanes.folded:
            self._rows(str(lanes.blocks), lanes.vectors, lanes.rest)
        elif lanes.rest:
            self._rows("0", 1, lanes.rest, lanes.vectors)
        return s.code()

    def _rows(self, o: str, vectors: int, codes: int, first: int = 0) -> None:
        """All vectors of a block of channels, `codes` of which are stored."""
        s, tile = self.source, min(_TILE, vectors)
        whole, rest = divmod(vectors, tile)
        with s.block(f"for y in range({self.source.turns(self.shape.out_height)}):"):
            with s.block(f"for x in range({self.source.turns(whole)}):"):
                self._tile(o, f"({first} + x * {tile})", tile, codes)
            if rest:
                with s.block(f"for x in range({self.source.turns(1)}):"):
                    self._tile(o, f"({first + whole * tile} + x)", rest, codes)

    def _tile(self, o: str, x: str, count: int, codes: int) -> None:
        (shape, lanes), kw = (self.shape, self.lanes), self.shape.kernel[1]
        base = f"y * {shape.stride[0] * row_codes(shape, self.copied)} + {x} * {lanes.step} + {o} * {CHUNK}"
        tap = shape.dilation[1] * shape.channels
        if self.row.isa != "dotprod":
            for v in range(count):
                self._clear(o, v)
                self._taps(f"{base} + {v * lanes.step}", o, v, tap)
                self._output(o, x, v, codes)
            return
        columns = sorted({v * lanes.step + k * tap for v in range(count) for k in range(kw)})
        for at in columns:
            uses = [(v, k) for v in range(count) for k in range(kw) if v * lanes.step + k * tap == at]
            for v, k in uses:
                if k == 0:
                    self._clear(o, v)
            self._column(f"{base} + {at}", o, uses)
            for v, k in uses:
                if k == kw - 1:
                    self._output(o, x, v, codes)

    def _clear(self, o: str, v: int) -> None:
        for q in range(4):
            self.source(f"{acc(v * 4 + q)} = B[{ramp(f'{o} * {CHUNK} + {q * QUAD}', QUAD)}]")

    def _load(self, at: str, row: int) -> str:
        view = "P" if self.copied else "X"
        step = self.shape.dilation[0] * row_codes(self.shape, self.copied)
        return f"{view}[{ramp(f'{at} + {row * step}', CHUNK)}]"

    def _column(self, at: str, o: str, uses: Sequence[tuple[int, int]]) -> None:
        """Add the products of one column of taps to the vectors it belongs to, as tap k of vector v."""
        kh, kw = self.shape.kernel
        groups = -(-kh // 4)
        for g in range(groups):
            rows = [self.stage.bind(self._load(at, min(4 * g + r, kh - 1))) for r in range(4)]
            quads = [self.stage.bind(q) for q in self._transposed(rows)]
            for v, k in uses:
                first = f"{o} * {kw * groups * 4 * CHUNK} + {(k * groups + g) * 4 * CHUNK}"
                for q in range(4):
                    weight = f"W[{ramp(f'{first} + {q * CHUNK}', CHUNK)}]"
                    a = acc(v * 4 + q)
                    self.source(f"{a} = {neon('int32x4', 'sdot.v4i32.v16i8', a, quads[q], weight)}")

    def _transposed(self, rows: list[str]) -> list[str]:
        """Four rows of 16 channels as four vectors of 4 channels with their four taps."""

        def zipped(a: str, b: str, half: int, size: int) -> str:
            lanes = [lane + other for i in range(16 // size // 2) for other in (0, 16)
                     for lane in range((half * 8 // size + i) * size, (half * 8 // size + i + 1) * size)]  # fmt: skip
            return shuffle([a, b], lanes)

        pairs = [[self.stage.bind(zipped(rows[i], rows[i + 1], h, 1)) for h in (0, 1)] for i in (0, 2)]
        return [zipped(pairs[0][h], pairs[1][h], half, 2) for h in (0, 1) for half in (0, 1)]

    def _taps(self, at: str, o: str, v: int, tap: int) -> None:
        """Armv8.0: every tap of vector v, products added in int16 as far as they fit."""
        (kh, kw), start = self.shape.kernel, 0
        for size in self.groups:
            halves: list[list[str]] = [[], []]
            for t in range(start, start + size):
                x = self._load(f"{at} + {t % kw * tap}", t // kw)
                w = f"W[{ramp(f'{o} * {kh * kw * CHUNK} + {t * CHUNK}', CHUNK)}]"
                for h in (0, 1):
                    parts = [shuffle([value], range(8 * h, 8 * h + 8)) for value in (x, w)]
                    halves[h].append(neon("int16x8", "smull.v8i16", *parts))
            for h in (0, 1):
                total = self.stage.bind(" + ".join(halves[h]))
                for q in (0, 1):
                    a = acc(v * 4 + 2 * h + q)
                    self.source(f'{a} = {a} + T.cast({shuffle([total], range(4 * q, 4 * q + 4))}, "int32x4")')
            start += size

    def _output(self, o: str, x: str, v: int, codes: int) -> None:
        shape, lanes = self.shape, self.lanes
        step = CHUNK if lanes.folded else shape.channels
        at = f"y * {shape.out_width * shape.channels} + ({x} + {v}) * {step} + {o} * {CHUNK}"
        quads = -(-codes // QUAD)
        multipliers = [f"M[{ramp(f'{o} * {CHUNK} + {q * QUAD}', QUAD)}]" for q in range(quads)]
        self.stage([acc(v * 4 + q) for q in range(quads)], multipliers, at, codes)


for _isa in ("neon", "dotprod"):
    for _format in FORMATS.values() if _isa != "neon" else (FORMATS["int8"],):
        _row, _name = DepthwiseRow(_isa, _format), f"conv2d_s8_{_format.short}_dw1x16__{_isa}"
        _tags = {} if _format.bits == 8 else {"extra_flash": f"8/{_format.bits}"}
        KERNELS.add(
            _name,
            Kernel(
                _name, "conv2d", _format.short, _isa, _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
                in_place=_row.in_place, notes="depthwise", tags=_tags,
            ),
        )  # fmt: skip
