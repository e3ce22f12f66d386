"""Capture: a torch module, or a program that torch exported, becomes a `Network`.

torch.export is the one front end: Python that depends on data fails there instead of being traced wrongly. The
exported graph is made functional (no in-place operations), walked node by node (`aten`), cleaned up (`fold`) and
then run against the module itself.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from xdeploy.errors import ModelError, UnsupportedError
from xdeploy.model import aten, aten_borders, aten_images, aten_transposed  # noqa: F401 (they register handlers)
from xdeploy.model.fold import Folding
from xdeploy.model.network import Network
from xdeploy.model.origins import reachable
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.walk import Problem, Refused, Walk

TOLERANCE = 1e-4  # of the largest output, between module and network


def trace(module: nn.Module, input_shape: tuple[int, ...], *, name: str = "") -> Network:
    """Capture a module in evaluation mode; the module's weights, modes and gradient flags stay as they are.

    Args:
        module: one input (N, *input_shape) and one output, float32, on the CPU.
        input_shape: (C, H, W), (C, L) or (F,), without the batch; the network's input for (C, L) is (C, 1, L).
        name: what messages call the module; its class name when empty.

    Raises:
        ModelError: the module's forward fails, weights are not finite, or the network differs from the module.
        UnsupportedError: lists every operation that cannot be deployed.
    """
    name = name or type(module).__name__
    check_state(module.state_dict(keep_vars=True), name)
    _check_signature(module, name)
    with _evaluating(module), _quiet():
        # two samples show what mixes the batch; a module written for one alone is captured with one
        sample, expected = _eager(module, input_shape, name)
        network = convert(_export(module, sample, name), name)
    _check_same(network, sample, expected, name)
    return network


def network_of(program: ExportedProgram, name: str) -> Network:
    """The network of a program that was exported elsewhere (a .pt2 file), checked against the program's own graph.

    Raises:
        ModelError, UnsupportedError: as `trace`.
    """
    check_state(program.state_dict, name)
    with _quiet():
        network = convert(program, name)
    inputs = _user_inputs(program, name)
    batch = inputs[0].meta["val"].shape[0]
    sample = _noise((batch if isinstance(batch, int) else 2, *(int(d) for d in inputs[0].meta["val"].shape[1:])))
    with torch.no_grad(), _quiet():
        expected = _interpret(program, sample)
    _check_same(network, sample, expected, name)
    return network


def convert(program: ExportedProgram, name: str) -> Network:
    """Turn an exported program into a network.

    Raises:
        ModelError: nothing to deploy.
        UnsupportedError: several inputs or outputs, or unsupported operations (all listed).
    """
    if not _is_functional(program):
        program = program.run_decompositions({})
    mutated = sorted(program.graph_signature.buffers_to_mutate.values())
    if mutated:
        raise UnsupportedError(
            f"{name} changes its buffers while it runs: {', '.join(mutated)}",
            hint="call model.eval() before torch.export; keep no state in forward",
        )
    start, end = _user_inputs(program, name)[0], _user_output(program, name)
    walk = Walk(program)
    try:
        walk.start(start)
    except Refused as refused:
        raise UnsupportedError(f"{name}: {refused.reason}", hint=refused.hint) from None
    live = reachable(end, lambda n: n.all_input_nodes)
    if start not in live:
        raise ModelError(f"the output of {name} does not depend on its input")
    for node in program.graph.nodes:
        if node in live and node.op == "call_function" and not walk.is_constant(node) and _is_data(node):
            aten.handle(walk, node)
    try:
        output = walk.result(end)
    except Refused as refused:
        walk.refuse(end, refused)
    _raise(name, walk.problems)
    layers = Folding(walk.layers, walk.params, walk.norms).run(output)
    if output == "input":
        raise ModelError(f"{name} holds no layer: its output is its input")
    return Network(layers, walk.params)


def _is_functional(program: ExportedProgram) -> bool:
    """Whether nothing works in place and nothing is nested, so that the graph can be walked as it is."""
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    operations = [t for t in targets if isinstance(t, torch._ops.OpOverload)]
    plain = all(t in operations or getattr(t, "__module__", "") == "_operator" for t in targets)
    return plain and not any(t._schema.is_mutable for t in operations)


def check_state(state: Mapping[str, Any], name: str) -> None:
    """Parameters and buffers must be finite float32 on the CPU (integer buffers are counters).

    Raises:
        UnsupportedError: another type or device. ModelError: NaN or infinity, with the name of the tensor.
    """
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.device.type != "cpu":
            raise UnsupportedError(f"{name}: {key} is on {tensor.device}", hint="call model.cpu() first")
        if (tensor.is_floating_point() and tensor.dtype != torch.float32) or tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UnsupportedError(f"{name}: {key} is {kind}; float32 is supported", hint="call model.float() first")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach()).all()):
            bad = int((~torch.isfinite(tensor.detach())).sum())
            raise ModelError(f"{name}: {key} holds NaN or infinity ({bad} of {tensor.numel()} values)")


# --------------------------------------------------------------------------------------------------- capture
def _check_signature(module: nn.Module, name: str) -> None:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters.values()
    needed = [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    if len(needed) > 1:
        raise UnsupportedError(f"{name} takes several inputs ({', '.join(needed)}); one is supported")


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's mode and buffers are put back."""
    modes = [(m, m.training) for m in module.modules()]
    buffers = [(m, k, b, b.clone()) for m in module.modules() for k, b in m._buffers.items() if b is not None]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in modes:
            m.training = training
        for m, key, buffer, content in buffers:
            m._buffers[key] = buffer
            buffer.copy_(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings, logs and graphs on stderr that torch.export has about itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _eager(module: nn.Module, input_shape: tuple[int, ...], name: str) -> tuple[Tensor, Any]:
    """A random input and what the module answers; two samples, or one if the module refuses two."""
    failure: Exception | None = None
    for batch in (2, 1):
        sample = _noise((batch, *input_shape))
        try:
            return sample, module(sample.clone())
        except Exception as error:  # user code may raise anything
            failure = failure or error
    raise ModelError(
        f"{name}: forward fails on a float32 input (N, {', '.join(map(str, input_shape))}): {_first_line(failure)}",
        hint="the input shape is the data's, or the module's attribute xdeploy_input = {'shape': (C, H, W)}",
    )


def _export(module: nn.Module, sample: Tensor, name: str) -> ExportedProgram:
    try:
        return torch.export.export(module, (sample,), strict=False)
    except Exception as error:  # torch.export raises many kinds, none of which users know
        line = re.search(r'File "([^"]+)", line (\d+), in \S+\n\s*(.+)', str(error))
        where = f" at {Path(line[1]).name}:{line[2]}: {line[3].strip()}" if line else ""
        raise UnsupportedError(
            f"{name} cannot be captured by torch.export{where} ({_first_line(error)})",
            hint="forward must not branch or loop on values of tensors",
        ) from None


def _first_line(error: Exception | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _is_data(node: fx.Node) -> bool:
    """Whether a node is about tensors: sizes and assertions are not."""
    val = node.meta.get("val")
    return isinstance(val, Tensor) or (isinstance(val, list | tuple) and any(isinstance(v, Tensor) for v in val))


def _user_inputs(program: ExportedProgram, name: str) -> list[fx.Node]:
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    specs = program.graph_signature.input_specs
    inputs = [nodes[s.arg.name] for s in specs if s.kind == InputKind.USER_INPUT and s.arg.name in nodes]
    if len(inputs) != 1:
        raise UnsupportedError(f"{name} has {len(inputs)} inputs; one tensor is supported")
    return inputs


def _user_output(program: ExportedProgram, name: str) -> fx.Node:
    returned = next(n for n in program.graph.nodes if n.op == "output").args[0]
    specs = program.graph_signature.output_specs
    outputs = [n for n, s in zip(returned, specs, strict=True) if s.kind == OutputKind.USER_OUTPUT]
    if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
        raise UnsupportedError(
            f"{name} has {len(outputs)} outputs; one tensor is supported", hint="return only the logits in forward"
        )
    node: fx.Node = outputs[0]
    return node


def _interpret(program: ExportedProgram, sample: Tensor) -> Tensor:
    """Run the program's graph itself."""
    graph, signature = program.graph_module, program.graph_signature
    args = []
    for spec in signature.input_specs:
        table: Mapping[str, Any] = {**program.constants, **program.state_dict}
        args.append(sample.clone() if spec.kind == InputKind.USER_INPUT else table[str(spec.target)])
    outputs = fx.Interpreter(graph).run(*args)
    pairs = zip(outputs, signature.output_specs, strict=True)
    result: Tensor = next(o for o, s in pairs if s.kind == OutputKind.USER_OUTPUT)
    return result


# ---------------------------------------------------------------------------------------------------- checks
def _raise(name: str, problems: list[Problem]) -> None:
    if not problems:
        return
    rows = "".join(f"\n  {p.text}" for p in problems)
    count = f"{len(problems)} operation{'s' * (len(problems) > 1)} of {name} cannot be deployed"
    found = [p.obstacle for p in problems]
    raise UnsupportedError(f"{count}:{rows}\nsupported: {aten.SUPPORTED}", obstacles=found)


def _check_same(network: Network, sample: Tensor, expected: Any, name: str) -> None:
    """The network must compute what the module does."""
    leaves = [x for x in pytree.tree_leaves(expected) if isinstance(x, Tensor)]
    with torch.no_grad():
        got = NetworkModule(network)(sample.reshape(-1, *network.input.shape)).numpy()
    want = leaves[0].detach().numpy()
    got = got.reshape(want.shape) if got.size == want.size else got  # (C, L) is (C, 1, L) in the network
    if not np.isfinite(want).all():
        raise ModelError(f"{name} answers NaN or infinity to a random input")
    scale = max(float(np.abs(want).max()), 1e-6)
    error = float(np.abs(got - want).max()) / scale if got.shape == want.shape else float("inf")
    if not error <= TOLERANCE:
        raise ModelError(
            f"the captured network differs from {name} by {error:.3g} of its largest output (limit {TOLERANCE:g})",
            hint="make forward deterministic, without random numbers or state; please report the model if it is",
        )
