"""A report document as `collect` makes it, small and written by hand, with names that try to be markup."""

from __future__ import annotations

from typing import Any

NAME = "</script><script>alert(1)</script>\u202e$x$ & \"'"
SHAPE = [4, 4, 8]


def amount(value: float, unit: str = "byte", how: str = "measured", **extra: Any) -> dict[str, Any]:
    return {"value": value, "unit": unit, "how": how, **extra}


def layer(origin: str, k: int, targets: tuple[str, ...], weighted: bool = True) -> dict[str, Any]:
    """The k-th layer: every figure differs from those of the others, and orders differ between figures."""
    counts = {"instructions": amount(100 + 37 * k % 50, "instruction", "emulated"), "note": None, "accelerator": None}
    figures = {"cycles": amount(9.0 * k + 1, "cycle", "modelled"), "energy": amount(1e-6 * (k + 1), "J", "modelled")}
    rows = {t: {"kernel": f"kernel{k}__{t}", **counts, **figures} for t in targets}
    weights = 1000 + k
    return {
        "origin": origin, "op": "conv2d" if weighted else "relu", "shape": SHAPE, "macs": 1000 * (7 * k % 5),
        "weight_format": f"int{2 + 2 * (k % 3)}" if weighted else None, "activation_format": "int8",
        "channels_before": 8, "channels_after": 8 if weighted else None,
        "relevance_share": 0.1 * (k + 1) if weighted else None, "bytes": 300 + 10 * k if weighted else 0,
        "weights": weights if weighted else None, "zeros": weights // 4 if weighted else None, "targets": rows,
    }  # fmt: skip


def target(name: str) -> dict[str, Any]:
    bounded = amount(0.0125, "s", "modelled", low=0.011, high=0.0145)
    return {
        "isa": "armv7em", "runner": "unicorn", "verdict": "bit-exact", "reason": None, "flash": amount(21454),
        "flash_parts": None, "ram": amount(6400), "arena": amount(64), "stack": amount(452, how="emulated"),
        "instructions": amount(595375, "instruction", "emulated"), "cycles": None, "latency": bounded,
        "energy": amount(4.4e-4, "J", "modelled"), "form": "tuned", "classes": None,
    }  # fmt: skip


def steps() -> list[dict[str, Any]]:
    first = {"step": "quantise", "accuracy_before": 99.0, "accuracy_after": 85.5, "n": 200}
    second = {"step": "restore", "accuracy_before": 85.5, "accuracy_after": 98.5, "n": 200}
    return [{**first, "bytes_before": 8000, "bytes_after": 1000}, {**second, "bytes_before": 1000, "bytes_after": 1000}]


def memory() -> dict[str, Any]:
    buffers = [
        {"name": "a", "offset": 0, "bytes": 32, "first": 0, "last": 1},
        {"name": f"@{NAME}", "offset": 32, "bytes": 32, "first": 1, "last": 1},
        {"name": NAME, "offset": 32, "bytes": 16, "first": 2, "last": 3},
    ]
    return {"bytes": 64, "lower_bound": 64, "steps": ["one", NAME, "three"], "buffers": buffers}


def document(*targets: str, count: int = 6) -> dict[str, Any]:
    """A whole report for these targets; the second layer and the second class have a hostile name."""
    layers = [layer(NAME if k == 1 else f"layer{k:02}.conv", k, targets, k != 3) for k in range(count)]
    return {
        "schema": "xdeploy.report/1", "tool": {"name": "xdeploy", "version": "0"},
        "model": {"name": NAME, "sha256": "ab" * 32, "parameters": 2000, "macs": 5, "float_bytes": amount(8000)},
        "data": None, "accuracy": {
            k: amount(v, "%", n=400) for k, v in (("float", 99.5), ("fake_quant", 98.0), ("deployed", 98.0))
        },
        "steps": steps(), "onnx": None, "relevance": None, "fallback": [],
        "weights": {"packed_bytes": amount(1000), "coded_bytes": amount(700), "ratio_to_float": amount(0.125, "1")},
        "layers": layers, "targets": {name: target(name) for name in targets},
        "memory": {name: memory() for name in targets}, "recipe": {"seed": 0, "plan": {"formats": ["int4"]}},
        "stages": {"plan": amount(1.5, "s")}, "stages_memory": {"plan": amount(2**28)},
        "confusion": {"labels": ["0", NAME, "2"], "counts": [[0, 0, 200], [1, 1, 192], [1, 2, 8]]},
        "environment": {
            "cpu": "c", "cores": 2, "system": "s", "python": "p", "xdeploy": "0", "packages": {}, "commit": None,
        },
        "provenance": {"request": {"model": NAME}, "files": {"plan.json": "cd" * 32}, "targets": {}},
        "points": [
            {"label": "float", "bytes": 8000, "accuracy": 99.5, "n": 400, "on": "test"},
            {"label": "deployed", "bytes": 1000, "accuracy": 98.0, "n": 400, "on": "test"},
        ],
        "front": None,
    }  # fmt: skip
