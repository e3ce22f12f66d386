"""Float parts of odd shapes: every loop is cut into tiles, and what remains of it must be right, too."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from xdeploy.kernels.nesttiles import Machine, even, lapped, pieces
from xdeploy.kernels.relaxed import flatten

from tests.kernels import harness
from tests.kernels.test_float import PARTS, SCALES, _apart, _images_first, case, f32, model, one
from xdeploy.cpu import cpu_flags
from xdeploy.kernel import KERNELS
from xdeploy.target import Target, load_target

ODD = (1, 11, 13, 6)  # channels last, as the graph stores images


def conv(shape: tuple[int, ...], result: tuple[int, ...], weights: tuple[int, ...], **attrs: object) -> bytes:
    """A convolution on (1, C, H, W) between two Transposes."""
    w = f32(*weights) / np.float32(np.sqrt(np.prod(weights[1:])))
    return model(_images_first(one("Conv", "w", "b", **attrs)), shape, result, w=w, b=f32(weights[0]))


SHAPES: dict[str, Callable[[], bytes]] = {
    "conv_stride": lambda: conv(ODD, (1, 5, 4, 7), (7, 6, 5, 3), pads=[2, 1, 1, 0], strides=[2, 3]),
    "conv_dilated": lambda: conv(ODD, (1, 7, 13, 37), (37, 6, 3, 3), pads=[0, 2, 0, 2], dilations=[2, 2]),
    "conv_groups": lambda: conv(ODD, (1, 11, 13, 20), (20, 3, 1, 1), group=2),
    "conv_points": lambda: conv((1, 1, 1, 24), (1, 1, 1, 30), (30, 8, 1, 1), group=3),
    "conv_depthwise": lambda: conv((1, 7, 9, 21), (1, 7, 9, 21), (21, 1, 3, 3), pads=[1, 1, 1, 1], group=21),
    "conv_multiplied": lambda: conv(ODD, (1, 11, 13, 18), (18, 1, 3, 3), pads=[1, 1, 1, 1], group=6),
    "conv_sequence": lambda: model(one("Conv", "w", pads=[2, 1]), (1, 5, 29), (1, 19, 28), w=f32(19, 5, 5) / 5),
    "conv_volume": lambda: model(
        one("Conv", "w", pads=[1] * 6), (1, 3, 5, 4, 7), (1, 5, 5, 4, 7), w=f32(5, 3, 3, 3, 3) / 9
    ),
    "conv_transposed": lambda: model(
        one("ConvTranspose", "w", strides=[2, 2], pads=[1, 1, 1, 1]), (1, 5, 7, 5), (1, 3, 13, 9), w=f32(5, 3, 3, 3) / 5
    ),
    "matmul_rows": lambda: model(one("MatMul", "w"), (1, 13, 45), (1, 13, 37), w=f32(45, 37) / 7),
    "matmul_vector": lambda: model(one("MatMul", "w"), (1, 45), (1, 83), w=f32(45, 83) / 7),
    "matmul_of_itself": lambda: model(
        [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), helper.make_node("MatMul", ["x", "t"], ["h"]),
         helper.make_node("Mul", ["h", "less"], ["y"])],
        (1, 3, 19, 23), (1, 3, 19, 19), less=np.float32(1 / 16),
    ),
    "softmax_last": lambda: model(one("Softmax", axis=-1), (1, 5, 37), (1, 5, 37)),
    "layer_norm_last": lambda: model(one("LayerNormalization", "s", axis=-1), (1, 7, 37), (1, 7, 37), s=f32(37)),
    "max_pool": lambda: model(
        _images_first(one("MaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])), ODD, (1, 6, 13, 6)
    ),
    "mean_of_rows": lambda: model(one("ReduceMean", "axes", keepdims=0), ODD, (1, 13, 6), axes=np.array([1])),
    "rows_of_channels": lambda: model(
        [helper.make_node("Reshape", ["x", "to"], ["r"]),
         helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3]),
         helper.make_node("MatMul", ["t", "w"], ["y"])],
        (1, 9, 24), (1, 4, 9, 11), to=np.array([1, 9, 4, 6]), w=f32(6, 11) / 2,
    ),
}  # fmt: skip


def run(target: Target, folder: Path) -> None:
    """All of SHAPES on a target: at most one code from the specification, nothing else written."""
    host = target.kind == "host"
    batch = harness.Batch(target, harness.host_image() if host else harness.Image(harness.DATA))
    harness.fill(batch, {"float": [case(n) for n in SHAPES]})
    before = batch.image.bytes.copy()
    (harness.run_host if host else harness.run_unicorn)(batch, folder)
    found = _apart(batch)
    assert len(found) == 2 * len(SHAPES)  # samples
    assert not {k: v for k, v in found.items() if v[0] > 1 or v[1] < 0.98}
    assert batch.image.damaged(before) == []
    assert not [c.label for c in batch.calls if len(np.unique(c.expected)) < min(20, c.expected.size)]


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "softmax_last", 0.004)
    for name in SHAPES:
        monkeypatch.setitem(PARTS, name, functools.partial(_made, name))


@functools.cache
def _made(name: str) -> bytes:
    return SHAPES[name]()


@pytest.mark.parametrize("name", ["x86-64", "cortex-a72"])
def test_odd_shapes(name: str, tmp_path: Path) -> None:
    run(load_target(name), tmp_path)


@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="this CPU has no AVX-512")
def test_odd_shapes_in_wide_registers(tmp_path: Path) -> None:
    plain = load_target("x86-64")
    wide = replace(plain, tvm={**plain.tvm, "mcpu": "x86-64-v4"})
    assert Machine.of(wide) == Machine(16, 32)
    run(wide, tmp_path)


def test_machines_by_target() -> None:
    found = {n: Machine.of(load_target(n)) for n in ("x86-64", "aarch64", "cortex-a72", "cortex-a7")}
    assert found == {
        "x86-64": Machine(8, 16), "aarch64": Machine(4, 32), "cortex-a72": Machine(4, 32), "cortex-a7": Machine(4, 16),
    }  # fmt: skip


@pytest.mark.parametrize("parts", [pieces, even])
def test_pieces_cover_a_loop_once(parts: Callable[[int, int], list[tuple[int, int, int]]]) -> None:
    for extent in range(1, 70):
        for size in range(1, 20):
            found = [s + k * n + i for s, count, n in parts(extent, size) for k in range(count) for i in range(n)]
            assert found == list(range(extent))
            assert max(n for _, _, n in parts(extent, size)) <= size


def test_lapped_pieces_end_with_the_loop() -> None:
    for extent in range(1, 70):
        for size in (4, 16, 32, extent):
            *_, (start, count, last) = lapped(extent, size)
            done = {s + k * n + i for s, times, n in lapped(extent, size) for k in range(times) for i in range(n)}
            assert done == set(range(extent))
            assert start + count * last == extent
            assert last % 4 == 0 or last == extent or extent < size


def test_memory_and_constants_are_those_of_any_machine() -> None:
    """`workspace` and `pack` of the row are not told the target."""
    row = next(k for k in KERNELS.values() if k.op == "float")
    for name in SHAPES:
        graph = case(name).graph
        node = graph.nodes[0]
        want = {k: v.tobytes() for k, v in row.pack(graph, node).items()}
        for machine in (Machine(4, 32), Machine(16, 32)):
            flat = flatten(*_borders(name), machine)
            assert {k: v.tobytes() for k, v in flat.consts.items()} == want
            assert flat.workspace == row.workspace(graph, node)
            assert {a.name for a in flat.args if a.kind == "const"} == set(want)


def _borders(name: str) -> tuple[bytes, object, object]:
    from xdeploy.kernels import borders, fallback

    graph = case(name).graph
    x, y = (graph.tensors[n] for n in ("x", "y"))
    before = borders.dequantise(x.shape, x.q.scale, x.q.zero_point)
    return fallback.float_model(graph.nodes[0]), before, borders.quantise(y.shape, y.q.scale, y.q.zero_point)


def test_tensors_between_functions_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of sums over one axis: two tensors are alive at once, not all."""
    names = ["x", *(f"h{k}" for k in range(6)), "y"]
    nodes = [helper.make_node("Softmax", [a], [b], axis=1) for a, b in itertools.pairwise(names)]
    monkeypatch.setitem(PARTS, "chain", lambda: model(nodes, (1, 64, 40), (1, 64, 40)))
    row = next(k for k in KERNELS.values() if k.op == "float")
    graph = case("chain").graph
    assert row.workspace(graph, graph.nodes[0]) < 4.5 * 64 * 40 * 4
