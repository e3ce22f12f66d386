"""ResNet-20 / CIFAR-10 (JPEG) through the whole flow, by the user's own path; writes results/end_to_end.json.

Run: python benchmarks/end_to_end.py [--shared DIR] [--output DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from xdeploy.console import Console
from xdeploy.environment import commit
from xdeploy.files import write_json
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Request

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("x86-64", "cortex-a72", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
WEIGHTS = ("resnet20-cifar10.safetensors", "resnet20-cifar10-jpeg.safetensors")


def measure(shared: Path, weights: str, output: Path) -> dict[str, Any]:
    """One network through the flow; the row of the result file."""
    recipe = Recipe()
    request = Request(
        model="xdeploy.model.zoo:resnet20",
        weights=shared / "models" / weights,
        data=shared / "data" / "cifar10-jpeg-train.zip",
        test_data=shared / "data" / "cifar10-jpeg-test.zip",
        recipe=recipe,
        targets=TARGETS,
        output=output,
    )
    with Console() as console:
        report = run(request, progress=console).report
    assert report is not None
    return {
        "network": weights.removesuffix(".safetensors"),
        "data": "CIFAR-10 (JPEG)",
        "method": f"{report['relevance']['method']} + integer programme + {'/'.join(recipe.plan.formats)}",
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
        "float_accuracy": report["accuracy"]["float"],
        "accuracy": report["accuracy"]["deployed"],
        "float_bytes": report["model"]["float_bytes"],
        "packed_bytes": report["weights"]["packed_bytes"],
        "coded_bytes": report["weights"]["coded_bytes"],
        "macs": report["model"]["macs"],
        "targets": report["targets"],
        "stages": report["stages"],
        "commit": commit(ROOT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--output", type=Path, default=Path("out-benchmarks"))
    args = parser.parse_args()
    rows = [measure(args.shared, w, args.output / w.removesuffix(".safetensors")) for w in WEIGHTS]
    path = ROOT / "benchmarks" / "results" / "end_to_end.json"
    write_json(path, {"schema": "xdeploy.benchmark/1", "runs": rows})
    print(json.dumps({r["network"]: r["accuracy"]["value"] for r in rows}))


if __name__ == "__main__":
    main()
