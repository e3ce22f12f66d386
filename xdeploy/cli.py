"""The command line: `xdeploy build` and one subcommand per stage. Data goes to stdout, logs to stderr.

Exit codes: 0 ok, 1 internal, 2 usage, 3 model unsupported, 4 budget or accuracy gate, 5 toolchain missing,
6 device failed, 130 and 143 signals.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from xdeploy import __version__
from xdeploy.commands import bench, coding, examine, stages, tools
from xdeploy.commands.options import Parser
from xdeploy.doctor import missing_package
from xdeploy.errors import ToolchainError, XdeployError


def _parser() -> Parser:
    parser = Parser(prog="xdeploy", description="Trained networks to small, fast, proven integer code.")
    parser.add_argument("--version", action="version", version=f"xdeploy {__version__}")
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON document on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress, no summary")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for module in (stages, examine, bench, coding, tools):
        module.add(commands, common)
    return parser


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
