"""The ONNX standard's own node tests as cases with one data input, and the table of what became of them.

The tests that ship in the `onnx` package give several inputs; a network has one. So each test is run with one of its
inputs as the data and the others as initialisers, and where all inputs have one shape, with all of them joined into one
input that a Split takes apart again.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Skip(Exception):
    """Why a test is not run."""


@dataclass(frozen=True)
class Case:
    """One node test: inputs by name (optional ones that are absent are left out), expected outputs in order."""

    name: str
    op: str
    model: onnx.ModelProto
    inputs: Mapping[str, Array]
    outputs: tuple[Array, ...]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    case: str
    op: str
    status: str  # passed, skipped or failed
    reason: str = ""


@dataclass(frozen=True)
class Variant:
    """A case as a file of one input and one output."""

    model: onnx.ModelProto
    data: Array
    expected: Array


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every node test of one node and with plain tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own overflows while it makes the tests
        from onnx.backend.test.loader import load_model_tests

        tests = load_model_tests(kind="node")
    found = []
    for test in tests:
        graph = test.model.graph
        inputs, outputs = test.data_sets[0]
        if len(graph.node) != 1 or not all(isinstance(a, np.ndarray) for a in (*inputs, *outputs)):
            continue
        names = [v.name for v in graph.input]
        found.append(
            Case(
                test.name,
                graph.node[0].op_type,
                test.model,
                dict(zip(names, inputs, strict=False)),
                tuple(outputs),
                test.rtol,
                test.atol,
            )
        )
    return tuple(found)


def cases_of(ops: Collection[str]) -> list[Case]:
    """The node tests of these operators, in the order of their names."""
    return sorted((c for c in all_cases() if c.op in ops), key=lambda c: c.name)


def with_data(case: Case, data: str, output: int = 0) -> Variant:
    """The case with one input as the data and the others as initialisers."""
    model = copy.deepcopy(case.model)
    graph = model.graph
    for value in list(graph.input):
        if value.name != data:
            graph.input.remove(value)
            if value.name in case.inputs:
                graph.initializer.append(numpy_helper.from_array(case.inputs[value.name], value.name))
    return Variant(_one_output(model, output), case.inputs[data], case.outputs[output])


def joined(case: Case, output: int = 0) -> Variant:
    """The case with all inputs as data, joined along the last axis; they have one shape and type."""
    arrays = list(case.inputs.values())
    if len(arrays) < 2 or len({(a.shape, a.dtype) for a in arrays}) != 1 or arrays[0].ndim < 2:
        raise Skip("its inputs cannot be joined into one")
    model = copy.deepcopy(case.model)
    graph, axis = model.graph, arrays[0].ndim - 1
    whole = np.concatenate(arrays, axis=axis)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("joined", TensorProto.FLOAT, whole.shape))
    if model.opset_import[0].version >= 13:
        sizes = numpy_helper.from_array(np.full(len(arrays), arrays[0].shape[axis], np.int64), "joined_sizes")
        graph.initializer.append(sizes)
        split = helper.make_node("Split", ["joined", "joined_sizes"], list(case.inputs), name="joined_split", axis=axis)
    else:
        parts = [arrays[0].shape[axis]] * len(arrays)
        split = helper.make_node("Split", ["joined"], list(case.inputs), name="joined_split", axis=axis, split=parts)
    graph.node.insert(0, split)
    return Variant(_one_output(model, output), whole, case.outputs[output])


def _one_output(model: onnx.ModelProto, index: int) -> onnx.ModelProto:
    kept = copy.deepcopy(model.graph.output[index])
    del model.graph.output[:]
    model.graph.output.append(kept)
    return model


def write(variant: Variant, folder: Path, name: str) -> Path:
    """The variant as a file."""
    path = folder / f"{name}.onnx"
    onnx.save(variant.model, path)
    return path


def differs(got: Array, case: Case, expected: Array) -> str:
    """Empty, or in what way a result is wrong by the standard's own tolerance."""
    if got.shape != expected.shape:
        return f"gives {got.shape} instead of {expected.shape}"
    close = np.isclose(got, expected, rtol=case.rtol, atol=max(case.atol, 1e-6), equal_nan=True)
    return "" if close.all() else f"differs by {np.abs(got - expected).max():.3g}"


def run(cases: Iterable[Case], check: Callable[[Case], str]) -> list[Outcome]:
    """Outcome of each case: `check` gives what is wrong, or raises Skip."""
    found = []
    for case in cases:
        try:
            wrong = check(case)
        except Skip as skip:
            found.append(Outcome(case.name, case.op, "skipped", str(skip)))
        else:
            found.append(Outcome(case.name, case.op, "failed" if wrong else "passed", wrong))
    return found


def table(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts in all and per operator, with every reason for a skip or failure beside the tests it holds for."""
    ops: dict[str, Any] = {}
    for o in outcomes:
        row = ops.setdefault(o.op, {"passed": 0, "skipped": {}, "failed": {}})
        if o.status == "passed":
            row["passed"] += 1
        else:
            row[o.status].setdefault(o.reason, []).append(o.case)
    counts = {s: sum(o.status == s for o in outcomes) for s in ("passed", "skipped", "failed")}
    return {**counts, "operators": dict(sorted(ops.items()))}
