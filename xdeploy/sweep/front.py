"""Which trials no other one beats, and front.json: they, measured on the test data, and every other trial in short."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from xdeploy import __version__
from xdeploy.files import sha256
from xdeploy.pipeline import run
from xdeploy.request import Progress
from xdeploy.sweep.definition import Definition, shown
from xdeploy.sweep.objectives import Objective
from xdeploy.sweep.shared import run_shared
from xdeploy.sweep.work import trial_folder

SCHEMA = "xdeploy.front/1"
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass(frozen=True, slots=True)
class Point:
    """A trial's position and its objectives' values, in their order."""

    position: int
    values: tuple[float, ...]


def dominates(a: Sequence[float], b: Sequence[float], objectives: Sequence[Objective]) -> bool:
    """Whether a is nowhere worse than b, and somewhere better."""
    rows = list(zip(objectives, a, b, strict=True))
    return not any(o.better(y, x) for o, x, y in rows) and any(o.better(x, y) for o, x, y in rows)


def pareto(points: Sequence[Point], objectives: Sequence[Objective]) -> list[Point]:
    """The points that none dominates, best in the first objective first; of equal ones that of the lowest position.

    After sorting no point is dominated by a later one, so each is held against those that stay alone.
    """
    sign = [-1.0 if o.name == "accuracy" else 1.0 for o in objectives]
    ordered = sorted(points, key=lambda p: (*(s * v for s, v in zip(sign, p.values, strict=True)), p.position))
    kept: list[Point] = []
    for p in ordered:
        if not any(dominates(q.values, p.values, objectives) or q.values == p.values for q in kept):
            kept.append(p)
    return kept


def fronts(settled: Mapping[int, FrozenTrial], definition: Definition) -> dict[str, list[int]]:
    """The positions on the front of each target: figures of different targets are not held against each other."""
    found: dict[str, list[int]] = {}
    for target in definition.targets:
        points = [
            Point(p, tuple(t.values))
            for p, t in settled.items()
            if t.state == TrialState.COMPLETE and t.user_attrs["target"] == target
        ]
        found[target] = [p.position for p in pareto(points, definition.objectives)]
    return found


def finish(
    settled: Mapping[int, FrozenTrial], definition: Definition, output: Path, progress: Progress, model: Any = None
) -> dict[str, Any]:
    """Measure the front's members on the test data, remove the other trials' folders, and give front.json's content.

    Raises:
        XdeployError: a member cannot be built or measured.
    """
    chosen = fronts(settled, definition)
    members: dict[str, list[dict[str, Any]]] = {}
    done, total = 0, sum(map(len, chosen.values()))
    for target, positions in chosen.items():
        rows = members.setdefault(Path(target).stem, [])
        for position in positions:
            progress("test data", done, total)
            rows.append(_member(settled[position], definition, output, model))
            done += 1
    kept = {trial_folder(output, p) for positions in chosen.values() for p in positions}
    for folder in sorted((output / "trials").glob("*")):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    on_front = {p for positions in chosen.values() for p in positions}
    return {
        "schema": SCHEMA,
        "tool": {"name": "xdeploy", "version": __version__},
        "study": {"name": definition.name, "sampler": definition.sampler, "seed": definition.seed,
                  "threads": definition.threads, "trials": _counts(settled),
                  "boards": dict(definition.boards.via)},
        "model": definition.model,
        "objectives": [{"name": o.name, "direction": o.direction} for o in definition.objectives],
        "space": definition.space.to_dict(),
        "targets": list(members),
        "front": members,
        "trials": [_row(t, on_front) for t in settled.values()],
    }  # fmt: skip


def _member(t: FrozenTrial, definition: Definition, output: Path, model: Any) -> dict[str, Any]:
    """Run a trial to its end; its earlier stages are there, or are made again where another machine ran it."""
    position, options = t.user_attrs["position"], t.user_attrs["options"]
    folder = trial_folder(output, position)
    request = definition.request(options, t.user_attrs["target"], folder, model)
    run_shared(request, output / "stages")
    report = run(request).report
    assert report is not None
    accuracy = report["accuracy"]
    return {
        "trial": position, "options": options, "values": t.user_attrs["quantities"],
        "test_accuracy": accuracy["deployed"] or accuracy["fake_quant"], "float_test_accuracy": accuracy["float"],
        "folder": str(folder.relative_to(output)), "report": str(folder.relative_to(output) / "report.html"),
        "compressed_sha256": sha256(folder / "compressed.safetensors"),
        "same_as_in_the_study": sha256(folder / "compressed.safetensors") == t.user_attrs["sha256"],
    }  # fmt: skip


def _row(t: FrozenTrial, on_front: set[int]) -> dict[str, Any]:
    """A trial in short."""
    attributes = t.user_attrs
    return {
        "trial": attributes["position"], "target": Path(attributes["target"]).stem, "state": _STATES[t.state],
        "options": attributes.get("options"), "values": attributes.get("quantities"),
        "reason": attributes.get("reason"), "on_front": attributes["position"] in on_front,
    }  # fmt: skip


def _counts(settled: Mapping[int, FrozenTrial]) -> dict[str, int]:
    states = [_STATES[t.state] for t in settled.values()]
    return {name: states.count(name) for name in _STATES.values()}


def line(t: FrozenTrial) -> str:
    """A settled trial in one line of progress."""
    a = t.user_attrs
    head = f"trial {a['position']} {Path(a['target']).stem} {shown(a.get('options') or {})}"
    if t.state == TrialState.COMPLETE:
        return f"{head}: " + ", ".join(f"{k} {q['value']:,.7g}" for k, q in a["quantities"].items())
    return f"{head}: {_STATES[t.state]}: {str(a.get('reason')).splitlines()[0]}"
