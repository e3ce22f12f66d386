"""What a fine-tuning that was stopped needs to go on exactly where it was: one file, written after every epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.files import replacing

SCHEMA = "xdeploy.checkpoint/1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the state is kept, and the hash of all that goes into the training.

    A file of another key is as good as none; it is overwritten after the first epoch.
    """

    path: Path
    key: str

    def save(self, tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> None:
        """Write tensors by name and a JSON-able head, atomically: safetensors with the head in its own header."""
        from safetensors.torch import save

        whole = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        about = json.loads(json.dumps({"schema": SCHEMA, "key": self.key, **head}))
        text = json.dumps({**about, "sha256": _digest(whole, about)})
        with replacing(self.path) as part:
            part.write_bytes(save(whole, metadata={"head": text}))  # an OSError, where the disk refuses it

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` wrote; None: nothing, nothing readable, nothing whole, or of another key."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                head = json.loads((file.metadata() or {}).get("head", "{}"))
                if head.get("schema") != SCHEMA or head.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                return (tensors, head) if head.pop("sha256", None) == _digest(tensors, head) else None
        except (OSError, SafetensorError, ValueError):
            return None

    def remove(self) -> None:
        """Remove the file, if there."""
        self.path.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    """Hash of the head and of names, types, shapes and values."""
    found = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().numpy()
        found.update(repr((name, str(array.dtype), array.shape)).encode())
        found.update(array.tobytes())
    return found.hexdigest()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix/` before their names."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix/`, without it."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def model_tensors(model: CompressedModel) -> dict[str, Tensor]:
    """Float parameters and integers of a compressed model."""
    found: dict[str, Any] = {}
    for name, w in model.weights.items():
        parts = {"codes": w.codes, "scale": w.scale, "bias": w.bias, "book": w.codebook}
        found |= {f"{kind}/{name}": value for kind, value in parts.items() if value is not None}
        found |= {f"float_{kind}/{name}": value for kind, value in model.network.params[name].items()}
    return {name: torch.from_numpy(value.copy()) for name, value in found.items()}


def model_of(start: CompressedModel, tensors: Mapping[str, Tensor]) -> CompressedModel:
    """The compressed model whose `model_tensors` were taken; `start` gives all that training leaves alone."""
    arrays = {name: t.numpy() for name, t in tensors.items()}
    weights = {
        n: QuantisedWeight(
            w.format_name, arrays[f"codes/{n}"], arrays.get(f"book/{n}"), arrays[f"scale/{n}"], arrays[f"bias/{n}"]
        )
        for n, w in start.weights.items()
    }
    params = {n: {k: arrays[f"float_{k}/{n}"] for k in ("weight", "bias")} for n in start.weights}
    return replace(start, network=start.network.with_params(params), weights=weights)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory, by `parameter number/kind`."""
    state = optimiser.state_dict()["state"]
    return {f"{k}/{kind}": t for k, parts in state.items() for kind, t in parts.items() if isinstance(t, Tensor)}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser of the same parameters its memory back."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, kind = name.split("/", 1)
        state.setdefault(int(number), {})[kind] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


@torch.no_grad()
def restore_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module its parameters and buffers back."""
    for name, held in (*module.named_parameters(), *module.named_buffers()):
        held.copy_(tensors[name])
