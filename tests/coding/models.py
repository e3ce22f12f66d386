"""Compressed models by hand: any codes in a chain of layers, no training."""

from __future__ import annotations

import numpy as np

from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.formats import QParams, weight_format
from xdeploy.handover import CompressionPlan, IoSpec, PlanLine
from xdeploy.model.network import Layer, Network


def draw(
    fmt: str, shape: tuple[int, ...], rng: np.random.Generator, spread: float = 0.3, zeros: float = 0.0
) -> QuantisedWeight:
    """Codes of a Laplace distribution around zero, `zeros` of them 0; scales and biases at random."""
    f = weight_format(fmt)
    low, high = (0, 2**f.bits - 1) if f.codebook else (-f.limit, f.limit)
    centre = (low + high + 1) // 2
    drawn = np.rint(rng.laplace(0, spread * (high - low) / 4, shape)) + centre
    codes = np.where(rng.random(shape) < zeros, centre, np.clip(drawn, low, high)).astype(np.int8)
    book = np.sort(rng.permutation(255)[: 2**f.bits] - 127).astype(np.int8) if f.codebook else None
    scale = rng.lognormal(-4, 0.5, shape[0]).astype(np.float32)
    return QuantisedWeight(fmt, codes, book, scale, rng.integers(-30_000, 30_000, shape[0]).astype(np.int32))


def chain(*weights: QuantisedWeight) -> CompressedModel:
    """A model of layers one after another: (O, I) ones linear, (O, I, kh, kw) ones convolutions that keep the size."""
    first = weights[0].codes
    image = first.ndim == 4
    layers = [Layer("input", "input", (), (first.shape[1], 8, 8) if image else (first.shape[1],))]
    found: dict[str, QuantisedWeight] = {}
    for k, w in enumerate(weights):
        name, o = f"features.{k}", len(w.codes)
        if w.codes.ndim == 2:
            layers.append(Layer(name, "linear", (layers[-1].name,), (o,)))
        else:
            layers.append(_conv(name, layers[-1], w.codes.shape))
        found[name] = w
    q = {x.name: QParams(float(np.float32(0.05 + 0.01 * k)), -128 + k) for k, x in enumerate(layers)}
    io = IoSpec(
        "x", layers[0].shape, "y", layers[-1].shape, (0.5,), (0.25,), ("cat", "ü"), q["input"], q[layers[-1].name]
    )
    plan = CompressionPlan(tuple(PlanLine(n, w.format_name) for n, w in found.items()))
    return CompressedModel(Network(tuple(layers), {}), found, q, io, plan, ())


def _conv(name: str, source: Layer, shape: tuple[int, ...]) -> Layer:
    o, wide, kh, kw = shape
    pads = ((kh - 1) // 2, (kw - 1) // 2, kh // 2, kw // 2)
    attrs = {"stride": (1, 1), "pads": pads, "dilation": (1, 1), "groups": source.shape[0] // wide}
    return Layer(name, "conv2d", (source.name,), (o, *source.shape[1:]), attrs)
