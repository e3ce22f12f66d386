"""bind: which kernels, which memory, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.networks import Drawer, residual_network
from xdeploy.errors import GateError, UnsupportedError
from xdeploy.kernel import KERNELS
from xdeploy.program import bind, describe, identifier
from xdeploy.target import load_target

M4 = load_target("cortex-m4")


def test_every_node_gets_its_cheapest_row() -> None:
    graph, _ = residual_network()
    program = bind(graph, M4, "net")
    assert [c.node for c in program.calls] == [n.name for n in graph.nodes if n.op != "reshape"]
    assert program.aliases == ("flat",)
    for call in program.calls:
        node = graph.node(call.node)
        rows = [r for r in KERNELS.values() if r.op == node.op and r.isa in M4.features and r.applies(graph, node, M4)]
        kept = [r for r in rows if r.isa != "c99" and "extra_flash" not in r.tags]  # what is there without being asked
        assert call.cost == min(r.cost(graph, node, M4) for r in kept)
        assert KERNELS[call.kernel].op == node.op


def test_memory_is_shared_where_it_may_be() -> None:
    graph, _ = residual_network()
    program = bind(graph, M4, "net")
    at = {name: (p.kind, p.offset) for name, p in program.places.items()}
    assert at["x"] == ("input", 0)
    assert at["head:out"] == ("output", 0)
    assert at["block.1:out"] == at["stem */ conv:out"]  # the residual is overwritten by the sum
    assert at["clamp:out"] == at["sum:out"] == at["side:out"]  # elementwise in place
    assert at["flat:out"] == at["pool:out"]  # a reshape moves nothing
    assert program.arena == program.lower_bound


def test_a_residual_that_lives_on_is_kept() -> None:
    d = Drawer((6, 6, 4))
    a = d.conv("a", "x", 4)
    b = d.conv("b", a, 4, residual=a)  # reads and adds the same tensor: overwriting it would spoil later windows
    graph, _ = d.finish(d.add("c", b, a))
    at = bind(graph, M4, "net").places
    assert at["b:out"].offset != at["a:out"].offset or at["b:out"].kind != at["a:out"].kind


def test_the_callers_input_is_never_written() -> None:
    d = Drawer((4, 4, 2))
    graph, _ = d.finish(d.clamp("b", d.clamp("a", "x")))
    places = bind(graph, M4, "net").places
    assert {name: p.kind for name, p in places.items()} == {"x": "input", "a:out": "output", "b:out": "output"}


def test_equal_functions_and_constants_are_shared() -> None:
    d = Drawer((4, 4, 8))
    y = d.conv("a", "x", 8)
    for name in "bcd":
        y = d.conv(name, y, 8)
    graph, _ = d.finish(y)
    program = bind(graph, M4, "net")
    assert len({c.symbol for c in program.calls[1:]}) == 1
    assert len({c.constants["weights"] for c in program.calls}) == 4
    node = graph.nodes[1]
    twin = dataclasses.replace(graph.nodes[2], consts={**node.consts})
    same = dataclasses.replace(graph, nodes=(graph.nodes[0], node, twin, graph.nodes[3]))
    assert len(bind(same, M4, "net").constants) == len(program.constants) - len(program.calls[2].constants)


def test_saved_form(tmp_path: Path) -> None:
    graph, _ = residual_network()
    program = bind(graph, M4, "net")
    program.save(tmp_path / "program.json")
    value = json.loads((tmp_path / "program.json").read_text())
    assert value["schema"] == "xdeploy.program/1"
    assert value["arena"] == {"bytes": program.arena, "lower_bound": program.lower_bound, "gap": 0, "align": 8,
                              "found_by": program.found_by}  # fmt: skip
    assert sum(n["bytes"] for n in value["nodes"]) == value["weight_bytes"] == program.weight_bytes
    program.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "program.json").read_bytes()
    twice = bind(graph, M4, "net")
    assert describe(twice) == describe(program)
    assert {k: v.tobytes() for k, v in twice.constants.items()} == {
        k: v.tobytes() for k, v in program.constants.items()
    }


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    graph, _ = residual_network()
    program = bind(graph, M4, "net")
    for key, need in (("ram", program.arena), ("flash", program.weight_bytes)):
        small = dataclasses.replace(M4, memory={**M4.memory, key: need - 1})
        with pytest.raises(GateError, match=rf"{need} bytes.*{key} is {need - 1}"):
            bind(graph, small, "net")
        bind(graph, dataclasses.replace(M4, memory={**M4.memory, key: need}), "net")


def test_an_op_without_a_kernel_is_named() -> None:
    graph, _ = residual_network()
    nothing = dataclasses.replace(M4, features=("none",))
    with pytest.raises(UnsupportedError, match=r"stem \*/ conv: no tuned kernel for conv2d with int8 weights"):
        bind(graph, nothing, "net")


@pytest.mark.parametrize(("name", "word"), [("ResNet-20", "resnet_20"), ("3x3 网络!", "m3x3"), ("", "m"), ("_a_", "a")])
def test_identifier(name: str, word: str) -> None:
    assert identifier(name) == word


def test_a_smaller_output_lies_where_a_larger_input_dies() -> None:
    d = Drawer((8, 8, 4))
    y = d.conv("wide", "x", 16)
    y = d.conv("narrow", y, 4, k=1)  # pointwise: written in place
    y = d.conv("last", d.conv("again", y, 16), 4, k=1)
    graph, _ = d.finish(y)
    program = bind(graph, M4, "net")
    places = program.places
    assert places["narrow:out"] == dataclasses.replace(places["wide:out"], size=8 * 8 * 4)
    # the caller's output buffer has no room for what the last layer reads
    assert (places["last:out"].kind, places["again:out"].kind) == ("output", "arena")
    assert program.arena == program.lower_bound
