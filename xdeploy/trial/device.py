"""The planner's device: arena and instructions of a network under a plan, on the targets that were asked for."""

from __future__ import annotations

from collections.abc import Sequence

from xdeploy.errors import PlanError
from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lir.rows import origin
from xdeploy.memory import Storage
from xdeploy.memory.streaming import Streaming, fit_memory
from xdeploy.model.network import Network
from xdeploy.plan.device import OTHERS, Arena
from xdeploy.program import arrange, choose
from xdeploy.recipe import Recipe
from xdeploy.request import Progress
from xdeploy.target import Target
from xdeploy.trial.lowered import Lowering
from xdeploy.tune import count


class TargetDevice:
    """Answers of the targets; see `xdeploy.plan.device.Device`."""

    def __init__(self, lowering: Lowering, targets: Sequence[Target], recipe: Recipe, progress: Progress) -> None:
        self.lowering, self.targets, self.recipe, self.progress = lowering, targets, recipe, progress

    def arena(self, network: Network, plan: CompressionPlan, relevance: RelevanceMap | None, ram: int) -> Arena:
        """The largest arena over the targets."""
        graph = self.lowering.graph(network, plan, relevance)
        found = [self._arena(graph, network, target, ram) for target in self.targets]
        return max(found, key=lambda a: a.size)

    def _arena(self, graph: LoweredGraph, network: Network, target: Target, ram: int) -> Arena:
        graph = self._streamed(graph, target, ram)
        storage, form = Storage(graph, target.align), self.recipe.package.form
        rows = {n.name: choose(graph, n, target, form) for n in graph.nodes if n.name not in storage.aliases}
        placed = arrange(graph, storage, rows)
        live = [0] * (len(graph.nodes) + 1)
        for b in placed.buffers:
            for step in range(b.first, b.last + 1):
                live[step] += -(-b.size // target.align) * target.align
        needs: dict[str, int] = {}
        for step, node in enumerate(graph.nodes):
            layer = origin(node.name)
            needs[layer] = max(needs.get(layer, 0), live[step])
        at = max(range(len(graph.nodes)), key=lambda step: live[step])
        names = {x.name for x in network.layers}
        held = (t for t, steps in storage.steps.items() if steps and min(steps) <= at <= max(steps))
        peak = dict.fromkeys(origin(t) for t in held if placed.places[t].kind == "arena" and origin(t) in names)
        node = graph.nodes[at]
        scratch = rows[node.name].workspace(graph, node) if node.name in rows else 0
        return Arena(placed.layout.arena, needs, origin(node.name), tuple(peak), scratch, target.name)

    def _streamed(self, graph: LoweredGraph, target: Target, ram: int) -> LoweredGraph:
        """As the build would; where nothing fits, the nearest."""
        option, form = self.recipe.build.stream, self.recipe.package.form
        if option != "auto":
            return fit_memory(graph, target, option, [ram], lambda g, n: choose(g, n, target, form))
        search = Streaming(
            graph, target.align, lambda g, n: choose(g, n, target, form), lambda g, n, r: float(r.cost(g, n, target))
        )
        return search.nearest(min(ram, int(target.memory.get("ram", ram)))).graph

    def instructions(self, network: Network, plan: CompressionPlan, relevance: RelevanceMap | None) -> dict[str, int]:
        """Counted on the first target that is emulated, every layer shape and format once."""
        target = next((t for t in self.targets if t.kind != "host" and t.runner.get("emulator") != "none"), None)
        if target is None:
            raise PlanError(
                f"plan.instructions: they cannot be counted on {', '.join(t.name for t in self.targets)}",
                hint="give an emulated target such as --target cortex-m4, or plan.instruction_table",
            )
        if any(x.kind == "fallback" for x in network.layers):
            raise PlanError("plan.instructions: parts in float are not counted", hint="leave plan.instructions out")
        o, form = self.recipe, self.recipe.package.form
        graph = fit_memory(
            self.lowering.graph(network, plan, relevance), target, o.build.stream, (o.plan.ram, o.tune.ram),
            lambda g, n: choose(g, n, target, form),
        )  # fmt: skip
        counted = count(graph, target, o.tune.effort, form, self.progress)
        found = {x.name: 0 for x in network.weighted()} | {OTHERS: 0}
        for node, instructions in counted.items():
            layer = origin(node)
            found[layer if layer in found else OTHERS] += instructions
        return found
