"""A file that is quantised already and kept as it is: lowered without data, judged with data if there is some."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.environment import environment
from xdeploy.errors import PlanError, UsageError
from xdeploy.formats import Int8
from xdeploy.handover import ExportedModel, GoldenIo, IoSpec, quantity
from xdeploy.lir.graph import LoweredGraph
from xdeploy.recipe import DataOptions, Recipe
from xdeploy.request import Progress, Request, is_quantised_file

if TYPE_CHECKING:
    from xdeploy.lower import Fallback
    from xdeploy.model.data import DataSet

_BATCH = 500
Array = NDArray[Any]


# what only scoring and compressing can honour; of a kept file the arena and the packed weights can be held to a limit
_COMPRESSING = ("relevance", "plan", "compress", "recover", "ecq")
_HONOURED = ("plan.flash", "plan.ram", "plan.max_drop")


def refuse_compression(request: Request) -> None:
    """Refuse options that a file which is quantised already and kept as it is would leave without effect.

    Raises:
        UsageError: some are given; names them.
    """
    default = Recipe()
    given = [
        f"{section}.{f.name}"
        for section in _COMPRESSING
        for f in fields(getattr(default, section))
        if getattr(getattr(request.recipe, section), f.name) != getattr(getattr(default, section), f.name)
    ]
    given = [key for key in given if key not in _HONOURED] + (["--plan"] if request.plan is not None else [])
    if given:
        raise UsageError(
            f"{request.model} is quantised already and kept as it is, so nothing can honour {', '.join(given)}",
            hint="leave them out, or give --further and --data to compress it once more",
        )


def check_budget(graph: LoweredGraph, model: str, flash: int | None) -> None:
    """Hold the packed weights of a kept file to plan.flash.

    Raises:
        PlanError: they take more bytes.
    """
    from xdeploy.plan.cost import layer_bytes

    needed = sum(layer_bytes(n.consts["codes"].shape, n.format) for n in graph.nodes if n.format)
    if flash is not None and needed > flash:
        raise PlanError(
            f"the weights of {model} take {needed} bytes as they are; plan.flash allows {flash}",
            hint="allow more (--flash), or give --further and --data to compress them once more",
        )


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled test samples in the layout that the file takes."""

    data: DataSet
    io: IoSpec
    held: str  # where they are from, in words

    def batches(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Model inputs float32 (N, *input_shape) and labels int64 (N,)."""
        for x, y in self.data.batches(np.arange(len(self.data), dtype=np.int64), size):
            yield self._arranged(x.numpy()), y.numpy()

    def _arranged(self, x: Array) -> Array:
        last = self.io.input_layout == "HWC" and x.shape[1:] != self.io.input_shape
        return np.ascontiguousarray(np.moveaxis(x, 1, -1) if last else x)

    def first(self, count: int) -> Array:
        """A few inputs, spread over the samples."""
        chosen = np.linspace(0, len(self.data) - 1, min(count, len(self.data))).astype(np.int64)
        return self._arranged(next(iter(self.data.batches(chosen, count)))[0].numpy())


def read_samples(path: Path, io: IoSpec, options: DataOptions, progress: Progress) -> Samples:
    """Test data for a kept file; mean and std are those of the options, else what our exporter wrote into the file.

    Raises:
        UsageError: unreadable data, samples of another shape, more classes than the file has outputs.
    """
    from xdeploy.model.data import check_classes, load_data

    normal: DataOptions | IoSpec = options if options.mean or options.std else io
    shape = io.input_shape
    image = len(shape) == 3
    first = (shape[2], shape[0], shape[1]) if image and io.input_layout == "HWC" else shape
    data = load_data(path, mean=normal.mean, std=normal.std, channels=first[0] if image else None, progress=progress)
    if data.shape not in (first, shape):
        raise UsageError(f"the model takes samples of {shape}, but those of {path} are {data.shape}")
    check_classes(data, math.prod(io.output_shape))
    return Samples(data, io, f"{path.name}, all {len(data)} samples")


def lower_kept(
    path: Path, data: Path | None, options: DataOptions, progress: Progress, fallback: Fallback | None = None
) -> tuple[ExportedModel, LoweredGraph, dict[str, Any]]:
    """Lower the file as it is; with data, the golden inputs are real samples.

    Returns:
        the file with its golden inputs, the graph, and the content of source.json.

    Raises:
        ModelError, UsageError: what is wrong with the file or the data.
    """
    from xdeploy.lower import lower
    from xdeploy.lower.compare import adopt

    exported = adopt(path, None, fallback)
    samples = read_samples(data, exported.io, options, progress) if data else None
    if samples is not None:
        exported = adopt(path, samples.first(options.golden), fallback)
    graph = lower(exported, fallback=fallback)
    return exported, graph, _source(path, graph, samples)


def float_view_of(request: Request) -> Any:
    """The torch module behind a quantised file, to be scored and compressed like any other.

    Raises:
        UsageError: MODEL is not quantised. ModelError: it cannot be read as a float graph.
    """
    from xdeploy.lower.floatview import float_view
    from xdeploy.model.onnxgraph import module_of
    from xdeploy.onnxfile import read

    if not is_quantised_file(request.model):
        raise UsageError("compress.further is for ONNX files that are quantised already", hint="leave --further out")
    view = float_view(read(Path(request.model)), request.model)
    module = module_of(view.graph, request.model)
    mean, std = view.normal
    if std:
        declared: dict[str, Any] = {**getattr(module, "xdeploy_input", {}), "mean": mean, "std": std}
        setattr(module, "xdeploy_input", declared)  # noqa: B010 (the class declares a narrower type)
    return module


def _source(path: Path, graph: LoweredGraph, samples: Samples | None) -> dict[str, Any]:
    from xdeploy.lir.ops import macs
    from xdeploy.onnxfile import digest

    weights = [n for n in graph.nodes if n.format]
    count = sum(n.consts["codes"].size + n.consts["bias"].size for n in weights)
    model = {
        "name": path.name.split(".")[0], "sha256": digest(path), "parameters": count,
        "macs": sum(macs(graph, n) for n in graph.nodes),
        "float_bytes": quantity(4 * count, "byte", "modelled", note="the same parameters as float32"),
    }  # fmt: skip
    return {"schema": "xdeploy.source/1", "model": model, "data": samples and _data(samples), "layers": []}


def _data(samples: Samples) -> dict[str, Any]:
    d = samples.data
    return {
        "name": Path(d.path).name, "fingerprint": d.fingerprint, "train": 0, "validation": 0, "test": len(d),
        "test_from": samples.held, "path": str(Path(d.path).resolve()), "mean": list(d.mean), "std": list(d.std),
    }  # fmt: skip


def accuracy(
    path: Path,
    golden: GoldenIo,
    graph: LoweredGraph,
    data: Path | None,
    options: DataOptions,
    deployed: Callable[[Int8], Int8] | None,
    progress: Progress,
) -> dict[str, Any]:
    """The content of accuracy.json: the deployed code and ONNX Runtime on the test samples, each node by itself.

    Args:
        path: the kept file.
        golden: inputs that the nodes are compared on.
        graph: lowered from the file.
        data: test data; None: accuracies stay unknown.
        options: how samples become inputs.
        deployed: input codes (N, *device shape) to output codes (N, *output shape) of the built code.
        progress: told per batch.
    """
    from xdeploy.lower.compare import compare_with_onnx

    value: dict[str, Any] = {"schema": "xdeploy.accuracy/1", "float": None, "fake_quant": None, "deployed": None}
    value["environment"] = environment()
    rows = compare_with_onnx(path, graph, golden.inputs)
    worst = max((r["max_code_difference"] for r in rows), default=0)
    value["onnx"] = None
    if data is not None and deployed is not None:
        samples = read_samples(data, graph.io, options, progress)
        judged, agreed = _judged(path, samples, deployed, progress)
        value |= judged
        value["onnx"] = {**agreed, "of": "deployed code", "node_max_difference": worst, "nodes": rows}
    return value


def _judged(
    path: Path, samples: Samples, deployed: Callable[[Int8], Int8], progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy of the deployed code and of ONNX Runtime with the former's confusions, and how far their codes agree."""
    from xdeploy.accuracy import pairs, table
    from xdeploy.lower.compare import agreement
    from xdeploy.lower.runtime import run_onnx

    ours, theirs, labels = [], [], []
    total = len(samples.data)
    for x, y in samples.batches(_BATCH):
        ours.append(deployed(samples.io.to_codes(x)).reshape(len(x), -1))
        theirs.append(run_onnx(path, samples.io, x).reshape(len(x), -1))
        labels.append(y)
        progress("accuracy, deployed code and ONNX Runtime", sum(map(len, labels)), total)
    a, b, y = (np.concatenate(parts) for parts in (ours, theirs, labels))
    shares = (100.0 * float((codes.argmax(axis=1) == y).mean()) for codes in (a, b))
    first, second = (quantity(share, "%", "measured", n=total) for share in shares)
    told = table(pairs(y, a.argmax(axis=1)), samples.io)
    return {"deployed": first, "onnxruntime": second, "confusion": told}, agreement(a, b)
