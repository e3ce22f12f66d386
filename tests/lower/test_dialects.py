"""Forms of quantised files that other tools write, rebuilt from their documentation; each against ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.lower.qdq import Qdq, checked, ops_of
from xdeploy.lower import ObstacleError, graph_report, lower

MS = "com.microsoft"


class Coded(Qdq):
    """Chains of operators on codes."""

    def params(self, scale: float, zero: int) -> tuple[str, str]:
        return self.const(np.float32(scale)), self.point(zero)

    def weights(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def save(self, folder: Path, **kwargs: Any) -> Path:
        path = super().save(folder, **kwargs)
        import onnx

        model = onnx.load(path)
        model.opset_import.append(helper.make_opsetid(MS, 1))
        onnx.save(model, path)
        return path


# ---------------------------------------------------------------------------------------------- com.microsoft
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize(
    ("op", "expected"), [("QLinearAdd", "add"), ("QLinearMul", "mul")],
)  # fmt: skip
def test_two_operands(tmp_path: Path, op: str, expected: str, unsigned: bool) -> None:
    g = Coded((4, 5, 6), unsigned=unsigned)
    x = g.quantise("x", 0.05, 3)
    w = g.const(g.weights(4, 4, 1, 1)), *(g.const(np.float32(0.01)), g.const(np.int8(0)))
    y = g.op("QLinearConv", x, *g.params(0.05, 3), *w, *g.params(0.07, -9))
    g.op(op, x, *g.params(0.05, 3), y, *g.params(0.07, -9), *g.params(0.09, 4), domain=MS)
    g.dq(g.at, 0.09, 4)
    graph, _ = checked(g.save(tmp_path))
    assert expected in ops_of(lower(g.save(tmp_path), fuse=False))
    assert graph.input


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize(
    ("op", "attrs", "q"),
    [
        ("QLinearSigmoid", {}, (1 / 256, -128)), ("QLinearLeakyRelu", {"alpha": 0.1}, (0.04, 5)),
        ("QLinearSoftmax", {"axis": -1, "opset": 13}, (1 / 256, -128)),
    ],
)  # fmt: skip
def test_one_operand(tmp_path: Path, op: str, attrs: dict[str, Any], q: tuple[float, int], unsigned: bool) -> None:
    g = Coded((12,), unsigned=unsigned)
    x = g.quantise("x", 0.05, 3)
    g.op(op, x, *g.params(0.05, 3), *g.params(*q), domain=MS, **attrs)
    g.dq(g.at, *q)
    checked(g.save(tmp_path))


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op", ["QLinearAveragePool", "QLinearGlobalAveragePool"])
def test_average_pools(tmp_path: Path, op: str, last: int) -> None:
    g = Coded((6, 8, 3) if last else (3, 6, 8))
    x = g.quantise("x", 0.05, 3)
    window = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]} if op == "QLinearAveragePool" else {}
    g.op(op, x, *g.params(0.05, 3), *g.params(0.05, 3), domain=MS, channels_last=last, **window)
    g.dq(g.at)
    graph, rows = checked(g.save(tmp_path))
    pool = next(n for n in graph.nodes if n.op == "avg_pool2d")
    if op == "QLinearGlobalAveragePool":  # sums codes: halves go to the even neighbour, without exception
        assert pool.attrs["tie"] == 1
        assert all(r["max_code_difference"] == 0 for r in rows)


def test_concat_and_gemm_with_bias(tmp_path: Path) -> None:
    g = Coded((9,))
    x = g.quantise("x", 0.05, 3)
    b = g.rng.integers(-3000, 3000, 5).astype(np.int32)
    w = g.const(g.weights(5, 9)), g.const(g.rng.uniform(0.003, 0.006, 5).astype(np.float32))
    inputs = x, *g.params(0.05, 3), *w, g.const(np.zeros(5, np.int8)), g.const(b), *g.params(0.1, -7)
    y = g.op("QGemm", *inputs, domain=MS, alpha=1.0, transB=1)
    g.op("QLinearConcat", *g.params(0.12, 0), x, *g.params(0.05, 3), y, *g.params(0.1, -7), domain=MS, axis=1)
    g.dq(g.at, 0.12, 0)
    graph, _ = checked(g.save(tmp_path))
    assert "concat" in ops_of(graph)
    np.testing.assert_array_equal(next(n for n in graph.nodes if n.op == "linear").consts["bias"], b)


def test_four_bit_matmul_of_one_block_per_channel(tmp_path: Path) -> None:
    """MatMulNBits on a quantised activation; smaller blocks are refused by name."""
    for block, blocks in ((32, 1), (16, 2)):
        g = Coded((24,))
        x = g.q(at="x")
        packed = g.rng.integers(0, 256, (5, blocks, block // 2)).astype(np.uint8)
        scales = g.rng.uniform(0.02, 0.05, (5, blocks)).astype(np.float32)
        g.op(
            "MatMulNBits", x, g.const(packed), g.const(scales), domain=MS, K=24, N=5, bits=4, block_size=block,
            name="head",
        )  # fmt: skip
        g.q(0.1)
        path = g.save(tmp_path)
        if blocks == 1:
            graph, _ = checked(path)
            assert graph.nodes[0].attrs["weight_format"] == "int4"
        else:
            with pytest.raises(ObstacleError, match=r"head .*block_size at least K"):
                lower(path)


# ----------------------------------------------------------------------------------------------------- Brevitas
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_brevitas_qcdq(tmp_path: Path, bits: int, per_channel: bool) -> None:
    """QuantizeLinear, Clip on the codes, DequantizeLinear; for weights and for unsigned activations of few bits."""
    g = Qdq((3, 6, 6))
    x = g.dq(g.op("Clip", g.quantise("x", 0.05, 0), g.const(np.int8(-127)), g.const(np.int8(127))), 0.05, 0)
    top = 2 ** (bits - 1) - 1
    real = (g.rng.normal(size=(4, 3, 3, 3)) * top * 0.02).astype(np.float32)
    size = 4 if per_channel else ()
    scale, zero = g.const(np.full(size, 0.02, np.float32)), g.const(np.zeros(size, np.int8))
    w = g.op("QuantizeLinear", g.const(real), scale, zero, axis=0)
    w = g.op("DequantizeLinear", g.op("Clip", w, g.const(np.int8(-top)), g.const(np.int8(top))), scale, zero, axis=0)
    g.op("Relu", g.op("Conv", x, w, g.bias(4)))
    y = g.op("QuantizeLinear", g.at, g.const(np.float32(0.2)), g.const(np.uint8(0)))
    y = g.op("Clip", y, g.const(np.uint8(0)), g.const(np.uint8(2**bits - 1)))
    g.op("DequantizeLinear", y, g.const(np.float32(0.2)), g.const(np.uint8(0)))
    graph, _ = checked(g.save(tmp_path))
    conv = graph.nodes[-1]
    assert ops_of(graph)[-1] == "conv2d"  # the limits of the codes became those of the convolution
    assert conv.attrs["weight_format"] == f"int{bits}"
    assert (conv.attrs["low"], conv.attrs["high"]) == (-128, 2**bits - 1 - 128)
    assert np.abs(conv.consts["codes"]).max() == top


# ------------------------------------------------------------------------------------- weights of other kinds
def _weights(kind: int) -> tuple[np.ndarray, int]:
    low, high = {TensorProto.INT4: (-8, 8), TensorProto.UINT4: (0, 16), TensorProto.INT2: (-2, 2)}.get(kind, (0, 4))
    return np.random.default_rng(4).integers(low, high, (5, 12)), (low + high) // 2


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize(
    ("kind", "opset", "expected"),
    [
        (TensorProto.INT4, 21, "int4"), (TensorProto.UINT4, 21, "int4"), (TensorProto.INT2, 25, "int2"),
        (TensorProto.UINT2, 25, "int2"),
    ],
)  # fmt: skip
def test_packed_initialisers(tmp_path: Path, kind: int, opset: int, expected: str, blocked: bool) -> None:
    """Also blocked ones whose block is as long as the axis, or whose blocks have equal scales."""
    codes, zero = _weights(kind)
    g = Qdq((12,), opset=opset)
    x = g.q(at="x")
    scale = g.rng.uniform(0.01, 0.03, 5).astype(np.float32)
    if blocked:
        scales, zeros = np.repeat(scale[:, None], 3, axis=1), np.full((5, 3), zero)
        attrs = {"axis": 1, "block_size": 4}
    else:
        scales, zeros, attrs = scale, np.full(5, zero), {"axis": 0}
    inputs = g.packed(kind, codes), g.const(scales), g.packed(kind, zeros)
    g.op("Gemm", x, g.op("DequantizeLinear", *inputs, **attrs), transB=1)
    g.q(0.05)
    graph, _ = checked(g.save(tmp_path))
    assert graph.nodes[-1].attrs["weight_format"] == expected
    np.testing.assert_array_equal(graph.nodes[-1].values, codes - zero)


def test_blocks_within_a_channel_are_refused_by_name(tmp_path: Path) -> None:
    g = Qdq((12,))
    x = g.q(at="x")
    scales = g.rng.uniform(0.01, 0.03, (5, 3)).astype(np.float32)
    codes = g.const(np.ones((5, 12), np.int8))
    w = g.op("DequantizeLinear", codes, g.const(scales), axis=1, block_size=4, name="w")
    g.op("Gemm", x, w, transB=1)
    g.q(0.05)
    with pytest.raises(ObstacleError, match=r"w .*blocks of 4; instead: one scale per output channel"):
        lower(g.save(tmp_path))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_asymmetric_weights_are_the_sum_of_two(tmp_path: Path, kind: str) -> None:
    """uint8 weights with a zero point per channel, which is taken off without rounding: nine bits, so two layers."""
    g = Qdq((3, 6, 6) if kind == "conv" else (15,))
    x = g.q(at="x")
    shape = (4, 3, 3, 3) if kind == "conv" else (4, 15)
    codes, zero = g.rng.integers(0, 256, shape).astype(np.uint8), np.array([1, 100, 128, 255], np.uint8)
    scale = g.const(np.full(4, 0.003, np.float32))
    w = g.op("DequantizeLinear", g.const(codes), scale, g.const(zero), axis=0)
    g.op("Conv", x, w, pads=[1, 1, 1, 1]) if kind == "conv" else g.op("Gemm", x, w, transB=1)
    g.q(0.2)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["concat", "conv2d" if kind == "conv" else "linear"]


def test_bias_as_integers_without_dequantisation_of_its_own_scale(tmp_path: Path) -> None:
    """int32 bias at another scale than input times weight: rounded once to that product."""
    g = Qdq((12,))
    x = g.q(at="x")
    bias = g.op("DequantizeLinear", g.const(np.arange(5, dtype=np.int32) * 7), g.const(np.float32(0.013)))
    g.op("Gemm", x, g.weight((5, 12)), bias, transB=1)
    g.q(0.05)
    checked(g.save(tmp_path))


# ------------------------------------------------------------------------------------------------------ types
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_parameters_without_a_zero_point(tmp_path: Path, kind: str) -> None:
    """The type then comes from the codes: of the input, or of output_dtype."""
    g = Qdq((12,), dtype=kind)
    x = g.op("DequantizeLinear", "x", g.const(np.float32(0.05)))
    g.op("Gemm", x, g.weight((5, 12)), transB=1)
    data_type = TensorProto.INT8 if kind == "int8" else TensorProto.UINT8
    y = g.op("QuantizeLinear", g.at, g.const(np.float32(0.3)), output_dtype=data_type)
    g.op("DequantizeLinear", y, g.const(np.float32(0.3)))
    graph, _ = checked(g.save(tmp_path))
    assert graph.tensors[graph.input].q.zero_point == (0 if kind == "int8" else -128)


def test_relu_on_codes(tmp_path: Path) -> None:
    g = Qdq((12,))
    g.dq(g.op("Relu", g.quantise("x", 0.05, 0)), 0.05, 0)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["clamp"]


# ----------------------------------------------------------------------------------------------------- report
def _dynamic(g: Qdq) -> None:
    g.op("ConvInteger", "x", "x", name="dynamic")


def _foreign(g: Qdq) -> None:
    g.op("FusedMatMul", g.at, g.const(np.eye(12, dtype=np.float32)), domain=MS, name="fused")


@pytest.mark.parametrize("spoil", [_dynamic, _foreign])
def test_report_lists_both_kinds_of_obstacles(tmp_path: Path, spoil: Callable[[Qdq], None]) -> None:
    g = Coded((12,))
    g.q(at="x")
    g.op("LRN", g.at, size=3, name="first")
    first = g.q()
    spoil(g)
    g.at = first
    g.op("Gemm", g.quantise("x", 0.05, 3), g.bias(12), name="second")
    g.q()
    rows = graph_report(g.save(tmp_path))
    assert [r["node"] for r in rows] == ["first", "dynamic" if spoil is _dynamic else "fused", "second"][: len(rows)]
    assert len(rows) >= 2
    assert all({"node", "op", "shape", "attribute", "reason", "rewrite"} <= set(r) for r in rows)
    assert all(r["reason"] for r in rows)


def test_report_of_a_good_file_is_empty(tmp_path: Path) -> None:
    g = Qdq((12,))
    g.op("Gemm", g.q(at="x"), g.weight((5, 12)), transB=1)
    g.q()
    assert graph_report(g.save(tmp_path)) == []


# --------------------------------------------------------------------------------------------------- torchao, PT2E
def test_the_graph_that_torchao_leaves(tmp_path: Path) -> None:
    """convert_pt2e with the XNNPACK quantiser, node for node: quantised again around each mean and reshape."""
    g = Qdq((3, 8, 8), opset=20)
    x = g.q(0.03, 4, "x")
    x = g.q(0.02, -128, g.op("Relu", g.conv(6, 3, at=x, pads=[1, 1, 1, 1], auto_pad="NOTSET")))
    y = g.q(0.03, 7, g.conv(6, 6, at=x, pads=[1, 1, 1, 1]))
    x = g.q(0.04, -128, g.op("Relu", g.op("Add", y, x)))
    x = g.q(0.04, -128, g.op("ReduceMean", x, g.const(np.array([-1, -2])), keepdims=1, noop_with_empty_axes=0))
    x = g.q(0.04, -128, g.op("Reshape", x, g.const(np.array([-1, 6])), allowzero=1))
    g.q(0.03, 0, g.op("Gemm", x, g.weight((5, 6)), g.bias(5), transB=1))
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["conv2d", "conv2d", "avg_pool2d", "reshape", "linear"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_graphs_of_torch_with_quantised_decomposed_operators(tmp_path: Path) -> None:
    """What torchao's prepare_pt2e and convert_pt2e leave behind, through torch.onnx.export."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
    ops, i8 = torch.ops.quantized_decomposed, torch.int8

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rng = torch.Generator().manual_seed(0)
            for name, shape in (("a", (6, 3, 3, 3)), ("b", (6, 6, 3, 3)), ("c", (5, 6))):
                codes = torch.randint(-127, 128, shape, generator=rng, dtype=i8)
                self.register_buffer(name, codes)
                self.register_buffer(f"{name}_scale", torch.rand(shape[0], generator=rng) * 0.002 + 0.002)
                self.register_buffer(f"{name}_zero", torch.zeros(shape[0], dtype=torch.int64))

        def weight(self, name: str) -> Any:
            parts = (getattr(self, name + end) for end in ("", "_scale", "_zero"))
            return ops.dequantize_per_channel(*parts, 0, -127, 127, i8)

        def forward(self, x: Any) -> Any:
            def around(v: Any, scale: float, zero: int) -> Any:
                codes = ops.quantize_per_tensor(v, scale, zero, -128, 127, i8)
                return ops.dequantize_per_tensor(codes, scale, zero, -128, 127, i8)

            x = around(x, 0.03, 4)
            x = around(torch.relu(torch.conv2d(x, self.weight("a"), padding=1)), 0.02, -128)
            y = around(torch.conv2d(x, self.weight("b"), padding=1), 0.03, 7)
            x = around(torch.relu(y + x), 0.04, -128)
            x = around(torch.nn.functional.adaptive_avg_pool2d(x, 1), 0.04, -128)
            return around(torch.nn.functional.linear(x.flatten(1), self.weight("c")), 0.03, 0)

    x, path = torch.zeros(2, 3, 8, 8), tmp_path / "net.onnx"
    free = ({0: torch.export.Dim("n")},)
    torch.onnx.export(Net().eval(), (x,), path, dynamo=True, external_data=False, dynamic_shapes=free, verbose=False)
    graph, rows = checked(path)
    assert ops_of(graph) == ["conv2d", "conv2d", "avg_pool2d", "reshape", "linear"]
    assert next(r for r in rows if r["op"] == "avg_pool2d")["max_code_difference"] <= 1
