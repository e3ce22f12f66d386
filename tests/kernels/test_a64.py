"""AArch64 rows: equal to the reference at every feature level, and within their bounds of instructions."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdeploy.kernels import a64winograd
from xdeploy.kernels.a64 import PRODUCTS, DotProduct, LongProduct, MatrixProduct
from xdeploy.kernels.a64depthwise import groups_of

from tests.kernels import harness
from tests.kernels.cases import Case, cases, conv, linear
from xdeploy.bench.qemuuser import QemuUserRunner
from xdeploy.builder import build
from xdeploy.formats import QParams
from xdeploy.handover import GoldenIo, IoSpec
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.lir.graph import LoweredGraph, Tensor
from xdeploy.lir.ops import macs, run
from xdeploy.program import bind, choose
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

pytestmark = pytest.mark.usefixtures("newest_cpu")
NONE = (0, 0, 0, 0)


def clamped(case: Case) -> Case:
    """The same with a zero point of -128 as the lower bound, as behind a ReLU."""
    node = replace(case.node, attrs={**case.node.attrs, "out_zero": -128, "low": -128})
    return replace(case, name=f"{case.name}_clamped", graph=replace(case.graph, nodes=(node,)))


ODD = [
    conv((5, 7), 20, 12, residual=True, relu=True),
    conv((4, 9), 24, 30, (1, 1), pads=NONE),
    conv((7, 6), 5, 18, (3, 3), (2, 2)),
    conv((6, 6), 3, 16, dilation=(1, 2), pads=(1, 2, 1, 2)),
    conv((6, 5), 24, 24, groups=24),
    conv((5, 9), 8, 8, groups=8, relu=True),
    conv((6, 6), 4, 4, (5, 3), groups=4, pads=(2, 1, 2, 1), stride=(2, 1)),
    conv((1, 1), 64, 8, (1, 1), pads=NONE, fmt="c4s8"),
    linear(72, 33),
    conv((7, 6), 8, 20, residual=True, relu=True),  # tiles of 4x4 over both edges, five quads
    conv((8, 9), 32, 12, pads=(0, 1, 2, 0), fill="low"),
    conv((8, 8), 24, 4, fill="high", residual=True, in_zero=127),
    conv((11, 10), 1, 10, (10, 4), (2, 2), (4, 1, 5, 1)),
    conv((9, 9), 3, 5, dilation=(2, 3), pads=(2, 0, 1, 3), residual=False),
    conv((6, 6), 3, 8, residual=True, stride=(2, 1)),
    conv((4, 5), 112, 8, residual=True),  # a long run, and chunks left over
    # what assembly tiles: rings of one and two vectors a pixel, runs too long for one, rows of 1 to 3 pixels at the end
    conv((5, 9), 16, 32, residual=True),
    clamped(conv((6, 10), 16, 16, (5, 5), (2, 2), (2, 2, 2, 2))),
    conv((4, 7), 32, 16, (3, 3), (1, 2), relu=True),
    conv((3, 6), 48, 16, residual=True, relu=True, fill="high"),
    conv((3, 5), 256, 16, pads=(1, 0, 1, 0), fill="low"),
    clamped(conv((5, 6), 512, 16, (1, 1), pads=NONE)),
    # pointwise tiles: rows of codes in one turn and in several, tiles left over, less than one tile
    conv((3, 6), 8, 16, (1, 1), pads=NONE, fill="high"),
    clamped(conv((7, 3), 72, 48, (1, 1), pads=NONE, relu=True)),
    clamped(conv((1, 3), 88, 32, (1, 1), pads=NONE, fill="low")),
    conv((5, 5), 136, 16, (1, 1), pads=NONE, relu=True),
    conv((7, 3), 32, 48, (1, 3), (2, 1), (0, 1, 0, 1), dilation=(2, 1)),
    conv((9, 5), 16, 16, (2, 13), pads=(0, 6, 1, 6)),
    *(linear(k, o, relu=o > 64) for k, o in ((16, 4), (79, 63), (130, 13), (257, 70), (143, 17))),
    linear(131, 81, fill="low"),
    linear(335, 20, fill="high"),
    clamped(linear(143, 69)),
    clamped(linear(97, 6, relu=True)),
]
FORMS = ("direct", "tile4x16", "gathered", "dense", "winograd4x4", "dw1x16")
# instructions per multiply-accumulate of whole calls: small images, so that bounds hold with more overhead than usual
BOUNDS = {
    "cortex-a76": [
        (conv((12, 12), 16, 16), 0.08), (conv((6, 6), 32, 32, residual=True), 0.083), (linear(128, 64), 0.0865),
        (conv((6, 5), 64, 64, groups=64), 0.46), (linear(512, 64), 0.0807),
        (conv((6, 6), 64, 32, (1, 1), pads=NONE), 0.10), (conv((9, 7), 32, 16, pads=NONE, residual=True), 0.09),
    ],
    "cortex-a72": [
        (conv((12, 12), 16, 16), 0.15), (conv((8, 8), 32, 32, residual=True), 0.12), (linear(512, 64), 0.2075),
        (conv((6, 5), 64, 64, groups=64), 0.50), (conv((16, 10), 1, 32, (10, 4), (2, 2), (4, 1, 5, 1)), 0.42),
        (conv((6, 6), 64, 32, (1, 1), pads=NONE), 0.217), (conv((9, 7), 16, 32, (1, 1), pads=NONE), 0.265),
    ],
}  # fmt: skip


def _rows(case: Case, name: str, isa: str) -> list[Kernel]:
    target = load_target(name)
    fitting = [k for k in KERNELS.values() if k.op == case.node.op and k.isa == isa]
    new = [k for k in fitting if any(f"_{form}__" in k.name for form in FORMS)]
    return [k for k in new if k.applies(case.graph, case.node, target)]


def _image() -> harness.Image:
    return harness.Image(harness.DATA, 1 << 24)


@pytest.mark.parametrize(("name", "isa"), [("cortex-a72", "neon"), ("cortex-a76", "dotprod")])
def test_rows_equal_the_reference(name: str, isa: str, tmp_path: Path) -> None:
    batch = harness.Batch(load_target(name), _image())
    plain = [c for op in ("conv2d", "linear") for c in cases(op) if c.node.attrs["weight_format"] == "int8"]
    for case in [*ODD, *plain[::40]]:
        found = _rows(case, name, isa)
        rare = case.node.attrs["weight_format"] != "int8" or case.node.attrs.get("groups", 1) > 1
        assert found or rare, f"no row of {isa} takes {case.name}"
        for row in found:
            batch.add(row, case)
    before = batch.image.bytes.copy()
    harness.run_unicorn(batch, tmp_path)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


@pytest.mark.parametrize("name", list(BOUNDS))
def test_instructions_stay_within_their_bounds(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    batch = harness.Batch(target, _image())
    for case, _ in BOUNDS[name]:
        batch.add(choose(case.graph, case.node, target), case, samples=1)
    machine = harness.Unicorn(harness.link(batch, tmp_path), target, batch.image, count=True)
    for call, (case, bound) in zip(batch.calls, BOUNDS[name], strict=True):
        executed = machine.call(call.symbol, call.args)
        if not any(case.node.attrs.get("pads", NONE)) and ("_dense__" in call.label or "_tile4x16__" in call.label):
            cost = choose(case.graph, case.node, target).cost(case.graph, case.node, target)
            assert abs(executed - cost) <= 8, f"{call.label}: they are counted, not estimated"
        ours = executed / macs(case.graph, case.node)
        assert 0.04 < ours <= bound, f"{call.label}: {ours:.4f}"


def _sums(product: Any, packed: np.ndarray[Any, Any], x: np.ndarray[Any, Any], channels: int) -> np.ndarray[Any, Any]:
    """The sums of one pixel by what the instructions do with the packed weights of one block."""
    totals = np.zeros(channels, np.int64)
    if isinstance(product, LongProduct):
        return packed.reshape(channels, -1).astype(np.int64) @ x
    together = 4 if isinstance(product, DotProduct) else 2
    vectors = packed.reshape(-1, channels // together, together, product.unit).astype(np.int64)
    for k, group in enumerate(vectors):
        totals += (group @ x[k * product.unit : (k + 1) * product.unit]).reshape(-1)
    return totals


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: p.isa)
def test_packed_weights_are_read_in_order(product: Any) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(-127, 128, (1, 8, 16)).astype(np.int8)
    x = rng.integers(-128, 128, 16)
    assert (_sums(product, product.pack(codes)[0], x, 8) == codes[0].astype(np.int64) @ x).all()


def test_accumulators_begin_with_the_bias() -> None:
    bias = np.arange(1, 9, dtype=np.int32)
    assert LongProduct.late, "zeros, and the bias at the end"
    assert LongProduct().start(bias).reshape(-1).tolist() == bias.tolist()
    assert DotProduct().start(bias).reshape(-1).tolist() == bias.tolist()
    assert MatrixProduct().start(bias)[0].tolist() == [1, 2, 1, 2]


def test_every_form_is_among_the_cases() -> None:
    for name, isa in (("cortex-a72", "neon"), ("cortex-a76", "dotprod")):
        met = {f for case in ODD for k in _rows(case, name, isa) for f in FORMS if f"_{f}__" in k.name}
        assert met == set(FORMS) - ({"winograd4x4"} if isa == "dotprod" else set())


def _differences(d: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """B^T d, by Lagrange's formula: d = B^-T v, row i of B^-T the powers of the points 0, 1, -1, 2, -2, infinity."""
    points = np.array([0, 1, -1, 2, -2], np.float64)
    powers = np.array([[*(p**k for p in points), float(k == 5)] for k in range(6)])
    scale = np.array([4, -6, -6, 24, 24, 1], np.float64)  # which keeps B^T integer
    return np.asarray(np.rint(np.linalg.solve(powers, d) * scale[:, None]), np.int64)


def test_winograd_is_the_convolution_times_576() -> None:
    """U (from the weights) and patches evaluated as polynomials, against sums of products one by one."""
    rng = np.random.default_rng(8)
    d, g = rng.choice([-128, 127, 5], (6, 6)), rng.choice([-127, 127, 3], (3, 3))
    u = a64winograd.transformed(g[None, :, :, None])[0, :, 0].reshape(6, 6)
    assert abs(u).max() < 2**15
    v = _differences(_differences(d.astype(np.float64)).T.astype(np.float64)).T
    assert abs(v).max() <= 100 * 128
    inverse = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 2]])
    expected = [[int((d[i : i + 3, j : j + 3] * g).sum()) for j in range(4)] for i in range(4)]
    assert (inverse @ (u * v) @ inverse.T == 576 * np.array(expected)).all()


def test_winograd_is_refused_where_sums_may_not_fit() -> None:
    case = conv((4, 4), 16, 4, fill="high")
    target, row = load_target("cortex-a72"), KERNELS["conv2d_s8_s8_winograd4x4__neon"]
    most = (2**31 - 1) // 64 - 127 * 144 * 128  # what is left for the bias
    for bias, fits in ((most - 3 * 127 * 144, True), (most, False)):  # the zero point of -3 adds to it
        consts = {**case.node.consts, "bias": np.full(4, bias, np.int32)}
        graph = replace(case.graph, nodes=(replace(case.node, consts=consts),))
        assert row.applies(graph, graph.nodes[0], target) == fits


def test_int16_groups_hold_the_largest_products() -> None:
    rng = np.random.default_rng(6)
    for limit in (127, 60, 20):
        taps = rng.integers(-limit, limit + 1, (9, 8)).astype(np.int8)
        sizes, start = groups_of(taps), 0
        assert sum(sizes) == 9
        for size in sizes:
            worst = 128 * np.abs(taps[start : start + size].astype(np.int64)).sum(axis=0).max()
            assert worst <= 32767
            start += size


def _network(chain: Sequence[Case]) -> LoweredGraph:
    """The cases' nodes one behind the other; every output has the shape of the next one's input."""
    nodes = tuple(replace(c.node, name=f"n{i}", inputs=(f"t{i}",), output=f"t{i + 1}") for i, c in enumerate(chain))
    shapes = [chain[0].graph.tensors["x"].shape, *(c.graph.tensors["y"].shape for c in chain)]
    tensors = {f"t{i}": Tensor(s, QParams(0.1, 0)) for i, s in enumerate(shapes)}
    return LoweredGraph(nodes, tensors, "t0", f"t{len(chain)}", IoSpec("t0", shapes[0], "y", shapes[-1]))


@pytest.mark.qemu
@pytest.mark.slow
def test_one_library_runs_every_level(tmp_path: Path) -> None:
    """The same program on three CPUs: each takes its own level, all give the reference's codes."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    graph = _network([conv((6, 5), 3, 16), conv((6, 5), 16, 20), conv((6, 5), 20, 20, groups=20)])
    target = load_target("aarch64")
    codes = np.random.default_rng(7).integers(-128, 128, (2, 6, 5, 3)).astype(np.int8)
    golden = GoldenIo(codes.astype(np.float32), codes, run(graph, codes)[graph.output])
    artifact = build(bind(graph, target, "net"), graph, golden, target, tmp_path / "out", PackageOptions(), {})
    assert (artifact.folder / artifact.manifest["products"]["archive"]).is_file()
    totals = []
    for cpu, level in (("cortex-a53", ""), ("cortex-a76", "dotprod"), ("max", "i8mm")):
        runner = QemuUserRunner(artifact, replace(target, runner={**target.runner, "user_cpu": cpu}))
        if runner.available():
            pytest.skip(str(runner.available()))
        assert runner.image.level == level
        ran = runner.run(codes)
        assert (ran.outputs == golden.output_codes).all(), cpu
        assert len(ran.layers) == 4
        totals.append(sum(ran.layers))
    assert totals[0] > 1.5 * totals[1] > totals[2]
