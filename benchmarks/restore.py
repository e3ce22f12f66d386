"""What giving hidden outputs their moments back is worth without training; writes results/restore.json.

Each row goes through the whole flow twice, with `compress.restore` and without: formats and zeros everywhere alike,
filters by relevance. Accuracy on the test data by the built code. Rows that are there for the same recipe, seed and
float weights are kept.

    python benchmarks/restore.py --shared ../shared --work out-compression --network resnet20
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from campaign.networks import NETWORKS, Place, Ready
from campaign.rows import Job, Results, key_of, measure

from xdeploy.recipe import Recipe

HERE = Path(__file__).resolve().parent
PLAIN = {"plan.rule": "uniform"}
CASES: dict[str, dict[str, Any]] = {
    "int4": {"plan.formats": ["int4"]},
    "int3": {"plan.formats": ["int3"]},
    "int2": {"plan.formats": ["int2"]},
    "c2s8": {"plan.formats": ["c2s8"]},
    "zeros-70": {"plan.formats": ["int8"], "plan.density": 0.3},
    "zeros-80": {"plan.formats": ["int8"], "plan.density": 0.2},
    "filters-75": {"plan.formats": ["int8"], "plan.channels": 0.75},
    "filters-75-layer": {"plan.formats": ["int8"], "plan.channels": 0.75, "plan.channels_by": "layer"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help="folder with data/ and models/")
    parser.add_argument("--work", type=Path, default=Path("out-compression"), help="float weights and run folders")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = Results(HERE / "results" / "restore.json")
    net = NETWORKS[args.network]
    ready = Ready(net, Place(args.shared.resolve(), args.work.resolve()), args.seed, 0)  # nothing is trained here
    for name, options in CASES.items():
        told = []
        for restore in (False, True):
            settings = PLAIN | options | {"compress.restore": restore, "seed": args.seed, "threads": net.threads}
            id = f"restore/{net.name}/{name}/{'on' if restore else 'off'}/{args.seed}"
            # `kind`: rows of one network share a folder, and with it the scores
            job = Job(id, net.name, "restore", name, args.seed, Recipe().with_options(settings), {"kind": "restore"})
            row = results.kept(id, key_of(job, ready.weights))
            if row is None:
                row = measure(job, ready)
                results.put(row)
            told.append(row["accuracy"]["value"])
        print(f"{net.name} {name}: {told[0]:.2f} % as it is, {told[1]:.2f} % restored", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
