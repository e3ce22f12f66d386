"""The values of every layer in each form a run has: float, fake-quantised, ONNX Runtime, reference, built artifacts.

All arrays are arranged as the integer graph stores its tensors, channels last, so that forms compare element by
element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import DeviceError, UsageError, XdeployError
from xdeploy.files import read_json
from xdeploy.formats import Int8
from xdeploy.handover import Artifact
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lower import Binding, Fallback, lower_traced
from xdeploy.lower.compare import intermediate
from xdeploy.model.network import Network
from xdeploy.target import load_target

Real = NDArray[np.float32]


def reference(graph: LoweredGraph, codes: Int8) -> dict[str, Int8]:
    """Every tensor of the reference run."""
    return ops.run(graph, codes, keep=True)


def onnxruntime(path: Path, graph: LoweredGraph, inputs: NDArray[Any]) -> dict[str, Int8]:
    """ONNX Runtime's codes of the tensors of `graph` that also stand in the file, end to end."""
    bindings = _bindings(path, graph)
    theirs = intermediate(path, graph, {n: b.onnx_name for n, b in bindings.items()}, inputs)
    return {n: bindings[n].codes(a, graph.tensors[n].shape) for n, a in theirs.items()}


def _bindings(path: Path, graph: LoweredGraph) -> dict[str, Binding]:
    """Where the tensors of the graph stand in the file it was lowered from."""
    plain, found = lower_traced(path, fuse=False, fallback=Fallback.of_graph(graph))
    same = {n: t.shape == plain.tensors[n].shape for n, t in graph.tensors.items() if n in plain.tensors}
    return {n: found[n] for n, fits in same.items() if fits and n in found}


def torch_forms(folder: Path, path: Path, graph: LoweredGraph, inputs: Real) -> tuple[dict[str, Real], dict[str, Int8]]:
    """Float values (of the network before compression) and fake-quantised codes, by tensor of the graph.

    A layer whose channels were removed has no float value to compare with.
    """
    import torch

    from xdeploy.compress.fakequant import FakeQuantModule
    from xdeploy.compress.model import CompressedModel

    compressed = CompressedModel.load(folder)
    owners = {n: b for n, b in _bindings(path, graph).items() if _layer(b) in compressed.activations}
    x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32))
    codes = FakeQuantModule(compressed).codes(x)
    floats = float_values(_source(folder), inputs)
    fake = {n: b.codes(codes[_layer(b)], graph.tensors[n].shape) for n, b in owners.items()}
    real = {}
    for n, b in owners.items():
        value = floats.get(_layer(b))
        if value is not None and value[0].size == graph.tensors[n].size:
            real[n] = _stored(b, value, graph.tensors[n].shape)
    return real, fake


def float_values(network: Network, inputs: Real) -> dict[str, Real]:
    """Value of every layer of a float network, in the model's own layout (N, ...)."""
    import torch

    from xdeploy.model.torchmodule import NetworkModule

    modules = NetworkModule(network).eval().modules_by_name
    live = {network.input.name: torch.from_numpy(np.ascontiguousarray(inputs, np.float32))}
    with torch.inference_mode():
        for layer in network.layers[1:]:
            live[layer.name] = modules[layer.name](*(live[i] for i in layer.inputs))
    return {name: value.numpy() for name, value in live.items()}


def _layer(binding: Binding) -> str:
    """Our exporter names the codes of a layer like it, with .q behind."""
    return binding.onnx_name.removesuffix(".q")


def _stored(binding: Binding, value: Real, shape: tuple[int, ...]) -> Real:
    flat = value.reshape(len(value), -1)
    stored = np.empty_like(flat)
    stored[:, binding.index.reshape(-1)] = flat
    return stored.reshape(len(value), *shape)


def _source(folder: Path) -> Network:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    head = read_json(folder / "source.json", "xdeploy.source/1")
    try:
        tensors = load_file(folder / "source.safetensors")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder / 'source.safetensors'}: {error}") from None
    return Network.load(json.dumps({"layers": head["layers"]}), tensors)


def artifact(folder: Path, graph: LoweredGraph, codes: Int8) -> tuple[dict[str, Int8], str | None]:
    """Codes that a built artifact computes, layer by layer where its runner can look inside, and a note if not.

    An artifact that cannot run here gives no codes, and the reason.
    """
    from xdeploy.bench.via import runner_for

    built = Artifact.load(folder)
    try:
        runner = runner_for(built, load_target(built.target), None)
        reason = runner.available()
        if reason is not None:
            return {}, reason
        look = getattr(runner, "run_layers", None)
        found: Mapping[str, Int8] = look(codes) if look else {graph.output: runner.run(codes).outputs}
    except DeviceError as error:
        return {}, str(error)
    except XdeployError as error:
        return {}, error.message
    shaped = {n: v.reshape(len(codes), *graph.tensors[n].shape) for n, v in found.items() if n in graph.tensors}
    return shaped, None if look else f"{runner.name} shows the output only"
