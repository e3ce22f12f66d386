"""A node test as one sample of a batch: every tensor gets an axis of 1 in front and every axis counts one further.

Many of the standard's tests work on vectors, or along the first axis, which in a network is the batch. Lifted, the same
test with the same numbers says something about a network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from tests.conformance.cases import Array, Case

ELEMENT_WISE = {
    "Abs",
    "Add",
    "Ceil",
    "Celu",
    "Clip",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "Identity",
    "Dropout",
}
_MANY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "Concat"}
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"}


def lifted(case: Case) -> Iterable[Case]:
    """The lifted case, or nothing where lifting would change what the test means."""
    shift = _SHIFTS.get(case.op) or (_nothing if case.op in ELEMENT_WISE else None)
    arrays = dict(case.inputs)
    if shift is None or not arrays:
        return
    rank = max(a.ndim for a in arrays.values())
    moved = [n for n, a in arrays.items() if a.ndim == rank] if case.op in _MANY else [next(iter(arrays))]
    if not any(arrays[n].ndim == rank for n in moved):
        return
    arrays.update({n: arrays[n][None] for n in moved})
    model = copy.deepcopy(case.model)
    try:
        arrays = shift(model, arrays, rank)
    except LookupError:
        return
    for value in model.graph.input:
        if value.name in arrays:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, arrays[value.name].shape))
    for k, value in enumerate(model.graph.output):
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, (1, *case.outputs[k].shape)))
    yield replace(case, model=model, inputs=arrays, outputs=tuple(a[None] for a in case.outputs))


Shift = Callable[[onnx.ModelProto, dict[str, Array], int], dict[str, Array]]


def _nothing(model: onnx.ModelProto, arrays: dict[str, Array], rank: int) -> dict[str, Array]:
    return arrays


def _attribute(model: onnx.ModelProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in model.graph.node[0].attribute if a.name == name), None)


def _axis(default: int) -> Shift:
    """The attribute `axis`, counted from the front, moves one on."""

    def run(model: onnx.ModelProto, arrays: dict[str, Array], rank: int) -> dict[str, Array]:
        found = _attribute(model, "axis")
        axis = default if found is None else found.i
        if found is not None:
            model.graph.node[0].attribute.remove(found)
        model.graph.node[0].attribute.append(helper.make_attribute("axis", axis + 1 if axis >= 0 else axis))
        return arrays

    return run


def _softmax(model: onnx.ModelProto, arrays: dict[str, Array], rank: int) -> dict[str, Array]:
    if model.opset_import[0].version < 13:
        raise LookupError("its axis means all axes from there on")
    return _axis(-1)(model, arrays, rank)


def _perm(model: onnx.ModelProto, arrays: dict[str, Array], rank: int) -> dict[str, Array]:
    found = _attribute(model, "perm")
    perm = list(reversed(range(rank))) if found is None else list(found.ints)
    if found is not None:
        model.graph.node[0].attribute.remove(found)
    model.graph.node[0].attribute.append(helper.make_attribute("perm", [0, *(p + 1 for p in perm)]))
    return arrays


def _axes(index: int, *, missing: str) -> Shift:
    """The operand that lists axes; `missing`: what no list means, "all" axes or those of the "starts"."""

    def run(model: onnx.ModelProto, arrays: dict[str, Array], rank: int) -> dict[str, Array]:
        node = model.graph.node[0]
        if _attribute(model, "axes") is not None:
            raise LookupError("lists its axes in an attribute")
        name = node.input[index] if index < len(node.input) else ""
        noop = _attribute(model, "noop_with_empty_axes")
        axes = arrays[name] if name in arrays else np.zeros(0, np.int64)
        if not axes.size and not (noop is not None and noop.i):
            axes = np.arange(rank) if missing == "all" else np.arange(arrays[node.input[1]].size)
        while len(node.input) <= index:
            node.input.append("")
        if not name:
            node.input[index] = name = "lifted_axes"
            model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, (axes.size,)))
        return {**arrays, name: np.where(axes >= 0, axes + 1, axes).astype(np.int64)}

    return run


def _reshape(model: onnx.ModelProto, arrays: dict[str, Array], rank: int) -> dict[str, Array]:
    name = model.graph.node[0].input[1]
    return {**arrays, name: np.concatenate([[1], arrays[name]])}


def _pad(model: onnx.ModelProto, arrays: dict[str, Array], rank: int) -> dict[str, Array]:
    node = model.graph.node[0]
    if len(node.input) > 3 and node.input[3]:
        return _axes(3, missing="all")(model, arrays, rank)
    pads = arrays[node.input[1]]
    half = pads.size // 2
    return {**arrays, node.input[1]: np.concatenate([[0], pads[:half], [0], pads[half:]])}


_SHIFTS: dict[str, Shift] = {
    "Concat": _axis(0),
    "Split": _axis(0),
    "Gather": _axis(0),
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Transpose": _perm,
    "Reshape": _reshape,
    "Pad": _pad,
    "Slice": _axes(3, missing="starts"),
    "Squeeze": _axes(1, missing="all"),
    "Unsqueeze": _axes(1, missing="all"),
    **{op: _axes(1, missing="all") for op in _REDUCTIONS},
}
