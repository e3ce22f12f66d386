"""Rows of plain C99 for all operations without weights: the portable form, for any compiler and CPU. No workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.kernel import KERNELS, Arg, Code, Kernel, always, never
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .ctext import CLAMP, REQUANTISE, SHIFT, WINDOW, fill, function, nested
from .halves import TIE, TIED
from .layout import Axis, resize_axes, resize_tables

_X, _Y = {"const int8_t *x": Arg("input")}, {"int8_t *y": Arg("output")}

_ELEMENTWISE = """\
{
    int32_t i;

    for (i = 0; i < count; ++i) {
        y[i] = (int8_t)@value@;
    }
}
"""
_SCALED = "{symbol}_clamp({symbol}_shift(@sum@ + constant, shift), low, high)"
_MUL = """\
{
    int32_t at = 0;
    int32_t p;

    for (p = 0; p < pixels; ++p) {
        int32_t c;

        for (c = 0; c < channels; ++c) {
            const int32_t product = (x[at] - x_zero) * (gate[c] - gate_zero) * lift;

            y[at] = (int8_t){symbol}_requantise(product, multiplier, out_zero, low, high);
            ++at;
        }
    }
}
"""
_SOFTMAX = """\
{
    int32_t row;

    for (row = 0; row < rows; ++row) {
        const int8_t *from = &x[row * classes];
        int8_t *to = &y[row * classes];
        int32_t top = from[0];
        uint32_t total = 0U;
        int32_t i;

        for (i = 1; i < classes; ++i) {
            top = (from[i] > top) ? from[i] : top;
        }
        for (i = 0; i < classes; ++i) {
            total += (uint32_t)table[top - from[i]];
        }
        for (i = 0; i < classes; ++i) {
            const uint32_t share = ((256U * (uint32_t)table[top - from[i]]) + (total / 2U)) / total;
            const int32_t code = (share > 255U) ? 127 : ((int32_t)share - 128);

            to[i] = (int8_t)code;
        }
    }
}
"""
_POOL = """\
{
    int32_t oy;

    for (oy = 0; oy < out_height; ++oy) {
        const int32_t top = (oy * stride_y) - pad_y;
        const int32_t ky0 = {symbol}_first(top, 1);
        const int32_t ky1 = {symbol}_end(top, 1, kernel_y, height);
        int32_t ox;

        for (ox = 0; ox < out_width; ++ox) {
            const int32_t left = (ox * stride_x) - pad_x;
            const int32_t kx0 = {symbol}_first(left, 1);
            const int32_t kx1 = {symbol}_end(left, 1, kernel_x, width);
            int32_t c;
@before@
            for (c = 0; c < channels; ++c) {
                int32_t @state@;
                int32_t ky;

                for (ky = ky0; ky < ky1; ++ky) {
                    int32_t from = ((((top + ky) * width) + left + kx0) * channels) + c;
                    int32_t kx;

                    for (kx = kx0; kx < kx1; ++kx) {
                        @update@;
                        from += channels;
                    }
                }
                y[(((oy * out_width) + ox) * channels) + c] = (int8_t)@result@;
            }
        }
    }
}
"""
_AVERAGE_COUNT = """
            const int32_t inside = ((ky1 > ky0) && (kx1 > kx0)) ? ((ky1 - ky0) * (kx1 - kx0)) : 0;
            const int32_t count = (always > 0) ? always : ((inside > 0) ? inside : 1);
"""
_PAD = """\
{
    int32_t at = 0;
    int32_t oy;

    for (oy = 0; oy < out_height; ++oy) {
        const int32_t iy = oy - top;
        int32_t ox;

        for (ox = 0; ox < out_width; ++ox) {
            const int32_t ix = ox - left;
            int32_t first = out_channels; /* the channels from first to end come from the input */
            int32_t end = out_channels;
            int32_t c;

            if ((iy >= 0) && (iy < height) && (ix >= 0) && (ix < width)) {
                first = front;
                end = front + channels;
            }
            for (c = 0; c < first; ++c) {
                y[at] = (int8_t)value;
                ++at;
            }
            for (c = first; c < end; ++c) {
                y[at] = x[((((iy * width) + ix) * channels) + c) - front];
                ++at;
            }
            for (c = end; c < out_channels; ++c) {
                y[at] = (int8_t)value;
                ++at;
            }
        }
    }
}
"""
_COPY = """\
        for (i = 0; i < count@k@; ++i) {
            y[at] = x@k@[(row * count@k@) + i];
            ++at;
        }
"""


def _elementwise(value: str, graph: LoweredGraph, node: Node, **integers: int) -> Code:
    pointers = {**_X, **({"const int8_t *r": Arg("input", index=1)} if len(node.inputs) == 2 else {})}
    if node.op == "lut":
        pointers["const int8_t *table"] = Arg("const", name="table")
    helpers = [h for h, name in ((CLAMP, "{symbol}_clamp"), (SHIFT, "{symbol}_shift")) if name in value]
    sizes = {"count": graph.tensors[node.output].size, **integers}
    return function(fill(_ELEMENTWISE, value=value), {**pointers, **_Y}, sizes, helpers)


def _scaled(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """Add and rescale."""
    a, two = node.attrs, len(node.inputs) == 2
    factors = {"a": a["a"], **({"b": a["b"]} if two else {})}
    value = fill(_SCALED, sum="(a * x[i]) + (b * r[i])" if two else "(a * x[i])")
    rest = {"constant": a["const"], **{k: a[k] for k in ("shift", "low", "high")}}
    return _elementwise(value, graph, node, **factors, **rest)


def _clamp(graph: LoweredGraph, node: Node, target: Target) -> Code:
    return _elementwise("{symbol}_clamp(x[i], low, high)", graph, node, low=node.attrs["low"], high=node.attrs["high"])


def _lut(graph: LoweredGraph, node: Node, target: Target) -> Code:
    return _elementwise("table[x[i] + 128]", graph, node)


def _mul(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """Product of the centred codes; `channels` is the number of elements that the gate has."""
    a, out = node.attrs, graph.tensors[node.output]
    gate = graph.tensors[node.inputs[1]].size
    pointers = {**_X, "const int8_t *gate": Arg("input", index=1), **_Y}
    integers = {
        "pixels": out.size // gate, "channels": gate, "x_zero": a["a_zero"], "gate_zero": a["b_zero"],
        "lift": 1 << a["shift"], "multiplier": int(node.consts["multiplier"][0]),
        **{k: a[k] for k in ("out_zero", "low", "high")},
    }  # fmt: skip
    return function(_MUL, pointers, integers, [CLAMP, REQUANTISE])


def _softmax(graph: LoweredGraph, node: Node, target: Target) -> Code:
    out = graph.tensors[node.output]
    pointers = {**_X, "const int32_t *table": Arg("const", name="table"), **_Y}
    return function(_SOFTMAX, pointers, {"rows": out.size // out.shape[-1], "classes": out.shape[-1]})


def _window(graph: LoweredGraph, node: Node) -> dict[str, int]:
    (h, w, c), (oh, ow, _), a = graph.tensors[node.inputs[0]].shape, graph.tensors[node.output].shape, node.attrs
    return {
        "height": h, "width": w, "channels": c, "out_height": oh, "out_width": ow, "kernel_y": a["kernel"][0],
        "kernel_x": a["kernel"][1], "stride_y": a["stride"][0], "stride_x": a["stride"][1], "pad_y": a["pads"][0],
        "pad_x": a["pads"][1],
    }  # fmt: skip


def _max(graph: LoweredGraph, node: Node, target: Target) -> Code:
    body = fill(_POOL, before="", state="best = -128", update="best = (x[from] > best) ? x[from] : best", result="best")
    return function(body, {**_X, **_Y}, _window(graph, node), [WINDOW])


def _average(graph: LoweredGraph, node: Node, target: Target) -> Code:
    a = node.attrs
    tie = int(a.get("tie", 0))
    scaled = "sum * lift, multiplier[count - 1], out_zero, low, high"
    result = TIED if tie else f"{{symbol}}_requantise({scaled})"
    body = fill(_POOL, before=_AVERAGE_COUNT, state="sum = 0", update="sum += x[from] - in_zero", result=result)
    stage = {"lift": 1 << a["shift"], "out_zero": a["out_zero"], "low": a["low"], "high": a["high"]}
    # a count for all windows, or 0: what lies inside the input counts
    always = a["kernel"][0] * a["kernel"][1] if a["include_pad"] else 0
    pointers = {**_X, "const int32_t *multiplier": Arg("const", name="multiplier"), **_Y}
    integers = {**_window(graph, node), "always": always, "in_zero": a["in_zero"], **stage}
    helpers = [WINDOW, CLAMP, REQUANTISE]
    return function(body, pointers, {**integers, **({"mantissa": tie} if tie else {})}, helpers + [TIE] * bool(tie))


def _pad(graph: LoweredGraph, node: Node, target: Target) -> Code:
    (h, w, c), (oh, ow, oc) = graph.tensors[node.inputs[0]].shape, graph.tensors[node.output].shape
    a = node.attrs
    integers = {
        "height": h, "width": w, "channels": c, "out_height": oh, "out_width": ow, "out_channels": oc,
        "top": a["pads"][0], "left": a["pads"][1], "front": a["channels"][0], "value": a["value"],
    }  # fmt: skip
    return function(_PAD, {**_X, **_Y}, integers)


def _concat(graph: LoweredGraph, node: Node, target: Target) -> Code:
    inputs = range(len(node.inputs))
    copies = "".join(fill(_COPY, k=k) for k in inputs)
    head = "    int32_t at = 0;\n    int32_t row;\n\n    for (row = 0; row < rows; ++row) {\n        int32_t i;\n\n"
    body = f"{{\n{head}{copies}    }}\n}}\n"
    pointers = {f"const int8_t *x{k}": Arg("input", index=k) for k in inputs}
    out = graph.tensors[node.output]
    counts = {f"count{k}": graph.tensors[name].shape[-1] for k, name in enumerate(node.inputs)}
    return function(body, {**pointers, **_Y}, {"rows": out.size // out.shape[-1], **counts})


def _strided(counts: tuple[int, ...], strides: list[int], start: int) -> Code:
    """Copy to contiguous y from x[start + sum(index * stride)]; one text per number of dimensions above 1 element."""
    dims = [(n, t) for n, t in zip(counts, strides, strict=True) if n > 1] or [(1, 1)]
    names = [f"i{d}" for d in range(len(dims))]
    at = " + ".join(f"({name} * stride{d})" for d, name in enumerate(names))
    heads = [f"for ({name} = 0; {name} < count{d}; ++{name}) {{" for d, name in enumerate(names)]
    body = nested(names, heads, f"start + {at}")
    integers = {"start": start}
    for d, (count, stride) in enumerate(dims):
        integers |= {f"count{d}": count, f"stride{d}": stride}
    return function(body, {**_X, **_Y}, integers)


def _steps(shape: tuple[int, ...]) -> list[int]:
    """Elements from one index to the next in every dimension of a contiguous tensor."""
    return [int(np.prod(shape[d + 1 :])) for d in range(len(shape))]


def _slice(graph: LoweredGraph, node: Node, target: Target) -> Code:
    shape, a = graph.tensors[node.inputs[0]].shape, node.attrs
    wanted = zip(a["starts"], a["stops"], a["steps"], strict=True)
    cuts = [slice(*cut).indices(n) for n, cut in zip(shape, wanted, strict=True)]
    steps = _steps(shape)
    start = sum(cut[0] * step for cut, step in zip(cuts, steps, strict=True))
    strides = [cut[2] * step for cut, step in zip(cuts, steps, strict=True)]
    return _strided(graph.tensors[node.output].shape, strides, start)


def _transpose(graph: LoweredGraph, node: Node, target: Target) -> Code:
    steps = _steps(graph.tensors[node.inputs[0]].shape)
    return _strided(graph.tensors[node.output].shape, [steps[p] for p in node.attrs["perm"]], 0)


def _axis(a: Axis, key: str, name: str) -> tuple[list[str], str, dict[str, int]]:
    """Loop heads over one axis, the source index inside them, and the integers that both read."""
    loop = f"for ({name} = 0; {name} < {key}; ++{name}) {{"
    if not a.step:
        return [loop], f"(int32_t){key}_table[{name}]", {key: a.count}
    again = f"for ({name}_again = 0; {name}_again < {key}_repeat; ++{name}_again) {{"
    integers = {key: a.count, f"{key}_repeat": a.repeat, f"{key}_start": a.start, f"{key}_step": a.step}
    return [loop, again], f"({key}_start + ({name} * {key}_step))", integers


def _resize(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """Nested loops in output order; the source index is counted, or looked up where no progression fits."""
    (_, width, channels), axes = graph.tensors[node.inputs[0]].shape, resize_axes(node)
    rows, row, row_integers = _axis(axes["rows"], "rows", "i")
    cols, col, col_integers = _axis(axes["cols"], "cols", "j")
    heads = [*rows, *cols, "for (c = 0; c < channels; ++c) {"]
    names = ["i", *(["i_again"] if len(rows) > 1 else []), "j", *(["j_again"] if len(cols) > 1 else []), "c"]
    body = nested(names, heads, f"((({row} * width) + {col}) * channels) + c")
    tables = {
        f"const {table.dtype}_t *{key}_table": Arg("const", name=key)
        for key, table in resize_tables(graph, node).items()
    }
    integers = {**row_integers, **col_integers, "width": width, "channels": channels}
    return function(body, {**_X, **tables, **_Y}, integers)


def _nothing(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    return {}


def _const(key: str, dtype: type[np.integer[Any]]) -> Callable[[LoweredGraph, Node], Mapping[str, NDArray[Any]]]:
    return lambda graph, node: {key: node.consts[key].astype(dtype)}


def _register(
    op: str,
    emit: Callable[[LoweredGraph, Node, Target], Code],
    instructions: float,
    pack: Callable[[LoweredGraph, Node], Mapping[str, NDArray[Any]]] = _nothing,
    in_place: Callable[[LoweredGraph, Node], bool] = never,
) -> None:
    """`instructions` per output, or per tap of a window: an upper estimate, above that of the rows for a target."""

    def cost(graph: LoweredGraph, node: Node, target: Target) -> float:
        taps = int(np.prod(node.attrs.get("kernel", (1, 1))))
        return (instructions * taps + 40.0 * ("kernel" in node.attrs)) * graph.tensors[node.output].size

    name = f"{op}_s8_-_1x1__c99"
    row = Kernel(name, op, "-", "c99", lambda g, n, t: True, cost, lambda g, n: 0, pack, emit, in_place)
    KERNELS.add(name, row)


_register("add", _scaled, 20.0, in_place=always)
_register("rescale", _scaled, 16.0, in_place=always)
_register("mul", _mul, 30.0, in_place=always)
_register("clamp", _clamp, 10.0, in_place=always)
_register("lut", _lut, 8.0, _const("table", np.int8), in_place=always)
_register("softmax", _softmax, 50.0, _const("table", np.int32), in_place=always)
_register("max_pool2d", _max, 10.0)
_register("avg_pool2d", _average, 12.0, _const("multiplier", np.int32))
_register("pad", _pad, 12.0)
_register("concat", _concat, 8.0)
_register("slice", _slice, 12.0)
_register("transpose", _transpose, 12.0)
_register("resize", _resize, 12.0, resize_tables)
