"""`xdeploy init` (a recipe to begin with) and `xdeploy completion` (of words that the shell is to know)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xdeploy.commands.options import SWITCHES, Parser, add_model
from xdeploy.commands.output import emit, say, write_file
from xdeploy.errors import ToolchainError, UsageError

SHELLS = ("bash", "zsh", "fish")
_INSTALL = """\
bash: xdeploy completion bash > ~/.local/share/bash-completion/completions/xdeploy
zsh:  xdeploy completion zsh > DIR/_xdeploy, DIR being in $fpath
fish: xdeploy completion fish > ~/.config/fish/completions/xdeploy.fish
"""


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""
    text = "write a recipe for a model: every option with its default, meaning and values, and suggestions"
    init = commands.add_parser("init", help=text, description=text, parents=[common])
    init.set_defaults(run=_init)
    add_model(init, optional=True)
    init.add_argument("--data", type=Path, metavar="DIR|ZIP|NPZ", help="tells the input shape, if the model does not")
    init.add_argument("--target", action="append", metavar="NAME", help="budgets are suggested for it; repeatable")
    init.add_argument(
        "-o", "--output", type=Path, default=Path("recipe.toml"), metavar="FILE", help="default: recipe.toml"
    )
    flag = "--allow-external-data"
    init.add_argument(flag, action="store_true", help=SWITCHES[flag][1])
    init.add_argument("--force", action="store_true", help="replace the file if it is there")
    text = "print what lets a shell complete this command"
    completion = commands.add_parser(
        "completion", help=text, description=text, epilog=_INSTALL, parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    completion.set_defaults(run=_completion)
    completion.add_argument("shell", choices=SHELLS)


def _init(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.force:
        raise UsageError(f"{args.output} is there already", hint="give --force to replace it, or another file with -o")
    from xdeploy.beginning.begin import begin

    made = begin(args.model, args.weights, args.data, tuple(args.target or ()), args.output, args.allow_external_data)
    write_file(args.output, made.text)
    document = {"schema": "xdeploy.init/1", "recipe": str(args.output), "command": made.command, "model": made.found}
    emit(args, document, f"{args.output} is written; go on with\n  {made.command}")
    return 0


def _completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise ToolchainError("the Python package 'shtab' is not installed", hint="pip install shtab") from None
    from xdeploy.cli import parser
    from xdeploy.commands.completing import mark

    text = shtab.complete(mark(parser()), args.shell)
    if args.json:
        emit(args, {"schema": "xdeploy.completion/1", "shell": args.shell, "script": text}, None)
    else:
        say(text)
    return 0
