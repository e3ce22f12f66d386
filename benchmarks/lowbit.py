"""Weights of 4 and 2 bits on x86-64, expanded in registers or when the library is built; writes results/lowbit.json.

Linear and convolution networks of random weights, batch 1, one thread: int8, int4, int2 and codebooks of 16 and 4
entries, all but the first with either kind of kernel, at both feature levels, each a library of its own. A C program
calls them in turns with their weights in three states: resident (the same inference again and again), evicted (another
16 MiB were read between), and flushed (in memory only). Ratios are to int8 of the same level, formed within rounds.
Outputs equal the reference.

Run: python benchmarks/lowbit.py [--output DIR] [--only NAME ...] [--rounds N]
Rows are written as they are finished; the others of an earlier run stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.host import HostRunner
from xdeploy.builder import build
from xdeploy.builder.zig import cc
from xdeploy.environment import commit, environment
from xdeploy.files import read_json, write_json
from xdeploy.formats import FORMATS, QParams, requant
from xdeploy.handover import Artifact, GoldenIo, IoSpec, quantity
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.program import Choice, bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "lowbit.json"
SCHEMA = "xdeploy.benchmark/1"
NETWORKS = {  # name -> (channels or features, pixels along a side of convolutions 3x3; 0: linear layers)
    "MLP 735-512-512-256-256-128-128-12": ((735, 512, 512, 256, 256, 128, 128, 12), 0),
    **{f"3 layers {n}-{n}": ((n,) * 4, 0) for n in (128, 512, 768, 1024)},  # around caches of 48 KiB and 2 MiB
    **{
        f"3 convolutions {n}-{n} at {side}x{side}": ((n,) * 4, side)
        for n, side in ((64, 16), (128, 8), (256, 4), (256, 8), (512, 2), (512, 4))
    },
}
TARGETS = {"x86": "x86-64-v3", "vnni": "x86-64-v4-vnni"}  # feature level of the rows -> target that has it alone
FORMS = (("int8", "direct"), *((f, kind) for f in ("int4", "c4s8", "int2", "c2s8") for kind in ("direct", "packed")))
SAMPLES = 4  # inputs whose outputs are compared
SPREAD = 30.0  # standard deviation of outputs, in codes


@dataclass(frozen=True, slots=True)
class Built:
    """A library of one format and kind of kernels."""

    format: str
    kind: str
    artifact: Artifact
    weights: int  # bytes of constants


def network(widths: tuple[int, ...], name: str, side: int = 0, seed: int = 0) -> LoweredGraph:
    """Layers of these widths with random weights of a format, outputs spread over the codes.

    Linear ones; with a `side` convolutions 3x3 of images of so many pixels along either side, padded with codes of 0.
    """
    rng, fmt, q = np.random.default_rng(seed), FORMATS[name], QParams(0.05, 0)
    image, window = ((side, side), (3, 3)) if side else ((), ())
    nodes, tensors = [], {"x0": Tensor((*image, widths[0]), q)}
    for k, (inputs, outputs) in enumerate(pairwise(widths)):
        low, high = (0, 1 << fmt.bits) if fmt.codebook else (-fmt.limit, fmt.limit + 1)
        consts = {"codes": rng.integers(low, high, (outputs, *window, inputs)).astype(np.int8)}
        if fmt.codebook:
            consts["codebook"] = np.sort(rng.integers(-127, 128, 1 << fmt.bits)).astype(np.int8)
        values = fmt.values(consts["codes"], consts.get("codebook")).astype(np.float64)
        size = 74.0 if k == 0 else SPREAD  # of the layer's inputs
        stage = requant(np.full(outputs, SPREAD / (size * np.sqrt((values**2).sum() / outputs))), 0)
        consts |= {"bias": np.zeros(outputs, np.int32), "multiplier": stage.multiplier}
        attrs = {"shift": stage.shift, "in_zero": 0, "out_zero": 0, "low": -128, "high": 127, "weight_format": name}
        if side:
            attrs |= {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
        nodes.append(Node(f"layer{k}", "conv2d" if side else "linear", (f"x{k}",), f"x{k + 1}", attrs, consts))
        tensors[f"x{k + 1}"] = Tensor((*image, outputs), q)
    last = f"x{len(nodes)}"
    io = IoSpec("x0", tensors["x0"].shape, last, tensors[last].shape)
    graph = LoweredGraph(tuple(nodes), tensors, "x0", last, io)
    ops.verify(graph)
    return graph


def built(graph: LoweredGraph, form: tuple[str, str], level: str, folder: Path) -> Built:
    """The network as a library whose layers all have one kind of kernel, its outputs compared."""
    (name, kind), target = form, load_target(TARGETS[level])
    row = f"{graph.nodes[0].op}_s8_{FORMATS[name].short}_{kind}__{level}"
    program = bind(graph, target, f"{name}_{kind}", choice=Choice({n.name: row for n in graph.nodes}))
    codes = np.random.default_rng(1).integers(-128, 128, (SAMPLES, *graph.tensors[graph.input].shape)).astype(np.int8)
    outputs = ops.run(graph, codes)[graph.output]
    golden = GoldenIo(codes.astype(np.float32), codes, outputs)
    artifact = build(program, graph, golden, target, folder, PackageOptions(), {"recipe": {}, "model": {}})
    if not np.array_equal(HostRunner(artifact).run_many(codes), outputs):
        raise AssertionError(f"{row}: outputs differ from the reference")
    return Built(name, kind, artifact, program.weight_bytes)


def called(libraries: list[Built], rounds: int) -> dict[str, np.ndarray]:
    """State -> nanoseconds (libraries, rounds)."""
    heads = [b.artifact.manifest for b in libraries]
    sizes = [max(m[k]["bytes"] for m in heads) for k in ("input", "output", "arena")]
    files = [
        (str((b.artifact.folder / m["products"]["library"]).resolve()), m["symbols"]["run"])
        for b, m in zip(libraries, heads, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        cc(["-O2", str(ROOT / "benchmarks" / "lowbit_caller.c"), "-o", "caller"], Path(folder))
        words = [f"{folder}/caller", *map(str, (rounds, *sizes)), *(word for pair in files for word in pair)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {state: np.array(times, np.float64) for state, times in json.loads(done.stdout).items()}


def spread(values: np.ndarray, unit: str, scale: float = 1.0) -> dict[str, Any]:
    """Median, 10th and 90th percentile."""
    low, middle, high = (float(f"{v * scale:.4g}") for v in np.percentile(values, (10, 50, 90)))
    return quantity(middle, unit, "measured", low=low, high=high, n=len(values))


def measured(name: str, level: str, output: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of one network at one feature level, int8 first."""
    widths, side = NETWORKS[name]
    graphs = {fmt: network(widths, fmt, side) for fmt, _ in FORMS}
    stem = output / level / "-".join(map(str, (*widths, *[f"{side}x{side}"] * (side > 0))))
    libraries = [built(graphs[form[0]], form, level, stem / "_".join(form)) for form in FORMS]
    times = called(libraries, rounds)
    return [
        {
            "network": name, "level": level, "format": b.format, "kernels": b.kind, "weights": b.weights,
            "library": (b.artifact.folder / b.artifact.manifest["products"]["library"]).stat().st_size,
            **{state: {"time": spread(t[k], "s", 1e-9), "to_int8": spread(t[k] / t[0], "1")}
               for state, t in times.items()},
        }
        for k, b in enumerate(libraries)
    ]  # fmt: skip


def told(row: dict[str, Any]) -> str:
    """A line for the terminal."""
    states = ", ".join(
        f"{s} {row[s]['time']['value'] * 1e6:.1f} us ({row[s]['to_int8']['value']:.2f})"
        for s in ("resident", "evicted", "flushed")
    )
    return f"{row['network']} {row['level']} {row['format']} {row['kernels']}: {states}, {row['weights']} bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out-benchmarks") / "lowbit")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=101)
    args = parser.parse_args()
    document: dict[str, Any] = read_json(RESULT, SCHEMA) if RESULT.exists() else {"schema": SCHEMA, "rows": []}
    for name in args.only:
        for level in TARGETS:
            head = {"commit": commit(ROOT), "environment": environment()}
            rows = [{**row, **head} for row in measured(name, level, args.output, args.rounds)]
            kept = [r for r in document["rows"] if (r["network"], r["level"]) != (name, level)]
            document["rows"] = [*kept, *rows]
            write_json(RESULT, document)
            print("\n".join(map(told, rows)), flush=True)


if __name__ == "__main__":
    main()
