"""The Winograd row: its algebra by brute force, its proofs at their edges, its instructions, and who may choose it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.snippets import channel_consts
from xdeploy.kernels.winograd import WinogradRow, transformed

from tests.kernels import harness
from tests.kernels.cases import Case, conv
from xdeploy.formats import FORMATS, INT32_LIMIT
from xdeploy.kernel import KERNELS
from xdeploy.lir.ops import macs
from xdeploy.program import choose
from xdeploy.target import load_target

ROW = KERNELS["conv2d_s8_s8_winograd3x2__armv7em"]
DIRECT = KERNELS["conv2d_s8_s8_3x2__armv7em"]
M4 = load_target("cortex-m4")
_B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def _with(case: Case, **attrs: int) -> Case:
    node = replace(case.node, attrs={**case.node.attrs, **attrs})
    return Case(f"{case.name}_{attrs}", replace(case.graph, nodes=(node,)), case.inputs)


def _run(cases: list[Case], folder: Path, samples: int = 3) -> list[int]:
    """Run the row on all cases, compare, and give the instructions of every call."""
    batch = harness.Batch(M4, harness.Image(harness.DATA))
    for case in cases:
        assert ROW.applies(case.graph, case.node, M4), case.name
        batch.add(ROW, case, samples)
    before = batch.image.bytes.copy()
    machine = harness.Unicorn(harness.link(batch, folder), M4, batch.image, count=True)
    counts = [machine.call(call.symbol, call.args) for call in batch.calls]
    machine.read_back()
    assert batch.failures() == []
    assert batch.image.damaged(before) == []
    return counts


@pytest.mark.parametrize("extreme", [False, True])
def test_four_times_the_convolution(extreme: bool) -> None:
    rng = np.random.default_rng(5)
    w = rng.choice([-128, 127], (1, 3, 3, 6)) if extreme else rng.integers(-127, 128, (1, 3, 3, 6))
    d = rng.choice([-128, 127], (4, 4, 6)) if extreme else rng.integers(-128, 128, (4, 4, 6))
    v = np.einsum("ai,ijc,bj->abc", _B, d, _B)
    assert np.abs(v).max() <= 512
    m = (transformed(w).reshape(4, 4, 6) * v).sum(axis=2)
    direct = [[(w[0] * d[y : y + 3, x : x + 3]).sum() for x in (0, 1)] for y in (0, 1)]
    assert (_A @ m @ _A.T == 4 * np.array(direct)).all()


def test_largest_weights_fit_int16() -> None:
    signs = np.sign(transformed(np.eye(9, dtype=np.int8).reshape(9, 3, 3, 1))).reshape(9, 16).T
    worst = np.stack([128 * s.reshape(3, 3, 1) for s in signs])
    assert np.abs(transformed(worst)).max() == 9 * 128


def test_exact_at_borders_shifts_and_clamps(tmp_path: Path) -> None:
    plain = conv((6, 5), 8, 6, residual=True, relu=True)
    cases = [
        plain,
        *(_with(conv((4, 4), 4, 2), shift=n) for n in (1, 2, 3)),
        *(_with(plain, shift=n, add_low=-128, add_high=127) for n in (0, 3)),
        conv((1, 1), 4, 2),
        conv((5, 3), 12, 4, pads=(0, 0, 0, 0)),
        conv((3, 2), 4, 4, pads=(2, 2, 2, 2), in_zero=127, residual=True),
        conv((2, 11), 36, 2, pads=(1, 0, 0, 2), in_zero=-128),
        conv((5, 5), 16, 4, fill="high"),
    ]
    _run(cases, tmp_path)


def test_proof_refuses_just_above_the_limit() -> None:
    case = conv((4, 4), 4, 2)
    sums = np.abs(case.node.values.astype(np.int64)).reshape(2, -1).sum(axis=1)
    folded = channel_consts(case.node)["bias"].astype(np.int64) - case.node.consts["bias"]
    edge = INT32_LIMIT // 4 - sums * 128 - folded  # where four times the bound reaches 2^31
    for extra, fits in ((-1, True), (0, False)):
        bias = np.array([edge[0] + extra, 0], np.int32)
        node = replace(case.node, consts={**case.node.consts, "bias": bias})
        assert ROW.applies(case.graph, node, M4) is fits
        assert DIRECT.applies(case.graph, node, M4)


@pytest.mark.parametrize(
    "case",
    [
        conv((5, 5), 6, 4), conv((5, 5), 4, 3), conv((6, 6), 4, 4, stride=(2, 2)), conv((6, 6), 4, 4, (1, 1)),
        conv((9, 9), 4, 4, dilation=(2, 1)), conv((5, 5), 4, 4, groups=4), conv((5, 5), 4, 4, fmt="int4"),
    ],
    ids=lambda case: case.name,
)  # fmt: skip
def test_refuses_other_geometry(case: Case) -> None:
    assert not ROW.applies(case.graph, case.node, M4)


def test_fewer_instructions_for_more_flash(tmp_path: Path) -> None:
    """The cost model is near, and 16 channels gain a third or more; weights take 32/9 of the bytes."""
    case = conv((16, 16), 16, 16)
    counted = _run([case], tmp_path, samples=1)[0]
    assert counted < 0.66 * macs(case.graph, case.node)
    assert ROW.cost(case.graph, case.node, M4) == pytest.approx(counted, rel=0.05)
    packed = {row.name: row.pack(case.graph, case.node)["weights"].nbytes for row in (ROW, DIRECT)}
    assert packed[ROW.name] * 9 == packed[DIRECT.name] * 32


def test_never_chosen_without_being_asked_for() -> None:
    case = conv((16, 16), 16, 16)
    cheapest = min((ROW, DIRECT), key=lambda row: row.cost(case.graph, case.node, M4))
    assert cheapest is ROW
    assert ROW.tags["extra_flash"]
    assert choose(case.graph, case.node, M4).name == DIRECT.name


def test_one_function_serves_all_shapes() -> None:
    row = WinogradRow(FORMATS["int8"])
    codes = [row.emit(c.graph, c.node, M4) for c in (conv((8, 8), 16, 16), conv((5, 7), 32, 4), conv((3, 3), 4, 2))]
    assert len({(code.text, code.llvm_ir) for code in codes}) == 1
