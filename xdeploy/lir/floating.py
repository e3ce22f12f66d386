"""`float`: a part that the recipe lets run in float, as an ONNX model between dequantised and quantised codes.

The reference is `onnx.reference.ReferenceEvaluator`, which follows the operators' specification in numpy. ONNX Runtime
would be faster, but it is one of the peers that the reference is compared with, it rewrites graphs, and its results
depend on the instructions of the machine. Compiled float code rounds differently from either: it is held to one code.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from xdeploy.errors import ToolchainError, UnsupportedError
from xdeploy.formats import Int8, QParams
from xdeploy.lir.graph import Node

FLOAT_TOLERANCE = 1  # codes by which the output of one float node may differ from the reference in compiled code


def float_model(node: Node) -> bytes:
    """The serialised ONNX model of a float node: one input and output, float32, device layout, batch 1."""
    return node.consts["onnx"].astype(np.uint8).tobytes()


def run_float(node: Node, xs: list[Int8]) -> Int8:
    """Dequantise, run the model sample by sample, quantise (float32, halves to even, saturated).

    Raises:
        UnsupportedError: the evaluator refuses the model. ToolchainError: the package `onnx` is missing.
    """
    a, evaluator = node.attrs, _evaluator(float_model(node))
    given, result = QParams(a["in_scale"], a["in_zero"]), QParams(a["out_scale"], a["out_zero"])
    shape = tuple(a["shape"])
    codes = np.empty((len(xs[0]), *shape), np.int8)
    for i, x in enumerate(xs[0]):
        try:
            real = evaluator.run(None, {evaluator.input_names[0]: given.dequantise(x)[None]})[0]
        except Exception as error:  # numpy's and the evaluator's own, of many types
            raise UnsupportedError(f"{node.name}: the float part ({', '.join(a['ops'])}) fails: {error}") from None
        codes[i] = result.quantise(np.asarray(real, np.float32).reshape(shape))
    return codes


@functools.lru_cache(maxsize=32)
def _evaluator(model: bytes) -> Any:
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ToolchainError(
            f"a float part needs the Python package 'onnx': {error}", hint="pip install onnx"
        ) from None
    return ReferenceEvaluator(onnx.load_model_from_string(model))
