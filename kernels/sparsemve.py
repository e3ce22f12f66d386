"""Helium rows for zero-heavy weights (Cortex-M55): gathering loads bring the codes that meet a weight.

A channel's weights are cut into segments of 256 k; a segment stores how many are not zero, their places in one byte
each, and their values. Sixteen of them meet four pixels by one load of places, one of values, and per pixel a gathering
load and VMLAVA; tail-predicated loops need no padding. Of a linear layer four channels make up a vector of outputs.

A gathering load reads one byte per cycle, where a dense row's load reads eight: in instructions a row wins from half
zeros on, in cycles from about four fifths (DENSITY), which is where it begins to apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, Int8, UInt8, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape
from .mve_block import clip_rows, fill_run, move_rows, move_run
from .snippets import channel_consts
from .sparsemveasm import LANES, STACK_ARGS, GatherTile
from .sparsepack import dense_bytes, plain
from .windows import WindowWriter

SEGMENT = 256  # k that one byte tells apart
DENSITY = 0.2  # largest share of weights that are not zero


@lru_cache(maxsize=16)
def _segments(codes: bytes, rows: int) -> tuple[UInt8, NDArray[np.uint16]]:
    values = np.frombuffer(codes, np.int8).reshape(rows, -1)
    parts = -(-values.shape[1] // SEGMENT)
    padded = np.zeros((rows, parts * SEGMENT), np.int8)
    padded[:, : values.shape[1]] = values
    cut = padded.reshape(rows * parts, SEGMENT)
    counts = np.count_nonzero(cut, axis=1)
    segment, place = np.nonzero(cut)
    starts = 2 * (np.cumsum(counts) - counts)
    at = starts[segment] + np.arange(len(segment)) - starts[segment] // 2
    data = np.zeros(2 * len(segment), np.uint8)
    data[at] = place
    data[at + counts[segment]] = cut[segment, place].view(np.uint8)
    return data, counts.astype(np.uint16).reshape(rows, parts)


def segments(values: Int8) -> tuple[UInt8, NDArray[np.uint16]]:
    """Places and values of all segments (per segment first places, then values), and counts (rows, segments)."""
    return _segments(np.ascontiguousarray(values).tobytes(), len(values))


@dataclass(frozen=True, slots=True)
class GatherRow:
    """One row: four pixels x 1 channel (conv2d), or one pixel x 4 channels (linear)."""

    op: str
    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups, few enough weights that are not zero, and fewer bytes than the packed weights."""
        if not plain(node, self.format) or np.count_nonzero(node.values) > DENSITY * node.values.size:
            return False
        data, counts = segments(node.values)
        return data.nbytes + counts.nbytes < dense_bytes(node)

    def direct(self, shape: Shape) -> bool:
        """Whether the input is read in place, and no pixel of a last tile lies beyond it."""
        return self.op == "linear" or (shape.pointwise and shape.pixels % LANES == 0)

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """A gathered tile's outputs are written after its windows were read."""
        shape = Shape.of(graph, node)
        return shape.shrinking and not self.direct(shape)

    def tile(self, graph: LoweredGraph, node: Node) -> GatherTile:
        """The assembly function this node needs."""
        many = Shape.of(graph, node).row > SEGMENT
        return GatherTile(self.op == "conv2d", many, node.attrs["shift"] > 0, has_residual(node))

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Instructions: turns and segments of every channel, output stages, windows."""
        shape, tile = Shape.of(graph, node), self.tile(graph, node)
        counts = segments(node.values)[1].astype(np.int64)
        turns, parts = int((-(-counts // 16)).sum()), int(counts.shape[1])
        each = tile.around_segment * parts + tile.around  # per channel
        if self.op == "linear":
            return tile.turn * turns + each * (len(counts) + -len(counts) % LANES) + 60.0
        work = tile.turn * turns + each * len(counts)
        run = -(-shape.kernel[1] * shape.channels // 16)
        gather = 0.0 if self.direct(shape) else shape.pixels * (35 + shape.kernel[0] * (8 + 3 * run))
        return -(-shape.pixels // LANES) * (work + 60.0) + gather

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The windows of four pixels."""
        shape = Shape.of(graph, node)
        return 0 if self.direct(shape) else LANES * shape.row

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Segments, their counts, biases and multipliers: alternating, of a linear layer by fours."""
        data, counts = segments(node.values)
        table = np.stack(list(channel_consts(node).values()), axis=1)
        if self.op == "linear":
            more = -len(table) % LANES
            counts = np.pad(counts, ((0, more), (0, 0)))
            table = np.pad(table, ((0, more), (0, 0))).reshape(-1, LANES, 2).transpose(0, 2, 1)
        # segments without places are never read, but no array is empty
        data = data if data.size else np.zeros(1, np.uint8)
        return {"weights": data, "counts": counts, "bias_multiplier": np.ascontiguousarray(table)}

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather the windows of a tile, call the assembly, and so on."""
        return _Writer(self, graph, node).write()


class _Writer(WindowWriter):
    """Writes one function of a GatherRow."""

    def __init__(self, row: GatherRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(1 if row.op == "linear" else LANES, graph, node, "uint8")
        self.tile, self.direct = row.tile(graph, node), row.direct(self.shape)
        s = self.source
        s.const("N", "counts", "uint16")
        s.integer("row", self.shape.row)
        s.integer("segments", -(-self.shape.row // SEGMENT))
        s.integer("reach_y", self.shape.height - (self.shape.kernel[0] - 1) * self.shape.dilation[0] - 1)

    def write(self) -> Code:
        """The whole function."""
        s, start = self.source, "t * tile * out_channels"
        add_right = -self.node.attrs["add_shift"] if self.tile.residual else 0
        known = {
            "counts": "T.address_of(N[0])", "segments": "segments", "row": "row", "channels": "out_channels",
            "valid": "valid", "stride": "out_channels", "add_right": s.integer("add_right", add_right),
            "residual": f"T.address_of(R[{start}])" if self.tile.residual else "T.address_of(N[0])",
        }  # fmt: skip
        pointers = ("X[t * tile * row]" if self.direct else "P[0]", "W[0]", "B[0]", f"Y[{start}]")
        arguments = [*(f"T.address_of({p})" for p in pointers), *self.stack_arguments(STACK_ARGS, known)]
        if not self.direct:
            return self.code(lambda: self.call(self.tile.function(), *arguments))
        return self.undivided(lambda: self.call(self.tile.function(), *arguments))

    def gather(self) -> None:
        """By one call, unless taps lie apart."""
        s = self.source
        if self.shape.dilation[1] > 1:
            super().gather()
            return
        rows = (
            "T.address_of(X[(at[0] * width + at[1]) * channels])", "T.address_of(P[p * row])", "run", "kh",
            "dy * width * channels",
        )  # fmt: skip
        with s.block("if at[0] >= 0 and at[0] <= reach_y and at[1] >= 0 and at[1] <= reach:"):
            self.call(move_rows(), *rows)
        with s.block("else:"):
            s("lead: T.let[T.int32] = T.min(T.max(0 - at[1], 0) * channels, run)")
            s("count: T.let[T.int32] = T.min((width - at[1]) * channels, run) - lead")
            self.call(clip_rows(), *rows, "lead", "count", "at[0]", "dy", "height", "in_zero")

    def move(self, source: str, to: str, count: str) -> None:
        """Copy bytes."""
        self.call(move_run(), f"T.address_of(X[{source}])", f"T.address_of(P[p * row + {to}])", count)

    def pad(self, to: str) -> None:
        """The zero point."""
        self.call(fill_run(), f"T.address_of(P[p * row + {to}])", "channels", "in_zero")


def _register(row: GatherRow) -> None:
    short = row.format.short
    name = f"{row.op}_s8_{short}_sparse{'1x4' if row.op == 'linear' else '4x1'}__mve"
    parts = (row.applies, row.cost, row.workspace, row.pack, row.emit, row.in_place)
    KERNELS.add(name, Kernel(name, row.op, short, "mve", *parts))


for _format in FORMATS.values():
    _register(GatherRow("linear", _format))
    _register(GatherRow("conv2d", _format))
