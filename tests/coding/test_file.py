"""The packed file: exact round trips, sizes, determinism, damaged input."""

from __future__ import annotations

import json
import lzma
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.coding.models import chain, draw
from tests.compress.toynets import modern, plain, residual
from tests.conftest import seed
from xdeploy.coding import structure
from xdeploy.coding.file import HEAD, coded_bytes, entropy, load, pack, same, unpack
from xdeploy.errors import UsageError
from xdeploy.formats import FORMATS, QParams
from xdeploy.handover import IoSpec


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.sampled_from([(), (1, 1), (3, 3), (1, 5)]),
    st.floats(0.0, 3.0), st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)  # fmt: skip
def test_round_trip(
    fmt: str, number: int, o: int, i: int, kernel: tuple[int, ...], spread: float, zeros: float
) -> None:
    rng = np.random.default_rng(number)
    model = chain(draw(fmt, (o, i, *kernel), rng, spread, zeros), draw(fmt, (3, o, *kernel), rng, spread, zeros))
    found = unpack(pack(model, "any ü"))
    assert found.name == "any ü"
    assert same(found.model, model)


def test_every_code_of_every_format() -> None:
    for fmt in FORMATS.values():
        low, high = (0, 2**fmt.bits) if fmt.codebook else (-fmt.limit, fmt.limit + 1)
        w = draw(fmt.name, (high - low, 4), np.random.default_rng(seed()))
        w = replace(w, codes=np.repeat(np.arange(low, high, dtype=np.int8)[:, None], 4, axis=1))
        model = chain(w)
        assert same(unpack(pack(model)).model, model)


@pytest.mark.parametrize("network", [plain(), residual(), modern()], ids=["plain", "residual", "modern"])
def test_structures_round_trip(network: object) -> None:
    s = structure.Structure(
        "n", network.layers, IoSpec("x", network.input.shape, "y", network.output.shape), *facts(network)
    )
    assert structure.read(structure.write(s)) == s


def facts(network: object) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    kernels = {x.name: network.params[x.name]["weight"].shape[2:] for x in network.weighted() if x.kind == "conv2d"}
    return {x.name: "int4" for x in network.weighted()}, kernels


def test_scales_and_biases_at_their_ends() -> None:
    rng = np.random.default_rng(seed())
    w = draw("int4", (8, 4), rng)
    tiny, big = np.float32(1e-45), np.finfo(np.float32).max
    for scale in (np.full(8, 0.5), np.array([tiny, big, 1, 2, 4, 8, 16, 32]), np.repeat([0.1, 0.3], 4)):
        for bias in (np.zeros(8), np.array([-(2**31), 2**31 - 1, 0, 1, -1, 5, 6, 7]), np.arange(8) * -4096):
            model = chain(replace(w, scale=scale.astype(np.float32), bias=bias.astype(np.int32)))
            assert same(unpack(pack(model)).model, model)


def test_activations_that_are_no_float32_and_none_at_all() -> None:
    model = chain(draw("int8", (4, 4), np.random.default_rng(seed())))
    model = replace(model, activations={**model.activations, "input": QParams(0.1, 3)})
    model = replace(model, io=replace(model.io, input_q=None, output_q=QParams(1 / 3, 0)))
    assert same(unpack(pack(model)).model, model)


def test_float_parameters_are_what_the_codes_stand_for() -> None:
    model = chain(draw("c3s8", (4, 5), np.random.default_rng(seed())))
    back = unpack(pack(model)).model
    w, params = model.weights["features.0"], back.network.params["features.0"]
    expected = np.array([[w.codebook[c] * w.scale[o] for c in row] for o, row in enumerate(w.codes)], np.float32)
    assert (params["weight"] == expected).all()


def test_round_numbers_cost_less() -> None:
    """Digits that are 0 in all scales, and powers of two that all biases share, are not told for each."""
    w = draw("int4", (256, 4), np.random.default_rng(seed()))
    coarse = (w.scale.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    parts = [coded_bytes(chain(x))["layers"][0] for x in (w, replace(w, scale=coarse, bias=w.bias & -64))]
    assert parts[1]["scales"] == pytest.approx(parts[0]["scales"] - 256 * 16 / 8, abs=8)
    assert parts[1]["biases"] == pytest.approx(parts[0]["biases"] - 256 * 6 / 8, abs=8)


# ------------------------------------------------------------------------------------------------ sizes
@pytest.mark.parametrize(("fmt", "spread"), [("int8", 0.5), ("int4", 0.3), ("int2", 0.6), ("c4s8", 0.5), ("c1s8", 1.0)])
def test_independent_codes_cost_their_entropy(fmt: str, spread: float) -> None:
    """Within 2 %, plus 2 bytes for each code, as a table would have."""
    w = draw(fmt, (64, 48, 3, 3), np.random.default_rng(seed()), spread)
    size = coded_bytes(chain(w))["layers"][0]["codes"]
    assert size <= 1.02 * entropy(w.codes) / 8 + 2 * 2 ** FORMATS[fmt].bits
    assert size >= 0.99 * entropy(w.codes) / 8


def test_dead_rows_and_columns_cost_next_to_nothing() -> None:
    """The live part alone, coded ideally, and a little."""
    rng = np.random.default_rng(seed())
    w = draw("int4", (64, 64, 3, 3), rng, 0.4)
    rows, columns = rng.random(64) < 0.5, rng.random(64) < 0.5
    codes = np.where(rows[:, None, None, None] | columns[None, :, None, None], 0, w.codes).astype(np.int8)
    size = coded_bytes(chain(replace(w, codes=codes)))["layers"][0]["codes"]
    live = entropy(codes[~rows][:, ~columns]) / 8
    assert size < 1.1 * live + 100
    assert size < 0.75 * entropy(codes) / 8


def test_a_constant_layer_costs_nothing() -> None:
    w = draw("int4", (256, 256), np.random.default_rng(seed()), zeros=1.0)
    row = coded_bytes(chain(w))["layers"][0]
    assert row["mode"] == "constant"
    assert row["codes"] < 4


def test_parts_sum_to_the_file() -> None:
    rng = np.random.default_rng(seed())
    model = chain(draw("c4s8", (16, 3, 3, 3), rng), draw("int4", (8, 16, 3, 3), rng, zeros=0.8))
    parts, data = coded_bytes(model, "m"), pack(model, "m")
    fine = sum(x[k] for x in parts["layers"] for k in ("codes", "codebook", "scales", "biases"))
    assert parts["total"] == len(data)
    assert fine + sum(parts[k] for k in ("header", "structure", "activations", "rounding")) == pytest.approx(len(data))
    assert -1 < parts["rounding"] < 9  # a last word, and one for the coder's state


def test_two_processes_write_the_same_bytes() -> None:
    text = (
        "import numpy as np, hashlib; from tests.coding.models import chain, draw;"
        "from xdeploy.coding.file import pack;"
        "r = np.random.default_rng(5); m = chain(draw('int4', (32, 8, 3, 3), r), draw('c4s8', (16, 32, 1, 1), r));"
        "print(hashlib.sha256(pack(m)).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    runs = [subprocess.run([sys.executable, "-c", text], cwd=root, capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout


# ------------------------------------------------------------------------------------------------ damage
@pytest.fixture(scope="module")
def good() -> bytes:
    rng = np.random.default_rng(seed())
    return pack(chain(draw("int3", (3, 2, 1, 2), rng), draw("c2s8", (2, 3, 1, 1), rng, zeros=0.5)))


def sealed(body: bytes) -> bytes:
    """A file whose header fits its body, whatever that is."""
    return HEAD.pack(b"XDC", 1, len(body), zlib.crc32(body)) + body


def with_text(good: bytes, change: object) -> bytes:
    """The file with its structure's text changed."""
    body = good[HEAD.size :]
    (size,) = struct.unpack_from("<I", body)
    text = json.loads(structure._inflated(body[4 : 4 + size]))
    change(text)
    head = structure._deflated(json.dumps(text).encode())
    return sealed(struct.pack("<I", len(head)) + head + body[4 + size :])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d[:7], "does not begin"), (lambda d: b"PK" + d, "does not begin"), (lambda d: d[:-1], "damaged"),
        (lambda d: d + b"\0", "damaged"), (lambda d: b"XDC\x02" + d[4:], "version 2"),
        (lambda d: d[:-3] + bytes([d[-3] ^ 1]) + d[-2:], "check sum"),
        (lambda d: sealed(d[HEAD.size :] + b"\0"), "words"),
        (lambda d: sealed(d[HEAD.size :] + b"\1\2\3\4" * 2), "goes on"), (lambda d: sealed(b""), "damaged"),
        (lambda d: sealed(b"\xff\xff\xff\xff"), "cut off"),
        (lambda d: sealed(struct.pack("<I", 9) + b"\7" * 9), "no known form"),
    ],
)  # fmt: skip
def test_damage_is_told(good: bytes, change: object, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        unpack(change(good))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(shapes=[[2**23, 1, 1], 2**23, 2**23]), lambda t: t.update(kernels=[[2**20, 2**20], 0]),
        lambda t: t.update(kinds=[99, 0, 0]), lambda t: t.update(inputs=[0, [-1], [1]]),
        lambda t: t.update(inputs=[0, [9], [1]]), lambda t: t.update(formats=["int9", 0]), lambda t: t.update(io=[]),
        lambda t: t.update(names=["a", "a", "b"]), lambda t: t.update(names=[[], {}, 3]), lambda t: t.clear(),
        lambda t: t.update(names=["a"] * 30_000, kinds=[0] * 30_000, inputs=[0] * 30_000, shapes=[0] * 30_000),
        lambda t: t.update(attrs=[[[0, 0], [0, 0, 0, 0], [1, 1], 0]] * 2),
    ],
)  # fmt: skip
def test_nonsense_in_the_structure_is_told(good: bytes, change: object) -> None:
    with pytest.raises(UsageError, match="damaged"):
        unpack(with_text(good, change))


@pytest.mark.parametrize("form", [0, 1])
def test_a_structure_that_unfolds_without_end_is_stopped(form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MOST_TEXT", 1 << 16)
    zeros = b"[" + b"0," * (structure.MOST_TEXT // 2 + 100)
    if form == 0:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=structure._WORDS)
        head = b"\0" + squeezer.compress(zeros) + squeezer.flush()
    else:
        head = b"\1" + lzma.compress(zeros, lzma.FORMAT_RAW, filters=structure._LZMA)
    with pytest.raises(UsageError, match="unfolds"):
        unpack(sealed(struct.pack("<I", len(head)) + head))


def test_two_thousand_mutations(good: bytes) -> None:
    """Whatever happens to the bytes behind the check sum, it is a UsageError or another model."""
    rng = np.random.default_rng(seed())
    told = 0
    for _ in range(2000):
        body = bytearray(good[HEAD.size :])
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(body)))
            how = int(rng.integers(4))
            if how == 0:
                body[at] ^= 1 << int(rng.integers(8))
            elif how == 1:
                body[at] = int(rng.integers(256))
            elif how == 2:
                del body[at : at + 4 * int(rng.integers(1, 3))]
            else:
                body[at:at] = rng.bytes(4)
        try:
            unpack(sealed(bytes(body)))
        except UsageError:
            told += 1
    assert told > 1000


def test_scales_that_no_model_has_are_refused() -> None:
    w = draw("int4", (2, 2), np.random.default_rng(seed()))
    with pytest.raises(UsageError, match="scales must be finite"):
        pack(chain(replace(w, scale=np.array([1.0, np.nan], np.float32))))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.xdc")
