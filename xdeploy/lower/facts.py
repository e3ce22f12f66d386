"""What an ONNX file says about the nodes of its obstacles: the attribute a reason names, the shape of the output."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from xdeploy.errors import ModelError, Obstacle
from xdeploy.onnxfile import load_model

_TEXT_LIMIT = 120


def completed(obstacles: Iterable[Obstacle], path: Path) -> tuple[Obstacle, ...]:
    """The obstacles with `attribute` and `shape` filled in where the file tells them and they are missing."""
    found = tuple(obstacles)
    try:
        model = load_model(path)
        shapes = _shapes(model)
    except ModelError:
        return found
    nodes: dict[str, Any] = {}
    for k, node in enumerate(model.graph.node):
        nodes.setdefault(node.name or f"{node.op_type}_{k}", node)
    return tuple(_complete(o, nodes[o.node], shapes) if o.node in nodes else o for o in found)


def _complete(obstacle: Obstacle, node: Any, shapes: dict[str, tuple[int, ...]]) -> Obstacle:
    words = set(re.findall(r"\w+", f"{obstacle.reason} {obstacle.rewrite}"))
    named = [_attribute(a) for a in node.attribute if a.name in words]
    shape = shapes.get(node.output[0], ()) if node.output else ()
    return replace(
        obstacle, attribute=obstacle.attribute or ", ".join(named)[:_TEXT_LIMIT], shape=obstacle.shape or shape
    )


def _attribute(attribute: Any) -> str:
    if attribute.type not in (1, 2, 3, 6, 7):  # float, int, string, floats, ints
        return str(attribute.name)
    value = onnx.helper.get_attribute_value(attribute)
    return f"{attribute.name}={value.decode(errors='replace') if isinstance(value, bytes) else value}"


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shape per sample of every tensor whose shape is fixed but for the first axis."""
    try:
        known = onnx.shape_inference.infer_shapes(model)
    except Exception:  # a graph that contradicts itself has no shapes to tell
        known = model
    found = {}
    for info in (*known.graph.value_info, *known.graph.output):
        dims = info.type.tensor_type.shape.dim[1:]
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") and d.dim_value > 0 for d in dims):
            found[info.name] = tuple(int(d.dim_value) for d in dims)
    return found
