"""How each layer kind is written: on floats between quantised tensors, or, where it only moves data, on the codes.

What moves codes needs no operator that ONNX Runtime would move floats with: Slice, Pad, Resize, Gather, Reshape and
Transpose take int8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xdeploy.export.fallback import inlined
from xdeploy.export.writer import Writer
from xdeploy.model.network import Layer

Emit = Callable[[Writer, Layer, list[str]], Any]  # layer, its float inputs -> the node that computes `<layer>.y`
Move = Callable[[Writer, Layer, str, str], Any]  # layer, its input's codes and zero point -> the node of `<layer>.q`


def _conv(w: Writer, layer: Layer, xs: list[str]) -> Any:
    a, shape = layer.attrs, w.compressed.weights[layer.name].codes.shape
    return w.weighted(
        layer, xs, "Conv",
        kernel_shape=shape[2:], strides=a["stride"], pads=a["pads"], dilations=a["dilation"], group=a["groups"],
    )  # fmt: skip


def _clip(w: Writer, layer: Layer, xs: list[str]) -> Any:
    limits = [
        w.constant(f"{layer.name}.{k}", np.array(layer.attrs[k], np.float32)) if np.isfinite(layer.attrs[k]) else ""
        for k in ("low", "high")
    ]
    return w.node("Clip", [*xs, *limits], f"{layer.name}.y", layer.name)


def _max_pool(w: Writer, layer: Layer, xs: list[str]) -> Any:
    a = layer.attrs
    return w.node(
        "MaxPool", xs, f"{layer.name}.y", layer.name, kernel_shape=a["kernel"], strides=a["stride"], pads=a["pads"]
    )


def _avg_pool(w: Writer, layer: Layer, xs: list[str]) -> Any:
    a, before = layer.attrs, w.network[layer.inputs[0]].shape
    if tuple(a["kernel"]) == before[1:] and not any(a["pads"]):
        return w.node("GlobalAveragePool", xs, f"{layer.name}.y", layer.name)
    return w.node(
        "AveragePool", xs, f"{layer.name}.y", layer.name,
        kernel_shape=a["kernel"], strides=a["stride"], pads=a["pads"], count_include_pad=int(bool(a["include_pad"])),
    )  # fmt: skip


def _simple(op: str, **attrs: Any) -> Emit:
    return lambda w, layer, xs: w.node(op, xs, f"{layer.name}.y", layer.name, **attrs)


# function -> its operator, the attributes that take alpha and beta, and fixed ones
_FUNCTIONS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "sigmoid": ("Sigmoid", (), {}), "tanh": ("Tanh", (), {}), "softplus": ("Softplus", (), {}),
    "hard_swish": ("HardSwish", (), {}), "hard_sigmoid": ("HardSigmoid", ("alpha", "beta"), {}),
    "leaky_relu": ("LeakyRelu", ("alpha",), {}), "elu": ("Elu", ("alpha",), {}),
    "gelu": ("Gelu", (), {"approximate": "none"}), "gelu_tanh": ("Gelu", (), {"approximate": "tanh"}),
}  # fmt: skip


def _function(w: Writer, layer: Layer, xs: list[str]) -> Any:
    name, a = layer.name, layer.attrs
    if a["function"] == "silu":  # two operators on one float tensor: one table where it is lowered
        w.node("Sigmoid", xs, f"{name}.sigmoid", name)
        return w.node("Mul", [*xs, f"{name}.sigmoid"], f"{name}.y", name)
    op, given, fixed = _FUNCTIONS[a["function"]]
    attrs: dict[str, Any] = {**{k: float(a[k]) for k in given}, **fixed}
    return w.node(op, xs, f"{name}.y", name, **attrs)


# ------------------------------------------------------------------------------------------------ on codes
def _slice(w: Writer, layer: Layer, codes: str, zero: str) -> Any:
    a = layer.attrs
    axes = tuple(range(1, len(a["starts"]) + 1))
    parts = {"starts": a["starts"], "stops": a["stops"], "axes": axes, "steps": a["steps"]}
    names = [w.constant(f"{layer.name}.{k}", np.array(v, np.int64)) for k, v in parts.items()]
    return w.node("Slice", [codes, *names], f"{layer.name}.q", layer.name)


def _pad(w: Writer, layer: Layer, codes: str, zero: str) -> Any:
    (top, left, bottom, right), (before, after) = layer.attrs["pads"], layer.attrs["channels"]
    widths = np.array([0, before, top, left, 0, after, bottom, right], np.int64)
    return w.node("Pad", [codes, w.constant(f"{layer.name}.pads", widths), zero], f"{layer.name}.q", layer.name)


def _resize(w: Writer, layer: Layer, codes: str, zero: str) -> Any:
    """Resize where both axes repeat their indices a whole number of times, else one Gather for each axis."""
    name, size = layer.name, w.network[layer.inputs[0]].shape[1:]
    factors = [_repeats(layer.attrs[k], n) for k, n in zip(("rows", "cols"), size, strict=True)]
    if all(factors):
        scales = w.constant(f"{name}.scales", np.array([1, 1, *factors], np.float32))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return w.node("Resize", [codes, "", scales], f"{name}.q", name, **how)
    rows, cols = (w.constant(f"{name}.{k}", np.array(layer.attrs[k], np.int64)) for k in ("rows", "cols"))
    w.node("Gather", [codes, rows], f"{name}.by_row", name, axis=2)
    return w.node("Gather", [f"{name}.by_row", cols], f"{name}.q", name, axis=3)


def _repeats(indices: tuple[int, ...], size: int) -> int:
    """Factor k where every one of `size` indices stands k times in order, else 0."""
    k = len(indices) // size
    return k if tuple(indices) == tuple(i // k for i in range(k * size)) else 0


def _rearrange(w: Writer, layer: Layer, codes: str, zero: str) -> Any:
    name, a = layer.name, layer.attrs
    for part, shape in (("view", a["view"]), ("shape", layer.shape)):  # 0: the batch, as it comes
        w.constant(f"{name}.{part}", np.array([0, *shape], np.int64))
    w.node("Reshape", [codes, f"{name}.view"], f"{name}.viewed", name)
    w.node("Transpose", [f"{name}.viewed"], f"{name}.permuted", name, perm=[0, *(p + 1 for p in a["perm"])])
    return w.node("Reshape", [f"{name}.permuted", f"{name}.shape"], f"{name}.q", name)


EMIT: dict[str, Emit] = {
    "conv2d": _conv, "linear": lambda w, layer, xs: w.weighted(layer, xs, "Gemm", transB=1),
    "relu": _simple("Relu"), "clip": _clip, "max_pool2d": _max_pool, "avg_pool2d": _avg_pool, "add": _simple("Add"),
    "concat": _simple("Concat", axis=1), "flatten": _simple("Flatten", axis=1), "softmax": _simple("Softmax", axis=-1),
    "function": _function, "sub": _simple("Sub"), "mul": _simple("Mul"), "fallback": inlined,
}  # fmt: skip
MOVE: dict[str, Move] = {"slice": _slice, "pad": _pad, "resize": _resize, "rearrange": _rearrange}
