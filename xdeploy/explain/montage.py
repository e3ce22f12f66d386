"""Samples beside their heat-maps: images as images, signals and feature vectors as lines over bars of relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from xdeploy.explain.drawing import AGAINST, DIVERGING, FOR, GREY, Margins, figure, plain
from xdeploy.explain.samples import Float32, Shown
from xdeploy.handover import IoSpec
from xdeploy.relevance.agreement import Float64, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTILE = 0.995  # of a map's magnitudes is full colour, so that one pixel does not hide the rest
_LONG = 2.5  # images longer than this times their width are stretched to the panel


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape, (C, H, W) or (F,), are pictures and not signals or vectors."""
    return len(shape) == 3 and min(shape[1:]) > 1


def flat(maps: Float32) -> Float64:
    """Maps (N, C, H, W) or (N, F) as drawn: summed over channels, (N, H, W) of images and (N, positions) else."""
    found = positions(maps)
    return found.reshape(len(maps), *maps.shape[2:]) if is_image(maps.shape[1:]) else found


def scaled(maps: Float64) -> Float64:
    """Each map divided by its own full colour, so that maps of several networks can be laid side by side."""
    full = np.quantile(np.abs(maps).reshape(len(maps), -1), _QUANTILE, axis=1)
    full = np.where(full > 0, full, np.abs(maps).reshape(len(maps), -1).max(axis=1))
    return np.asarray(maps / np.where(full > 0, full, 1.0).reshape(-1, *[1] * (maps.ndim - 1)))


def picture(sample: Float32, io: IoSpec) -> NDArray[np.float64]:
    """An input (C, H, W) as the user knows it, (H, W, 3) or (H, W) in 0..1.

    The normalisation is taken back; without one the smallest value is 0 and the largest 1. Neither grey nor RGB: the
    root mean square over the channels.
    """
    x = sample.astype(np.float64)
    if io.std:
        x = x * np.reshape(io.std, (-1, 1, 1)) + (np.reshape(io.mean, (-1, 1, 1)) if io.mean else 0.0)
    if len(x) not in (1, 3):
        x = np.sqrt((x**2).mean(axis=0, keepdims=True))
    if not io.std or len(sample) not in (1, 3):
        x = (x - x.min()) / (np.ptp(x) or 1.0)
    x = np.clip(np.moveaxis(x, 0, -1), 0.0, 1.0)
    return x[..., 0] if x.shape[-1] == 1 else x


def montage(shown: Shown, io: IoSpec, titles: Sequence[str], groups: int) -> Figure:
    """A sample in each group of panels: the input, then one map per network, and of two their difference.

    Red speaks for the explained class, blue against it, white is 0. Each map has its own scale; a difference is of
    maps so scaled.

    Args:
        shown: samples with their maps.
        io: names of the classes, and how inputs were normalised.
        titles: of the maps, one per network; of the first row only.
        groups: samples side by side.
    """
    images = is_image(shown.inputs.shape[1:])
    maps = [scaled(flat(m)) for m in shown.maps]
    if len(maps) == 2:
        maps, titles = [*maps, maps[1] - maps[0]], [*titles, "difference"]
    panels, rows = 1 + len(maps), -(-len(shown.labels) // groups)
    size, gaps = ((1.0, 1.0), (0.1, 0.35)) if images else ((2.4, 0.8), (0.3, 0.6))
    made, axes = figure(rows, groups * panels, *size, Margins(0.35, 0.15, 0.4, 0.75, *gaps))
    for place, row in enumerate(axes.reshape(rows * groups, panels)):
        if place >= len(shown.labels):
            for ax in row:
                ax.set_axis_off()
            continue
        (_draw_images if images else _draw_lines)(list(row), shown.inputs[place], [m[place] for m in maps], io)
        _name(row[0], shown, place, io)
        for ax, title in zip(row[1:], titles, strict=True):
            ax.set_title(title if place < groups and (len(titles) > 1 or not images) else "", color=GREY, fontsize=7)
    _legend(made)
    return made


def _draw_images(row: Sequence[Axes], sample: Float32, maps: list[Float64], io: IoSpec) -> None:
    height, width = sample.shape[1:]
    aspect: Literal["auto", "equal"] = "auto" if max(height, width) > _LONG * min(height, width) else "equal"
    row[0].imshow(picture(sample, io), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=aspect)
    for ax, values in zip(row[1:], maps, strict=True):
        ax.imshow(values, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest", aspect=aspect)
    for ax in row:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.5)


def _draw_lines(row: Sequence[Axes], sample: Float32, maps: list[Float64], io: IoSpec) -> None:
    channels = sample.reshape(len(sample), -1) if sample.ndim == 3 and sample[0].size > 1 else sample.reshape(1, -1)
    row[0].plot(channels.T, color=GREY, linewidth=0.7)
    for ax, values in zip(row[1:], maps, strict=True):
        at = np.arange(len(values))
        for colour, part in ((FOR, values.clip(min=0)), (AGAINST, values.clip(max=0))):
            ax.fill_between(at, part, step="mid", color=colour, linewidth=0.4)
        ax.axhline(0, color=GREY, linewidth=0.4)
        ax.set_ylim(-1.5, 1.5)
        ax.set_yticks([])
    for ax in row:
        ax.tick_params(labelsize=6)


def _name(ax: Axes, shown: Shown, place: int, io: IoSpec) -> None:
    """True and predicted class; a wrong one is bold and starts with a cross, to be told without colours."""
    label, first = int(shown.labels[place]), [int(p[place]) for p in shown.predicted]
    true, *said = (plain(io.labels[k] if k < len(io.labels) else str(k), 14) for k in (label, *first))
    wrong = any(k != label for k in first)
    ax.set_title(
        f"{'× ' if wrong else ''}true {true}\npred. {' | '.join(said)}",
        fontsize=7, fontweight="bold" if wrong else "normal", loc="left", pad=2,
    )  # fmt: skip


def _legend(made: Figure) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    wide, high = made.get_size_inches()
    place = made.add_axes((0.5 - 1.25 / wide, 0.35 / high, 2.5 / wide, 0.1 / high))
    bar = made.colorbar(ScalarMappable(Normalize(-1, 1), DIVERGING), cax=place, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["against the explained class", "0", "for it"])
