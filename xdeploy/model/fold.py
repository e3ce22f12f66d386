"""Graph clean-up between the walk and the network: scales and shifts folded, limits, paddings and slices merged.

A scale and shift per channel is a batch norm or arithmetic with constants. It goes into the weights before it, else
into the weights after it, else it stands as a depthwise 1x1 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.model.network import WEIGHTED, Layer
from xdeploy.model.walk import Float64

Params = dict[str, dict[str, NDArray[np.float32]]]


class Folding:
    """Layers under change; every step keeps what the network computes."""

    def __init__(self, layers: list[Layer], params: Params, norms: dict[str, tuple[Float64, Float64]]) -> None:
        self.layers = {x.name: x for x in layers}
        # folded in float64, rounded once: a chain of scales rounds as one does
        self.exact = {n: {k: a.astype(np.float64) for k, a in p.items()} for n, p in params.items()}
        self.params, self.norms = params, norms

    def run(self, output: str) -> tuple[Layer, ...]:
        """All steps; returns the layers that the output needs, in execution order, and rounds the parameters."""
        self.output = output
        standing = [name for name in list(self.norms) if not self._fold_back(name)]
        for name in reversed(standing):  # the last first, so that a chain folds as a whole
            if not self._fold_forward(name) and self.layers[name].kind == "linear":
                self._stand_on_features(name)
        for layer in list(self.layers.values()):
            if layer.name in self.layers:
                self._merge(self.layers[layer.name])
        needed = self._needed()
        self.params.clear()
        for name in needed & set(self.exact):
            self.params[name] = {k: a.astype(np.float32) for k, a in self.exact[name].items()}
        return tuple(x for n, x in self.layers.items() if n in needed or x.kind == "input")

    def _merge(self, layer: Layer) -> None:
        if layer.kind == "pad" and layer.attrs["channels"] == (0, 0):
            self._merge_pad(layer)
        elif layer.kind == "slice":
            self._merge_slice(layer)
        elif layer.kind in ("relu", "clip"):
            self._merge_limits(layer)

    def _needed(self) -> set[str]:
        needed, waiting = set(), [self.output]
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed.add(name)
                waiting += self.layers[name].inputs
        return needed

    def _readers(self, name: str) -> list[Layer]:
        """Layers that read `name`, once for each reading."""
        return [x for x in self.layers.values() for i in x.inputs if i == name]

    def _only_reader(self, name: str) -> Layer | None:
        readers = self._readers(name)
        return readers[0] if len(readers) == 1 and name != self.output else None

    def _drop(self, name: str) -> None:
        """Remove a layer; its readers read its input."""
        source = self.layers.pop(name).inputs[0]
        self._redirect(name, source)
        if name == self.output:
            self.output = source

    def _redirect(self, name: str, source: str, but: Iterable[str] = ()) -> None:
        for x in list(self.layers.values()):
            if name in x.inputs and x.name not in but:
                self.layers[x.name] = replace(x, inputs=tuple(source if i == name else i for i in x.inputs))

    # -------------------------------------------------------------------------------------- scales and shifts
    def _fold_back(self, name: str) -> bool:
        """Into the weights before it, if nobody else reads them; else it stands, if it is a convolution."""
        gain, shift = self.norms[name]
        layer = self.layers[name]
        before = self.layers[layer.inputs[0]]
        if before.kind in WEIGHTED and before.name in self.exact and self._only_reader(before.name):
            p = self.exact[before.name]
            weight = p["weight"] * gain.reshape(-1, *[1] * (p["weight"].ndim - 1))
            self._set(before.name, weight, p["bias"] * gain + shift)
            self._drop(name)
            return True
        if before.name in self.norms and before.name not in self.exact and self._only_reader(before.name):
            first = self.norms[before.name]
            self.norms[before.name] = (first[0] * gain, first[1] * gain + shift)
            self._drop(name)
            return True
        if layer.kind == "conv2d":
            self._set(name, gain.reshape(-1, 1, 1, 1), shift)
        return False

    def _fold_forward(self, name: str) -> bool:
        """Into the weights after it: not where zeros are padded to what it has shifted."""
        layer, after = self.layers[name], self._only_reader(name)
        if after is None or after.kind not in WEIGHTED or after.name not in self.exact:
            return False
        if layer.kind == "conv2d":
            gain, shift = (self.exact[name][k].ravel() for k in ("weight", "bias"))
        else:
            gain, shift = self.norms[name]
        if shift.any() and any(after.attrs.get("pads", ())):
            return False
        p, groups = self.exact[after.name], after.attrs.get("groups", 1)
        # input channel of each (output, input) pair of the weights
        per, outputs = p["weight"].shape[1], len(p["weight"]) // groups
        channel = np.repeat(np.arange(len(gain)).reshape(groups, per), outputs, axis=0)
        scale = gain[channel].reshape(*channel.shape, *[1] * (p["weight"].ndim - 2))
        sums = p["weight"].reshape(*channel.shape, -1).sum(-1)
        self._set(after.name, p["weight"] * scale, p["bias"] + (sums * shift[channel]).sum(1))
        self._drop(name)
        self.exact.pop(name, None)
        return True

    def _stand_on_features(self, name: str) -> None:
        """On (F,) between other layers: a convolution of one pixel."""
        layer, (gain, shift) = self.layers[name], self.norms[name]
        image = (*layer.shape, 1, 1)
        attrs = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": image[0]}
        view, flat = self._free(f"{name}.view"), self._free(f"{name}.flatten")
        made = [
            Layer(view, "rearrange", layer.inputs, image, {"view": layer.shape, "perm": (0,)}),
            Layer(name, "conv2d", (view,), image, attrs),
            Layer(flat, "flatten", (name,), layer.shape),
        ]
        rows: dict[str, Layer] = {}
        for x in self.layers.values():
            rows |= {m.name: m for m in made} if x.name == name else {x.name: x}
        self.layers = rows
        self._redirect(name, flat, but=(flat,))
        self.output = flat if self.output == name else self.output
        self._set(name, gain.reshape(-1, 1, 1, 1), shift)

    def _free(self, base: str) -> str:
        number, name = 1, base
        while name in self.layers:
            name, number = f"{base}_{number}", number + 1
        return name

    def _set(self, name: str, weight: Float64, bias: Float64) -> None:
        self.exact[name] = {"weight": weight, "bias": np.asarray(bias)}

    # ---------------------------------------------------------------------------------- limits, paddings, slices
    def _merge_limits(self, layer: Layer) -> None:
        """Limits (relu, clip) in a row become one, under the first one's name."""
        low, high = _limits(layer)
        while (second := self._only_reader(layer.name)) is not None and second.kind in ("relu", "clip"):
            bottom, top = _limits(second)
            low, high = (min(max(v, bottom), top) for v in (low, high))
            if not low < high:
                return
            relu = (low, high) == (0.0, math.inf)
            attrs = {} if relu else {"low": low, "high": high}
            layer = replace(layer, kind="relu" if relu else "clip", attrs=attrs)
            self.layers[layer.name] = layer
            self._drop(second.name)

    def _merge_pad(self, layer: Layer) -> None:
        conv = self._only_reader(layer.name)
        if conv is None or conv.kind != "conv2d":
            return
        pads = tuple(a + b for a, b in zip(conv.attrs["pads"], layer.attrs["pads"], strict=True))
        self.layers[conv.name] = replace(conv, attrs={**conv.attrs, "pads": pads})
        self._drop(layer.name)

    def _merge_slice(self, layer: Layer) -> None:
        """Slices in a row become one, under the first one's name."""
        while (second := self._only_reader(layer.name)) is not None and second.kind == "slice":
            cuts = [_compose(*pair) for pair in zip(_cuts(layer), _cuts(second), strict=True)]
            starts, stops, steps = (tuple(column) for column in zip(*cuts, strict=True))
            attrs = {"starts": starts, "stops": stops, "steps": steps}
            layer = replace(layer, shape=second.shape, attrs=attrs)
            self.layers[layer.name] = layer
            self._drop(second.name)


def _limits(layer: Layer) -> tuple[float, float]:
    return (0.0, math.inf) if layer.kind == "relu" else (layer.attrs["low"], layer.attrs["high"])


def _cuts(layer: Layer) -> list[range]:
    a: Any = layer.attrs
    return [range(*cut) for cut in zip(a["starts"], a["stops"], a["steps"], strict=True)]


def _compose(outer: range, inner: range) -> tuple[int, int, int]:
    both = outer[inner.start : inner.stop : inner.step]
    return both.start, both[-1] + 1, both.step
