"""What the ways of multiplying codes with weights have in common, of every vector instruction set, as TVMScript.

One class per feature level. Each says how the weights of a group of output channels lie in memory, how the codes of a
few pixels meet them, and how accumulators become the sums of a pixel. Accumulators start with the bias unless it is
`late`, added to the sums. All levels compute the same int32 sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from xdeploy.formats import Int8, Int32
from xdeploy.lir.graph import LoweredGraph, Node

from .outstage import TileStage
from .snippets import Source

CHUNK = 16  # codes in 128 bits
Codes = Callable[[int, int, int], str]
Bind = Callable[[str], str]  # gives an expression a name
# (bytes, instructions): in networks with more int8 weights than that, each byte read could have been so many
Waits = tuple[tuple[int, float], ...]


class Product(ABC):
    """One feature level's multiplication. P pixels and V groups of channels are in registers at a time."""

    isa: str
    lanes: int  # output channels of a group: one requantised vector
    dtype: str  # of the codes as they are read; another than int8 asks for a copy of the image
    chunk: int  # codes of a run that are multiplied at a time
    unrolled: int = 1  # most chunks of one turn of the loop over a long run
    late: bool = False  # accumulators begin with zeros, and sums get the bias at the end
    unit: int  # codes of one channel that stand together in the packed weights
    vectors: int  # accumulators per pixel and group; a pair of pixels counts as two
    offset: int = 0  # what the copy of the image adds to codes
    most_pixels: int = 12  # of a tile
    folds: bool = False  # whether a tile may be whole rows of the image
    exact: tuple[int, ...]  # codes at the end of a run that can be read without reading on
    fields: int = 1  # weights in a byte
    waits: Waits = ()  # for weights of linear layers, rising; empty: unknown
    streams: Waits = ()  # for those of convolutions

    def rounded(self, codes: int) -> int:
        """Codes at the end of a run, padded to what this level multiplies."""
        return -(-codes // self.unit) * self.unit

    def order(self, groups: int) -> list[int]:
        """The channel of a tile of so many groups that stands at each place of packed weights and constants."""
        return list(range(groups * self.lanes))

    def weights(self, node: Node) -> Int8:
        """What `pack` gets of the node's weights."""
        return node.values

    def blank(self, node: Node) -> int:
        """What `pack` gets where there is no weight, a 0."""
        return 0

    def constants(self, node: Node) -> Mapping[str, NDArray[Any]]:
        """Constants that multiplying needs besides weights."""
        return {}

    def declare(self, source: Source, node: Node) -> None:  # noqa: B027  most have nothing to declare
        """What a function holds from its beginning."""

    def waiting(self, graph: LoweredGraph, node: Node) -> float:
        """Instructions that could run while the weights of a layer come from caches that are farther away.

        Which caches is told by the weights of the whole network, as int8: every inference replaces what the next one
        begins with.
        """
        waits = self.waits if node.op == "linear" else self.streams
        wait = max((each for size, each in waits if graph.weights > size), default=0.0)
        return wait * node.consts["codes"].size / self.fields

    @abstractmethod
    def registers(self, node: Node) -> int:
        """Vector registers that a tile may use."""

    @abstractmethod
    def after(self, node: Node) -> float:
        """Instructions of the output stage for a pixel's group."""

    @abstractmethod
    def stage(self, source: Source, node: Node) -> TileStage:
        """The output stage, its scalars declared on `source`."""

    @abstractmethod
    def multipliers(self, node: Node, multiplier: Int32) -> Int32:
        """The requantisation's multipliers as the output stage reads them."""

    @abstractmethod
    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Whether a tile stays in so many registers."""

    @abstractmethod
    def accumulators(self, pixels: int, groups: int) -> int:
        """Vectors of int32 that a tile needs."""

    @abstractmethod
    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """Instructions that multiply `codes` codes, rounded, of every pixel with the weights of every group."""

    @abstractmethod
    def sum_cost(self) -> float:
        """Instructions per pixel and group from accumulators to sums."""

    @abstractmethod
    def pack(self, codes: Int8) -> Int8:
        """The weights (blocks, V groups of channels, rounded codes of a part) in the order they are read, per block."""

    @abstractmethod
    def start(self, bias: Int32) -> Int32:
        """What accumulators of one pixel begin with: bias (channels, whole groups) -> (vectors, lanes)."""

    @abstractmethod
    def clear(self, s: Source, pixels: int, groups: int, at: str) -> None:
        """Set the accumulators; `at` is the first channel's index into the bias."""

    @abstractmethod
    def multiply(
        self, s: Source, bind: Bind, pixels: int, groups: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Add the products of `codes` codes.

        bind(expression) is its name. x(pixel, offset, lanes) is a vector of codes, `w` the index of the weights; with
        `slack` a whole vector may be read where fewer codes are left.
        """

    @abstractmethod
    def sum(self, pixel: int, group: int, groups: int) -> str:
        """The vector of a pixel's sums for a group of channels."""
