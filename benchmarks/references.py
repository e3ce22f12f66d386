"""How many reference samples relevance needs; writes results/references.json.

70 % zeros without training, LRP deciding each layer's share (magnitude choosing inside) or each weight, and a quarter
of the channels gone by LRP: from 8 up to 2,048 samples, several seeds (which draw the samples), moments given back.
Accuracy on the test data by the built code. Rows that are there for the same recipe, seed and float weights are kept.

    python benchmarks/references.py --shared ../shared --work out-compression --network resnet20
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from campaign.networks import NETWORKS, Place, Ready
from campaign.rows import Job, Results, key_of, measure

from xdeploy.recipe import Recipe

HERE = Path(__file__).resolve().parent
COUNTS = (8, 32, 128, 512, 2048)
CASES: dict[str, dict[str, Any]] = {
    "zeros-70": {"plan.density": 0.3, "plan.density_by": "relevance"},
    "zeros-70-weights": {"plan.density": 0.3, "plan.density_by": "relevance", "plan.zeros": "relevance"},
    "filters-75": {"plan.channels": 0.75},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help="folder with data/ and models/")
    parser.add_argument("--work", type=Path, default=Path("out-compression"), help="float weights and run folders")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    results = Results(HERE / "results" / "references.json")
    net = NETWORKS[args.network]
    place = Place(args.shared.resolve(), args.work.resolve())
    for name, options in CASES.items():
        for count in COUNTS:
            rows = [_row(results, Ready(net, place, seed, 0), name, options, count) for seed in args.seeds]
            values = [row["accuracy"]["value"] for row in rows]
            words = ", ".join(f"{v:.2f}" for v in values)
            print(f"{net.name} {name}, {count} samples: {fmean(values):.2f} % ({words})", file=sys.stderr, flush=True)


def _row(results: Results, ready: Ready, name: str, options: dict[str, Any], count: int) -> dict[str, Any]:
    settings = {"plan.rule": "uniform", "plan.formats": ["int8"], "relevance.samples": count} | options
    recipe = Recipe().with_options(settings | {"seed": ready.seed, "threads": ready.net.threads})
    id = f"references/{ready.net.name}/{name}/{count}/{ready.seed}"
    # `kind`: rows with the same scores share a folder
    job = Job(id, ready.net.name, "lrp", name, ready.seed, recipe, {"kind": "references", "samples": count})
    row = results.kept(id, key_of(job, ready.weights))
    if row is None:
        row = measure(job, ready)
        results.put(row)
    return row


if __name__ == "__main__":
    main()
