"""A choice of formats -> plan lines that say why, and what the plan is predicted to need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import WeightFormat, weight_format
from xdeploy.handover import CompressionPlan, PlanLine, RelevanceMap, quantity
from xdeploy.model.network import Network
from xdeploy.plan.channels import Removal
from xdeploy.plan.cost import CostTable
from xdeploy.plan.density import WORDS, scope
from xdeploy.recipe import PlanOptions


@dataclass(frozen=True, slots=True)
class Decided:
    """What is decided before the formats are: channels and densities, priced."""

    network: Network
    small: Network  # without the channels that go
    relevance: RelevanceMap | None  # of `network`
    options: PlanOptions
    table: CostTable  # of `small`
    removal: Removal | None
    excluded: Mapping[str, str] = field(default_factory=dict)  # layer -> which formats are out, and why

    @property
    def has_budget(self) -> bool:
        """Whether formats are chosen by a budget, which says what the next larger one would have cost."""
        o = self.options
        return any(x is not None for x in (o.flash, o.coded, o.bops, o.instructions))


def build_plan(decided: Decided, choice: NDArray[np.intp], budget: dict[str, Any]) -> CompressionPlan:
    """Write a choice (column per layer) down as a plan with a reason on every line."""
    table, network = decided.table, decided.small
    cells = np.arange(len(choice))
    total = float(table.distortion[cells, choice].sum())
    share = {} if decided.relevance is None else decided.relevance.share()
    lines = tuple(
        PlanLine(
            layer,
            table.formats[j],
            keep=None if decided.removal is None else decided.removal.keep.get(layer),
            reason=_reason(decided, i, int(j), share.get(layer), total),
            density=table.density(layer, int(j)),
            zeros=_order(decided, layer) if table.sharings[j] is not None else None,
        )
        for i, (layer, j) in enumerate(zip(table.layers, choice, strict=True))
    )
    size = int(table.size[cells, choice].sum())
    predicted = {
        "weight_bytes": quantity(size, "byte", "modelled", note="codes, codebooks, multipliers and biases"),
        "macs": quantity(sum(network.macs(x.name) for x in network.layers), "MAC", "modelled"),
        "distortion": quantity(total, "1", "modelled", note="sum of sensitivity * (weight error)^2"),
    }
    return CompressionPlan(lines, dict(budget), predicted | _more(decided, choice))


def column_plan(decided: Decided, column: int) -> CompressionPlan:
    """The plan that has every layer in one column; a layer that is not allowed it, in the first that it is."""
    allowed = decided.table.allowed
    return build_plan(decided, np.where(allowed[:, column], column, allowed.argmax(axis=1)), {})


def _more(decided: Decided, choice: NDArray[np.intp]) -> dict[str, Any]:
    """Predictions that only plans with zeros, fewer channels or further budgets have."""
    table, options, cells = decided.table, decided.options, np.arange(len(choice))
    found: dict[str, Any] = {}
    if table.is_sparse or options.coded is not None:
        coded = int(table.coded[cells, choice].sum())
        found["coded_bytes"] = quantity(coded, "byte", "modelled", note="zero-order entropy of the codes")
    if table.is_sparse:
        kept = sum(s.kept[n] for n, j in zip(table.layers, choice, strict=True) if (s := table.sharings[j]) is not None)
        weights = sum(decided.small.params[n]["weight"].size for n in table.layers)
        found["density"] = quantity(kept / weights, "1", "modelled", note="share of all weights that are not zero")
    if options.bops is not None:
        found["bops"] = quantity(int(table.operations[cells, choice].sum()), "bit operation", "modelled")
    if decided.removal is not None:
        before = decided.network
        found["macs_before"] = quantity(sum(before.macs(x.name) for x in before.layers), "MAC", "modelled")
        found["parameters"] = quantity(decided.small.parameters(), "1", "modelled", note=f"of {before.parameters():,}")
    return found


def _order(decided: Decided, layer: str) -> str:
    per = scope(decided.network, decided.options, layer)
    return decided.options.zeros if per == "layer" else f"{decided.options.zeros}/{per}"


def _reason(decided: Decided, i: int, j: int, share: float | None, total: float) -> str:
    """For example: 4-bit codebook: 3.1 % of relevance, saves 1,152 bytes against int8 at 0.4 % of the distortion."""
    table, options = decided.table, decided.options
    layer, name = table.layers[i], table.formats[j]
    size, distortion = int(table.size[i, j]), float(table.distortion[i, j])
    saved = table.at(layer, "int8")[0] - size
    part = 100.0 * distortion / total if total > 0 else 0.0
    words = [f"{share:.1%} of relevance".replace("%", " %")] if share is not None else []
    if saved > 0:
        words.append(f"saves {saved:,} bytes against int8 at {part:.1f} % of the total distortion")
    elif saved < 0:
        words.append(f"costs {-saved:,} bytes more than int8, {part:.1f} % of the total distortion")
    else:
        words.append(f"{size:,} bytes, {part:.1f} % of the total distortion")
    start = describe(weight_format(name)) + (", pinned by plan.fixed" if layer in options.fixed else "")
    parts = [f"{start}: {', '.join(words)}"]
    if options.rule != "ilp":
        parts.append(f"chosen by the rule {options.rule}")
    if decided.has_budget and layer not in options.fixed:
        parts.append(_next_larger(table, i, j, total))
    parts += [_zeros(decided, layer, j)] if table.sharings[j] is not None else []
    parts += [decided.removal.reason[layer]] if decided.removal and layer in decided.removal.reason else []
    parts += [decided.excluded[layer]] if layer in decided.excluded else []
    return "; ".join(parts)


def _next_larger(table: CostTable, i: int, j: int, total: float) -> str:
    """What the next larger allowed format of less distortion would have cost; by coded bytes between densities."""
    size = table.size if len(set(map(id, table.sharings))) == 1 else table.coded
    better = table.allowed[i] & (size[i] > size[i, j]) & (table.distortion[i] < table.distortion[i, j])
    if not better.any():
        return "no larger format is better"
    k = int(np.where(better, size[i], np.iinfo(np.int64).max).argmin())
    less = 100.0 * (table.distortion[i, j] - table.distortion[i, k]) / total if total > 0 else 0.0
    density = table.density(table.layers[i], k)
    at = "" if density is None or density == table.density(table.layers[i], j) else f" at density {density:.3f}"
    return f"{table.formats[k]}{at} would cost {int(size[i, k] - size[i, j]):,} bytes more for {less:.1f} % less of it"


def _zeros(decided: Decided, layer: str, j: int) -> str:
    """For example: keeps 18.3 % of its weights with 71.2 % of their relevance (one threshold on relevance), ..."""
    sharing, options = decided.table.sharings[j], decided.options
    assert sharing is not None
    part = sharing.relevance.get(layer)
    held = f" with {100 * part:.1f} % of their relevance" if part is not None else ""
    share = 100.0 * sharing.kept[layer] / sharing.masks[layer].size
    per = " in every output channel" if scope(decided.network, options, layer) == "row" else ""
    return f"keeps {share:.1f} % of its weights{held}: {WORDS[options.density_by]}, {options.zeros}{per} chooses which"


def describe(fmt: WeightFormat) -> str:
    """A format in words: `8-bit integers`, `4-bit codebook`."""
    return f"{fmt.bits}-bit {'codebook' if fmt.codebook else 'integers'}"
