"""The onnx package's node tests as quantised models: data through Q and DQ, weights as int8, the output likewise."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xdeploy.formats import QParams
from xdeploy.lower.arithmetic import ARITHMETIC
from xdeploy.lower.tables import TABLES

WEIGHT_AT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
INTEGER = ("ConvInteger", "MatMulInteger")
ON_CODES = ("QLinearConv", "QLinearMatMul", "QuantizeLinear", "DequantizeLinear", *INTEGER)
_FOLDERS = {"BatchNormalization": "batch_normalization"}
PORT, RESULT = "given", "taken"
SEVERAL = ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Concat")  # all their operands are computed
_LIFTED = {
    "Transpose",
    "Reshape",
    "Expand",
    "Tile",
    "Gather",
    "Concat",
    "Split",
    "Softmax",
    "Slice",
    "Unsqueeze",
    "Squeeze",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "Identity",
    "Cast",
}
_NEWEST = 24  # opset that ONNX Runtime 1.27 and later know; node tests say the newest there is
_OUTPUT_SCALE = 0.5  # of the nodes whose output is int32


class Unfit(Exception):
    """The node test cannot be a quantised model; says why."""


@dataclass(frozen=True)
class NodeTest:
    """One node test: its one-node model, inputs and expected outputs."""

    name: str
    op: str
    model: Any
    inputs: list[Any]
    outputs: list[Any]


def node_tests(ops: set[str]) -> Iterator[NodeTest]:
    """The node tests of these operators, in the onnx package's own order by name."""
    from onnx.backend.test.case import node as package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = {_FOLDERS.get(op, op.lower()) for op in ops}
        for module in pkgutil.iter_modules(package.__path__):
            if module.name in wanted:
                importlib.import_module(f"{package.__name__}.{module.name}")
    for case in sorted(package._NodeTestCases, key=lambda c: str(c.name)):
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in ops and nodes[0].domain == "" and "_expanded" not in case.name:
            inputs, outputs = case.data_sets[0]
            yield NodeTest(case.name, nodes[0].op_type, case.model, list(inputs), list(outputs))


class _Model:
    """Nodes and constants around the tested one."""

    def __init__(self, test: NodeTest) -> None:
        self.test, self.node = test, onnx.NodeProto()
        self.node.CopyFrom(test.model.graph.node[0])
        self.opset = max([o.version for o in test.model.opset_import if o.domain == ""])
        self.before: list[Any] = []
        self.after: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, array: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def parameters(self, name: str, q: QParams) -> list[str]:
        scale = self.constant(f"{name}.scale", np.float32(q.scale))
        return [scale, self.constant(f"{name}.zero", np.int8(q.zero_point))]

    def through_codes(self, name: str, result: str, q: QParams, nodes: list[Any]) -> None:
        given = self.parameters(result, q)
        nodes.append(helper.make_node("QuantizeLinear", [name, *given], [f"{result}.codes"], name=f"{result}.q"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{result}.codes", *given], [result], name=f"{result}.dq"))

    def built(self, port: Any, output: str, kind: int) -> Any:
        taken = helper.make_tensor_value_info(output, kind, None)
        graph = helper.make_graph([*self.before, self.node, *self.after], "g", [port], [taken], self.constants)
        opsets = [helper.make_opsetid("", min(max(self.opset, 13), _NEWEST))]
        return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def _given(test: NodeTest) -> dict[str, Any]:
    """Inputs by name; a node may leave optional ones out."""
    names = [v.name for v in test.model.graph.input]
    for a in (*test.inputs, *test.outputs):
        if isinstance(a, TensorProto):
            raise Unfit(f"works on {TensorProto.DataType.Name(a.data_type)}")
        if not isinstance(a, np.ndarray | np.generic):
            raise Unfit("works on sequences or optional values")
    return dict(zip(names, map(np.asarray, test.inputs), strict=True))


def _covering(array: Any) -> QParams:
    finite = array[np.isfinite(array)]
    return QParams.from_range(float(finite.min(initial=0.0)), float(finite.max(initial=1e-3)))


def quantised(test: NodeTest) -> tuple[Any, np.ndarray]:
    """(model, inputs of it) of a float node test.

    Raises:
        Unfit: its data are no float tensor with a sample axis.
    """
    given, m = _given(test), _Model(test)
    names = [n for n in m.node.input if n]
    if not names or given[names[0]].dtype != np.float32:
        raise Unfit("its data are not float32")
    given = lifted(m.node, given) if lifts(test.op) else given
    data = list(dict.fromkeys(names)) if test.op in SEVERAL else names[:1]
    if any(given[n].ndim < 2 for n in data):
        raise Unfit(f"its data of shape {given[names[0]].shape} have no axis beside the batch")
    if not all(a.size for a in (*(given[n] for n in data), *test.outputs)):
        raise Unfit("its data are empty")
    if any(o.dtype != np.float32 for o in test.outputs):
        raise Unfit(f"its outputs are {', '.join(str(o.dtype) for o in test.outputs)}")
    x = given[data[0]] if len(data) == 1 else _stacked(m, data, given)
    if len(data) == 1:
        m.through_codes(PORT, data[0], _covering(x), m.before)
    for place, name in enumerate(m.node.input):
        if name and name not in data and all(c.name != name for c in m.constants):
            if WEIGHT_AT.get(test.op) == place:
                _weight(m, name, given[name])
            else:
                m.constant(name, given[name])
    result = len(test.outputs) - 1
    m.through_codes(m.node.output[result], RESULT, _covering(test.outputs[result]), m.after)
    port = helper.make_tensor_value_info(PORT, TensorProto.FLOAT, x.shape)
    return m.built(port, RESULT, TensorProto.FLOAT), x


def _stacked(m: _Model, data: list[str], given: dict[str, Any]) -> np.ndarray:
    """Several operands as parts of one input (1, elements), which the model cuts apart again."""
    x = np.concatenate([given[n].reshape(1, -1) for n in data], axis=1)
    m.through_codes(PORT, "stack", _covering(x), m.before)
    at = 0
    for name in data:
        ends = [
            m.constant(f"{name}.{k}", np.array([v], np.int64))
            for k, v in (("start", at), ("stop", at + given[name].size), ("axis", 1))
        ]
        shape = m.constant(f"{name}.shape", np.array(given[name].shape, np.int64))
        m.before.append(helper.make_node("Slice", ["stack", *ends], [f"{name}.part"], name=f"{name}.cut"))
        m.before.append(helper.make_node("Reshape", [f"{name}.part", shape], [name], name=f"{name}.reshape"))
        at += given[name].size
    return x


def lifts(op: str) -> bool:
    """Operators without a batch axis of their own: the node test's tensor becomes one sample of a batch of 1."""
    return op in _LIFTED or op in TABLES or (op in ARITHMETIC and op != "BatchNormalization")


def lifted(node: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The node and its inputs with the batch axis in front: every axis that is named moves by one."""
    op, names = node.op_type, list(node.input)
    rank = given[names[0]].ndim
    one = np.ones(1, np.int64)

    def axis(k: Any) -> int:
        return int(k) + 1 if k >= 0 else int(k)

    given = {**given, names[0]: given[names[0]][None]}
    if op in SEVERAL:
        most = max(given[n].ndim for n in names[1:]) if op != "Concat" and len(names) > 1 else 0
        most = max(most, rank)
        for k, n in enumerate(dict.fromkeys(names)):
            array = given[n][0] if k == 0 else given[n]
            given[n] = array.reshape(1, *(1,) * (most - array.ndim if op != "Concat" else 0), *array.shape)
    if op == "Transpose":
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(rank))[::-1])
        _set(node, "perm", [0, *(p + 1 for p in perm)])
    elif op in ("Reshape", "Expand", "Tile"):
        wanted = given[names[1]]
        filled = np.concatenate([np.ones(max(0, rank - wanted.size), np.int64), wanted])
        given[names[1]] = np.concatenate([one, wanted if op == "Reshape" else filled])
    elif op in ("Gather", "Concat", "Split"):
        _set(node, "axis", axis(next((a.i for a in node.attribute if a.name == "axis"), 0)))
    elif op == "Softmax":
        _set(node, "axis", axis(next((a.i for a in node.attribute if a.name == "axis"), -1)))
    elif op == "Slice" and len(names) < 4:
        node.input.append("axes")
        given["axes"] = np.arange(1, rank + 1)[: given[names[1]].size]
    elif op in ("Slice", "Unsqueeze", "Squeeze") or op.startswith("Reduce"):
        place = 3 if op == "Slice" else 1
        if len(names) > place and names[place] and given[names[place]].size:
            given[names[place]] = np.array([axis(k) for k in given[names[place]]], np.int64)
        elif op.startswith("Reduce") and not any(a.name == "noop_with_empty_axes" and a.i for a in node.attribute):
            del node.input[1:]
            node.input.append("axes")
            given["axes"] = np.arange(1, rank + 1)
    return given


def _set(node: Any, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _weight(m: _Model, name: str, real: Any) -> None:
    scale = float(np.abs(real).max(initial=0)) / 127 or 1.0
    codes = m.constant(f"{name}.codes", np.rint(real / scale).astype(np.int8))
    inputs = [codes, m.constant(f"{name}.scale", np.float32(scale)), m.constant(f"{name}.zero", np.int8(0))]
    m.before.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dq"))


def on_codes(test: NodeTest) -> tuple[Any, np.ndarray]:
    """(model, inputs of it) of a node test that works on codes, in a model that goes on with them.

    Raises:
        Unfit: types beyond int8 and uint8, or no batch axis.
    """
    given, m = _given(test), _Model(test)
    data, *others = [n for n in m.node.input if n]
    x, expected = given[data], test.outputs[0]
    per_tensor = test.op in ("QuantizeLinear", "DequantizeLinear") and all(given[n].size == 1 for n in others)
    x = x[None] if per_tensor else x
    kinds = {np.dtype(np.int8): TensorProto.INT8, np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float32): 1}
    if x.dtype not in kinds or x.ndim < 2:
        raise Unfit(f"its data are {x.dtype} of shape {x.shape}")
    for name in others:
        m.constant(name, given[name])
    port = helper.make_tensor_value_info(data, kinds[x.dtype], x.shape)
    at = m.node.output[0]
    if test.op in INTEGER:  # the codes come from somewhere
        zero = next((n for n in m.node.input[2:3] if n), "") or m.constant("zero", np.zeros((), x.dtype))
        m.constants[-1 if zero == "zero" else [c.name for c in m.constants].index(zero)].dims[:] = []
        m.before.append(helper.make_node("QuantizeLinear", [PORT, m.constant("step", np.float32(1)), zero], [data]))
        m.before[-1].name = "entry"
        port = helper.make_tensor_value_info(PORT, TensorProto.FLOAT, x.shape)
        x = x.astype(np.float32) - float(given[zero].reshape(-1)[0] if zero in given else 0)
        m.after.append(helper.make_node("Cast", [at], ["real"], to=TensorProto.FLOAT))
        at = "real"
        m.through_codes(at, RESULT, QParams(_OUTPUT_SCALE, 0), m.after)
        return m.built(port, RESULT, TensorProto.FLOAT), x
    if expected.dtype not in kinds:
        raise Unfit(f"its output is {expected.dtype}")
    if test.op == "QuantizeLinear":
        m.after.append(helper.make_node("DequantizeLinear", [at, *others], ["real"], name="back"))
        for a in m.node.attribute:
            if a.name in ("axis", "block_size"):
                m.after[-1].attribute.append(a)
        at = "real"
    if test.op in ("QuantizeLinear", "DequantizeLinear"):  # a model that computes something
        m.after.append(helper.make_node("Neg", [at], ["negative"], name="negative"))
        m.through_codes("negative", RESULT, _covering(-expected.astype(np.float32)), m.after)
        return m.built(port, RESULT, TensorProto.FLOAT), x
    return m.built(port, at, kinds[expected.dtype]), x
