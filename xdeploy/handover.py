"""The plain-data objects that cross the borders between stages, and how they are saved.

Each is frozen, carries `schema` in its file and loads from that file alone. No torch, tvm or onnx here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xdeploy import manifest
from xdeploy.errors import UsageError
from xdeploy.files import read_json, read_npz, write_json, write_npz
from xdeploy.formats import Int8, QParams

How = Literal["measured", "emulated", "modelled"]
Float32 = NDArray[np.float32]


def quantity(value: float | int | None, unit: str, how: How, **extra: Any) -> dict[str, Any]:
    """A number of a report: value, unit and how it was obtained (`low`, `high`, `note`, `n` as extras)."""
    return {"value": value, "unit": unit, "how": how, **extra}


def laid_out(samples: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Samples (N, ...) as (N, *shape), shape being (C, H, W) or (F,), if their shape tells how they lie; else None.

    Beside the shape itself: channels last (N, H, W, C); without the height of a 1-D network, (N, C, L) or (N, L, C);
    without the channel of grey images, (N, H, W), or flat, (N, H * W). What fits two ways is taken channels first.
    """
    given = tuple(samples.shape[1:])
    if samples.ndim and given == shape:
        return samples
    if len(shape) == 1:
        return samples.reshape(len(samples), -1) if [d for d in given if d != 1] == list(shape) else None
    if len(shape) != 3 or not given:
        return None
    channels, height, width = shape
    if given == (height, width, channels):
        return np.moveaxis(samples, -1, 1)
    if (1 in (channels, height) and given == (channels * height, width)) or (
        channels == 1 and given == (height * width,)
    ):
        return samples.reshape(len(samples), *shape)
    if height == 1 and given == (width, channels):
        return np.moveaxis(samples, -1, 1)[:, :, None, :]
    return None


# --------------------------------------------------------------------------------------------- objects
@dataclass(frozen=True, slots=True)
class IoSpec:
    """Input and output of the model as the user sees them, and their int8 codes on the device.

    `input_shape` is the model's own, without batch: (C, H, W) or (F,). On the device images are NHWC.
    mean/std per channel say how pixels in 0..1 become model inputs (empty: inputs are used as they are).
    An ONNX file of a channels-last converter has input_layout "HWC": its shape is (H, W, C) already.
    """

    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    output_shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    input_q: QParams | None = None
    output_q: QParams | None = None
    input_layout: str = "CHW"

    def to_codes(self, inputs: NDArray[Any]) -> Int8:
        """Model inputs (N, *input_shape) float, or int8 codes, to device codes (N, H, W, C) or (N, F).

        Both come in the model's own layout or channels last, also without the height of 1 of a 1-D network, as far as
        the shape tells which (see `laid_out`). Where it fits both, float is in the model's layout, int8 in the
        device's.

        Raises:
            UsageError: the shape fits neither.
        """
        images = len(self.input_shape) == 3
        height, width, channels = self.device_input_shape if images else (0, 0, 0)
        if images and inputs.dtype == np.int8 and inputs.shape[1:] == (height, width, channels):
            return np.ascontiguousarray(inputs)
        own = (channels, height, width) if images else self.input_shape
        same = self.input_layout != "CHW" and inputs.shape[1:] == self.input_shape
        found = inputs if same else laid_out(inputs, own)
        if found is None:
            raise UsageError(
                f"inputs have shape {tuple(inputs.shape)}; expected (N, {', '.join(map(str, self.input_shape))})"
            )
        codes = found if found.dtype == np.int8 else self._quantise_input(found)
        return np.ascontiguousarray(np.moveaxis(codes, 1, -1) if images and not same else codes)

    def _quantise_input(self, inputs: NDArray[Any]) -> Int8:
        if self.input_q is None:
            raise ValueError("the model is not quantised yet")
        return self.input_q.quantise(inputs)

    @property
    def device_input_shape(self) -> tuple[int, ...]:
        """(H, W, C) of an image input, (F,) otherwise."""
        shape = self.input_shape
        return (shape[1], shape[2], shape[0]) if len(shape) == 3 and self.input_layout == "CHW" else shape

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> IoSpec:
        """Invert `to_dict`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        for key in ("input_q", "output_q"):
            fields[key] = QParams(**value[key]) if value.get(key) else None
        return IoSpec(**fields)


@dataclass(frozen=True, slots=True)
class GoldenIo:
    """A few real inputs with the output codes every implementation must give (the reference run's)."""

    inputs: Float32  # (N, *input_shape), as the model expects them
    input_codes: Int8  # device layout
    output_codes: Int8  # device layout

    def save(self, path: Path) -> None:
        """Write as npz."""
        write_npz(path, {"inputs": self.inputs, "input_codes": self.input_codes, "output_codes": self.output_codes})

    @staticmethod
    def load(path: Path) -> GoldenIo:
        """Read from npz."""
        a = read_npz(path)
        return GoldenIo(a["inputs"], a["input_codes"], a["output_codes"])


@dataclass(frozen=True, slots=True)
class RelevanceMap:
    """Scores of one method. weight[l] has the weight's shape, channel[l] one score per output channel, all >= 0.

    With relevance.aggregate = "signed" weight and channel may be negative (against the class) and cancel over samples.
    `sensitivity[l]` (weight's shape, >= 0) is mean((r/w)^2) over samples: what a change of the weight would matter,
    free of the factor |w| (used to weigh codebook errors and bits).
    """

    method: str
    parameters: Mapping[str, Any]
    data_fingerprint: str
    samples: int
    weight: Mapping[str, Float32]
    channel: Mapping[str, Float32]
    sensitivity: Mapping[str, Float32]
    conservation_residual: float  # |sum R_in + bias share - sum R_out| / |sum R_out|, measured

    def share(self) -> dict[str, float]:
        """Each layer's share of the total channel relevance; sums to 1."""
        sums = {name: float(np.abs(score).sum()) for name, score in self.channel.items()}
        total = sum(sums.values()) or 1.0
        return {name: value / total for name, value in sums.items()}

    def save(self, path: Path) -> None:
        """Write relevance.npz (arrays `weight/<layer>` and so on, and a JSON header)."""
        head = {
            "schema": "xdeploy.relevance/1", "method": self.method, "parameters": dict(self.parameters),
            "data_fingerprint": self.data_fingerprint, "samples": self.samples,
            "conservation_residual": self.conservation_residual, "layers": list(self.channel),
        }  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(json.dumps(head).encode(), np.uint8)}
        for i, name in enumerate(self.channel):
            arrays[f"weight_{i}"] = self.weight[name]
            arrays[f"channel_{i}"] = self.channel[name]
            arrays[f"sensitivity_{i}"] = self.sensitivity[name]
        write_npz(path, arrays)

    @staticmethod
    def load(path: Path) -> RelevanceMap:
        """Read relevance.npz."""
        a = read_npz(path)
        head: dict[str, Any] = json.loads(bytes(a["header"].tobytes()))
        if head.pop("schema") != "xdeploy.relevance/1":
            raise UsageError(f"{path}: not an xdeploy relevance file")
        names = head.pop("layers")
        kinds = ("weight", "channel", "sensitivity")
        parts: dict[str, Any] = {k: {n: a[f"{k}_{i}"] for i, n in enumerate(names)} for k in kinds}
        return RelevanceMap(**head, **parts)


@dataclass(frozen=True, slots=True)
class PlanLine:
    """What happens to one weighted layer, and why.

    keep: output channels kept, None: all. density: share of the weights that are not zero in the end, in 0..1, None: as
    it comes. zeros: which become zero, an order of `ranking`, with "/row" in each output channel; None: magnitude.
    """

    origin: str
    weight_format: str
    activation_format: str = "int8"
    keep: tuple[int, ...] | None = None
    reason: str = ""
    density: float | None = None
    zeros: str | None = None


@dataclass(frozen=True, slots=True)
class CompressionPlan:
    """Every compression decision, as data that can be printed, edited and run again."""

    layers: tuple[PlanLine, ...]
    budget: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)  # weight_bytes, flash, ram, macs as quantities

    def __getitem__(self, origin: str) -> PlanLine:
        return next(x for x in self.layers if x.origin == origin)

    @property
    def sparse(self) -> bool:
        """Whether weights of some layer become zero."""
        return any(x.density is not None for x in self.layers)

    def save(self, path: Path) -> None:
        """Write plan.json."""
        rows = [{**asdict(x), "keep": None if x.keep is None else list(x.keep)} for x in self.layers]
        rows = [{k: v for k, v in row.items() if (k, v) != ("zeros", None)} for row in rows]
        head = {"schema": "xdeploy.plan/1", "budget": dict(self.budget), "predicted": dict(self.predicted)}
        write_json(path, {**head, "layers": rows})

    @staticmethod
    def load(path: Path) -> CompressionPlan:
        """Read plan.json; every line is checked.

        Raises:
            UsageError: unreadable, unknown keys or weight formats.
        """
        from xdeploy.formats import weight_format

        value = read_json(path, "xdeploy.plan/1")
        lines = []
        for i, row in enumerate(value.get("layers", [])):
            try:
                row = {**row, "keep": None if row.get("keep") is None else tuple(int(k) for k in row["keep"])}
                line = PlanLine(**row)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{path}: layer line {i}: {error}") from None
            weight_format(line.weight_format)
            lines.append(line)
        return CompressionPlan(tuple(lines), value.get("budget", {}), value.get("predicted", {}))


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """The ONNX file, what goes in and out of it, and a few real inputs to hold every later stage to."""

    path: Path
    sha256: str
    io: IoSpec
    inputs: Float32  # (N, *input_shape): the golden inputs
    onnx_codes: Int8  # (N, *output_shape): what ONNX Runtime answers, as codes


@dataclass(frozen=True, slots=True)
class Artifact:
    """A built target folder; `manifest` is the content of its manifest.json."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def target(self) -> str:
        """Name of the target it was built for."""
        return str(self.manifest["target"])

    @staticmethod
    def load(folder: Path) -> Artifact:
        """Read OUT/<target>.

        Raises:
            UsageError: the folder is none of a built target.
        """
        if not (folder / "manifest.json").exists():
            raise manifest.not_built(folder)
        return Artifact(folder, read_json(folder / "manifest.json", "xdeploy.manifest/1"))

    def verify_files(self) -> None:
        """Check that every file is the one that was built, the manifest too.

        Raises:
            UsageError: the first files that are missing or changed, by name (see `xdeploy.manifest`).
        """
        manifest.verify(self.folder, self.manifest)


@dataclass(frozen=True, slots=True)
class LayerCount:
    """Executed instructions of one kernel call, by node name; cycles and energies where a model tells them.

    energy: joules of the named board. accelerator: joules of an accelerator-class proxy, for comparing layers only.
    mix: instructions by class (load, store, mac, branch, vector, other).
    """

    node: str
    kernel: str
    instructions: int
    cycles: float | None = None
    energy: float | None = None
    accelerator: float | None = None
    mix: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one runner told about one artifact. `quantities` maps flash, ram, stack, ... to quantity dicts.

    tells: what this runner can tell, what it cannot and why, and the feature level that ran, where it is a further one.
    """

    target: str
    runner: str
    verdict: Literal["bit-exact", "differs", "not run"]
    reason: str | None
    quantities: Mapping[str, Any]
    layers: tuple[LayerCount, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    tells: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write bench.json."""
        value = {k: getattr(self, k) for k in ("target", "runner", "verdict", "reason")}
        layers = [asdict(x) for x in self.layers]
        extra = {k: dict(getattr(self, k)) for k in ("quantities", "environment", "tells")}
        write_json(path, {"schema": "xdeploy.bench/1", **value, "layers": layers, **extra})

    @staticmethod
    def load(path: Path) -> Measurement:
        """Read bench.json."""
        value = read_json(path, "xdeploy.bench/1")
        del value["schema"]
        value["layers"] = tuple(LayerCount(**x) for x in value["layers"])
        return Measurement(**value)
