"""The torch module of a file: parts that are called in the file's order, kept under their qualified names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xdeploy.onnxfile import OnnxNode

TRAINABLE = ("weight", "bias")


class Part(nn.Module):
    """One node of the file. `run(part, *data)` computes it from the part's tensors and inner parts.

    Tensors named weight and bias become parameters, other tensors buffers, parts submodules.
    """

    def __init__(self, run: Callable[..., Any], **parts: Tensor | nn.Module) -> None:
        super().__init__()
        self._run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif name in TRAINABLE:
                self.register_parameter(name, nn.Parameter(part))
            else:
                self.register_buffer(name, part)

    def forward(self, *data: Tensor) -> Any:
        """(N, ...) per operand -> (N, ...), or a tuple of such."""
        return self._run(self, *data)


class Scope(nn.Module):
    """A level of the qualified names without a node of its own."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A part in its place: the tensors it reads and writes, and the node it comes from."""

    part: nn.Module
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    name: str
    node: OnnxNode


class OnnxModule(nn.Module):
    """A float ONNX graph in torch, for any batch size.

    `input_shape` is the network's, per sample: (C, H, W) or (F,), however the file lays its input out; `entry` turns
    such a batch into what the file's first node reads. `xdeploy_input` says the same where torch modules are expected.
    `ports` are the names of input and output in the file.
    """

    def __init__(
        self,
        name: str,
        input_shape: tuple[int, ...],
        entry: Callable[[Tensor], Tensor],
        ends: tuple[str, str],
        placed: Sequence[Placed],
        ports: tuple[str, str] = ("input", "output"),
    ) -> None:
        super().__init__()
        self.name, self.input_shape, self.ports = name, input_shape, ports
        self.xdeploy_input = {"shape": input_shape}
        self._entry, self._ends, self.placed = entry, ends, tuple(placed)
        last = {read: k for k, p in enumerate(placed) for read in p.reads}
        self._drop = [[r for r, at in last.items() if at == k and r != ends[1]] for k in range(len(placed))]
        for p in placed:
            _attach(self, p.name, p.part)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *input_shape) -> (N, *output shape of the file)."""
        values: dict[str, Any] = {self._ends[0]: self._entry(x)}
        for p, drop in zip(self.placed, self._drop, strict=True):
            found = p.part(*(values[r] for r in p.reads))
            values.update(zip(p.writes, found if isinstance(found, tuple | list) else (found,), strict=True))
            for name in drop:
                values.pop(name, None)
        result: Tensor = values[self._ends[1]]
        return result

    def file_input(self, x: Tensor) -> Tensor:
        """A batch (N, *input_shape) as the file itself takes it."""
        return self._entry(x)

    def node_of(self, origin: str) -> OnnxNode | None:
        """The node whose part has this qualified name, or the one around it."""
        found = [p for p in self.placed if origin == p.name or origin.startswith(f"{p.name}.")]
        return max(found, key=lambda p: len(p.name)).node if found else None


def _attach(root: nn.Module, path: str, part: nn.Module) -> None:
    """Put a part under its dotted path; scopes in between are made where no part stands."""
    *scopes, leaf = path.split(".")
    for scope in scopes:
        if scope not in root._modules:
            root.add_module(scope, Scope())
        root = root.get_submodule(scope)
    old = root._modules.get(leaf)
    if old is not None:
        for name, child in old.named_children():
            part.add_module(name, child)
    root.add_module(leaf, part)


def attachable(names: Iterable[str]) -> list[str]:
    """The names made unique and usable as paths of submodules, in order.

    A component that torch's modules use themselves (`type`, `weight`) gets an underscore.
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        parts = [p for p in name.split(".") if p] or ["node"]
        base = ".".join(f"{p}_" if hasattr(_PROBE, p) else p for p in parts)
        unique, number = base, 1
        while unique in taken:
            unique, number = f"{base}_{number}", number + 1
        taken.add(unique)
        found.append(unique)
    return found


class _Probe(Part):
    """Has every attribute that a part, a scope or the module itself may have."""

    def __init__(self) -> None:
        super().__init__(lambda part: None)
        for name in (*TRAINABLE, "name", "input_shape", "xdeploy_input", "ports", "placed", "file_input", "node_of"):
            setattr(self, name, None)
        for name in (*INNER, "constant", "_entry", "_ends", "_drop", "mean", "var", "rows", "cols"):
            setattr(self, name, None)


INNER = ("pad", "crop")  # names that rows give to inner parts
_PROBE = _Probe()


def nothing(x: Tensor) -> Tensor:
    """The entry of a file whose input is laid out as the network's."""
    return x


def on_meta(part: nn.Module, shapes: Sequence[tuple[int, ...]], batch: int) -> Any:
    """What a part would give for inputs of these per-sample shapes, without computing or allocating."""
    state = {k: v.to("meta") for k, v in (*part.named_parameters(), *part.named_buffers())}
    inputs = tuple(torch.empty((batch, *s), device="meta") for s in shapes)
    with torch.no_grad():
        return torch.func.functional_call(part, state, inputs)
