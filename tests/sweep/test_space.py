"""Space files, budgets and the points they stand for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.sweep.conftest import defined
from xdeploy.errors import UsageError
from xdeploy.recipe import Recipe
from xdeploy.sweep.definition import Definition, define, recipe_from, tree_hash
from xdeploy.sweep.space import Choice, Range, Space, budget, dimension, load_space

FILE = """
seed = [0, 1]
[plan]
flash = ["2K", 1024]
density = { low = 0.25, high = 0.75, step = 0.25 }
formats = [["int8"], ["int8", "int4"]]
[recover]
lr = { low = 1e-4, high = 1e-1, log = true }
epochs = { low = 1, high = 3 }
"""


def test_a_file_of_all_kinds(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(FILE)
    found = load_space(path)
    assert found["plan.flash"] == Choice((2048, 1024))
    assert found["seed"] == Choice((0, 1))
    assert found["plan.formats"] == Choice((["int8"], ["int8", "int4"]))
    assert found["plan.density"] == Range(0.25, 0.75, 0.25)
    assert found["recover.lr"] == Range(1e-4, 1e-1, None, log=True)
    assert found["recover.epochs"] == Range(1, 3, None, whole=True)
    assert not Space(found).is_finite
    assert Space.from_dict(Space(found).to_dict()) == Space(found)


def test_the_grid_is_every_combination() -> None:
    space = Space({"a": Choice((1, 2)), "b": Range(0.1, 0.5, 0.2), "c": Range(2, 4, whole=True)})
    b = [float(np.round(x, 12)) for x in (0.1, 0.3, 0.5)]
    expected = [dict(zip("abc", p, strict=True)) for p in itertools.product((1, 2), b, (2, 3, 4))]
    assert list(space.grid()) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan.flsh = [1]", "unknown recipe key 'plan.flsh'"),
        ("planet.flash = [1]", "unknown recipe section"),
        ("plan.flash = 1", "is 1"),
        ("plan.flash = []", "empty list"),
        ("plan.flash = [1024, '1K']", "twice"),
        ("plan.flash = ['many']", "no amount"),
        ("plan.density = { low = 0.5, high = 0.1 }", "means nothing"),
        ("plan.density = { low = 0.1, high = 0.5, step = 0 }", "means nothing"),
        ("plan.density = { low = 0.1, high = 0.5, stop = 1 }", "unknown word"),
        ("plan.density = { low = 0.1 }", "both low and high"),
        ("plan.density = { low = 0.5, high = 2.0 }", "at most 1"),
        ("plan.density = { low = nan, high = 1.0 }", "must be a number"),
        ("recover.lr = { low = 0.0, high = 1.0, log = true }", "means nothing"),
        ("relevance.method = { low = 1, high = 2 }", "must be a string"),
        ("plan.rule = ['best']", "unknown value"),
        ("plan = ", "Invalid value"),
        ("", "names no recipe key"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as told:
        load_space(path)
    assert str(path) in told.value.message


def test_budgets() -> None:
    assert budget("flash=32K,24K,16384") == ("plan.flash", Choice((32768, 24576, 16384)))
    assert budget("instructions=20M,1.5M") == ("plan.instructions", Choice((20_000_000, 1_500_000)))
    for text, message in (("flash", "wants NAME="), ("flush=1K", "unknown budget"), ("flash=", "empty"),
                          ("flash=1X", "no amount")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            budget(text)


def test_a_range_without_steps_has_no_grid() -> None:
    with pytest.raises(UsageError, match="needs lists"):
        Space({"recover.lr": Range(0.1, 0.2)}).grid()
    with pytest.raises(UsageError, match="more than"):
        Space({"a": Range(1, 10**6, whole=True)}).grid()


def test_a_point_is_a_recipe() -> None:
    base = Recipe().with_options({"plan.max_drop": 5.0})
    other = Recipe().with_options({"relevance.method": "magnitude"})
    space = Space({"recipe": Choice(("a", "b")), "plan.flash": dimension("plan.flash", ["1K"])})
    d = define(None, {"weights": None, "data": None, "test_data": None}, {"a": base, "b": other}, space,
               ["cortex-m4"], ["accuracy"], "auto", None, 0, 1)  # fmt: skip
    assert d.sampler == "grid"
    assert d.recipe({"recipe": "b", "plan.flash": 1024}) == other.with_options({"plan.flash": 1024, "threads": 1})
    assert Definition.from_dict(d.to_dict()) == d
    assert recipe_from(base.to_dict()) == base


def test_saved_definitions(tmp_path: Path) -> None:
    d = defined()
    d.save(tmp_path / "sweep.json")
    assert Definition.load(tmp_path / "sweep.json") == d
    assert defined(seed=1).name != d.name == defined().name
    (tmp_path / "sweep.json").write_text('{"schema": "xdeploy.sweep/1"}')
    with pytest.raises(UsageError, match="no sweep of this version"):
        Definition.load(tmp_path / "sweep.json")


def test_copies_of_a_folder_hash_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "dog").mkdir(parents=True)
        (tmp_path / name / "dog" / "1.png").write_bytes(b"12")
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b") != tree_hash(None)
    (tmp_path / "b" / "dog" / "1.png").write_bytes(b"123")
    assert tree_hash(tmp_path / "a") != tree_hash(tmp_path / "b")
