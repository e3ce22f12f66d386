"""An ONNX file as a small list of nodes and numpy constants; hostile and malformed files end in a ModelError.

What is refused here, by name: external data, sparse initialisers, custom domains and functions other than
`xdeploy.CodebookWeight`, subgraphs, strings, tensors above the limits. Nothing outside the file is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from xdeploy.errors import ModelError, UnsupportedError

FILE_LIMIT = 2**31 - 1  # protobuf's own
ELEMENT_LIMIT = 2**26  # of a constant
ACTIVATION_LIMIT = 2**24  # of an activation, per sample
RANK_LIMIT = 8
CODEBOOK = ("xdeploy", "CodebookWeight")
_ORIGIN = "._-#@+[]"  # beside letters and digits; origins go into C comments and file names
_FUNCTION_BODY = ["Cast", "Gather", "DequantizeLinear"]
# the converters' older names of the standard operators
_ALIASES = {("com.microsoft", "QuantizeLinear"), ("com.microsoft", "DequantizeLinear")}
_NARROW = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT2: 2, TensorProto.UINT2: 2}
_PLAIN = {
    TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8, TensorProto.UINT8: np.uint8, TensorProto.INT16: np.int16, TensorProto.UINT16: np.uint16,
    TensorProto.INT32: np.int32, TensorProto.UINT32: np.uint32, TensorProto.INT64: np.int64,
    TensorProto.UINT64: np.uint64, TensorProto.BOOL: np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One reason why the model cannot be lowered as it is."""

    node: str
    op: str
    reason: str
    rewrite: str = ""

    def __str__(self) -> str:
        return f"{self.node} ({self.op}): {self.reason}" + (f"; instead: {self.rewrite}" if self.rewrite else "")


class ObstacleError(UnsupportedError):
    """Everything that stands in the way, at once: `obstacles` in the order of the graph."""

    def __init__(self, obstacles: Iterable[Obstacle], path: Path | str) -> None:
        self.obstacles = tuple(obstacles)
        lines = "".join(f"\n  {o}" for o in self.obstacles)
        super().__init__(f"{path}: {len(self.obstacles)} obstacle(s) to integer code{lines}")


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant tensor; `bits` is 2 or 4 where the file packs it so, else 0."""

    array: NDArray[Any]
    bits: int = 0


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node: attributes as Python values (tensors as Constant), metadata as a dict."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """The qualified name of the user's layer, where the exporter left it, else the node's name made readable."""
        origin = "".join(c for c in self.meta.get("origin", "") if c.isascii() and (c.isalnum() or c in _ORIGIN))
        return origin[:128] or _readable(self.name)


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output: name, element type (float32, int8, uint8), shape with the batch axis (-1: free)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """The file: nodes in order, constants by name, the one input and output, metadata, opset of the standard domain."""

    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Constant]
    input: Port
    output: Port
    meta: Mapping[str, str]
    opset: int


def load_model(path: Path) -> Any:
    """Parse the protobuf (onnx.ModelProto) and refuse what cannot be trusted.

    Raises:
        ModelError: unreadable, too large, not ONNX, external data.
    """
    try:
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise ModelError(f"{path} has {size} bytes; an ONNX file has at most {FILE_LIMIT}")
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except ModelError:
        raise
    except Exception as error:  # protobuf raises several types for broken bytes
        raise ModelError(f"{path} is not an ONNX file ({type(error).__name__})") from None
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{path} is not an ONNX file, or its graph is empty")
    for tensor in _tensors(model.graph.node, model.graph.initializer, model.functions):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} keeps its data in another file, which is not opened",
                hint="save the model as one file (onnx.save with save_as_external_data=False)",
            )
    return model


def read(path: Path) -> OnnxGraph:
    """Read a file into plain data.

    Raises:
        ModelError: see `load_model`; also malformed or too large tensors, several inputs or outputs.
        ObstacleError: unknown domains, custom functions, subgraphs.
    """
    model = load_model(path)
    obstacles = [*_foreign_nodes(model), *_foreign_functions(model)]
    if obstacles:
        raise ObstacleError(obstacles, path)
    graph = model.graph
    if graph.sparse_initializer:
        raise ModelError(f"{path}: sparse initialisers are not supported", hint="store the weights densely")
    constants = {t.name: constant(t) for t in graph.initializer}
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    return OnnxGraph(
        tuple(_node(n, k) for k, n in enumerate(graph.node)), constants,
        _port([v for v in graph.input if v.name not in constants], "input", path), _port(graph.output, "output", path),
        {p.key: p.value for p in model.metadata_props}, opset,
    )  # fmt: skip


def constant(tensor: Any) -> Constant:
    """A TensorProto as numpy; packed 2- and 4-bit types become int8 or uint8.

    Raises:
        ModelError: an unsupported type, a wrong amount of data, above the limits.
    """
    dims, kind = tuple(tensor.dims), tensor.data_type
    size = int(np.prod([float(d) for d in dims]))
    if len(dims) > RANK_LIMIT or any(d < 0 for d in dims) or size > ELEMENT_LIMIT:
        raise ModelError(f"tensor {tensor.name!r}: shape {dims} is above the limits (rank 8, 2^26 elements)")
    if kind not in _PLAIN and kind not in _NARROW:
        raise ModelError(f"tensor {tensor.name!r}: element type {kind} is not supported")
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # any mismatch of dims and data
        raise ModelError(f"tensor {tensor.name!r}: its data does not fit its shape {dims} ({error})") from None
    bits = _NARROW.get(kind, 0)
    if bits:
        array = array.astype(np.int8 if kind in (TensorProto.INT4, TensorProto.INT2) else np.uint8)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelError(f"tensor {tensor.name!r} holds values that are not finite")
    return Constant(array, bits)


def _tensors(nodes: Any, initialisers: Any, functions: Any = ()) -> Iterable[Any]:
    yield from initialisers
    for node in nodes:
        for a in node.attribute:
            yield from [a.t] if a.HasField("t") else []
            yield from a.tensors
            for g in [*([a.g] if a.HasField("g") else []), *a.graphs]:
                yield from _tensors(g.node, g.initializer)
    for function in functions:
        yield from _tensors(function.node, ())


def _foreign_nodes(model: Any) -> Iterable[Obstacle]:
    for k, n in enumerate(model.graph.node):
        name, known = n.name or f"{n.op_type}_{k}", n.domain in ("", "ai.onnx")
        if not (known or (n.domain, n.op_type) == CODEBOOK or (n.domain, n.op_type) in _ALIASES):
            yield Obstacle(
                name, n.op_type, f"operators of domain {n.domain!r} are not supported", "QDQ form of ai.onnx"
            )
        elif any(a.HasField("g") or a.graphs for a in n.attribute):
            yield Obstacle(name, n.op_type, "holds a subgraph", "a graph without control flow")


def _foreign_functions(model: Any) -> Iterable[Obstacle]:
    """Other functions, and a CodebookWeight that computes something else."""
    for f in model.functions:
        expected = (f.domain, f.name) == CODEBOOK and [n.op_type for n in f.node] == _FUNCTION_BODY
        if not expected or list(f.input) != ["idx", "book", "scale"]:
            yield Obstacle(f.name, "function", f"model-local function of domain {f.domain!r}", "inline it")


def _node(node: Any, position: int) -> OnnxNode:
    attrs: dict[str, Any] = {}
    for a in node.attribute:
        if a.type == onnx.AttributeProto.TENSOR:
            attrs[a.name] = constant(a.t)
            continue
        try:
            value = onnx.helper.get_attribute_value(a)
        except ValueError as error:
            raise ModelError(f"node {node.name!r}: attribute {a.name!r}: {error}") from None
        attrs[a.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    meta = {p.key: p.value for p in node.metadata_props}
    name = node.name or f"{node.op_type}_{position}"
    return OnnxNode(name, node.op_type, tuple(node.input), tuple(node.output), attrs, meta)


def _port(values: Any, what: str, path: Path) -> Port:
    if len(values) != 1:
        names = [v.name for v in values]
        raise ModelError(f"{path}: a model with one {what} is supported, this has {len(names)}: {', '.join(names)}")
    info = values[0].type.tensor_type
    kinds = {TensorProto.FLOAT: "float32", TensorProto.INT8: "int8", TensorProto.UINT8: "uint8"}
    if info.elem_type not in kinds:
        raise ModelError(f"{path}: {what} {values[0].name!r} must be float32, int8 or uint8, not type {info.elem_type}")
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in info.shape.dim)
    if what == "input":
        if len(shape) < 2 or len(shape) > 5 or any(d <= 0 for d in shape[1:]):
            raise ModelError(
                f"{path}: input {values[0].name!r} has shape {shape}; only the batch (first) axis may be free",
                hint="fix the input shape when exporting",
            )
        if np.prod([float(d) for d in shape[1:]]) > ACTIVATION_LIMIT:
            raise ModelError(f"{path}: input {values[0].name!r} of shape {shape} is too large")
    return Port(values[0].name, kinds[info.elem_type], shape)


def _readable(name: str) -> str:
    """Converter names as origins: the first of `a;b;c`, path separators as dots, without quantiser suffixes."""
    first = name.split(";")[0]
    for suffix in ("_prequant", "_quantize", "_quant", "_dequant"):
        first = first.removesuffix(suffix)
    text = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "." if c in "/:" else "_" for c in first)
    return text.strip("._")[:96] or "node"
