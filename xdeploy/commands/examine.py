"""`xdeploy check` (can it be deployed?) and `xdeploy diff` (where do two of its forms differ?)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xdeploy.commands.options import Parser, add_model, add_recipe_flags, recipe_of
from xdeploy.commands.output import columns, emit
from xdeploy.errors import UnsupportedError


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""
    text = "can this model be deployed? lists every obstacle at once"
    check = commands.add_parser("check", help=text, description=text, parents=[common])
    check.set_defaults(run=_check)
    add_model(check, optional=False)
    check.add_argument("--data", type=Path, help="data that tells the input shape, if the model does not")
    check.add_argument("--target", action="append", metavar="NAME", help="also: does it run and fit there? repeatable")
    add_recipe_flags(check)
    text = "layer by layer: float, fake-quant, ONNX Runtime, reference, host code, emulator; which differs first"
    diff = commands.add_parser("diff", help=text, description=text, parents=[common])
    diff.set_defaults(run=_diff)
    diff.add_argument("what", type=Path, metavar="OUT|MODEL.onnx", help="a run folder, or an ONNX file by itself")
    diff.add_argument("--inputs", type=Path, metavar="NPY", help="float as the model expects it; none: the golden ones")
    diff.add_argument("--target", action="append", metavar="NAME", help="only these built targets; none: all")
    text = "the ONNX file may keep tensors in other files of its own folder"
    diff.add_argument("--allow-external-data", action="store_true", help=text)
    diff.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where diff.json and diff.html go (default: OUT)"
    )


def _check(args: argparse.Namespace) -> int:
    from xdeploy.check import check
    from xdeploy.console import Console

    with Console(quiet=args.quiet or args.json) as console:
        recipe = recipe_of(args)
        document = check(args.model, args.weights, args.data, tuple(args.target or ()), recipe, progress=console)
    emit(args, document, "\n".join(_check_lines(document)))
    return 0 if document["deployable"] else UnsupportedError.exit_code


def _check_lines(document: dict[str, Any]) -> list[str]:
    lines = []
    if document["layers"]:
        rows = [(x["origin"], x["op"], "x".join(map(str, x["shape"]))) for x in document["layers"]]
        lines += [columns([("layer", "op", "shape"), *rows]), ""]
    for row in document["fallback"]:
        lines.append(f"float: {row['node']} ({', '.join(row['ops'])}): {row['reason']}")
    for o in document["obstacles"]:
        where = f"{o['node']} ({o['op']})" if o["op"] else o["node"]
        details = [f"on {o['target']}"] if o["target"] else []
        details += [f"shape {'x'.join(map(str, o['shape']))}"] if o["shape"] else []
        details += [o["attribute"]] if o["attribute"] else []
        lines.append(f"{where}{', ' + ', '.join(details) if details else ''}\n    {o['reason']}")
        lines += [f"    instead: {o['rewrite']}"] if o["rewrite"] else []
    for name, t in document["targets"].items():
        lines.append(f"{name}: " + ("; ".join(t["facts"]) or "not examined, since there are obstacles"))
    if document["deployable"]:
        count = len(document["layers"])
        return [*lines, f"ok: all {count} layers can be deployed" + (", some in float" if document["fallback"] else "")]
    return [*lines, f"not deployable: {len(document['obstacles'])} obstacle(s)"]


def _diff(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.diff import diff, write
    from xdeploy.report.diffpage import show

    with Console(quiet=args.quiet or args.json) as console:
        document = diff(args.what, args.inputs, tuple(args.target or ()), console, args.allow_external_data)
    folder = args.output or (args.what if args.what.is_dir() else None)
    paths = write(document, folder) if folder is not None else []
    text = None if args.json or args.quiet else show(document)
    emit(args, document, f"{text}{''.join(f'{p}' + chr(10) for p in paths)}".rstrip("\n") if text else None)
    return 0
