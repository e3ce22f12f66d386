"""Row of Resize and Upsample: nearest neighbour in every coordinate and rounding mode of the standard."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.onnxgraph.rows import Call, Data, Refused, Step, attributes, operator

_ROUND: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}
_MOST = 2**14  # rows or columns


@attributes("Resize", "Upsample")
def _takes_nearest(call: Call) -> None:
    mode = str(call.attr("mode", "nearest"))
    if mode != "nearest":
        raise Refused(f"mode={mode} is not supported", "mode=nearest", "mode")
    if call.attr("antialias", 0):
        raise Refused("antialias=1 is not supported", "antialias=0", "antialias")
    rounding = call.attr("nearest_mode")
    if rounding is not None and rounding not in _ROUND:
        raise Refused(f"nearest_mode={rounding}", "floor", "nearest_mode")
    _coordinate(str(call.attr("coordinate_transformation_mode", "half_pixel")), 1, 1, 1.0)


@operator("Resize", "Upsample")
def _resize(call: Call) -> Step | Data:
    shape = call.data().shape
    sizes, scales = _wanted(call)
    rows = [_sources(call, n, size, scale) for n, size, scale in zip(shape, sizes, scales, strict=True)]
    moved = [k for k, (n, r) in enumerate(zip(shape, rows, strict=True)) if r != list(range(n))]
    if not moved:
        return call.data()
    if len(shape) == 3 and 0 not in moved and _as_torch(shape[1:], rows[1:]):
        size = (len(rows[1]), len(rows[2]))
        return call.step(lambda part, x: F.interpolate(x, size=size, mode="nearest"))
    tables = {f"rows{k}": torch.tensor(rows[k]) for k in moved}

    def run(part: torch.nn.Module, x: Tensor) -> Tensor:
        for k in moved:
            x = torch.index_select(x, k + 1, part.get_buffer(f"rows{k}"))
        return x

    return call.step(run, **tables)


def _as_torch(shape: tuple[int, ...], rows: list[list[int]]) -> bool:
    """Whether torch's own nearest mode takes the same rows and columns."""
    for n, taken in zip(shape, rows, strict=True):
        probe = torch.arange(n, dtype=torch.float32).reshape(1, 1, n)
        if F.interpolate(probe, size=len(taken), mode="nearest").reshape(-1).tolist() != taken:
            return False
    return True


def _wanted(call: Call) -> tuple[list[int], list[float]]:
    """Output size and scale per axis of a sample."""
    shape = call.data().shape
    rank = len(shape) + 1
    old = call.node.op == "Upsample" or call.opset < 11
    scales = call.constant(1 if old else 2, "scales")
    sizes = None if old else call.known(3, "sizes")
    if scales is None and "scales" in call.node.attrs:
        scales = np.asarray(call.attr("scales"), np.float32)
    axes = [a % rank for a in call.ints("axes") or range(rank)]
    if sizes is not None:
        # exporters write the batch's size too; it is the same before and after
        given = dict(zip(axes, (int(v) for v in sizes.first.reshape(-1)), strict=True))
        found = [given.get(k, n) for k, n in enumerate(shape, 1)]
        found, factors = _by_policy(call, found, axes)
        _bounded(found)
        return found, factors
    if scales is None or scales.size != len(axes):
        raise Refused("its scales or sizes are missing or do not fit", attribute="scales")
    by_axis = dict(zip(axes, (float(v) for v in scales.reshape(-1)), strict=True))
    if by_axis.get(0, 1.0) != 1.0 or not all(0 < v <= _MOST for v in by_axis.values()):
        raise Refused(f"scales={[by_axis[a] for a in axes]} are not supported", "1 for the batch", "scales")
    factors = [by_axis.get(k, 1.0) for k in range(1, rank)]
    found = [math.floor(n * f) for n, f in zip(shape, factors, strict=True)]
    _bounded(found)
    return found, factors


def _bounded(sizes: list[int]) -> None:
    if not all(0 < s <= _MOST for s in sizes):
        raise Refused(f"resizes to {sizes} per sample; 1 to {_MOST} is supported", attribute="sizes")


def _by_policy(call: Call, sizes: list[int], axes: list[int]) -> tuple[list[int], list[float]]:
    """Sizes and scales under keep_aspect_ratio_policy."""
    shape = call.data().shape
    policy = str(call.attr("keep_aspect_ratio_policy", "stretch"))
    if policy == "stretch":
        return sizes, [s / n for s, n in zip(sizes, shape, strict=True)]
    pick = {"not_larger": min, "not_smaller": max}.get(policy)
    if pick is None:
        raise Refused(f"keep_aspect_ratio_policy={policy}", "stretch", "keep_aspect_ratio_policy")
    # sizes of axes that are not listed equal the data's
    listed = [k for k in range(len(shape)) if k + 1 in axes]
    scale = pick(sizes[k] / shape[k] for k in listed)
    factors = [scale if k in listed else 1.0 for k in range(len(shape))]
    return [math.floor(n * f + 0.5) for n, f in zip(shape, factors, strict=True)], factors


def _sources(call: Call, n: int, size: int, scale: float) -> list[int]:
    """The source row of each output row."""
    default = "half_pixel" if call.node.op == "Resize" and call.opset >= 11 else "asymmetric"
    mode = str(call.attr("coordinate_transformation_mode", default))
    rounding = str(call.attr("nearest_mode", "round_prefer_floor" if default == "half_pixel" else "floor"))
    if n == size and scale == 1.0:
        return list(range(n))
    place = _coordinate(mode, n, size, scale)
    return [min(max(_ROUND[rounding](place(k)), 0), n - 1) for k in range(size)]


def _coordinate(mode: str, n: int, size: int, scale: float) -> Callable[[int], float]:
    """Output row -> place between the source rows."""
    offset = n / 2 * (1 - size / (scale * n))
    table: dict[str, Callable[[int], float]] = {
        "half_pixel": lambda k: (k + 0.5) / scale - 0.5,
        "half_pixel_symmetric": lambda k: offset + (k + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda k: (k + 0.5) / scale - 0.5 if size > 1 else 0.0,
        "align_corners": lambda k: k * (n - 1) / (size - 1) if size > 1 else 0.0,
        "asymmetric": lambda k: k / scale,
        "tf_half_pixel_for_nn": lambda k: (k + 0.5) / scale,
    }
    if mode not in table:
        raise Refused(f"coordinate_transformation_mode={mode}", "asymmetric", "coordinate_transformation_mode")
    return table[mode]
