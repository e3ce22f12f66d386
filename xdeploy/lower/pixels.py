"""How pixels become the inputs of a quantised file: what the file says of it, or its input scale gives away."""

from __future__ import annotations

import json
import math
from typing import Any

from xdeploy.errors import ModelError
from xdeploy.formats import QParams
from xdeploy.onnxfile import OnnxGraph

_COLOURS = (1, 3, 4)  # channels of images


def facts_of(graph: OnnxGraph) -> dict[str, Any]:
    """`mean`, `std` and `labels` that our exporter left in the file, each a tuple, () if not there.

    Raises:
        ModelError: the metadata is damaged.
    """
    try:
        facts: dict[str, Any] = json.loads(graph.meta.get("xdeploy.io", "{}"))
        found = {k: tuple(float(v) for v in facts.get(k, ())) for k in ("mean", "std")}
        if not all(math.isfinite(v) for part in found.values() for v in part) or not all(found["std"]):
            raise ValueError("mean and std are finite, std is not 0")
        return {**found, "labels": tuple(str(v) for v in facts.get("labels", ()))}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ModelError("the metadata entry xdeploy.io is damaged") from None


def normal_of(graph: OnnxGraph, q: QParams, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel, so that (pixel / 255 - mean) / std is the input; both () where nothing tells them.

    A file without metadata whose image input has steps of exactly 1 takes pixels as they are: all 256 of them are its
    codes, and its zero point says whether 0..255 or, less 128, -128..127.

    Args:
        graph: the file.
        q: quantisation of its input.
        channels: of an image input, 0 for others.

    Raises:
        ModelError: the metadata is damaged.
    """
    facts = facts_of(graph)
    if facts["mean"] or facts["std"] or q.scale != 1.0 or channels not in _COLOURS:
        return facts["mean"], facts["std"]
    return ((128 + q.zero_point) / 255.0,) * channels, (1.0 / 255.0,) * channels
