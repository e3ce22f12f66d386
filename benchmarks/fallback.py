"""Networks and nodes wholly in float beside ONNX Runtime's float; writes results/fallback.json.

What a user can do: an ONNX file with a quantised input and output, every node between them named with `--fallback`,
built for x86-64. One thread, batch 1, interleaved rounds. Ours also turns codes into values and back; ONNX Runtime gets
the float model alone and is free to use what the CPU has. Outputs must agree within one code of 255 on random inputs.
The library runs the level that it chooses (AVX-512 where the CPU has VNNI too), and that of AVX2 beside it.

Run: python benchmarks/fallback.py [--shared DIR] [--output DIR] [--only NAME ...] [--rounds N]
Rows are written as they are finished; the others of an earlier run stay.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fallback_parts
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file

from xdeploy.bench.compare import interleaved, ratio
from xdeploy.bench.host import HostRunner
from xdeploy.bench.peerfiles import Form
from xdeploy.bench.peers import OnnxRuntime, Work
from xdeploy.bench.roofline import layers_and_limits
from xdeploy.console import Console
from xdeploy.environment import commit, environment
from xdeploy.files import read_json, write_json
from xdeploy.handover import Artifact, quantity
from xdeploy.kernel import KERNELS
from xdeploy.lower import Fallback, lower
from xdeploy.model import zoo
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Request

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fallback.json"
SCHEMA = "xdeploy.benchmark/1"
TARGET = "x86-64"
SAMPLES, TOLERANCE = 16, 1  # inputs that are compared; codes


# ---------------------------------------------------------------------------------------------------------- models
def folded(model: Any) -> Any:
    """The model as ONNX Runtime's basic optimisations leave it: constants computed, norms in the weights."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def of_zoo(name: str, shape: tuple[int, ...], weights: Path | None = None) -> Any:
    """A network of the zoo, with these weights or random ones."""
    torch.manual_seed(0)
    module = getattr(zoo, name)()
    if weights is not None:
        module.load_state_dict(load_file(str(weights)), strict=False)
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.zeros(1, *shape),), made, dynamo=False, opset_version=17)
    return folded(onnx.load_model_from_string(made.getvalue()))


def models(shared: Path) -> dict[str, Callable[[], Any]]:
    """By name: what makes the float model, of one input and output with batch 1."""
    files = shared / "models"
    return {
        "ResNet-20": lambda: of_zoo("resnet20", (3, 32, 32), files / "resnet20-cifar10-jpeg.safetensors"),
        "MobileNetV1 0.25, 96x96": lambda: of_zoo("mobilenet_v1_025", (3, 96, 96)),
        **fallback_parts.PARTS,
    }


def quantised(model: Any, inputs: np.ndarray, outputs: np.ndarray) -> tuple[Any, tuple[str, ...], float]:
    """The model between quantised borders, the names of its own nodes, and the scale of its output."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, names = made.graph, []
    given, taken = graph.input[0].name, graph.output[0].name
    for k, node in enumerate(graph.node):
        node.name = f"part{k}"
        names.append(node.name)
        node.input[:] = ["x.real" if n == given else n for n in node.input]
        node.output[:] = ["y.real" if n == taken else n for n in node.output]
    scales = [np.float32(np.abs(a).max() / 127) for a in (inputs, outputs)]
    zero = numpy_helper.from_array(np.int8(0), "border.zero")
    graph.initializer.extend(
        [zero, *(numpy_helper.from_array(s, f"border.{n}") for s, n in zip(scales, "xy", strict=True))]
    )

    def pair(source: str, codes: str, result: str, scale: str) -> list[Any]:
        return [
            helper.make_node("QuantizeLinear", [source, scale, "border.zero"], [codes], name=f"q.{codes}"),
            helper.make_node("DequantizeLinear", [codes, scale, "border.zero"], [result], name=f"dq.{codes}"),
        ]

    inner = list(graph.node)
    del graph.node[:]
    graph.node.extend(
        [*pair(given, "x.codes", "x.real", "border.x"), *inner, *pair("y.real", "y.codes", taken, "border.y")]
    )
    del graph.value_info[:]
    return made, tuple(names), float(scales[1])


# ----------------------------------------------------------------------------------------------------- measurement
def in_order(codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Output codes (N, ...) in ONNX order: images come channels last."""
    return np.moveaxis(codes, -1, 1) if len(shape) == 3 else codes


def measure(name: str, model: Any, output: Path, rounds: int) -> dict[str, Any]:
    """The row of one network."""
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)[1:]
    rng = np.random.default_rng(0)
    grid = np.clip(rng.normal(size=(SAMPLES, *shape)), -4, 4).astype(np.float32)
    scale = np.abs(grid).max() / np.float32(127)
    inputs = (np.rint(grid / scale) * scale).astype(np.float32)  # what both can read exactly
    (peer,), _ = OnnxRuntime().ready(Work((Form("float", model),), None, inputs))  # type: ignore[arg-type]
    real = peer.outputs(inputs)
    file, names, step = quantised(model, inputs, real)
    folder = output / name.split(" ")[0].split(",")[0].lower()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(file, path)
    recipe = Recipe().with_options({"lower.fallback": list(names), "bench.accuracy": False})
    with Console() as console:
        run(Request(model=str(path), targets=(TARGET,), output=folder / "out", recipe=recipe), until="build",
            progress=console)  # fmt: skip
    graph = lower(path, fallback=Fallback(names))
    codes = graph.io.to_codes(inputs)
    runner, plain = (HostRunner(Artifact.load(folder / "out" / TARGET)) for _ in range(2))
    plain.choose_level("")
    ours = in_order(runner.run_many(codes).reshape(SAMPLES, *graph.tensors[graph.output].shape), real.shape[1:])
    wanted = np.clip(np.rint(real / np.float32(step)), -128, 127).astype(int)
    apart = np.abs(ours.reshape(SAMPLES, -1).astype(int) - wanted.reshape(SAMPLES, -1))
    if apart.max() > TOLERANCE:
        raise SystemExit(f"{name}: {int((apart > TOLERANCE).sum())} codes are wrong, by up to {apart.max()}")
    steps = {"ours": runner.step(codes), "avx2": plain.step(codes), "onnxruntime": peer.step}
    times = dict(zip(steps, interleaved(list(steps.values()), rounds), strict=True))
    shares = {k: q["value"] for k, q in layers_and_limits(runner, codes)["layer_times"].items()}
    node = next(n for n in graph.nodes if n.op == "float")
    workspace = next(k for k in KERNELS.values() if k.op == "float").workspace(graph, node)
    return {
        "network": name, "target": TARGET, "isa": runner.isa,
        "nodes": len(names), "ops": sorted(set(node.attrs["ops"])),
        "largest_difference": quantity(int(apart.max()), "code", "measured", n=int(apart.size)),
        "equal": quantity(float((apart == 0).mean()), "1", "measured", n=int(apart.size)),
        "latency": {k: latency(v) for k, v in times.items()},
        "ratio": ratio(times["ours"], times["onnxruntime"]),
        "ratio_avx2": ratio(times["avx2"], times["onnxruntime"]),
        "share_of_time": {k: round(v / sum(shares.values()), 4) for k, v in shares.items()},
        "workspace": quantity(workspace, "byte", "measured"),
    }  # fmt: skip


def latency(times: np.ndarray) -> dict[str, Any]:
    """Seconds of an inference over the rounds."""
    low, middle, high = (float(f"{v * 1e-9:.4g}") for v in np.percentile(times, (10, 50, 90)))
    return quantity(middle, "s", "measured", low=low, high=high, n=len(times), note="median, 10th and 90th percentile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--output", type=Path, default=Path("out-benchmarks") / "fallback")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    known = models(args.shared)
    document: dict[str, Any] = read_json(RESULT, SCHEMA) if RESULT.exists() else {"schema": SCHEMA, "rows": []}
    place = {"commit": commit(ROOT), "environment": environment()}  # before results change the checkout
    for name in args.only or known:
        row = measure(name, known[name](), args.output, args.rounds)
        row |= place
        document["rows"] = [*(r for r in document["rows"] if r["network"] != name), row]
        write_json(RESULT, document)
        print(told(row), flush=True)


def told(row: dict[str, Any]) -> str:
    """A line for the terminal."""
    r = row["ratio"]
    line = f"{row['network']}: {row['latency']['ours']['value'] * 1e6:.1f} us, ours/ONNX Runtime {r['value']} "
    line += f"({r['low']} to {r['high']}), largest difference {row['largest_difference']['value']} code"
    return f"{line}; AVX2 {row['ratio_avx2']['value']}"


if __name__ == "__main__":
    main()
