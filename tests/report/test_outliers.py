"""Which layers are told to be dear, and why."""

from __future__ import annotations

from tests.networks import separable_network
from xdeploy.lir.ops import macs
from xdeploy.report.outliers import LIMIT, kind_of, outliers


def test_layers_are_compared_with_their_own_kind() -> None:
    graph, _ = separable_network()
    kinds = {n.name: kind_of(n) for n in graph.nodes}
    assert kinds == {
        "stem": "convolution", "depth.0": "depthwise", "point.0": "pointwise", "depth.1": "depthwise",
        "point.1": "pointwise", "depth.2": "depthwise", "point.2": "pointwise", "flat": "reshape", "head": "linear",
    }  # fmt: skip


def test_only_those_above_the_limit_with_what_differs() -> None:
    graph, _ = separable_network()
    cost = dict.fromkeys((n.name for n in graph.nodes), 1.0) | {"point.1": LIMIT, "point.2": 2.5, "depth.2": 2.5}
    counts = {n.name: int(macs(graph, n) * cost[n.name]) for n in graph.nodes}
    kernels = dict.fromkeys(counts, "one") | {"point.2": "other"}
    found = outliers(graph, {"core": {"counts": counts, "kernels": kernels}})["core"]
    assert set(found) == {"point.2", "depth.2"}
    assert found["point.2"].startswith("2.5 times the instructions per multiply-accumulate of point.0: ")
    assert "weights of int2, int8 there" in found["point.2"]
    assert "kernel other, one there" in found["point.2"]
    assert found["depth.2"].endswith("same kernel and format: the shape alone")


def test_targets_without_counts_say_nothing() -> None:
    graph, _ = separable_network()
    assert outliers(graph, {"host": {"counts": {}, "kernels": {}}}) == {"host": {}}
