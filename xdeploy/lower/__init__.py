"""ONNX (QDQ, int8) to the lowered graph: `lower(model) -> LoweredGraph`.

What comes in: our own export, or any converter's file over the same operators. What goes out: integer nodes in
channels-last layout, verified, with the layers' names as origins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xdeploy.errors import ModelError, UnsupportedError
from xdeploy.handover import ExportedModel, IoSpec
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lir.ops import verify
from xdeploy.lower.budget import limit_work
from xdeploy.lower.builder import Binding
from xdeploy.lower.facts import completed
from xdeploy.lower.fallback import Fallback
from xdeploy.lower.lowering import SUPPORTED, Lowering, lower_nodes
from xdeploy.lower.passes import ALWAYS, FUSING
from xdeploy.lower.pixels import facts_of, normal_of
from xdeploy.onnxfile import Obstacle, ObstacleError, OnnxGraph, survey

__all__ = ["SUPPORTED", "Binding", "Fallback", "Obstacle", "ObstacleError", "graph_report", "lower", "lower_traced"]


def lower(exported: ExportedModel | Path, fuse: bool = True, fallback: Fallback | None = None) -> LoweredGraph:
    """Lower an exported model, or an ONNX file as it is.

    Args:
        exported: the model; given a path, its IoSpec is read from the file.
        fuse: fold padding into convolutions and residual additions into epilogues. Without it every tensor of the
            lowered graph also stands in the ONNX graph, for comparison node by node.
        fallback: nodes that may stay in float.

    Raises:
        ModelError: the file cannot be read.
        ObstacleError: parts of it have no integer form; all of them are listed.
    """
    return lower_traced(exported, fuse, fallback)[0]


def lower_traced(
    exported: ExportedModel | Path, fuse: bool = True, fallback: Fallback | None = None
) -> tuple[LoweredGraph, Mapping[str, Binding]]:
    """`lower`, and for every tensor that also stands in the ONNX graph its name and arrangement there."""
    path = exported.path if isinstance(exported, ExportedModel) else exported
    source, foreign = survey(path)
    done = lower_nodes(source, fallback)
    if foreign or done.obstacles:
        raise ObstacleError(_in_order(source, [*foreign, *done.obstacles]), path)
    if not done.output or done.input not in done.builder.tensors:
        raise ModelError(f"{path}: the output does not depend on a quantised input")
    io = exported.io if isinstance(exported, ExportedModel) else _io(source, done)
    b = done.builder
    graph = LoweredGraph(tuple(b.nodes), dict(b.tensors), done.input, done.output, io)
    for rewrite in (*ALWAYS, *(FUSING if fuse else ())):
        graph = rewrite(graph)
    if not graph.nodes:
        raise ModelError(f"{path}: nothing is computed between input and output")
    verify(graph)
    limit_work(graph, path)
    return graph, {n: bound for n, bound in b.bindings.items() if n in graph.tensors}


def graph_report(path: Path) -> list[dict[str, Any]]:
    """Everything that keeps a quantised ONNX file from being lowered, at once.

    Operators of other domains, local functions and subgraphs stand in one list with what has no integer form. What
    only depends on an obstacle is not listed.

    Returns:
        rows of node, op, shape (of the output per sample, () if not known), attribute, reason, rewrite; in the order
        of the graph. Empty: the file can be lowered.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        lower_traced(path)
    except UnsupportedError as error:
        found = error.obstacles or (Obstacle(path.name, "", error.message, error.hint or ""),)
        return [asdict(o) for o in completed(found, path)]
    return []


def _in_order(source: OnnxGraph, obstacles: Iterable[Obstacle]) -> list[Obstacle]:
    """Obstacles in the order of the graph, each once; what no node is named after comes last."""
    place = {n.name: k for k, n in enumerate(source.nodes)}
    return sorted(dict.fromkeys(obstacles), key=lambda o: place.get(o.node, len(place)))


def _io(source: OnnxGraph, done: Lowering) -> IoSpec:
    """The IoSpec of the file: its own shapes and scales, and what our exporter wrote beside them."""
    tensors = done.builder.tensors
    io = IoSpec(
        source.input.name, source.input.shape[1:], source.output.name, done.output_shape,
        input_q=tensors[done.input].q, output_q=tensors[done.output].q,
        input_layout=done.layout if len(source.input.shape) == 4 else "CHW",
    )  # fmt: skip
    shape = io.input_shape
    channels = shape[2 if io.input_layout == "HWC" else 0] if len(shape) == 3 else 0
    mean, std = normal_of(source, tensors[done.input].q, channels)
    return replace(io, mean=mean, std=std, labels=facts_of(source)["labels"])
