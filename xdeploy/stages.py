"""The stages of one run: what each reads, what it writes, and the hash of all that goes into it.

Each method is one arrow between saved objects; heavy libraries are imported by the stage that needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.files import read_json, read_npz, write_json, write_npz
from xdeploy.handover import (
    Artifact,
    CompressionPlan,
    ExportedModel,
    GoldenIo,
    IoSpec,
    RelevanceMap,
    quantity,
)
from xdeploy.recipe import RecoverOptions
from xdeploy.request import Progress, Request, stage_keys
from xdeploy.store import Store
from xdeploy.target import Target, host_target

if TYPE_CHECKING:
    from xdeploy.compress.model import CompressedModel
    from xdeploy.lir.graph import LoweredGraph
    from xdeploy.model.source import SourceModel

STAGES = ("source", "score", "plan", "compress", "export", "lower", "build", "report")
HOST = ".host"  # the host library that measures accuracy, built when no host target is asked for
SEARCH_SAMPLES = 2000  # validation samples used while searching a plan


class Stages:
    """One run in progress: what is loaded so far, and the stages."""

    def __init__(self, request: Request, targets: list[Target], store: Store, progress: Progress) -> None:
        self.request, self.targets, self.store, self.progress = request, targets, store, progress
        self.recipe, self.folder = request.recipe, store.folder
        self.quantised = isinstance(request.model, str) and request.model.endswith(".onnx")
        self.keys = stage_keys(request, targets)
        self.artifacts: dict[str, Artifact] = {}

    # ------------------------------------------------------------------------------- objects, loaded on need
    @cached_property
    def source(self) -> SourceModel:
        """The user's model and data; loading is the first check of both."""
        from xdeploy.model.source import load_source

        r = self.request
        return load_source(
            r.model, r.weights, r.data, r.test_data, self.recipe.data, self.recipe.seed, progress=self.progress
        )

    @cached_property
    def compressed(self) -> CompressedModel:
        """What the compress stage left."""
        from xdeploy.compress.model import CompressedModel

        return CompressedModel.load(self.folder)

    @cached_property
    def graph(self) -> LoweredGraph:
        """What the lower stage left."""
        from xdeploy.lir.graph import LoweredGraph

        return LoweredGraph.load(self.folder / "graph.npz")

    @property
    def relevance(self) -> RelevanceMap:
        """What the score stage left."""
        return RelevanceMap.load(self.folder / "relevance.npz")

    def run(self, until: str) -> None:
        """All stages up to `until`; with "report", also the accuracy of the deployed code."""
        last = STAGES.index(until)
        self._remember()
        if last >= STAGES.index("build"):
            self._warm_up()
        if self.quantised:
            self._step("lower", ["source.json", "graph.txt", "graph.npz", "golden.npz", "accuracy.json"], self._adopt)
        else:
            self._float_stages(last)
        if last >= STAGES.index("build"):
            for target in self.targets:
                self._target(target)
        if until == "report" and not self.quantised:
            self._step("accuracy", ["accuracy.json"], self._accuracy)

    def _float_stages(self, last: int) -> None:
        steps: tuple[tuple[str, list[str], Callable[[], None]], ...] = (
            ("source", ["source.json", "source.safetensors"], self._source),
            ("score", ["relevance.npz"], self._score),
            ("plan", ["plan.json"], self._plan),
            ("compress", ["compressed.safetensors", "compressed.json"], self._compress),
            ("export", ["model.onnx", "export.json"], self._export),
            ("lower", ["graph.txt", "graph.npz", "golden.npz"], self._lower),
        )
        for name, files, work in steps[: last + 1]:
            self._step(name, files, work)

    def _remember(self) -> None:
        r = self.request
        self.store.record["request"] = {
            "model": r.model if isinstance(r.model, str | None) else type(r.model).__name__,
            "weights": str(r.weights) if r.weights else None,
            "data": str(r.data) if r.data else None,
            "test_data": str(r.test_data) if r.test_data else None,
            "targets": [t.name for t in self.targets],
            "recipe": self.recipe.to_dict(),
        }

    def _warm_up(self) -> None:
        """Let the compiler build its C library while the model is being scored and compressed."""
        from xdeploy.builder.warm import warm_up

        for target in self.targets:
            if not self.store.is_fresh(target.name, self.keys[target.name]):
                warm_up(target)

    def _step(self, name: str, files: list[str], work: Callable[[], None]) -> None:
        if self.store.is_fresh(name, self.keys[name]):
            self.progress.stage(name, 0)
            return
        self.progress.stage(name)
        start = time.monotonic()
        work()
        seconds = time.monotonic() - start
        self.store.finish(name, self.keys[name], files, seconds)
        self.progress.stage(name, seconds)

    # ----------------------------------------------------------------------------------------------- stages
    def _source(self) -> None:
        self.source.save(self.folder)

    def _score(self) -> None:
        from xdeploy.relevance import score

        s = self.source
        batches = s.train_batches(32, limit=self.recipe.relevance.samples)
        score(s.network, batches, self.recipe.relevance, s.fingerprint, self.progress, self.recipe.seed).save(
            self.folder / "relevance.npz"
        )

    def _plan(self) -> None:
        if self.request.plan is not None:
            CompressionPlan.load(self.request.plan).save(self.folder / "plan.json")
            return
        from xdeploy.compress.fakequant import FakeQuantModule
        from xdeploy.model.torchmodule import NetworkModule
        from xdeploy.plan.allocate import allocate

        s, o = self.source, self.recipe
        before = _right(NetworkModule(s.network), s.validation_batches(250, limit=SEARCH_SAMPLES))

        def evaluate(plan: CompressionPlan) -> float:
            """Accuracy in percent, less one standard error of its (paired) difference from the float network's."""
            module = FakeQuantModule(self._apply(plan, recover=False))
            after = _right(module, s.validation_batches(250, limit=SEARCH_SAMPLES))
            return 100.0 * float(after.mean() - (after != before).mean() ** 0.5 / len(after) ** 0.5)

        accuracy = 100.0 * float(before.mean())
        weighting = o.compress.codebook_weighting
        plan = allocate(s.network, self.relevance, o.plan, evaluate, accuracy, self.progress, weighting)
        plan.save(self.folder / "plan.json")

    def _apply(self, plan: CompressionPlan, recover: bool) -> CompressedModel:
        from xdeploy.compress.apply import compress

        s, o = self.source, self.recipe
        return compress(
            s.network,
            plan,
            self.relevance,
            s.io,
            calibration=lambda: (x for x, _ in s.train_batches(64, limit=o.data.calibration)),
            train=lambda epoch: s.train_batches(o.recover.batch, epoch=epoch, augment=o.recover.augment),
            validation=lambda: s.validation_batches(250),
            options=o.compress,
            recover=o.recover if recover else RecoverOptions(),
            seed=o.seed,
            progress=self.progress,
            measure_steps=recover,
        )

    def _compress(self) -> None:
        self._apply(CompressionPlan.load(self.folder / "plan.json"), recover=True).save(self.folder)

    def _export(self) -> None:
        from xdeploy.export import compare, export

        inputs = self.source.golden_inputs(self.recipe.data.golden)
        exported = export(self.compressed, inputs, self.folder, self.relevance, self.source.name)
        checked = compare(self.compressed, exported, self.source.check_inputs(1000))
        write_json(
            self.folder / "export.json",
            {"schema": "xdeploy.export/1", "sha256": exported.sha256, "io": exported.io.to_dict(), "onnx": checked},
        )
        write_npz(self.folder / "export.npz", {"inputs": exported.inputs, "onnx_codes": exported.onnx_codes})

    def _lower(self) -> None:
        from xdeploy.lower import lower

        self._save_graph(lower(self._exported()))

    def _exported(self) -> ExportedModel:
        head = read_json(self.folder / "export.json", "xdeploy.export/1")
        arrays = read_npz(self.folder / "export.npz")
        io = IoSpec.from_dict(head["io"])
        return ExportedModel(self.folder / "model.onnx", head["sha256"], io, arrays["inputs"], arrays["onnx_codes"])

    def _save_graph(self, graph: LoweredGraph, inputs: Any = None) -> None:
        from xdeploy.lir import ops

        inputs = self._exported().inputs if inputs is None else inputs
        codes = graph.io.to_codes(inputs)
        golden = GoldenIo(inputs, codes, ops.run(graph, codes)[graph.output])
        graph.save(self.folder / "graph.txt", self.folder / "graph.npz")
        golden.save(self.folder / "golden.npz")
        self.graph = graph

    def _target(self, target: Target) -> None:
        if self.store.is_fresh(target.name, self.keys[target.name]):
            self.progress.stage(target.name, 0)
        else:
            self.progress.stage(target.name)
            start = time.monotonic()
            self.store.drop(target.name)
            self._build(target, self.folder / target.name)
            files = self.store.files_below(target.name)
            seconds = time.monotonic() - start
            self.store.finish(target.name, self.keys[target.name], files, seconds)
            self.progress.stage(target.name, seconds)
        self.artifacts[target.name] = Artifact.load(self.folder / target.name)

    def _build(self, target: Target, folder: Path) -> Artifact:
        from xdeploy.bench import bench
        from xdeploy.builder import build
        from xdeploy.program import bind

        options = self.recipe.package
        golden = GoldenIo.load(self.folder / "golden.npz")
        program = bind(self.graph, target, options.name or self._model_name(), form=options.form)
        artifact = build(program, self.graph, golden, target, folder, options, self._provenance())
        bench(artifact, golden, target, repeats=self.recipe.bench.repeats, progress=self.progress).save(
            folder / "bench.json"
        )
        return artifact

    def _model_name(self) -> str:
        return str(read_json(self.folder / "source.json", "xdeploy.source/1")["model"]["name"])

    def _provenance(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "model": read_json(self.folder / "source.json", "xdeploy.source/1")["model"],
        }

    def _accuracy(self) -> None:
        """Float, fake-quantised and deployed accuracy on the test set, and the graph against ONNX Runtime."""
        from xdeploy.compress.fakequant import FakeQuantModule
        from xdeploy.lower.compare import compare_with_onnx
        from xdeploy.model.torchmodule import NetworkModule

        s = self.source
        n = s.test_count
        progress = self.progress
        value: dict[str, Any] = {"schema": "xdeploy.accuracy/1"}
        for key, module in (("float", NetworkModule(s.network)), ("fake_quant", FakeQuantModule(self.compressed))):
            right = _right(module, s.test_batches(250), lambda done: progress("accuracy, torch", done, n))
            value[key] = quantity(100.0 * float(right.mean()), "%", "measured", n=n)
        value["deployed"] = self._deployed() if self.recipe.bench.accuracy else None
        rows = compare_with_onnx(self.folder / "model.onnx", self.graph, self._exported().inputs)
        worst = max(r["max_code_difference"] for r in rows)
        onnx = read_json(self.folder / "export.json", "xdeploy.export/1")["onnx"]
        value["onnx"] = {**onnx, "node_max_difference": worst, "nodes": rows}
        write_json(self.folder / "accuracy.json", value)

    def _deployed(self) -> dict[str, Any]:
        """Accuracy of the integer code itself: the whole test set through the host library."""
        from xdeploy.bench.host import HostRunner

        host = host_target()
        folder = self.folder / (host.name if host.name in self.artifacts else HOST)
        artifact = self.artifacts[host.name] if host.name in self.artifacts else self._build(host, folder)
        runner, right, n = HostRunner(artifact), 0, 0
        for x, y in self.source.test_batches(500):
            codes = runner.run_many(self.graph.io.to_codes(x.numpy()))
            right += int((codes.reshape(len(codes), -1).argmax(axis=1) == y.numpy()).sum())
            n += len(codes)
            self.progress("accuracy, deployed code", n, self.source.test_count)
        return quantity(100 * right / n, "%", "measured", n=n)

    def _adopt(self) -> None:
        """An already quantised ONNX file: lowered as it is."""
        from xdeploy.export import adopt
        from xdeploy.lir.ops import macs
        from xdeploy.lower import lower

        exported = adopt(Path(self.request.model), None)
        graph = lower(exported)
        self._save_graph(graph, exported.inputs)
        name = Path(self.request.model).name.split(".")[0]
        weights = [n for n in graph.nodes if n.format]
        count = sum(n.consts["codes"].size + n.consts["bias"].size for n in weights)
        model = {
            "name": name,
            "sha256": exported.sha256,
            "parameters": count,
            "macs": sum(macs(graph, n) for n in graph.nodes),
            "float_bytes": quantity(4 * count, "byte", "modelled", note="the same parameters as float32"),
        }
        write_json(
            self.folder / "source.json", {"schema": "xdeploy.source/1", "model": model, "data": None, "layers": []}
        )
        none: dict[str, Any] = {"float": None, "fake_quant": None, "deployed": None, "onnx": None}
        write_json(self.folder / "accuracy.json", {"schema": "xdeploy.accuracy/1", **none})


def _right(module: Any, batches: Iterable[Any], tell: Callable[[int], None] | None = None) -> NDArray[np.bool_]:
    """Which samples a torch module classifies rightly; the first of equal outputs wins, as on the device."""
    import torch

    rows: list[NDArray[np.bool_]] = []
    module.eval()
    with torch.inference_mode():
        for x, y in batches:
            rows.append((module(x).flatten(1).argmax(1) == y).numpy())
            if tell:
                tell(sum(map(len, rows)))
    return np.concatenate(rows)
