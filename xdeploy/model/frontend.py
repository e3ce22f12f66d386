"""What MODEL may be: a torch module, `package.module:factory`, a .pt2 or a float .onnx file; one dispatch for all."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from xdeploy.errors import Obstacle, UnsupportedError, UsageError, not_there
from xdeploy.model.data import load_data
from xdeploy.model.factory import Declared, call_factory, declared_input, with_weights
from xdeploy.model.network import Network
from xdeploy.model.onnxgraph import OnnxModule, load_onnx
from xdeploy.model.pt2 import load_program
from xdeploy.model.trace import network_of, trace
from xdeploy.onnxfile import ObstacleError, is_quantised
from xdeploy.recipe import DataOptions

_PORT_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Given:
    """The user's model, not captured yet: a module or a program."""

    name: str  # short, for file names and reports
    where: str  # as the user wrote it, for messages
    module: nn.Module | None
    program: ExportedProgram | None
    declared: Declared

    @property
    def ports(self) -> tuple[str, str] | None:
        """The user's names of input and output, where an ONNX file gives them; letters, digits and _ only."""
        if not isinstance(self.module, OnnxModule):
            return None
        first, last = (re.sub(r"[^A-Za-z0-9_]", "_", name)[:_PORT_LIMIT] for name in self.module.ports)
        return first or "input", last if last not in ("", first) else f"{last}_out"

    def network(self, shape: tuple[int, ...] | None) -> Network:
        """Capture; `shape` is needed for modules only.

        Raises:
            ModelError, UnsupportedError: see `trace`. UsageError: no shape is known.
        """
        if self.program is not None:
            return network_of(self.program, self.where)
        shape = self.declared.shape or shape
        if shape is None:
            raise UsageError(
                f"the input shape of {self.where} is not known",
                hint="give --data, or set xdeploy_input = {'shape': (C, H, W)} on the module",
            )
        assert self.module is not None
        try:
            return trace(self.module, shape, name=self.where)
        except UnsupportedError as error:
            if isinstance(self.module, OnnxModule) and error.obstacles:
                raise ObstacleError((_of_node(self.module, o) for o in error.obstacles), self.where) from None
            raise


def _of_node(module: OnnxModule, obstacle: Obstacle) -> Obstacle:
    """An obstacle found in the torch graph, in terms of the file's node it comes from."""
    node = module.node_of(obstacle.node)
    return obstacle if node is None else replace(obstacle, node=node.name, op=node.op)


def front_end(model: str | nn.Module, weights: Path | None = None, fallback: Collection[str] = ()) -> Given:
    """Read MODEL as far as it goes without knowing its input.

    Raises:
        UsageError: no such model, or not of a kind that is read. ModelError: it fails.
    """
    given = _front_end(model, fallback)
    if weights is None:
        return given
    if given.module is None:
        raise UsageError(f"--weights does not go with {given.where}", hint="a .pt2 file holds its own weights")
    if isinstance(given.module, OnnxModule):
        raise UsageError(f"--weights does not go with {given.where}", hint="an .onnx file holds its own weights")
    module = with_weights(given.module, weights)
    return Given(given.name, given.where, module, None, given.declared)


def _front_end(model: str | nn.Module, fallback: Collection[str] = ()) -> Given:
    if fallback and not (isinstance(model, str) and model.lower().endswith(".onnx")):
        raise UsageError(
            f"lower.fallback names nodes of an ONNX file: {', '.join(fallback)}",
            hint="in a torch module, put xdeploy.model.fallback.fallback_node(...) in the place of the part",
        )
    if isinstance(model, nn.Module):
        name = model.name if isinstance(model, OnnxModule) else type(model).__name__
        return Given(name.lower(), name, model, None, declared_input(model))
    if not isinstance(model, str):
        raise UsageError(f"MODEL is a {type(model).__name__}; expected a torch.nn.Module or a string")
    path = Path(model)
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".pt2") and not path.exists():
        raise not_there(path, "model")
    if suffix == ".pt2":
        return Given(path.stem, model, None, load_program(path), Declared())
    if suffix == ".onnx":
        return _onnx(path, model, fallback)
    if suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        raise UsageError(
            f"model {model}: pickles are refused, since reading them can run code",
            hint="give package.module:factory and --weights x.safetensors, or write a .pt2 with torch.export.save",
        )
    if ":" not in model or suffix == ".py":
        raise UsageError(
            f"MODEL {model!r} is no folder of a build, and not understood as a model",
            hint="give package.module:factory, a .pt2 or a .onnx file",
        )
    module = call_factory(model)
    return Given(model.rpartition(":")[2].rpartition(".")[2], model, module, None, declared_input(module))


def _onnx(path: Path, where: str, fallback: Collection[str] = ()) -> Given:
    """A float file; one that is quantised already takes another way."""
    if is_quantised(path):
        raise UnsupportedError(
            f"{where} is quantised already and has no float weights",
            hint="without --data it is built as it is; compress.further = true compresses its float view once more",
        )
    module = load_onnx(path, fallback=fallback)
    return Given(module.name, where, module, None, declared_input(module))


def load_network(
    model: str | nn.Module | None,
    weights: Path | None,
    data: Path | None,
    options: DataOptions,
    fallback: Collection[str] = (),
) -> tuple[Network, Declared]:
    """Only the network, for checking whether a model can be deployed; data is read if nothing else tells the shape.

    None is the demo's network, untrained.

    Raises:
        UsageError, ModelError, UnsupportedError: as `front_end` and `trace`.
    """
    given = front_end("xdeploy.model.zoo:digits_cnn" if model is None else model, weights, fallback)
    shape = given.declared.shape
    if shape is None and given.program is None and data is not None:
        shape = load_data(data, mean=options.mean, std=options.std).shape
    return given.network(shape), given.declared
