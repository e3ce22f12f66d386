"""SARIF 2.1.0 (OASIS), for code scanning: a result per failed gate or obstacle, and notes; what passed is not listed.

Viewers show every result as an alert, whatever its `kind`, so that those of passed gates would be in the way. Places
are the artifact's files, relative to the working directory or, outside of it, to the folder above; nodes of a model
are logical locations.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xdeploy import __version__
from xdeploy.gate.cases import Case
from xdeploy.gate.limits import RULES
from xdeploy.gate.text import line, message

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"failed": "error", "ok": "warning", "noted": "note"}


def render(cases: Sequence[Case], above: Path) -> str:
    """The whole file; `above` is the folder that places outside of the working directory are relative to."""
    listed = [c for c in cases if c.status != "ok" or c.warning]
    rules = [name for name in RULES if name in {c.rule for c in cases}]
    driver = {
        "name": "xdeploy",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(name) for name in rules],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": "xdeploy/check/"},
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(c, rules.index(c.rule), (Path.cwd(), above)) for c in listed],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, allow_nan=False) + "\n"


def _rule(name: str) -> dict[str, Any]:
    words = name.replace("-", " ").title().replace(" ", "")
    text = {"text": RULES[name]}
    level = {"level": "note" if name == "float-part" else "error"}
    return {"id": name, "name": words, "shortDescription": text, "fullDescription": text, "defaultConfiguration": level}


def _result(case: Case, index: int, roots: Sequence[Path]) -> dict[str, Any]:
    text = f"{case.suite}: {case.text}" + (f"; {case.warning}" if case.warning else "")
    result: dict[str, Any] = {
        "ruleId": case.rule, "ruleIndex": index, "kind": "fail", "level": _LEVELS[case.status],
        "message": {"text": message(text)},
    }  # fmt: skip
    location: dict[str, Any] = {}
    if case.file is not None:
        location["physicalLocation"] = {"artifactLocation": {"uri": relative_uri(case.file, roots)}}
    if case.node is not None:
        name = line(case.node)
        location["logicalLocations"] = [{"name": name, "fullyQualifiedName": name, "kind": "node"}]
    if location:
        result["locations"] = [location]
    digest = hashlib.sha256(json.dumps(case.identity).encode()).hexdigest()
    result["partialFingerprints"] = {"xdeployCheck/v1": digest}
    result["properties"] = {k: line(v) if isinstance(v, str) else v for k, v in case.extra.items()}
    return result


def relative_uri(path: Path, roots: Sequence[Path]) -> str:
    """The path below the first of the roots that holds it, percent-encoded; its name alone if none does."""
    whole = path.resolve()
    for root in roots:
        if whole.is_relative_to(root.resolve()):
            return quote(os.fsencode(whole.relative_to(root.resolve()).as_posix()))
    return quote(os.fsencode(whole.name))
