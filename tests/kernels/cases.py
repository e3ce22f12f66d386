"""One-node graphs for every op: the sizes around tiles, remainders of strides and pads, extreme and constant values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xdeploy.formats import FORMATS, Int8, QParams, requant
from xdeploy.handover import IoSpec
from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.lir.ops import OPS, has_residual, scaled_params, softmax_table, verify


@dataclass(frozen=True, slots=True)
class Case:
    """A graph of one node and input codes (samples, *shape) for each of the node's inputs."""

    name: str
    graph: LoweredGraph
    inputs: tuple[Int8, ...]

    @property
    def node(self) -> Node:
        return self.graph.nodes[0]

    def expected(self) -> Int8:
        """The reference's output codes (samples, *shape)."""
        return OPS[self.node.op].run(self.node, list(self.inputs))


def _codes(rng: np.random.Generator, shape: Sequence[int]) -> Int8:
    """Three samples: random over the full range, only the two extremes, all equal."""
    wild = rng.integers(-128, 128, shape)
    edges = rng.choice([-128, 127], shape)
    return np.stack([wild, edges, np.full(shape, -128)]).astype(np.int8)


def _case(name: str, node: Node, shapes: Sequence[tuple[int, ...]], seed: int = 0) -> Case:
    rng = np.random.default_rng([seed, *name.encode()])
    tensors = {n: Tensor(s, QParams(0.1, 0)) for n, s in zip(node.inputs, shapes, strict=True)}
    out = OPS[node.op].shape(node, list(shapes))
    tensors[node.output] = Tensor(out, QParams(0.1, 0))
    io = IoSpec("x", shapes[0], "y", out)
    graph = LoweredGraph((node,), tensors, node.inputs[0], node.output, io)
    if len(node.inputs) == 1:
        verify(graph)
    return Case(name, graph, tuple(_codes(rng, s) for s in shapes))


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...], fill: str) -> dict[str, Any]:
    fmt = FORMATS[name]
    if fmt.codebook:
        codes = rng.integers(0, 2**fmt.bits, shape)
        book = np.sort(rng.integers(-127, 128, 2**fmt.bits)).astype(np.int8)
        if fill != "random":
            codes = np.zeros(shape, np.int64)
        return {"codes": codes.astype(np.int8), "codebook": book}
    codes = rng.integers(-fmt.limit, fmt.limit + 1, shape)
    if fill != "random":
        codes = np.full(shape, {"zero": 0, "low": -fmt.limit, "high": fmt.limit}[fill])
    return {"codes": codes.astype(np.int8)}


def _weighted(
    rng: np.random.Generator, fmt: str, shape: tuple[int, ...], fill: str, relu: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and output-stage attributes whose outputs spread over the code range."""
    consts = _weights(rng, fmt, shape, fill)
    outs, row = shape[0], int(np.prod(shape[1:]))
    consts["bias"] = rng.integers(-2000, 2000, outs).astype(np.int32)
    values = FORMATS[fmt].values(consts["codes"], consts.get("codebook")).astype(np.float64)
    spread = 60.0 / (74.0 * max(float(np.sqrt((values**2).sum() / outs)), 1.0))
    stage = requant(spread * rng.uniform(0.5, 1.5, outs), -7)
    consts["multiplier"] = stage.multiplier
    low = -7 if relu else -128
    high = 90 if relu and row % 2 else 127
    attrs = {"shift": stage.shift, "out_zero": -7, "low": low, "high": high, "weight_format": fmt}
    return consts, attrs


def conv(
    hw: tuple[int, int], cin: int, cout: int, kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1), dilation: tuple[int, int] = (1, 1), groups: int = 1,
    fmt: str = "int8", residual: bool = False, fill: str = "random", relu: bool = False, in_zero: int = -3,
) -> Case:  # fmt: skip
    """A conv2d case."""
    window = f"k{kernel[0]}{kernel[1]}_s{stride[0]}{stride[1]}_p{''.join(map(str, pads))}"
    label = f"{fmt}_{hw[0]}x{hw[1]}_{cin}to{cout}_{window}"
    name = (
        f"{label}_d{dilation[0]}{dilation[1]}_g{groups}"
        + "_res" * residual
        + "_relu" * relu
        + f"_{fill}" * (fill != "random")
    )
    rng = np.random.default_rng([1, *name.encode()])
    consts, attrs = _weighted(rng, fmt, (cout, *kernel, cin // groups), fill, relu)
    attrs |= {"stride": stride, "pads": pads, "dilation": dilation, "groups": groups, "in_zero": in_zero}
    return _finish(f"conv2d_{name}", "conv2d", (*hw, cin), attrs, consts, residual)


def linear(
    cin: int, cout: int, fmt: str = "int8", residual: bool = False, fill: str = "random", relu: bool = False
) -> Case:
    """A linear case."""
    name = f"linear_{fmt}_{cin}to{cout}" + "_res" * residual + "_relu" * relu + f"_{fill}" * (fill != "random")
    rng = np.random.default_rng([2, *name.encode()])
    consts, attrs = _weighted(rng, fmt, (cout, cin), fill, relu)
    return _finish(name, "linear", (cin,), {**attrs, "in_zero": 5}, consts, residual)


def _finish(
    name: str, op: str, shape: tuple[int, ...], attrs: dict[str, Any], consts: dict[str, Any], residual: bool
) -> Case:
    node = Node("layer", op, ("x",), "y", attrs, consts)
    if not residual:
        return _case(name, node, [shape])
    out = OPS[op].shape(node, [shape])
    q0, q1, qo = QParams(0.05, -7), QParams(0.03, 11), QParams(0.06, -4)
    node = replace(node, inputs=("x", "r"), attrs={**attrs, **scaled_params(q0, q1, qo, "add_", low=-4)})
    assert has_residual(node)
    return _case(name, node, [shape, out])


# --------------------------------------------------------------------------------------------------- lists
_SOME = ("int8", "int4", "int3", "int2", "c4s8", "c3s8")  # one of every kind of decoding


def _conv_cases() -> Iterator[Case]:
    for fmt in FORMATS:
        yield conv((5, 5), 3, 5, fmt=fmt)  # K = 27, no multiple of anything
    for fmt in _SOME:
        yield conv((3, 4), 16, 8, (1, 1), pads=(0, 0, 0, 0), fmt=fmt, residual=True)
    for fmt in ("int8", "int4", "c4s8"):
        yield conv((6, 5), 4, 6, stride=(2, 2), fmt=fmt, relu=True)
        yield conv((4, 4), 8, 3, fmt=fmt, residual=True, relu=True)
        for fill in ("zero", "low"):
            yield conv((3, 3), 5, 2, fmt=fmt, fill=fill)
    yield from (conv((1, n), 4, 4, (1, 1), pads=(0, 0, 0, 0)) for n in (1, 2, 3, 4, 5, 7))  # tile +- 1
    yield conv((5, 3), 17, 7, (1, 1), pads=(0, 0, 0, 0), fill="high")
    yield conv((1, 1), 1, 1, (1, 1), pads=(0, 0, 0, 0))
    yield conv((7, 6), 2, 4, (2, 3), (3, 2), (0, 1, 1, 2))
    yield conv((9, 9), 3, 4, dilation=(2, 3), pads=(2, 0, 1, 3))
    yield conv((8, 7), 4, 4, stride=(2, 1), pads=(0, 0, 1, 1), in_zero=127)
    yield conv((6, 6), 6, 9, groups=3, fmt="c3s8")
    yield conv((5, 5), 4, 8, groups=4, residual=True)  # depthwise with a multiplier of 2
    yield conv((4, 4), 64, 16, (1, 1), (2, 2), (0, 0, 0, 0))
    yield from (conv((4, 4), 16, 16), conv((5, 7), 8, 6, residual=True, relu=True))
    yield conv((9, 6), 1, 6, (4, 4), (2, 1), pads=(1, 2, 2, 1))  # rows of whole quads, pixels not
    yield conv((5, 6), 8, 2, (5, 5), pads=(2, 2, 2, 2), in_zero=-128)
    for fmt in FORMATS:  # depthwise
        yield conv((5, 6), 6, 6, groups=6, fmt=fmt)
    yield conv((7, 7), 16, 16, groups=16, stride=(2, 2), residual=True)
    yield conv((6, 7), 17, 17, groups=17, pads=(0, 0, 0, 0), relu=True)
    yield conv((7, 7), 3, 3, (5, 5), groups=3, pads=(2, 2, 2, 2), stride=(2, 1))
    yield conv((9, 9), 4, 4, (3, 3), groups=4, pads=(2, 2, 2, 2), dilation=(2, 2))
    yield from (conv((10, 5), 8, 8, (10, 5), groups=8, pads=(0, 0, 0, 0)), conv((1, 1), 1, 1, groups=1))


def _linear_cases() -> Iterator[Case]:
    for fmt in FORMATS:
        yield linear(27, 5, fmt)
    for fmt in _SOME:
        yield linear(64, 10, fmt, residual=True)
    yield from (linear(1, 1), linear(130, 4, relu=True), linear(65, 3, "int4", fill="low"), linear(16, 7, fill="zero"))


def _add_cases() -> Iterator[Case]:
    for i, (scales, zeros, shape) in enumerate(
        [
            ((0.05, 0.03, 0.06), (-7, 11, -4), (5, 3, 7)),
            ((1.0, 0.001, 0.9), (127, -128, 0), (33,)),
            ((0.1, 0.1, 0.02), (0, 0, 3), (4, 4, 16)),
        ]
    ):
        q = [QParams(s, z) for s, z in zip(scales, zeros, strict=True)]
        attrs = scaled_params(q[0], q[1], q[2], low=-128 if i else -4)
        yield _case(f"add_{i}", Node("layer", "add", ("x", "r"), "y", attrs), [shape, shape])


def _rescale_cases() -> Iterator[Case]:
    for i, (a, b, shape) in enumerate([((0.05, -7), (0.06, 4), (5, 3, 7)), ((0.5, 120), (0.002, -5), (31,))]):
        attrs = scaled_params(QParams(*a), None, QParams(*b))
        yield _case(f"rescale_{i}", Node("layer", "rescale", ("x",), "y", attrs), [shape])


def _clamp_cases() -> Iterator[Case]:
    for i, shape in enumerate([(5, 3, 7), (1,), (4, 4, 16)]):
        yield _case(f"clamp_{i}", Node("layer", "clamp", ("x",), "y", {"low": -3 - i, "high": 100 + i}), [shape])


_WINDOWS = [
    ((6, 6, 16), (2, 2), (2, 2), (0, 0, 0, 0)),
    ((7, 5, 3), (3, 3), (2, 2), (1, 1, 1, 1)),
    ((4, 4, 1), (4, 4), (1, 1), (0, 0, 0, 0)),
    ((5, 6, 17), (3, 2), (1, 3), (0, 1, 2, 1)),
    ((1, 1, 5), (1, 1), (1, 1), (0, 0, 0, 0)),
    ((8, 8, 64), (8, 8), (8, 8), (0, 0, 0, 0)),
]


def _max_cases() -> Iterator[Case]:
    for i, (shape, kernel, stride, pads) in enumerate(_WINDOWS):
        attrs = {"kernel": kernel, "stride": stride, "pads": pads}
        yield _case(f"max_pool2d_{i}", Node("layer", "max_pool2d", ("x",), "y", attrs), [shape])


def _avg_cases() -> Iterator[Case]:
    for i, (shape, kernel, stride, pads) in enumerate(_WINDOWS):
        for include in (False, True):
            count = np.arange(1, kernel[0] * kernel[1] + 1)
            stage = requant((0.9 if i % 2 else 1.3) / count, 4)
            attrs = {"kernel": kernel, "stride": stride, "pads": pads, "include_pad": include, "in_zero": -9}
            attrs |= {"shift": stage.shift, "out_zero": 4, "low": -100 if i % 2 else -128, "high": 127}
            node = Node("layer", "avg_pool2d", ("x",), "y", attrs, {"multiplier": stage.multiplier})
            yield _case(f"avg_pool2d_{i}_{'all' if include else 'inside'}", node, [shape])
    # one scale on both sides: halves are frequent, and decided by exact sums or by those of float32
    for mantissa in (1, 0x821DF3):
        for i, (shape, size, zero) in enumerate((((8, 8, 5), 8, -128), ((5, 6, 3), 2, 3), ((4, 6, 20), 4, 100))):
            stage = requant(1 / np.arange(1, size * size + 1), 4)
            attrs = {"kernel": (size, size), "stride": (1, 2), "pads": (0, 0, 1, 0), "include_pad": i == 1}
            attrs |= {"in_zero": zero, "shift": stage.shift, "out_zero": 4, "low": -100, "high": 120, "tie": mantissa}
            node = Node("layer", "avg_pool2d", ("x",), "y", attrs, {"multiplier": stage.multiplier})
            yield _case(f"avg_pool2d_halves_{i}_{mantissa}", node, [shape])


def _pad_cases() -> Iterator[Case]:
    for i, (shape, pads, channels) in enumerate(
        [
            ((3, 4, 5), (1, 2, 0, 3), (0, 0)),
            ((4, 4, 8), (0, 0, 0, 0), (4, 4)),
            ((2, 3, 3), (0, 1, 2, 0), (2, 0)),
            ((1, 1, 1), (1, 1, 1, 1), (0, 1)),
        ]
    ):
        attrs = {"pads": pads, "channels": channels, "value": -5 - i}
        yield _case(f"pad_{i}", Node("layer", "pad", ("x",), "y", attrs), [shape])


def _slice_cases() -> Iterator[Case]:
    for i, (shape, starts, stops, steps) in enumerate(
        [
            ((6, 7, 8), (0, 0, 0), (6, 7, 8), (2, 2, 1)),
            ((5, 5, 9), (1, 0, 3), (4, 5, 9), (1, 1, 1)),
            ((4, 4, 10), (0, 1, 0), (4, 4, 10), (1, 2, 3)),
            ((19,), (3,), (18,), (4,)),
        ]
    ):
        attrs = {"starts": starts, "stops": stops, "steps": steps}
        yield _case(f"slice_{i}", Node("layer", "slice", ("x",), "y", attrs), [shape])


def _concat_cases() -> Iterator[Case]:
    for i, shapes in enumerate([[(3, 4, 5), (3, 4, 2)], [(2, 2, 16), (2, 2, 1), (2, 2, 7), (2, 2, 16)], [(8,), (3,)]]):
        names = tuple(f"x{k}" for k in range(len(shapes)))
        yield _case(f"concat_{i}", Node("layer", "concat", names, "y"), shapes)


def _stack_cases() -> Iterator[Case]:
    for i, shapes in enumerate([[(3, 4, 5), (1, 4, 5)], [(2, 2, 16)], [(1, 3, 3)], [(1, 4, 8), (5, 4, 8), (2, 4, 8)]]):
        names = tuple(f"x{k}" for k in range(len(shapes)))
        yield _case(f"stack_{i}", Node("layer", "stack", names, "y"), shapes)


def _transpose_cases() -> Iterator[Case]:
    for i, (shape, perm) in enumerate(
        [
            ((3, 4, 5), (2, 0, 1)),
            ((4, 3, 8), (1, 0, 2)),
            ((2, 5, 3), (0, 2, 1)),
            ((6, 7), (1, 0)),
            ((3, 4, 2, 2, 5), (0, 2, 1, 3, 4)),
            ((2, 3, 4, 5), (3, 1, 0, 2)),
            ((2, 3, 2, 3, 2, 2), (5, 0, 3, 2, 4, 1)),
        ]
    ):
        yield _case(f"transpose_{i}", Node("layer", "transpose", ("x",), "y", {"perm": perm}), [shape])


def _mul_cases() -> Iterator[Case]:
    places = [
        ((5, 3, 7), (5, 3, 7)), ((33,), (33,)), ((4, 4, 16), (1, 1, 16)), ((3, 5, 17), (1, 1, 17)),
        ((2, 3, 1), (1, 1, 1)), ((1, 1, 9), (1, 1, 9)),
    ]  # fmt: skip
    for i, ((shape, gate), scale) in enumerate(itertools.product(places, (0.004, 0.9, 700.0))):
        stage = requant(scale, -7 + i)
        low = -20 if i % 2 else -128
        attrs = {"a_zero": (-128, 127, 3)[i % 3], "b_zero": (127, -5, -128)[i % 3], "shift": stage.shift}
        attrs |= {"out_zero": stage.zero_point, "low": low, "high": 127}
        node = Node("layer", "mul", ("x", "g"), "y", attrs, {"multiplier": stage.multiplier})
        yield _case(f"mul_{i}", node, [shape, gate])


def _resize_cases() -> Iterator[Case]:
    for i, (shape, rows, cols) in enumerate(
        [
            ((3, 4, 5), (0, 0, 1, 1, 2, 2), (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)),  # repeats
            ((4, 6, 3), (0, 2), (1, 3, 5)),  # steps
            ((4, 6, 8), (0, 1, 2, 3), (0, 0, 2, 2, 4, 4)),  # both, and an axis as it is
            ((5, 4, 7), (0, 1, 1, 2, 3, 3, 4), (0, 1, 2, 3)),  # a table for the rows
            ((3, 5, 1), (2, 2), (0, 0, 1, 3, 4, 4)),  # ... for the columns
            ((4, 4, 16), (3, 1, 0), (0, 3, 3)),  # ... for both, backwards
            ((1, 1, 9), (0, 0, 0), (0, 0)),
            ((3, 1, 2), (1,), (0,)),
        ]
    ):
        yield _case(f"resize_{i}", Node("layer", "resize", ("x",), "y", {"rows": rows, "cols": cols}), [shape])


def _softmax_cases() -> Iterator[Case]:
    for i, (shape, scale) in enumerate([((10,), 0.1), ((3, 2, 5), 0.02), ((1,), 1.0), ((1000,), 0.05)]):
        table = softmax_table(scale, shape[-1])
        yield _case(f"softmax_{i}", Node("layer", "softmax", ("x",), "y", {}, {"table": table}), [shape])


def _lut_cases() -> Iterator[Case]:
    table = np.random.default_rng(3).permutation(np.arange(-128, 128)).astype(np.int8)
    for i, shape in enumerate([(5, 3, 7), (1,), (64,)]):
        yield _case(f"lut_{i}", Node("layer", "lut", ("x",), "y", {}, {"table": table}), [shape])


_LISTS: dict[str, Callable[[], Iterator[Case]]] = {
    "conv2d": _conv_cases,
    "linear": _linear_cases,
    "add": _add_cases,
    "rescale": _rescale_cases,
    "clamp": _clamp_cases,
    "max_pool2d": _max_cases,
    "avg_pool2d": _avg_cases,
    "pad": _pad_cases,
    "slice": _slice_cases,
    "concat": _concat_cases,
    "stack": _stack_cases,
    "transpose": _transpose_cases,
    "mul": _mul_cases,
    "resize": _resize_cases,
    "softmax": _softmax_cases,
    "lut": _lut_cases,
}
KERNEL_OPS = tuple(_LISTS)


def cases(op: str) -> list[Case]:
    """All cases of one op."""
    return list(_LISTS[op]())
