"""What may stand behind each flag, told to `shtab`, which writes the shells' completion scripts from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdeploy.commands.options import Parser, recipe_keys

# of flags whose values are names: the recipe's own lists, told by its checks
_KEYS = ("composite", "optimiser", "ecq", "form", "tune", "objective")
_FOLDERS = ("DIR",)


def mark(top: Parser) -> Parser:
    """Give every argument of the parser and its commands what completes it; the parser itself."""
    targets = _targets()
    for action in _actions(top):
        if "--target" in action.option_strings:
            action.choices = targets
        elif action.type is Path:
            kind = "directory" if action.metavar in _FOLDERS else "file"
            action.complete = _shells(kind)  # type: ignore[attr-defined]
        elif action.dest in ("model", "what"):
            action.complete = _shells("file")  # type: ignore[attr-defined]
        else:
            action.choices = action.choices or _names(action)
    return top


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from _actions(below)
        else:
            yield action


def _shells(kind: str) -> dict[str, Any]:
    import shtab

    return dict(shtab.FILE if kind == "file" else shtab.DIRECTORY)


def _targets() -> tuple[str, ...]:
    from xdeploy.target import FAMILIES, target_names

    return (*target_names(), *FAMILIES)


def _names(action: argparse.Action) -> tuple[str, ...] | None:
    """The words that the recipe allows for a flag, None if it is not one of a few words."""
    known = {key for flag, key in recipe_keys().items() if flag.removeprefix("--") in _KEYS}
    if action.dest not in known:
        return None
    from xdeploy.beginning.recipetext import allowed_values

    words = allowed_values(action.dest).removeprefix("one of ").split(", ")
    plain = tuple(w for w in words if w and all(c.isalnum() or c in "+-_" for c in w))
    return plain or None
