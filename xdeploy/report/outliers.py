"""Layers that cost more than twice the instructions per multiply-accumulate of the best of their kind, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import macs

LIMIT = 2.0
_FEW = 4096  # multiply-accumulates of a layer, below which calling it weighs


def kind_of(node: Node) -> str:
    """What a layer is compared with: convolutions, pointwise and depthwise ones, linear layers."""
    if node.op != "conv2d":
        return node.op
    shape = node.consts["codes"].shape
    if node.attrs["groups"] > 1:
        return "depthwise" if shape[3] == 1 else "grouped"
    return "pointwise" if shape[1:3] == (1, 1) else "convolution"


def outliers(graph: LoweredGraph, targets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Target -> layer -> note, for every layer above LIMIT.

    Args:
        graph: the lowered graph.
        targets: by name, `counts` (executed instructions by layer) and `kernels` (row by layer).
    """
    found: dict[str, dict[str, str]] = {}
    for name, target in targets.items():
        cost = {
            n.name: target["counts"][n.name] / macs(graph, n)
            for n in graph.nodes
            if n.format and target["counts"].get(n.name)
        }
        best: dict[str, Node] = {}
        for node in graph.nodes:
            kind = kind_of(node)
            if node.name in cost and (kind not in best or cost[node.name] < cost[best[kind].name]):
                best[kind] = node
        found[name] = {
            n.name: _note(graph, n, best[kind_of(n)], cost, target["kernels"])
            for n in graph.nodes
            if n.name in cost and cost[n.name] > LIMIT * cost[best[kind_of(n)].name]
        }
    return found


def _note(graph: LoweredGraph, node: Node, best: Node, cost: Mapping[str, float], kernels: Mapping[str, str]) -> str:
    ratio = cost[node.name] / cost[best.name]
    own, other = node.consts["codes"][0].size, best.consts["codes"][0].size
    reasons = []
    if own < other:
        reasons.append(f"{own} multiply-accumulates an output share the output stage and gathering, {other} there")
    if node.format != best.format and node.format and best.format:
        reasons.append(f"weights of {node.format.name}, {best.format.name} there")
    if kernels.get(node.name) != kernels.get(best.name):
        reasons.append(f"kernel {kernels.get(node.name)}, {kernels.get(best.name)} there")
    channels = [graph.tensors[n.inputs[0]].shape[-1] for n in (node, best)]
    if channels[0] % 4 and not channels[1] % 4:
        reasons.append(f"{channels[0]} input channels, no multiple of 4")
    if macs(graph, node) < _FEW:
        reasons.append(f"{macs(graph, node):,} multiply-accumulates in all: the call itself weighs")
    why = "; ".join(reasons) or "same kernel and format: the shape alone"
    return f"{ratio:.1f} times the instructions per multiply-accumulate of {best.name}: {why}"
