"""Convolution and linear rows for AArch64: windows multiplied where they lie, a tile of pixels by quads of channels.

The image is copied once into the workspace with its padding around it (not at all where there is none), so a window is
`kernel height` contiguous runs of codes, for every stride. Weights are packed at build time in the order they are read;
those of other formats than int8 are expanded then. The tile is chosen per shape by counting instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .a64 import CHUNK, PRODUCTS, QUAD, Product, ramp
from .a64copy import Copying, copy_cost, copy_image, opened, row_bytes
from .a64out import Stage
from .conv import Shape
from .snippets import channel_consts

_ROLLED = 4  # chunks of a run: more become a loop
_FLAT = 200  # multiplications: windows of fewer are written out whole
_QUADS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Runs:
    """The contiguous runs of a window: `count` rows of `columns` runs of `codes` codes."""

    rows: int
    columns: int
    codes: int
    row_step: int  # bytes
    column_step: int

    @staticmethod
    def of(shape: Shape, copied: bool) -> Runs:
        """The taps of a row are one run unless they are dilated."""
        step = shape.dilation[0] * row_bytes(shape, copied)
        if shape.dilation[1] > 1 and shape.kernel[1] > 1:
            return Runs(shape.kernel[0], shape.kernel[1], shape.channels, step, shape.dilation[1] * shape.channels)
        return Runs(shape.kernel[0], 1, shape.kernel[1] * shape.channels, step, 0)

    @property
    def count(self) -> int:
        """Runs of a window."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Tiling:
    """`blocks` of `quads` quads of channels, then one of `rest` quads; (pixels, count) along a row for either."""

    quads: int
    blocks: int
    rest: int
    pixels: tuple[tuple[int, int], ...]
    rest_pixels: tuple[tuple[int, int], ...]
    cost: float


def _parts(product: Product, codes: int) -> list[int]:
    """Lengths of the pieces of a run that are multiplied at a time."""
    whole, rest = divmod(codes, CHUNK)
    return [CHUNK] * whole + ([product.rounded(rest)] if rest else [])


def _window_cost(product: Product, runs: Runs, pixels: int, quads: int) -> float:
    parts = _parts(product, runs.codes)
    overhead = 4.0 + (3.0 * len(parts) if len(parts) > _ROLLED else 0.0)
    return runs.count * (sum(product.cost(pixels, quads, n) for n in parts) + overhead)


def _along(
    product: Product, runs: Runs, width: int, quads: int, residual: bool
) -> tuple[tuple[tuple[int, int], ...], float]:
    """The cheapest tiles along a row of `width` pixels, and their instructions."""
    after = (9.0 if residual else 3.6) * quads
    free = 26 if residual else 31  # the residual's factors and bounds stay in registers

    def cost(pixels: int) -> float:
        outputs = pixels * quads * (1.0 + product.vectors * 0.5 + product.sum_cost()) + pixels * after
        return _window_cost(product, runs, pixels, quads) + outputs + 8

    best: tuple[tuple[tuple[int, int], ...], float] | None = None
    for pixels in range(1, min(width, 12) + 1):
        if product.fits(pixels, quads, free) or pixels == 1:
            whole, rest = divmod(width, pixels)
            tiles = ((pixels, whole),) + (((rest, 1),) if rest else ())
            total = sum(cost(p) * n for p, n in tiles)
            if best is None or total < best[1]:
                best = (tiles, total)
    assert best is not None, "a tile of one pixel fits"
    return best


@cache
def _tiling(product: Product, shape: Shape, runs: Runs, residual: bool) -> Tiling:
    """The cheapest tiling of a layer."""
    rows, width = (1, shape.pixels) if shape.pointwise else (shape.out_height, shape.out_width)
    total = -(-shape.out_channels // QUAD)
    found: list[Tiling] = []
    for quads in (q for q in _QUADS if q <= total and product.fits(1, q, 26)):
        blocks, rest = divmod(total, quads)
        if not rest and shape.out_channels % QUAD:  # only the last block is not full
            blocks, rest = blocks - 1, quads
        tiles, cost = _along(product, runs, width, quads, residual)
        rest_tiles: tuple[tuple[int, int], ...] = ()
        if rest:
            rest_tiles, more = _along(product, runs, width, rest, residual)
            cost = cost * blocks + more
        else:
            cost *= blocks
        found.append(Tiling(quads, blocks, rest, tiles, rest_tiles, rows * (cost + 6)))
    return min(found, key=lambda t: t.cost)


@dataclass(frozen=True, slots=True)
class DirectRow(Copying):
    """One row: an operation, a feature level, a weight format."""

    op: str
    product: Product
    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups; with a residual a multiple of four channels; for Armv8.0 no weight of -128."""
        if node.format != self.format or node.attrs.get("groups", 1) != 1:
            return False
        whole = Shape.of(graph, node).out_channels % QUAD == 0 or not has_residual(node)
        return whole and (self.product.isa != "neon" or int(node.values.min(initial=0)) > -128)

    def copied(self, shape: Shape) -> bool:
        """Whether the image is copied: for its padding, or since runs end where no vector does."""
        codes = Runs.of(shape, False).codes
        return any(shape.pads) or codes % CHUNK not in self.product.exact

    def tiling(self, shape: Shape, residual: bool) -> Tiling:
        """The tile for a layer."""
        return _tiling(self.product, shape, Runs.of(shape, self.copied(shape)), residual)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Instructions of the tiling, and copying."""
        shape = Shape.of(graph, node)
        tiles = self.tiling(shape, has_residual(node)).cost
        return tiles + (copy_cost(shape) if self.copied(shape) else 0.0) + 30

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights by blocks in the order they are read; bias as accumulators begin; half the multipliers."""
        shape, consts = Shape.of(graph, node), channel_consts(node)
        tiling, runs = self.tiling(shape, has_residual(node)), Runs.of(shape, self.copied(shape))
        total = (tiling.blocks * tiling.quads + tiling.rest) * QUAD
        padded = np.zeros((total, runs.count, runs.codes), np.int8)
        padded[: shape.out_channels] = node.values.reshape(shape.out_channels, runs.count, runs.codes)
        table = np.zeros((2, total), np.int32)
        table[:, : shape.out_channels] = consts["bias"], consts["multiplier"] >> 1
        cut = tiling.blocks * tiling.quads * QUAD
        parts = [self._packed(padded[:cut], tiling.quads * QUAD), self._packed(padded[cut:], tiling.rest * QUAD)]
        start = self.product.start(np.ascontiguousarray(table[0]))
        return {"weights": np.concatenate(parts), "bias": start, "multiplier": np.ascontiguousarray(table[1])}

    def _packed(self, codes: NDArray[np.int8], channels: int) -> NDArray[np.int8]:
        """Weights (channels, runs, codes) of whole blocks, one behind the other."""
        if not len(codes):
            return np.zeros(0, np.int8)
        blocks = codes.reshape(-1, channels, *codes.shape[1:])
        pieces, start = [], 0
        for n in _parts(self.product, codes.shape[2]):
            part = blocks[..., start : start + n]
            part = np.pad(part, [(0, 0)] * 3 + [(0, n - part.shape[-1])])
            pieces.append(np.stack([self.product.pack(part[:, :, r]) for r in range(codes.shape[1])], axis=1))
            start += n
        return np.concatenate(pieces, axis=2).reshape(-1)

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels, rows, tiles."""
        return _Writer(self, graph, node).code()


class _Writer:
    """Writes one function of a DirectRow."""

    def __init__(self, row: DirectRow, graph: LoweredGraph, node: Node) -> None:
        self.product, self.shape = row.product, Shape.of(graph, node)
        self.copied = row.copied(self.shape)
        self.runs, self.tiling = Runs.of(self.shape, self.copied), row.tiling(self.shape, has_residual(node))
        self.parts = _parts(self.product, self.runs.codes)
        self.source = s = opened(node, self.copied)
        self.counts: set[str] = set()
        s.integer("nothing", 0)
        self.stage = Stage(s, node)
        tiles = [(p, self.tiling.quads) for p, _ in self.tiling.pixels]
        tiles += [(p, self.tiling.rest) for p, _ in self.tiling.rest_pixels]
        s.local("acc", 4 * max(self.product.accumulators(*tile) for tile in tiles))

    def code(self) -> Code:
        """The whole function."""
        s, t = self.source, self.tiling
        if self.copied:
            copy_image(s, self.shape)
        if t.blocks:
            with s.block(f"for o in range({self._count(t.blocks)}):"):
                self._block("o", t.quads, t.pixels, t.quads * QUAD)
        if t.rest:
            self._block(str(t.blocks), t.rest, t.rest_pixels, self.shape.out_channels - t.blocks * t.quads * QUAD)
        return s.code()

    def _block(self, o: str, quads: int, tiles: tuple[tuple[int, int], ...], channels: int) -> None:
        """All pixels of one block of channels."""
        s, shape = self.source, self.shape
        rows, width = (1, shape.pixels) if shape.pointwise else (shape.out_height, shape.out_width)
        with s.block(f"for y in range({self._count(rows)}):"):
            start = 0
            for pixels, count in tiles:
                with s.block(f"for x in range({self._count(count)}):"):
                    column = f"({start} + x * {pixels})"
                    self._window(pixels, quads, o, column)
                    self._outputs(pixels, quads, o, f"y * {width} + {column}", channels)
                start += pixels * count

    def _count(self, count: int) -> str:
        """A loop's turns as a scalar: LLVM cannot write it out and then load what does not change before it."""
        name = f"n{count}"
        if name not in self.counts:
            self.counts.add(self.source.integer(name, count))
        return f"T.max({name}, 1)"

    def _outputs(self, pixels: int, quads: int, o: str, pixel: str, channels: int) -> None:
        """Requantise and store a tile."""
        first = self.tiling.quads * QUAD
        for p in range(pixels):
            for start in range(0, channels, CHUNK):
                count = min(CHUNK, channels - start)
                part = range(start // QUAD, (start + count + QUAD - 1) // QUAD)
                sums = [self.product.sum(p, v, quads) for v in part]
                multipliers = [f"M[{ramp(f'{o} * {first} + {v * QUAD}', QUAD)}]" for v in part]
                at = f"({pixel} + {p}) * {self.shape.out_channels} + {o} * {first} + {start}"
                self.stage(sums, multipliers, at, count)

    def _window(self, pixels: int, quads: int, o: str, column: str) -> None:
        """Multiply the windows of a tile, run by run."""
        s, runs, shape = self.source, self.runs, self.shape
        first = self.tiling.quads * QUAD
        self.product.clear(s, pixels, quads, f"{o} * {first}")
        base = f"y * {shape.stride[0] * row_bytes(shape, self.copied)} + {column} * {shape.stride[1] * shape.channels}"
        weights = f"{o} * {sum(self.parts) * runs.count * first}"
        step = sum(self.parts) * quads * QUAD  # bytes of weights of one run
        flat = runs.count * len(self.parts) * self.product.cost(pixels, quads, CHUNK) <= _FLAT
        if flat:
            for r in range(runs.count):
                offset = r // runs.columns * runs.row_step + r % runs.columns * runs.column_step
                at = f"{base} + {offset}"
                # x * nothing: or LLVM would load all weights before the loop over pixels, and run out of registers
                self._run(pixels, quads, at, f"{weights} + x * nothing + {r * step}")
            return
        with s.block(f"for ky in range({self._count(runs.rows)}):"):
            self._columns(pixels, quads, base, weights, step)

    def _columns(self, pixels: int, quads: int, base: str, weights: str, step: int) -> None:
        """The runs of one row of a window."""
        s, runs = self.source, self.runs
        with s.block(f"for kx in range({self._count(runs.columns)}):") if runs.columns > 1 else nullcontext():
            kx = "kx" if runs.columns > 1 else "0"
            at = f"{base} + ky * {runs.row_step} + {kx} * {runs.column_step}"
            self._run(pixels, quads, at, f"{weights} + (ky * {runs.columns} + {kx}) * {step}")

    def _run(self, pixels: int, quads: int, at: str, weights: str) -> None:
        s, per_code = self.source, quads * QUAD
        whole = sum(n == CHUNK for n in self.parts)
        rolled = whole > _ROLLED
        if rolled:
            with s.block(f"for j in range({self._count(whole)}):"):
                self._part(pixels, quads, CHUNK, f"{at} + j * {CHUNK}", f"{weights} + j * {CHUNK * per_code}")
        start = whole * CHUNK if rolled else 0
        for n in self.parts[whole if rolled else 0 :]:
            self._part(pixels, quads, n, f"{at} + {start}", f"{weights} + {start * per_code}")
            start += n

    def _part(self, pixels: int, quads: int, codes: int, at: str, weights: str) -> None:
        view, step = "P" if self.copied else "X", self.shape.stride[1] * self.shape.channels

        bound: dict[tuple[int, int, int], str] = {}

        def x(*key: int) -> str:
            pixel, offset, lanes = key
            if (pixel, offset, lanes) not in bound:
                index = ramp(f"{at} + {pixel * step + offset}", lanes)
                bound[pixel, offset, lanes] = self.stage.bind(f"{view}[{index}]")
            return bound[pixel, offset, lanes]

        self.product.multiply(self.source, self.stage.bind, pixels, quads, codes, x, weights, self.copied)


def _rows() -> Iterator[tuple[str, Kernel]]:
    for product in PRODUCTS:
        for op in ("conv2d", "linear"):
            # Armv8.0 has rows that look 4-bit weights up while they multiply
            for fmt in FORMATS.values() if product.isa != "neon" else (FORMATS["int8"],):
                row = DirectRow(op, product, fmt)
                name = f"{op}_s8_{fmt.short}_direct__{product.isa}"
                tags = {} if fmt.bits == 8 else {"extra_flash": f"8/{fmt.bits}"}
                yield name, Kernel(
                    name, op, fmt.short, product.isa, row.applies, row.cost, row.workspace, row.pack, row.emit,
                    in_place=row.in_place, tags=tags,
                    notes="" if fmt.bits == 8 else "weights expanded to int8",
                )  # fmt: skip


for _name, _kernel in _rows():
    KERNELS.add(_name, _kernel)
