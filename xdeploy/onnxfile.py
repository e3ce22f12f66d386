"""An ONNX file as a small list of nodes and numpy constants; hostile and malformed files end in a ModelError.

What is refused here, by name: sparse initialisers, custom domains and functions other than `xdeploy.CodebookWeight`,
subgraphs, strings, tensors above the limits, and external data unless the command allows it. Nothing else outside the
file is opened. The bytes are measured by `onnxwire` before they are parsed, external data is brought in by `onnxdata`,
the parsed model is checked by `onnxguard`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from xdeploy.errors import ModelError, UnsupportedError, shown
from xdeploy.errors import Obstacle as Obstacle  # read from here by model and lower
from xdeploy.onnxdata import inline
from xdeploy.onnxguard import ELEMENT_LIMIT as ELEMENT_LIMIT
from xdeploy.onnxguard import NARROW, PLAIN, check_tensor, guard
from xdeploy.onnxwire import parse, read_bytes

ACTIVATION_LIMIT = 2**24  # of an activation, per sample
CODEBOOK = ("xdeploy", "CodebookWeight")
_ORIGIN = "._-#@+[]"  # beside letters and digits; origins go into C comments and file names
_QUANTISING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_FUNCTION_BODY = ["Cast", "Gather", "DequantizeLinear"]
# the converters' older names of the standard operators
_ALIASES = {("com.microsoft", "QuantizeLinear"), ("com.microsoft", "DequantizeLinear")} | {
    ("com.microsoft", op)
    for op in (
        "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
        "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean", "QGemm", "MatMulNBits",
    )
}  # fmt: skip
FOREIGN = "?"  # operator of a node that the reader refuses


class ObstacleError(UnsupportedError):
    """Everything that stands in the way, at once: `obstacles` in the order of the graph."""

    def __init__(self, obstacles: Iterable[Obstacle], path: Path | str) -> None:
        found = tuple(obstacles)
        lines = "".join(f"\n  {o}" for o in found)
        super().__init__(f"{path}: {len(found)} obstacle(s) to integer code{lines}", obstacles=found)


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
    """Parse the protobuf (onnx.ModelProto, all data inside) and refuse what cannot be trusted.

    Raises:
        ModelError: unreadable, above the limits, not ONNX, external data that is not allowed or not as it should be,
            malformed nodes or tensors; see `onnxdata` and `onnxguard`.
    """
    return _loaded(path)[0]


def checked_bytes(path: Path) -> bytes:
    """The model as one file in memory, checked as by `load_model`; what other libraries read instead of the path.

    Raises:
        ModelError: see `load_model`.
    """
    model, data, others = _loaded(path)
    try:
        return bytes(model.SerializeToString()) if others else data
    except Exception as error:  # protobuf has its own kinds
        raise ModelError(f"{path} is too large with its data files ({type(error).__name__})") from None


def digest(path: Path) -> str:
    """SHA-256 of the file; where it keeps data in other files, of all of them.

    Raises:
        ModelError: see `load_model`.
    """
    _, data, others = _loaded(path)
    own = hashlib.sha256(data)
    for name, value in sorted(others.items()):
        own.update(f"\0{name}\0{value}".encode())
    return own.hexdigest()


def _loaded(path: Path) -> tuple[Any, bytes, dict[str, str]]:
    """The checked model, the file's bytes, and the hashes of its data files by name."""
    data = read_bytes(path)
    model = parse(data, path)
    others = inline(model, path)
    guard(model, path)
    return model, data, others


def read(path: Path) -> OnnxGraph:
    """Read a file into plain data.

    Raises:
        ModelError: see `load_model`; also malformed or too large tensors, several inputs or outputs.
        ObstacleError: unknown domains, custom functions, subgraphs.
    """
    graph, obstacles = survey(path)
    if obstacles:
        raise ObstacleError(obstacles, path)
    return graph


def survey(path: Path) -> tuple[OnnxGraph, tuple[Obstacle, ...]]:
    """`read` for a list of all that is wrong: nodes that `read` refuses have the operator FOREIGN and no attributes.

    Raises:
        ModelError: as `read`.
    """
    model = load_model(path)
    obstacles = (*_foreign_nodes(model), *_foreign_functions(model))
    graph = model.graph
    if graph.sparse_initializer:
        raise ModelError(f"{path}: sparse initialisers are not supported", hint="store the weights densely")
    constants = {t.name: constant(t) for t in graph.initializer}
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    done = OnnxGraph(
        tuple(_node(n, k) for k, n in enumerate(graph.node)), constants,
        _port([v for v in graph.input if v.name not in constants], "input", path), _port(graph.output, "output", path),
        {p.key: p.value for p in model.metadata_props}, opset,
    )  # fmt: skip
    return done, obstacles


def is_quantised(path: Path) -> bool:
    """Whether the file computes in integers: a quantising operator that reads the data, not only constants.

    Weights alone behind DequantizeLinear (a file of float activations with packed weights) are a float model.

    Raises:
        ModelError: see `load_model`.
    """
    graph = load_model(path).graph
    constants = {t.name for t in graph.initializer}
    data = {v.name for v in graph.input} - constants
    for node in graph.node:
        if not data.intersection(node.input):
            continue
        data.update(node.output)
        op = str(node.op_type)
        if op.startswith("QLinear") or "Integer" in op or op in _QUANTISING:
            return True
    return False


def constant(tensor: Any) -> Constant:
    """A TensorProto as numpy; packed 2- and 4-bit types become int8 or uint8.

    Raises:
        ModelError: an unsupported type, a wrong amount of data, above the limits.
    """
    check_tensor(tensor)
    kind, name = tensor.data_type, shown(tensor.name)
    if kind not in PLAIN and kind not in NARROW:
        raise ModelError(f"tensor {name}: element type {kind} is not supported")
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # what the check of dims and data left over
        raise ModelError(f"tensor {name}: its data does not fit its shape {tuple(tensor.dims)} ({error})") from None
    bits = NARROW.get(kind, 0)
    if bits:
        array = array.astype(np.int8 if kind in (TensorProto.INT4, TensorProto.INT2) else np.uint8)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelError(f"tensor {name} holds values that are not finite")
    return Constant(array, bits)


def _foreign_nodes(model: Any) -> Iterable[Obstacle]:
    for k, n in enumerate(model.graph.node):
        name = n.name or f"{n.op_type}_{k}"
        if not _known(n):
            yield Obstacle(
                name, n.op_type, f"operators of domain {n.domain!r} are not supported", "QDQ form of ai.onnx"
            )
        elif _has_subgraph(n):
            yield Obstacle(name, n.op_type, "holds a subgraph", "a graph without control flow")


def _known(node: Any) -> bool:
    pair = (node.domain, node.op_type)
    return node.domain in ("", "ai.onnx") or pair == CODEBOOK or pair in _ALIASES


def _has_subgraph(node: Any) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _foreign_functions(model: Any) -> Iterable[Obstacle]:
    """Other functions, and a CodebookWeight that computes something else."""
    for f in model.functions:
        expected = (f.domain, f.name) == CODEBOOK and [n.op_type for n in f.node] == _FUNCTION_BODY
        if not expected or list(f.input) != ["idx", "book", "scale"]:
            yield Obstacle(f.name, "function", f"model-local function of domain {f.domain!r}", "inline it")


def _node(node: Any, position: int) -> OnnxNode:
    attrs: dict[str, Any] = {}
    name = node.name or f"{node.op_type}_{position}"
    if not _known(node) or _has_subgraph(node):
        return OnnxNode(name, FOREIGN, tuple(node.input), tuple(node.output))
    for a in node.attribute:
        if a.type == onnx.AttributeProto.TENSOR:
            attrs[a.name] = constant(a.t)
            continue
        try:
            value = onnx.helper.get_attribute_value(a)
        except ValueError as error:
            raise ModelError(f"node {shown(node.name)}: attribute {shown(a.name)}: {error}") from None
        attrs[a.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    meta = {p.key: p.value for p in node.metadata_props}
    return OnnxNode(name, node.op_type, tuple(node.input), tuple(node.output), attrs, meta)


def _port(values: Any, what: str, path: Path) -> Port:
    if len(values) != 1:
        names = ", ".join(shown(v.name, quote=False) for v in values[:4]) + (", ..." if len(values) > 4 else "")
        raise ModelError(f"{path}: a model with one {what} is supported, this has {len(values)}: {names}")
    info, name = values[0].type.tensor_type, shown(values[0].name)
    kinds = {TensorProto.FLOAT: "float32", TensorProto.INT8: "int8", TensorProto.UINT8: "uint8"}
    if info.elem_type not in kinds:
        raise ModelError(f"{path}: {what} {name} must be float32, int8 or uint8, not type {info.elem_type}")
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in info.shape.dim)
    if what == "input":
        if len(shape) < 2 or len(shape) > 5 or any(d <= 0 for d in shape[1:]):
            raise ModelError(
                f"{path}: input {name} has shape {shape}; only the batch (first) axis may be free",
                hint="fix the input shape when exporting",
            )
        if np.prod([float(max(d, 1)) for d in shape]) > ACTIVATION_LIMIT:
            raise ModelError(f"{path}: input {name} of shape {shape} is too large")
    return Port(values[0].name, kinds[info.elem_type], shape)


def _readable(name: str) -> str:
    """Converter names as origins: the first of `a;b;c`, path separators as dots, without quantiser suffixes."""
    first = name.split(";")[0]
    for suffix in ("_prequant", "_quantize", "_quant", "_dequant"):
        first = first.removesuffix(suffix)
    text = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "." if c in "/:" else "_" for c in first)
    return text.strip("._")[:96] or "node"
