"""README's picture: it is drawn from figures that lie in it, and the committed one is what the script draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.report.documents import NAME, document

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_one_is_drawn_by_the_script(picture: ModuleType) -> None:
    text = (ROOT / "docs" / "chain.svg").read_text(encoding="utf-8")
    found = picture.figures_of(text)
    assert picture.render(found) == text
    assert found["verdict"] == "bit-exact"
    assert sum(row[4] for row in found["layers"]) == found["packed"]
    assert sum(row[1] for row in found["layers"]) == pytest.approx(1.0, abs=1e-3)
    assert "prefers-color-scheme: dark" in text


def test_figures_are_the_reports(picture: ModuleType) -> None:
    report = document("cortex-m4") | {"relevance": {"method": "lrp"}}
    found = picture.figures(report, "cortex-m4")
    text = picture.render(found)
    assert picture.figures_of(text) == found
    root = ElementTree.fromstring(text)  # names cannot break it
    said = " ".join(e.text or "" for e in root.iter() if e.tag.endswith("}text"))
    for part in (
        "8,000 B",
        "1,000 B",
        "1/8.0",
        "700 B",
        "21,454 B flash",
        "6,400 B RAM",
        "98.00 %",
        "595,375",
        NAME[:9],
    ):
        assert part in said
    assert not [e for e in root.iter() if e.tag.endswith("}script")]
