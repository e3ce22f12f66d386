"""What JUnit XML and SARIF 2.1.0 allow of what is written here, by hand from the Jenkins schema and the OASIS text."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as Xml

# object -> property -> (kind, required); kinds: a type, an object's name, or a list of one
SARIF: dict[str, dict[str, tuple[Any, bool]]] = {
    "sarifLog": {"$schema": (str, False), "version": (str, True), "runs": (["run"], True)},
    "run": {"tool": ("tool", True), "automationDetails": ("runAutomationDetails", False),
            "invocations": (["invocation"], False), "results": (["result"], False)},
    "tool": {"driver": ("toolComponent", True)},
    "toolComponent": {"name": (str, True), "version": (str, False), "semanticVersion": (str, False),
                      "rules": (["reportingDescriptor"], False)},
    "reportingDescriptor": {"id": (str, True), "name": (str, False), "shortDescription": ("text", False),
                            "fullDescription": ("text", False), "defaultConfiguration": ("configuration", False)},
    "configuration": {"level": (str, False)},
    "runAutomationDetails": {"id": (str, False)},
    "invocation": {"executionSuccessful": (bool, True)},
    "result": {"ruleId": (str, False), "ruleIndex": (int, False), "kind": (str, False), "level": (str, False),
               "message": ("text", True), "locations": (["location"], False), "partialFingerprints": (dict, False),
               "properties": (dict, False)},
    "location": {"physicalLocation": ("physicalLocation", False), "logicalLocations": (["logicalLocation"], False)},
    "physicalLocation": {"artifactLocation": ("artifactLocation", False)},
    "artifactLocation": {"uri": (str, False)},
    "logicalLocation": {"name": (str, False), "fullyQualifiedName": (str, False), "kind": (str, False)},
    "text": {"text": (str, True)},
}  # fmt: skip
URI = re.compile(r"(?!/)(?:[A-Za-z0-9._~!$&'()*+,;=@/-]|%[0-9A-F]{2})+")  # RFC 3986: path-noscheme


def sarif_errors(value: Any, kind: Any = "sarifLog", place: str = "") -> list[str]:
    """Everything that breaks the format, by place."""
    if isinstance(kind, type):
        return [] if isinstance(value, kind) else [f"{place}: no {kind.__name__}"]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{place}: no array"]
        return [e for i, x in enumerate(value) for e in sarif_errors(x, kind[0], f"{place}[{i}]")]
    if not isinstance(value, dict):
        return [f"{place}: no object"]
    rows = SARIF[kind]
    found = [f"{place}: {k} is no property of {kind}" for k in value if k not in rows]
    found += [f"{place}: {k} is missing" for k, (_, needed) in rows.items() if needed and k not in value]
    for key in value.keys() & rows.keys():
        found += sarif_errors(value[key], rows[key][0], f"{place}.{key}")
    return found + (_result_errors(value, place) if kind == "result" else [])


def _result_errors(value: dict[str, Any], place: str) -> list[str]:
    found = []
    if value["kind"] not in ("fail", "pass", "open", "review", "informational", "notApplicable"):
        found.append(f"{place}: kind")
    if value["level"] not in ("none", "note", "warning", "error") or (value["kind"] == "fail") == (
        value["level"] == "none"
    ):
        found.append(f"{place}: level")  # 3.27.10: none for every kind but fail
    text = value["message"]["text"]
    if re.search(r"\]\(", text) or re.search(r"(?<!\{)\{(?:\{\{)*(?!\{)\d", text):
        found.append(f"{place}: the message holds a link or a placeholder")  # 3.11.5, 3.11.6
    for location in value.get("locations", []):
        uri = location.get("physicalLocation", {}).get("artifactLocation", {}).get("uri", "x")
        if not URI.fullmatch(uri) or ".." in uri.split("/"):
            found.append(f"{place}: uri {uri}")
    return found


def rules_agree(document: dict[str, Any]) -> bool:
    """Whether every result's ruleIndex points to its ruleId, and ids and fingerprints are unique."""
    run = document["runs"][0]
    rules = [r["id"] for r in run["tool"]["driver"]["rules"]]
    prints = [tuple(r["partialFingerprints"].items()) for r in run["results"]]
    right = all(rules[r["ruleIndex"]] == r["ruleId"] for r in run["results"])
    return right and len(set(rules)) == len(rules) and len(set(prints)) == len(prints)


JUNIT = {
    "testsuites": ({"name", "tests", "failures", "errors", "skipped"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped"}, {"testcase"}),
    "testcase": ({"name", "classname"}, {"failure", "skipped", "system-out"}),
    "failure": ({"message", "type"}, set()),
    "skipped": ({"message"}, set()),
    "system-out": (set(), set()),
}


def junit_errors(element: Xml.Element) -> list[str]:
    """What breaks the schema: attributes, children, counts that are not those of the testcases below."""
    attributes, children = JUNIT[element.tag]
    found = [f"{element.tag}: attributes {sorted(element.attrib)}"] if set(element.attrib) != attributes else []
    found += [f"{element.tag}: holds {c.tag}" for c in element if c.tag not in children]
    counted = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for key, tag in counted.items():
        if key in element.attrib and int(element.attrib[key]) != len(list(element.iter(tag))):
            found.append(f"{element.tag}: {key} is {element.attrib[key]}")
    if element.tag == "testcase" and len(element) != 1:
        found.append("testcase: one child, what came of it")
    names = [c.get("name") for c in element if c.tag in ("testsuite", "testcase")]
    found += [f"{element.tag}: names repeat"] if len(set(names)) != len(names) else []
    return found + [e for child in element for e in junit_errors(child)]
