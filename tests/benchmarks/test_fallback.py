"""The float benchmark's models: the quantised borders change nothing but the type of what goes in and out."""

from __future__ import annotations

import fallback
import fallback_parts
import numpy as np
import onnxruntime
import pytest


@pytest.mark.parametrize("name", ["LayerNormalization, 197 x 192", "Transposed convolution 3x3, stride 2"])
def test_borders_round_to_codes(name: str) -> None:
    model = fallback_parts.PARTS[name]()
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    codes = np.random.default_rng(0).integers(-127, 128, shape)
    codes.flat[0] = 127
    inputs = codes.astype(np.float32) * np.float32(4 / 127)

    def run(of: object) -> np.ndarray:
        options = onnxruntime.SessionOptions()  # none of its own integer kernels between the borders
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(of.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": inputs})[0]

    real = run(model)
    quantised, names, step = fallback.quantised(model, inputs, real)
    assert len(names) == len(model.graph.node)
    assert step == pytest.approx(np.abs(real).max() / 127)
    expected = np.clip(np.rint(real / np.float32(step)), -128, 127) * np.float32(step)
    apart = np.abs(run(quantised) - expected) / step
    assert apart.max() < 1.01
    assert (apart < 0.01).mean() > 0.999
