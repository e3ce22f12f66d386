"""Heat-maps before and after, and what the deployed code takes each class for, from what the run saved."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.files import read_npz
from xdeploy.report.markup import bare_table, embedded, escape, image
from xdeploy.report.tables import Table

_MAPS = (("float", "float"), ("compressed", "compressed"))
_READ = (
    "Test samples with what speaks for their class (red) and against it (blue), in the float network and in the "
    "compressed one; each map has its own scale. Bold, with a cross: one of the two predicts another class."
)
_CLASSES = 20  # up to which confusions are a square table, above it a list of the most frequent


def heatmaps(picture: Path, labels: list[str]) -> str:
    """The section of the samples; `picture` is survival.png, beside it survival.npz with what it is drawn of."""
    arrays = read_npz(picture.with_suffix(".npz")) if picture.with_suffix(".npz").is_file() else {}
    if "pictures" not in arrays:  # signals and vectors are drawn as lines
        return f"<p>{escape(_READ)}</p>{embedded(picture, _READ)}"
    shown = "".join(_sample(arrays, k, labels) for k in range(len(arrays["pictures"])))
    return f'<p>{escape(_READ)}</p><div class="samples">{shown}</div>'


def _sample(arrays: Mapping[str, NDArray[Any]], k: int, labels: list[str]) -> str:
    def named(number: int) -> str:
        return labels[number] if number < len(labels) else str(number)

    true = int(arrays["labels"][k])
    said = {name: int(arrays[f"{name}_predicted"][k]) for name, _ in _MAPS}
    wrong = any(v != true for v in said.values())
    panels = [(_png(arrays["pictures"][k]), "sample", f"sample of class {named(true)}")]
    for name, title in _MAPS:
        text = f"relevance in the {title} network, which predicts {named(said[name])}"
        panels.append((_png(coloured(arrays[f"{name}_drawn"][k])), title, text))
    trio = "".join(f"<span>{image(data, text)}{escape(title)}</span>" for data, title, text in panels)
    told = f"true {named(true)}; float says {named(said['float'])}, compressed {named(said['compressed'])}"
    caption = f"<b>× {escape(told)}</b>" if wrong else escape(told)
    return f'<figure><div class="trio">{trio}</div><figcaption>{caption}</figcaption></figure>'


def coloured(values: NDArray[Any]) -> NDArray[np.float64]:
    """A map of -1..1 as RGB in 0..1: red over white to blue."""
    from matplotlib import colormaps

    return np.asarray(colormaps["RdBu_r"](np.clip(values, -1, 1) / 2 + 0.5))[..., :3]


def _png(values: NDArray[Any]) -> bytes:
    """An image (H, W) or (H, W, 3) in 0..1 as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray((255 * np.clip(values, 0, 1)).round().astype(np.uint8)).save(file, format="PNG", optimize=True)
    return file.getvalue()


def confusion(found: Mapping[str, Any]) -> str:
    """Which classes the deployed code took for which: a square table, or of many classes the most frequent errors."""
    labels, counts = found["labels"], found["counts"]
    if len(labels) > _CLASSES:
        worst = sorted((row for row in counts if row[0] != row[1]), key=lambda row: -row[2])[:_CLASSES]
        rows = tuple((labels[i], labels[j], f"{n:,}") for i, j, n in worst)
        return (
            bare_table(Table("", ("true class", "taken for", "samples"), "<<>", rows)) if rows else "<p>no errors</p>"
        )
    square = np.zeros((len(labels), len(labels)), np.int64)
    for i, j, n in counts:
        square[i, j] = n
    head = "".join(f'<th class="r" scope="col">{escape(name)}</th>' for name in labels)
    body = "".join(_line(name, k, row) for k, (name, row) in enumerate(zip(labels, square, strict=True)))
    return (
        f'<div class="scroll"><table class="grid first"><thead><tr><th scope="col">true \\ told</th>{head}'
        f'<th class="r" scope="col">right</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _line(name: str, k: int, row: NDArray[np.int64]) -> str:
    total = max(int(row.sum()), 1)
    cells = "".join(_count(int(n), int(n) / total, at == k) for at, n in enumerate(row))
    right = f"{100 * int(row[k]) / total:.1f} %" if row.sum() else "–"
    return f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{right}</td></tr>\n'


def _count(n: int, share: float, right: bool) -> str:
    hit = ' class="hit"' if right else ""
    if not n:
        return f"<td{hit}></td>"
    role, strength = "s3" if right else "bad", 6 + 55 * min(share, 1.0)
    colour = f"color-mix(in srgb, var(--{role}) {strength:.0f}%, transparent)"
    return f'<td{hit} style="background:{colour}">{n:,}</td>'
