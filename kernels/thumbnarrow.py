"""Convolution and linear rows for Armv6-M (Cortex-M0+): three pixels, and four where weights are small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS
from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .armdecode import CHANNELS
from .conv import Shape
from .snippets import channel_consts
from .thumb import ThumbRow, ThumbWriter, register
from .thumbgather import WORD_PIXELS, fill_bytes, fill_halves, put_bytes, put_halves
from .thumbhalves import HalvesTile, turn_for
from .thumbm0 import NarrowTile, is_near


@dataclass(frozen=True, slots=True)
class NarrowRow(ThumbRow):
    """Armv6-M: sums in high registers, everything unsigned."""

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return 1 if self.op == "linear" else 3

    def near(self, node: Node) -> bool:
        """Whether the bounds of the sums spare additions of the output stage."""
        values = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
        bound = int((values * 255 + np.abs(node.consts["bias"].astype(np.int64))).max()) << node.attrs["shift"]
        return is_near(bound, int(node.consts["multiplier"].max()))

    def tile(self, node: Node) -> NarrowTile:
        """The assembly function this node needs."""
        return NarrowTile(*self.facts(node), near=self.near(node))

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Any node that fits."""
        return self.fits(graph, node)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Estimated executed instructions."""
        return self.estimate(graph, node, len(self.tile(node).step(0)), 36.0, 5.5)

    def sums_at(self, shape: Shape) -> int:
        """Byte of the workspace where the sums of the windows lie."""
        return -(-self.pixels * shape.row // 4) * 4

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """A byte for every pixel and k, and the sums."""
        return self.sums_at(Shape.of(graph, node)) + 4 * self.pixels

    @property
    def offset(self) -> int:
        """What is added to a code in flash."""
        return 0 if self.format.codebook else 1 << self.format.bits - 1

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights with their offset, (bias, bias, multiplier, multiplier) per pair of channels, codebook."""
        values = node.values.astype(np.int64).reshape(len(node.values), -1)
        bias = channel_consts(node)["bias"].astype(np.int64) - 128 * values.sum(axis=1)
        return self.consts(graph, node, self.offset, bias.astype(np.int32))

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, call the assembly, and so on."""
        return _NarrowWriter(self, graph, node).write()


@dataclass(frozen=True, slots=True)
class HalvesRow(NarrowRow):
    """Two pixels per multiplication, for weights of small magnitude."""

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return WORD_PIXELS

    def _turn(self, node: Node) -> int:
        return turn_for(int(np.abs(node.values.astype(np.int64)).max()))

    def tile(self, node: Node) -> HalvesTile:
        """The assembly function this node needs."""
        return HalvesTile(*self.facts(node), near=self.near(node), turn=self._turn(node))

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Any node that fits and whose weights are small."""
        return self.fits(graph, node) and self._turn(node) > 0

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Estimated executed instructions."""
        part = 48.0 / self._turn(node)
        return self.estimate(graph, node, len(self.tile(node).step(0)) + part, 34.0, 5.5)

    def sums_at(self, shape: Shape) -> int:
        """Byte of the workspace where the sums lie."""
        return 2 * WORD_PIXELS * shape.row

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Two words for every k, and a word for every sum of a tile."""
        return self.sums_at(Shape.of(graph, node)) + 4 * WORD_PIXELS * CHANNELS

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights, (bias, bias, multiplier, multiplier) per pair of channels, codebook."""
        return self.consts(graph, node, 0, channel_consts(node)["bias"])

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, call the assembly, and so on."""
        return _HalvesWriter(self, graph, node).write()


class _NarrowWriter(ThumbWriter):
    """Windows as bytes with an offset, and their sums."""

    def __init__(self, row: NarrowRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row, graph, node)
        self.skipped = -self.shape.row % self.tile.unroll
        self.skipped_bytes = self.skipped * CHANNELS * row.format.bits // 8
        self.source.view("S", "P", "int32")
        self.source.integer("sums_at", row.sums_at(self.shape))

    def own_arguments(self) -> dict[str, str]:
        """How far the first turn is entered, and where the sums lie."""
        s = self.source
        s.integer("turns_end", self.pixels * self.shape.row)
        skip_x, skip_w = s.integer("skip_x", self.pixels * self.skipped), s.integer("skip_w", self.skipped_bytes)
        return {"skip_x": skip_x, "skip_w": skip_w, "sums": "T.address_of(P[sums_at])"}

    def gather(self) -> None:
        """A new sum, then the codes."""
        self.source("S[T.shift_right(sums_at, 2) + p] = 0")
        super().gather()

    def put(self, source: str, to: str, run: str, rows: str, stride: str) -> None:
        """To the bytes of pixel p."""
        place = f"T.address_of(P[({to}) * {self.pixels} + p])"
        self.call(
            put_bytes(self.pixels),
            f"T.address_of(X[{source}])",
            place,
            run,
            rows,
            stride,
            "T.address_of(P[sums_at + p * 4])",
        )

    def pad(self, to: str) -> None:
        """The zero point."""
        place = f"T.address_of(P[({to}) * {self.pixels} + p])"
        self.call(fill_bytes(self.pixels), place, "channels", "in_zero", "T.address_of(P[sums_at + p * 4])")


class _HalvesWriter(ThumbWriter):
    """Windows as words of two pixels."""

    def __init__(self, row: HalvesRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row, graph, node)
        self.skipped_bytes = -self.shape.row % self.tile.unroll * CHANNELS * row.format.bits // 8
        self.source.integer("sums_at", row.sums_at(self.shape))

    def own_arguments(self) -> dict[str, str]:
        """How far the first turn is entered, and where the sums lie."""
        self.source.integer("turns_end", 2 * WORD_PIXELS * self.shape.row)
        skip_w = self.source.integer("skip_w", self.skipped_bytes)
        return {"skip_w": skip_w, "sums": "T.address_of(P[sums_at])"}

    def _place(self, to: str) -> tuple[str, str]:
        place = f"T.address_of(P[({to}) * {2 * WORD_PIXELS} + T.shift_right(p, 1) * 4])"
        return place, "T.bitwise_and(p, 1)"

    def put(self, source: str, to: str, run: str, rows: str, stride: str) -> None:
        """Into the lane of pixel p."""
        place, lane = self._place(to)
        self.call(put_halves(), f"T.address_of(X[{source}])", place, run, rows, stride, lane)

    def pad(self, to: str) -> None:
        """The zero point."""
        place, lane = self._place(to)
        self.call(fill_halves(), place, "channels", "in_zero", lane)


for _format in FORMATS.values():
    if _format.bits in (2, 4, 8):  # others would straddle bytes, which costs more than it saves there
        register(NarrowRow("conv2d", _format), "armv6m")
        register(NarrowRow("linear", _format), "armv6m")
    if _format.bits in (2, 4):
        register(HalvesRow("conv2d", _format), "armv6m")
