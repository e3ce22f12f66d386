"""The roofline of a report: intensities and rates are those of the layers, targets without times have none."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.report.documents import NAME, amount, document
from xdeploy.report import html, layertable, roofchart


def measured(report: dict[str, Any], target: str) -> dict[str, Any]:
    """Times for the layers of a target, and limits of the machine."""
    limits = {"multiply": amount(8e10, "MAC/s", note="m"), "cache": amount(1.5e11, "byte/s", note="c"),
              "memory": amount(4e9, "byte/s", note="r")}  # fmt: skip
    report["targets"][target]["limits"] = limits
    for k, x in enumerate(report["layers"]):
        x["traffic"] = amount(100 * (k + 1), how="modelled")
        x["targets"][target]["time"] = amount(1e-6 * (k + 1), "s") if x["weight_format"] else None
    return report


def test_points_are_macs_by_bytes_and_by_seconds() -> None:
    report = measured(document("x86-64"), "x86-64")
    rows = {p.name: p for p in roofchart.points(report, "x86-64")}
    with_work = [x for x in report["layers"] if x["macs"] and x["weight_format"]]
    assert len(rows) == len(with_work) >= 3
    for x in with_work:
        at, seconds = rows[x["origin"]], x["targets"]["x86-64"]["time"]["value"]
        assert at.intensity == x["macs"] / x["traffic"]["value"]
        assert at.rate * seconds == pytest.approx(x["macs"])


def test_the_chart_is_in_the_page_of_its_target_alone() -> None:
    report = measured(document("cortex-m4", "x86-64"), "x86-64")
    page = html.render(report)
    found = re.findall(r'<div data-t="(\d)"><h2>Roofline', page)
    assert found == ["1"]
    chart = roofchart.roofline(report, "x86-64")
    assert chart in page
    assert "Roofline of x86-64" in chart
    assert NAME not in chart
    for text in ("measured", "modelled", "multiplying", "reading memory"):
        assert text in page
    assert roofchart.roofline(report, "cortex-m4") == ""
    assert "Roofline" not in html.render(document("cortex-m4"))


def test_numbers_hold_the_limits_and_their_labels() -> None:
    report = measured(document("x86-64"), "x86-64")
    table = roofchart.numbers(report, "x86-64")
    assert len(table.rows) == len(roofchart.points(report, "x86-64"))
    share = {row[0]: row[4] for row in table.rows}
    for p in roofchart.points(report, "x86-64"):
        assert share[p.name] == f"{100 * p.rate / 8e10:.0f}"
    for text in ("multiply: 80.0 measured", "cache: 150.0 measured", "memory: 4.0 measured"):
        assert text in table.note
    del report["targets"]["x86-64"]["limits"]["multiply"]  # another machine
    assert {row[4] for row in roofchart.numbers(report, "x86-64").rows} == {"-"}
    assert "<svg" in roofchart.roofline(report, "x86-64")


def test_times_are_a_column_of_the_layers() -> None:
    report = measured(document("x86-64"), "x86-64")
    titles = [c.title for c in layertable.columns(report)]
    assert "time, µs (measured)" in titles
    total = sum(q["value"] for x in report["layers"] if (q := x["targets"]["x86-64"]["time"]))
    assert f">{1e6 * total:.2f}<" in layertable.render(report)
