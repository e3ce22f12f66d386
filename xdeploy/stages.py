"""The stages of one run: what each reads, what it writes, and the hash of all that goes into it.

Each method is one arrow between saved objects; heavy libraries are imported by the stage that needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdeploy.accuracy import judge
from xdeploy.files import read_json, read_npz, write_json, write_npz
from xdeploy.forecast.estimate import forecast, note
from xdeploy.handover import (
    Artifact,
    CompressionPlan,
    ExportedModel,
    GoldenIo,
    IoSpec,
    RelevanceMap,
)
from xdeploy.meter import Meter
from xdeploy.recipe import TuneOptions
from xdeploy.request import Expectant, Progress, Request, is_kept, refuse_kept, stage_keys
from xdeploy.store import Store
from xdeploy.target import Target, host_target, measuring_target

if TYPE_CHECKING:
    from xdeploy.bench.host import HostRunner
    from xdeploy.compress.model import CompressedModel
    from xdeploy.lir.graph import LoweredGraph
    from xdeploy.model.source import SourceModel

STAGES = ("source", "score", "plan", "compress", "export", "lower", "build", "report")
HOST = ".host"  # the host library that measures accuracy, built when no host target is asked for
CHECKPOINT = "recover.safetensors"  # state of a fine-tuning that is not finished


class Stages:
    """One run in progress: what is loaded so far, and the stages."""

    def __init__(self, request: Request, targets: list[Target], store: Store, progress: Progress) -> None:
        self.request, self.targets, self.store, self.progress = request, targets, store, progress
        self.recipe = request.recipe
        self.quantised = is_kept(request)
        self.keys = stage_keys(request, targets)
        self.artifacts: dict[str, Artifact] = {}

    @property
    def folder(self) -> Path:
        """Where the objects lie; another place from the first stage on that replaces something of a finished run."""
        return self.store.folder

    # ------------------------------------------------------------------------------- objects, loaded on need
    @cached_property
    def source(self) -> SourceModel:
        """The user's model and data; loading is the first check of both."""
        from xdeploy.kept import float_view_of
        from xdeploy.lower import Fallback
        from xdeploy.model.source import load_source

        r, allowed = self.request, Fallback.of(self.recipe.lower, self.targets)
        return load_source(
            float_view_of(r) if self.recipe.compress.further else r.model,
            r.weights, r.data, r.test_data, self.recipe.data, self.recipe.seed, progress=self.progress,
            fallback=() if allowed.refused else allowed.names,
        )  # fmt: skip

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

    @cached_property
    def relevance(self) -> RelevanceMap:
        """What the score stage left."""
        return RelevanceMap.load(self.folder / "relevance.npz")

    def run(self, until: str) -> None:
        """All stages up to `until`; with "report", also the deployed code's accuracy; "explain" follows "score"."""
        last = STAGES.index("score" if until == "explain" else until)
        if self.quantised and until == "explain":
            refuse_kept(self.request.model)
        self._remember()
        self._until = until
        self._foretell()
        if self.quantised:
            self._kept_stages()
        else:
            self._float_stages(last)
        if last >= STAGES.index("build"):
            for target in self.targets:
                self._target(target)
        if until == "report":
            work = self._kept_accuracy if self.quantised else self._accuracy
            self._step("accuracy", ["accuracy.json"], work)
        if until == "explain":
            self._step("explain", [], self._explain)

    def _kept_stages(self) -> None:
        from xdeploy.kept import check_budget, refuse_compression

        refuse_compression(self.request)
        self._step("lower", ["source.json", "graph.txt", "graph.npz", "golden.npz"], self._adopt)
        check_budget(self.graph, self.request.model, self.recipe.plan.flash)
        self._foretell()

    def _float_stages(self, last: int) -> None:
        steps: tuple[tuple[str, list[str], Callable[[], None]], ...] = (
            ("source", ["source.json", "source.safetensors"], self._source),
            ("score", ["relevance.npz"], self._score),
            ("plan", ["plan.json"], self._plan),
            ("compress", ["compressed.safetensors", "compressed.json", "model.xdc"], self._compress),
            ("export", ["model.onnx", "export.json", "export.npz"], self._export),
            ("lower", ["graph.txt", "graph.npz", "golden.npz"], self._lower),
        )
        for name, files, work in steps[: last + 1]:
            self._step(name, files, work)
            if name == "source":
                self._foretell()

    def _foretell(self) -> None:
        """Say how long the stages to come will take, once the model is known."""
        if isinstance(self.progress, Expectant):
            self.progress.expect({name: x.seconds for name, x in forecast(self, self._until).items()})

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

    def _is_done(self, name: str) -> bool:
        """Whether the stage can be skipped; else a finished run is left as it is from now on."""
        if not self.store.is_fresh(name, self.keys[name]):
            self.store.begin(self.keys)  # where a run that was killed may have got further
            if not self.store.is_fresh(name, self.keys[name]):
                return False
        self.progress.stage(name, 0)
        return True

    def _step(self, name: str, files: list[str], work: Callable[[], list[str] | None]) -> None:
        """Run `work`, which writes `files`, and those it returns, unless they are there already."""
        if self._is_done(name):
            return
        self.progress.stage(name)
        with Meter() as meter:
            more = work() or []
        note(self, name, meter.seconds)  # first: what a kill leaves of it is removed by the next time
        self.store.finish(name, self.keys[name], [*files, *more], meter.seconds, meter.memory)
        self.progress.stage(name, meter.seconds)

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
        from xdeploy.planning import decide

        plan = decide(self.source, self.recipe, self.relevance, self.targets, self.progress)
        plan.save(self.folder / "plan.json")

    def _compress(self) -> None:
        from xdeploy.coding.file import save
        from xdeploy.compress.checkpoint import Checkpoint
        from xdeploy.compressing import apply_plan

        plan = CompressionPlan.load(self.folder / "plan.json")
        checkpoint = Checkpoint(self.folder / CHECKPOINT, self.keys["compress"])
        found = apply_plan(self.source, self.recipe, self.relevance, plan, self.progress, checkpoint=checkpoint)
        found.save(self.folder)
        self.progress("pack", 0, 1)
        save(found, self.folder / "model.xdc", self.source.name)
        checkpoint.remove()

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
        from xdeploy.lower import Fallback, lower

        allowed = Fallback.of(self.recipe.lower, self.targets)
        parts = tuple(x.name for x in self.compressed.network.layers if x.kind == "fallback")
        self._save_graph(lower(self._exported(), fallback=replace(allowed, names=parts)))

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
        def work() -> list[str]:
            self._measure(self._build(target, self.folder / target.name), target)
            return self.store.files_below(target.name)

        self._step(target.name, [], work)
        self.artifacts[target.name] = Artifact.load(self.folder / target.name)

    def _build(self, target: Target, folder: Path) -> Artifact:
        from xdeploy.builder import build
        from xdeploy.program import bind
        from xdeploy.tune import tune

        options = self.recipe.package
        golden = GoldenIo.load(self.folder / "golden.npz")
        graph = self._streamed(target)
        choice = tune(graph, target, self._tuning(target), options.form, self.progress)
        threads = self.recipe.build.threads if target in self.targets else 1
        name = options.name or self._model_name()
        program = bind(graph, target, name, options.form, choice, options.prefix, threads)
        # an emulator runs one level only; this machine runs what its CPU has
        here = target.levels_here() if target.kind == "host" else ()
        levels = {
            level.name: tune(graph, target.at(level), self._tuning(target), options.form, self.progress)
            for level in here
        }
        return build(program, graph, golden, target, folder, options, self._provenance(), levels)

    def _measure(self, artifact: Artifact, target: Target) -> None:
        from xdeploy.bench import bench
        from xdeploy.bench.runner import RunOptions

        golden, options = GoldenIo.load(self.folder / "golden.npz"), RunOptions(self.recipe.bench.repeats)
        measured = bench(artifact, golden, target, options=options, progress=self.progress)
        measured.save(artifact.folder / "bench.json")

    def _streamed(self, target: Target) -> LoweredGraph:
        """The graph, with its first layers in bands where a target that was asked for needs it."""
        from xdeploy.memory.streaming import fit_memory
        from xdeploy.program import choose

        o, form = self.recipe, self.recipe.package.form
        if target not in self.targets:
            return self.graph
        ram = (o.plan.ram, o.tune.ram)
        return fit_memory(self.graph, target, o.build.stream, ram, lambda g, n: choose(g, n, target, form))

    def _tuning(self, target: Target) -> TuneOptions:
        """As asked for, on the targets asked for: the host library that only measures accuracy is not tuned."""
        return self.recipe.tune if target in self.targets else TuneOptions()

    def _model_name(self) -> str:
        return str(read_json(self.folder / "source.json", "xdeploy.source/1")["model"]["name"])

    def _provenance(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "packages": ["numpy", "onnx", *([] if self.quantised else ["torch"])],
            "model": read_json(self.folder / "source.json", "xdeploy.source/1")["model"],
        }

    def _explain(self) -> list[str]:
        from xdeploy.explain import explain

        names = explain(self.source, self.relevance, self.recipe.relevance, self.folder / "explain", self.progress)
        return [f"explain/{name}" for name in names]

    def _accuracy(self) -> list[str]:
        run = self._host().run_many if self.recipe.bench.accuracy else None
        options, tell = self.recipe.relevance, self.progress
        return judge(self.source, self.compressed, self.graph, self._exported(), run, options, self.folder, tell)

    def _host(self) -> HostRunner:
        """The host library, built for measuring where no host target was asked for."""
        from xdeploy.bench.host import HostRunner, proven

        asked_for = self.artifacts.get(host_target().name)
        if asked_for:
            return HostRunner(asked_for)
        return proven(self._build(measuring_target(), self.folder / HOST), GoldenIo.load(self.folder / "golden.npz"))

    # ----------------------------------------------------------------- a quantised file that is kept as it is
    def _adopt(self) -> None:
        from xdeploy.kept import lower_kept
        from xdeploy.lower import Fallback

        r = self.request
        exported, graph, source = lower_kept(
            Path(r.model), r.test_data or r.data, self.recipe.data, self.progress,
            Fallback.of(self.recipe.lower, self.targets),
        )  # fmt: skip
        self._save_graph(graph, exported.inputs)
        write_json(self.folder / "source.json", source)

    def _kept_accuracy(self) -> None:
        from xdeploy.kept import accuracy

        r, golden = self.request, GoldenIo.load(self.folder / "golden.npz")
        data = (r.test_data or r.data) if self.recipe.bench.accuracy else None
        run = self._host().run_many if data else None
        found = accuracy(Path(r.model), golden, self.graph, data, self.recipe.data, run, self.progress)
        write_json(self.folder / "accuracy.json", found)
