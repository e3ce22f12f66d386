"""The packed model file, .xdc.

    bytes 0..3    "XDC" and the version of this layout, 1
    bytes 4..7    length of all that follows byte 11
    bytes 8..11   CRC-32 of all that follows
    then          length of the structure (4 bytes), the structure, the range coder's words

Numbers are little-endian. In the words, in the order of execution: for each weighted layer its codes, its codebook if
it has one, scales and biases; then the activations' scales and zero points.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.coding.layer import Codes
from xdeploy.coding.numbers import Numbers
from xdeploy.coding.stream import Coder, Decoder, Encoder, damaged
from xdeploy.coding.structure import Structure, read, write
from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.errors import UsageError, XdeployError
from xdeploy.files import replacing
from xdeploy.formats import QParams, weight_format
from xdeploy.handover import CompressionPlan, IoSpec, PlanLine
from xdeploy.model.network import Layer, Network

MAGIC, VERSION = b"XDC", 1
HEAD = struct.Struct("<3sBII")
MOST_WEIGHTS = 1 << 28  # that a file may claim
_SAME = "quantisation of its input"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A model out of a file, and its name."""

    model: CompressedModel
    name: str


def pack(model: CompressedModel, name: str = "model") -> bytes:
    """All of a compressed model but its float weights, as bytes that `unpack` gives back exactly.

    Reasons of plan lines and accuracies of steps are not kept; the plan's formats are.

    Raises:
        UsageError: the model holds what a compressed model cannot (a scale that is not finite and positive).
    """
    return _pack(model, name)[0]


def coded_bytes(model: CompressedModel, name: str = "model") -> dict[str, Any]:
    """Where the bytes of the packed file go.

    Returns:
        `total`: the file's exact length. `header`, `structure`: their bytes, exact. `layers`: for each weighted layer
        `origin`, `weights`, `mode` (constant, static, adaptive), `format`, `entropy` (zero-order, of the codes alone),
        `codes`, `codebook`, `scales`, `biases`. `activations`. These are ideal lengths in bytes with fractions; what
        the coder's whole words add is `rounding`. All parts sum to the total.
    """
    return _account(*_pack(model, name))


def _account(data: bytes, parts: dict[str, Any]) -> dict[str, Any]:
    """What `coded_bytes` tells of a packed file."""
    rows = parts["layers"]
    fine = sum(r[k] for r in rows for k in ("codes", "codebook", "scales", "biases")) + parts["activations"]
    whole = len(data) - parts["structure"] - HEAD.size - 4
    return {"total": len(data), "header": HEAD.size + 4, **parts, "rounding": whole - fine}


def _pack(model: CompressedModel, name: str) -> tuple[bytes, dict[str, Any]]:
    _check(model)
    structure = _structure(model, name)
    head = write(structure)
    encoder = Encoder()
    pass_ = _Pass(encoder, structure)
    for layer in model.network.weighted():
        pass_.layer(layer, model.weights[layer.name])
    before = encoder.length
    pass_.activations(model.activations, model.io)
    body = struct.pack("<I", len(head)) + head + encoder.finish()
    parts = {"structure": len(head), "layers": pass_.rows, "activations": (encoder.length - before) / 8}
    return HEAD.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body, parts


def unpack(data: bytes) -> Unpacked:
    """Invert `pack`.

    Raises:
        UsageError: no packed model, another version, damaged, or more weights than are read.
    """
    body = _body(data)
    try:
        return _unpack(body)
    except XdeployError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
        StopIteration,
    ) as error:
        raise damaged(f"{type(error).__name__}: {str(error)[:100]}") from None
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise damaged(str(error)) from None


def save(model: CompressedModel, path: Path, name: str = "model") -> dict[str, Any]:
    """Write the packed file, after unpacking it again to compare; returns its `coded_bytes`."""
    data, parts = _pack(model, name)
    if not same(unpack(data).model, model):
        raise XdeployError("packing did not round-trip", hint="report it with the model")
    with replacing(path) as part:
        part.write_bytes(data)
    return _account(data, parts)


def load(path: Path) -> Unpacked:
    """Read a packed file.

    Raises:
        UsageError: unreadable, or as `unpack`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return unpack(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None


def same(one: CompressedModel, other: CompressedModel) -> bool:
    """Whether all that is deployed is equal: layers, integers, scales, activations, IoSpec."""

    def weight(a: QuantisedWeight, b: QuantisedWeight) -> bool:
        pairs = ((a.codes, b.codes), (a.codebook, b.codebook), (a.scale, b.scale), (a.bias, b.bias))
        return a.format_name == b.format_name and all(np.array_equal(x, y) for x, y in pairs)  # type: ignore[arg-type]

    return (
        one.network.to_json() == other.network.to_json() and one.io == other.io
        and list(one.weights) == list(other.weights) and dict(one.activations) == dict(other.activations)
        and all(weight(w, other.weights[n]) for n, w in one.weights.items())
    )  # fmt: skip


class _Pass:
    """One way through the numbers of a model, writing or reading."""

    def __init__(self, coder: Coder, structure: Structure) -> None:
        self.coder, self.structure = coder, structure
        self.numbers = Numbers(coder)
        self.codes = Codes(self.numbers)
        self.rows: list[dict[str, Any]] = []

    def layer(self, layer: Layer, given: QuantisedWeight | None) -> QuantisedWeight:
        """Codes, codebook, scales and biases of one layer."""
        shape = self.structure.weight_shape(layer)
        name = self.structure.formats[layer.name]
        fmt, n = weight_format(name), self.numbers
        marks = [self._length()]
        codes = self.codes.run(None if given is None else given.codes, shape)
        marks.append(self._length())
        book = n.codebook(None if given is None else given.codebook, 2**fmt.bits) if fmt.codebook else None
        marks.append(self._length())
        scale = n.scales(None if given is None else given.scale, shape[0])
        marks.append(self._length())
        bias = n.biases(None if given is None else given.bias, shape[0])
        marks.append(self._length())
        sizes = dict(zip(("codes", "codebook", "scales", "biases"), np.diff(marks).tolist(), strict=True))
        row = {"origin": layer.name, "format": name, "weights": codes.size, "mode": self.codes.modes[-1]}
        self.rows.append({**row, "entropy": entropy(codes) / 8, **{k: v / 8 for k, v in sizes.items()}})
        return QuantisedWeight(name, codes, book, scale, bias)

    def _length(self) -> float:
        return self.coder.length if isinstance(self.coder, Encoder) else 0.0

    def activations(self, given: Mapping[str, QParams] | None, io: IoSpec | None) -> tuple[dict[str, QParams], IoSpec]:
        """Quantisation of the layers' outputs, and the IoSpec with its own."""
        found: dict[str, QParams] = {}
        for layer in self.structure.layers:
            known = None if given is None else given.get(layer.name)
            if not self.numbers.flag("activation", None if given is None else known is not None):
                continue
            source = found.get(layer.inputs[0]) if layer.inputs else None
            found[layer.name] = self._quantisation(known, source)
        ends = (self.structure.layers[0].name, self.structure.layers[-1].name)
        of_io = []
        for end, own in zip(ends, (None, None) if io is None else (io.input_q, io.output_q), strict=True):
            there = self.numbers.flag("io", None if io is None else own is not None)
            of_io.append(self._quantisation(own, found.get(end)) if there else None)
        return found, replace(self.structure.io, input_q=of_io[0], output_q=of_io[1])

    def _quantisation(self, given: QParams | None, guess: QParams | None) -> QParams:
        n = self.numbers
        if guess is not None and n.flag(_SAME, None if given is None else given == guess):
            return guess
        scale = n.real("scale", None if given is None else given.scale)
        if n.flag("lowest zero point", None if given is None else given.zero_point == -128):
            return QParams(scale, -128)
        word = None if given is None else np.array([given.zero_point + 128])
        return QParams(scale, int(n.plain(word, np.array([8]))[0]) - 128)


def entropy(codes: Any) -> float:
    """Zero-order entropy of all codes together, in bits: what one ideal code for the layer alone would take."""
    seen = np.unique(codes, return_counts=True)[1]
    return float(-(seen * np.log2(seen / max(codes.size, 1))).sum())


def _structure(model: CompressedModel, name: str) -> Structure:
    kernels = {x.name: model.weights[x.name].codes.shape[2:] for x in model.network.weighted() if x.kind == "conv2d"}
    formats = {x.name: model.weights[x.name].format_name for x in model.network.weighted()}
    return Structure(name, model.network.layers, replace(model.io, input_q=None, output_q=None), formats, kernels)


def _check(model: CompressedModel) -> None:
    total = 0
    for name, w in model.weights.items():
        total += w.codes.size
        if not (np.isfinite(w.scale).all() and (w.scale > 0).all()):
            raise UsageError(f"{name}: its scales must be finite and > 0 to be packed")
    if total > MOST_WEIGHTS:
        raise UsageError(f"{total} weights; at most {MOST_WEIGHTS} are packed")


def _body(data: bytes) -> bytes:
    if len(data) < HEAD.size or data[:3] != MAGIC:
        raise UsageError("not a packed model: it does not begin with XDC", hint="`xdeploy pack` writes them")
    _, version, length, check = HEAD.unpack_from(data)
    if version != VERSION:
        raise UsageError(f"packed model of version {version}; this xdeploy reads version {VERSION}")
    body = data[HEAD.size :]
    if len(body) != length:
        raise damaged(f"{len(body)} bytes follow its header, which says {length}")
    if zlib.crc32(body) != check:
        raise damaged("its check sum is wrong")
    return body


def _unpack(body: bytes) -> Unpacked:
    size = int.from_bytes(body[:4], "little")
    if size > len(body) - 4:
        raise damaged("its structure is cut off")
    structure = read(body[4 : 4 + size])
    weighted = Network(structure.layers, {}).weighted()
    if sum(int(np.prod(structure.weight_shape(x), dtype=object)) for x in weighted) > MOST_WEIGHTS:
        raise damaged(f"it claims more than {MOST_WEIGHTS} weights")
    decoder = Decoder(body[4 + size :])
    pass_ = _Pass(decoder, structure)
    weights = {x.name: pass_.layer(x, None) for x in weighted}
    activations, io = pass_.activations(None, None)
    decoder.finish()
    network = Network(structure.layers, _floats(structure.layers, weights, activations))
    lines = tuple(PlanLine(n, w.format_name, reason="as packed") for n, w in weights.items())
    return Unpacked(CompressedModel(network, weights, activations, io, CompressionPlan(lines), ()), structure.name)


def _floats(
    layers: tuple[Layer, ...], weights: Mapping[str, QuantisedWeight], activations: Mapping[str, QParams]
) -> dict[str, dict[str, Any]]:
    """The float parameters that the integers stand for."""
    params: dict[str, dict[str, Any]] = {}
    for layer in layers:
        w = weights.get(layer.name)
        if w is not None:
            scale = w.scale.reshape(-1, *[1] * (w.codes.ndim - 1))
            step = w.scale.astype(np.float64) * activations[layer.inputs[0]].scale
            with np.errstate(over="ignore"):
                bias = (w.bias * step).astype(np.float32)
                params[layer.name] = {"weight": w.values.astype(np.float32) * scale, "bias": bias}
    return params
