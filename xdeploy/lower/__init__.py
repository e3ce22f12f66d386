"""ONNX (QDQ, int8) to the lowered graph: `lower(model) -> LoweredGraph`.

What comes in: our own export, or any converter's file over the same operators. What goes out: integer nodes in
channels-last layout, verified, with the layers' names as origins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xdeploy.errors import ModelError
from xdeploy.handover import ExportedModel, IoSpec
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lir.ops import verify
from xdeploy.lower.builder import Binding
from xdeploy.lower.lowering import SUPPORTED, Lowering, lower_nodes
from xdeploy.lower.passes import ALWAYS, FUSING
from xdeploy.onnxfile import Obstacle, ObstacleError, OnnxGraph, read

__all__ = ["SUPPORTED", "Binding", "Obstacle", "ObstacleError", "lower", "lower_traced"]


def lower(exported: ExportedModel | Path, fuse: bool = True) -> LoweredGraph:
    """Lower an exported model, or an ONNX file as it is.

    Args:
        exported: the model; given a path, its IoSpec is read from the file.
        fuse: fold padding into convolutions and residual additions into epilogues. Without it every tensor of the
            lowered graph also stands in the ONNX graph, for comparison node by node.

    Raises:
        ModelError: the file cannot be read.
        ObstacleError: parts of it have no integer form; all of them are listed.
    """
    return lower_traced(exported, fuse)[0]


def lower_traced(exported: ExportedModel | Path, fuse: bool = True) -> tuple[LoweredGraph, Mapping[str, Binding]]:
    """`lower`, and for every tensor that also stands in the ONNX graph its name and arrangement there."""
    path = exported.path if isinstance(exported, ExportedModel) else exported
    source = read(path)
    done = lower_nodes(source)
    if done.obstacles:
        raise ObstacleError(done.obstacles, path)
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
    return graph, {n: bound for n, bound in b.bindings.items() if n in graph.tensors}


def _io(source: OnnxGraph, done: Lowering) -> IoSpec:
    """The IoSpec of the file: its own shapes and scales, and what our exporter wrote beside them."""
    tensors = done.builder.tensors
    io = IoSpec(
        source.input.name, source.input.shape[1:], source.output.name, done.output_shape,
        input_q=tensors[done.input].q, output_q=tensors[done.output].q,
        input_layout=done.layout if len(source.input.shape) == 4 else "CHW",
    )  # fmt: skip
    try:
        facts: dict[str, Any] = json.loads(source.meta.get("xdeploy.io", "{}"))
        mean, std = (tuple(float(v) for v in facts.get(k, ())) for k in ("mean", "std"))
        labels = tuple(str(v) for v in facts.get("labels", ()))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ModelError("the metadata entry xdeploy.io is damaged") from None
    return replace(io, mean=mean, std=std, labels=labels)
