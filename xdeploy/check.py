"""`xdeploy check`: walks a model down the whole path without building it, and lists every obstacle at once.

A float model is captured, quantised with noise in place of data, exported and lowered; an already quantised file is
lowered as it is. For each target the kernels are chosen and the memory is placed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdeploy.errors import GateError, ModelError, Obstacle, UnsupportedError
from xdeploy.formats import FORMATS
from xdeploy.permission import external_data
from xdeploy.process.lock import scratch_folder
from xdeploy.recipe import Recipe
from xdeploy.request import Progress, Request, Silent, is_kept
from xdeploy.target import Target, resolve_targets

if TYPE_CHECKING:
    from xdeploy.lir.graph import LoweredGraph
    from xdeploy.model.network import Network

SCHEMA = "xdeploy.check/1"
_NOISE = 8  # samples in place of data


@dataclass(slots=True)
class _Findings:
    """What the walk has found so far."""

    model: str
    path: Path | None  # of an ONNX file
    obstacles: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    fallback: list[dict[str, Any]] = field(default_factory=list)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextlib.contextmanager
    def collecting(self, target: str | None = None) -> Iterator[None]:
        """Turn what is wrong with the model into obstacles."""
        try:
            yield
        except ModelError as error:
            found = error.obstacles if isinstance(error, UnsupportedError) else ()
            if found and self.path is not None:
                from xdeploy.lower.facts import completed

                found = completed(found, self.path)
            for o in found or (Obstacle(self.model, "", error.message, error.hint or ""),):
                self.add(o, target)

    def add(self, obstacle: Obstacle, target: str | None) -> None:
        """Note an obstacle; the place in the user's source that a front end writes behind the op joins the reason."""
        op, _, place = obstacle.op.partition(" (")
        reason = f"{obstacle.reason} ({place}" if place else obstacle.reason
        row = {**asdict(obstacle), "op": op, "reason": reason, "shape": list(obstacle.shape), "target": target}
        self.obstacles.append(row)


def check(
    model: str,
    weights: Path | None = None,
    data: Path | None = None,
    targets: tuple[str, ...] = (),
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Say whether a model can be deployed, and list all that stands in the way.

    Args:
        model: package.module:factory, a .pt2 or an .onnx.
        weights: safetensors for the factory's module.
        data: tells the input shape, if the model does not.
        targets: also: does every node have a kernel there, do weights and arena fit.
        recipe: its formats, form and fallback count.
        progress: told the stages.

    Returns:
        the document of `--json`: schema, model, kind ("float" or "quantised"), deployable, obstacles (node, op,
        attribute, shape, reason, rewrite, target), layers (origin, op, shape), fallback (node, ops, reason), targets.

    Raises:
        UsageError: the command is wrong rather than the model.
    """
    recipe, tell = recipe or Recipe(), progress or Silent()
    chosen = resolve_targets(list(targets))
    path = Path(model) if model.lower().endswith(".onnx") else None
    found = _Findings(model, path)
    kind = "float"
    with external_data(recipe.lower.external_data), found.collecting():
        quantised = is_kept(Request(model, recipe=recipe))
        kind = "quantised" if quantised else "float"
        graph = _quantised(found, path, recipe) if quantised and path else _float(found, weights, data, recipe, tell)
        for target in chosen:
            tell.stage(target.name)
            _target(found, graph, target, recipe, "" if quantised else _smallest(recipe))
    return {
        "schema": SCHEMA, "model": model, "kind": kind, "deployable": not found.obstacles,
        "obstacles": found.obstacles, "layers": found.layers, "fallback": found.fallback, "targets": found.targets,
    }  # fmt: skip


def _quantised(found: _Findings, path: Path, recipe: Recipe) -> LoweredGraph:
    from xdeploy.lower import Fallback, lower

    graph = lower(path, fallback=Fallback.of(recipe.lower, ()))
    for node in graph.nodes:
        if node.op == "float":
            row = {"node": node.name, "ops": list(node.attrs["ops"]), "reason": "allowed to run in float"}
            found.fallback.append(row)
    found.layers += [{"origin": n.name, "op": n.op, "shape": list(graph.tensors[n.output].shape)} for n in graph.nodes]
    return graph


def _float(
    found: _Findings, weights: Path | None, data: Path | None, recipe: Recipe, progress: Progress
) -> LoweredGraph:
    from xdeploy.kept import float_view_of
    from xdeploy.model.source import load_network

    progress.stage("read the model")
    model = float_view_of(Request(found.model, recipe=recipe)) if recipe.compress.further else found.model
    network, _ = load_network(model, weights, data, recipe.data, recipe.lower.fallback)
    found.layers += [{"origin": x.name, "op": x.kind, "shape": list(x.shape)} for x in network.layers]
    for layer in network.layers:
        if layer.kind == "fallback":
            row = {"node": layer.name, "ops": list(layer.attrs["ops"]), "reason": "allowed to run in float"}
            found.fallback.append(row)
    progress.stage("try the integer path")
    return _tried(network, recipe)


def _tried(network: Network, recipe: Recipe) -> LoweredGraph:
    """The integer graph, with noise in place of data and the smallest weight format in place of a plan."""
    import torch

    from xdeploy.compress.apply import quantise
    from xdeploy.export import export
    from xdeploy.handover import CompressionPlan, IoSpec, PlanLine
    from xdeploy.lower import Fallback, lower

    smallest = _smallest(recipe)
    parts = Fallback(tuple(x.name for x in network.layers if x.kind == "fallback"))
    plan = CompressionPlan(tuple(PlanLine(x.name, recipe.plan.fixed.get(x.name, smallest)) for x in network.weighted()))
    noise = np.random.default_rng(0).normal(size=(_NOISE, *network.input.shape)).astype(np.float32)
    io = IoSpec(network.input.name, network.input.shape, network.output.name, network.output.shape)
    done = quantise(network, plan, None, io, lambda: iter([torch.from_numpy(noise)]), recipe.compress)
    with scratch_folder("check") as folder:
        return lower(export(done, noise[:1], Path(folder)), fallback=parts)


def _smallest(recipe: Recipe) -> str:
    """The weight format with the fewest bits."""
    return min(recipe.plan.formats, key=lambda name: FORMATS[name].bits)


def _target(found: _Findings, graph: LoweredGraph, target: Target, recipe: Recipe, weights: str) -> None:
    from xdeploy.memory import ALIASES
    from xdeploy.program import bind, choose

    facts: list[str] = []
    found.targets[target.name] = row = {"deployable": False, "facts": facts}
    before = len(found.obstacles)
    for node in graph.nodes:
        if node.op not in ALIASES:
            with found.collecting(target.name):
                _chosen(choose, graph, node, target, recipe.package.form)
    if len(found.obstacles) > before:
        facts.append(f"{len(found.obstacles) - before} node(s) without a kernel")
        return
    try:
        program = bind(graph, target, "check", recipe.package.form, threads=recipe.build.threads)
    except GateError as error:
        found.add(Obstacle("(memory)", "", error.message, error.hint or ""), target.name)
        facts.append("does not fit")
        return
    note = f" with {weights} weights" if weights else ""
    row |= {"deployable": True, "weight_bytes": program.weight_bytes, "arena_bytes": program.arena}
    row |= {f"{k}_limit": v for k, v in program.memory.items()}
    for what, need, key in (("weights", program.weight_bytes, "flash"), ("arena", program.arena, "ram")):
        limit = f" of {program.memory[key]:,} ({key})" if key in program.memory else ""
        facts.append(f"{what} {need:,} bytes{limit}{note if what == 'weights' else ''}")


def _chosen(choose: Any, graph: LoweredGraph, node: Any, target: Target, form: str) -> None:
    """Choose a kernel; an error names the node as an obstacle.

    Raises:
        UnsupportedError: there is none.
    """
    try:
        choose(graph, node, target, form)
    except UnsupportedError as error:
        shape = graph.tensors[node.output].shape
        weights = f"weights={node.format.name}" if node.format else ""
        obstacle = Obstacle(node.name, node.op, error.message, error.hint or "", weights, shape)
        raise UnsupportedError(error.message, hint=error.hint, obstacles=(obstacle,)) from None
