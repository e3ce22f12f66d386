"""The compressed model as an ONNX file: an int8 QDQ graph, NCHW, that any runtime can run.

Written node by node from the integer codes, not from torch, so the file holds exactly what was compressed:

* activations: QuantizeLinear and DequantizeLinear (int8 zero point) after every quantised tensor;
* int8, int6, int5 weights: INT8. int4, int3: packed INT4. int2: packed INT2 (opset 25). Packed types pass a Cast to
  INT8, without which ONNX Runtime neither fuses INT4 nor loads INT2 beside quantised activations;
* codebook weights: the model-local function `xdeploy.CodebookWeight` on packed indices;
* biases: INT32 at scale s_in * s_w[c];
* slice and pad stand on the int8 codes, where ONNX Runtime's optimiser leaves them alone.

Each node carries `origin` in its metadata, each weighted node its format, bits and share of relevance. The bytes are
deterministic. Operators: https://onnx.ai/onnx/operators/ (QuantizeLinear-21, DequantizeLinear-21, Pad-21, ...).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from xdeploy import __version__
from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.errors import ModelError
from xdeploy.files import replacing, sha256
from xdeploy.formats import QParams, weight_format
from xdeploy.handover import ExportedModel, Float32, IoSpec, RelevanceMap
from xdeploy.lower.compare import adopt, agreement
from xdeploy.lower.runtime import loads_by_default, output_codes, run_onnx
from xdeploy.model.network import Layer

__all__ = ["adopt", "compare", "export", "exported_io", "to_onnx"]

DOMAIN = "xdeploy"
CODEBOOK_FUNCTION = "CodebookWeight"
_OPSET, _OPSET_INT2 = 21, 25
_STILL = ("slice", "pad")  # done on the codes


def export(
    compressed: CompressedModel,
    inputs: Float32,
    folder: Path,
    relevance: RelevanceMap | None = None,
    model_name: str = "model",
) -> ExportedModel:
    """Write `folder/model.onnx`, check it, and ask ONNX Runtime for the output codes of `inputs`.

    Args:
        compressed: final codes, scales and zero points.
        inputs: golden inputs, float32 (N, *input_shape).
        folder: where model.onnx goes; made if absent.
        relevance: its layer shares are written into the nodes' metadata.
        model_name: name of the graph.

    Raises:
        ModelError: the compressed model contradicts itself (a moved tensor changes its scale), or ONNX Runtime
            refuses the file.
    """
    model = to_onnx(compressed, relevance, model_name)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "model.onnx"
    with replacing(path) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
    loads_by_default(path)
    io = exported_io(compressed)
    return ExportedModel(path, sha256(path), io, inputs, run_onnx(path, io, inputs))


def exported_io(compressed: CompressedModel) -> IoSpec:
    """The IoSpec with the quantisation of input and output filled in."""
    network, q = compressed.network, compressed.activations
    return replace(compressed.io, input_q=q[network.input.name], output_q=q[network.output.name])


def to_onnx(compressed: CompressedModel, relevance: RelevanceMap | None = None, model_name: str = "model") -> Any:
    """The ONNX model (onnx.ModelProto) of a compressed network; nothing is written."""
    return _Writer(compressed, relevance.share() if relevance else {}).model(model_name)


def compare(compressed: CompressedModel, exported: ExportedModel, inputs: Float32) -> dict[str, Any]:
    """ONNX Runtime against the torch fake-quantisation, end to end on (N, *input_shape) inputs.

    Returns:
        max_difference (codes), equal (share of codes), top1 (share of samples with the same first maximum), n.
    """
    import torch

    from xdeploy.compress.fakequant import FakeQuantModule

    with torch.no_grad():
        real = FakeQuantModule(compressed)(torch.from_numpy(np.ascontiguousarray(inputs, np.float32))).numpy()
    theirs = run_onnx(exported.path, exported.io, inputs)
    return agreement(output_codes(real.astype(np.float32), exported.io), theirs)


class _Writer:
    """Collects nodes and initialisers; `real[layer]` is the float tensor that readers of a layer take."""

    def __init__(self, compressed: CompressedModel, share: Mapping[str, float]) -> None:
        self.compressed, self.network, self.share = compressed, compressed.network, share
        self.io = exported_io(compressed)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.real: dict[str, str] = {}
        self.opset = _OPSET_INT2 if any(w.format_name == "int2" for w in compressed.weights.values()) else _OPSET

    def model(self, name: str) -> Any:
        """The whole model."""
        for layer in self.network.layers:
            self._layer(layer)
        net, io = self.network, self.io
        graph = helper.make_graph(
            self.nodes, name,
            [helper.make_tensor_value_info(io.input_name, TensorProto.FLOAT, ["N", *net.input.shape])],
            [helper.make_tensor_value_info(io.output_name, TensorProto.FLOAT, ["N", *net.output.shape])],
            list(self.constants.values()),
        )  # fmt: skip
        opsets, functions = [helper.make_opsetid("", self.opset)], []
        if any(n.domain == DOMAIN for n in self.nodes):
            opsets.append(helper.make_opsetid(DOMAIN, 1))
            functions.append(_codebook_function(self.opset))
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

    # ------------------------------------------------------------------------------------------- pieces
    def node(self, op: str, inputs: list[str], output: str, origin: str, domain: str = "", **attrs: Any) -> Any:
        """Append a node; its name is its output's, its metadata names the origin."""
        node = helper.make_node(op, inputs, [output], name=output, domain=domain, **attrs)
        _annotate(node, {"origin": origin})
        self.nodes.append(node)
        return node

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Enter an initialiser of a plain numpy type."""
        self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def packed(self, name: str, codes: NDArray[Any], bits: int, data_type: int) -> str:
        """Enter a packed 2- or 4-bit initialiser: element 0 in the low bits, the last byte filled with zeros."""
        fmt = weight_format(f"c{bits}s8")  # the packing takes the fields' bits as they are, signed or not
        data = fmt.pack(codes.reshape(1, -1)).tobytes()
        self.constants[name] = TensorProto(name=name, data_type=data_type, dims=codes.shape, raw_data=data)
        return name

    def parameters(self, name: str, q: QParams) -> list[str]:
        """Scale and int8 zero point initialisers of one activation."""
        return [
            self.constant(f"{name}.scale", np.array(q.scale, np.float32)),
            self.constant(f"{name}.zero", np.array(q.zero_point, np.int8)),
        ]

    def quantised(self, layer: Layer, real: str) -> None:
        """QuantizeLinear and DequantizeLinear of a layer's float tensor."""
        scale = self.parameters(layer.name, self.compressed.activations[layer.name])
        self.node("QuantizeLinear", [real, *scale], f"{layer.name}.q", layer.name)
        self.dequantised(layer, scale)

    def dequantised(self, layer: Layer, scale: list[str]) -> None:
        """DequantizeLinear of a layer's codes; the last layer's is the model's output."""
        last = layer is self.network.output
        self.real[layer.name] = self.io.output_name if last else f"{layer.name}.dq"
        node = self.node("DequantizeLinear", [f"{layer.name}.q", *scale], self.real[layer.name], layer.name)
        node.name = f"{layer.name}.dq"  # the output may be named like its layer
        _annotate(node, {"activation_format": "int8"})

    # ------------------------------------------------------------------------------------------- layers
    def _layer(self, layer: Layer) -> None:
        if layer.kind == "input":
            self.quantised(layer, self.io.input_name)
        elif layer.kind in _STILL:
            self._still(layer)
        else:
            inputs = [self.real[i] for i in layer.inputs]
            node = _EMIT[layer.kind](self, layer, inputs)
            node.name = layer.name
            if self.network.fused_activation(layer.name) is None:
                self.quantised(layer, f"{layer.name}.y")
            else:  # quantised once, after the activation
                self.real[layer.name] = f"{layer.name}.y"

    def _still(self, layer: Layer) -> None:
        """Slice or Pad on int8 codes, which keep their quantisation."""
        source = layer.inputs[0]
        q, before = (self.compressed.activations[n] for n in (layer.name, source))
        if q != before:
            raise ModelError(f"{layer.name}: {layer.kind} keeps the scale of {source}, but {before} became {q}")
        scale = self.parameters(layer.name, q)
        _CODES[layer.kind](self, layer, f"{source}.q", scale[1]).name = layer.name
        self.dequantised(layer, scale)

    def weighted(self, layer: Layer, inputs: list[str], op: str, **attrs: Any) -> Any:
        """Conv or Gemm with dequantised weight and bias."""
        weight = self.compressed.weights[layer.name]
        before = self.compressed.activations[layer.inputs[0]]
        arguments = [*inputs, self._weight(layer.name, weight), self._bias(layer.name, weight, before)]
        node = self.node(op, arguments, f"{layer.name}.y", layer.name, **attrs)
        facts = {"weight_format": weight.format_name, "weight_bits": str(weight.format.bits)}
        if layer.name in self.share:
            facts["relevance_share"] = f"{self.share[layer.name]:.9g}"
        _annotate(node, facts)
        return node

    def _weight(self, name: str, weight: QuantisedWeight) -> str:
        fmt, codes, scale = weight.format, f"{name}.codes", self.constant(f"{name}.weight_scale", weight.scale)
        if fmt.codebook:
            assert weight.codebook is not None
            self._indices(codes, weight.codes, fmt.bits)
            arguments = [codes, self.constant(f"{name}.codebook", weight.codebook), scale]
            node = self.node(CODEBOOK_FUNCTION, arguments, f"{name}.weight", name, domain=DOMAIN)
        else:
            if fmt.bits <= 4:
                kind = (2, TensorProto.INT2) if fmt.bits == 2 else (4, TensorProto.INT4)
                self.packed(codes, weight.codes, *kind)
                self.node("Cast", [codes], f"{name}.int8", name, to=TensorProto.INT8)
                codes = f"{name}.int8"
            else:
                self.constant(codes, weight.codes)
            zero = self.constant(f"{name}.weight_zero", np.zeros(len(weight.scale), np.int8))
            node = self.node("DequantizeLinear", [codes, scale, zero], f"{name}.weight", name, axis=0)
        _annotate(node, {"weight_format": fmt.name})
        return f"{name}.weight"

    def _indices(self, name: str, codes: NDArray[np.int8], bits: int) -> None:
        if bits > 4:
            self.constant(name, codes.astype(np.uint8))
        elif bits <= 2 and self.opset >= _OPSET_INT2:
            self.packed(name, codes, 2, TensorProto.UINT2)
        else:
            self.packed(name, codes, 4, TensorProto.UINT4)

    def _bias(self, name: str, weight: QuantisedWeight, before: QParams) -> str:
        scale = np.float32(before.scale) * weight.scale.astype(np.float32)
        arguments = [
            self.constant(f"{name}.bias_codes", weight.bias.astype(np.int32)),
            self.constant(f"{name}.bias_scale", scale),
            self.constant(f"{name}.bias_zero", np.zeros(len(scale), np.int32)),
        ]
        self.node("DequantizeLinear", arguments, f"{name}.bias", name, axis=0)
        return f"{name}.bias"


# ------------------------------------------------------------------------------------------------ layer kinds
def _conv(w: _Writer, layer: Layer, xs: list[str]) -> Any:
    a, shape = layer.attrs, w.compressed.weights[layer.name].codes.shape
    return w.weighted(
        layer, xs, "Conv",
        kernel_shape=shape[2:], strides=a["stride"], pads=a["pads"], dilations=a["dilation"], group=a["groups"],
    )  # fmt: skip


def _clip(w: _Writer, layer: Layer, xs: list[str]) -> Any:
    limits = [
        w.constant(f"{layer.name}.{k}", np.array(layer.attrs[k], np.float32)) if np.isfinite(layer.attrs[k]) else ""
        for k in ("low", "high")
    ]
    return w.node("Clip", [*xs, *limits], f"{layer.name}.y", layer.name)


def _max_pool(w: _Writer, layer: Layer, xs: list[str]) -> Any:
    a = layer.attrs
    return w.node(
        "MaxPool", xs, f"{layer.name}.y", layer.name, kernel_shape=a["kernel"], strides=a["stride"], pads=a["pads"]
    )


def _avg_pool(w: _Writer, layer: Layer, xs: list[str]) -> Any:
    a, before = layer.attrs, w.network[layer.inputs[0]].shape
    if tuple(a["kernel"]) == before[1:] and not any(a["pads"]):
        return w.node("GlobalAveragePool", xs, f"{layer.name}.y", layer.name)
    return w.node(
        "AveragePool", xs, f"{layer.name}.y", layer.name,
        kernel_shape=a["kernel"], strides=a["stride"], pads=a["pads"], count_include_pad=int(bool(a["include_pad"])),
    )  # fmt: skip


def _simple(op: str, **attrs: Any) -> Callable[[_Writer, Layer, list[str]], Any]:
    return lambda w, layer, xs: w.node(op, xs, f"{layer.name}.y", layer.name, **attrs)


def _slice(w: _Writer, layer: Layer, codes: str, zero: str) -> Any:
    parts = {**{k: layer.attrs[k] for k in ("starts", "stops")}, "axes": (1, 2, 3), "steps": layer.attrs["steps"]}
    names = [w.constant(f"{layer.name}.{k}", np.array(v, np.int64)) for k, v in parts.items()]
    return w.node("Slice", [codes, *names], f"{layer.name}.q", layer.name)


def _pad(w: _Writer, layer: Layer, codes: str, zero: str) -> Any:
    (top, left, bottom, right), (before, after) = layer.attrs["pads"], layer.attrs["channels"]
    widths = np.array([0, before, top, left, 0, after, bottom, right], np.int64)
    return w.node("Pad", [codes, w.constant(f"{layer.name}.pads", widths), zero], f"{layer.name}.q", layer.name)


_EMIT: dict[str, Callable[[_Writer, Layer, list[str]], Any]] = {
    "conv2d": _conv, "linear": lambda w, layer, xs: w.weighted(layer, xs, "Gemm", transB=1),
    "relu": _simple("Relu"), "clip": _clip, "max_pool2d": _max_pool, "avg_pool2d": _avg_pool, "add": _simple("Add"),
    "concat": _simple("Concat", axis=1), "flatten": _simple("Flatten", axis=1), "softmax": _simple("Softmax", axis=-1),
}  # fmt: skip
_CODES: dict[str, Callable[[_Writer, Layer, str, str], Any]] = {"slice": _slice, "pad": _pad}


def _annotate(node: Any, facts: Mapping[str, str]) -> None:
    for key, value in facts.items():
        entry = node.metadata_props.add()
        entry.key, entry.value = key, value


def _codebook_function(opset: int) -> Any:
    """CodebookWeight(idx, book, scale) -> float weight: book[idx] * scale[c], scale along axis 0."""
    nodes = [
        helper.make_node("Cast", ["idx"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["book", "index"], ["value"], axis=0),
        helper.make_node("DequantizeLinear", ["value", "scale"], ["out"], axis=0),
    ]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, CODEBOOK_FUNCTION, ["idx", "book", "scale"], ["out"], nodes, opsets)
