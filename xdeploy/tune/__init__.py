"""tune: LoweredGraph -> Choice. Kernels chosen by what they cost when they run, not by what a formula says.

Every row that competes for a node is compiled with the node's real constants, run by the target's own runner (or timed,
where the target is this machine's kind), compared with the reference bit for bit, and counted. What was measured is
kept in the user's cache folder, so that a second run, or one after a kill, goes on where the first ended; figures of
the zoo's layers on emulated targets ship with the package (`pretuned`) and are not measured at all.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from xdeploy.bench.qemu import PROGRAM
from xdeploy.errors import DeviceError, ToolchainError, UsageError
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import Choice, choose, limits_of
from xdeploy.recipe import TuneOptions
from xdeploy.target import Target
from xdeploy.tune.arena import arena_of
from xdeploy.tune.cache import Cache
from xdeploy.tune.candidates import Candidate, candidates
from xdeploy.tune.choose import Option, best, flash_of
from xdeploy.tune.jobs import Figures, Job
from xdeploy.tune.pretuned import Pretuned, pretuned
from xdeploy.tune.worker import PROCESS_JOBS, batches, measure_all

__all__ = ["count", "tune"]

_FIGURES = ("instructions", "cycles", "nanoseconds")
Tell = Callable[[str, int, int], None]
EXECUTOR_BYTES, CALL_BYTES, ARGUMENT_BYTES = 96, 16, 5  # of code: the executor, and of each call in it


def tune(
    graph: LoweredGraph,
    target: Target,
    options: TuneOptions,
    form: str = "tuned",
    progress: Tell | None = None,
    cache: Cache | None = None,
    processes: int | None = None,
) -> Choice:
    """Measure the rows that compete and choose.

    Args:
        graph: a verified graph.
        target: whose rows, runner, tables and memory.
        options: effort ("off" measures nothing), objective and limits.
        form: "tuned" or "portable".
        progress: told "tuning", done, total.
        cache: of figures; None: the user's, and behind it what ships with the package.
        processes: that measure at a time, 1: this one; None: as many as the work and this machine's cores are worth.

    Returns:
        What `bind` takes.

    Raises:
        UsageError: the target has no runner, or no cycle table where cycles are the objective. ToolchainError: its
        runner is not installed. DeviceError: no row of a node is right. GateError: no choice fits flash and RAM.
    """
    own = {k: v for k, v in (("flash", options.flash), ("ram", options.ram)) if v is not None}
    if options.effort == "off":
        return Choice({}, own)
    _check(target, options)
    table = candidates(graph, target, form, options.effort)
    jobs = {c.job.key: c.job for competing in table.values() for c in competing}
    figures = _measure(jobs, target, cache, progress or (lambda *_: None), processes)
    unit = _unit(target, options)
    ranked = {n: _options(n, competing, figures, unit) for n, competing in table.items()}
    limits = limits_of(target, own)
    room = None if "flash" not in limits else limits["flash"] - EXECUTOR_BYTES
    memory = arena_of(graph, {n.name: choose(graph, n, target, form) for n in graph.nodes if n.op == "float"}, target)
    chosen = best(ranked, "flash" if options.objective == "flash" else "value", room, limits.get("ram"), memory)
    notes = _notes(options, unit, limits, table, figures, ranked, chosen)
    return Choice({n: o.row.name for n, o in chosen.items()}, own, notes)


def count(
    graph: LoweredGraph,
    target: Target,
    effort: str = "off",
    form: str = "tuned",
    progress: Tell | None = None,
    cache: Cache | None = None,
    processes: int | None = None,
) -> dict[str, int]:
    """Node -> instructions of one inference, executed on the emulated target; nodes without code are left out.

    Args:
        graph: a verified graph.
        target: whose rows and runner.
        effort: "off": of the row that formulas choose; "quick" and "full": of the best row that tuning measures.
        form: "tuned" or "portable".
        progress: told "count instructions", done, total.
        cache: of figures; None: the user's, and behind it what ships with the package.
        processes: as `tune` takes it.

    Raises:
        UsageError: the target's instructions cannot be counted. ToolchainError: its runner is not installed.
        DeviceError: no row of a node is right. UnsupportedError: a node has no row.
    """
    if target.kind == "host":
        raise UsageError(f"instructions cannot be counted on {target.name}", hint="give an emulated target")
    _check(target, TuneOptions())
    table = candidates(graph, target, form, effort)
    jobs = {c.job.key: c.job for competing in table.values() for c in competing}
    tell = progress or (lambda *_: None)
    figures = _measure(jobs, target, cache, lambda _, k, n: tell("count instructions", k, n), processes)
    return {
        n: round(min(o.value for o in _options(n, competing, figures, "instructions")))
        for n, competing in table.items()
    }


def _check(target: Target, options: TuneOptions) -> None:
    """Refuse what cannot be measured before anything is."""
    emulator = target.runner.get("emulator", "none")
    if target.kind != "host" and emulator == "none":
        raise UsageError(f"{target.name} has no runner to measure kernels with", hint="build it with --tune off")
    if emulator == "qemu" and shutil.which(PROGRAM) is None:
        raise ToolchainError(f"{target.name} cannot be tuned: {PROGRAM} is not installed",
                             hint="apt-get install qemu-system-arm, or build it with --tune off")  # fmt: skip
    if options.objective == "cycles" and target.kind != "host" and not target.cycles:
        raise UsageError(f"{target.name} has no table of cycles", hint="tune for instructions")


def _unit(target: Target, options: TuneOptions) -> str:
    """The figure that is made small; the second aim where flash is the first."""
    if target.kind == "host":
        return "nanoseconds"
    return "cycles" if options.objective == "cycles" else "instructions"


def _measure(
    jobs: Mapping[str, Job], target: Target, own: Cache | None, tell: Tell, processes: int | None
) -> dict[str, Figures]:
    """Figures by key: those in the cache, then those that ship, then those that have to be measured."""
    cache, more = (Cache(), pretuned()) if own is None else (own, Pretuned())
    found = {key: known for key, job in jobs.items() if (known := cache.get(key) or more.get(job.work)) is not None}
    missing = [job for key, job in jobs.items() if key not in found]
    tell("tuning", len(found), len(jobs))
    cores = 1 if target.kind == "host" else os.cpu_count() or 1
    count = processes or max(1, min(cores, -(-len(missing) // PROCESS_JOBS)))
    cut = batches(missing, count)
    for index, measured in measure_all(cut, target, count):
        for job, one in zip(cut[index], measured, strict=True):
            found[job.key] = one
            if one.sound:  # what went wrong is tried again: it may have been the machine
                cache.put(job.key, job.kernel, one)
        tell("tuning", len(found), len(jobs))
    return found


def _options(node: str, competing: list[Candidate], figures: Mapping[str, Figures], unit: str) -> list[Option]:
    """The sound rows of a node.

    Raises:
        DeviceError: there is none.
    """
    options = []
    for c in competing:
        one = figures[c.job.key]
        if one.sound:
            options.append(Option(c.row, float(getattr(one, unit)), _parts(node, c, one), one))
        else:
            warnings.warn(f"{node}: {c.row.name} is refused: {_reason(one)}", RuntimeWarning, stacklevel=3)
    if not options:
        told = "; ".join(f"{c.row.name}: {_reason(figures[c.job.key])}" for c in competing)
        raise DeviceError(f"{node}: no kernel can be used: {told}", hint="build with --tune off and report this")
    return options


def _parts(node: str, candidate: Candidate, one: Figures) -> dict[str, int]:
    """What a row adds to the flash: its code, helpers and constants, which others may share, and its call."""
    call = CALL_BYTES + ARGUMENT_BYTES * len(candidate.job.code.args)
    return {
        candidate.function: one.code,
        **one.helpers,
        **candidate.parts,
        f"call of {candidate.row.name} by {node}": call,
    }


def _reason(one: Figures) -> str:
    return one.failure or f"{one.differing} of its output codes differ from the reference"


def _notes(
    options: TuneOptions,
    unit: str,
    limits: Mapping[str, int],
    table: Mapping[str, list[Candidate]],
    figures: Mapping[str, Figures],
    ranked: Mapping[str, list[Option]],
    chosen: Mapping[str, Option],
) -> dict[str, Any]:
    """Content of `tuned` in program.json."""
    by_formula = {n: _usual(competing, ranked[n]) for n, competing in table.items()}
    return {
        "effort": options.effort, "objective": options.objective, "unit": unit,
        "how": "measured" if unit == "nanoseconds" else "modelled" if unit == "cycles" else "emulated",
        "limits": dict(limits),
        "total": {"by_formula": _total(by_formula), "chosen": _total(chosen),
                  "note": "sums over the nodes; flash by estimate"},
        "nodes": {
            n: {"chosen": chosen[n].row.name, "why": _why(chosen[n], ranked[n], unit),
                "candidates": [_told(c, figures[c.job.key]) for c in competing]}
            for n, competing in table.items()
        },
    }  # fmt: skip


def _usual(competing: list[Candidate], options: list[Option]) -> Option:
    """What formulas choose, or the first sound row where that one is refused."""
    name = next((c.row.name for c in competing if not c.extra), "")
    return next((o for o in options if o.row.name == name), options[0])


def _total(chosen: Mapping[str, Option]) -> dict[str, Any]:
    return {"value": round(sum(o.value for o in chosen.values())), "flash": flash_of(chosen)}


def _why(taken: Option, options: list[Option], unit: str) -> str:
    first = min(o.value for o in options)
    if len(options) == 1:
        return "the only row that competes"
    if taken.value <= first:
        return f"fewest {unit} of {len(options)}"
    return f"{taken.value - first:.0f} {unit} more than the fewest, for flash or RAM"


def _told(candidate: Candidate, one: Figures) -> dict[str, Any]:
    sizes = {
        "code": one.code, "helpers": sum(one.helpers.values()),
        "constants": sum(c.nbytes for c in candidate.job.constants.values()),
    }  # fmt: skip
    told = {
        "name": candidate.row.name, "estimated_instructions": round(candidate.cost),
        **{k: getattr(one, k) for k in _FIGURES}, **sizes, "bytes": sum(sizes.values()),
        "workspace": candidate.job.workspace,
    }  # fmt: skip
    return told if one.sound else {**told, "refused": _reason(one)}
