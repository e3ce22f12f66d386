"""Rows of the operators that move, copy, drop or join values without computing: slices, padding, joins, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.onnxgraph.rows import Call, Data, Known, Refused, Step, attributes, operator


# ---------------------------------------------------------------------------------------------- cutting apart
@operator("Slice")
def _slice(call: Call) -> Step | Data:
    shape = call.data().shape
    starts, ends = call.known(1, "starts"), call.known(2, "ends")
    first = call.ints("starts") or () if starts is None else _listed(starts.first)
    last = call.ints("ends") or () if ends is None else _listed(ends.first)
    axes = call.ints("axes", 3) or tuple(range(len(first)))
    steps = call.ints("steps", 4) or (1,) * len(first)
    if not len(first) == len(last) == len(axes) == len(steps) or 0 in steps:
        raise Refused("its starts, ends, axes and steps do not fit together")
    cuts: list[slice] = [slice(None)] * len(shape)
    backwards: list[int] = []
    for start, end, raw, step in zip(first, last, axes, steps, strict=True):
        if raw % (len(shape) + 1) == 0 and (start, step) == (0, 1) and _whole_batch(call, ends, axes.index(raw), end):
            continue
        axis = call.axis(raw, reason="slices the batch axis")
        cut = _forward(start, end, step, shape[axis - 1])
        backwards += [axis] if step < 0 else []
        cuts[axis - 1] = cut
    if all(len(range(*c.indices(n))) == n for c, n in zip(cuts, shape, strict=True)) and not backwards:
        return call.data()
    index = (slice(None), *cuts)

    def run(part: Any, x: Tensor) -> Tensor:
        return x[index].flip(backwards) if backwards else x[index]

    return call.step(run)


def _listed(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values.reshape(-1))


def _whole_batch(call: Call, ends: Known | None, index: int, end: int) -> bool:
    """A slice of the batch axis that takes all samples."""
    return end >= 2**31 - 1 or (ends is not None and not ends.fixed and ends.first.reshape(-1)[index] == 2)


def _forward(start: int, end: int, step: int, size: int) -> slice:
    """The slice, of a step below 0 the one that takes the same values in rising order."""
    end_or_none = None if step < 0 and end < -size else end
    taken = range(*slice(start, end_or_none, step).indices(size))
    if step > 0:
        return slice(taken.start, taken.stop, step)
    return slice(taken[-1], taken[0] + 1, -step) if len(taken) else slice(0, 0)


@operator("Split")
def _split(call: Call) -> Step:
    axis = call.axis(int(call.attr("axis", 0)), reason="splits the batch axis")
    size = call.data().shape[axis - 1]
    sizes = call.ints("split", 1)
    if sizes is None:
        count = len(call.node.outputs)
        part = -(-size // count)
        sizes = tuple(min(part, size - k * part) for k in range(count))
    if sum(sizes) != size or min(sizes) < 0 or len(sizes) != len(call.node.outputs):
        raise Refused(f"splits {size} into {list(sizes)} for {len(call.node.outputs)} outputs", attribute="split")
    cuts = list(sizes)
    return call.step(lambda part, x: x.split(cuts, dim=axis))


@operator("Gather")
def _gather(call: Call) -> Step:
    index = call.constant(1, "indices")
    if index is None or index.dtype.kind not in "iu":
        raise Refused("its indices are missing or no integers")
    axis = call.axis(int(call.attr("axis", 0)), reason="picks samples of the batch")
    size = call.data().shape[axis - 1]
    if index.ndim > 1 or (index.size and not (-size <= index.min() and index.max() < size)):
        raise Refused(f"indices of shape {index.shape} into {size} values; one number or a list is supported")
    if index.ndim == 0:
        at = int(index) % size
        return call.step(lambda part, x: x.select(axis, at))
    rows = torch.from_numpy(index.astype("int64") % size)
    return call.step(lambda part, x: torch.index_select(x, axis, part.rows), rows=rows)


# ------------------------------------------------------------------------------------------------- putting together
@operator("Concat")
def _concat(call: Call) -> Step | Data:
    data = tuple(o for o in call.operands if isinstance(o, Data))
    axis = call.axis(int(call.attr("axis", 0)), len(data[0].shape) + 1, reason="joins batches")
    if len(data) == len(call.operands):
        return data[0] if len(data) == 1 else call.step(lambda part, *xs: torch.cat(xs, dim=axis), *data)
    before, after = _zero_borders(call, axis)
    rank = len(data[0].shape) + 1
    widths = (0, 0) * (rank - 1 - axis) + (before, after)

    def run(part: Any, *xs: Tensor) -> Tensor:
        return F.pad(torch.cat(xs, dim=axis) if len(xs) > 1 else xs[0], widths)

    return call.step(run, *data)


def _zero_borders(call: Call, axis: int) -> tuple[int, int]:
    """Zeros joined before and after the data, as a width each."""
    before = after = 0
    seen = False
    count = sum(isinstance(o, Data) for o in call.operands)
    for operand in call.operands:
        if isinstance(operand, Data):
            seen, count = True, count - 1
            continue
        if operand is None or operand.first.any() or (seen and count):
            raise Refused("joins the data with constants other than zeros around it", "Pad")
        width = operand.first.shape[axis] if operand.first.ndim > axis else 0
        before, after = (before, after + width) if seen else (before + width, after)
    return before, after


_BORDERS = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@attributes("Pad")
def _border(call: Call) -> None:
    mode = str(call.attr("mode", "constant"))
    if mode not in _BORDERS:
        raise Refused(f"mode={mode} is not supported", "mode=constant", "mode")
    if mode == "wrap":
        call.remark("mode=wrap has no integer form", "mode=constant", "mode")


@operator("Pad")
def _pad(call: Call) -> Step | Data:
    rank = len(call.data().shape) + 1
    pads = call.ints("pads", 1) or call.ints("paddings") or ()
    axes = [a % rank for a in call.ints("axes", 3) or range(rank)] if all_in(call, rank) else []
    if len(pads) != 2 * len(axes):
        raise Refused(f"pads={list(pads)} do not fit {rank} axes", attribute="pads")
    widths = [(0, 0)] * rank
    for k, axis in enumerate(axes):
        widths[axis] = (pads[k], pads[k + len(axes)])
    if widths[0] != (0, 0):
        raise Refused("pads the batch axis", attribute="pads")
    mode = str(call.attr("mode", "constant"))
    value = call.scalar(2, "constant_value") if call.has(2) else float(call.attr("value", 0.0))
    return _padded(call, widths[1:], mode, value or 0.0)


def all_in(call: Call, rank: int) -> bool:
    """Whether the axes of operand 3, if given, are axes of the data."""
    return all(-rank <= a < rank for a in call.ints("axes", 3) or ())


def _padded(call: Call, widths: Sequence[tuple[int, int]], mode: str, value: float) -> Step | Data:
    shape = call.data().shape
    if not any(any(w) for w in widths):
        return call.data()
    # a width below 0 cuts
    cuts = (slice(None), *(slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(widths, shape, strict=True)))
    cutting = any(min(w) < 0 for w in widths)
    flat = tuple(max(0, v) for w in reversed(widths) for v in w)
    if mode == "constant":
        return call.step(lambda part, x: F.pad(x[cuts] if cutting else x, flat, value=value))
    spatial = len(shape) - 1
    if any(flat[2 * spatial :]):
        raise Refused(f"mode={mode} along channels is not supported", "mode=constant", "mode")
    kind = _BORDERS[mode]
    return call.step(lambda part, x: F.pad(x[cuts] if cutting else x, flat[: 2 * spatial], mode=kind))


# ------------------------------------------------------------------------------------------------------ blocks
def _block(call: Call) -> tuple[int, int, int, int]:
    size, shape = int(call.attr("blocksize", 0)), call.data().shape
    if len(shape) != 3 or size < 1:
        raise Refused(f"blocksize={size} does not fit data of {shape} per sample", attribute="blocksize")
    return (size, *shape)


@operator("DepthToSpace")
def _depth_to_space(call: Call) -> Step:
    b, channels, height, width = _block(call)
    if channels % (b * b):
        raise Refused(f"{channels} channels do not divide by blocks of {b}x{b}", attribute="blocksize")
    out = (channels // (b * b), height * b, width * b)
    if call.attr("mode", "DCR") == "CRD":
        view, perm = (out[0], b, b, height, width), (0, 1, 4, 2, 5, 3)
    else:
        view, perm = (b, b, out[0], height, width), (0, 3, 4, 1, 5, 2)
    return call.step(lambda part, x: x.reshape(x.shape[0], *view).permute(perm).reshape(x.shape[0], *out))


@operator("SpaceToDepth")
def _space_to_depth(call: Call) -> Step:
    b, channels, height, width = _block(call)
    if height % b or width % b:
        raise Refused(f"{height}x{width} does not divide by blocks of {b}x{b}", attribute="blocksize")
    view, out = (channels, height // b, b, width // b, b), (channels * b * b, height // b, width // b)
    perm = (0, 1, 3, 5, 2, 4) if call.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return call.step(lambda part, x: x.reshape(x.shape[0], *view).permute(perm).reshape(x.shape[0], *out))
