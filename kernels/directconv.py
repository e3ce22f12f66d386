"""Convolution and linear rows for vectors: windows multiplied where they lie, a tile of pixels by groups of channels.

The image is copied once into the workspace with its padding around it (not at all where there is none and codes are
read as they are), so a window is `kernel height` contiguous runs of codes, for every stride. Weights are packed at
build time in the order they are read; those of other formats than int8 are expanded then, unless the product expands
them while it multiplies (`packed`). The tile is chosen per shape by counting instructions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import WeightFormat
from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape
from .imagecopy import Copying, copy_cost, copy_image, opened, row_codes
from .product import CHUNK, Product
from .snippets import channel_consts
from .tiling import ROLLED, Runs, Tiling, Way, parts_of, tiling_of, together
from .vectors import ramp

_FLAT = 200  # multiplications: windows of fewer are written out whole


@dataclass(frozen=True, slots=True)
class DirectRow(Copying):
    """One row: an operation, a feature level, a weight format."""

    op: str
    product: Product
    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups; with a residual whole groups of channels; for Armv8.0 no weight of -128."""
        if node.format != self.format or node.attrs.get("groups", 1) != 1:
            return False
        whole = Shape.of(graph, node).out_channels % self.product.lanes == 0 or not has_residual(node)
        return whole and (self.product.isa != "neon" or int(node.values.min(initial=0)) > -128)

    @property
    def wide(self) -> bool:
        """Whether the copy is int16."""
        return self.product.dtype == "int16"

    @property
    def other(self) -> bool:
        """Whether the copy holds other values than int8."""
        return self.product.dtype != "int8"

    def copied(self, shape: Shape) -> bool:
        """Whether the image is copied: for its padding, as another type, or since runs end where no vector does."""
        codes = Runs.of(shape, False).codes
        return self.other or any(shape.pads) or codes % self.product.chunk not in self.product.exact

    def seen(self, shape: Shape) -> Shape:
        """The layer as the loops see it."""
        return shape

    def tiling(self, shape: Shape, node: Node) -> Tiling:
        """The tile for a layer."""
        output = (self.product.registers(node), self.product.after(node))
        seen = self.seen(shape)
        return tiling_of(self.product, seen, Runs.of(seen, self.copied(shape)), output)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Instructions of the tiling, copying, and waiting for weights."""
        shape = Shape.of(graph, node)
        tiles = self.tiling(shape, node).cost
        copy = copy_cost(shape) if self.copied(shape) else 0.0
        return tiles + copy + self.product.waiting(graph, node) + 30

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights by blocks in the order they are read; bias as accumulators begin; multipliers as the stage wants."""
        shape, consts = Shape.of(graph, node), channel_consts(node, self.product.offset)
        tiling, runs = self.tiling(shape, node), Runs.of(self.seen(shape), self.copied(shape))
        total = (tiling.blocks * tiling.groups + tiling.rest) * self.product.lanes
        blank = self.product.blank(node)
        flat = np.full((total, runs.count * runs.codes), blank, np.int8)
        flat[: shape.out_channels, : shape.row] = self.product.weights(node).reshape(shape.out_channels, -1)
        behind = sum(parts_of(self.product, runs.codes)) - runs.codes
        padded = np.pad(
            flat.reshape(total, runs.count, runs.codes), [(0, 0), (0, 0), (0, behind)], constant_values=blank
        )
        table = np.zeros((2, total), np.int32)
        table[:, : shape.out_channels] = consts["bias"], self.product.multipliers(node, consts["multiplier"])
        order = self._order(tiling)
        padded, table, cut = padded[order], table[:, order], tiling.blocks * tiling.groups * self.product.lanes
        wide = (tiling.groups * self.product.lanes, tiling.rest * self.product.lanes)
        parts = [self._packed(padded[:cut], wide[0]), self._packed(padded[cut:], wide[1])]
        start = self.product.start(np.ascontiguousarray(table[0]))
        weights, multiplier = np.concatenate(parts), np.ascontiguousarray(table[1])
        return {"weights": weights, "bias": start, "multiplier": multiplier, **self.product.constants(node)}

    def _order(self, tiling: Tiling) -> list[int]:
        """The channel at each place of weights and constants."""
        order: list[int] = []
        tile = self.product.order(tiling.groups)
        for _ in range(tiling.blocks):
            order += [len(order) + place for place in tile]
        return order + [len(order) + place for place in self.product.order(tiling.rest)]

    def _packed(self, codes: NDArray[np.int8], channels: int) -> NDArray[np.int8]:
        """Weights (channels, runs, rounded codes) of whole blocks, one behind the other."""
        if not len(codes):
            return np.zeros(0, np.int8)
        blocks = codes.reshape(-1, channels, *codes.shape[1:])
        pieces, start = [], 0
        for n in parts_of(self.product, codes.shape[2]):
            part = blocks[..., start : start + n]
            pieces.append(np.stack([self.product.pack(part[:, :, r]) for r in range(codes.shape[1])], axis=1))
            start += n
        return np.concatenate(pieces, axis=2).reshape(-1)

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels, rows, tiles."""
        return Writer(self, graph, node).code()


class Writer:
    """Writes one function of a DirectRow."""

    def __init__(self, row: DirectRow, graph: LoweredGraph, node: Node) -> None:
        given = Shape.of(graph, node)
        self.product, self.shape = row.product, row.seen(given)
        self.copied = row.copied(given)
        self.runs, self.tiling = Runs.of(self.shape, self.copied), row.tiling(given, node)
        self.parts = parts_of(self.product, self.runs.codes)
        self.source = s = opened(node, self.copied, self.product.dtype)
        s.integer("nothing", 0)
        self.product.declare(s, node)
        self.stage = self.product.stage(s, node)
        tiles = self.tiles()
        whole = self.shape.out_channels % self.product.lanes == 0
        self.apart = whole and any(tile[1] == 1 for tile in tiles) and self.stage.words()
        s.local("acc", self.product.lanes * max(self.product.accumulators(*tile) for tile in tiles))

    def tiles(self) -> list[tuple[int, int]]:
        """(pixels, groups) of all tiles."""
        t = self.tiling
        return [(p, t.groups) for p, _ in t.pixels] + [(p, t.rest) for p, _ in t.rest_pixels]

    def code(self) -> Code:
        """The whole function."""
        if self.copied:
            self.copy()
        self.blocks()
        return self.source.code()

    def copy(self) -> None:
        """Copy the image."""
        copy_image(self.source, self.shape, self.product.dtype)

    def blocks(self) -> None:
        """All blocks of channels."""
        s, t = self.source, self.tiling
        if t.blocks:
            with s.block(f"for o in range({self.source.turns(t.blocks)}):"):
                self.block("o", t.groups, t.pixels, t.groups * self.product.lanes)
        if t.rest:
            self.block(
                str(t.blocks), t.rest, t.rest_pixels, self.shape.out_channels - t.blocks * t.groups * self.product.lanes
            )

    def block(self, o: str, groups: int, tiles: tuple[tuple[int, int], ...], channels: int) -> None:
        """All pixels of one block of channels."""
        way = self.way
        with self.source.block(f"for y in range({self.source.turns(way.rows)}):"):
            self.row(o, groups, tiles, channels, way.width)

    def row(self, o: str, groups: int, tiles: tuple[tuple[int, int], ...], channels: int, width: int) -> None:
        """The pixels of row y."""
        s, start = self.source, 0
        for pixels, count in tiles:
            with s.block(f"for x in range({s.turns(count)}):"):
                column = f"({start} + x * {pixels})"
                self._window(pixels, groups, o, column)
                self._outputs(pixels, groups, o, f"y * {width} + {column}", channels)
            start += pixels * count

    def channel(self, o: str) -> str:
        """The first channel of block `o`."""
        return f"{o} * {self.tiling.groups * self.product.lanes}"

    def weights(self, o: str) -> str:
        """Where the weights of block `o` begin."""
        each = sum(self.parts) * self.runs.count * self.tiling.groups * self.product.lanes
        return f"{o} * {each // self.product.fields}"

    def wide(self, groups: int) -> int:
        """Weights of one code of a window, all channels of a block."""
        return groups * self.product.lanes

    def base(self, column: str) -> str:
        """Where the window of a pixel of row y begins."""
        down, right = self.steps
        if self.way.folded:
            return f"{column} // {self.way.each} * {down}"
        return f"y * {down} + {column} * {right}"

    @property
    def way(self) -> Way:
        """How tiles go over the image."""
        return self.tiling.way

    @property
    def steps(self) -> tuple[int, int]:
        """Codes from a window to the one below, and to the next one."""
        shape = self.shape
        return shape.stride[0] * row_codes(shape, self.copied), shape.stride[1] * shape.channels

    def beyond(self, pixel: int) -> int:
        """Codes from the first window of a tile to that of a pixel."""
        row, column = divmod(pixel, self.way.each) if self.way.folded else (0, pixel)
        return row * self.steps[0] + column * self.steps[1]

    def _outputs(self, pixels: int, groups: int, o: str, pixel: str, channels: int) -> None:
        """Requantise and store a tile."""
        lanes = self.product.lanes
        first = self.channel(o)
        if groups == 1 and self.apart:
            self._apart(pixels, first, pixel)
            return
        sums = [[self._sum(p, v, groups, first) for v in range(groups)] for p in range(pixels)]
        multipliers = [f"M[{ramp(f'{first} + {v * lanes}', lanes)}]" for v in range(groups)]
        places = [f"({pixel} + {p}) * {self.shape.out_channels} + {first}" for p in range(pixels)]
        self.stage.tile(sums, multipliers, places, channels, lanes)

    def _apart(self, pixels: int, first: str, pixel: str) -> None:
        """Requantise one group of channels of several pixels together."""
        lanes = self.product.lanes
        quad = f"T.shift_right({first}, 2)"
        for start in range(0, pixels, CHUNK // lanes):
            some = range(start, min(start + CHUNK // lanes, pixels))
            sums = [self._sum(p, 0, 1, first) for p in some]
            places = [self.source.let(f"({pixel} + {p}) * {self.shape.out_channels // lanes} + {quad}") for p in some]
            self.stage.apart(sums, f"M[{ramp(first, lanes)}]", places)

    def _sum(self, pixel: int, group: int, groups: int, first: str) -> str:
        """The sums of a pixel's group of channels."""
        value = self.product.sum(pixel, group, groups)
        lanes = self.product.lanes
        return f"({value} + B[{ramp(f'{first} + {group * lanes}', lanes)}])" if self.product.late else value

    def _window(self, pixels: int, groups: int, o: str, column: str) -> None:
        """Multiply the windows of a tile, run by run."""
        s, runs = self.source, self.runs
        self.product.clear(s, pixels, groups, self.channel(o))
        base, weights = self.base(column), self.weights(o)
        step = sum(self.parts) * self.wide(groups) // self.product.fields  # bytes of weights of one run
        flat = runs.count * len(self.parts) * self.product.cost(pixels, groups, self.product.chunk) <= _FLAT
        if flat:
            for r in range(runs.count):
                offset = r // runs.columns * runs.row_step + r % runs.columns * runs.column_step
                at = f"{base} + {offset}"
                # x * nothing: or LLVM would load all weights before the loop over pixels, and run out of registers
                self._run(pixels, groups, at, f"{weights} + x * nothing + {r * step}")
            return
        with s.block(f"for ky in range({self.source.turns(runs.rows)}):"):
            self._columns(pixels, groups, base, weights, step)

    def _columns(self, pixels: int, groups: int, base: str, weights: str, step: int) -> None:
        """The runs of one row of a window."""
        s, runs = self.source, self.runs
        with s.block(f"for kx in range({self.source.turns(runs.columns)}):") if runs.columns > 1 else nullcontext():
            kx = "kx" if runs.columns > 1 else "0"
            at = f"{base} + ky * {runs.row_step} + {kx} * {runs.column_step}"
            self._run(pixels, groups, at, f"{weights} + (ky * {runs.columns} + {kx}) * {step}")

    def _run(self, pixels: int, groups: int, at: str, weights: str) -> None:
        s, per_code = self.source, self.wide(groups) // self.product.fields
        chunk = self.product.chunk
        whole = sum(n == chunk for n in self.parts)
        step_chunks = together(self.product, whole, pixels, groups)
        rolled = whole // step_chunks * step_chunks if whole > ROLLED else 0
        if rolled:
            step = chunk * step_chunks
            with s.block(f"for j in range({self.source.turns(rolled // step_chunks)}):"):
                for k in range(0, step, chunk):
                    code = f"(j * {step} + {k})"
                    self._part(pixels, groups, chunk, f"{at} + {code}", f"{weights} + {code} * {per_code}")
        start = rolled * chunk
        for n in self.parts[rolled:]:
            self._part(pixels, groups, n, f"{at} + {start}", f"{weights} + {start * per_code}")
            start += n

    def _part(self, pixels: int, groups: int, codes: int, at: str, weights: str) -> None:
        at, weights = self.source.let(at), self.source.let(weights)
        view = "P" if self.copied else "X"
        bound: dict[tuple[int, int, int], str] = {}

        def x(*key: int) -> str:
            pixel, offset, lanes = key
            if (pixel, offset, lanes) not in bound:
                index = ramp(f"{at} + {self.beyond(pixel) + offset}", lanes)
                bound[pixel, offset, lanes] = self.stage.bind(f"{view}[{index}]")
            return bound[pixel, offset, lanes]

        self.product.multiply(self.source, self.stage.bind, pixels, groups, codes, x, weights, self.copied)
