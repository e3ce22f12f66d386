"""Vector expressions in TVMScript that every instruction set shares."""

from __future__ import annotations

from collections.abc import Sequence


def ramp(start: str, lanes: int) -> str:
    """Index of `lanes` elements from `start`."""
    return f"T.ramp({start}, 1, {lanes})"


def shuffle(vectors: Sequence[str], lanes: Sequence[int]) -> str:
    """A vector of some lanes of one or two others."""
    return f"T.Shuffle([{', '.join(vectors)}], {list(lanes)})"


def as_type(dtype: str, value: str) -> str:
    """The same bits as another type."""
    return f'T.reinterpret("{dtype}", {value})'


def half(value: str, index: int, lanes: int) -> str:
    """The lower or upper half (0, 1) of a vector of `lanes` lanes."""
    return shuffle([value], range(index * lanes // 2, (index + 1) * lanes // 2))
