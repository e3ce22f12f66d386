"""A library of several feature levels stores convolutions' and linear weights once, with all levels right."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tests.networks import Drawer, resnet, separable_network
from xdeploy.bench.host import HostRunner
from xdeploy.builder import build
from xdeploy.builder.levels import bind_levels
from xdeploy.files import read_json
from xdeploy.kernel import KERNELS
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import Choice, Program, applicable, bind, choose
from xdeploy.recipe import PackageOptions
from xdeploy.sharing import COPIES, LEAST, shared, stored
from xdeploy.target import load_target

HOST = load_target("x86-64")
LEVEL = HOST.at(HOST.levels[0])


def _levels(graph: LoweredGraph) -> list[Program]:
    program, further = bind_levels(bind(graph, HOST, "net"), graph, HOST, {})
    return [program, *(p for _, p in further)]


def _weights(graph: LoweredGraph) -> int:
    return sum(n.consts["codes"].size for n in graph.nodes if n.format)


def test_levels_read_the_same_weights() -> None:
    graph, _ = resnet(blocks=1)
    own, vnni, amx = _levels(graph)
    shared_ones = 0
    for mine, theirs, tiled in zip(own.calls, vnni.calls, amx.calls, strict=True):
        names = KERNELS[mine.kernel].tags.get("weights_of")
        if names == theirs.kernel:
            assert mine.constants["weights"] == theirs.constants["weights"] in own.constants
            assert theirs.constants["weights"] not in vnni.constants
            shared_ones += 1
        if "weights" in theirs.constants:
            assert tiled.constants["weights"] == theirs.constants["weights"] not in amx.constants
    assert shared_ones >= 7
    assert sum(c.kernel.endswith("__amx") for c in amx.calls) >= 7
    assert set(vnni.elsewhere) == {own.name} <= set(amx.elsewhere)
    for program in (vnni, amx):
        program.verify()


@pytest.mark.parametrize("network", [lambda: resnet(9), lambda: resnet(1), separable_network])
def test_all_that_levels_store_is_little_more_than_the_weights(network: object) -> None:
    graph, _ = network()  # type: ignore[operator]
    programs = _levels(graph)
    channels = sum(len(n.consts["bias"]) for n in graph.nodes if n.format)
    depthwise = sum(n.consts["codes"].size for n in graph.nodes if n.attrs.get("groups", 1) > 1)
    padding = 20_000  # of few channels to whole vectors
    most = _weights(graph) + COPIES + 5 * depthwise + len(programs) * 8 * channels + padding
    assert sum(p.weight_bytes for p in programs) <= most


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")
def test_a_library_is_small_and_right_at_both_levels(tmp_path: Path) -> None:
    graph, golden = resnet()
    artifact = build(bind(graph, HOST, "net"), graph, golden, HOST, tmp_path / "out", PackageOptions(), {})
    library = artifact.folder / artifact.manifest["products"]["library"]
    assert library.stat().st_size <= _weights(graph) + 300_000
    told = read_json(artifact.folder / "levels" / "net_vnni.json", "xdeploy.program/1")
    assert told["shared_bytes"] > 0.95 * _weights(graph) > 10 * told["weight_bytes"]
    runner = HostRunner(artifact)
    for name in ("", *(level.name for level in HOST.levels_here())):
        runner.choose_level(name)
        assert (runner.run(golden.input_codes).outputs == golden.output_codes).all()


def test_copies_are_kept_where_they_save_most_for_their_bytes() -> None:
    graph, _ = resnet(9)
    nodes = [n for n in graph.nodes if n.op == "conv2d"]
    fastest = {n.name: choose(graph, n, HOST) for n in nodes}
    direct = {n.name: KERNELS[f"conv2d_s8_{n.format.short}_quad__x86"] for n in nodes if n.format}
    taken = shared(graph, HOST, fastest, direct)
    kept = [n for n in nodes if n.name not in taken]
    assert 0 < sum(stored(n, fastest[n.name]) for n in kept) <= COPIES
    whole = [n for n in kept if n.consts["codes"].shape[1:3] == (3, 3) and n.name != "stem"]
    assert {len(n.consts["bias"]) for n in whole} == {16}  # the same work for fewer weights
    for node in kept:
        cost = direct[node.name].cost(graph, node, HOST)
        assert cost - fastest[node.name].cost(graph, node, HOST) >= LEAST * cost


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4-vnni"])
def test_targets_of_one_level_take_their_fastest_rows(name: str) -> None:
    graph, _ = resnet(1)
    target = load_target(name)
    for call in bind(graph, target, "net").calls:
        assert "weights_of" not in KERNELS[call.kernel].tags
        assert call.kernel == choose(graph, graph.node(call.node), target).name


def test_chosen_rows_stay() -> None:
    d = Drawer((8, 8, 64))
    graph, _ = d.finish(d.conv("layer", "x", 64))
    node = graph.node("layer")
    assert "weights_of" in KERNELS[bind(graph, HOST, "net").calls[0].kernel].tags
    for row in applicable(graph, node, HOST, extra=True):
        assert bind(graph, HOST, "net", choice=Choice({"layer": row.name})).calls[0].kernel == row.name


def test_the_further_level_keeps_its_rows() -> None:
    graph, _ = resnet(1)
    for call in _levels(graph)[1].calls:
        assert call.kernel == choose(graph, graph.node(call.node), LEVEL).name
