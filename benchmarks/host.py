"""Host code beside other engines; writes results/host.json. (`aarch64_peers.py` does so for AArch64.)

Int8 networks, and one of 4-bit codebooks, one thread, batch 1, ours against OpenVINO, ONNX Runtime, LiteRT and
ExecuTorch in interleaved rounds of one process (`pip install '.[peers]' executorch`), each peer on the fastest of its
forms of the same network. Beside them the limit of this machine's multiplications at the feature level that runs,
measured before and after; the share of it by layer; and what a C program sees: time from loading the library to the
first output, peak memory. Rows are told apart by CPU.

Run: python benchmarks/host.py [--shared DIR] [--output DIR] [--only NAME ...] [--rounds N]
Rows are written as they are finished; the others of an earlier run stay.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench import bench
from xdeploy.bench.compare import CompareOptions, with_peers
from xdeploy.bench.host import HostRunner
from xdeploy.bench.roofline import multiply_limit
from xdeploy.bench.runner import RunOptions
from xdeploy.builder.zig import cc
from xdeploy.console import Console
from xdeploy.environment import commit, environment
from xdeploy.files import read_json, write_json
from xdeploy.handover import Artifact, GoldenIo, quantity
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Request
from xdeploy.target import load_target

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "host.json"
SCHEMA = "xdeploy.benchmark/1"
# name -> a file of the shared models, or a network of the zoo with random weights, its input and classes
FILES = {
    "DS-CNN (kws)": "mlperf-tiny-kws-dscnn.int8.onnx",
    "ResNet-8": "mlperf-tiny-ic-resnet8.int8.onnx",
}
ZOO = {
    "ResNet-20": ("resnet20", (3, 32, 32), 10),
    "ResNet-56": ("resnet56", (3, 32, 32), 10),
    "MobileNetV1 0.25, 96x96": ("mobilenet_v1_025", (3, 96, 96), 2),
    "MLP 735-512-512-256-256-128-128-12": ("mlp", (735,), 12),
    "VGG16": ("vgg16", (3, 32, 32), 10),
    "VGG16, 4-bit codebooks": ("vgg16", (3, 32, 32), 10),
}
CODEBOOKS = ("VGG16, 4-bit codebooks",)  # of 16 entries in every layer; peers get the same weights as int8


def request(name: str, shared: Path, output: Path, targets: tuple[str, ...]) -> Request:
    """What a user would ask for: one format everywhere, int8 but for CODEBOOKS."""
    folder = output / re.sub(r"\W+", "-", name.lower())
    if name in FILES:
        return Request(model=str(shared / "models" / FILES[name]), targets=targets, output=folder / "out")
    factory, shape, classes = ZOO[name]
    folder.mkdir(parents=True, exist_ok=True)
    rng, data = np.random.default_rng(0), folder / "random.npz"
    np.savez(data, x=rng.normal(size=(200, *shape)).astype(np.float32), y=np.arange(200) % classes)
    options = {
        "plan.formats": ["c4s8" if name in CODEBOOKS else "int8"], "plan.max_drop": 100.0,
        "relevance.method": "magnitude", "bench.accuracy": False,
    }  # fmt: skip
    recipe = Recipe().with_options(options)
    return Request(
        model=f"xdeploy.model.zoo:{factory}", data=data, targets=targets, output=folder / "out", recipe=recipe
    )


# -------------------------------------------------------------------------------------------------------- x86-64
def called(artifact: Artifact, program: dict[str, Any], rounds: int = 200) -> dict[str, Any]:
    """What a C program that loads the library sees."""
    name, arena = artifact.manifest["symbols"]["run"].removesuffix("_run"), artifact.manifest["arena"]["bytes"]
    sizes = [artifact.manifest[k]["bytes"] for k in ("input", "output")]
    library = next((artifact.folder / "lib").glob("*.so"))
    with tempfile.TemporaryDirectory() as folder:
        cc(["-O2", str(ROOT / "benchmarks" / "host_caller.c"), "-o", "caller"], Path(folder))
        words = [library, f"{name}_run", f"{name}_layer_end", *sizes, arena, len(program["nodes"]), rounds]
        done = subprocess.run([f"{folder}/caller", *map(str, words)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def limit(isa: str) -> dict[str, Any]:
    """Multiply-accumulates per second of this machine with an instruction set."""
    found = multiply_limit(isa)
    assert found, "the machine is x86-64"
    return found


def x86(name: str, shared: Path, output: Path, rounds: int) -> dict[str, Any]:
    """One network: ratios to the peers, the share of the limit, what a C program sees."""
    asked = request(name, shared, output, ("x86-64",))
    with Console() as console:
        run(asked, until="build", progress=console)
    artifact = Artifact.load(asked.output / "x86-64")
    runner = HostRunner(artifact)
    isa, program = runner.isa, runner.program
    before = limit(isa)
    golden = GoldenIo.load(artifact.folder / "golden.npz")
    measured = bench(artifact, golden, load_target("x86-64"), options=RunOptions(repeats=20))
    measured = with_peers(measured, artifact, CompareOptions(rounds=rounds))
    seen, after = called(artifact, program), limit(isa)
    top = max(before["value"], after["value"])
    q = dict(measured.quantities)
    nodes = program["nodes"]
    macs = sum(n["macs"] for n in nodes)
    layers = [
        {"node": n["name"], "kernel": n["kernel"], "macs": n["macs"], "seconds": ns * 1e-9,
         "share_of_limit": round(n["macs"] / (ns * 1e-9) / top, 3) if n["macs"] and ns else None}
        for n, ns in zip(nodes, seen["layers_ns"], strict=True)
    ]  # fmt: skip
    library = next((artifact.folder / "lib").glob("*.so")).stat().st_size
    kept = ("latency", "latency_interleaved", "ratio_to_best_peer", "peers", "flash", "ram")
    return {
        "network": name, "target": "x86-64", "isa": isa, "verdict": measured.verdict, "macs": macs,
        "limit": quantity(top, "MAC/s", "measured", note=before["note"], low=min(before["value"], after["value"])),
        "share_of_limit": macs / q["latency_interleaved"]["value"] / top if "latency_interleaved" in q else None,
        **{k: q[k] for k in kept if k in q},
        "library": quantity(library, "byte", "measured"),
        "weights": program["weight_bytes"] + program.get("shared_bytes", 0),
        "first_output": quantity(seen["first_ns"] * 1e-9, "s", "measured", note="from dlopen, cold code"),
        "peak_resident": quantity(seen["peak_kb"] * 1024, "byte", "measured", note="C program, one inference"),
        "layers": layers,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--output", type=Path, default=Path("out-benchmarks") / "host")
    parser.add_argument("--only", nargs="+", choices=(*FILES, *ZOO), default=[*FILES, *ZOO], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    document: dict[str, Any] = read_json(RESULT, SCHEMA) if RESULT.exists() else {"schema": SCHEMA, "rows": []}
    for name in args.only:
        row = {**x86(name, args.shared, args.output, args.rounds), "commit": commit(ROOT), "environment": environment()}
        others = [r for r in document["rows"] if (r["network"], cpu_of(r)) != (name, cpu_of(row))]
        document["rows"] = [*others, row]
        write_json(RESULT, document)
        print(told(row), flush=True)


def cpu_of(row: dict[str, Any]) -> str:
    """The model name of the CPU that a row was measured on."""
    return str(row["environment"]["cpu"])


def told(row: dict[str, Any]) -> str:
    """A line for the terminal."""
    ratio = row.get("ratio_to_best_peer", {})
    return (
        f"{row['network']}: {row['latency']['value'] * 1e6:.1f} us, {row['verdict']}, ours/best peer "
        f"{ratio.get('value')} ({ratio.get('low')} to {ratio.get('high')}, {ratio.get('peer')})"
    )


if __name__ == "__main__":
    main()
