"""What the user asked for, how progress is told, and which stages that request leaves unchanged."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

from xdeploy import __version__
from xdeploy.errors import UsageError
from xdeploy.recipe import Recipe
from xdeploy.store import digest, path_digest
from xdeploy.target import Target


class Progress(Protocol):
    """What the pipeline tells about its work."""

    def stage(self, name: str, seconds: float | None = None) -> None:
        """A stage begins (None) or has ended after `seconds` (0: unchanged, skipped)."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of `what`."""


@runtime_checkable
class Expectant(Protocol):
    """A progress that wants to know how long it all will take."""

    def expect(self, stages: Mapping[str, float]) -> None:
        """Stage -> seconds, in order; 0: it will be skipped."""


class Silent:
    """Progress that goes nowhere."""

    def stage(self, name: str, seconds: float | None = None) -> None:
        """Ignore."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Ignore."""


@dataclass(frozen=True, slots=True)
class Request:
    """One run: what the user gave. `model` is a string, a torch module, or None for the demo."""

    model: Any = None
    weights: Path | None = None
    data: Path | None = None
    test_data: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    targets: tuple[str, ...] = ("arm",)
    output: Path = Path("out")
    plan: Path | None = None


def is_kept(request: Request) -> bool:
    """Whether MODEL is a quantised ONNX file that is lowered as it is, not scored and compressed.

    Raises:
        ModelError: an ONNX file that cannot be read.
    """
    return not request.recipe.compress.further and is_quantised_file(request.model)


def refuse_kept(model: str) -> NoReturn:
    """Raise the UsageError of explaining a file that is quantised and kept as it is."""
    raise UsageError(
        f"{model} is quantised already and kept as it is, so there are no float weights to explain",
        hint="explain the float model, or give --further to take it as one",
    )


def is_quantised_file(model: Any) -> bool:
    """Whether MODEL is an ONNX file that is quantised already.

    Raises:
        ModelError: an ONNX file that cannot be read.
    """
    if not isinstance(model, str) or not model.lower().endswith(".onnx"):
        return False
    from xdeploy.onnxfile import is_quantised

    return is_quantised(Path(model))


def stage_keys(request: Request, targets: Iterable[Target]) -> dict[str, str]:
    """Stage -> hash of all that goes into it, the hashes of the stages before it included."""
    o = request.recipe
    model = request.model if isinstance(request.model, str | None) else _module_digest(request.model)
    paths = [path_digest(p) for p in (request.weights, request.data, request.test_data, _model_file(request.model))]
    paths.append(_data_files(request))
    keys = {"source": digest(model, paths, o.data, o.lower, o.seed, o.threads, _code_digest())}
    keys["score"] = digest(keys["source"], o.relevance)
    keys["explain"] = digest(keys["score"], "explain")
    keys["plan"] = digest(keys["score"], o.plan, o.compress, path_digest(request.plan), _device(o, targets))
    keys["compress"] = digest(keys["plan"], o.recover, o.ecq)
    keys["export"] = digest(keys["compress"])
    keys["lower"] = digest(keys["export"])
    for target in targets:
        keys[target.name] = digest(keys["lower"], repr(target), o.package, o.bench, o.tune, o.build, o.plan.ram)
    keys["accuracy"] = digest(keys["lower"], o.bench.accuracy)
    return keys


def _device(recipe: Recipe, targets: Iterable[Target]) -> str:
    """Changes with all that the plan's budgets for arena and instructions depend on."""
    o = recipe.plan
    table = path_digest(Path(o.instruction_table)) if o.instruction_table else ""
    if o.ram is None and o.instructions is None:
        return ""
    parts = (recipe.package.form, recipe.tune, recipe.build, recipe.data.calibration)
    return digest(table, *parts, *[repr(t) for t in targets])


def _data_files(request: Request) -> str:
    """Changes with the files that an ONNX file keeps its data in."""
    is_onnx = isinstance(request.model, str) and request.model.lower().endswith(".onnx")
    if not is_onnx or not request.recipe.lower.external_data:
        return ""
    from xdeploy.onnxfile import digest as file_digest

    return file_digest(Path(request.model))


def _module_digest(module: Any) -> str:
    state = {k: (list(v.shape), float(v.double().sum())) for k, v in module.state_dict().items()}
    return digest(str(module), state)


def _model_file(model: Any) -> Path | None:
    """The file whose change means another model: the .onnx or .pt2 itself, or the factory's source."""
    if not isinstance(model, str):
        return None
    if ":" not in model:
        return Path(model)
    name = model.partition(":")[0]
    here = Path(*name.split(".")).with_suffix(".py")  # factories are found from the working folder too
    if here.is_file():
        return here
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _code_digest() -> str:
    """Changes when the tool itself does."""

    def rows() -> Iterator[tuple[str, int, int]]:
        kernels = importlib.util.find_spec("xdeploy.kernels")
        folders = kernels.submodule_search_locations if kernels else None
        for folder in (Path(__file__).parent, *map(Path, folders or [])):
            for path in sorted(folder.rglob("*.py")):
                stat = path.stat()
                yield path.name, stat.st_size, stat.st_mtime_ns

    return digest(__version__, list(rows()))
