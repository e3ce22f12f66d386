"""MODEL strings `package.module:factory`, weights from safetensors, and what a module declares about its input."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xdeploy.errors import ModelError, UsageError, choose_from

_CONVERT = (
    'pickles can run code when they are read; convert once where you trust them: python -c "import torch; '
    "from safetensors.torch import save_file; save_file(torch.load('w.pth', weights_only=True), 'w.safetensors')\""
)


@dataclass(frozen=True, slots=True)
class Declared:
    """What the module's attribute `xdeploy_input` says: shape of one sample, mean and std of pixels in 0..1."""

    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def declared_input(module: nn.Module) -> Declared:
    """Read `xdeploy_input = {"shape": (3, 32, 32), "mean": (...), "std": (...)}`, all keys optional.

    Raises:
        UsageError: not a mapping, unknown keys, values that are no numbers.
    """
    value = getattr(module, "xdeploy_input", None)
    if value is None:
        return Declared()
    if not isinstance(value, Mapping):
        raise UsageError(f"xdeploy_input must be a dict with shape, mean and std, got {value!r}")
    for key in value:
        if key not in ("shape", "mean", "std"):
            raise choose_from("key of xdeploy_input", str(key), ("shape", "mean", "std"))
    try:
        shape = tuple(int(v) for v in value["shape"]) if "shape" in value else None
        mean, std = (tuple(float(v) for v in value.get(k, ())) for k in ("mean", "std"))
    except (TypeError, ValueError) as error:
        raise UsageError(f"xdeploy_input = {value!r} is not usable: {error}") from None
    if shape is not None and (len(shape) not in (1, 2, 3) or min(shape) < 1):
        raise UsageError(f"xdeploy_input: shape must be (C, H, W), (C, L) or (F,), got {shape}")
    return Declared(shape, mean, std)


@contextlib.contextmanager
def _working_folder_first() -> Iterator[None]:
    """Imports find the user's own files."""
    here = os.getcwd()
    known = here in sys.path
    if not known:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if not known and here in sys.path:
            sys.path.remove(here)


def call_factory(text: str) -> nn.Module:
    """The module that `package.module:factory` gives; the factory is called without arguments.

    Raises:
        UsageError: no such module or attribute, or it gives something else than a torch module.
        ModelError: importing or calling it raises.
    """
    module_name, _, attribute = text.partition(":")
    with _working_folder_first():
        module = _import(module_name, text)
        found: Any = module
        for part in attribute.split("."):
            if not hasattr(found, part):
                names = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))]
                error = choose_from(f"attribute of {module_name}", attribute, names)
                raise UsageError(f"MODEL {text}: {module_name} has no {attribute!r}", hint=error.hint)
            found = getattr(found, part)
        if not isinstance(found, nn.Module):
            if not callable(found):
                raise UsageError(f"MODEL {text}: {attribute} is a {type(found).__name__}; expected a factory")
            try:
                found = found()
            except Exception as error:  # user code may raise anything
                raise ModelError(
                    f"MODEL {text}: the factory failed: {type(error).__name__}: {error}",
                    hint="the factory is called without arguments",
                ) from error
    if not isinstance(found, nn.Module):
        raise UsageError(f"MODEL {text} gives a {type(found).__name__}; expected a torch.nn.Module")
    return found


def _import(name: str, text: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            hint = "give it as package.module:factory, without .py and with dots; it is looked up here first"
            raise UsageError(f"MODEL {text}: there is no module {name!r}", hint=hint) from None
        raise ModelError(f"MODEL {text}: {name} needs {error.name!r}, which is not installed") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"MODEL {text}: {name!r} is no module name: {error}") from None
    except Exception as error:  # user code may raise anything
        raise ModelError(f"MODEL {text}: importing {name} failed: {type(error).__name__}: {error}") from error


def with_weights(module: nn.Module, path: Path) -> nn.Module:
    """A copy of the module with the weights of a safetensors file; float16 and bfloat16 become float32.

    Raises:
        UsageError: no safetensors file, or keys or shapes that differ, all listed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise UsageError(f"weights {path} do not exist")
    if path.suffix != ".safetensors":
        raise UsageError(f"weights {path}: only .safetensors files are read", hint=_CONVERT)
    try:
        given = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"weights {path} are not a readable safetensors file: {error}") from None
    module = copy.deepcopy(module)
    state = module.state_dict()
    _compare(path, state, given)
    module.load_state_dict({**state, **{k: _cast(v, state[k]) for k, v in given.items()}})
    return module


def _cast(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.dtype) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _compare(path: Path, state: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """All keys and shapes must agree; a missing tensor may share its memory with one that is there (tied weights)."""
    present = {state[k].data_ptr() for k in given if k in state}
    missing = [
        k
        for k, v in state.items()
        if k not in given and not k.endswith("num_batches_tracked") and not (v.numel() and v.data_ptr() in present)
    ]
    unexpected = [k for k in given if k not in state]
    shapes = [
        f"{k}: {tuple(given[k].shape)} instead of {tuple(state[k].shape)}"
        for k in given
        if k in state and given[k].shape != state[k].shape
    ]
    kinds = [
        f"{k}: {given[k].dtype}"
        for k in given
        if k in state and given[k].is_floating_point() != state[k].is_floating_point()
    ]
    rows = [("missing", missing), ("unexpected", unexpected), ("other shape", shapes), ("other type", kinds)]
    found = [f"\n  {what}: {_some(names)}" for what, names in rows if names]
    if found:
        prefixed = all(k.startswith("module.") for k in given)
        hint = "the keys start with 'module.': save model.module.state_dict()" if prefixed else None
        raise UsageError(f"weights {path} do not fit the model:{''.join(found)}", hint=hint)


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
