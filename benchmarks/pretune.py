"""Measure the layers of the zoo's networks on every emulated target; the figures ship with the package.

Each network is built by the user's own path with random weights and data, up to its integer graph, and tuned with
`quick` for each target that it fits. One file per network and format is written to xdeploy/tune/figures when all its
targets are done. Figures are kept in the user's cache as ever: a killed run goes on where it ended, and after a change
of kernels only those that changed are measured; after a change of what builds and measures, all are.

With --check nothing is written: it is told how many of the rows that compete today ship with today's figures, and the
program ends with 1 if any is missing or differs.

Run: python benchmarks/pretune.py [--only resnet20-int8,...] [--shared DIR] [--check]
The two quantised files of MLPerf Tiny are in --shared; without it they keep the files they have.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xdeploy.bench.qemu import version as qemu_version
from xdeploy.builder.zig import tool_versions
from xdeploy.console import Console
from xdeploy.errors import GateError
from xdeploy.files import write_text
from xdeploy.lir.graph import LoweredGraph
from xdeploy.memory.streaming import fit_memory
from xdeploy.model import zoo
from xdeploy.pipeline import run
from xdeploy.program import bind, choose
from xdeploy.recipe import Recipe, TuneOptions
from xdeploy.request import Progress, Request
from xdeploy.target import Target, load_target
from xdeploy.tune import tune
from xdeploy.tune.cache import Cache
from xdeploy.tune.candidates import candidates
from xdeploy.tune.jobs import Figures
from xdeploy.tune.pretuned import FOLDER, KEY, SUFFIX, Entry, read, written

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "xdeploy" / "tune" / FOLDER
TARGETS = (
    "cortex-m4", "cortex-m55", "cortex-a72", "cortex-m0plus", "cortex-m3", "cortex-m7", "cortex-m33", "cortex-a53",
    "cortex-a76", "cortex-a7",
)  # fmt: skip
NETWORKS = ("digits_cnn", "ds_cnn", "resnet20", "mobilenet_v1_025", "mlp")
FORMATS = ("int8", "int4")
MORE = ("resnet20-c4s8", "resnet20-int2")  # the other formats that a plan chooses from by default
FILES = {"resnet8": "mlperf-tiny-ic-resnet8.int8.onnx", "kws": "mlperf-tiny-kws-dscnn.int8.onnx"}
DEMO = "demo"  # with the formats that its plan chooses
QUICK = TuneOptions(effort="quick")
SAMPLES = 64


def names() -> list[str]:
    """Of all files, in the order in which they are made."""
    return [DEMO, *(f"{n}-{f}" for f in FORMATS for n in NETWORKS), *MORE, *(f"{n}-int8" for n in FILES)]


def graph_of(name: str, folder: Path, shared: Path | None, progress: Progress) -> LoweredGraph:
    """The integer graph of a network and format, by way of a run folder."""
    run(_request(name, folder, shared), until="lower", progress=progress)
    return LoweredGraph.load(folder / "out" / "graph.npz")


def _request(name: str, folder: Path, shared: Path | None) -> Request:
    network, _, weights = name.rpartition("-")
    if name == DEMO:
        return Request(output=folder / "out")
    if network in FILES:
        assert shared is not None
        return Request(model=str(shared / "models" / FILES[network]), output=folder / "out")
    torch.manual_seed(0)
    rng, shape = np.random.default_rng(0), getattr(zoo, network)().xdeploy_input["shape"]
    x = rng.normal(size=(SAMPLES, *shape)).astype(np.float32)
    np.savez(folder / "random.npz", x=x, y=np.arange(SAMPLES) % 2)
    options = {"plan.formats": [weights], "plan.max_drop": 100.0, "relevance.method": "magnitude"}
    recipe = Recipe().with_options(options)
    model = f"xdeploy.model.zoo:{network}"
    return Request(model=model, data=folder / "random.npz", recipe=recipe, output=folder / "out")


def fitted(graph: LoweredGraph, target: Target) -> LoweredGraph:
    """The graph as a build for the target has it.

    Raises:
        GateError: it does not fit.
    """
    graph = fit_memory(graph, target, Recipe().build.stream, (), lambda g, n: choose(g, n, target))
    bind(graph, target, "pretuned")
    return graph


def measured(graph: LoweredGraph, target: Target, progress: Progress) -> list[Entry]:
    """The rows that compete for the graph's nodes; those that are refused are left out.

    Raises:
        GateError: code and constants do not fit.
    """
    cache = Cache()  # given by name, so that what ships is not asked
    tune(graph, target, QUICK, cache=cache, progress=progress)
    jobs = [c.job for competing in candidates(graph, target, "tuned", "quick").values() for c in competing]
    found = [(job, cache.get(job.key)) for job in jobs]
    return [Entry(target.name, job.kernel, job.work[:KEY], figures) for job, figures in found if figures is not None]


def entries(name: str, shared: Path | None, progress: Any) -> Iterator[Entry]:
    """All rows of a network and format, target by target."""
    with tempfile.TemporaryDirectory(prefix="xdeploy-pretune-") as folder:
        whole = graph_of(name, Path(folder), shared, progress)
    for target in map(load_target, TARGETS):
        start = time.monotonic()
        progress.stage(f"{name} on {target.name}")
        try:
            yield from measured(fitted(whole, target), target, progress)
        except GateError as error:
            print(f"{target.name} is left out: {error.message}", file=sys.stderr)
        progress.stage(f"{name} on {target.name}", time.monotonic() - start)


def tools() -> dict[str, str]:
    """Versions of what figures depend on."""
    return {**tool_versions(("apache-tvm", "ziglang", "unicorn")), "qemu": qemu_version()}


def agree(one: Figures | None, other: Figures) -> bool:
    """Whether figures are equal, cycles within 1 %: those of the compiler's runtime are shared out over an image."""
    if one is None or replace(one, cycles=None) != replace(other, cycles=None):
        return False
    return abs((one.cycles or 0) - (other.cycles or 0)) <= 0.01 * (other.cycles or 0)


def compared(name: str, now: Iterable[Entry], path: Path) -> bool:
    """Tell how much of a file is current; whether all of what competes today is in it with today's figures."""
    ships = {e.key: e.figures for e in read(path.read_text(encoding="utf-8"))} if path.exists() else {}
    today = {e.key: e.figures for e in now}
    equal = sum(agree(ships.get(k), figures) for k, figures in today.items())
    differing = sum(k in ships and not agree(ships[k], figures) for k, figures in today.items())
    print(
        f"{name}: {equal} of {len(today)} rows are current, {len(today) - equal - differing} are missing, "
        f"{differing} differ; {len(ships.keys() - today.keys())} ship that nothing asks for",
        file=sys.stderr,
    )
    return equal == len(today)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder with models")
    parser.add_argument("--only", help="files, with commas between: " + ", ".join(names()))
    parser.add_argument("--check", action="store_true", help="compare with what ships, and write nothing")
    args = parser.parse_args()
    given = [n for n in names() if args.shared or n.rpartition("-")[0] not in FILES]
    wanted = args.only.split(",") if args.only else given
    if unknown := set(wanted) - set(given):
        parser.error(f"unknown file {min(unknown)!r}; allowed: {', '.join(given)}")
    current = True
    with Console() as console:
        for name in wanted:
            found, path = list(entries(name, args.shared, console)), FIGURES / f"{name}{SUFFIX}"
            if args.check:
                current &= compared(name, found, path)
            else:
                write_text(path, written(found, tools()))
    sys.exit(0 if current else 1)


if __name__ == "__main__":
    main()
