"""Artifacts as files, without building: the smallest folder that `xdeploy check` accepts, every figure to be chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNITS = {
    "flash": "byte", "ram": "byte", "arena": "byte", "stack": "byte", "instructions": "instruction",
    "cycles": "cycle", "latency": "s", "energy": "J",
}  # fmt: skip
FIGURES = {
    "flash": 10_000, "ram": 2_000, "arena": 1_800, "stack": 300, "instructions": 1_000_000, "cycles": 1_500_000,
    "latency": 0.0125, "energy": 0.0005,
}  # fmt: skip
HOW = {"flash": "measured", "ram": "measured", "arena": "measured", "stack": "emulated", "instructions": "emulated"}
Layer = tuple[str, str, int, int]  # name, kernel, instructions, bytes
LAYERS: tuple[Layer, ...] = (
    ("stem", "conv2d_s8_s8_3x2__armv7em", 600_000, 1_000),
    ("body", "conv2d_s8_c4s8_4x2__armv7em", 300_000, 500),
    ("head", "linear_s8_s4_1x2__tir", 100_000, 200),
)
SHA = "ab" * 32


def quantity(key: str, value: Any, **extra: Any) -> dict[str, Any]:
    """A quantity of bench.json."""
    return {"value": value, "unit": UNITS[key], "how": HOW.get(key, "modelled"), **extra}


def write(path: Path, value: Any) -> None:
    """JSON, the folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def artifact(
    folder: Path,
    figures: Mapping[str, Any] = FIGURES,
    *,
    verdict: str = "bit-exact",
    reason: str | None = None,
    layers: tuple[Layer, ...] = LAYERS,
    bars: Mapping[str, tuple[float, float]] | None = None,
    accuracy: tuple[float | None, float | None, int] | None = (90.0, 91.0, 1000),
    bench: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """Write OUT/<target> and OUT/accuracy.json; gives the target's folder.

    figures: those that are there. bars: (low, high) by figure. accuracy: deployed and float in percent, samples.
    bench, manifest: what replaces their keys.
    """
    bars = bars or {}
    values = {
        k: quantity(k, v, **dict(zip(("low", "high"), bars.get(k, ()), strict=False))) for k, v in figures.items()
    }
    flash, arena = figures.get("flash", 10), figures.get("arena", 20)
    rows = [{"node": n, "kernel": k, "instructions": c} for n, k, c, _ in layers]
    measured = {
        "schema": "xdeploy.bench/1", "target": folder.name, "runner": "unicorn", "verdict": verdict, "reason": reason,
        "layers": rows, "quantities": values, "environment": {},
        "tells": {"can": [], "cannot": {"latency": "an emulator has no pipeline"}},
    }  # fmt: skip
    about = {
        "schema": "xdeploy.manifest/1", "target": folder.name, "isa": "armv7em", "form": "tuned", "model": "net",
        "flash": {"code": flash, "constants": 0, "data": 0, "zeros": 0}, "arena": {"bytes": arena},
        "tools": {"xdeploy": "0.1.0"}, "provenance": {"model": {"name": "net", "sha256": SHA}},
    }  # fmt: skip
    nodes = [{"name": n, "op": k.split("_")[0], "kernel": k, "bytes": b} for n, k, _, b in layers]
    write(folder / "bench.json", {**measured, **(bench or {})})
    write(folder / "manifest.json", {**about, **(manifest or {})})
    write(folder / "program.json", {"schema": "xdeploy.program/1", "nodes": nodes})
    if accuracy is not None:
        first, second, n = accuracy
        quantities = [
            None if x is None else {"value": x, "unit": "%", "how": "measured", "n": n} for x in (first, second)
        ]
        found = dict(zip(("deployed", "float"), quantities, strict=True))
        write(folder.parent / "accuracy.json", {"schema": "xdeploy.accuracy/1", **found})
    return folder
