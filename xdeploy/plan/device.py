"""What the planner asks about the target: the arena a network would take there, and the instructions of its layers.

The answers come from outside, by lowering the network as the build does; nothing here is estimated from shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.model.network import Network

OTHERS = ""  # stands for all that runs besides the weighted layers


@dataclass(frozen=True, slots=True)
class Arena:
    """The arena of a network on a target.

    size: bytes. needs: weighted layer -> bytes in use while it runs, scratch included. at: the layer that runs where
    most is in use. peak: layers whose outputs are in use then. scratch: bytes of the kernel that runs then.
    target: where.
    """

    size: int
    needs: Mapping[str, int]
    at: str
    peak: tuple[str, ...]
    scratch: int
    target: str


class Device(Protocol):
    """The target, or several of them."""

    def arena(self, network: Network, plan: CompressionPlan, relevance: RelevanceMap | None, ram: int) -> Arena:
        """The largest arena over the targets, streamed as the build would to stay within `ram` bytes.

        Args:
            network: its channels are removed already.
            plan: formats and densities of its layers.
            relevance: scores of `network`, which may order zeros.
            ram: bytes that are allowed.
        """
        ...

    def instructions(
        self, network: Network, plan: CompressionPlan, relevance: RelevanceMap | None
    ) -> Mapping[str, int]:
        """Weighted layer -> instructions executed in one inference on the target that is counted; OTHERS: the rest.

        Raises:
            PlanError: no target's instructions can be counted.
        """
        ...
