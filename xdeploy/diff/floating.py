"""A float ONNX file: the torch module it becomes against ONNX Runtime, node by node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UsageError
from xdeploy.request import Progress

if TYPE_CHECKING:
    from xdeploy.model.onnxgraph import OnnxModule

Values = dict[str, NDArray[np.float32]]

TOLERANCE = 1e-4  # of the largest value of a tensor
_RANDOM = 2  # inputs made up where none are given


def float_file(path: Path, inputs: Path | None, tell: Progress) -> dict[str, Any]:
    """Compare every tensor that both the module and the file have, fed with the same inputs.

    Raises:
        ModelError: the file cannot be read or run. UsageError: inputs of another shape.
    """
    from xdeploy.diff import Comparison, read_inputs
    from xdeploy.model.onnxgraph import module_of
    from xdeploy.onnxfile import read

    tell.stage("torch")
    module = module_of(read(path), str(path), deployable=False)
    if inputs is not None:
        samples, source = read_inputs(inputs, module.input_shape), str(inputs)
    else:
        samples = np.random.default_rng(0).normal(size=(_RANDOM, *module.input_shape)).astype(np.float32)
        source = "random normal values, seed 0"
    ours, given = _torch_values(module, samples)
    tell.stage("ONNX Runtime")
    theirs = _onnx_values(path, list(ours), given)
    layers = {
        name: {"origin": p.name, "op": p.node.op, "tensor": name, "shape": list(ours[name].shape[1:]), "pairs": {}}
        for p in module.placed
        for name in p.writes[:1]
        if name in theirs and theirs[name].shape == ours[name].shape
    }
    made = Comparison(str(path), {"from": source, "n": len(samples)}, layers)
    made.reals("ONNX Runtime", "torch", theirs, ours, TOLERANCE)
    return made.document()


def _torch_values(module: OnnxModule, samples: NDArray[np.float32]) -> tuple[Values, NDArray[np.float32]]:
    """What every part gives, by the file's tensor names, and the input as the file takes it."""
    import torch

    found: Values = {}

    def keep(name: str) -> Any:
        def hook(part: Any, args: Any, result: Any) -> None:
            first = result[0] if isinstance(result, tuple | list) else result
            found[name] = first.detach().float().numpy()

        return hook

    handles = [p.part.register_forward_hook(keep(p.writes[0])) for p in module.placed if p.writes]
    x = torch.from_numpy(samples)
    try:
        with torch.inference_mode():
            module.eval()(x)
            return found, np.ascontiguousarray(module.file_input(x).numpy())
    finally:
        for handle in handles:
            handle.remove()


def _onnx_values(path: Path, names: list[str], given: NDArray[np.float32]) -> Values:
    """ONNX Runtime's values of these tensors, as far as the file has them."""
    from xdeploy.lower.runtime import run, session
    from xdeploy.onnxfile import load_model

    model = load_model(path)
    written = {o for node in model.graph.node for o in node.output}
    present = {o.name for o in model.graph.output}
    wanted = [n for n in names if n in written]
    for name in wanted:
        if name not in present:
            model.graph.output.add().name = name
    runner = session(model.SerializeToString())
    entry = runner.get_inputs()[0]
    if entry.type != "tensor(float)":
        raise UsageError(f"{path} takes {entry.type}; a float file takes tensor(float)")
    values = run(runner, wanted, {entry.name: given})
    return {n: np.asarray(v, np.float32) for n, v in zip(wanted, values, strict=True) if v.dtype.kind == "f"}
