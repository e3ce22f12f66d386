"""Float parts: the nodes of a fallback layer's own ONNX model, written between the quantised tensors around it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx
from onnx import inliner, version_converter

from xdeploy.errors import ModelError
from xdeploy.export.writer import Writer, annotate
from xdeploy.model.network import Layer

_OWN = ("", "ai.onnx")


def fallback_model(layer: Layer) -> Any:
    """The ONNX model (onnx.ModelProto) that a fallback layer carries, its own functions written out.

    Raises:
        ModelError: it is unreadable, or has not exactly one input and one output.
    """
    try:
        model = onnx.load_model_from_string(base64.b64decode(layer.attrs["onnx"], validate=True))
        model = inliner.inline_local_functions(model)
    except Exception as error:  # neither onnx nor protobuf has a base class of its own errors
        raise ModelError(f"{layer.name}: its float part is not an ONNX model: {error}") from None
    given = {t.name for t in model.graph.initializer}
    inputs = [i.name for i in model.graph.input if i.name not in given]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            f"{layer.name}: its float part has {len(inputs)} inputs and {len(model.graph.output)} outputs",
            hint="a float part takes one tensor and gives one",
        )
    return model


def needed_opset(layers: Iterable[Layer]) -> int:
    """The newest ONNX opset among the float parts of a network; 0 without any."""
    versions = (_opset(fallback_model(x)) for x in layers if x.kind == "fallback")
    return max(versions, default=0)


def inlined(w: Writer, layer: Layer, xs: list[str]) -> Any:
    """Write the float part's nodes with names of their own, reading xs[0] and giving `<layer>.y`; returns the last."""
    model = _converted(layer, fallback_model(layer), w.opset)
    given = {t.name for t in model.graph.initializer}
    names = {next(i.name for i in model.graph.input if i.name not in given): xs[0]}
    ends = model.graph.output[0].name
    used = {n.domain for n in _all_nodes(model.graph)}
    for entry in model.opset_import:
        foreign = entry.domain in used and entry.domain not in _OWN
        if foreign and w.domains.setdefault(entry.domain, entry.version) != entry.version:
            raise ModelError(f"{layer.name}: its float part wants another version of the operators {entry.domain!r}")

    def named(name: str) -> str:
        return names.setdefault(name, f"{layer.name}.y" if name == ends else f"{layer.name}/{name}") if name else ""

    for tensor in model.graph.initializer:
        tensor.name = named(tensor.name)
        w.constants[tensor.name] = tensor
    for node in model.graph.node:
        _rename(node, named, layer.name)
        annotate(node, {"origin": layer.name, "fallback": layer.name})
        w.nodes.append(node)
    last = [n for n in w.nodes if f"{layer.name}.y" in n.output]
    if not last:
        raise ModelError(f"{layer.name}: its float part gives back its input or a constant")
    return last[0]


def _rename(node: Any, named: Callable[[str], str], layer: str) -> None:
    """Give a node's tensors new names, those of its inner graphs too."""
    node.name = f"{layer}/{node.name or node.output[0]}"
    node.input[:] = [named(n) for n in node.input]
    node.output[:] = [named(n) for n in node.output]
    for attribute in node.attribute:
        for graph in _graphs(attribute):
            for value in (*graph.input, *graph.output, *graph.initializer):
                value.name = named(value.name)
            for inner in graph.node:
                _rename(inner, named, layer)


def _graphs(attribute: Any) -> list[Any]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs)


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in (g for attribute in node.attribute for g in _graphs(attribute)):
            yield from _all_nodes(inner)


def _opset(model: Any) -> int:
    return max((int(d.version) for d in model.opset_import if d.domain in _OWN), default=1)


def _converted(layer: Layer, model: Any, opset: int) -> Any:
    if _opset(model) == opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises what it likes
        raise ModelError(
            f"{layer.name}: its float part cannot be written in opset {opset}: {error}",
            hint=f"give the model in opset {opset}",
        ) from None
