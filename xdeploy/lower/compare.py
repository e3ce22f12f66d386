"""The lowered graph against ONNX Runtime, node by node; a user's quantised file taken as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from xdeploy.formats import Int8
from xdeploy.handover import ExportedModel, Float32
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import OPS, has_residual
from xdeploy.lower import lower, lower_traced
from xdeploy.lower.fallback import Fallback
from xdeploy.lower.runtime import feed, run, run_onnx, session
from xdeploy.onnxfile import digest, load_model

_RANDOM_INPUTS = 4


def adopt(path: Path, inputs: Float32 | None = None, fallback: Fallback | None = None) -> ExportedModel:
    """Take a user's quantised ONNX file as it is.

    Args:
        path: the file.
        inputs: golden inputs, float32 (N, *input_shape); without them four random ones over the input's whole range.
        fallback: nodes that may stay in float.

    Raises:
        ModelError: unreadable, or not of the supported vocabulary (ObstacleError lists why).
    """
    io = lower(path, fuse=False, fallback=fallback).io
    assert io.input_q is not None
    if inputs is None:
        codes = np.random.default_rng(0).integers(-128, 128, (_RANDOM_INPUTS, *io.input_shape))
        inputs = io.input_q.dequantise(codes.astype(np.int8))
    return ExportedModel(path, digest(path), io, inputs, run_onnx(path, io, inputs))


def agreement(ours: Int8, theirs: Int8) -> dict[str, Any]:
    """Largest difference, share of equal codes, top-1 agreement of two arrays (N, ...)."""
    a, b = (x.reshape(len(x), -1).astype(np.int16) for x in (ours, theirs))
    same = a.argmax(axis=1) == b.argmax(axis=1)
    gap = np.abs(a - b)
    return {
        "max_difference": int(gap.max(initial=0)),
        "equal": float((gap == 0).mean()),
        "top1": float(same.mean()),
        "n": len(a),
    }


def compare_with_onnx(
    exported: ExportedModel | Path, graph: LoweredGraph, inputs: NDArray[Any]
) -> list[dict[str, Any]]:
    """Each node of a lowered graph by itself, fed with ONNX Runtime's own codes, against ONNX Runtime.

    The promise is at most 1 code on every node. A fused residual is compared in two steps, the convolution and the
    addition, since ONNX rounds between them. Inner steps that stand in no ONNX tensor (a rescale before a concat)
    count with the node they feed.

    Args:
        exported: the file `graph` was lowered from.
        graph: the lowered graph, fused or not.
        inputs: model inputs (N, *input_shape), float or int8 codes.

    Returns:
        rows of node, op, max_code_difference, equal (share of equal codes, 0..1), elements (per sample).
    """
    path = exported.path if isinstance(exported, ExportedModel) else exported
    plain, bindings = lower_traced(exported, fuse=False, fallback=Fallback.of_graph(graph))
    theirs = intermediate(path, graph, {n: b.onnx_name for n, b in bindings.items()}, inputs)
    live = {n: bindings[n].codes(a, plain.tensors[n].shape) for n, a in theirs.items()}
    rows = []
    for node in (part for whole in graph.nodes for part in _parts(whole, live)):
        ours = OPS[node.op].run(node, [live[i] for i in node.inputs])
        if node.output in live:
            rows.append(_row(node, ours, live[node.output]))
        else:
            live[node.output] = ours
    return rows


def _parts(node: Node, live: Mapping[str, Int8]) -> tuple[Node, ...]:
    """A fused residual as the convolution, whose tensor is named like the node, and the addition."""
    if not has_residual(node) or node.name not in live:
        return (node,)
    own = replace(node, inputs=node.inputs[:1], output=node.name)
    attrs = {k.removeprefix("add_"): v for k, v in node.attrs.items() if k.startswith("add_")}
    return own, Node(node.output, "add", (node.name, node.inputs[1]), node.output, attrs)


def _row(node: Node, ours: Int8, theirs: Int8) -> dict[str, Any]:
    gap = np.abs(ours.astype(np.int16) - theirs)
    return {
        "node": node.name,
        "op": node.op,
        "max_code_difference": int(gap.max()),
        "equal": float((gap == 0).mean()),
        "elements": int(gap[0].size),
    }


def intermediate(
    path: Path, graph: LoweredGraph, names: Mapping[str, str], inputs: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """ONNX Runtime's arrays for tensors of the lowered graph, from a copy of the model with more outputs."""
    model = load_model(path)
    entry = model.graph.input[0].name
    present = {o.name for o in model.graph.output}
    wanted = [n for n in dict.fromkeys(names.values()) if n != entry]
    for name in wanted:
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    runner = session(model.SerializeToString())
    arrays = feed(runner, graph.io, inputs)
    found = dict(zip(wanted, run(runner, wanted, arrays), strict=True))
    found[entry] = arrays[entry]
    return {ours: found[theirs] for ours, theirs in names.items()}
