"""Where the nodes of an exported graph are from: modules, source lines, constants, and what depends on what."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind


def enclosing(node: fx.Node) -> tuple[str, bool]:
    """Qualified name of the innermost module around a node, and whether it is one of torch's own operations."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", False
    path, kind = stack[-1]
    path = re.sub(r"^L\['self'\]\.?|^L__self___?", "", str(path))
    path = re.sub(r"@\d+", "", path)
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    own = kind.startswith("torch.nn.modules.") or kind == "xdeploy.model.onnxgraph.module.Part"
    return path, own and ".container." not in kind


def origin(node: fx.Node) -> str:
    """Where a node is from, for messages: `layer1.0: aten.gelu (net.py:12: y = gelu(x))`."""
    path, _ = enclosing(node)
    target = str(node.target).removesuffix(".default") if node.op == "call_function" else node.name
    trace = str(node.meta.get("stack_trace") or "").strip()
    frames = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s*(.+)', trace)
    own = [f for f in frames if "/torch/nn/" not in f[0].replace("\\", "/")]
    where = f" ({Path(own[-1][0]).name}:{own[-1][1]}: {own[-1][2].strip()})" if own else ""
    return f"{path or 'the model'}: {target}{where}"


def reachable(start: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """`start` and all nodes that repeated steps lead to."""
    found: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += step(node)
    return found


def constant_tensors(program: ExportedProgram) -> dict[fx.Node, torch.Tensor]:
    """Placeholder of each parameter, buffer and constant -> its tensor."""
    tables: dict[InputKind, Any] = {
        InputKind.PARAMETER: program.state_dict, InputKind.BUFFER: {**program.constants, **program.state_dict},
        InputKind.CONSTANT_TENSOR: program.constants,
    }  # fmt: skip
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in tables and spec.target is not None:
            found[nodes[spec.arg.name]] = tables[spec.kind][spec.target]
    return found


def parameter_owners(program: ExportedProgram) -> dict[fx.Node, str]:
    """Placeholder of each `weight` -> qualified name of the module that owns it."""
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    owners = {}
    for spec in program.graph_signature.input_specs:
        module, _, leaf = (spec.target or "").rpartition(".")
        if spec.kind == InputKind.PARAMETER and leaf == "weight" and module:
            owners[nodes[spec.arg.name]] = module
    return owners
