"""Convolution rows for cores without DSP instructions: what they share, and those for Armv7-M (Cortex-M3).

As the armv7em rows: the windows of a few pixels are gathered into the workspace, then one assembly function multiplies
them with all output channels; all geometry is passed as scalars, so that the layers of a network share code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .armdecode import CHANNELS, Form
from .conv import Shape
from .snippets import channel_consts
from .thumbgather import WORD_PIXELS, fill_fourths, fill_words, put_fourths, put_words
from .thumbm3 import SUM_LIMIT, LongTile, MlaTile
from .thumbtile import STACK_ARGS, ThumbTile
from .windows import WindowWriter


def stream(fmt: WeightFormat, codes: NDArray[Any], offset: int) -> NDArray[np.uint8]:
    """Codes (O, K) plus `offset` as bits in the order k, channel for every pair of channels; rows end on a byte.

    Where a row is no whole number of bytes, its first byte begins with unused bits: the multiply loop is entered in
    the middle of a byte and always ends behind one. Three bytes at the end let a word be loaded anywhere.
    """
    pairs, row = -(-len(codes) // CHANNELS), codes.shape[1]
    front = -row % (8 // gcd(8, CHANNELS * fmt.bits))
    padded = np.zeros((pairs * CHANNELS, front + row), np.int64)
    padded[: len(codes), front:] = codes.astype(np.int64) + offset
    order = padded.reshape(pairs, CHANNELS, -1).transpose(0, 2, 1).reshape(pairs, -1) & (2**fmt.bits - 1)
    bits = (order[..., None] >> np.arange(fmt.bits)) & 1
    packed = np.packbits(bits.reshape(pairs, -1).astype(np.uint8), axis=1, bitorder="little")
    return np.concatenate([packed[:, front * CHANNELS * fmt.bits // 8 :].reshape(-1), np.zeros(3, np.uint8)])


@dataclass(frozen=True, slots=True)
class ThumbRow(ABC):
    """One row: all pixels and channels of one weight format, a tile after the other."""

    op: str
    format: WeightFormat

    @property
    @abstractmethod
    def pixels(self) -> int:
        """Pixels of a tile."""

    @abstractmethod
    def tile(self, node: Node) -> ThumbTile:
        """The assembly function this node needs."""

    @abstractmethod
    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Whether the row runs the node."""

    @abstractmethod
    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Estimated executed instructions."""

    @abstractmethod
    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Bytes of the windows of a tile."""

    @abstractmethod
    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights, (bias, bias, multiplier, multiplier) per pair of channels, codebook."""

    @abstractmethod
    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, call the assembly, and so on."""

    def fits(self, graph: LoweredGraph, node: Node) -> bool:
        """This format, no groups; residuals only with an even number of channels."""
        even = graph.tensors[node.output].shape[-1] % CHANNELS == 0
        return node.format == self.format and node.attrs.get("groups", 1) == 1 and (even or not has_residual(node))

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """A tile's windows are gathered before its outputs are written."""
        return Shape.of(graph, node).shrinking

    def estimate(self, graph: LoweredGraph, node: Node, step: float, output: float, gather: float) -> float:
        """Instructions, from those of one step of the multiply loop, of one output, and of one gathered code."""
        shape = Shape.of(graph, node)
        tiles = -(-shape.pixels // self.pixels) * -(-shape.out_channels // CHANNELS)
        per_tile = shape.row * step + 40 + (output + 10 * has_residual(node)) * self.pixels * CHANNELS
        return tiles * per_tile + (gather * shape.row + 40 * shape.kernel[0]) * shape.pixels

    def consts(self, graph: LoweredGraph, node: Node, offset: int, bias: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What `pack` returns, with this offset of codes and this bias (O,)."""
        shape, pairs = Shape.of(graph, node), -(-len(bias) // CHANNELS)
        codes = node.consts["codes"].reshape(shape.out_channels, shape.row)
        table = np.zeros((2, pairs * CHANNELS), np.int32)
        table[:, : len(bias)] = bias, channel_consts(node)["multiplier"]
        packed: dict[str, NDArray[Any]] = {"weights": stream(self.format, codes, offset)}
        packed["bias_multiplier"] = np.ascontiguousarray(table.reshape(2, pairs, CHANNELS).transpose(1, 0, 2))
        if self.format.codebook:
            book = np.zeros(2**self.format.bits, np.int8)
            book[: len(node.consts["codebook"])] = node.consts["codebook"]
            packed["codebook"] = book
        return packed

    def facts(self, node: Node) -> tuple[int, int, Form, int, bool, bool, bool]:
        """The fields of the tile."""
        a, full, add = node.attrs, (-128, 127), has_residual(node)
        form: Form = "lookup" if self.format.codebook else "wide" if self.format.bits == 8 else "fields"
        bounded = (a["low"], a["high"]) != full
        add_bounded = add and (a["add_low"], a["add_high"]) != full
        return self.pixels, self.format.bits, form, a["shift"], bounded, add, add_bounded


@dataclass(frozen=True, slots=True)
class LongRow(ThumbRow):
    """Armv7-M: two products per SMLAL."""

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return WORD_PIXELS

    def tile(self, node: Node) -> LongTile:
        """The assembly function this node needs."""
        return LongTile(*self.facts(node))

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """The node fits, and so does every channel's sum in the lower field of an accumulator."""
        if not self.fits(graph, node):
            return False
        sums = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
        return int(sums.max()) <= SUM_LIMIT

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Estimated executed instructions."""
        return self.estimate(graph, node, len(self.tile(node).step(0)), 12.0, 3.5)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Two words for every k."""
        return 2 * WORD_PIXELS * Shape.of(graph, node).row

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights, (bias, bias, multiplier, multiplier) per pair of channels, codebook."""
        return self.consts(graph, node, 0, channel_consts(node)["bias"])

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, call the assembly, and so on."""
        return _LongWriter(self, graph, node).write()


@dataclass(frozen=True, slots=True)
class MlaRow(LongRow):
    """Armv7-M: one product per MLA, any weights."""

    def tile(self, node: Node) -> MlaTile:
        """The assembly function this node needs."""
        return MlaTile(*self.facts(node))

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Any node that fits."""
        return self.fits(graph, node)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Estimated executed instructions."""
        return self.estimate(graph, node, len(self.tile(node).step(0)), 10.0, 3.0)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Four bytes for every k."""
        return WORD_PIXELS * Shape.of(graph, node).row

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, call the assembly, and so on."""
        return _MlaWriter(self, graph, node).write()


class ThumbWriter(WindowWriter):
    """What both kinds share: the call of the tile function, and windows inside the input by one call."""

    def __init__(self, row: ThumbRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row.pixels, graph, node, "uint8")
        self.tile = row.tile(node)
        self.codebook = row.format.codebook

    def write(self) -> Code:
        """The whole function."""
        s, shape = self.source, self.shape
        if self.codebook:
            s.const("E", "codebook", "int8")
        start = f"t * {self.pixels} * out_channels"
        known = {
            "turns_end": "T.address_of(P[turns_end])",
            "entry": s.integer("entry", self.tile.entry(shape.row)),
            "channels": "out_channels", "stride": "out_channels", "valid": "valid",
            "table": "T.address_of(E[0])" if self.codebook else "T.address_of(P[0])",
            "residual": f"T.address_of(R[{start}])" if self.tile.residual else "T.address_of(P[0])",
            **self.own_arguments(),
        }  # fmt: skip
        pointers = [f"T.address_of({p})" for p in ("P[0]", "W[0]", "B[0]", f"Y[{start}]")]
        arguments = [*pointers, *self.stack_arguments(STACK_ARGS, known)]
        return self.code(lambda: self.call(self.tile.function(), *arguments))

    @abstractmethod
    def own_arguments(self) -> dict[str, str]:
        """Arguments of the tile function beside the common ones; declares `turns_end`."""

    @abstractmethod
    def put(self, source: str, to: str, run: str, rows: str, stride: str) -> None:
        """Move rows of codes from position `source` of X to position `to` of the window of pixel p."""

    def gather(self) -> None:
        """By one call where the window lies inside the input."""
        s, shape = self.source, self.shape
        if shape.dilation[1] > 1:
            super().gather()
            return
        s.integer("reach_y", shape.height - (shape.kernel[0] - 1) * shape.dilation[0] - 1)
        with s.block("if at[0] >= 0 and at[0] <= reach_y and at[1] >= 0 and at[1] <= reach:"):
            self.put("(at[0] * width + at[1]) * channels", "0", "run", "kh", "dy * width * channels")
        with s.block("else:"):
            super().gather()

    def move(self, source: str, to: str, count: str) -> None:
        """One row."""
        self.put(source, to, count, "1", "0")


class _LongWriter(ThumbWriter):
    """Windows as words of two pixels."""

    def own_arguments(self) -> dict[str, str]:
        """None."""
        self.source.integer("turns_end", 2 * WORD_PIXELS * self.shape.row)
        return {}

    def _place(self, to: str) -> tuple[str, str]:
        lane = "T.bitwise_and(p, 1)"
        return f"T.address_of(P[({to}) * {2 * WORD_PIXELS} + T.shift_right(p, 1) * 4])", lane

    def put(self, source: str, to: str, run: str, rows: str, stride: str) -> None:
        """Into the lane of pixel p."""
        place, lane = self._place(to)
        self.call(put_words(), f"T.address_of(X[{source}])", place, run, rows, stride, lane)

    def pad(self, to: str) -> None:
        """The zero point."""
        place, lane = self._place(to)
        self.call(fill_words(), place, "channels", "in_zero", lane)


class _MlaWriter(ThumbWriter):
    """Windows as bytes."""

    def own_arguments(self) -> dict[str, str]:
        """None."""
        self.source.integer("turns_end", WORD_PIXELS * self.shape.row)
        return {}

    def put(self, source: str, to: str, run: str, rows: str, stride: str) -> None:
        """To the bytes of pixel p."""
        place = f"T.address_of(P[({to}) * {WORD_PIXELS} + p])"
        self.call(put_fourths(), f"T.address_of(X[{source}])", place, run, rows, stride)

    def pad(self, to: str) -> None:
        """The zero point."""
        self.call(fill_fourths(), f"T.address_of(P[({to}) * {WORD_PIXELS} + p])", "channels", "in_zero")


def register(row: ThumbRow, isa: str, form: str = "") -> None:
    """Add the row under the name that its tile and instruction set give it."""
    name = f"{row.op}_s8_{row.format.short}_{form}{row.pixels}x{CHANNELS}__{isa}"
    KERNELS.add(
        name,
        Kernel(
            name, row.op, row.format.short, isa, row.applies, row.cost, row.workspace, row.pack, row.emit, row.in_place
        ),
    )


for _format in FORMATS.values():
    register(LongRow("conv2d", _format), "armv7m")
    register(MlaRow("conv2d", _format), "armv7m", "mla")
