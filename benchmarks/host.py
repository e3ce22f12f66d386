"""Host code beside other engines; writes results/host.json. (`aarch64_peers.py` does so for AArch64.)

Int8 networks, one thread, batch 1, ours against OpenVINO, ONNX Runtime and LiteRT in interleaved rounds of one
process (`pip install '.[peers]'`), each peer on the fastest of its forms of the same network. Beside them the machine's
own limit, two chains of `vpmaddwd` measured before and after; the share of it by layer; and what a C program sees: time
from loading the library to the first output, peak memory.

Run: python benchmarks/host.py [--shared DIR] [--output DIR] [--only NAME ...] [--rounds N]
Rows are written as they are finished; the others of an earlier run stay.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench import bench
from xdeploy.bench.compare import CompareOptions, with_peers
from xdeploy.bench.runner import RunOptions
from xdeploy.builder.tir import compile_tir
from xdeploy.builder.zig import cc
from xdeploy.console import Console
from xdeploy.environment import commit, environment
from xdeploy.files import read_json, write_json
from xdeploy.handover import Artifact, GoldenIo, quantity
from xdeploy.kernel import Arg, Code
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
}
_LANES, _CHAINS = 16, 12  # int16 products of one instruction; independent sums


def request(name: str, shared: Path, output: Path, targets: tuple[str, ...]) -> Request:
    """What a user would ask for: int8 weights everywhere."""
    folder = output / name.split(" ")[0].lower()
    if name in FILES:
        return Request(model=str(shared / "models" / FILES[name]), targets=targets, output=folder / "out")
    factory, shape, classes = ZOO[name]
    folder.mkdir(parents=True, exist_ok=True)
    rng, data = np.random.default_rng(0), folder / "random.npz"
    np.savez(data, x=rng.normal(size=(200, *shape)).astype(np.float32), y=np.arange(200) % classes)
    options = {
        "plan.formats": ["int8"], "plan.max_drop": 100.0, "relevance.method": "magnitude", "bench.accuracy": False,
    }  # fmt: skip
    recipe = Recipe().with_options(options)
    return Request(
        model=f"xdeploy.model.zoo:{factory}", data=data, targets=targets, output=folder / "out", recipe=recipe
    )


# -------------------------------------------------------------------------------------------- the machine's limit
def peak() -> Callable[[], float]:
    """A function that measures int8 multiply-accumulates per second that `vpmaddwd` reaches from the first cache."""
    lines = [f"acc[T.ramp({8 * i}, 1, 8)] = T.broadcast(0, 8)" for i in range(_CHAINS)]
    loop = [
        f"acc[T.ramp({8 * i}, 1, 8)] = acc[T.ramp({8 * i}, 1, 8)] + T.call_llvm_pure_intrin("
        f'"int32x8", "llvm.x86.avx2.pmadd.wd", X[T.ramp(k % 2 * {16 * _CHAINS} + {i // 2 * 16}, 1, 16)], w{i % 2})'
        for i in range(_CHAINS)
    ]
    ends = [f"Y[T.ramp({8 * i}, 1, 8)] = acc[T.ramp({8 * i}, 1, 8)]" for i in range(_CHAINS)]
    text = "\n".join(
        [
            "@T.prim_func",
            'def {symbol}(pX: T.handle("int16"), pY: T.handle("int32"), turns: T.int32):',
            '    X = T.decl_buffer((1073741824,), "int16", data=pX)',
            '    Y = T.decl_buffer((1073741824,), "int32", data=pY)',
            f'    acc = T.alloc_local(({8 * _CHAINS},), "int32")',
            *(f"    w{i} = X[T.ramp({16 * i}, 1, 16)]" for i in (0, 1)),
            *(f"    {line}" for line in lines),
            "    for k in range(turns):",
            *(f"        {line}" for line in loop),
            *(f"    {line}" for line in ends),
        ]
    )
    turns = 20_000
    code = Code("tir", text + "\n", (Arg("input"), Arg("output"), Arg("int", value=turns)))
    with tempfile.TemporaryDirectory() as folder:
        compile_tir({"peak": code}, load_target("x86-64")).object(Path(folder) / "k.o")
        cc(["-shared", "-s", "-o", "k.so", "k.o"], Path(folder))
        function = ctypes.CDLL(str(Path(folder) / "k.so")).peak
    x, y = np.ones(16 * _CHAINS * 2, np.int16), np.zeros(8 * _CHAINS, np.int32)

    def measure() -> float:
        best = 0.0
        for _ in range(20):
            start = time.perf_counter()
            function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int(turns))
            best = max(best, turns * _CHAINS * _LANES / (time.perf_counter() - start))
        assert y[0] == turns * 2, "the sums are kept"
        return best

    return measure


# -------------------------------------------------------------------------------------------------------- x86-64
def called(artifact: Artifact, program: dict[str, Any], rounds: int = 200) -> dict[str, Any]:
    """What a C program that loads the library sees."""
    name, arena = next((artifact.folder / "include").glob("*.h")).stem, artifact.manifest["arena"]["bytes"]
    sizes = [artifact.manifest[k]["bytes"] for k in ("input", "output")]
    library = next((artifact.folder / "lib").glob("*.so"))
    with tempfile.TemporaryDirectory() as folder:
        cc(["-O2", str(ROOT / "benchmarks" / "host_caller.c"), "-o", "caller"], Path(folder))
        words = [library, f"{name}_run", f"{name}_layer_end", *sizes, arena, len(program["nodes"]), rounds]
        done = subprocess.run([f"{folder}/caller", *map(str, words)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def x86(name: str, shared: Path, output: Path, rounds: int) -> dict[str, Any]:
    """One network: ratios to the peers, the share of the limit, what a C program sees."""
    asked = request(name, shared, output, ("x86-64",))
    with Console() as console:
        run(asked, until="build", progress=console)
    artifact = Artifact.load(asked.output / "x86-64")
    program = json.loads((artifact.folder / "program.json").read_text(encoding="utf-8"))
    limit = peak()
    before = limit()
    golden = GoldenIo.load(artifact.folder / "golden.npz")
    measured = bench(artifact, golden, load_target("x86-64"), options=RunOptions(repeats=20))
    measured = with_peers(measured, artifact, CompareOptions(rounds=rounds))
    seen, after = called(artifact, program), limit()
    top = max(before, after)
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
        "network": name, "target": "x86-64", "verdict": measured.verdict, "macs": macs,
        "limit": quantity(top, "MAC/s", "measured", note="vpmaddwd, one thread", low=min(before, after)),
        "share_of_limit": macs / q["latency_interleaved"]["value"] / top if "latency_interleaved" in q else None,
        **{k: q[k] for k in kept if k in q},
        "library": quantity(library, "byte", "measured"), "weights": program["weight_bytes"],
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
        document["rows"] = [*(r for r in document["rows"] if r["network"] != name), row]
        write_json(RESULT, document)
        print(told(row), flush=True)


def told(row: dict[str, Any]) -> str:
    """A line for the terminal."""
    ratio = row.get("ratio_to_best_peer", {})
    return (
        f"{row['network']}: {row['latency']['value'] * 1e6:.1f} us, {row['verdict']}, ours/best peer "
        f"{ratio.get('value')} ({ratio.get('low')} to {ratio.get('high')}, {ratio.get('peer')})"
    )


if __name__ == "__main__":
    main()
