"""`xdeploy diff`: all equal where nothing is wrong, and a planted fault is found in the layer it was planted in."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from tests.conftest import seed
from tests.e2e.conftest import BUILT, FrontDoor
from xdeploy.bench.host import HostRunner
from xdeploy.bench.runner import Image
from xdeploy.cli import main
from xdeploy.handover import Artifact
from xdeploy.lir.graph import LoweredGraph

EXACT = tuple(f"reference / {name}" for name in BUILT)


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["diff", *arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == "xdeploy.diff/1"
    return document


def pair(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(p for p in document["pairs"] if p["name"] == name)


def test_nothing_is_wrong(door: FrontDoor, capsys: pytest.CaptureFixture[str]) -> None:
    """Every form of the run; the built code is exact in every layer, each node within one code of ONNX Runtime."""
    found = compared(capsys, str(door.out))
    names = [p["name"] for p in found["pairs"]]
    assert names == ["float / fake-quant", "fake-quant / ONNX Runtime", "ONNX Runtime / reference", *EXACT]
    program = json.loads((door.out / "x86-64" / "program.json").read_text())
    for name in EXACT:
        assert pair(found, name)["equal"]
        assert pair(found, name)["compared"] == len(program["nodes"])
    assert pair(found, "ONNX Runtime / reference")["alone_max_difference"] <= 1
    rows = [x["pairs"]["float / fake-quant"] for x in found["layers"] if "float / fake-quant" in x["pairs"]]
    assert len(rows) > 5
    assert all(r["cosine"] > 0.7 and r["sqnr_db"] > 3 for r in rows)


def test_float_values_are_the_files(door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The noise of the last layer, computed again with ONNX Runtime on both files."""
    import onnxruntime

    x = np.random.default_rng(seed() + 3).normal(size=(5, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    found = compared(capsys, str(door.out), "--inputs", str(tmp_path / "x.npy"), "--target", "x86-64")
    sessions = [onnxruntime.InferenceSession(str(p)) for p in (door.model, door.out / "model.onnx")]
    a, b = (s.run(None, {s.get_inputs()[0].name: x})[0].astype(np.float64) for s in sessions)
    expected = 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum())
    row = found["layers"][-1]["pairs"]["float / fake-quant"]
    assert row["sqnr_db"] == pytest.approx(expected, abs=0.5)  # single codes may tip between torch and ONNX Runtime
    assert [p["name"] for p in found["pairs"]][-1] == "reference / x86-64"
    assert found["inputs"]["n"] == 5


def flipped(folder: Path, product: str, layer: str) -> None:
    """Change one weight byte of a layer in a built binary, where its symbol says that it is."""
    artifact = Artifact.load(folder)
    # of an x86-64 library the level that this machine runs
    program = (HostRunner(artifact) if product.endswith(".so") else Image(artifact)).program
    constants = next(n for n in program["nodes"] if n["name"] == layer)["constants"]
    symbol = max(constants.values(), key=lambda c: c["bytes"] if c["type"] != "int32" else 0)["symbol"]
    path = folder / product
    with path.open("rb") as file:
        elf = ELFFile(file)
        entry = elf.get_section_by_name(".symtab").get_symbol_by_name(symbol)[0].entry
        section = elf.get_section(entry["st_shndx"]).header
        at = entry["st_value"] - section["sh_addr"] + section["sh_offset"]
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("target", BUILT)
@pytest.mark.parametrize("layer", ["stem", "b"])
def test_a_flipped_weight_is_found(
    door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, layer: str
) -> None:
    """One byte in the library, or in the image that the emulator runs: the layer it belongs to, and no earlier one."""
    folder = tmp_path / "out"
    shutil.copytree(door.out, folder)
    products = json.loads((folder / target / "manifest.json").read_text())["products"]
    flipped(folder / target, products["library" if target == "x86-64" else "bare"], layer)
    found = compared(capsys, str(folder), "--target", target)
    verdict = pair(found, f"reference / {target}")
    assert not verdict["equal"]
    assert verdict["first"]["layer"] == layer
    assert verdict["first"]["max_difference"] > 0
    row = next(x for x in found["layers"] if x["origin"] == layer)
    assert len(verdict["first"]["index"]) == len(row["shape"]) == 3
    assert pair(found, "ONNX Runtime / reference")["alone_max_difference"] <= 1  # the graph is as it was


def test_a_changed_graph_is_found(door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight code changed in graph.npz: ONNX Runtime before it and the built code after it both disagree there."""
    folder = tmp_path / "out"
    shutil.copytree(door.out, folder)
    graph = LoweredGraph.load(folder / "graph.npz")
    nodes = []
    for node in graph.nodes:
        if node.name == "b":
            codes = node.consts["codes"].copy()
            codes[0] = codes.max() - codes[0] + codes.min()
            node = replace(node, consts={**node.consts, "codes": codes})
        nodes.append(node)
    replace(graph, nodes=tuple(nodes)).save(folder / "graph.txt", folder / "graph.npz")
    found = compared(capsys, str(folder), "--target", "x86-64")
    reading = pair(found, "ONNX Runtime / reference")
    assert reading["alone_max_difference"] > 1
    rows = {x["origin"]: x["pairs"].get("ONNX Runtime / reference", {}) for x in found["layers"]}
    assert [n for n, r in rows.items() if r.get("alone_difference", 0) > 1] == ["b"]
    assert pair(found, "reference / x86-64")["first"]["layer"] == "b"


def test_files_by_themselves(door: FrontDoor, capsys: pytest.CaptureFixture[str]) -> None:
    quantised = compared(capsys, str(door.out / "model.onnx"))
    assert [p["name"] for p in quantised["pairs"]] == ["ONNX Runtime / reference"]
    assert quantised["pairs"][0]["alone_max_difference"] <= 1
    single = compared(capsys, str(door.model))
    assert [(p["name"], p["equal"]) for p in single["pairs"]] == [("ONNX Runtime / torch", True)]
    assert {x["op"] for x in single["layers"]} >= {"Conv", "Gemm", "Add", "Mul"}


class Balanced(HTMLParser):
    """Counts what a page opens and does not close, and what it would load."""

    VOID = ("meta", "br", "line", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.bars = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [v or "" for k, v in attrs if k in ("src", "href")]
        self.bars += tag == "rect"
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.bars += tag == "rect"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("li", "tr", "td", "th") or self.open[-1] == tag:
            self.open.reverse()
            self.open.remove(tag)
            self.open.reverse()


def test_the_files_and_the_text(door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """diff.json is what --json prints; the page is whole, loads nothing, and has a bar per layer and pair."""
    assert main(["diff", str(door.out), "-o", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{EXACT[0]}: all equal" in text
    assert f"{EXACT[1]}: all equal" in text
    document = json.loads((tmp_path / "diff.json").read_text())
    assert document == compared(capsys, str(door.out), "-o", str(tmp_path))
    page = Balanced()
    page.feed((tmp_path / "diff.html").read_text())
    assert page.open == []
    assert page.loads == []
    assert page.bars == sum(len(x["pairs"]) for x in document["layers"]) + len(document["pairs"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "neither a run folder nor an ONNX file"),
        (["OUT", "--target", "cortex-m3"], "unknown built target 'cortex-m3'"),
        (["OUT", "--inputs", "BAD"], "expected float (N, 3, 8, 8)"),
        (["MODEL", "--target", "x86-64"], "--target goes with a run folder"),
    ],
)
def test_what_cannot_be_compared(
    door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    np.save(tmp_path / "bad.npy", np.zeros((2, 8, 8, 3), np.float32))
    places = {"OUT": door.out, "MODEL": door.model, "BAD": tmp_path / "bad.npy"}
    assert main(["diff", *(str(places.get(a, a)) for a in arguments)]) == 2
    assert words in capsys.readouterr().err
