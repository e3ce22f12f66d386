"""Flags that are recipe keys, and the recipe a command line asks for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from xdeploy.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from xdeploy.recipe import Recipe

_SIZES = {"": 1, "k": 1024, "kb": 1024, "kib": 1024, "m": 1024**2, "mb": 1024**2, "mib": 1024**2}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are UsageErrors, with what is close to a word that it does not know."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UsageError(message, hint=f"see `{self.prog} --help`")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it; a flag that is not known is told with those of the command that was given."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            below = _commands(self).get(getattr(found, "command", None) or "", self)
            known = [flag for action in below._actions for flag in action.option_strings]
            flag = next((word for word in rest if word.startswith("-")), rest[0]).partition("=")[0]
            hint = did_you_mean(flag, known, 0.7) if flag.startswith("-") else None
            raise UsageError(f"{below.prog} does not know {' '.join(rest)}", hint=hint or f"see `{below.prog} --help`")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        what = action.metavar if isinstance(action.metavar, str) else action.dest
        names = [str(x) for x in action.choices]
        hint = did_you_mean(str(value), names) or f"see `{self.prog} --help`"
        demo = "`xdeploy build` without MODEL builds the demo" if value == "demo" else None
        told = f"unknown {what.lower()} {str(value)!r} (choose from {', '.join(map(repr, names))})"
        raise UsageError(told, hint=demo or hint)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    found = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(next(found, {}))


def number(text: str) -> float:
    """A number: 0.5, 1e-3."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; examples: 1, 0.5") from None


def whole(text: str) -> int:
    """A whole number: 20."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; example: 20") from None


def size(text: str) -> int:
    """Bytes: 65536, 64K, 1M."""
    return _scaled(text, "kKmMbBiI", _SIZES, "size; examples: 65536, 64K, 1M")


def count(text: str) -> int:
    """A number of operations: 20000000, 20M, 1.5G."""
    return _scaled(text, "kKmMgG", _COUNTS, "count; examples: 20000000, 20M, 1.5G")


def _scaled(text: str, letters: str, factors: dict[str, int], what: str) -> int:
    digits = text.rstrip(letters)
    factor = factors.get(text[len(digits) :].lower())
    try:
        if factor is None:
            raise ValueError
        return int(float(digits) * factor)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}") from None


def _floats(text: str) -> list[float]:
    try:
        return [float(x) for x in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; example: 0.485,0.456,0.406") from None


def _names(text: str) -> list[str]:
    return [x for x in text.split(",") if x]


def _bands(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


# flag -> (recipe key, parser of its value, help)
FLAGS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "--flash": ("plan.flash", size, "budget for weights, scales, biases and codebooks, e.g. 64K"),
    "--ram": ("plan.ram", size, "budget for the arena, e.g. 32K"),
    "--coded": ("plan.coded", size, "budget for the weights after entropy coding, by their codes' entropy, e.g. 32K"),
    "--instructions": ("plan.instructions", count, "budget for one inference, counted on the first emulated target"),
    "--bops": ("plan.bops", count, "budget for MACs times weight bits times activation bits, e.g. 500M"),
    "--max-drop": ("plan.max_drop", number, "points of validation accuracy that may be lost when no --flash is given"),
    "--formats": ("plan.formats", _names, "weight formats to choose from, e.g. int8,int4,c4s8"),
    "--method": ("relevance.method", str, "relevance method: lrp, deeplift, magnitude, ..."),
    "--composite": ("relevance.composite", str, "LRP rules: epsilon or epsilon-plus-flat"),
    "--epochs": ("recover.epochs", whole, "epochs of fine-tuning after compression"),
    "--lr": ("recover.lr", number, "learning rate of the fine-tuning"),
    "--optimiser": ("recover.optimiser", str, "of the fine-tuning: sgd or adam"),
    "--distill": ("recover.distill", number, "share of the loss that follows the float model's outputs, 0..1"),
    "--ecq": ("ecq.method", str, "entropy-constrained codes at the plan's densities: off, ecq or ecqx (relevance)"),
    "--mean": ("data.mean", _floats, "per-channel mean of pixels in 0..1"),
    "--std": ("data.std", _floats, "per-channel standard deviation of pixels in 0..1"),
    "--form": ("package.form", str, "C package: tuned (LLVM kernels for one core) or portable (C99 only)"),
    "--stream": ("build.stream", _bands, "first layers in bands of rows, for less RAM: auto, off, min or a number"),
    "--inference-threads": (
        "build.threads",
        whole,
        "2: a library that may use a second thread, for hosts and Cortex-A",
    ),
    "--name": ("package.name", str, "the model's name in C"),
    "--prefix": ("package.prefix", str, "what every name in C begins with, xd by default"),
    "--tune": ("tune.effort", str, "choose kernels by measuring: off (cost formulas), quick (likely ones) or full"),
    "--objective": ("tune.objective", str, "what tuning makes small: instructions, cycles or flash"),
    "--seed": ("seed", whole, "seed of everything random"),
}
# flag -> (recipe key, help): yes, or no with --no-
SWITCHES: dict[str, tuple[str, str]] = {
    "--further": ("compress.further", "compress a file that is quantised already once more; needs --data"),
    "--compact": ("compress.compact", "scales and biases of few bits; else only where ecq or a density is used"),
    "--fail-on-fallback": ("lower.fail_on_fallback", "refuse every part in float; firmware targets always do"),
    "--allow-external-data": ("lower.external_data", "an ONNX file may keep tensors in other files of its own folder"),
}
# flag -> (recipe key, metavar, help): may be given several times
REPEATED: dict[str, tuple[str, str, str]] = {
    "--fallback": ("lower.fallback", "NODE", "this node may run in float, on hosts and Cortex-A; repeatable"),
}


def recipe_keys() -> dict[str, str]:
    """Flag -> recipe key."""
    tables: tuple[dict[str, Any], ...] = (FLAGS, SWITCHES, REPEATED)
    return {flag: row[0] for table in tables for flag, row in table.items()}


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """--recipe, every flag above and --set."""
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="TOML file with options")
    for flag, (key, kind, text) in FLAGS.items():
        parser.add_argument(flag, dest=key, type=kind, help=f"{text} [{key}]", default=None)
    for flag, (key, text) in SWITCHES.items():
        choice = argparse.BooleanOptionalAction
        parser.add_argument(flag, dest=key, action=choice, help=f"{text} [{key}]", default=None)
    for flag, (key, name, text) in REPEATED.items():
        parser.add_argument(flag, dest=key, action="append", metavar=name, help=f"{text} [{key}]", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any recipe key, value in TOML")


def add_model(parser: argparse.ArgumentParser, optional: bool) -> None:
    """MODEL and --weights."""
    text = "package.module:factory, a .pt2 or an .onnx"
    if optional:
        parser.add_argument("model", nargs="?", help=f"{text}; none: the bundled demo")
    else:
        parser.add_argument("model", help=text)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors for the factory's module")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe: the file, changed by the flags, changed by --set.

    Raises:
        UsageError: an unknown key, a wrong type or value.
    """
    from xdeploy.recipe import load_recipe

    given = {key: getattr(args, key) for key in recipe_keys().values()}
    changes = {key: value for key, value in given.items() if value is not None}
    return load_recipe(args.recipe).with_options(changes | dict(map(_setting, args.set)))


def _setting(item: str) -> tuple[str, Any]:
    import tomllib

    key, equals, value = item.partition("=")
    if not equals:
        raise UsageError(f"--set wants KEY=VALUE, got {item!r}")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
