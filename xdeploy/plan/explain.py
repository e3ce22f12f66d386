"""A choice of formats -> plan lines that say why, and what the plan is predicted to need."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import WeightFormat, weight_format
from xdeploy.handover import CompressionPlan, PlanLine, RelevanceMap, quantity
from xdeploy.model.network import Network
from xdeploy.plan.cost import CostTable
from xdeploy.recipe import PlanOptions


def build_plan(
    network: Network,
    relevance: RelevanceMap | None,
    options: PlanOptions,
    table: CostTable,
    choice: NDArray[np.intp],
    budget: dict[str, Any],
) -> CompressionPlan:
    """Write a choice (format index per layer) down as a plan with a reason on every line."""
    total = float(table.distortion[np.arange(len(choice)), choice].sum())
    share = {} if relevance is None else relevance.share()
    lines = tuple(
        PlanLine(
            layer,
            table.formats[j],
            reason=_reason(table, layer, table.formats[j], share.get(layer), total, layer in options.fixed),
        )
        for layer, j in zip(table.layers, choice, strict=True)
    )
    size = int(table.size[np.arange(len(choice)), choice].sum())
    predicted = {
        "weight_bytes": quantity(size, "byte", "modelled", note="codes, codebooks, multipliers and biases"),
        "macs": quantity(sum(network.macs(x.name) for x in network.layers), "MAC", "modelled"),
        "distortion": quantity(total, "1", "modelled", note="sum of sensitivity * (weight error)^2"),
    }
    return CompressionPlan(lines, dict(budget), predicted)


def _reason(table: CostTable, layer: str, name: str, share: float | None, total: float, pinned: bool) -> str:
    """For example: 4-bit codebook: 3.1 % of relevance, saves 1,152 bytes against int8 at 0.4 % of the distortion."""
    size, distortion = table.at(layer, name)
    saved = table.at(layer, "int8")[0] - size
    part = 100.0 * distortion / total if total > 0 else 0.0
    words = [f"{share:.1%} of relevance".replace("%", " %")] if share is not None else []
    if saved > 0:
        words.append(f"saves {saved:,} bytes against int8 at {part:.1f} % of the total distortion")
    elif saved < 0:
        words.append(f"costs {-saved:,} bytes more than int8, {part:.1f} % of the total distortion")
    else:
        words.append(f"{size:,} bytes, {part:.1f} % of the total distortion")
    start = f"{describe(weight_format(name))}, pinned by plan.fixed" if pinned else describe(weight_format(name))
    return f"{start}: {', '.join(words)}"


def describe(fmt: WeightFormat) -> str:
    """A format in words: `8-bit integers`, `4-bit codebook`."""
    return f"{fmt.bits}-bit {'codebook' if fmt.codebook else 'integers'}"
