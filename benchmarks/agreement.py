"""A quantised file as it is against ONNX Runtime on a whole test set; writes results/agreement.json.

Three things are compared: the reference run of the lowered graph, the built host library, and ONNX Runtime, the last
with basic optimisations (integers emulated in float32, exact) and with its default ones (what a user gets, whose
integer kernels may saturate on CPUs without VNNI). Top-1 is the first of the largest output codes; where ONNX Runtime's
own largest code occurs twice, that is counted as a tie.

Run: python benchmarks/agreement.py [--shared DIR] [--output DIR] [--samples N]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.host import HostRunner
from xdeploy.console import Console
from xdeploy.environment import commit
from xdeploy.files import write_json
from xdeploy.formats import Int8
from xdeploy.handover import Artifact, IoSpec, quantity
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lower import lower
from xdeploy.lower.compare import agreement, compare_with_onnx
from xdeploy.lower.runtime import feed, output_codes, run, session
from xdeploy.model.data import load_data
from xdeploy.pipeline import run as build
from xdeploy.request import Request

ROOT = Path(__file__).resolve().parents[1]
MODEL = "mlperf-tiny-ic-resnet8.int8.onnx"
CHUNK, COMPARED = 250, 500


def in_chunks(graph: LoweredGraph, codes: Int8) -> Int8:
    """Output codes of the reference run."""
    parts = [codes[i : i + CHUNK] for i in range(0, len(codes), CHUNK)]
    return np.concatenate([ops.run(graph, part)[graph.output] for part in parts])


def judge(path: Path, io: IoSpec, codes: Int8, default: bool) -> Int8:
    """Output codes of ONNX Runtime."""
    runner = session(path, default=default)
    return output_codes(run(runner, None, feed(runner, io, codes))[0], io)


def measure(path: Path, images: Path, output: Path, samples: int | None) -> dict[str, Any]:
    """The row of the result file. The model takes pixels - 128 as they lie in the image, (H, W, C)."""
    data = load_data(images)
    picked = np.random.default_rng(0).permutation(len(data))[:samples]
    codes, labels = (data.samples[picked].astype(np.int16) - 128).astype(np.int8), data.labels[picked]
    graph = lower(path)
    with Console() as console:
        build(Request(model=str(path), targets=("x86-64",), output=output), progress=console)
    library = HostRunner(Artifact.load(output / "x86-64")).run_many(codes)
    found = {
        "reference": in_chunks(graph, codes), "library": library.reshape(len(codes), -1),
        "onnxruntime_basic": judge(path, graph.io, codes, False),
        "onnxruntime_default": judge(path, graph.io, codes, True),
    }  # fmt: skip
    pairs = [(a, b) for a in ("reference", "library") for b in found if b.startswith("onnx")]
    tops = {k: np.sort(v, axis=1)[:, -2:] for k, v in found.items()}
    return {
        "network": path.stem,
        "data": images.name,
        "n": len(codes),
        "library_equals_reference": bool((found["library"] == found["reference"]).all()),
        "agreement": {f"{a} / {b}": agreement(found[a], found[b]) for a, b in [*pairs, tuple(found)[2:]]},
        "accuracy": {
            k: quantity(float((v.argmax(axis=1) == labels).mean()), "share", "measured") for k, v in found.items()
        },
        "ties_at_the_top": {k: int((v[:, 0] == v[:, 1]).sum()) for k, v in tops.items()},
        "nodes": compare_with_onnx(path, graph, codes[:COMPARED]),
        "nodes_n": min(COMPARED, len(codes)),
        "commit": commit(ROOT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--output", type=Path, default=Path("out-agreement"))
    parser.add_argument("--samples", type=int, help="a random part of the test set")
    args = parser.parse_args()
    images = args.shared / "data" / "cifar10-jpeg-test.zip"
    row = measure(args.shared / "models" / MODEL, images, args.output, args.samples)
    if args.samples is None:
        path = ROOT / "benchmarks" / "results" / "agreement.json"
        write_json(path, {"schema": "xdeploy.benchmark/1", "runs": [row]})
    print(json.dumps(row["agreement"], indent=1))


if __name__ == "__main__":
    main()
