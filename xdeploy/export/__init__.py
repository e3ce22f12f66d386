"""The compressed model as an ONNX file: an int8 QDQ graph, NCHW, that any runtime can run.

Written node by node from the integer codes, not from torch, so the file holds exactly what was compressed:

* activations: QuantizeLinear and DequantizeLinear (int8 zero point) after every quantised tensor;
* int8, int6, int5 weights: INT8. int4, int3: packed INT4. int2: packed INT2 (opset 25). Packed types pass a Cast to
  INT8, without which ONNX Runtime neither fuses INT4 nor loads INT2 beside quantised activations;
* codebook weights: the model-local function `xdeploy.CodebookWeight` on packed indices;
* biases: INT32 at scale s_in * s_w[c];
* slice, pad, resize and rearrange stand on the int8 codes, where ONNX Runtime's optimiser leaves them alone;
* float parts (fallback): their own nodes in float between the quantised tensors, marked `fallback` in the metadata.

Each node carries `origin` in its metadata, each weighted node its format, bits and share of relevance. The bytes are
deterministic. Operators: https://onnx.ai/onnx/operators/ (QuantizeLinear-21, DequantizeLinear-21, Pad-21, ...).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from xdeploy.compress.model import CompressedModel
from xdeploy.export.graph import exported_io, to_onnx
from xdeploy.files import replacing, sha256
from xdeploy.handover import ExportedModel, Float32, RelevanceMap
from xdeploy.lower.compare import adopt, agreement
from xdeploy.lower.runtime import loads_by_default, output_codes, run_onnx

__all__ = ["adopt", "compare", "export", "exported_io", "to_onnx"]


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
        ModelError: the compressed model contradicts itself (a moved tensor changes its scale), a float part cannot be
            written, or ONNX Runtime refuses the file.
    """
    model = to_onnx(compressed, relevance, model_name)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "model.onnx"
    with replacing(path) as part:
        part.write_bytes(model.SerializeToString(deterministic=True))
    loads_by_default(path)
    io = exported_io(compressed)
    return ExportedModel(path, sha256(path), io, inputs, run_onnx(path, io, inputs))


def compare(compressed: CompressedModel, exported: ExportedModel, inputs: Float32) -> dict[str, Any]:
    """ONNX Runtime against the torch fake-quantisation, end to end on (N, *input_shape) inputs.

    Returns:
        max_difference (codes), equal (share of codes), top1 (share of samples with the same first maximum), n.
    """
    import torch

    from xdeploy.compress.fakequant import FakeQuantModule
    from xdeploy.model.top1 import AT_ONCE, outputs

    batches = torch.split(torch.from_numpy(np.ascontiguousarray(inputs, np.float32)), AT_ONCE)
    real = torch.cat(list(outputs(FakeQuantModule(compressed), batches))).numpy()
    theirs = run_onnx(exported.path, exported.io, inputs)
    return agreement(output_codes(real.astype(np.float32), exported.io), theirs)
