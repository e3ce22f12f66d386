"""Every recipe file is read, says where it is from, and does to the demo what its paper says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xdeploy.compress.model import CompressedModel
from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe, load_recipe
from xdeploy.request import Request

RECIPES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "recipes").glob("*.toml"))
PAPERS = (
    "soroush", "sabih-pruning", "sabih-sharing", "sabih-mixed", "ecq", "ecqx", "deep-compression", "hawq",
    "memory-driven", "filters",
)  # fmt: skip


def test_recipes_of_all_papers_are_there() -> None:
    assert set(PAPERS) <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_says_where_it_is_from(path: Path) -> None:
    assert load_recipe(path) != Recipe()
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [x for x in lines[: next(k for k, x in enumerate(lines) if x.startswith("["))] if x.startswith("#")]
    assert len(header) >= 2
    assert all(len(x) <= 120 for x in lines)
    if path.stem in PAPERS:
        assert "arXiv" in " ".join(header)
        assert "Our reading" in " ".join(header)


class Found:
    """What a recipe left of the demo."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model, self.plan = CompressedModel.load(folder), CompressionPlan.load(folder / "plan.json")
        self.relevance = RelevanceMap.load(folder / "relevance.npz")

    def values(self, name: str) -> np.ndarray:
        """The integers that a layer multiplies with."""
        weight = self.model.weights[name]
        return weight.codes if weight.codebook is None else weight.codebook[weight.codes]

    def formats(self) -> set[str]:
        return {line.weight_format for line in self.plan.layers}

    def density(self) -> float:
        """Share of all weights that are not zero."""
        found = [self.values(n) for n in self.model.weights]
        return sum(int((v != 0).sum()) for v in found) / sum(v.size for v in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")  # one for all: the source is read once


def compressed(name: str, folder: Path, epochs: int = 1) -> Found:
    """The demo under a recipe that trains for one epoch at most."""
    recipe = load_recipe(next(p for p in RECIPES if p.stem == name)).with_options(
        {"relevance.samples": 32, "recover.epochs": epochs, "recover.batch": 256, "threads": 1, "ecq.samples": 16}
    )
    run(Request(recipe=recipe, targets=("x86-64",), output=folder), until="compress")
    return Found(folder, recipe)


def test_soroush_zeroes_every_weight_of_no_positive_relevance(folder: Path) -> None:
    found = compressed("soroush", folder, epochs=0)
    for name in found.model.weights:
        signed = found.relevance.weight[name]
        assert (signed < 0).any()
        assert not found.values(name)[signed <= 0].any()
    mean = {n: float(np.abs(found.relevance.weight[n]).mean(dtype=np.float64)) for n in found.model.weights}
    order = sorted(mean, key=lambda n: mean[n])
    assert (found.plan[order[-1]].weight_format, found.plan[order[0]].weight_format) == ("int8", "int2")


def test_sabih_prunes_filters_and_weights(folder: Path) -> None:
    found = compressed("sabih-pruning", folder)
    assert found.relevance.method == "deeplift"
    assert any(line.keep is not None for line in found.plan.layers)
    assert found.density() <= 0.501  # each layer's count is rounded


def test_sabih_shares_sixteen_values(folder: Path) -> None:
    found = compressed("sabih-sharing", folder)
    assert found.formats() == {"c4s8"}
    assert all(len(np.unique(found.values(n))) <= 16 for n in found.model.weights)


@pytest.mark.parametrize("name", ["sabih-mixed", "hawq", "memory-driven"])
def test_bits_by_layer_are_searched_on_validation_data(name: str, folder: Path) -> None:
    found = compressed(name, folder, epochs=0)
    assert found.formats() <= set(found.recipe.plan.formats)
    assert found.formats() != {"int8"}
    assert found.plan.budget["accuracy"] >= found.plan.budget["accuracy_floor"]


@pytest.mark.parametrize("name", ["ecq", "ecqx"])
def test_ecq_leaves_four_bits_and_the_zeros_asked_for(name: str, folder: Path) -> None:
    found = compressed(name, folder)
    assert found.formats() == {"int4"}
    assert found.density() <= 0.26
    assert all(len(np.unique(found.values(n))) > 2 for n in found.model.weights)  # levels beside zero are used


def test_deep_compression_shares_what_is_left(folder: Path) -> None:
    found = compressed("deep-compression", folder)
    assert found.density() <= 0.301
    assert all(len(np.unique(found.values(n))) <= 32 for n in found.model.weights)


def test_filters_shrinks_layers(folder: Path) -> None:
    found = compressed("filters", folder, epochs=0)
    whole = {n: len(v) for n, v in found.relevance.channel.items()}
    left = {n: len(w.codes) for n, w in found.model.weights.items()}
    assert sum(left.values()) < 0.8 * sum(whole.values())
