"""Texts of kernels read quickly: the same functions as TVM's own parser reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tvm
from tvm.script import from_source

from tests.kernels.cases import cases
from xdeploy.builder import script
from xdeploy.kernel import KERNELS
from xdeploy.target import load_target

TARGETS = ("x86-64", "cortex-a710", "cortex-a72", "cortex-m55", "cortex-m4", "cortex-m3", "cortex-m0plus")
HEAD = """\
@T.prim_func
def kernel(pX: T.handle("int8"), n: T.int32):
    X = T.decl_buffer((1 << 30,), "int8", data=pX)
"""


def _texts(op: str, step: int) -> Iterator[str]:
    """One text of every row for some cases."""
    targets, seen = [load_target(name) for name in TARGETS], set()
    for case in cases(op)[::step]:
        for row in KERNELS.values():
            target = next((t for t in targets if row.isa in t.features), None)
            if row.op != op or target is None or not row.applies(case.graph, case.node, target):
                continue
            code = row.emit(case.graph, case.node, target)
            if code.language == "tir" and (row.name, row.op) not in seen:
                seen.add((row.name, row.op))
                yield code.text.replace("{symbol}", "kernel")


@pytest.mark.parametrize("op", sorted({row.op for row in KERNELS.values()} - {"float"}))
def test_the_same_function(op: str) -> None:
    texts = list(_texts(op, 40))
    assert texts
    for text in texts:
        tvm.ir.assert_structural_equal(script._quickly(text), from_source(text))


@pytest.mark.parametrize(
    "body",
    [
        "    if n > 3 and n < 9 or n == 12:\n        X[n] = T.int8(1)\n",
        "    if n != 3:\n        X[n] = T.int8(1)\n    else:\n        X[0] = X[n]\n    X[1] = T.int8(0)\n",
        "    for i in range(n):\n        at: T.let[T.int32] = i * 2 + 1\n        X[at] = T.cast(at, \"int8\")\n",
        "    for i, j in T.grid(n, 3):\n        X[i * 3 + j] = T.int8(0)\n",
        "    for i in T.unroll(4):\n        for j in T.vectorized(8):\n            X[i * 8 + j] = T.int8(0)\n",
        "    for i in range(1, n):\n        X[i] = X[i - 1]\n",
        "    v = X[T.ramp(n, 1, 4)]\n    X[T.ramp(0, 1, 4)] = v + v\n",
        # the same name in two scopes, a value stored again, a copy of one
        "    for i in range(n):\n        v = i + 1\n    for i in range(n):\n        v = X[i]\n        X[i] = v\n",
        "    v = n\n    for i in range(n):\n        v = v + i\n    w = v\n    X[w] = T.int8(3)\n",
        # decided here: what holds is in the scope around it
        "    if True:\n        v = n + 1\n    v = 7\n    X[v] = T.int8(1)\n",
        "    if 3 < 2:\n        v = n\n    else:\n        w = 7\n        X[w] = T.int8(2)\n    X[w] = T.int8(1)\n",
    ],
)  # fmt: skip
def test_every_statement(body: str) -> None:
    tvm.ir.assert_structural_equal(script._quickly(HEAD + body), from_source(HEAD + body))


@pytest.mark.parametrize(
    "body",
    [
        "    if not n < 9:\n        X[0] = X[n]\n",
        "    if 0 < n < 9:\n        X[0] = X[n]\n",
        "    if True and n < 9:\n        X[0] = X[n]\n",
        "    X[0] = X[1] if n < 9 else X[2]\n",
        "    X[n] = (\n        T.int8(3)\n    )\n",
        "    X[n] += T.int8(3)\n",
        "    X[n] = T.int8(len([n]))\n",  # none of Python's own functions
        "    while n > 3:\n        X[0] = X[n]\n",
        "    n: T.let[T.int32] = 3\n    X[n] = T.int8(0)\n",
        "    m = T.int8(3)\n    for i in range(n):\n        m: T.let[T.int32] = i\n        X[m] = T.int8(0)\n",
    ],
)  # fmt: skip
def test_what_is_left_to_tvm(body: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 (of whatever kind)
        script._quickly(HEAD + body)
    try:
        own = from_source(HEAD + body)
    except Exception:
        return
    tvm.ir.assert_structural_equal(script.read(HEAD + body), own)


@pytest.mark.parametrize(
    "body",
    [
        "    X[n] = unknown\n",
        "    X[n = 3\n",
        "    T.nothing()\n",
        "    for i in range(n):\n        v = i\n    X[v] = T.int8(0)\n",
        "    for n in range(4):\n        X[n] = 3.5 if\n",
    ],
)
def test_errors_are_tvms_own(body: str) -> None:
    with pytest.raises(Exception) as own:  # noqa: PT011 (of whatever kind)
        from_source(HEAD + body)
    with pytest.raises(type(own.value)) as ours:
        script.read(HEAD + body)
    assert str(ours.value) == str(own.value)
