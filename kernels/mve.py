"""Helium rows (Cortex-M55): convolution and linear layers with weights of every format.

A tile of gathered pixels goes through all output channels in one assembly function (see mve_block); windows are padded
to a multiple of 16 codes, which meet zero weights, or zeros where a codebook may not hold 0. VRMULH is exactly the one
rounding rule. Geometry is passed as scalars: all layers of a format share one function.

Packed weights of four channels are decoded once per tile into a buffer of 4 * K bytes, never as a tensor. That costs 2
to 4 instructions per 128 multiply-accumulates; in the multiply loop it would be 2 to 6, with a gathering load, which
reads byte by byte, before every second multiplication. A linear layer has one pixel and nothing to share: it decodes in
the loop. A 1x1 convolution reads its input in place and is one tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, Int8, UInt8, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape
from .mve_block import CHANNELS, CHUNK, PLANES, STACK_ARGS, BlockTile, fill_run, move_run
from .mvegather import STACK_ARGS as GATHER_ARGS
from .mvegather import gather_tile
from .snippets import channel_consts
from .windows import WindowWriter

WINDOWS = 4608  # bytes of gathered windows, unless four pixels need more


def _row(shape: Shape) -> int:
    """Bytes of one window, padded to whole chunks."""
    return -(-shape.row // CHUNK) * CHUNK


def blocks_of(fmt: WeightFormat, codes: Int8) -> Int8 | UInt8:
    """Codes (O, K) as (blocks of 4 channels, chunks of 16 codes, bytes): the planes of mve_block, last first."""
    blocks, chunks = -(-len(codes) // CHANNELS), -(-codes.shape[1] // CHUNK)
    padded = np.zeros((blocks * CHANNELS, chunks * CHUNK), np.int8)
    padded[: len(codes), : codes.shape[1]] = codes
    cut = np.ascontiguousarray(padded.reshape(blocks, CHANNELS, chunks, CHUNK).transpose(0, 2, 1, 3))
    if fmt.bits == 8:
        return cut.reshape(blocks, chunks, -1)
    parts, low = [], 0
    for width in PLANES[fmt.bits]:
        parts.append(_plane(cut.view(np.uint8) >> low & (2**width - 1), width))
        low += width
    return np.ascontiguousarray(np.concatenate(parts[::-1], axis=2))


def _plane(fields: UInt8, width: int) -> UInt8:
    """Fields (blocks, chunks, 4, 16) of `width` bits -> bytes (blocks, chunks, 8 * width)."""
    blocks, chunks = fields.shape[:2]
    if width == 1:  # the bits of two neighbours k share a byte
        pairs = fields.reshape(blocks, chunks, CHANNELS, CHUNK // 2, 2).transpose(0, 1, 4, 2, 3)
        grouped = pairs.reshape(blocks, chunks, 1, 8, CHUNK // 2)
    else:
        grouped = fields.reshape(blocks, chunks, -1, 8 // width, CHUNK)
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(-1, 1)
    packed: UInt8 = np.bitwise_or.reduce(grouped << shifts, axis=3)
    return packed.reshape(blocks, chunks, -1)


@dataclass(frozen=True, slots=True)
class MveRow:
    """One row: a weight format; conv2d by tiles of pixels, linear by its one pixel."""

    op: str
    format: WeightFormat
    pixels: int  # of a tile, at most

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups."""
        return node.format == self.format and node.attrs.get("groups", 1) == 1

    def direct(self, shape: Shape) -> bool:
        """Whether the input is read in place: pixels are whole chunks, and pairs of them whole."""
        return shape.pointwise and shape.row % CHUNK == 0 and (self.op == "linear" or shape.pixels % 2 == 0)

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """A gathered tile's outputs are written after its windows were read."""
        shape = Shape.of(graph, node)
        return shape.shrinking and not self.direct(shape)

    def tile(self, node: Node) -> BlockTile:
        """The assembly function this node needs."""
        pixels = 1 if self.op == "linear" else 2
        return BlockTile(pixels, self.format.bits, self.format.codebook, node.attrs["shift"] > 0, has_residual(node))

    def tile_pixels(self, shape: Shape) -> int:
        """Pixels of a tile."""
        if self.direct(shape) or self.op == "linear":
            return shape.pixels
        fit = max(WINDOWS // _row(shape) & ~1, 4)
        return min(self.pixels, fit, shape.pixels + shape.pixels % 2)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Chunks, what surrounds them per pixels of the loop, per four channels and per tile, and gathering."""
        shape, tile = Shape.of(graph, node), self.tile(node)
        chunks, blocks = _row(shape) // CHUNK, -(-shape.out_channels // CHANNELS)
        tiles = -(-shape.pixels // self.tile_pixels(shape))
        turns = -(-shape.pixels // tile.pixels)
        turn = chunks * tile.chunk_length + (32.0 if tile.pixels == 2 else 6.0) + 26.0 * tile.residual
        block = 20.0 + (chunks * tile.decode_length if tile.buffered else 0)
        run = -(-shape.kernel[1] * shape.channels // CHUNK)
        gather = 0.0 if self.direct(shape) else shape.pixels * (35 + shape.kernel[0] * (8 + 3 * run))
        return blocks * (turns * turn + tiles * block) + tiles * 60 + gather

    def decoded_at(self, shape: Shape) -> int:
        """Byte of the workspace where the decoded channels begin."""
        return 0 if self.direct(shape) else self.tile_pixels(shape) * _row(shape)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The windows of a tile and four decoded channels."""
        shape = Shape.of(graph, node)
        return self.decoded_at(shape) + (CHANNELS * _row(shape) if self.tile(node).buffered else 0)

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights in blocks, (bias x 4, multiplier x 4) per block, codebook."""
        shape = Shape.of(graph, node)
        weights = blocks_of(self.format, node.consts["codes"].reshape(shape.out_channels, -1))
        table = np.zeros((2, len(weights) * CHANNELS), np.int32)
        table[:, : shape.out_channels] = list(channel_consts(node).values())
        packed: dict[str, NDArray[Any]] = {"weights": weights}
        packed["bias_multiplier"] = np.ascontiguousarray(table.reshape(2, -1, CHANNELS).transpose(1, 0, 2))
        if self.format.codebook:
            packed["codebook"] = np.zeros(2**self.format.bits, np.int8)
            packed["codebook"][: len(node.consts["codebook"])] = node.consts["codebook"]
        return packed

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather the windows of a tile, call the assembly, and so on."""
        return _Writer(self, graph, node).write()


class _Writer(WindowWriter):
    """Writes one function of a MveRow."""

    def __init__(self, row: MveRow, graph: LoweredGraph, node: Node) -> None:
        self.row, self.tile = row, row.tile(node)
        shape = Shape.of(graph, node)
        super().__init__(row.tile_pixels(shape), graph, node, "int8" if row.format.bits == 8 else "uint8")
        s = self.source
        if row.format.codebook:
            s.const("E", "codebook", "int8")
        s.integer("row", _row(shape))
        s.integer("decoded_at", row.decoded_at(shape))

    def write(self) -> Code:
        """The whole function."""
        s = self.source
        start = "t * tile * out_channels"
        scratch = "T.address_of(P[decoded_at])"
        chunks = _row(self.shape) // CHUNK
        add_right = -self.node.attrs["add_shift"] if self.tile.residual else 0
        known = {
            "decoded": scratch, "table": "T.address_of(E[0])" if self.row.format.codebook else scratch,
            "residual": f"T.address_of(R[{start}])" if self.tile.residual else scratch, "row": "row",
            "chunks": s.integer("chunks", chunks), "entry": s.integer("entry", self.tile.entry(chunks)),
            "channels": "out_channels", "valid": "valid", "stride": "out_channels",
            "add_right": s.integer("add_right", add_right),
        }  # fmt: skip
        x = "X[0]" if self.row.direct(self.shape) else "P[0]"
        pointers = (x, "W[0]", "B[0]", f"Y[{start}]")
        arguments = [*(f"T.address_of({p})" for p in pointers), *self.stack_arguments(STACK_ARGS, known)]
        if self.row.direct(self.shape):
            return self.undivided(lambda: self.call(self.tile.function(), *arguments))
        if self.row.format.codebook and self.shape.row % CHUNK:  # code 0 need not be the value 0
            with s.block("for p in range(T.max(tile, 1)):"):
                self.call(fill_run(), "T.address_of(P[p * row + kh * run])", "row - kh * run", "0")
        if self.shape.pointwise and self.shape.row % CHUNK == 0:
            return self._copied(arguments)
        if self.shape.dilation[1] == 1:
            return self._gathered(arguments)
        return self.code(lambda: self.call(self.tile.function(), *arguments))

    def _copied(self, arguments: list[str]) -> Code:
        """The pixels of a pointwise layer's tile are copied at once."""
        s = self.source
        with s.block("for t in range(T.max(tiles, 1)):"):
            s("valid: T.let[T.int32] = T.min(pixels - t * tile, tile)")
            self.call(move_run(), "T.address_of(X[t * tile * row])", "T.address_of(P[0])", "valid * row")
            self.call(self.tile.function(), *arguments)
        return s.code()

    def _gathered(self, arguments: list[str]) -> Code:
        """All windows of a tile by one call."""
        s, shape = self.source, self.shape
        s.integer("out_width", shape.out_width)
        # first rows and columns that keep the window inside the input
        s.integer("inside_y", max(shape.height - (shape.kernel[0] - 1) * shape.dilation[0], 0))
        s.integer("inside_x", max(shape.width - shape.kernel[1] + 1, 0))
        known = {"count": "valid", "line": "width * channels", "down": "dy * width * channels"}
        with s.block("for t in range(T.max(tiles, 1)):"):
            s("valid: T.let[T.int32] = T.min(pixels - t * tile, tile)")
            s("oy: T.let[T.int32] = T.truncdiv(t * tile, out_width)")
            places = ("oy * sy + first_y", "(t * tile - oy * out_width) * sx + first_x")
            pointers = ("T.address_of(X[0])", "T.address_of(P[0])")
            self.call(gather_tile(), *pointers, *places, *(known.get(name, name) for name in GATHER_ARGS))
            self.call(self.tile.function(), *arguments)
        return s.code()

    def move(self, source: str, to: str, count: str) -> None:
        """Copy bytes."""
        self.call(move_run(), f"T.address_of(X[{source}])", f"T.address_of(P[p * row + {to}])", count)

    def pad(self, to: str) -> None:
        """The zero point."""
        self.call(fill_run(), f"T.address_of(P[p * row + {to}])", "channels", "in_zero")


def _register(op: str, name: str, pixels: int) -> None:
    row = MveRow(op, FORMATS[name], pixels)
    kernel = f"{op}_s8_{row.format.short}_{pixels}x{CHANNELS}__mve"
    parts = (row.applies, row.cost, row.workspace, row.pack, row.emit, row.in_place)
    KERNELS.add(kernel, Kernel(kernel, op, row.format.short, "mve", *parts))


for _name in FORMATS:
    _register("conv2d", _name, 8 if FORMATS[_name].bits == 8 else 16)
    _register("linear", _name, 1)
