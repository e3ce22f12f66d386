"""`xdeploy build --dry-run`: the plan, the sizes that it will have on each target, and how long the build will take.

It runs the stages up to the plan (of a quantised file: its lowering) in the run folder, where a build goes on from
them; a finished run there stays as it is, since nothing is committed. Sizes are those of the network lowered under the
plan, with kernels chosen and memory placed as the build will; nothing is compiled or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xdeploy.files import read_json
from xdeploy.forecast.estimate import forecast
from xdeploy.handover import CompressionPlan, quantity
from xdeploy.pipeline import opened
from xdeploy.request import Progress, Request
from xdeploy.target import Target

if TYPE_CHECKING:
    from xdeploy.lir.graph import LoweredGraph
    from xdeploy.stages import Stages

SCHEMA = "xdeploy.dryrun/1"
_FLASH = "packed weights and constants, without the code of the kernels"


def dry_run(request: Request, until: str = "report", progress: Progress | None = None) -> dict[str, Any]:
    """What a build would do.

    Args:
        request: as for `pipeline.run`.
        until: the stage that the build would end with.
        progress: told about the work.

    Returns:
        `schema`, `folder`, `done` (stages a build goes on from), `model`, `layers` (origin, weight_format,
        channels_before, channels_after, density, bytes, reason), `weights` (packed_bytes, coded_bytes), `targets`
        (name: flash, ram, instructions), `seconds` (total, stages; `runs` noted on this machine per stage).

    Raises:
        GateError: a budget cannot be met; any other error that the build would end with so far.
    """
    with opened(request, progress) as stages:
        stages.run("lower" if stages.quantised else "plan")
        graph = stages.graph if stages.quantised else _planned(stages)
        sizes = {x.name: _target(stages, graph, x) for x in stages.targets}
        expected = forecast(stages, until)
        source = read_json(stages.folder / "source.json", "xdeploy.source/1")
        return {
            "schema": SCHEMA, "folder": str(request.output), "done": [n for n, x in expected.items() if not x.seconds],
            "model": source["model"], "layers": _layers(stages, graph), "weights": _weights(graph), "targets": sizes,
            "seconds": {
                "total": quantity(round(sum(x.seconds for x in expected.values()), 1), "s", "modelled"),
                "stages": {name: round(x.seconds, 1) for name, x in expected.items()},
                "runs": {name: x.runs for name, x in expected.items() if x.seconds},
            },
        }  # fmt: skip


def _planned(stages: Stages) -> LoweredGraph:
    """The network lowered under its plan, with the nearest codes."""
    from xdeploy.lower import Fallback
    from xdeploy.model.groups import prune
    from xdeploy.model.removal import cut_relevance
    from xdeploy.trial.lowered import SAMPLES, Lowering

    s, o = stages.source, stages.recipe
    plan = CompressionPlan.load(stages.folder / "plan.json")
    limit = min(o.data.calibration, SAMPLES)
    lowering = Lowering(
        s.network, s.io, lambda: (x for x, _ in s.train_batches(64, limit=limit)), o.compress,
        Fallback.of(o.lower, stages.targets),
    )  # fmt: skip
    keep = {line.origin: line.keep for line in plan.layers if line.keep is not None}
    network, relevance = s.network, stages.relevance
    if keep:
        network, relevance = prune(s.network, keep), cut_relevance(s.network, stages.relevance, keep)
    return lowering.graph(network, plan, relevance)


def _target(stages: Stages, graph: LoweredGraph, target: Target) -> dict[str, Any]:
    """What the program of a target takes; GateError where it does not fit."""
    from xdeploy.memory.streaming import fit_memory
    from xdeploy.program import bind, choose

    o, form = stages.recipe, stages.recipe.package.form
    graph = fit_memory(graph, target, o.build.stream, (o.plan.ram, o.tune.ram), lambda g, n: choose(g, n, target, form))
    program = bind(graph, target, "dryrun", form, threads=o.build.threads)
    note = f"{_FLASH}: {len(program.functions)} functions"
    return {
        "flash": quantity(program.weight_bytes, "byte", "modelled", note=note),
        "ram": quantity(program.arena, "byte", "modelled", note="arena, without static variables and stack"),
        "instructions": _instructions(stages, graph, target, sum(c.cost for c in program.calls)),
    }


def _instructions(stages: Stages, graph: LoweredGraph, target: Target, cost: float) -> dict[str, Any] | None:
    """Counted where the plan has counted them for its budget; else by the kernels' formulas, which know firmware."""
    if stages.recipe.plan.instructions is not None and target == stages.targets[0] and target.kind != "host":
        from xdeploy.tune import count

        found = count(graph, target, stages.recipe.tune.effort, stages.recipe.package.form, stages.progress)
        return quantity(sum(found.values()), "instruction", "emulated", note="sum of the nodes, each run alone")
    if target.kind != "firmware":
        return None
    return quantity(round(cost), "instruction", "modelled", note="by the kernels' cost formulas")


def _weights(graph: LoweredGraph) -> dict[str, Any]:
    from xdeploy.plan.cost import coded_bytes

    nodes = [n for n in graph.nodes if n.format]
    coded = sum(coded_bytes(n.consts["codes"], n.format) for n in nodes if n.format)
    return {
        "packed_bytes": quantity(sum(_bytes(n) for n in nodes), "byte", "modelled", note="codes, codebooks and biases"),
        "coded_bytes": quantity(coded, "byte", "modelled", note="zero-order entropy of the codes"),
    }


def _bytes(node: Any) -> int:
    """Of a layer's packed codes, entries of its codebook, multipliers and biases."""
    from xdeploy.plan.cost import layer_bytes

    return layer_bytes(node.consts["codes"].shape, node.format)


def _layers(stages: Stages, graph: LoweredGraph) -> list[dict[str, Any]]:
    from xdeploy.lir.rows import origin

    nodes = {origin(n.name): n for n in graph.nodes if n.format}
    if stages.quantised:
        return [_layer(name, n, len(n.consts["codes"]), None, "as in the file") for name, n in nodes.items()]
    plan = CompressionPlan.load(stages.folder / "plan.json")
    before = {x.name: len(stages.source.network.params[x.name]["weight"]) for x in stages.source.network.weighted()}
    return [
        _layer(x.origin, nodes.get(x.origin), before[x.origin], x.density, x.reason, x.weight_format)
        for x in plan.layers
    ]


def _layer(name: str, node: Any, channels: int, density: float | None, reason: str, fmt: str = "") -> dict[str, Any]:
    after = channels if node is None else len(node.consts["codes"])
    return {
        "origin": name, "weight_format": fmt or node.format.name, "channels_before": channels, "channels_after": after,
        "density": density, "bytes": None if node is None else _bytes(node), "reason": reason,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- as text
def describe(document: Mapping[str, Any]) -> str:
    """The document as plain text."""
    rows = [("layer", "weights", "channels", "not zero", "bytes"), *map(_row, document["layers"])]
    packed, coded = (document["weights"][k]["value"] for k in ("packed_bytes", "coded_bytes"))
    seconds = document["seconds"]
    unknown = [name for name, runs in seconds["runs"].items() if not runs]
    lines = [*_columns(rows), "", f"weights: {packed:,} bytes packed, {coded:,} entropy-coded (modelled)", ""]
    lines += _columns([("target", "weights, B", "RAM, B", "instructions"), *map(_sizes, document["targets"].items())])
    lines += ["modelled; the code of the kernels comes on top", ""]
    lines.append(f"a build in {document['folder']} takes about {seconds['total']['value']:.0f} s from here on")
    lines.append("  " + ", ".join(f"{name} {value:.0f}" for name, value in seconds["stages"].items() if value))
    if unknown:
        lines.append(f"  an estimate: this machine has no earlier run of {', '.join(unknown)}")
    lines.append(f"done already: {', '.join(document['done']) or 'nothing'}")
    return "\n".join(lines)


def _row(x: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = x["channels_before"], x["channels_after"]
    channels = str(after) if before == after else f"{before} -> {after}"
    share = "-" if x["density"] is None else f"{x['density']:.1%}"
    return x["origin"], x["weight_format"], channels, share, "-" if x["bytes"] is None else f"{x['bytes']:,}"


def _sizes(item: tuple[str, Mapping[str, Any]]) -> tuple[str, ...]:
    name, t = item
    count = t["instructions"]
    told = "-" if count is None else f"{count['value']:,}{'' if count['how'] == 'modelled' else ' ' + count['how']}"
    return name, f"{t['flash']['value']:,}", f"{t['ram']['value']:,}", told


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]) for r in rows
    ]
