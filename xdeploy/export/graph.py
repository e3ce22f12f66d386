"""The whole ONNX model of a compressed network: its layers in order, then the model around them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from onnx import TensorProto, helper

from xdeploy import __version__
from xdeploy.compress.model import CompressedModel
from xdeploy.errors import ModelError
from xdeploy.export.fallback import needed_opset
from xdeploy.export.layers import EMIT, MOVE
from xdeploy.export.writer import DOMAIN, OPSET_INT2, Writer, codebook_function
from xdeploy.handover import IoSpec, RelevanceMap
from xdeploy.model.network import Layer

# INT4 and the metadata of nodes need 21, which has every operator used here (Gelu came with 20, HardSwish with 14)
_OPSET = 21


def exported_io(compressed: CompressedModel) -> IoSpec:
    """The IoSpec with the quantisation of input and output filled in."""
    network, q = compressed.network, compressed.activations
    return replace(compressed.io, input_q=q[network.input.name], output_q=q[network.output.name])


def to_onnx(compressed: CompressedModel, relevance: RelevanceMap | None = None, model_name: str = "model") -> Any:
    """The ONNX model (onnx.ModelProto) of a compressed network; nothing is written.

    Raises:
        ModelError: a moved tensor changes its scale, or a float part cannot be written.
    """
    share = relevance.share() if relevance else {}
    w = Writer(compressed, exported_io(compressed), share, _opset(compressed))
    for layer in compressed.network.layers:
        _layer(w, layer)
    return _model(w, model_name)


def _opset(compressed: CompressedModel) -> int:
    """The lowest opset that has all that is used."""
    int2 = any(x.format_name == "int2" for x in compressed.weights.values())
    return max(OPSET_INT2 if int2 else _OPSET, needed_opset(compressed.network.layers))


def _layer(w: Writer, layer: Layer) -> None:
    if layer.kind == "input":
        w.quantised(layer, w.io.input_name)
    elif layer.kind in MOVE:
        _move(w, layer)
    else:
        node = EMIT[layer.kind](w, layer, [w.real[i] for i in layer.inputs])
        node.name = layer.name
        if w.network.fused_activation(layer.name) is None:
            w.quantised(layer, f"{layer.name}.y")
        else:  # quantised once, after the activation
            w.real[layer.name] = f"{layer.name}.y"


def _move(w: Writer, layer: Layer) -> None:
    """A layer on int8 codes, which keep their quantisation."""
    source = layer.inputs[0]
    q, before = (w.compressed.activations[n] for n in (layer.name, source))
    if q != before:
        raise ModelError(f"{layer.name}: {layer.kind} keeps the scale of {source}, but {before} became {q}")
    scale = w.parameters(layer.name, q)
    MOVE[layer.kind](w, layer, f"{source}.q", scale[1]).name = layer.name
    w.dequantised(layer, scale)


def _model(w: Writer, name: str) -> Any:
    net, io = w.network, w.io
    graph = helper.make_graph(
        w.nodes, name,
        [helper.make_tensor_value_info(io.input_name, TensorProto.FLOAT, ["N", *net.input.shape])],
        [helper.make_tensor_value_info(io.output_name, TensorProto.FLOAT, ["N", *net.output.shape])],
        list(w.constants.values()),
    )  # fmt: skip
    opsets = [helper.make_opsetid("", w.opset), *(helper.make_opsetid(k, v) for k, v in w.domains.items())]
    functions = []
    if any(n.domain == DOMAIN for n in w.nodes):
        opsets.append(helper.make_opsetid(DOMAIN, 1))
        functions.append(codebook_function(w.opset))
    model = helper.make_model(
        graph, opset_imports=opsets, functions=functions, ir_version=helper.find_min_ir_version_for(opsets[:1]),
        producer_name=DOMAIN, producer_version=__version__,
    )  # fmt: skip
    facts = {
        "xdeploy.version": __version__, "xdeploy.io": json.dumps(io.to_dict(), sort_keys=True),
        "xdeploy.input_codes": f"{net.input.name}.q", "xdeploy.output_codes": f"{net.output.name}.q",
    }  # fmt: skip
    helper.set_model_props(model, facts)
    return model
