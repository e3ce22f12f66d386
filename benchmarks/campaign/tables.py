"""The rows as tables in markdown: means over seeds with their spread, and where relevance wins or does not."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from campaign.cells import KINDS, METHODS, RELEVANCE_DRIVEN, WORDS

Row = Mapping[str, Any]
AGREEMENT = ("pearson", "spearman", "top10")  # of relevance maps, as the report names them
SURE = 1.96  # standard errors beyond which two accuracies are called different


def has_figures(row: Row) -> bool:
    """Whether a row holds a measurement, not a reason why there is none."""
    return "accuracy" in row


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and half of the range over seeds where there are several."""
    half = (max(values) - min(values)) / 2.0
    return f"{fmean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def headline(rows: Iterable[Row]) -> str:
    """One line for each network and recipe."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in filter(has_figures, rows):
        groups[row["network"], row["recipe"]["name"]].append(row)
    lines = [
        "| network | recipe | seeds | float, given | float, trained on | deployed | loss | packed | coded |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (network, recipe), group in sorted(groups.items()):
        base = [spread([r["baseline"][k]["test"] for r in group]) for k in ("given", "further")]
        deployed = spread([r["accuracy"]["value"] for r in group])
        ratios = [f"1/{spread([r[k] for r in group], 1)}" for k in ("packed_ratio", "coded_ratio")]
        cells = [network, recipe, str(len(group)), *base, deployed, spread([r["loss"] for r in group]), *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means(rows: Iterable[Row]) -> dict[tuple[str, bool, str, float, str], list[Row]]:
    """The rows with figures by (network, tuned, kind, point, method); each has one row for each seed."""
    found: dict[tuple[str, bool, str, float, str], list[Row]] = defaultdict(list)
    for row in filter(has_figures, rows):
        found[row["network"], row["tuned"], row["kind"], row["point"], row["method"]].append(row)
    return found


def accuracy_of(group: Sequence[Row]) -> float:
    """Mean accuracy of the deployed code in percent."""
    return fmean(r["accuracy"]["value"] for r in group)


def noise_of(first: Sequence[Row], second: Sequence[Row]) -> float:
    """Points that the accuracies of two groups may differ by for the choice of test images alone (SURE errors).

    As if each group had images of its own, which they have not: the true noise is smaller, never larger.
    """
    variance = 0.0
    for group in (first, second):
        images = sum(r["accuracy"]["n"] for r in group)
        share = sum(r["accuracy"]["value"] * r["accuracy"]["n"] for r in group) / (100.0 * images)
        variance += share * (1.0 - share) / images
    return 100.0 * SURE * math.sqrt(variance)


def comparison(rows: Sequence[Row]) -> str:
    """One table for each network, kind and training; empty cells say why below it."""
    grouped = means(rows)
    parts = []
    for network, tuned in sorted({(k[0], k[1]) for k in grouped}):
        for kind in KINDS:
            points = sorted({k[3] for k in grouped if k[:3] == (network, tuned, kind)}, reverse=True)
            if points:
                parts.append(_table(grouped, rows, network, tuned, kind, points))
    return "\n\n".join(parts)


def _table(
    grouped: Mapping[Any, list[Row]], rows: Sequence[Row], network: str, tuned: bool, kind: str, points: Sequence[float]
) -> str:
    word = "after a short fine-tuning" if tuned else "without fine-tuning"
    lines = [
        f"**{network}, {kind}, {word}**: deployed accuracy in % (coded bytes)", "",
        "| method | variant | " + " | ".join(f"{WORDS[kind]} {p:g}" for p in points) + " |",
        "|---" * (len(points) + 2) + "|",
    ]  # fmt: skip
    reasons = []
    for method in METHODS:
        groups = [grouped.get((network, tuned, kind, p, method), []) for p in points]
        if any(groups):
            variant = next(g for g in groups if g)[0]["variant"]
            lines.append(f"| {method} | {variant} | " + " | ".join(map(_figures, groups)) + " |")
            continue
        own = [r for r in rows if (r["network"], r.get("kind"), r["method"]) == (network, kind, method)]
        reasons += [f"{method}: {r['reason']}" for r in own if "reason" in r][:1]
    return "\n".join(lines) + ("\n\nNo number: " + "; ".join(reasons) + "." if reasons else "")


def _figures(group: Sequence[Row]) -> str:
    if not group:
        return "-"
    size = fmean(r["coded_bytes"]["value"] for r in group)
    return f"{spread([r['accuracy']['value'] for r in group])} ({size:,.0f})"


def verdicts(rows: Iterable[Row]) -> str:
    """At every point the best method that explains the network beside the best one that does not.

    One of both is said to win only beyond what the number of test images can tell (`noise_of`).
    """
    grouped = means(rows)
    lines = [
        "| network | training | kind | point | best by relevance | best other | difference | noise | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, tuned, kind, point in sorted({k[:4] for k in grouped}, key=lambda k: (k[0], k[1], k[2], -k[3])):
        of = {m: accuracy_of(grouped[network, tuned, kind, point, m]) for m in METHODS
              if (network, tuned, kind, point, m) in grouped}  # fmt: skip
        ours, others = ([m for m in of if (m in RELEVANCE_DRIVEN) is side] for side in (True, False))
        if not ours or "magnitude" not in others:  # not all there yet: a winner would mean nothing
            continue
        best, rival = (max(names, key=lambda m: of[m]) for names in (ours, others))
        gap = of[best] - of[rival]
        noise = noise_of(*(grouped[network, tuned, kind, point, m] for m in (best, rival)))
        word = "within noise" if abs(gap) <= noise else "relevance wins" if gap > 0 else "relevance does not win"
        cells = [
            network, "tuned" if tuned else "none", kind, f"{point:g}",
            f"{best} {of[best]:.2f}", f"{rival} {of[rival]:.2f}", f"{gap:+.2f}", f"{noise:.2f}", word,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def survival(rows: Iterable[Row]) -> str:
    """How far the explanations of compressed networks are those of the float ones, where that was measured."""
    lines = ["| row | accuracy | Pearson | Spearman | top 10 % |", "|---|---|---|---|---|"]
    for row in rows:
        found = row.get("survival")
        if has_figures(row) and found:
            cells = [row["id"], f"{row['accuracy']['value']:.2f}", *(_number(found, k) for k in AGREEMENT)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _number(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    value = value.get("value") if isinstance(value, dict) else value
    return "-" if value is None else f"{value:.3f}"
