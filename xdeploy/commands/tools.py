"""The commands that work on what is built, and those that inform."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdeploy.commands.options import Parser
from xdeploy.commands.output import columns, emit
from xdeploy.errors import ToolchainError


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""

    def tool(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[common])
        parser.set_defaults(run=run)
        return parser

    report = tool("report", "make the report of a run folder again", _report)
    report.add_argument("folder", type=Path, help="a run folder")
    tool("targets", "list targets and families", _targets)
    ops = tool("ops", "the support matrix: operation, weight format, instruction set, constraints", _ops)
    ops.add_argument("--target", metavar="NAME", help="only what runs on this target")
    ops.add_argument("--markdown", action="store_true", help="the matrix as Markdown, as it stands in the README")
    tool("doctor", "what is installed, what is missing, and how to mend it", _doctor)


def _report(args: argparse.Namespace) -> int:
    from xdeploy.pipeline import write_report

    report = write_report(args.folder)
    emit(args, report, f"report: {(args.folder / 'report.html').resolve()}")
    return 0


def _targets(args: argparse.Namespace) -> int:
    from xdeploy.target import FAMILIES, load_target, target_names

    rows = [load_target(n) for n in target_names()]
    document = {"targets": {t.name: t.description for t in rows}, "families": {k: list(v) for k, v in FAMILIES.items()}}
    lines: list[tuple[str, ...]] = [(t.name, t.isa, t.description) for t in rows]
    lines += [(k, "family", ", ".join(v)) for k, v in FAMILIES.items()]
    emit(args, document, columns(lines))
    return 0


def _ops(args: argparse.Namespace) -> int:
    from xdeploy.matrix import markdown, support

    document = support(args.target)
    if args.markdown:
        emit(args, document, markdown(document).rstrip("\n"))
        return 0
    rows = [(r["op"], r["weights"], r["isa"], r["kernel"], r["constraints"]) for r in document["kernels"]]
    text = columns([("op", "weights", "ISA", "kernel", "constraints"), *rows])
    words = (f"{k.replace('_', ' ')}: {', '.join(v)}" for k, v in document["onnx"].items())
    emit(args, document, "\n".join([text, "", *words]))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from xdeploy.doctor import describe, examine, is_ready

    rows = examine()
    emit(args, {"schema": "xdeploy.doctor/1", "checks": [r.to_dict() for r in rows]}, describe(rows))
    return 0 if is_ready(rows) else ToolchainError.exit_code
