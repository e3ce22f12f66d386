"""ONNX Runtime as the independent judge: runs a file on model inputs and gives output codes.

The judge runs with the basic optimisations only. The default ones fuse QLinearConv, whose x86 kernel sums pairs of
products in saturating int16 on CPUs without VNNI: there large int8 weights give outputs many codes off (29 measured
on a 3x3 convolution; exact once |weight| <= 64). Files that hold QLinearConv themselves run through that kernel at any
level, so the judge gets them written out in QDQ form. That a file also loads with default options is checked by
`loads_by_default`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from xdeploy.errors import ModelError, UsageError
from xdeploy.formats import Int8
from xdeploy.handover import IoSpec
from xdeploy.lower.dialect import exact_form
from xdeploy.onnxfile import checked_bytes


def session(model: Path | bytes, default: bool = False) -> Any:
    """An onnxruntime.InferenceSession on the CPU: with exact arithmetic, or as a user gets it by default.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    if not default:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    source = checked_bytes(model) if isinstance(model, Path) else model  # never a path: it may change meanwhile
    try:
        if not default:
            source = exact_form(source)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common base class of its own
        raise ModelError(f"ONNX Runtime refuses the model: {_first_line(error)}") from None


def loads_by_default(path: Path) -> None:
    """Check that ONNX Runtime loads the file with default options.

    Raises:
        ModelError: it does not.
    """
    session(path, default=True)


def run_onnx(path: Path, io: IoSpec, inputs: NDArray[Any]) -> Int8:
    """Output codes (N, *output_shape) that ONNX Runtime gives for model inputs (N, *input_shape).

    A file with an integer input gets the codes of `inputs`.

    Raises:
        UsageError: inputs of another shape. ModelError: the file does not run.
    """
    runner = session(path)
    return output_codes(run(runner, None, feed(runner, io, inputs))[0], io)


def run(runner: Any, names: list[str] | None, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Run the batch at once, or one by one where the file has a fixed batch of 1."""
    entry = runner.get_inputs()[0]
    count, fixed = len(arrays[entry.name]), entry.shape[0]
    try:
        if not isinstance(fixed, int) or fixed == count:
            return list(runner.run(names, dict(arrays)))
        if fixed != 1:
            raise ModelError(f"the model has a fixed batch of {fixed}", hint="export it with a free batch axis")
        rows = [runner.run(names, {k: v[i : i + 1] for k, v in arrays.items()}) for i in range(count)]
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from None
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def feed(runner: Any, io: IoSpec, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Inputs (N, *input_shape), float or int8 codes, as the file wants them: float, int8 or uint8."""
    if inputs.shape[1:] != io.input_shape or not len(inputs):
        raise UsageError(f"inputs have shape {inputs.shape}; expected (N, {', '.join(map(str, io.input_shape))})")
    assert io.input_q is not None
    entry = runner.get_inputs()[0]
    if entry.type == "tensor(float)":
        return {entry.name: np.ascontiguousarray(inputs, np.float32)}
    codes = inputs if inputs.dtype == np.int8 else io.input_q.quantise(inputs)
    if entry.type == "tensor(uint8)":
        return {entry.name: (codes.astype(np.int16) + 128).astype(np.uint8)}
    return {entry.name: codes}


def output_codes(output: NDArray[Any], io: IoSpec) -> Int8:
    """int8 codes of what a model answers: the floats its codes stand for, int8 or uint8."""
    assert io.output_q is not None
    if output.dtype == np.float32:
        return io.output_q.quantise(output)  # exact: the floats are scale * (code - zero point)
    return (output.astype(np.int16) - (128 if output.dtype == np.uint8 else 0)).astype(np.int8)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
