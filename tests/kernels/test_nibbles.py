"""x86-64 rows that keep two or four weights in a byte: equal to the reference, as small, chosen where that pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.nibbles import NibbleByteProduct, NibblePairProduct, stored, values_of, zero_of
from xdeploy.kernels.x86 import STREAMS, WAITS

from tests.conftest import seed
from tests.kernels import harness
from tests.kernels.cases import Case, conv, linear
from tests.kernels.test_vnni import scaled
from xdeploy.builder.levels import bind_levels
from xdeploy.formats import FORMATS, Int8, WeightFormat
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import bind, choose

SMALL = [f for f in FORMATS.values() if f.bits <= 4]
LEVELS = ("x86", "vnni")
NONE = (0, 0, 0, 0)
OWN = [
    linear(735, 64, "int4"),
    linear(73, 33, "c4s8", relu=True),
    linear(128, 12, "int4", relu=True),
    linear(8, 3, "c3s8"),
    linear(735, 64, "int2"),
    linear(73, 33, "c2s8", relu=True),
    linear(15, 140, "int2"),
    linear(129, 32, "c2s8", residual=True),
    linear(300, 17, "int2", fill="low"),
    linear(1, 1, "int4"),
    linear(129, 140, "c4s8"),
    linear(64, 32, "c4s8", residual=True),
    linear(50, 16, "int4", residual=True, relu=True),
    linear(300, 17, "int4", fill="low"),
    linear(300, 64, "c4s8", fill="high"),
    scaled(linear(33, 40, "int4"), 700.0),
    scaled(linear(33, 40, "c2s8"), 3e4),
    conv((5, 7), 20, 12, fmt="int4", relu=True),
    conv((5, 7), 16, 48, fmt="c4s8", residual=True, relu=True),
    conv((4, 4), 64, 140, fmt="int4"),
    conv((2, 2), 24, 128, fmt="c4s8", residual=True, in_zero=127),
    conv((8, 8), 32, 64, fmt="c3s8", stride=(2, 2)),
    conv((7, 6), 5, 18, (3, 3), (2, 2), fmt="int3"),
    conv((5, 7), 32, 48, fmt="int2", residual=True, relu=True),
    conv((4, 4), 48, 140, fmt="c2s8", in_zero=-100),
    conv((8, 8), 16, 64, fmt="int2", stride=(2, 2), fill="low"),
    conv((2, 2), 64, 128, fmt="c2s8", fill="high"),
    conv((6, 6), 9, 16, fmt="int2", dilation=(1, 2), pads=(1, 2, 1, 2)),
    conv((4, 9), 24, 30, (1, 1), pads=NONE, fmt="c2s8", relu=True),
    conv((1, 1), 40, 17, (1, 1), pads=NONE, fmt="int4"),
    conv((9, 8), 7, 33, (1, 1), (2, 2), pads=NONE, fmt="int2"),
    conv((6, 6), 3, 16, fmt="c3s8", dilation=(1, 2), pads=(1, 2, 1, 2)),
    conv((3, 29), 16, 16, fmt="int4", fill="low", residual=True, in_zero=-128),
    conv((4, 6), 12, 64, fmt="c4s8", fill="high"),
    scaled(conv((4, 7), 4, 32, fmt="int4", residual=True), 3e4),
    scaled(conv((4, 7), 16, 33, fmt="c4s8"), 700.0),
]


def _row(case: Case, level: str) -> Kernel:
    return KERNELS[f"{case.node.op}_s8_{case.node.format.short}_packed__{level}"]


def with_book(case: Case, book: list[int]) -> Case:
    """The same with other codebook entries."""
    consts = {**case.node.consts, "codebook": np.array(book, np.int8)}
    node = replace(case.node, consts=consts)
    return replace(case, name=f"{case.name}_{book[0]}", graph=replace(case.graph, nodes=(node,)))


def _random() -> list[Case]:
    rng = np.random.default_rng([seed(), 41])
    return [
        case
        for fmt in SMALL
        for _ in range(3)
        for case in (
            linear(int(rng.integers(1, 200)), int(rng.integers(1, 150)), fmt.name, relu=bool(rng.integers(2))),
            _random_conv(rng, fmt.name),
        )
    ]


def _random_conv(rng: np.random.Generator, fmt: str) -> Case:
    side, stride = int(rng.choice([1, 3])), int(rng.integers(1, 3))
    hw = (int(rng.integers(3, 10)), int(rng.integers(3, 10)))
    outs = int(rng.integers(1, 100))
    return conv(
        hw, int(rng.integers(1, 40)), outs, (side, side), (stride, stride), (side // 2,) * 4, fmt=fmt,
        relu=bool(rng.integers(2)), residual=outs % 16 == 0, in_zero=int(rng.integers(-128, 128)),
    )  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
def test_rows_equal_the_reference(level: str, tmp_path: Path) -> None:
    batch = harness.Batch(harness.host_level(level), harness.host_image(1 << 24))
    for case in [*OWN, *_random()]:
        fits = _row(case, level).applies(case.graph, case.node, batch.target)
        assert fits or needs_zero(case), case.name
        if fits:
            batch.add(_row(case, level), case)
    harness.check_level(batch, level, tmp_path)


def needs_zero(case: Case) -> bool:
    """Whether weights have to be 0 where a window's runs end between units, but no code stands for that."""
    run, node = case.node.consts["codes"].shape[2:], case.node
    assert node.format is not None
    bits = stored(node.format)
    parted = node.op == "conv2d" and int(np.prod(run if node.attrs["dilation"][1] == 1 else run[1:])) % (32 // bits)
    return bool(parted) and 0 not in values_of(node, bits)


def test_windows_that_end_between_units_need_a_weight_of_zero() -> None:
    book = [-127, *range(1, 15), 127]
    for channels, zero, fits in ((8, False, True), (5, False, False), (5, True, True)):
        case = with_book(conv((4, 4), channels, 16, fmt="c4s8"), [*book[:-1], 0] if zero else book)
        for level in LEVELS:
            assert _row(case, level).applies(case.graph, case.node, harness.host_level(level)) == fits


def test_sums_that_could_leave_int32_are_for_others() -> None:
    """Uniform weights count 16 times with AVX512-VNNI: 16 * 8 * 255 a code."""
    level = harness.host_level("vnni")
    for codes, fits in ((65793, True), (65794, False)):
        case = linear(codes, 1, "int4", fill="low")
        assert _row(case, "vnni").applies(case.graph, case.node, level) == fits


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_saturates_on_the_way(level: str, tmp_path: Path) -> None:
    """All codes and weights at their ends; a full codebook without 0 behind whose weights no code may count."""
    batch = harness.Batch(harness.host_level(level), harness.host_image(1 << 24))
    cases = []
    for bits, book in ((4, [-127, *range(1, 15), 127]), (2, [-127, -126, 126, 127])):
        for rows in (64, 61):
            cases += [linear(rows, 24, f"int{bits}"), with_book(linear(rows, 24, f"c{bits}s8"), book)]
            cases += [conv((3, 3), 64, 24, fmt=f"int{bits}")]
            cases += [with_book(conv((2, 2), rows // 16 * 16, 24, fmt=f"c{bits}s8"), book)]
    for case in cases:
        last = (1 << case.node.format.bits) - 1
        for weight in (0, last) if case.node.format.codebook else (-(last + 1) // 2, last // 2):
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


@pytest.mark.parametrize("level", LEVELS)
def test_convolutions_take_every_entry(level: str, tmp_path: Path) -> None:
    batch = harness.Batch(harness.host_level(level), harness.host_image())
    for book in ([-128, *range(1, 15), 127], [-127, *range(-7, 7), 127]):
        case = with_book(conv((3, 4), 16, 32, fmt="c4s8", residual=True), book)
        assert _row(case, level).applies(case.graph, case.node, batch.target)
        batch.add(_row(case, level), case)
    harness.check_level(batch, level, tmp_path)


def test_winograd_rows_equal_the_reference(tmp_path: Path) -> None:
    """With tiles at the image's edges, blocks of one group and several, all formats; weights as the other level's."""
    batch = harness.Batch(harness.host_level("x86"), harness.host_image(1 << 24))
    own = [
        conv((8, 8), 16, 16, fmt="int4"),
        conv((7, 5), 8, 32, fmt="c4s8", relu=True),
        conv((6, 9), 24, 32, fmt="c3s8", residual=True),
        conv((1, 1), 16, 16, fmt="int2"),
        conv((8, 6), 32, 64, fmt="c2s8", residual=True),
        conv((12, 4), 32, 64, pads=(0, 1, 2, 0), fmt="c4s8"),
        conv((4, 4), 128, 128, fmt="int3", pads=(2, 2, 2, 2)),
        conv((4, 4), 64, 256, fmt="int4", residual=True, fill="low"),
    ]
    for case in own:
        row = KERNELS[f"conv2d_s8_{case.node.format.short}_packedwinograd2x2__x86"]
        assert row.applies(case.graph, case.node, batch.target), case.name
        packed = [r.pack(case.graph, case.node)["weights"] for r in (row, KERNELS[row.tags["weights_of"]])]
        assert (packed[0] == packed[1]).all()
        batch.add(row, case)
    harness.check_level(batch, "x86", tmp_path)


@pytest.mark.parametrize("fmt", [f.name for f in SMALL])
def test_levels_share_the_weights_of_convolutions(fmt: str) -> None:
    for channels, outs, side in ((16, 140, 2), (5, 33, 4), (64, 128, 5)):
        case = conv((side, side), channels, outs, fmt=fmt)
        if needs_zero(case):
            continue
        mine, theirs = _row(case, "x86"), _row(case, "vnni")
        assert mine.tags["weights_of"] == theirs.name
        packed = [row.pack(case.graph, case.node)["weights"] for row in (mine, theirs)]
        assert (packed[0] == packed[1]).all()


def _expanded(packed: Int8, values: Int8, channels: int) -> Int8:
    """Weights (channels, row) by the layout's definition, byte by byte; `values` of all indices."""
    bits = len(values).bit_length() - 1
    fields = 8 // bits
    units = packed.view(np.uint8).reshape(-1, channels, 4)
    weights = np.zeros((channels, 4 * fields * len(units)), np.int8)
    for u, unit in enumerate(units):
        for channel, four in enumerate(unit):
            for k, byte in enumerate(four):
                for f in range(fields):
                    weights[channel, 4 * (fields * u + f) + k] = values[int(byte) // len(values) ** f % len(values)]
    return weights


@pytest.mark.parametrize("level", [NibblePairProduct, NibbleByteProduct], ids=["x86", "vnni"])
@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_bytes_hold_the_values(fmt: WeightFormat, level: type[NibblePairProduct | NibbleByteProduct]) -> None:
    bits, product = stored(fmt), level(stored(fmt))
    node = linear(48, 2 * product.lanes, fmt.name).node
    packed = product.pack(product.weights(node)[None])[0]
    assert packed.size * 8 == node.consts["codes"].size * bits
    assert (_expanded(packed, values_of(node, bits), 2 * product.lanes) == node.values).all()
    assert values_of(node, bits)[zero_of(node, bits)] == 0 or 0 not in values_of(node, bits)


def stack(fmt: str, width: int, layers: int, side: int = 0) -> LoweredGraph:
    """Square layers of the same kind, one behind the other: linear, or with a side convolutions of images."""
    case = conv((side, side), width, width, fmt=fmt) if side else linear(width, width, fmt)
    nodes = []
    for k in range(layers):
        consts = {**case.node.consts, "codes": np.roll(case.node.consts["codes"], k)}
        nodes.append(replace(case.node, name=f"layer{k}", inputs=(f"t{k}",), output=f"t{k + 1}", consts=consts))
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


@pytest.mark.parametrize(
    ("fmt", "width", "side", "layers", "form"),
    [
        ("int4", 256, 4, 1, "direct"),  # weights that stay in the second cache
        ("int4", 256, 4, 3, "packed"),
        ("c4s8", 256, 4, 3, "packed"),
        ("int2", 256, 4, 3, "packed"),
        ("int4", 512, 2, 1, "packed"),
        ("c2s8", 512, 2, 1, "packed"),
        ("c4s8", 512, 4, 2, "packed"),
        ("int8", 512, 2, 1, "direct"),
        ("int4", 256, 8, 3, "direct"),  # many pixels for a weight
        ("c4s8", 64, 16, 40, "direct"),
    ],
)
def test_what_is_chosen_of_convolutions(fmt: str, width: int, side: int, layers: int, form: str) -> None:
    graph = stack(fmt, width, layers, side)
    assert (graph.weights > STREAMS[0][0]) == (layers * width * width * 9 > 1 << 20)
    row = choose(graph, graph.nodes[0], harness.host_level("vnni")).name
    assert row == f"conv2d_s8_{FORMATS[fmt].short}_{form}__vnni"


@pytest.mark.parametrize(("fmt", "share"), [("int4", 0.5), ("c4s8", 0.5), ("int2", 0.25), ("c2s8", 0.25)])
def test_both_levels_of_a_library_hold_weights_once_and_packed(fmt: str, share: float) -> None:
    graph, host = stack(fmt, 256, 3, 4), harness.host_level("x86")
    program, further = bind_levels(bind(graph, host, "m"), graph, host, {})
    programs = [program, *(p for _, p in further)]
    named = f"conv2d_s8_{FORMATS[fmt].short}_packed__vnni"
    assert {c.kernel for p in programs[1:] for c in p.calls} == {named}  # AMX would need them as int8 besides
    assert {KERNELS[c.kernel].tags["weights_of"] for c in programs[0].calls} == {named}
    assert share < sum(p.weight_bytes for p in programs) / graph.weights < share + 0.02


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("fmt", "share"), [("int4", 0.5), ("c4s8", 0.5), ("int2", 0.25), ("c2s8", 0.25)])
def test_constants_are_as_small_as_the_format(fmt: str, share: float, level: str) -> None:
    sizes = [bind(stack(name, 512, 5), harness.host_level(level), "m").weight_bytes for name in ("int8", fmt)]
    assert share < sizes[1] / sizes[0] < share + 0.02


def test_codes_of_narrow_formats_are_indices() -> None:
    for fmt in SMALL:
        node, bits = linear(16, 8, fmt.name).node, stored(fmt)
        codes = NibbleByteProduct(bits).weights(node)
        assert codes.min() >= 0
        assert codes.max() < 1 << bits
        assert (values_of(node, bits)[codes] == node.values).all()
