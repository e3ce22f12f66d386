"""The network's structure, IoSpec and weight formats as compressed text: only what cannot be told from the rest.

Inputs are told as steps back, shapes where no rule tells them, attributes where the last layer of the kind had others.
The text is JSON in columns, deflated with the words of the vocabulary as a dictionary, or LZMA, whichever is shorter.
"""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdeploy.coding.shapes import predicted
from xdeploy.coding.stream import damaged
from xdeploy.formats import FORMATS
from xdeploy.handover import IoSpec
from xdeploy.model.network import KINDS, WEIGHTED, Layer

MOST_TEXT = 1 << 26  # bytes of text that a file may unfold to
MOST_LAYERS = 20_000
_LZMA: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 0}]
_COLUMNS = ("names", "kinds", "inputs", "attrs", "shapes", "kernels", "formats")
_KIND_NUMBERS = {kind: k for k, kind in enumerate(sorted(KINDS))}
_WORDS = (
    b'[[0,0],[0,0,0,0]],[[1,1],[1,1,1,1],[1,1],1]],[[2,2],[2,2]],"linear","head","features.","layers.","blocks.","fc",'
    b'"output","logits","conv1","bn1","conv2","bn2","relu","add","pool","flatten","input",["int8","int4","c4s8",'
    b'{"names":["input","kinds":[],"inputs":[],"attrs":[],"shapes":[],"kernels":[[3,3],[1,1]],"formats":["io":["name":'
)


@dataclass(frozen=True, slots=True)
class Structure:
    """All of a model but its numbers."""

    name: str
    layers: tuple[Layer, ...]
    io: IoSpec  # without quantisation
    formats: Mapping[str, str]  # weighted layer -> weight format
    kernels: Mapping[str, tuple[int, ...]]  # conv2d layer -> (kh, kw)

    def weight_shape(self, layer: Layer) -> tuple[int, ...]:
        """(O, I/groups, kh, kw) or (O, I) of a weighted layer."""
        source = next(x for x in self.layers if x.name == layer.inputs[0]).shape
        if layer.kind == "linear":
            return (layer.shape[0], source[0])
        return (layer.shape[0], source[0] // layer.attrs["groups"], *self.kernels[layer.name])


def write(s: Structure) -> bytes:
    """The structure as bytes."""
    rows: dict[str, list[Any]] = {k: [] for k in _COLUMNS}
    last: dict[str, Any] = {}
    number = {x.name: k for k, x in enumerate(s.layers)}
    shapes = {x.name: x.shape for x in s.layers}
    for k, x in enumerate(s.layers):
        rows["names"].append(x.name)
        rows["kinds"].append(_KIND_NUMBERS[x.kind])
        steps = [k - number[i] for i in x.inputs]
        rows["inputs"].append(0 if steps == [1] else steps)
        attrs = [x.attrs[a] for a in KINDS[x.kind]]
        rows["attrs"] += _if_new(last, x.kind, json.loads(json.dumps(attrs)), bool(attrs))
        kernel = s.kernels.get(x.name)
        rows["kernels"] += _if_new(last, ".kernel", kernel and list(kernel), x.kind == "conv2d")
        rows["formats"] += _if_new(last, ".format", s.formats.get(x.name), x.kind in WEIGHTED)
        guess = predicted(x.kind, x.attrs, [shapes[i] for i in x.inputs], kernel)
        rows["shapes"].append(_told(guess, x.shape))
    io = s.io.to_dict()
    text = {"name": s.name, "io": [io[k] for k in _IO], **rows}
    return _deflated(json.dumps(text, separators=(",", ":"), ensure_ascii=False).encode())


_IO = ("input_name", "input_shape", "output_name", "output_shape", "mean", "std", "labels", "input_layout")


def _if_new(last: dict[str, Any], key: str, value: Any, wanted: bool) -> list[Any]:
    """[0] for what was there the last time, [value] else, nothing if not wanted."""
    if not wanted:
        return []
    same = key in last and last[key] == value and repr(last[key]) == repr(value)
    last[key] = value
    return [0] if same else [value]


def _told(guess: tuple[int, ...] | None, shape: tuple[int, ...]) -> Any:
    """0: as guessed; a number: the channels, the rest as guessed; else the shape."""
    if guess == shape:
        return 0
    if guess is not None and len(guess) == len(shape) and guess[1:] == shape[1:]:
        return shape[0]
    return list(shape)


def read(data: bytes) -> Structure:
    """Invert `write`.

    Raises:
        UsageError: not what `write` gives.
    """
    text = json.loads(_inflated(data))
    columns = {k: list(text[k]) for k in _COLUMNS}
    if not len(columns["names"]) == len(columns["kinds"]) == len(columns["inputs"]) == len(columns["shapes"]):
        raise damaged("its layers are incomplete")
    if len(columns["names"]) > MOST_LAYERS:
        raise damaged(f"{len(columns['names'])} layers, at most {MOST_LAYERS} are read")
    kinds = sorted(KINDS)
    rest = {k: iter(columns[k]) for k in ("attrs", "kernels", "formats")}
    last: dict[str, Any] = {}
    layers: list[Layer] = []
    kernels: dict[str, tuple[int, ...]] = {}
    formats: dict[str, str] = {}
    named = zip(columns["names"], columns["kinds"], columns["inputs"], columns["shapes"], strict=True)
    for k, (name, number, steps, told) in enumerate(named):
        kind = kinds[_count(number, 0)]
        inputs = [layers[k - _count(step)] for step in ([1] if steps == 0 else steps)]
        attrs = _next(last, kind, rest["attrs"]) if KINDS[kind] else []
        attributes = {a: _tuples(v) for a, v in zip(KINDS[kind], attrs, strict=True)}
        if kind == "conv2d":
            kernels[name] = tuple(_count(n) for n in _next(last, ".kernel", rest["kernels"]))
        if kind in WEIGHTED:
            formats[name] = _next(last, ".format", rest["formats"])
            if formats[name] not in FORMATS or len(inputs) != 1:
                raise damaged(f"layer {k} has no known weight format")
        guess = predicted(kind, attributes, [i.shape for i in inputs], kernels.get(name))
        shape = _shape(guess, told)
        layers.append(Layer(_text(name), kind, tuple(i.name for i in inputs), shape, attributes))
    io = {k: _tuples(v) for k, v in zip(_IO, text["io"], strict=True)}
    return Structure(_text(text["name"]), tuple(layers), IoSpec(**io), formats, kernels)


def _next(last: dict[str, Any], key: str, values: Any) -> Any:
    value = next(values)
    if value != 0:
        last[key] = value
    return last[key]


def _shape(guess: tuple[int, ...] | None, told: Any) -> tuple[int, ...]:
    if isinstance(told, list):
        shape = tuple(told)
    elif guess is None:
        raise damaged("a shape is missing")
    else:
        shape = guess if told == 0 else (told, *guess[1:])
    return tuple(_count(n) for n in shape)


def _count(value: Any, low: int = 1) -> int:
    """An integer in low..2^24 - 1."""
    if type(value) is not int or not low <= value < 1 << 24:
        raise damaged(f"{str(value)[:40]} stands where a small number should")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise damaged("a name is no text")
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _deflated(text: bytes) -> bytes:
    """One byte that names the method, then the text."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_WORDS)
    deflated = squeezer.compress(text) + squeezer.flush()
    packed = lzma.compress(text, lzma.FORMAT_RAW, filters=_LZMA)
    return b"\0" + deflated if len(deflated) <= len(packed) else b"\1" + packed


def _inflated(data: bytes) -> bytes:
    if data[:1] == b"\0":
        inflater = zlib.decompressobj(-15, _WORDS)
        text = inflater.decompress(data[1:], MOST_TEXT)
        ended = inflater.eof
    elif data[:1] == b"\1":
        reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
        text = reader.decompress(data[1:], MOST_TEXT)
        ended = len(text) < MOST_TEXT
    else:
        raise damaged("its structure is in no known form")
    if not ended:
        raise damaged(f"its structure is cut off or unfolds to more than {MOST_TEXT} bytes")
    return text
