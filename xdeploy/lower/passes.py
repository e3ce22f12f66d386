"""Rewrites of the lowered graph: explicit padding into the convolution, residual additions into the epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from xdeploy.lir.graph import LoweredGraph, Node

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
FUSING: tuple[Pass, ...] = (fold_pads, fuse_residuals)
