"""Random small QDQ graphs over the whole vocabulary, lowered and compared with ONNX Runtime node by node.

A failure prints the seed; `pytest tests/lower/test_patterns_random.py -k "[seed]"` runs it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.lower.qdq import Qdq, checked
from tests.lower.test_patterns import floats, ints
from xdeploy.lower import ObstacleError

SEEDS = range(60)
TABLES = ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Gelu", "Mish", "Selu", "Abs", "Neg", "Softplus", "Sin")


class Net(Qdq):
    """A graph that grows by random operators; `shapes` knows every quantised tensor's shape and range."""

    def __init__(self, seed: int) -> None:
        self.dice = np.random.default_rng(seed)
        shape = tuple(int(self.dice.integers(2, 7)) for _ in range(3))
        super().__init__(shape, unsigned=bool(self.dice.integers(2)), opset=int(self.dice.choice([18, 20, 21])))
        self.rng = np.random.default_rng(seed + 1)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.close("x", shape)

    def close(self, real: str, shape: tuple[int, ...], scale: float | None = None) -> None:
        """Quantise a float tensor at parameters of its own."""
        scale = float(self.dice.uniform(0.01, 0.1)) if scale is None else scale
        self.shapes[self.q(scale, int(self.dice.integers(-128, 128)), real)] = shape

    def pick(self, rank: int = 3) -> tuple[str, tuple[int, ...]]:
        """The latest tensor, or now and then an earlier one."""
        names = [n for n, s in self.shapes.items() if len(s) == rank][-4:]
        name = names[-1] if self.dice.random() < 0.75 else str(self.dice.choice(names))
        return name, self.shapes[name]

    def some(self, low: int, high: int) -> int:
        return int(self.dice.integers(low, high + 1))


Grow = Callable[[Net], None]


def conv(n: Net) -> None:
    x, (c, h, w) = n.pick()
    k, out, s = n.some(1, 3), n.some(1, 5), n.some(1, 2)
    pads = [n.some(0, 1) + k // 2 for _ in range(4)]
    weight = n.weight((out, c, k, k), per_channel=bool(n.some(0, 1)))
    y = n.op("Conv", x, weight, n.bias(out), strides=[s, s], pads=pads)
    if n.some(0, 1):
        y = n.op("Relu", y)
    size = [(v + pads[i] + pads[i + 2] - k) // s + 1 for i, v in enumerate((h, w))]
    n.close(y, (out, *size), 0.06)


def transposed(n: Net) -> None:
    x, (c, h, w) = n.pick()
    if h * w > 150:
        return
    k, s, out = n.some(1, 4), n.some(1, 3), n.some(1, 3)
    extra = n.some(0, s - 1)
    weight = n.weight((c, out, k, k), axis=1)
    y = n.op("ConvTranspose", x, weight, strides=[s, s], output_padding=[extra, extra])
    n.close(y, (out, *((v - 1) * s + k + extra for v in (h, w))), 0.06)


def table(n: Net) -> None:
    x, shape = n.pick()
    op = str(n.dice.choice([t for t in TABLES if t not in ("Gelu", "Mish") or n.opset >= 20]))
    y = n.op(op, x)
    n.close(n.op("Mul", x, y) if n.some(0, 2) == 0 else y, shape)


def two(n: Net) -> None:
    x, shape = n.pick()
    y = str(n.dice.choice([name for name, other in n.shapes.items() if other == shape]))
    op = str(n.dice.choice(["Add", "Sub", "Mul", "Max", "Min"]))
    if n.some(0, 1):
        axes = [a + 1 for a in range(3) if n.some(0, 1)] or [2, 3]
        y = n.op(str(n.dice.choice(["ReduceMax", "ReduceMin"])), x, ints(n, *axes), keepdims=1)
        y = n.q(0.05, 0, y)
    n.close(n.op(op, *((x, y) if n.some(0, 1) else (y, x))), shape)


def constant(n: Net) -> None:
    x, shape = n.pick()
    wide = [shape, (shape[0], 1, 1), (1, 1, 1), (1, shape[1], shape[2])][n.some(0, 3)]
    values = n.dice.uniform(0.3, 2.0, wide).astype(np.float32) * n.dice.choice([-1, 1], wide).astype(np.float32)
    y = n.op(str(n.dice.choice(["Add", "Sub", "Mul", "Div"])), x, n.const(values))
    n.close(y, shape)


def normal(n: Net) -> None:
    x, shape = n.pick()
    parts = [n.const(n.dice.uniform(0.2, 1.5, shape[0]).astype(np.float32)) for _ in range(4)]
    n.close(n.op("BatchNormalization", x, *parts), shape)


def prelu(n: Net) -> None:
    x, shape = n.pick()
    n.close(n.op("PRelu", x, n.const(n.dice.normal(size=(shape[0], 1, 1)).astype(np.float32))), shape)


def pool(n: Net) -> None:
    x, (c, h, w) = n.pick()
    k, s = n.some(1, min(3, h, w)), n.some(1, 2)
    kinds = [("MaxPool", {}), ("AveragePool", {"count_include_pad": n.some(0, 1)})]
    op, attrs = kinds[n.some(0, 1)]
    y = n.op(op, x, kernel_shape=[k, k], strides=[s, s], **attrs)
    n.close(y, (c, (h - k) // s + 1, (w - k) // s + 1))


def reduction(n: Net) -> None:
    x, shape = n.pick()
    axes = [a + 1 for a in range(3) if n.some(0, 1)] or [3]
    op = str(n.dice.choice(["ReduceMean", "ReduceMax", "ReduceMin"]))
    y = n.op(op, x, ints(n, *axes), keepdims=1)
    n.close(y, tuple(1 if a + 1 in axes else s for a, s in enumerate(shape)))


def resize(n: Net) -> None:
    x, (c, h, w) = n.pick()
    if h * w > 200:
        return
    a, b = (float(n.dice.choice([0.5, 1.0, 1.5, 2.0, 3.0])) for _ in range(2))
    if int(h * a) < 1 or int(w * b) < 1:
        return
    mode = str(n.dice.choice(["asymmetric", "half_pixel"]))
    y = n.op("Resize", x, "", floats(n, 1, 1, a, b), mode="nearest", coordinate_transformation_mode=mode)
    n.close(y, (c, int(h * a), int(w * b)))


def gather(n: Net) -> None:
    x, shape = n.pick()
    axis = n.some(0, 2)
    wanted = [n.some(0, shape[axis] - 1) for _ in range(n.some(1, 5))]
    y = n.op("Gather", x, ints(n, *wanted), axis=axis + 1)
    n.close(y, (*shape[:axis], len(wanted), *shape[axis + 1 :]))


def cut(n: Net) -> None:
    x, shape = n.pick()
    axis = n.some(0, 2)
    start, step = n.some(0, shape[axis] - 1), n.some(1, 2)
    y = n.op("Slice", x, ints(n, start), ints(n, 99), ints(n, axis + 1), ints(n, step))
    n.close(y, (*shape[:axis], len(range(start, shape[axis], step)), *shape[axis + 1 :]))


def pad(n: Net) -> None:
    x, shape = n.pick()
    widths = [n.some(0, 1) for _ in range(6)]
    mode = str(n.dice.choice(["constant", "edge"]))
    rest = [floats(n, n.some(-1, 1), shape=())] if mode == "constant" else []
    y = n.op("Pad", x, ints(n, 0, *widths[:3], 0, *widths[3:]), *rest, mode=mode)
    n.close(y, tuple(s + a + b for s, a, b in zip(shape, widths[:3], widths[3:], strict=True)))


def join(n: Net) -> None:
    x, shape = n.pick()
    y = n.q(0.05, 1, n.op("Tanh", x))
    axis = n.some(0, 2)
    z = n.op("Concat", x, y, axis=axis + 1)
    n.close(z, (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]))


def turn(n: Net) -> None:
    x, shape = n.pick()
    perm = n.dice.permutation(3)
    n.close(n.op("Transpose", x, perm=[0, *(int(p) + 1 for p in perm)]), tuple(shape[p] for p in perm))


def blocks(n: Net) -> None:
    x, (c, h, w) = n.pick()
    if c % 4 == 0:
        y = n.op("DepthToSpace", x, blocksize=2, mode=str(n.dice.choice(["DCR", "CRD"])))
        n.close(y, (c // 4, 2 * h, 2 * w))
    elif h % 2 == 0 and w % 2 == 0:
        n.close(n.op("SpaceToDepth", x, blocksize=2), (4 * c, h // 2, w // 2))


def softmax(n: Net) -> None:
    x, shape = n.pick()
    n.shapes[n.q(1 / 256, -128, n.op("Softmax", x, axis=n.some(1, 3)))] = shape


GROWS: tuple[Grow, ...] = (
    conv, transposed, table, two, two, constant, normal, prelu, pool, reduction, resize, gather, cut, pad, join, turn,
    blocks, softmax,
)  # fmt: skip


def grown(seed: int) -> Net:
    net = Net(seed)
    for _ in range(net.some(2, 6)):
        grow = GROWS[net.some(0, len(GROWS) - 1)]
        before = net.pick()
        if int(np.prod(before[1])) < 3000:
            grow(net)
    return net


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs_stay_within_one_code(tmp_path: Path, seed: int) -> None:
    net = grown(seed)
    if len(net.nodes) <= 2:
        net.close(net.op("Tanh", net.at), net.shapes[net.at])
    last = list(net.shapes)[-1]
    path = net.save(tmp_path, output=last)
    try:
        checked(path, n=4)
    except ObstacleError as refusal:
        raise AssertionError(f"seed {seed}: {refusal}") from None
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from None


def test_every_operator_is_drawn() -> None:
    seen = {node.op_type for seed in SEEDS for node in grown(seed).nodes}
    assert seen >= {"Conv", "ConvTranspose", "Mul", "Sub", "BatchNormalization", "PRelu", "Resize", "Gather", "Pad"}
