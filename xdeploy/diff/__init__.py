"""diff: where do two forms of one network differ? Layer by layer, pair by pair, with the first layer named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.diff.measures import code_distance, real_distance
from xdeploy.errors import UsageError, choose_from
from xdeploy.files import read_json, write_json, write_text
from xdeploy.permission import external_data
from xdeploy.request import Progress, Silent

if TYPE_CHECKING:
    from xdeploy.lir.graph import LoweredGraph

__all__ = ["Comparison", "diff", "read_inputs", "write"]

SCHEMA = "xdeploy.diff/1"
_RANDOM = 4  # inputs made up where none are given
_HOST = ".host"  # the host library of a run without a host target


@dataclass(slots=True)
class Comparison:
    """Pairs of forms so far; `layers` has one row per tensor, in execution order."""

    what: str
    inputs: dict[str, Any]
    layers: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def codes(self, a: str, b: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        """Compare int8 codes of the tensors that both forms have."""
        rows = {n: code_distance(ours[n], theirs[n]) for n in self.layers if n in ours and n in theirs}
        differing = [n for n, r in rows.items() if r["max_difference"]]
        first = {"layer": self.layers[differing[0]]["origin"], **rows[differing[0]]} if differing else None
        worst = max((r["max_difference"] for r in rows.values()), default=0)
        self._enter(a, b, "codes", rows, first, {"max_difference": worst})

    def reals(
        self, a: str, b: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float | None
    ) -> None:
        """Compare real values; a layer differs where its largest difference exceeds the tolerance, if there is one."""
        rows = {n: real_distance(ours[n], theirs[n]) for n in self.layers if n in ours and n in theirs}
        differing = [n for n, r in rows.items() if tolerance is not None and r["max"] > tolerance]
        first = {"layer": self.layers[differing[0]]["origin"], **rows[differing[0]]} if differing else None
        lowest = min(rows, key=lambda n: rows[n]["sqnr_db"], default=None)
        extra = {"tolerance": tolerance, "worst_layer": self.layers[lowest]["origin"] if lowest else None}
        self._enter(a, b, "real", rows, first, extra)

    def _enter(
        self, a: str, b: str, measure: str, rows: Mapping[str, Any], first: Any, extra: Mapping[str, Any]
    ) -> None:
        name = f"{a} / {b}"
        for tensor, row in rows.items():
            self.layers[tensor]["pairs"][name] = row
        head = {"name": name, "a": a, "b": b, "measure": measure, "compared": len(rows)}
        judged = bool(rows) and extra.get("tolerance", 0.0) is not None
        self.pairs.append({**head, "equal": first is None if judged else None, "first": first, **extra})

    def document(self) -> dict[str, Any]:
        """The content of diff.json."""
        return {
            "schema": SCHEMA, "what": self.what, "inputs": self.inputs, "pairs": self.pairs, "notes": self.notes,
            "layers": list(self.layers.values()),
        }  # fmt: skip


def diff(
    what: Path,
    inputs: Path | None = None,
    targets: tuple[str, ...] = (),
    progress: Progress | None = None,
    allow_external_data: bool = False,
) -> dict[str, Any]:
    """Compare the forms of a run folder, or of one ONNX file.

    Args:
        what: a run folder (float, fake-quant, ONNX Runtime, reference and every built target), a quantised ONNX file
            (ONNX Runtime and reference), or a float one (torch and ONNX Runtime).
        inputs: .npy (N, *input shape), float; none: the run's golden inputs, or random ones for a file.
        targets: only these built targets of a run folder.
        progress: told the stages.
        allow_external_data: the ONNX file may keep tensors in other files of its own folder; a run folder remembers
            whether its file may.

    Returns:
        the document of diff.json: pairs (name, measure, compared, equal, first, ...) and layers (origin, op, shape,
        pairs -> distances).

    Raises:
        UsageError: no run folder and no ONNX file, unknown target, inputs of another shape.
    """
    tell = progress or Silent()
    if what.is_dir():
        return _run_folder(what, inputs, targets, tell)
    if not what.is_file() or what.suffix.lower() != ".onnx":
        raise UsageError(f"{what} is neither a run folder nor an ONNX file")
    if targets:
        raise UsageError("--target goes with a run folder", hint="build the model first")
    with external_data(allow_external_data):
        return _file(what, inputs, tell)


def _file(path: Path, inputs: Path | None, tell: Progress) -> dict[str, Any]:
    from xdeploy.diff.floating import float_file
    from xdeploy.onnxfile import is_quantised

    return _quantised(path, inputs, tell) if is_quantised(path) else float_file(path, inputs, tell)


def write(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write diff.json and diff.html into the folder."""
    from xdeploy.report.diffpage import html

    write_json(folder / "diff.json", document)
    write_text(folder / "diff.html", html(document))
    return [folder / "diff.json", folder / "diff.html"]


def _run_folder(folder: Path, inputs: Path | None, targets: tuple[str, ...], tell: Progress) -> dict[str, Any]:
    from xdeploy.diff import forms
    from xdeploy.handover import GoldenIo
    from xdeploy.lir.graph import LoweredGraph

    request = read_json(folder / "run.json", "xdeploy.run/1")["request"]
    built = [n for n in (*request.get("targets", []), _HOST) if (folder / n / "manifest.json").is_file()]
    for name in targets:
        if name not in built:
            raise choose_from("built target", name, built)
    graph = LoweredGraph.load(folder / "graph.npz")
    samples = read_inputs(inputs, graph.io.input_shape) if inputs else GoldenIo.load(folder / "golden.npz").inputs
    codes = graph.io.to_codes(samples)
    made = _graph_comparison(str(folder), graph, str(inputs or "golden inputs of the run"), len(codes))
    tell.stage("reference")
    ours = forms.reference(graph, codes)
    path = folder / "model.onnx" if (folder / "compressed.json").is_file() else Path(str(request["model"]))
    if path.is_file():
        with external_data(bool(request.get("recipe", {}).get("lower", {}).get("external_data"))):
            _with_file(made, folder, path, graph, samples, ours, tell)
    else:
        made.notes.append(f"{path} is not there any more: nothing is compared with ONNX Runtime")
    for name in targets or built:
        tell.stage(name)
        theirs, note = forms.artifact(folder / name, graph, codes)
        label = "host" if name == _HOST else name
        made.notes += [f"{label}: {note}"] if note else []
        if theirs:
            made.codes("reference", label, ours, theirs)
    return made.document()


def _with_file(
    made: Comparison, folder: Path, path: Path, graph: LoweredGraph, samples: NDArray[Any], ours: Any, tell: Progress
) -> None:
    """The pairs that an ONNX file and the compressed model beside it allow."""
    from xdeploy.diff import forms

    tell.stage("ONNX Runtime")
    theirs = forms.onnxruntime(path, graph, samples)
    if (folder / "compressed.json").is_file():
        tell.stage("torch")
        real, fake = forms.torch_forms(folder, path, graph, samples)
        q = {n: t.q for n, t in graph.tensors.items()}
        made.reals("float", "fake-quant", real, {n: q[n].dequantise(c) for n, c in fake.items()}, None)
        made.codes("fake-quant", "ONNX Runtime", fake, theirs)
    made.codes("ONNX Runtime", "reference", theirs, ours)
    _alone(made, path, graph, samples)


def _alone(made: Comparison, path: Path, graph: LoweredGraph, samples: NDArray[Any]) -> None:
    """Each node by itself, fed with ONNX Runtime's own codes."""
    from xdeploy.lower.compare import compare_with_onnx

    rows = {r["node"]: r for r in compare_with_onnx(path, graph, samples)}
    name = "ONNX Runtime / reference"
    for row in made.layers.values():
        alone = rows.get(row["tensor"]) or rows.get(row["origin"])
        if alone and name in row["pairs"]:
            row["pairs"][name] |= {"alone_difference": alone["max_code_difference"], "alone_equal": alone["equal"]}
    pair = next(p for p in made.pairs if p["name"] == name)
    pair["alone_max_difference"] = max((r["max_code_difference"] for r in rows.values()), default=0)


def _quantised(path: Path, inputs: Path | None, tell: Progress) -> dict[str, Any]:
    from xdeploy.diff import forms
    from xdeploy.lower import lower

    tell.stage("lower")
    graph = lower(path)
    if inputs is not None:
        samples, source = read_inputs(inputs, graph.io.input_shape), str(inputs)
    else:
        codes = np.random.default_rng(0).integers(-128, 128, (_RANDOM, *graph.io.input_shape)).astype(np.int8)
        assert graph.io.input_q is not None
        samples, source = graph.io.input_q.dequantise(codes), "random codes over the whole input range, seed 0"
    made = _graph_comparison(str(path), graph, source, len(samples))
    tell.stage("ONNX Runtime")
    theirs = forms.onnxruntime(path, graph, samples)
    tell.stage("reference")
    made.codes("ONNX Runtime", "reference", theirs, forms.reference(graph, graph.io.to_codes(samples)))
    _alone(made, path, graph, samples)
    return made.document()


def _graph_comparison(what: str, graph: LoweredGraph, source: str, count: int) -> Comparison:
    rows = [(graph.input, "input", graph.input), *((n.name, n.op, n.output) for n in graph.nodes)]
    layers = {
        tensor: {"origin": name, "op": op, "tensor": tensor, "shape": list(graph.tensors[tensor].shape), "pairs": {}}
        for name, op, tensor in rows
    }
    return Comparison(what, {"from": source, "n": count}, layers)


def read_inputs(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Model inputs of an .npy, float32 (N, *shape).

    Raises:
        UsageError: unreadable, not float, or of another shape.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"inputs {path}: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape[1:] != shape or not len(array):
        given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no plain array"
        raise UsageError(f"inputs {path} hold {given}; expected float (N, {', '.join(map(str, shape))})")
    return array.astype(np.float32)
