"""What the CLI, the Python API, the tests and the benchmarks call; there is no second path.

`run` is the nine arrows in a row over one run folder; a stage is skipped when nothing that goes into it has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdeploy.errors import UsageError, not_there
from xdeploy.files import replacing, write_text
from xdeploy.handover import (
    Artifact,
    CompressionPlan,
    GoldenIo,
    IoSpec,
    Measurement,
)
from xdeploy.permission import external_data
from xdeploy.pieces import check_threads
from xdeploy.recipe import Recipe
from xdeploy.request import Progress, Request, Silent
from xdeploy.stages import Stages
from xdeploy.store import Store
from xdeploy.target import load_target, resolve_targets

if TYPE_CHECKING:
    from xdeploy.bench.compare import CompareOptions
    from xdeploy.bench.power import PowerOptions
    from xdeploy.bench.runner import RunOptions


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left in its folder."""

    folder: Path
    until: str
    artifacts: dict[str, Artifact]
    report: dict[str, Any] | None

    @property
    def summary(self) -> dict[str, Any]:
        """The document of `--json`: the report, or where the unfinished run lies."""
        if self.report is not None:
            return self.report
        return {"folder": str(self.folder), "finished": self.until, "targets": list(self.artifacts), **self.pages}

    @property
    def pages(self) -> dict[str, str]:
        """What the run left to be read, by name."""
        return {"page": str(self.folder / "explain" / "explain.html")} if self.until == "explain" else {}


def run(request: Request, until: str = "report", progress: Progress | None = None) -> RunResult:
    """Run the stages up to `until` (a name in STAGES, or "explain", which shows what was scored).

    Raises:
        XdeployError: any of its branches; finished stages stay in the folder and are used by the next run.
    """
    with opened(request, progress) as stages:
        stages.run(until)
        report = write_report(stages.folder) if until == "report" else None
        stages.store.commit(finished=until in ("build", "report"))
        artifacts = {name: Artifact.load(request.output / name) for name in stages.artifacts}
        return RunResult(request.output, until, artifacts, report)


@contextlib.contextmanager
def opened(request: Request, progress: Progress | None = None) -> Iterator[Stages]:
    """The stages of a run, whose folder is held meanwhile; nothing is committed.

    Raises:
        UsageError: a name or path is wrong, or another process works in the folder.
    """
    targets = resolve_targets(list(request.targets))  # bad names fail before anything is written
    _check_paths(request)
    for target in targets:
        check_threads(request.recipe.build.threads, target, request.recipe.package.form)
    if request.plan is not None:
        CompressionPlan.load(request.plan)
    store = Store(request.output)
    try:
        with store.working(), external_data(request.recipe.lower.external_data):
            stages = Stages(request, targets, store, progress or Silent())
            with _fixed_threads(stages):
                yield stages
    finally:
        store.discard_if_empty()


@contextlib.contextmanager
def _fixed_threads(stages: Stages) -> Iterator[None]:
    """Let torch work with the recipe's number of threads, as the last bits of its sums depend on that.

    Without work for torch to do it is not loaded.
    """
    idle = all(stages.store.is_fresh(name, stages.keys[name]) for name in ("source", "score", "plan", "compress"))
    if stages.quantised or idle:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(stages.recipe.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_paths(request: Request) -> None:
    file = request.model if isinstance(request.model, str) and request.model.endswith((".onnx", ".pt2")) else None
    for path in (file, request.weights, request.data, request.test_data, request.plan):
        if path is not None and not Path(path).exists():
            raise not_there(Path(path))
    if request.model is not None and not file and request.data is None:
        raise UsageError(
            "a model needs --data to be scored and quantised", hint="a folder or zip of class folders, or an .npz"
        )


def build(
    model: Any = None,
    *,
    data: str | Path | None = None,
    target: str = "cortex-m4",
    weights: str | Path | None = None,
    test_data: str | Path | None = None,
    recipe: Recipe | None = None,
    output: str | Path = "out",
    progress: Progress | None = None,
    allow_external_data: bool = False,
) -> Artifact:
    """Build one target from a torch module, `package.module:factory`, `.onnx`, or None (the demo).

    `allow_external_data`: an ONNX file may keep tensors in other files of its own folder (lower.external_data).

    Raises:
        XdeployError: see `xdeploy.errors`.
    """

    def path(p: str | Path | None) -> Path | None:
        return None if p is None else Path(p)

    recipe = recipe or Recipe()
    if allow_external_data:
        recipe = recipe.with_options({"lower.external_data": True})
    request = Request(model, path(weights), path(data), path(test_data), recipe, (target,), Path(output))
    result = run(request, progress=progress)
    return next(iter(result.artifacts.values()))


def write_report(folder: Path) -> dict[str, Any]:
    """Make report.json, report.md and report.html from what the run folder holds."""
    from xdeploy.report import html, json, markdown, seal

    report = json.collect(folder)
    picture, page = folder / "survival.png", folder / "report.html"
    texts = {"json": json.render(report), "md": markdown.render(report)}
    made_of = seal.source(texts["json"], picture, picture.with_suffix(".npz"))
    if not seal.is_current(page, made_of):
        texts["html"] = seal.sealed(html.render(report, picture if picture.is_file() else None), made_of)
    for name, text in texts.items():
        write_text(folder / f"report.{name}", text)
    return report


def bench_artifact(
    folder: Path,
    via: str | None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    *,
    power: tuple[Path, PowerOptions] | None = None,
    compare: CompareOptions | None = None,
    save: bool = False,
) -> Measurement:
    """Measure a built artifact again; its own runner's figures become its bench.json, others' with `save`.

    power: a measured trace of the board, and how it is gated. compare: other engines, in the same run on this machine.
    On this machine energy is told too where Linux lets its counters be read and no trace is given.

    Raises:
        UsageError: no such artifact or trace, or a comparison that means nothing.
    """
    from xdeploy.bench import bench
    from xdeploy.bench.power import measure, with_power

    artifact = Artifact.load(folder)
    artifact.verify_files()
    golden = GoldenIo.load(folder / "golden.npz")
    target = load_target(artifact.target)
    tell = progress or Silent()
    reading = measure(*power) if power else None  # a bad trace ends before anything runs
    measurement = bench(artifact, golden, target, via=via, options=options, progress=tell)
    if reading is not None and power is not None:
        measurement = with_power(measurement, reading, power[0])
    elif measurement.runner == "host" and measurement.verdict == "bit-exact":
        measurement = _with_counters(measurement, artifact, golden)
    if compare is not None:
        from xdeploy.bench.compare import with_peers  # loads onnx

        measurement = with_peers(measurement, artifact, compare, tell)
    if via is None or save:
        measurement.save(folder / "bench.json")
    return measurement


def _with_counters(measurement: Measurement, artifact: Artifact, golden: GoldenIo) -> Measurement:
    from xdeploy.bench.host import HostRunner
    from xdeploy.bench.rapl import with_rapl

    return with_rapl(measurement, lambda: HostRunner(artifact).step(golden.input_codes))


def describe(measurement: Measurement) -> dict[str, Any]:
    """A measurement as a JSON document."""
    keys = ("target", "runner", "verdict", "reason", "quantities", "environment", "tells")
    return {key: getattr(measurement, key) for key in keys}


def run_inputs(
    folder: Path,
    via: str | None,
    inputs: Path,
    output: Path,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run an .npy of inputs through an artifact; writes int8 output codes (N, ...)."""
    from xdeploy.bench import run_codes

    artifact = Artifact.load(folder)
    artifact.verify_files()
    try:
        io = IoSpec.from_dict(artifact.manifest["io"])
    except (KeyError, TypeError, ValueError, AttributeError):
        where = folder / "manifest.json"
        raise UsageError(f"{where} does not say what goes in and out", hint="build it again") from None
    try:
        array = np.load(inputs, allow_pickle=False)
    except FileNotFoundError:
        raise not_there(inputs, "inputs") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"inputs {inputs}: {error}") from None
    if array.dtype != np.int8 and array.dtype.kind not in "f":
        raise UsageError(f"inputs {inputs} hold {array.dtype}; expected float as the model takes it, or int8 codes")
    codes = io.to_codes(array)
    result = run_codes(artifact, via, codes, progress or Silent(), options)
    with replacing(output) as part, part.open("wb") as file:
        np.save(file, result.outputs)
    return {
        "inputs": len(codes),
        "runner": result.runner,
        "output": str(output),
        "shape": list(result.outputs.shape),
        "instructions": None if result.instructions is None else [int(n) for n in result.instructions],
    }
