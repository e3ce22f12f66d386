"""x86-64 rows that keep two weights in a byte: equal to the reference, half as large, chosen where that pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.nibbles import NibbleByteProduct, NibblePairProduct, NibbleProduct, table_of, zero_of
from xdeploy.kernels.x86 import WAITS

from tests.conftest import seed
from tests.kernels import harness
from tests.kernels.cases import Case, linear
from tests.kernels.test_vnni import scaled
from xdeploy.formats import FORMATS, Int8
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.program import bind, choose

SMALL = [f for f in FORMATS.values() if f.bits <= 4]
LEVELS = ("x86", "vnni")
OWN = [
    linear(735, 64, "int4"),
    linear(73, 33, "c4s8", relu=True),
    linear(128, 12, "int4", relu=True),
    linear(8, 3, "c3s8"),
    linear(1, 1, "int4"),
    linear(129, 140, "c4s8"),
    linear(64, 32, "c4s8", residual=True),
    linear(50, 16, "int4", residual=True, relu=True),
    linear(300, 17, "int4", fill="low"),
    linear(300, 64, "c4s8", fill="high"),
    scaled(linear(33, 40, "int4"), 700.0),
    scaled(linear(33, 40, "c2s8"), 3e4),
]


def _row(case: Case, level: str) -> Kernel:
    return KERNELS[f"linear_s8_{case.node.format.short}_packed__{level}"]


def with_book(case: Case, book: list[int]) -> Case:
    """The same with other codebook entries."""
    consts = {**case.node.consts, "codebook": np.array(book, np.int8)}
    node = replace(case.node, consts=consts)
    return replace(case, name=f"{case.name}_{book[0]}", graph=replace(case.graph, nodes=(node,)))


def _random() -> list[Case]:
    rng = np.random.default_rng([seed(), 41])
    return [
        linear(int(rng.integers(1, 200)), int(rng.integers(1, 150)), fmt.name, relu=bool(rng.integers(2)))
        for fmt in SMALL
        for _ in range(3)
    ]


@pytest.mark.parametrize("level", LEVELS)
def test_rows_equal_the_reference(level: str, tmp_path: Path) -> None:
    batch = harness.Batch(harness.host_level(level), harness.host_image(1 << 24))
    for case in [*OWN, *_random()]:
        assert _row(case, level).applies(case.graph, case.node, batch.target), case.name
        batch.add(_row(case, level), case)
    harness.check_level(batch, level, tmp_path)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_saturates_on_the_way(level: str, tmp_path: Path) -> None:
    """All codes and weights at their ends; a full codebook without 0 behind whose weights no code may count."""
    batch = harness.Batch(harness.host_level(level), harness.host_image(1 << 24))
    book = [-127, *range(1, 15), 127]
    for rows in (64, 61):
        for case in (linear(rows, 24, "int4"), with_book(linear(rows, 24, "c4s8"), book)):
            for weight in (0, 15) if case.node.format.codebook else (-8, 7):
                for code in (-128, 127):
                    one = Case(f"{case.name}_{weight}_{code}", case.graph, (np.full_like(case.inputs[0], code),))
                    consts = {**case.node.consts, "codes": np.full_like(case.node.consts["codes"], weight)}
                    one = replace(one, graph=replace(one.graph, nodes=(replace(one.node, consts=consts),)))
                    batch.add(_row(one, level), one)
    harness.check_level(batch, level, tmp_path)


def test_an_entry_of_minus_128_is_for_vnni_only(tmp_path: Path) -> None:
    case = with_book(linear(40, 20, "c4s8"), [-128, *range(1, 15), 127])
    assert not _row(case, "x86").applies(case.graph, case.node, harness.host_level("x86"))
    batch = harness.Batch(harness.host_level("vnni"), harness.host_image())
    batch.add(_row(case, "vnni"), case)
    harness.check_level(batch, "vnni", tmp_path)


def _expanded(packed: Int8, table: Int8, channels: int) -> Int8:
    """Weights (channels, row) by the layout's definition, byte by byte."""
    units = packed.view(np.uint8).reshape(-1, channels, 4)
    weights = np.zeros((channels, 8 * len(units)), np.int8)
    for u, unit in enumerate(units):
        for channel, four in enumerate(unit):
            for k, byte in enumerate(four):
                weights[channel, 8 * u + k] = table[int(byte) % 16]
                weights[channel, 8 * u + 4 + k] = table[int(byte) // 16]
    return weights


@pytest.mark.parametrize("product", [NibblePairProduct(), NibbleByteProduct()], ids=["x86", "vnni"])
@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_bytes_hold_the_values(fmt: object, product: NibbleProduct) -> None:
    node = linear(24, 2 * product.lanes, fmt.name).node  # type: ignore[attr-defined]
    packed = product.pack(product.weights(node)[None])[0]
    assert packed.size == node.consts["codes"].size // 2
    assert (_expanded(packed, table_of(node), 2 * product.lanes) == node.values).all()
    assert table_of(node)[zero_of(node)] == 0 or 0 not in table_of(node)


def stack(fmt: str, width: int, layers: int) -> LoweredGraph:
    """Equal square layers, one behind the other."""
    case = linear(width, width, fmt)
    nodes = [replace(case.node, name=f"layer{k}", inputs=(f"t{k}",), output=f"t{k + 1}") for k in range(layers)]
    tensors = {f"t{k}": case.graph.tensors["x"] for k in range(layers + 1)}
    return replace(case.graph, nodes=tuple(nodes), tensors=tensors, input="t0", output=f"t{layers}")


@pytest.mark.parametrize(
    ("level", "fmt", "forms"),
    [
        ("x86", "int4", ("packed", "packed", "packed")),
        ("x86", "c4s8", ("packed", "packed", "packed")),
        ("vnni", "int4", ("direct", "packed", "packed")),
        ("vnni", "c4s8", ("direct", "direct", "packed")),
        ("vnni", "int8", ("direct", "direct", "direct")),
    ],
)
def test_what_is_chosen(level: str, fmt: str, forms: tuple[str, ...]) -> None:
    """By all weights of the network: whether they stay in the first cache, in the second, or in neither."""
    width, near, far = 128, *(size for size, _ in WAITS)
    for weights, form in zip((near, far, 4 * far), forms, strict=True):
        graph = stack(fmt, width, weights // width**2)
        row = choose(graph, graph.nodes[0], harness.host_level(level)).name
        assert row == f"linear_s8_{FORMATS[fmt].short}_{form}__{level}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("fmt", ["int4", "c4s8"])
def test_constants_are_half_as_large(fmt: str, level: str) -> None:
    sizes = [bind(stack(name, 512, 5), harness.host_level(level), "m").weight_bytes for name in ("int8", fmt)]
    assert 0.5 < sizes[1] / sizes[0] < 0.52


def test_codes_of_narrow_formats_are_nibbles() -> None:
    nodes: list[Node] = [linear(16, 8, fmt.name).node for fmt in SMALL]
    for node in nodes:
        codes = NibbleByteProduct().weights(node)
        assert codes.min() >= 0
        assert codes.max() < 16
        assert (table_of(node)[codes] == node.values).all()
