"""What handlers of ONNX operators share: their type, and reading and moving their operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments
from xdeploy.lower.place import moved
from xdeploy.lower.values import Codes, Pending, QConstant, Real, Stop, Value
from xdeploy.lower.views import laid, plain
from xdeploy.onnxfile import Constant, OnnxNode

Outcome = Value | tuple[Value, ...]  # several outputs only from Split
Mover = Callable[[Builder, OnnxNode, Arguments], Outcome]


def activation(value: Value | None) -> Codes | Real:
    """The operand as an activation.

    Raises:
        Stop: it is a constant or missing.
    """
    if isinstance(value, Codes | Real):
        return value
    raise Stop("wants an activation, got a constant" if value is not None else "an operand is missing")


def real(value: Value | None) -> Real:
    """The operand as a float activation.

    Raises:
        Stop: it is something else.
    """
    x = activation(value)
    if isinstance(x, Codes):
        raise Stop("works on integer codes", "DequantizeLinear before it")
    return x


def select(
    b: Builder, node: OnnxNode, x: Codes | Real, op: str, attrs: dict[str, Any], shape: tuple[int, ...]
) -> Codes | Real:
    """A movement of `place.PLACE`: at once where x stands on codes, else pending until its source has a scale.

    The movement and what is done element by element commute, except for padding after a function: that waits too,
    and so does padding with a number, which is a code only at the scale of the output.
    """
    index = laid(shape, attrs["order"]) if "order" in attrs else plain(shape)
    pending = Pending(op, node.origin, (), attrs)
    if isinstance(x, Codes):
        return moved(b, pending, x, index)
    steady = op in ("slice", "take") or (x.untouched and not (op == "pad" and attrs["value"]))
    if isinstance(x.source, Codes) and steady:
        codes = moved(b, pending, replace(x.source, index=x.index), index)
        return replace(x, source=codes, index=index)
    return Real(replace(pending, args=(x,)), index)


def number(value: Value | None) -> Any:
    """A constant's real values (an array), or None."""
    if isinstance(value, QConstant):
        return value.real
    return value.array if isinstance(value, Constant) else None


def sample_axis(axis: int, rank: int, what: str = "works along") -> int:
    """An ONNX axis (batch included) as an axis of the sample of `rank` axes.

    Raises:
        Stop: it is the batch axis, or none at all.
    """
    if not -rank - 1 <= axis <= rank:
        raise Stop(f"{what} axis {axis} of a tensor of rank {rank + 1}", attribute="axis")
    k = axis % (rank + 1) - 1
    if k < 0:
        raise Stop(f"{what} the batch axis", "one of the sample's axes", "axis")
    return k
