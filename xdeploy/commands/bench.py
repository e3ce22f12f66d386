"""`xdeploy bench` and `xdeploy run`: what is built, executed here, in an emulator or on a board."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdeploy.commands.options import Parser
from xdeploy.commands.output import emit
from xdeploy.errors import UsageError

if TYPE_CHECKING:
    from xdeploy.bench.compare import CompareOptions
    from xdeploy.bench.power import PowerOptions
    from xdeploy.bench.runner import RunOptions
    from xdeploy.handover import Measurement

_VIA = (
    "host, unicorn, qemu, ssh://[user@]host[:port], serial:/dev/ttyX[@baud], rpc://host:port or "
    "tracker://host:port/kind (default: the target's own runner)"
)
_ALL = "all"
_OF_POWER = ("power_format", "gate", "idle", "inferences", "supply")
_OF_COMPARE = ("model", "rounds")
_OF_SSH = ("exec_with", "core", "ssh")
# unit -> factor and unit that people read
_READABLE = {"s": (1e6, "us"), "J": (1e6, "uJ"), "W": (1e3, "mW")}


def add(commands: Any, common: Parser) -> None:
    """Add the parsers."""
    text = "run a built artifact again and measure it"
    bench = commands.add_parser("bench", help=text, description=text, parents=[common])
    bench.set_defaults(run=_bench)
    _add_runner(bench)
    bench.add_argument("--repeats", type=int, default=20, metavar="N", help="timed repetitions (default: 20)")
    text = "write bench.json, which reports read, also with --via (without --via it is always written)"
    bench.add_argument("--save", action="store_true", help=text)
    _add_power(bench.add_argument_group("measured power", "energy per inference from a trace of the board's supply"))
    _add_compare(bench.add_argument_group("comparison", "other engines on this machine, in the same run"))
    text = "run any inputs through a built artifact"
    run = commands.add_parser("run", help=text, description=text, parents=[common])
    run.set_defaults(run=_inputs, repeats=1)
    _add_runner(run)
    run.add_argument("--inputs", type=Path, required=True, help=".npy: float as the model expects it, or int8 codes")
    run.add_argument("-o", "--output", type=Path, required=True, help=".npy for the output codes")


def _add_runner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="OUT/<target>")
    parser.add_argument("--via", help=_VIA)
    text = "rpc:// and tracker:// may go to another machine than this one, although its protocol has no protection"
    parser.add_argument("--allow-remote", action="store_true", help=text)
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds a call may take (600)")
    text = "ssh://: words before the program on the board, such as 'qemu-aarch64'"
    parser.add_argument("--exec-with", metavar="WORDS", help=text)
    parser.add_argument("--core", type=int, metavar="N", help="ssh://: CPU of the board (default: its fastest)")
    text = "ssh://: the ssh program and further options for it, such as 'ssh -i key'"
    parser.add_argument("--ssh", metavar="COMMAND", help=text)


def _add_power(group: Any) -> None:
    group.add_argument("--power", type=Path, metavar="TRACE", help="CSV, .jls or log of the instrument")
    text = "auto, csv, joulescope, ppk2 or lpm01a (default: auto)"
    group.add_argument("--power-format", metavar="FORMAT", help=text)
    text = (
        "what is high during inferences: a channel such as D0, or windows of seconds t0:t1[,t0:t1...] (default: auto)"
    )
    group.add_argument("--gate", metavar="CHANNEL|T0:T1", help=text)
    text = "idle power to subtract: auto (median outside of the gate, the default), none, or a power such as 1.2mW"
    group.add_argument("--idle", metavar="POWER", help=text)
    group.add_argument("--inferences", type=int, metavar="N", help="inferences in each gated part (default: 1)")
    group.add_argument("--supply", metavar="VOLTS", help="supply voltage, for traces of current alone, such as 1.8V")


def _add_compare(group: Any) -> None:
    text = "onnxruntime, openvino, ai-edge-litert, executorch, or some with commas between; stands after OUT/<target>"
    group.add_argument("--compare", nargs="?", const=_ALL, metavar="PEERS", help=text)
    text = "the ONNX file the peers read (default: the run's own)"
    group.add_argument("--model", type=Path, metavar="FILE", help=text)
    group.add_argument("--rounds", type=int, metavar="N", help="rounds in which all take a turn (default: 31)")


def _options(args: argparse.Namespace) -> RunOptions:
    from xdeploy.bench.runner import RunOptions

    given = [f for f in _OF_SSH if getattr(args, f) is not None]
    if given and not (args.via or "").startswith("ssh:"):
        raise UsageError(f"{_flag(given[0])} goes with --via ssh://...", hint=f"--via is {args.via or 'not given'}")
    _at_least("--repeats", args.repeats, 1)
    _at_least("--core", args.core, 0)
    if not 0 < args.timeout < float("inf"):
        raise UsageError(f"--timeout {args.timeout:g}: seconds above 0")
    return RunOptions(
        repeats=args.repeats, remote=args.allow_remote, timeout=args.timeout, wrapper=args.exec_with or "",
        core=args.core, ssh=args.ssh or "",
    )  # fmt: skip


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _at_least(flag: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"{flag} {value}: at least {least}")


def _only_with(args: argparse.Namespace, flags: tuple[str, ...], other: str) -> None:
    given = [f for f in flags if getattr(args, f) is not None]
    if given and getattr(args, other) is None:
        raise UsageError(f"{_flag(given[0])} goes with {_flag(other)}", hint=f"add {_flag(other)}, or leave it out")


def _power(args: argparse.Namespace) -> tuple[Path, PowerOptions] | None:
    """The trace and how it is to be read, None without --power."""
    _only_with(args, _OF_POWER, "power")
    if args.power is None:
        return None
    from xdeploy.bench.power import PowerOptions, si

    _at_least("--inferences", args.inferences, 1)
    supply = None if args.supply is None else si(args.supply, "voltage", "--supply 1.8V")
    if supply is not None and not 0.1 <= supply <= 100.0:
        raise UsageError(f"--supply {args.supply}: {supply:g} V is no supply of a board; 0.1 V to 100 V are")
    options = PowerOptions(
        args.power_format or "auto", args.gate or "auto", args.idle or "auto", args.inferences or 1, supply
    )
    return args.power, options


def _compare(args: argparse.Namespace) -> CompareOptions | None:
    """Which peers and how, None without --compare."""
    _only_with(args, _OF_COMPARE, "compare")
    if args.compare is None:
        return None
    from xdeploy.bench.compare import ROUNDS, CompareOptions, known_peers
    from xdeploy.bench.peers import PEERS

    if args.via not in (None, "host"):
        raise UsageError(f"--compare runs on this machine, not via {args.via}", hint="leave --via out")
    _at_least("--rounds", args.rounds, 3)
    names = tuple(PEERS) if args.compare == _ALL else known_peers([x for x in args.compare.split(",") if x])
    return CompareOptions(names, args.model, args.rounds or ROUNDS)


def _bench(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.pipeline import bench_artifact, describe

    power, compare, options = _power(args), _compare(args), _options(args)
    with Console(quiet=args.quiet or args.json) as console:
        measurement = bench_artifact(
            args.artifact, args.via, options, console, power=power, compare=compare, save=args.save
        )
    emit(args, describe(measurement), "\n".join(_lines(measurement)))
    return 0 if measurement.verdict != "differs" else 6


def _inputs(args: argparse.Namespace) -> int:
    from xdeploy.console import Console
    from xdeploy.pipeline import run_inputs

    with Console(quiet=args.quiet or args.json) as console:
        summary = run_inputs(args.artifact, args.via, args.inputs, args.output, _options(args), progress=console)
    emit(args, summary, f"{summary['inputs']} inputs through {summary['runner']}: output codes in {args.output}")
    return 0


def _lines(m: Measurement) -> list[str]:
    """The measurement as text: every quantity with its spread, the peers, what cannot be told, and the verdict."""
    rows = [(k, readable(v)) for k, v in m.quantities.items() if isinstance(v, dict) and "unit" in v]
    if "ratio_two_threads" in m.quantities:
        rows.append(("two threads", str(m.quantities["ratio_two_threads"].get("note", ""))))
    rows += [(name, _peer(row)) for name, row in m.quantities.get("peers", {}).items()]
    rows += [("power trace", x) for x in m.environment.get("power", {}).get("notes", ())]
    rows += [(f"no {what}", why) for what, why in m.tells.get("cannot", {}).items()]
    rows.append(("verdict", m.verdict + (f": {m.reason}" if m.reason else "")))
    width = max(len(k) for k, _ in rows) + 1
    return [f"{k:{width}} {text}" for k, text in rows]


def readable(q: Mapping[str, Any]) -> str:
    """A quantity as `135.7 us (measured; 120.1 to 150.2)`."""
    if q["value"] is None:
        return f"not known ({q['how']})"
    factor, unit = _READABLE.get(q["unit"], (1, q["unit"]))
    spread = f"; {_number(q['low'] * factor)} to {_number(q['high'] * factor)}" if "low" in q and "high" in q else ""
    return f"{_number(q['value'] * factor)}{'' if unit == '1' else f' {unit}'} ({q['how']}{spread})"


def _number(value: float) -> str:
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _peer(row: Mapping[str, Any]) -> str:
    if "reason" in row:
        return str(row["reason"])
    apart = row["max_difference"]["value"]
    return (
        f"ours/peer {readable(row['ratio'])}; it took {readable(row['latency'])}; version {row['version']}, "
        f"{row['configuration']}; top-1 agrees in {row['top1']['value']:.0%} of {row['top1']['n']}, "
        f"at most {apart} code(s) apart"
    )
