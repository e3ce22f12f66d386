"""Mutants made by editing the protobuf: files that parse, with nodes, tensors, types and names that do not fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Change = Callable[[random.Random, Any], None]

NAMES = (
    "",
    "x",
    "*/",
    "\n#include <x>",
    "${X};]]",
    "</script>",
    "../../x",
    "\u202ereversed",
    "n" * 3000,
    "int",
    "%s%n",
    "\0",
)
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 255, 256, -128, 2**15, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"), 1e-7)
OPS = (
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant",
    "ConstantOfShape", "Conv", "ConvTranspose", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout",
    "Einsum",
    "Elu", "Erf", "Exp", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "If", "InstanceNormalization", "LRN", "LSTM", "LayerNormalization",
    "LeakyRelu", "Loop", "MatMul", "MatMulInteger", "Max", "MaxPool", "Mean", "Min", "Mul", "Neg", "PRelu", "Pad",
    "Pow",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear", "Range", "ReduceMax", "ReduceMean", "Relu", "Reshape", "Resize",
    "Scan", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze",
    "Sub", "Tanh",
    "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where", "NoSuchOperator",
)  # fmt: skip


FACTS = ("", "{", "[]", '{"mean": [NaN]}', '{"labels": 3}', '{"mean": ["x"]}', "[" * 10**5, '{"std": [0]}')
ATTRIBUTES = (
    "axis", "pads", "strides", "auto_pad", "ceil_mode", "dilations", "group", "keepdims", "block_size", "output_dtype",
    "allowzero", "mode", "storage_order", "count_include_pad", "transA", "saturate",
)  # fmt: skip


def _node(r: random.Random, m: Any) -> Any:
    return r.choice(m.graph.node)


def _names(m: Any) -> list[str]:
    found = [t.name for t in m.graph.initializer] + [v.name for v in m.graph.input]
    return found + [o for n in m.graph.node for o in n.output]


def _tensor(r: random.Random, m: Any) -> Any:
    held = [a.t for n in m.graph.node for a in n.attribute if a.type == AttributeProto.TENSOR]
    return r.choice([*m.graph.initializer, *held])


def _attribute(r: random.Random, m: Any) -> Any:
    found = [a for n in m.graph.node for a in n.attribute]
    return r.choice(found) if found else AttributeProto()


def _dims(r: random.Random, m: Any) -> Any:
    values = [v for v in (*m.graph.input, *m.graph.output) if v.type.tensor_type.shape.dim]
    return r.choice(values).type.tensor_type.shape.dim if values else []


# ------------------------------------------------------------------------------------------------- nodes
def drop_node(r: random.Random, m: Any) -> None:
    del m.graph.node[r.randrange(len(m.graph.node))]


def bypass_node(r: random.Random, m: Any) -> None:
    """Take a node out and let its readers read its first input."""
    k = r.randrange(len(m.graph.node))
    node = m.graph.node[k]
    if not node.input or not node.output:
        return
    for other in m.graph.node:
        for i, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[i] = node.input[0]
    del m.graph.node[k]


def duplicate_node(r: random.Random, m: Any) -> None:
    m.graph.node.append(_node(r, m))


def repeat_node(r: random.Random, m: Any) -> None:
    """Put a copy behind a node that reads what it wrote."""
    k = r.randrange(len(m.graph.node))
    node = m.graph.node[k]
    if not node.input or not node.output:
        return
    copy = type(node)()
    copy.CopyFrom(node)
    node.output[0] = f"{node.output[0]}.before"
    copy.input[0] = node.output[0]
    m.graph.node.insert(k + 1, copy)


def swap_nodes(r: random.Random, m: Any) -> None:
    a, b = _node(r, m), _node(r, m)
    spare = type(a)()
    spare.CopyFrom(a)
    a.CopyFrom(b)
    b.CopyFrom(spare)


def shuffle_nodes(r: random.Random, m: Any) -> None:
    order = list(m.graph.node)
    r.shuffle(order)
    del m.graph.node[:]
    m.graph.node.extend(order)


def change_op(r: random.Random, m: Any) -> None:
    _node(r, m).op_type = r.choice(OPS)


def change_op_and_attributes(r: random.Random, m: Any) -> None:
    node = _node(r, m)
    node.op_type = r.choice(OPS)
    del node.attribute[:]


def change_domain(r: random.Random, m: Any) -> None:
    _node(r, m).domain = r.choice(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "xdeploy", "pkg.mine", "\u202e"))


def change_input(r: random.Random, m: Any) -> None:
    node = _node(r, m)
    if node.input:
        node.input[r.randrange(len(node.input))] = r.choice([*_names(m), "", "nobody"])


def swap_inputs(r: random.Random, m: Any) -> None:
    node = _node(r, m)
    order = list(node.input)
    r.shuffle(order)
    del node.input[:]
    node.input.extend(order)


def add_input(r: random.Random, m: Any) -> None:
    _node(r, m).input.extend(r.choice(_names(m)) for _ in range(r.choice((1, 1, 2, 50))))


def drop_input(r: random.Random, m: Any) -> None:
    node = _node(r, m)
    if node.input:
        del node.input[r.randrange(len(node.input))]


def change_output(r: random.Random, m: Any) -> None:
    node = _node(r, m)
    if node.output:
        node.output[0] = r.choice([*_names(m), *NAMES])


def add_output(r: random.Random, m: Any) -> None:
    _node(r, m).output.append(r.choice(("", "more", *_names(m))))


def rename(r: random.Random, m: Any) -> None:
    """A node's own name, or a tensor's wherever it is used."""
    new = r.choice(NAMES)
    if r.random() < 0.4:
        _node(r, m).name = new
        return
    old = r.choice(_names(m))
    for node in m.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in (*m.graph.initializer, *m.graph.input, *m.graph.output):
        if value.name == old:
            value.name = new


# ------------------------------------------------------------------------------------------------- attributes
def drop_attribute(r: random.Random, m: Any) -> None:
    node = _node(r, m)
    if node.attribute:
        del node.attribute[r.randrange(len(node.attribute))]


def change_number(r: random.Random, m: Any) -> None:
    a = _attribute(r, m)
    if a.type == AttributeProto.INT:
        a.i = r.choice(NUMBERS)
    elif a.type == AttributeProto.FLOAT:
        a.f = r.choice(REALS)
    elif a.type == AttributeProto.INTS and a.ints:
        a.ints[r.randrange(len(a.ints))] = r.choice(NUMBERS)
    elif a.type == AttributeProto.STRING:
        a.s = r.choice((b"", b"SAME_UPPER", b"VALID", b"\xff\xfe", b"nearest", b"reflect", b"x" * 9000))


def change_length(r: random.Random, m: Any) -> None:
    a = _attribute(r, m)
    if a.type != AttributeProto.INTS:
        return
    if r.random() < 0.5 and a.ints:
        del a.ints[r.randrange(len(a.ints))]
    else:
        a.ints.extend([r.choice(NUMBERS)] * r.choice((1, 1, 5, 1000)))


def change_attribute_type(r: random.Random, m: Any) -> None:
    _attribute(r, m).type = r.choice([*AttributeProto.AttributeType.values(), 77][:-1])


def change_attribute_name(r: random.Random, m: Any) -> None:
    _attribute(r, m).name = r.choice(("axis", "pads", "perm", "to", "value", "block_size", "ceil_mode", *NAMES))


def add_attribute(r: random.Random, m: Any) -> None:
    number = r.choice(NUMBERS)
    value: Any = r.choice((number, [number] * r.choice((1, 2, 4)), r.choice(REALS), b"SAME_UPPER"))
    _node(r, m).attribute.append(helper.make_attribute(r.choice(ATTRIBUTES), value))


def small_numbers(r: random.Random, m: Any) -> None:
    """Legal sizes: the mutant often stays a model."""
    a = _attribute(r, m)
    if a.type == AttributeProto.INTS and a.ints:
        a.ints[r.randrange(len(a.ints))] = r.randrange(0, 5)
    elif a.type == AttributeProto.INT:
        a.i = r.randrange(-4, 5)
    elif a.type == AttributeProto.FLOAT:
        a.f = r.uniform(-2, 2)


def subgraph(r: random.Random, m: Any) -> None:
    inner = helper.make_graph([_node(r, m)], "inner", [], [])
    _node(r, m).attribute.append(helper.make_attribute("body", inner))


# ------------------------------------------------------------------------------------------------- tensors
def change_dims(r: random.Random, m: Any) -> None:
    t = _tensor(r, m)
    if t.dims and r.random() < 0.6:
        t.dims[r.randrange(len(t.dims))] = r.choice(NUMBERS)
    elif r.random() < 0.5:
        t.dims.extend([1] * r.choice((1, 2, 9)))
    else:
        del t.dims[:]


def refold(r: random.Random, m: Any) -> None:
    """Another shape of the same size."""
    t = _tensor(r, m)
    size = int(np.prod(t.dims))
    shape = r.choice(([size], [1, size], [size, 1], list(reversed(t.dims)), [1, 1, size, 1]))
    del t.dims[:]
    t.dims.extend(shape)


def change_tensor_type(r: random.Random, m: Any) -> None:
    _tensor(r, m).data_type = r.choice([*range(27), 99, -1])


def retype(r: random.Random, m: Any) -> None:
    """The same values in another type, data and shape in agreement."""
    t = _tensor(r, m)
    kind = r.choice((np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_))
    with np.errstate(all="ignore"):
        t.CopyFrom(numpy_helper.from_array(_array(t).astype(kind), t.name))


def change_values(r: random.Random, m: Any) -> None:
    t = _tensor(r, m)
    array = np.array(_array(t))
    if not array.size:
        return
    value = r.choice(REALS) if array.dtype.kind == "f" else r.choice(NUMBERS)
    with np.errstate(all="ignore"):
        if array.dtype.kind != "f":
            value = int(np.clip(value, -128, 127)) if array.dtype.kind == "i" else abs(value) % 256
        array.reshape(-1)[r.randrange(array.size) if r.random() < 0.5 else slice(None)] = value
    t.CopyFrom(numpy_helper.from_array(array, t.name))


def scale_values(r: random.Random, m: Any) -> None:
    """Scales and biases of other sizes: the mutant often stays a model."""
    floats = [t for t in m.graph.initializer if t.data_type == TensorProto.FLOAT]
    if floats:
        t = r.choice(floats)
        array = _array(t) * np.float32(r.choice((0.1, 0.5, 2, 10, 1000, -1)))
        t.CopyFrom(numpy_helper.from_array(np.asarray(array), t.name))


def cut_data(r: random.Random, m: Any) -> None:
    t = _tensor(r, m)
    t.raw_data = t.raw_data[: r.randrange(len(t.raw_data) + 1)] if r.random() < 0.7 else t.raw_data + b"\x01" * 7


def data_twice(r: random.Random, m: Any) -> None:
    t = _tensor(r, m)
    r.choice((t.float_data, t.int32_data, t.int64_data, t.double_data, t.uint64_data)).extend([1] * r.choice((1, 4)))


def outside(r: random.Random, m: Any) -> None:
    t = _tensor(r, m)
    t.data_location = r.choice((TensorProto.EXTERNAL, TensorProto.DEFAULT))
    t.external_data.add(key="location", value=r.choice(("/etc/hostname", "../x", "", "x.bin")))


def drop_tensor(r: random.Random, m: Any) -> None:
    if m.graph.initializer:
        del m.graph.initializer[r.randrange(len(m.graph.initializer))]


def duplicate_tensor(r: random.Random, m: Any) -> None:
    m.graph.initializer.append(_tensor(r, m))


def tensor_as_input(r: random.Random, m: Any) -> None:
    """As files of older versions have it: every initialiser may also be an input."""
    t = _tensor(r, m)
    m.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type or 1, list(t.dims)))


# ------------------------------------------------------------------------------------------------- borders
def change_port_dim(r: random.Random, m: Any) -> None:
    dims = _dims(r, m)
    if dims:
        d = r.choice(dims)
        d.dim_value = r.choice((*NUMBERS, 4, 5, 16, 100))


def change_port_rank(r: random.Random, m: Any) -> None:
    dims = _dims(r, m)
    if dims and r.random() < 0.5:
        dims.pop()
    elif dims:
        dims.add().dim_value = 1


def change_port_type(r: random.Random, m: Any) -> None:
    r.choice((*m.graph.input, *m.graph.output)).type.tensor_type.elem_type = r.randrange(27)


def drop_port(r: random.Random, m: Any) -> None:
    ports = r.choice((m.graph.input, m.graph.output))
    if ports:
        del ports[r.randrange(len(ports))]


def move_output(r: random.Random, m: Any) -> None:
    if m.graph.output:
        m.graph.output[0].name = r.choice(_names(m))


def add_port(r: random.Random, m: Any) -> None:
    r.choice((m.graph.input, m.graph.output)).append(helper.make_tensor_value_info(r.choice(_names(m)), 1, [1, 3]))


def change_opset(r: random.Random, m: Any) -> None:
    m.opset_import[0].version = r.choice((*NUMBERS, *range(7, 29)))


def add_opset(r: random.Random, m: Any) -> None:
    m.opset_import.append(
        helper.make_opsetid(r.choice(("", "ai.onnx", "com.microsoft", "xdeploy")), r.randrange(1, 25))
    )


def change_ir(r: random.Random, m: Any) -> None:
    m.ir_version = r.choice((*NUMBERS, 3, 4, 8, 9, 10, 11, 12, 13))


def metadata(r: random.Random, m: Any) -> None:
    value = r.choice(
        ("", "{", "[]", '{"mean": [NaN]}', '{"labels": 3}', '{"mean": ["x"]}', "[" * 10**5, '{"std": [0]}')
    )
    m.metadata_props.add(key="xdeploy.io", value=value)
    _node(r, m).metadata_props.add(key=r.choice(("origin", "weight_format")), value=r.choice((*NAMES, "int2", "c4s8")))


def function(r: random.Random, m: Any) -> None:
    f = m.functions.add(name=r.choice(("CodebookWeight", "F")), domain=r.choice(("xdeploy", "d")), output=["o"])
    f.input.extend(["idx", "book", "scale"])
    f.node.append(_node(r, m))


def _array(t: Any) -> np.ndarray:
    """The values of a tensor that stands in the file; another one's file is never opened.

    Raises:
        ValueError: a change before this one moved the data outside.
    """
    if t.external_data or t.data_location == TensorProto.EXTERNAL:
        raise ValueError("external data")
    return numpy_helper.to_array(t)


CHANGES: tuple[Change, ...] = (
    drop_node, bypass_node, duplicate_node, repeat_node, swap_nodes, shuffle_nodes, change_op, change_op_and_attributes,
    change_domain, change_input, swap_inputs, add_input, drop_input, change_output, add_output, rename, drop_attribute,
    change_number, change_length, change_attribute_type, change_attribute_name, add_attribute, small_numbers, subgraph,
    change_dims, refold, change_tensor_type, retype, change_values, scale_values, cut_data, data_twice, outside,
    drop_tensor, duplicate_tensor, tensor_as_input, change_port_dim, change_port_rank, change_port_type, drop_port,
    move_output, add_port, change_opset, add_opset, change_ir, metadata, function,
)  # fmt: skip


def mutant(seed: int, models: dict[str, Any]) -> tuple[str, bytes]:
    """The mutant of that number: a model with one change or a few, and what they were."""
    r = random.Random(seed)
    name = r.choice(sorted(models))
    model = type(models[name])()
    model.CopyFrom(models[name])
    applied = []
    for change in r.choices(CHANGES, k=r.choice((1, 1, 1, 2, 3))):
        try:
            change(r, model)
        except (ValueError, IndexError, TypeError, OverflowError):  # undone by a change before it
            continue
        applied.append(change.__name__)
    return f"{name}: {', '.join(applied)}", model.SerializeToString()
