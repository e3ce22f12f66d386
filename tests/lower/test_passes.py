"""Rewrites of the lowered graph: what changes, what must stay, and that the numbers stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.export.toys import everything, inputs_of
from tests.lower.qdq import Qdq, ops_of
from xdeploy.export import export
from xdeploy.formats import QParams
from xdeploy.handover import IoSpec
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.lower import lower
from xdeploy.lower.passes import fold_pads, fuse_residuals, merge_reshapes, remove_dead

Q = QParams(0.1, 0)


def graph(nodes: list[Node], shapes: dict[str, tuple[int, ...]], output: str) -> LoweredGraph:
    tensors = {n: Tensor(s, Q) for n, s in shapes.items()}
    return LoweredGraph(tuple(nodes), tensors, "x", output, IoSpec("x", (4,), "y", (4,)))


def clamp(name: str, source: str) -> Node:
    return Node(name, "clamp", (source,), name, {"low": -5, "high": 5})


def test_dead_nodes_and_their_tensors_go() -> None:
    g = graph([clamp("a", "x"), clamp("b", "a"), clamp("c", "a")], dict.fromkeys("xabc", (4,)), "b")
    left = remove_dead(g)
    assert [n.name for n in left.nodes] == ["a", "b"]
    assert set(left.tensors) == {"x", "a", "b"}


def test_reshapes_of_reshapes_merge_and_null_ones_vanish() -> None:
    nodes = [
        Node("r1", "reshape", ("x",), "r1", {"shape": (2, 2)}), Node("r2", "reshape", ("r1",), "r2", {"shape": (4,)}),
        clamp("a", "r2"), Node("r3", "reshape", ("a",), "r3", {"shape": (4, 1)}),
        Node("r4", "reshape", ("r3",), "r4", {"shape": (1, 4)}),
    ]  # fmt: skip
    shapes = {"x": (4,), "r1": (2, 2), "r2": (4,), "a": (4,), "r3": (4, 1), "r4": (1, 4)}
    left = merge_reshapes(graph(nodes, shapes, "r4"))
    assert [(n.name, n.inputs) for n in left.nodes] == [("a", ("x",)), ("r4", ("a",))]


def test_fused_and_plain_graphs_give_the_same_codes(tmp_path: Path) -> None:
    compressed = everything({"a": "c4s8", "b": "int2"}, bind=False)
    x = inputs_of(compressed.network, 8)
    exported = export(compressed, x, tmp_path)
    plain, fused = lower(exported, fuse=False), lower(exported)
    codes = plain.io.to_codes(x)
    ours, theirs = ops.run(plain, codes)[plain.output], ops.run(fused, codes)[fused.output]
    np.testing.assert_array_equal(ours, theirs)
    assert {n.op for n in plain.nodes} - {n.op for n in fused.nodes} == {"add"}
    again = fuse_residuals(fold_pads(fused))
    assert again.to_text() == fused.to_text()


@pytest.mark.parametrize("shared_reader", [False, True])
def test_padding_folds_only_when_every_reader_is_a_convolution(tmp_path: Path, shared_reader: bool) -> None:
    g = Qdq((3, 6, 6))
    x = g.quantise("x", 0.05, 3)
    padded = g.dq(g.op("Pad", x, g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), g.point(3)))
    left = g.q(at=g.conv(4, 3, at=padded))
    other = g.op("AveragePool", padded, kernel_shape=[3, 3]) if shared_reader else g.conv(3, 3, at=padded)
    g.op("Concat", left, g.q(at=other), axis=1)
    g.q()
    folded = "pad" not in ops_of(lower(g.save(tmp_path)))
    assert folded is not shared_reader


def test_padding_with_another_value_or_of_channels_stays(tmp_path: Path) -> None:
    for value, widths in ((4, [0, 0, 1, 1, 0, 0, 1, 1]), (3, [0, 1, 1, 1, 0, 0, 1, 1])):
        g = Qdq((3, 6, 6))
        padded = g.dq(g.op("Pad", g.quantise("x", 0.05, 3), g.const(np.array(widths)), g.point(value)))
        g.conv(4, 3 + widths[1], at=padded)
        g.q()
        assert ops_of(lower(g.save(tmp_path))) == ["pad", "conv2d"]


def test_residual_with_another_reader_is_not_fused(tmp_path: Path) -> None:
    g = Qdq((4, 4, 4))
    x = g.q(at="x")
    a = g.q(at=g.conv(4, 4, 1, at=x))
    total = g.q(at=g.op("Add", a, x))
    g.op("Concat", total, a, axis=1)
    g.q()
    assert ops_of(lower(g.save(tmp_path))) == ["conv2d", "add", "concat"]


def test_operand_order_survives_fusion(tmp_path: Path) -> None:
    """The multipliers stay with their operands, whichever side the convolution stands on."""
    results = []
    for swap in (False, True):
        g = Qdq((4, 4, 4))
        x = g.q(0.05, 3, "x")
        a = g.q(0.5, 1, g.conv(4, 4, 1, at=x))
        g.op("Add", *((x, a) if swap else (a, x)))
        g.q(0.3, 2)
        lowered = lower(g.save(tmp_path))
        assert ops_of(lowered) == ["conv2d"]
        assert lowered.nodes[0].attrs["add_a"] == pytest.approx(10 * lowered.nodes[0].attrs["add_b"], rel=1e-5)
        codes = np.random.default_rng(0).integers(-128, 128, (2, 4, 4, 4)).astype(np.int8)
        results.append(ops.run(lowered, codes)[lowered.output])
    np.testing.assert_array_equal(*results)
