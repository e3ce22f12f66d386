"""Small integer graphs built by hand, for the tests of program, build and bench."""

from __future__ import annotations

from typing import Any

import numpy as np

from xdeploy.formats import QParams, requant
from xdeploy.handover import GoldenIo, IoSpec
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph, Node, Tensor

OUT = {"out_zero": 0, "low": -128, "high": 127}


class Drawer:
    """Adds nodes with random weights one by one; `finish` gives the verified graph."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors = {"x": Tensor(shape, QParams(0.05, 3))}
        self.nodes: list[Node] = []
        self.shape = shape

    def _add(
        self, name: str, op: str, inputs: tuple[str, ...], attrs: dict[str, Any], q: QParams, **consts: Any
    ) -> str:
        node = Node(name, op, inputs, f"{name}:out", attrs, consts)
        shape = ops.OPS[op].shape(node, [self.tensors[i].shape for i in inputs])
        self.tensors[node.output] = Tensor(shape, q)
        self.nodes.append(node)
        return node.output

    def _weights(self, fmt: str, shape: tuple[int, ...]) -> dict[str, Any]:
        from xdeploy.formats import weight_format

        f = weight_format(fmt)
        if not f.codebook:
            return {"codes": self.rng.integers(-f.limit, f.limit + 1, shape).astype(np.int8)}
        book = self.rng.integers(-127, 128, 2**f.bits).astype(np.int8)
        return {"codes": self.rng.integers(0, 2**f.bits, shape).astype(np.int8), "codebook": book}

    def conv(self, name: str, x: str, out: int, k: int = 3, stride: int = 1, groups: int = 1, fmt: str = "int8",
             residual: str | None = None) -> str:  # fmt: skip
        q, y = self.tensors[x].q, QParams(0.1, -5)
        row = k * k * self.tensors[x].shape[2] // groups
        consts = self._weights(fmt, (out, k, k, self.tensors[x].shape[2] // groups))
        consts["bias"] = self.rng.integers(-500, 500, out).astype(np.int32)
        r = requant(self.rng.uniform(0.5, 1.0, out) / (30.0 * row**0.5), -5)
        attrs = {"weight_format": fmt, "stride": (stride, stride), "pads": (k // 2,) * 4, "dilation": (1, 1),
                 "groups": groups, "in_zero": q.zero_point, "shift": r.shift, **OUT, "out_zero": -5}  # fmt: skip
        inputs: tuple[str, ...] = (x,)
        if residual is not None:
            inputs = (x, residual)
            attrs |= ops.scaled_params(y, self.tensors[residual].q, y, "add_")
        return self._add(name, "conv2d", inputs, attrs, y, **consts, multiplier=r.multiplier)

    def linear(self, name: str, x: str, out: int, fmt: str = "int8") -> str:
        q, size = self.tensors[x].q, self.tensors[x].size
        consts = self._weights(fmt, (out, size))
        consts["bias"] = self.rng.integers(-500, 500, out).astype(np.int32)
        r = requant(np.full(out, 0.5 / (30.0 * size**0.5)), 0)
        attrs = {"weight_format": fmt, "in_zero": q.zero_point, "shift": r.shift, **OUT}
        return self._add(name, "linear", (x,), attrs, QParams(0.2, 0), **consts, multiplier=r.multiplier)

    def add(self, name: str, a: str, b: str) -> str:
        q = QParams(0.12, 2)
        attrs = ops.scaled_params(self.tensors[a].q, self.tensors[b].q, q)
        return self._add(name, "add", (a, b), attrs, q)

    def clamp(self, name: str, x: str, low: int = -20, high: int = 60) -> str:
        return self._add(name, "clamp", (x,), {"low": low, "high": high}, self.tensors[x].q)

    def max_pool(self, name: str, x: str, k: int = 2) -> str:
        return self._add(
            name, "max_pool2d", (x,), {"kernel": (k, k), "stride": (k, k), "pads": (0,) * 4}, self.tensors[x].q
        )

    def reshape(self, name: str, x: str) -> str:
        return self._add(name, "reshape", (x,), {"shape": (self.tensors[x].size,)}, self.tensors[x].q)

    def finish(self, output: str) -> tuple[LoweredGraph, GoldenIo]:
        shape = self.shape
        image = (shape[2], shape[0], shape[1]) if len(shape) == 3 else shape
        io = IoSpec("x", image, "y", self.tensors[output].shape, labels=("a", 'b"*/'), input_q=self.tensors["x"].q,
                    output_q=self.tensors[output].q)  # fmt: skip
        graph = LoweredGraph(tuple(self.nodes), self.tensors, "x", output, io)
        ops.verify(graph)
        codes = self.rng.integers(-128, 128, (3, *shape)).astype(np.int8)
        return graph, GoldenIo(np.zeros((3, *image), np.float32), codes, ops.run(graph, codes)[output])


def residual_network(seed: int = 0) -> tuple[LoweredGraph, GoldenIo]:
    """conv, conv + residual, add, clamp, pool, linear: every way of sharing memory."""
    d = Drawer((8, 8, 4), seed)
    a = d.conv("stem */ conv", "x", 8)
    b = d.conv("block.0", a, 8, fmt="c4s8")
    c = d.conv("block.1", b, 8, residual=a, fmt="int4")
    e = d.conv("side", c, 8, k=1)
    f = d.clamp("clamp", d.add("sum", e, c))
    g = d.reshape("flat", d.max_pool("pool", f))
    return d.finish(d.linear("head", g, 5))


def resnet(blocks: int = 3, seed: int = 0) -> tuple[LoweredGraph, GoldenIo]:
    """Shapes and number of weights of the CIFAR ResNets of 6 * blocks + 2 layers, shortcuts as 1x1 convolutions."""
    d = Drawer((32, 32, 3), seed)
    y = d.conv("stem", "x", 16)
    for stage, width in enumerate((16, 32, 64)):
        for i in range(blocks):
            name, stride = f"{stage}.{i}", 2 if stage and not i else 1
            side = d.conv(f"{name}.side", y, width, k=1, stride=2) if stride == 2 else y
            y = d.conv(f"{name}.b", d.conv(f"{name}.a", y, width, stride=stride), width, residual=side)
    return d.finish(d.linear("head", d.reshape("flat", d.max_pool("pool", y, 8)), 10))


def separable_network(seed: int = 0) -> tuple[LoweredGraph, GoldenIo]:
    """A strided first layer with three channels, depthwise and pointwise convolutions, a linear layer."""
    d = Drawer((12, 10, 3), seed)
    y = d.conv("stem", "x", 16, stride=2)
    for i, (out, fmt) in enumerate(((16, "int8"), (24, "c4s8"), (24, "int2"))):
        y = d.conv(f"depth.{i}", y, d.tensors[y].shape[2], groups=d.tensors[y].shape[2])
        y = d.conv(f"point.{i}", y, out, k=1, fmt=fmt)
    return d.finish(d.linear("head", d.reshape("flat", y), 10, fmt="int4"))
