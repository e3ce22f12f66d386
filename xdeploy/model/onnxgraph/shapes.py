"""Rows of the operators that only see the data in another shape, or not differently at all.

A target shape that was written for one sample, (1, -1), or for the file's own batch means any batch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xdeploy.model.onnxgraph.rows import BATCHES, Call, Data, Known, Refused, Shape, Step, attributes, operator

_MIXES = "mixes the samples of a batch"


def _view(call: Call, shape: Shape) -> Step | Data:
    if shape == call.data().shape:
        return call.data()
    return call.step(lambda part, x: x.reshape(x.shape[0], *shape))


@operator("Reshape")
def _reshape(call: Call) -> Step | Data:
    target = call.known(1, "shape")
    if target is None:
        found = call.ints("shape")
        if found is None:
            raise Refused("its shape is missing")
        target = Known.constant(np.asarray(found, np.int64))
    return _view(call, per_sample(target, call.data().shape, bool(call.attr("allowzero", 0))))


def per_sample(target: Known, shape: Shape, allow_zero: bool) -> Shape:
    """The shape per sample that a target shape, batch included, means for data of `shape`."""
    dims: list[int | None] = []  # None: the batch
    for k, (a, b) in enumerate(zip(target.first.reshape(-1), target.second.reshape(-1), strict=True)):
        if a == 0 and b == 0 and not allow_zero:
            if k > len(shape):
                raise Refused(f"copies axis {k} of data that has {len(shape) + 1}", attribute="shape")
            dims.append(None if k == 0 else shape[k - 1])
        elif a == b:
            dims.append(int(a))
        elif (int(a), int(b)) == BATCHES:
            dims.append(None)
        else:
            raise Refused(_MIXES, "a view that keeps the first axis", "shape")
    if not dims or any(d is None for d in dims[1:]):
        raise Refused(_MIXES, "a view that keeps the first axis", "shape")
    return _resolved(dims[0], [d for d in dims[1:] if d is not None], shape)


def _resolved(first: int | None, rest: list[int], shape: Shape) -> Shape:
    """`rest` with its -1 filled in, if it holds exactly one sample."""
    size = int(np.prod([float(d) for d in shape]))
    free = [k for k, d in enumerate(rest) if d == -1]
    fixed = int(np.prod([float(d) for k, d in enumerate(rest) if k not in free]))
    if len(free) + (first == -1) > 1 or any(d < -1 for d in rest):
        raise Refused(f"cannot be resolved to a shape: {[first, *rest]}", attribute="shape")
    if free and fixed and size % fixed == 0:
        rest[free[0]] = size // fixed
    elif free or fixed != size:
        raise Refused(
            f"{_MIXES}: {size} values per sample become {['N' if first is None else first, *rest]}",
            "a view that keeps the first axis", "shape",
        )  # fmt: skip
    return tuple(rest)


@operator("Flatten")
def _flatten(call: Call) -> Step | Data:
    shape = call.data().shape
    axis = int(call.attr("axis", 1))
    axis = axis + len(shape) + 1 if axis < 0 else axis
    if axis != 1 and int(np.prod(shape[: axis - 1] if axis else [0])) != 1:
        raise Refused(f"axis={axis} {_MIXES}", "axis=1", "axis")
    return call.data() if len(shape) == 1 else call.step(lambda part, x: x.flatten(1))


@operator("Squeeze")
def _squeeze(call: Call) -> Step | Data:
    shape = call.data().shape
    axes = call.ints("axes", 1)
    if axes is None:
        return _view(call, tuple(d for d in shape if d != 1))
    gone = {call.axis(a, reason="takes the batch axis away") for a in axes}
    if any(shape[a - 1] != 1 for a in gone):
        raise Refused(f"takes axes {sorted(gone)} of {shape} per sample away, which are not 1", attribute="axes")
    return _view(call, tuple(d for k, d in enumerate(shape, 1) if k not in gone))


@operator("Unsqueeze")
def _unsqueeze(call: Call) -> Step | Data:
    axes = call.ints("axes", 1) or ()
    rank = len(call.data().shape) + 1 + len(axes)
    new = {call.axis(a, rank, reason="adds an axis before the batch") for a in axes}
    left = iter(call.data().shape)
    return _view(call, tuple(1 if k in new else next(left) for k in range(1, rank)))


@operator("Identity", "Dropout")
def _identity(call: Call) -> Data:
    if call.node.op == "Dropout":
        call.single_output()
        training = call.constant(2, "training_mode") if call.opset >= 12 else None
        if training is not None and bool(training.reshape(-1)[0]):
            raise Refused("drops at random (training_mode)", "export in evaluation mode", "training_mode")
    return call.data()


_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}  # numbers of TensorProto


@attributes("Cast")
def _stays_float(call: Call) -> None:
    if call.attr("to") not in _FLOATS:
        raise Refused("makes integers of the data", "float data throughout", "to")


@operator("Cast", "CastLike")
def _cast(call: Call) -> Data:
    """Between float types everything is float32 here, and images of bytes come as floats."""
    return call.data()


@operator("Transpose")
def _transpose(call: Call) -> Step | Data:
    rank = len(call.data().shape) + 1
    perm = tuple(call.attr("perm", tuple(reversed(range(rank)))))
    if sorted(perm) != list(range(rank)):
        raise Refused(f"perm={list(perm)} does not fit data of {rank} axes", attribute="perm")
    if perm[0] != 0:
        raise Refused(f"perm={list(perm)} moves the batch axis", "a permutation that begins with 0", "perm")
    if perm == tuple(range(rank)):
        return call.data()
    return call.step(lambda part, x: x.permute(perm))


@operator("Expand")
def _expand(call: Call) -> Step | Data:
    target, shape = call.known(1, "shape"), call.data().shape
    if target is None:
        raise Refused("its shape is missing")
    out = [_broadcast(a, b) for a, b in _aligned(target, shape)]
    if tuple(out) == shape:
        return call.data()
    if len(out) != len(shape):
        raise Refused("adds axes before the batch", "Reshape, then Expand", "shape")
    wanted = tuple(out)
    return call.step(lambda part, x: x.expand(x.shape[0], *wanted))


def _aligned(target: Known, shape: Shape) -> Sequence[tuple[int, int]]:
    """Pairs of (data's, target's) dimensions per sample; the target's batch is 1 or the batch."""
    dims = [int(v) for v in target.first.reshape(-1)]
    while len(dims) < len(shape) + 1:
        dims.insert(0, 1)
    if any(a != b for a, b in zip(target.first.reshape(-1)[1:], target.second.reshape(-1)[1:], strict=True)):
        raise Refused(_MIXES, attribute="shape")
    extra = len(dims) - 1 - len(shape)
    return list(zip((1,) * extra + shape, dims[1:], strict=True))


def _broadcast(have: int, wanted: int) -> Any:
    if wanted not in (1, have) and have != 1:
        raise Refused(f"expands {have} to {wanted}", attribute="shape")
    return max(have, wanted)
