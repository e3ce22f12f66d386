"""The command line: `xdeploy build` and one subcommand per stage. Data goes to stdout, logs to stderr.

Exit codes: 0 ok, 1 internal, 2 usage, 3 model unsupported, 4 budget or accuracy gate, 5 toolchain missing,
6 device failed, 130 and 143 signals.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from xdeploy import __version__
from xdeploy.commands import bench, coding, examine, setting, stages, sweep, tools
from xdeploy.commands.options import Parser
from xdeploy.errors import XdeployError
from xdeploy.process.interrupt import MESSAGE, Guard, open_standard_files


def parser() -> Parser:
    """The whole command line; building it loads none of what the commands need."""
    top = Parser(prog="xdeploy", description="Trained networks to small, fast, proven integer code.")
    top.add_argument("--version", action="version", version=f"xdeploy {__version__}")
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON document on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress, no summary")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for module in (stages, sweep, setting, examine, bench, coding, tools):
        module.add(commands, common)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `xdeploy` command; returns the exit code.

    Args:
        argv: the words after the program's name; None: the process's own, whose signals are then watched too.
    """
    guard = None
    if argv is None:
        open_standard_files()
        guard = Guard()
        # threads that wait for each other sleep instead of spinning: on a busy machine torch is ten times faster so;
        # OpenMP reads it when torch is loaded
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return 130
    except Exception as error:
        if guard is not None and guard.received is not None:  # what the end of its children led to
            print(MESSAGE, file=sys.stderr)
            return 128 + guard.received
        if debug:
            raise
        return _explain(error)


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.command is None:
        parser().print_help(sys.stderr)
        return 2
    code: int = args.run(args)
    return code


def _explain(error: Exception) -> int:
    """Say on stderr what went wrong; the exit code."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("xdeploy"):
        from xdeploy.doctor import missing_package

        error = missing_package(error.name)
    if isinstance(error, XdeployError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    told = f"internal error: {type(error).__name__}: {error} ({_place(error)})"
    print(f"{told}\nhint: run again with --debug and report it", file=sys.stderr)
    return 1


def _place(error: Exception) -> str:
    """The innermost line of ours that led to it, which is what a report of it needs first."""
    import traceback

    package = Path(__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [x for x in frames if Path(x.filename).is_relative_to(package)]
    frame = (ours or frames)[-1]
    name = Path(frame.filename)
    return f"{name.relative_to(package.parent) if ours else name.name}, line {frame.lineno}"


if __name__ == "__main__":
    sys.exit(main())
