"""What stands behind a refused node is judged too: stand-ins take the place of its results, and capture goes on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from xdeploy.errors import ModelError, Obstacle, UnsupportedError
from xdeploy.model.fallback import FallbackPart, fallback_node
from xdeploy.model.onnxgraph.module import OnnxModule
from xdeploy.onnxfile import OnnxNode

_OPSET = 13


def stand_in(source: tuple[int, ...], shape: tuple[int, ...]) -> FallbackPart | None:
    """A part that gives some tensor of `shape` per sample for one of `source`; None if ONNX cannot say that."""
    constants = {
        "zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64), "axis": np.ones(1, np.int64),
        "rank": np.array([-1, *(1 for _ in shape)]), "shape": np.array([1, *shape]),
    }  # fmt: skip
    nodes = [
        OnnxNode("flat", "Flatten", ("data",), ("flat",), {"axis": 1}),
        OnnxNode("first", "Slice", ("flat", "zero", "one", "axis"), ("first",)),
        OnnxNode("rank", "Reshape", ("first", "rank"), ("ranked",)),
        OnnxNode("shape", "Expand", ("ranked", "shape"), ("out",)),
    ]
    try:
        return fallback_node(nodes, constants, "data", source, _OPSET)
    except ModelError:
        return None


def found_by_capture(module: OnnxModule, listed: Collection[str]) -> list[Obstacle]:
    """What capture refuses in a module with stand-ins, in terms of the file's nodes; those of `listed` are left out."""
    from xdeploy.model.trace import trace  # torch's export machinery, needed here only when something is refused

    try:
        trace(module, module.input_shape, name=module.name)
    except UnsupportedError as error:
        found = []
        for obstacle in error.obstacles:
            node = module.node_of(obstacle.node)
            if node is not None and node.name not in listed:
                found.append(replace(obstacle, node=node.name, op=node.op))
        return found
    except ModelError:
        return []  # about the module as a whole, which is not the user's
    return []
