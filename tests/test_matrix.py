"""The support matrix: the README has what the registries say, and the registries are counted a second way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from xdeploy.cli import main
from xdeploy.kernel import KERNELS
from xdeploy.matrix import markdown, support
from xdeploy.target import load_target

README = Path(__file__).resolve().parents[1] / "README.md"


def table() -> dict[str, dict[str, str]]:
    """op -> ISA -> cell of the README's matrix."""
    text = README.read_text().split("<!-- ops -->\n")[1].split("<!-- /ops -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def test_the_readme_is_up_to_date() -> None:
    text = README.read_text().split("<!-- ops -->\n")[1].split("<!-- /ops -->")[0]
    assert text == markdown(support()), "put the output of `xdeploy ops --markdown` between the two marks"


def test_every_row_stands_in_its_cell() -> None:
    """From the kernels' names, whose grammar is op_act_weight_tile__isa."""
    cells: dict[tuple[str, str], set[str]] = {}
    for name in KERNELS:
        stem, _, isa = name.partition("__")
        op, weight = re.fullmatch(r"(.+)_[sf](?:8|32)_([a-z0-9-]+)_[a-z0-9]+", stem).groups()  # type: ignore[union-attr]
        cells.setdefault((op, isa), set()).add(weight)
    shown = {(op, isa): cell for op, row in table().items() for isa, cell in row.items() if cell}
    assert set(shown) == set(cells)
    for key, weights in cells.items():
        if weights == {"-"}:
            assert shown[key] == "yes"
            continue
        bits = {f"s{b}" for b in re.findall(r"\d", shown[key].partition("codebook")[0])}
        assert bits | {f"c{b}s8" for b in re.findall(r"\d", shown[key].partition("codebook")[2])} == weights


def test_a_target_shows_its_own_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops", "--target", "cortex-m55", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    features = load_target("cortex-m55").features
    assert {r["kernel"] for r in found["kernels"]} == {k.name for k in KERNELS.values() if k.isa in features}
    assert {"mve", "c99", "tir"} <= set(found["isas"])
    assert "neon" not in found["isas"]


def test_constraints_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows for one ISA's own instructions never take every node, so each says which."""
    for row in support()["kernels"]:
        if row["isa"] not in ("c99", "tir"):
            assert row["constraints"], row["kernel"]
    assert main(["ops"]) == 0
    assert "residuals only with an even number of channels" in capsys.readouterr().out


def test_the_operators_are_those_that_are_read() -> None:
    operators = support()["onnx"]
    assert {"Conv", "Gemm", "Relu", "Add", "Resize"} <= set(operators["float"])
    assert {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "Conv"} <= set(operators["quantised"])
