"""What is supported, straight from the registries: op x weight format x ISA x constraints, and the ONNX operators.

Nobody lists kernels or operators a second time: `xdeploy ops`, the README's matrix and its test all read this.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.target import load_target, target_names

SCHEMA = "xdeploy.ops/1"
_EVERYWHERE = ("c99", "tir")  # features of every target, the first columns
_MEANING = {
    "c99": "portable C, every target",
    "tir": "TensorIR compiled by LLVM, every target",
}


def support(target: str | None = None) -> dict[str, Any]:
    """The whole matrix, or what runs on one target.

    Returns:
        `kernels` (rows of kernel, op, weights, isa, constraints), `isas` (feature -> targets that have it) and `onnx`
        (operators read from float files and from quantised ones).

    Raises:
        UsageError: unknown target.
    """
    features = load_target(target).features if target else None
    rows = [
        {"kernel": k.name, "op": k.op, "weights": k.weight, "isa": k.isa, "constraints": constraints(k)}
        for k in KERNELS.values()
        if features is None or k.isa in features
    ]
    has = {name: load_target(name).features for name in target_names()}
    isas = {isa: [n for n, f in has.items() if isa in f] for isa in _ordered(r["isa"] for r in rows)}
    return {"schema": SCHEMA, "target": target, "kernels": rows, "isas": isas, "onnx": operators()}


def constraints(kernel: Kernel) -> str:
    """Which nodes of its op a row takes: the first line of its predicate's docstring, else its notes; "" means any."""
    own = inspect.ismethod(kernel.applies) or inspect.isfunction(kernel.applies)
    text = inspect.getdoc(kernel.applies) if own else None
    return (text or kernel.notes).split("\n")[0].rstrip(".")


def operators() -> dict[str, list[str]]:
    """ONNX operators that are read: those of float files, and those of files that are quantised already."""
    from xdeploy.lower import SUPPORTED
    from xdeploy.model.onnxgraph.rows import ROWS

    return {"float": sorted(ROWS), "quantised": sorted(SUPPORTED)}


def markdown(document: Mapping[str, Any]) -> str:
    """The matrix as Markdown: one row per op, one column per ISA, then the operators of ONNX files."""
    isas = list(document["isas"])
    table: dict[str, dict[str, list[str]]] = {}
    for row in document["kernels"]:
        table.setdefault(row["op"], {}).setdefault(row["isa"], []).append(row["weights"])
    lines = [_row(["op", *isas]), _row(["---"] * (len(isas) + 1))]
    lines += [_row([op, *(_cell(cells.get(isa, ())) for isa in isas)]) for op, cells in sorted(table.items())]
    meaning = [f"`{isa}`: {_MEANING.get(isa) or ', '.join(names)}" for isa, names in document["isas"].items()]
    lines += [
        "",
        f"{'; '.join(meaning)}. Numbers are bits per weight. A node gets the cheapest row of its target that applies.",
        "",
    ]
    lines += [*_conditions(document["kernels"]), ""]
    for kind, names in document["onnx"].items():
        lines += [f"ONNX operators that are read in {kind} files: {', '.join(names)}.", ""]
    return "\n".join(lines)


def _conditions(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """What the rows of an ISA ask of a node, ops of equal conditions together."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row["constraints"]:
            found.setdefault((row["isa"], row["constraints"]), set()).add(row["op"])
    return [
        f"- `{isa}`, {' and '.join(sorted(ops))}: {text[0].lower() + text[1:]}" for (isa, text), ops in found.items()
    ]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(weights: Iterable[str]) -> str:
    """`int 4 8, codebook 4`, or yes for an op without weights."""
    names = set(weights)
    if "-" in names:
        return "yes"
    found = [f for f in FORMATS.values() if f.short in names]
    parts = []
    for word, codebook in (("int", False), ("codebook", True)):
        bits = sorted(f.bits for f in found if f.codebook == codebook)
        parts += [f"{word} {' '.join(map(str, bits))}"] if bits else []
    return ", ".join(parts)


def _ordered(isas: Iterable[str]) -> list[str]:
    found = set(isas)
    return [i for i in _EVERYWHERE if i in found] + sorted(found - set(_EVERYWHERE))
