"""The command line: `xdeploy build` and one subcommand per stage. Data goes to stdout, logs to stderr.

Exit codes: 0 ok, 1 internal, 2 usage, 3 model unsupported, 4 budget or accuracy gate, 5 toolchain missing,
6 device failed, 130 and 143 signals.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from xdeploy import __version__
from xdeploy.doctor import missing_package
from xdeploy.errors import ToolchainError, UsageError, XdeployError

_SIZES = {"": 1, "k": 1024, "kb": 1024, "kib": 1024, "m": 1024**2, "mb": 1024**2, "mib": 1024**2}

# flag -> (recipe key, parser, help); every flag is a recipe key
_FLAGS: dict[str, tuple[str, Callable[[str], Any], str]] = {}


def _size(text: str) -> int:
    digits = text.rstrip("kKmMbBiI")
    factor = _SIZES.get(text[len(digits) :].lower())
    try:
        if factor is None:
            raise ValueError
        return int(float(digits) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; examples: 65536, 64K, 1M") from None


def _floats(text: str) -> list[float]:
    try:
        return [float(x) for x in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; example: 0.485,0.456,0.406") from None


def _names(text: str) -> list[str]:
    return [x for x in text.split(",") if x]


_FLAGS |= {
    "--flash": ("plan.flash", _size, "budget for weights, scales, biases and codebooks, e.g. 64K"),
    "--ram": ("plan.ram", _size, "budget for the arena, e.g. 32K"),
    "--max-drop": ("plan.max_drop", float, "points of validation accuracy that may be lost when no --flash is given"),
    "--formats": ("plan.formats", _names, "weight formats to choose from, e.g. int8,int4,c4s8"),
    "--method": ("relevance.method", str, "relevance method: lrp, deeplift, magnitude, ..."),
    "--composite": ("relevance.composite", str, "LRP rules: epsilon or epsilon-plus-flat"),
    "--epochs": ("recover.epochs", int, "epochs of fine-tuning after compression"),
    "--lr": ("recover.lr", float, "learning rate of the fine-tuning"),
    "--mean": ("data.mean", _floats, "per-channel mean of pixels in 0..1"),
    "--std": ("data.std", _floats, "per-channel standard deviation of pixels in 0..1"),
    "--form": ("package.form", str, "C package: tuned (LLVM kernels for one core) or portable (C99 only)"),
    "--name": ("package.name", str, "the model's name in C"),
    "--seed": ("seed", int, "seed of everything random"),
}
_VERBS = {
    "build": ("report", "everything: score, plan, compress, export, compile, bench, report"),
    "explain": ("score", "score what matters in the network"),
    "plan": ("plan", "choose a weight format per layer, under a budget"),
    "compress": ("compress", "apply the plan; weight codes are final after it"),
    "export": ("export", "write the ONNX file with packed integer weights"),
    "compile": ("build", "lower, choose kernels, place memory, build the artifacts"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="xdeploy", description="Trained networks to small, fast, proven integer code.")
    parser.add_argument("--version", action="version", version=f"xdeploy {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON document on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress, no summary")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for verb, (until, text) in _VERBS.items():
        _add_stage(commands.add_parser(verb, help=text, description=text, parents=[common]), until)
    _add_tools(commands, common)
    return parser


def _add_stage(parser: argparse.ArgumentParser, until: str) -> None:
    parser.set_defaults(run=_run_stages, until=until)
    parser.add_argument(
        "model", nargs="?", help="package.module:factory, a .pt2 or a quantised .onnx; none: the bundled demo"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors for the factory's module")
    parser.add_argument(
        "--data", type=Path, metavar="DIR|ZIP|NPZ", help="training data: class folders, or npz with x and y"
    )
    parser.add_argument("--test-data", type=Path, metavar="DIR|ZIP|NPZ", help="test data; none: a held-out split")
    parser.add_argument("--target", action="append", metavar="NAME", help="a target, family or TOML file; repeatable")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="TOML file with options")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="use this (edited) plan.json instead of planning")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="run folder (default: out)"
    )
    for flag, (key, kind, text) in _FLAGS.items():
        parser.add_argument(flag, dest=key, type=kind, help=f"{text} [{key}]", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any recipe key, value in TOML")


def _add_tools(commands: Any, common: _Parser) -> None:
    def tool(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[common])
        parser.set_defaults(run=run)
        return parser

    bench = tool("bench", "run a built artifact again and measure it", _run_bench)
    bench.add_argument("artifact", type=Path, help="OUT/<target>")
    bench.add_argument("--via", help="host, unicorn or qemu (default: the target's own runner)")
    report = tool("report", "make the report of a run folder again", _run_report)
    report.add_argument("folder", type=Path, help="a run folder")
    run = tool("run", "run any inputs through a built artifact", _run_inputs)
    run.add_argument("artifact", type=Path, help="OUT/<target>")
    run.add_argument("--via", help="host, unicorn or qemu (default: the target's own runner)")
    run.add_argument("--inputs", type=Path, required=True, help=".npy: float as the model expects it, or int8 codes")
    run.add_argument("-o", "--output", type=Path, required=True, help=".npy for the output codes")
    check = tool("check", "can this model be deployed? lists every obstacle", _run_check)
    check.add_argument("model", help="package.module:factory, a .pt2 or a quantised .onnx")
    check.add_argument("--weights", type=Path)
    check.add_argument("--data", type=Path, help="data that tells the input shape, if the model does not")
    tool("targets", "list targets and families", _run_targets)
    ops = tool("ops", "the support matrix: operation, weight format, instruction set", _run_ops)
    ops.add_argument("--target", help="only what runs on this target")
    tool("doctor", "what is installed, what is missing, and how to mend it", _run_doctor)


def _recipe(args: argparse.Namespace) -> Any:
    import tomllib

    from xdeploy.recipe import load_recipe

    changes = {key: getattr(args, key) for key, _, _ in _FLAGS.values() if getattr(args, key) is not None}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set wants KEY=VALUE, got {item!r}")
        try:
            changes[key.strip()] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = value.strip()
    return load_recipe(args.recipe).with_options(changes)


def _run_stages(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.pipeline import run
    from xdeploy.request import Request

    request = Request(
        model=args.model, weights=args.weights, data=args.data, test_data=args.test_data, recipe=_recipe(args),
        targets=tuple(args.target or ("arm",)), output=args.output, plan=args.plan,
    )  # fmt: skip
    with Console(quiet=args.quiet or args.json) as console:
        result = run(request, until=args.until, progress=console)
    _emit(args, result.summary, console.finish(result))
    return 0


def _emit(args: argparse.Namespace, document: dict[str, Any], text: str | None) -> None:
    import json

    if args.json:
        print(json.dumps(document, indent=1, allow_nan=False))
    elif text and not args.quiet:
        print(text)


def _run_bench(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.pipeline import bench_artifact, describe

    with Console(quiet=args.quiet or args.json) as console:
        measurement = bench_artifact(args.artifact, args.via, progress=console)
    _emit(args, describe(measurement), None)
    if not args.json and not args.quiet:
        for key, value in measurement.quantities.items():
            if isinstance(value, dict) and "unit" in value:
                print(f"{key:14} {value['value']} {value['unit']} ({value['how']})")
        print(f"{'verdict':14} {measurement.verdict}" + (f": {measurement.reason}" if measurement.reason else ""))
    return 0 if measurement.verdict != "differs" else 6


def _run_report(args: argparse.Namespace) -> int:
    from xdeploy.pipeline import write_report

    report = write_report(args.folder)
    _emit(args, report, f"report: {(args.folder / 'report.html').resolve()}")
    return 0


def _run_inputs(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.pipeline import run_inputs

    with Console(quiet=args.quiet or args.json) as console:
        summary = run_inputs(args.artifact, args.via, args.inputs, args.output, progress=console)
    _emit(args, summary, f"{summary['inputs']} inputs through {summary['runner']}: output codes in {args.output}")
    return 0


def _run_check(args: argparse.Namespace) -> int:
    from xdeploy.pipeline import check

    rows = check(args.model, args.weights, args.data)
    text = "\n".join(f"{r['origin']:32} {r['kind']:12} {'x'.join(map(str, r['shape']))}" for r in rows)
    _emit(
        args, {"deployable": True, "layers": rows}, f"{text}\nok: all {len(rows)} layers are in the integer vocabulary"
    )
    return 0


def _run_targets(args: argparse.Namespace) -> int:
    from xdeploy.target import FAMILIES, load_target, target_names

    rows = [load_target(n) for n in target_names()]
    document = {"targets": {t.name: t.description for t in rows}, "families": {k: list(v) for k, v in FAMILIES.items()}}
    text = "\n".join(f"{t.name:14} {t.isa:12} {t.description}" for t in rows)
    families = "\n".join(f"{k:14} {'family':12} {', '.join(v)}" for k, v in FAMILIES.items())
    _emit(args, document, f"{text}\n{families}")
    return 0


def _run_ops(args: argparse.Namespace) -> int:
    from xdeploy.pipeline import support_matrix

    rows = support_matrix(args.target)
    text = "\n".join(f"{r['kernel']:36} {r['op']:12} {r['weights']:6} {r['isa']}" for r in rows)
    _emit(args, {"kernels": rows}, text)
    return 0


def _run_doctor(args: argparse.Namespace) -> int:
    from xdeploy.doctor import examine

    rows = examine()
    text = "\n".join(f"{'ok ' if r['ok'] else 'MISSING':8} {r['name']:22} {r['found'] or r['mend']}" for r in rows)
    _emit(args, {"checks": rows}, text)
    return 0 if all(r["ok"] or r["optional"] for r in rows) else 5


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `xdeploy` command; returns the exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        args = _parser().parse_args(argv)
        if args.command is None:
            _parser().print_help(sys.stderr)
            return 2
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except XdeployError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept and the next run goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except ModuleNotFoundError as error:
        if debug or not error.name or error.name.startswith("xdeploy"):
            raise
        print(f"error: {missing_package(error.name)}", file=sys.stderr)
        return ToolchainError.exit_code
    except Exception as error:
        if debug:
            raise
        print(
            f"internal error: {type(error).__name__}: {error}\nhint: run again with --debug and report it",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
