"""Every operator of the vocabulary between DequantizeLinear and QuantizeLinear: what it becomes, and at most 1 code
beside ONNX Runtime on random codes and on the corners of their range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.helper
import pytest

from tests.lower.qdq import Qdq, checked, ops_of
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lower import ObstacleError, lower

Build = Callable[[Qdq, str], str]
MOVES = {"reshape", "transpose"}


def ints(g: Qdq, *values: int) -> str:
    return g.const(np.array(values, np.int64))


def floats(g: Qdq, *values: float, shape: tuple[int, ...] | None = None) -> str:
    return g.const(np.array(values, np.float32).reshape(shape or (-1,)))


def built(folder: Path, shape: tuple[int, ...], build: Build, scale: float = 0.07, zero: int = -9) -> LoweredGraph:
    """One operator between two pairs of Q and DQ, compared with ONNX Runtime."""
    g = Qdq(shape)
    build(g, g.q(0.05, 3, "x"))
    g.q(scale, zero)
    return checked(g.save(folder))[0]


def computing(graph: LoweredGraph) -> list[str]:
    return [op for op in ops_of(graph) if op not in MOVES]


def two(g: Qdq, x: str, other: tuple[int, ...] = (4, 5, 6)) -> tuple[str, str]:
    """x and a second tensor at another scale, of one row per channel if `other` says so."""
    y = g.q(0.03, -20, g.op("Tanh", x))
    if other == (4, 1, 1):
        y = g.q(0.02, 40, g.op("GlobalAveragePool", y))
    return x, y


# ---------------------------------------------------------------------------------------------- two tensors
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("op", "node"), [("Add", "add"), ("Sub", "add"), ("Mul", "mul")])
def test_two_tensors_of_one_shape(tmp_path: Path, op: str, node: str, swapped: bool) -> None:
    graph = built(tmp_path, (4, 5, 6), lambda g, x: g.op(op, *two(g, x)[:: -1 if swapped else 1]))
    assert computing(graph) == ["lut", node]
    if op == "Sub":
        a = graph.nodes[-1].attrs
        assert a["a"] > 0 > a["b"]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("op", "expected"), [("Mul", ["mul"]), ("Add", ["resize", "add"]), ("Sub", ["resize", "add"])])
def test_one_value_per_channel(tmp_path: Path, op: str, expected: list[str], swapped: bool) -> None:
    graph = built(tmp_path, (4, 5, 6), lambda g, x: g.op(op, *two(g, x, (4, 1, 1))[:: -1 if swapped else 1]), 0.08)
    assert computing(graph) == ["lut", "avg_pool2d", *expected]


@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (1, 2), (1, 3)])
def test_products_along_any_axes(tmp_path: Path, axes: tuple[int, ...]) -> None:
    """Spatial attention: a map of one channel times an image."""

    def gate(g: Qdq, x: str) -> str:
        return g.op("Mul", x, g.q(0.02, 5, g.op("ReduceMax", x, ints(g, *axes), keepdims=1)))

    graph = built(tmp_path, (4, 5, 6), gate)
    assert computing(graph)[0] == "max_pool2d"
    assert computing(graph)[-1] == "mul"


def test_gate_in_channels_last_form(tmp_path: Path) -> None:
    g = Qdq((5, 6, 4))
    x = g.q(at="x")
    gate = g.q(0.03, 0, g.op("ReduceMean", x, ints(g, 1, 2), keepdims=1))
    g.op("Mul", x, g.q(1 / 256, -128, g.op("Sigmoid", gate)))
    g.q(0.03, 1)
    graph, _ = checked(g.save(tmp_path))
    assert graph.io.input_layout == "HWC"
    assert ops_of(graph) == ["avg_pool2d", "lut", "mul"]
    assert graph.tensors[graph.nodes[-1].inputs[1]].shape == (1, 1, 4)


def test_x_times_its_own_function_stays_a_table(tmp_path: Path) -> None:
    assert ops_of(built(tmp_path, (9,), lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)))) == ["lut"]


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_extremes(tmp_path: Path, op: str) -> None:
    graph = built(tmp_path, (4, 5, 6), lambda g, x: g.op(op, *two(g, x)), 0.05, 3)
    assert "max_pool2d" in computing(graph)
    graph = built(tmp_path, (9,), lambda g, x: g.op(op, x, floats(g, 1.0, shape=())), 0.05, 3)
    assert ops_of(graph) == ["clamp"]


def test_a_function_and_its_argument_at_one_scale_are_two_tensors(tmp_path: Path) -> None:
    def net(g: Qdq, x: str) -> str:
        return g.op("Max", x, g.q(0.05, 3, g.op("Neg", x)))

    assert computing(built(tmp_path, (4, 5, 6), net, 0.05, 3)) == ["lut", "concat", "max_pool2d"]


# --------------------------------------------------------------------------------------------- with constants
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (4, 5, 6), (6,)])
def test_constants_per_channel_and_per_element(tmp_path: Path, op: str, first: bool, shape: tuple[int, ...]) -> None:
    if op == "Div" and first:
        return
    values = np.random.default_rng(2).uniform(-2, 2, shape).astype(np.float32)
    values[np.abs(values) < 0.3] = 0.5
    graph = built(
        tmp_path, (4, 5, 6), lambda g, x: g.op(op, *((g.const(values), x) if first else (x, g.const(values))))
    )
    assert computing(graph) == ["conv2d"]
    channels = 4 if shape[-2:] == (1, 1) else 120
    assert graph.nodes[-1 if channels == 4 else 1].attrs["groups"] == channels


def test_zero_tiny_and_huge_gains(tmp_path: Path) -> None:
    gain = np.array([0.0, 1e-7, -1e-3, 5.0, -1.0, 60.0], np.float32).reshape(6, 1, 1)
    shift = np.array([1.0, -2.0, 3.0, -40.0, 1e4, 0.0], np.float32).reshape(6, 1, 1)
    built(tmp_path, (6, 4, 4), lambda g, x: g.op("Add", g.op("Mul", x, g.const(gain)), g.const(shift)))


def normalised(g: Qdq, x: str) -> str:
    parts = [g.const(v.astype(np.float32)) for v in (
        g.rng.normal(size=4), g.rng.normal(size=4), g.rng.normal(size=4), g.rng.uniform(0.1, 2, 4)
    )]  # fmt: skip
    return g.op("BatchNormalization", x, *parts, epsilon=1e-3)


def test_batch_normalisation_alone_is_a_depthwise_convolution(tmp_path: Path) -> None:
    graph = built(tmp_path, (4, 5, 6), normalised)
    assert ops_of(graph) == ["conv2d"]
    assert graph.nodes[0].attrs["groups"] == 4


def test_batch_normalisation_and_scales_fold_into_the_layer_before(tmp_path: Path) -> None:
    def net(g: Qdq, x: str) -> str:
        y = normalised(g, g.conv(4, 4, 3, at=x))
        return g.op(
            "Relu", g.op("Add", g.op("Mul", y, floats(g, -0.7, shape=())), floats(g, *range(4), shape=(4, 1, 1)))
        )

    assert ops_of(built(tmp_path, (4, 5, 6), net, 0.1)) == ["conv2d"]


def test_prelu_per_channel_and_per_tensor(tmp_path: Path) -> None:
    slope = np.array([0.1, -0.5, 1.7, 0.0], np.float32).reshape(4, 1, 1)
    graph = built(tmp_path, (4, 5, 6), lambda g, x: g.op("PRelu", x, g.const(slope)))
    assert sorted(ops_of(graph)) == ["clamp", "clamp", "conv2d"]
    assert ops_of(built(tmp_path, (4, 5, 6), lambda g, x: g.op("PRelu", x, floats(g, 0.2)))) == ["lut"]


FUNCTIONS = [
    ("Gelu", {}), ("Gelu", {"approximate": "tanh"}), ("Mish", {}), ("Selu", {}), ("Celu", {"alpha": 0.7}),
    ("ThresholdedRelu", {"alpha": 0.5}), ("HardSwish", {}), ("HardSigmoid", {"alpha": 0.3}), ("LeakyRelu", {}),
    ("Elu", {"alpha": 2.0}), ("Softplus", {}), ("Softsign", {}), ("Abs", {}), ("Neg", {}), ("Sign", {}), ("Exp", {}),
    ("Erf", {}), ("Floor", {}), ("Ceil", {}), ("Round", {}), ("Sin", {}), ("Cos", {}), ("Sigmoid", {}), ("Tanh", {}),
    ("Reciprocal", {}), ("Shrink", {"bias": 0.1}), ("Atan", {}), ("Sinh", {}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attrs"), FUNCTIONS)
def test_functions_are_tables(tmp_path: Path, op: str, attrs: dict[str, object]) -> None:
    assert ops_of(built(tmp_path, (256,), lambda g, x: g.op(op, x, **attrs), 0.03, 10)) == ["lut"]


@pytest.mark.parametrize(("op", "constant"), [("Sqrt", None), ("Log", None), ("Pow", 0.3), ("Pow", 2.0)])
def test_functions_of_positive_numbers(tmp_path: Path, op: str, constant: float | None) -> None:
    g = Qdq((64,))
    x = g.q(0.04, -128, g.op("Clip", g.q(at="x"), floats(g, 0.1, shape=()), floats(g, 9.0, shape=())))
    g.op(op, x, *([] if constant is None else [floats(g, constant, shape=())]))
    g.q(0.04, 0)
    checked(g.save(tmp_path))
    g = Qdq((64,))
    g.op("Sqrt", g.q(at="x"))
    g.q()
    with pytest.raises(ObstacleError, match=r"not defined on all of its input's range -6.55..6.2"):
        lower(g.save(tmp_path))


# ------------------------------------------------------------------------------------------ resize and gather
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize(
    "mode", ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners", "half_pixel_symmetric"]
)
def test_nearest_resizing_picks_what_onnx_runtime_picks(tmp_path: Path, mode: str, rounding: str) -> None:
    """The codes of a ramp say which source each output took."""
    attrs = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": rounding}
    g = Qdq((1, 9, 7), "int8")
    x = g.op("Resize", "x", "", "", ints(g, 14, 3), axes=[2, -1], **attrs)
    x = g.op("Resize", g.dq(x), "", floats(g, 1, 1, 0.6, 1.7), **attrs)
    g.q(0.05, 3)
    graph, rows = checked(g.save(tmp_path))
    assert set(computing(graph)) <= {"resize", "slice"}
    assert all(r["equal"] == 1.0 for r in rows)


def test_resizing_to_another_scale_and_of_old_opsets(tmp_path: Path) -> None:
    graph = built(tmp_path, (3, 4, 5), lambda g, x: g.op("Resize", x, "", floats(g, 1, 1, 2, 2), mode="nearest"))
    assert ops_of(graph) == ["resize", "rescale"]
    g = Qdq((3, 4, 5), opset=10)  # rounded down from the first corner, whatever later opsets say
    g.op("Resize", g.q(at="x"), floats(g, 1, 1, 2.5, 3), mode="nearest")
    g.q(0.05, 3)
    graph, rows = checked(g.save(tmp_path))
    assert graph.nodes[-1].attrs["cols"][:4] == (0, 0, 0, 1)
    assert graph.nodes[-1].attrs["rows"] == (0, 0, 0, 1, 1, 2, 2, 2, 3, 3)
    assert rows[0]["equal"] == 1.0


def test_gathers(tmp_path: Path) -> None:
    g = Qdq((4, 6, 5), "int8")
    x = g.op("Gather", "x", ints(g, 0, 0, 1, 2, 5), axis=2)
    x = g.op("Gather", x, ints(g, 4, 3, -4), axis=3)
    x = g.op("Gather", x, ints(g, 1, 2), axis=1)
    x = g.op("Gather", x, ints(g, 1, 0, 0), axis=1)
    x = g.op("Gather", x, g.const(np.array(2, np.int64)), axis=2)
    g.dq(x)
    graph, rows = checked(g.save(tmp_path))
    assert computing(graph).count("resize") == 3
    assert computing(graph).count("slice") == 2  # one contiguous range, one single row
    assert all(r["equal"] == 1.0 for r in rows)


def test_expand_tile_and_backward_slices(tmp_path: Path) -> None:
    g = Qdq((3, 1, 4))
    x = g.op("Expand", g.q(at="x"), ints(g, 1, 3, 5, 4))
    x = g.op("Tile", x, ints(g, 1, 2, 1, 2))
    g.op("Slice", x, ints(g, -1, 5), ints(g, -100, 0), ints(g, 2, 3), ints(g, -1, -2))
    g.q(0.05, 3)
    _, rows = checked(g.save(tmp_path))
    assert all(r["equal"] == 1.0 for r in rows)


def test_shapes_that_exporters_compute_for_expand(tmp_path: Path) -> None:
    """Where(Equal(wanted, -1), ones, wanted), as torch's exporter writes expand(-1, -1, 5, 4)."""
    g = Qdq((3, 1, 4))
    x = g.q(at="x")
    wanted = ints(g, 1, 3, 5, -1)
    ones = g.op("ConstantOfShape", ints(g, 4), value=onnx.helper.make_tensor("v", 7, [1], [1]))
    shape = g.op("Where", g.op("Equal", wanted, ints(g, -1)), ones, wanted)
    g.op("Expand", x, shape)
    g.q(0.05, 3)
    graph, rows = checked(g.save(tmp_path))
    assert ops_of(graph) == ["resize"]
    assert rows[0]["equal"] == 1.0


@pytest.mark.parametrize("shape", [(1 << 40, 4), (-1, 2), (1,) * 9])
def test_constants_that_would_grow_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    g = Qdq((3, 4))
    x = g.q(at="x")
    g.op("Add", x, g.op("ConstantOfShape", ints(g, *shape), name="grown"))
    g.q()
    with pytest.raises(ObstacleError, match="grown"):
        lower(g.save(tmp_path))


# --------------------------------------------------------------------------------------------- rearrangement
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_and_back(tmp_path: Path, mode: str) -> None:
    g = Qdq((8, 3, 5))
    x = g.op("DepthToSpace", g.q(at="x"), blocksize=2, mode=mode)
    g.conv(3, 2, 3, at=x, pads=[1, 1, 1, 1])
    x = g.q(0.06, 2)
    g.op("SpaceToDepth", x, blocksize=2)
    g.conv(2, 12, 1)
    g.q(0.06)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph).count("transpose") == 2
    assert computing(graph) == ["conv2d", "conv2d"]


def test_channel_shuffle(tmp_path: Path) -> None:
    def shuffle(g: Qdq, x: str) -> str:
        y = g.op("Transpose", g.op("Reshape", x, ints(g, 0, 2, 3, 4, 5)), perm=[0, 2, 1, 3, 4])
        return g.conv(2, 6, 1, at=g.op("Reshape", y, ints(g, 0, 6, 4, 5)))

    assert computing(built(tmp_path, (6, 4, 5), shuffle)) == ["conv2d"]


@pytest.mark.parametrize("given", [True, False])
def test_split_has_several_outputs(tmp_path: Path, given: bool) -> None:
    g = Qdq((5, 4, 4))
    x = g.quantise("x", 0.05, 3)
    sizes = [ints(g, 1, 2, 2)] if given else []
    names = ["s0", "s1", "s2"]
    node = onnx.helper.make_node(
        "Split", [x, *sizes], names, axis=1, name="split", **({} if given else {"num_outputs": 3})
    )
    g.nodes.append(node)
    a, b, c = (g.dq(n) for n in names)
    if given:
        y = g.q(0.06, 0, g.op("Mul", b, c))
        g.op("Concat", y, a, axis=1)
    else:
        g.op("Concat", c, g.q(0.06, 0, g.op("Mul", b, a)), axis=1)
    g.q(0.06, 0)
    graph, _ = checked(g.save(tmp_path))
    assert computing(graph).count("slice") == 3


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concat_along_every_axis(tmp_path: Path, axis: int) -> None:
    graph = built(tmp_path, (4, 5, 6), lambda g, x: g.op("Concat", *two(g, x), x, axis=axis))
    assert "transpose" not in ops_of(graph)
    assert "concat" in ops_of(graph)


def test_channels_last_cuts_pads_and_joins_move_no_more_than_they_must(tmp_path: Path) -> None:
    g = Qdq((6, 5, 4))
    x = g.q(at="x")
    a = g.op("Slice", x, ints(g, 1, 1), ints(g, 5, 3), ints(g, 1, 3))
    b = g.op("Pad", g.op("Slice", x, ints(g, 2), ints(g, 4), ints(g, 3)), ints(g, 0, -1, 0, 0, 0, -1, 0, 0))
    c = g.op("Pad", g.op("Concat", a, b, axis=3), ints(g, 0, 1, 0, 0, 0, 0, 2, 1))
    s = g.q(1 / 256, -128, g.op("Softmax", g.q(at=c), axis=-1))
    g.op("Resize", s, "", floats(g, 1, 2, 2, 1), mode="nearest")
    g.q(1 / 256, -128)
    graph, _ = checked(g.save(tmp_path))
    assert graph.io.input_layout == "HWC"
    assert "transpose" not in ops_of(graph)


def test_cast_between_floats_is_nothing(tmp_path: Path) -> None:
    assert ops_of(built(tmp_path, (9,), lambda g, x: g.op("Relu", g.op("Cast", x, to=1)))) == ["rescale"]
    g = Qdq((9,))
    g.op("Cast", g.q(at="x"), to=7, name="whole")
    with pytest.raises(ObstacleError, match=r"whole .*casts an activation to INT64"):
        lower(g.save(tmp_path))


# -------------------------------------------------------------------------------------------------- weighted
TRANSPOSED = [
    ((2, 2), 2, {"strides": [2, 2]}),
    ((3, 3), 2, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((4, 4), 3, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((3, 2), 2, {"strides": [3, 1], "pads": [0, 1, 2, 0]}),
    ((3, 3), 2, {"strides": [1, 1], "pads": [1, 1, 1, 1]}),
    ((2, 2), 2, {"strides": [2, 3], "dilations": [2, 3]}),
    ((3, 3), 1, {"strides": [2, 2], "group": 4, "pads": [1, 1, 0, 0]}),
    ((3, 3), 2, {"strides": [2, 2], "group": 2}),
    ((3, 3), 2, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((4, 3), 2, {"strides": [3, 2], "auto_pad": "SAME_LOWER"}),
    ((3, 3), 2, {"strides": [2, 2], "output_shape": [9, 11]}),
    ((5, 5), 2, {"strides": [2, 2], "pads": [4, 3, 4, 3]}),
    ((1, 1), 2, {"strides": [3, 3], "output_padding": [2, 1]}),
]  # fmt: skip


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("kernel", "out", "attrs"), TRANSPOSED)
def test_transposed_convolution(
    tmp_path: Path, kernel: tuple[int, int], out: int, attrs: dict[str, object], per_channel: bool
) -> None:
    def net(g: Qdq, x: str) -> str:
        weight = g.weight((4, out, *kernel), axis=1, per_channel=per_channel)
        return g.op("Relu", g.op("ConvTranspose", x, weight, g.bias(out * int(attrs.get("group", 1))), **attrs))

    graph = built(tmp_path, (4, 4, 5), net)
    assert computing(graph)[0] == "conv2d"
    assert set(computing(graph)) <= {"conv2d", "slice", "clamp"}


def test_transposed_convolution_of_a_signal(tmp_path: Path) -> None:
    built(
        tmp_path,
        (4, 9),
        lambda g, x: g.op("ConvTranspose", x, g.weight((4, 3, 4), axis=1), g.bias(3), strides=[2], pads=[1, 1]),
    )


def test_signals_are_images_of_height_one(tmp_path: Path) -> None:
    g = Qdq((3, 20))
    x = g.q(at="x")
    x = g.op("Conv", x, g.weight((4, 3, 3)), g.bias(4), strides=[2], pads=[1, 0], dilations=[2])
    x = g.q(0.05, 1, g.op("Relu", x))
    x = g.q(0.05, 1, g.op("MaxPool", x, kernel_shape=[2], strides=[1]))
    x = g.q(0.05, 1, g.op("Conv", x, g.weight((4, 1, 3)), group=4, auto_pad="SAME_UPPER"))
    x = g.q(0.05, 1, g.op("Pad", x, ints(g, 0, 0, 1, 0, 0, 2)))
    x = g.q(0.04, 1, g.op("AveragePool", x, kernel_shape=[3], strides=[2], pads=[1, 1]))
    x = g.q(0.04, 1, g.op("GlobalAveragePool", x))
    g.op("Gemm", g.op("Flatten", x), g.weight((5, 4)), transB=1)
    g.q(0.05)
    graph, _ = checked(g.save(tmp_path))
    assert computing(graph) == ["conv2d", "max_pool2d", "conv2d", "pad", "avg_pool2d", "avg_pool2d", "linear"]


@pytest.mark.parametrize("shape", [(7,), (6, 7), (4, 3, 7), (2, 3, 2, 7)])
def test_matmul_on_the_last_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    def net(g: Qdq, x: str) -> str:
        y = g.op("MatMul", x, g.weight((7, 5), axis=1))
        return g.op("Add", y, g.bias(5))

    graph = built(tmp_path, shape, net)
    assert computing(graph) == ["linear" if len(shape) == 1 else "conv2d"]


def test_gemm_with_alpha_and_beta(tmp_path: Path) -> None:
    def net(g: Qdq, x: str) -> str:
        return g.op("Gemm", x, g.weight((7, 5), axis=1), g.bias(5), alpha=-0.5, beta=2.0)

    assert ops_of(built(tmp_path, (7,), net)) == ["linear"]


# ---------------------------------------------------------------------------------------- pools and reductions
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (2, 3), (1, 2), (1, 3), (-1,)])
def test_reductions(tmp_path: Path, op: str, keep: int, axes: tuple[int, ...]) -> None:
    scale = 0.5 if op == "ReduceSum" else 0.05
    graph = built(tmp_path, (4, 5, 6), lambda g, x: g.op(op, x, ints(g, *axes), keepdims=keep), scale, 1)
    expected = "max_pool2d" if op in ("ReduceMax", "ReduceMin") else "avg_pool2d"
    assert expected in computing(graph)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("size", [(7, 8), (6, 9), (5, 5)])
def test_partial_windows_of_ceil_mode(tmp_path: Path, op: str, pads: list[int], size: tuple[int, int]) -> None:
    attrs = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": pads, "ceil_mode": 1}
    built(tmp_path, (3, *size), lambda g, x: g.op(op, x, **attrs))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_over_any_axis(tmp_path: Path, axis: int) -> None:
    graph = built(tmp_path, (4, 5, 6), lambda g, x: g.op("Softmax", x, axis=axis), 1 / 256, -128)
    assert computing(graph) == ["softmax"]


def test_softmax_of_old_opsets_runs_over_all_axes(tmp_path: Path) -> None:
    g = Qdq((4, 5, 6), opset=12)
    g.op("Softmax", g.q(0.2, 0, "x"))
    g.q(1 / 256, -128)
    graph, _ = checked(g.save(tmp_path))
    assert graph.tensors[next(n for n in graph.nodes if n.op == "softmax").output].shape[-1] == 120


# ------------------------------------------------------------------------------------------------- refusals
def refused(folder: Path, shape: tuple[int, ...], build: Build) -> str:
    g = Qdq(shape)
    build(g, g.q(at="x"))
    g.q()
    with pytest.raises(ObstacleError) as caught:
        lower(g.save(folder))
    (obstacle,) = caught.value.obstacles
    assert obstacle.rewrite
    assert obstacle.shape == shape
    return f"{obstacle.attribute}: {obstacle.reason}; {obstacle.rewrite}"


REFUSED: list[tuple[tuple[int, ...], Build, str]] = [
    ((3, 4, 5), lambda g, x: g.op("Resize", x, "", floats(g, 1, 1, 2, 2), mode="linear"), "mode: interpolates"),
    ((3, 4, 5), lambda g, x: g.op("AveragePool", x, kernel_shape=[2, 2], dilations=[2, 2]), "dilations: pools"),
    ((3, 4, 5), lambda g, x: g.op("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2]), "dilations: pools"),
    ((3, 4, 5), lambda g, x: g.op("Gather", x, ints(g, 0), axis=0), "axis: gathers along the batch axis"),
    ((3, 4, 5), lambda g, x: g.op("Div", *two(g, x)), "of two tensors has no integer form"),
    ((3, 4, 5), lambda g, x: g.op("Pow", x, floats(g, 1, 2, 3, shape=(3, 1, 1))), "whose values differ"),
    ((3, 4, 5), lambda g, x: g.op("Pad", x, ints(g, 1, *[0] * 7)), "pads: pads the batch axis"),
    ((3, 4), lambda g, x: g.op("MatMul", x, g.op("Transpose", x, perm=[0, 2, 1])), "matrices that are both computed"),
    ((3, 4, 5, 6), lambda g, x: g.op("Conv", x, g.weight((2, 3, 1, 1, 1))), "1-D or 2-D convolution"),
    ((3, 4, 5), lambda g, x: g.op("ReduceMean", x), "axes: reduces all axes"),
    ((3, 4, 5), lambda g, x: g.op("Max", x, floats(g, 1, 2, 3, shape=(3, 1, 1))), "whose values differ"),
    ((3, 4, 5), lambda g, x: g.op("PRelu", g.conv(3, 3, 1, at=x), floats(g, 1, 2, 3, shape=(3, 1, 1))), "needs"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "build", "text"), REFUSED, ids=[t for _, _, t in REFUSED])
def test_what_has_no_form_says_why(tmp_path: Path, shape: tuple[int, ...], build: Build, text: str) -> None:
    assert text in refused(tmp_path, shape, build)
