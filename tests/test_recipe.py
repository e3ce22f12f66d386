"""Recipes: unknown keys refused by line, types and ranges checked, every flag is a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdeploy.errors import UsageError
from xdeploy.recipe import Recipe, load_recipe


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def test_defaults_and_values(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, 'seed = 3\n[plan]\nflash = 65536\nformats = ["int8", "int4"]\nfixed = {conv1 = "int8"}\n')
    )
    assert (recipe.seed, recipe.plan.flash, recipe.plan.formats) == (3, 65536, ("int8", "int4"))
    assert recipe.plan.fixed == {"conv1": "int8"}
    assert recipe.relevance == Recipe().relevance
    assert load_recipe(None) == Recipe()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[plan]\nflahs = 3\n", ("r.toml:2", "flahs", "did you mean 'flash'")),
        ("sede = 3\n", ("r.toml:1", "'sede'", "seed")),
        ("[plan]\nflash = 'x'\n", ("plan.flash", "int", "'x'")),
        ("[plan]\nformats = ['int7']\n", ("int7", "int8")),
        ("[recover]\nepochs = -1\n", ("recover.epochs", "0..")),
        ("[plan\n", ("r.toml", "line 1")),
        ("[relevance]\ncomposite = 'epsilonn'\n", ("epsilonn", "epsilon-plus-flat")),
        ("[data]\nvalidation = true\n", ("data.validation", "float")),
    ],
)
def test_errors_teach(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_every_flag_is_a_recipe_key() -> None:
    from xdeploy.commands.options import recipe_keys

    flat = {"seed"} | {f"{s}.{o}" for s, v in Recipe().to_dict().items() if isinstance(v, dict) for o in v}
    assert set(recipe_keys().values()) <= flat


def parsed(*arguments: str) -> Recipe:
    """The recipe that a command line asks for."""
    from xdeploy.commands.options import Parser, add_recipe_flags, recipe_of

    parser = Parser()
    add_recipe_flags(parser)
    return recipe_of(parser.parse_args(list(arguments)))


def test_flags_reach_the_recipe(tmp_path: Path) -> None:
    """Each kind of flag: a value, a switch and its denial, one that repeats; the file stands below them."""
    file = write(tmp_path, "[plan]\nram = 5\nflash = 7\n[lower]\nfail_on_fallback = true\n")
    recipe = parsed("--recipe", str(file), "--flash", "1.5K", "--further", "--fallback", "a", "--fallback", "b.c")
    assert (recipe.plan.flash, recipe.plan.ram, recipe.compress.further) == (1536, 5, True)
    assert (recipe.lower.fallback, recipe.lower.fail_on_fallback) == (("a", "b.c"), True)
    assert parsed("--recipe", str(file), "--no-fail-on-fallback").lower.fail_on_fallback is False
    assert parsed().lower.fail_on_fallback is None
    assert parsed("--set", "lower.fallback=['x']", "--set", "package.name=net").lower.fallback == ("x",)


@pytest.mark.parametrize("text", ["12Q", "K", "1e999", "nan", "-"])
def test_a_size_is_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(UsageError, match="examples: 65536"):
        parsed("--flash", text)
