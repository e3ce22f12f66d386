"""What all processes of one sweep agree on, and the run that a point of its space stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from xdeploy import __version__
from xdeploy.errors import UsageError, choose_from
from xdeploy.files import read_json, sha256, write_json
from xdeploy.recipe import Recipe
from xdeploy.request import Request, is_kept
from xdeploy.store import digest
from xdeploy.sweep.boards import Boards, boards_of
from xdeploy.sweep.objectives import Objective, objectives_of
from xdeploy.sweep.space import RECIPE, Space
from xdeploy.target import resolve_targets

SCHEMA = "xdeploy.sweep/1"
SAMPLERS = ("auto", "grid", "tpe", "nsga2", "random")
_TPE_UP_TO = 100  # trials; above, populations have time to develop


@dataclass(frozen=True, slots=True)
class Definition:
    """One sweep. Equal definitions are one study, wherever they run; `trials` may grow.

    recipes: by name, resolved; the first is the base where the space has no recipes. inputs: hashes of model, weights
    and data. targets: names, in order. threads: of torch in every trial, as float sums depend on it. boards: that time
    trials.
    """

    model: str | None
    weights: str | None
    data: str | None
    test_data: str | None
    recipes: Mapping[str, Recipe]
    space: Space
    targets: tuple[str, ...]
    objectives: tuple[Objective, ...]
    sampler: str
    seed: int
    threads: int
    inputs: Mapping[str, str]
    boards: Boards = field(default_factory=Boards)

    @property
    def name(self) -> str:
        """Of the study: changes with everything that trials depend on, and with nothing else."""
        parts = {k: v for k, v in self.to_dict().items() if k not in ("weights", "data", "test_data", "model")}
        parts["boards"] = self.boards.kinds
        parts["targets"] = [Path(t).stem for t in self.targets]  # the hashes of users' own files are in `inputs`
        return f"xdeploy-{digest(parts, __version__)[:16]}"

    def recipe(self, options: Mapping[str, Any]) -> Recipe:
        """The recipe of a point of the space.

        Raises:
            UsageError: a combination that the recipe refuses.
        """
        base = self.recipes[options[RECIPE]] if RECIPE in options else next(iter(self.recipes.values()))
        changes = {k: v for k, v in options.items() if k != RECIPE}
        return base.with_options(changes | {"threads": self.threads})

    def request(self, options: Mapping[str, Any], target: str, output: Path, model: Any = None) -> Request:
        """The run of a point on one target; `model`: a torch module instead of the name."""

        def path(text: str | None) -> Path | None:
            return None if text is None else Path(text)

        return Request(
            self.model if model is None else model, path(self.weights), path(self.data), path(self.test_data),
            self.recipe(options), (target,), output,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        return value | {
            "recipes": {k: r.to_dict() for k, r in self.recipes.items()}, "space": self.space.to_dict(),
            "objectives": [o.name for o in self.objectives], "inputs": dict(self.inputs), "targets": list(self.targets),
            "boards": {"via": dict(self.boards.via), "remote": self.boards.remote},
        }  # fmt: skip

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Definition:
        """Read the JSON form."""
        known = {f.name: value[f.name] for f in fields(Definition)}
        return Definition(
            **known | {
                "recipes": {k: recipe_from(r) for k, r in value["recipes"].items()},
                "space": Space.from_dict(value["space"]), "objectives": objectives_of(value["objectives"]),
                "targets": tuple(value["targets"]), "boards": Boards(**value["boards"]),
            }
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the JSON form."""
        write_json(path, {"schema": SCHEMA, "study": self.name, **self.to_dict()})

    @staticmethod
    def load(path: Path) -> Definition:
        """Read what `save` wrote.

        Raises:
            UsageError: it is missing or no such file.
        """
        try:
            return Definition.from_dict(read_json(path, SCHEMA))
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is no sweep of this version: {error!r}") from None


def recipe_from(value: Mapping[str, Any]) -> Recipe:
    """The recipe whose `to_dict` this is.

    Raises:
        UsageError: an unknown key or a wrong value.
    """
    changes: dict[str, Any] = {}
    for key, entry in value.items():
        if is_dataclass(getattr(Recipe(), key, None)) and isinstance(entry, Mapping):
            changes |= {f"{key}.{k}": v for k, v in entry.items()}
        else:
            changes[key] = entry
    return Recipe().with_options(changes)


def define(
    model: Any,
    paths: Mapping[str, Path | None],
    recipes: Mapping[str, Recipe],
    space: Space,
    targets: Sequence[str],
    objectives: Sequence[str],
    sampler: str,
    trials: int | None,
    seed: int,
    threads: int,
    via: Sequence[str] = (),
    remote: bool = False,
) -> Definition:
    """Check what the user gave and put it together; `paths`: weights, data, test_data; `via`, `remote`: of boards.

    Raises:
        UsageError: unknown names, a path that does not exist, a space that the sampler cannot cover, or a model that is
            quantised already and kept as it is.
    """
    if sampler not in SAMPLERS:
        raise choose_from("sampler", sampler, SAMPLERS)
    if not space.dimensions:
        raise UsageError(
            "a sweep needs something to vary", hint="give --space FILE, --recipes A B or --budgets flash=32K,24K"
        )
    if not 1 <= threads <= 256:
        raise UsageError(f"threads must be in 1..256, got {threads}")
    resolved = resolve_targets(list(targets))
    names = tuple(t.name for t in resolved)
    chosen = _sampler(sampler, space, trials)
    inputs = {"model": _model_hash(model), **{k: tree_hash(p) for k, p in paths.items()}}
    inputs |= {Path(t).stem: sha256(Path(t)) for t in targets if t.endswith(".toml")}
    texts = {k: None if p is None else str(p.resolve()) for k, p in paths.items()}
    found = Definition(
        model if isinstance(model, str | None) else type(model).__qualname__,
        texts["weights"], texts["data"], texts["test_data"], recipes, space, _as_given(targets, names),
        objectives_of(objectives), chosen, seed, threads, inputs, boards_of(via, resolved, remote),
    )  # fmt: skip
    _try(found, model)
    return found


def _as_given(targets: Sequence[str], names: tuple[str, ...]) -> tuple[str, ...]:
    """Families as their members; a target's own file by its path, as it has to be found again."""
    files = {resolve_targets([t])[0].name: str(Path(t).resolve()) for t in targets if t.endswith(".toml")}
    return tuple(files.get(n, n) for n in dict.fromkeys(names))


def _sampler(name: str, space: Space, trials: int | None) -> str:
    chosen = name if name != "auto" else ("grid" if space.is_finite else "")
    if chosen == "grid":
        space.grid()
        return chosen
    if trials is None:
        raise UsageError("a space with ranges has no end", hint="say how many trials: --trials 50")
    return chosen or ("tpe" if trials <= _TPE_UP_TO else "nsga2")


def _try(found: Definition, model: Any) -> None:
    """Refuse before anything is written: each recipe alone, and a model that nothing can be chosen for."""
    for name in found.recipes:
        request = found.request({RECIPE: name}, found.targets[0], Path("."), model)
        for path in (request.weights, request.data, request.test_data):
            if path is not None and not path.exists():
                raise UsageError(f"{path} does not exist")
        if isinstance(model, str) and model.lower().endswith((".onnx", ".pt2")) and not Path(model).exists():
            raise UsageError(f"{model} does not exist")
        if is_kept(request):
            raise UsageError(
                f"{model} is quantised already and kept as it is: no recipe changes it",
                hint="--set compress.further=true compresses it once more",
            )


def tree_hash(path: Path | None) -> str:
    """Hash of a file's content, or of the names and sizes below a folder: the same on every machine that has a copy."""
    if path is None or not path.exists():
        return ""
    if path.is_file():
        return sha256(path)
    rows = [(str(p.relative_to(path)), p.stat().st_size) for p in sorted(path.rglob("*")) if p.is_file()]
    return digest(rows)


def _model_hash(model: Any) -> str:
    if model is None:
        return ""
    if not isinstance(model, str):
        state = {k: (list(v.shape), float(v.double().sum())) for k, v in model.state_dict().items()}
        return digest(str(model), state)
    path = Path(model)
    return sha256(path) if path.suffix in (".onnx", ".pt2") and path.is_file() else model


def shown(options: Mapping[str, Any]) -> str:
    """A point of the space in a few words."""
    return ", ".join(f"{k.removeprefix('plan.')}={_short(v)}" for k, v in options.items()) or "as it is"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
