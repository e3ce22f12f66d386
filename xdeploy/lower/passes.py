"""Rewrites of the lowered graph: padding and limits into the node they belong to, additions into the epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual

Pass = Callable[[LoweredGraph], LoweredGraph]


def remove_dead(graph: LoweredGraph) -> LoweredGraph:
    """Drop nodes whose output nobody reads, and tensors nobody names."""
    needed, kept = {graph.output}, []
    for node in reversed(graph.nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    needed.add(graph.input)
    tensors = {n: t for n, t in graph.tensors.items() if n in needed}
    return replace(graph, nodes=tuple(reversed(kept)), tensors=tensors)


def merge_reshapes(graph: LoweredGraph) -> LoweredGraph:
    """A reshape of a reshape reads the first one's input; a reshape to the same shape disappears."""
    source = {n.output: n for n in graph.nodes if n.op == "reshape"}
    alias: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(alias.get(i, i) for i in node.inputs))
        if node.op == "reshape":
            before = source.get(node.inputs[0])
            if before is not None:
                node = replace(node, inputs=(alias.get(before.inputs[0], before.inputs[0]),))
            if graph.tensors[node.inputs[0]].shape == tuple(node.attrs["shape"]) and node.output != graph.output:
                alias[node.output] = node.inputs[0]
                continue
        nodes.append(node)
    return remove_dead(replace(graph, nodes=tuple(nodes)))


def fold_pads(graph: LoweredGraph) -> LoweredGraph:
    """Zero padding of image borders moves into the convolutions that read it, if nothing else does."""
    folded: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "pad" or any(node.attrs["channels"]) or node.output == graph.output:
            continue
        readers = graph.consumers(node.output)
        zero = node.attrs["value"] == graph.tensors[node.output].q.zero_point
        if zero and readers and all(r.op == "conv2d" and r.inputs == (node.output,) for r in readers):
            folded[node.output] = node
    nodes = tuple(_padded(n, folded[n.inputs[0]]) if n.inputs[0] in folded else n for n in graph.nodes)
    return remove_dead(replace(graph, nodes=nodes))


def _padded(conv: Node, pad: Node) -> Node:
    pads = tuple(a + b for a, b in zip(conv.attrs["pads"], pad.attrs["pads"], strict=True))
    return replace(conv, inputs=pad.inputs, attrs={**conv.attrs, "pads": pads})


def fold_clamps(graph: LoweredGraph) -> LoweredGraph:
    """Limits on codes move into the node that computes them, if nobody else reads them unlimited."""
    producers = {n.output: n for n in graph.nodes}
    for clamp in [n for n in graph.nodes if n.op == "clamp"]:
        node = producers.get(clamp.inputs[0])
        alone = node is not None and len(graph.consumers(node.output)) == 1 and node.output != graph.output
        merged = _limited(node, clamp) if node is not None and alone else None
        if node is None or merged is None:
            continue
        nodes = tuple(merged if n is node else n for n in graph.nodes if n is not clamp)
        graph = replace(graph, nodes=nodes, tensors={n: t for n, t in graph.tensors.items() if n != node.output})
        producers[clamp.output] = merged
    return graph


def _limited(node: Node, clamp: Node) -> Node | None:
    """The node with the limits of the clamp behind it; None if it has no limits of its own."""
    low, high = clamp.attrs["low"], clamp.attrs["high"]
    if node.op == "lut":
        return replace(node, output=clamp.output, consts={"table": np.clip(node.consts["table"], low, high)})
    prefix = "add_" if has_residual(node) else ""
    if f"{prefix}low" not in node.attrs:
        return None
    bounds = {f"{prefix}{k}": min(max(node.attrs[f"{prefix}{k}"], low), high) for k in ("low", "high")}
    return replace(node, output=clamp.output, attrs={**node.attrs, **bounds})


def fuse_residuals(graph: LoweredGraph) -> LoweredGraph:
    """An addition becomes the epilogue of the convolution or linear layer that runs last before it.

    That one must have no other reader. The pair stands where the addition stood, so the other operand exists.
    """
    while True:
        pair = next((p for p in map(lambda n: _producer(graph, n), graph.nodes) if p is not None), None)
        if pair is None:
            return graph
        producer, add = pair
        nodes = [_fused(producer, add) if n is add else n for n in graph.nodes if n is not producer]
        tensors = {n: t for n, t in graph.tensors.items() if n != producer.output}
        graph = replace(graph, nodes=tuple(nodes), tensors=tensors)


def _producer(graph: LoweredGraph, add: Node) -> tuple[Node, Node] | None:
    if add.op != "add" or add.inputs[0] == add.inputs[1]:
        return None
    able = [
        n
        for n in graph.nodes
        if n.op in ("conv2d", "linear") and len(n.inputs) == 1 and n.output in add.inputs
        and n.output != graph.output and len(graph.consumers(n.output)) == 1
    ]  # fmt: skip
    return (able[-1], add) if able else None


def _fused(producer: Node, add: Node) -> Node:
    """The convolution's own code takes the place of the operand it was: a stays with it, b with the residual."""
    first = add.inputs[0] == producer.output
    other, own, residual = (add.inputs[1], "a", "b") if first else (add.inputs[0], "b", "a")
    a = add.attrs
    extra = {
        "add_a": a[own], "add_b": a[residual], "add_const": a["const"], "add_shift": a["shift"],
        "add_low": a["low"], "add_high": a["high"],
    }  # fmt: skip
    return replace(producer, inputs=(*producer.inputs, other), output=add.output, attrs={**producer.attrs, **extra})


ALWAYS: tuple[Pass, ...] = (remove_dead, merge_reshapes)
FUSING: tuple[Pass, ...] = (fold_pads, fold_clamps, fuse_residuals)
