"""What JUnit and SARIF are written from: one case per gate of an artifact, or per obstacle of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xdeploy.gate.result import Gate, GateResult, Status
from xdeploy.gate.text import line


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that was judged.

    suite: target or model. name: unique in the suite. rule: a key of `limits.RULES`. text: one sentence. warning: ""
    or what to know although it passed. file: what it is about, None where the model is no file. node: name of a
    node of a model. identity: tells this case from all others, and is the same in the next run. extra: numbers.
    """

    suite: str
    name: str
    status: Status
    rule: str
    text: str
    identity: tuple[str, ...]
    warning: str = ""
    file: Path | None = None
    node: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def of_result(result: GateResult) -> list[Case]:
    """One case per gate."""
    return [_gate(g, t.model) for t in result.targets for g in t.gates]


def _gate(gate: Gate, model: str) -> Case:
    value = {} if gate.value is None else {k: gate.value[k] for k in ("value", "unit", "how")}
    extra = {**value, "limit": gate.limit, "headroom": gate.headroom}
    known = {k: v for k, v in extra.items() if v is not None}
    identity = (gate.rule, gate.target, model)
    text = f"{gate.figure}: {gate.reason}"
    return Case(gate.target, gate.rule, gate.status, gate.rule, text, identity, gate.warning, gate.source, extra=known)


def of_model(document: Mapping[str, Any]) -> list[Case]:
    """One case per obstacle and per part in float; one that passes for every target, or model, without an obstacle.

    Args:
        document: what `xdeploy.check.check` returns.
    """
    model = str(document["model"])
    file = Path(model) if model.lower().endswith((".onnx", ".pt2")) else None
    cases = [_obstacle(o, model, file) for o in document["obstacles"]]
    for row in document["fallback"]:
        text = f"{row['node']} ({', '.join(row['ops'])}): {row['reason']}"
        identity = ("float-part", model, str(row["node"]))
        cases.append(Case(model, str(row["node"]), "noted", "float-part", text, identity, file=file, node=row["node"]))
    for target, row in document["targets"].items():
        if row["deployable"]:
            text = "; ".join(row["facts"]) or "can be deployed"
            cases.append(Case(target, "deployable", "ok", "deployable", text, ("deployable", target, model), file=file))
    if document["deployable"] and not document["targets"]:
        text = f"all {len(document['layers'])} layers can be deployed"
        cases.append(Case(model, "deployable", "ok", "deployable", text, ("deployable", model), file=file))
    return list(_unique(cases))


def _obstacle(row: Mapping[str, Any], model: str, file: Path | None) -> Case:
    node, op, target = str(row["node"]), str(row["op"]), row["target"]
    details = [f"on {target}"] if target else []
    details += [f"shape {'x'.join(map(str, row['shape']))}"] if row["shape"] else []
    details += [str(row["attribute"])] if row["attribute"] else []
    where = ", ".join([f"{node} ({op})" if op else node, *details])
    instead = f"; instead: {row['rewrite']}" if row["rewrite"] else ""
    extra = {k: row[k] for k in ("op", "attribute", "shape", "rewrite") if row[k]}
    identity = ("deployable", str(target or ""), model, node, op, str(row["attribute"]), str(row["reason"]))
    text = f"{where}: {row['reason']}{instead}"
    return Case(target or model, node, "failed", "deployable", text, identity, file=file, node=node, extra=extra)


def _unique(cases: Iterable[Case]) -> Iterable[Case]:
    """The cases with a number behind names that a suite has already, as they will be shown."""
    seen: dict[tuple[str, str], int] = {}
    for case in cases:
        key = (line(case.suite), line(case.name))
        seen[key] = seen.get(key, 0) + 1
        yield case if seen[key] == 1 else replace(case, name=f"{line(case.name, 380)} ({seen[key]})")
