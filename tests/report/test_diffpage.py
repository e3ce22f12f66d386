"""The page and the text of a comparison: names cannot turn into markup, verdicts say what the document holds."""

from __future__ import annotations

from typing import Any

from xdeploy.report.diffpage import html, show, verdict

NAME = "<script>alert(1)</script>&\"'"
FIRST = {"layer": NAME, "max_difference": 3, "equal": 0.5, "sample": 1, "index": [0, 2, 4]}


def document(first: dict[str, Any] | None) -> dict[str, Any]:
    """One layer and one pair of each measure."""
    codes = {"name": "reference / board", "a": "reference", "b": "board", "measure": "codes", "compared": 1}
    reals = {"name": "float / fake-quant", "a": "float", "b": "fake-quant", "measure": "real", "compared": 1}
    pairs = [
        {**reals, "equal": None, "first": None, "tolerance": None, "worst_layer": NAME},
        {**codes, "equal": first is None, "first": first, "max_difference": 3 if first else 0},
    ]
    rows = {
        "float / fake-quant": {"cosine": 0.5, "sqnr_db": 12.5, "max": 0.1},
        "reference / board": {"max_difference": 3 if first else 0, "equal": 0.5 if first else 1.0},
    }
    layer = {"origin": NAME, "op": "conv2d", "tensor": "t", "shape": [1, 3, 5], "pairs": rows}
    inputs = {"from": NAME, "n": 2}
    return {"what": NAME, "inputs": inputs, "pairs": pairs, "notes": [NAME], "layers": [layer]}


def test_names_stay_text() -> None:
    page = html(document(FIRST))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_verdicts() -> None:
    text = verdict(document(FIRST)["pairs"][1])
    assert "first layer that differs" in text
    assert "by 3 codes at index (0, 2, 4) of sample 1" in text
    assert verdict(document(None)["pairs"][1]) == "reference / board: all equal (1 layers)"


def test_the_terminal_shows_markup_as_it_is() -> None:
    """A name in square brackets is no style of the terminal's."""
    value = document(None)
    value["layers"][0]["origin"] = "[red]conv[/red]"
    text = show(value)
    assert "[red]conv[/red]" in text
    assert "0.50000, 12.5 dB" in text
    assert "0, 100 %" in text
