"""The pieces an exported graph is written from: nodes with their origin, initialisers, QDQ pairs, weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.formats import QParams, weight_format
from xdeploy.handover import IoSpec
from xdeploy.model.network import Layer

DOMAIN = "xdeploy"
CODEBOOK_FUNCTION = "CodebookWeight"
OPSET_INT2 = 25


class Writer:
    """Collects nodes and initialisers; `real[layer]` is the float tensor that readers of a layer take."""

    def __init__(self, compressed: CompressedModel, io: IoSpec, share: Mapping[str, float], opset: int) -> None:
        self.compressed, self.network = compressed, compressed.network
        self.io, self.share, self.opset = io, share, opset
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.real: dict[str, str] = {}
        self.domains: dict[str, int] = {}  # besides ONNX's own and ours

    # ------------------------------------------------------------------------------------------- pieces
    def node(self, op: str, inputs: list[str], output: str, origin: str, domain: str = "", **attrs: Any) -> Any:
        """Append a node; its name is its output's, its metadata names the origin."""
        node = helper.make_node(op, inputs, [output], name=output, domain=domain, **attrs)
        annotate(node, {"origin": origin})
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
        annotate(node, {"activation_format": "int8"})

    # ------------------------------------------------------------------------------------------- weights
    def weighted(self, layer: Layer, inputs: list[str], op: str, **attrs: Any) -> Any:
        """Conv or Gemm with dequantised weight and bias."""
        weight = self.compressed.weights[layer.name]
        before = self.compressed.activations[layer.inputs[0]]
        arguments = [*inputs, self._weight(layer.name, weight), self._bias(layer.name, weight, before)]
        node = self.node(op, arguments, f"{layer.name}.y", layer.name, **attrs)
        facts = {"weight_format": weight.format_name, "weight_bits": str(weight.format.bits)}
        if layer.name in self.share:
            facts["relevance_share"] = f"{self.share[layer.name]:.9g}"
        annotate(node, facts)
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
        annotate(node, {"weight_format": fmt.name})
        return f"{name}.weight"

    def _indices(self, name: str, codes: NDArray[np.int8], bits: int) -> None:
        if bits > 4:
            self.constant(name, codes.astype(np.uint8))
        elif bits <= 2 and self.opset >= OPSET_INT2:
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


def annotate(node: Any, facts: Mapping[str, str]) -> None:
    """Add metadata to a node."""
    for key, value in facts.items():
        entry = node.metadata_props.add()
        entry.key, entry.value = key, value


def codebook_function(opset: int) -> Any:
    """CodebookWeight(idx, book, scale) -> float weight: book[idx] * scale[c], scale along axis 0."""
    nodes = [
        helper.make_node("Cast", ["idx"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["book", "index"], ["value"], axis=0),
        helper.make_node("DequantizeLinear", ["value", "scale"], ["out"], axis=0),
    ]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, CODEBOOK_FUNCTION, ["idx", "book", "scale"], ["out"], nodes, opsets)
