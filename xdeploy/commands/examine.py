"""`xdeploy check` (can it be deployed? does it keep its limits?) and `xdeploy diff` (where do its forms differ?)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdeploy.commands.options import Parser, add_model, add_recipe_flags, recipe_keys, recipe_of, size
from xdeploy.commands.output import columns, emit, write_file
from xdeploy.errors import GateError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xdeploy.gate.cases import Case
    from xdeploy.gate.limits import Limits

_DROP = "plan.max_drop"  # the one recipe flag that an artifact's limits share
_LIMITS_HELP = """\
For OUT or OUT/<target> of a build. Always asked: outputs equal to the reference bit for bit. A figure that was not
measured fails its limit. K and M are 1024 and 1024**2 for bytes, 1,000 and 1,000,000 for counts. --max-drop POINTS
limits the loss of accuracy against the float network and, if given, the baseline. Exit code 4 if a gate fails.
"""


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""
    text = "can this model be deployed? lists every obstacle at once; or: does this artifact keep its limits?"
    check = commands.add_parser("check", help=text, description=text, parents=[common])
    check.set_defaults(run=_check)
    add_model(check, optional=False)
    check.add_argument("--data", type=Path, help="data that tells the input shape, if the model does not")
    text = "also: does it run and fit there? of an artifact: only this one; repeatable"
    check.add_argument("--target", action="append", metavar="NAME", help=text)
    _add_limits(check.add_argument_group("limits of a built artifact", _LIMITS_HELP))
    _add_files(check.add_argument_group("files for a CI"))
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


def _add_limits(group: Any) -> None:
    for key, what in (
        ("flash", "flash"),
        ("ram", "arena and static variables"),
        ("stack", "stack"),
        ("arena", "arena"),
    ):
        group.add_argument(f"--max-{key}", type=size, metavar="SIZE", help=f"bytes of {what}, e.g. 128K")
    for key in ("cycles", "instructions"):
        group.add_argument(f"--max-{key}", type=_reader("count"), metavar="COUNT", help="per inference, e.g. 20M")
    group.add_argument("--max-latency", type=_reader("seconds"), metavar="TIME", help="per inference, e.g. 50ms, 800us")
    group.add_argument("--max-energy", type=_reader("joules"), metavar="ENERGY", help="per inference, e.g. 5mJ, 300uJ")
    text = "of the deployed code; a share up to 1 (0.9), above 1 percent (90)"
    group.add_argument("--min-accuracy", type=_reader("accuracy"), metavar="SHARE", help=text)
    text = "OUT or OUT/<target> to compare with, target by target"
    group.add_argument("--baseline", type=Path, metavar="OTHER", help=text)
    text = "how much more than the baseline each cost may be, e.g. 2%%; measured times are left out"
    group.add_argument("--max-growth", type=_reader("points"), metavar="PERCENT", help=text)
    text = "hold the high end of an error bar to the limit, not the value"
    group.add_argument("--strict", action="store_true", help=text)
    text = "let a target through whose outputs could not be compared, because nothing here can run it"
    group.add_argument("--allow-not-run", action="store_true", help=text)


def _reader(name: str) -> Callable[[str], Any]:
    """A parser of `xdeploy.gate.limits`, loaded when a flag needs it: the help must not wait for numpy."""

    def read(text: str) -> Any:
        from xdeploy.gate import limits

        return getattr(limits, name)(text)

    return read


def _add_files(group: Any) -> None:
    group.add_argument("--junit", type=Path, metavar="FILE", help="JUnit XML: a testcase per gate or obstacle")
    group.add_argument("--sarif", type=Path, metavar="FILE", help="SARIF 2.1.0: a result per failed gate or obstacle")
    text = 'Markdown for a pull request; "-" is stdout, e.g. >> "$GITHUB_STEP_SUMMARY"'
    group.add_argument("--summary", metavar="FILE", help=text)


def _check(args: argparse.Namespace) -> int:
    if args.json and args.summary == "-":
        raise UsageError("--json and --summary - both want stdout", hint="give one of them a file")
    if Path(args.model).is_dir():
        return _check_artifact(args)
    given = [flag for flag, value in _limit_flags(args).items() if value]
    if given:
        text = f"{', '.join(given)}: for a built artifact, and {args.model} is no folder"
        raise UsageError(text, hint="build it first, then check OUT or OUT/<target>")
    return _check_model(args)


# --------------------------------------------------------------------------------------------- artifacts
def _check_artifact(args: argparse.Namespace) -> int:
    from xdeploy.gate import cases, check_artifact, lines, summary

    _refuse_model_flags(args)
    folder = Path(args.model)
    result = check_artifact(folder, _limits(args), args.baseline, tuple(args.target or ()))
    _write(args, cases.of_result(result), summary.render(result), folder.resolve().parent)
    emit(args, result.to_dict(), lines.render(result))
    return 0 if result.passed else GateError.exit_code


def _limits(args: argparse.Namespace) -> Limits:
    from xdeploy.gate import FIGURES, Limits

    costs = {f.key: getattr(args, f"max_{f.key}") for f in FIGURES}
    return Limits(
        **costs, accuracy=args.min_accuracy, drop=getattr(args, _DROP), growth=args.max_growth, strict=args.strict,
        allow_not_run=args.allow_not_run,
    )  # fmt: skip


def _limit_flags(args: argparse.Namespace) -> dict[str, bool]:
    """Whether each flag was given that only an artifact takes."""
    from xdeploy.gate import FIGURES

    names = [*(f"max_{f.key}" for f in FIGURES), "min_accuracy", "max_growth", "baseline"]
    given = {f"--{name.replace('_', '-')}": getattr(args, name) is not None for name in names}
    return {**given, "--strict": args.strict, "--allow-not-run": args.allow_not_run}


def _refuse_model_flags(args: argparse.Namespace) -> None:
    """Refuse what only a model takes, so that nobody takes a budget of the planner for a limit.

    Raises:
        UsageError: one of them was given.
    """
    names = {flag: key for flag, key in recipe_keys().items() if key != _DROP}
    given = [flag for flag, key in names.items() if getattr(args, key) is not None]
    plain = {"--weights": args.weights, "--data": args.data, "--recipe": args.recipe, "--set": args.set}
    given += [flag for flag, value in plain.items() if value]
    if given:
        hint = "limits are --max-flash, --max-ram, --max-drop, ..." if {"--flash", "--ram"} & set(given) else None
        raise UsageError(f"{', '.join(given)}: for a model; {args.model} is built already", hint=hint)


def _write(args: argparse.Namespace, found: Sequence[Case], markdown: str, above: Path) -> None:
    """The files that were asked for; a summary on stdout takes the place of the text there."""
    from xdeploy.gate import junit, sarif

    if args.junit is not None:
        write_file(args.junit, junit.render(found))
    if args.sarif is not None:
        write_file(args.sarif, sarif.render(found, above))
    if args.summary == "-":
        print(markdown, end="")
        args.quiet = True
    elif args.summary is not None:
        write_file(Path(args.summary), markdown)


# --------------------------------------------------------------------------------------------- models
def _check_model(args: argparse.Namespace) -> int:
    from xdeploy.check import check
    from xdeploy.console import Console
    from xdeploy.gate import cases, summary

    with Console(quiet=args.quiet or args.json) as console:
        recipe = recipe_of(args)
        document = check(args.model, args.weights, args.data, tuple(args.target or ()), recipe, progress=console)
    _write(args, cases.of_model(document), summary.render_model(document), Path(args.model).resolve().parent)
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
