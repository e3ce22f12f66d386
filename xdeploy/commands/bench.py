"""`xdeploy bench` and `xdeploy run`: what is built, executed here, in an emulator or on a board."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdeploy.commands.options import Parser
from xdeploy.commands.output import emit

if TYPE_CHECKING:
    from xdeploy.bench.runner import RunOptions

_VIA = (
    "host, unicorn, qemu, ssh://[user@]host[:port], serial:/dev/ttyX[@baud] or rpc://host:port "
    "(default: the target's own runner)"
)


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""
    text = "run a built artifact again and measure it"
    bench = commands.add_parser("bench", help=text, description=text, parents=[common])
    bench.set_defaults(run=_bench)
    _add_runner(bench)
    bench.add_argument("--repeats", type=int, default=20, metavar="N", help="timed repetitions (default: 20)")
    text = "run any inputs through a built artifact"
    run = commands.add_parser("run", help=text, description=text, parents=[common])
    run.set_defaults(run=_inputs, repeats=1)
    _add_runner(run)
    run.add_argument("--inputs", type=Path, required=True, help=".npy: float as the model expects it, or int8 codes")
    run.add_argument("-o", "--output", type=Path, required=True, help=".npy for the output codes")


def _add_runner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="OUT/<target>")
    parser.add_argument("--via", help=_VIA)
    text = "rpc:// may go to another machine than this one, although its protocol has no protection"
    parser.add_argument("--allow-remote", action="store_true", help=text)


def _options(args: argparse.Namespace) -> RunOptions:
    from xdeploy.bench.runner import RunOptions

    return RunOptions(repeats=args.repeats, remote=args.allow_remote)


def _bench(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.pipeline import bench_artifact, describe

    with Console(quiet=args.quiet or args.json) as console:
        measurement = bench_artifact(args.artifact, args.via, _options(args), progress=console)
    numbers = {k: v for k, v in measurement.quantities.items() if isinstance(v, dict) and "unit" in v}
    lines = [f"{key:14} {value['value']} {value['unit']} ({value['how']})" for key, value in numbers.items()]
    reason = f": {measurement.reason}" if measurement.reason else ""
    emit(args, describe(measurement), "\n".join([*lines, f"{'verdict':14} {measurement.verdict}{reason}"]))
    return 0 if measurement.verdict != "differs" else 6


def _inputs(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.pipeline import run_inputs

    with Console(quiet=args.quiet or args.json) as console:
        summary = run_inputs(args.artifact, args.via, args.inputs, args.output, _options(args), progress=console)
    emit(args, summary, f"{summary['inputs']} inputs through {summary['runner']}: output codes in {args.output}")
    return 0
