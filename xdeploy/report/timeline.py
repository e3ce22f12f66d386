"""Which buffers live in the arena at which step, and accuracy against bytes, as the run itself left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError
from xdeploy.files import read_json

FRONT = "front.json"  # of a sweep, two folders above its trials
_FRONT_SCHEMA = "xdeploy.front/1"


def arena(program: Mapping[str, Any]) -> dict[str, Any] | None:
    """The lifetimes in one target's arena; None of a program.json that does not tell them.

    Returns:
        `bytes`, `lower_bound`, `steps` (names of all nodes in order) and `buffers`: `name` (a tensor, or "@" and the
        node whose workspace it is), `offset` and `bytes` in the arena, `first` and `last` step, both included; a last
        step of len(steps) is the end of the inference.
    """
    if "lifetimes" not in program:
        return None
    head = {key: program["arena"][key] for key in ("bytes", "lower_bound")}
    return {**head, "steps": program["steps"], "buffers": program["lifetimes"]}


def points(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy in percent and bytes of what the run measured: float, after every step, deployed.

    Args:
        document: report.json so far: `steps`, `model`, `weights`, `accuracy`.

    Returns:
        rows of `label`, `bytes`, `accuracy`, `n` and `on`, "validation" or "test": the samples counted.
    """
    steps: Sequence[Mapping[str, Any]] = document["steps"]
    rows = []
    for k, step in enumerate(steps):
        if "bytes_after" not in step:
            continue
        if not k:
            rows.append(_point("float32", step["bytes_before"], step["accuracy_before"], step["n"], "validation"))
        rows.append(_point(step["step"], step["bytes_after"], step["accuracy_after"], step["n"], "validation"))
    sizes = {"float": document["model"]["float_bytes"], "deployed": document["weights"]["packed_bytes"]}
    for name, size in sizes.items():
        found = document["accuracy"][name]
        if found and size:
            rows.append(_point(name, size["value"], found["value"], found["n"], "test"))
    return rows


def _point(label: str, size: float, accuracy: float, n: int, on: str) -> dict[str, Any]:
    return {"label": label, "bytes": size, "accuracy": accuracy, "n": n, "on": on}


def front(folder: Path) -> dict[str, Any] | None:
    """The trials of the sweep that the run folder is a trial of; None where it is none, or flash was no objective.

    Returns:
        `target`, `of` (what the bytes are of), and `trials`: rows of `trial`, `bytes`, `accuracy` (validation,
        percent), `on_front`, and `this`: whether it is this run.
    """
    place = folder.resolve().parent.parent
    try:
        value = read_json(place / FRONT, _FRONT_SCHEMA)
    except UsageError:  # no sweep, or a file of that name that is somebody else's
        return None
    members = {m["trial"]: place / m["folder"] for rows in value["front"].values() for m in rows}
    own = next((trial for trial, path in members.items() if path == folder.resolve()), None)
    target = next((t["target"] for t in value["trials"] if t["trial"] == own), None)
    rows = [
        {"trial": t["trial"], "bytes": v["flash"]["value"], "accuracy": v["accuracy"]["value"],
         "on_front": t["on_front"], "this": t["trial"] == own}
        for t in value["trials"]
        if t["target"] == target and (v := t["values"]) and {"flash", "accuracy"} <= set(v)
    ]  # fmt: skip
    return {"target": target, "of": "flash, bytes", "trials": rows} if own is not None and rows else None
