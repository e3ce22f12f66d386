"""What an operator's row sees and gives: operands known or computed from the data, attributes, and a step or a refusal.

Every tensor that depends on the data has the batch as its first axis; shapes are per sample, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from xdeploy.model.onnxgraph.module import Part
from xdeploy.onnxfile import OnnxNode

Array = NDArray[Any]
Shape = tuple[int, ...]
BATCHES = (2, 3)  # shape arithmetic is done for two batch sizes; what differs depends on the batch


class Refused(Exception):  # noqa: N818 (an obstacle that is collected, never the user's error itself)
    """An operator that cannot become a step; `attribute` is the one to blame, if any."""

    def __init__(self, reason: str, rewrite: str = "", attribute: str = "") -> None:
        super().__init__(reason)
        self.reason, self.rewrite, self.attribute = reason, rewrite, attribute


@dataclass(frozen=True, slots=True)
class Data:
    """A tensor computed from the network's input: its name and its shape per sample."""

    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor that does not depend on the data: its value at each size of BATCHES (one object if equal)."""

    first: Array
    second: Array

    @staticmethod
    def constant(array: Array) -> Known:
        """A value that is the same for every batch size."""
        return Known(array, array)

    @property
    def fixed(self) -> bool:
        """Whether the batch size does not matter."""
        return self.first is self.second or (
            self.first.shape == self.second.shape and bool(np.array_equal(self.first, self.second))
        )


@dataclass(frozen=True, slots=True)
class Unknown:
    """A result of a refused node whose shape is not known: only the attributes of what reads it are judged.

    `data` is False for what is computed from its shape alone.
    """

    data: bool = True


Operand = Data | Known | Unknown


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the module and the tensors it reads, in the order of its arguments."""

    part: Part
    reads: tuple[Data, ...]


@dataclass(slots=True)
class Call:
    """One node with its operands; the methods refuse what does not fit."""

    node: OnnxNode
    opset: int
    operands: Sequence[Data | Known | None]
    remarks: list[Refused] = field(default_factory=list)  # it runs, but has no form on a device

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.node.attrs.get(name, default)

    def has(self, index: int) -> bool:
        """Whether an optional operand is there."""
        return index < len(self.operands) and self.operands[index] is not None

    def data(self, index: int = 0) -> Data:
        """An operand that has to depend on the data."""
        found = self.operands[index] if self.has(index) else None
        if not isinstance(found, Data):
            raise Refused(f"operand {index} is {'missing' if found is None else 'a constant'}; it has to be the data")
        return found

    def known(self, index: int, what: str) -> Known | None:
        """An optional operand that must not depend on the data."""
        found = self.operands[index] if self.has(index) else None
        if isinstance(found, Data):
            raise Refused(f"its {what} is computed from the input", f"a constant {what}")
        return found

    def constant(self, index: int, what: str) -> Array | None:
        """Like `known`, but the same for every batch size."""
        found = self.known(index, what)
        if found is not None and not found.fixed:
            raise Refused(f"its {what} depends on the batch size", f"a constant {what}")
        return None if found is None else found.first

    def weight(self, index: int, what: str = "weight") -> torch.Tensor:
        """A constant operand that has to be there, as float32."""
        found = self.constant(index, what)
        if found is None:
            raise Refused(f"its {what} is missing")
        return tensor(found)

    def optional(self, index: int, what: str) -> torch.Tensor | None:
        """A constant operand as float32, or None."""
        return self.weight(index, what) if self.has(index) else None

    def scalar(self, index: int, what: str) -> float | None:
        """A constant operand of one element."""
        found = self.constant(index, what)
        if found is None:
            return None
        if found.size != 1:
            raise Refused(f"its {what} has shape {found.shape}; one value is supported", attribute=what)
        return float(found.reshape(-1)[0])

    def ints(self, name: str, index: int | None = None, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
        """Integers of an attribute, or of operand `index` where newer opsets moved them."""
        if index is not None and self.has(index):
            found = self.constant(index, name)
            return None if found is None else tuple(int(v) for v in found.reshape(-1))
        value = self.attr(name)
        if value is None:
            return None if default is None else tuple(default)
        return tuple(int(v) for v in ([value] if isinstance(value, int | float) else value))

    def axis(self, value: int, rank: int | None = None, *, reason: str = "works along the batch axis") -> int:
        """An axis counted from 0, batch included; the batch itself is refused."""
        rank = len(self.data().shape) + 1 if rank is None else rank
        if not -rank <= value < rank:
            raise Refused(f"axis {value} is outside a tensor of {rank} axes", attribute="axis")
        if value % rank == 0:
            raise Refused(f"{reason}; samples are independent of each other", attribute="axis")
        return value % rank

    def remark(self, reason: str, rewrite: str = "", attribute: str = "") -> None:
        """Note that the node runs in float but cannot be deployed."""
        self.remarks.append(Refused(reason, rewrite, attribute))

    def single_output(self) -> None:
        """Refuse a second result that somebody may read."""
        if any(self.node.outputs[1:]):
            raise Refused(f"its second result {self.node.outputs[1]!r} is read", "the first result only")

    def step(self, run: Callable[..., Any], *reads: Data, **parts: torch.Tensor | Part) -> Step:
        """A step that reads the given operands (operand 0 if none); `parts` are its parameters, constants, parts."""
        return Step(Part(run, **parts), reads or (self.data(),))


Row = Callable[[Call], Step | Data]
R = TypeVar("R", bound=Row)
ROWS: dict[str, Row] = {}
Check = Callable[[Call], None]
C = TypeVar("C", bound=Check)
CHECKS: dict[str, list[Check]] = {}  # what the attributes alone tell, run before the row and where shapes are unknown


def operator(*names: str) -> Callable[[R], R]:
    """Decorator that enters the row of one or more operators."""

    def enter(row: R) -> R:
        ROWS.update(dict.fromkeys(names, row))
        return row

    return enter


def attributes(*names: str) -> Callable[[C], C]:
    """Decorator that enters a check of attributes, without operands, for one or more operators."""

    def enter(check: C) -> C:
        for name in names:
            CHECKS.setdefault(name, []).append(check)
        return check

    return enter


def tensor(array: Array) -> torch.Tensor:
    """A float32 torch copy of a constant."""
    return torch.from_numpy(np.array(array, dtype=np.float32))
