"""Accuracy, counted the same way everywhere: the first of equal outputs wins, as on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.environment import environment
from xdeploy.files import read_json, write_json
from xdeploy.formats import Int8
from xdeploy.handover import ExportedModel, IoSpec, quantity
from xdeploy.recipe import RelevanceOptions
from xdeploy.request import Progress

if TYPE_CHECKING:
    from xdeploy.compress.model import CompressedModel
    from xdeploy.lir.graph import LoweredGraph
    from xdeploy.model.source import SourceModel

_BATCH = 500
Pairs = list[list[int]]  # [true class, told class, samples], of pairs that occur


def judge(
    source: SourceModel,
    compressed: CompressedModel,
    graph: LoweredGraph,
    exported: ExportedModel,
    run: Callable[[Int8], Int8] | None,
    options: RelevanceOptions,
    folder: Path,
    progress: Progress,
) -> list[str]:
    """Write accuracy.json: float, fake-quantised and deployed accuracy, what explanations became, ONNX Runtime.

    Args:
        source: the float network and its test samples.
        compressed: what became of it.
        graph: lowered from `exported`.
        exported: the ONNX file; `folder` holds its export.json.
        run: input to output codes of the built code; None: the deployed accuracy stays unknown.
        options: [relevance] of the recipe, for the explanations.
        folder: the run folder.
        progress: told per batch.

    Returns:
        the names of the files written beside accuracy.json.
    """
    from xdeploy.compress.fakequant import FakeQuantModule
    from xdeploy.explain import survive
    from xdeploy.lower.compare import compare_with_onnx
    from xdeploy.model.torchmodule import NetworkModule

    modules = {"float": NetworkModule(source.network), "fake_quant": FakeQuantModule(compressed)}
    value: dict[str, Any] = {"schema": "xdeploy.accuracy/1", **simulated(modules, source, progress)}
    counts = confusion(run, graph.io, source, progress) if run else None
    value |= {"deployed": None if counts is None else share_right(counts), "confusion": table(counts, graph.io)}
    survival = survive(source, compressed, options, folder, progress)
    files: list[str] = survival.pop("files")
    rows = compare_with_onnx(exported.path, graph, exported.inputs)
    worst = max(r["max_code_difference"] for r in rows)
    onnx = read_json(folder / "export.json", "xdeploy.export/1")["onnx"]
    value |= {"environment": environment(), **survival, "onnx": {**onnx, "node_max_difference": worst, "nodes": rows}}
    write_json(folder / "accuracy.json", value)
    return files


def simulated(modules: Mapping[str, Any], source: SourceModel, progress: Progress) -> dict[str, Any]:
    """Accuracy in percent of torch modules on the whole test set, by name."""
    from xdeploy.model.top1 import AT_ONCE, right

    value, n = {}, source.test_count
    for name, module in modules.items():
        hits = right(module, source.test_batches(AT_ONCE), lambda done: progress("accuracy, torch", done, n))
        value[name] = quantity(100.0 * float(hits.mean()), "%", "measured", n=n)
    return value


def confusion(run: Callable[[Int8], Int8], io: IoSpec, source: SourceModel, progress: Progress) -> Pairs:
    """What the integer code itself takes each class of the whole test set for; `run` maps input to output codes."""
    true, said = list[NDArray[Any]](), list[NDArray[Any]]()
    for x, y in source.test_batches(_BATCH):
        codes = run(io.to_codes(x.numpy()))
        true.append(y.numpy())
        said.append(codes.reshape(len(codes), -1).argmax(axis=1))
        progress("accuracy, deployed code", sum(map(len, true)), source.test_count)
    return pairs(np.concatenate(true), np.concatenate(said))


def pairs(true: NDArray[Any], said: NDArray[Any]) -> Pairs:
    """Count how often class `true` (N,) was told as `said` (N,): [true, said, count] of every pair that occurs."""
    found, counts = np.unique(np.stack([true, said]).astype(np.int64), axis=1, return_counts=True)
    return [[int(i), int(j), int(n)] for (i, j), n in zip(found.T, counts, strict=True)]


def share_right(counts: Pairs) -> dict[str, Any]:
    """Accuracy in percent as a quantity."""
    n = sum(row[2] for row in counts)
    return quantity(100 * sum(c for i, j, c in counts if i == j) / n, "%", "measured", n=n)


def table(counts: Pairs | None, io: IoSpec) -> dict[str, Any] | None:
    """`confusion` of accuracy.json: the counts, and the names of all classes up to the last one that occurs."""
    if counts is None:
        return None
    classes = 1 + max(max(i, j) for i, j, _ in counts)
    labels = [*io.labels, *(str(k) for k in range(len(io.labels), classes))]
    return {"labels": labels, "counts": counts}
