"""`xdeploy build` and the commands that stop after one stage of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdeploy.commands.options import Parser, add_model, add_recipe_flags, recipe_of
from xdeploy.commands.output import emit

if TYPE_CHECKING:
    from xdeploy.request import Request

_VERBS = {
    "build": ("report", "everything: score, plan, compress, export, compile, bench, report"),
    "explain": ("explain", "score what matters in the network, and show it: pictures, charts and a page"),
    "plan": ("plan", "choose a weight format per layer, under a budget"),
    "compress": ("compress", "apply the plan; weight codes are final after it"),
    "export": ("export", "write the ONNX file with packed integer weights"),
    "compile": ("build", "lower, choose kernels, place memory, build the artifacts"),
}
_DATA = "DIR|ZIP|NPZ"


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""
    for verb, (until, text) in _VERBS.items():
        parser = commands.add_parser(verb, help=text, description=text, parents=[common])
        parser.set_defaults(run=_run, until=until)
        add_model(parser, optional=True)
        parser.add_argument(
            "--data", type=Path, metavar=_DATA, help="training data: class folders, or npz with x and y"
        )
        parser.add_argument("--test-data", type=Path, metavar=_DATA, help="test data; none: a held-out split")
        parser.add_argument(
            "--target", action="append", metavar="NAME", help="a target, family or TOML file; repeatable"
        )
        parser.add_argument("--plan", type=Path, metavar="FILE", help="use this (edited) plan.json instead of planning")
        parser.add_argument(
            "-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="run folder (default: out)"
        )
        if verb in ("build", "compile"):
            text = "stop after the plan and tell it, with the sizes and the time that are expected; DIR's run stays"
            parser.add_argument("--dry-run", action="store_true", help=text)
        add_recipe_flags(parser)


def _run(args: argparse.Namespace) -> int:
    from xdeploy import pipeline, together
    from xdeploy.console import Console
    from xdeploy.request import Request

    request = Request(
        model=args.model, weights=args.weights, data=args.data, test_data=args.test_data, recipe=recipe_of(args),
        targets=tuple(args.target or ("arm",)), output=args.output, plan=args.plan,
    )  # fmt: skip
    if getattr(args, "dry_run", False):
        return _dry_run(args, request)
    with Console(quiet=args.quiet or args.json) as console:
        if together.wanted() > 1:  # one of torchrun's processes
            found = together.run(request, args.until, console)
        else:
            found = pipeline.run(request, until=args.until, progress=console)
    if found is None:
        return 0
    emit(args, found.summary, console.finish(found))
    return 0


def _dry_run(args: argparse.Namespace, request: Request) -> int:
    from xdeploy.console import Console
    from xdeploy.forecast.dryrun import describe, dry_run

    with Console(quiet=args.quiet or args.json) as console:
        document = dry_run(request, args.until, console)
    emit(args, document, describe(document))
    return 0
