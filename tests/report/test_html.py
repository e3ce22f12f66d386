"""The page as text: figures with their labels, names as text, our own script alone, nothing that is loaded."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.report.documents import NAME, document
from xdeploy.files import write_npz
from xdeploy.report import background, cards, html, layertable, markdown, pictures
from xdeploy.report.markup import SCRIPT
from xdeploy.report.tables import Table


class Parsed(HTMLParser):
    """Elements, attributes and the cells of the layer table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_stay_text_everywhere() -> None:
    page = html.render(document("cortex-m4", "cortex-a72"))
    assert page.count("<script") == 1
    assert f"<script>{SCRIPT}</script>" in page
    own = page.replace(f"<script>{SCRIPT}</script>", "")
    found = Parsed(own)
    assert "script" not in found.tags
    assert not [n for n, _ in found.attributes if n.startswith("on")]
    assert not [n for n, _ in found.attributes if n in ("href", "src", "xlink:href")]
    assert "\u202e" not in own
    assert "alert(1)" in found.text  # told, as text
    assert found.text.count("$x$") >= 5  # and not read as a formula


def test_nothing_is_loaded_and_only_our_script_runs() -> None:
    page = html.render(document("cortex-m4"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    inside = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
    assert policy[1] == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'"
    )
    assert not re.search(r"https?://|url\(|@import", page)


def test_charts_have_text_and_the_pages_colours() -> None:
    page = html.render(document("cortex-m4"))
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == 4  # steps, front, bits, arena
    for svg in drawn:
        assert 'role="img" aria-label="' in svg
        assert "var(--ink)" in svg
        assert not re.search(r"#[0-9a-f]{6}|clip-path|<use|<image|font-family|url\(", svg)
    assert "quantise 8,000 1,000 99.00 85.50 -13.50 200" in page.replace("</td><td", " ") or "−13.50" in page


def test_headline_says_how_and_how_sure() -> None:
    found = Parsed(html.render(document("cortex-m4"))).text
    assert "98.00 %" in found
    assert "before: 99.50 % in float (−1.50 points)" in found
    assert "measured on 400 samples, ±0.70 by their number" in found  # sqrt(.98 * .02 / 400)
    assert "12.50 ms" in found
    assert "11.00 to 14.50 ms; modelled" in found
    assert "440.00 µJ" in found
    assert "452 Bemulated" in found


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(3e-7, "s", "0.3 µs"), (0.0125, "s", "12.50 ms"), (2.0, "s", "2 s"), (5e-9, "J", "5.00 nJ"),
     (21454, "byte", "21,454 B"), (0.0, "J", "0 nJ"), (1234567, "instruction", "1,234,567"),
     (12345.6, "cycle", "12,346")],
)  # fmt: skip
def test_amounts_are_short_and_have_their_unit(value: float, unit: str, text: str) -> None:
    assert cards.amount({"value": value, "unit": unit, "how": "measured"}) == text


def test_layers_are_complete_and_dashes_sort_last() -> None:
    report = document("cortex-m4", "cortex-a72")
    page = layertable.render(report)
    assert page.count("<tr>") == len(report["layers"]) + 2
    titles = [c.title for c in layertable.columns(report)]
    assert titles[:10] == ["origin", "op", "shape", "MACs", "weights", "activations", "channels", "zeros, %",
                           "relevance, %", "bytes"]  # fmt: skip
    assert titles[10:14] == ["instructions, cortex-m4 (emulated)", "cycles, cortex-m4 (modelled)",
                             "energy, µJ, cortex-m4 (modelled)", "kernel, cortex-m4"]  # fmt: skip
    sums = re.search(r"<tfoot>(.*)</tfoot>", page)
    assert sums
    for key in ("macs", "bytes"):
        assert f">{sum(x[key] for x in report['layers']):,}<" in sums[1]
    unscored = page.split('data-v="layer03.conv"')[1].split("</tr>")[0]
    assert unscored.count('data-v="">–') == 4  # channels, weights, zeros, relevance


def test_a_bare_run_has_no_empty_sections() -> None:
    """A quantised file built as it is: no steps, scores, accuracies or confusions."""
    report = document("cortex-m4")
    report |= {"steps": [], "points": [], "confusion": None, "stages_memory": {}}
    report["accuracy"] = dict.fromkeys(("float", "fake_quant", "deployed"))
    report["weights"]["coded_bytes"] = None
    report["layers"] = [{**x, "relevance_share": None} for x in report["layers"]]
    page = html.render(report)
    text = Parsed(page).text
    assert "not known" in text
    assert "kept as it is" in text
    assert "Confusions" not in text
    assert page.count("<svg") == 1  # the arena
    assert "share of relevance" not in text


def test_steps_of_an_older_run_have_no_bytes() -> None:
    report = document("cortex-m4")
    report["steps"] = [{k: v for k, v in s.items() if not k.startswith("bytes")} for s in report["steps"]]
    assert "accuracy, % (points)" in html.render(report)
    assert background.steps(report).rows[0][1] == "-"


def test_heatmaps_are_the_saved_ones(tmp_path: Path) -> None:
    """The colours: full red for 1, white for 0, full blue for -1."""
    red, white, blue = pictures.coloured(np.array([1.0, 0.0, -1.0]))
    assert red[0] > 2 * red[2]
    assert white.min() > 0.95
    assert blue[2] > 2 * blue[0]
    rng = np.random.default_rng(0)
    arrays = {"labels": np.array([1, 0]), "pictures": rng.random((2, 5, 5)), "float_predicted": np.array([1, 0]),
              "compressed_predicted": np.array([1, 1])}  # fmt: skip
    arrays |= {f"{n}_drawn": rng.random((2, 5, 5)) for n in ("float", "compressed")}
    write_npz(tmp_path / "survival.npz", arrays)
    found = pictures.heatmaps(tmp_path / "survival.png", ["zero", NAME])
    assert found.count("<img") == 6
    assert found.count("<b>×") == 1
    assert "<script" not in found


def test_many_classes_become_a_list() -> None:
    """Of 30 classes the square is not drawn; the most frequent errors come first."""
    found = {"labels": [f"c{k}" for k in range(30)], "counts": [[0, 0, 9], [3, 4, 2], [5, 6, 7]]}
    page = pictures.confusion(found)
    assert page.index("c5") < page.index("c3")
    assert "c0" not in page
    table = background.confusions({"confusion": found})
    assert table.rows == (("c5", "c6", "7"), ("c3", "c4", "2"))


def test_markdown_has_the_same_figures() -> None:
    text = markdown.render(document("cortex-m4"))
    assert "| quantise | 8,000 | 1,000 | 99.00 | 85.50 | -13.50 | 200 |" in text
    assert "| plan | 1.5 | 256 | measured |" in text
    assert "<script" not in text.replace("\\<", "")
    assert "\u202e" not in text
    assert "zeros, %" in text


def test_stages_without_memory_are_told_without_it() -> None:
    report = document("cortex-m4") | {"stages_memory": {}}
    table: Table = background.stages(report)
    assert table.rows == (("plan", "1.5", "-", "measured"),)


def test_before_and_what_is_not_known() -> None:
    """Flash and RAM have what float would need at the least; what nothing told is said to be unknown, and why."""
    report = document("cortex-m4")
    report["targets"]["cortex-m4"] |= {"latency": None, "energy": None, "cannot": {"latency": "no clock here"}}
    found = Parsed(html.render(report)).text
    assert "before: 8,000 B of float32 weights alone; modellednow: measured" in found
    assert "before: 128 B of float32 activations alone; modelled" in found  # 32 B of "a", of one byte each
    assert "latencynot knownno clock here" in found
    assert "energynot knownnothing here measures or models it" in found


def test_long_names_may_break_where_they_are_joined() -> None:
    page = layertable.render(document("cortex-m4"))
    assert "layer00.<wbr>conv<" in page
    assert "kernel0_<wbr>_" not in page
