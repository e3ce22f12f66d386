"""An ExecuTorch program of the lowered graph, delegated to XNNPACK: the same int8 codes, scales and zero points.

The graph is written as a torch module of quantise, dequantise and float operators, which ExecuTorch's partitioner takes
for XNNPACK's int8 operators. XNNPACK requantises in float, so outputs may differ by single codes. Tensors are channels
first in shape, in memory as asked for. What is not written here ends in an UnsupportedError that names the node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.bench.tflitefile import sum_q, weight_scales
from xdeploy.errors import UnsupportedError
from xdeploy.formats import Int8, QParams
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual


def pte(graph: LoweredGraph, channels_last: bool) -> bytes:
    """The graph as a .pte of batch 1; input and output are int8 codes, images (1, C, H, W).

    Args:
        graph: what is computed.
        channels_last: in memory; else first, which XNNPACK turns round within.

    Raises:
        UnsupportedError: a node that is not written here.
    """
    import executorch.runtime  # noqa: F401 (its extension is found only before exir is imported)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(Module(graph).eval(), (example(graph, channels_last),))
    return bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


def example(graph: LoweredGraph, channels_last: bool) -> Tensor:
    """An input of zeros, int8 (1, C, H, W) or (1, F)."""
    return batch(np.zeros((1, *graph.tensors[graph.input].shape), np.int8), channels_last)


def batch(codes: Int8, channels_last: bool) -> Tensor:
    """Codes (N, H, W, C) or (N, F) as the program takes them."""
    found = torch.from_numpy(np.ascontiguousarray(codes))
    if found.dim() == 4:
        found = found.permute(0, 3, 1, 2)
    return found if channels_last else found.contiguous()


class Module(nn.Module):
    """The graph in torch: int8 (N, C, H, W) or (N, F) to int8."""

    def __init__(self, graph: LoweredGraph) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # noqa: F401 (registers the operators)

        self.graph = graph
        for i, node in enumerate(graph.nodes):
            if node.op not in _RUN:
                raise UnsupportedError(f"no ExecuTorch program is written for {node.name} ({node.op})")
            if node.format is not None:
                for key, value in _parameters(graph, node).items():
                    self.register_buffer(f"{key}{i}", value)

    def forward(self, x: Tensor) -> Tensor:
        """Int8 codes of the output."""
        codes = {self.graph.input: x}
        for i, node in enumerate(self.graph.nodes):
            codes[node.output] = _RUN[node.op](self, i, node, [self.real(codes[n], n) for n in node.inputs])
        return codes[self.graph.output]

    def real(self, codes: Tensor, name: str) -> Tensor:
        """What the codes of a tensor stand for."""
        return _dequantise(codes, self.graph.tensors[name].q)

    def weight(self, i: int) -> Tensor:
        """What the weight codes of a node stand for, by output channel."""
        zeros, scales = getattr(self, f"zero{i}"), getattr(self, f"scale{i}")
        codes = getattr(self, f"weight{i}")
        result: Tensor = _decomposed().dequantize_per_channel(codes, scales, zeros, 0, -127, 127, torch.int8)
        return result

    def out(self, node: Node, y: Tensor, keys: tuple[str, str] = ("low", "high")) -> Tensor:
        """The codes of a result, cut off as the node says."""
        q = self.graph.tensors[node.output].q
        return _quantise(_cut(y, node.attrs[keys[0]], node.attrs[keys[1]], q), q)


def _decomposed() -> Any:
    return torch.ops.quantized_decomposed


def _dequantise(codes: Tensor, q: QParams) -> Tensor:
    result: Tensor = _decomposed().dequantize_per_tensor(codes, q.scale, q.zero_point, -128, 127, torch.int8)
    return result


def _quantise(x: Tensor, q: QParams) -> Tensor:
    result: Tensor = _decomposed().quantize_per_tensor(x, q.scale, q.zero_point, -128, 127, torch.int8)
    return result


def _cut(y: Tensor, low: int, high: int, q: QParams) -> Tensor:
    """The activation that cuts codes off at low and high; what saturation does anyway needs none."""
    low, high = max(low, -128), min(high, 127)
    if (low, high) == (-128, 127):
        return y if q.zero_point != -128 else torch.relu(y)
    if low == q.zero_point and high == 127:
        return torch.relu(y)
    return F.hardtanh(y, (low - q.zero_point) * q.scale, (high - q.zero_point) * q.scale)


def _parameters(graph: LoweredGraph, node: Node) -> dict[str, Tensor]:
    """Weight codes (O, I/groups, kh, kw) or (O, I), their scales and zeros, and the real bias (O,)."""
    before, after, values = graph.tensors[node.inputs[0]].q, sum_q(graph, node), node.values
    scales = weight_scales(node, before, after)
    dead = scales == 0  # their outputs are the zero point; XNNPACK wants a scale
    scales = np.where(dead, 2.0**-16 * after.scale / before.scale, scales)
    values = np.where(dead.reshape(-1, *[1] * (values.ndim - 1)), np.int8(0), values)
    bias = np.where(dead, 0, node.consts["bias"]) * scales * before.scale
    if values.ndim == 4:
        values = np.moveaxis(values, -1, 1)
    return {
        "weight": torch.from_numpy(np.ascontiguousarray(values)),
        "scale": torch.from_numpy(scales.astype(np.float32)),
        "zero": torch.zeros(len(scales), dtype=torch.int64),
        "bias": torch.from_numpy(bias.astype(np.float32)),
    }


def _weighted(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    """conv2d and linear; a residual is added after."""
    a, q = node.attrs, sum_q(m.graph, node)
    bias = getattr(m, f"bias{i}")
    if node.op == "linear":
        y = F.linear(xs[0], m.weight(i), bias)
    else:
        x, padding = _padded(m, node, xs[0])
        y = F.conv2d(x, m.weight(i), bias, a["stride"], padding, a["dilation"], a["groups"])
    codes = _quantise(_cut(y, a["low"], a["high"], q), q)
    return m.out(node, _dequantise(codes, q) + xs[1], ("add_low", "add_high")) if has_residual(node) else codes


def _padded(m: Module, node: Node, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The input of a convolution and what is left to pad."""
    top, left, bottom, right = node.attrs["pads"]
    if (top, left) == (bottom, right):
        return x, (top, left)
    q = m.graph.tensors[node.inputs[0]].q
    return _dequantise(_quantise(F.pad(x, (left, right, top, bottom)), q), q), (0, 0)


def _add(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    return m.out(node, xs[0] + xs[1])


def _mul(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    return m.out(node, xs[0] * xs[1])


def _same(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    return m.out(node, xs[0])


def _average(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    a, shape = node.attrs, m.graph.tensors[node.inputs[0]].shape
    if any(a["pads"]):
        raise UnsupportedError(f"no ExecuTorch program is written for average pooling with padding, {node.name}")
    whole = tuple(a["kernel"]) == tuple(shape[:2])
    y = xs[0].mean((2, 3), keepdim=True) if whole else F.avg_pool2d(xs[0], a["kernel"], a["stride"])
    return _quantise(y, m.graph.tensors[node.output].q)


def _maximum(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    a = node.attrs
    top, left, bottom, right = a["pads"]
    if (top, left) != (bottom, right):
        raise UnsupportedError(f"no ExecuTorch program is written for the padding of {node.name}")
    return _quantise(F.max_pool2d(xs[0], a["kernel"], a["stride"], (top, left)), m.graph.tensors[node.output].q)


def _reshape(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    """Channels last is the order of the codes."""
    before, tensor = m.graph.tensors[node.inputs[0]].shape, m.graph.tensors[node.output]
    x = xs[0]
    if len(before) == 3 and before[0] * before[1] > 1:
        x = x.permute(0, 2, 3, 1)
    shape = tensor.shape
    y = x.reshape(x.shape[0], *shape)
    return _quantise(y.permute(0, 3, 1, 2) if len(shape) == 3 else y, tensor.q)


def _pad(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    (top, left, bottom, right), (first, last) = node.attrs["pads"], node.attrs["channels"]
    q = m.graph.tensors[node.output].q
    value = (node.attrs["value"] - q.zero_point) * q.scale
    return _quantise(F.pad(xs[0], (left, right, top, bottom, first, last), value=value), q)


def _slice(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    a, x = node.attrs, xs[0]
    axes = (2, 3, 1) if x.dim() == 4 else (1,)
    for axis, start, stop, step in zip(axes, a["starts"], a["stops"], a["steps"], strict=True):
        x = torch.ops.aten.slice(x, axis, start, stop, step)
    return _quantise(x, m.graph.tensors[node.output].q)


def _concat(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    return _quantise(torch.cat(xs, 1), m.graph.tensors[node.output].q)


def _softmax(m: Module, i: int, node: Node, xs: list[Tensor]) -> Tensor:
    return _quantise(torch.softmax(xs[0], 1), m.graph.tensors[node.output].q)


_RUN: dict[str, Callable[[Module, int, Node, list[Tensor]], Tensor]] = {
    "conv2d": _weighted, "linear": _weighted, "add": _add, "mul": _mul, "rescale": _same, "clamp": _same,
    "avg_pool2d": _average, "max_pool2d": _maximum, "pad": _pad, "reshape": _reshape, "concat": _concat,
    "softmax": _softmax, "slice": _slice,
}  # fmt: skip
