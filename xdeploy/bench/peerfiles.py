"""The forms of one quantised ONNX file that other engines are given, so that each can run the one it is fastest on.

All do the same work on the same codes: packed and codebook weights become plain int8 (the value is the same, the engine
need not know the format), the batch is 1, and where the file begins with QuantizeLinear and ends with DequantizeLinear
those two are cut off, since ours takes and gives codes too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from xdeploy.errors import ModelError
from xdeploy.formats import QParams
from xdeploy.handover import IoSpec
from xdeploy.onnxfile import CODEBOOK, constant, load_model

_PLAIN_OPSET = 21  # the newest that needs no 2-bit types; every engine reads it
_OFFSET = 128  # between int8 and uint8 codes


@dataclass(frozen=True, slots=True)
class Form:
    """A model, and what stands at its borders: the type and quantisation of input and output (None: float).

    input, output: (scale, zero point, dtype) or None.
    """

    name: str
    model: Any
    input: tuple[float, int, Any] | None = None
    output: tuple[float, int, Any] | None = None

    @property
    def data(self) -> bytes:
        """The file."""
        return bytes(self.model.SerializeToString())

    def codes(self, inputs: NDArray[np.float32]) -> NDArray[Any]:
        """What goes in for inputs as the user's model takes them."""
        if self.input is None:
            return inputs
        scale, zero, dtype = self.input
        info = np.iinfo(dtype)
        codes: NDArray[Any] = np.clip(np.rint(inputs / np.float32(scale)) + zero, info.min, info.max).astype(dtype)
        return codes

    def real(self, outputs: NDArray[Any]) -> NDArray[np.float32]:
        """Outputs as real values."""
        if self.output is None:
            return np.asarray(outputs, np.float32)
        scale, zero, _ = self.output
        return (outputs.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def forms(path: Path, io: IoSpec) -> list[Form]:
    """Every form of the file that can be made: QDQ as it is, on int8 codes, on uint8 codes, and float32.

    io: quantisation of input and output, for files that take and give codes themselves.

    Raises:
        ModelError: the file cannot be read.
    """
    whole = plain(load_model(path))
    borders = [_codes(p, q) for p, q in ((_input(whole.graph), io.input_q), (whole.graph.output[0], io.output_q))]
    name = "QDQ" if all(borders) else "QDQ, float at its borders"
    result = [Form(name, whole, *borders)]
    cut: Form | None = result[0] if all(borders) else _cut(_copy(whole))
    if cut is not None:
        unsigned = _unsigned(cut)
        result += [f for f in (cut, unsigned) if f is not None and f is not result[0]]
    try:
        return [*result, Form("float32", floating(_copy(whole)))]
    except ModelError:
        return result


def _codes(port: Any, q: QParams | None) -> tuple[float, int, Any] | None:
    """The quantisation of a port of int8 or uint8 codes, None if it is float."""
    kind = port.type.tensor_type.elem_type
    if q is None or kind not in (TensorProto.INT8, TensorProto.UINT8):
        return None
    signed = kind == TensorProto.INT8
    return (q.scale, q.zero_point + (0 if signed else _OFFSET), np.int8 if signed else np.uint8)


def _copy(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _constants(graph: Any) -> dict[str, Any]:
    return {t.name: t for t in graph.initializer}


def _replace_nodes(graph: Any, nodes: Iterable[Any]) -> None:
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _enter(graph: Any, name: str, array: NDArray[Any]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def plain(model: Any) -> Any:
    """The model with packed and codebook weights as int8, batch 1, and an opset that every engine reads."""
    graph, known = model.graph, _constants(model.graph)
    nodes, folded = [], False
    for node in graph.node:
        if (node.domain, node.op_type) == CODEBOOK:
            index, book = (constant(known[n]).array for n in node.input[:2])
            codes = _enter(graph, f"{node.output[0]}.plain", book[index.astype(np.int64)].astype(np.int8))
            zero = _enter(graph, f"{codes}.zero", np.zeros(known[node.input[2]].dims[0], np.int8))
            arguments = [codes, node.input[2], zero]
            nodes.append(helper.make_node("DequantizeLinear", arguments, list(node.output), name=node.name, axis=0))
            folded = True
        elif node.op_type == "Cast" and node.input[0] in known and constant(known[node.input[0]]).bits:
            _enter(graph, node.output[0], constant(known[node.input[0]]).array.astype(np.int8))
            folded = True
        else:
            nodes.append(node)
    _replace_nodes(graph, nodes)
    _drop_unused(graph)
    del model.functions[:]
    kept = [o for o in model.opset_import if o.domain != CODEBOOK[0]]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    for o in model.opset_import if folded else ():
        if o.domain in ("", "ai.onnx"):
            o.version = min(o.version, _PLAIN_OPSET)
            model.ir_version = min(model.ir_version, 10)
    _fix_batch(graph, known)
    return model


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _fix_batch(graph: Any, known: Iterable[str]) -> None:
    """Batch 1 at the borders; what was inferred for other batches is forgotten."""
    del graph.value_info[:]
    constants = set(known)
    for port in [v for v in graph.input if v.name not in constants] + list(graph.output):
        dims = port.type.tensor_type.shape.dim
        if len(dims):
            dims[0].ClearField("dim_param")
            dims[0].dim_value = 1


def _scalar(known: dict[str, Any], name: str) -> Any:
    array = numpy_helper.to_array(known[name])
    return array.reshape(-1)[0] if array.size == 1 else None


def _borders(graph: Any) -> tuple[Any, Any] | None:
    """The QuantizeLinear that alone reads the input, and the DequantizeLinear that makes the output."""
    known = _constants(graph)
    ports = [v.name for v in graph.input if v.name not in known]
    readers = [n for n in graph.node if ports and ports[0] in n.input]
    makers = [n for n in graph.node if graph.output[0].name in n.output]
    if len(ports) != 1 or len(readers) != 1 or len(makers) != 1:
        return None
    first, last = readers[0], makers[0]
    if first.op_type != "QuantizeLinear" or last.op_type != "DequantizeLinear":
        return None
    if any(len(n.input) < 3 or n.input[2] not in known or _scalar(known, n.input[1]) is None for n in (first, last)):
        return None
    return (first, last) if not any(last.output[0] in n.input for n in graph.node) else None


def _cut(model: Any) -> Form | None:
    """The form on codes, or None where the file does not begin and end with a quantisation of its own."""
    graph = model.graph
    found = _borders(graph)
    if found is None:
        return None
    known, (first, last) = _constants(graph), found
    borders = []
    for node in (first, last):
        zero = numpy_helper.to_array(known[node.input[2]]).reshape(-1)
        borders.append((float(_scalar(known, node.input[1])), int(zero[0]), zero.dtype.type))
    shapes = [list(p.type.tensor_type.shape.dim) for p in (_input(graph), graph.output[0])]
    names = (first.output[0], last.input[0])
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(b[2])), [d.dim_value for d in s])
        for n, b, s in zip(names, borders, shapes, strict=True)
    ]
    _replace_nodes(graph, [n for n in graph.node if n not in (first, last)])
    del graph.input[:], graph.output[:]
    graph.input.append(ports[0])
    graph.output.append(ports[1])
    _drop_unused(graph)
    name = f"QDQ on {np.dtype(borders[0][2]).name} codes"
    return Form(name, model, borders[0], borders[1])


def _input(graph: Any) -> Any:
    known = _constants(graph)
    return next(v for v in graph.input if v.name not in known)


def _unsigned(form: Form) -> Form | None:
    """The same with uint8 activations: x86 multiplies uint8 by int8. None where that cannot be told apart."""
    if form.input is None or form.output is None or form.input[2] is not np.int8:
        return None
    model = _copy(form.model)
    graph = model.graph
    known = _constants(graph)
    zeros = {
        n.input[2]
        for n in graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear") and len(n.input) > 2 and n.input[0] not in known
    }
    zeros |= {n.input[2] for n in graph.node if n.op_type == "Pad" and len(n.input) > 2 and n.input[2] in known}
    for name in zeros:
        array = numpy_helper.to_array(known[name])
        if array.dtype != np.int8:
            return None
        known[name].CopyFrom(numpy_helper.from_array((array.astype(int) + _OFFSET).astype(np.uint8), name))
    shared = {
        n.input[2] for n in graph.node if len(n.input) > 2 and n.op_type == "DequantizeLinear" and n.input[0] in known
    }
    if zeros & shared:
        return None
    for port in (graph.input[0], graph.output[0]):
        port.type.tensor_type.elem_type = TensorProto.UINT8
    borders = [(s, z + _OFFSET, np.uint8) for s, z, _ in (form.input, form.output)]
    return Form("QDQ on uint8 codes", model, borders[0], borders[1])


def floating(model: Any) -> Any:
    """The float network behind the file: quantisation of activations left out, weights as float32.

    A Clip keeps results within what the codes can hold, so that the outputs are those of the quantised network.

    Raises:
        ModelError: weights or parameters that are no constants.
    """
    graph = model.graph
    known = _constants(graph)
    alias: dict[str, str] = {}
    makers = {o: n for n in graph.node for o in n.output}
    nodes = list[Any]()
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = alias.get(name, name)
        if node.op_type == "DequantizeLinear" and node.input[0] in known:
            _enter(graph, node.output[0], _dequantised(node, known))
        elif node.op_type == "QuantizeLinear":
            alias[node.output[0]] = _clipped(node, graph, known, makers, nodes)
        elif node.op_type == "DequantizeLinear":
            alias[node.output[0]] = node.input[0]
        else:
            if node.op_type == "Pad" and len(node.input) > 2 and node.input[2] in known:
                # codes are padded with the zero point, which is 0.0; where not, an engine will differ and be told so
                node.input[2] = _enter(graph, f"{node.output[0]}.zero", np.zeros((), np.float32))
            nodes.append(node)
    output = graph.output[0]
    if output.name in alias:
        nodes.append(helper.make_node("Identity", [alias[output.name]], [output.name]))
    for port in (_input(graph), output):
        port.type.tensor_type.elem_type = TensorProto.FLOAT
    _replace_nodes(graph, nodes)
    _drop_unused(graph)
    return model


def _clipped(node: Any, graph: Any, known: dict[str, Any], makers: dict[str, Any], nodes: list[Any]) -> str:
    """Name of the float tensor that stands for the quantised one: what codes can hold, which engines fuse as a Relu."""
    source = str(node.input[0])
    maker = makers.get(source)
    constants: list[Any] = [_scalar(known, n) if n in known else None for n in node.input[1:3]]
    if maker is None or maker.op_type not in ("Conv", "Gemm", "Add", "MatMul", "Relu") or None in constants:
        return source
    scale, zero = (*constants, np.uint8(0))[:2]
    info = np.iinfo(zero.dtype)
    limits = [np.float32((end - int(zero)) * float(scale)) for end in (info.min, info.max)]
    if maker.op_type == "Relu" and maker in nodes and limits[0] >= 0 and _readers(graph, source) == 1:
        nodes.remove(maker)
        source = str(maker.input[0])
    names = [_enter(graph, f"{node.output[0]}.{k}", np.array(v)) for k, v in zip(("low", "high"), limits, strict=True)]
    nodes.append(helper.make_node("Clip", [source, *names], [f"{node.output[0]}.clipped"]))
    return f"{node.output[0]}.clipped"


def _readers(graph: Any, name: str) -> int:
    return sum(name in n.input for n in graph.node)


def _dequantised(node: Any, known: dict[str, Any]) -> NDArray[np.float32]:
    if any(n not in known for n in node.input):
        raise ModelError(f"{node.name}: parameters that are no constants")
    codes, scale = constant(known[node.input[0]]).array, numpy_helper.to_array(known[node.input[1]])
    zero = constant(known[node.input[2]]).array if len(node.input) > 2 else np.zeros(1)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    result: NDArray[np.float32] = (
        codes.astype(np.float32) - zero.astype(np.float32).reshape(shape if zero.size > 1 else ())
    ) * (scale.astype(np.float32).reshape(shape if scale.size > 1 else ()))
    return result
