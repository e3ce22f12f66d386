"""What the planner places: byte ranges with lifetimes, some of them tied to each other, and the plan's result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Buffer:
    """`size` bytes that must keep their place from step `first` to step `last`, both included.

    Buffers of one `group` lie at fixed distances: each `shift` bytes above where the group begins. An empty group means
    that the buffer stands alone.
    """

    name: str
    size: int
    first: int
    last: int
    group: str = ""
    shift: int = 0

    def overlaps(self, other: Buffer) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets by buffer name, the arena's size, the largest live set, and which order found the placement."""

    offsets: Mapping[str, int]
    arena: int
    lower_bound: int
    found_by: str

    @property
    def gap(self) -> int:
        """Bytes above the lower bound; 0 is proven optimal."""
        return self.arena - self.lower_bound


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """Bytes of the largest set of buffers alive at one step."""
    deltas: dict[int, int] = {}
    for b in buffers:
        deltas[b.first] = deltas.get(b.first, 0) + b.size
        deltas[b.last + 1] = deltas.get(b.last + 1, 0) - b.size
    live = peak = 0
    for step in sorted(deltas):
        live += deltas[step]
        peak = max(peak, live)
    return peak


def height_of(buffers: Iterable[Buffer], offsets: Mapping[str, int]) -> int:
    """Bytes up to the end of the highest buffer."""
    return max((offsets[b.name] + b.size for b in buffers), default=0)
