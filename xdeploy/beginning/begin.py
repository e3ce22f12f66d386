"""`xdeploy init`: a recipe to begin with, as commented text that knows the model and the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdeploy.beginning.recipetext import Options, render
from xdeploy.check import check
from xdeploy.errors import ModelError
from xdeploy.recipe import Recipe

_KEPT = (
    "data",
    "plan",
    "lower",
    "tune",
    "build",
    "package",
    "bench",
)  # what a file that is kept as it is has to do with
_EPOCHS = 20


@dataclass(frozen=True, slots=True)
class Beginning:
    """The text of a recipe, and what was found out about the model: the document of `xdeploy check`."""

    text: str
    found: Mapping[str, Any]
    command: str  # that builds with it


def begin(
    model: str | None,
    weights: Path | None,
    data: Path | None,
    targets: tuple[str, ...],
    path: Path,
    external_data: bool = False,
) -> Beginning:
    """Write a recipe for a model: the defaults, with suggestions as comments.

    Args:
        model: as `xdeploy build` takes it; None: the demo's.
        weights: safetensors for the factory's module.
        data: tells the input shape, if the model does not.
        targets: names or families that the suggested budgets are for.
        path: where the recipe will lie, for the command told in it.
        external_data: an ONNX file may keep tensors in other files of its own folder.

    Raises:
        UsageError: the model, its data or a target is wrong. ModelError: the model cannot be read.
    """
    recipe = Recipe().with_options({"lower.external_data": external_data})
    found = check(model or "xdeploy.model.zoo:digits_cnn", weights, data, targets, recipe)
    if found["obstacles"] and not found["layers"]:  # nothing is known of it, so there is nothing to suggest
        first = found["obstacles"][0]
        raise ModelError(first["reason"], hint=first["rewrite"] or None)
    kept = found["kind"] == "quantised"
    command = _command(model, weights, data, targets, path, kept)
    command += " --allow-external-data" if external_data else ""
    options = Options(
        _KEPT if kept else (), ("plan.ram",) if kept else (), _suggestions(found, kept),
        {} if kept else {"relevance.method": f"one of {', '.join(_methods())}"}, _head(found, command, kept),
    )  # fmt: skip
    return Beginning(render(options), found, command)


def _methods() -> list[str]:
    from xdeploy.relevance.method import METHODS  # loads torch, which looking at a float model has done already

    return list(METHODS)


def _head(found: Mapping[str, Any], command: str, kept: bool) -> list[str]:
    layers = len(found["layers"])
    lines = [f"A recipe for {found['model']}: every key has its default, so that nothing has to stay.", command, ""]
    lines.append(f"{'Quantised' if kept else 'Float'} model, {layers} layers.")
    if kept:
        lines += [
            "It is lowered as it is: no scoring, planning or training. `compress.further = true` takes it as a float",
            "network and compresses it once more; then the sections of a float model's recipe count too.",
        ]
    for name, row in found["targets"].items():
        lines.append(f"{name}: {'; '.join(row['facts']) or 'see below'}")
    if found["obstacles"]:
        lines.append(f"It cannot be deployed yet: {len(found['obstacles'])} obstacle(s), which `xdeploy check` lists.")
    return lines


def _command(
    model: str | None, weights: Path | None, data: Path | None, targets: Iterable[str], path: Path, kept: bool
) -> str:
    words = ["xdeploy build", *([model] if model else [])]
    words += [f"--weights {weights}"] if weights else []
    words += [f"--data {data}"] if data else ["--data DIR"] if model and not kept else []
    words += [f"--target {name}" for name in targets]
    return " ".join([*words, f"--recipe {path}"])


def _suggestions(found: Mapping[str, Any], kept: bool) -> dict[str, tuple[Any, str]]:
    """Budgets that can be met, by what the model takes on the targets, and what often helps."""
    rows = {name: row for name, row in found["targets"].items() if "arena_bytes" in row}
    made: dict[str, tuple[Any, str]] = {}
    if rows:
        name, row = max(rows.items(), key=lambda item: item[1]["arena_bytes"])
        made["plan.ram"] = (row["arena_bytes"], f"what it takes as it is on {name}{_of(row, 'ram')}; less is tried too")
    if kept:
        return made
    if rows:
        name, row = min(rows.items(), key=lambda item: item[1].get("flash_limit", 1 << 40))
        least = row["weight_bytes"]
        room = min(2 * least, max(row.get("flash_limit", 4 * least) // 2, least))
        made["plan.flash"] = (room, f"the formats of fewest bits take {least:,} bytes on {name}{_of(row, 'flash')}")
    weighted = [x["origin"] for x in found["layers"] if x["op"] in ("conv2d", "linear", "conv_transpose2d")]
    if weighted:
        ends = dict.fromkeys((weighted[0], weighted[-1]), "int8")
        made["plan.fixed"] = (ends, "the first and the last layer keep 8 bits")
    made["recover.epochs"] = (_EPOCHS, "fine-tuning, where a budget costs accuracy")
    return made


def _of(row: Mapping[str, Any], what: str) -> str:
    limit = row.get(f"{what}_limit")
    return f", which has {limit:,}" if limit else ""
