"""A TFLite flatbuffer of the lowered graph, for LiteRT: the same int8 codes, scales and zero points, channels last.

Written with the schema that the package `ai-edge-litert` brings. TFLite rounds twice where we round once, so outputs
may differ by single codes. What TFLite has no operator for ends in an UnsupportedError that names the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UnsupportedError
from xdeploy.formats import QParams
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual

_SAME, _VALID = 0, 1
_NONE, _RELU, _RELU6 = 0, 1, 3
# operator -> version that knows int8
_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "MUL": 2, "AVERAGE_POOL_2D": 2,
    "MAX_POOL_2D": 2, "MEAN": 2, "SOFTMAX": 2, "RESHAPE": 1, "PADV2": 2, "CONCATENATION": 2, "QUANTIZE": 2,
    "TRANSPOSE": 2, "MAXIMUM": 2, "MINIMUM": 2, "RESIZE_NEAREST_NEIGHBOR": 2, "STRIDED_SLICE": 2,
}  # fmt: skip


class _Writer:
    """Collects tensors, constants and operators of one subgraph."""

    def __init__(self, graph: LoweredGraph) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.s, self.graph = schema, graph
        self.buffers: list[Any] = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: dict[str, int] = {}
        self.at: dict[str, int] = {}  # tensor of the graph -> index

    def tensor(
        self, name: str, shape: Sequence[int], kind: str, data: NDArray[Any] | None = None,
        scale: Sequence[float] = (), zero: Sequence[int] = (), axis: int = 0,
    ) -> int:  # fmt: skip
        """Enter a tensor; with data it is a constant."""
        t = self.s.TensorT()
        t.name, t.shape, t.type = name, list(shape), getattr(self.s.TensorType, kind)
        if data is not None:
            buffer = self.s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            t.buffer = len(self.buffers)
            self.buffers.append(buffer)
        if len(scale):
            q = self.s.QuantizationParametersT()
            q.scale, q.zeroPoint, q.quantizedDimension = [float(v) for v in scale], list(zero), axis
            t.quantization = q
        self.tensors.append(t)
        return len(self.tensors) - 1

    def activation(self, name: str, shape: Sequence[int], q: QParams) -> int:
        """An int8 tensor of one sample."""
        return self.tensor(name, (1, *shape), "INT8", None, [q.scale], [q.zero_point])

    def integers(self, name: str, values: Any) -> int:
        """A constant of int32."""
        array = np.array(values, np.int32)
        return self.tensor(name, array.shape, "INT32", array)

    def code(self, name: str, value: int, q: QParams) -> int:
        """A constant of one code."""
        return self.tensor(name, (1,), "INT8", np.array([value], np.int8), [q.scale], [q.zero_point])

    def op(self, code: str, inputs: Sequence[int], output: int, options: str = "", **values: Any) -> None:
        """Enter an operator."""
        o = self.s.OperatorT()
        o.opcodeIndex = self.codes.setdefault(code, len(self.codes))
        o.inputs, o.outputs = list(inputs), [output]
        if options:
            o.builtinOptionsType = getattr(self.s.BuiltinOptions, options)
            o.builtinOptions = getattr(self.s, f"{options}T")(**values)
        self.operators.append(o)

    def finish(self) -> bytes:
        """The file."""
        import flatbuffers

        s, g = self.s, self.graph
        sub = s.SubGraphT(
            tensors=self.tensors, inputs=[self.at[g.input]], outputs=[self.at[g.output]], operators=self.operators
        )
        codes = []
        for name in self.codes:
            value = int(getattr(s.BuiltinOperator, name))
            codes.append(s.OperatorCodeT(min(value, 127), None, _VERSIONS[name], value))
        model = s.ModelT(version=3, operatorCodes=codes, subgraphs=[sub], buffers=self.buffers)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def tflite(graph: LoweredGraph) -> bytes:
    """The graph as a .tflite of batch 1.

    Raises:
        UnsupportedError: a node that TFLite has no operator for.
    """
    w = _Writer(graph)
    w.at[graph.input] = w.activation(graph.input, graph.tensors[graph.input].shape, graph.tensors[graph.input].q)
    for node in graph.nodes:
        emit = _EMIT.get(node.op)
        if emit is None:
            raise UnsupportedError(f"TFLite has no operator for {node.name} ({node.op})")
        out = graph.tensors[node.output]
        w.at[node.output] = w.activation(node.output, out.shape, out.q)
        emit(w, node)
    return w.finish()


def _fused(low: int, high: int, q: QParams) -> int | None:
    """The activation that cuts codes off at low and high, None if no activation does."""
    zero, six = q.zero_point, int(q.quantise(np.array([6.0], np.float32))[0])
    low, high = max(low, -128), min(high, 127)
    if (low, high) == (-128, 127):
        return _NONE
    if low == zero:
        return _RELU if high == 127 else _RELU6 if high == six else None
    return None


def _cut(w: _Writer, name: str, low: int, high: int, output: int, q: QParams) -> tuple[int, int]:
    """Index of the tensor to write, and the fused activation; where there is none, MAXIMUM and MINIMUM follow later."""
    fused = _fused(low, high, q)
    if fused is not None:
        return output, fused
    shape = w.tensors[output].shape[1:]
    return w.activation(f"{name}.all", shape, q), _NONE


def _limits(w: _Writer, node: Node, source: int, low: int, high: int, output: int, q: QParams) -> None:
    """MAXIMUM and MINIMUM from source to output, unless they are one."""
    if source == output:
        return
    middle = w.activation(f"{node.name}.low", w.tensors[output].shape[1:], q)
    w.op("MAXIMUM", [source, w.code(f"{node.name}.lowest", low, q)], middle, "MaximumMinimumOptions")
    w.op("MINIMUM", [middle, w.code(f"{node.name}.highest", high, q)], output, "MaximumMinimumOptions")


def _padded(w: _Writer, node: Node, source: int, pads: Sequence[int], value: int, q: QParams) -> int:
    """The tensor with `value` around it."""
    top, left, bottom, right = pads
    _, h, width, c = w.tensors[source].shape
    output = w.activation(f"{node.name}.padded", (h + top + bottom, width + left + right, c), q)
    table = w.integers(f"{node.name}.pads", [[0, 0], [top, bottom], [left, right], [0, 0]])
    w.op("PADV2", [source, table, w.code(f"{node.name}.pad", value, q)], output, "PadV2Options")
    return output


def _window(w: _Writer, node: Node, kernel: Sequence[int], value: int) -> tuple[int, int]:
    """Input tensor and padding of a window op: TFLite's SAME where it is ours, else padded before."""
    a, source = node.attrs, w.at[node.inputs[0]]
    pads, dilation = tuple(a["pads"]), a.get("dilation", (1, 1))
    if not any(pads):
        return source, _VALID
    same = []
    for size, k, stride, d in zip(w.tensors[source].shape[1:3], kernel, a["stride"], dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + d * (k - 1) + 1 - size, 0)
        same.append((total // 2, total - total // 2))
    if pads == (same[0][0], same[1][0], same[0][1], same[1][1]):
        return source, _SAME
    return _padded(w, node, source, pads, value, w.graph.tensors[node.inputs[0]].q), _VALID


def sum_q(graph: LoweredGraph, node: Node) -> QParams:
    """Quantisation of a conv2d's or linear's own result, before a residual is added."""
    a, final = node.attrs, graph.tensors[node.output].q
    scale = a["add_a"] / 2.0 ** a["add_shift"] * final.scale if has_residual(node) else final.scale
    return QParams(float(np.float32(scale)), a["out_zero"])


def weight_scales(node: Node, before: QParams, after: QParams) -> NDArray[np.float64]:
    """Scales (O,) of the weights with which codes of `before` give codes of `after`; 0 where the multiplier is."""
    real = node.consts["multiplier"].astype(np.float64) * 2.0 ** (node.attrs["shift"] - 32)
    return np.broadcast_to(real * after.scale / before.scale, (len(node.values),))


def _weighted(w: _Writer, node: Node) -> None:
    """conv2d and linear; a residual becomes an ADD of its own."""
    a, t = node.attrs, w.graph.tensors
    final, residual, q = t[node.output].q, has_residual(node), sum_q(w.graph, node)
    output = w.at[node.output]
    own = w.activation(f"{node.name}.sum", t[node.output].shape, q) if residual else output
    target, fused = _cut(w, node.name, a["low"], a["high"], own, q)
    _products(w, node, q, target, fused)
    _limits(w, node, target, a["low"], a["high"], own, q)
    if residual:
        low, high = a["add_low"], a["add_high"]
        target, fused = _cut(w, f"{node.name}.add", low, high, output, final)
        w.op("ADD", [own, w.at[node.inputs[1]]], target, "AddOptions", fusedActivationFunction=fused)
        _limits(w, node, target, low, high, output, final)


def _products(w: _Writer, node: Node, q: QParams, output: int, fused: int) -> None:
    a, before = node.attrs, w.graph.tensors[node.inputs[0]]
    scales = weight_scales(node, before.q, q)
    zeros, values = [0] * len(scales), node.values
    bias = w.tensor(f"{node.name}.bias", (len(scales),), "INT32", node.consts["bias"].astype(np.int32),
                    list(scales * before.q.scale), zeros)  # fmt: skip
    if node.op == "linear":
        weight = w.tensor(f"{node.name}.weight", values.shape, "INT8", values, list(scales), zeros)
        w.op("FULLY_CONNECTED", [w.at[node.inputs[0]], weight, bias], output, "FullyConnectedOptions",
             fusedActivationFunction=fused)  # fmt: skip
        return
    source, padding = _window(w, node, values.shape[1:3], a["in_zero"])
    shared = {
        "padding": padding, "strideH": a["stride"][0], "strideW": a["stride"][1], "fusedActivationFunction": fused,
        "dilationHFactor": a["dilation"][0], "dilationWFactor": a["dilation"][1],
    }  # fmt: skip
    if a["groups"] == before.shape[2] and a["groups"] > 1:
        flat = np.moveaxis(values[..., 0], 0, -1)[None]
        weight = w.tensor(f"{node.name}.weight", flat.shape, "INT8", flat, list(scales), zeros, 3)
        each = len(values) // a["groups"]
        w.op("DEPTHWISE_CONV_2D", [source, weight, bias], output, "DepthwiseConv2DOptions", depthMultiplier=each,
             **shared)  # fmt: skip
        return
    weight = w.tensor(f"{node.name}.weight", values.shape, "INT8", values, list(scales), zeros)
    w.op("CONV_2D", [source, weight, bias], output, "Conv2DOptions", **shared)


def _scaled(code: str, options: str) -> Callable[[_Writer, Node], None]:
    """Elementwise operators whose result is cut off at low and high."""

    def emit(w: _Writer, node: Node) -> None:
        a, q, output = node.attrs, w.graph.tensors[node.output].q, w.at[node.output]
        target, fused = _cut(w, node.name, a["low"], a["high"], output, q)
        values = {} if code == "QUANTIZE" else {"fusedActivationFunction": fused}
        if fused and not values:
            target = w.activation(f"{node.name}.all", w.tensors[output].shape[1:], q)
        w.op(code, [w.at[i] for i in node.inputs], target, options, **values)
        _limits(w, node, target, a["low"], a["high"], output, q)

    return emit


def _clamp(w: _Writer, node: Node) -> None:
    q = w.graph.tensors[node.output].q
    _limits(w, node, w.at[node.inputs[0]], node.attrs["low"], node.attrs["high"], w.at[node.output], q)


def _average(w: _Writer, node: Node) -> None:
    a, before, after = node.attrs, w.graph.tensors[node.inputs[0]], w.graph.tensors[node.output]
    if not any(a["pads"]) and tuple(a["kernel"]) == before.shape[:2]:
        axes = w.integers(f"{node.name}.axes", [1, 2])
        w.op("MEAN", [w.at[node.inputs[0]], axes], w.at[node.output], "ReducerOptions", keepDims=True)
        return
    source, padding = _window(w, node, a["kernel"], a["in_zero"])
    if a["include_pad"] and padding == _SAME:
        source, padding = _padded(w, node, source, a["pads"], a["in_zero"], before.q), _VALID
    elif any(a["pads"]) and not a["include_pad"] and padding == _VALID:
        raise UnsupportedError(f"TFLite's average pooling has no padding like that of {node.name}")
    same = before.q == after.q
    target = w.at[node.output] if same else w.activation(f"{node.name}.mean", after.shape, before.q)
    _pool(w, "AVERAGE_POOL_2D", node, source, padding, target)
    if not same:
        w.op("QUANTIZE", [target], w.at[node.output], "QuantizeOptions")


def _maximum(w: _Writer, node: Node) -> None:
    source, padding = _window(w, node, node.attrs["kernel"], -128)
    _pool(w, "MAX_POOL_2D", node, source, padding, w.at[node.output])


def _pool(w: _Writer, code: str, node: Node, source: int, padding: int, target: int) -> None:
    (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
    w.op(code, [source], target, "Pool2DOptions", padding=padding, filterHeight=kh, filterWidth=kw, strideH=sh,
         strideW=sw)  # fmt: skip


def _pad(w: _Writer, node: Node) -> None:
    (top, left, bottom, right), (first, last) = node.attrs["pads"], node.attrs["channels"]
    table = w.integers(f"{node.name}.pads", [[0, 0], [top, bottom], [left, right], [first, last]])
    value = w.code(f"{node.name}.pad", node.attrs["value"], w.graph.tensors[node.output].q)
    w.op("PADV2", [w.at[node.inputs[0]], table, value], w.at[node.output], "PadV2Options")


def _reshape(w: _Writer, node: Node) -> None:
    shape = w.integers(f"{node.name}.shape", w.tensors[w.at[node.output]].shape)
    w.op("RESHAPE", [w.at[node.inputs[0]], shape], w.at[node.output])


def _transpose(w: _Writer, node: Node) -> None:
    perm = w.integers(f"{node.name}.perm", [0, *(p + 1 for p in node.attrs["perm"])])
    w.op("TRANSPOSE", [w.at[node.inputs[0]], perm], w.at[node.output], "TransposeOptions")


def _concat(w: _Writer, node: Node) -> None:
    axis = len(w.graph.tensors[node.output].shape)
    w.op("CONCATENATION", [w.at[i] for i in node.inputs], w.at[node.output], "ConcatenationOptions", axis=axis)


def _softmax(w: _Writer, node: Node) -> None:
    w.op("SOFTMAX", [w.at[node.inputs[0]]], w.at[node.output], "SoftmaxOptions", beta=1.0)


def _slice(w: _Writer, node: Node) -> None:
    a = node.attrs
    if min((*a["starts"], *a["stops"], *a["steps"])) < 0:
        raise UnsupportedError(f"{node.name} slices from the end")
    cuts = [w.integers(f"{node.name}.{k}", [first, *a[k]]) for k, first in (("starts", 0), ("stops", 1), ("steps", 1))]
    w.op("STRIDED_SLICE", [w.at[node.inputs[0]], *cuts], w.at[node.output], "StridedSliceOptions")


def _resize(w: _Writer, node: Node) -> None:
    h, width, _ = w.graph.tensors[node.inputs[0]].shape
    rows, cols = node.attrs["rows"], node.attrs["cols"]
    if any(list(x) != [i * n // len(x) for i in range(len(x))] for x, n in ((rows, h), (cols, width))):
        raise UnsupportedError(f"TFLite's nearest resize takes other pixels than {node.name}")
    size = w.integers(f"{node.name}.size", [len(rows), len(cols)])
    w.op("RESIZE_NEAREST_NEIGHBOR", [w.at[node.inputs[0]], size], w.at[node.output], "ResizeNearestNeighborOptions")


_EMIT: dict[str, Callable[[_Writer, Node], None]] = {
    "conv2d": _weighted, "linear": _weighted, "add": _scaled("ADD", "AddOptions"), "mul": _scaled("MUL", "MulOptions"),
    "rescale": _scaled("QUANTIZE", "QuantizeOptions"), "clamp": _clamp, "avg_pool2d": _average,
    "max_pool2d": _maximum, "pad": _pad, "reshape": _reshape, "transpose": _transpose, "concat": _concat,
    "softmax": _softmax, "slice": _slice, "resize": _resize,
}  # fmt: skip
