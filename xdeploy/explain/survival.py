"""Do explanations survive compression? The figures for accuracy.json, and a picture for the report.

The heat-maps of the float network and of the compressed one (its final weights; activations are not rounded, as
rounding passes relevance on unchanged) are compared over test samples, see `relevance.agreement`. Methods without
heat-maps are stood in for by LRP with the recipe's own options, and the figures say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xdeploy.compress.fakequant import real_network
from xdeploy.compress.model import CompressedModel
from xdeploy.errors import ModelError, UsageError
from xdeploy.explain.drawing import drawing, save
from xdeploy.explain.montage import flat, is_image, montage, picture, scaled
from xdeploy.explain.samples import Int64, choose, has_maps, show
from xdeploy.files import write_npz
from xdeploy.handover import quantity
from xdeploy.model.network import Network
from xdeploy.model.source import SourceModel
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.agreement import agreement

Progress = Callable[[str, int, int], None]  # what, done, total
SAMPLES, FEWEST = 256, 32
FILES = ("survival.npz", "survival.png")
STAND_IN = "lrp"
_PICTURED = 6  # samples of the report's picture
# A network and method of more than this many MACs over all samples get fewer samples: it is some 15 s on one core.
_BUDGET = 40e9
_COST = {"lrp": 1.0, "gradient": 0.5, "deeplift": 3.0}  # seconds per MAC, beside LRP's (measured on ResNet-20)
_STEP_COST = 0.35  # of each step of a path


def survive(
    source: SourceModel, compressed: CompressedModel, options: RelevanceOptions, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Compare the explanations before and after; writes survival.npz and survival.png into `folder`.

    Args:
        source: the float network, and the test samples.
        compressed: of the same inputs and classes; channels and layers may be gone.
        options: [relevance] of the recipe.
        folder: the run folder.
        progress: told about the samples.

    Returns:
        `survival`: method, samples, and pearson, spearman, top10 as quantities with their standard deviation over
        samples as `spread`, or None; `survival_reason`: why there is none, or None; `files`: those written.
    """
    method = options.method if has_maps(options.method) else STAND_IN
    fixed = replace(options, method=method)
    pair = (source.network, real_network(compressed.network, compressed.weights, compressed.activations))
    try:
        value = figures(source, pair, fixed, progress)
        _draw(source, pair, fixed, folder)
    except (ModelError, UsageError) as error:  # an output that is no class scores, a part that no relevance passes
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        return {"survival": None, "survival_reason": str(error), "files": []}
    stands_in = None if method == options.method else f"{method} explains, as {options.method} has no heat-maps"
    return {"survival": {**value, "note": stands_in}, "survival_reason": None, "files": list(FILES)}


def sample_count(network: Network, options: RelevanceOptions) -> int:
    """Samples compared: 256, fewer for large networks and slow methods, at least 32."""
    cost = _COST.get(options.method) or _STEP_COST * (options.steps + 1)
    macs = sum(network.macs(x.name) for x in network.layers)
    return int(min(SAMPLES, max(FEWEST, _BUDGET / (cost * max(1, macs)))))


def subset(source: SourceModel, count: int) -> Int64:
    """Test samples drawn at random, the same ones for a seed."""
    order = np.random.default_rng([source.seed, 5]).permutation(source.test_indices)
    return order[:count]


def figures(
    source: SourceModel, pair: tuple[Network, Network], options: RelevanceOptions, progress: Progress
) -> dict[str, Any]:
    """The agreement of two networks as quantities.

    Raises:
        ModelError, UsageError: a network that cannot be explained.
    """
    indices = subset(source, sample_count(source.network, options))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for k, batch in enumerate(source.test.batches(indices, 32)):
            progress("explanations, float and compressed", 32 * k, len(indices))
            yield batch

    found = agreement(*pair, batches(), replace(options, samples=len(indices)))
    rows = {
        "pearson": (found.pearson, found.pearson_spread),
        "spearman": (found.spearman, found.spearman_spread),
        "top10": (found.top, found.top_spread),
    }
    return {
        "method": options.method,
        "target": options.target,
        "samples": found.samples,
        "seed": source.seed,
        **{k: quantity(v, "1", "measured", n=found.samples, spread=s) for k, (v, s) in rows.items()},
        "undefined": found.undefined,
    }


def _draw(source: SourceModel, pair: tuple[Network, Network], options: RelevanceOptions, folder: Path) -> None:
    """Save a few samples with both maps, as arrays and as a picture."""
    shown = show(source, choose(source, _PICTURED), pair, options)
    arrays: dict[str, NDArray[Any]] = {"inputs": shown.inputs, "labels": shown.labels}
    for name, predicted, maps in zip(("float", "compressed"), shown.predicted, shown.maps, strict=True):
        arrays |= {f"{name}_predicted": predicted, f"{name}_maps": maps}
    if is_image(source.io.input_shape):  # as drawn, for pages that lay them out themselves
        arrays["pictures"] = np.stack([picture(x, source.io) for x in shown.inputs])
        arrays |= {f"{n}_drawn": scaled(flat(m)) for n, m in zip(("float", "compressed"), shown.maps, strict=True)}
    write_npz(folder / FILES[0], arrays)
    with drawing():
        groups = 2 if is_image(source.io.input_shape) else 1
        save(montage(shown, source.io, ["float", "compressed"], groups), folder / FILES[1])
