"""Kernel rows in plain C for the tests of the builder: slow, short, and independent of the real rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from xdeploy.kernel import Arg, Code, Kernel, always
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.registry import Registry
from xdeploy.target import Target

LINEAR = """\
#include <stdint.h>
static int64_t {symbol}_sum(const int8_t *x, const int8_t *w, int32_t n)
{
    int64_t sum = 0;
    int32_t i;
    for (i = 0; i < n; ++i) {
        sum += (int64_t)x[i] * w[i];
    }
    return sum;
}
static void {symbol}(const int8_t *x, const int8_t *w, const int32_t *b, const int32_t *m, void *space, int8_t *y,
                     int32_t n, int32_t outputs)
{
    int8_t *copy = (int8_t *)space;
    int32_t i, o;
    for (i = 0; i < n; ++i) {
        copy[i] = x[i];
    }
    for (o = 0; o < outputs; ++o) {
        int64_t v = (({symbol}_sum(copy, w + o * n, n) + b[o]) * m[o] + 2147483648LL) >> 32;
        y[o] = (int8_t)(v < -128 ? -128 : (v > 127 ? 127 : v));
    }
}
"""
CLAMP = """\
#include <stdint.h>
static void {symbol}(const int8_t *x, int8_t *y, int32_t n, int32_t low, int32_t high)
{
    int32_t i;
    for (i = 0; i < n; ++i) {
        y[i] = (int8_t)(x[i] < low ? low : (x[i] > high ? high : x[i]));
    }
}
"""


def _pack(graph: LoweredGraph, node: Node) -> dict[str, Any]:
    values = node.values.astype(np.int64)
    bias = node.consts["bias"] - node.attrs["in_zero"] * values.sum(axis=1)
    return {"w": node.values, "b": bias.astype(np.int32), "m": node.consts["multiplier"]}


def _linear(graph: LoweredGraph, node: Node, target: Target) -> Code:
    outputs, inputs = node.consts["codes"].shape
    args = (Arg("input"), Arg("const", name="w"), Arg("const", name="b"), Arg("const", name="m"), Arg("workspace"),
            Arg("output"), Arg("int", value=inputs), Arg("int", value=outputs))  # fmt: skip
    return Code("c99", LINEAR, args)


def _clamp(graph: LoweredGraph, node: Node, target: Target) -> Code:
    a, size = node.attrs, graph.tensors[node.output].size
    numbers = (Arg("int", value=v) for v in (size, a["low"], a["high"]))
    return Code("c99", CLAMP, (Arg("input"), Arg("output"), *numbers))


def registry(linear: str = "") -> Registry[Kernel]:
    """Both rows; `linear` replaces the text of the linear row."""

    def emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
        code = _linear(graph, node, target)
        return Code("c99", linear, code.args) if linear else code

    def anywhere(graph: LoweredGraph, node: Node, target: Target) -> bool:
        return True

    table: Registry[Kernel] = Registry("kernel", "tests.builder")
    table._loaded = True
    table.add("linear_s8_s8_1x1__c99", Kernel(
        "linear_s8_s8_1x1__c99", "linear", "s8", "c99", anywhere, lambda g, n, t: 1.0,
        lambda g, n: int(n.consts["codes"].shape[1]), _pack, emit,
    ))  # fmt: skip
    table.add("clamp_s8_-_1x1__c99", Kernel(
        "clamp_s8_-_1x1__c99", "clamp", "-", "c99", anywhere, lambda g, n, t: 1.0, lambda g, n: 0,
        lambda g, n: {}, _clamp, in_place=always,
    ))  # fmt: skip
    return table
