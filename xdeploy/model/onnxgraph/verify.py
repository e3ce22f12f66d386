"""The module against ONNX Runtime: the reader's own proof, on random inputs, every time a file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xdeploy.errors import ModelError
from xdeploy.model.onnxgraph.module import OnnxModule
from xdeploy.onnxfile import OnnxGraph, checked_bytes

TOLERANCE = 1e-4  # of the largest output
HALF_TOLERANCE = 2e-2  # of files that compute in float16, which is float32 here


def verify(module: OnnxModule, path: Path, graph: OnnxGraph) -> float:
    """Run both on random inputs, and refuse a module that differs; returns the largest relative difference.

    Raises:
        ModelError: ONNX Runtime refuses the file, gives NaN or infinity, or differs by more than the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    batch = graph.input.shape[0] if graph.input.shape[0] > 0 else 2
    x = torch.randn((batch, *module.input_shape), generator=generator)
    if graph.input.dtype != "float32":  # images of bytes
        x = torch.randint(0, 128, x.shape, generator=generator).float()
    with torch.no_grad():
        got = module(x).numpy()
        fed = module.file_input(x).contiguous().numpy().astype(graph.input.dtype)
    want = _onnxruntime(path, graph.input.name, fed)
    if not np.isfinite(want).all():
        raise ModelError(f"{path} answers NaN or infinity to a random input")
    if got.shape != want.shape:
        raise ModelError(f"{path}: the module gives {got.shape} where ONNX Runtime gives {want.shape}")
    error = float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-6))
    half = any(n.op == "Cast" and n.attrs.get("to") in (10, 16) for n in graph.nodes)
    if not error <= (HALF_TOLERANCE if half else TOLERANCE):
        raise ModelError(
            f"{path}: the module differs from ONNX Runtime by {error:.3g} of its largest output (limit {TOLERANCE:g})",
            hint="please report the file",
        )
    return error


def _onnxruntime(path: Path, name: str, fed: NDArray[Any]) -> NDArray[np.float32]:
    import onnxruntime as ort

    data = checked_bytes(path)  # never the path: it may change meanwhile
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # without fusions that compute less exactly, such as products of packed weights
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found = session.run(None, {name: fed})[0]
    except Exception as error:  # ONNX Runtime raises its own kinds for broken files
        text = str(error).splitlines()[0]
        raise ModelError(f"ONNX Runtime does not run {path}: {text}") from None
    return np.asarray(found, np.float32)
