"""Accuracy against coded bytes as SVG: one panel for each kind of compression, one line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from campaign.cells import KINDS, METHODS, RELEVANCE_DRIVEN
from campaign.tables import Row, accuracy_of, means
from xdeploy.files import replacing

MARKERS = "osD^v<>phX*P+"


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write methods-<network>[-tuned].svg for every network and training that has rows; the same rows, the same bytes.

    Methods that explain the network have full lines, the others dashed ones.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "xdeploy"
    grouped = means(rows)
    written = []
    for network, tuned in sorted({(k[0], k[1]) for k in grouped}):
        path = folder / f"methods-{network}{'-tuned' if tuned else ''}.svg"
        _chart(grouped, network, tuned, path)
        written.append(path)
    return written


def _chart(grouped: dict[Any, list[Row]], network: str, tuned: bool, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 9), constrained_layout=True)
    for kind, axis in zip(KINDS, axes.flat, strict=True):
        for k, method in enumerate(METHODS):
            _line(axis, grouped, (network, tuned, kind), method, k)
        axis.set_title(kind)
        axis.set_xscale("log")
        axis.set_xlabel("coded bytes")
        axis.set_ylabel("accuracy of the deployed code, %")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.suptitle(f"{network}, {'after a short fine-tuning' if tuned else 'without fine-tuning'}")
    with replacing(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _line(axis: Any, grouped: dict[Any, list[Row]], where: tuple[str, bool, str], method: str, k: int) -> None:
    groups = [g for key, g in sorted(grouped.items()) if key[:3] == where and key[4] == method]
    if not groups:
        return
    points = sorted((fmean(r["coded_bytes"]["value"] for r in g), accuracy_of(g)) for g in groups)
    style = "-" if method in RELEVANCE_DRIVEN else "--"
    axis.plot(*zip(*points, strict=True), style, marker=MARKERS[k], color=f"C{k % 10}", label=method, markersize=5)
