"""One row of the results: a recipe run through the whole flow, and the file that keeps the rows.

A row stays when the program is started again if its recipe, seed and float weights are the same; it keeps the commit
that it was made at.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaign.networks import Ready
from xdeploy.console import Console
from xdeploy.errors import PlanError
from xdeploy.files import read_json, sha256, write_json
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Request

ROOT = Path(__file__).resolve().parents[2]
TARGET = "x86-64"  # fast on the host; all targets compute the same codes
SCHEMA = "xdeploy.benchmark/1"


@dataclass(frozen=True, slots=True)
class Job:
    """One row to make. `cell`: further keys of the row (of the comparison: kind, point and so on)."""

    id: str
    network: str
    method: str
    name: str
    seed: int
    recipe: Recipe
    cell: Mapping[str, Any]


def commit() -> dict[str, Any]:
    """The commit of the project, and whether the tool's files differ from it."""

    def git(*args: str) -> str:
        command = ["git", "--no-optional-locks", *args]  # the index stays as it is
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {"commit": git("rev-parse", "HEAD"), "uncommitted": bool(git("status", "--porcelain", "xdeploy", "kernels"))}


def changed(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe that are not the default, by dotted key."""
    mine, usual = asdict(recipe), asdict(Recipe())
    found = {k: v for k, v in mine.items() if not isinstance(v, dict) and v != usual[k]}
    for section, options in mine.items():
        if isinstance(options, dict):
            found |= {f"{section}.{k}": v for k, v in options.items() if v != usual[section][k]}
    return found


def key_of(job: Job, weights: Path) -> str:
    """Changes with all that decides a row: network, options that are not the default, seed and float weights.

    Options that the tool learns later leave rows as they are; how it works may change, which a row's commit tells.
    """
    told = json.dumps([job.network, changed(job.recipe), job.seed, sha256(weights)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


class Results:
    """The rows of one result file, by id; written after every row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = read_json(path, SCHEMA) if path.exists() else {"runs": []}
        self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in found["runs"]}
        self.chosen: dict[str, dict[str, Any]] = found.get("chosen", {})

    def kept(self, id: str, key: str) -> dict[str, Any] | None:
        """The row, if it is of this key."""
        row = self.rows.get(id)
        return row if row is not None and row["key"] == key else None

    def put(self, row: dict[str, Any]) -> None:
        """Take a row in and write the file."""
        self.rows[row["id"]] = row
        self.save()

    def save(self) -> None:
        """Write the file, rows in the order of their ids."""
        rows = [self.rows[k] for k in sorted(self.rows)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"schema": SCHEMA, "chosen": self.chosen, "runs": rows})


def request_of(job: Job, ready: Ready, folder: Path) -> Request:
    """The user's own request for a job."""
    given = ready.given
    return Request(ready.net.model, ready.weights, given.data, given.test_data, job.recipe, (TARGET,), folder)


def folder_of(job: Job, ready: Ready) -> Path:
    """Cells of a comparison with the same scores share a folder, so that the scores are taken once."""
    runs = ready.place.work / "runs"
    if "kind" not in job.cell:
        return runs / job.id.replace("/", "-")
    scores = hashlib.sha256(repr(job.recipe.relevance).encode()).hexdigest()[:8]
    return runs / f"cells-{job.network}-{job.seed}-{scores}"


def measure(job: Job, ready: Ready) -> dict[str, Any]:
    """Run a job through the whole flow.

    Raises:
        XdeployError: any but a plan that cannot be met, which makes a row with a reason and no number.
        RuntimeError: the built code does not compute the reference's codes, or the float network was trained less.
    """
    if job.recipe.recover.epochs > ready.schedule.epochs:
        raise RuntimeError(
            f"{job.id}: trains {job.recipe.recover.epochs} epochs, the float network only {ready.schedule.epochs} more;"
            f" give --further {job.recipe.recover.epochs}"
        )
    if job.recipe.data.validation < ready.net.validation:
        raise RuntimeError(f"{job.id}: trains on more data than the float network: data.validation is below its share")
    row = {"id": job.id, "key": key_of(job, ready.weights), **_head(job, ready)}
    start = time.monotonic()
    try:
        with Console() as console:
            report = run(request_of(job, ready, folder_of(job, ready)), progress=console).report
    except PlanError as error:
        return row | {"reason": error.message} | commit()
    assert report is not None
    verdict = report["targets"][TARGET]["verdict"]
    if verdict != "bit-exact":
        raise RuntimeError(f"{job.id}: {TARGET} is {verdict}: {report['targets'][TARGET]['reason']}")
    return row | _figures(report, ready) | {"seconds": round(time.monotonic() - start, 1)} | commit()


def _head(job: Job, ready: Ready) -> dict[str, Any]:
    return {
        "network": job.network, "method": job.method, "recipe": {"name": job.name, "options": changed(job.recipe)},
        "seed": job.seed, **job.cell, "baseline": ready.baseline,
    }  # fmt: skip


def _figures(report: Mapping[str, Any], ready: Ready) -> dict[str, Any]:
    accuracy, relevance = report["accuracy"], report["relevance"] or {}
    steps = report["steps"]
    coded, size = report["weights"]["coded_bytes"], report["model"]["float_bytes"]
    ratios = {k: size["value"] / report["weights"][k]["value"] for k in ("packed_bytes", "coded_bytes")}
    return {
        "data": {k: report["data"][k] for k in ("name", "fingerprint", "test")} | {"words": ready.net.data},
        "float_accuracy": accuracy["float"], "accuracy": accuracy["deployed"],
        "validation_accuracy": steps[-1]["accuracy_after"] if steps else None,
        "loss": ready.best - accuracy["deployed"]["value"],
        "float_bytes": size, "packed_bytes": report["weights"]["packed_bytes"], "coded_bytes": coded,
        "packed_ratio": ratios["packed_bytes"], "coded_ratio": ratios["coded_bytes"],
        "macs": sum(layer["macs"] for layer in report["layers"]), "macs_before": report["model"]["macs"],
        "survival": relevance.get("survival"), "verdict": report["targets"][TARGET]["verdict"],
    }  # fmt: skip


def validation_of(job: Job, ready: Ready) -> float | None:
    """Validation accuracy in percent after compression, without building anything; None: the plan cannot be met."""
    folder = folder_of(job, ready)
    try:
        with Console() as console:
            run(request_of(job, ready, folder), until="compress", progress=console)
    except PlanError:
        return None
    return float(read_json(folder / "compressed.json", "xdeploy.compressed/1")["steps"][-1]["accuracy_after"])
