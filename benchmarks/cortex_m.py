"""Whole networks and single layers on Cortex-M, beside TFLite Micro with CMSIS-NN; writes results/cortex_m.json.

Everything is built by the user's own path and counted in the emulators: executed instructions are deterministic, so the
figures are the same on any machine. The peer's were measured once in the same emulators on the same files and inputs
(TFLite Micro with CMSIS-NN of 2026-07, GCC 12.2; on the M55 CMSIS-NN compiled by clang 19, which is better there).

Run: python benchmarks/cortex_m.py [--shared DIR] [--output DIR] [--only networks|zoo|formats]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.console import Console
from xdeploy.environment import commit
from xdeploy.files import read_json, write_json
from xdeploy.formats import FORMATS, QParams, requant
from xdeploy.handover import GoldenIo, IoSpec
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Request
from xdeploy.target import load_target

ROOT = Path(__file__).resolve().parents[1]
CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
FILES = {"resnet8": "mlperf-tiny-ic-resnet8.int8.onnx", "kws": "mlperf-tiny-kws-dscnn.int8.onnx"}
# TFLite Micro + CMSIS-NN: instructions, flash (code, constants and model), RAM (arena and static)
PEERS: dict[tuple[str, str], dict[str, int]] = {
    ("resnet8", "cortex-m4"): {"instructions": 29_860_763, "flash": 149_480, "ram": 56_468},
    ("kws", "cortex-m4"): {"instructions": 7_698_289, "flash": 107_116, "ram": 24_280},
    ("resnet8", "cortex-m55"): {"instructions": 4_421_588, "flash": 153_168, "ram": 56_480},
    ("kws", "cortex-m55"): {"instructions": 1_696_800, "flash": 109_712, "ram": 28_800},
    ("resnet8", "cortex-m7"): {"instructions": 29_934_795, "flash": 155_720, "ram": 56_448},
    ("kws", "cortex-m7"): {"instructions": 7_761_625, "flash": 112_104, "ram": 24_272},
}
ZOO = {
    "ResNet-20": ("xdeploy.model.zoo:resnet20", (3, 32, 32), 10, "int8"),
    "MobileNetV1 0.25, 96x96": ("xdeploy.model.zoo:mobilenet_v1_025", (3, 96, 96), 2, "int8"),
    "MLP 735-512-512-256-256-128-128-12": ("xdeploy.model.zoo:mlp", (735,), 12, "int4"),
}
LAYERS = ((8, 16), (8, 32), (8, 64), (16, 32))  # image side, channels of a 3x3 convolution


def built(request: Request) -> dict[str, dict[str, Any]]:
    """Target -> bench.json and program.json of what a request builds."""
    with Console() as console:
        run(request, until="build", progress=console)
    return {
        t: {n: json.loads((request.output / t / f"{n}.json").read_text()) for n in ("bench", "program")}
        for t in request.targets
    }


def row(network: str, target: str, found: dict[str, Any]) -> dict[str, Any]:
    """One network on one target: totals, instructions by layer, and the peer where there is one."""
    q, nodes = found["bench"]["quantities"], {n["name"]: n for n in found["program"]["nodes"]}
    total = {k: q[k] for k in ("instructions", "flash", "ram", "stack", "cycles") if q.get(k)}
    layers = [
        {
            "origin": x["node"], "kernel": nodes[x["node"]]["kernel"], "instructions": x["instructions"],
            "macs": nodes[x["node"]]["macs"],
            "per_mac": x["instructions"] / nodes[x["node"]]["macs"] if nodes[x["node"]]["macs"] else None,
        }
        for x in found["bench"]["layers"] or ()
        if x["node"] in nodes
    ]  # fmt: skip
    value = {"network": network, "target": target, "verdict": found["bench"]["verdict"], **total, "layers": layers}
    peer = PEERS.get((network, target))
    if peer:
        value["peer"] = {"name": "TFLite Micro + CMSIS-NN", **peer}
        value["ratio_to_peer"] = {k: total[k]["value"] / v for k, v in peer.items() if k in total}
    return value


def networks(shared: Path, output: Path) -> Iterator[dict[str, Any]]:
    """The quantised files as they are, in the tuned form on every core and in the portable form on the M4."""
    for name, file in FILES.items():
        model = str(shared / "models" / file)
        found = built(Request(model=model, targets=CORES, output=output / name))
        yield from (row(name, t, found[t]) for t in CORES)
        recipe = Recipe().with_options({"package.form": "portable"})
        found = built(Request(model=model, targets=("cortex-m4",), output=output / f"{name}-c99", recipe=recipe))
        yield row(f"{name}, portable form", "cortex-m4", found["cortex-m4"])


def codebooks(shared: Path, output: Path) -> Iterator[dict[str, Any]]:
    """resnet8 with one format in every layer, compressed further from the quantised file."""
    for name in ("int8", "c4s8", "c2s8", "int2"):
        options: dict[str, Any] = {"compress.further": True, "plan.formats": [name], "plan.max_drop": 100.0}
        options["relevance.method"] = "magnitude"
        request = Request(
            model=str(shared / "models" / FILES["resnet8"]), data=shared / "data" / "cifar10-jpeg-train.zip",
            targets=("cortex-m4", "cortex-m55"), output=output / f"resnet8-{name}",
            recipe=Recipe().with_options(options),
        )  # fmt: skip
        found = built(request)
        yield from (row(f"resnet8, {name} everywhere", t, found[t]) for t in request.targets)


def zoo(output: Path) -> Iterator[dict[str, Any]]:
    """Networks of the zoo with random weights and data: instructions hardly depend on their values.

    The MLP's 900 kB of int8 weights do not fit the M55's memory, so it has 4 bits.
    """
    rng = np.random.default_rng(0)
    for name, (model, shape, classes, weights) in ZOO.items():
        folder = output / name.split(" ")[0].lower()
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "random.npz"
        np.savez(data, x=rng.normal(size=(400, *shape)).astype(np.float32), y=np.arange(400) % classes)
        options = {"plan.formats": [weights], "plan.max_drop": 100.0, "relevance.method": "magnitude"}
        request = Request(
            model=model, data=data, targets=("cortex-m4", "cortex-m55"), output=folder / "out",
            recipe=Recipe().with_options(options),
        )  # fmt: skip
        found = built(request)
        yield from (row(f"{name}, {weights}", t, found[t]) for t in request.targets)


def layer(side: int, channels: int, name: str) -> LoweredGraph:
    """A 3x3 convolution with random weights of one format."""
    rng, fmt = np.random.default_rng([side, channels]), FORMATS[name]
    shape = (channels, 3, 3, channels)
    if fmt.codebook:
        consts = {"codes": rng.integers(0, 2**fmt.bits, shape).astype(np.int8)}
        consts["codebook"] = rng.integers(-127, 128, 2**fmt.bits).astype(np.int8)
    else:
        consts = {"codes": rng.integers(-fmt.limit, fmt.limit + 1, shape).astype(np.int8)}
    stage = requant(np.full(channels, 0.002 * 2.0 ** (8 - fmt.bits) if not fmt.codebook else 0.002), -5)
    node = Node(
        "layer", "conv2d", ("x",), "y",
        {"weight_format": name, "stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1, "in_zero": 3,
         "shift": stage.shift, "out_zero": -5, "low": -128, "high": 127},
        {**consts, "bias": rng.integers(-500, 500, channels).astype(np.int32), "multiplier": stage.multiplier},
    )  # fmt: skip
    size = (side, side, channels)
    q = {"x": QParams(0.05, 3), "y": QParams(0.1, -5)}
    io = IoSpec("x", (channels, side, side), "y", (channels, side, side), input_q=q["x"], output_q=q["y"])
    graph = LoweredGraph((node,), {k: Tensor(size, v) for k, v in q.items()}, "x", "y", io)
    ops.verify(graph)
    return graph


def formats() -> Iterator[dict[str, Any]]:
    """Shape x format x core: instructions paid and flash saved against int8."""
    from xdeploy.bench import bench
    from xdeploy.bench.runner import RunOptions
    from xdeploy.builder import build
    from xdeploy.program import bind

    for core in ("cortex-m4", "cortex-m55"):
        target = load_target(core)
        for side, channels in LAYERS:
            found: dict[str, tuple[int, int, str]] = {}
            for name in FORMATS:
                graph = layer(side, channels, name)
                codes = np.random.default_rng(1).integers(-128, 128, (1, side, side, channels)).astype(np.int8)
                golden = GoldenIo(codes.astype(np.float32), codes, ops.run(graph, codes)["y"])
                program = bind(graph, target, "layer")
                with tempfile.TemporaryDirectory() as folder:
                    artifact = build(program, graph, golden, target, Path(folder) / "a", Recipe().package, {})
                    measured = bench(artifact, golden, target, options=RunOptions(repeats=1))
                assert measured.verdict == "bit-exact", (core, name, measured.reason)
                count = measured.quantities["instructions"]["value"]
                found[name] = (count, program.weight_bytes, program.calls[0].kernel)
            base = found["int8"]
            for name, (count, size, kernel) in found.items():
                yield {
                    "target": core, "shape": f"3x3, {side}x{side}, {channels} to {channels}", "format": name,
                    "kernel": kernel, "instructions": count, "instructions_to_int8": count / base[0],
                    "weight_bytes": size, "bytes_to_int8": size / base[1],
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--output", type=Path, default=Path("out-benchmarks") / "cortex_m")
    parser.add_argument("--only", choices=("networks", "codebooks", "zoo", "formats"))
    args = parser.parse_args()
    parts = {
        "networks": lambda: networks(args.shared, args.output),
        "codebooks": lambda: codebooks(args.shared, args.output),
        "zoo": lambda: zoo(args.output),
        "formats": formats,
    }  # fmt: skip
    path = ROOT / "benchmarks" / "results" / "cortex_m.json"
    document = read_json(path, "xdeploy.benchmark/1") if path.exists() else {"schema": "xdeploy.benchmark/1"}
    made_at = commit(ROOT)
    for name in [args.only] if args.only else parts:
        document[name] = {"commit": made_at, "rows": list(parts[name]())}
        write_json(path, document)  # what is done is kept if a later part fails
    print_tables(document)


def print_tables(document: dict[str, Any]) -> None:
    """The tables of the README."""
    for name in ("networks", "codebooks", "zoo"):
        for r in document.get(name, {}).get("rows", ()):
            peers = {k: f"{v:.2f}" for k, v in r.get("ratio_to_peer", {}).items()}
            figures = " ".join(f"{k} {r[k]['value']:,}" for k in ("instructions", "flash", "ram") if k in r)
            print(f"{r['network']:36} {r['target']:14} {r['verdict']:10} {figures} {peers or ''}")
    for r in document.get("formats", {}).get("rows", ()):
        print(
            f"{r['target']:12} {r['shape']:24} {r['format']:6} {r['kernel']:36} {r['instructions']:>9,} "
            f"{r['instructions_to_int8']:.3f} x, {r['weight_bytes']:>6,} B {r['bytes_to_int8']:.3f} x"
        )


if __name__ == "__main__":
    main()
