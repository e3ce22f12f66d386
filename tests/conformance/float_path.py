"""The node tests through the float path: file to torch module, and on to a Network where the test's layout fits."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.conformance.cases import Case, Outcome, Skip, Variant, cases_of, differs, joined, run, with_data, write
from tests.conformance.lifting import lifted
from xdeploy.errors import UnsupportedError, XdeployError
from xdeploy.model.onnxgraph import OnnxModule, module_of
from xdeploy.model.onnxgraph.rows import ROWS
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.trace import trace
from xdeploy.onnxfile import read


def operators() -> list[str]:
    """Every operator that the float path reads."""
    return sorted(ROWS)


def float_outcomes(ops: list[str]) -> list[Outcome]:
    """The tests as torch modules."""
    return run(cases_of(ops), lambda case: _checked(case, through_network=False))


def network_outcomes(ops: list[str]) -> list[Outcome]:
    """The tests as networks, as far as a single operator is one."""
    return run(cases_of(ops), lambda case: _checked(case, through_network=True))


def _checked(case: Case, *, through_network: bool) -> str:
    """Every variant of the case; it is skipped if none can be run."""
    reasons: list[str] = []
    ran = False
    # a test that works along the batch axis is run as one sample of a batch instead
    for same in (case, *lifted(case)):
        for variant in _variants(same):
            try:
                wrong = _wrong(same, variant, through_network)
            except Skip as skip:
                reasons.append(str(skip))
                continue
            if wrong:
                return wrong
            ran = True
        if ran:
            return ""
    raise Skip(reasons[0] if reasons else "has no float32 data input of two axes or more")


def _variants(case: Case) -> list[Variant]:
    floats = [n for n, a in case.inputs.items() if a.dtype == np.float32 and a.ndim >= 2]
    outputs = [k for k, a in enumerate(case.outputs) if a.dtype == np.float32]
    found = [with_data(case, name, k) for name in floats[:1] for k in outputs]
    if len(floats) > 1 and len(floats) == len(case.inputs) and outputs:
        with contextlib.suppress(Skip):
            found.append(joined(case))
    return found


def _wrong(case: Case, variant: Variant, through_network: bool) -> str:
    module = _module(variant, case.name)
    x = _as_input(module, torch.from_numpy(variant.data.copy()))
    with torch.no_grad():
        got = module(x).numpy()
    if not through_network:
        return differs(got, case, variant.expected)
    try:
        network = trace(module, module.input_shape, name=case.name)
    except UnsupportedError as error:
        raise Skip(f"not deployable: {_reason(error)}") from None
    except XdeployError as error:
        if "holds no layer" in error.message:
            raise Skip("not deployable: changes nothing by itself") from None
        return error.message
    with torch.no_grad():
        got = NetworkModule(network)(x).numpy()
    return differs(got.reshape(variant.expected.shape), case, variant.expected)


def _module(variant: Variant, name: str) -> OnnxModule:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return module_of(read(write(variant, Path(folder), name)), name, deployable=False)
        except XdeployError as error:
            raise Skip(_reason(error)) from None


def _reason(error: XdeployError) -> str:
    obstacles = getattr(error, "obstacles", ())
    first = obstacles[0].reason if obstacles else error.message.splitlines()[0]
    return first.rpartition(".onnx: ")[2]  # without the name of the temporary file


def _as_input(module: OnnxModule, data: torch.Tensor) -> torch.Tensor:
    """The network's input that the file sees as `data`."""
    size = int(np.prod(module.input_shape))
    order = module.file_input(torch.arange(size).reshape(1, *module.input_shape)).reshape(-1)
    x = torch.empty(len(data), size)
    x[:, order] = data.reshape(len(data), -1)
    return x.reshape(len(data), *module.input_shape)
