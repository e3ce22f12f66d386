"""What a run's numbers come from: machine, versions, hashes; and how long and how large each stage was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdeploy.files import read_json
from xdeploy.handover import Measurement, quantity

_MODEL_FILES = ("relevance.npz", "plan.json", "compressed.safetensors", "model.xdc", "model.onnx", "graph.npz")


def provenance(folder: Path, run: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    """What report.json tells about where the run's results come from.

    Args:
        folder: the run folder.
        run: content of its run.json.
        targets: names of the target folders below it.

    Returns:
        `request` (model, weights, data, test_data as they were given), `files` (SHA-256 of the run's objects, as
        recorded when they were written) and `targets`: by name the `tools` (versions), the SHA-256 of `recipe` and of
        `manifest`, the model's and the packed weights' (`weights_crc32`), and the `environment` of the measurement.
    """
    recorded = {name: digest for row in run["stages"].values() for name, digest in row.get("files", {}).items()}
    return {
        "request": {k: v for k, v in run["request"].items() if k not in ("recipe", "targets")},
        "files": {name: recorded[name] for name in _MODEL_FILES if name in recorded},
        "targets": {name: _target(folder / name, recorded.get(f"{name}/manifest.json")) for name in targets},
    }


def _target(folder: Path, digest: str | None) -> dict[str, Any]:
    manifest = read_json(folder / "manifest.json", "xdeploy.manifest/1")
    return {
        "tools": manifest.get("tools", {}),
        "manifest_sha256": digest,
        "recipe_sha256": manifest.get("recipe_sha256"),
        "weights_crc32": manifest.get("weights_crc32"),
        "environment": dict(Measurement.load(folder / "bench.json").environment),
    }


def stages(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Seconds of each stage."""
    return {name: quantity(row["seconds"], "s", "measured") for name, row in run["stages"].items()}


def stages_memory(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Peak resident memory of each stage, its processes together, of those that recorded it."""
    note = "this process and those that it started, at the same time"
    return {
        name: quantity(row["peak_rss"], "byte", "measured", note=row.get("peak_rss_note", note))
        for name, row in run["stages"].items()
        if row.get("peak_rss") is not None
    }
