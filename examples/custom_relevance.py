"""A relevance method of one's own: occlusion. Each output channel is set to its mean, and the loss is looked at.

    python examples/custom_relevance.py -o out-occlusion

Registering a function is all it takes; afterwards `relevance.method` knows the name, and every plan can go by it. Here
a quarter of the channels of the bundled digits network goes by occlusion, and by LRP for comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe, RelevanceOptions
from xdeploy.relevance.method import METHODS, Batch, Scores, weighted_modules
from xdeploy.request import Request


@METHODS.register("occlusion")
@torch.no_grad()
def occlusion(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """How much the cross entropy grows when a channel gives its mean over samples and pixels instead of its values.

    A channel's score is shared out to its weights by their magnitude; each weight's sensitivity is its score squared.
    """
    module = NetworkModule(network).eval()
    layers = weighted_modules(module)
    total = {name: np.zeros(len(layer.weight)) for name, layer in layers.items()}
    samples = 0
    for x, y in batches:
        before = _loss(module, x, y)
        for name, layer in layers.items():
            total[name] += [_loss(module, x, y, layer, k) - before for k in range(len(layer.weight))]
        samples += len(x)
    channel = {name: (np.abs(values) / max(1, samples)).astype(np.float32) for name, values in total.items()}
    weight = {name: _shared_out(layers[name].weight, channel[name]) for name in layers}
    sensitivity = {name: values**2 for name, values in weight.items()}
    return Scores(weight, channel, sensitivity, {"replaced by": "mean"}, conservation_residual=1.0, samples=samples)


def _loss(module: nn.Module, x: Tensor, y: Tensor, layer: nn.Module | None = None, channel: int = 0) -> float:
    """Sum of the cross entropy over a batch, one channel of a layer replaced by its mean."""

    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, channel] = output[:, channel].mean()
        return output

    hook = layer.register_forward_hook(replace) if layer is not None else None
    try:
        return float(F.cross_entropy(module(x), y, reduction="sum"))
    finally:
        if hook is not None:
            hook.remove()


def _shared_out(weight: Tensor, channel: np.ndarray) -> np.ndarray:
    size = weight.abs().flatten(1)
    share = size / size.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return (share.numpy() * channel[:, None]).reshape(weight.shape).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out-occlusion"))
    args = parser.parse_args()
    for method in ("occlusion", "lrp"):
        recipe = Recipe().with_options(
            {
                "relevance.method": method,
                "relevance.samples": 64,
                "plan.channels": 0.75,
                "plan.formats": ["int8"],
                "plan.rule": "uniform",
            }
        )
        folder = args.output / method
        report = run(Request(recipe=recipe, targets=("x86-64",), output=folder)).report
        assert report is not None
        scores = RelevanceMap.load(folder / "relevance.npz")
        print(
            f"{method}: {report['accuracy']['deployed']['value']:.2f} % of the test samples are right,"
            f" {report['targets']['x86-64']['verdict']}; scored with {scores.samples} samples; {folder}/report.html"
        )


if __name__ == "__main__":
    main()
