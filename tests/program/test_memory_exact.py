"""The planner against an integer program, over random instances and the networks of the zoo; choices of merges."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.networks import Drawer, residual_network
from tests.program.exact import check_placement, least_arena
from tests.program.nets import mobilenet, resnet
from xdeploy.lir.graph import LoweredGraph
from xdeploy.memory import Buffer, Storage, plan_memory
from xdeploy.memory.placement import Placer
from xdeploy.program import bind, choose
from xdeploy.target import load_target

M4 = load_target("cortex-m4")


def instance(draw: random.Random, count: int, align: int) -> list[Buffer]:
    rows = [
        (draw.randint(1, 9) * align - draw.randint(0, 3), draw.randint(0, 9), draw.randint(0, 6)) for _ in range(count)
    ]
    return [Buffer(f"b{i}", size, first, first + length) for i, (size, first, length) in enumerate(rows)]


def test_random_instances_are_placed_optimally() -> None:
    draw, searched = random.Random(1), 0
    for i in range(2000):
        align = draw.choice((8, 16))
        buffers = instance(draw, 12 if i % 4 else 5, align)
        layout = plan_memory(buffers, align)
        check_placement(buffers, layout.offsets, layout.arena, align)
        searched += layout.found_by == "search"
        if layout.gap or i % 40 == 0:  # no gap proves it by itself
            assert layout.arena == least_arena(buffers, align), buffers
    assert searched > 5


def test_the_solver_finds_what_is_known() -> None:
    chain = [Buffer(str(i), size, i, i + 1) for i, size in enumerate((640, 1600, 320, 800, 160))]
    assert least_arena(chain, 16) == 640 + 1600
    tied = [Buffer("a", 16, 0, 0, "g", 0), Buffer("b", 16, 1, 1, "g", 16), Buffer("c", 32, 1, 1)]
    assert least_arena(tied, 16) == 48
    assert plan_memory(tied, 16).arena == 48


def test_tied_buffers_are_placed_soundly_and_near_the_optimum() -> None:
    draw, above = random.Random(2), []
    for _ in range(120):
        buffers = [Buffer(b.name, b.size, b.first, b.last) for b in instance(draw, 5, 8)]
        for g in range(2):
            first, a, b = draw.randint(0, 4), draw.randint(1, 5) * 8, draw.randint(1, 5) * 8
            buffers += [
                Buffer(f"g{g}", a, first, first + 1, f"g{g}", 0),
                Buffer(f"g{g}+", b, first + 1, first + 3, f"g{g}", a),
            ]
        layout = plan_memory(buffers, 8)
        check_placement(buffers, layout.offsets, layout.arena, 8)
        if layout.gap:
            above.append(layout.arena / least_arena(buffers, 8))
    assert above
    assert max(above) <= 1.15
    assert sum(above) / len(above) <= 1.02


def placer(graph: LoweredGraph) -> Placer:
    storage = Storage(graph, M4.align)
    rows = {n.name: choose(graph, n, M4) for n in graph.nodes if n.name not in storage.aliases}
    return Placer(graph, storage, rows, {name: row.workspace(graph, graph.node(name)) for name, row in rows.items()})


BETTER = 103  # a seed whose first choice of merges is not the best


def random_network(seed: int) -> LoweredGraph:
    """Convolutions of changing width with residuals, sums, and a branch."""
    d, draw = Drawer((6, 6, 4), seed), random.Random(seed)
    made = ["x"]
    for i in range(draw.randint(4, 8)):
        source = draw.choice(made[-2:])
        width = draw.choice((4, 8, 12))
        twins = [t for t in made[1:] if d.tensors[t].shape == (6, 6, width)]
        kind = draw.choice(("conv", "point", "residual", "clamp", "add"))
        if kind == "clamp" and source != "x":
            made.append(d.clamp(f"n{i}", source))
        elif kind == "add" and twins:
            made.append(d.add(f"n{i}", twins[-1], draw.choice(twins)))
        else:
            residual = draw.choice(twins) if kind == "residual" and twins else None
            made.append(d.conv(f"n{i}", source, width, k=1 if kind == "point" else 3, residual=residual))
    return d.finish(d.conv("last", made[-1], 4))[0]


def test_merges_are_chosen_no_worse_than_wherever_possible() -> None:
    better = 0
    for seed in (*range(10), BETTER):
        p = placer(random_network(seed))
        greedy, found = p.estimate(), p.run()
        check_placement(found.buffers, found.layout.offsets, found.layout.arena, M4.align)
        assert found.floor <= found.layout.arena <= greedy
        better += found.layout.arena < greedy
        if found.layout.arena > found.floor and found.layout.gap:
            assert found.layout.arena == least_arena(found.buffers, M4.align)
        for choice in p._choices():  # no choice that may be made is lower
            if found.layout.arena == found.floor:
                break
            layout = p._place(choice, None)[1]
            assert layout is not None
            assert layout.arena >= found.layout.arena
    assert better


def test_the_floor_holds_for_every_choice() -> None:
    for seed in range(4):
        p = placer(random_network(seed))
        for choice in [{}, *p._choices()]:
            assert p._place(choice, None)[1].arena >= p.floor()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "graph",
    [residual_network()[0], resnet(1)[0], resnet(3)[0], mobilenet()[0]],
    ids=["toy", "resnet8", "resnet20", "mobilenet"],
)
def test_bound_programs_are_optimal(graph: LoweredGraph) -> None:
    program = bind(graph, M4, "net")
    assert program.arena == least_arena(program.lifetimes, M4.align) == program.lower_bound


ZOO = Path(__file__).resolve().parents[2] / ".." / "shared" / "models"


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mlperf-tiny-ic-resnet8.int8.onnx", "mlperf-tiny-kws-dscnn.int8.onnx"])
@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m55", "cortex-a72"])
def test_quantised_networks_are_placed_optimally(name: str, target: str) -> None:
    if not (ZOO / name).exists():
        pytest.skip(f"{name} is not here")
    from xdeploy.lower import lower

    program = bind(lower(ZOO / name), load_target(target), "net")
    assert program.arena == program.lower_bound
