"""Operators on codes (QLinearConv, QGemm, QLinearAdd, ...) written out as DequantizeLinear, float, QuantizeLinear.

That is what they are defined to compute. Everything behind this file, the lowering and the float view, knows one form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from xdeploy.onnxfile import Constant, OnnxGraph, OnnxNode

EXACT = "exact_sum"  # attribute of a pooling that sums codes, not floats
_PRODUCTS = ("QLinearConv", "QLinearMatMul", "QGemm")
_NIBBLE = 4


@dataclass(slots=True)
class _Writer:
    """The nodes one operator on codes becomes."""

    node: OnnxNode
    nodes: list[OnnxNode] = field(default_factory=list)

    def add(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None, output: str = "") -> str:
        """Append a node that goes by the operator's own name in messages and origins."""
        output = output or f"{self.node.outputs[0]}/{op}{len(self.nodes)}"
        self.nodes.append(replace(self.node, op=op, inputs=tuple(inputs), outputs=(output,), attrs=attrs or {}))
        return output

    def real(self, tensor: str, scale: str, zero: str = "", axis: int | None = None) -> str:
        """DequantizeLinear."""
        return self.add("DequantizeLinear", _trimmed(tensor, scale, zero), {} if axis is None else {"axis": axis})

    def close(self, tensor: str, scale: str, zero: str = "") -> None:
        """QuantizeLinear to the operator's own output."""
        self.add("QuantizeLinear", _trimmed(tensor, scale, zero), output=self.node.outputs[0])


def _trimmed(*names: str) -> tuple[str, ...]:
    return names if names[-1] else names[:-1]


def _given(node: OnnxNode, count: int) -> tuple[str, ...]:
    """The inputs, filled up with "" where optional ones are left out."""
    if len(node.inputs) > count:
        raise ValueError(f"{len(node.inputs)} inputs, at most {count}")
    return (*node.inputs, *[""] * (count - len(node.inputs)))


def _conv(w: _Writer) -> None:
    x, xs, xz, k, ks, kz, ys, yz, bias = _given(w.node, 9)
    inputs = [w.real(x, xs, xz), w.real(k, ks, kz, axis=0)]
    if bias:
        inputs.append(w.real(bias, w.add("Mul", (xs, ks)), axis=0))
    w.close(w.add("Conv", inputs, w.node.attrs), ys, yz)


def _matmul(w: _Writer) -> None:
    a, scale, zero, b, bs, bz, ys, yz = _given(w.node, 8)
    w.close(w.add("MatMul", (w.real(a, scale, zero), w.real(b, bs, bz, axis=1))), ys, yz)


def _gemm(w: _Writer) -> None:
    a, scale, zero, b, bs, bz, c, ys, yz = _given(w.node, 9)
    inputs = [w.real(a, scale, zero), w.real(b, bs, bz, axis=0 if w.node.attrs.get("transB", 0) else 1)]
    if c:
        inputs.append(w.real(c, w.add("Mul", (scale, bs)), axis=0))
    y = w.add("Gemm", inputs, w.node.attrs, output="" if ys else w.node.outputs[0])
    if ys:
        w.close(y, ys, yz)


def _pair(op: str) -> Callable[[_Writer], None]:
    def write(w: _Writer) -> None:
        a, scale, zero, b, bs, bz, ys, yz = _given(w.node, 8)
        w.close(w.add(op, (w.real(a, scale, zero), w.real(b, bs, bz))), ys, yz)

    return write


def _one(op: str, exact: bool = False, dropped: tuple[str, ...] = ()) -> Callable[[_Writer], None]:
    """An operator of one tensor. Attributes that only name the layout or the version of the definition are dropped."""

    def write(w: _Writer) -> None:
        x, scale, zero, ys, yz = _given(w.node, 5)
        attrs = {k: v for k, v in w.node.attrs.items() if k not in dropped}
        if exact:
            attrs[EXACT] = 1
        w.close(w.add(op, (w.real(x, scale, zero),), attrs), ys, yz)

    return write


def _pool(op: str, exact: bool) -> Callable[[_Writer], None]:
    plain = _one(op, exact, ("channels_last",))

    def write(w: _Writer) -> None:
        if not w.node.attrs.get("channels_last", 0):
            plain(w)
            return
        x, scale, zero, ys, yz = _given(w.node, 5)
        first = w.add("Transpose", (x,), {"perm": (0, 3, 1, 2)})
        attrs = {k: v for k, v in w.node.attrs.items() if k != "channels_last"} | ({EXACT: 1} if exact else {})
        pooled = w.add(op, (w.real(first, scale, zero),), attrs)
        w.close(w.add("Transpose", (pooled,), {"perm": (0, 2, 3, 1)}), ys, yz)

    return write


def _concat(w: _Writer) -> None:
    ys, yz, *parts = w.node.inputs
    if len(parts) % 3:
        raise ValueError(f"{len(parts)} inputs, not triples of tensor, scale and zero point")
    reals = [w.real(parts[k], parts[k + 1], parts[k + 2]) for k in range(0, len(parts), 3)]
    w.close(w.add("Concat", reals, w.node.attrs), ys, yz)


WRITERS: dict[str, Callable[[_Writer], None]] = {
    "QLinearConv": _conv, "QLinearMatMul": _matmul, "QGemm": _gemm,
    "QLinearAdd": _pair("Add"), "QLinearMul": _pair("Mul"), "QLinearConcat": _concat,
    "QLinearSigmoid": _one("Sigmoid"), "QLinearLeakyRelu": _one("LeakyRelu"),
    "QLinearSoftmax": _one("Softmax", dropped=("opset",)),
    "QLinearReduceMean": _one("ReduceMean", exact=True),
    "QLinearAveragePool": _pool("AveragePool", False), "QLinearGlobalAveragePool": _pool("GlobalAveragePool", True),
}  # fmt: skip


def expanded(graph: OnnxGraph) -> OnnxGraph:
    """The graph without operators on codes; those whose inputs do not fit their definition stay as they are."""
    constants = dict(graph.constants)
    nodes = [n for node in graph.nodes for n in _expand(node, constants)]
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _expand(node: OnnxNode, constants: dict[str, Constant]) -> Iterator[OnnxNode]:
    writer = _Writer(node)
    try:
        if node.op == "MatMulNBits":
            _matmul_bits(writer, constants)
        elif node.op in WRITERS:
            WRITERS[node.op](writer)
    except (ValueError, KeyError, IndexError, TypeError):
        writer.nodes.clear()
    yield from writer.nodes or [node]


def exact_form(model: bytes) -> bytes:
    """An ONNX model whose integer products are written out in QDQ form; as it is without such.

    ONNX Runtime then computes them in float32, exactly up to 2^24, where its integer kernels may saturate.
    """
    whole = onnx.load_from_string(model)
    if not any(n.op_type in _PRODUCTS for n in whole.graph.node):
        return model
    nodes = []
    for k, node in enumerate(whole.graph.node):
        if node.op_type not in _PRODUCTS:
            nodes.append(node)
            continue
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        given = OnnxNode(node.name or f"n{k}", node.op_type, tuple(node.input), tuple(node.output), attrs)
        for part in _expand(given, {}):
            domain = node.domain if part is given else ""
            nodes.append(onnx.helper.make_node(part.op, part.inputs, part.outputs, domain=domain, **part.attrs))
    del whole.graph.node[:]
    whole.graph.node.extend(nodes)
    return bytes(whole.SerializeToString())


def _matmul_bits(w: _Writer, constants: dict[str, Constant]) -> None:
    """MatMulNBits with 4 bits and one block per output channel: weights (N, blocks, bytes), low nibble first."""
    x, packed, scales, zeros, *rest = (*w.node.inputs, "", "")
    a = w.node.attrs
    rows, columns = int(a["N"]), int(a["K"])
    if int(a.get("bits", _NIBBLE)) != _NIBBLE or int(a["block_size"]) < columns or any(rest):
        raise ValueError("blocks within a channel")
    bytes_ = constants[packed].array.reshape(rows, -1).astype(np.uint8)
    codes = np.stack([bytes_ & 15, bytes_ >> _NIBBLE], axis=2).reshape(rows, -1)[:, :columns]
    point = np.full(rows, 8, np.uint8)
    if zeros:
        point = (constants[zeros].array.reshape(rows, -1)[:, 0] & 15).astype(np.uint8)
    made = {"codes": codes, "scale": constants[scales].array.reshape(rows), "zero": point}
    for key, array in made.items():
        constants[f"{w.node.outputs[0]}/{key}"] = Constant(np.ascontiguousarray(array), 4 if key == "codes" else 0)
    codes_, scale_, zero_ = (f"{w.node.outputs[0]}/{key}" for key in made)
    weight = w.real(codes_, scale_, zero_, axis=0)
    w.add("Gemm", (x, weight), {"transB": 1}, output=w.node.outputs[0])
