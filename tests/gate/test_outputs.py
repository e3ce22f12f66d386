"""JSON, JUnit, SARIF, Markdown and terminal of one result: each valid, all telling the same, no name breaking out."""

from __future__ import annotations

import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import junitparser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.e2e.test_hostile_names import NAMES
from tests.gate.conftest import FIGURES, artifact
from tests.gate.formats import junit_errors, rules_agree, sarif_errors
from xdeploy.gate import GateResult, Limits, cases, check_artifact, junit, lines, sarif, summary
from xdeploy.gate.text import amount, change, code

LIMITS = {
    "nothing asked": {},
    "all kept": {"flash": 10**6, "ram": 10**6, "accuracy": 0.5, "drop": 5.0, "growth": 50.0},
    "some failed": {"flash": 1, "cycles": 10**9, "energy": 1e-9, "accuracy": 0.99, "growth": 0.0},
    "all failed": {"flash": 1, "ram": 1, "arena": 1, "stack": 1, "accuracy": 1.0, "drop": 0.0, "growth": 0.0},
    "bar crossed": {"latency": 0.0126},
}


@pytest.fixture(params=list(itertools.product(LIMITS, ["bit-exact", "differs"])), ids=lambda p: "-".join(p))
def result(request: pytest.FixtureRequest, tmp_path: Path) -> GateResult:
    name, verdict = request.param
    grown = {**FIGURES, "flash": 11_000, "energy": None}
    bars = {"latency": (0.0120, 0.0130)}
    for target in ("cortex-m4", "cortex-m55"):
        artifact(tmp_path / "base" / target)
        artifact(tmp_path / "out" / target, grown, bars=bars, verdict=verdict, accuracy=(90.0, 91.0, 1000))
    return check_artifact(tmp_path / "out", Limits(**LIMITS[name]), tmp_path / "base")


def all_outputs(result: GateResult) -> tuple[dict[str, Any], Xml.Element, dict[str, Any], str, str]:
    found = cases.of_result(result)
    return (
        json.loads(json.dumps(result.to_dict(), allow_nan=False)),
        Xml.fromstring(junit.render(found)),
        json.loads(sarif.render(found, result.folder.parent)),
        summary.render(result),
        lines.render(result),
    )


def test_all_tell_the_same(result: GateResult) -> None:
    document, xml, log, markdown, text = all_outputs(result)
    failed = {(g.target, g.rule) for g in result.failed}
    gates = [(t["target"], g) for t in document["targets"] for g in t["gates"]]
    assert document["passed"] is result.passed is (not failed)
    assert {(t, g["rule"]) for t, g in gates if g["status"] == "failed"} == failed
    in_xml = {(s.get("name"), c.get("name")) for s in xml for c in s if c.find("failure") is not None}
    assert in_xml == failed
    results = log["runs"][0]["results"]
    assert {(r["message"]["text"].split(":")[0], r["ruleId"]) for r in results if r["level"] == "error"} == failed
    rows = [x.split() for x in text.splitlines()[:-1]]
    assert sum(r[0] == "FAILED" for r in rows) == len(failed)
    assert sum(r[0] in ("FAILED", "ok", "-") for r in rows) == len(result.gates) == int(xml.get("tests", ""))
    assert ("FAILED" in text.splitlines()[-1]) is bool(failed) is ("FAILED" in markdown.splitlines()[0])
    for gate in result.failed:
        assert gate.reason in text
        assert gate.reason in markdown
        assert any(gate.reason in r["message"]["text"] for r in results)


def test_the_reasons_of_each(result: GateResult) -> None:
    """The same sentence and the same numbers everywhere."""
    _, xml, log, _, _ = all_outputs(result)
    by_name = {(s.get("name"), c.get("name")): c for s in xml for c in s}
    for gate in result.gates:
        child = by_name[gate.target, gate.rule][0]
        assert child.tag == {"ok": "system-out", "failed": "failure", "noted": "skipped"}[gate.status]
        assert gate.reason in (child.get("message") or child.text or "")
    for row in log["runs"][0]["results"]:
        gate = next(
            g for g in result.gates if g.rule == row["ruleId"] and row["message"]["text"].startswith(g.target + ":")
        )
        assert row["properties"].get("value") == (gate.value and gate.value["value"])
        assert row["properties"].get("limit") == gate.limit


def test_junit_is_valid(result: GateResult) -> None:
    text = junit.render(cases.of_result(result))
    assert junit_errors(Xml.fromstring(text)) == []
    read = junitparser.JUnitXml.fromroot(Xml.fromstring(text))
    suites = list(read)
    assert sum(s.tests for s in suites) == len(result.gates)
    assert sum(s.failures for s in suites) == len(result.failed)
    assert sum(len(c.result) == 1 and isinstance(c.result[0], junitparser.Failure) for s in suites for c in s) == len(
        result.failed
    )
    buffer = io.BytesIO()
    read.update_statistics()
    read.write(buffer)
    assert junit_errors(Xml.fromstring(re.sub(rb' time="[0-9.]*"', b"", buffer.getvalue()))) == []


def test_sarif_is_valid(result: GateResult) -> None:
    log = all_outputs(result)[2]
    assert sarif_errors(log) == []
    assert rules_agree(log)
    assert log["version"] == "2.1.0"
    for row in log["runs"][0]["results"]:
        uri = row["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert (result.folder.parent / uri).is_file()


def test_the_same_result_gives_the_same_bytes(result: GateResult) -> None:
    again = check_artifact(result.folder, result.limits, result.baseline)
    assert all_outputs(again)[2:] == all_outputs(result)[2:]
    assert junit.render(cases.of_result(again)) == junit.render(cases.of_result(result))


def test_fingerprints_outlive_the_numbers(tmp_path: Path) -> None:
    """A gate that fails again, by another amount and from another folder, is the same alert."""
    prints = []
    for place, flash in (("a", 20_000), ("b", 30_000)):
        found = cases.of_result(
            check_artifact(artifact(tmp_path / place / "cortex-m4", {"flash": flash}), Limits(flash=5))
        )
        log = json.loads(sarif.render(found, tmp_path))
        prints.append(log["runs"][0]["results"][0]["partialFingerprints"])
    assert prints[0] == prints[1]


# --------------------------------------------------------------------------------------------- hostile names
EVIL = [*NAMES, "](javascript:alert(1))", "[x](http://evil)", "@everyone #1 !1", "{0} {1}", "a|b\\|c\\\\|d|",
        "`` ` ```", "]]>", "&lt;&#x0;", "\ud800", "\ufffe\uffff", "<!-- x", "| --- |", "\\"]  # fmt: skip


class Tags(HTMLParser):
    """What a page would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def page_of(markdown: str) -> list[str]:
    parser = Tags()
    parser.feed(MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render(markdown))
    return parser.found


@pytest.mark.parametrize("name", EVIL)
def test_names_from_files_break_nothing(tmp_path: Path, name: str) -> None:
    layers = tuple(
        (f"{n}{k}", k, c, 100) for n, (k, c) in zip((name, name), (("a_s8_s8_1__x", 5), (name, 9)), strict=True)
    )
    about = {"isa": name or "x", "provenance": {"model": {"name": name, "sha256": name}}, "tools": {"xdeploy": name}}
    old = artifact(tmp_path / "old" / "cortex-m4")
    new = artifact(tmp_path / "new" / "cortex-m4", verdict="differs", reason=name, layers=layers, manifest=about)
    plain = artifact(tmp_path / "plain" / "cortex-m4", verdict="differs", reason="r", layers=LAYERS_PLAIN)
    _, xml, log, markdown, text = all_outputs(check_artifact(new, Limits(growth=1), old))
    assert junit_errors(xml) == []
    assert sarif_errors(log) == []
    assert all(c.isprintable() or c == "\n" for c in markdown + text)
    expected = summary.render(check_artifact(plain, Limits(growth=1), old))
    page = page_of(markdown)
    assert set(page) <= set(page_of(expected)) | {"ul", "li", "strong"}
    assert "a" not in page
    assert "img" not in page
    for row in (r for r in table_rows(markdown) if len(r) not in (4, 5, 6)):
        pytest.fail(f"a name ends its cell: {row}")


LAYERS_PLAIN = (("one", "a_s8_s8_1__x", 5, 100), ("two", "b_s8_s8_1__x", 9, 100))


def table_rows(markdown: str) -> list[list[str]]:
    """Cells as GitHub's renderer counts them: a backslash takes the character behind it out of play."""
    rows = [x for x in markdown.splitlines() if x.startswith("|")]
    return [re.findall(r"((?:\\.|[^|\\])+)\|", row[1:]) for row in rows]


@pytest.mark.parametrize("name", EVIL)
def test_obstacles_of_hostile_models(tmp_path: Path, name: str) -> None:
    row = {
        "node": name,
        "op": name,
        "reason": name,
        "rewrite": name,
        "attribute": name,
        "shape": [1, 2],
        "target": None,
    }
    possible = set(name).isdisjoint("\0\ud800")  # as a file's name
    document = {
        "model": f"{name}.onnx" if possible else "net.onnx", "deployable": False,
        "obstacles": [row, row, {**row, "target": name, "op": ""}], "layers": [],
        "fallback": [{"node": name, "ops": [name], "reason": name}],
        "targets": {name: {"deployable": True, "facts": [name]}},
    }  # fmt: skip
    found = cases.of_model(document)
    xml = Xml.fromstring(junit.render(found))
    assert junit_errors(xml) == []
    assert xml.get("failures") == "3"
    log = json.loads(sarif.render(found, tmp_path))
    assert sarif_errors(log) == []
    assert len(log["runs"][0]["results"]) == 4
    markdown = summary.render_model(document)
    assert all(c.isprintable() or c == "\n" for c in markdown)
    assert not set(page_of(markdown)) - {"h3", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert {len(r) for r in table_rows(markdown)} == {5}


@given(st.text(st.sampled_from("\\|`a <>[]()*_&@#!~\n\r\t"), max_size=12))
@settings(max_examples=300, deadline=None)
def test_code_spans_hold(text: str) -> None:
    """Alone and in a cell, a span is one span, with the text in it as far as it is printable."""
    span = code(text)
    tokens = MarkdownIt("commonmark").parseInline(span)[0].children or []
    assert [t.type for t in tokens] == ["code_inline"]
    row = MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n| --- | --- |\n| {span} | x |\n")
    cells = [t for t in row if t.type == "inline"]
    assert len(cells) == 4
    assert [t.type for t in cells[2].children or []] == ["code_inline"]
    if "|" not in text and text.strip() and "\\" not in text:
        assert (
            tokens[0].content.strip().replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t").strip()
            == text.strip()
        )
    assert len(table_rows(f"| {span} | x |")[0]) == 2


# --------------------------------------------------------------------------------------------- amounts
@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(12306, "byte", "12,306 B"), (0.036472, "s", "36.472 ms"), (2.5e-5, "s", "25 us"), (1.5, "s", "1.5 s"),
     (3e-9, "J", "3 nJ"), (1e-12, "J", "0.001 nJ"), (0, "s", "0 s"), (25.0, "%", "25.00 %"), (None, "byte", "-")],
)  # fmt: skip
def test_amounts(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit) == text


@pytest.mark.parametrize(
    ("before", "now", "unit", "text"),
    [(100, 102, "byte", "+2.0 %"), (100, 50, "byte", "-50.0 %"), (5, 5, "byte", "none"), (0, 7, "byte", "+7 B"),
     (None, 7, "byte", "-"), (90.5, 90.0, "%", "-0.50 points")],
)  # fmt: skip
def test_changes(before: float | None, now: float | None, unit: str, text: str) -> None:
    assert change(before, now, unit) == text
