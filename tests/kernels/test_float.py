"""Float parts: compiled code against the operators' specification (onnx.reference), at most one code apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.kernels import harness
from tests.kernels.cases import Case
from xdeploy.errors import UnsupportedError
from xdeploy.formats import QParams
from xdeploy.handover import IoSpec
from xdeploy.kernel import KERNELS
from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.lir.ops import verify
from xdeploy.target import load_target, target_names

RNG = np.random.default_rng(5)
IMAGE, OUT = (1, 6, 5, 16), (1, 6, 5, 16)


def model(nodes: list[Any], given: tuple[int, ...], result: tuple[int, ...], **constants: Any) -> bytes:
    """Nodes from "x" to "y" with constants by name."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", given), ("y", result))]
    made = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "part", ports[:1], ports[1:], made)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(whole, full_check=True)
    return bytes(whole.SerializeToString())


def one(op: str, *inputs: str, **attrs: Any) -> list[Any]:
    return [helper.make_node(op, ["x", *inputs], ["y"], **attrs)]


def chain(*ops: str) -> list[Any]:
    names = ["x", *(f"h{k}" for k in range(len(ops) - 1)), "y"]
    return [helper.make_node(op, [names[k]], [names[k + 1]]) for k, op in enumerate(ops)]


def _images_first(nodes: list[Any]) -> list[Any]:
    """The nodes on (1, C, H, W) between two Transposes."""
    for n in nodes:
        n.input[:] = ["inner" if v == "x" else v for v in n.input]
        n.output[:] = ["outer" if v == "y" else v for v in n.output]
    turn = helper.make_node("Transpose", ["x"], ["inner"], perm=[0, 3, 1, 2])
    return [turn, *nodes, helper.make_node("Transpose", ["outer"], ["y"], perm=[0, 2, 3, 1])]


def f32(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


PARTS: dict[str, Callable[[], bytes]] = {
    "layer_norm": lambda: model(one("LayerNormalization", "s", "b", axis=-1), IMAGE, OUT, s=f32(16), b=f32(16)),
    "layer_norm_all": lambda: model(
        _images_first(one("LayerNormalization", "s", axis=1)), IMAGE, OUT, s=f32(16, 6, 5)
    ),
    "softmax_rows": lambda: model(one("Softmax", axis=1), IMAGE, OUT),
    "instance_norm": lambda: model(
        _images_first(one("InstanceNormalization", "s", "b")), IMAGE, OUT, s=f32(16), b=f32(16)
    ),
    "reduce_mean": lambda: model(one("ReduceMean", "axes"), IMAGE, (1, 6, 5, 1), axes=np.array([3])),
    "reduce_max": lambda: model(one("ReduceMax", "axes", keepdims=0), (1, 32), (1,), axes=np.array([1])),
    "reduce_l2": lambda: model(one("ReduceL2", "axes"), IMAGE, (1, 1, 5, 16), axes=np.array([1])),
    "functions": lambda: model(chain("Tanh", "Exp", "Sqrt", "Erf"), (1, 33), (1, 33)),
    "softplus": lambda: model(chain("Softplus", "Sin", "Abs", "Neg"), (1, 7), (1, 7)),
    "log": lambda: model(
        [helper.make_node("Add", ["x", "two"], ["h"]), helper.make_node("Log", ["h"], ["k"]),
         helper.make_node("Pow", ["h", "third"], ["p"]), helper.make_node("Mul", ["k", "p"], ["y"])],
        (1, 64), (1, 64), two=np.float32(20), third=np.float32(1 / 3),
    ),
    "matmul": lambda: model(one("MatMul", "w"), (1, 6, 5, 16), (1, 6, 5, 24), w=f32(16, 24)),
    "gemm": lambda: model(one("Gemm", "w", "b", transB=1), (1, 40), (1, 7), w=f32(7, 40), b=f32(7)),
    "conv": lambda: model(
        _images_first(one("Conv", "w", "b", pads=[1, 1, 1, 1], strides=[1, 1])), IMAGE, (1, 6, 5, 8),
        w=f32(8, 16, 3, 3), b=f32(8),
    ),
    "attention": lambda: model(
        [
            helper.make_node("Reshape", ["x", "rows"], ["r"]),
            helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["r", "t"], ["q"]), helper.make_node("Softmax", ["q"], ["s"], axis=-1),
            helper.make_node("MatMul", ["s", "r"], ["m"]), helper.make_node("Reshape", ["m", "image"], ["y"]),
        ],
        IMAGE, OUT, rows=np.array([1, 30, 16]), image=np.array([1, 6, 5, 16]),
    ),
    "gather": lambda: model(one("Gather", "i", axis=1), IMAGE, (1, 3, 5, 16), i=np.array([5, 0, 2])),
    "split": lambda: model(
        [helper.make_node("Split", ["x"], ["a", "b"], axis=3, num_outputs=2),
         helper.make_node("Mul", ["a", "b"], ["y"])],
        IMAGE, (1, 6, 5, 8),
    ),
    "identity": lambda: model(one("Identity"), (1, 12), (1, 12)),
}  # fmt: skip


# of the output, where the codes would be few or saturated otherwise
SCALES = {
    "reduce_mean": 0.017, "softmax_rows": 0.01, "reduce_l2": 0.1, "log": 0.11, "gemm": 0.3, "matmul": 0.2, "conv": 0.5,
}  # fmt: skip


def case(name: str) -> Case:
    data = PARTS[name]()
    graph = onnx.load_model_from_string(data).graph
    given, result = (
        tuple(d.dim_value for d in v.type.tensor_type.shape.dim)[1:] for v in (graph.input[0], graph.output[0])
    )
    result = result or (1,)
    fine = SCALES.get(name, 0.05)
    q = {"x": QParams(0.04, -9), "y": QParams(fine, 11)}
    attrs = {
        "in_scale": 0.04, "in_zero": -9, "out_scale": fine, "out_zero": 11, "shape": result,
        "ops": tuple(n.op_type for n in graph.node),
    }  # fmt: skip
    node = Node(name, "float", ("x",), "y", attrs, {"onnx": np.frombuffer(data, np.uint8)})
    tensors = {"x": Tensor(given, q["x"]), "y": Tensor(result, q["y"])}
    whole = LoweredGraph((node,), tensors, "x", "y", IoSpec("x", given, "y", result))
    verify(whole)
    codes = np.random.default_rng([7, *name.encode()]).integers(-128, 128, (2, *given)).astype(np.int8)
    return Case(name, whole, (codes,))


def _apart(batch: harness.Batch) -> dict[str, tuple[int, float]]:
    """Largest difference in codes and share of equal ones."""
    found = {}
    for call in batch.calls:
        given = batch.image.read(call.output, call.expected.size).astype(int)
        apart = np.abs(given - call.expected.reshape(-1).astype(int))
        found[call.label] = (int(apart.max()), float((apart == 0).mean()))
    return found


@pytest.mark.parametrize("name", ["x86-64", "cortex-a72"])
def test_at_most_one_code_from_the_specification(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    host = target.kind == "host"
    batch = harness.Batch(target, harness.host_image() if host else harness.Image(harness.DATA))
    harness.fill(batch, {"float": [case(n) for n in PARTS]})
    before = batch.image.bytes.copy()
    (harness.run_host if host else harness.run_unicorn)(batch, tmp_path)
    found = _apart(batch)
    assert not {k: v for k, v in found.items() if v[0] > 1 or v[1] < 0.98}
    assert np.mean([v[1] for v in found.values()]) > 0.999
    assert batch.image.damaged(before) == []
    # a part whose codes are all the same would prove nothing
    assert not [c.label for c in batch.calls if len(np.unique(c.expected)) < min(4, c.expected.size)]


def test_cortex_m_has_no_row() -> None:
    rows = [k for k in KERNELS.values() if k.op == "float"]
    with_one = {n for n in target_names() if any(k.isa in load_target(n).features for k in rows)}
    arm = {"aarch64", "cortex-a53", "cortex-a7", "cortex-a710", "cortex-a72", "cortex-a76"}
    assert with_one == {"x86-64", "x86-64-v3", "x86-64-v4-vnni", "x86-64-v4-amx", *arm}


def test_what_tvm_cannot_do_is_named() -> None:
    data = model(one("Det"), (1, 4, 4), (1,))
    attrs = {"in_scale": 0.1, "in_zero": 0, "out_scale": 0.1, "out_zero": 0, "shape": (1,), "ops": ("Det",)}
    node = Node("odd", "float", ("x",), "y", attrs, {"onnx": np.frombuffer(data, np.uint8)})
    tensors = {n: Tensor((4, 4) if n == "x" else (1,), QParams(0.1, 0)) for n in "xy"}
    graph = LoweredGraph((node,), tensors, "x", "y", IoSpec("x", (4, 4), "y", (1,)))
    row = next(k for k in KERNELS.values() if k.op == "float")
    with pytest.raises(UnsupportedError, match=r"odd \(Det\): TVM cannot compile"):
        row.emit(graph, node, load_target("x86-64"))
