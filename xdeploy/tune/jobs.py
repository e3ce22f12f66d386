"""What is measured: one kernel row on one node, and the figures that come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8
from xdeploy.kernel import Code
from xdeploy.lir.graph import Node
from xdeploy.lir.ops import OPS


@dataclass(frozen=True, slots=True)
class Job:
    """One kernel row on one node: what has to be compiled and run, with the node's real constants."""

    key: str  # of the cache: equal keys have equal figures
    work: str  # the same but for the code that measures: key of the figures that ship
    kernel: str
    node: Node
    shapes: tuple[tuple[int, ...], ...]  # of the inputs
    code: Code
    constants: Mapping[str, NDArray[Any]]
    workspace: int  # bytes
    copies: int = 1  # of the constants, read in turns where time is measured

    def inputs(self) -> tuple[Int8, ...]:
        """Codes (2, *shape) of each input: random ones, which are counted, and the two extremes alone.

        Every row on a node of these shapes gets the same. The extremes overflow what can overflow.
        """
        rng = np.random.default_rng([len(self.shapes), *(n for s in self.shapes for n in s)])
        pairs = [(rng.integers(-128, 128, s), rng.choice([-128, 127], s)) for s in self.shapes]
        return tuple(np.stack(pair).astype(np.int8) for pair in pairs)

    def expected(self) -> Int8:
        """The reference's output codes (2, *shape)."""
        return OPS[self.node.op].run(self.node, list(self.inputs()))


@dataclass(frozen=True, slots=True)
class Figures:
    """What one job cost, on one input.

    instructions: executed, where the runner counts. cycles: from the target's table, where it has one. nanoseconds:
    measured on this machine, host targets only. code: bytes of the function; helpers: of functions
    in assembly that it shares with other kernels. differing: output codes that are not
    the reference's; anything but 0 keeps the row out. failure: why it could not be measured.
    """

    instructions: int | None = None
    cycles: int | None = None
    nanoseconds: float | None = None
    code: int = 0
    helpers: Mapping[str, int] = field(default_factory=dict)
    differing: int = 0
    failure: str | None = None

    @property
    def sound(self) -> bool:
        """Whether the row may be chosen."""
        return self.failure is None and self.differing == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @staticmethod
    def from_dict(value: Any) -> Figures:
        """Read the JSON form.

        Raises:
            ValueError: it is not one.
        """
        if not isinstance(value, dict):
            raise ValueError("no object")
        kinds: dict[str, tuple[type, ...]] = {
            "instructions": (int, type(None)), "cycles": (int, type(None)), "nanoseconds": (float, int, type(None)),
            "code": (int,), "helpers": (dict,), "differing": (int,), "failure": (str, type(None)),
        }  # fmt: skip
        if set(value) != set(kinds) or any(type(value[k]) not in allowed for k, allowed in kinds.items()):
            raise ValueError(f"not the figures of a kernel: {sorted(value)}")
        sizes = list(value["helpers"].values())
        if (
            any(type(v) is not int for v in sizes)
            or min((v for v in (*value.values(), *sizes) if _number(v)), default=0) < 0
        ):
            raise ValueError("a figure that no kernel has")
        return Figures(**value)


def _number(value: object) -> bool:
    return isinstance(value, int | float)
