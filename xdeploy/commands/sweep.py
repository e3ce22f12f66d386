"""`xdeploy sweep`: many recipes or budgets on several targets as one study."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdeploy.commands.options import SWITCHES, Parser, add_model, recipe_keys, recipe_of
from xdeploy.commands.output import emit
from xdeploy.errors import UsageError

if TYPE_CHECKING:
    from xdeploy.recipe import Recipe

_DATA = "DIR|ZIP|NPZ"
_TEXT = """Try many recipes or budgets on several targets as one Optuna study, and keep the front of those that no other
one beats. Killed, it goes on where it was; the same command elsewhere with the same --storage helps."""


def add(commands: Any, common: Parser) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "sweep", help="try many recipes or budgets on several targets; gives the Pareto front", description=_TEXT,
        parents=[common],
    )  # fmt: skip
    parser.set_defaults(run=_run, **dict.fromkeys(recipe_keys().values()))
    add_model(parser, optional=True)
    parser.add_argument("--data", type=Path, metavar=_DATA, help="training data: class folders, or npz with x and y")
    parser.add_argument("--test-data", type=Path, metavar=_DATA, help="only the front is measured on it")
    parser.add_argument("--target", action="append", metavar="NAME", help="a target, family or TOML file; repeatable")
    parser.add_argument("--space", type=Path, metavar="FILE", help="TOML: recipe keys with lists, or { low, high }")
    parser.add_argument("--recipes", type=Path, nargs="+", default=[], metavar="FILE", help="recipes to compare")
    parser.add_argument(
        "--budgets", action="append", default=[], metavar="NAME=A,B", help="such as flash=32K,24K,16K; repeatable"
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="the recipe that the space's keys are changed in")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a recipe key of all trials")
    flag = "--allow-external-data"
    key, text = SWITCHES[flag]
    parser.add_argument(flag, dest=key, action="store_true", default=None, help=text)
    parser.add_argument(
        "--objective", action="append", metavar="NAME,NAME", help="accuracy,flash,instructions if not told"
    )
    parser.add_argument("--sampler", default="auto", metavar="NAME", help="auto, grid, tpe, nsga2 or random")
    parser.add_argument("--trials", type=int, metavar="N", help="in all; none: the whole grid")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch in each; results depend on it")
    parser.add_argument("--sampler-seed", type=int, default=0, metavar="N", help="of the sampler")
    parser.add_argument("--storage", metavar="URL|FILE", help="where the study is kept; none: study.db in the folder")
    text = "a board that times trials, of all targets or of one: tracker://host:port/kind, rpc://... or ssh://..."
    parser.add_argument("--via", action="append", default=[], metavar="[TARGET=]BOARD", help=text)
    text = "rpc:// and tracker:// may go to another machine than this one, although its protocol has no protection"
    parser.add_argument("--allow-remote", action="store_true", help=text)
    parser.add_argument("--retry-failed", action="store_true", help="try failed trials once more")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("sweep"), metavar="DIR", help="folder (default: sweep)"
    )


def _run(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.sweep import sweep
    from xdeploy.sweep.objectives import DEFAULT
    from xdeploy.sweep.space import budget, load_space

    space = load_space(args.space) if args.space else {}
    for text in args.budgets:
        key, dimension = budget(text)
        if key in space:
            raise UsageError(f"{key} is given twice", hint="in --space or in --budgets, once")
        space[key] = dimension
    names = [x for text in args.objective or [] for x in text.split(",") if x]
    with Console(quiet=args.quiet or args.json) as console:
        front = sweep(
            args.model, data=args.data, test_data=args.test_data, weights=args.weights, target=args.target or ["arm"],
            space=space, recipes=_recipes(args), objectives=names or DEFAULT, sampler=args.sampler, trials=args.trials,
            jobs=args.jobs, threads=args.threads, seed=args.sampler_seed, storage=args.storage, via=args.via,
            remote=args.allow_remote, output=args.output,
            again=args.retry_failed, progress=console,
        )  # fmt: skip
    emit(args, front, None if args.quiet else _summary(front, args.output))
    return 0


def _recipes(args: argparse.Namespace) -> dict[str, Recipe]:
    """By name: those to compare, or the one to change, each with the flags' settings."""
    if args.recipes and args.recipe:
        raise UsageError("--recipe and --recipes exclude each other", hint="put what all share into --set")
    found: dict[str, Recipe] = {}
    for path in args.recipes or [args.recipe]:
        _refuse_threads(args, path)
        args.recipe = path
        name = path.stem if path else "recipe"
        if name in found:
            raise UsageError(f"two recipes are called {name!r}", hint="rename one of the files")
        found[name] = recipe_of(args)
    return found


def _refuse_threads(args: argparse.Namespace, path: Path | None) -> None:
    """All trials have one number of threads, that of the flag; a file that says otherwise is told, not overruled."""
    from xdeploy.files import read_toml

    told = [x for x in args.set if x.partition("=")[0].strip() == "threads"]
    if path is not None and path.is_file():
        try:
            told += [f"{path}: threads"] if "threads" in read_toml(path.read_text(encoding="utf-8")) else []
        except ValueError:
            return  # reading the recipe tells what is wrong with it
    if told:
        raise UsageError(f"{told[0]}: the trials of a sweep share their number of threads", hint="give --threads N")


def _summary(front: dict[str, Any], output: Path) -> str:
    """The front of each target as a table, and where the page lies."""
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    from xdeploy.sweep.definition import shown
    from xdeploy.sweep.page import told

    terminal = sys.stdout.isatty()
    text = io.StringIO()
    console = RichConsole(file=text, width=None if terminal else 140, force_terminal=terminal or None)
    names = [o["name"] for o in front["objectives"]]
    for target, members in front["front"].items():
        table = Table(title=f"{target}: front of {len(members)}", title_justify="left")
        for name in ("trial", "options", *names, "test accuracy, %"):
            table.add_column(name, justify="left" if name == "options" else "right")
        for m in members:
            values = [told(m["values"][n]) for n in names]
            table.add_row(*map(Text, (str(m["trial"]), shown(m["options"]), *values, told(m["test_accuracy"]))))
        console.print(table)
    counts = ", ".join(f"{n} {state}" for state, n in front["study"]["trials"].items())
    return f"{text.getvalue()}{counts}\nfront: {(output / 'front.html').resolve()} (also .json)"
