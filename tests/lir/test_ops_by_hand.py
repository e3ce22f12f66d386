"""Every op against a loop over single elements in Python's own integers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from xdeploy.errors import UnsupportedError
from xdeploy.formats import FORMATS, QParams, requant
from xdeploy.handover import IoSpec
from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.lir.ops import OPS, has_residual, macs, run, scaled_params, softmax_table, verify

RNG = np.random.default_rng(0)


def codes(*shape: int) -> np.ndarray:
    x = RNG.integers(-128, 128, shape).astype(np.int8)
    x.reshape(-1)[:2] = (-128, 127)
    return x


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def by_hand(x: np.ndarray, n: int, h: int, w: int, c: int, fill: int) -> int:
    inside = 0 <= h < x.shape[1] and 0 <= w < x.shape[2]
    return int(x[n, h, w, c]) if inside else fill


def requantised(acc: int, m: int, a: dict[str, Any]) -> int:
    return clamp(a["out_zero"] + ((((acc << a["shift"]) * m) + (1 << 31)) // (1 << 32)), a["low"], a["high"])


def scaled(a: dict[str, Any], prefix: str, x0: int, x1: int = 0) -> int:
    acc = a[f"{prefix}a"] * x0 + a.get(f"{prefix}b", 0) * x1 + a[f"{prefix}const"]
    assert -(2**31) <= acc < 2**31
    return clamp(acc // 2 ** a[f"{prefix}shift"], a[f"{prefix}low"], a[f"{prefix}high"])


def weights(fmt: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    f = FORMATS[fmt]
    consts = {"bias": RNG.integers(-3000, 3000, shape[0]).astype(np.int32)}
    if f.codebook:
        return {
            **consts, "codes": RNG.integers(0, 2**f.bits, shape).astype(np.int8),
            "codebook": RNG.integers(-127, 128, 2**f.bits).astype(np.int8),
        }  # fmt: skip
    return {**consts, "codes": RNG.integers(-f.limit, f.limit + 1, shape).astype(np.int8)}


def value(consts: dict[str, np.ndarray], at: tuple[int, ...]) -> int:
    code = int(consts["codes"][at])
    return int(consts["codebook"][code]) if "codebook" in consts else code


def output_stage(channels: int, size: int, zero: int = -7, low: int = -100, high: int = 120) -> tuple[dict, np.ndarray]:
    r = requant(RNG.uniform(0.2, 1.2, channels) / size, zero, low, high)
    return {"shift": r.shift, "out_zero": zero, "low": low, "high": high}, r.multiplier


@pytest.mark.parametrize(
    ("fmt", "kernel", "stride", "pads", "dilation", "groups", "out"),
    [
        ("int8", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 5),
        ("int4", (3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 1, 3),
        ("c4s8", (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1, 4),
        ("c3s8", (3, 3), (1, 2), (1, 0, 1, 1), (1, 1), 4, 4),
        ("int2", (2, 3), (1, 1), (0, 0, 0, 0), (2, 1), 2, 6),
    ],
)
@pytest.mark.parametrize("residual", [False, True])
def test_conv2d(
    fmt: str, kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, ...], dilation: tuple[int, int],
    groups: int, out: int, residual: bool,
) -> None:  # fmt: skip
    x, per = codes(2, 6, 5, 4), 4 // groups
    consts = weights(fmt, (out, *kernel, per))
    stage, consts["multiplier"] = output_stage(out, 40 * kernel[0] * kernel[1])
    a: dict[str, Any] = {
        "weight_format": fmt, "stride": stride, "pads": pads, "dilation": dilation, "groups": groups, "in_zero": -9,
        **stage,
    }  # fmt: skip
    if residual:
        a |= scaled_params(QParams(0.05, -7), QParams(0.03, 4), QParams(0.06, 2), "add_", -128, 100)
    node = Node("n", "conv2d", ("x", "r") if residual else ("x",), "y", a, consts)
    shape = OPS["conv2d"].shape(node, [x.shape[1:]])
    r = codes(2, *shape)
    got = OPS["conv2d"].run(node, [x, r] if residual else [x])
    assert got.shape == (2, *shape)
    for n, i, j, o in np.ndindex(got.shape):
        acc = int(consts["bias"][o])
        for p, q, c in np.ndindex(*kernel, per):
            row, column = i * stride[0] - pads[0] + p * dilation[0], j * stride[1] - pads[1] + q * dilation[1]
            channel = o // (out // groups) * per + c
            acc += (by_hand(x, n, row, column, channel, -9) + 9) * value(consts, (o, p, q, c))
        want = requantised(acc, int(consts["multiplier"][o]), a)
        if residual:
            want = scaled(a, "add_", want, int(r[n, i, j, o]))
        assert got[n, i, j, o] == want


@pytest.mark.parametrize("fmt", sorted(FORMATS))
def test_linear_in_every_format(fmt: str) -> None:
    x, consts = codes(3, 11), weights(fmt, (4, 11))
    stage, consts["multiplier"] = output_stage(4, 200)
    a = {"weight_format": fmt, "in_zero": 5, **stage}
    got = OPS["linear"].run(Node("n", "linear", ("x",), "y", a, consts), [x])
    for n, o in np.ndindex(3, 4):
        acc = int(consts["bias"][o]) + sum((int(x[n, k]) - 5) * value(consts, (o, k)) for k in range(11))
        assert got[n, o] == requantised(acc, int(consts["multiplier"][o]), a)


@pytest.mark.parametrize("include_pad", [False, True])
def test_avg_pool2d(include_pad: bool) -> None:
    x, kernel, stride, pads = codes(2, 5, 4, 3), (3, 2), (2, 1), (1, 0, 1, 1)
    r = requant(0.9 / np.arange(1, 7), 11, -128, 90)
    a = {
        "kernel": kernel, "stride": stride, "pads": pads, "include_pad": include_pad, "in_zero": -20,
        "shift": r.shift, "out_zero": 11, "low": -128, "high": 90,
    }  # fmt: skip
    node = Node("n", "avg_pool2d", ("x",), "y", a, {"multiplier": r.multiplier})
    got = OPS["avg_pool2d"].run(node, [x])
    assert got.shape[1:] == OPS["avg_pool2d"].shape(node, [(5, 4, 3)])
    for n, i, j, c in np.ndindex(got.shape):
        cells = [(i * 2 - 1 + p, j + q) for p, q in itertools.product(range(3), range(2))]
        inside = [(h, w) for h, w in cells if 0 <= h < 5 and 0 <= w < 4]
        acc = sum(int(x[n, h, w, c]) + 20 for h, w in inside)
        count = 6 if include_pad else len(inside)
        assert got[n, i, j, c] == requantised(acc, int(r.multiplier[count - 1]), a)


def test_max_pool2d_ignores_the_padding() -> None:
    x = np.full((1, 4, 4, 1), -128, np.int8)
    x[0, 2, 2, 0] = -5
    a = {"kernel": (2, 2), "stride": (2, 2), "pads": (1, 1, 1, 1)}
    got = OPS["max_pool2d"].run(Node("n", "max_pool2d", ("x",), "y", a), [x])
    assert got[0, :, :, 0].tolist() == [[-128, -128, -128], [-128, -5, -128], [-128, -128, -128]]
    x = codes(2, 5, 6, 3)
    got = OPS["max_pool2d"].run(Node("n", "max_pool2d", ("x",), "y", a), [x])
    for n, i, j, c in np.ndindex(got.shape):
        cells = [by_hand(x, n, 2 * i - 1 + p, 2 * j - 1 + q, c, -128) for p in range(2) for q in range(2)]
        assert got[n, i, j, c] == max(cells)


@pytest.mark.parametrize(
    ("q0", "q1", "out"),
    [
        (QParams(0.05, -3), QParams(0.05, 7), QParams(0.05, 0)),
        (QParams(0.001, -128), QParams(0.2, 127), QParams(0.1, -5)),
        (QParams(0.3, 127), QParams(0.3, 127), QParams(0.002, -128)),
        (QParams(1e-6, 0), QParams(0.02, -128), QParams(0.03, 12)),
    ],
)
def test_add_and_rescale_over_all_codes(q0: QParams, q1: QParams, out: QParams) -> None:
    every = np.arange(-128, 128).astype(np.int8)
    x0, x1 = (m.reshape(1, -1) for m in np.meshgrid(every, every))
    a = scaled_params(q0, q1, out, low=-120)
    got = OPS["add"].run(Node("n", "add", ("x", "y"), "z", a), [x0, x1])
    want = [scaled(a, "", int(p), int(q)) for p, q in zip(x0[0, ::7], x1[0, ::7], strict=True)]
    assert got[0, ::7].tolist() == want
    real = (
        q0.scale * (x0 - float(q0.zero_point)) + q1.scale * (x1 - float(q1.zero_point))
    ) / out.scale + out.zero_point
    assert np.abs(got - np.clip(np.rint(real), -120, 127)).max() <= 1
    r = scaled_params(q1, None, out)
    moved = OPS["rescale"].run(Node("n", "rescale", ("x",), "z", r), [every[None]])
    assert moved[0].tolist() == [scaled(r, "", int(c)) for c in every]
    single = np.rint(q1.scale * (every - float(q1.zero_point)) / out.scale + out.zero_point)
    assert np.abs(moved[0] - np.clip(single, -128, 127)).max() <= 1


def test_scales_too_far_apart_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="too far apart"):
        scaled_params(QParams(1e6, 0), QParams(1.0, 0), QParams(1e-4, 0))


def test_softmax_is_within_one_code_of_the_real_one() -> None:
    for scale, classes in ((0.17, 10), (0.001, 3), (2.0, 1000), (0.05, 1)):
        x = codes(6, max(classes, 2))[:, :classes]
        node = Node("n", "softmax", ("x",), "y", {}, {"table": softmax_table(scale, classes)})
        got = OPS["softmax"].run(node, [x])
        e = np.exp((x - x.max(axis=1, keepdims=True).astype(np.float64)) * scale)
        want = np.clip(np.rint(256 * e / e.sum(axis=1, keepdims=True)) - 128, -128, 127)
        assert np.abs(got - want).max() <= 1
        table = [int(v) for v in node.consts["table"]]
        assert 256 * max(table) + table[0] * classes // 2 < 2**31
        for n in range(6):
            terms = [table[int(x[n].max()) - int(v)] for v in x[n]]
            assert got[n].tolist() == [
                clamp(-128 + (256 * t + sum(terms) // 2) // sum(terms), -128, 127) for t in terms
            ]


def test_movement_ops() -> None:
    x, y = codes(2, 3, 4, 5), codes(2, 3, 4, 2)

    def apply(op: str, *xs: np.ndarray, **attrs: Any) -> np.ndarray:
        node = Node("n", op, tuple("xy"[: len(xs)]), "z", attrs)
        result = OPS[op].run(node, list(xs))
        assert result.shape[1:] == OPS[op].shape(node, [a.shape[1:] for a in xs])
        return result

    padded = apply("pad", x, pads=(1, 0, 2, 3), channels=(1, 2), value=-77)
    for n, h, w, c in np.ndindex(padded.shape):
        inside = 0 <= h - 1 < 3 and 0 <= w < 4 and 0 <= c - 1 < 5
        assert padded[n, h, w, c] == (x[n, h - 1, w, c - 1] if inside else -77)
    cut = apply("slice", x, starts=(1, 0, 1), stops=(3, 4, 5), steps=(1, 2, 3))
    assert cut.tolist() == [[[[x[n, h, w, c] for c in (1, 4)] for w in (0, 2)] for h in (1, 2)] for n in (0, 1)]
    joined = apply("concat", x, y)
    assert joined[1, 2, 3].tolist() == [*x[1, 2, 3], *y[1, 2, 3]]
    turned = apply("transpose", x, perm=(2, 0, 1))
    assert all(turned[n, c, h, w] == x[n, h, w, c] for n, h, w, c in np.ndindex(x.shape))
    assert apply("reshape", x, shape=(60,))[1].tolist() == x[1].reshape(-1).tolist()
    limited = apply("clamp", x, low=-5, high=9)
    assert all(limited[i] == clamp(int(x[i]), -5, 9) for i in np.ndindex(x.shape))
    table = codes(256)
    looked = OPS["lut"].run(Node("n", "lut", ("x",), "z", {}, {"table": table}), [x])
    assert all(looked[i] == table[int(x[i]) + 128] for i in np.ndindex(x.shape))


@pytest.mark.parametrize("gate", [(5, 4, 3), (1, 1, 3)])
def test_mul(gate: tuple[int, ...]) -> None:
    x, g = codes(2, 5, 4, 3), codes(2, *gate)
    stage, m = output_stage(1, 60)
    a = {**stage, "a_zero": -17, "b_zero": 99}
    got = OPS["mul"].run(Node("n", "mul", ("x", "g"), "y", a, {"multiplier": m}), [x, g])
    for i in np.ndindex(x.shape):
        factor = int(g[i]) if gate == (5, 4, 3) else int(g[i[0], 0, 0, i[3]])
        assert got[i] == requantised((int(x[i]) + 17) * (factor - 99), int(m[0]), a)


def product(shapes: dict[str, tuple[int, ...]], shift: int, multiplier: list[int]) -> LoweredGraph:
    a = {"a_zero": 0, "b_zero": 0, "shift": shift, "out_zero": 0, "low": -128, "high": 127}
    lift = {"rows": (0,) * shapes["g"][0], "cols": (0,) * shapes["g"][1]}
    nodes = (
        Node("g", "resize", ("x",), "g", lift),
        Node("m", "mul", ("x", "g"), "y", a, {"multiplier": np.array(multiplier, np.int32)}),
    )
    tensors = {k: Tensor(v, QParams(0.1, 0)) for k, v in shapes.items()}
    return LoweredGraph(nodes, tensors, "x", "y", IoSpec("x", (3, 4, 4), "y", (3, 4, 4)))


def test_verify_proves_a_product() -> None:
    shapes = {"x": (4, 4, 3), "g": (1, 1, 3), "y": (4, 4, 3)}
    verify(product(shapes, 15, [2**31 - 2]))
    with pytest.raises(UnsupportedError, match="m: the product of two codes could overflow"):
        verify(product(shapes, 16, [2**31 - 2]))
    for bad in ([3], [2, 2], [-2]):
        with pytest.raises(ValueError, match="m: mul wants one even multiplier"):
            verify(product(shapes, 0, bad))
    with pytest.raises(ValueError, match="gate of one value per channel"):
        verify(product({**shapes, "g": (1, 4, 3)}, 0, [2]))


def test_resize() -> None:
    x = codes(2, 4, 3, 5)
    rows, cols = (0, 0, 3, 1, 2), (2, 2, 0)
    got = OPS["resize"].run(Node("n", "resize", ("x",), "y", {"rows": rows, "cols": cols}), [x])
    assert got.shape == (2, 5, 3, 5)
    assert all(got[n, i, j, c] == x[n, rows[i], cols[j], c] for n, i, j, c in np.ndindex(got.shape))
    deep = codes(2, 3, 2, 2, 2, 5)  # the depth-to-space view
    turned = OPS["transpose"].run(Node("n", "transpose", ("x",), "y", {"perm": (0, 2, 1, 3, 4)}), [deep])
    assert all(turned[n, h, i, w, j, c] == deep[n, h, w, i, j, c] for n, h, w, i, j, c in np.ndindex(deep.shape))
    with pytest.raises(ValueError, match="axis of 4"):
        OPS["resize"].shape(Node("n", "resize", ("x",), "y", {"rows": (4,), "cols": (0,)}), [(4, 3, 5)])


def graph() -> LoweredGraph:
    consts = weights("int4", (3, 1, 1, 2))
    stage, consts["multiplier"] = output_stage(3, 50)
    place = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "in_zero": 0}
    conv = Node("c", "conv2d", ("x",), "y", {"weight_format": "int4", **place, **stage}, consts)
    q = QParams(0.1, 0)
    tensors = {"x": Tensor((4, 3, 2), q), "y": Tensor((4, 3, 3), q), "z": Tensor((36,), q)}
    nodes = (conv, Node("r", "reshape", ("y",), "z", {"shape": (36,)}))
    return LoweredGraph(nodes, tensors, "x", "z", IoSpec("x", (2, 4, 3), "z", (36,), input_q=q, output_q=q))


def test_verify_finds_what_is_wrong() -> None:
    g = graph()
    verify(g)
    assert macs(g, g.nodes[0]) == 2 * 36
    assert not has_residual(g.nodes[0])
    conv, shape = g.nodes

    def replaced(**changes: Any) -> LoweredGraph:
        node = replace(conv, **changes)
        return LoweredGraph((node, shape), g.tensors, g.input, g.output, g.io)

    wrong = [
        replaced(op="fft"), replaced(inputs=("x", "x", "x")), replaced(inputs=("nowhere",)), replaced(output="x"),
        replaced(attrs={k: v for k, v in conv.attrs.items() if k != "groups"}),
        replaced(attrs={**conv.attrs, "stride": (2, 1)}), replaced(consts={"codes": conv.consts["codes"]}),
        LoweredGraph(g.nodes, g.tensors, "x", "nowhere", g.io),
    ]  # fmt: skip
    for bad in wrong:
        with pytest.raises(ValueError):  # noqa: PT011 (the point is that each is found)
            verify(bad)
    heavy = {**conv.consts, "bias": np.full(3, 2**31 - 1, np.int32)}
    with pytest.raises(UnsupportedError, match="c: the int32 accumulator could overflow"):
        verify(replaced(consts=heavy))


def test_run_frees_and_keeps() -> None:
    g, x = graph(), codes(2, 4, 3, 2)
    assert set(run(g, x)) == {"z"}
    kept = run(g, x, keep=True)
    assert set(kept) == {"x", "y", "z"}
    np.testing.assert_array_equal(kept["y"].reshape(2, 36), run(g, x)["z"])


def test_graph_is_saved_and_loaded(tmp_path: Any) -> None:
    g, x = graph(), codes(2, 4, 3, 2)
    g.save(tmp_path / "graph.txt", tmp_path / "graph.npz")
    back = LoweredGraph.load(tmp_path / "graph.npz")
    assert back.to_text() == g.to_text() == (tmp_path / "graph.txt").read_text()
    verify(back)
    np.testing.assert_array_equal(run(back, x)["z"], run(g, x)["z"])


def test_verify_bounds_the_sum_of_a_pooling_window() -> None:
    size, q = 2000, QParams(0.1, 0)
    a = {
        "kernel": (size, 1), "stride": (1, 1), "pads": (0, 0, 0, 0), "include_pad": False, "in_zero": 0,
        "shift": 14, "out_zero": 0, "low": -128, "high": 127,
    }  # fmt: skip
    for shift, fits in ((11, True), (14, False)):
        multiplier = np.ones(size, np.int32)
        node = Node("p", "avg_pool2d", ("x",), "y", {**a, "shift": shift}, {"multiplier": multiplier})
        tensors = {"x": Tensor((size, 1, 1), q), "y": Tensor((1, 1, 1), q)}
        g = LoweredGraph((node,), tensors, "x", "y", IoSpec("x", (1, size, 1), "y", (1, 1, 1)))
        if fits:
            verify(g)
        else:
            with pytest.raises(UnsupportedError, match="p: the sum of a window"):
                verify(g)
