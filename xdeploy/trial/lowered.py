"""A network lowered under a plan that is not final: what the target would run, but for the values of its weights.

Shapes, formats, zeros and the quantisation of activations are real, codes are the nearest ones. Arena and instructions
depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xdeploy.compress.apply import Memory, quantise
from xdeploy.compress.calibrate import calibrate
from xdeploy.export import to_onnx
from xdeploy.files import replacing
from xdeploy.handover import CompressionPlan, IoSpec, RelevanceMap
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lower import Fallback, lower
from xdeploy.model.network import Network
from xdeploy.process.lock import scratch_folder
from xdeploy.recipe import CompressOptions

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 256  # that set activation ranges: values do not matter, but no product may overflow


class Lowering:
    """Lowers one network and what pruning leaves of it; activation ranges are taken once, of the whole network."""

    def __init__(
        self,
        network: Network,
        io: IoSpec,
        calibration: Callable[[], Iterable[Tensor]],
        options: CompressOptions,
        fallback: Fallback | None = None,
    ) -> None:
        self.network, self.io, self.calibration = network, io, calibration
        self.options, self.fallback = replace(options, codebook_weighting=0.0), fallback
        self._memory: Memory | None = None

    def graph(self, network: Network, plan: CompressionPlan, relevance: RelevanceMap | None = None) -> LoweredGraph:
        """Lower a network with the formats and densities of a plan.

        Args:
            network: the whole one, or with fewer channels: the same layers.
            plan: a line for every weighted layer; what it says of channels is done already.
            relevance: scores of `network`; needed where the plan's zeros are ordered by them.

        Raises:
            XdeployError: it cannot be quantised or lowered so.
        """
        lines = tuple(replace(line, keep=None) for line in plan.layers)
        done = quantise(
            network, CompressionPlan(lines), relevance, self.io, self.calibration, self.options,
            memory=self._known(network),
        )  # fmt: skip
        with scratch_folder("trial") as folder:
            path = Path(folder) / "model.onnx"
            with replacing(path) as part:
                part.write_bytes(to_onnx(done).SerializeToString())
            names = tuple(x.name for x in network.layers if x.kind == "fallback")
            return lower(path, fallback=None if self.fallback is None else replace(self.fallback, names=names))

    def _known(self, network: Network) -> Memory:
        """Ranges of activations, and integers of layers where it is the network that was lowered last."""
        if self._memory is None:
            ranges = calibrate(self.network, self.calibration(), self.options.activation_percentile)
            self._memory = Memory(self.network, ranges)
        if self._memory.network is not network:
            self._memory = Memory(network, self._memory.activations)
        return self._memory
