"""What an ONNX model must fulfil before anything else looks at it: sizes, names, arity, types.

Everything behind this reader (ONNX Runtime included) gets nodes whose attributes have the types of the standard, whose
inputs exist and stand before them, and tensors whose data has the length that their shape says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from xdeploy.errors import ModelError, shown
from xdeploy.onnxwire import tensors

NODE_LIMIT = 10_000
ELEMENT_LIMIT = 2**26  # of a constant
RANK_LIMIT = 8
OPSETS = (7, onnx.defs.onnx_opset_version())
STANDARD = ("", "ai.onnx")
NARROW = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT2: 2, TensorProto.UINT2: 2}
PLAIN: Mapping[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8, TensorProto.INT16: np.int16, TensorProto.UINT16: np.uint16,
    TensorProto.INT32: np.int32, TensorProto.UINT32: np.uint32, TensorProto.INT64: np.int64,
    TensorProto.UINT64: np.uint64, TensorProto.BOOL: np.bool_,
}  # fmt: skip
# fields that hold elements where raw_data does not; the rest stands in int32_data
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_HOME = {
    TensorProto.FLOAT: "float_data", TensorProto.DOUBLE: "double_data", TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data", TensorProto.UINT64: "uint64_data",
}  # fmt: skip


def guard(model: Any, path: Path | str) -> None:
    """Check a parsed onnx.ModelProto.

    Raises:
        ModelError: the first thing that is wrong, with the node's or tensor's name.
    """
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{path} is not an ONNX file, or its graph is empty")
    if len(model.graph.node) > NODE_LIMIT:
        raise ModelError(f"{path} has {len(model.graph.node)} nodes; at most {NODE_LIMIT} are read")
    opset = _opset(model, path)
    for tensor in tensors(model):
        check_tensor(tensor)
    _functions(model, path)
    _order(model.graph, path)
    for k, node in enumerate(model.graph.node):
        _node(node, k, opset)


def _opset(model: Any, path: Path | str) -> int:
    given = [o.version for o in model.opset_import if o.domain in STANDARD]
    low, high = OPSETS
    if len(given) != 1 or not low <= given[0] <= high:
        found = ", ".join(map(str, given[:4])) or "none"
        raise ModelError(
            f"{path}: one opset of the standard operators in {low}..{high} is wanted, the file says {found}",
            hint="export the model again, or use onnx.version_converter",
        )
    return int(given[0])


# ------------------------------------------------------------------------------------------------- tensors
def _elements(tensor: Any) -> int:
    """Number of elements by the shape.

    Raises:
        ModelError: above the limits.
    """
    dims, size = tuple(tensor.dims), 1
    for d in dims:
        size *= d  # Python integers do not overflow
    if len(dims) > RANK_LIMIT or any(not 0 <= d < 2**31 for d in dims) or size > ELEMENT_LIMIT:
        shape = shown(str(dims[: RANK_LIMIT + 1]), quote=False)
        raise ModelError(
            f"tensor {shown(tensor.name)}: shape {shape} is above the limits (rank {RANK_LIMIT}, 2^26 elements)"
        )
    return size


def _bytes(kind: int, size: int) -> int:
    """Length of raw_data for a type of PLAIN or NARROW."""
    width = NARROW.get(kind) or 8 * np.dtype(PLAIN[kind]).itemsize
    return (size * width + 7) // 8


def byte_size(tensor: Any) -> int:
    """Bytes of a tensor's data by its shape and type.

    Raises:
        ModelError: a shape above the limits, a type that is not read, or data that stands in the tensor already.
    """
    if tensor.data_type not in PLAIN and tensor.data_type not in NARROW:
        raise ModelError(f"tensor {shown(tensor.name)}: element type {tensor.data_type} is not supported")
    if tensor.HasField("raw_data") or tensor.HasField("segment") or any(len(getattr(tensor, f)) for f in _TYPED):
        raise ModelError(f"tensor {shown(tensor.name)} is malformed: it has data here and in another file")
    return _bytes(tensor.data_type, _elements(tensor))


def check_tensor(tensor: Any) -> None:
    """Shape within the limits, and exactly as much data as it says; nothing is allocated.

    Raises:
        ModelError: naming the tensor. Types that are not read anyway are not looked into.
    """
    dims, kind, name = tuple(tensor.dims), tensor.data_type, shown(tensor.name)
    size = _elements(tensor)
    if tensor.HasField("segment"):
        raise ModelError(f"tensor {name} is a segment of another one, which is not supported")
    if kind not in PLAIN and kind not in NARROW:
        return
    filled = [f for f in _TYPED if len(getattr(tensor, f))]
    home = _HOME.get(kind, "int32_data")
    if tensor.HasField("raw_data"):
        have, want, unit, filled = len(tensor.raw_data), _bytes(kind, size), "bytes", [*filled, home]
    else:
        width = NARROW.get(kind, 8)
        have, want, unit = len(getattr(tensor, home)), (size * width + 7) // 8, "values"
    if have != want or (filled and filled != [home]):
        raise ModelError(f"tensor {name}: its data does not fit its shape {dims}: {have} {unit}, wanted {want}")


# ------------------------------------------------------------------------------------------------- names
def _order(graph: Any, path: Path | str) -> None:
    """Every tensor is written once, before it is read."""
    own = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    _once(own, "initialiser", path)
    _once([v.name for v in graph.input], "input", path)
    known = {*own, *(v.name for v in graph.input)}
    for k, node in enumerate(graph.node):
        for name in node.input:
            if name and name not in known:
                raise ModelError(
                    f"{path}: node {_label(node, k)} reads {shown(name)}, which no earlier node writes",
                    hint="nodes stand in the order in which they run; cycles have none",
                )
        for name in filter(None, node.output):
            if name in known:
                raise ModelError(f"{path}: node {_label(node, k)} writes {shown(name)} a second time")
            known.add(name)
    for output in graph.output:
        if output.name not in known:
            raise ModelError(f"{path}: no node writes the output {shown(output.name)}")


def _once(names: Iterable[str], what: str, path: Path | str) -> None:
    name, count = (Counter(names).most_common(1) or [("", 1)])[0]
    if count > 1:
        raise ModelError(f"{path}: {count} {what}s are named {shown(name)}")


def _functions(model: Any, path: Path | str) -> None:
    """Model-local functions are not called by each other in a circle."""
    calls = {(f.domain, f.name): {(n.domain, n.op_type) for n in f.node} for f in model.functions}
    if len(calls) < len(model.functions):
        raise ModelError(f"{path}: two model-local functions have one name")
    open_ = {name: called & calls.keys() for name, called in calls.items()}
    while open_:
        done = {name for name, called in open_.items() if not called & open_.keys()}
        if not done:
            raise ModelError(f"{path}: the function {shown(min(open_)[1])} calls itself")
        open_ = {name: called for name, called in open_.items() if name not in done}


# ------------------------------------------------------------------------------------------------- nodes
def _label(node: Any, position: int) -> str:
    return shown(node.name or f"{node.op_type}_{position}")


def _node(node: Any, position: int, opset: int) -> None:
    """Attributes once each and with a type; for a standard operator also what its schema says."""
    label = f"node {_label(node, position)} ({shown(node.op_type, quote=False)})"
    names = [a.name for a in node.attribute]
    if len(set(names)) < len(names):
        raise ModelError(f"{label} has an attribute twice")
    for a in node.attribute:
        if a.ref_attr_name or a.type not in AttributeProto.AttributeType.values() or not a.type:
            raise ModelError(f"{label}: attribute {shown(a.name)} has no value of its own or no known type")
        _one_value(a, label)
    control_flow = any(a.HasField("g") or a.graphs for a in node.attribute)  # listed as an obstacle by `read`
    schema = _schema(node.op_type, opset) if node.domain in STANDARD and not control_flow else None
    if schema is not None:
        _fits(node, schema, label)


_FIELDS = {
    AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s", AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g", AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings", AttributeProto.TENSORS: "tensors", AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor", AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTO: "tp", AttributeProto.TYPE_PROTOS: "type_protos",
}  # fmt: skip
_ABOUT = {"name", "type", "doc_string", "ref_attr_name"}


def _one_value(attribute: Any, label: str) -> None:
    others = {f.name for f, _ in attribute.ListFields()} - _ABOUT - {_FIELDS[attribute.type]}
    if others:
        raise ModelError(f"{label}: attribute {shown(attribute.name)} also holds {', '.join(sorted(others))}")


def _schema(op: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:  # not of the standard, or not in this opset: listed as an obstacle later
        return None


def _fits(node: Any, schema: Any, label: str) -> None:
    """Number of inputs and outputs, names and types of attributes, attributes that must be there."""
    for what, count, low, high in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not low <= count <= high:
            raise ModelError(f"{label} has {count} {what}; it takes {low}..{high}")
    known = schema.attributes
    for a in node.attribute:
        if a.name not in known:
            raise ModelError(f"{label}: there is no attribute {shown(a.name)}")
        given, wanted = AttributeProto.AttributeType.Name(a.type), known[a.name].type.name
        if given != wanted:
            raise ModelError(f"{label}: attribute {shown(a.name)} is {given}, it must be {wanted}")
    lacking = {name for name, a in known.items() if a.required} - {a.name for a in node.attribute}
    if lacking:
        raise ModelError(f"{label}: the attribute {', '.join(sorted(lacking))} is missing")
