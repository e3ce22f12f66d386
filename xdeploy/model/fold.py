"""Graph clean-up between the walk and the network: batch norms folded, paddings and slices merged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.model.network import WEIGHTED, Layer
from xdeploy.model.walk import Float64, Problem

Params = dict[str, dict[str, NDArray[np.float32]]]


class Folding:
    """Layers under change; every step keeps what the network computes."""

    def __init__(self, layers: list[Layer], params: Params, norms: dict[str, tuple[Float64, Float64]]) -> None:
        self.layers = {x.name: x for x in layers}
        self.params, self.norms = params, norms
        self.problems: list[Problem] = []

    def run(self) -> tuple[Layer, ...]:
        """All steps; returns the layers in execution order."""
        for name in list(self.norms):
            self._fold_norm(name)
        for layer in list(self.layers.values()):
            if layer.kind == "pad" and layer.attrs["channels"] == (0, 0):
                self._merge_pad(layer)
            elif layer.kind == "slice":
                self._merge_slice(layer)
        return tuple(self.layers.values())

    def _readers(self, name: str) -> list[Layer]:
        return [x for x in self.layers.values() for i in x.inputs if i == name]

    def _drop(self, name: str) -> None:
        """Remove a layer; its readers read its input."""
        source = self.layers.pop(name).inputs[0]
        for x in list(self.layers.values()):
            if name in x.inputs:
                self.layers[x.name] = replace(x, inputs=tuple(source if i == name else i for i in x.inputs))

    # ------------------------------------------------------------------------------------------- batch norms
    def _fold_norm(self, name: str) -> None:
        """Into the weights before it, else it stands as a depthwise 1x1 convolution, else into the weights after it."""
        gain, shift = self.norms[name]
        layer = self.layers[name]
        before, after = self.layers[layer.inputs[0]], self._readers(name)
        if before.kind in WEIGHTED and before.name in self.params and len(self._readers(before.name)) == 1:
            p = self.params[before.name]
            weight = p["weight"] * gain.reshape(-1, *[1] * (p["weight"].ndim - 1))
            self._set(before.name, weight, p["bias"] * gain + shift)
            self._drop(name)
        elif layer.kind == "conv2d":
            self._set(name, gain.reshape(-1, 1, 1, 1), shift)
        elif len(after) == 1 and after[0].kind == "linear" and after[0].name in self.params:
            p = self.params[after[0].name]
            self._set(after[0].name, p["weight"] * gain, p["bias"] + p["weight"].astype(np.float64) @ shift)
            self._drop(name)
        else:
            text = f"{name}: a batch norm on (F,) is supported directly after or directly before a linear layer"
            self.problems.append(Problem(text, "move the batch norm next to a linear layer"))

    def _set(self, name: str, weight: Float64, bias: Float64) -> None:
        self.params[name] = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}

    # -------------------------------------------------------------------------------------- paddings and slices
    def _merge_pad(self, layer: Layer) -> None:
        readers = self._readers(layer.name)
        if len(readers) != 1 or readers[0].kind != "conv2d":
            return
        conv = readers[0]
        pads = tuple(a + b for a, b in zip(conv.attrs["pads"], layer.attrs["pads"], strict=True))
        self.layers[conv.name] = replace(conv, attrs={**conv.attrs, "pads": pads})
        self._drop(layer.name)

    def _merge_slice(self, layer: Layer) -> None:
        """Slices in a row become one, under the first one's name."""
        readers = self._readers(layer.name)
        while len(readers) == 1 and readers[0].kind == "slice":
            second = readers[0]
            cuts = [_compose(*pair) for pair in zip(_cuts(layer), _cuts(second), strict=True)]
            starts, stops, steps = (tuple(column) for column in zip(*cuts, strict=True))
            attrs = {"starts": starts, "stops": stops, "steps": steps}
            layer = replace(layer, shape=second.shape, attrs=attrs)
            self.layers[layer.name] = layer
            self._drop(second.name)
            readers = self._readers(layer.name)


def _cuts(layer: Layer) -> list[range]:
    a: Any = layer.attrs
    return [range(*cut) for cut in zip(a["starts"], a["stops"], a["steps"], strict=True)]


def _compose(outer: range, inner: range) -> tuple[int, int, int]:
    both = outer[inner.start : inner.stop : inner.step]
    return both.start, both[-1] + 1, both.step
