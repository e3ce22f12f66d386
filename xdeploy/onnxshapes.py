"""What ONNX's own shape inference knows of a graph: so that what stands behind a refused node can be looked at too.

It works on a graph that has passed the reader, rebuilt with its large constants left out; what it cannot tell stays
unknown. Nothing that is deployed depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from xdeploy.onnxfile import ACTIVATION_LIMIT, Constant, OnnxGraph, OnnxNode

_BATCH = "xdeploy_batch"
_SMALL = 1024  # elements of a constant that is shown to the inference; larger ones are no shapes, sizes or axes
_NODES = 4000
_PORTS = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


def inferred(
    graph: OnnxGraph, nodes: Iterable[OnnxNode], constants: Mapping[str, NDArray[Any]]
) -> dict[str, tuple[int, ...]]:
    """Shapes per sample of the float tensors whose first axis is the batch.

    Args:
        graph: as read; its ports and opset count.
        nodes: those of the graph, possibly with some computed away.
        constants: by name, those computed included.

    Returns:
        tensor name -> shape without the batch; only what is fully known and within the limits. Empty if the graph
        contradicts itself.
    """
    nodes = list(nodes)
    if len(nodes) > _NODES:
        return {}
    try:
        model = _model(graph, nodes, constants)
        known = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # onnx and protobuf raise many kinds for a graph that contradicts itself: nothing is known then
        return {}
    found = {}
    for info in (*known.graph.value_info, *known.graph.output):
        kind = info.type.tensor_type
        dims = kind.shape.dim
        if kind.elem_type != TensorProto.FLOAT or not dims or dims[0].dim_param != _BATCH:
            continue
        shape = tuple(int(d.dim_value) for d in dims[1:])
        if 1 <= len(shape) <= 4 and min(shape) > 0 and float(np.prod([float(d) for d in shape])) <= ACTIVATION_LIMIT:
            found[info.name] = shape
    return found


def _model(graph: OnnxGraph, nodes: Iterable[OnnxNode], constants: Mapping[str, NDArray[Any]]) -> Any:
    """The graph with a batch of its own name; large constants are inputs of which only the shape is known."""
    port = graph.input
    used = {i for n in nodes for i in n.inputs}
    inputs = [helper.make_tensor_value_info(port.name, _PORTS[port.dtype], (_BATCH, *port.shape[1:]))]
    small = []
    for name, array in constants.items():
        if name not in used or name == port.name:
            continue
        if array.size <= _SMALL:
            small.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
    outputs = [onnx.ValueInfoProto(name=graph.output.name)]
    body = helper.make_graph([_proto(n) for n in nodes], "shapes", inputs, outputs, small)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=10)


def _proto(node: OnnxNode) -> Any:
    attrs = {
        k: numpy_helper.from_array(np.ascontiguousarray(v.array)) if isinstance(v, Constant) else v
        for k, v in node.attrs.items()
        if isinstance(v, Constant | int | float | str) or (isinstance(v, list | tuple) and v)
    }
    return helper.make_node(node.op, node.inputs, node.outputs, **attrs)
