"""Qualified names of a file's nodes: the user's own layer names, as far as the exporter left them.

* torch, dynamo=True: metadata `pkg.torch.onnx.name_scopes`, and weights still called `layer1.0.conv1.weight`;
* torch, dynamo=False: node names such as `/layer1/layer1.0/conv1/Conv`;
* TensorFlow and Keras converters: `model/bn/FusedBatchNormV3;model/conv2d/BiasAdd;model/conv2d/Conv2D`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Sequence

from xdeploy.onnxfile import OnnxNode

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu")
_SCOPES = "pkg.torch.onnx.name_scopes"
_TF_LAYER = re.compile(r"(.+)/(?:BiasAdd|Conv2D|Conv1D|MatMul|depthwise|separable_conv2d|FusedBatchNormV3)$")
_LIMIT = 96


def origins(nodes: Sequence[OnnxNode], constants: Collection[str]) -> list[str]:
    """One name per node, in order; equal names are told apart later."""
    crowd = Counter(scope for node in nodes for scope in _enclosing(_scopes(node)))
    weighted = Counter(tuple(_scopes(n)) for n in nodes if n.op in WEIGHTED)
    return [_origin(n, constants, crowd, weighted) for n in nodes]


def _origin(
    node: OnnxNode,
    constants: Collection[str],
    crowd: Counter[tuple[str, ...]],
    weighted: Counter[tuple[str, ...]],
) -> str:
    if node.meta.get("origin"):
        return node.origin
    owner = _weight_owner(node, constants)
    if owner:
        return owner
    scopes = tuple(_scopes(node))
    leaf = _leaf(node)
    if not scopes:
        return leaf
    sole = crowd[scopes] == 1 or (node.op in WEIGHTED and weighted[scopes] == 1)
    return _clean(".".join(scopes if sole else (*scopes, leaf)))


def _weight_owner(node: OnnxNode, constants: Collection[str]) -> str:
    """`layer1.0.conv1` of a weight called `layer1.0.conv1.weight`."""
    if node.op not in WEIGHTED or len(node.inputs) < 2 or node.inputs[1] not in constants:
        return ""
    found = re.fullmatch(r"([A-Za-z_][\w.]*)\.weight", node.inputs[1])
    return _clean(found[1]) if found else ""


def _scopes(node: OnnxNode) -> list[str]:
    """Components of the qualified name of the module around a node; of a leaf module, its own."""
    text = node.meta.get(_SCOPES)
    if text:
        return _dynamo_scopes(text)
    if ";" in node.name or not node.name.startswith("/"):
        return _tensorflow(node)
    # every component is relative to the one before it, but children of a Sequential repeat its name: layer1/layer1.0
    parts: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts).split(".") if parts else []


def _dynamo_scopes(text: str) -> list[str]:
    """The last but one of `['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']`."""
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(names) < 2:
        return []
    return [p for p in names[-2].split(".") if p]


def _tensorflow(node: OnnxNode) -> list[str]:
    """The layer that a weighted node of a TensorFlow converter belongs to; its fused names name several."""
    if node.op not in WEIGHTED or "/" not in node.name:
        return []
    parts = [p for p in node.name.split(";") if "ReadVariableOp" not in p]
    bias = [p for p in parts if p.endswith("/BiasAdd")]
    found = [m[1] for p in (bias or parts[::-1]) if (m := _TF_LAYER.fullmatch(p))]
    return found[0].split("/") if found else []


def _leaf(node: OnnxNode) -> str:
    """The last component where a scope does not tell nodes apart, else the node's own name made readable."""
    if node.name.startswith("/"):
        return _clean(node.name.rpartition("/")[2].lower())
    if _SCOPES in node.meta:
        return _clean(node.name.removeprefix("node_"))
    return node.origin


def _enclosing(scopes: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(scopes[:k]) for k in range(1, len(scopes) + 1)]


def _clean(name: str) -> str:
    text = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "_" for c in name)
    return text.strip("._")[:_LIMIT] or "node"
