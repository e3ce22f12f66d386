"""A recipe as commented TOML: keys, defaults and meanings are those of the recipe's dataclasses, from their source.

What a key may hold is what the recipe's own check says to a value that no key may have, so there is no second list.
"""

from __future__ import annotations

import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from xdeploy.errors import ToolchainError, UsageError
from xdeploy.recipe import Recipe

_WIDTH = 110
_IMPOSSIBLE: dict[type, Any] = {str: "?", float: float("nan"), int: -(10**15)}
_ALLOWED = (r"unknown (?:value of \S+|weight format in plan) '.*?'; allowed: (.*)", r"must (?:be|not be) (.*), got")
_ONE_OF = "one of "
_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Options:
    """What goes into the text beside the defaults.

    sections: names of the sections to show, in the order of the recipe; empty: all. keys: dotted names of the only keys
    shown of their section. suggestions: dotted key -> (value, why), written as comments. allowed: dotted key -> what
    it may hold, for what the recipe alone cannot tell. head: lines at the top.
    """

    sections: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    suggestions: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    allowed: Mapping[str, str] = field(default_factory=dict)
    head: Sequence[str] = ()


def render(options: Options) -> str:
    """The text: loads as the default recipe, whatever the options are."""
    recipe = Recipe()
    lines = [*(f"# {line}".rstrip() for line in options.head), ""]
    plain = [f.name for f in fields(Recipe) if not is_dataclass(getattr(recipe, f.name))]
    for name in plain:
        lines += _key(Recipe, name, name, getattr(recipe, name), options)
    for name in (f.name for f in fields(Recipe) if f.name not in plain):
        if not options.sections or name in options.sections:
            lines += _section(name, getattr(recipe, name), options)
    return "\n".join(lines) + "\n"


def _section(name: str, part: Any, options: Options) -> list[str]:
    only = [key.partition(".")[2] for key in options.keys if key.startswith(f"{name}.")]
    meaning = re.sub(r"^\[\w+\] ", "", inspect.cleandoc(type(part).__doc__ or "").partition("\n")[0])
    lines = ["", *_comment(meaning), f"[{name}]"]
    for f in fields(part):
        if not only or f.name in only:
            lines += _key(type(part), f.name, f"{name}.{f.name}", getattr(part, f.name), options)
    return lines


def _key(owner: type, name: str, key: str, value: Any, options: Options) -> list[str]:
    """Meaning and allowed values as comments, then the default; one that TOML has no word for (none) as a comment."""
    allowed = options.allowed.get(key) or allowed_values(key)
    meaning = meanings(owner).get(name, "")
    told = [meaning] if _is_told(allowed, meaning) else [meaning, allowed]
    lines = _comment("; ".join(filter(None, told)))
    lines.append(f"{name} = {toml(value)}" if value is not None else f"# {name} = ...  # not set; {_kind(owner, name)}")
    if key in options.suggestions:
        given, why = options.suggestions[key]
        lines.append(f"# {name} = {toml(given)}  # a suggestion: {why}")
    return lines


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)]


def _is_told(allowed: str, meaning: str) -> bool:
    """Whether the comment names every allowed word already."""
    words = allowed.removeprefix(_ONE_OF)
    return words != allowed and all(word.strip() in meaning for word in words.split(","))


@cache
def meanings(owner: type) -> Mapping[str, str]:
    """Field -> the comment above and behind it in the source of a dataclass.

    Raises:
        ToolchainError: the source is not installed.
    """
    try:
        text = textwrap.dedent(inspect.getsource(owner))
    except OSError:
        hint = "pip install --force-reinstall xdeploy"
        raise ToolchainError(f"the source of {owner.__module__} is not installed", hint=hint) from None
    names = {f.name for f in fields(owner)}
    found: dict[str, str] = {}
    above: list[str] = []
    for line in text.splitlines():
        name = re.match(r"    (\w+):", line)
        comment = _comment_of(line)
        if line.startswith("    #"):
            above.append(comment)
        elif name and name[1] in names:
            found[name[1]] = " ".join([*above, comment]).strip().replace("None:", "not set:")
            above = []
        elif not line.strip():
            above = []
    return found


def _comment_of(line: str) -> str:
    """The comment of one line of source, "" if there is none; a # in a string is none."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
            if token.type == tokenize.COMMENT:
                return token.string.lstrip("# ").strip()
    except tokenize.TokenError:
        pass  # the line goes on, so its comment stands elsewhere
    return ""


@cache
def allowed_values(key: str) -> str:
    """What a recipe key may hold in the words of the recipe's check, "" where only its type limits it."""
    section, _, name = key.partition(".")
    owner = type(getattr(Recipe(), section)) if name else Recipe
    for kind in _kinds(owner, name or section):
        if kind in _IMPOSSIBLE:
            wrong = _IMPOSSIBLE[kind]
            for value in (wrong, [wrong]):
                found = _refused(key, value)
                if found:
                    return found
    return ""


def _refused(key: str, value: Any) -> str:
    """What the check says is allowed instead of the value."""
    try:
        Recipe().with_options({key: value})
    except UsageError as error:
        for pattern in _ALLOWED:
            match = re.search(pattern, error.message)
            if match and match[1].partition(" ")[0] not in ("a", "an"):  # else a type
                return (
                    "not negative" if match[1] == "negative" else (_ONE_OF if "unknown" in pattern else "") + match[1]
                )
    return ""


def _kinds(owner: type, name: str) -> tuple[Any, ...]:
    """The types a field may have; of a tuple, of its entries."""
    hint = get_type_hints(owner)[name]
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_args(p)[0] if get_origin(p) is tuple else p for p in parts)


def _kind(owner: type, name: str) -> str:
    words = [_KINDS[k] for k in _kinds(owner, name) if k in _KINDS]
    return " or ".join(dict.fromkeys(words))


def toml(value: Any) -> str:
    """A value of a recipe in TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
