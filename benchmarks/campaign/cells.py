"""The comparison: methods x kinds of compression x operating points; a cell is a recipe, or why there is none.

A method may have several variants (aggregation over samples, scope of a ranking, weighting); which one a method uses is
decided on validation data at the middle operating point, the same way for all methods (`compression.py`).

| kind | operating points | what is the same for all methods |
|---|---|---|
| filters | share of the removable channels that is kept | int8 weights |
| weights | share of the weights that is kept | int8 weights |
| codebook | bits of the index, or as many bytes | one codebook a layer in every layer |
| mixed | mean bits of a weight, as bytes of weights | 2, 3, 4, 5, 6 or 8 bits for each layer |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xdeploy.formats import weight_format
from xdeploy.model.network import Network
from xdeploy.plan.cost import layer_bytes

Options = dict[str, Any]  # dotted recipe key -> value
Variants = dict[str, Options]
Cell = Variants | str  # a text: why there is none

KINDS = ("filters", "weights", "codebook", "mixed")
POINTS: dict[str, tuple[float, ...]] = {
    "filters": (0.9, 0.75, 0.5),
    "weights": (0.5, 0.35, 0.2),
    "codebook": (4, 3, 2),
    "mixed": (4, 3, 2.5),
}
# where those tell no method from another: networks with many more weights than their task needs
SMALLER: dict[str, dict[str, tuple[float, ...]]] = {
    "spoken": {
        "filters": (0.75, 0.5, 0.25),
        "weights": (0.2, 0.1, 0.05),
        "codebook": (3, 2, 1),
        "mixed": (3, 2.5, 2.25),
    }
}
WORDS = {"filters": "channels", "weights": "density", "codebook": "index bits", "mixed": "mean bits"}
UNIFORM = ("int2", "int3", "int4", "int5", "int6", "int8")
BOOKS = ("c1s8", "c2s8", "c3s8", "c4s8", "c5s8", "c6s8")
TAYLOR = "its sensitivity, the mean squared gradient of the loss, is Fisher's"
ECQ_DENSITY = 0.5  # of the codebook cells of ECQ and ECQx: without zeros there is nothing to assign

RELEVANCE_DRIVEN = ("lrp", "lrp-share", "deeplift", "ecqx")  # the methods that explain the network
# method -> its scores
SCORES = {
    "lrp": "lrp", "lrp-share": "lrp", "deeplift": "deeplift", "ecqx": "lrp", "ecq": "magnitude",
    "hessian": "hessian-trace", "fisher": "fisher", "wanda": "wanda", "taylor": "taylor", "lamp": "lamp",
    "magnitude": "magnitude", "random": "random", "memory-driven": "magnitude",
}  # fmt: skip
METHODS = tuple(SCORES)
AGGREGATED = ("lrp", "lrp-share", "deeplift", "taylor")  # scores of samples, which relevance.aggregate sums
AGGREGATES = ("magnitude", "square")
FLAT = ("hessian", "lamp")  # sensitivity is the same for all weights of a layer


@dataclass(frozen=True, slots=True)
class Scale:
    """Bytes of a network's weights in a uniform format, as plan.flash counts them."""

    network: Network

    def bytes(self, fmt: str) -> int:
        """All layers in one format."""
        shapes = [self.network.params[x.name]["weight"].shape for x in self.network.weighted()]
        return sum(layer_bytes(shape, weight_format(fmt)) for shape in shapes)

    def mean_bits(self, bits: float) -> int:
        """Bytes at a mean number of bits, between the whole numbers below and above."""
        low = int(bits)
        least = self.bytes(f"int{low}")
        return least if bits == low else round(least + (bits - low) * (self.bytes(f"int{low + 1}") - least))


def points_of(network: str, kind: str) -> tuple[float, ...]:
    """The operating points of a kind of compression on a network, the largest first."""
    return SMALLER.get(network, POINTS)[kind]


def cell(method: str, kind: str, point: float, scale: Scale) -> Cell:
    """The variants of a cell by name, or why the method means nothing there."""
    found = _KINDS[kind](method, point, scale)
    if isinstance(found, str):
        return found
    common = {"relevance.method": SCORES[method], "plan.max_drop": 100.0, "bench.repeats": 1}
    return {name: common | options for name, options in _aggregated(method, kind, found).items()}


def _aggregated(method: str, kind: str, variants: Variants) -> Variants:
    """With every aggregation over samples where the method has samples' scores and the kind ranks by them."""
    if method not in AGGREGATED or kind not in ("filters", "weights"):
        return variants
    return {
        f"{name}, sum of {aggregate}": options | {"relevance.aggregate": aggregate}
        for name, options in variants.items()
        for aggregate in AGGREGATES
    }


def _filters(method: str, point: float, scale: Scale) -> Cell:
    if method in ("ecq", "ecqx"):
        return "assigns weights to levels; no filter goes by it"
    if method == "lrp-share":
        return "filters are ranked by one score: nothing is left to choose inside a layer"
    if method == "memory-driven":
        return "chooses formats only"
    scopes = {"one ranking of shares": "network", "same share of each layer": "layer"}
    return {
        name: {"plan.channels": point, "plan.channels_by": by, "plan.formats": ("int8",)} for name, by in scopes.items()
    }


def _weights(method: str, point: float, scale: Scale) -> Cell:
    if method == "memory-driven":
        return "chooses formats only"
    common = {"plan.density": point, "plan.formats": ("int8",), "plan.rule": "uniform"}
    scored = {"plan.zeros": "relevance"}
    ways: Variants = {
        "one threshold": scored | {"plan.density_by": "relevance"},
        "same share of each layer": scored | {"plan.density_by": "uniform"},
        "same share of each row": scored | {"plan.density_by": "row", "plan.zeros_per": "row"},
        "share by score, magnitude inside": {"plan.density_by": "relevance", "plan.zeros": "magnitude"},
    }
    by_magnitude: Variants = {
        "one threshold": {"plan.density_by": "magnitude"},
        "same share of each layer": {"plan.density_by": "uniform"},
    }
    share = {"share by score, magnitude inside": ways["share by score, magnitude inside"]}
    found = {
        "lrp": {k: v for k, v in ways.items() if k not in share},
        "lrp-share": share,
        "magnitude": by_magnitude,
        "lamp": {"one threshold": {"plan.density_by": "lamp"}},
        "random": {"same share of each layer": ways["same share of each layer"]},
        "ecq": {n: o | {"ecq.method": "ecq"} for n, o in by_magnitude.items()},
        "ecqx": {
            "same share of each layer": {"plan.density_by": "uniform", "ecq.method": "ecqx"},
            "share by relevance": {"plan.density_by": "relevance", "ecq.method": "ecqx"},
        },
    }.get(method, ways)
    return {name: common | options for name, options in found.items()}


def _codebook(method: str, point: float, scale: Scale) -> Cell:
    fmt = f"c{point:g}s8"
    if method == "taylor":
        return TAYLOR
    if method == "memory-driven":
        return "chooses formats only"
    uniform = {"plan.formats": (fmt,), "plan.rule": "uniform"}
    if method in ("ecq", "ecqx"):
        zeros = {"plan.density": ECQ_DENSITY, "ecq.method": method, "plan.density_by": "uniform"}
        return {f"{ECQ_DENSITY:.0%} zeros": uniform | zeros}
    # every rival may share out the sizes as lrp-share does: otherwise that would be what is compared
    sizes = {"plan.formats": BOOKS, "plan.rule": "hawq", "plan.flash": scale.bytes(fmt)}
    shared: Variants = {"size of each layer's codebook by its score": sizes | {"compress.codebook_weighting": 0.0}}
    if method in ("lrp-share", *FLAT):
        return shared
    if method == "magnitude":
        return {"unweighted": uniform | {"compress.codebook_weighting": 0.0}} | shared
    weighted: Variants = {f"exponent {e:g}": uniform | {"compress.codebook_weighting": e} for e in (0.5, 1.0)}
    return weighted if method == "lrp" else weighted | shared


def _mixed(method: str, point: float, scale: Scale) -> Cell:
    if method in ("ecq", "ecqx"):
        return "has one number of bits for all layers (Becking et al. 2022)"
    if method == "taylor":
        return TAYLOR
    budget = {"plan.formats": UNIFORM, "plan.flash": scale.mean_bits(point), "compress.codebook_weighting": 0.0}
    if method == "memory-driven":
        return {
            "largest layer first": budget | {"plan.rule": "memory-driven", "plan.formats": ("int8", "int4", "int2")}
        }
    if method in ("lrp-share", "hessian"):
        return {"layer's mean sensitivity": budget | {"plan.rule": "hawq"}}
    return {"sensitivity of each weight": budget | {"plan.rule": "ilp"}}


_KINDS: Mapping[str, Callable[[str, float, Scale], Cell]] = {
    "filters": _filters, "weights": _weights, "codebook": _codebook, "mixed": _mixed,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tuning:
    """A short fine-tuning of a comparison's cells, the same for every method."""

    epochs: int = 8
    lr: float = 0.002
    batch: int = 64

    def options(self) -> Options:
        """As recipe keys."""
        return {
            "recover.epochs": self.epochs, "recover.lr": self.lr, "recover.batch": self.batch,
            "recover.optimiser": "adam",
        }  # fmt: skip
