"""The compressed model: final integer codes, codebooks, scales and zero points, and the network they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UsageError
from xdeploy.files import read_json, replacing, write_json
from xdeploy.formats import Int8, Int32, QParams, WeightFormat, weight_format
from xdeploy.handover import CompressionPlan, IoSpec
from xdeploy.model.network import Network


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """One layer's weights as they will stay: codes shaped like the float weight (torch layout O, I/g, kh, kw)."""

    format_name: str
    codes: Int8  # codebook formats: indices 0..2^bits-1
    codebook: Int8 | None  # (2^bits,) int8 entries
    scale: NDArray[np.float32]  # (O,)
    bias: Int32  # (O,), at scale input_scale * scale[c]

    @property
    def format(self) -> WeightFormat:
        """The weight format."""
        return weight_format(self.format_name)

    @property
    def values(self) -> Int8:
        """int8 values the codes stand for."""
        return self.format.values(self.codes, self.codebook)

    @property
    def packed_bytes(self) -> int:
        """Bytes on the device: packed codes, codebook, and per channel a 4-byte multiplier and a 4-byte bias."""
        channels = len(self.codes)
        return self.format.packed_bytes(channels, self.codes[0].size) + 8 * channels


@dataclass(frozen=True, slots=True)
class CompressedModel:
    """What `compress` hands over.

    `activations` holds the output quantisation of every layer of the network except those whose relu or clip is
    fused (`Network.fused_activation`): there only the activation's output is quantised. Layers that only move or select
    data (relu, clip standing alone, max_pool2d, flatten, pad, slice, concat, resize, rearrange) have the quantisation
    of their input.
    """

    network: Network
    weights: Mapping[str, QuantisedWeight]
    activations: Mapping[str, QParams]
    io: IoSpec
    plan: CompressionPlan
    steps: tuple[Mapping[str, Any], ...]  # step, accuracy_before and _after on n validation samples, bytes_*

    def save(self, folder: Path) -> None:
        """Write compressed.safetensors and compressed.json."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {f"float/{k}": v for k, v in self.network.tensors().items()}
        for name, w in self.weights.items():
            parts = {"codes": w.codes, "scale": w.scale, "bias": w.bias}
            if w.codebook is not None:
                parts["codebook"] = w.codebook
            tensors.update({f"{k}/{name}": np.ascontiguousarray(v) for k, v in parts.items()})
        with replacing(folder / "compressed.safetensors") as part:
            part.write_bytes(save(tensors))
        self.plan.save(folder / "plan.json")
        write_json(
            folder / "compressed.json",
            {
                "schema": "xdeploy.compressed/1",
                "network": json.loads(self.network.to_json()),
                "formats": {n: w.format_name for n, w in self.weights.items()},
                "activations": {n: asdict(q) for n, q in self.activations.items()},
                "io": self.io.to_dict(),
                "steps": [dict(s) for s in self.steps],
            },
        )

    @staticmethod
    def load(folder: Path) -> CompressedModel:
        """Read what `save` wrote."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        head = read_json(folder / "compressed.json", "xdeploy.compressed/1")
        try:
            tensors = load_file(folder / "compressed.safetensors")
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{folder / 'compressed.safetensors'}: {error}") from None
        floats = {k.removeprefix("float/"): v for k, v in tensors.items() if k.startswith("float/")}
        network = Network.load(json.dumps(head["network"]), floats)
        weights = {
            n: QuantisedWeight(
                fmt, tensors[f"codes/{n}"], tensors.get(f"codebook/{n}"), tensors[f"scale/{n}"], tensors[f"bias/{n}"]
            )
            for n, fmt in head["formats"].items()
        }
        activations = {n: QParams(**q) for n, q in head["activations"].items()}
        plan = CompressionPlan.load(folder / "plan.json")
        return CompressedModel(network, weights, activations, IoSpec.from_dict(head["io"]), plan, tuple(head["steps"]))
