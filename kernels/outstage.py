"""From sums to codes by vectors: what the output stages of all vector instruction sets share.

Up to 16 channels of a pixel at a time are requantised, get the residual where there is one, are clamped and stored. The
zero point is added with saturation in int16, which the clamp to int8 cannot tell from int32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from xdeploy.lir.graph import Node
from xdeploy.lir.ops import has_residual

from .snippets import Source
from .vectors import ramp, shuffle

_MOST = 16  # codes that are written together


def added_constant(node: Node) -> int:
    """What is added to a residual addition's products: the zero point in it, which leaves the clamp for that.

    Modulo 2^32, as in the register.
    """
    a = node.attrs
    return int((a["add_const"] + a["out_zero"] * a["add_a"] + (1 << 31)) % (1 << 32) - (1 << 31))


def scaled_range(node: Node) -> tuple[int, int]:
    """The least and the greatest scaled sum, before its zero point, that any codes of the input could give."""
    weights, zero = node.values.reshape(len(node.values), -1).astype(np.int64), int(node.attrs["in_zero"])
    ends = [weights * (code - zero) for code in (-128, 127)]
    sums = np.stack([np.minimum(*ends).sum(axis=1), np.maximum(*ends).sum(axis=1)]) + node.consts["bias"]
    scaled = ((sums << int(node.attrs["shift"])) * node.consts["multiplier"].astype(np.int64) + (1 << 31)) >> 32
    return int(scaled.min()), int(scaled.max())


def fits_int16(node: Node) -> bool:
    """Whether it is proven that scaled sums fit into int16."""
    least, greatest = scaled_range(node)
    return -(1 << 15) <= least <= greatest < 1 << 15


class TileStage(ABC):
    """Writes the outputs of tiles on `source`."""

    def __init__(self, source: Source, node: Node) -> None:
        self.s, self.a, self.residual, self._count = source, node.attrs, has_residual(node), 0

    @abstractmethod
    def tile(
        self, sums: Sequence[Sequence[str]], multipliers: Sequence[str], at: Sequence[str], channels: int, lanes: int
    ) -> None:
        """Write `channels` codes of each pixel, which begin at these places.

        sums: by pixel and group of `lanes` channels, the last of which may not be whole; multipliers: by group.
        """

    def words(self) -> bool:
        """Whether `apart` can be used; to be asked once, before."""
        return False

    def apart(self, sums: Sequence[str], multiplier: str, places: Sequence[str], valid: Sequence[str] = ()) -> None:
        """Write one group of four channels of up to four pixels, which stand at these places in quads of codes.

        valid: for each pixel a test, or an empty text; where the test fails its codes are not written.
        """
        raise NotImplementedError

    def bind(self, value: str) -> str:
        """A name for a value; no name is used twice."""
        self._count += 1
        self.s(f"v{self._count} = {value}")
        return f"v{self._count}"


class OutStage(TileStage):
    """Groups of up to 16 channels of a pixel; declares its scalars on `source`."""

    def __init__(self, source: Source, node: Node) -> None:
        super().__init__(source, node)
        a = node.attrs
        if not self.residual:
            source.integer("out_zero", a["out_zero"])
            return
        source.input(1, "R")
        source.integer("low", a["low"] - a["out_zero"])
        source.integer("high", a["high"] - a["out_zero"])
        for name, value in (("add_a", a["add_a"]), ("add_b", a["add_b"]), ("add_const", added_constant(node))):
            source.integer(name, value)

    def __call__(self, sums: Sequence[str], multipliers: Sequence[str], at: str, channels: int) -> None:
        """Write `channels` codes (1 to 16) at `at`: one sum and one multiplier vector per group of channels."""
        prefix = "add_" if self.residual else ""
        low, high = self.a[f"{prefix}low"], self.a[f"{prefix}high"]
        value = self.codes(list(sums), list(multipliers), at, channels)
        self._store(self._clamped(value, low, high, 16 if channels > 8 else 8), at, channels)

    def tile(
        self, sums: Sequence[Sequence[str]], multipliers: Sequence[str], at: Sequence[str], channels: int, lanes: int
    ) -> None:
        """Pixel after pixel."""
        for row, place in zip(sums, at, strict=True):
            for start in range(0, channels, _MOST):
                count = min(_MOST, channels - start)
                part = slice(start // lanes, -(-(start + count) // lanes))
                self(row[part], multipliers[part], self.s.let(f"{place} + {start}"), count)

    @abstractmethod
    def codes(self, sums: list[str], multipliers: list[str], at: str, channels: int) -> str:
        """int8x16, or int8x8 of up to eight channels, before bounds that are tighter than int8."""

    def _clamped(self, value: str, low: int, high: int, lanes: int) -> str:
        """`value` within the bounds that saturation does not give already."""
        if high < 127:
            value = f"T.min({value}, T.broadcast(T.int8({high}), {lanes}))"
        if low > -128:
            value = f"T.max({value}, T.broadcast(T.int8({low}), {lanes}))"
        return self.bind(value)

    def _store(self, value: str, at: str, channels: int) -> None:
        start = 0
        lanes = 16 if channels > 8 else 8
        for size in (16, 8, 4, 2, 1):
            while channels - start >= size:
                part = value if size == lanes else shuffle([value], range(start, start + size))
                index = ramp(f"{at} + {start}", size) if size > 1 else f"{at} + {start}"
                self.s(f"Y[{index}] = {part}")
                start += size
