"""Gathering the windows of a tile of output pixels into the workspace, with all geometry as scalar arguments.

Rows that build on this differ in how a run of codes is moved and in what is computed on the gathered tile. As no shape
stands in the text, the layers of a network share one function per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual

from .conv import Shape
from .snippets import Source


def window_scalars(shape: Shape, pixels: int) -> dict[str, int]:
    """The geometry of gathering windows, passed as scalars so that all shapes share one function."""
    return {
        "tile": pixels, "tiles": -(-shape.pixels // pixels), "pixels": shape.pixels, "height": shape.height,
        "width": shape.width, "channels": shape.channels, "kh": shape.kernel[0], "kw": shape.kernel[1],
        "dy": shape.dilation[0], "dx": shape.dilation[1], "sy": shape.stride[0], "sx": shape.stride[1],
        "first_y": -shape.pads[0], "first_x": -shape.pads[1], "run": shape.kernel[1] * shape.channels,
        # windows that begin in column 0..reach lie inside the row; a dilated one is never one run
        "reach": shape.width - shape.kernel[1] if shape.dilation[1] == 1 else -1,
        "last_x": shape.out_width * shape.stride[1] - shape.pads[1], "out_channels": shape.out_channels,
    }  # fmt: skip


class WindowWriter(ABC):
    """Writes a function that gathers the windows of a tile of pixels and calls assembly functions on them."""

    def __init__(self, pixels: int, graph: LoweredGraph, node: Node, weights: str) -> None:
        self.pixels, self.node, self.shape = pixels, node, Shape.of(graph, node)
        self.source = s = Source()
        s.input(0, "X")
        s.const("W", "weights", weights)
        s.const("B", "bias_multiplier", "int32")
        if has_residual(node):
            s.input(1, "R")
        s.output("Y")
        s.workspace("P", "int8")
        s.local("at", 2)
        for name, value in window_scalars(self.shape, pixels).items():
            s.integer(name, value)
        s.integer("in_zero", node.attrs["in_zero"])
        self.call = s.call

    @abstractmethod
    def move(self, source: str, to: str, count: str) -> None:
        """Copy `count` contiguous input codes to position `to` of the window of pixel p."""

    @abstractmethod
    def pad(self, to: str) -> None:
        """Write the padding of one tap (all channels) at position `to` of the window of pixel p."""

    def finish(self) -> None:  # noqa: B027 - most writers have nothing to do
        """Do what is left when the window of pixel p is complete."""

    def stack_arguments(self, names: Sequence[str], known: Mapping[str, str]) -> list[str]:
        """Values of the tile function's stack arguments: `known` expressions, else attributes as scalars, else 0."""
        a = self.node.attrs
        return [known.get(n) or (self.source.integer(n, a[n]) if n in a else "0") for n in names]

    def code(self, tile: Callable[[], None]) -> Code:
        """The loops over tiles and pixels around gathering and the statements that `tile` writes."""
        s = self.source
        s("at[0] = first_y", "at[1] = first_x")
        # T.max(n, 1) tells LLVM that no loop is empty, which spares it a second copy of what follows
        with s.block("for t in range(T.max(tiles, 1)):"):
            s("valid: T.let[T.int32] = T.min(pixels - t * tile, tile)")
            with s.block("for p in range(T.max(valid, 1)):"):
                self._window()
            tile()
        return s.code()

    def undivided(self, tile: Callable[[], None]) -> Code:
        """All pixels as one tile whose windows are read where they lie."""
        with self.source.block("for t in range(T.max(tiles, 1)):"):
            self.source("valid: T.let[T.int32] = tile")
            tile()
        return self.source.code()

    def gather(self) -> None:
        """Write the window of pixel p, whose first tap is (at[0], at[1]) and may lie outside the input."""
        s = self.source
        with s.block("for ky in range(T.max(kh, 1)):"):
            s("iy: T.let[T.int32] = at[0] + ky * dy")
            with s.block("if iy >= 0 and iy < height and at[1] >= 0 and at[1] <= reach:"):
                self.move("(iy * width + at[1]) * channels", "ky * run", "run")
            with s.block("else:"), s.block("for kx in range(T.max(kw, 1)):"):
                s("ix: T.let[T.int32] = at[1] + kx * dx")
                with s.block("if iy >= 0 and iy < height and ix >= 0 and ix < width:"):
                    self.move("(iy * width + ix) * channels", "ky * run + kx * channels", "channels")
                with s.block("else:"):
                    self.pad("ky * run + kx * channels")

    def _window(self) -> None:
        s = self.source
        self.gather()
        self.finish()
        s("at[1] = at[1] + sx")
        with s.block("if at[1] == last_x:"):
            s("at[1] = first_x", "at[0] = at[0] + sy")
