"""What MODEL may be: a torch module, `package.module:factory`, or a .pt2 file; one dispatch for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from xdeploy.errors import UnsupportedError, UsageError
from xdeploy.model.data import load_data
from xdeploy.model.factory import Declared, call_factory, declared_input, with_weights
from xdeploy.model.network import Network
from xdeploy.model.pt2 import load_program
from xdeploy.model.trace import network_of, trace
from xdeploy.recipe import DataOptions


@dataclass(frozen=True, slots=True)
class Given:
    """The user's model, not captured yet: a module or a program."""

    name: str  # short, for file names and reports
    where: str  # as the user wrote it, for messages
    module: nn.Module | None
    program: ExportedProgram | None
    declared: Declared

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
        return trace(self.module, shape, name=self.where)


def front_end(model: str | nn.Module, weights: Path | None = None) -> Given:
    """Read MODEL as far as it goes without knowing its input.

    Raises:
        UsageError: no such model, or not of a kind that is read. ModelError: it fails.
    """
    given = _front_end(model)
    if weights is None:
        return given
    if given.module is None:
        raise UsageError(f"--weights does not go with {given.where}", hint="a .pt2 file holds its own weights")
    module = with_weights(given.module, weights)
    return Given(given.name, given.where, module, None, given.declared)


def _front_end(model: str | nn.Module) -> Given:
    if isinstance(model, nn.Module):
        name = type(model).__name__
        return Given(name.lower(), name, model, None, declared_input(model))
    if not isinstance(model, str):
        raise UsageError(f"MODEL is a {type(model).__name__}; expected a torch.nn.Module or a string")
    path = Path(model)
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".pt2") and not path.exists():
        raise UsageError(f"model {model} does not exist")
    if suffix == ".pt2":
        return Given(path.stem, model, None, load_program(path), Declared())
    if suffix == ".onnx":
        raise UnsupportedError(
            f"float ONNX files are not supported as MODEL yet: {model}",
            hint="give package.module:factory or a .pt2 file; int8 (QDQ) ONNX files are built directly",
        )
    if suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        raise UsageError(
            f"model {model}: pickles are refused, since reading them can run code",
            hint="give package.module:factory and --weights x.safetensors, or write a .pt2 with torch.export.save",
        )
    if ":" not in model or suffix == ".py":
        raise UsageError(
            f"MODEL {model!r} is not understood", hint="give package.module:factory, a .pt2 or a .onnx file"
        )
    module = call_factory(model)
    return Given(model.rpartition(":")[2].rpartition(".")[2], model, module, None, declared_input(module))


def load_network(
    model: str | nn.Module | None, weights: Path | None, data: Path | None, options: DataOptions
) -> tuple[Network, Declared]:
    """Only the network, for checking whether a model can be deployed; data is read if nothing else tells the shape.

    None is the demo's network, untrained.

    Raises:
        UsageError, ModelError, UnsupportedError: as `front_end` and `trace`.
    """
    given = front_end("xdeploy.model.zoo:digits_cnn" if model is None else model, weights)
    shape = given.declared.shape
    if shape is None and given.program is None and data is not None:
        shape = load_data(data, mean=options.mean, std=options.std).shape
    return given.network(shape), given.declared
