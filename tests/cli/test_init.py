"""`xdeploy init`: the written recipe is the default one, knows the model, and has a word for every key."""

from __future__ import annotations

import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from xdeploy.beginning.recipetext import Options, allowed_values, meanings, render, toml
from xdeploy.cli import main
from xdeploy.errors import UsageError
from xdeploy.recipe import Recipe, load_recipe


def keys() -> list[str]:
    found = []
    for f in fields(Recipe):
        part = getattr(Recipe(), f.name)
        found += [f"{f.name}.{x.name}" for x in fields(part)] if is_dataclass(part) else [f.name]
    return found


def test_the_text_is_the_default_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(render(Options()))
    assert load_recipe(path) == Recipe()
    lines = path.read_text().splitlines()
    for key in keys():
        name = key.rpartition(".")[2]
        assert any(x.removeprefix("# ").startswith(f"{name} = ") for x in lines), key
    # a default that TOML can hold stands there as a value
    value = tomllib.loads(path.read_text())
    for key in keys():
        section, _, name = key.partition(".")
        default = getattr(getattr(Recipe(), section), name) if name else getattr(Recipe(), section)
        assert (default is None) == ((name or section) not in (value.get(section, {}) if name else value)), key


def test_every_suggestion_can_be_uncommented(tmp_path):
    path = tmp_path / "r.toml"
    given = {"plan.flash": (4096, "why"), "plan.fixed": ({"a.b": "int8"}, "why"), "recover.epochs": (3, "why")}
    lines = render(Options(suggestions=given)).splitlines()
    for key in given:
        name = key.partition(".")[2]
        at = next(i for i, x in enumerate(lines) if x.startswith(f"# {name} = ") and "a suggestion" in x)
        lines[at] = lines[at].removeprefix("# ")
        lines[at - 1] = f"# {lines[at - 1]}"  # the default
    path.write_text("\n".join(lines))
    assert load_recipe(path) == Recipe().with_options({k: v for k, (v, _) in given.items()})


def test_words_and_ranges_are_those_of_the_recipes_own_check():
    assert allowed_values("tune.effort") == "one of full, off, quick"
    assert allowed_values("data.validation") == "in 0.0..0.9"
    assert allowed_values("plan.flash") == "not negative"
    assert allowed_values("plan.formats").startswith("one of c1s8, ")
    assert allowed_values("bench.accuracy") == ""
    for word in allowed_values("plan.rule").removeprefix("one of ").split(", "):
        Recipe().with_options({"plan.rule": word})
    with pytest.raises(UsageError):
        Recipe().with_options({"plan.rule": "other"})


def test_meanings_are_the_comments_of_the_source():
    assert meanings(type(Recipe().recover))["decay"].startswith("share of the weights that is lost per step")
    assert meanings(type(Recipe().relevance))["composite"].startswith("of lrp: one of COMPOSITES")
    assert meanings(type(Recipe().recover))["epochs"] == ""


@pytest.mark.parametrize("value", [(), (1.5, 2.0), {"a": "b"}, True, 'a "b" \\ c', ("int8",), -3])
def test_toml(value):
    assert tomllib.loads(f"v = {toml(value)}")["v"] == (list(value) if isinstance(value, tuple) else value)


def test_a_quantised_file_gets_no_advice_on_training(kept, tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    assert main(["init", str(kept), "--target", "cortex-m3", "-o", str(path)]) == 0
    text = path.read_text()
    assert load_recipe(path) == Recipe()
    assert set(tomllib.loads(text)) == {"seed", "threads", "data", "lower", "plan", "tune", "build", "package", "bench"}
    assert "max_drop" not in text
    assert "# ram = " in text
    assert f"--recipe {path}" in capsys.readouterr().out
    before = path.read_bytes()
    assert main(["init", str(kept), "-o", str(path)]) == 2
    assert path.read_bytes() == before
    assert "--force" in capsys.readouterr().err
    assert main(["init", str(kept), "-o", str(path), "--force", "--json"]) == 0
    assert path.read_bytes() != before


def test_bad_input_writes_nothing(kept, tmp_path):
    path = tmp_path / "r.toml"
    assert main(["init", str(tmp_path / "no.onnx"), "-o", str(path)]) != 0
    assert main(["init", str(kept), "--target", "z80", "-o", str(path)]) == 2
    assert not path.exists()


@pytest.mark.slow
def test_a_float_model(tmp_path: Path):
    """All sections, the methods that are registered, budgets that its own network can meet."""
    path = tmp_path / "r.toml"
    assert main(["init", "xdeploy.model.zoo:digits_cnn", "--target", "cortex-m4", "-o", str(path)]) == 0
    text = path.read_text()
    assert load_recipe(path) == Recipe()
    assert "one of conductance, deeplift, " in text
    assert '# fixed = {"stem.conv" = "int8", "linear" = "int8"}' in text
    assert "# flash = " in text
