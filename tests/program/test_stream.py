"""Streaming: the same bits, weights stored once, less memory; and how much is streamed."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

from tests.networks import Drawer, residual_network
from tests.program.exact import check_placement
from tests.program.nets import mobilenet, resnet
from xdeploy.errors import GateError, UsageError
from xdeploy.kernel import Kernel
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.rows import origin
from xdeploy.lir.stream import Schedule, cuts, evenly, stream
from xdeploy.memory.streaming import MOST_COST, Streaming, fit_memory
from xdeploy.program import bind, choose
from xdeploy.target import load_target

M4 = load_target("cortex-m4")


def pick(graph: LoweredGraph, node: Node) -> Kernel:
    return choose(graph, node, M4)


def random_network(seed: int) -> LoweredGraph:
    """Convolutions, depthwise ones, pools, sums and residuals over sizes that strides and kernels do not divide."""
    draw = random.Random(seed)
    d = Drawer((draw.randint(9, 20), draw.choice((4, 6, 8)), 4), seed)
    y, before = "x", "x"
    for i in range(draw.randint(3, 7)):
        shape = d.tensors[y].shape
        kind = draw.choice(("conv", "conv", "stride", "depthwise", "pool", "add", "clamp"))
        new = y
        if kind == "pool" and shape[0] >= 4 and shape[1] >= 2:
            new = d.max_pool(f"n{i}", y)
        elif kind == "depthwise":
            new = d.conv(f"n{i}", y, shape[2], k=3, groups=shape[2])
        elif kind == "clamp" and y != "x":
            new = d.clamp(f"n{i}", y)
        elif kind == "add" and before != y and d.tensors[before].shape == shape:
            new = d.add(f"n{i}", y, before)
        elif shape[0] >= 5:
            same = before != y and d.tensors[before].shape == (*shape[:2], 8)
            stride = 2 if kind == "stride" and not same else 1
            residual = before if same else None
            new = d.conv(f"n{i}", y, 8, k=draw.choice((1, 3, 5)), stride=stride, residual=residual)
        before, y = (y, new) if new != y else (before, y)
    return d.finish(d.linear("head", d.reshape("flat", y if y != "x" else d.conv("only", "x", 4)), 3))[0]


@pytest.mark.parametrize("seed", range(40))
def test_streamed_networks_compute_the_same(seed: int) -> None:
    graph, draw = random_network(seed), random.Random(seed)
    height = graph.tensors["x"].shape[0]
    codes = np.random.default_rng(seed).integers(-128, 128, (2, *graph.tensors["x"].shape)).astype(np.int8)
    expected = ops.run(graph, codes)[graph.output]
    for cut in cuts(graph):
        ends = sorted({*draw.sample(range(1, height), draw.randint(1, min(6, height - 1))), height})
        streamed = stream(graph, Schedule(cut, tuple(ends)))
        np.testing.assert_array_equal(ops.run(streamed, codes)[graph.output], expected)
        # nothing is computed twice: the rows of a layer's bands add up to the layer
        for node in graph.nodes[:cut]:
            bands = [n for n in streamed.nodes if n.op == node.op and origin(n.name) == node.name]
            assert sum(streamed.tensors[n.output].shape[0] for n in bands) == graph.tensors[node.output].shape[0]
        program = bind(streamed, M4, "net")  # verifies that nothing alive overlaps
        offsets = {b.name: program.offset_of(b) for b in program.lifetimes}
        check_placement(program.lifetimes, offsets, program.arena, M4.align)


def test_weights_are_stored_once_and_functions_shared() -> None:
    graph = resnet(1)[0]
    whole, streamed = bind(graph, M4, "net"), bind(stream(graph, evenly(graph, 6, 10, 4)), M4, "net")
    assert streamed.weight_bytes == whole.weight_bytes
    assert streamed.macs == whole.macs
    assert len(streamed.functions) <= len(whole.functions) + 1  # the copies of kept rows


def test_parts_and_cuts_need_no_code() -> None:
    graph = resnet(1)[0]
    program = bind(stream(graph, evenly(graph, 6, 10, 4)), M4, "net")
    assert all(c.node.endswith(", kept]") for c in program.calls if c.op == "stack")
    assert not any(c.op == "slice" for c in program.calls)
    where = program.places
    node = next(c for c in program.calls if c.node == "stem [band 2]")
    assert where[node.inputs[0]].kind == "input"
    assert where[node.inputs[0]].offset % (32 * 3) == 0 < where[node.inputs[0]].offset


@cache
def search(name: str) -> Streaming:
    graph = {"resnet8": resnet(1), "resnet20": resnet(3), "mobilenet": mobilenet()}[name][0]
    return Streaming(graph, M4.align, pick, lambda g, n, row: float(row.cost(g, n, M4)))


def test_resnet8_fits_24000_bytes() -> None:
    found = search("resnet8").fit(24_000)
    program = bind(found.graph, M4, "net")
    assert program.arena <= found.arena <= 24_000 < search("resnet8").whole.arena
    assert sum(c.cost for c in program.calls) <= 1.05 * search("resnet8").whole.cost


def test_more_bands_take_less_memory() -> None:
    arenas = [search("resnet8").in_bands(n).arena for n in (2, 4, 8)]
    assert arenas == sorted(arenas, reverse=True)
    assert arenas[0] < search("resnet8").whole.arena


def test_options() -> None:
    graph = residual_network()[0]
    whole = bind(graph, M4, "net").arena
    assert fit_memory(graph, M4, "off", [64], pick) is graph
    assert fit_memory(graph, M4, "auto", [None], pick) is graph
    assert fit_memory(graph, M4, "auto", [whole, None], pick) is graph
    least = bind(fit_memory(graph, M4, "min", [], pick), M4, "net")
    assert least.arena < whole
    assert sum(c.cost for c in least.calls) <= MOST_COST * sum(c.cost for c in bind(graph, M4, "net").calls)
    assert bind(fit_memory(graph, M4, "auto", [whole - 8], pick), M4, "net").arena < whole
    with pytest.raises(GateError, match=r"with the first layers streamed; its budget is 64"):
        fit_memory(graph, M4, "auto", [64], pick)
    with pytest.raises(UsageError, match="cannot run in 100 bands of their 8 input rows"):
        fit_memory(graph, M4, 100, [], pick)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    graph = residual_network()[0]
    for schedule in (Schedule(99, (4, 8)), Schedule(1, (4, 7)), Schedule(1, (5, 4, 8))):
        with pytest.raises(ValueError, match="does not fit"):
            stream(graph, schedule)
