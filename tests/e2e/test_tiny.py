"""A tiny whole: toy networks through every arrow by the user's own path, compared at each border."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import seed
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.model import CompressedModel
from xdeploy.files import read_json
from xdeploy.handover import GoldenIo
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph
from xdeploy.pipeline import RunResult, run, run_inputs
from xdeploy.recipe import Recipe
from xdeploy.request import Request, Silent
from xdeploy.target import load_target

TARGETS = ("x86-64", "cortex-a72", "cortex-m4")


class Plain(nn.Module):
    """Convolutions, both poolings, a flatten of more than one pixel, two linear layers, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.fc1, self.fc2 = nn.Linear(12 * 2 * 2, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.max_pool2d(x, 2, ceil_mode=True)
        x = nn.functional.avg_pool2d(torch.relu(self.conv2(x)), 2, stride=1, padding=1)[:, :, 1:, 1:]
        return torch.softmax(self.fc2(nn.functional.dropout(torch.relu(self.fc1(x.flatten(1))), training=False)), -1)


class Residual(nn.Module):
    """Residual adds, an option-A shortcut (strided slice and zero channels), a concat, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.side = nn.Conv2d(16, 4, 1)
        self.fc = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = torch.relu(self.down(x) + shortcut)
        x = torch.cat([x, torch.relu(self.side(x))], 1)
        return self.fc(x.mean((2, 3)))


class Depthwise(nn.Module):
    """MobileNet's kind: depthwise and pointwise with ReLU6, a grouped convolution, dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.dw, self.pw = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=3)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu6 = nn.functional.relu6
        x = relu6(self.pw(relu6(self.dw(relu6(self.stem(x))))))
        return self.fc(nn.functional.adaptive_avg_pool2d(relu6(self.grouped(x)), 1).flatten(1))


FORMATS = {"Plain": ("int4",), "Residual": ("c4s8",), "Depthwise": ("int8", "int2")}


@pytest.fixture(scope="module", params=[Plain, Residual, Depthwise], ids=lambda c: c.__name__)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A toy network on four blobs of noise, built for three targets."""
    torch.manual_seed(seed())
    rng = np.random.default_rng(seed())
    y = np.arange(160) % 4
    x = (rng.normal(size=(4, 3, 8, 8))[y] + 0.3 * rng.normal(size=(160, 3, 8, 8))).astype(np.float32)
    folder = tmp_path_factory.mktemp(request.param.__name__)
    np.savez(folder / "data.npz", x=x, y=y)
    formats = FORMATS[request.param.__name__]
    recipe = Recipe().with_options(
        {"plan.formats": formats, "plan.max_drop": 100.0, "relevance.samples": 32, "seed": seed()}
    )
    module = request.param().eval()
    return run(Request(module, data=folder / "data.npz", recipe=recipe, targets=TARGETS, output=folder / "out"))


def test_every_target_is_bit_exact(built: RunResult) -> None:
    assert built.report is not None
    assert {n: t["verdict"] for n, t in built.report["targets"].items()} == dict.fromkeys(TARGETS, "bit-exact")


def test_the_report_names_what_was_measured(built: RunResult) -> None:
    """The instruction set and kernels of the level that ran here, where a library has several."""
    assert built.report is not None
    target = load_target("x86-64")
    here = [target, *(target.at(level) for level in target.levels_here())][-1]
    assert built.report["targets"]["x86-64"]["isa"] == here.isa
    ran = read_json(built.folder / "x86-64" / "bench.json", "xdeploy.bench/1")["tells"].get("level", "")
    path = built.artifacts["x86-64"].manifest["levels"][ran]["program"] if ran else "program.json"
    nodes = read_json(built.folder / "x86-64" / path, "xdeploy.program/1")["nodes"]
    told = {x["origin"]: x["targets"]["x86-64"]["kernel"] for x in built.report["layers"]}
    assert all(told[n["name"]] == n["kernel"] for n in nodes if n["name"] in told)
    assert (ran != "") == (here.isa != target.isa)


def test_fake_quant_is_what_the_codes_say(built: RunResult) -> None:
    """Reference run of the graph against the torch fake-quant model: the float one may tip a rounding, no more."""
    graph, golden = LoweredGraph.load(built.folder / "graph.npz"), GoldenIo.load(built.folder / "golden.npz")
    model = FakeQuantModule(CompressedModel.load(built.folder)).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(golden.inputs)).numpy()
    assert graph.io.output_q is not None
    got = graph.io.output_q.dequantise(ops.run(graph, golden.input_codes)[graph.output])
    assert np.abs(got - expected).max() <= 2 * graph.io.output_q.scale + 1e-6


def test_onnx_agrees_node_by_node(built: RunResult) -> None:
    assert built.report is not None
    assert built.report["onnx"]["node_max_difference"] <= 1


def test_formats_are_kept_to_the_end(built: RunResult) -> None:
    assert built.report is not None
    plan = {x["origin"]: x["weight_format"] for x in json.loads((built.folder / "plan.json").read_text())["layers"]}
    end = {x["origin"]: x["weight_format"] for x in built.report["layers"] if x["weight_format"]}
    assert end == plan


@pytest.mark.parametrize("target", TARGETS)
def test_any_inputs_run_the_same(built: RunResult, target: str, tmp_path: Path) -> None:
    """`xdeploy run` on fresh float inputs equals the reference run on every target."""
    graph = LoweredGraph.load(built.folder / "graph.npz")
    x = np.random.default_rng(seed() + 1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    summary = run_inputs(built.folder / target, None, tmp_path / "x.npy", tmp_path / "y.npy")
    assert (np.load(tmp_path / "y.npy") == ops.run(graph, graph.io.to_codes(x))[graph.output]).all()
    if target != "x86-64":
        assert all(n > 1000 for n in summary["instructions"])


def test_the_exported_file_goes_in_as_it_is(built: RunResult, tmp_path: Path) -> None:
    """A quantised ONNX file needs no data, and gives the same codes as the run that wrote it."""
    again = run(Request(str(built.folder / "model.onnx"), targets=("cortex-m4",), output=tmp_path / "again"))
    assert again.report is not None
    assert again.report["targets"]["cortex-m4"]["verdict"] == "bit-exact"
    ours, theirs = (LoweredGraph.load(f / "graph.npz") for f in (built.folder, again.folder))
    codes = GoldenIo.load(built.folder / "golden.npz").input_codes
    assert (ops.run(ours, codes)[ours.output] == ops.run(theirs, codes)[theirs.output]).all()


def test_second_run_skips_everything(built: RunResult) -> None:
    """Nothing changed, so no stage runs and every file stays as it is."""
    ran: list[str] = []

    class Progress(Silent):
        def stage(self, name: str, seconds: float | None = None) -> None:
            if seconds is None:
                ran.append(name)

    before = {p: p.stat().st_mtime_ns for p in built.folder.rglob("*") if p.is_file() and p.name != "run.json"}
    request = json.loads((built.folder / "run.json").read_text())["request"]
    recipe = Recipe().with_options({"plan.formats": tuple(request["recipe"]["plan"]["formats"])})
    recipe = recipe.with_options({"plan.max_drop": 100.0, "relevance.samples": 32, "seed": seed()})
    torch.manual_seed(seed())
    module = {c.__name__: c for c in (Plain, Residual, Depthwise)}[request["model"]]().eval()
    run(
        Request(module, data=Path(request["data"]), recipe=recipe, targets=TARGETS, output=built.folder),
        progress=Progress(),
    )
    after = {p: p.stat().st_mtime_ns for p in before}
    assert ran == []
    assert {p.name for p in before if before[p] != after[p]} <= {"report.json", "report.md", "report.html"}
