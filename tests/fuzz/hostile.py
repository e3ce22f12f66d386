"""Hostile ONNX files by name: ways out of the folder, and sizes, shapes and structures that no reader should trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.seeds import quantised
from tests.lower.qdq import Qdq

# ------------------------------------------------------------------------------------------------- ways out
# {canary} stands for a file outside the model's folder, {name} for its name, {up} for enough ".."
LOCATIONS: dict[str, str] = {
    "absolute": "{canary}",
    "absolute, doubled slashes": "//{canary}",
    "up": "{up}{canary}",
    "one up": "../{name}",
    "up from a folder": "weights/../../{name}",
    "dot first": "./../{name}",
    "backslashes": "..\\{name}",
    "mixed slashes": "..\\../{name}",
    "drive": "C:\\{name}",
    "drive, relative": "C:..\\{name}",
    "long path prefix": "\\\\?\\{canary}",
    "share": "\\\\localhost\\{name}",
    "url": "file://{canary}",
    "url, one slash": "file:{canary}",
    "http": "http://127.0.0.1:9/{name}",
    "percent": "%2e%2e/{name}",
    "overlong dots": "\u2024\u2024/{name}",
    "full width": "\uff0e\uff0e\uff0f{name}",
    "turned writing": "\u202e../{name}",
    "trailing dot": "../{name}.",
    "trailing space": "../{name} ",
    "nul": "weights.bin\0../{name}",
    "nul first": "\0{canary}",
    "newline": "weights.bin\n../{name}",
    "long": "../" * 1200 + "{name}",
    "tilde": "~/{name}",
    "variable": "${{PWD}}/../{name}",
    "environment": "/proc/self/environ",
    "memory": "/proc/self/mem",
    "zeros": "/dev/zero",
    "passwords": "/etc/passwd",
    "link": "link.bin",
    "link to a folder": "linked/{name}",
    "hard link": "hard.bin",
    "beside": "beside.bin",
    "pipe": "pipe",
    "empty": "",
    "dot": ".",
    "itself": "model.onnx",
}
RANGES: dict[str, dict[str, str]] = {
    "negative offset": {"offset": "-1"}, "huge offset": {"offset": str(2**63)}, "negative length": {"length": "-4"},
    "huge length": {"length": str(2**62)}, "no number": {"offset": "0x10", "length": "four"},
    "checksum": {"checksum": "0" * 40}, "zero length": {"length": "0"},
}  # fmt: skip


def external(name: str, location: str, more: dict[str, str] | None = None) -> Any:
    """A float tensor of four elements whose data stands elsewhere."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **(more or {})}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_initialiser(tensor: Any) -> Any:
    """A legal model that also has the tensor as an initialiser, read by a node."""
    model = quantised()["cnn"]
    model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Identity", [tensor.name], ["unused"]))
    return model


def _with_node(node: Any) -> Any:
    model = quantised()["cnn"]
    model.graph.node.insert(0, node)
    return model


def _branch(tensor: Any, depth: int = 0) -> Any:
    """A node with a subgraph that holds the tensor, `depth` subgraphs further in."""
    out = helper.make_tensor_value_info("o", 1, None)
    inner = [helper.make_node("Identity", [tensor.name], ["o"])] if depth == 0 else [_branch(tensor, depth - 1)]
    graph = helper.make_graph(inner, "b", [], [out], [tensor] if depth == 0 else [])
    return helper.make_node("If", ["x"], ["o" if depth else "if"], then_branch=graph, else_branch=graph)


def _attribute(tensor: Any, kind: str) -> Any:
    node = helper.make_node("Constant", [], ["c"], name="holder")
    if kind == "value":
        node.attribute.append(helper.make_attribute("value", tensor))
    elif kind == "list":
        a = node.attribute.add(name="values", type=onnx.AttributeProto.TENSORS)
        a.tensors.append(tensor)
    else:
        node.attribute.append(helper.make_attribute("sparse_value", sparse(tensor, kind)))
    return _with_node(node)


def sparse(tensor: Any, kind: str) -> Any:
    """A sparse tensor whose values or indices are `tensor`."""
    other = numpy_helper.from_array(np.arange(4), "indices" if kind == "values" else "values")
    parts = {"values": tensor, "indices": other} if kind == "values" else {"values": other, "indices": tensor}
    return onnx.SparseTensorProto(dims=[8], **parts)


def _sparse_initialiser(tensor: Any, kind: str) -> Any:
    model = quantised()["cnn"]
    model.graph.sparse_initializer.append(sparse(tensor, kind))
    return model


def _function(tensor: Any, default: bool) -> Any:
    model = quantised()["cnn"]
    function = onnx.FunctionProto(name="F", domain="d", output=["o"], opset_import=[helper.make_opsetid("", 21)])
    node = helper.make_node("Constant", [], ["o"])
    if default:
        function.attribute_proto.append(helper.make_attribute("value", tensor))
    else:
        node.attribute.append(helper.make_attribute("value", tensor))
    function.node.append(node)
    model.functions.append(function)
    return model


def _training(tensor: Any, part: str) -> Any:
    model = quantised()["cnn"]
    info = model.training_info.add()
    getattr(info, part).initializer.append(tensor)
    return model


def _flag_alone(tensor: Any) -> Any:
    tensor.ClearField("external_data")
    return with_initialiser(tensor)


def _entries_alone(tensor: Any) -> Any:
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = bytes(16)
    return with_initialiser(tensor)


PLACES: dict[str, Callable[[Any], Any]] = {
    "initialiser": with_initialiser,
    "flag alone": _flag_alone,
    "entries alone": _entries_alone,
    "attribute": lambda t: _attribute(t, "value"),
    "list attribute": lambda t: _attribute(t, "list"),
    "sparse values attribute": lambda t: _attribute(t, "values"),
    "sparse indices attribute": lambda t: _attribute(t, "indices"),
    "sparse values": lambda t: _sparse_initialiser(t, "values"),
    "sparse indices": lambda t: _sparse_initialiser(t, "indices"),
    "subgraph": lambda t: _with_node(_branch(t)),
    "nested subgraph": lambda t: _with_node(_branch(t, 3)),
    "function": lambda t: _function(t, default=False),
    "function default": lambda t: _function(t, default=True),
    "training start": lambda t: _training(t, "initialization"),
    "training step": lambda t: _training(t, "algorithm"),
}


def escapes(canary: str, name: str) -> Iterator[tuple[str, bytes]]:
    """Every location at an initialiser, every place and every odd range with one location."""
    words = {"canary": canary, "name": name, "up": "../" * 40}
    for label, location in LOCATIONS.items():
        yield f"location: {label}", with_initialiser(external("w", location.format(**words))).SerializeToString()
    for label, place in PLACES.items():
        yield f"place: {label}", place(external("w", canary)).SerializeToString()
    for label, more in RANGES.items():
        model = with_initialiser(external("w", f"../{name}", more))
        yield f"range: {label}", model.SerializeToString()


# ------------------------------------------------------------------------------------------------- structures
def _edit(change: Callable[[Any], None], seed: str = "cnn") -> Callable[[], bytes]:
    def make() -> bytes:
        model = quantised()[seed]
        change(model)
        data: bytes = model.SerializeToString()
        return data

    return make


def find(model: Any, op: str) -> Any:
    """The first node of an operator."""
    return next(n for n in model.graph.node if n.op_type == op)


def set_attr(op: str, name: str, value: Any) -> Callable[[Any], None]:
    """Replace an attribute of the first node of an operator."""

    def change(model: Any) -> None:
        node = find(model, op)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def _tensor(change: Callable[[Any], None], place: int = 0) -> Callable[[Any], None]:
    return lambda model: change(model.graph.initializer[place])


def _dims(*dims: int) -> Callable[[Any], None]:
    def change(tensor: Any) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def set_scale(value: float) -> Callable[[Any], None]:
    """Give the first QuantizeLinear another scale."""

    def change(model: Any) -> None:
        name = find(model, "QuantizeLinear").input[1]
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), name))

    return change


def _grow(op: str, *constants: Any, **attrs: Any) -> Callable[[], bytes]:
    """A chain of constants that each node makes larger, feeding a Reshape."""

    def make() -> bytes:
        g = Qdq((3, 4, 4))
        g.q(at="x")
        x, at = g.at, g.const(np.zeros((64, 64), np.float32))
        for _ in range(12):
            at = g.op(op, at, *(at if c is None else g.const(c) for c in constants), **attrs)
        g.op("Add", x, at)
        g.q()
        return bytes(g.model().SerializeToString())

    return make


def _outer() -> bytes:
    """Broadcast of long vectors: 64 KB become gigabytes."""
    g = Qdq((3, 4, 4))
    x = g.q(at="x")
    at = g.op("Mul", g.const(np.ones((8192, 1), np.float64)), g.const(np.ones((1, 8192), np.float64)))
    for _ in range(30):
        at = g.op("Add", at, g.const(np.float64(1)))
    g.op("Add", x, at)
    g.q()
    return bytes(g.model().SerializeToString())


def _chain(op: str, count: int, **attrs: Any) -> Callable[[], bytes]:
    """Very many nodes one after the other."""

    def make() -> bytes:
        g = Qdq((3, 8, 8))
        g.q(at="x")
        for _ in range(count):
            g.op(op, g.at, **attrs)
        g.q()
        return bytes(g.model().SerializeToString())

    return make


def _large(shape: tuple[int, ...], channels: int, kernel: int, repeats: int = 1) -> Callable[[], bytes]:
    """Convolutions on an enormous image: tiny file, enormous activations."""

    def make() -> bytes:
        g = Qdq(shape)
        g.q(at="x")
        for k in range(repeats):
            g.conv(channels, shape[0] if k == 0 else channels, kernel, at=g.at, pads=[kernel // 2] * 4)
            g.q()
        return bytes(g.model().SerializeToString())

    return make


def _pooled(kernel: list[int], **attrs: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        g = Qdq((1, 1024, 1024))
        g.q(at="x")
        g.op("AveragePool", g.at, kernel_shape=kernel, **attrs)
        g.q()
        return bytes(g.model().SerializeToString())

    return make


def _padded(amount: int) -> Callable[[], bytes]:
    def make() -> bytes:
        g = Qdq((3, 4, 4))
        x = g.q(at="x")
        g.op("Pad", x, g.const(np.array([0, 0, amount, amount, 0, 0, amount, amount])))
        g.q()
        return bytes(g.model().SerializeToString())

    return make


def _unknown_ops() -> bytes:
    """Growth that is no part of the integer vocabulary."""
    g = Qdq((3, 4, 4))
    x = g.q(at="x")
    big = g.op("ConstantOfShape", g.const(np.array([2**20, 2**20])))
    big = g.op("Expand", big, g.const(np.array([2**31, 2**31])))
    big = g.op("Tile", big, g.const(np.array([2**31, 2**31])))
    big = g.op("Range", g.const(np.int64(0)), g.const(np.int64(2**62)), g.const(np.int64(1)))
    big = g.op("Resize", x, "", g.const(np.array([1, 1, 2**20, 2**20], np.float32)))
    g.op("Add", x, big)
    g.q()
    return bytes(g.model().SerializeToString())


def varint(number: int) -> bytes:
    """Protobuf's variable length integer."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def _nest(depth: int) -> bytes:
    """Subgraphs inside each other, written on the wire (protobuf's own writer stops at a hundred)."""
    data = b""
    for _ in range(depth):
        data = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, data)))
    return field(7, data) + field(8, field(1, b"") + b"\x10\x15")


def _cycle(model: Any) -> None:
    relu, pool = find(model, "Relu"), find(model, "MaxPool")
    relu.input[0] = pool.output[0]


def _self_function(model: Any) -> None:
    f = model.functions.add(name="F", domain="d", output=["o"], opset_import=[helper.make_opsetid("d", 1)])
    f.node.append(helper.make_node("F", [], ["o"], domain="d"))
    model.graph.node.append(helper.make_node("F", [], ["unused"], domain="d"))
    model.opset_import.add(domain="d", version=1)


def _opset(*versions: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        del model.opset_import[:]
        model.opset_import.extend([helper.make_opsetid("", v) for v in versions])

    return change


def _input(*dims: Any) -> Callable[[Any], None]:
    return lambda model: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, dims))


def _duplicate_initialiser(model: Any) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _clear_output(model: Any) -> None:
    model.graph.output[0].name = "nobody"


def _sparse() -> bytes:
    model = _sparse_initialiser(numpy_helper.from_array(np.ones(4), "s"), "values")
    return bytes(model.SerializeToString())


_CONV_EXTREMES: dict[str, tuple[str, Any]] = {
    "zero stride": ("strides", [0, 0]), "negative stride": ("strides", [-1, -1]),
    "huge stride": ("strides", [2**62] * 2),
    "zero dilation": ("dilations", [0, 1]), "huge dilation": ("dilations", [2**62, 2**62]),
    "huge pads": ("pads", [2**31] * 4), "greater pads": ("pads", [2**62] * 4), "negative pads": ("pads", [-1] * 4),
    "wide pads": ("pads", [2000] * 4), "short pads": ("pads", [1]), "many strides": ("strides", [1] * 9),
    "huge group": ("group", 2**31), "negative group": ("group", -1), "zero group": ("group", 0), "group": ("group", 2),
    "another kernel": ("kernel_shape", [9, 9]), "huge kernel": ("kernel_shape", [2**31, 2**31]),
    "auto pad": ("auto_pad", "SAME_SIDEWAYS"), "string": ("strides", "abc"),
    "float": ("group", 1.5), "tensor": ("group", numpy_helper.from_array(np.arange(3))), "unknown": ("flavour", 3),
}  # fmt: skip

STRUCTURES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "zeros": lambda: bytes(100),
    "empty graph": lambda: field(7, b""),
    "empty nodes": lambda: field(7, field(1, b"") * 2_000_000),
    "empty attributes": lambda: field(7, field(1, field(5, b"") * 2_000_000)),
    "many nodes": _chain("Relu", 30_000),
    "a million nodes": lambda: field(7, field(1, field(1, b"x") + field(2, b"y") + field(4, b"Relu")) * 1_000_000),
    "just the nodes": _chain("Relu", 9_900),
    "just the pools": _chain("MaxPool", 9_900, kernel_shape=[1, 1]),
    "deep nesting": lambda: _nest(9),
    "very deep nesting": lambda: _nest(3000),
    "group fields": lambda: b"\x3b" * 5000,
    "unknown fields": lambda: quantised()["cnn"].SerializeToString() + field(999, b"later version") + b"\xf8\x07\x01",
    "a number without end": lambda: b"\x08" + b"\xff" * 50,
    "length past the end": lambda: b"\x3a\xff\xff\xff\xff\x0f",
    "name not text": lambda: field(7, field(1, field(3, b"\xff\xfe") + field(4, b"Relu"))),
    "name of a megabyte": _edit(lambda m: setattr(find(m, "Conv"), "name", "n" * 2**20)),
    "name of 4000": _edit(lambda m: setattr(find(m, "Conv"), "name", "n" * 4000)),
    "op of a megabyte": _edit(lambda m: setattr(find(m, "Conv"), "op_type", "n" * 2**20)),
    "dims overflow": _edit(_tensor(_dims(2**32, 2**32))),
    "dims above the limit": _edit(_tensor(_dims(2**40))),
    "dims negative": _edit(_tensor(_dims(-1))),
    "dims negative twice": _edit(_tensor(_dims(-2, -2))),
    "dims zero": _edit(_tensor(_dims(0))),
    "dims zero and huge": _edit(_tensor(_dims(0, 2**62))),
    "dims of rank 9": _edit(_tensor(_dims(*[1] * 9))),
    "dims of rank 100000": _edit(_tensor(_dims(*[1] * 100_000))),
    "data too short": _edit(_tensor(lambda t: setattr(t, "raw_data", t.raw_data[:-1]))),
    "data too long": _edit(_tensor(lambda t: setattr(t, "raw_data", t.raw_data + b"x"))),
    "data twice": _edit(_tensor(lambda t: t.float_data.extend([1.0]))),
    "data of another type": _edit(_tensor(lambda t: setattr(t, "data_type", TensorProto.DOUBLE))),
    "type unknown": _edit(_tensor(lambda t: setattr(t, "data_type", 12345))),
    "type string": _edit(_tensor(lambda t: setattr(t, "data_type", TensorProto.STRING))),
    "segment": _edit(_tensor(lambda t: t.segment.CopyFrom(TensorProto.Segment(begin=0, end=2**60)))),
    "duplicate initialiser": _edit(_duplicate_initialiser),
    "duplicate input": _edit(lambda m: m.graph.input.append(m.graph.input[0])),
    "initialiser as input": _edit(lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(3), "x"))),
    "second input": _edit(lambda m: m.graph.input.append(helper.make_tensor_value_info("z", 1, [1, 3]))),
    "no input": _edit(lambda m: m.graph.ClearField("input")),
    "no output": _edit(lambda m: m.graph.ClearField("output")),
    "output unknown": _edit(_clear_output),
    "input without type": _edit(lambda m: m.graph.input[0].ClearField("type")),
    "sequence input": _edit(lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent()),
    "cycle": _edit(_cycle),
    "backwards": _edit(lambda m: m.graph.node.sort(key=lambda n: n.name)),
    "written twice": _edit(lambda m: m.graph.node.append(m.graph.node[0])),
    "missing input": _edit(lambda m: find(m, "Conv").input.__setitem__(1, "nobody")),
    "no weight": _edit(lambda m: find(m, "Conv").input.__delitem__(slice(1, None))),
    "empty weight": _edit(lambda m: find(m, "Conv").input.__setitem__(1, "")),
    "weight is data": _edit(lambda m: find(m, "Conv").input.__setitem__(1, find(m, "Conv").input[0])),
    "attribute twice": _edit(lambda m: find(m, "Gemm").attribute.append(find(m, "Gemm").attribute[0])),
    "attribute of two kinds": _edit(lambda m: find(m, "Gemm").attribute[0].ints.extend([1, 2])),
    "attribute by reference": _edit(lambda m: setattr(find(m, "Gemm").attribute[0], "ref_attr_name", "x")),
    "attribute without type": _edit(lambda m: find(m, "Gemm").attribute[0].ClearField("type")),
    "self-calling function": _edit(_self_function),
    "sparse initialiser": _sparse,
    "opset 0": _edit(_opset(0)), "opset 10000": _edit(_opset(10_000)), "opset negative": _edit(_opset(-(2**63))),
    "opset twice": _edit(_opset(13, 21)), "no opset": _edit(_opset()),
    "version of the format": _edit(lambda m: setattr(m, "ir_version", 2**40)),
    "foreign domains": _edit(lambda m: [setattr(n, "domain", f"d{k}") for k, n in enumerate(m.graph.node)][:0]),
    "free channels": _edit(_input("N", "C", 8, 8)), "zero height": _edit(_input("N", 3, 0, 8)),
    "negative height": _edit(_input("N", 3, -5, 8)), "huge image": _edit(_input("N", 3, 2**31, 2**31)),
    "large image": _edit(_input("N", 3, 2**11, 2**12)), "huge batch": _edit(_input(2**40, 3, 8, 8)),
    "batch of 7": _edit(_input(7, 3, 8, 8)), "rank 1": _edit(_input("N")), "rank 30": _edit(_input("N", *[1] * 30)),
    "axis": _edit(set_attr("Softmax", "axis", 2**62)), "axis negative": _edit(set_attr("Flatten", "axis", -9)),
    "pool without kernel": _edit(lambda m: find(m, "MaxPool").ClearField("attribute")),
    "pool kernel 0": _edit(set_attr("MaxPool", "kernel_shape", [0, 0])),
    "pool kernel huge": _edit(set_attr("MaxPool", "kernel_shape", [2**40, 2**40])),
    "pool kernel of rank 1": _edit(set_attr("MaxPool", "kernel_shape", [2])),
    **{f"scale {v}": _edit(set_scale(v)) for v in (float("nan"), float("inf"), 0.0, -0.5, 1e-45, 1e-38, 3e38)},
    **{f"conv: {k}": _edit(set_attr("Conv", *v)) for k, v in _CONV_EXTREMES.items()},
    "zero point of a float": _edit(lambda m: find(m, "QuantizeLinear").input.__setitem__(2, "k1")),
    "concat grows": _grow("Concat", None, None, None, axis=0), "reshape cannot": _grow("Reshape", np.array([-1, -1])),
    "gather grows": _grow("Gather", np.zeros(4096, np.int64), axis=0), "outer product": _outer,
    "unsqueeze grows": _grow("Unsqueeze", np.array([0])), "growth elsewhere": _unknown_ops,
    "pads of a thousand": _padded(1000), "pads of a million": _padded(10**6), "pads beyond int64": _padded(2**62),
    "wide image": _large((16, 1024, 1024), 16, 7), "deep image": _large((4, 512, 512), 64, 5, 3),
    "many large images": _large((3, 512, 512), 64, 1, 40), "wide pool": _pooled([512, 512]),
    "dense pool": _pooled([511, 511], pads=[255] * 4), "count pool": _pooled([1024, 1024], pads=[1023] * 4),
}  # fmt: skip
LEGAL = ("name of 4000", "unknown fields", "batch of 7")
