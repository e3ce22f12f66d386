"""Named nodes stay in float as one node per region; what is not named, or cannot be one, stays an obstacle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.lower.qdq import Qdq
from xdeploy.errors import UsageError
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lower import Fallback, ObstacleError, lower
from xdeploy.lower.compare import agreement, compare_with_onnx
from xdeploy.lower.runtime import run_onnx
from xdeploy.recipe import LowerOptions
from xdeploy.target import load_target


def norm(g: Qdq) -> None:
    g.op("InstanceNormalization", g.at, g.bias(8), g.bias(8), name="norm")


def last_axis(g: Qdq) -> None:
    g.op("Transpose", g.at, perm=[0, 2, 3, 1], name="to_last")
    g.op("LayerNormalization", g.at, g.bias(8), g.bias(8), axis=-1, name="norm")
    g.op("Transpose", g.at, perm=[0, 3, 1, 2], name="to_first")


def rows(g: Qdq) -> None:
    g.op("Softmax", g.at, axis=2, name="norm")


def diamond(g: Qdq) -> None:
    """x - max(x), twice the same activation: one region of three nodes."""
    x = g.at
    g.op("ReduceMax", x, g.const(np.array([1])), name="largest")
    g.op("Sub", x, g.at, name="below")
    g.op("InstanceNormalization", g.at, g.bias(8), g.bias(8), name="norm")


def net(body: Callable[[Qdq], None], path: Path, scale: float = 0.04) -> Path:
    g = Qdq((3, 7, 6), opset=18)
    g.at = "x"
    g.q(0.02, -3)
    g.conv(8, 3, pads=[1, 1, 1, 1], name="first")
    g.q(0.06, 2)
    body(g)
    g.q(scale, -5)
    g.conv(4, 8, pads=[1, 1, 1, 1], name="second")
    g.q(0.09, 0)
    onnx.save(g.model(), path)
    return path


def floats(graph: LoweredGraph) -> list[str]:
    return [n.name for n in graph.nodes if n.op == "float"]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (norm, ("norm",)), (last_axis, ("norm",)), (last_axis, ("to_last", "norm", "to_first")), (rows, ("norm",)),
        (diamond, ("largest", "below", "norm")),
    ],
)  # fmt: skip
def test_a_region_is_one_node_that_agrees_with_onnx_runtime(
    body: Callable[[Qdq], None], names: tuple[str, ...], tmp_path: Path
) -> None:
    path = net(body, tmp_path / "net.onnx", 0.004 if body is rows else 0.04)
    graph = lower(path, fallback=Fallback(names))
    assert len(floats(graph)) == 1
    assert Fallback.of_graph(graph).names == names
    x = np.random.default_rng(1).normal(scale=0.8, size=(3, 3, 7, 6)).astype(np.float32)
    worst = max(r["max_code_difference"] for r in compare_with_onnx(path, graph, x))
    assert worst <= 1
    ours = ops.run(graph, graph.io.to_codes(x))[graph.output]
    theirs = np.moveaxis(run_onnx(path, graph.io, x), 1, -1)
    assert agreement(ours, theirs)["equal"] > 0.99


def test_the_node_is_found_again_in_the_saved_graph(tmp_path: Path) -> None:
    graph = lower(net(norm, tmp_path / "net.onnx"), fallback=Fallback(("norm",)))
    graph.save(tmp_path / "g.txt", tmp_path / "g.npz")
    back = LoweredGraph.load(tmp_path / "g.npz")
    x = np.random.default_rng(2).integers(-128, 128, (2, 7, 6, 3)).astype(np.int8)
    np.testing.assert_array_equal(ops.run(back, x)[back.output], ops.run(graph, x)[graph.output])


def test_the_file_cannot_name_anything_in_the_region(tmp_path: Path) -> None:
    graph = lower(net(norm, tmp_path / "net.onnx"), fallback=Fallback(("norm",)))
    data = next(n for n in graph.nodes if n.op == "float").consts["onnx"].tobytes()
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    used = {n for node in model.graph.node for n in (*node.input, *node.output)}
    assert all(n in ("x", "y", "image") or n[0] == "t" for n in used)


def test_nothing_stays_in_float_unasked(tmp_path: Path) -> None:
    path = net(diamond, tmp_path / "net.onnx")
    with pytest.raises(ObstacleError) as found:
        lower(path)
    assert "norm" in str(found.value)
    with pytest.raises(ObstacleError, match="not quantised"):  # a part of the region is not named
        lower(path, fallback=Fallback(("largest", "norm")))


def test_two_activations_are_no_region(tmp_path: Path) -> None:
    def two(g: Qdq) -> None:
        left = g.at
        g.conv(8, 8, kernel=1, name="side")
        right = g.q(0.07, 1)
        g.op("Mod", left, right, fmod=1, name="norm")

    with pytest.raises(ObstacleError, match="reads one activation"):
        lower(net(two, tmp_path / "net.onnx"), fallback=Fallback(("norm",)))


def test_unquantised_input_and_unknown_names(tmp_path: Path) -> None:
    def bare(g: Qdq) -> None:
        g.op("AveragePool", g.at, kernel_shape=[1, 1], name="pool")
        g.op("InstanceNormalization", g.at, g.bias(8), g.bias(8), name="norm")

    with pytest.raises(ObstacleError, match="not quantised"):
        lower(net(bare, tmp_path / "bare.onnx"), fallback=Fallback(("norm",)))
    with pytest.raises(UsageError, match="no node is named 'nrm'") as wrong:
        lower(net(norm, tmp_path / "net.onnx"), fallback=Fallback(("nrm",)))
    assert "norm" in str(wrong.value.hint)


def test_refusals_say_why(tmp_path: Path) -> None:
    path = net(norm, tmp_path / "net.onnx")
    options = LowerOptions(fallback=("norm",))
    targets = [load_target("x86-64"), load_target("cortex-m4")]
    assert Fallback.of(options, targets[:1]).refused == ""
    with pytest.raises(ObstacleError, match="cortex-m4 has no float kernels"):
        lower(path, fallback=Fallback.of(options, targets))
    strict = LowerOptions(fallback=("norm",), fail_on_fallback=True)
    with pytest.raises(ObstacleError, match="fail_on_fallback"):
        lower(path, fallback=Fallback.of(strict, targets[:1]))
